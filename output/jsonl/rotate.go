package jsonl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
)

const (
	// rotateRetry is how long a failed rotation is left alone; meanwhile the file grows past its size.
	rotateRetry = 10 * time.Second

	// spare is how many files more than keep may wait for the housekeeper. Then a rotation removes the oldest itself.
	spare = 16
)

// rotates reports whether ctlogd itself rotates the file.
func (c *Config) rotates() bool { return c.MaxSize != 0 || c.Rotate != 0 }

// due reports whether a file that was begun at since is to be rotated by its age: whether a multiple of Rotate, in UTC,
// lies between then and now.
func (c *Config) due(since, now time.Time) bool {
	return c.Rotate != 0 && !since.IsZero() && now.Truncate(c.Rotate).After(since)
}

// rotateIfDue begins a new file if n bytes more would be too many for the current one, or if that is old enough.
// Whatever goes wrong, there is a file to write to. The caller holds writing.
func (f *File) rotateIfDue(n int) {
	now := time.Now()
	size, err := f.current.size()
	if err != nil || !f.current.regular || now.Before(f.noRotateBefore) {
		return
	}
	if size == 0 {
		f.current.since = now
		return
	}
	if (f.cfg.MaxSize == 0 || size+int64(n) <= int64(f.cfg.MaxSize)) && !f.cfg.due(f.current.since, now) {
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
		if next, err = f.house.rotate(path); err == nil && f.records >= 0 {
			f.house.note(f.current.info, f.records)
		}
	} else {
		next, err = f.open() // somebody else has renamed it
	}
	if err != nil {
		f.noRotateBefore = now.Add(rotateRetry)
		f.Stats.RotationErrors.Add(1)
		f.log.Error("rotate; writing goes on in the old file", zap.Error(err), zap.Duration("next_try", rotateRetry))
		return
	}
	next.since = now
	f.Stats.Rotations.Add(1)
	f.used = next
	f.replace(next)
	f.house.wake()
}

// rotate renames path to path.1, after that to path.2, and so on, and returns a new, empty file at path. The new file is
// open before anything is renamed; on error the file at path is the one that was there. Files beyond keep are left to the
// housekeeper.
func (h *housekeeper) rotate(path string) (t *target, err error) {
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
	h.names.Lock()
	defer h.names.Unlock()
	if err := h.shift(path); err != nil {
		return t, err
	}
	first := rotated{n: 1}.path(path)
	if err := os.Rename(path, first); err != nil {
		return t, err
	}
	if err := os.Rename(fresh, path); err != nil {
		return t, errors.Join(err, os.Rename(first, path))
	}
	return t, nil
}

// drop removes the files of number n. Their records are counted if that takes no reading. names is held.
func (h *housekeeper) drop(path string, n int) error {
	for _, ext := range extensions {
		r := rotated{n: n, ext: ext}
		var err error
		if r.info, err = os.Lstat(r.path(path)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.Remove(r.path(path))
		}
		if err != nil {
			return err
		}
		records, _ := h.known(r.info)
		h.count(r, time.Time{}, records)
	}
	return nil
}

// shift renames the rotated files so that path.1 is free. Only those below the first free number move, so that rotations
// which fail again and again push no file out.
func (h *housekeeper) shift(path string) error {
	taken := func(n int) (yes bool, err error) {
		for _, ext := range extensions {
			at := rotated{n: n, ext: ext}.path(path)
			info, err := os.Lstat(at)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				return false, err
			case !info.Mode().IsRegular():
				return false, fmt.Errorf("%s is in the way; move it away", at)
			}
			yes = true
		}
		return yes, nil
	}
	free := 1
	for {
		yes, err := taken(free)
		if err != nil {
			return err
		}
		if !yes {
			break
		}
		if free++; free > h.keep+spare {
			if err := h.drop(path, free-1); err != nil {
				return err
			}
			free--
			break
		}
	}
	for n := free; n > 1; n-- {
		for _, ext := range extensions {
			err := os.Rename(rotated{n: n - 1, ext: ext}.path(path), rotated{n: n, ext: ext}.path(path))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
