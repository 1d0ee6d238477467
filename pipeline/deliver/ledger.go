package deliver

import (
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	// A gap is written when its loss has paused, or has lasted long: a queue that is full loses batch after batch, and
	// that is one gap and not hundreds.
	gapPause = time.Second
	gapLast  = 10 * time.Second

	// maxGaps bounds the gaps that wait for an output; past it the last one stands for all that follow.
	maxGaps = 64
)

// Gap is a loss that waits to be put on record: what a gap record says, without the record.
type Gap struct {
	flow.Gap
	From, To int64 // ns since 1970
}

// join makes g cover h as well, if both are of one cause and one output, and nothing lies between them that was not lost.
func (g *Gap) join(h *Gap) bool {
	apart := int64(gapPause)
	if g.Cause != h.Cause || g.Output != h.Output || h.From > g.To+apart || g.From > h.To+apart {
		return false
	}
	g.cover(h)
	return true
}

func (g *Gap) cover(h *Gap) {
	g.From, g.To = min(g.From, h.From), max(g.To, h.To)
	g.Lost += h.Lost
	g.LostKnown = g.LostKnown && h.LostKnown
}

// lose counts r as lost. A gap record is no lost record: keep gets what it says.
func (g *Gap) lose(r *flow.Record, keep func(Gap)) {
	if r.Event == flow.EventGap {
		keep(Gap{Gap: r.Extra.Gap, From: r.Start, To: r.Stop})
		return
	}
	// A flow's end may lie before its record was read by as long as its delivery took.
	from, _ := r.Time()
	if g.Lost == 0 || from < g.From {
		g.From = from
	}
	g.To = max(g.To, r.Received, from)
	g.Lost++
}

// fill makes r the record of the gap.
func (g *Gap) fill(b *flow.Batch, r *flow.Record, now time.Time) {
	r.Event, r.Start, r.Stop, r.Received = flow.EventGap, g.From, g.To, now.UnixNano()
	b.Extra(r).Gap = g.Gap
}

// gapRange are the gaps that the ledger has handed out under the numbers from first to before end.
type gapRange struct{ first, end uint64 }

func (r gapRange) len() int { return int(r.end - r.first) }

// split takes the first n from r, or as many as there are, and returns them.
func (r *gapRange) split(n int) gapRange {
	k := min(uint64(n), r.end-r.first)
	head := gapRange{r.first, r.first + k}
	r.first += k
	return head
}

// ledger has every loss of one output until the output, or its spool, has taken the gap record that says so. What is
// handed out stays here until then. So a loss is in the ledger or on record, at any time.
type ledger struct {
	output string
	stats  *flow.GapStats

	mu      sync.Mutex
	waiting []Gap
	growing time.Time // when the last one grew last
	began   time.Time // when it began
	handed  []handedGap
	number  uint64 // of the next one that is handed out
}

type handedGap struct {
	number uint64
	Gap
}

// add puts a new loss on record, and counts it.
func (l *ledger) add(g Gap) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.stats.Add(g.Gap, l.keep(g, now), now)
}

// addRecords puts the loss of recs on record, and returns how many they are. What gap records among them say is kept.
func (l *ledger) addRecords(cause flow.Cause, recs func(lose func(*flow.Record))) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	g := Gap{Gap: flow.Gap{Cause: cause, Output: l.output, LostKnown: true}}
	recs(func(r *flow.Record) { g.lose(r, func(kept Gap) { l.keep(kept, now) }) })
	if g.Lost > 0 {
		l.stats.Add(g.Gap, l.keep(g, now), now)
	}
	return g.Lost
}

// lose puts the loss of records on record; of none, it does nothing.
func (l *ledger) lose(g Gap) {
	if g.Lost > 0 {
		l.add(g)
	}
}

// keep notes a gap, joining it to one that it continues: so no two that wait say the same, and none is taken for the other come
// twice. The lock is held.
func (l *ledger) keep(g Gap, now time.Time) (joined bool) {
	l.growing = now
	for i := len(l.waiting) - 1; i >= 0; i-- {
		if l.waiting[i].join(&g) {
			return true
		}
	}
	if n := len(l.waiting); n == maxGaps {
		l.waiting[n-1].cover(&g)
		return true
	}
	l.began = now
	l.waiting = append(l.waiting, g)
	return false
}

// handOut returns the gaps that wait as records, if it is time to write them or anyway; else nil, and when to look again,
// 0 if there are none.
func (l *ledger) handOut(anyway bool) (b *flow.Batch, which gapRange, in time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		return nil, gapRange{}, 0
	}
	now := time.Now()
	if in = min(gapPause-now.Sub(l.growing), gapLast-now.Sub(l.began)); in > 0 && !anyway {
		return nil, gapRange{}, in
	}
	b = flow.NewBatch(len(l.waiting), nil)
	which.first = l.number
	for i := range l.waiting {
		g := &l.waiting[i]
		g.fill(b, b.Next(), now)
		l.handed = append(l.handed, handedGap{l.number, *g})
		l.number++
	}
	which.end = l.number
	l.waiting = l.waiting[:0]
	return b, which, 0
}

// confirm says that the gaps are on record.
func (l *ledger) confirm(which gapRange) { l.end(which, func(Gap, time.Time) {}) }

// takeBack says that the gaps are not on record: they wait again.
func (l *ledger) takeBack(which gapRange) {
	l.end(which, func(g Gap, now time.Time) { l.keep(g, now) })
}

func (l *ledger) end(which gapRange, do func(Gap, time.Time)) {
	if which.len() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	kept := l.handed[:0]
	for _, h := range l.handed {
		if h.number < which.first || h.number >= which.end {
			kept = append(kept, h)
			continue
		}
		do(h.Gap, now)
	}
	l.handed = kept
}

// unrecorded returns the gaps that are not on record, those that are handed out included.
func (l *ledger) unrecorded() (gaps []Gap) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.handed {
		gaps = append(gaps, h.Gap)
	}
	return append(gaps, l.waiting...)
}

// causeOf tells why an output that answers with err loses records.
func causeOf(err error) flow.Cause {
	switch {
	case err == nil:
		return flow.CauseQueueFull
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return flow.CauseDiskFull
	}
	return flow.CauseOutputDown
}
