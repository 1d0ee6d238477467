package pipeline

import (
	"math"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

// lookEvery is how often the worker looks what has arrived while it waits for something to do.
const lookEvery = 100 * time.Millisecond

// flight is what the output has taken and has not acknowledged; always empty unless it is an Acknowledger. Only the
// worker changes it, under the queue's lock but for sent, which is its own.
type flight struct {
	sent  uint64 // records that the output has taken, and those before it
	base  uint64 // sent when the output began
	parts []part // in their order
}

// part is what was delivered between two looks at the queue.
type part struct {
	end     uint64 // how much the output has acknowledged when it has the part
	since   int64  // as that of a batch; 0 if all of it is in the spool yet, or gaps
	gaps    []Gap  // those among it that are nowhere else
	spooled int    // how many records are to be removed from the spool
}

// takeOff notes what the output has taken, and is done with it if that does not need an acknowledgement. The worker calls
// it.
func (q *Queue) takeOff(p part) {
	if _, ok := q.out.(Acknowledger); !ok {
		q.commit(p.spooled)
		return
	}
	q.mu.Lock()
	p.end = q.flight.sent
	q.flight.parts = append(q.flight.parts, p)
	q.mu.Unlock()
	q.land()
}

// land is done with what has arrived. The worker calls it.
func (q *Queue) land() {
	if len(q.flight.parts) == 0 {
		return
	}
	arrived := q.arrived()
	q.mu.Lock()
	n, spooled := 0, 0
	for ; n < len(q.flight.parts) && q.flight.parts[n].end <= arrived; n++ {
		spooled += q.flight.parts[n].spooled
	}
	q.flight.drop(n)
	q.mu.Unlock()
	q.commit(spooled)
}

// arrived returns up to where what was sent has been acknowledged.
func (q *Queue) arrived() uint64 {
	return q.flight.base + min(q.out.(Acknowledger).Acknowledged(), math.MaxUint64-q.flight.base)
}

func (f *flight) drop(n int) {
	rest := copy(f.parts, f.parts[n:])
	clear(f.parts[rest:])
	f.parts = f.parts[:rest]
}

// commit removes from the spool what has arrived.
func (q *Queue) commit(n int) {
	if n == 0 {
		return
	}
	if err := q.spill.spool.Commit(n); err != nil {
		q.log.Error("spool: what is delivered may be delivered again", zap.Error(err))
	}
}

// flying returns the parts that have not arrived. Any goroutine may call it, and keep them while it has the lock, which
// is held.
func (q *Queue) flying() []part {
	parts := q.flight.parts
	if len(parts) == 0 {
		return nil
	}
	arrived := q.arrived()
	for len(parts) > 0 && parts[0].end <= arrived {
		parts = parts[1:]
	}
	return parts
}

// oldest returns since when flows may have ended that are among the parts, and nowhere else; 0 if there are none.
func oldest(parts []part) (since int64) {
	for _, p := range parts {
		if p.since != 0 && (since == 0 || p.since < since) {
			since = p.since
		}
	}
	return since
}

// crash makes a gap of what was on its way when the output was closed: it may have arrived, or not. What is in the spool
// is read from there again. The worker calls it, or who comes after it.
func (q *Queue) crash() {
	q.land()
	parts := q.flight.parts
	if _, ok := q.out.(Acknowledger); ok && q.inWrite != 0 && q.arrived() < q.flight.sent {
		parts = append(parts, part{since: q.inWrite}) // of a delivery that is not over yet
	}
	now := time.Now()
	q.mu.Lock()
	for _, p := range parts {
		for _, g := range p.gaps {
			q.losses.add(g, now)
		}
	}
	if from := oldest(parts); from != 0 {
		q.lost(Gap{Gap: flow.Gap{Cause: flow.CauseOutputDown, Output: q.name}, From: from, To: now.UnixNano()}, now)
	}
	q.flight = flight{sent: q.flight.sent, base: q.flight.sent}
	q.mu.Unlock()
	if q.spill != nil && len(parts) > 0 {
		q.spill.spool.Rewind()
	}
}
