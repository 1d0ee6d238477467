package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// readTries is how often in a row reading the same place may fail before what is there counts as lost: a disk that has
// lost a sector must not hold up all that follows.
const readTries = 8

// reader is where Read stands: a segment, a frame in it, and the frame's records that are yet to be decoded.
type reader struct {
	mu sync.Mutex // held by Read, Commit and Rewind
	segmentReader
	seg     *segment
	file    *os.File
	off     int64  // of the next frame
	last    int64  // end of the time span of the last frame seen, 0 if there was none
	fails   int    // reads in a row that have failed
	frame   frame  // the one that rest is of
	rest    []byte // records that are yet to be decoded
	number  uint64 // of the first one of rest
	left    uint64 // records in rest
	scratch *flow.Batch
}

// close forgets the file and the frame.
func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.seg, r.rest, r.left, r.fails = nil, nil, nil, 0, 0
}

// Read appends the next records to b, as many as it has room for, in their order, and returns how many; 0 if none
// waits. Losses are among them, as gap records in their places. The records stay in the spool until Commit. The error
// is that of reading a file: what was read before is in b, and the next call tries again.
func (s *Spool) Read(b *flow.Batch) (n int, err error) {
	s.reader.mu.Lock()
	defer s.reader.mu.Unlock()
	x := &s.index
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return 0, os.ErrClosed
	}
	x.reading = true // from here on, the segment at pos stays
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		x.reading = false
		x.mu.Unlock()
	}()
	start := len(b.Records)
	for err == nil && !b.Full() {
		limit := s.readGap(b)
		if b.Full() || limit == x.pos {
			break
		}
		if s.reader.left == 0 || s.reader.number != x.pos {
			err = s.load()
			continue
		}
		s.decode(b, limit)
	}
	return len(b.Records) - start, err
}

// readGap takes the next gap if it is at pos, and returns up to where records follow: to the next gap or to the end. If
// that is pos, there are none, or the next gap is here.
func (s *Spool) readGap(b *flow.Batch) (limit uint64) {
	x := &s.index
	x.mu.Lock()
	defer x.mu.Unlock()
	for !b.Full() {
		g := x.state.gaps.next()
		if g == nil {
			return x.next
		}
		if g.at > x.pos {
			return g.at
		}
		g.taken = true
		g.record(b)
		x.pos = max(x.pos, g.end())
		x.inFlight = append(x.inFlight, run{gap: g, from: g.From})
	}
	return x.pos
}

// decode appends records of the frame at hand to b, up to the number limit.
func (s *Spool) decode(b *flow.Batch, limit uint64) {
	r, x := &s.reader, &s.index
	n := uint64(0)
	var err error
	for ; r.left > 0 && r.number < limit && !b.Full(); n++ {
		if r.rest, err = b.DecodeBinary(r.rest); err != nil {
			break
		}
		r.number++
		r.left--
	}
	x.mu.Lock()
	x.pos += n
	if i := len(x.inFlight) - 1; i >= 0 && x.inFlight[i].gap == nil {
		x.inFlight[i].n += n
	} else if n > 0 {
		x.inFlight = append(x.inFlight, run{n: n, from: r.frame.span.from})
	}
	x.mu.Unlock()
	if err != nil {
		// The checksum was right, so this is no damage of the disk's.
		s.hole(r.frame.end(), r.frame.span, err)
		r.left = 0
	}
}

// load makes the frame at hand the one that has the record at pos. If that record is lost, it notes the hole instead.
func (s *Spool) load() error {
	r, x := &s.reader, &s.index
	r.left = 0
	seg, end, err := s.enter()
	if seg == nil || err != nil {
		return err
	}
	for {
		f, ok, err := r.header(r.off)
		if err == nil && !ok {
			var at int64
			if at, ok, err = r.find(r.off + 1); ok {
				r.off = at
				continue
			}
		}
		if err != nil {
			if err = s.failed(err); err != nil {
				return err
			}
			r.off = r.size
		}
		if !ok {
			s.hole(end, span{r.last, seg.span.to}, nil)
			return nil
		}
		switch {
		case f.end() <= x.pos:
			r.off += f.len()
			r.last = f.span.to
			continue
		case f.first > x.pos:
			s.hole(f.first, span{r.last, f.span.from}, nil)
			return nil
		}
		p, ok, err := r.payload(r.off, f)
		if err != nil {
			if err = s.failed(err); err != nil {
				return err
			}
		}
		r.fails = 0
		r.off += f.len()
		r.last = f.span.to
		if !ok {
			s.hole(f.end(), f.span, nil)
			return nil
		}
		r.frame, r.rest, r.number, r.left = f, p, f.first, f.count
		for r.number < x.pos { // delivered already
			r.scratch.Reset()
			if r.rest, err = r.scratch.DecodeBinary(r.rest); err != nil {
				s.hole(f.end(), f.span, err)
				r.left = 0
				return nil
			}
			r.number++
			r.left--
		}
		return nil
	}
}

// enter makes the segment at hand the one that has the record at pos; if there is none, it notes the hole.
func (s *Spool) enter() (seg *segment, end uint64, err error) {
	r, x := &s.reader, &s.index
	x.mu.Lock()
	end = x.next
	i := 0
	for ; i < len(x.segments) && x.segments[i].end <= x.pos; i++ {
	}
	var times span
	if i < len(x.segments) {
		if end = x.segments[i].first; end <= x.pos {
			seg, end = x.segments[i], x.segments[i].end
			r.size, r.first, r.end = seg.size, seg.first, seg.end
		}
		times = x.segments[i].span
	}
	x.mu.Unlock()
	if seg == nil {
		s.hole(end, span{r.last, times.from}, nil)
		return nil, 0, nil
	}
	if seg == r.seg {
		return seg, end, nil
	}
	r.close()
	f, err := os.Open(seg.path)
	if errors.Is(err, fs.ErrNotExist) {
		s.hole(end, times, err)
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, s.failed(err)
	}
	r.segmentReader.f, r.file, r.seg, r.off = f, f, seg, segmentHeader
	return seg, end, nil
}

// failed decides what to do about an error of reading a file: it returns the error to have the caller try again, or
// nil when that was in vain.
func (s *Spool) failed(err error) error {
	if s.reader.fails++; s.reader.fails < readTries || !errors.Is(err, unix.EIO) {
		return fmt.Errorf("read spool: %w", err)
	}
	s.log.Error("cannot read a part of the spool, giving it up", zap.Error(err))
	s.reader.fails = 0
	return nil
}

// hole notes that the records from pos up to the number end are lost.
func (s *Spool) hole(end uint64, times span, why error) {
	x := &s.index
	now := time.Now().UnixNano()
	switch {
	case times == (span{}):
		times = span{now, now}
	case times.from == 0:
		times.from = times.to
	case times.to < times.from:
		times.to = times.from
	}
	lost := end - x.pos
	s.Stats.Damaged.Add(lost)
	x.addGap(&gap{at: x.pos, skip: lost, output: s.output, noted: now,
		Loss: Loss{Cause: flow.CauseCrash, From: times.from, To: times.to, Lost: lost, Known: true}})
	name := ""
	if s.reader.seg != nil {
		name = filepath.Base(s.reader.seg.path)
	}
	s.log.Error("spool is damaged, records lost", zap.Uint64("records", lost), zap.String("segment", name),
		zap.Error(why))
}
