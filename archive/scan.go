package archive

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/ctlogd/ctlogd/flow"
)

// openSegment opens a segment. Page indexes and filters are read when they are asked for.
func openSegment(path string) (f *os.File, pf *parquet.File, o Origin, err error) {
	if f, err = os.Open(path); err != nil {
		return nil, nil, o, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, o, err
	}
	pf, err = parquet.OpenFile(f, info.Size(), parquet.SkipPageIndex(true), parquet.SkipBloomFilters(false),
		parquet.OptimisticRead(true), parquet.ReadBufferSize(32<<10))
	if err != nil {
		return nil, nil, o, err
	}
	o, err = originOf(pf.Lookup)
	return f, pf, o, err
}

// table is a segment that is read: which of its columns are ours.
type table struct {
	pf     *parquet.File
	origin Origin
	index  [columnCount]int // of the leaf column in the file; -1: the file has none
}

func newTable(pf *parquet.File, o Origin) *table {
	t := &table{pf: pf, origin: o}
	for i := range columns {
		t.index[i] = -1
		path := []string{columns[i].name}
		if columns[i].list != nil {
			path = append(path, "list", "element")
		}
		if leaf, ok := pf.Schema().Lookup(path...); ok {
			t.index[i] = leaf.ColumnIndex
		}
	}
	return t
}

// scanSegment calls do with the rows of a segment that are asked for.
func (r *Reader) scanSegment(f File, q *Query, do func(Row) bool) (err error) {
	defer func() {
		if p := recover(); p != nil { // foreign bytes, and a library that may not have met them
			err = damagedError(p)
		}
	}()
	file, pf, o, err := openSegment(f.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	t := newTable(pf, o)
	base := int64(0)
	for i, g := range pf.RowGroups() {
		n := g.NumRows()
		if t.may(i, q) {
			r.RowGroups++
			rows, err := t.find(i, q)
			if err != nil {
				return err
			}
			more := true
			err = t.records(i, rows, func(row int64, rec *flow.Record) bool {
				if q.Matches(rec) {
					own := flow.NewBatch(1, nil)
					own.Append([]flow.Record{*rec})
					more = do(Row{&own.Records[0], &t.origin, f, base + row})
				}
				return more
			})
			if err != nil || !more {
				return err
			}
		}
		base += n
	}
	return nil
}

// null is a value that is not there.
var null parquet.Value

type damagedErr struct{ what any }

func damagedError(p any) error { return &damagedErr{p} }

func (e *damagedErr) Error() string { return "is damaged" }

// stats returns the statistics of a column in a row group.
func (t *table) stats(group, c int) *format.Statistics {
	if t.index[c] < 0 {
		return nil
	}
	return &t.pf.Metadata().RowGroups[group].Columns[t.index[c]].MetaData.Statistics
}

// textIn reports whether a column of a row group may hold a text, by its statistics.
func (t *table) textIn(group, c int, text []byte) bool {
	s := t.stats(group, c)
	if s == nil {
		return false
	}
	if len(s.MinValue) == 0 && len(s.MaxValue) == 0 {
		// Only nulls, or no statistics.
		return s.NullCount < t.pf.Metadata().RowGroups[group].NumRows
	}
	return bytes.Compare(s.MinValue, text) <= 0 && bytes.Compare(text, s.MaxValue) <= 0
}

// filtered reports whether the filter of a column of a row group lets a text pass.
func (t *table) filtered(group, c int, text []byte) bool {
	if t.index[c] < 0 {
		return false
	}
	chunk := t.pf.RowGroups()[group].ColumnChunks()[t.index[c]]
	filter := chunk.BloomFilter()
	if filter == nil {
		return true
	}
	ok, err := filter.Check(parquet.ByteArrayValue(text))
	return err != nil || ok
}

func text(a netip.Addr) []byte { return a.AppendTo(nil) }

// may reports whether a row group may hold a row that is asked for.
func (t *table) may(group int, q *Query) bool {
	if (q.From != 0 || q.To != 0) && !t.inTime(group, q) {
		return false
	}
	if q.Public.IsValid() {
		p := text(q.Public)
		if !t.textIn(group, cNATSrcIP, p) {
			s := t.stats(group, cNATSrcIP)
			untranslated := s == nil || s.NullCount > 0
			if !untranslated || !t.textIn(group, cSrcIP, p) || !t.filtered(group, cSrcIP, p) {
				return false
			}
		}
	}
	if q.Src.IsValid() {
		p := text(q.Src)
		if !t.textIn(group, cSrcIP, p) || !t.filtered(group, cSrcIP, p) {
			return false
		}
	}
	if q.Dst.IsValid() {
		p := text(q.Dst)
		if !(t.textIn(group, cDstIP, p) && t.filtered(group, cDstIP, p)) &&
			!(t.textIn(group, cNATDstIP, p) && t.filtered(group, cNATDstIP, p)) {
			return false
		}
	}
	return true
}

// clocked reports whether there is something to say of the clock of a row in the group: times then bound nothing.
func (t *table) clocked(group int) bool {
	s := t.stats(group, cClock)
	return s != nil && s.NullCount < t.pf.Metadata().RowGroups[group].NumRows
}

// inTime reports whether a flow of the row group may have been alive when the question asks.
func (t *table) inTime(group int, q *Query) bool {
	if t.clocked(group) {
		return true
	}
	last := int64(-1 << 63)
	known := false
	for _, c := range [...]int{cTime, cEnd} {
		if s := t.stats(group, c); s != nil && len(s.MaxValue) == 8 {
			last = max(last, parquet.Int64.Value(s.MaxValue).Int64())
			known = true
		}
	}
	if known && last < q.From {
		return false
	}
	s := t.stats(group, cStart)
	if s == nil || len(s.MinValue) != 8 || s.NullCount > 0 {
		return true
	}
	return parquet.Int64.Value(s.MinValue).Int64() <= q.To
}

// find returns the numbers of the rows of a group that may be asked for, by the columns of addresses and of the port.
func (t *table) find(group int, q *Query) (rows []int64, err error) {
	g := t.pf.RowGroups()[group]
	rows = all(g.NumRows())
	chunks := g.ColumnChunks()
	if q.Public.IsValid() {
		p := text(q.Public)
		var translated, own []int64
		translated, own, err = t.split(chunks, rows, p)
		if err != nil {
			return nil, err
		}
		if q.HasPort {
			// The port of a row that was translated stands in one of three columns; ICMP and GRE are looked at as records.
			port := int32(q.Port)
			translated, err = t.filter(chunks, cNATSrcPort, translated, func(lo, hi parquet.Value) bool {
				return lo.Int32() <= port && port <= hi.Int32()
			}, func(v parquet.Value) bool { return v.IsNull() || v.Int32() == port })
			if err != nil {
				return nil, err
			}
		}
		rows = merge(translated, own)
	}
	if q.Src.IsValid() {
		if rows, err = t.equal(chunks, cSrcIP, rows, text(q.Src)); err != nil {
			return nil, err
		}
	}
	if q.Dst.IsValid() {
		before, err := t.equal(chunks, cDstIP, rows, text(q.Dst))
		if err != nil {
			return nil, err
		}
		after, err := t.equal(chunks, cNATDstIP, rows, text(q.Dst))
		if err != nil {
			return nil, err
		}
		rows = union(before, after)
	}
	if len(rows) > 64 && (q.From != 0 || q.To != 0) && !t.clocked(group) {
		// Of many rows, those that begin too late or end too early are left out before the other columns are read.
		rows, err = t.filter(chunks, cStart, rows, func(lo, _ parquet.Value) bool { return lo.Int64() <= q.To },
			func(v parquet.Value) bool { return v.IsNull() || v.Int64() <= q.To })
		if err != nil {
			return nil, err
		}
		rows, err = t.filter(chunks, cEnd, rows, func(_, hi parquet.Value) bool { return hi.Int64() >= q.From },
			func(v parquet.Value) bool { return v.IsNull() || v.Int64() >= q.From })
		if err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// split returns the rows whose source was translated to an address, and those that were not translated and have it.
func (t *table) split(chunks []parquet.ColumnChunk, rows []int64, p []byte) (translated, own []int64, err error) {
	if t.index[cNATSrcIP] < 0 {
		own, err = t.equal(chunks, cSrcIP, rows, p)
		return nil, own, err
	}
	var untranslated []int64
	err = t.pages(chunks, cNATSrcIP, rows, func(lo, hi parquet.Value, nulls int64) bool {
		return nulls > 0 || bytes.Compare(lo.ByteArray(), p) <= 0 && bytes.Compare(p, hi.ByteArray()) <= 0
	}, func(row int64, v parquet.Value) {
		switch {
		case v.IsNull():
			untranslated = append(untranslated, row)
		case bytes.Equal(v.ByteArray(), p):
			translated = append(translated, row)
		}
	})
	if err != nil || len(untranslated) == 0 {
		return translated, nil, err
	}
	own, err = t.equal(chunks, cSrcIP, untranslated, p)
	return translated, own, err
}

func (t *table) equal(chunks []parquet.ColumnChunk, c int, rows []int64, p []byte) ([]int64, error) {
	return t.filter(chunks, c, rows, func(lo, hi parquet.Value) bool {
		return bytes.Compare(lo.ByteArray(), p) <= 0 && bytes.Compare(p, hi.ByteArray()) <= 0
	}, func(v parquet.Value) bool { return bytes.Equal(v.ByteArray(), p) })
}

// filter returns the rows whose value is kept. in tells by the least and the greatest value of a page whether one may be;
// a null is asked about if it is kept.
func (t *table) filter(chunks []parquet.ColumnChunk, c int, rows []int64, in func(lo, hi parquet.Value) bool,
	keep func(parquet.Value) bool) (kept []int64, err error) {
	nullKept := keep(null)
	if t.index[c] < 0 {
		if nullKept {
			return rows, nil
		}
		return nil, nil
	}
	err = t.pages(chunks, c, rows, func(lo, hi parquet.Value, nulls int64) bool {
		return nullKept && nulls > 0 || !lo.IsNull() && in(lo, hi)
	}, func(row int64, v parquet.Value) {
		if keep(v) {
			kept = append(kept, row)
		}
	})
	return kept, err
}

// pages calls do with the value of each of rows in a scalar column, page by page, and passes over pages that may not
// matter. Values are valid until do returns.
func (t *table) pages(chunks []parquet.ColumnChunk, c int, rows []int64, may func(lo, hi parquet.Value, nulls int64) bool,
	do func(row int64, v parquet.Value)) error {
	if len(rows) == 0 {
		return nil
	}
	chunk := chunks[t.index[c]]
	offsets, err := chunk.OffsetIndex()
	if err != nil {
		return err
	}
	var bounds parquet.ColumnIndex
	if may != nil {
		if bounds, err = chunk.ColumnIndex(); err != nil {
			return err
		}
	}
	pages := chunk.Pages()
	defer pages.Close()
	var buf []parquet.Value
	count := offsets.NumPages()
	sought := -1
	for p := 0; p < count && len(rows) > 0; p++ {
		first, end := offsets.FirstRowIndex(p), int64(1<<62)
		if p+1 < count {
			end = offsets.FirstRowIndex(p + 1)
		}
		n := 0
		for n < len(rows) && rows[n] < end {
			n++
		}
		here := rows[:n]
		rows = rows[n:]
		if n == 0 {
			continue
		}
		if bounds != nil {
			lo, hi := bounds.MinValue(p), bounds.MaxValue(p)
			if bounds.NullPage(p) {
				lo, hi = null, null
			}
			if !may(lo, hi, bounds.NullCount(p)) {
				continue
			}
		}
		if sought != p {
			if err := pages.SeekToRow(first); err != nil {
				return err
			}
		}
		page, err := pages.ReadPage()
		if err != nil {
			return unexpected(err)
		}
		sought = p + 1
		if int64(cap(buf)) < page.NumValues() {
			buf = make([]parquet.Value, page.NumValues())
		}
		k, err := readAll(page, buf[:page.NumValues()])
		if err != nil {
			parquet.Release(page)
			return err
		}
		for _, row := range here {
			if i := row - first; i >= 0 && i < int64(k) {
				do(row, buf[i])
			}
		}
		parquet.Release(page)
	}
	return nil
}

func readAll(page parquet.Page, buf []parquet.Value) (n int, err error) {
	values := page.Values()
	for n < len(buf) {
		k, err := values.ReadValues(buf[n:])
		n += k
		if err == io.EOF {
			break
		}
		if err != nil {
			return n, err
		}
		if k == 0 {
			break
		}
	}
	return n, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// records calls do with the record of each of rows, until it returns false. The record is valid until do returns.
func (t *table) records(group int, rows []int64, do func(row int64, r *flow.Record) bool) error {
	const at = 512 // rows at a time: they are held as values
	b := flow.NewBatch(1, nil)
	made := make([]row, min(at, len(rows)))
	for len(rows) > 0 {
		n := min(at, len(rows))
		if err := t.read(group, rows[:n], made[:n]); err != nil {
			return err
		}
		for i := range made[:n] {
			b.Reset()
			if !do(rows[i], made[i].record(b)) {
				return nil
			}
			made[i] = row{}
		}
		rows = rows[n:]
	}
	return nil
}

// read reads all columns of some rows.
func (t *table) read(group int, rows []int64, made []row) error {
	g := t.pf.RowGroups()[group]
	chunks := g.ColumnChunks()
	for c := range columns {
		if t.index[c] < 0 {
			continue
		}
		if group >= 0 {
			// Most columns are empty in most groups.
			if s := t.stats(group, c); s != nil && s.NullCount == g.NumRows() && len(s.MaxValue) == 0 && columns[c].list == nil {
				continue
			}
		}
		if columns[c].list != nil {
			if err := t.readList(chunks[t.index[c]], c, rows, made); err != nil {
				return err
			}
			continue
		}
		i := 0
		err := t.pages(chunks, c, rows, nil, func(row int64, v parquet.Value) {
			for rows[i] != row {
				i++
			}
			made[i].v[c] = v.Clone()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// setsOf are the names in each list.
func setsOf(c int) *sets {
	switch c {
	case cClock:
		return clockSets
	case cFlags:
		return flagSets
	}
	return statusSets
}

// readList reads a list of some rows.
func (t *table) readList(chunk parquet.ColumnChunk, c int, rows []int64, made []row) error {
	offsets, err := chunk.OffsetIndex()
	if err != nil {
		return err
	}
	names := setsOf(c)
	pages := chunk.Pages()
	defer pages.Close()
	var buf []parquet.Value
	for p, count, next := 0, offsets.NumPages(), 0; p < count && next < len(rows); p++ {
		first, end := offsets.FirstRowIndex(p), int64(1<<62)
		if p+1 < count {
			end = offsets.FirstRowIndex(p + 1)
		}
		if rows[next] >= end {
			continue
		}
		if err := pages.SeekToRow(first); err != nil {
			return err
		}
		page, err := pages.ReadPage()
		if err != nil {
			return unexpected(err)
		}
		if int64(cap(buf)) < page.NumValues() {
			buf = make([]parquet.Value, page.NumValues())
		}
		k, err := readAll(page, buf[:page.NumValues()])
		if err != nil {
			parquet.Release(page)
			return err
		}
		row := first - 1
		for i := range buf[:k] {
			v := &buf[i]
			if v.RepetitionLevel() == 0 {
				row++
			}
			for next < len(rows) && rows[next] < row {
				next++
			}
			if next == len(rows) {
				break
			}
			if rows[next] == row && v.DefinitionLevel() > 0 {
				made[next].listed[c] = true
				if !v.IsNull() {
					made[next].bits[c] |= names.parse(v.ByteArray())
				}
			}
		}
		parquet.Release(page)
		for next < len(rows) && rows[next] < end {
			next++
		}
	}
	return nil
}

func all(n int64) []int64 {
	rows := make([]int64, n)
	for i := range rows {
		rows[i] = int64(i)
	}
	return rows
}

// merge merges two lists of row numbers without common ones; union those that may have some.
func merge(a, b []int64) []int64 {
	if len(a) == 0 {
		return b
	}
	return union(a, b)
}

func union(a, b []int64) []int64 {
	if len(b) == 0 {
		return a
	}
	out := make([]int64, 0, len(a)+len(b))
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			out, a = append(out, a[0]), a[1:]
		case len(a) == 0 || b[0] < a[0]:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return out
}

// Each calls do with every record of a segment or a row log, in the order of the file. o says where they come from. It
// is what "ctlogd cat" prints. The record is valid until do returns.
func Each(path string, do func(o *Origin, r *flow.Record) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = damagedError(p)
		}
	}()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	var magic [8]byte
	n, _ := f.ReadAt(magic[:], 0)
	f.Close()
	if string(magic[:n]) == rowLogMagic {
		var failed error
		err := scanRowLog(File{Path: path}, &Query{}, func(w Row) bool {
			failed = do(w.Origin, w.Record)
			return failed == nil
		})
		return errors.Join(failed, err)
	}
	if !bytes.HasPrefix(magic[:n], []byte("PAR1")) {
		return errors.New("it is no file of an archive: no segment (*.parquet), and no row log (*.rows)")
	}
	file, pf, o, err := openSegment(path)
	if err != nil {
		return err
	}
	defer file.Close()
	t := newTable(pf, o)
	for i, g := range pf.RowGroups() {
		var failed error
		err := t.records(i, all(g.NumRows()), func(_ int64, r *flow.Record) bool {
			failed = do(&t.origin, r)
			return failed == nil
		})
		if failed != nil || err != nil {
			return errors.Join(failed, err)
		}
	}
	return nil
}
