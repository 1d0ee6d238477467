package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// readTries is how often in a row reading the same place may fail before what is there counts as lost: a disk that has
// lost a sector must not hold up all that follows.
const readTries = 8

// run is something that was read and is not committed: n records in a row, or one gap.
type run struct {
	n    uint64
	gap  *gap
	from int64 // the start of their time span
}

// reader is the place at which Read is.
type reader struct {
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
	s.readMu.Lock()
	defer s.readMu.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, os.ErrClosed
	}
	s.reading = true // from here on, what is at pos stays
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.reading = false
		s.mu.Unlock()
	}()
	start := len(b.Records)
	for err == nil && !b.Full() {
		limit := s.readGap(b)
		if b.Full() || limit == s.pos {
			break
		}
		if s.reader.left == 0 || s.reader.number != s.pos {
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
	s.mu.Lock()
	defer s.mu.Unlock()
	for !b.Full() {
		g := s.state.gaps.next()
		if g == nil {
			return s.next
		}
		if g.at > s.pos {
			return g.at
		}
		g.taken = true
		g.record(b)
		s.pos = max(s.pos, g.end())
		s.outstanding = append(s.outstanding, run{gap: g, from: g.From})
	}
	return s.pos
}

// decode appends records of the frame at hand to b, up to the number limit.
func (s *Spool) decode(b *flow.Batch, limit uint64) {
	r := &s.reader
	n := uint64(0)
	var err error
	for ; r.left > 0 && r.number < limit && !b.Full(); n++ {
		if r.rest, err = b.DecodeBinary(r.rest); err != nil {
			break
		}
		r.number++
		r.left--
	}
	s.mu.Lock()
	s.pos += n
	if i := len(s.outstanding) - 1; i >= 0 && s.outstanding[i].gap == nil {
		s.outstanding[i].n += n
	} else if n > 0 {
		s.outstanding = append(s.outstanding, run{n: n, from: r.frame.span.from})
	}
	s.mu.Unlock()
	if err != nil {
		// The checksum was right, so this is no damage of the disk's.
		s.hole(r.frame.end(), r.frame.span, err)
		r.left = 0
	}
}

// load makes the frame at hand the one that has the record at pos. If that record is lost, it notes the hole instead.
func (s *Spool) load() error {
	r := &s.reader
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
		case f.end() <= s.pos:
			r.off += f.len()
			r.last = f.span.to
			continue
		case f.first > s.pos:
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
		for r.number < s.pos { // delivered already
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
	r := &s.reader
	s.mu.Lock()
	end = s.next
	i := 0
	for ; i < len(s.segments) && s.segments[i].end <= s.pos; i++ {
	}
	var times span
	if i < len(s.segments) {
		if end = s.segments[i].first; end <= s.pos {
			seg, end = s.segments[i], s.segments[i].end
			r.size, r.first, r.end = seg.size, seg.first, seg.end
		}
		times = s.segments[i].span
	}
	s.mu.Unlock()
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
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().UnixNano()
	switch {
	case times == (span{}):
		times = span{now, now}
	case times.from == 0:
		times.from = times.to
	case times.to < times.from:
		times.to = times.from
	}
	lost := end - s.pos
	s.Stats.Damaged.Add(lost)
	s.state.gaps.add(&gap{at: s.pos, skip: lost, output: s.output, noted: now,
		Loss: Loss{Cause: flow.CauseCrash, From: times.from, To: times.to, Lost: lost, Known: true}})
	name := ""
	if s.reader.seg != nil {
		name = filepath.Base(s.reader.seg.path)
	}
	s.log.Error("spool is damaged, records lost", zap.Uint64("records", lost), zap.String("segment", name),
		zap.Error(why))
}

// Commit removes the first n records of those that were read and are not committed: they are delivered. A process that
// ends without it reads them again when it starts next.
func (s *Spool) Commit(n int) error {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return os.ErrClosed
	}
	if read := s.read(); uint64(n) > read {
		s.mu.Unlock()
		return fmt.Errorf("commit of %d records, %d were read", n, read)
	}
	done := 0
	for left := uint64(n); left > 0; {
		o := &s.outstanding[done]
		if o.gap != nil {
			s.state.cursor = max(s.state.cursor, o.gap.end())
			s.state.gaps = slices.DeleteFunc(s.state.gaps, func(g *gap) bool { return g == o.gap })
			left--
			done++
			continue
		}
		k := min(left, o.n)
		s.state.cursor += k
		o.n -= k
		left -= k
		if o.n == 0 {
			done++
		}
	}
	s.outstanding = slices.Delete(s.outstanding, 0, done)
	unlink := s.done() > 0
	s.mu.Unlock()
	s.Stats.Delivered.Add(uint64(n))
	// A segment must not be gone while the disk may still say that it is to be delivered: that would look like a loss.
	err := s.save(unlink && s.cfg.Fsync != SyncNever)
	if err == nil && unlink {
		err = s.save(false) // the other slot, too
	}
	if err != nil {
		return err
	}
	if unlink {
		s.removeDone()
	}
	return nil
}

// read returns, under mu, how many records were read and are not committed.
func (s *Spool) read() (n uint64) {
	for i := range s.outstanding {
		if n += s.outstanding[i].n; s.outstanding[i].gap != nil {
			n++
		}
	}
	return n
}

// done returns, under mu, how many segments at the front hold nothing that is to be delivered. One that is open for
// appending is not among them.
func (s *Spool) done() (n int) {
	for n < len(s.segments) && s.segments[n].end <= s.state.cursor &&
		(n < len(s.segments)-1 || s.segments[n].f == nil) {
		n++
	}
	return n
}

// removeDone removes the segments that hold nothing that is to be delivered.
func (s *Spool) removeDone() {
	s.mu.Lock()
	n := s.done()
	segs := slices.Clone(s.segments[:n])
	s.segments = slices.Delete(s.segments, 0, n)
	for _, seg := range segs {
		s.size -= seg.size
	}
	s.mu.Unlock()
	for _, seg := range segs {
		s.remove(seg)
	}
}

// Rewind makes the next Read begin at the first record that is not committed.
func (s *Spool) Rewind() {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	s.reader.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.outstanding {
		if o.gap != nil {
			o.gap.taken = false
		}
	}
	s.outstanding = s.outstanding[:0]
	s.pos = s.state.cursor
}
