package flow

import (
	"sync/atomic"
	"time"
)

// GapStats counts gaps by their cause. Any goroutine may read it.
type GapStats [len(CauseNames)]struct {
	Gaps atomic.Uint64
	Lost atomic.Uint64 // records in them, where it is known how many
	// Unknown are those of them of which it is not known how many records.
	Unknown atomic.Uint64
	Last    atomic.Int64 // when the last one grew last, ns since 1970; 0 never
}

// Add counts a gap, or, if more is true, what one that is counted already has grown by.
func (s *GapStats) Add(g Gap, more bool, now time.Time) {
	c := &s[g.Cause]
	if !more {
		c.Gaps.Add(1)
		if !g.LostKnown {
			c.Unknown.Add(1)
		}
	}
	if g.LostKnown {
		c.Lost.Add(g.Lost)
	}
	c.Last.Store(now.UnixNano())
}
