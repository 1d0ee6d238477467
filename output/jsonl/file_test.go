package jsonl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
)

var (
	_ deliver.Output   = (*File)(nil)
	_ deliver.Reopener = (*File)(nil)
)

var ctx = context.Background()

// records returns n records whose ids are first, first+1, ...
func records(first, n int) []*flow.Record {
	recs := make([]*flow.Record, n)
	for i := range recs {
		recs[i] = &flow.Record{
			Event: flow.EventNew, Has: flow.HasID | flow.HasOrig | flow.HasReply, Received: 1, ID: uint32(first + i),
			Orig: flow.Tuple{Proto: flow.TCP}, Reply: flow.Tuple{Proto: flow.TCP},
		}
	}
	return recs
}

// ids returns the ids of the records in files, in order, and fails unless every line is a whole record.
func ids(t testing.TB, files ...string) []int {
	t.Helper()
	var all []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 0 && b[len(b)-1] != '\n' {
			t.Fatalf("%s ends in half a line: %q", f, b[max(0, len(b)-200):])
		}
		all = append(all, b...)
	}
	return parseIDs(t, all)
}

func parseIDs(t testing.TB, b []byte) (ids []int) {
	t.Helper()
	for line := range bytes.Lines(b) {
		var v struct {
			ID *int `json:"ct_id"`
		}
		if err := json.Unmarshal(line, &v); err != nil || v.ID == nil {
			t.Fatalf("line %d: %v: %q", len(ids)+1, err, line)
		}
		ids = append(ids, *v.ID)
	}
	return ids
}

// await waits until something is so.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

func upTo(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

func wantIDs(t testing.TB, want, got []int) {
	t.Helper()
	if !slices.Equal(want, got) {
		t.Fatalf("records (-want +got):\n%s", cmp.Diff(want, got))
	}
}

func newFile(t testing.TB, cfg Config, log *zap.Logger) *File {
	t.Helper()
	enc, err := cfg.Encoder(format.Options{Host: "gw1"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(cfg, enc, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if f.house != nil {
			f.house.end(ctx)
		}
		f.current.close()
	})
	return f
}

func write(t testing.TB, f *File, recs []*flow.Record) {
	t.Helper()
	if n, err := f.Write(ctx, recs); n != len(recs) || err != nil {
		t.Fatalf("Write = %d, %v, want %d", n, err, len(recs))
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.jsonl")
	f := newFile(t, Config{Path: path, Fields: format.Fields{Drop: []string{"host"}}}, nil)
	if got, want := f.Name(), "jsonl:"+path; got != want {
		t.Errorf("Name = %q, want %q", got, want)
	}
	write(t, f, records(0, 3))
	write(t, f, nil)
	write(t, f, records(3, 20000)) // several MiB
	if err := f.Close(ctx); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, upTo(20003), ids(t, path))

	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("host")) {
		t.Error("a dropped key was written")
	}
	if got := f.Stats.Bytes.Load(); got != uint64(len(b)) {
		t.Errorf("Bytes = %d, want %d", got, len(b))
	}
	if c := cap(f.buf); c > 4*maxWrite {
		t.Errorf("the buffer has grown to %d bytes", c)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode(); got&^fileMode != 0 {
		t.Errorf("mode %v, want %v or less", got, os.FileMode(fileMode))
	}

	// What is there is appended to.
	f = newFile(t, Config{Path: path}, nil)
	write(t, f, records(20003, 1))
	wantIDs(t, upTo(20004), ids(t, path))
}

func TestWriteAllocs(t *testing.T) {
	f := newFile(t, Config{Path: filepath.Join(t.TempDir(), "f"), MaxSize: 1 << 30, Keep: 1, Reserve: 1}, nil)
	f.house.end(ctx) // its own goroutine's are not counted
	recs := records(0, 100)
	write(t, f, recs)
	if n := testing.AllocsPerRun(20, func() { write(t, f, recs) }); n != 0 {
		t.Errorf("%v allocations a Write of 100 records", n)
	}
}

func TestNewErrors(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	newFile(t, Config{Path: at("taken")}, nil)
	for name, content := range map[string]string{"passwd": "root:x:0:0", "note": "\n{}\nremember the milk",
		"whole": "{}\nremember the milk\n", "yaml": "outputs:\n  jsonl: [{path: \"-\"}]\n",
		"shadow": "root:!:19000:0:99999:7:::\nctlogd:!:20000::::::\n", "pretty": "{\n  \"a\": 1\n}\n",
		"torn last": "milk\n{\"v\":1"} {
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("long"), bytes.Repeat([]byte("{"), 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fifo", "unread"} {
		if err := unix.Mkfifo(at(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	readFIFO(t, at("fifo"))
	notRecords := "its last line is no record, so it is not ctlogd's; write another path, or move the file away"
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{Path: at("missing/f")}, fmt.Sprintf(
			"open %s: no directory %s; make it: install -d -m 0750 -o USER %s, USER being ctlogd's (user id %d)",
			at("missing/f"), at("missing"), at("missing"), os.Geteuid())},
		{Config{Path: dir}, "open " + dir + ": is a directory; write a file's path"},
		{Config{Path: at("taken")},
			"open " + at("taken") + ": another output or another ctlogd writes it; give each its own file"},
		{Config{Path: at("passwd")}, "open " + at("passwd") + ": " + notRecords},
		{Config{Path: at("note")}, "open " + at("note") + ": " + notRecords},
		{Config{Path: at("long")}, "open " + at("long") + ": " + notRecords},
		{Config{Path: at("whole")}, "open " + at("whole") + ": " + notRecords},
		{Config{Path: at("yaml")}, "open " + at("yaml") + ": " + notRecords},
		{Config{Path: at("shadow")}, "open " + at("shadow") + ": " + notRecords},
		{Config{Path: at("pretty")}, "open " + at("pretty") + ": " + notRecords},
		{Config{Path: at("torn last")}, "open " + at("torn last") + ": " + notRecords},
		{Config{Path: at("fifo"), MaxSize: 1 << 20, Keep: 1},
			"open " + at("fifo") + ": is no regular file, which max_size needs; leave out max_size, rotate, keep, max_age, compress and reserve"},
		{Config{Path: at("unread")}, "open " + at("unread") + ": nobody reads the FIFO; start its reader"},
		{Config{Path: "/dev/null", Reserve: 1},
			"open /dev/null: is no regular file, which reserve needs; leave out max_size, rotate, keep, max_age, compress and reserve"},
	} {
		before, _ := os.Stat(tt.cfg.Path)
		_, err := New(tt.cfg, nil, nil)
		if err == nil {
			t.Errorf("%s: no error", tt.cfg.Path)
			continue
		}
		if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.cfg.Path, diff)
		}
		if before != nil {
			after, err := os.Stat(tt.cfg.Path)
			if err != nil || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
				t.Errorf("%s was changed", tt.cfg.Path)
			}
		}
	}
}

func TestRepair(t *testing.T) {
	long := `{"secctx":"` + strings.Repeat("x", 200<<10) // more than one block
	for _, tt := range []struct {
		name, content, want string
	}{
		{"empty", "", ""},
		{"whole", "{\"ct_id\":1}\n", "{\"ct_id\":1}\n"},
		{"torn", "{\"ct_id\":1}\n{\"ct_id\":2}\n{\"ct_", "{\"ct_id\":1}\n{\"ct_id\":2}\n"},
		{"torn long line", "{\"ct_id\":1}\n" + long, "{\"ct_id\":1}\n"},
		{"torn first line", `{"v":1,"ti`, ""},
		{"torn after one byte", "{\"ct_id\":1}\n{", "{\"ct_id\":1}\n"},
		{"newline missing", "{\"ct_id\":1}\n{\"ct_id\":2}", "{\"ct_id\":1}\n{\"ct_id\":2}\n"},
		{"newline missing at the first line", `{"ct_id":2}`, "{\"ct_id\":2}\n"},
		{"zeros after a line", "{\"ct_id\":1}\n\x00\x00\x00", "{\"ct_id\":1}\n"},
		{"zeros after a torn line", "{\"ct_id\":1}\n{\"ct\x00\x00", "{\"ct_id\":1}\n"},
		{"zeros after a line without newline", "{\"ct_id\":1}\x00\x00", "{\"ct_id\":1}\n"},
		{"more zeros than a line has bytes", "{\"ct_id\":1}\n" + strings.Repeat("\x00", maxLine+70000), "{\"ct_id\":1}\n"},
		{"nothing but zeros", strings.Repeat("\x00", 70000), ""},
		{"zeros in a torn line", "{\"ct_id\":1}\n\x00\x00\"x\":1}", "{\"ct_id\":1}\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			core, logs := observer.New(zap.InfoLevel)
			f := newFile(t, Config{Path: path}, zap.New(core))
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("left %.100q, want %.100q", got, tt.want)
			}
			kept := len(strings.TrimSuffix(tt.want, "\n"))
			if strings.HasPrefix(tt.content, tt.want) {
				kept = len(tt.want)
			}
			cut := len(tt.content) - kept
			if got := f.Stats.TornBytes.Load(); got != uint64(cut) {
				t.Errorf("TornBytes = %d, want %d", got, cut)
			}
			if cut > 0 {
				entries := logs.FilterField(zap.Uint64("bytes", uint64(cut))).Len()
				if entries != 1 {
					t.Errorf("%d log entries tell of %d bytes: %v", entries, cut, logs.All())
				}
			} else if logs.Len() != 0 {
				t.Errorf("log: %v", logs.All())
			}
			write(t, f, records(5, 1))
			if got := ids(t, path); got[len(got)-1] != 5 {
				t.Errorf("ids %v", got)
			}
		})
	}
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	const maxSize = 10000
	f := newFile(t, Config{Path: path, MaxSize: maxSize, Keep: 3}, nil)
	const total = 2000
	for i := 0; i < total; i += 100 { // each Write is larger than a file may be
		write(t, f, records(i, 100))
	}
	await(t, "three rotated files", func() bool {
		files, err := listRotated(path)
		return err == nil && len(files) == 3
	})
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > maxSize || info.Size() == 0 {
			t.Errorf("%s has %d bytes, want 1 to %d", e.Name(), info.Size(), maxSize)
		}
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{"f", "f.1", "f.2", "f.3"}, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	got := ids(t, path+".3", path+".2", path+".1", path)
	wantIDs(t, upTo(total)[total-len(got):], got)
	if f.Stats.Rotations.Load() < 10 || f.Stats.RotationErrors.Load() != 0 {
		t.Errorf("%d rotations, %d errors", f.Stats.Rotations.Load(), f.Stats.RotationErrors.Load())
	}
	// The file that is written now is as locked as the first one was.
	if _, err := open(path); err == nil || !strings.Contains(err.Error(), "another ctlogd") {
		t.Errorf("open a rotated file: %v", err)
	}
}

// TestRotateFails has something in the way of each step, and wants every line written nevertheless, a try only now and
// then, nothing that is kept to be pushed out, and rotation to go on when the way is free.
func TestRotateFails(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(dir string) error
		free    func(dir string) error
	}{
		{
			"the new file cannot be opened",
			func(dir string) error { return os.Mkdir(dir+"/f.new", 0o700) },
			func(dir string) error { return os.Remove(dir + "/f.new") },
		},
		{
			"the new file is somebody else's",
			func(dir string) error { return os.WriteFile(dir+"/f.new", []byte("x"), 0o600) },
			func(dir string) error { return os.Remove(dir + "/f.new") },
		},
		{
			"a rename fails",
			func(dir string) error { return os.MkdirAll(dir+"/f.2/x", 0o700) },
			func(dir string) error { return os.RemoveAll(dir + "/f.2") },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			if err := os.WriteFile(path+".1", []byte("{\"ct_id\":77}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := tt.prepare(dir); err != nil {
				t.Fatal(err)
			}
			core, logs := observer.New(zap.InfoLevel)
			f := newFile(t, Config{Path: path, MaxSize: 10000, Keep: 2}, zap.New(core))
			for i := 0; i < 1000; i += 10 {
				write(t, f, records(i, 10))
			}
			wantIDs(t, upTo(1000), ids(t, path))
			wantIDs(t, []int{77}, ids(t, path+".1"))
			if n := f.Stats.RotationErrors.Load(); n != 1 {
				t.Errorf("RotationErrors = %d, want 1", n)
			}
			if logs.FilterMessageSnippet("rotate").Len() != 1 {
				t.Errorf("log: %v", logs.All())
			}

			if err := tt.free(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(path + ".new"); err == nil {
				t.Error("f.new is left after the failure")
			}
			f.noRotateBefore = time.Time{}
			write(t, f, records(1000, 1))
			wantIDs(t, []int{77}, ids(t, path+".2"))
			wantIDs(t, upTo(1000), ids(t, path+".1"))
			wantIDs(t, []int{1000}, ids(t, path))
			if _, err := os.Stat(path + ".new"); err == nil {
				t.Error("f.new is left")
			}
		})
	}
}

// TestRotateRenamed has the file renamed behind ctlogd's back just before it rotates, with and without a new one made
// in its place: what is at the path then is not rotated out unused.
func TestRotateRenamed(t *testing.T) {
	for _, create := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "f")
		f := newFile(t, Config{Path: path, MaxSize: 1000, Keep: 2}, nil)
		write(t, f, records(0, 3))
		if err := os.Rename(path, path+"-old"); err != nil {
			t.Fatal(err)
		}
		if create {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(t, f, records(3, 3))
		write(t, f, records(6, 3))
		wantIDs(t, upTo(9), ids(t, path+"-old", path+".1", path))
		if _, err := os.Stat(path + ".2"); err == nil {
			t.Error("an empty file was rotated")
		}
	}
}

// TestRotateSymlink keeps the rotated files on the file system that a link points to.
func TestRotateSymlink(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir+"/f", link); err != nil {
		t.Fatal(err)
	}
	f := newFile(t, Config{Path: link, MaxSize: 1000, Keep: 2}, nil)
	write(t, f, records(0, 3))
	write(t, f, records(3, 3))
	wantIDs(t, upTo(6), ids(t, dir+"/f.1", link))
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", info, err)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(sub, "f")
	f := newFile(t, Config{Path: path}, nil)
	reopen := func() {
		t.Helper()
		if err := f.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	write(t, f, records(0, 2))
	reopen() // the same file: its lock is no hindrance
	write(t, f, records(2, 1))
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	write(t, f, records(3, 1))
	reopen()
	reopen()
	write(t, f, records(4, 2))
	wantIDs(t, []int{0, 1, 2, 3}, ids(t, path+".old"))
	wantIDs(t, []int{4, 5}, ids(t, path))

	// The directory is gone: the old file stays.
	if err := os.Rename(sub, sub+".away"); err != nil {
		t.Fatal(err)
	}
	if err := f.Reopen(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Reopen without its directory: %v", err)
	}
	write(t, f, records(6, 1))
	wantIDs(t, []int{4, 5, 6}, ids(t, sub+".away/f"))

	if err := f.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.Reopen(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Reopen after Close: %v", err)
	}
}

// TestReopenConcurrently renames and reopens while records are written: each is in one of the files, once.
func TestReopenConcurrently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f := newFile(t, Config{Path: path}, nil)
	const files, total = 20, 2000
	var wg sync.WaitGroup
	var names []string
	wg.Go(func() {
		for i := range files {
			name := fmt.Sprintf("%s-%d", path, i)
			if err := os.Rename(path, name); err != nil {
				t.Error(err)
				return
			}
			names = append(names, name)
			if err := f.Reopen(); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range total {
		write(t, f, records(i, 1))
	}
	wg.Wait()
	wantIDs(t, upTo(total), ids(t, append(names, path)...))
}

func TestDeletedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	core, logs := observer.New(zap.InfoLevel)
	f := newFile(t, Config{Path: path}, zap.New(core))
	write(t, f, records(0, 1))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, f, records(1, 2))
	wantIDs(t, []int{1, 2}, ids(t, path))
	if logs.FilterMessageSnippet("deleted").Len() != 1 {
		t.Errorf("log: %v", logs.All())
	}
}

// TestDirectoryReplaced removes the directory, or puts another in its place: writing fails until there is one, or goes on
// in the one that was moved until it is told.
func TestDirectoryReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	path := filepath.Join(dir, "f")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f := newFile(t, Config{Path: path}, nil)
	write(t, f, records(0, 1))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Write(t.Context(), records(1, 1)); n != 0 || err == nil {
		t.Errorf("without a directory: %d records, %v", n, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, f, records(1, 1))
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, f, records(2, 1))
	if err := f.Reopen(); err != nil {
		t.Fatal(err)
	}
	write(t, f, records(3, 1))
	wantIDs(t, []int{1, 2}, ids(t, dir+".old/f"))
	wantIDs(t, []int{3}, ids(t, path))
}

// TestKilledInRotation begins with what a process leaves that is killed between any two steps of a rotation: nothing is
// pushed out, and rotation goes on.
func TestKilledInRotation(t *testing.T) {
	steps := [][2]string{{"", "f.new"}, {"f.2", "f.3"}, {"f.1", "f.2"}, {"f", "f.1"}, {"f.new", "f"}}
	for done := range len(steps) + 1 {
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		for i, name := range []string{"f.2", "f.1", "f"} {
			g := newFile(t, Config{Path: filepath.Join(dir, name)}, nil)
			write(t, g, records(10*i, 10))
			if err := g.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range steps[:done] {
			var err error
			if s[0] == "" {
				err = os.WriteFile(filepath.Join(dir, s[1]), nil, 0o600)
			} else {
				err = os.Rename(filepath.Join(dir, s[0]), filepath.Join(dir, s[1]))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		f := newFile(t, Config{Path: path, MaxSize: 4000, Keep: 4}, nil)
		for i := 30; i < 40; i += 5 {
			write(t, f, records(i, 5))
		}
		if f.Stats.RotationErrors.Load() != 0 {
			t.Errorf("killed after %d steps: rotation fails", done)
		}
		var all []string
		for _, name := range []string{"f.4", "f.3", "f.2", "f.1", "f"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				all = append(all, filepath.Join(dir, name))
			}
		}
		wantIDs(t, upTo(40), ids(t, all...))
		if _, err := os.Stat(path + ".new"); err == nil && f.Stats.Rotations.Load() > 0 {
			t.Errorf("killed after %d steps: f.new stays", done)
		}
	}
}

// TestCopyTruncate has the file emptied under the writer.
func TestCopyTruncate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f := newFile(t, Config{Path: path}, nil)
	write(t, f, records(0, 3))
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	f.current.torn = 1000 // more than there is
	write(t, f, records(3, 1))
	wantIDs(t, []int{3}, ids(t, path))
}

// mountTmpfs mounts a file system of 128 KiB on dir.
func mountTmpfs(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, "size=128k"); err != nil {
		t.Skipf("mount a tmpfs: %v (run as root)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestDiskFull fills a small file system: whole lines only, the right count, and no line twice once there is room.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, dir, 0)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "f")
	f := newFile(t, Config{Path: path}, nil)
	recs := records(0, 400)
	n, err := f.Write(ctx, recs)
	if !errors.Is(err, syscall.ENOSPC) || n == 0 || n == len(recs) {
		t.Fatalf("Write = %d, %v, want some and ENOSPC", n, err)
	}
	wantIDs(t, upTo(n), ids(t, path))
	if f.Stats.TornBytes.Load() == 0 {
		t.Error("no line was torn: the write was not short")
	}
	// Each further try takes up the little room that cutting made, and leaves whole lines.
	for range 3 {
		m, err := f.Write(ctx, recs[n:])
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("Write = %d, %v, want ENOSPC", m, err)
		}
		n += m
		wantIDs(t, upTo(n), ids(t, path))
	}
	if got := f.Stats.Errors.Load(); got != 4 {
		t.Errorf("Errors = %d, want 4", got)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	write(t, f, recs[n:n+50])
	wantIDs(t, upTo(n+50), ids(t, path))
}

// TestReserve fills a small file system but for the reserve: no part of a batch is written that would touch it, and once
// there is room, writing goes on.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, dir, 0)
	path := filepath.Join(dir, "f")
	f := newFile(t, Config{Path: path, Reserve: 64 << 10}, nil)
	free := func() int64 {
		free, err := f.current.free()
		if err != nil {
			t.Fatal(err)
		}
		return free
	}
	n := 0
	var err error
	for err == nil && n < 1000 {
		var m int
		m, err = f.Write(ctx, records(n, 20))
		n += m
	}
	want := fmt.Sprintf("write %s: no space left on device but the reserve of 64KiB", path)
	if !errors.Is(err, syscall.ENOSPC) || err.Error() != want {
		t.Fatalf("after %d records: %v, want %s", n, err, want)
	}
	if free() < 64<<10 || free() > 72<<10 {
		t.Errorf("%d bytes are free", free())
	}
	if got := f.Stats.Errors.Load(); got != 1 {
		t.Errorf("Errors = %d, want 1", got)
	}
	wantIDs(t, upTo(n), ids(t, path))

	// Others take what is left, which is noticed within askFree; then they give it back.
	f.cfg.Reserve = 48 << 10
	write(t, f, records(n, 20))
	n += 20
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 32<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	f.askedAt = f.askedAt.Add(-askFree)
	if m, err := f.Write(ctx, records(n, 20)); m != 0 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Write = %d, %v, want ENOSPC", m, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	write(t, f, records(n, 20))
	wantIDs(t, upTo(n+20), ids(t, path))
}

func TestDevices(t *testing.T) {
	f := newFile(t, Config{Path: "/dev/null"}, nil)
	write(t, f, records(0, 10))
	if err := f.Reopen(); err != nil {
		t.Errorf("Reopen: %v", err)
	}
	f = newFile(t, Config{Path: "/dev/full"}, nil)
	if n, err := f.Write(ctx, records(0, 10)); n != 0 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Write = %d, %v, want ENOSPC", n, err)
	}
	want := "write /dev/full: no space left on device; make room: df and df -i tell what is short"
	if _, err := f.Write(ctx, records(0, 1)); err == nil || err.Error() != want {
		t.Errorf("Write: %v, want %s", err, want)
	}
}

func TestStdout(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	defer func() { os.Stdout = stdout }()
	f := newFile(t, Config{Path: "-"}, nil)
	if f.Name() != "jsonl:-" {
		t.Errorf("Name = %q", f.Name())
	}
	write(t, f, records(0, 5))
	if err := f.Reopen(); err != nil {
		t.Errorf("Reopen: %v", err)
	}
	write(t, f, records(5, 5))
	ids := parseIDs(t, readLines(t, r, 10)) // Close waits for the reader
	if err := f.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := w.WriteString(`{"ct_id":10}`); err != nil {
		t.Errorf("standard output was closed: %v", err)
	}
	w.Close()
	var got bytes.Buffer
	if _, err := got.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, upTo(11), append(ids, parseIDs(t, got.Bytes())...))
}

// TestOneWrite sends each write(2) through a socket that keeps them apart.
func TestOneWrite(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		t.Fatal(err)
	}
	in, out := os.NewFile(uintptr(fds[0]), "in"), os.NewFile(uintptr(fds[1]), "out")
	defer out.Close()
	stdout := os.Stdout
	os.Stdout = in
	defer func() { os.Stdout = stdout }()
	f := newFile(t, Config{Path: Stdout}, nil)
	write(t, f, records(0, 5))
	write(t, f, records(5, 300))
	in.Close()
	packet := make([]byte, 1<<20)
	for _, want := range []int{5, 300} {
		n, err := out.Read(packet)
		if got := len(parseIDs(t, packet[:n])); got != want || err != nil {
			t.Errorf("a write of %d lines, want %d (%v)", got, want, err)
		}
	}
	if n, err := out.Read(packet); n != 0 {
		t.Errorf("another write of %d bytes, %v", n, err)
	}
}

func BenchmarkWrite(b *testing.B) {
	f := newFile(b, Config{Path: "/dev/null"}, nil)
	recs := records(0, 512)
	b.ReportAllocs()
	for b.Loop() {
		write(b, f, recs)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(recs)), "ns/record")
}
