package deliver

import (
	"math"
	"sync"

	"github.com/ctlogd/ctlogd/flow"
)

// flight is what the output has taken and the destination has not acknowledged. It is empty unless the output is an
// Acknowledger.
type flight struct {
	mu    sync.Mutex
	acks  Acknowledger // nil: what is taken has arrived
	sent  uint64       // records that the output has taken since it was built
	parts []part       // in their order
}

// part is what one Write has taken.
type part struct {
	end     uint64   // flight.sent behind the part
	since   int64    // no flow in it ended before; 0 if all of it is in the spool yet, or gaps
	gaps    gapRange // those of the ledger's that are among it
	spooled int      // how many records are to be removed from the spool when it has arrived
}

// begin is for an output that was built.
func (f *flight) begin(out Output) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acks, _ = out.(Acknowledger)
	f.sent = 0
}

// add notes n records that the output has taken. It returns what has arrived, as arrived does.
func (f *flight) add(n int, p part) (landed part) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.acks == nil {
		return p
	}
	f.sent += uint64(n)
	p.end = f.sent
	f.parts = append(f.parts, p)
	return f.land()
}

// arrived takes out what has arrived, and returns the sum of it.
func (f *flight) arrived() part {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.land()
}

func (f *flight) land() (landed part) {
	n := f.landed()
	for i, p := range f.parts[:n] {
		landed.spooled += p.spooled
		if p.gaps.len() > 0 {
			if landed.gaps.len() == 0 {
				landed.gaps.first = p.gaps.first
			}
			landed.gaps.end = p.gaps.end
		}
		f.parts[i] = part{}
	}
	rest := copy(f.parts, f.parts[n:])
	f.parts = f.parts[:rest]
	return landed
}

// landed returns how many parts have arrived. The lock is held.
func (f *flight) landed() (n int) {
	if len(f.parts) == 0 {
		return 0
	}
	arrived := f.acks.Acknowledged()
	for n < len(f.parts) && f.parts[n].end <= arrived {
		n++
	}
	return n
}

// waiting reports whether something is on its way.
func (f *flight) waiting() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.parts) > 0
}

// since returns a time before which no flow ended that is on its way and nowhere else; 0 if there is none.
func (f *flight) since() (oldest int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.parts[f.landed():] {
		if p.since != 0 && (oldest == 0 || p.since < oldest) {
			oldest = p.since
		}
	}
	return oldest
}

// end is for an output that is closed. What is on its way may have arrived or not: lose gets a gap of it, and takeBack the
// gaps among it. It reports whether records of the spool are among it.
func (f *flight) end(output string, now int64, lose func(Gap), takeBack func(gapRange)) (spooled bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var from int64 = math.MaxInt64
	for _, p := range f.parts {
		takeBack(p.gaps)
		spooled = spooled || p.spooled > 0
		if p.since != 0 {
			from = min(from, p.since)
		}
	}
	if from != math.MaxInt64 {
		lose(Gap{Gap: flow.Gap{Cause: flow.CauseOutputDown, Output: output}, From: from, To: max(now, from)})
	}
	clear(f.parts)
	f.parts = f.parts[:0]
	return spooled
}
