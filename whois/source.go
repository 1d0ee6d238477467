package whois

import (
	"context"
	"encoding/hex"
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
	flowID   string // "" if the record does not tell
	dropped  []string
	file     string
	number   int64
	segment  *archive.Segment // nil: the row is in no segment
	live     bool             // the row is in no file: it is the table's
	incoming bool             // the flow came in at the address that is asked for
}

// facts are what is known of a host besides rows.
type facts struct {
	host     string
	begins   int64 // time of the first record; 0: there is none
	ends     int64 // time of the last
	gaps     []archive.Gap
	before   *archive.Checkpoint // the last whole one before the time asked for
	after    *archive.Checkpoint // the first whole one by which every flow of that time has a record
	removed  []archive.Line
	problems []Reason
	dropped  []string // keys that are left out
	live     bool     // the table was read
	liveErr  error    // why not
	scanned  bool     // files were read from their beginning to their end
	over     bool     // there are more rows than an answer may have
	folder   string   // of the host in an archive
	lines    int      // of its catalogs
}

// Table is the table of live flows of this machine.
type Table struct {
	Host, Observer string
	Read           func(ctx context.Context, visit func(*flow.Record)) error
}

// kept are rows that were read once for all questions.
type kept struct {
	rows []row
	over bool
}

func (k *kept) add(r row) {
	if len(k.rows) >= 4*Limit {
		k.over = true
		return
	}
	own := flow.NewBatch(1, nil)
	own.Append([]flow.Record{*r.Record})
	r.Record = &own.Records[0]
	k.rows = append(k.rows, r)
}

// answer appends the rows that a question is about.
func (k *kept) answer(rows []row, q *Question, since int64) []row {
	for i, query := range q.queries(since) {
		for _, r := range k.rows {
			if query.Matches(r.Record) {
				r.incoming = i == 1
				rows = append(rows, r)
			}
		}
	}
	return rows
}

// isFlow reports whether the record is of a flow's end, or of its being alive.
func isFlow(r *flow.Record) bool {
	return (r.Event == flow.EventDestroy || r.Event == flow.EventOpen) && r.Has&flow.HasOrig != 0
}

// wanted returns what tells a record that one of the questions may be about from the many others. It is quick.
func wanted(questions []*Question) func(r *flow.Record) bool {
	addrs := map[flow.Addr]bool{}
	var others []*Question
	for _, q := range questions {
		switch {
		case q.Public.Addr.IsValid():
			addrs[flow.AddrFrom(q.Public.Addr)] = true
		case q.Src.IsValid() && q.Src.IsSingleIP():
			addrs[flow.AddrFrom(q.Src.Addr())] = true
		case q.Dst.Addr.IsValid():
			addrs[flow.AddrFrom(q.Dst.Addr)] = true
		default:
			others = append(others, q)
		}
	}
	least, most := int64(1<<62), int64(0)
	for _, q := range questions {
		least, most = min(least, q.From), max(most, q.To)
	}
	least -= int64(lookBack)
	return func(r *flow.Record) bool {
		if !isFlow(r) {
			return false
		}
		start, end, known := archive.Lifetime(r)
		if r.Has&flow.Stepped == 0 && (end < least || known && start > most) {
			return false
		}
		if !(addrs[r.Orig.Src] || addrs[r.Orig.Dst] || addrs[r.Reply.Src] || addrs[r.Reply.Dst]) &&
			!slices.ContainsFunc(others, func(q *Question) bool { return q.matches(r) }) {
			return false
		}
		return slices.ContainsFunc(questions, func(q *Question) bool { return q.matches(r) })
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

// idOf returns the flow's identity in hex.
func idOf(key format.ObserverKey, r *flow.Record) string {
	id, ok := format.FlowID(key, r)
	if !ok {
		return ""
	}
	return hex.EncodeToString(id[:])
}
