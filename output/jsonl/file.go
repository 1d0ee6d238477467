package jsonl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

	// rotateRetry is how long a failed rotation is left alone; meanwhile the file grows past its size.
	rotateRetry = 10 * time.Second

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
}

// File is an output that writes one line for each record. Write and Close are for one goroutine, Reopen for any.
type File struct {
	Stats Stats

	cfg   Config
	name  string
	enc   format.Encoder
	log   *zap.Logger
	limit int // of one write(2), in bytes

	buf            []byte
	current        *target
	noRotateBefore time.Time

	room    int64 // what may be written until the file system is asked again
	askedAt time.Time

	mu   sync.Mutex
	used *target // is current, for Reopen to compare with
	next *target // opened by Reopen, current from the next Write on; or nil
}

// New opens the file of cfg, and makes it if there is none, with mode 0640 less the umask. It repairs the end of the
// file first. A nil log logs nothing.
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
	if err := cfg.suits(t); err != nil {
		t.close()
		return nil, err
	}
	f.current, f.used = t, t
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
	t, err := f.target()
	if err != nil {
		return 0, err
	}
	if err := f.mend(ctx, t); err != nil {
		return 0, err
	}
	buf, lines := f.buf[:0], 0
	flush := func(b []byte) error {
		w, err := f.write(ctx, b, lines)
		n += w
		return err
	}
	for _, r := range recs {
		start := len(buf)
		buf = append(f.enc.Append(buf, r), '\n')
		f.buf = buf
		if len(buf) > f.limit && lines > 0 {
			if err := flush(buf[:start]); err != nil {
				return n, err
			}
			buf, lines = buf[:copy(buf, buf[start:])], 0
		}
		lines++
	}
	err = flush(buf)
	return n, err
}

// write writes b, which holds so many lines, and returns how many of them are whole in the file.
func (f *File) write(ctx context.Context, b []byte, lines int) (n int, err error) {
	if lines == 0 {
		return 0, nil
	}
	if f.cfg.MaxSize != 0 {
		f.rotate(len(b))
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
		return lines, nil
	}
	f.Stats.Errors.Add(1)
	whole := bytes.LastIndexByte(b[:w], '\n') + 1
	if whole < w {
		end := whole + bytes.IndexByte(b[whole:], '\n') + 1
		t.tear(b[whole:w], b[w:end])
		// Cut at once, so that readers see whole lines while the disk is full; if that fails, the next Write tries again.
		if t.regular {
			_ = f.mend(ctx, t)
		}
	}
	return bytes.Count(b[:whole], newline), fmt.Errorf("write %s: %w", f.cfg.Path, err)
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

var newline = []byte{'\n'}

// mend cuts off or finishes the line that an earlier write to t left torn, if one did.
func (f *File) mend(ctx context.Context, t *target) error {
	w, cut, err := t.mend(ctx)
	f.Stats.Bytes.Add(uint64(w))
	f.Stats.TornBytes.Add(uint64(cut))
	if err != nil {
		f.Stats.Errors.Add(1)
		return fmt.Errorf("mend the last line of %s: %w", f.cfg.Path, err)
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
	f.current = next
	var err error
	if old.regular {
		err = f.mend(context.Background(), old)
	}
	if err = errors.Join(err, old.close()); err != nil {
		f.log.Warn("close the old file", zap.Error(err))
	}
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
	if err := f.cfg.suits(t); err != nil {
		t.close()
		return err
	}
	if f.next != nil {
		f.next.close()
	}
	f.next = t
	return nil
}

// open opens the path and repairs the end of the file.
func (f *File) open() (*target, error) {
	t, cut, err := open(f.cfg.Path)
	if err != nil {
		return nil, err
	}
	if cut > 0 {
		f.Stats.TornBytes.Add(uint64(cut))
		f.log.Warn("cut off the torn last line that an earlier crash has left", zap.Int64("bytes", cut))
	}
	return t, nil
}

// rotate makes room for n bytes: it begins a new file if the current one would grow past its size. Whatever goes wrong,
// there is a file to write to.
func (f *File) rotate(n int) {
	size, err := f.current.size()
	if err != nil || size == 0 || size+int64(n) <= int64(f.cfg.MaxSize) || time.Now().Before(f.noRotateBefore) {
		return
	}
	f.mu.Lock() // Reopen must not see the path between two renames
	defer f.mu.Unlock()
	if f.next != nil {
		return // it is at the path now; the next Write goes there
	}
	path, err := filepath.EvalSymlinks(f.cfg.Path) // the file is renamed, not a link to it
	if err != nil {
		path = f.cfg.Path
	}
	var next *target
	if info, statErr := os.Stat(path); statErr == nil && os.SameFile(info, f.current.info) {
		next, err = rotate(path, f.cfg.Keep)
	} else {
		next, err = f.open() // somebody else has renamed it
	}
	if err != nil {
		f.noRotateBefore = time.Now().Add(rotateRetry)
		f.Stats.RotationErrors.Add(1)
		f.log.Error("rotate; writing goes on in the old file", zap.Error(err), zap.Duration("next_try", rotateRetry))
		return
	}
	f.Stats.Rotations.Add(1)
	f.used = next
	f.replace(next)
}

// Close finishes a line that was left torn, bounded by ctx, and closes the file. Reopen fails from then on.
func (f *File) Close(ctx context.Context) error {
	f.mu.Lock()
	next := f.next
	f.next, f.used = nil, nil
	f.mu.Unlock()
	if next != nil {
		next.close()
	}
	return errors.Join(f.mend(ctx, f.current), f.current.close())
}
