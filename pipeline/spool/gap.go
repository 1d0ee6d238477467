package spool

import (
	"math"
	"slices"

	"github.com/ctlogd/ctlogd/flow"
)

// Loss says what is missing: records received between From and To (ns since 1970), Lost of them if Known.
type Loss struct {
	Cause    flow.Cause
	From, To int64
	Lost     uint64
	Known    bool
}

func (l *Loss) add(o Loss) {
	if l.Cause == 0 {
		*l = o
		return
	}
	l.From, l.To = min(l.From, o.From), max(l.To, o.To)
	l.Lost += o.Lost
	l.Known = l.Known && o.Known
}

// gap is a loss in its place among the records: before record at. The records from at on, skip of them, are what was
// lost if they had been in the spool.
type gap struct {
	at, skip uint64
	Loss
	output string // the output concerned
	noted  int64  // when it was noticed, which makes the gap record's Received
	taken  bool   // read and not committed: what it says may not change any more
}

func (g *gap) end() uint64 { return g.at + g.skip }

// maxGaps is how many gaps wait at most, and maxOutput how long an output's name may be in one: they must fit into the
// state file, which never grows.
const (
	maxGaps   = 64
	maxOutput = 255
)

// gaps are the gaps that wait to be delivered, in the order of their places.
type gaps []*gap

// add puts g in its place. It becomes part of a gap that says the same of the same place, and if there are too many,
// the two that are closest in time become one: times get coarser, but nothing is forgotten.
func (gs *gaps) add(g *gap) {
	if len(g.output) > maxOutput {
		g.output = g.output[:maxOutput]
	}
	i, _ := slices.BinarySearchFunc(*gs, g.at, func(e *gap, at uint64) int {
		if e.at <= at {
			return -1
		}
		return 1
	})
	*gs = slices.Insert(*gs, i, g)
	for _, j := range []int{i, i - 1} {
		if gs.mergeable(j) && (*gs)[j].end() == (*gs)[j+1].at {
			gs.merge(j)
		}
	}
	for len(*gs) > maxGaps {
		best, least := -1, int64(math.MaxInt64)
		for j := range *gs {
			if !gs.mergeable(j) {
				continue
			}
			a, b := (*gs)[j], (*gs)[j+1]
			if d := max(a.To, b.To) - min(a.From, b.From); best < 0 || d < least {
				best, least = j, d
			}
		}
		if best < 0 {
			return
		}
		gs.merge(best)
	}
}

// mergeable reports whether gap j and the next one can become one: there is no place for two stretches of records that
// are apart.
func (gs gaps) mergeable(j int) bool {
	if j < 0 || j+1 >= len(gs) {
		return false
	}
	a, b := gs[j], gs[j+1]
	return !a.taken && !b.taken && a.Cause == b.Cause && a.output == b.output &&
		(a.skip == 0 || b.skip == 0 || a.end() == b.at)
}

func (gs *gaps) merge(j int) {
	a, b := (*gs)[j], (*gs)[j+1]
	switch {
	case a.skip == 0 && b.skip != 0:
		a.at, a.skip = b.at, b.skip
	case a.end() == b.at:
		a.skip += b.skip
	}
	a.Loss.add(b.Loss)
	a.noted = max(a.noted, b.noted)
	*gs = slices.Delete(*gs, j+1, j+2)
}

// next returns the first gap that is not taken, or nil.
func (gs gaps) next() *gap {
	for _, g := range gs {
		if !g.taken {
			return g
		}
	}
	return nil
}

// record appends the gap's record to b, which has room.
func (g *gap) record(b *flow.Batch) {
	r := b.Next()
	r.Event, r.Start, r.Stop, r.Received = flow.EventGap, g.From, g.To, g.noted
	b.Extra(r).Gap = flow.Gap{Cause: g.Cause, Lost: g.Lost, LostKnown: g.Known, Output: g.output}
}

// gapOf returns what the gap record r says, or nil if it is none.
func gapOf(r *flow.Record) *gap {
	if r.Event != flow.EventGap || r.Extra == nil {
		return nil
	}
	f := &r.Extra.Gap
	return &gap{
		Loss:   Loss{Cause: f.Cause, From: r.Start, To: r.Stop, Lost: f.Lost, Known: f.LostKnown},
		output: f.Output,
		noted:  r.Received,
	}
}
