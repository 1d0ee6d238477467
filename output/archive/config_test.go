package archive

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
)

func valid() Config {
	c := Config{Path: "/var/lib/ctlogd/archive"}
	c.Defaults()
	return c
}

func TestValidate(t *testing.T) {
	if archive.Works() != nil {
		cfg := valid()
		var got []string
		cfg.Validate(func(field, msg string) { got = append(got, field+": "+msg) })
		if len(got) != 1 || !strings.HasPrefix(got[0], "path: this processor is big-endian") {
			t.Errorf("on a big-endian machine: %q", got)
		}
		return
	}
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(*Config) {}, ""},
		{func(c *Config) { c.MaxAge, c.MinAge, c.MaxSize = 365*24*time.Hour, 30*24*time.Hour, 1<<30 }, ""},
		{func(c *Config) { c.Upload = &Upload{[]string{"/bin/true", "-x"}, time.Minute} }, ""},
		{func(c *Config) { c.Upload = &Upload{nil, time.Minute} }, "upload.command: missing command"},
		{func(c *Config) { c.Upload = &Upload{[]string{"rclone"}, time.Minute} }, "upload.command: \"rclone\" is no absolute path"},
		{func(c *Config) { c.Upload = &Upload{[]string{"/bin/true"}, time.Millisecond} }, "upload.timeout: 1ms is out of range"},
		{func(c *Config) { c.Fields.Drop = []string{"dst_ip", "dst_port"} }, ""},
		{func(c *Config) { c.Path = "" }, "path: missing path"},
		{func(c *Config) { c.Path = "archive" }, "path: \"archive\" is no absolute path"},
		{func(c *Config) { c.Checkpoint = time.Second }, "checkpoint: 1s is out of range"},
		{func(c *Config) { c.SegmentRecords = 1 }, "segment_records: 1 is out of range"},
		{func(c *Config) { c.MaxAge = time.Minute }, "max_age: 1m is less than checkpoint"},
		{func(c *Config) { c.MaxAge, c.MinAge, c.Reserve = 2*time.Hour, 3*time.Hour, 1<<30 }, "min_age: 3h is more than max_age"},
		{func(c *Config) { c.MinAge = 3 * time.Hour }, "min_age: min_age keeps records from max_size and reserve"},
		{func(c *Config) { c.MaxSize = 1 }, "max_size: 1 is too small"},
		{func(c *Config) { c.Fsync = "x" }, "fsync: unknown \"x\""},
		{func(c *Config) { c.Compression = "gzip" }, "compression: unknown \"gzip\""},
		{func(c *Config) { c.Fields.Drop = []string{"src_ip"} }, "fields.drop: an archive cannot drop \"src_ip\""},
	} {
		cfg := valid()
		c.change(&cfg)
		var got []string
		cfg.Validate(func(field, msg string) { got = append(got, field+": "+msg) })
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], c.want)) {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	c := Config{Path: filepath.Join(dir, "archive")}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	c.Upload = &Upload{Command: []string{filepath.Join(dir, "none")}}
	if err := c.Check(); err == nil || !strings.Contains(err.Error(), "has to be able to run it") {
		t.Errorf("without the command of upload: %v", err)
	}
	c.Upload = nil
	c.Path = filepath.Join(dir, "a", "b")
	if err := c.Check(); err == nil || !strings.Contains(err.Error(), "install -d") {
		t.Errorf("without a directory: %v", err)
	}
	c.Path = dir
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("checking has left %v", entries)
	}
	c.Path = filepath.Join(dir, "file")
	if err := os.WriteFile(c.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(); err == nil || !strings.Contains(err.Error(), "no directory, which an archive is") {
		t.Errorf("a file: %v", err)
	}
}
