package archive

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/encoding/rle"
	"github.com/parquet-go/parquet-go/format"

	"github.com/ctlogd/ctlogd/flow"
)

// The library can write Parquet, too, but it takes each value of each column as one of its own: a row costs 2.3 us and 13
// allocations, and 0.8 us and none here (go test -run '^$' -bench Write ./archive). So what makes pages of values is ours, and
// what reads them back is the library.

// encoding is how the values of a column lie in its pages.
type encoding int

const (
	plain64   encoding = iota
	plainBool          // one bit each
	delta32
	delta64
	dict32 // numbers of entries in a dictionary of integers, or of texts
	dict64
	dictText
)

// encodingOf returns the encoding of a column, as its node says.
func encodingOf(c *column) encoding {
	if c.list != nil {
		return dictText
	}
	kind, dictionary := c.node.Type().Kind(), c.node.Encoding() == &parquet.RLEDictionary
	switch {
	case kind == parquet.Boolean:
		return plainBool
	case kind == parquet.ByteArray:
		return dictText
	case kind == parquet.Int32 && dictionary:
		return dict32
	case kind == parquet.Int32:
		return delta32
	case dictionary:
		return dict64
	case c.node.Encoding() == &parquet.DeltaBinaryPacked:
		return delta64
	}
	return plain64
}

func (e encoding) dictionary() bool { return e >= dict32 }

func (e encoding) format() format.Encoding {
	switch {
	case e.dictionary():
		return format.RLEDictionary
	case e == delta32 || e == delta64:
		return format.DeltaBinaryPacked
	}
	return format.Plain
}

// builder holds one column of a row group while it is made.
type builder struct {
	col      *column
	encoding encoding
	s        *scratch
	most     int // rows of a group
	sum      columnHash
	names    []uint64 // hashes of the column's names

	rows   int
	levels int      // that there are: one a row, or one an element of a list
	nulls  int      // of them, those without a value
	left   int      // rows at the end that have none, and are not in what follows yet
	defs   []byte   // definition levels
	reps   []byte   // lists: repetition levels
	starts []int32  // lists: where in defs each row begins
	there  []byte   // lists: which rows have one
	values []uint64 // values of a column without a dictionary
	ints   []int32  // with one: their numbers in it
	dict   dictionary
	lists  [8]listed
}

// scratch is what the builders of all columns need for a moment.
type scratch struct {
	values []uint64
	sums   []uint64
	ints   []int32
	packed []byte
	page   []byte // before compression
	head   []byte // its levels
	zeros  []byte
}

// reset makes the builder ready for another row group.
func (b *builder) reset() {
	b.rows, b.levels, b.nulls, b.left = 0, 0, 0, 0
	b.defs, b.reps, b.starts, b.there, b.values, b.ints = b.defs[:0], b.reps[:0], b.starts[:0], b.there[:0], b.values[:0], b.ints[:0]
	b.dict.reset()
	clear(b.lists[:])
}

// skip adds n rows without a value.
func (b *builder) skip(n int) {
	b.rows, b.levels, b.nulls, b.left = b.rows+n, b.levels+n, b.nulls+n, b.left+n
}

// fill adds the column's values of some records.
func (b *builder) fill(recs []flow.Record) {
	if cap(b.defs) == 0 { // all at once: growing leaves garbage behind
		b.defs = make([]byte, 0, b.most)
		if b.encoding.dictionary() {
			b.ints = make([]int32, 0, b.most)
		} else {
			b.values = make([]uint64, 0, b.most)
		}
	}
	b.settle()
	b.rows += len(recs)
	switch {
	case b.col.list != nil:
		b.fillLists(recs)
	case b.col.addr != nil:
		b.fillAddresses(recs)
	case b.col.text != nil:
		b.fillTexts(recs)
	default:
		b.fillNumbers(recs)
	}
}

// settle puts down the rows that were skipped, as others follow.
func (b *builder) settle() {
	if b.left == 0 {
		return
	}
	zeros := b.s.none(b.left)
	if b.col.list != nil {
		for i := range zeros {
			b.starts = append(b.starts, int32(len(b.defs)+i))
		}
		b.reps, b.there = append(b.reps, zeros...), append(b.there, zeros...)
	}
	b.defs, b.left = append(b.defs, zeros...), 0
}

// finish ends the row group.
func (b *builder) finish() {
	if b.left == b.rows {
		b.sum.none(b.rows)
		return
	}
	b.settle()
	if b.col.list != nil {
		b.sum.where(b.there)
	} else {
		b.sum.where(b.defs)
	}
}

// none returns n zeros.
func (s *scratch) none(n int) []byte {
	if n > len(s.zeros) {
		s.zeros = make([]byte, max(n, groupRows))
	}
	return s.zeros[:n]
}

// more returns s with n more elements, which hold anything, and these.
func more[E any](s []E, n int) (all, fresh []E) {
	all = slices.Grow(s, n)[:len(s)+n]
	return all, all[len(s):]
}

// sized returns a slice of n elements, which hold anything, in the memory of s where that is enough.
func sized[E any](s []E, n int) []E { return slices.Grow(s[:0], n)[:n] }

// nameSums are the hashes of the names of columns.
var nameSums = sync.OnceValue(func() map[string][]uint64 {
	sums := map[string][]uint64{}
	for i := range columns {
		for _, name := range columns[i].names {
			sums[columns[i].name] = append(sums[columns[i].name], maphash.String(hashSeed, name))
		}
	}
	return sums
})

func (b *builder) fillNumbers(recs []flow.Record) {
	b.s.values = sized(b.s.values, len(recs))
	all, defs := more(b.defs, len(recs))
	values, number, n := b.s.values, b.col.number, 0
	for i := range recs {
		v, ok := number(&recs[i])
		def := byte(0)
		if ok {
			def = 1
		}
		defs[i], values[n] = def, v
		n += int(def)
	}
	b.defs, values = all, values[:n]
	b.levels, b.nulls = b.levels+len(recs), b.nulls+len(recs)-n
	if b.names == nil {
		b.sum.add(values)
	} else {
		b.s.sums = sized(b.s.sums, n)
		for i, v := range values {
			b.s.sums[i] = b.names[v]
		}
		b.sum.add(b.s.sums)
	}
	if !b.encoding.dictionary() {
		b.values = append(b.values, values...)
		return
	}
	var ints []int32
	b.ints, ints = more(b.ints, n)
	if b.dict.small == nil {
		b.dict.small = make([]uint32, smallNumbers)
	}
	small := b.dict.small
	for i, v := range values {
		if v < uint64(len(small)) && small[v] != 0 {
			ints[i] = int32(small[v] - 1)
			continue
		}
		k, fresh := b.dict.find(dictKey{lo: v})
		if fresh {
			switch b.encoding {
			case dict32:
				b.dict.plain = binary.LittleEndian.AppendUint32(b.dict.plain, uint32(v))
			case dict64:
				b.dict.plain = binary.LittleEndian.AppendUint64(b.dict.plain, v)
			default:
				b.dict.append(b.col.names[v])
			}
		}
		if v < uint64(len(small)) {
			small[v] = k + 1
		}
		ints[i] = int32(k)
	}
}

// value adds the number in the dictionary of a row's value, and its hash.
func (b *builder) value(n uint32, hash uint64) {
	b.defs, b.ints, b.s.values = append(b.defs, 1), append(b.ints, int32(n)), append(b.s.values, hash)
	b.levels++
}

func (b *builder) null() {
	b.defs = append(b.defs, 0)
	b.levels++
	b.nulls++
}

func (b *builder) fillAddresses(recs []flow.Record) {
	b.s.values = b.s.values[:0]
	var last dictKey
	var n uint32
	for i := range recs {
		a, v6 := b.col.addr(&recs[i])
		if a == nil {
			b.null()
			continue
		}
		if k := keyOf(a, v6); k != last || len(b.s.values) == 0 {
			last = k
			var fresh bool
			if n, fresh = b.dict.find(k); fresh {
				var text [48]byte
				b.dict.append(string(appendAddr(text[:0], a, v6)))
			}
		}
		b.value(n, last.hash())
	}
	b.sum.add(b.s.values)
}

func (b *builder) fillTexts(recs []flow.Record) {
	b.s.values = b.s.values[:0]
	for i := range recs {
		if text := b.col.text(&recs[i]); len(text) == 0 {
			b.null()
		} else {
			b.value(b.dict.text(text), maphash.Bytes(hashSeed, text))
		}
	}
	b.sum.add(b.s.values)
}

func appendAddr(b []byte, a *flow.Addr, v6 bool) []byte {
	return netipOf(a, v6).AppendTo(b)
}

func netipOf(a *flow.Addr, v6 bool) netip.Addr {
	t := flow.Tuple{Src: *a, V6: v6}
	return t.SrcAddr()
}

// listed is a list that was made lately: most rows have one of few.
type listed struct {
	bits uint32
	ints []int32
}

// The levels of a list with so many elements. That of a list without one is 1.
var (
	listReps = [32]byte{1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1, 15: 1, 16: 1,
		17: 1, 18: 1, 19: 1, 20: 1, 21: 1, 22: 1, 23: 1, 24: 1, 25: 1, 26: 1, 27: 1, 28: 1, 29: 1, 30: 1, 31: 1}
	listDefs = [32]byte([]byte(strings.Repeat("\x02", 32)))
)

func (b *builder) fillLists(recs []flow.Record) {
	b.s.values = b.s.values[:0]
	for i := range recs {
		b.starts = append(b.starts, int32(len(b.defs)))
		v, ok := b.col.list.bits(&recs[i])
		if !ok {
			b.reps, b.there = append(b.reps, 0), append(b.there, 0)
			b.null()
			continue
		}
		b.there, b.s.values = append(b.there, 1), append(b.s.values, uint64(v))
		if v == 0 {
			b.reps, b.defs = append(b.reps, 0), append(b.defs, 1)
			b.levels++
			b.nulls++
			continue
		}
		l := &b.lists[v*0x9e3779b9>>29]
		if l.bits != v {
			l.bits, l.ints = v, l.ints[:0]
			for left := v; left != 0; left &= left - 1 {
				bit := bits.TrailingZeros32(left)
				k, fresh := b.dict.find(dictKey{lo: uint64(bit)})
				if fresh {
					b.dict.append(b.col.list.sets[bit])
				}
				l.ints = append(l.ints, int32(k))
			}
		}
		n := len(l.ints)
		b.reps, b.defs, b.ints = append(b.reps, listReps[:n]...), append(b.defs, listDefs[:n]...), append(b.ints, l.ints...)
		b.levels += n
	}
	b.sum.add(b.s.values)
}

// empty reports whether no row has a value.
func (b *builder) empty() bool { return b.levels == b.nulls }

// one reports whether all rows have the same value, or none.
func (b *builder) one() bool {
	return b.empty() || b.nulls == 0 && b.col.list == nil && b.encoding.dictionary() && len(b.dict.keys) == 1
}

// maxDef is the definition level of what has a value.
func (b *builder) maxDef() byte {
	if b.col.list != nil {
		return 2
	}
	return 1
}

// cut is one page of a column.
type cut struct {
	row, rows    int // its first row, and how many
	level, value int // where in defs it begins, and which of the values is its first
	levels       int
	nulls        int
}

// values returns how many values the page has.
func (c *cut) values() int { return c.levels - c.nulls }

// cuts calls do for each page.
func (b *builder) cuts(do func(c cut) error) error {
	step := pageRows
	if b.one() {
		step = b.rows
	}
	c := cut{}
	for ; c.row < b.rows; c.row, c.level, c.value = c.row+c.rows, c.level+c.levels, c.value+c.values() {
		c.rows = min(step, b.rows-c.row)
		end := c.row + c.rows
		if end == b.rows {
			end = b.levels
		} else if b.col.list != nil {
			end = int(b.starts[end])
		}
		c.levels, c.nulls = end-c.level, 0
		switch {
		case b.empty():
			c.nulls = c.levels
		case b.nulls > 0:
			c.nulls = c.levels - bytes.Count(b.defs[c.level:end], []byte{b.maxDef()})
		}
		if err := do(c); err != nil {
			return err
		}
	}
	return nil
}

var (
	level1 = rle.Encoding{BitWidth: 1}
	level2 = rle.Encoding{BitWidth: 2}
)

// heads makes the scratch's head of the levels of a page, and returns the sizes of both kinds.
func (b *builder) heads(c cut) (reps, defs int, err error) {
	s, from, to := b.s, c.level, c.level+c.levels
	s.head = s.head[:0]
	levels := b.defs
	if b.left == b.rows {
		levels = s.none(b.rows)
	}
	encoding := &level1
	if b.col.list != nil {
		encoding = &level2
		repeated := b.reps
		if b.left == b.rows {
			repeated = levels
		}
		if s.packed, err = level1.EncodeLevels(s.packed, repeated[from:to]); err != nil {
			return 0, 0, err
		}
		s.head = append(s.head, s.packed...)
		reps = len(s.head)
	}
	if s.packed, err = encoding.EncodeLevels(s.packed, levels[from:to]); err != nil {
		return 0, 0, err
	}
	s.head = append(s.head, s.packed...)
	return reps, len(s.packed), nil
}

// data makes the scratch's page of the values of a page.
func (b *builder) data(c cut) (err error) {
	if b.encoding.dictionary() {
		ints := b.ints[c.value : c.value+c.values()]
		all := int32(0)
		for _, v := range ints {
			all |= v
		}
		width := rle.Encoding{BitWidth: bits.Len32(uint32(all))}
		if b.s.packed, err = width.EncodeInt32(b.s.packed, ints); err == nil {
			b.s.page = append(append(b.s.page[:0], byte(width.BitWidth)), b.s.packed...)
		}
		return err
	}
	values := b.values[c.value : c.value+c.values()]
	switch b.encoding {
	case plain64:
		b.s.page = b.s.page[:0]
		for _, v := range values {
			b.s.page = binary.LittleEndian.AppendUint64(b.s.page, v)
		}
	case plainBool:
		b.s.page = sized(b.s.page, (len(values)+7)/8)
		clear(b.s.page)
		for i, v := range values {
			b.s.page[i/8] |= byte(v) << (i % 8)
		}
	case delta64:
		b.s.page, err = parquet.DeltaBinaryPacked.EncodeInt64(b.s.page, unsafe.Slice((*int64)(unsafe.Pointer(unsafe.SliceData(values))), len(values)))
	case delta32:
		b.s.ints = sized(b.s.ints, len(values))
		for i, v := range values {
			b.s.ints[i] = int32(v)
		}
		b.s.page, err = parquet.DeltaBinaryPacked.EncodeInt32(b.s.page, b.s.ints)
	}
	return err
}

// bounds returns the least and the greatest of the values of a page, which has some: numbers, or those of entries of the
// dictionary.
func (b *builder) bounds(c cut) (lo, hi int64) {
	if b.encoding.dictionary() {
		ints := b.ints[c.value : c.value+c.values()]
		lo, hi = int64(ints[0]), int64(ints[0])
		b.dict.page++
		for _, v := range ints {
			if b.dict.seen[v] == b.dict.page {
				continue
			}
			b.dict.seen[v] = b.dict.page
			lo, hi = b.least(lo, int64(v)), b.greatest(hi, int64(v))
		}
		return lo, hi
	}
	values := b.values[c.value : c.value+c.values()]
	if b.encoding == delta64 { // times have a sign
		lo, hi = int64(values[0]), int64(values[0])
		for _, v := range values {
			lo, hi = min(lo, int64(v)), max(hi, int64(v))
		}
		return lo, hi
	}
	l, h := values[0], values[0]
	for _, v := range values {
		l, h = min(l, v), max(h, v)
	}
	return int64(l), int64(h)
}

func (b *builder) least(x, y int64) int64 {
	if b.compare(y, x) < 0 {
		return y
	}
	return x
}

func (b *builder) greatest(x, y int64) int64 {
	if b.compare(y, x) > 0 {
		return y
	}
	return x
}

// compare compares two values, or entries of the dictionary.
func (b *builder) compare(x, y int64) int {
	switch {
	case b.encoding == dictText:
		return bytes.Compare(b.dict.entry(x), b.dict.entry(y))
	case b.encoding.dictionary():
		return cmp.Compare(b.dict.keys[x].lo, b.dict.keys[y].lo)
	case b.encoding == delta64:
		return cmp.Compare(x, y)
	}
	return cmp.Compare(uint64(x), uint64(y))
}

// bound returns a value as statistics have it.
func (b *builder) bound(v int64) []byte {
	switch b.encoding {
	case dictText:
		return slices.Clone(b.dict.entry(v))
	case dict32:
		return binary.LittleEndian.AppendUint32(nil, uint32(b.dict.keys[v].lo))
	case dict64:
		return binary.LittleEndian.AppendUint64(nil, b.dict.keys[v].lo)
	case delta32:
		return binary.LittleEndian.AppendUint32(nil, uint32(v))
	case plainBool:
		return []byte{byte(v)}
	}
	return binary.LittleEndian.AppendUint64(nil, uint64(v))
}

// dictKey is what an entry of a dictionary is found by: a number or an address.
type dictKey struct {
	hi, lo uint64
	v6     bool
}

// keyOf returns the key of an address.
func keyOf(a *flow.Addr, v6 bool) dictKey {
	hi, lo := a.Words()
	return dictKey{hi, lo, v6}
}

func (k *dictKey) hash() uint64 {
	h := (k.hi ^ bits.RotateLeft64(k.lo, 32)) * 0x9e3779b97f4a7c15
	if k.v6 {
		h++
	}
	return h ^ h>>32
}

// dictionary are the distinct values of a column in a row group, in the order of their first use.
type dictionary struct {
	keys  []dictKey
	table []slot   // by the hash of its key; a power of two, at most half full
	class dictKey  // the first key
	small []uint32 // of a number below smallNumbers, which most are, its entry and 1
	mixed bool     // keys differ in more than their low halves
	texts map[string]uint32

	plain []byte   // the entries as a page
	ends  []uint32 // of texts: where in plain each ends

	seen []uint32 // of each entry: the last page that it is in
	page uint32
}

// slot is a place in the table: the low half of a key, which mostly tells it from all others, so that the key itself need
// not be brought into the cache.
type slot struct{ low, n uint32 } // n is the number of the entry and 1; 0: there is none

const smallNumbers = 1024

func (d *dictionary) reset() {
	clear(d.table)
	clear(d.small)
	clear(d.texts)
	d.keys, d.plain, d.ends, d.seen, d.mixed, d.page = d.keys[:0], d.plain[:0], d.ends[:0], d.seen[:0], false, 0
}

// alike reports whether two keys differ in their low halves alone, if at all.
func (k *dictKey) alike(o *dictKey) bool { return k.hi == o.hi && k.lo>>32 == o.lo>>32 && k.v6 == o.v6 }

// find returns the number of an entry. If it is fresh, the caller appends its value.
func (d *dictionary) find(k dictKey) (n uint32, fresh bool) {
	if len(d.keys)*2 >= len(d.table) {
		d.grow()
	}
	if len(d.keys) == 0 {
		d.class = k
	}
	d.mixed = d.mixed || !k.alike(&d.class)
	mask, low := uint64(len(d.table)-1), uint32(k.lo)
	for i := k.hash() & mask; ; i = (i + 1) & mask {
		switch s := &d.table[i]; {
		case s.n == 0:
			d.keys = append(d.keys, k)
			d.seen = append(d.seen, 0)
			*s = slot{low, uint32(len(d.keys))}
			return s.n - 1, true
		case s.low == low && (!d.mixed || d.keys[s.n-1] == k):
			return s.n - 1, false
		}
	}
}

func (d *dictionary) grow() {
	d.table = make([]slot, max(256, 2*len(d.table)))
	mask := uint64(len(d.table) - 1)
	for n := range d.keys {
		k := &d.keys[n]
		i := k.hash() & mask
		for d.table[i].n != 0 {
			i = (i + 1) & mask
		}
		d.table[i] = slot{uint32(k.lo), uint32(n + 1)}
	}
}

// text returns the number of a text that is no name of a number.
func (d *dictionary) text(text []byte) uint32 {
	if n, ok := d.texts[string(text)]; ok {
		return n
	}
	n, _ := d.find(dictKey{lo: uint64(len(d.keys))})
	d.append(string(text))
	if d.texts == nil {
		d.texts = map[string]uint32{}
	}
	d.texts[string(text)] = n
	return n
}

// append appends the text of a fresh entry.
func (d *dictionary) append(text string) {
	d.plain = binary.LittleEndian.AppendUint32(d.plain, uint32(len(text)))
	d.plain = append(d.plain, text...)
	d.ends = append(d.ends, uint32(len(d.plain)))
}

// entry returns the text of an entry.
func (d *dictionary) entry(n int64) []byte {
	from := uint32(0)
	if n > 0 {
		from = d.ends[n-1]
	}
	return d.plain[from+4 : d.ends[n]]
}
