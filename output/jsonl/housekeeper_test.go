package jsonl

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// unpacked returns the lines of files, compressed or not.
func unpacked(t testing.TB, files ...string) (all []byte) {
	t.Helper()
	for _, f := range files {
		r, err := openLines(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		r.Close()
		all = append(all, b...)
	}
	return all
}

// names returns the names of the files in a directory.
func names(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// awaitNames waits until a directory holds these files.
func awaitNames(t testing.TB, dir string, want ...string) {
	t.Helper()
	await(t, fmt.Sprintf("%v in %s", want, dir), func() bool { return cmp.Equal(want, names(t, dir)) })
}

// idle ends f's housekeeper, so that a test can do its work step by step.
func idle(f *File) *housekeeper {
	f.house.end(ctx)
	f.house.stop = make(chan struct{})
	return f.house
}

// TestCompress rotates, and wants every line in compressed files that the usual programs read, with the plain ones'
// rights and times.
func TestCompress(t *testing.T) {
	for compression, tool := range map[string]string{"gzip": "gzip", "zstd": "zstd"} {
		t.Run(compression, func(t *testing.T) {
			ext := compressedExt(compression)
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			f := newFile(t, Config{Path: path, MaxSize: 100 << 10, Keep: 5, Compress: compression}, nil)
			if err := os.Chmod(path, 0o604); err != nil {
				t.Fatal(err)
			}
			write(t, f, records(0, 250))
			old := time.Now().Add(-time.Hour).Truncate(time.Second)
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
			write(t, f, records(250, 250))
			write(t, f, records(500, 250))
			awaitNames(t, dir, "f", "f.1"+ext, "f.2"+ext)
			wantIDs(t, upTo(750), parseIDs(t, unpacked(t, path+".2"+ext, path+".1"+ext, path)))
			info, err := os.Stat(path + ".2" + ext)
			if err != nil || info.Mode() != 0o604 || !info.ModTime().Equal(old) || info.Size() > 20<<10 {
				t.Errorf("%v of %v, %d bytes, %v", info.Mode(), info.ModTime(), info.Size(), err)
			}
			if err := f.Close(ctx); err != nil {
				t.Error(err)
			}
			if n := f.Stats.Compressions.Load(); n != 2 || f.Stats.CompressErrors.Load() != 0 {
				t.Errorf("%d compressions, %d errors", n, f.Stats.CompressErrors.Load())
			}
			if _, err := exec.LookPath(tool); err != nil {
				t.Skipf("needs %s", tool)
			}
			out, err := exec.Command(tool, "-dc", path+".2"+ext).Output()
			if err != nil || !bytes.Equal(out, unpacked(t, path+".2"+ext)) {
				t.Errorf("%s: %v, %d bytes", tool, err, len(out))
			}
		})
	}
}

// TestRemoved: what keep removes is counted, whether this process has written it or an earlier one, compressed or not,
// and logged with the time that is gone.
func TestRemoved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	day := time.Date(2026, 3, 9, 0, 0, 0, 0, time.UTC)
	recs := records(0, 300)
	for i, r := range recs {
		r.Received = day.Add(time.Duration(i) * time.Minute).UnixNano()
	}
	// An earlier process leaves two rotated files, one of them compressed.
	core, logs := observer.New(zap.InfoLevel)
	cfg := Config{Path: path, MaxSize: 64 << 10, Keep: 3}
	f := newFile(t, cfg, zap.New(core))
	write(t, f, recs[:100])
	f.cfg.MaxSize = 1
	write(t, f, recs[100:150])
	write(t, f, recs[150:200])
	awaitNames(t, dir, "f", "f.1", "f.2")
	h := idle(f)
	h.cfg.Compress = "zstd"
	for done := false; !done; {
		var err error
		if done, err = h.compressOne(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(ctx); err != nil {
		t.Fatal(err)
	}
	awaitNames(t, dir, "f", "f.1.zst", "f.2.zst")

	cfg.Keep = 1
	f = newFile(t, cfg, zap.New(core))
	awaitNames(t, dir, "f", "f.1.zst")
	f.cfg.MaxSize = 1
	write(t, f, recs[200:250])
	awaitNames(t, dir, "f", "f.1")
	write(t, f, recs[250:])
	await(t, "three files removed", func() bool { return f.Stats.RemovedFiles.Load() == 3 })
	awaitNames(t, dir, "f", "f.1")
	if n := f.Stats.RemovedRecords.Load(); n != 200 {
		t.Errorf("%d records removed, want 200", n)
	}
	wantIDs(t, upTo(300)[200:], ids(t, path+".1", path))
	f.house.wake()
	await(t, "how far the files reach back", func() bool {
		return f.house.keptSince.Load() == recs[200].Received/1e9
	})
	if err := f.Close(ctx); err != nil {
		t.Fatal(err)
	}
	removals := logs.FilterMessageSnippet("removed").All()
	if len(removals) != 2 { // the first one at once, and the sum of the others at the end
		t.Fatalf("log: %v", logs.All())
	}
	m, last := removals[0].ContextMap(), removals[1].ContextMap()
	if m["records"] != int64(100) || !m["from"].(time.Time).Equal(day) || last["files"] != int64(2) || last["records"] != int64(100) ||
		!last["from"].(time.Time).Equal(day.Add(100*time.Minute)) {
		t.Errorf("log: %v, %v", m, last)
	}
}

// TestMaxAge: files go by the age of their last record.
func TestMaxAge(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	f := newFile(t, Config{Path: path, MaxSize: 1000, MaxAge: time.Hour}, nil)
	for i := range 4 {
		write(t, f, records(3*i, 3))
	}
	awaitNames(t, dir, "f", "f.1", "f.2", "f.3")
	for n, age := range map[int]time.Duration{3: 61 * time.Minute, 2: 61 * time.Minute, 1: 59 * time.Minute} {
		at := time.Now().Add(-age)
		if err := os.Chtimes(fmt.Sprintf("%s.%d", path, n), at, at); err != nil {
			t.Fatal(err)
		}
	}
	f.house.wake()
	awaitNames(t, dir, "f", "f.1")
	if f.Stats.RemovedRecords.Load() != 6 {
		t.Errorf("%d records removed", f.Stats.RemovedRecords.Load())
	}
}

func TestDue(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse("2006-01-02 15:04:05", s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, tt := range []struct {
		rotate     time.Duration
		since, now time.Time
		want       bool
	}{
		{time.Hour, at("2026-03-09 14:00:00"), at("2026-03-09 14:59:59"), false},
		{time.Hour, at("2026-03-09 14:59:59"), at("2026-03-09 15:00:00"), true},
		{day, at("2026-03-09 00:00:00"), at("2026-03-09 23:59:59"), false},
		{day, at("2026-03-09 23:59:59"), at("2026-03-10 00:00:00"), true},
		{day, at("2026-03-10 00:00:01"), at("2026-03-09 00:00:00"), false}, // the clock was set back
		{day, time.Time{}, at("2026-03-09 00:00:00"), false},
		{0, at("2026-03-09 00:00:00"), at("2027-03-09 00:00:00"), false},
	} {
		c := Config{Rotate: tt.rotate}
		if got := c.due(tt.since, tt.now); got != tt.want {
			t.Errorf("due(%v, %v) with %v = %v", tt.since, tt.now, tt.rotate, got)
		}
	}
}

// TestRotateByTime: a file whose first record is of another hour is rotated, by the next record or without one, also
// when an earlier process has written it.
func TestRotateByTime(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	line := func(id int, at time.Time) []byte {
		return fmt.Appendf(nil, `{"v":1,"time":%q,"ct_id":%d}`+"\n", at.Format(time.RFC3339Nano), id)
	}
	if err := os.WriteFile(path, line(0, time.Now().Add(-2*time.Hour)), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFile(t, Config{Path: path, Rotate: time.Hour, Keep: 9}, nil)
	write(t, f, records(1, 1))
	write(t, f, records(2, 1))
	if time.Now().Truncate(time.Hour).After(f.current.since) {
		t.Skip("the hour has just changed")
	}
	wantIDs(t, []int{1, 2}, ids(t, path))
	f.writing.Lock()
	f.current.since = time.Now().Add(-time.Hour)
	f.writing.Unlock()
	f.house.rotateIdle()
	f.house.rotateIdle() // an empty file stays
	wantIDs(t, []int{0, 1, 2}, ids(t, path+".2", path+".1"))
	wantIDs(t, nil, ids(t, path))
	if names := names(t, dir); len(names) != 3 {
		t.Errorf("files: %v", names)
	}
}

// TestKilledInCompression begins with what a process leaves that is killed between any two steps: no record is missing
// and none is there twice.
func TestKilledInCompression(t *testing.T) {
	for _, step := range []string{"while compressing", "before the rename", "before the plain file goes", "torn beside the plain file"} {
		t.Run(step, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			cfg := Config{Path: path, MaxSize: 64 << 10, Keep: 3, Compress: "zstd"}
			plain := cfg
			plain.Compress = ""
			f := newFile(t, plain, nil)
			write(t, f, records(0, 20))
			f.cfg.MaxSize = 1
			write(t, f, records(20, 20))
			awaitNames(t, dir, "f", "f.1")
			if err := f.Close(ctx); err != nil {
				t.Fatal(err)
			}
			var packed bytes.Buffer
			w, err := newCompressor("zstd", &packed)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(unpacked(t, path+".1")); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			name, b := path+tmpExt, packed.Bytes()
			switch step {
			case "while compressing":
				b = b[:len(b)/2]
			case "before the plain file goes":
				name = path + ".1.zst"
			case "torn beside the plain file":
				name, b = path+".1.zst", b[:len(b)/2]
			}
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			f = newFile(t, cfg, nil)
			awaitNames(t, dir, "f", "f.1.zst")
			wantIDs(t, upTo(40), parseIDs(t, unpacked(t, path+".1.zst", path)))
			if n := f.Stats.CompressErrors.Load(); n != 0 {
				t.Errorf("%d errors", n)
			}
		})
	}
}

// TestRotateWhileCompressing moves the file under the one who compresses it: the compressed one gets the number that it
// has by then.
func TestRotateWhileCompressing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	f := newFile(t, Config{Path: path, MaxSize: 64 << 10, Keep: 9}, nil)
	f.cfg.MaxSize = 1
	write(t, f, records(0, 5))
	write(t, f, records(5, 5))
	h := idle(f)
	h.cfg.Compress = "gzip"
	files, err := listRotated(path)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	write(t, f, records(10, 5)) // the one that was f.1 is f.2 now
	if err := h.compress(path, files[0]); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"f", "f.1", "f.2.gz"}, names(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	write(t, f, records(15, 5))
	wantIDs(t, upTo(20), parseIDs(t, unpacked(t, path+".3.gz", path+".2", path+".1", path)))

	// One that is removed meanwhile leaves nothing behind.
	files, err = listRotated(path)
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	if err := os.Remove(path + ".2"); err != nil {
		t.Fatal(err)
	}
	if err := h.compress(path, files[1]); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"f", "f.1", "f.3.gz"}, names(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestCompressDiskFull has no room to compress, and room then.
func TestCompressDiskFull(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, dir, 0)
	path := filepath.Join(dir, "f")
	core, logs := observer.New(zap.InfoLevel)
	f := newFile(t, Config{Path: path, MaxSize: 1 << 20, Keep: 9}, zap.New(core))
	write(t, f, records(0, 100))
	f.cfg.MaxSize = 1
	write(t, f, records(100, 1))
	h := idle(f)
	h.cfg.Compress = "gzip"
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 256<<10), 0o600); err == nil {
		t.Fatal("the file system is larger than it should be")
	}
	h.look()
	if diff := cmp.Diff([]string{"ballast", "f", "f.1"}, names(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if f.Stats.CompressErrors.Load() != 1 || logs.FilterMessageSnippet("compress").Len() != 1 {
		t.Errorf("%d errors, log %v", f.Stats.CompressErrors.Load(), logs.All())
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	h.cfg.Reserve = 1 << 40 // nothing is compressed where that takes of the reserve
	h.look()
	if _, err := os.Stat(path + ".1"); err != nil {
		t.Error(err)
	}
	h.cfg.Reserve = 0
	h.look()
	wantIDs(t, upTo(101), parseIDs(t, unpacked(t, path+".1.gz", path)))
}

// TestListRotated: what has another name, or is no file, is not ctlogd's.
func TestListRotated(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, name := range []string{"f", "f.1", "f.2.gz", "f.2", "f.10.zst", "f.0", "f.01", "f.x", "f.1.bz2", "f.new", "f.-1", "g.1", "f.3.gz.zst"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(path+".4", 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := listRotated(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range files {
		got = append(got, strings.TrimPrefix(r.path(path), dir+"/"))
	}
	if diff := cmp.Diff([]string{"f.10.zst", "f.2", "f.2.gz", "f.1"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestRest: after a spell of work the housekeeper leaves the processor to others for three times as long, unless it is
// told to end.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &housekeeper{stop: make(chan struct{}), began: time.Now()}
		for _, tt := range []struct{ worked, rested time.Duration }{
			{workFor / 2, 0}, {workFor / 2, 3 * workFor}, {10 * workFor, 30 * workFor}, {0, 0},
		} {
			time.Sleep(tt.worked)
			start := time.Now()
			if err := h.rest(); err != nil || time.Since(start) != tt.rested {
				t.Errorf("after %v: rested for %v, want %v (%v)", tt.worked, time.Since(start), tt.rested, err)
			}
		}
		time.Sleep(workFor)
		close(h.stop)
		start := time.Now()
		if err := h.rest(); err != errStopped || time.Since(start) != 0 {
			t.Errorf("at the end: rested for %v (%v)", time.Since(start), err)
		}
	})
}

// TestHousekeeperHangs: files that nobody removes do not become more and more.
func TestHousekeeperHangs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	f := newFile(t, Config{Path: path, MaxSize: 64 << 10, Keep: 1}, nil)
	f.cfg.MaxSize = 1
	idle(f)
	for i := range 30 {
		write(t, f, records(i, 1))
	}
	if n := len(names(t, dir)); n != 1+1+spare {
		t.Errorf("%d files", n)
	}
	if f.Stats.RemovedRecords.Load() != 30-2-spare || f.Stats.RotationErrors.Load() != 0 {
		t.Errorf("%d records removed, %d errors", f.Stats.RemovedRecords.Load(), f.Stats.RotationErrors.Load())
	}
}
