package jsonl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// fileMode leaves records, which say who talked to whom, to the owner and one group of readers.
const fileMode = 0o640

// target is something open for writing, and what is to be done about a line that is torn there.
type target struct {
	file    *os.File
	info    os.FileInfo // of the time when it was opened; nil for standard output
	regular bool
	since   time.Time // regular: when its first record was made, as far as that is known
	pipe    *arrivals // of a pipe; nil for others

	lockRefused error // why a regular file could not be locked; nil if it is

	tear
}

// open opens path, locks a regular file and looks at its end.
func open(path string) (t *target, err error) {
	if path == Stdout {
		t := &target{file: os.Stdout}
		if info, err := os.Stdout.Stat(); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
			t.pipe, _ = newArrivals(os.Stdout)
		}
		return t, nil
	}
	for {
		if t, err = openUnlocked(path); err != nil || !t.regular {
			return t, err
		}
		if err = t.lock(path); err != nil {
			break
		}
		// Another process may have rotated the file between open and lock.
		if info, statErr := os.Stat(path); statErr != nil || !os.SameFile(info, t.info) {
			t.close()
			continue
		}
		if t.tear, err = inspect(t.file); err == nil {
			t.since, err = firstTime(path, t.file)
		}
		if err != nil {
			err = fmt.Errorf("open %s: %w", path, withRemedy(err))
		}
		break
	}
	if err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func openUnlocked(path string) (*target, error) {
	flags := os.O_RDWR | os.O_APPEND | os.O_CREATE // read, to look at the last line
	fifo := false
	if info, err := os.Stat(path); err == nil {
		switch mode := info.Mode(); {
		case mode.IsDir():
			return nil, fmt.Errorf("open %s: is a directory; write a file's path", path)
		case mode&fs.ModeNamedPipe != 0:
			// Not for reading as well, which Linux allows: then nobody could tell whether there is a reader.
			flags, fifo = os.O_WRONLY|unix.O_NONBLOCK, true
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
	case fifo && errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("open %s: %w", path, errNoReader)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("%w; let user %d read and write it", err, os.Geteuid())
	case err != nil:
		return nil, withRemedy(err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	t := &target{file: file, info: info, regular: info.Mode().IsRegular()}
	if fifo {
		if t.pipe, err = newArrivals(file); err != nil {
			file.Close()
			return nil, err
		}
	}
	return t, nil
}

// lock keeps other processes that lock away from a regular file, until it is closed. It is a courtesy: a file system that
// has no locks (EBADF, ENOLCK, EOPNOTSUPP, ENOSYS on NFS and others) does not keep records from being written.
func (t *target) lock(path string) error {
	err := unix.Flock(int(t.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		return fmt.Errorf("open %s: another output or another ctlogd writes it; give each its own file", path)
	}
	t.lockRefused = err
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
	if t.pipe != nil && errors.Is(err, unix.EPIPE) {
		err = errNoReader
	}
	return n, err
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

// remedies say what to do about errors of files, where the error does not.
var remedies = []struct {
	err    unix.Errno
	remedy string
}{
	{unix.EROFS, "mount it read-write; if the kernel made it read-only after an error, dmesg tells which"},
	{unix.ENOSPC, "make room: df and df -i tell what is short"},
	{unix.EDQUOT, "raise the user's quota on the file system"},
	{unix.EFBIG, "set max_size, or raise the limit on the size of files (LimitFSIZE=, ulimit -f)"},
	{unix.EIO, "the disk fails: see dmesg"},
	{unix.EPERM, "see lsattr: an immutable file (chattr +i) cannot be written"},
}

// withRemedy appends what to do about err, if there is something to say.
func withRemedy(err error) error {
	for _, r := range remedies {
		if errors.Is(err, r.err) {
			return fmt.Errorf("%w; %s", err, r.remedy)
		}
	}
	return err
}
