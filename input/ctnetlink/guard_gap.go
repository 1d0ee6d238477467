package ctnetlink

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// pendingGap is what was thrown away and is not yet in a record.
type pendingGap struct {
	due atomic.Bool // the reader is to take it
	mu  sync.Mutex
	gap guardGap
}

// guardGap is a number of ends that were thrown away, and when.
type guardGap struct {
	from, to time.Time
	first    time.Time // the first slice
	lost     uint64
	inexact  bool
	any      bool
}

func (g *guardGap) record() flow.Gap {
	return flow.Gap{Cause: flow.CauseGuard, Lost: g.lost, LostKnown: !g.inexact}
}

// add adds a slice's ends.
func (p *pendingGap) add(slice guardGap) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.gap.any {
		p.gap = slice
		return
	}
	if slice.from.Before(p.gap.from) {
		p.gap.from = slice.from
	}
	p.gap.to = slice.to
	p.gap.lost += slice.lost
	p.gap.inexact = p.gap.inexact || slice.inexact
}

// handOver lets the reader have the gap when shedding has been over for a while, or has gone on for long.
func (p *pendingGap) handOver(now, shedAt time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gap.any && (now.Sub(shedAt) >= calmAfter || now.Sub(p.gap.first) >= gapEvery) {
		p.due.Store(true)
	}
}

// take returns the gap if it is due; if end is true, whether it is due or not. The guard may be nil.
func (g *guard) take(end bool) (gap guardGap, ok bool) {
	if g == nil || !end && !g.pending.due.Load() {
		return gap, false
	}
	p := &g.pending
	p.mu.Lock()
	defer p.mu.Unlock()
	gap = p.gap
	p.gap = guardGap{}
	p.due.Store(false)
	return gap, gap.any
}
