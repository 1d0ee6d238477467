package spool

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// appender is what Append works with.
type appender struct {
	mu   sync.Mutex
	buf  []byte // the frame
	gaps []*gap // the gap records among those that are being appended
}

// Append puts recs into the spool, in their order: all of them or, on error, none; ErrClosed after Close. When it
// returns, the kernel has them. It keeps no reference to them. Each call makes one frame, so calls with a few hundred
// records are cheap and calls with single records are not.
//
// A spool that is full drops records, as configured. lost says how many this call cost, old records or recs, for
// counters and the log. Read delivers the gap. Gap records among recs are never dropped, and not refused when the disk
// is full.
func (s *Spool) Append(recs []*flow.Record) (lost Loss, err error) {
	a, x := &s.appender, &s.index
	a.mu.Lock()
	defer a.mu.Unlock()
	if x.closed { // Close sets it with the appender's lock held
		return Loss{}, os.ErrClosed
	}
	n, times := a.encode(recs, x.next)
	newGaps := len(a.gaps) > 0
	if n > 0 {
		var ok bool
		if lost, ok = s.makeRoom(int64(len(a.buf))); ok {
			if err := s.write(n, times); err != nil {
				return lost, err
			}
		} else {
			refused := Loss{Cause: flow.CauseSpoolFull, From: times.from, To: times.to, Lost: uint64(n), Known: true}
			s.Stats.Dropped.Add(uint64(n))
			// The records are not in the spool, so all gaps are in one place.
			for _, g := range a.gaps {
				g.at = x.next
			}
			a.gaps = append(a.gaps, &gap{at: x.next, Loss: refused, output: s.output, noted: times.to})
			lost.add(refused)
			newGaps = true
		}
	}
	if !newGaps {
		return lost, nil
	}
	x.mu.Lock()
	for _, g := range a.gaps {
		x.state.gaps.add(g)
		s.noteUnsynced(g.From)
	}
	x.mu.Unlock()
	clear(a.gaps)
	s.saveGaps()
	return lost, nil
}

// encode makes recs the payload of the frame in buf, except for gap records, which go to gaps. first is the number of
// the first record.
func (a *appender) encode(recs []*flow.Record, first uint64) (n int, times span) {
	a.buf = append(a.buf[:0], make([]byte, frameHeader)...)
	a.gaps = a.gaps[:0]
	for _, r := range recs {
		if g := gapOf(r); g != nil {
			g.at = first + uint64(n)
			a.gaps = append(a.gaps, g)
			continue
		}
		a.buf = flow.AppendBinary(a.buf, r)
		at, _ := r.Time() // before its receipt, by seconds if the kernel has held it back
		times.add(span{min(at, r.Received), max(at, r.Received)})
		n++
	}
	return n, times
}

// makeRoom makes room for a frame of n bytes, if need be by dropping the oldest segments; false if it may not or
// cannot.
func (s *Spool) makeRoom(n int64) (lost Loss, ok bool) {
	need := n + segmentHeader + 2*slotSize
	limit := int64(s.cfg.MaxSize)
	x := &s.index
	for {
		x.mu.Lock()
		full := x.size+need > limit
		if n := len(x.segments); full && n > 0 && x.state.cursor == x.next { // all that is left is delivered
			segs := x.cut(n-1, 1)
			x.mu.Unlock()
			s.remove(segs)
			continue
		}
		x.mu.Unlock()
		if !full {
			return lost, true
		}
		if s.cfg.WhenFull != DropOldest || need > limit {
			return lost, false
		}
		l, ok := s.dropOldest()
		if !ok {
			return lost, false
		}
		if l.Lost > 0 {
			lost.add(l)
		}
	}
}

// dropOldest removes the oldest segment that is neither being read nor being written.
func (s *Spool) dropOldest() (l Loss, ok bool) {
	x := &s.index
	x.mu.Lock()
	i := 0
	if x.reading || len(x.inFlight) > 0 {
		for i < len(x.segments) && x.segments[i].first <= x.pos {
			i++
		}
	}
	if i >= len(x.segments)-1 {
		x.mu.Unlock()
		return l, false
	}
	segs := x.cut(i, 1)
	if seg := segs[0]; seg.end > x.state.cursor { // else it is delivered, and Commit is about to remove it
		at := max(seg.first, x.state.cursor)
		l = Loss{Cause: flow.CauseSpoolFull, From: seg.span.from, To: seg.span.to, Lost: seg.end - at, Known: true}
		x.state.gaps.add(&gap{at: at, skip: l.Lost, Loss: l, output: s.output, noted: time.Now().UnixNano()})
		s.Stats.Dropped.Add(l.Lost)
	}
	x.mu.Unlock()
	// The state first. After a crash in between, the next start passes over the segment, and the loss is on record.
	s.saveGaps()
	s.remove(segs)
	return l, true
}

// remove removes the files of segments that are no longer in the index.
func (s *Spool) remove(segs []*segment) {
	for _, seg := range segs {
		if f := s.index.detach(seg); f != nil {
			f.Close()
		}
		if err := s.disk.remove(seg.path); err != nil {
			s.log.Error("remove segment", zap.Error(err))
		}
	}
}

// write appends the frame in the appender's buffer, which has n records, to the last segment or to a new one.
func (s *Spool) write(n int, times span) error {
	buf, x := s.appender.buf, &s.index
	seg := x.appendable()
	if seg != nil && removed(seg.f) {
		x.detach(seg).Close() // Read tells of what was in it as a loss
		s.log.Error("somebody has removed files of the spool; if its directory is gone, it takes records again after a restart")
		seg = nil
	}
	if seg == nil || seg.size > segmentHeader && seg.size+int64(len(buf)) > s.segSize {
		var err error
		if seg, err = s.newSegment(); err != nil {
			return err
		}
	}
	putFrameHeader(buf, x.next, n, times)
	_, err := seg.f.WriteAt(buf, seg.size)
	if err == nil && s.cfg.Fsync == SyncAlways {
		err = s.disk.sync(seg.f)
	}
	if err != nil {
		// No torn frame stays behind. If even that fails, the next frame overwrites it, or the next Open cuts it.
		return errors.Join(fmt.Errorf("append to spool: %w", err), seg.f.Truncate(seg.size))
	}
	x.mu.Lock()
	seg.size += int64(len(buf))
	seg.end += uint64(n)
	seg.span.add(times)
	x.size += int64(len(buf))
	x.next = seg.end
	s.scheduleFlush()
	s.noteUnsynced(times.from)
	x.mu.Unlock()
	s.Stats.Appended.Add(uint64(n))
	return nil
}

// newSegment makes the next segment. It closes the last one, unless that one waits for fdatasync.
func (s *Spool) newSegment() (*segment, error) {
	x := &s.index
	seg := &segment{path: segmentPath(s.cfg.Path, x.next), first: x.next, end: x.next, size: segmentHeader}
	info := segmentInfo{first: x.next}
	x.mu.Lock()
	var last *segment
	if n := len(x.segments); n > 0 {
		last = x.segments[n-1]
		info.prevFirst, info.prev = last.first, last.span
	}
	x.mu.Unlock()
	f, err := os.OpenFile(seg.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("append to spool: %w", err)
	}
	_, err = f.Write(appendSegmentHeader(nil, info))
	if err == nil && s.cfg.Fsync == SyncAlways {
		err = s.dir.Sync()
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(fmt.Errorf("append to spool: %w", err), s.disk.remove(seg.path))
	}
	seg.f = f
	if last != nil && s.cfg.Fsync != SyncInterval {
		if f := x.detach(last); f != nil {
			f.Close()
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.segments = append(x.segments, seg)
	x.size += seg.size
	x.unsynced.dir = true
	return seg, nil
}

// removed reports whether a file has no name any more.
func removed(f *os.File) (is bool) {
	c, err := f.SyscallConn()
	if err != nil {
		return false
	}
	c.Control(func(fd uintptr) {
		var st unix.Stat_t
		is = unix.Fstat(int(fd), &st) == nil && st.Nlink == 0
	})
	return is
}
