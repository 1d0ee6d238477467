package jsonl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

const (
	// maxWrite bounds the buffer, but for one line: a Write of more records takes more than one write(2). It has room for
	// a batch from the reader, and is in the cache when the kernel copies it.
	maxWrite = 256 << 10

	// askFree is how often at most the file system is asked what it has free while there is room: others use it as well.
	askFree = time.Second
)

// Stats counts what a File does. It may be read at any time.
type Stats struct {
	Bytes          atomic.Uint64 // written, torn lines included
	Errors         atomic.Uint64 // writes that failed or fell short
	TornBytes      atomic.Uint64 // cut off because a line was not whole: after failed writes, and after a crash
	Rotations      atomic.Uint64
	RotationErrors atomic.Uint64
	RemovedFiles   atomic.Uint64 // rotated files that were removed
	RemovedRecords atomic.Uint64 // the records in them
	Compressions   atomic.Uint64
	CompressErrors atomic.Uint64
}

// File is an output that writes one line for each record. Write and Close are for one goroutine, Reopen for any.
type File struct {
	Stats Stats

	cfg   Config
	name  string
	enc   format.Encoder
	log   *zap.Logger
	limit int          // of one write(2), in bytes
	house *housekeeper // of the rotated files; nil if the file is not rotated

	writing        sync.Mutex // guards what follows: the housekeeper rotates as well, when time has come and nothing is written
	buf            []byte
	current        *target
	noRotateBefore time.Time
	records        int64 // in the current file; negative if it had some before it was opened
	cutRefused     bool  // has been logged
	unlocked       bool  // likewise

	room    int64 // what may be written until the file system is asked again
	askedAt time.Time

	mu   sync.Mutex
	used *target // is current, for Reopen to compare with
	next *target // opened by Reopen, current from the next Write on; or nil

	delivered atomic.Uint64            // records written, as Write has reported them
	pipe      atomic.Pointer[arrivals] // of a pipe: what its reader has taken; nil for others
}

// New opens the file of cfg, and makes it if there is none, with mode 0640 less the umask. It looks at the end of the
// file and mends it where that is possible now; else the first Write does. A nil log logs nothing.
func New(cfg Config, enc format.Encoder, log *zap.Logger) (*File, error) {
	if log == nil {
		log = zap.NewNop()
	}
	f := &File{cfg: cfg, name: cfg.Name(), enc: enc, limit: maxWrite}
	f.log = log.With(zap.String("output", f.name))
	if cfg.MaxSize != 0 {
		f.limit = int(min(maxWrite, cfg.MaxSize))
	}
	t, err := f.open()
	if err != nil {
		return nil, err
	}
	f.begin(t)
	f.used = t
	if cfg.rotates() {
		f.house = newHousekeeper(f)
	}
	return f, nil
}

// Name returns "jsonl:" and the path.
func (f *File) Name() string { return f.name }

// Unsynced reports whether it is the kernel's affair when lines come to the disk: not of pipes and devices.
func (f *File) Unsynced() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used != nil && f.used.regular
}

// Write appends a line for each of recs, all of them with one write(2) unless they are more than 256 KiB. When it
// returns an error, n lines are whole in the file, and no other is, or will be before it is cut off or finished. A
// regular file does not wait; where others do, ctx ends the wait.
func (f *File) Write(ctx context.Context, recs []*flow.Record) (n int, err error) {
	f.writing.Lock()
	defer f.writing.Unlock()
	t, err := f.target()
	if err != nil {
		return 0, err
	}
	if err := f.mend(ctx, t); err != nil {
		return 0, err
	}
	buf, lines := f.buf[:0], 0
	for _, r := range recs {
		start := len(buf)
		buf = append(f.enc.Append(buf, r), '\n')
		f.buf = buf
		if len(buf) > f.limit && lines > 0 {
			w, err := f.write(ctx, buf[:start], lines)
			n += w
			if err != nil {
				return n, err
			}
			buf, lines = buf[:copy(buf, buf[start:])], 0
		}
		lines++
	}
	w, err := f.write(ctx, buf, lines)
	return n + w, err
}

// write writes b, which holds so many lines, and returns how many of them are whole in the file.
func (f *File) write(ctx context.Context, b []byte, lines int) (n int, err error) {
	if lines == 0 {
		return 0, nil
	}
	if f.house != nil {
		f.rotateIfDue(len(b))
	}
	t := f.current
	if f.cfg.Reserve != 0 {
		if err := f.leaveReserve(int64(len(b))); err != nil {
			f.Stats.Errors.Add(1)
			return 0, err
		}
	}
	w, err := t.write(ctx, b)
	f.Stats.Bytes.Add(uint64(w))
	if err == nil {
		f.wrote(t, w, lines)
		return lines, nil
	}
	f.Stats.Errors.Add(1)
	whole := bytes.LastIndexByte(b[:w], '\n') + 1
	n = bytes.Count(b[:whole], newline)
	f.wrote(t, w, n)
	if whole < w {
		end := whole + bytes.IndexByte(b[whole:], '\n') + 1
		t.tearLine(b[whole:w], b[w:end])
		// Cut at once, so that readers see whole lines while the disk is full; if that fails, the next Write tries again.
		if t.regular {
			_ = f.mend(ctx, t)
		}
	}
	return n, fmt.Errorf("write %s: %w", f.cfg.Path, withRemedy(err))
}

// wrote counts what t has taken: bytes, and whole lines among them.
func (f *File) wrote(t *target, bytes, lines int) {
	if f.records >= 0 {
		f.records += int64(lines)
	}
	delivered := f.delivered.Add(uint64(lines))
	if t.pipe != nil {
		t.pipe.wrote(bytes, delivered)
	}
}

// Acknowledged returns how many of the records that Write has delivered have arrived: in a file all of them, in a pipe
// those that its reader has taken.
func (f *File) Acknowledged() uint64 {
	if p := f.pipe.Load(); p != nil {
		return p.arrived()
	}
	return f.delivered.Load()
}

// leaveReserve returns ENOSPC if n more bytes would not leave the reserve free.
func (f *File) leaveReserve(n int64) error {
	now := time.Now()
	if f.room < n || now.Sub(f.askedAt) >= askFree {
		free, err := f.current.free()
		if err != nil {
			return fmt.Errorf("ask what is free for %s: %w", f.cfg.Path, err)
		}
		f.room, f.askedAt = free-int64(f.cfg.Reserve), now
	}
	if f.room < n {
		return fmt.Errorf("write %s: %w but the reserve of %s", f.cfg.Path, unix.ENOSPC, f.cfg.Reserve)
	}
	f.room -= n
	return nil
}

// mend cuts off or finishes the line that is torn at the end of t, if one is.
func (f *File) mend(ctx context.Context, t *target) error {
	m, err := t.mend(ctx)
	f.Stats.Bytes.Add(uint64(m.written))
	f.Stats.TornBytes.Add(uint64(m.cut))
	if t.pipe != nil && m.written > 0 {
		t.pipe.wrote(m.written, f.delivered.Load())
	}
	if m.refused != nil && !f.cutRefused {
		f.cutRefused = true
		f.log.Warn("the file cannot be cut (is it append-only?), so a line that is torn is finished, or closed off with a "+
			"newline; its record comes once more", zap.Error(m.refused))
	}
	if err != nil {
		f.Stats.Errors.Add(1)
		return fmt.Errorf("mend the last line of %s: %w", f.cfg.Path, withRemedy(err))
	}
	return nil
}

// target returns what to write to: what Reopen has opened, else what there was. A file that somebody has deleted is
// opened anew, as what is written to it would be lost.
func (f *File) target() (*target, error) {
	f.mu.Lock()
	next := f.next
	f.next = nil
	if next != nil {
		f.used = next
	}
	f.mu.Unlock()
	if next == nil && f.current.deleted() {
		t, err := f.open()
		if err != nil {
			return nil, err
		}
		f.log.Warn("file was deleted and is made anew; to rotate it, rename it and send SIGHUP")
		next = t
		f.mu.Lock()
		f.used = next
		f.mu.Unlock()
	}
	if next != nil {
		f.replace(next)
	}
	return f.current, nil
}

// replace makes next the current target and closes the old one.
func (f *File) replace(next *target) {
	old := f.current
	f.begin(next)
	var err error
	if old.regular {
		err = f.mend(context.Background(), old)
	}
	if err = errors.Join(err, old.close()); err != nil {
		f.log.Warn("close the old file", zap.Error(err))
	}
}

// begin makes t the current target.
func (f *File) begin(t *target) {
	f.current, f.records = t, 0
	if t.regular && t.info.Size() > 0 {
		f.records = -1
	}
	f.pipe.Store(t.pipe)
}

// Reopen opens the path anew, for when somebody has renamed the file: logrotate, say. The next Write goes there. On
// error the old file stays in use. If the path leads to the same file as before, nothing changes.
func (f *File) Reopen() error {
	if f.cfg.Path == Stdout {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.used == nil {
		return os.ErrClosed
	}
	last := f.used
	if f.next != nil {
		last = f.next
	}
	if info, err := os.Stat(f.cfg.Path); err == nil && os.SameFile(info, last.info) {
		return nil
	}
	t, err := f.open()
	if err != nil {
		return err
	}
	if f.next != nil {
		f.next.close()
	}
	f.next = t
	return nil
}

// open opens the path and mends the end of the file as far as it can.
func (f *File) open() (*target, error) {
	t, err := open(f.cfg.Path)
	if err != nil {
		return nil, err
	}
	if err := f.cfg.suits(t); err != nil {
		t.close()
		return nil, err
	}
	if t.lockRefused != nil && !f.unlocked {
		f.unlocked = true
		f.log.Warn("the file system refuses to lock the file; see that nobody else writes it", zap.Error(t.lockRefused))
	}
	before := f.Stats.TornBytes.Load()
	_ = f.mend(context.Background(), t) // else the next Write does, and returns the error
	if cut := f.Stats.TornBytes.Load() - before; cut > 0 {
		f.log.Warn("cut off the torn last line that an earlier crash has left", zap.Uint64("bytes", cut))
	}
	return t, nil
}

// Close finishes a line that was left torn, waits until the reader of a pipe has taken what is in it, both bounded by
// ctx, and closes the file. Reopen fails from then on.
func (f *File) Close(ctx context.Context) error {
	if f.house != nil {
		f.house.end(ctx)
	}
	f.mu.Lock()
	next := f.next
	f.next, f.used = nil, nil
	f.mu.Unlock()
	if next != nil {
		next.close()
	}
	f.writing.Lock()
	defer f.writing.Unlock()
	err := f.mend(ctx, f.current)
	if p := f.current.pipe; p != nil {
		p.drain(ctx)
	}
	return errors.Join(err, f.current.close())
}
