package archive

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go/bloom"
	"github.com/parquet-go/parquet-go/bloom/xxhash"
	"github.com/parquet-go/parquet-go/encoding/delta"
	"github.com/parquet-go/parquet-go/format"
)

// table is a segment that is read. It takes from the file what a question needs, piece by piece; the library would make
// structures of the whole footer first, which takes 0.66 ms for a million rows, where this takes 0.24 (go test -run '^$' -bench
// Open ./archive). Files that a later version has written may have more columns.
type table struct {
	f      io.ReaderAt
	file   *os.File // that f is, to be closed
	size   int64
	origin Origin
	facts  []byte // as JSON
	rows   int64
	groups []*rowGroup
}

// rowGroup is a row group of a table.
type rowGroup struct {
	rows   int64
	chunks [columnCount]chunk
	// The page indexes of all columns, from where in the file on; nil until they are needed.
	columnIndexes, offsetIndexes span
}

// span is a part of a file that has been read.
type span struct {
	at, end int64
	b       []byte
}

// read returns the part of the file from at to end, which lies in the span.
func (s *span) read(f io.ReaderAt, at, end int64) ([]byte, error) {
	if s.b == nil {
		if s.end-s.at > maxPage {
			return nil, errDescription
		}
		b := make([]byte, s.end-s.at)
		if _, err := f.ReadAt(b, s.at); err != nil {
			return nil, unexpected(err)
		}
		s.b = b
	}
	if at < s.at || end > s.end || at > end {
		return nil, errDescription
	}
	return s.b[at-s.at : end-s.at], nil
}

// grow makes the span hold a part of the file as well.
func (s *span) grow(at, n int64) {
	if n <= 0 {
		return
	}
	if s.end == 0 {
		s.at, s.end = at, at+n
	}
	s.at, s.end = min(s.at, at), max(s.end, at+n)
}

// release forgets what was read of the group.
func (g *rowGroup) release() {
	g.columnIndexes.b, g.offsetIndexes.b = nil, nil
	for i := range g.chunks {
		g.chunks[i].entries = nil
	}
}

// chunk is a column of a row group.
type chunk struct {
	there                    bool
	kind                     format.Type
	codec                    format.CompressionCodec
	values, nulls            int64
	least, greatest          []byte // nil: not known, or there is no value
	dictionary, data, filter int64  // where they are; 0: there is none
	filterSize               int64  // with its header
	columnIndex, columnEnd   int64
	offsetIndex, offsetEnd   int64
	entries                  *entries // the dictionary, once it was read
}

// The file may be anybody's: what is read or unpacked at a time is bounded.
const (
	maxPage   = 64 << 20 // bytes of a page, a dictionary, a footer
	maxValues = 4 << 20  // of a page, and rows of a group; ours have 65,536 rows, and at most 32 values of each in a list
	maxGroups = 4096     // of a segment; one takes some KiB here, and a byte in a footer. Ours have 63 at most
)

var errDescription = errors.New("its description is damaged")

// openSegment opens a segment.
func openSegment(path string) (*table, error) {
	if err := Works(); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		var t *table
		if t, err = openTable(f, info.Size()); err == nil {
			t.file = f
			return t, nil
		}
	}
	f.Close()
	return nil, err
}

// close closes the file.
func (t *table) close() error { return t.file.Close() }

// usualFooter is how much of a file's end is read at once, in the hope that the footer is in it.
const usualFooter = 96 << 10

// openTable reads the footer of a segment.
func openTable(f io.ReaderAt, size int64) (*table, error) {
	if size < 12 {
		return nil, errNoSegment
	}
	end := make([]byte, min(size, usualFooter))
	if _, err := f.ReadAt(end, size-int64(len(end))); err != nil && err != io.EOF {
		return nil, err
	}
	if string(end[len(end)-4:]) != magic {
		return nil, errNoSegment
	}
	n := int64(binary.LittleEndian.Uint32(end[len(end)-8:]))
	if n > size-12 || n > maxPage {
		return nil, errDescription
	}
	footer := end[:len(end)-8]
	if n <= int64(len(footer)) {
		footer = footer[int64(len(footer))-n:]
	} else {
		footer = make([]byte, n)
		if _, err := f.ReadAt(footer, size-8-n); err != nil {
			return nil, unexpected(err)
		}
	}
	t := &table{f: f, size: size}
	origin := []byte(nil)
	r := thriftReader{b: footer}
	r.fields(func(id int16, kind byte) {
		switch {
		case id == 3 && kind == thriftI64:
			t.rows = r.int()
		case id == 4 && kind == thriftList:
			t.readGroups(&r)
		case id == 5 && kind == thriftList:
			_, n := r.list()
			for range n {
				switch key, value := r.pair(); string(key) {
				case metaOrigin:
					origin = value
				case metaFacts:
					t.facts = value
				}
			}
		}
	})
	if r.bad {
		return nil, errDescription
	}
	if origin == nil {
		return nil, errNoSegment
	}
	if err := json.Unmarshal(origin, &t.origin); err != nil {
		return nil, fmt.Errorf("its description: %w", err)
	}
	return t, t.check()
}

var errNoSegment = errors.New("is no segment of an archive")

// pair reads a structure of two strings.
func (r *thriftReader) pair() (key, value []byte) {
	r.fields(func(id int16, kind byte) {
		switch {
		case id == 1 && kind == thriftBinary:
			key = r.bytes()
		case id == 2 && kind == thriftBinary:
			value = r.bytes()
		}
	})
	return key, value
}

// check looks whether the groups are what the file says of itself, and lie in it.
func (t *table) check() error {
	rows := int64(0)
	for _, g := range t.groups {
		if g.rows < 0 || g.rows > maxValues {
			return errDescription
		}
		rows += g.rows
		for i := range g.chunks {
			c := &g.chunks[i]
			if !c.there {
				continue
			}
			if c.kind != physical[encodingOf(&columns[i])] {
				return fmt.Errorf("column %s is of another type", columns[i].name)
			}
			for _, at := range [...]int64{c.dictionary, c.data, c.filter, c.filterSize, c.columnIndex, c.offsetIndex, c.columnEnd, c.offsetEnd} {
				if at < 0 || at > t.size {
					return errDescription
				}
			}
		}
	}
	if rows != t.rows {
		return errDescription
	}
	return nil
}

// readGroups reads the descriptions of the row groups. Their columns are the same, in the same order.
func (t *table) readGroups(r *thriftReader) {
	var which []int // by its place in a group, a column's number here; -1: it is not known
	_, n := r.list()
	if n > maxGroups {
		r.fail()
		return
	}
	for range n {
		g := new(rowGroup)
		r.fields(func(id int16, kind byte) {
			switch {
			case id == 1 && kind == thriftList:
				_, n := r.list()
				for i := range n {
					var c chunk
					if i < len(which) {
						r.chunk(&c, nil)
					} else {
						var path []string
						r.chunk(&c, &path)
						which = append(which, columnAt(path))
					}
					if k := which[i]; k >= 0 {
						c.there = true
						g.chunks[k] = c
						g.columnIndexes.grow(c.columnIndex, c.columnEnd-c.columnIndex)
						g.offsetIndexes.grow(c.offsetIndex, c.offsetEnd-c.offsetIndex)
					}
				}
			case id == 3 && kind == thriftI64:
				g.rows = r.int()
			}
		})
		if r.bad {
			return
		}
		t.groups = append(t.groups, g)
	}
}

// columnAt returns the number of the column at a path of the schema, -1 if it is not known.
func columnAt(path []string) int {
	for i := range columns {
		if len(path) > 0 && columns[i].name == path[0] && slices.Equal(columns[i].path(), path) {
			return i
		}
	}
	return -1
}

// chunk reads the description of a column of a row group; its path only if it is asked for.
func (r *thriftReader) chunk(c *chunk, path *[]string) {
	r.fields(func(id int16, kind byte) {
		switch {
		case id == 3 && kind == thriftStruct:
			r.chunkData(c, path)
		case id == 4:
			c.offsetIndex = r.int()
			c.offsetEnd = c.offsetIndex
		case id == 5:
			c.offsetEnd += r.int()
		case id == 6:
			c.columnIndex = r.int()
			c.columnEnd = c.columnIndex
		case id == 7:
			c.columnEnd += r.int()
		}
	})
}

func (r *thriftReader) chunkData(c *chunk, path *[]string) {
	r.fields(func(id int16, kind byte) {
		switch {
		case id == 1:
			c.kind = format.Type(r.int())
		case id == 3 && kind == thriftList && path != nil:
			_, n := r.list()
			for range n {
				*path = append(*path, string(r.bytes()))
			}
		case id == 4:
			c.codec = format.CompressionCodec(r.int())
		case id == 5:
			c.values = r.int()
		case id == 9:
			c.data = r.int()
		case id == 11:
			c.dictionary = r.int()
		case id == 12 && kind == thriftStruct:
			r.fields(func(id int16, kind byte) {
				switch id {
				case 3:
					c.nulls = r.int()
				case 5:
					c.greatest = r.bytes()
				case 6:
					c.least = r.bytes()
				}
			})
		case id == 14:
			c.filter = r.int()
		case id == 15:
			c.filterSize = r.int()
		}
	})
}

// value is a value of a column: null if it is not there.
type value struct {
	there bool
	n     uint64
	text  []byte
}

var null value

// same reports whether two values of a column are the same.
func (v value) same(w value) bool { return v.n == w.n && bytes.Equal(v.text, w.text) }

// bound makes a value of what statistics say.
func bound(e encoding, b []byte) (v value, ok bool) {
	v.there = true
	switch {
	case b == nil:
		return null, false
	case e == dictText:
		v.text = b
	case e == plainBool && len(b) == 1:
		v.n = uint64(b[0])
	case (e == delta32 || e == dict32) && len(b) == 4:
		v.n = uint64(binary.LittleEndian.Uint32(b))
	case e != plainBool && len(b) == 8:
		v.n = binary.LittleEndian.Uint64(b)
	default:
		return null, false
	}
	return v, true
}

// empty reports whether a column of a group is null in all rows. Of lists nothing is known, as one may be empty.
func (g *rowGroup) empty(c int) bool {
	k := &g.chunks[c]
	return !k.there || k.nulls == k.values && columns[c].list == nil
}

// constant returns the value that all rows of a group have.
func (g *rowGroup) constant(c int) (v value, ok bool) {
	k := &g.chunks[c]
	if k.nulls != 0 || columns[c].list != nil || k.least == nil || string(k.least) != string(k.greatest) {
		return null, false
	}
	return bound(encodingOf(&columns[c]), k.least)
}

// filtered reports whether a column of a group may have a text, by its filter.
func (t *table) filtered(g *rowGroup, c int, text []byte) bool {
	at := g.chunks[c].filter
	if at == 0 {
		return true
	}
	// Its header is shorter than a block: what is left of whole blocks.
	n := g.chunks[c].filterSize / bloom.BlockSize * bloom.BlockSize
	at = at + g.chunks[c].filterSize - n
	if n < bloom.BlockSize || n > t.size-at {
		return true // what reads the column tells
	}
	ok, err := bloom.CheckSplitBlock(io.NewSectionReader(t.f, at, n), n, xxhash.Sum64(text))
	return err != nil || ok
}

// place is where a page of a column is, and what its bounds are.
type place struct {
	at       int64
	size     int32
	row, end int64 // its rows

	least, greatest value // only if the bounds were asked for
	nulls           int64
}

// places returns the pages of a column of a group. Bounds are there if they are asked for.
func (t *table) places(g *rowGroup, c int, bounds bool) (places []place, err error) {
	k := &g.chunks[c]
	b, err := g.offsetIndexes.read(t.f, k.offsetIndex, k.offsetEnd)
	if err != nil {
		return nil, err
	}
	r := thriftReader{b: b}
	r.fields(func(id int16, kind byte) {
		if id != 1 || kind != thriftList {
			return
		}
		_, n := r.list()
		if int64(n) > g.rows { // each has one at least
			r.fail()
			return
		}
		places = make([]place, n)
		for i := range places {
			p := &places[i]
			r.fields(func(id int16, kind byte) {
				switch id {
				case 1:
					p.at = r.int()
				case 2:
					p.size = int32(r.int())
				case 3:
					p.row = r.int()
				}
			})
		}
	})
	for i := range places {
		p := &places[i]
		p.end = g.rows
		if i+1 < len(places) {
			p.end = places[i+1].row
		}
		if p.at < 0 || p.size < 0 || p.size > maxPage || p.at > t.size-int64(p.size) || p.row >= p.end || p.end > g.rows || i == 0 && p.row != 0 {
			return nil, errDescription
		}
	}
	if r.bad || len(places) == 0 {
		return nil, errDescription
	}
	if !bounds {
		return places, nil
	}
	if b, err = g.columnIndexes.read(t.f, k.columnIndex, k.columnEnd); err != nil {
		return nil, err
	}
	e := encodingOf(&columns[c])
	r = thriftReader{b: b}
	r.fields(func(id int16, kind byte) {
		if kind != thriftList || id != 2 && id != 3 && id != 5 {
			return
		}
		_, n := r.list()
		if n != len(places) {
			r.fail()
		}
		for i := range min(n, len(places)) {
			p := &places[i]
			switch id {
			case 2:
				p.least, _ = bound(e, r.bytes())
			case 3:
				p.greatest, _ = bound(e, r.bytes())
			default:
				p.nulls = r.int()
			}
		}
	})
	if r.bad {
		return nil, errDescription
	}
	for i := range places {
		// A page of nulls has bounds without a byte, and so may one of empty texts.
		if p := &places[i]; p.nulls == p.end-p.row && columns[c].list == nil {
			p.least, p.greatest = null, null
		}
	}
	return places, nil
}

// page is a page of a column that has been read.
type page struct {
	defs, reps []byte // nil: all have a value
	ints       []uint64
	entries    *entries // ints are numbers in it
}

// entries is a dictionary.
type entries struct {
	ints  []uint64
	texts [][]byte
}

// value returns what the page has as number n.
func (p *page) value(n int) value {
	v := value{there: true, n: p.ints[n]}
	if p.entries == nil {
		return v
	}
	if p.entries.texts != nil {
		return value{there: true, text: p.entries.texts[v.n]}
	}
	v.n = p.entries.ints[v.n]
	return v
}

// pageHead is what the head of a page says.
type pageHead struct {
	kind             format.PageType
	unpacked, packed int64
	values, nulls    int64
	encoding         format.Encoding
	defs, reps       int64 // sizes of the levels
	compressed       bool
}

// readHead reads the head of a page. b is what follows it.
func readHead(b []byte) (h pageHead, rest []byte, err error) {
	h.kind, h.compressed = -1, true
	r := thriftReader{b: b}
	r.fields(func(id int16, kind byte) {
		switch id {
		case 1:
			h.kind = format.PageType(r.int())
		case 2:
			h.unpacked = r.int()
		case 3:
			h.packed = r.int()
		case 7:
			r.fields(func(id int16, kind byte) {
				switch id {
				case 1:
					h.values = r.int()
				case 2:
					h.encoding = format.Encoding(r.int())
				}
			})
		case 8:
			r.fields(func(id int16, kind byte) {
				switch id {
				case 1:
					h.values = r.int()
				case 2:
					h.nulls = r.int()
				case 4:
					h.encoding = format.Encoding(r.int())
				case 5:
					h.defs = r.int()
				case 6:
					h.reps = r.int()
				case 7:
					h.compressed = kind == thriftTrue
				}
			})
		}
	})
	if r.bad || h.kind != format.DictionaryPage && h.kind != format.DataPageV2 || h.packed < 0 || h.packed > int64(len(r.b)-r.at) ||
		h.unpacked < 0 || h.unpacked > maxPage || h.values < 0 || h.values > maxValues || h.nulls < 0 || h.nulls > h.values ||
		h.defs < 0 || h.reps < 0 || h.defs > h.packed || h.reps > h.packed-h.defs || h.defs+h.reps > h.unpacked {
		return h, nil, errPage
	}
	return h, r.b[r.at : r.at+int(h.packed)], nil
}

var errPage = errors.New("a page is damaged")

// unpack makes n bytes of compressed ones.
func unpack(codec format.CompressionCodec, b []byte, n int64) ([]byte, error) {
	switch codec {
	case format.Uncompressed:
	case format.Zstd:
		d, err := zstdReader()
		if err != nil {
			return nil, err
		}
		if b, err = d.DecodeAll(b, make([]byte, 0, n)); err != nil {
			return nil, fmt.Errorf("%w: %v", errPage, err)
		}
	default:
		return nil, fmt.Errorf("its pages are compressed with %v", codec)
	}
	if int64(len(b)) != n {
		return nil, errPage
	}
	return b, nil
}

var zstdReader = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxPage), zstd.WithDecoderLowmem(true))
})

// dictionary reads the dictionary of a column of a group.
func (t *table) dictionary(g *rowGroup, c int) (*entries, error) {
	k := &g.chunks[c]
	if k.entries != nil {
		return k.entries, nil
	}
	if k.dictionary == 0 || k.data <= k.dictionary || k.data-k.dictionary > maxPage {
		return nil, errPage
	}
	b := make([]byte, k.data-k.dictionary)
	if _, err := t.f.ReadAt(b, k.dictionary); err != nil {
		return nil, unexpected(err)
	}
	h, b, err := readHead(b)
	if err != nil {
		return nil, err
	}
	if h.kind != format.DictionaryPage || h.encoding != format.Plain {
		return nil, errPage
	}
	if b, err = unpack(k.codec, b, h.unpacked); err != nil {
		return nil, err
	}
	d := new(entries)
	switch encodingOf(&columns[c]) {
	case dictText:
		if h.values*4 > int64(len(b)) {
			return nil, errPage
		}
		d.texts = make([][]byte, h.values)
		for i := range d.texts {
			if len(b) < 4 {
				return nil, errPage
			}
			n := binary.LittleEndian.Uint32(b)
			if b = b[4:]; uint64(n) > uint64(len(b)) {
				return nil, errPage
			}
			d.texts[i], b = b[:n:n], b[n:]
		}
	case dict32:
		if h.values*4 != int64(len(b)) {
			return nil, errPage
		}
		d.ints = make([]uint64, h.values)
		for i := range d.ints {
			d.ints[i] = uint64(binary.LittleEndian.Uint32(b[4*i:]))
		}
	default:
		if h.values*8 != int64(len(b)) {
			return nil, errPage
		}
		d.ints = make([]uint64, h.values)
		for i := range d.ints {
			d.ints[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
	}
	k.entries = d
	return d, nil
}

// page reads a page of a column of a group.
func (t *table) page(g *rowGroup, c int, at place) (*page, error) {
	k := &g.chunks[c]
	b := make([]byte, at.size)
	if _, err := t.f.ReadAt(b, at.at); err != nil {
		return nil, unexpected(err)
	}
	h, b, err := readHead(b)
	if err != nil {
		return nil, err
	}
	if h.kind != format.DataPageV2 {
		return nil, errPage
	}
	p := new(page)
	list := columns[c].list != nil
	rows := at.end - at.row
	if !list && h.values != rows || h.values < rows {
		return nil, errPage
	}
	levels := b[:h.defs+h.reps]
	if list {
		p.reps = make([]byte, h.values)
		if !unpackInts(p.reps, levels[:h.reps], 1) {
			return nil, errPage
		}
		p.defs = make([]byte, h.values)
		if !unpackInts(p.defs, levels[h.reps:], 2) {
			return nil, errPage
		}
	} else if h.nulls > 0 {
		p.defs = make([]byte, h.values)
		if !unpackInts(p.defs, levels[h.reps:], 1) {
			return nil, errPage
		}
	}
	b = b[len(levels):]
	if h.compressed {
		if b, err = unpack(k.codec, b, h.unpacked-int64(len(levels))); err != nil {
			return nil, err
		}
	}
	if p.defs != nil {
		// The levels count, and not what the head says of them.
		full := byte(1)
		if list {
			full = 2
		}
		n := int64(0)
		for _, d := range p.defs {
			if d == full {
				n++
			} else if d > full {
				return nil, errPage
			}
		}
		if n != h.values-h.nulls || list && !levelsOf(p, rows) {
			return nil, errPage
		}
	}
	return p, t.pageValues(p, g, c, &h, b)
}

// levelsOf reports whether the levels of a page of lists are those of so many rows: each row begins with a repetition level
// of 0, and what goes on in it follows an element and is one.
func levelsOf(p *page, rows int64) bool {
	before := byte(0) // definition level of what precedes in the row; 0: nothing may follow
	for i, rep := range p.reps {
		switch {
		case rep == 0:
			rows--
		case rep > 1 || before != 2 || p.defs[i] != 2:
			return false
		}
		before = p.defs[i]
	}
	return rows == 0
}

// pageValues sets the values of a page.
func (t *table) pageValues(p *page, g *rowGroup, c int, h *pageHead, b []byte) (err error) {
	n := int(h.values - h.nulls)
	if n == 0 {
		return nil
	}
	p.ints = make([]uint64, n)
	switch e := encodingOf(&columns[c]); {
	case e.dictionary():
		if h.encoding != format.RLEDictionary || len(b) == 0 {
			return errPage
		}
		if p.entries, err = t.dictionary(g, c); err != nil {
			return err
		}
		if !unpackInts(p.ints, b[1:], uint(b[0])) {
			return errPage
		}
		entries := uint64(max(len(p.entries.ints), len(p.entries.texts)))
		for _, v := range p.ints {
			if v >= entries {
				return errPage
			}
		}
	case h.encoding != e.format():
		return errPage
	case e == plainBool:
		if len(b) < (n+7)/8 {
			return errPage
		}
		for i := range p.ints {
			p.ints[i] = uint64(b[i/8] >> (i % 8) & 1)
		}
	case e == plain64:
		if len(b) != 8*n {
			return errPage
		}
		for i := range p.ints {
			p.ints[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
	case !deltaOf(b, n):
		return errPage
	case e == delta32:
		ints, err := new(delta.BinaryPackedEncoding).DecodeInt32(nil, b)
		if err != nil || len(ints) < n {
			return errPage
		}
		for i := range p.ints {
			p.ints[i] = uint64(uint32(ints[i]))
		}
	default:
		ints, err := new(delta.BinaryPackedEncoding).DecodeInt64(nil, b)
		if err != nil || len(ints) < n {
			return errPage
		}
		for i := range p.ints {
			p.ints[i] = uint64(ints[i])
		}
	}
	return nil
}

// deltaOf reports whether what is packed as differences (Encodings.md, DELTA_BINARY_PACKED) says of itself that it is n values.
// The library makes room for as many as that says.
func deltaOf(b []byte, n int) bool {
	values := uint64(0)
	for range 3 { // the size of a block, the miniblocks in it, the values
		v, size := binary.Uvarint(b)
		if size <= 0 {
			return false
		}
		values, b = v, b[size:]
	}
	return values == uint64(n)
}

// unpackInts fills dst from runs and packed groups of 8 (the hybrid of Encodings.md), and reports whether they are there.
func unpackInts[T byte | uint64](dst []T, b []byte, width uint) bool {
	if width > 32 {
		return false
	}
	size := int(width+7) / 8
	for len(dst) > 0 {
		head, n := binary.Uvarint(b)
		if n <= 0 {
			return false
		}
		b = b[n:]
		if head&1 == 0 { // a run of one value
			if len(b) < size || head == 0 {
				return false
			}
			v := uint64(0)
			for i := range size {
				v |= uint64(b[i]) << (8 * i)
			}
			b = b[size:]
			run := dst[:min(uint64(len(dst)), head>>1)]
			for i := range run {
				run[i] = T(v)
			}
			dst = dst[len(run):]
			continue
		}
		groups := head >> 1
		if groups == 0 || width > 0 && groups > uint64(len(b))/uint64(width) {
			return false
		}
		packed := b[:groups*uint64(width)]
		b = b[len(packed):]
		run := dst[:min(uint64(len(dst)), groups*8)]
		dst = dst[len(run):]
		buffer, have, mask := uint64(0), uint(0), uint64(1)<<width-1
		for i := range run {
			for have < width {
				buffer |= uint64(packed[0]) << have
				packed, have = packed[1:], have+8
			}
			run[i] = T(buffer & mask)
			buffer, have = buffer>>width, have-width
		}
	}
	return true
}
