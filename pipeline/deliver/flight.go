package deliver

import (
	"math"
	"sync"

	"github.com/ctlogd/ctlogd/flow"
)

// flight is what is in flight: the output has taken it, and the destination has not acknowledged it. It is empty unless the
// output is an Acknowledger.
type flight struct {
	mu    sync.Mutex
	acks  Acknowledger // nil: what Write takes counts as acknowledged
	sent  uint64       // records that the output has taken since it was built
	parts []part       // in their order
}

// part is what one Write has taken, or refused.
type part struct {
	end     uint64   // flight.sent behind the part
	n       int      // of so many records
	since   int64    // no flow in it ended before; 0 if all of it is in the spool yet, or gaps
	gaps    gapRange // the ledger's gaps in the part
	spooled int      // how many records to remove from the spool when the part is acknowledged
	lost    Gap      // of records of the spool that were refused, to be put on record then
}

// begin is for an output that was built.
func (f *flight) begin(out Output) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acks, _ = out.(Acknowledger)
	f.sent = 0
}

// add notes n records that the output has taken. It returns what is acknowledged at once.
func (f *flight) add(n int, p part) (acked part) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.acks == nil {
		return p
	}
	f.sent += uint64(n)
	p.end, p.n = f.sent, n
	f.parts = append(f.parts, p)
	return part{}
}

// acknowledged takes out the parts that are acknowledged, and returns their sum.
func (f *flight) acknowledged() (acked part) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.countAcked()
	for i, p := range f.parts[:n] {
		acked.spooled += p.spooled
		if p.lost.Lost > 0 {
			if acked.lost.Lost == 0 {
				acked.lost = p.lost
			} else {
				acked.lost.cover(&p.lost)
			}
		}
		if p.gaps.len() > 0 {
			if acked.gaps.len() == 0 {
				acked.gaps.first = p.gaps.first
			}
			acked.gaps.end = p.gaps.end
		}
		f.parts[i] = part{}
	}
	rest := copy(f.parts, f.parts[n:])
	f.parts = f.parts[:rest]
	return acked
}

// countAcked returns how many parts are acknowledged. The lock is held.
func (f *flight) countAcked() (n int) {
	if len(f.parts) == 0 {
		return 0
	}
	records := f.acks.Acknowledged()
	for n < len(f.parts) && f.parts[n].end <= records {
		n++
	}
	return n
}

// waiting reports whether something is in flight.
func (f *flight) waiting() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.parts) > 0
}

// since returns a time before which no flow ended that is in flight and nowhere else; 0 if there is none.
func (f *flight) since() (oldest int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.parts[f.countAcked():] {
		if p.since != 0 && (oldest == 0 || p.since < oldest) {
			oldest = p.since
		}
	}
	return oldest
}

// end is for an output that is closed. What is in flight may have arrived or not: lose gets a gap of it, and takeBack the
// ledger's gaps in it that are not known to have arrived, as confirm gets the others. end reports whether records of the spool were
// in flight.
func (f *flight) end(output string, now int64, lose func(Gap), takeBack, confirm func(gapRange)) (spooled bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var from int64 = math.MaxInt64
	for _, p := range f.parts {
		if start := p.end - uint64(p.n); p.gaps.len() > 0 { // they are at the head of the part
			if arrived := f.acks.Acknowledged(); arrived > start {
				confirm(p.gaps.split(int(min(arrived, p.end) - start)))
			}
			takeBack(p.gaps)
		}
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
