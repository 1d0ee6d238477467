package jsonl

import (
	"fmt"
	"slices"
	"strings"
	"time"

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
	// so on. 0: no rotation by size.
	MaxSize unit.Size `yaml:"max_size"`

	// Rotate begins a new file at each multiple of it, counted from midnight UTC. 0: no rotation by time.
	Rotate time.Duration `yaml:"rotate"`

	// Keep is how many rotated files there may be, MaxAge how old the last record of one may be. What is beyond is
	// removed. 0: no bound of this kind.
	Keep   int           `yaml:"keep"`
	MaxAge time.Duration `yaml:"max_age"`

	Compress string `yaml:"compress"` // one of Compressions, for rotated files; "" is none

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
	c.validateRotation(report)
	if c.Reserve != 0 && c.Path == Stdout {
		report("reserve", "standard output is on no file system; leave out reserve, or write a file's path")
	}
	format.Validate(c.Format, c.Fields, report)
}

// validateRotation reports what is wrong with the keys that rotate the file and bound what is kept.
func (c *Config) validateRotation(report func(field, msg string)) {
	if !c.rotates() {
		for _, k := range []struct {
			field string
			set   bool
		}{{"keep", c.Keep != 0}, {"max_age", c.MaxAge != 0}, {"compress", c.compresses()}} {
			if k.set {
				report(k.field, k.field+" without max_size or rotate; write also when the file is rotated, such as max_size: 1GiB or rotate: 24h")
			}
		}
		return
	}
	first := "max_size"
	if c.MaxSize == 0 {
		first = "rotate"
	}
	switch {
	case c.Path == Stdout:
		report(first, "standard output is not rotated; leave out max_size, rotate, keep, max_age and compress, or write a file's path")
	case c.MaxSize != 0 && c.MaxSize < minMaxSize:
		report("max_size", fmt.Sprintf("%s is too small; write %s or more", c.MaxSize, unit.Size(minMaxSize)))
	}
	if c.Rotate != 0 && (c.Rotate < time.Minute || day%c.Rotate != 0) {
		report("rotate", fmt.Sprintf("%s is no even part of a day; write 24h, 1h, or another of a minute or more", unit.FormatDuration(c.Rotate)))
	}
	switch {
	case c.Keep == 0 && c.MaxAge == 0:
		report("keep", fmt.Sprintf("missing keep; write how many rotated files %s leaves, 1 to %d, or max_age: for how long", first, maxKeep))
	case c.Keep < 0 || c.Keep > maxKeep:
		report("keep", fmt.Sprintf("%d is out of range; write a number from 1 to %d", c.Keep, maxKeep))
	}
	switch {
	case c.MaxAge < 0 || c.MaxAge != 0 && c.MaxAge < time.Minute:
		report("max_age", fmt.Sprintf("%s is out of range; write a minute or more", unit.FormatDuration(c.MaxAge)))
	case c.MaxAge != 0 && c.MaxAge < c.Rotate:
		report("max_age", fmt.Sprintf("%s is less than rotate, so files would be older when they are rotated; write %s or more", unit.FormatDuration(c.MaxAge), unit.FormatDuration(c.Rotate)))
	}
	if c.compresses() && !slices.Contains(Compressions, c.Compress) {
		report("compress", fmt.Sprintf("unknown compression %q; use %s", c.Compress, strings.Join(Compressions, ", ")))
	}
}

// compresses reports whether rotated files are compressed.
func (c *Config) compresses() bool { return c.Compress != "" && c.Compress != "none" }

// day is what Rotate has to divide.
const day = 24 * time.Hour

// Encoder returns a new encoder for the records of this output. o says the rest.
func (c *Config) Encoder(o format.Options) (format.Encoder, error) {
	o.Fields = c.Fields
	return format.New(c.Format, o)
}

// suits tells whether what was opened can have the keys that are set.
func (c *Config) suits(t *target) error {
	key := ""
	switch {
	case t.regular:
	case c.MaxSize != 0:
		key = "max_size"
	case c.Rotate != 0:
		key = "rotate"
	case c.Reserve != 0:
		key = "reserve"
	}
	if key == "" {
		return nil
	}
	return fmt.Errorf("open %s: is no regular file, which %s needs; leave out max_size, rotate, keep, max_age, compress and reserve", c.Path, key)
}

// Name is the output's name.
func (c *Config) Name() string { return "jsonl:" + c.Path }
