package spool

import (
	"fmt"
	"os"
	"slices"
)

// Commit says that the first n records of those in flight are delivered, and removes the segments that are no longer
// needed. After a restart, Read returns again what was read and not committed.
func (s *Spool) Commit(n int) error {
	s.reader.mu.Lock()
	defer s.reader.mu.Unlock()
	segmentDone, err := s.index.commit(n)
	if err != nil {
		return err
	}
	s.Stats.Delivered.Add(uint64(n))
	// The disk must know that a segment is delivered before the segment is removed. Else, after a power failure, the
	// missing segment would look like a loss.
	err = s.saveState(segmentDone && s.cfg.Fsync != SyncNever)
	if err == nil && segmentDone {
		err = s.saveState(false) // the other slot, too
	}
	if err != nil {
		return err
	}
	if segmentDone {
		s.removeDelivered()
	}
	return nil
}

// commit moves the cursor past n records. segmentDone reports whether a segment is not needed any more.
func (x *index) commit(n int) (segmentDone bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return false, os.ErrClosed
	}
	if read := x.inFlightRecords(); uint64(n) > read {
		return false, fmt.Errorf("commit of %d records, %d were read", n, read)
	}
	done := 0
	for left := uint64(n); left > 0; {
		r := &x.inFlight[done]
		if r.gap != nil {
			x.state.cursor = max(x.state.cursor, r.gap.end())
			x.state.gaps = slices.DeleteFunc(x.state.gaps, func(g *gap) bool { return g == r.gap })
			left--
			done++
			continue
		}
		k := min(left, r.n)
		x.state.cursor += k
		r.n -= k
		left -= k
		if r.n == 0 {
			done++
		}
	}
	x.inFlight = slices.Delete(x.inFlight, 0, done)
	return x.deliveredSegments() > 0, nil
}

// removeDelivered removes the segments of which every record is delivered.
func (s *Spool) removeDelivered() {
	s.index.mu.Lock()
	segs := s.index.cut(0, s.index.deliveredSegments())
	s.index.mu.Unlock()
	s.remove(segs)
}

// Rewind has the next Read begin at the first record that is not committed.
func (s *Spool) Rewind() {
	s.reader.mu.Lock()
	defer s.reader.mu.Unlock()
	s.reader.close()
	x := &s.index
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, r := range x.inFlight {
		if r.gap != nil {
			r.gap.taken = false
		}
	}
	x.inFlight = x.inFlight[:0]
	x.pos = x.state.cursor
}
