package jsonl

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/unit"
)

const (
	// lookEvery is how often the housekeeper looks when nothing is rotated: max_age and rotate are kept this closely.
	lookEvery = time.Minute

	// logEvery is how often it is logged at most that files were removed, and that something fails.
	logEvery = time.Hour

	// chunk is how much of a file is read, counted and compressed at once; some hundred microseconds' worth.
	chunk = 64 << 10

	// The housekeeper works for workFor and then rests restFor times as long: the processors are those of the reader and
	// of the outputs.
	workFor = time.Millisecond
	restFor = 3
)

// housekeeper looks after the rotated files of a File, on a goroutine of its own: it removes those that are too many or
// too old, and compresses the others. Nothing of it is on the way of records.
type housekeeper struct {
	f    *File
	cfg  *Config
	keep int
	kick chan struct{} // a token: a file was rotated
	stop chan struct{}
	done chan struct{}
	once sync.Once // closes stop

	names sync.Mutex // held while rotated files are renamed or removed

	mu      sync.Mutex
	records map[os.FileInfo]int64 // of the rotated files that this process has written
	removed removal               // not logged yet

	keptSince atomic.Int64 // when the oldest record was made that there is, in Unix seconds; 0: not known

	began          time.Time // of the current spell of work
	removalsLogged time.Time // when removals were logged last
	failureLogged  time.Time // when a failure was
}

// removal sums up what was removed.
type removal struct {
	files    int
	records  int64
	bytes    int64
	from, to time.Time
}

func newHousekeeper(f *File) *housekeeper {
	h := &housekeeper{f: f, cfg: &f.cfg, keep: f.cfg.Keep, kick: make(chan struct{}, 1), stop: make(chan struct{}),
		done: make(chan struct{}), records: map[os.FileInfo]int64{}}
	if h.keep == 0 {
		h.keep = maxKeep
	}
	go h.run()
	return h
}

// wake has the housekeeper look at once.
func (h *housekeeper) wake() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

// end ends the housekeeper: what it is at is given up, and done again by the next one. It waits for that until ctx ends.
func (h *housekeeper) end(ctx context.Context) {
	h.once.Do(func() { close(h.stop) })
	select {
	case <-h.done:
	case <-ctx.Done():
	}
}

func (h *housekeeper) run() {
	defer close(h.done)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		h.look()
		select {
		case <-h.stop:
			h.logRemovals(true)
			return
		case <-h.kick:
		case <-tick.C:
			h.rotateIdle()
		}
	}
}

// rotateIdle rotates a file whose time has come although nothing is written.
func (h *housekeeper) rotateIdle() {
	if h.cfg.Rotate != 0 && h.f.writing.TryLock() {
		h.f.rotateIfDue(0)
		h.f.writing.Unlock()
	}
}

var errStopped = errors.New("stopped")

// look does what there is to do.
func (h *housekeeper) look() {
	path, err := filepath.EvalSymlinks(h.cfg.Path)
	if err != nil {
		return // the file is about to be made anew
	}
	os.Remove(path + tmpExt) // of a process that was killed
	h.began = time.Now()
	h.clean(path)
	for h.cfg.compresses() {
		done, err := h.compressOne(path)
		if errors.Is(err, errStopped) {
			return
		}
		if err != nil {
			h.f.Stats.CompressErrors.Add(1)
			h.fail("compress", err)
		}
		if done || err != nil {
			break
		}
	}
	h.logRemovals(false)
	h.findOldest(path)
}

// rest lets others have the processor. It removes what has become too much meanwhile.
func (h *housekeeper) rest() error {
	worked := time.Since(h.began)
	if worked < workFor {
		return nil
	}
	defer func() { h.began = time.Now() }()
	nap := time.NewTimer(restFor * worked)
	defer nap.Stop()
	select {
	case <-h.stop:
		return errStopped
	case <-nap.C:
		return nil
	}
}

// clean removes the rotated files that are too many or too old.
func (h *housekeeper) clean(path string) {
	files, err := listRotated(path)
	if err != nil {
		h.fail("look for rotated files", err)
		return
	}
	for _, r := range files {
		old := h.cfg.MaxAge != 0 && time.Since(r.info.ModTime()) > h.cfg.MaxAge
		if r.n <= h.keep && !old {
			continue
		}
		if err := h.remove(path, r); err != nil {
			if !errors.Is(err, errStopped) {
				h.fail("remove a rotated file", err)
			}
			return
		}
	}
}

// remove removes a file, and counts what is in it.
func (h *housekeeper) remove(path string, r rotated) error {
	file := r.path(path)
	from, _ := firstTime(file, nil)
	n, known := h.known(r.info)
	if !known {
		// Of an earlier process. A file that cannot be read is removed all the same.
		var err error
		if n, err = countLines(file, h.rest); errors.Is(err, errStopped) {
			return err
		}
	}
	h.names.Lock()
	now, ok := find(path, r)
	var err error
	if ok {
		err = os.Remove(now.path(path))
	}
	h.names.Unlock()
	if err != nil || !ok {
		return err
	}
	h.count(r, from, n)
	return nil
}

// count counts a file that was removed, with so many records, the first of them from then.
func (h *housekeeper) count(r rotated, from time.Time, records int64) {
	h.forget(r.info)
	h.f.Stats.RemovedFiles.Add(1)
	h.f.Stats.RemovedRecords.Add(uint64(records))
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &h.removed
	s.files++
	s.records += records
	s.bytes += r.info.Size()
	if s.from.IsZero() || !from.IsZero() && from.Before(s.from) {
		s.from = from
	}
	if to := r.info.ModTime(); to.After(s.to) {
		s.to = to
	}
}

// find returns under which number a file is by now: a rotation may have moved it. names is held.
func find(path string, r rotated) (rotated, bool) {
	for n := r.n; n <= r.n+spare; n++ {
		at := rotated{n, r.ext, r.info}
		if info, err := os.Lstat(at.path(path)); err == nil && os.SameFile(info, r.info) {
			return at, true
		}
	}
	return r, false
}

// logRemovals logs what was removed, now and then or at the end.
func (h *housekeeper) logRemovals(end bool) {
	if !end && time.Since(h.removalsLogged) < logEvery {
		return
	}
	h.mu.Lock()
	s := h.removed
	h.removed = removal{}
	h.mu.Unlock()
	if s.files == 0 {
		return
	}
	h.removalsLogged = time.Now()
	h.f.log.Info("rotated files were removed, as max_size, keep and max_age have it", zap.Int("files", s.files),
		zap.Int64("records", s.records), zap.Stringer("size", unit.Size(s.bytes)), zap.Time("from", s.from), zap.Time("to", s.to))
}

func (h *housekeeper) fail(what string, err error) {
	if time.Since(h.failureLogged) >= logEvery {
		h.failureLogged = time.Now()
		h.f.log.Error(what+"; it is tried again", zap.Error(withRemedy(err)), zap.Duration("next_try", lookEvery))
	}
}

// findOldest finds out how far back the files reach.
func (h *housekeeper) findOldest(path string) {
	files, err := listRotated(path)
	if err != nil {
		return
	}
	h.forgetOthers(files)
	oldest := path
	if len(files) > 0 {
		oldest = files[0].path(path)
	}
	if at, err := firstTime(oldest, nil); err == nil && !at.IsZero() {
		h.keptSince.Store(at.Unix())
	}
}

// note keeps how many records a file has that was written by this process.
func (h *housekeeper) note(info os.FileInfo, records int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records[info] = records
}

// known returns what note was told of a file.
func (h *housekeeper) known(info os.FileInfo) (records int64, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, n := range h.records {
		if os.SameFile(k, info) {
			return n, true
		}
	}
	return 0, false
}

// forgetOthers forgets what was noted of files that somebody has removed.
func (h *housekeeper) forgetOthers(files []rotated) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.records {
		if !slices.ContainsFunc(files, func(r rotated) bool { return os.SameFile(k, r.info) }) {
			delete(h.records, k)
		}
	}
}

func (h *housekeeper) forget(info os.FileInfo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.records {
		if os.SameFile(k, info) {
			delete(h.records, k)
		}
	}
}
