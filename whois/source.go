package whois

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// Source has records. It is for one goroutine.
type Source interface {
	// Prepare reads once what all questions need to have read.
	Prepare(ctx context.Context, questions []*Question) error
	// Collect returns the rows that a question may be about, and the facts of each host. Damage is among the facts.
	Collect(ctx context.Context, q *Question) ([]row, []*facts, error)
}

// Limit is how many rows an answer has at most.
const Limit = 20000

// row is a record that a question may be about.
type row struct {
	*flow.Record
	host     string
	folder   string // of the host in an archive; "" elsewhere
	flowID   string // "" if the record does not tell
	dropped  []string
	file     string
	number   int64
	segment  *archive.Segment // nil: the row is in no segment
	live     bool             // the row is in no file: it is the table's
	incoming bool             // the flow came in at the address that is asked for
}

// flowKey is what flows that have a flow_id are told apart by.
type flowKey struct {
	host, id string
	incoming bool
}

func (r *row) flowKey() flowKey { return flowKey{r.host, r.flowID, r.incoming} }

// facts are what is known of a host besides rows.
type facts struct {
	host     string
	begins   int64 // time of the first record; 0: there is none
	ends     int64 // time of the last
	gaps     []archive.Gap
	before   *archive.Checkpoint // the last whole one before the time asked for
	after    *archive.Checkpoint // the first whole one by which every flow of that time has a record
	until    int64               // what is on record by then has no later time
	removed  []archive.Line
	problems []Reason
	dropped  []string        // keys that are left out
	filter   string          // key of rules that leave flows out
	leftOut  []span          // the rules that have done so, by the catalog
	unruled  bool            // nothing tells which rules there were
	then     string          // the configuration that does, by the word of whoever asks
	unsynced []archive.Times // while the clock was not synchronised, by what is on record of any flow, or of a checkpoint
	live     bool            // the table was read
	liveErr  error           // why that is no witness
	scanned  bool            // files were read from their beginning to their end
	closed   bool            // nothing of it could be read
	over     bool            // there are more rows than an answer may have
	folder   string          // of the host in an archive
	lines    int             // of its catalogs
	archive  *archive.Host
	looked   []archive.File // that may have held what was asked for
}

// Then is a configuration that was in force at the time that is asked for, by the word of whoever asks. Files of JSON lines do
// not tell which filters there were.
type Then struct {
	File string

	// Filter tells which rules of it kept flows out of the file at a path, or out of what that is a copy of: their key, "" if
	// none did.
	Filter func(path string, q *Question) string
}

// Table is the table of live flows of this machine, and the daemon that puts on record what ends in it.
type Table struct {
	Host, Observer string

	// Writes reports whether the daemon writes the archive, or the file, at a path. Of a copy the table says nothing.
	Writes func(path string) bool

	// Filter tells which rules of the configuration keep flows out of what is written at the path: their key, "" if none do.
	Filter func(path string, q *Question) string

	// Read reads the table. Nil: the table is not looked at.
	Read func(ctx context.Context, visit func(*flow.Record)) error

	// Recorded waits until all flows that have ended by now are on record in what is written at the path. The error says
	// why that is not so, in words that go on "... (no ctlogd answers)".
	Recorded func(ctx context.Context, path string) error
}

// read reads the table for what is written at path. The error says why that is no witness: then what has ended may be in
// neither.
func (t *Table) read(ctx context.Context, path string, visit func(r *flow.Record, id string)) error {
	key := format.NewObserverKey(t.Observer)
	err := t.Read(ctx, func(r *flow.Record) {
		r.Event = flow.EventOpen
		visit(r, idOf(key, r))
	})
	if err != nil {
		return fmt.Errorf("the table of live flows could not be read (%w): ask as root", err)
	}
	if err := t.Recorded(ctx, path); err != nil {
		return fmt.Errorf("what has ended since the last record may not be on record yet (%w)", err)
	}
	return nil
}

// kept are rows that were read once for all questions.
type kept struct {
	rows []row
	by   map[flow.Addr][]int // which of them have an address
	over bool
}

func (k *kept) add(r row) {
	if len(k.rows) >= 4*Limit {
		k.over = true
		return
	}
	r.Record = r.Record.Clone()
	if k.by == nil {
		k.by = map[flow.Addr][]int{}
	}
	ends := []flow.Addr{r.Orig.Src, r.Orig.Dst, r.Reply.Src, r.Reply.Dst}
	for i, a := range ends {
		if !slices.Contains(ends[:i], a) {
			k.by[a] = append(k.by[a], len(k.rows))
		}
	}
	k.rows = append(k.rows, r)
}

// answer appends the rows that a question is about.
func (k *kept) answer(rows []row, q *Question, since int64) []row {
	among, all := []int(nil), false
	if a, ok := q.key(); ok {
		among = k.by[flow.AddrFrom(a.Addr)]
	} else {
		all = true
	}
	for i, query := range q.queries(since) {
		take := func(r row) {
			if query.Matches(r.Record) {
				r.incoming = i == 1
				rows = append(rows, r)
			}
		}
		if all {
			for _, r := range k.rows {
				take(r)
			}
			continue
		}
		for _, n := range among {
			take(k.rows[n])
		}
	}
	return rows
}

// isFlow reports whether the record is of a flow's end, or of its being alive.
func isFlow(r *flow.Record) bool {
	return (r.Event == flow.EventDestroy || r.Event == flow.EventOpen) && r.Has&flow.HasOrig != 0
}

// key returns an address, and perhaps a port, that every row has that the question is about. ok is false if there is none.
func (q *Question) key() (e End, ok bool) {
	switch {
	case q.Public.Addr.IsValid():
		return q.Public, true
	case q.Src.IsValid() && q.Src.IsSingleIP():
		return End{q.Src.Addr(), q.SrcEnd.Port, q.SrcEnd.HasPort}, true
	case q.Src.IsValid() || q.Person != "":
		return e, false
	}
	return q.Dst, true
}

// spanOf returns the times between which flows have to have lived that one of the questions may be about.
func spanOf(questions []*Question) (from, to int64) {
	from, to = int64(1<<62), int64(0)
	for _, q := range questions {
		from, to = min(from, q.From), max(to, q.To)
	}
	return from - int64(lookBack), to
}

// wanted returns what tells a record that one of the questions may be about from the many others. It is quick, however
// many questions there are.
func wanted(questions []*Question) func(r *flow.Record) bool {
	type end struct {
		addr flow.Addr
		port uint16
	}
	addrs, ends := map[flow.Addr]bool{}, map[end]bool{} // true: whatever the port
	var prefixes []*Question
	for _, q := range questions {
		e, ok := q.key()
		if !ok {
			prefixes = append(prefixes, q)
			continue
		}
		a := flow.AddrFrom(e.Addr)
		addrs[a] = addrs[a] || !e.HasPort
		if e.HasPort {
			ends[end{a, e.Port}] = true
		}
	}
	from, to := spanOf(questions)
	has := func(a flow.Addr, ports ...uint16) bool {
		any, ok := addrs[a]
		return ok && (any || slices.ContainsFunc(ports, func(p uint16) bool { return ends[end{a, p}] }))
	}
	return func(r *flow.Record) bool {
		if !isFlow(r) {
			return false
		}
		start, last, known := archive.Lifetime(r)
		if r.Has&flow.Stepped == 0 && (last < from || known && start > to) {
			return false
		}
		o, p := &r.Orig, &r.Reply
		return has(o.Src, o.SrcPort) || has(o.Dst, o.DstPort) || has(p.Src, p.SrcPort) || has(p.Dst, p.DstPort, p.SrcPort) ||
			slices.ContainsFunc(prefixes, func(q *Question) bool { return q.matches(r) })
	}
}

// glanced returns what tells by a glance at a record that wanted wants none of it. It may let one pass that is not wanted,
// and holds back no gap and no checkpoint.
func glanced(questions []*Question) func(g *flow.Glance) bool {
	// Which ends of flows are asked for, by their hashes: one bit in 64 is set at most.
	size := 12
	for len(questions) > 1<<size/64 && size < 24 {
		size++
	}
	asked, ports, addrs, all := make([]uint64, 1<<size/64), false, false, false
	place := func(tail uint32, port uint16) (word, bit uint64) {
		h := (uint64(tail)<<16 | uint64(port)) * 0x9e3779b97f4a7c15 >> (64 - size)
		return h / 64, 1 << (h % 64)
	}
	for _, q := range questions {
		e, ok := q.key()
		if !ok {
			all = true
			continue
		}
		if !e.HasPort {
			e.Port = 0
		}
		ports, addrs = ports || e.HasPort, addrs || !e.HasPort
		a := flow.AddrFrom(e.Addr)
		word, bit := place(flow.TailOf(&a), e.Port)
		asked[word] |= bit
	}
	has := func(tail uint32, port uint16) bool {
		word, bit := place(tail, port)
		return asked[word]&bit != 0
	}
	from, to := spanOf(questions)
	return func(g *flow.Glance) bool {
		if g.Event >= flow.EventOpen { // gaps and checkpoints are among them
			return true
		}
		if g.Event != flow.EventDestroy || g.Has&flow.Stepped == 0 && (g.Time < from || g.Start > to) {
			return false
		}
		o, p := &g.Orig, &g.Reply
		return all ||
			ports && (has(o[0].Tail, o[0].Port) || has(o[1].Tail, o[1].Port) || has(p[0].Tail, p[0].Port) || has(p[1].Tail, p[1].Port) || has(p[1].Tail, p[0].Port)) ||
			addrs && (has(o[0].Tail, 0) || has(o[1].Tail, 0) || has(p[0].Tail, 0) || has(p[1].Tail, 0))
	}
}

const (
	lookBack    = 7 * 24 * time.Hour // for the checkpoint before a time
	lookAtLeast = 2 * time.Hour
)

// since returns from when on rows matter: flows that a checkpoint has seen last before the time asked for may have been
// alive then.
func (f *facts) since(q *Question) int64 {
	since := q.From - int64(lookAtLeast)
	if f.before != nil && q.From-int64(f.before.Began) < int64(lookBack) {
		since = min(since, int64(f.before.Began))
	}
	return max(since, 1)
}

// check is a checkpoint, with the latest time of what was sealed before it, and of what stands in one file with it. They are
// later than its own where the clock was set back.
type check struct {
	archive.Checkpoint
	latest, beside int64
}

// bound sets the checkpoints before and after the time asked for. checks are in the order in which they were recorded, which
// is that of their times unless the clock was set back. Then one time may be two moments, and the checkpoint after it is that
// from which on all are late enough.
func (f *facts) bound(checks []check, q *Question) {
	late, back := 0, false
	for i := range checks {
		c := &checks[i]
		if c.Whole && int64(c.Ended) <= q.From && (f.before == nil || c.Began > f.before.Began) {
			f.before = &c.Checkpoint
		}
		if int64(c.Began) < q.To+int64(c.MinAge) {
			late = i + 1
		}
	}
	for i := range checks {
		c := &checks[i]
		if back = back || i > 0 && c.Began < checks[i-1].Began; i < late || !c.Whole {
			continue
		}
		f.after, f.until = &c.Checkpoint, max(int64(c.Ended), c.latest)
		if back {
			f.until = max(f.until, c.beside)
		}
		return
	}
}

// doubtful keeps the times of records, as they come, that were written while the clock was not synchronised.
type doubtful struct {
	all []archive.Times
	now bool // the last record was one
}

func (d *doubtful) add(t int64, unsynced bool) {
	switch at := archive.Time(t); {
	case unsynced && d.now:
		d.all[len(d.all)-1].Add(at)
	case unsynced:
		d.all = append(d.all, archive.Times{First: at, Last: at})
	}
	d.now = unsynced
}

// idOf returns the flow's identity in hex.
func idOf(key format.ObserverKey, r *flow.Record) string {
	id, ok := format.FlowID(key, r)
	if !ok {
		return ""
	}
	return hex.EncodeToString(id[:])
}
