package spool

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctlogd/ctlogd/unit"
)

// What becomes of records when the spool is full.
const (
	// DropNewest refuses them, and is the default: what was once accepted is delivered. The log loses one stretch of
	// time, which begins when the spool filled up, and nobody can push evidence out of the spool with a flood of flows.
	DropNewest = "drop_newest"
	// DropOldest makes room by removing the oldest segments, for those to whom recent records are worth more.
	DropOldest = "drop_oldest"
)

// When what was appended is forced from the kernel to the disk. It matters when the machine loses power or its kernel
// panics; the end of the process, however sudden, loses nothing that Append has returned for.
const (
	SyncInterval = "interval" // once a second while there is something to force, the default
	SyncAlways   = "always"   // before Append returns
	SyncNever    = "never"    // when the kernel likes
)

var (
	whenFull = []string{DropNewest, DropOldest} // the default first
	fsync    = []string{SyncInterval, SyncAlways, SyncNever}
)

const (
	minMaxSize     = 4 << 20
	defaultMaxSize = 1 << 30

	minSegment = 1 << 20
	maxSegment = 64 << 20
)

// Config is an output's spool as the configuration file has it.
type Config struct {
	// Path is a directory of the spool's own. It is made if it is not there.
	Path string `yaml:"path"`

	// MaxSize bounds the size of the files in Path.
	MaxSize unit.Size `yaml:"max_size"`

	WhenFull string `yaml:"when_full"` // DropNewest or DropOldest
	Fsync    string `yaml:"fsync"`     // SyncInterval, SyncAlways or SyncNever
}

// Defaults sets what is unset, except for Path, which has no default.
func (c *Config) Defaults() {
	if c.MaxSize == 0 {
		c.MaxSize = defaultMaxSize
	}
	if c.WhenFull == "" {
		c.WhenFull = whenFull[0]
	}
	if c.Fsync == "" {
		c.Fsync = fsync[0]
	}
}

// Validate reports each mistake with the key that it stands under. What is unset is none, except for Path.
func (c *Config) Validate(report func(field, msg string)) {
	if c.Path == "" {
		report("path", "missing path; write a directory of the spool's own, such as /var/lib/ctlogd/spool/NAME")
	}
	if c.MaxSize != 0 && c.MaxSize < minMaxSize {
		report("max_size", fmt.Sprintf("%s is too small; write %s or more", c.MaxSize, unit.Size(minMaxSize)))
	}
	oneOf := func(field, value string, allowed []string) {
		if value != "" && !slices.Contains(allowed, value) {
			report(field, fmt.Sprintf("unknown policy %q; allowed are: %s", value, strings.Join(allowed, ", ")))
		}
	}
	oneOf("when_full", c.WhenFull, whenFull)
	oneOf("fsync", c.Fsync, fsync)
}

// segmentSize is the size at which a segment is closed and the next one begun: small enough that removing the oldest
// one frees little more than is needed, large enough that a spool is not thousands of files.
func (c *Config) segmentSize() int64 {
	return min(max(int64(c.MaxSize)/16, minSegment), maxSegment)
}
