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
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// Open opens the spool in cfg.Path and takes stock of what is there. A tail that a crash has torn is cut, and read as a
// gap, as all losses are. Another process that has the spool open is an error. output is the name that stands in the
// gaps; log may be nil. cfg must be valid. Open waits for the disk.
func Open(cfg Config, output string, log *zap.Logger) (*Spool, error) {
	cfg.Defaults()
	return open(cfg, cfg.segmentSize(), output, log)
}

func open(cfg Config, segSize int64, output string, log *zap.Logger) (_ *Spool, err error) {
	if log == nil {
		log = zap.NewNop()
	}
	s := &Spool{cfg: cfg, segSize: segSize, output: output, log: log.With(zap.String("spool", cfg.Path)),
		disk: disk{sync: datasync, remove: os.Remove}}
	s.reader.scratch = flow.NewBatch(1, nil)
	if err := os.MkdirAll(cfg.Path, 0o700); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	if s.dir, err = os.Open(cfg.Path); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	var f *os.File
	defer func() {
		if err != nil {
			f.Close()
			s.dir.Close()
		}
	}()
	path := filepath.Join(cfg.Path, stateName)
	if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	if err := s.lock(f); err != nil {
		return nil, err
	}
	if err := s.recover(f); err != nil {
		return nil, fmt.Errorf("open spool %s: %w", cfg.Path, err)
	}
	s.syncer.timer = time.AfterFunc(time.Hour, s.flush)
	s.syncer.timer.Stop()
	return s, nil
}

// lock locks the state file against other processes. The lock only guards against two outputs with one directory, so a
// file system without locks (some NFS mounts) is worth a warning and no more.
func (s *Spool) lock(f *os.File) error {
	switch err := flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
		return nil
	case unix.EWOULDBLOCK:
		return fmt.Errorf("open spool %s: another process has it open; each output needs a directory of its own",
			s.cfg.Path)
	case unix.EBADF, unix.ENOLCK, unix.EOPNOTSUPP, unix.ENOSYS:
		s.log.Warn("the file system cannot lock the spool: see that no other process uses its directory", zap.Error(err))
		return nil
	default:
		return fmt.Errorf("lock spool %s: %w", s.cfg.Path, err)
	}
}

// flock is unix.Flock, but for tests.
var flock = unix.Flock

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d.seg", first))
}

// recover builds the index from the files. Nobody else has the spool yet, so it takes no locks.
func (s *Spool) recover(stateAt *os.File) error {
	x := &s.index
	file, st, written, damaged, err := readState(stateAt)
	if err != nil {
		return err
	}
	s.syncer.file, x.state = file, st
	if err := s.listSegments(); err != nil {
		return err
	}
	if len(x.segments) > 0 && written == 0 {
		x.state.cursor = x.segments[0].first // better twice than never
		damaged = true
	}
	now := time.Now().UnixNano()
	for i, seg := range x.segments {
		last := i == len(x.segments)-1
		if !last {
			seg.end = x.segments[i+1].first
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
		if from == 0 && len(x.segments) > 0 {
			from = x.segments[0].span.from
		}
		if from == 0 {
			from = now
		}
		x.state.gaps.add(&gap{at: x.state.cursor, Loss: Loss{Cause: flow.CauseCrash, From: from, To: max(from, now)},
			output: s.output, noted: now})
		s.log.Warn("state of the spool is damaged: gaps may be missing, and records may be delivered again")
	}
	x.next = x.afterAll()
	x.pos = x.state.cursor
	if err := s.repair(now); err != nil {
		return err
	}
	for _, seg := range x.segments {
		x.size += seg.size
	}
	s.removeDelivered()
	if records, bytes := s.Len(); records > 0 {
		s.log.Info("records wait in the spool", zap.Uint64("records", records), zap.Int64("bytes", bytes))
	}
	return nil
}

// repair writes the state and then cuts the damaged tail of the last segment. In this order, a crash in between
// forgets no loss: the damaged tail is found again.
func (s *Spool) repair(now int64) error {
	x := &s.index
	for range 2 { // both slots
		s.syncer.file.encode(&x.state, now)
		if err := s.syncer.file.write(); err != nil {
			return fmt.Errorf("write state: %w", err)
		}
	}
	if s.cfg.Fsync != SyncNever {
		if err := errors.Join(s.disk.sync(s.syncer.file.f), s.dir.Sync()); err != nil {
			return err
		}
	}
	n := len(x.segments)
	if n == 0 {
		return nil
	}
	last := x.segments[n-1]
	if last.end == last.first { // no record in it
		x.segments = x.segments[:n-1]
		return s.disk.remove(last.path)
	}
	return os.Truncate(last.path, last.size)
}

// listSegments fills the index with what the directory and the segments' headers say.
func (s *Spool) listSegments() error {
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
		s.index.segments = append(s.index.segments, seg)
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
	segs := s.index.segments
	if n := len(segs); err == nil && ok && n > 0 && segs[n-1].first == h.prevFirst {
		segs[n-1].span = h.prev
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
	x := &s.index
	found, err := r.survey(x.state.cursor)
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
	x.state.gaps.add(&gap{at: max(seg.end, x.state.cursor), Loss: l, output: s.output, noted: now})
	return nil
}

// afterAll returns a number after those of all records that the segments hold and the state knows of. The state may
// know of more: the disk can forget the last segments.
func (x *index) afterAll() uint64 {
	next := x.state.cursor
	if n := len(x.segments); n > 0 {
		next = max(next, x.segments[n-1].end)
	}
	for _, g := range x.state.gaps {
		next = max(next, g.at, g.end())
	}
	return next
}
