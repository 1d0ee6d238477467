// Package archive is the output that feeds an archive: it keeps records for months or years in files that answer as
// evidence. What an archive is stands in the package of that name outside; here is its configuration, and what the
// pipeline sees of it.
package archive

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/unit"
)

// Config is one archive output as the configuration file has it.
type Config struct {
	// Path is the archive's folder. Each host has a folder of its own in it.
	Path string `yaml:"path"`

	// Checkpoint is how often the flows that are still alive are put on record, and the archive is signed for.
	Checkpoint time.Duration `yaml:"checkpoint"`

	// SegmentRecords is how many records a segment has at most.
	SegmentRecords int `yaml:"segment_records"`

	// MaxAge, MinAge, MaxSize and Reserve say how long records are kept; see archive.Retention. 0: no bound.
	MaxAge  time.Duration `yaml:"max_age"`
	MinAge  time.Duration `yaml:"min_age"`
	MaxSize unit.Size     `yaml:"max_size"`
	Reserve unit.Size     `yaml:"reserve"`

	// Key is the file with the private key that signs checkpoints; "": they are not signed.
	Key string `yaml:"key"`

	Fsync       string `yaml:"fsync"`
	Compression string `yaml:"compression"`
	Fields      Fields `yaml:"fields"`

	// Upload has each file copied to another place. Unset: none is.
	Upload *Upload `yaml:"upload"`
}

// Upload is the block upload; see archive.Upload.
type Upload struct {
	Command []string      `yaml:"command"` // program and arguments; no shell reads them
	Timeout time.Duration `yaml:"timeout"` // of a run. Unset: 10m
}

// Fields says which columns stay empty.
type Fields struct {
	Drop []string `yaml:"drop"` // keys to leave out
}

const (
	minCheckpoint     = time.Minute
	maxCheckpoint     = 24 * time.Hour
	minSegmentRecords = 1000
	maxSegmentRecords = 4_000_000
	minMaxSize        = 16 << 20
	minTimeout        = time.Second
	maxTimeout        = 24 * time.Hour
)

var syncs = []string{archive.SyncInterval, archive.SyncAlways, archive.SyncNever}

// Defaults sets what differs from zero when it is not given.
func (c *Config) Defaults() {
	c.Checkpoint = time.Hour
	c.SegmentRecords = 1_000_000
	c.Fsync = archive.SyncInterval
	c.Compression = archive.Compressions[0]
}

// Defaults sets what differs from zero when it is not given.
func (u *Upload) Defaults() { u.Timeout = 10 * time.Minute }

// Validate reports each mistake with the key that it stands under.
func (c *Config) Validate(report func(field, msg string)) {
	switch {
	case archive.Works() != nil:
		report("path", archive.Works().Error()+"; send the records to a machine with another processor, by ipfix or kafka, or write JSON lines, with the output jsonl")
	case c.Path == "":
		report("path", "missing path; write the archive's folder, such as /var/lib/ctlogd/archive")
	case !filepath.IsAbs(c.Path):
		report("path", fmt.Sprintf("%q is no absolute path; write one such as /var/lib/ctlogd/archive", c.Path))
	}
	if c.Key != "" && !filepath.IsAbs(c.Key) {
		report("key", fmt.Sprintf("%q is no absolute path; write one such as /etc/ctlogd/archive.key", c.Key))
	}
	if c.Checkpoint < minCheckpoint || c.Checkpoint > maxCheckpoint {
		report("checkpoint", fmt.Sprintf("%s is out of range; write %s to %s", unit.FormatDuration(c.Checkpoint), unit.FormatDuration(minCheckpoint), unit.FormatDuration(maxCheckpoint)))
	}
	if c.SegmentRecords < minSegmentRecords || c.SegmentRecords > maxSegmentRecords {
		report("segment_records", fmt.Sprintf("%d is out of range; write a number from %d to %d", c.SegmentRecords,
			minSegmentRecords, maxSegmentRecords))
	}
	switch {
	case c.MaxAge < 0 || c.MaxAge != 0 && c.MaxAge < c.Checkpoint:
		report("max_age", fmt.Sprintf("%s is less than checkpoint; write %s or more", unit.FormatDuration(c.MaxAge), unit.FormatDuration(c.Checkpoint)))
	case c.MinAge < 0 || c.MaxAge != 0 && c.MinAge > c.MaxAge:
		report("min_age", fmt.Sprintf("%s is more than max_age, after which records are removed; write %s or less", unit.FormatDuration(c.MinAge), unit.FormatDuration(c.MaxAge)))
	}
	if c.MaxSize != 0 && c.MaxSize < minMaxSize {
		report("max_size", fmt.Sprintf("%s is too small; write %s or more", c.MaxSize, unit.Size(minMaxSize)))
	}
	if c.MinAge != 0 && c.MaxSize == 0 && c.Reserve == 0 {
		report("min_age", "min_age keeps records from max_size and reserve, and neither is set; write one of them, or leave out min_age")
	}
	if !slices.Contains(syncs, c.Fsync) {
		report("fsync", fmt.Sprintf("unknown %q; allowed are: %s", c.Fsync, strings.Join(syncs, ", ")))
	}
	if !slices.Contains(archive.Compressions, c.Compression) {
		report("compression", fmt.Sprintf("unknown %q; allowed are: %s", c.Compression, strings.Join(archive.Compressions, ", ")))
	}
	if err := archive.CheckDrop(c.Fields.Drop); err != nil {
		report("fields.drop", err.Error())
	}
	if u := c.Upload; u != nil {
		switch {
		case len(u.Command) == 0:
			report("upload.command", "missing command; write the program and its arguments as a list, such as [/etc/ctlogd/upload]")
		case !filepath.IsAbs(u.Command[0]):
			report("upload.command", fmt.Sprintf("%q is no absolute path; write one such as /etc/ctlogd/upload", u.Command[0]))
		}
		if u.Timeout < minTimeout || u.Timeout > maxTimeout {
			report("upload.timeout", fmt.Sprintf("%s is out of range; write %s to %s", unit.FormatDuration(u.Timeout), unit.FormatDuration(minTimeout), unit.FormatDuration(maxTimeout)))
		}
	}
}

// Name is the output's name.
func (c *Config) Name() string { return "archive:" + c.Path }

// Check tells whether the archive could be opened, as far as that can be said without touching it.
func (c *Config) Check() error {
	if c.Key != "" {
		if _, err := archive.ReadKeys(c.Key); err != nil {
			return err
		}
	}
	if c.Upload != nil {
		if err := unix.Access(c.Upload.Command[0], unix.X_OK); err != nil {
			return fmt.Errorf("upload: %s: %w; user %d has to be able to run it", c.Upload.Command[0], err, os.Geteuid())
		}
	}
	dir := c.Path
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return fmt.Errorf("open %s: it is no directory, which an archive is; write another path", c.Path)
	} else if os.IsNotExist(err) {
		if dir = filepath.Dir(dir); dir == c.Path {
			return err
		}
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("open %s: no directory %s; make it: install -d -m 0750 -o USER %s, USER being ctlogd's (user id %d)",
				c.Path, dir, dir, os.Geteuid())
		}
	} else if err != nil {
		return err
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("open %s: directory %s: %w; let user %d write to it", c.Path, dir, err, os.Geteuid())
	}
	return nil
}
