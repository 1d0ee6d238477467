package subscriber

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"go.uber.org/zap"
)

const (
	lookEvery = time.Second

	// settled is how long nobody may have written to a file that is rewritten in place, lest half of it is read. One that
	// never comes to rest is read anyway after patience.
	settled  = 200 * time.Millisecond
	patience = 5 * time.Second

	retryEvery = time.Minute // a file that could not be read and has not changed

	maxLine = 64 << 10 // bytes
	told    = 5        // broken lines of one reading that are told one by one

	// hopeless is how many lines are broken, and more than are not, in a file that is given up before its end. One in which
	// no line is right is given up whatever its size.
	hopeless = 1000
)

// stamp is what identifies a state of a file.
type stamp struct {
	dev, ino uint64
	size     int64
	mtime    int64
}

// watcher reads a file whenever it has changed. It is for one goroutine.
type watcher struct {
	source *Source
	path   string
	log    *zap.Logger
	tell   func(at string, fault error) // of a broken line; not of each
	now    func() time.Time

	// appends says that programs append to the file, or put another one in its place, so that what was read once need not be
	// read again.
	appends bool

	parser  parser
	read    stamp // the state that was read last
	refused stamp // the state that could not be read
	why     error
	again   time.Time // when it is tried again though it is the same
	first   time.Time // since when the file is not at rest; zero: it is
	offset  int64     // in a file that is appended to, where reading goes on
	before  []byte    // what stands before it
	lines   int       // so many
	mark    uint16
	version int64 // of the table, 0: there is none yet
	seen    int64 // when the file was last seen in the state that was read
	pace    pace
}

func newWatcher(s *Source) *watcher {
	tell := func(at string, fault error) {
		s.log.Warn("a broken line: nobody is named for its address", zap.String("at", at), zap.Error(fault))
	}
	return &watcher{source: s, path: s.cfg.Path, log: s.log, tell: tell, now: time.Now, appends: s.cfg.Type == "kea" || s.cfg.Type == "isc"}
}

func (w *watcher) run(ctx context.Context) {
	for {
		next := lookEvery
		switch err := w.look(ctx); {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errUnsettled):
			next = settled / 2
		case err != nil:
			w.source.fail(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// errUnsettled says that somebody is writing to the file.
var errUnsettled = errors.New("the file is being written")

func stampOf(f *os.File) (s stamp, err error) {
	fi, err := f.Stat()
	if err != nil {
		return s, err
	}
	if !fi.Mode().IsRegular() {
		return s, fmt.Errorf("%s is no regular file", f.Name())
	}
	s.size, s.mtime = fi.Size(), fi.ModTime().UnixNano()
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		s.dev, s.ino = uint64(st.Dev), st.Ino
	}
	return s, nil
}

// look reads the file if it has changed, and shows the table if all went well.
func (w *watcher) look(ctx context.Context) (err error) {
	defer func() {
		if !errors.Is(err, errUnsettled) { // whoever writes to it next has all of patience again
			w.first = time.Time{}
		}
	}()
	f, is, err := openSource(w.path)
	if err != nil {
		return err
	}
	defer f.Close()
	now := w.now()
	if is == w.read {
		w.seen = now.UnixNano()
		w.source.well(now)
		return nil
	}
	if is == w.refused && now.Before(w.again) {
		return w.why
	}
	if w.first.IsZero() {
		w.first = now
	}
	patient := now.Sub(w.first) < patience
	if age := now.UnixNano() - is.mtime; !w.appends && patient && age >= 0 && age < settled.Nanoseconds() {
		return errUnsettled
	}
	l, err := w.load(ctx, f, is)
	if err != nil {
		w.refused, w.why, w.again = is, err, now.Add(retryEvery)
		return err
	}
	if after, err := stampOf(f); err != nil {
		return err
	} else if !w.appends && after != is && patient {
		return errUnsettled
	}
	w.done(l, is, now)
	return nil
}

// done shows what a reading has brought.
func (w *watcher) done(l *loader, is stamp, now time.Time) {
	w.read, w.seen = is, max(is.mtime, 1)
	w.version = l.version
	w.source.Loads.Add(1)
	w.source.Broken.Add(l.broken)
	w.source.show(l.table, l.version)
	w.source.well(now)
	if l.broken > told {
		w.log.Warn("broken lines: nobody is named for their addresses", zap.String("file", w.path), zap.Uint64("lines", l.broken))
	}
	w.log.Debug("leases read", zap.Int("leases", l.table.leases), zap.Bool("whole", l.whole), zap.Int("lines", l.good))
}

// load reads the file, or what was appended to it, into a new table.
func (w *watcher) load(ctx context.Context, f *os.File, is stamp) (l *loader, err error) {
	l = w.loader(is)
	if w.appends && w.parser != nil && w.goesOn(f, is) {
		l.whole = false
		if _, err := f.Seek(w.offset, io.SeekStart); err != nil {
			return nil, err
		}
	} else {
		w.parser, w.offset, w.before, w.lines = newParser(&w.source.cfg), 0, nil, 0
		if w.mark++; w.mark == 0 {
			w.mark = 1
		}
		l.mark = w.mark
	}
	defer func() {
		if err != nil {
			w.parser = nil // from the beginning, the next time
		}
	}()
	if err := w.scan(ctx, f, l); err != nil {
		return nil, err
	}
	if l.whole {
		if l.good == 0 && l.broken > 0 {
			return nil, fmt.Errorf("%s: %d lines are broken, and none is not", w.path, l.broken)
		}
		if err := w.parser.end(); err != nil && (!w.appends || l.good == 0) {
			return nil, err
		}
	}
	return l, l.finish()
}

// goesOn reports whether what was read of the file is still its beginning.
func (w *watcher) goesOn(f *os.File, is stamp) bool {
	if is.dev != w.read.dev || is.ino != w.read.ino || is.size < w.offset {
		return false
	}
	b := make([]byte, len(w.before))
	_, err := f.ReadAt(b, w.offset-int64(len(b)))
	return err == nil && bytes.Equal(b, w.before)
}

// scan gives the lines to the parser.
func (w *watcher) scan(ctx context.Context, f *os.File, l *loader) error {
	in := bufio.NewReaderSize(f, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		size := len(line)
		long := errors.Is(err, bufio.ErrBufferFull)
		if long {
			line = bytes.Clone(line[:256]) // which is where its address stands
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			var more []byte
			more, err = in.ReadSlice('\n')
			size += len(more)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		whole := err == nil
		if size == 0 || w.appends && !whole {
			return nil // the rest of the line is not there yet
		}
		w.lines++
		var fault error
		if long {
			fault = fmt.Errorf("a line of more than %d bytes", maxLine)
		} else {
			fault = w.parser.line(bytes.TrimRight(line, "\r\n"), l.tell)
		}
		var full errFull
		if errors.As(fault, &full) {
			return fault
		}
		if fault != nil {
			if p := w.parser.about(line); p.IsValid() {
				l.unclear[prefixOf(p)] = forever
			}
			if l.broken++; l.broken <= told {
				w.tell(fmt.Sprintf("%s:%d", w.path, w.lines), fault)
			}
			if l.broken >= hopeless && l.broken > uint64(l.good) {
				return fmt.Errorf("%s:%d: %d lines are broken, and %d are not: %w", w.path, w.lines, l.broken, l.good, fault)
			}
		}
		if w.appends {
			w.offset += int64(size)
			if !long {
				w.before = append(w.before[:0], line[max(0, len(line)-256):]...)
			} else {
				w.before = w.before[:0]
			}
		}
		if w.lines%256 == 0 {
			w.pace.rest()
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if !whole {
			return nil
		}
	}
}

// loader makes a table of what the lines of a file say.
type loader struct {
	source   *Source
	table    *table
	edits    []edit
	pending  map[prefix]bool // those in edits
	whole    bool            // the file is read from its beginning
	mark     uint16          // of what the file says, if whole
	version  int64           // the time of the file
	previous int64           // when the file was last in the state of the table before, 0: there was none
	horizon  int64
	good     int
	broken   uint64
	unclear  map[prefix]int64 // of broken lines: until when it is not known who has them
	rest     func()
}

func (w *watcher) loader(is stamp) *loader {
	version := max(is.mtime, 1)
	return &loader{source: w.source, table: w.source.table.Load(), pending: map[prefix]bool{}, unclear: map[prefix]int64{}, whole: true, mark: w.mark, version: version,
		previous: min(w.seen, version), horizon: w.now().Add(-w.source.cfg.History).UnixNano(), rest: w.pace.rest}
}

// tell adds a claim.
func (l *loader) tell(c *claim) error {
	if err := c.check(); err != nil {
		return err
	}
	l.good++
	p := prefixOf(c.prefix)
	e := edit{prefix: p, from: c.from, until: c.until, id: c.id, name: c.name, mark: l.mark}
	if e.until == 0 {
		e.until = forever
	}
	if e.from != 0 && l.source.cfg.Type != "csv" { // in whole seconds
		e.surely = min(e.from+1e9, l.version)
	}
	if l.pending[p] && e.from == 0 {
		l.flush() // the same once more: the last one counts
	}
	if c.over {
		l.mend(p, l.version)
		e.from, e.id = l.version, ""
		if _, s := l.table.latest(p); s == nil && !l.pending[p] {
			return nil
		}
		return l.add(e)
	}
	l.mend(p, cmp.Or(e.surely, l.version))
	if l.pending[p] {
		return l.add(e)
	}
	g, s := l.table.latest(p)
	same := s != nil && g.idOf(s) == e.id && g.nameOf(s) == e.name
	if same && s.until == e.until && (e.from == 0 || e.from >= s.from) {
		s.mark = l.mark
		return nil
	}
	if e.from == 0 {
		l.since(&e, s, same)
	}
	return l.add(e)
}

// since finds out from when an edit holds, of which the file does not tell that. What was seen of the file before says
// something: when the one before still had the address, and when it was free.
func (l *loader) since(e *edit, s *slot, same bool) {
	switch {
	case s == nil && l.source.cfg.Type == "csv":
		e.from = 1 // it was always so
	case same && s.until > l.previous:
		e.from = s.from
	case l.previous == 0:
		e.from = l.version
	case s != nil && s.until > l.previous: // from hand to hand, between the two states of the file
		e.from, e.certain = l.version, l.previous
	default:
		e.from = l.previous
	}
}

// mend notes that a row tells again, from a time on, who has a prefix, or that nobody has it: in files in which the last row
// counts. In others a line is broken as long as it stands there.
func (l *loader) mend(p prefix, from int64) {
	if t := l.source.cfg.Type; t != "kea" && t != "isc" {
		return
	}
	until, broken := l.unclear[p]
	if !broken {
		until = l.table.unclear[p].until
	}
	if until == forever {
		l.unclear[p] = from
	}
}

// windows returns for which times it is not known who had a prefix, as the lines are that were read.
func (l *loader) windows() map[prefix]window {
	next := map[prefix]window{}
	for p, w := range l.table.unclear {
		until, told := l.unclear[p]
		switch {
		case told:
			w.until = until
		case l.whole:
			w.until = min(w.until, l.version)
		}
		if w.until > l.horizon {
			next[p] = w
		}
	}
	for p, until := range l.unclear {
		if _, known := next[p]; !known {
			next[p] = window{max(l.previous, 1), until} // until it was seen so, what it was before is certain
		}
	}
	return next
}

func (l *loader) add(e edit) error {
	l.edits = append(l.edits, e)
	l.pending[e.prefix] = true
	if len(l.edits) >= chunk {
		l.flush()
	}
	if l.table.leases > l.source.cfg.Limit {
		return errFull(l.source.cfg.Limit)
	}
	return nil
}

func (l *loader) flush() {
	l.table = l.source.grown(l.table.with(l.edits, l.horizon, l.rest))
	l.edits = l.edits[:0]
	clear(l.pending)
}

// finish ends what the file does not speak of any more, if it was read as a whole.
func (l *loader) finish() error {
	l.flush()
	if l.whole {
		l.table, _ = l.table.without(l.version, func(s *slot) bool { return s.mark != l.mark && s.until > l.version }, l.horizon, l.rest)
	}
	l.table = l.table.withUnclear(l.windows())
	if l.table.leases > l.source.cfg.Limit {
		return errFull(l.source.cfg.Limit)
	}
	return nil
}
