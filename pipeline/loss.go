package pipeline

import (
	"errors"
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

// losses are the gaps of one output that are not on record yet. The queue's lock guards it.
type losses struct {
	gaps    []Gap
	growing time.Time // when the last gap grew last
	began   time.Time // when it began
}

// add notes a gap, joining it to the last one where it continues that.
func (l *losses) add(g Gap, now time.Time) (joined bool) {
	l.growing = now
	if n := len(l.gaps); n > 0 {
		last := &l.gaps[n-1]
		if last.join(&g) {
			return true
		}
		if n == maxGaps {
			last.cover(&g)
			return true
		}
	}
	l.began = now
	l.gaps = append(l.gaps, g)
	return false
}

// due tells whether the gaps are to be written now, and if not, when it is time to look again.
func (l *losses) due(now time.Time) (ok bool, in time.Duration) {
	if len(l.gaps) == 0 {
		return false, 0
	}
	in = min(gapPause-now.Sub(l.growing), gapLast-now.Sub(l.began))
	return in <= 0, in
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
