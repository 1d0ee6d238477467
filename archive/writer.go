package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// When a row log is brought to the disk.
const (
	SyncInterval = "interval" // once a second
	SyncAlways   = "always"   // before Append returns
	SyncNever    = "never"
)

// Options are what a Writer needs to know.
type Options struct {
	Dir      string // of the archive
	Host     string
	Observer string
	Output   string // the name that gaps have for the archive

	Interval    time.Duration // between checkpoints; flows that lasted longer are kept apart
	Records     uint64        // of a segment
	Drop        []string
	Compression string // one of Compressions; "" is the first
	Sync        string
	Key         string // file of the private keys that sign checkpoints; "": they are not signed
	Retention   Retention
	Upload      *Upload // nil: nothing is uploaded

	// Unmarked says that nothing else tells what is missing since the last record that is there, as where there is no
	// mark of the last process: then Open puts a gap of that time on record.
	Unmarked bool

	// LeftOut are the rules that keep flows out of what is appended, as compact JSON; empty if nothing is. Each change of them
	// is put on record in the catalog. Who judges by them is another.
	LeftOut json.RawMessage

	// Seal makes a segment of a row log. Nil: Child, a process of this binary.
	Seal func(ctx context.Context, path string) (Sealed, error)

	// Noted is told each note that was written, and its text with its signatures. It must not wait. Nil: nobody is told.
	Noted func(n *Note, text string)

	retry  time.Duration // until a seal that has failed is tried again, at first; 0: sealRetry
	retain time.Duration // between looks for what is to be removed; 0: retainEvery

	// Now is the clock; nil: time.Now.
	Now func() time.Time

	// Log tells of what happens, with a remedy where there is one. Nil: nobody is told.
	Log func(level Level, msg, file string, err error, remedy string)
}

// Level is how grave a message is.
type Level int

// The levels.
const (
	Info Level = iota
	Warn
	Error
)

// Sealed is what sealing a row log has made.
type Sealed struct {
	Segment
	Date string `json:"date"`
}

// Stats counts what a Writer does. Any goroutine may read it.
type Stats struct {
	Bytes        atomic.Uint64 // written to row logs
	Waiting      atomic.Int64  // records in row logs that are not sealed yet, that which is written included
	RowLogs      atomic.Int64
	Seals        atomic.Uint64
	SealErrors   atomic.Uint64
	SealNanos    atomic.Uint64 // that sealing took
	Sealed       atomic.Int64  // when the last seal was done, ns since 1970; 0: none yet
	LastNanos    atomic.Int64  // that it took
	Sealing      atomic.Int64  // since when the seal that fails has been due, ns since 1970; 0: none fails
	Segments     atomic.Int64
	SegmentBytes atomic.Int64
	Oldest       atomic.Int64  // end of the oldest record in a segment or row log, ns since 1970; 0: there is none
	NextRemoval  atomic.Int64  // when the next removal by age is due; 0: none is
	RemovedAge   atomic.Uint64 // segments
	RemovedSize  atomic.Uint64
	RemovedFull  atomic.Uint64 // for the sake of the reserve
	KeepErrors   atomic.Uint64 // removals and catalog lines that failed
	Stopped      atomic.Bool   // nothing is written, for the sake of min_age or the reserve
	Damaged      atomic.Uint64 // files put aside
	Checkpointed atomic.Int64  // when the last note was written, ns since 1970; 0: none yet
	Upload       UploadStats
}

// Writer appends records to an archive. Append and Close are for one goroutine.
type Writer struct {
	Stats Stats

	o    Options
	dir  string // of the host
	lock *os.File

	mu       sync.Mutex // guards what follows
	active   *rowLog    // nil: none yet
	sequence uint64     // of the next row log
	closed   []*rowLog  // full ones, that the keeper is to sync, close and seal
	dirty    bool       // what was written to active is not known to be on the disk
	stalled  error      // why nothing may be written: the reserve cannot be kept

	wake chan struct{}
	stop context.CancelFunc
	done chan struct{}
	k    keeper
	up   *uploader // nil: nothing is uploaded
}

// ErrLocked is the error of an archive that another process writes.
var ErrLocked = errors.New("another ctlogd writes it; give each its own archive, or another host name")

// Open opens the archive for the host, makes its folder if there is none, and finishes what a crash has left. It may
// take as long as the disk takes.
func Open(o Options) (*Writer, error) {
	if err := Works(); err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = func(Level, string, string, error, string) {}
	}
	if o.Seal == nil {
		o.Seal = Child
	}
	if o.retain == 0 {
		o.retain = retainEvery
	}
	if o.retry == 0 {
		o.retry = sealRetry
	}
	if o.Interval <= 0 || o.Records == 0 {
		return nil, errors.New("an archive needs an interval and a number of records of a segment")
	}
	w := &Writer{o: o, dir: filepath.Join(o.Dir, HostFolder(o.Host)), wake: make(chan struct{}, 1), done: make(chan struct{})}
	for _, dir := range []string{o.Dir, w.dir} {
		if err := makeDir(dir); err != nil {
			return nil, err
		}
	}
	if err := w.takeLock(); err != nil {
		return nil, err
	}
	if err := w.recover(); err != nil {
		w.lock.Close()
		return nil, err
	}
	w.keepRules()
	if err := w.tellAbsence(); err != nil {
		w.lock.Close()
		return nil, fmt.Errorf("put the time since the last record on record: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	if w.up = w.newUploader(); w.up != nil {
		go w.up.run(ctx)
	}
	go w.keep(ctx)
	return w, nil
}

// takeLock keeps other processes away. Where the file system knows no locks, there is none.
func (w *Writer) takeLock() error {
	f, err := os.OpenFile(filepath.Join(w.dir, ".lock"), os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	w.lock = f
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
		return nil
	case unix.EWOULDBLOCK:
		f.Close()
		return fmt.Errorf("open %s: %w", w.dir, ErrLocked)
	default:
		w.o.Log(Warn, "the file system has no locks: nothing keeps a second ctlogd away", w.dir, err, "see that no other ctlogd writes this archive")
		return nil
	}
}

func (w *Writer) now() int64 { return w.o.Now().UnixNano() }

// Append writes recs to the row log and returns how many of them are in it: all of them, or err is not nil.
func (w *Writer) Append(recs []*flow.Record) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stalled != nil {
		return 0, w.stalled
	}
	for n < len(recs) {
		if err := w.ready(); err != nil {
			return n, err
		}
		part := recs[n:]
		if room := w.o.Records - w.active.records; uint64(len(part)) > room {
			part = part[:room]
		}
		size := w.active.size
		k, err := w.active.append(part)
		n += k
		w.dirty = w.dirty || k > 0
		w.Stats.Waiting.Add(int64(k))
		w.Stats.Bytes.Add(uint64(w.active.size - size))
		if err != nil {
			return n, fmt.Errorf("write %s: %w", w.active.path, err)
		}
		if w.o.Sync == SyncAlways {
			if err := w.active.file.Sync(); err != nil {
				return n - k, fmt.Errorf("sync %s: %w", w.active.path, err)
			}
			w.dirty = false
		}
		if w.active.records >= w.o.Records {
			w.rotate()
		}
	}
	return n, nil
}

// ready sees to it that there is a row log to write to, of this day.
func (w *Writer) ready() error {
	now := Time(w.now())
	if w.active != nil && (w.active.records >= w.o.Records || w.active.Origin.Created.date() != now.date()) {
		w.rotate()
	}
	if w.active != nil {
		return nil
	}
	l, err := createRowLog(w.dir, Origin{Version: SchemaVersion, Host: w.o.Host, Observer: w.o.Observer, Output: w.o.Output, Sequence: w.sequence,
		Interval: Duration(w.o.Interval), Dropped: w.o.Drop, Level: w.o.Compression, Created: now})
	if err != nil {
		return err
	}
	w.sequence++
	w.active = l
	w.Stats.RowLogs.Add(1)
	return nil
}

// rotate hands the row log to the keeper. It does not wait for the disk. One that holds nothing, because the write of its
// first record has failed, is taken back with its number: a number that is missing means records that are.
func (w *Writer) rotate() {
	if l := w.active; l.records == 0 && os.Remove(l.path) == nil {
		l.file.Close()
		w.active, w.dirty, w.sequence = nil, false, l.Origin.Sequence
		w.Stats.RowLogs.Add(-1)
		return
	}
	w.closed = append(w.closed, w.active)
	w.active = nil
	w.dirty = false
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Unsynced reports whether it is the kernel's affair when records come to the disk.
func (w *Writer) Unsynced() bool { return w.o.Sync != SyncAlways }

// Sync brings to the disk what was written.
func (w *Writer) Sync() error {
	w.mu.Lock()
	if w.active == nil || !w.dirty {
		w.dirty = false
		w.mu.Unlock()
		return nil
	}
	path, file := w.active.path, w.active.file // the keeper may take the file from a row log that is full
	w.dirty = false
	w.mu.Unlock()
	if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
		w.mu.Lock()
		w.dirty = true
		w.mu.Unlock()
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// Close brings what was written to the disk and gives everything back. The row log stays, to be gone on with. A seal that
// runs is ended; it begins anew at the next start. ctx bounds the wait for it. What hangs until then is waited for all the
// same, by nobody: the archive can be opened again when it has returned.
func (w *Writer) Close(ctx context.Context) error {
	w.stop()
	closed := make(chan error, 1)
	go func() {
		<-w.done
		<-w.up.ended()
		closed <- w.closeFiles()
	}()
	select {
	case err := <-closed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *Writer) closeFiles() error {
	err := w.Sync()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range append(w.closed, w.active) {
		if l != nil && l.file != nil {
			err = errors.Join(err, l.file.Close())
		}
	}
	w.closed, w.active = nil, nil
	return errors.Join(err, w.lock.Close())
}

// tellAbsence puts a gap on record, of the time since the last record that was there before; nothing in a new archive, or
// where a mark tells that time.
func (w *Writer) tellAbsence() error {
	if !w.o.Unmarked || w.k.last == 0 {
		return nil
	}
	b := flow.NewBatch(1, nil)
	r := b.Next()
	now := w.now()
	r.Event, r.Received = flow.EventGap, now
	r.Start, r.Stop = min(w.k.last, now), max(w.k.last, now) // the clock may have been set back
	b.Extra(r).Gap = flow.Gap{Cause: flow.CauseDowntime, Output: w.o.Output}
	w.o.Log(Warn, "no mark of the last process was found, so a gap covers all the time since the last record", w.dir, nil,
		"set state_directory, such as to /var/lib/ctlogd, and keep what is in it: the gap is as long as ctlogd was away then")
	_, err := w.Append([]*flow.Record{r})
	return err
}

// keepRules puts on record that other rules keep flows out than before. If it cannot, it tries again with each look for what
// is to be removed: a full disk does not keep the archive closed.
func (w *Writer) keepRules() {
	before := w.k.leftOut()
	if bytes.Equal(before, w.o.LeftOut) {
		return
	}
	now := Time(w.now())
	r := &Rules{From: now, LeftOut: w.o.LeftOut, Before: before}
	if w.k.last != 0 { // what has ended since may have met the rules already
		r.From = min(Time(w.k.last), now)
	}
	if err := w.appendRules(now.date(), r); err != nil {
		w.Stats.KeepErrors.Add(1)
		w.o.Log(Error, "the catalog cannot say yet which flows the filter keeps out: until it does, whois may take answers about them for complete",
			w.dir, err, "see that the disk has room and is writable")
	}
}

func (w *Writer) appendRules(date string, r *Rules) error {
	if err := makeDir(filepath.Join(w.dir, "date="+date)); err != nil {
		return err
	}
	line := Line{Kind: KindRules, At: Time(w.now()), Rules: r}
	if err := w.k.chain.append(date, line); err != nil {
		return err
	}
	line.Date = date
	w.k.rules = &line
	return nil
}

// lastIn returns the time of the latest record of a row log, as far as it can be read; 0 if there is none.
func lastIn(path string) (last int64) {
	_ = Each(path, func(_ *Origin, r *flow.Record) error { // what cannot be read is told when the row log is opened
		t, _ := r.Time()
		last = max(last, t)
		return nil
	})
	return last
}

// recover reads the folder of the host, and finishes what a crash has left.
func (w *Writer) recover() error {
	w.k = keeper{chain: chain{dir: w.dir}, days: map[string]*day{}}
	folders, err := dates(w.dir)
	if err != nil {
		return err
	}
	sealed := map[uint64]bool{}
	highest := uint64(0)
	first := true
	var unnamed []string
	for _, name := range folders {
		lines, err := w.readCatalog(filepath.Join(w.dir, name))
		if err != nil {
			return err
		}
		for i := range lines {
			l := &lines[i]
			if first || l.N >= w.k.chain.n {
				w.k.chain.n, w.k.chain.hash, first = l.N+1, l.Hash, false
			}
			if l.Key != nil && (w.k.keyLine == nil || l.N > w.k.keyLine.N) {
				w.k.keyLine = l
			}
			if l.Rules != nil && (w.k.rules == nil || l.N > w.k.rules.N) {
				w.k.rules = l
			}
			if l.Segment != nil {
				w.k.last = max(w.k.last, int64(l.Last))
				for _, s := range l.RowLogs {
					sealed[s], highest = true, max(highest, s)
				}
			}
		}
		fresh, err := w.tidy(name, lines)
		if err != nil {
			return err
		}
		unnamed = append(unnamed, fresh...)
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	logs := map[uint64]string{}
	for _, e := range entries {
		sequence, ok := rowLogSequence(e.Name())
		if !ok {
			continue
		}
		highest = max(highest, sequence)
		path := filepath.Join(w.dir, e.Name())
		if sealed[sequence] {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		logs[sequence] = path
	}
	for _, path := range unnamed {
		if err := w.adopt(path, logs, sealed); err != nil {
			return err
		}
	}
	w.sequence = highest + 1
	if w.o.Unmarked || !bytes.Equal(w.k.leftOut(), w.o.LeftOut) {
		for _, path := range logs {
			w.k.last = max(w.k.last, lastIn(path))
		}
	}
	return w.openLogs(logs)
}

// readCatalog reads a catalog. What is torn will be cut off by the next line; lines that are damaged are told.
func (w *Writer) readCatalog(dir string) ([]Line, error) {
	lines, _, err := ReadCatalog(dir)
	var line *LineError
	if errors.As(err, &line) {
		w.o.Log(Error, "the catalog is damaged: the chain of evidence is broken there, and what the line said is gone", dir, err,
			"put the catalog back from a copy; ctlogd verify tells what it covers")
		return lines, nil
	}
	return lines, err
}

// tidy finishes what a crash has left in the folder of a date, and remembers the segments that its catalog's lines name. It returns
// the paths of those that none names.
func (w *Writer) tidy(name string, lines []Line) (unnamed []string, err error) {
	dir, date := filepath.Join(w.dir, name), strings.TrimPrefix(name, "date=")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	named, gone := map[string]*Segment{}, map[string]bool{}
	for i := range lines {
		switch l := &lines[i]; {
		case l.Removed != nil:
			gone[l.Removed.File] = true
		case l.Segment != nil:
			named[l.File] = l.Segment
		}
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		file, why, owed := strings.Cut(e.Name(), owedMark)
		switch s := named[file]; {
		case owed && s != nil && !gone[file]:
			gone[file] = true
			if err := os.Remove(filepath.Join(dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			w.k.owed = append(w.k.owed, tombstone{date, Line{Kind: KindRemoved, At: Time(w.now()),
				Removed: &Removal{File: file, Why: why, Records: s.Records, First: s.First, Last: s.Last}}})
		case owed, gone[e.Name()], strings.HasSuffix(e.Name(), ".parquet.tmp"):
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		case s == nil && strings.HasSuffix(e.Name(), ".parquet"):
			unnamed = append(unnamed, path)
		}
	}
	for _, s := range live(lines) {
		if !gone[s.File] {
			w.k.add(&w.Stats, date, s)
		}
	}
	return unnamed, nil
}

// adopt sees to a segment that no line names.
func (w *Writer) adopt(path string, logs map[uint64]string, sealed map[uint64]bool) error {
	date := strings.TrimPrefix(filepath.Base(filepath.Dir(path)), "date=")
	seg, err := inspect(path)
	for _, sequence := range seg.RowLogs {
		if _, ok := logs[sequence]; ok { // it is made anew
			return os.Remove(path)
		}
		if sealed[sequence] {
			err = fmt.Errorf("another segment holds the records of row log %d", sequence)
		}
	}
	if err == nil {
		for _, sequence := range seg.RowLogs {
			sealed[sequence] = true
		}
		w.o.Log(Warn, "a segment that no catalog line names is whole; it gets one", path, nil, "")
		line := Line{Kind: KindSegment, At: Time(w.now()), Segment: &seg}
		if err := w.k.chain.append(date, line); err != nil {
			return err
		}
		w.k.add(&w.Stats, date, &seg)
		return nil
	}
	if sequence, ok := sequenceOf(filepath.Base(path)); ok && logs[sequence] != "" {
		return os.Remove(path)
	}
	if errors.Is(err, ErrNewer) {
		w.o.Log(Warn, "a segment of a later version is left alone", path, err, "upgrade ctlogd")
		return nil
	}
	w.Stats.Damaged.Add(1)
	w.o.Log(Error, "a file that is no whole segment of this archive is put aside", path, err, "look at it, and remove it")
	return os.Rename(path, path+".aside")
}

// sequenceOf returns the sequence in a segment's name.
func sequenceOf(name string) (sequence uint64, ok bool) {
	_, s, ok := strings.Cut(strings.TrimSuffix(name, ".parquet"), "Z-")
	if !ok {
		return 0, false
	}
	_, err := fmt.Sscanf(s, "%d", &sequence)
	return sequence, err == nil
}

// openLogs opens the row log to go on with, and lets the other ones be sealed.
func (w *Writer) openLogs(logs map[uint64]string) error {
	now := w.now()
	var order []uint64
	for sequence := range logs {
		order = append(order, sequence)
	}
	slices.Sort(order)
	for i, sequence := range order {
		path := logs[sequence]
		l, lost, err := openRowLog(path, now)
		switch {
		case errors.Is(err, ErrNewer):
			w.o.Log(Warn, "a row log of a later version is left alone", path, err, "upgrade ctlogd: it will be sealed then")
			continue
		case errors.Is(err, errNotRowLog):
			info, statErr := os.Stat(path)
			if statErr == nil && info.Size() < rowLogFixed { // a crash while it was made: it held nothing
				if err := os.Remove(path); err != nil {
					return err
				}
				if sequence+1 == w.sequence {
					w.sequence = sequence
				}
				continue
			}
			w.Stats.Damaged.Add(1)
			w.o.Log(Error, "a row log cannot be read and is put aside; its records are in no segment", path, err, "look at it, and remove it")
			if err := os.Rename(path, path+".aside"); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		if lost != nil {
			w.o.Log(Warn, "a row log has a damaged part: a gap says what it held", path, nil, "")
			if _, err := l.append([]*flow.Record{lost}); err != nil {
				l.file.Close()
				return err
			}
		}
		w.Stats.RowLogs.Add(1)
		w.Stats.Waiting.Add(int64(l.records))
		same := l.Origin.Host == w.o.Host && l.Origin.Observer == w.o.Observer && time.Duration(l.Origin.Interval) == w.o.Interval &&
			slices.Equal(l.Origin.Dropped, w.o.Drop) && l.Origin.Level == w.o.Compression
		if i == len(order)-1 && same && l.records < w.o.Records && l.Origin.Created.date() == Time(now).date() {
			w.active = l
		} else {
			w.closed = append(w.closed, l)
		}
	}
	return nil
}

// keeper is what the goroutine that keeps the archive knows. Nothing else touches it after Open.
type keeper struct {
	chain  chain
	last   int64 // time of the latest record that Open has found, as far as it was looked for; 0: there is none
	days   map[string]*day
	bytes  int64
	hashes map[uint64]*rowHash // of row logs, by sequence

	owed []tombstone // that a full disk had no room for

	keyLine *Line // the catalog's last word on who signs; nil: it has none
	rules   *Line // and on what is kept out
}

// leftOut returns the rules that are on record.
func (k *keeper) leftOut() json.RawMessage {
	if k.rules == nil {
		return nil
	}
	return k.rules.Rules.LeftOut
}

// day is what a date's folder holds.
type day struct{ segments []stored }

// stored is what is remembered of a segment.
type stored struct {
	file    string
	buried  bool // it has its tombstone, and could not be removed
	bytes   int64
	records int64
	first   Time
	last    Time
}

func (k *keeper) add(st *Stats, date string, s *Segment) {
	d := k.days[date]
	if d == nil {
		d = new(day)
		k.days[date] = d
	}
	d.segments = append(d.segments, stored{file: s.File, bytes: s.Bytes, records: s.Records, first: s.First, last: s.Last})
	k.bytes += s.Bytes
	st.Segments.Add(1)
	st.SegmentBytes.Store(k.bytes)
}

// oldest returns the segment whose last record is oldest, and its date.
func (k *keeper) oldest() (date string, s stored, ok bool) {
	for name, d := range k.days {
		for _, c := range d.segments {
			if !ok || c.last < s.last || c.last == s.last && c.file < s.file {
				date, s, ok = name, c, true
			}
		}
	}
	return date, s, ok
}

// bury notes that a segment has its tombstone.
func (k *keeper) bury(date, file string) {
	d := k.days[date]
	d.segments[slices.IndexFunc(d.segments, func(s stored) bool { return s.file == file })].buried = true
}

func (k *keeper) forget(st *Stats, date, file string) {
	d := k.days[date]
	i := slices.IndexFunc(d.segments, func(s stored) bool { return s.file == file })
	k.bytes -= d.segments[i].bytes
	d.segments = slices.Delete(d.segments, i, i+1)
	if len(d.segments) == 0 {
		delete(k.days, date)
	}
	st.Segments.Add(-1)
	st.SegmentBytes.Store(k.bytes)
}

const (
	tickEvery     = time.Second
	retainEvery   = time.Minute
	sealRetry     = time.Second
	sealRetryMost = 5 * time.Minute
	firstNote     = time.Minute // after the start
)

// keep syncs, seals, and removes what is due, until ctx ends.
func (w *Writer) keep(ctx context.Context) {
	defer close(w.done)
	tick := time.NewTicker(min(tickEvery, w.o.retry, w.o.retain))
	defer tick.Stop()
	var waiting []*rowLog // to be sealed, oldest first
	var nextRetain time.Time
	nextNote := time.Now().Add(min(w.o.Interval, firstNote))
	for {
		w.mu.Lock()
		waiting = append(waiting, w.closed...)
		w.closed = nil
		w.mu.Unlock()
		for _, l := range waiting {
			if err := l.finish(); err != nil { // seal tries again, and says so
				break
			}
		}
		if ctx.Err() != nil {
			w.mu.Lock()
			w.closed = append(waiting, w.closed...) // for Close to close
			w.mu.Unlock()
			return
		}
		if now := time.Now(); !now.Before(nextRetain) {
			w.retain()
			w.up.look()
			nextRetain = now.Add(w.o.retain)
		}
		// One that cannot be sealed does not keep others from it.
		if i := slices.IndexFunc(waiting, func(l *rowLog) bool { return !time.Now().Before(l.retryAt) }); i >= 0 {
			began, l := time.Now(), waiting[i]
			err := w.seal(ctx, l)
			switch {
			case err == nil:
				w.Stats.Seals.Add(1)
				took := time.Since(began)
				w.Stats.SealNanos.Add(uint64(took))
				w.Stats.LastNanos.Store(int64(took))
				w.Stats.Sealed.Store(w.now())
				waiting = slices.Delete(waiting, i, i+1)
				w.Stats.Sealing.Store(failingSince(waiting))
				nextRetain, nextNote = time.Time{}, time.Time{}
				continue
			case ctx.Err() != nil:
				continue
			default:
				w.Stats.SealErrors.Add(1)
				w.o.Log(Error, "sealing failed and is tried again; the records are safe in the row log", l.path, err,
					"see that the disk has room and is writable")
				if l.failing == 0 {
					l.failing = w.now()
				}
				l.pause = min(max(2*l.pause, w.o.retry), sealRetryMost)
				l.retryAt = time.Now().Add(l.pause)
				w.Stats.Sealing.Store(failingSince(waiting))
			}
		}
		if now := time.Now(); !now.Before(nextNote) {
			nextNote = now.Add(w.o.Interval)
			if err := w.note(waiting); err != nil {
				w.Stats.KeepErrors.Add(1)
				w.o.Log(Error, "a checkpoint's note cannot be written; the next one comes after checkpoint", w.dir, err, "look after the disk")
			}
			w.up.look()
		}
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-tick.C:
			w.endDay()
			if w.o.Sync == SyncInterval {
				if err := w.Sync(); err != nil {
					w.Stats.KeepErrors.Add(1)
					w.o.Log(Error, "syncing failed: what was written may not survive a power failure", w.dir, err, "look after the disk")
				}
			}
		}
	}
}

// failingSince returns since when the first of the row logs that cannot be sealed has been due; 0: there is none.
func failingSince(waiting []*rowLog) (since int64) {
	for _, l := range waiting {
		if l.failing != 0 && (since == 0 || l.failing < since) {
			since = l.failing
		}
	}
	return since
}

// endDay lets the row log of a day that is over be sealed, also when no record comes.
func (w *Writer) endDay() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active != nil && w.active.Origin.Created.date() != Time(w.now()).date() {
		w.rotate()
	}
}

// seal makes a segment of a row log, names it in the catalog, and removes the row log.
func (w *Writer) seal(ctx context.Context, l *rowLog) error {
	if err := l.finish(); err != nil {
		return err
	}
	if err := step("keep.seal"); err != nil {
		return err
	}
	s, err := w.o.Seal(ctx, l.path)
	if errors.Is(err, errEmpty) {
		return w.drop(l)
	}
	if err != nil {
		return err
	}
	if err := step("keep.sealed"); err != nil {
		return err
	}
	if r := w.k.rules; len(w.k.leftOut()) > 0 && r.Date != s.Date {
		if err := w.appendRules(s.Date, &Rules{From: r.Rules.From, LeftOut: r.Rules.LeftOut}); err != nil {
			return err
		}
	}
	if err := w.k.chain.append(s.Date, Line{Kind: KindSegment, At: Time(w.now()), Segment: &s.Segment}); err != nil {
		return err
	}
	w.k.add(&w.Stats, s.Date, &s.Segment)
	return w.drop(l)
}

// drop removes a row log that is not needed any more. If it cannot, the next start does.
func (w *Writer) drop(l *rowLog) error {
	if err := step("keep.drop"); err != nil {
		return err
	}
	w.Stats.RowLogs.Add(-1)
	w.Stats.Waiting.Add(-int64(l.records))
	if err := os.Remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.Stats.KeepErrors.Add(1)
		w.o.Log(Error, "a row log that is sealed cannot be removed; the next start tries again", l.path, err, "")
	}
	return step("keep.dropped")
}
