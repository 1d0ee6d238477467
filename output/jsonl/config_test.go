package jsonl

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/output/format"
)

func TestConfig(t *testing.T) {
	const good = `
path: /var/log/ctlogd/flows.jsonl
max_size: 1GiB
keep: 7
reserve: 2GiB
format: flat
fields: {drop: [dst_ip, dst_port]}
`
	dec := yaml.NewDecoder(strings.NewReader(good))
	dec.KnownFields(true)
	var got Config
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := Config{
		Path: "/var/log/ctlogd/flows.jsonl", MaxSize: 1 << 30, Keep: 7, Reserve: 2 << 30, Format: "flat",
		Fields: format.Fields{Drop: []string{"dst_ip", "dst_port"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, c := range []Config{got, {Path: "-"}, {Path: "f", MaxSize: 64 << 10, Keep: 1, Compress: "none"}, {Path: "f", Compress: "none"},
		{Path: "f", Rotate: 24 * time.Hour, MaxAge: 180 * 24 * time.Hour, Compress: "zstd"},
		{Path: "f", Rotate: time.Hour, MaxSize: 1 << 30, Keep: 24, MaxAge: time.Hour, Compress: "gzip"}} {
		c.Validate(func(field, msg string) { t.Errorf("%+v: %s: %s", c, field, msg) })
	}
}

func TestConfigValidate(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want []string
	}{
		{Config{}, []string{
			`path: missing path; write the file's, such as /var/log/ctlogd/flows.jsonl, or "-" for standard output`,
		}},
		{Config{Path: "f", MaxSize: 1 << 20}, []string{
			"keep: missing keep; write how many rotated files max_size leaves, 1 to 10000, or max_age: for how long",
		}},
		{Config{Path: "f", Keep: 3}, []string{
			"keep: keep without max_size or rotate; write also when the file is rotated, such as max_size: 1GiB or rotate: 24h",
		}},
		{Config{Path: "f", MaxSize: 1 << 20, Keep: -1}, []string{
			"keep: -1 is out of range; write a number from 1 to 10000",
		}},
		{Config{Path: "f", MaxSize: 1024, Keep: 10001}, []string{
			"max_size: 1KiB is too small; write 64KiB or more",
			"keep: 10001 is out of range; write a number from 1 to 10000",
		}},
		{Config{Path: "-", MaxSize: 1 << 20, Keep: 1}, []string{
			"max_size: standard output is not rotated; leave out max_size, rotate, keep, max_age and compress, or write a file's path",
		}},
		{Config{Path: "f", MaxAge: time.Hour, Compress: "zstd"}, []string{
			"max_age: max_age without max_size or rotate; write also when the file is rotated, such as max_size: 1GiB or rotate: 24h",
			"compress: compress without max_size or rotate; write also when the file is rotated, such as max_size: 1GiB or rotate: 24h",
		}},
		{Config{Path: "-", Rotate: time.Hour, Keep: 1}, []string{
			"rotate: standard output is not rotated; leave out max_size, rotate, keep, max_age and compress, or write a file's path",
		}},
		{Config{Path: "f", Rotate: 7 * time.Hour, MaxAge: -1, Compress: "lz4"}, []string{
			"rotate: 7h is no even part of a day; write 24h, 1h, or another of a minute or more",
			"max_age: -1ns is out of range; write a minute or more",
			`compress: unknown compression "lz4"; use none, gzip, zstd`,
		}},
		{Config{Path: "f", Rotate: 24 * time.Hour, MaxAge: time.Hour}, []string{
			"max_age: 1h is less than rotate, so files would be older when they are rotated; write 1d or more",
		}},
		{Config{Path: "f", Rotate: 90 * time.Second}, []string{
			"keep: missing keep; write how many rotated files rotate leaves, 1 to 10000, or max_age: for how long",
		}},
		{Config{Path: "-", Reserve: 1 << 20}, []string{
			"reserve: standard output is on no file system; leave out reserve, or write a file's path",
		}},
		{Config{Path: "f", Format: "xml", Fields: format.Fields{Drop: []string{"time"}}}, []string{
			`format: unknown format "xml"; allowed are: flat, ecs, ocsf, cim, ulogd2, cef`,
			`fields.drop: cannot drop "time"; allowed are: host, flow_id, start, end, duration_ms, `,
		}},
	} {
		var got []string
		tt.cfg.Validate(func(field, msg string) {
			if field == "fields.drop" {
				msg, _, _ = strings.Cut(msg, "proto,") // the list of all keys
			}
			got = append(got, field+": "+msg)
		})
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.cfg, diff)
		}
	}
}

// TestConfigCheck runs Check beside a File that writes: it neither disturbs nor is disturbed.
func TestConfigCheck(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	torn := []byte(`{"torn`)
	if err := os.WriteFile(path, torn, 0o600); err != nil {
		t.Fatal(err)
	}
	passwd := filepath.Join(dir, "passwd")
	if err := os.WriteFile(passwd, []byte("root:x:0:0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Config{
		{Path: "-"}, {Path: path}, {Path: path, MaxSize: 1, Keep: 1}, {Path: filepath.Join(dir, "new")}, {Path: "/dev/null"},
	} {
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", c.Path, err)
		}
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, torn) {
		t.Errorf("the file was changed: %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("a file was made")
	}

	for _, tt := range []struct{ path, want string }{
		{dir, fmt.Sprintf("open %s: is a directory; write a file's path", dir)},
		{passwd, "open " + passwd + ": " + errNotRecords.Error()},
		{dir + "/no/f", fmt.Sprintf(
			"open %s/no/f: no directory %s/no; make it: install -d -m 0750 -o USER %s/no, USER being ctlogd's (user id %d)",
			dir, dir, dir, os.Geteuid())},
	} {
		c := Config{Path: tt.path}
		err := c.Check()
		if err == nil {
			t.Errorf("%s: no error", tt.path)
			continue
		}
		if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestConfigCheckReadOnly(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, dir, unix.MS_RDONLY)
	c := Config{Path: dir + "/f"}
	want := fmt.Sprintf("open %s: directory %s: read-only file system; mount it read-write; if the kernel made it "+
		"read-only after an error, dmesg tells which", c.Path, dir)
	if err := c.Check(); err == nil || err.Error() != want {
		t.Errorf("Check: %v, want %s", err, want)
	}
	if _, err := New(c, nil, nil); err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("New: %v", err)
	}
}
