package jsonl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// fileMode leaves records, which say who talked to whom, to the owner and one group of readers.
const fileMode = 0o640

// maxLine is more than any line has: what ends in more bytes without a newline is no file of records.
const maxLine = 1 << 20

// target is something open for writing, and what is to be done about a line that is torn there.
type target struct {
	file    *os.File
	info    os.FileInfo // of the time when it was opened; nil for standard output
	regular bool

	torn int64  // regular: so many bytes at the end are to be cut off
	tail []byte // others: the rest of the line that was begun
}

// open opens path, locks a regular file and repairs its end, and returns how many bytes that has cut off.
func open(path string) (t *target, cut int64, err error) {
	if path == Stdout {
		return &target{file: os.Stdout}, 0, nil
	}
	for {
		if t, err = openUnlocked(path); err != nil || !t.regular {
			return t, 0, err
		}
		if err = t.lock(path); err != nil {
			break
		}
		// Another process may have rotated the file between open and lock.
		if info, statErr := os.Stat(path); statErr != nil || !os.SameFile(info, t.info) {
			t.close()
			continue
		}
		if cut, err = repair(t.file); err != nil {
			err = fmt.Errorf("open %s: %w", path, err)
		}
		break
	}
	if err != nil {
		t.close()
		return nil, 0, err
	}
	return t, cut, nil
}

func openUnlocked(path string) (*target, error) {
	flags := os.O_RDWR | os.O_APPEND | os.O_CREATE // read, to look at the last line
	if info, err := os.Stat(path); err == nil {
		switch mode := info.Mode(); {
		case mode.IsDir():
			return nil, fmt.Errorf("open %s: is a directory; write a file's path", path)
		case mode&fs.ModeNamedPipe != 0:
			// Reading as well, which Linux allows, makes that open does not wait for a reader, and that readers may come
			// and go: what nobody has read yet waits in the pipe.
			flags = os.O_RDWR
		case !mode.IsRegular():
			flags = os.O_WRONLY | unix.O_NOCTTY
		}
	}
	file, err := os.OpenFile(path, flags, fileMode)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := checkDir(path); err != nil {
			return nil, err
		}
		return nil, err
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w; let user %d read and write it", err, os.Geteuid())
	case err != nil:
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &target{file: file, info: info, regular: info.Mode().IsRegular()}, nil
}

// lock keeps other processes that lock away from a regular file, until it is closed.
func (t *target) lock(path string) error {
	err := unix.Flock(int(t.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		return fmt.Errorf("open %s: another output or another ctlogd writes it; give each its own file", path)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}

// write writes b and returns how much of it was taken. Short writes are completed. Where writing has to wait for a
// reader, ctx ends the wait (standard output, which other processes share, excepted).
func (t *target) write(ctx context.Context, b []byte) (int, error) {
	if !t.regular && t.info != nil {
		woken := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = t.file.SetWriteDeadline(time.Unix(1, 0)) // fails for devices, which do not wait
			close(woken)
		})
		defer func() {
			if !stop() {
				<-woken
				_ = t.file.SetWriteDeadline(time.Time{})
			}
		}()
	}
	n, err := t.file.Write(b)
	if err == nil {
		return n, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		err = pathErr.Err // the caller names the path
	}
	return n, err
}

// tear notes that of a line only head was written, and rest was not.
func (t *target) tear(head, rest []byte) {
	if t.regular {
		t.torn = int64(len(head))
		return
	}
	t.tail = append(t.tail[:0], rest...)
}

// mend cuts off or finishes a torn line, and returns how many bytes it has written and how many it has cut off.
func (t *target) mend(ctx context.Context) (written int, cut int64, err error) {
	if len(t.tail) > 0 {
		written, err = t.write(ctx, t.tail)
		t.tail = t.tail[written:]
		return written, 0, err
	}
	if t.torn == 0 {
		return 0, 0, nil
	}
	size, err := t.size()
	if err != nil {
		return 0, 0, err
	}
	// Nobody else appends, but somebody may have emptied the file meanwhile (logrotate's copytruncate).
	if size >= t.torn {
		if err := t.file.Truncate(size - t.torn); err != nil {
			return 0, 0, err
		}
		cut = t.torn
	}
	t.torn = 0
	return 0, cut, nil
}

// size returns the size of a regular file.
func (t *target) size() (int64, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(t.file.Fd()), &st)
	return st.Size, err
}

// free returns how many bytes the file system has left for those who are not root.
func (t *target) free() (int64, error) {
	var st unix.Statfs_t
	err := unix.Fstatfs(int(t.file.Fd()), &st)
	return int64(st.Bavail) * int64(st.Frsize), err
}

// deleted tells whether a regular file has no name any more.
func (t *target) deleted() bool {
	var st unix.Stat_t
	return t.regular && unix.Fstat(int(t.file.Fd()), &st) == nil && st.Nlink == 0
}

func (t *target) close() error {
	if t.info == nil {
		return nil // standard output is not ours
	}
	return t.file.Close()
}

var errNotRecords = errors.New("its last line is no JSON object, so it is not ctlogd's; " +
	"write another path, or move the file away")

// repair makes file end with a whole line, and returns how many bytes it has cut off for that. A line that lacks but
// its newline gets it. The zeros that some file systems leave at the end after a power failure go too.
func repair(file *os.File) (cut int64, err error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	end := size
	block := make([]byte, 64<<10)
	for end > 0 {
		b := block[:min(end, int64(len(block)))]
		if _, err := file.ReadAt(b, end-int64(len(b))); err != nil {
			return 0, err
		}
		rest := bytes.TrimRight(b, "\x00")
		end -= int64(len(b) - len(rest))
		if len(rest) > 0 {
			break
		}
	}

	tail := make([]byte, min(end, maxLine))
	if _, err := file.ReadAt(tail, end-int64(len(tail))); err != nil && len(tail) > 0 {
		return 0, err
	}
	line := tail[bytes.LastIndexByte(tail, '\n')+1:]
	whole := false
	if len(line) > 0 {
		// Somebody else's file, named by mistake, is not cut. (A line may begin with zeros after a power failure, too.)
		if len(line) == maxLine || line[0] != '{' && line[0] != 0 {
			return 0, errNotRecords
		}
		if whole = json.Valid(line); !whole {
			end -= int64(len(line))
		}
	}
	if end < size {
		if err := file.Truncate(end); err != nil {
			return 0, fmt.Errorf("cut off the torn last line: %w", err)
		}
	}
	if whole {
		if _, err := file.Write(newline); err != nil {
			return 0, fmt.Errorf("finish the last line: %w", err)
		}
	}
	return size - end, nil
}

// rotate renames path to path.1, after that to path.2, and so on, at most to path.keep, and returns a new, empty file
// at path. The new file is open before anything is renamed; on error the file at path is the one that was there.
func rotate(path string, keep int) (t *target, err error) {
	fresh := path + ".new"
	t, err = openUnlocked(fresh)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.close()
			t = nil
		}
	}()
	if err := t.lock(fresh); err != nil {
		return t, err
	}
	// A crash between the steps below may have left one, empty; any other is not ours.
	if t.info.Size() != 0 || !t.regular {
		return t, fmt.Errorf("%s is in the way; move it away", fresh)
	}
	defer func() {
		if err != nil {
			os.Remove(fresh)
		}
	}()

	nth := func(n int) string { return path + "." + strconv.Itoa(n) }
	// Only those below the first free number move, so that rotations which fail again and again push no file out.
	free := 1
	for free < keep {
		if _, err := os.Lstat(nth(free)); errors.Is(err, fs.ErrNotExist) {
			break
		}
		free++
	}
	for n := free; n > 1; n-- {
		if err := os.Rename(nth(n-1), nth(n)); err != nil {
			return t, err
		}
	}
	if err := os.Rename(path, nth(1)); err != nil {
		return t, err
	}
	if err := os.Rename(fresh, path); err != nil {
		return t, errors.Join(err, os.Rename(nth(1), path))
	}
	return t, nil
}
