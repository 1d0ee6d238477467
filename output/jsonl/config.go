package jsonl

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/unit"
)

// Stdout is the path that means standard output.
const Stdout = "-"

const (
	minMaxSize = 64 << 10
	maxKeep    = 10000
)

// Config is one jsonl output as the configuration file has it.
type Config struct {
	// Path is the file's path; Stdout; or that of a FIFO or a device.
	Path string `yaml:"path"`

	// MaxSize is the size that the file may reach before it is rotated: PATH becomes PATH.1, that becomes PATH.2, and
	// so on up to PATH.Keep, which goes. 0: no rotation.
	MaxSize unit.Size `yaml:"max_size"`
	Keep    int       `yaml:"keep"`

	// Reserve is what others shall find free on the file system: with less, a write fails as on a full disk. 0: nothing.
	Reserve unit.Size `yaml:"reserve"`

	Format string        `yaml:"format"` // one of format.Names; "" is the first
	Fields format.Fields `yaml:"fields"`
}

// Validate reports each mistake with the key that it stands under.
func (c *Config) Validate(report func(field, msg string)) {
	if c.Path == "" {
		report("path", `missing path; write the file's, such as /var/log/ctlogd/flows.jsonl, or "-" for standard output`)
	}
	switch {
	case c.MaxSize == 0 && c.Keep != 0:
		report("keep", "keep without max_size; write also the size at which the file is rotated, such as max_size: 1GiB")
	case c.MaxSize == 0:
	case c.Path == Stdout:
		report("max_size", `standard output is not rotated; leave out max_size and keep, or write a file's path`)
	case c.MaxSize < minMaxSize:
		report("max_size", fmt.Sprintf("%s is too small; write %s or more", c.MaxSize, unit.Size(minMaxSize)))
	}
	switch {
	case c.MaxSize != 0 && c.Keep == 0:
		report("keep", fmt.Sprintf("missing keep; write how many rotated files max_size leaves, 1 to %d", maxKeep))
	case c.Keep < 0 || c.Keep > maxKeep:
		report("keep", fmt.Sprintf("%d is out of range; write a number from 1 to %d", c.Keep, maxKeep))
	}
	if c.Reserve != 0 && c.Path == Stdout {
		report("reserve", "standard output is on no file system; leave out reserve, or write a file's path")
	}
	format.Validate(c.Format, c.Fields, report)
}

// Encoder returns a new encoder for the records of this output. o says the rest.
func (c *Config) Encoder(o format.Options) (format.Encoder, error) {
	o.Fields = c.Fields
	return format.New(c.Format, o)
}

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
	if err := unix.Access(c.Path, unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("open %s: %w; let user %d read and write it", c.Path, err, os.Geteuid())
	}
	if c.MaxSize == 0 {
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
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
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

// suits tells whether what was opened can have the keys that are set.
func (c *Config) suits(t *target) error {
	key := ""
	switch {
	case t.regular:
	case c.MaxSize != 0:
		key = "max_size"
	case c.Reserve != 0:
		key = "reserve"
	}
	if key == "" {
		return nil
	}
	return fmt.Errorf("open %s: is no regular file, which %s needs; leave out max_size, keep and reserve", c.Path, key)
}

// Name is the output's name.
func (c *Config) Name() string { return "jsonl:" + c.Path }
