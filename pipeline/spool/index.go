package spool

import (
	"os"
	"slices"
	"sync"
)

// index is what the spool holds, as it is known in memory. Its lock is held for a look or a change and never across
// disk I/O or a log line.
//
// Records are numbered in the order of their arrival:
//
//	 delivered        in flight          unread
//	------------|------------------|---------------|
//	       state.cursor           pos             next
type index struct {
	mu       sync.Mutex
	segments []*segment // in order; Append may have the last one open
	size     int64      // bytes of all segments
	next     uint64     // the number of the next record to be appended; only the appender changes it
	pos      uint64     // the number of the next record to be read; only the reader changes it
	state    state
	inFlight []run // read and not committed, oldest first
	reading  bool  // a Read is under way, so the segment at pos must stay
	closed   bool
	unsynced unsynced
}

// segment is one file. Records from first to end, which is the next segment's first, are or were in it.
type segment struct {
	path       string
	first, end uint64
	size       int64 // bytes that are there to be read
	span       span
	f          *os.File // open for appending, or waiting for fdatasync
}

// run is something that was read and is not committed: n records in a row, or one gap.
type run struct {
	n    uint64
	gap  *gap
	from int64 // the start of their time span
}

// close marks the index as closed; false if it was already.
func (x *index) close() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	was := x.closed
	x.closed = true
	return !was
}

// appendable returns the segment that is open for appending, or nil.
func (x *index) appendable() *segment {
	x.mu.Lock()
	defer x.mu.Unlock()
	if n := len(x.segments); n > 0 && x.segments[n-1].f != nil {
		return x.segments[n-1]
	}
	return nil
}

// detach takes the segment's open file, nil if it has none. The caller closes it, without the lock: close(2) may wait.
func (x *index) detach(seg *segment) *os.File {
	x.mu.Lock()
	defer x.mu.Unlock()
	f := seg.f
	seg.f = nil
	return f
}

// detachAll takes all open files.
func (x *index) detachAll() (files []*os.File) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, seg := range x.segments {
		if seg.f != nil {
			files = append(files, seg.f)
			seg.f = nil
		}
	}
	return files
}

// addGap puts a gap in its place.
func (x *index) addGap(g *gap) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.state.gaps.add(g)
}

// The methods below are called with the lock held.

// inFlightRecords returns how many records were read and are not committed.
func (x *index) inFlightRecords() (n uint64) {
	for i := range x.inFlight {
		if n += x.inFlight[i].n; x.inFlight[i].gap != nil {
			n++
		}
	}
	return n
}

// deliveredSegments returns how many segments at the front hold only delivered records. A segment that is open for
// appending is not among them.
func (x *index) deliveredSegments() (n int) {
	for n < len(x.segments) && x.segments[n].end <= x.state.cursor &&
		(n < len(x.segments)-1 || x.segments[n].f == nil) {
		n++
	}
	return n
}

// cut takes n segments from place i on out of the index and returns them.
func (x *index) cut(i, n int) []*segment {
	segs := slices.Clone(x.segments[i : i+n])
	x.segments = slices.Delete(x.segments, i, i+n)
	for _, seg := range segs {
		x.size -= seg.size
	}
	return segs
}
