package spool

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// syncInterval is how long data waits at most until SyncInterval's fdatasync begins.
const syncInterval = time.Second

// syncer writes the state, and forces data from the kernel to the disk. The two have locks of their own, so that
// Commit need not wait for the timer's fdatasync.
type syncer struct {
	flushing sync.Mutex  // held by a flush
	timer    *time.Timer // calls flush; runs while unsynced.scheduled

	mu   sync.Mutex // held while the state is written
	file *stateFile // fixed from Open on
}

// unsynced is what the kernel has and the disk may not have. It is part of the index.
type unsynced struct {
	scheduled bool // a flush will come
	dir       bool // the directory changed
	state     bool // the state file changed

	// Since when records wait (ns since 1970, 0 if none does): for the next flush, and for the one that is under way.
	waiting, flushing int64
}

// scheduleFlush has the timer force to the disk what was written. The index's lock is held.
func (s *Spool) scheduleFlush() {
	if x := &s.index; s.cfg.Fsync == SyncInterval && !x.unsynced.scheduled && !x.closed {
		x.unsynced.scheduled = true
		s.syncer.timer.Reset(syncInterval)
	}
}

// noteUnsynced notes that records from since on were written and not forced to the disk. The index's lock is held.
func (s *Spool) noteUnsynced(since int64) {
	if u := &s.index.unsynced; s.cfg.Fsync == SyncInterval && (u.waiting == 0 || since < u.waiting) {
		u.waiting = since
	}
}

// Unsynced returns a time such that a power failure would cost no record or gap from before it, as far as that is
// known; 0 if it would cost nothing. never says that nothing is known, because fsync is never.
func (s *Spool) Unsynced() (since int64, never bool) {
	x := &s.index
	x.mu.Lock()
	defer x.mu.Unlock()
	u := &x.unsynced
	since = u.waiting
	if since == 0 || u.flushing != 0 && u.flushing < since {
		since = u.flushing
	}
	return since, s.cfg.Fsync == SyncNever
}

// flush forces to the disk what waits for it. The timer calls it, and Close.
func (s *Spool) flush() {
	s.syncer.flushing.Lock()
	defer s.syncer.flushing.Unlock()
	x := &s.index
	x.mu.Lock()
	u := x.unsynced
	x.unsynced = unsynced{flushing: u.waiting}
	var full []*segment // nothing is appended to them any more
	var files []*os.File
	for i, seg := range x.segments {
		if seg.f == nil {
			continue
		}
		files = append(files, seg.f)
		if i < len(x.segments)-1 {
			full = append(full, seg)
		}
	}
	x.mu.Unlock()
	var errs []error
	for _, f := range files {
		errs = append(errs, s.disk.sync(f))
	}
	if u.state {
		errs = append(errs, s.disk.sync(s.syncer.file.f))
	}
	if u.dir {
		errs = append(errs, s.dir.Sync())
	}
	if err := errors.Join(errs...); err != nil {
		s.Stats.SyncFails.Add(1)
		s.log.Error("records may not survive the machine", zap.Error(err))
	}
	x.mu.Lock()
	x.unsynced.flushing = 0 // what could not be written the kernel does not have any more (fsync(2))
	x.mu.Unlock()
	for _, seg := range full {
		if f := x.detach(seg); f != nil {
			f.Close()
		}
	}
}

// saveState writes the state and, if force is set, waits until it is on the disk.
func (s *Spool) saveState(force bool) error {
	if err := s.writeState(); err != nil {
		return fmt.Errorf("write state of spool: %w", err)
	}
	if force {
		return s.disk.sync(s.syncer.file.f)
	}
	return nil
}

func (s *Spool) writeState() error {
	w, x := &s.syncer, &s.index
	w.mu.Lock()
	defer w.mu.Unlock()
	x.mu.Lock()
	w.file.encode(&x.state, time.Now().UnixNano())
	x.mu.Unlock()
	return w.file.write()
}

// saveGaps writes the state because there is a new gap in it. If it cannot, the gap is still in memory, and in the next
// state that can be written.
func (s *Spool) saveGaps() {
	if err := s.saveState(s.cfg.Fsync == SyncAlways); err != nil {
		s.log.Error("gap is not on record yet", zap.Error(err))
	}
	x := &s.index
	x.mu.Lock()
	x.unsynced.state = true
	s.scheduleFlush()
	x.mu.Unlock()
}

// datasync forces f's data to the disk. It does nothing if f is closed: whoever closed it knows why.
func datasync(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	var serr error
	if err := c.Control(func(fd uintptr) { serr = unix.Fdatasync(int(fd)) }); err != nil {
		return nil // closed
	}
	if serr != nil {
		return fmt.Errorf("fdatasync %s: %w", f.Name(), serr)
	}
	return nil
}
