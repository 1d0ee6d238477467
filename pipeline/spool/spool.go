package spool

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Stats counts what became of the records. Any goroutine may read it.
type Stats struct {
	Appended  atomic.Uint64 // taken by Append
	Delivered atomic.Uint64 // committed
	Dropped   atomic.Uint64 // lost because the spool was full
	Damaged   atomic.Uint64 // lost because a file was damaged, where the number is known
	SyncFails atomic.Uint64 // times that the kernel could not write to the disk what it had accepted
}

// Spool is a queue of records on disk: first in, first out. One goroutine may append while another one reads and
// commits. Any goroutine may call Len, Unread, Oldest, Unsynced and Removed: they answer at once, however long the
// disk takes for the calls of the others.
//
// Each part has its own lock. A goroutine takes them in the order of the fields. The locks of appender, reader and
// syncer are held while the disk works; the index's never is.
type Spool struct {
	Stats Stats

	cfg     Config
	segSize int64
	output  string
	log     *zap.Logger
	dir     *os.File
	disk    disk

	appender appender
	reader   reader
	syncer   syncer
	index    index
}

// disk has the calls whose order decides what survives a power failure. Tests look on.
type disk struct {
	sync   func(*os.File) error
	remove func(path string) error
}

// Path returns the directory.
func (s *Spool) Path() string { return s.cfg.Path }

// Max returns how many bytes the segments may have.
func (s *Spool) Max() int64 { return int64(s.cfg.MaxSize) }

// Len returns how many records wait to be delivered, gaps among them, and how many bytes the segments have.
func (s *Spool) Len() (records uint64, bytes int64) {
	x := &s.index
	x.mu.Lock()
	defer x.mu.Unlock()
	records = x.next - x.state.cursor + uint64(len(x.state.gaps))
	for _, g := range x.state.gaps {
		records -= g.skip
	}
	return records, x.size
}

// Unread reports whether Read would find something.
func (s *Spool) Unread() bool {
	x := &s.index
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.pos < x.next || x.state.gaps.next() != nil
}

// Oldest returns when the first waiting record was received, or a somewhat earlier time; zero if no record waits.
func (s *Spool) Oldest() time.Time {
	x := &s.index
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case len(x.inFlight) > 0:
		return time.Unix(0, x.inFlight[0].from)
	case len(x.state.gaps) > 0 && x.state.gaps[0].at <= x.state.cursor:
		return time.Unix(0, x.state.gaps[0].From)
	case x.state.cursor < x.next && len(x.segments) > 0:
		return time.Unix(0, x.segments[0].span.from)
	}
	return time.Time{}
}

// Removed reports whether somebody has removed the spool's files. The next start will find nothing of it then.
func (s *Spool) Removed() bool { return removed(s.syncer.file.f) }

// Close forces what waits to the disk, unless Fsync is SyncNever, and closes all files. The next Open reads again what
// was read and not committed. Close waits for a call of Append, Read or Commit that is under way.
func (s *Spool) Close() error {
	s.appender.mu.Lock()
	defer s.appender.mu.Unlock()
	s.reader.mu.Lock()
	defer s.reader.mu.Unlock()
	if !s.index.close() {
		return nil
	}
	s.syncer.timer.Stop()
	err := s.saveState(false)
	if s.cfg.Fsync != SyncNever {
		s.flush()
	}
	s.syncer.flushing.Lock() // the timer's flush may be under way
	defer s.syncer.flushing.Unlock()
	for _, f := range s.index.detachAll() {
		err = errors.Join(err, f.Close())
	}
	s.reader.close()
	return errors.Join(err, s.syncer.file.f.Close(), s.dir.Close())
}
