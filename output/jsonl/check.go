package jsonl

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Check tells whether New could open the file, as far as that can be said without touching it: a running ctlogd may be
// writing it. The error says how to put things right.
func (c *Config) Check() error {
	if c.Path == Stdout {
		return nil
	}
	info, err := os.Stat(c.Path)
	switch {
	case os.IsNotExist(err):
		return checkDir(c.Path)
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("open %s: is a directory; write a file's path", c.Path)
	}
	mode := uint32(unix.R_OK | unix.W_OK)
	if !info.Mode().IsRegular() {
		mode = unix.W_OK
	}
	if err := unix.Access(c.Path, mode); err != nil {
		if err == unix.EACCES {
			return fmt.Errorf("open %s: %w; let user %d read and write it", c.Path, err, os.Geteuid())
		}
		return fmt.Errorf("open %s: %w", c.Path, withRemedy(err))
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	file, err := os.OpenFile(c.Path, os.O_RDWR|os.O_APPEND, 0) // access(2) does not know of a file system in trouble
	if err != nil {
		return withRemedy(err)
	}
	defer file.Close()
	if _, err := inspect(file); err != nil {
		return fmt.Errorf("open %s: %w", c.Path, err)
	}
	if !c.rotates() {
		return nil
	}
	path, err := filepath.EvalSymlinks(c.Path) // rotated files are beside the file itself
	if err != nil {
		return err
	}
	return checkDir(path)
}

// checkDir tells whether files can be made and renamed beside path.
func checkDir(path string) error {
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		return &missingDirError{path, dir}
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err == unix.EROFS {
		return fmt.Errorf("open %s: directory %s: %w", path, dir, withRemedy(err))
	} else if err != nil {
		return fmt.Errorf("open %s: directory %s: %w; let user %d write to it", path, dir, err, os.Geteuid())
	}
	return nil
}

// missingDirError is that of a file whose directory is not there. It is not made in silence: who may read it is not
// ctlogd's to choose.
type missingDirError struct{ path, dir string }

func (e *missingDirError) Error() string {
	return fmt.Sprintf("open %s: no directory %s; make it: install -d -m 0750 -o USER %s, USER being ctlogd's"+
		" (user id %d)", e.path, e.dir, e.dir, os.Geteuid())
}

func (e *missingDirError) Unwrap() error { return os.ErrNotExist }
