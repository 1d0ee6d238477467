package archive

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/ctlogd/ctlogd/flow"
)

// scanSegment calls do with the rows of a segment that are asked for.
func (r *Reader) scanSegment(f File, q *Query, do func(Row) bool) (err error) {
	defer damaged(&err)
	t, err := r.tables.open(f.Path)
	if err != nil {
		return err
	}
	defer r.tables.done(f.Path, t)
	base := int64(0)
	for _, g := range t.groups {
		if t.may(g, q) {
			r.RowGroups.Add(1)
			rows, err := t.find(g, q)
			if err != nil {
				return err
			}
			more := true
			err = t.records(g, rows, func(row int64, rec *flow.Record) bool {
				if q.Matches(rec) {
					more = do(Row{rec.Clone(), &t.origin, f, base + row})
				}
				return more
			})
			if err != nil || !more {
				return err
			}
			g.release()
		}
		base += g.rows
	}
	return nil
}

// damaged makes a panic of the function that defers it an error: the bytes are foreign, and a library may not have met them.
func damaged(err *error) {
	if recover() != nil {
		*err = errDamaged
	}
}

var errDamaged = errors.New("is damaged")

// textIn reports whether a column of a row group may hold a text, by its statistics.
func (g *rowGroup) textIn(c int, text []byte) bool {
	k := &g.chunks[c]
	if k.least == nil || k.greatest == nil {
		// Only nulls, or no statistics.
		return !g.empty(c)
	}
	return bytes.Compare(k.least, text) <= 0 && bytes.Compare(text, k.greatest) <= 0
}

func text(a netip.Addr) []byte { return a.AppendTo(nil) }

// may reports whether a row group may hold a row that is asked for.
func (t *table) may(g *rowGroup, q *Query) bool {
	if (q.From != 0 || q.To != 0) && !g.inTime(q) {
		return false
	}
	if q.Reached {
		if v, ok := g.constant(cNAT); ok && string(v.text) == flow.NATSrc.String() {
			return false
		}
	}
	if q.Public.IsValid() {
		p := text(q.Public)
		if !g.textIn(cNATSrcIP, p) {
			k := &g.chunks[cNATSrcIP]
			untranslated := !k.there || k.nulls > 0
			if !untranslated || !g.textIn(cSrcIP, p) || !t.filtered(g, cSrcIP, p) {
				return false
			}
		}
	}
	if q.Src.IsValid() {
		p := text(q.Src)
		if !g.textIn(cSrcIP, p) || !t.filtered(g, cSrcIP, p) {
			return false
		}
	}
	if q.Dst.IsValid() {
		p := text(q.Dst)
		if !(g.textIn(cDstIP, p) && t.filtered(g, cDstIP, p)) && !(g.textIn(cNATDstIP, p) && t.filtered(g, cNATDstIP, p)) {
			return false
		}
	}
	return true
}

// clocked reports whether there is something to say of the clock of a row in the group: times then bound nothing.
func (g *rowGroup) clocked() bool {
	k := &g.chunks[cClock]
	return k.there && k.nulls < g.rows
}

// inTime reports whether a flow of the row group may have been alive when the question asks.
func (g *rowGroup) inTime(q *Query) bool {
	if g.clocked() {
		return true
	}
	last := int64(-1 << 63)
	known := false
	for _, c := range [...]int{cTime, cEnd} {
		if v, ok := bound(delta64, g.chunks[c].greatest); ok {
			last = max(last, int64(v.n))
			known = true
		}
	}
	if known && last < q.From {
		return false
	}
	k := &g.chunks[cStart]
	v, ok := bound(delta64, k.least)
	return !ok || k.nulls > 0 || int64(v.n) <= q.To
}

// find returns the numbers of the rows of a group that may be asked for, by the columns of addresses, ports and times.
func (t *table) find(g *rowGroup, q *Query) (rows []int64, err error) {
	rows = all(g.rows)
	if q.Public.IsValid() {
		p := text(q.Public)
		var translated, own []int64
		translated, own, err = t.split(g, rows, p)
		if err != nil {
			return nil, err
		}
		if q.HasPort {
			// The port of a row that was translated stands in one of three columns; ICMP and GRE are looked at as records.
			port := uint64(q.Port)
			translated, err = t.filter(g, cNATSrcPort, translated, func(lo, hi value) bool { return lo.n <= port && port <= hi.n },
				func(v value) bool { return !v.there || v.n == port })
			if err != nil {
				return nil, err
			}
		}
		rows = union(translated, own)
	}
	if q.Src.IsValid() {
		if rows, err = t.equal(g, cSrcIP, rows, text(q.Src)); err != nil {
			return nil, err
		}
	}
	if q.Dst.IsValid() {
		before, err := t.equal(g, cDstIP, rows, text(q.Dst))
		if err != nil {
			return nil, err
		}
		after, err := t.equal(g, cNATDstIP, rows, text(q.Dst))
		if err != nil {
			return nil, err
		}
		rows = union(before, after)
	}
	if len(rows) > 64 && (q.From != 0 || q.To != 0) && !g.clocked() {
		// Of many rows, those that begin too late or end too early are left out before the other columns are read.
		rows, err = t.filter(g, cStart, rows, func(lo, _ value) bool { return int64(lo.n) <= q.To },
			func(v value) bool { return !v.there || int64(v.n) <= q.To })
		if err != nil {
			return nil, err
		}
		rows, err = t.filter(g, cEnd, rows, func(_, hi value) bool { return int64(hi.n) >= q.From },
			func(v value) bool { return !v.there || int64(v.n) >= q.From })
		if err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// split returns the rows whose source was translated to an address, and those that were not translated and have it.
func (t *table) split(g *rowGroup, rows []int64, p []byte) (translated, own []int64, err error) {
	var untranslated []int64
	err = t.pages(g, cNATSrcIP, rows, func(at *place) bool { return at.nulls > 0 || at.least.there && within(at.least, p, at.greatest) },
		func(row int64, v value) {
			switch {
			case !v.there:
				untranslated = append(untranslated, row)
			case bytes.Equal(v.text, p):
				translated = append(translated, row)
			}
		})
	if err != nil || len(untranslated) == 0 {
		return translated, nil, err
	}
	own, err = t.equal(g, cSrcIP, untranslated, p)
	return translated, own, err
}

// within reports whether a text lies between two.
func within(lo value, p []byte, hi value) bool {
	return bytes.Compare(lo.text, p) <= 0 && bytes.Compare(p, hi.text) <= 0
}

func (t *table) equal(g *rowGroup, c int, rows []int64, p []byte) ([]int64, error) {
	return t.filter(g, c, rows, func(lo, hi value) bool { return within(lo, p, hi) },
		func(v value) bool { return v.there && bytes.Equal(v.text, p) })
}

// filter returns the rows whose value is kept. in tells by the least and the greatest value of a page whether one may be;
// a null is asked about if it is kept.
func (t *table) filter(g *rowGroup, c int, rows []int64, in func(lo, hi value) bool, keep func(value) bool) (kept []int64, err error) {
	nullKept := keep(null)
	err = t.pages(g, c, rows, func(at *place) bool { return nullKept && at.nulls > 0 || at.least.there && in(at.least, at.greatest) },
		func(row int64, v value) {
			if keep(v) {
				kept = append(kept, row)
			}
		})
	return kept, err
}

// pages calls do with the value of each of rows in a scalar column, page by page, and passes over pages that may not
// matter by their bounds. may is nil if all matter.
func (t *table) pages(g *rowGroup, c int, rows []int64, may func(at *place) bool, do func(row int64, v value)) error {
	if len(rows) == 0 {
		return nil
	}
	v, same := g.constant(c)
	if same || g.empty(c) {
		at := place{least: v, greatest: v}
		if !same {
			at.nulls = g.rows
		}
		if may == nil || may(&at) {
			for _, row := range rows {
				do(row, v)
			}
		}
		return nil
	}
	places, err := t.places(g, c, may != nil)
	if err != nil {
		return err
	}
	for i := range places {
		at := &places[i]
		n, _ := slices.BinarySearch(rows, at.end)
		here := rows[:n]
		rows = rows[n:]
		if n == 0 || may != nil && !may(at) {
			continue
		}
		if may != nil && at.nulls == 0 && at.least.there && at.least.same(at.greatest) {
			for _, row := range here {
				do(row, at.least)
			}
			continue
		}
		p, err := t.page(g, c, *at)
		if err != nil {
			return err
		}
		next, value := at.row, 0 // the first row that was not passed over, and its value
		for _, row := range here {
			if p.defs == nil {
				do(row, p.value(int(row-at.row)))
				continue
			}
			for ; next < row; next++ {
				value += int(p.defs[next-at.row])
			}
			if p.defs[row-at.row] == 0 {
				do(row, null)
			} else {
				do(row, p.value(value))
			}
		}
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// records calls do with the record of each of rows, until it returns false. The record is valid until do returns.
func (t *table) records(g *rowGroup, rows []int64, do func(row int64, r *flow.Record) bool) error {
	const at = pageRows // rows at a time: they are held as values
	b := flow.NewBatch(1, nil)
	made := make([]row, min(at, len(rows)))
	for len(rows) > 0 {
		n := min(at, len(rows))
		if err := t.read(g, rows[:n], made[:n]); err != nil {
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
func (t *table) read(g *rowGroup, rows []int64, made []row) error {
	for c := range columns {
		if g.empty(c) {
			continue // most columns are, in most groups
		}
		if columns[c].list != nil {
			if err := t.readList(g, c, rows, made); err != nil {
				return err
			}
			continue
		}
		i := 0
		err := t.pages(g, c, rows, nil, func(row int64, v value) {
			made[i].v[c] = v
			i++
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// readList reads a list of some rows.
func (t *table) readList(g *rowGroup, c int, rows []int64, made []row) error {
	places, err := t.places(g, c, false)
	if err != nil {
		return err
	}
	next := 0 // of rows
	for i := range places {
		at := &places[i]
		if next == len(rows) {
			return nil
		}
		if rows[next] >= at.end {
			continue
		}
		p, err := t.page(g, c, *at)
		if err != nil {
			return err
		}
		var bits []uint32 // of the entries
		if p.entries != nil {
			for _, name := range p.entries.texts {
				bits = append(bits, columns[c].list.sets.parse(name))
			}
		}
		row, value := at.row-1, 0
		for i, d := range p.defs {
			if p.reps[i] == 0 {
				row++
			}
			for next < len(rows) && rows[next] < row {
				next++
			}
			if next == len(rows) {
				break
			}
			if rows[next] == row && d > 0 {
				made[next].listed[c] = true
				if d == 2 {
					made[next].bits[c] |= bits[p.ints[value]]
				}
			}
			if d == 2 {
				value++
			}
		}
		for next < len(rows) && rows[next] < at.end {
			next++
		}
	}
	return nil
}

// tables are segments that were read, in case they are asked again: whois has two questions about each.
type tables struct {
	mu    sync.Mutex
	kept  map[string]*table
	order []string // the oldest first
}

const maxTables = 100

// open returns the table of a segment, for the caller alone until it is done.
func (c *tables) open(path string) (*table, error) {
	c.mu.Lock()
	t := c.kept[path]
	delete(c.kept, path)
	c.order = slices.DeleteFunc(c.order, func(p string) bool { return p == path })
	c.mu.Unlock()
	if t != nil {
		return t, nil
	}
	return openSegment(path)
}

func (c *tables) done(path string, t *table) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil {
		c.kept = map[string]*table{}
	}
	if c.kept[path] != nil {
		_ = t.close()
		return
	}
	c.kept[path] = t
	c.order = append(c.order, path)
	if len(c.order) > maxTables {
		_ = c.kept[c.order[0]].close()
		delete(c.kept, c.order[0])
		c.order = c.order[1:]
	}
}

// Close closes the files that are still open.
func (r *Reader) Close() {
	r.tables.mu.Lock()
	defer r.tables.mu.Unlock()
	for _, t := range r.tables.kept {
		_ = t.close()
	}
	r.tables.kept, r.tables.order = nil, nil
}

// all returns the numbers of n rows. Nobody may change them.
func all(n int64) []int64 {
	every.mu.Lock()
	defer every.mu.Unlock()
	for i := int64(len(every.rows)); i < n; i++ {
		every.rows = append(every.rows, i)
	}
	return every.rows[:n:n]
}

var every struct {
	mu   sync.Mutex
	rows []int64
}

// union merges two lists of row numbers.
func union(a, b []int64) []int64 {
	if len(b) == 0 {
		return a
	}
	if len(a) == 0 {
		return b
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
	defer damaged(&err)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	var head [len(rowLogMagic)]byte
	n, _ := f.ReadAt(head[:], 0)
	f.Close()
	if string(head[:n]) == rowLogMagic {
		var failed error
		err := scanRowLog(File{Path: path}, &Query{}, func(w Row) bool {
			failed = do(w.Origin, w.Record)
			return failed == nil
		})
		return errors.Join(failed, err)
	}
	if !bytes.HasPrefix(head[:n], []byte(magic)) {
		return errors.New("it is no file of an archive: no segment (*.parquet), and no row log (*.rows)")
	}
	t, err := openSegment(path)
	if err != nil {
		return err
	}
	defer t.close()
	for _, g := range t.groups {
		var failed error
		err := t.records(g, all(g.rows), func(_ int64, r *flow.Record) bool {
			failed = do(&t.origin, r)
			return failed == nil
		})
		if failed != nil || err != nil {
			return errors.Join(failed, err)
		}
	}
	return nil
}
