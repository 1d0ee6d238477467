package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// syncInterval is how long data waits for SyncInterval's fdatasync at most, its duration not counted.
const syncInterval = time.Second

// Stats counts what became of the records. Any goroutine may read it.
type Stats struct {
	Appended  atomic.Uint64 // taken by Append
	Delivered atomic.Uint64 // committed
	Dropped   atomic.Uint64 // lost because the spool was full
	Damaged   atomic.Uint64 // lost because a file was damaged, where it is known how many
	SyncFails atomic.Uint64 // times that the kernel could not write to the disk what it had accepted
}

// Spool is a queue of records on disk: first in, first out. One goroutine may append while another reads and commits,
// and any may ask for Len and Oldest.
type Spool struct {
	Stats Stats

	cfg     Config
	segSize int64
	output  string
	log     *zap.Logger
	dir     *os.File // holds the lock

	// Locks are taken in this order. Neither disk nor kernel is waited for under mu.
	appendMu sync.Mutex // Append
	readMu   sync.Mutex // Read, Commit, Rewind
	syncMu   sync.Mutex // writing the state; fdatasync
	mu       sync.Mutex // all that follows, except for what is said to belong to one of the above

	segments []*segment // in order; the last one may be open for appending
	size     int64      // of all segments
	next     uint64     // the number of the next record to be appended
	state    state
	pos      uint64 // the number of the next record to be read; from state.cursor to here is what is outstanding
	reading  bool   // Read is at work
	closed   bool

	unsynced [2]int64 // since when records are (ns since 1970) that wait for fdatasync, and that it is at work on; 0 none

	timer       *time.Timer // runs while dirty
	dirty       bool        // something waits for fdatasync
	dirtyDir    bool
	dirtyState  bool
	stateFile   *stateFile // under syncMu
	buf         []byte     // under appendMu: the frame
	newGaps     []*gap     // under appendMu: of the Append under way
	reader      reader     // under readMu
	outstanding []run      // changed under both readMu and mu
}

// segment is one file. Records from first to end, which is the next segment's first, are or were in it.
type segment struct {
	path       string
	first, end uint64
	size       int64 // bytes of it that are there to be read
	span       span
	f          *os.File // open for appending, or waiting for fdatasync
}

// Open opens the spool in cfg.Path, which no other process may have open, and takes stock of what is there: a tail
// that a crash has torn is cut. What was lost is read as a gap, as all losses are. output is the name of the output
// that stands in the gaps; log may be nil. cfg must be valid.
func Open(cfg Config, output string, log *zap.Logger) (*Spool, error) {
	cfg.Defaults()
	return open(cfg, cfg.segmentSize(), output, log)
}

func open(cfg Config, segSize int64, output string, log *zap.Logger) (_ *Spool, err error) {
	if log == nil {
		log = zap.NewNop()
	}
	s := &Spool{cfg: cfg, segSize: segSize, output: output, log: log.With(zap.String("spool", cfg.Path))}
	s.reader.scratch = flow.NewBatch(1, nil)
	if err := os.MkdirAll(cfg.Path, 0o700); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	if s.dir, err = os.Open(cfg.Path); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	defer func() {
		if err != nil {
			s.dir.Close()
			if s.stateFile != nil {
				s.stateFile.f.Close()
			}
		}
	}()
	if err := unix.Flock(int(s.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return nil, fmt.Errorf("open spool %s: another process has it open; each output needs a directory of its own",
			cfg.Path)
	} else if err != nil {
		return nil, fmt.Errorf("lock spool %s: %w", cfg.Path, err)
	}
	if err := s.recover(); err != nil {
		return nil, fmt.Errorf("open spool %s: %w", cfg.Path, err)
	}
	s.timer = time.AfterFunc(time.Hour, s.flush)
	s.timer.Stop()
	return s, nil
}

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d.seg", first))
}

// recover fills s from the files.
func (s *Spool) recover() error {
	sf, st, written, damaged, err := openState(filepath.Join(s.cfg.Path, "state"))
	if err != nil {
		return err
	}
	s.stateFile, s.state = sf, st
	if err := s.list(); err != nil {
		return err
	}
	if len(s.segments) > 0 && written == 0 {
		s.state.cursor = s.segments[0].first // better twice than never
		damaged = true
	}
	now := time.Now().UnixNano()
	for i, seg := range s.segments {
		last := i == len(s.segments)-1
		if !last {
			seg.end = s.segments[i+1].first
			if seg.span != (span{}) {
				continue
			}
		}
		if err := s.survey(seg, last, now); err != nil {
			return err
		}
	}
	if damaged {
		from := written
		if from == 0 && len(s.segments) > 0 {
			from = s.segments[0].span.from
		}
		if from == 0 {
			from = now
		}
		s.state.gaps.add(&gap{at: s.state.cursor, Loss: Loss{Cause: flow.CauseCrash, From: from, To: max(from, now)},
			output: s.output, noted: now})
		s.log.Warn("state of the spool is damaged: gaps may be missing, and records may be delivered again")
	}
	s.settle()
	s.pos = s.state.cursor
	// What is lost is on record before the damaged tail, which says so, is cut; and what is delivered, before its
	// segments go.
	for range 2 { // both slots
		s.stateFile.encode(&s.state, now)
		if err := s.stateFile.write(); err != nil {
			return fmt.Errorf("write state: %w", err)
		}
	}
	if s.cfg.Fsync != SyncNever {
		if err := errors.Join(datasync(s.stateFile.f), s.dir.Sync()); err != nil {
			return err
		}
	}
	if n := len(s.segments); n > 0 {
		last := s.segments[n-1]
		cut := func() error { return os.Truncate(last.path, last.size) }
		if last.end == last.first { // empty
			s.segments = s.segments[:n-1]
			cut = func() error { return os.Remove(last.path) }
		}
		if err := cut(); err != nil {
			return err
		}
	}
	for _, seg := range s.segments {
		s.size += seg.size
	}
	s.removeDone()
	if records, bytes := s.Len(); records > 0 {
		s.log.Info("records wait in the spool", zap.Uint64("records", records), zap.Int64("bytes", bytes))
	}
	return nil
}

// list fills s.segments with what the directory and the segments' headers tell.
func (s *Spool) list() error {
	names, err := s.dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		number, ok := strings.CutSuffix(name, ".seg")
		first, err := strconv.ParseUint(number, 10, 64)
		if !ok || err != nil || segmentPath("", first) != name {
			continue
		}
		seg := &segment{path: filepath.Join(s.cfg.Path, name), first: first, end: first}
		if err := s.readHeader(seg); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s.segments = append(s.segments, seg)
	}
	return nil
}

// readHeader reads the segment's header, which has the time span of the segment before it.
func (s *Spool) readHeader(seg *segment) error {
	f, err := os.Open(seg.path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	seg.size = info.Size()
	var p [segmentHeader]byte
	if _, err := f.ReadAt(p[:], 0); err != nil && err != io.EOF {
		return err
	}
	h, ok, err := parseSegmentHeader(p[:])
	if n := len(s.segments); err == nil && ok && n > 0 && s.segments[n-1].first == h.prevFirst {
		s.segments[n-1].span = h.prev
	}
	return err
}

// survey reads a whole segment: the last one, to find its end, or one whose time span is not known.
func (s *Spool) survey(seg *segment, last bool, now int64) error {
	f, err := os.Open(seg.path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := segmentReader{f: f, size: seg.size, first: seg.first, end: seg.end}
	if last {
		r.end = 1<<64 - 1
	}
	found, err := r.survey(s.state.cursor)
	if err != nil {
		return err
	}
	seg.span = found.span
	if !last {
		return nil
	}
	seg.end = found.end
	if found.size == seg.size {
		return nil
	}
	s.log.Warn("tail of the spool is torn", zap.String("segment", filepath.Base(seg.path)),
		zap.Int64("bytes", seg.size-found.size), zap.Uint64("records", found.tail), zap.Bool("all", found.tailKnown))
	seg.size = found.size
	if found.tailKnown && found.tail == 0 {
		return nil // all of it was delivered before it was damaged
	}
	l := Loss{Cause: flow.CauseCrash, From: found.tailSpan.from, To: found.tailSpan.to, Lost: found.tail,
		Known: found.tailKnown}
	if !l.Known {
		// It came after what is intact, and before the file's last change.
		if l.From == 0 {
			l.From = found.span.to
		}
		changed := now
		if info, err := f.Stat(); err == nil {
			changed = info.ModTime().UnixNano()
		}
		l.To = max(l.To, changed)
		if l.From == 0 {
			l.From = l.To
		}
		l.From = min(l.From, l.To)
	}
	s.Stats.Damaged.Add(l.Lost)
	s.state.gaps.add(&gap{at: max(seg.end, s.state.cursor), Loss: l, output: s.output, noted: now})
	return nil
}

// settle finds where the next record belongs: behind all that the segments hold and the state knows of, even when the
// disk has forgotten the last segments.
func (s *Spool) settle() {
	s.next = s.state.cursor
	if n := len(s.segments); n > 0 {
		s.next = max(s.next, s.segments[n-1].end)
	}
	for _, g := range s.state.gaps {
		s.next = max(s.next, g.at, g.end())
	}
}

// Append puts recs into the spool, in their order, all of them or, on error, none; ErrClosed after Close. When it
// returns, the kernel has them. It keeps no reference to them. Each call makes one frame, so that a few hundred records
// a call are cheap and single ones are not.
//
// A spool that is full drops records, as configured: lost says how many the call cost, old ones or recs, for counters
// and the log. Read delivers the gap. Gap records among recs are never dropped, and not refused when the disk is full.
func (s *Spool) Append(recs []*flow.Record) (lost Loss, err error) {
	s.appendMu.Lock()
	defer s.appendMu.Unlock()
	if s.closed {
		return Loss{}, os.ErrClosed
	}
	n, times := s.encode(recs)
	noted := len(s.newGaps) > 0
	if n > 0 {
		var ok bool
		if lost, ok = s.makeRoom(int64(len(s.buf))); ok {
			if err := s.write(n, times); err != nil {
				return lost, err
			}
		} else {
			refused := Loss{Cause: flow.CauseSpoolFull, From: times.from, To: times.to, Lost: uint64(n), Known: true}
			s.Stats.Dropped.Add(uint64(n))
			// The records are not in the spool, so all gaps are in one place.
			for _, g := range s.newGaps {
				g.at = s.next
			}
			s.newGaps = append(s.newGaps, &gap{at: s.next, Loss: refused, output: s.output, noted: times.to})
			lost.add(refused)
			noted = true
		}
	}
	if !noted {
		return lost, nil
	}
	s.mu.Lock()
	for _, g := range s.newGaps {
		s.state.gaps.add(g)
		s.wrote(g.From)
	}
	s.mu.Unlock()
	clear(s.newGaps)
	s.saveGaps()
	return lost, nil
}

// encode makes recs the payload of the frame in s.buf, except for gap records, which go to s.newGaps.
func (s *Spool) encode(recs []*flow.Record) (n int, times span) {
	s.buf = append(s.buf[:0], make([]byte, frameHeader)...)
	s.newGaps = s.newGaps[:0]
	for _, r := range recs {
		if g := gapOf(r); g != nil {
			g.at = s.next + uint64(n)
			s.newGaps = append(s.newGaps, g)
			continue
		}
		s.buf = flow.AppendBinary(s.buf, r)
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
	for {
		s.mu.Lock()
		full := s.size+need > limit
		if n := len(s.segments); full && n > 0 && s.state.cursor == s.next { // all that is left is delivered
			seg := s.segments[n-1]
			s.segments = s.segments[:n-1]
			s.size -= seg.size
			s.mu.Unlock()
			s.remove(seg)
			continue
		}
		s.mu.Unlock()
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
	s.mu.Lock()
	i := 0
	if s.reading || len(s.outstanding) > 0 {
		for i < len(s.segments) && s.segments[i].first <= s.pos {
			i++
		}
	}
	if i >= len(s.segments)-1 {
		s.mu.Unlock()
		return l, false
	}
	seg := s.segments[i]
	s.segments = slices.Delete(s.segments, i, i+1)
	s.size -= seg.size
	if seg.end > s.state.cursor { // else it is delivered, and Commit is about to remove it
		at := max(seg.first, s.state.cursor)
		l = Loss{Cause: flow.CauseSpoolFull, From: seg.span.from, To: seg.span.to, Lost: seg.end - at, Known: true}
		s.state.gaps.add(&gap{at: at, skip: l.Lost, Loss: l, output: s.output, noted: time.Now().UnixNano()})
		s.Stats.Dropped.Add(l.Lost)
	}
	s.mu.Unlock()
	// The state first: killed in between, the next start passes over the segment, and the loss is on record.
	s.saveGaps()
	s.remove(seg)
	return l, true
}

// remove removes the file of a segment that is no longer in s.segments.
func (s *Spool) remove(seg *segment) {
	s.mu.Lock()
	if seg.f != nil {
		seg.f.Close()
		seg.f = nil
	}
	s.mu.Unlock()
	if err := os.Remove(seg.path); err != nil {
		s.log.Error("remove segment", zap.Error(err))
	}
}

// write appends the frame in s.buf, which has n records, to the last segment or to a new one.
func (s *Spool) write(n int, times span) error {
	seg := s.open()
	if seg != nil && removed(seg.f) {
		s.mu.Lock()
		seg.f.Close()
		seg.f = nil // what is in it is read as a loss
		s.mu.Unlock()
		s.log.Error("somebody has removed files of the spool; if its directory is gone, it takes records again after a restart")
		seg = nil
	}
	if seg == nil || seg.size > segmentHeader && seg.size+int64(len(s.buf)) > s.segSize {
		var err error
		if seg, err = s.newSegment(); err != nil {
			return err
		}
	}
	putFrameHeader(s.buf, s.next, n, times)
	_, err := seg.f.WriteAt(s.buf, seg.size)
	if err == nil && s.cfg.Fsync == SyncAlways {
		err = datasync(seg.f)
	}
	if err != nil {
		// No torn frame stays behind. If even that fails, it is overwritten by the next one, or cut at the next start.
		return errors.Join(fmt.Errorf("append to spool: %w", err), seg.f.Truncate(seg.size))
	}
	s.mu.Lock()
	seg.size += int64(len(s.buf))
	seg.end += uint64(n)
	seg.span.add(times)
	s.size += int64(len(s.buf))
	s.next = seg.end
	s.touch()
	s.wrote(times.from)
	s.mu.Unlock()
	s.Stats.Appended.Add(uint64(n))
	return nil
}

// removed reports whether a file has no name any more.
func removed(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink == 0
}

// Removed reports whether somebody has removed the spool's files: then nothing of it will be there at the next start.
func (s *Spool) Removed() bool {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	return removed(s.stateFile.f)
}

// open returns the segment that is open for appending, or nil.
func (s *Spool) open() *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.segments); n > 0 && s.segments[n-1].f != nil {
		return s.segments[n-1]
	}
	return nil
}

// newSegment makes the next segment, and closes the last one unless it waits for fdatasync.
func (s *Spool) newSegment() (*segment, error) {
	seg := &segment{path: segmentPath(s.cfg.Path, s.next), first: s.next, end: s.next, size: segmentHeader}
	info := segmentInfo{first: s.next}
	s.mu.Lock()
	var last *segment
	if n := len(s.segments); n > 0 {
		last = s.segments[n-1]
		info.prevFirst, info.prev = last.first, last.span
	}
	s.mu.Unlock()
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
		return nil, errors.Join(fmt.Errorf("append to spool: %w", err), os.Remove(seg.path))
	}
	seg.f = f
	s.mu.Lock()
	defer s.mu.Unlock()
	if last != nil && last.f != nil && s.cfg.Fsync != SyncInterval {
		last.f.Close()
		last.f = nil
	}
	s.segments = append(s.segments, seg)
	s.size += seg.size
	s.dirtyDir = true
	return seg, nil
}

// touch notes, under mu, that something waits for fdatasync.
func (s *Spool) touch() {
	if s.cfg.Fsync == SyncInterval && !s.dirty && !s.closed {
		s.dirty = true
		s.timer.Reset(syncInterval)
	}
}

// wrote notes, under mu, since when something is that was written and not forced to the disk.
func (s *Spool) wrote(since int64) {
	if s.cfg.Fsync == SyncInterval && (s.unsynced[0] == 0 || since < s.unsynced[0]) {
		s.unsynced[0] = since
	}
}

// Unsynced returns a time such that no record or gap from before it would be missing after a power failure, as far as that
// is known; 0 if nothing would. never says that it is not, since fsync is never.
func (s *Spool) Unsynced() (since int64, never bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	since = s.unsynced[0]
	if since == 0 || s.unsynced[1] != 0 && s.unsynced[1] < since {
		since = s.unsynced[1]
	}
	return since, s.cfg.Fsync == SyncNever
}

// flush forces to the disk what waits for it. The timer calls it, and Close.
func (s *Spool) flush() {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	s.mu.Lock()
	dirtyDir, dirtyState := s.dirtyDir, s.dirtyState
	s.dirty, s.dirtyDir, s.dirtyState = false, false, false
	s.unsynced = [2]int64{0, s.unsynced[0]}
	var full []*segment
	var files []*os.File
	for i, seg := range s.segments {
		if seg.f == nil {
			continue
		}
		files = append(files, seg.f)
		if i < len(s.segments)-1 {
			full = append(full, seg)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, f := range files {
		errs = append(errs, datasync(f))
	}
	if dirtyState {
		errs = append(errs, datasync(s.stateFile.f))
	}
	if dirtyDir {
		errs = append(errs, s.dir.Sync())
	}
	if err := errors.Join(errs...); err != nil {
		s.Stats.SyncFails.Add(1)
		s.log.Error("records may not survive the machine", zap.Error(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsynced[1] = 0 // what could not be written the kernel does not have any more (fsync(2))
	for _, seg := range full {
		if seg.f != nil {
			seg.f.Close()
			seg.f = nil
		}
	}
}

// save writes the state and, if force is set, waits until it is on the disk.
func (s *Spool) save(force bool) error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	s.mu.Lock()
	s.stateFile.encode(&s.state, time.Now().UnixNano())
	s.mu.Unlock()
	if err := s.stateFile.write(); err != nil {
		return fmt.Errorf("write state of spool: %w", err)
	}
	if force {
		return datasync(s.stateFile.f)
	}
	return nil
}

// saveGaps writes the state because there is a new gap in it. If it cannot, the gap is still in memory, and with the
// next state that can be written.
func (s *Spool) saveGaps() {
	if err := s.save(s.cfg.Fsync == SyncAlways); err != nil {
		s.log.Error("gap is not on record yet", zap.Error(err))
	}
	s.mu.Lock()
	s.dirtyState = true
	s.touch()
	s.mu.Unlock()
}

// Len returns how many records wait to be delivered, gaps among them, and how many bytes the segments have.
func (s *Spool) Len() (records uint64, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	records = s.next - s.state.cursor + uint64(len(s.state.gaps))
	for _, g := range s.state.gaps {
		records -= g.skip
	}
	return records, s.size
}

// Unread reports whether there is something that was not read yet, or is to be read again.
func (s *Spool) Unread() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pos < s.next || s.state.gaps.next() != nil
}

// Path returns the directory.
func (s *Spool) Path() string { return s.cfg.Path }

// Max returns how many bytes the segments may have.
func (s *Spool) Max() int64 { return int64(s.cfg.MaxSize) }

// Oldest returns when the first record that waits was received, or somewhat earlier; zero if there is none.
func (s *Spool) Oldest() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.outstanding) > 0:
		return time.Unix(0, s.outstanding[0].from)
	case len(s.state.gaps) > 0 && s.state.gaps[0].at <= s.state.cursor:
		return time.Unix(0, s.state.gaps[0].From)
	case s.state.cursor < s.next && len(s.segments) > 0:
		return time.Unix(0, s.segments[0].span.from)
	}
	return time.Time{}
}

// Close forces what waits to the disk, unless Fsync is SyncNever, and gives everything back. What was read and not
// committed will be read again.
func (s *Spool) Close() error {
	s.appendMu.Lock()
	defer s.appendMu.Unlock()
	s.readMu.Lock()
	defer s.readMu.Unlock()
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.timer.Stop()
	err := s.save(false)
	if s.cfg.Fsync != SyncNever {
		s.flush()
	}
	s.syncMu.Lock() // the timer's flush may be at work
	defer s.syncMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seg := range s.segments {
		if seg.f != nil {
			err = errors.Join(err, seg.f.Close())
			seg.f = nil
		}
	}
	s.reader.close()
	return errors.Join(err, s.stateFile.f.Close(), s.dir.Close())
}
