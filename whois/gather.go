package whois

import (
	"hash/maphash"

	"github.com/ctlogd/ctlogd/flow"
)

// mostOver bounds how many flows are remembered of which only that they were over is known.
const mostOver = 1 << 19

// fewRows are so few that settling is not worth its while.
const fewRows = 2000

// gathered are the rows that one question may be about. The ends of flows that were over by then are among them, since
// another record may say of such a flow that it was alive, and has no end. Of a popular server these are many more than an
// answer has rows. Where there are too many, no more is kept of them than which flows they are of.
type gathered struct {
	q    *Question
	rows []row
	next int                 // how many rows there are when it settles
	over map[uint64]struct{} // by sum
	seed maphash.Seed
	full bool // rows were left out
}

// add adds a row, unless its flow was over, or there is no room for it.
func (g *gathered) add(r row) {
	if len(g.rows) >= max(g.next, fewRows) {
		g.settle()
		// With as much free as there is, each row pays for its part of the next settling.
		g.next = min(2*len(g.rows), Limit)
		g.full = g.full || len(g.rows) > Limit/4*3 || len(g.over) > mostOver
	}
	if g.full || g.known(&r) {
		return
	}
	g.rows = append(g.rows, r)
}

// settle takes out what is of flows that were over.
func (g *gathered) settle() {
	if g.over == nil {
		g.over, g.seed = map[uint64]struct{}{}, maphash.MakeSeed()
	}
	for i := range g.rows {
		r := &g.rows[i]
		if t, _ := r.Time(); r.Event == flow.EventDestroy && r.flowID != "" && r.Has&flow.Stepped == 0 && t < g.q.From {
			g.over[g.sum(r)] = struct{}{}
		}
	}
	left := g.rows[:0]
	for i := range g.rows {
		if r := &g.rows[i]; !g.known(r) {
			left = append(left, *r)
		}
	}
	clear(g.rows[len(left):])
	g.rows = left
}

// known reports whether the flow is known to have been over.
func (g *gathered) known(r *row) bool {
	if len(g.over) == 0 || r.flowID == "" || r.Has&flow.Stepped != 0 {
		return false
	}
	_, ok := g.over[g.sum(r)]
	return ok
}

// sum stands for the key of a row's flow.
func (g *gathered) sum(r *row) uint64 { return maphash.Comparable(g.seed, r.flowKey()) }
