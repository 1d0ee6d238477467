package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

func openTest(t *testing.T, o Options) *Writer {
	t.Helper()
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close(context.Background()) })
	return w
}

func appendTest(t *testing.T, w *Writer, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if _, err := w.Append([]*flow.Record{numbered(n)}); err != nil {
			t.Fatal(err)
		}
	}
}

// sealTest makes an archive of the first n records, waits until so many segments are sealed, and closes it.
func sealTest(t *testing.T, o Options, n int, segments uint64) {
	t.Helper()
	w := openTest(t, o)
	appendTest(t, w, 0, n)
	await(t, func() bool { return w.Stats.Seals.Load() == segments })
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func eachOnce(t *testing.T, dir string, from, to int) {
	t.Helper()
	for i, c := range counts(t, dir) {
		want := 0
		if i >= from && i < to {
			want = 1
		}
		if c != want {
			t.Errorf("record %d is there %d times, want %d", i, c, want)
		}
	}
}

// TestTwoWriters: the second daemon on one archive is refused; one with another host name has a folder of its own.
func TestTwoWriters(t *testing.T) {
	o := testOptions(t.TempDir())
	openTest(t, o)
	if _, err := Open(o); !errors.Is(err, ErrLocked) {
		t.Errorf("a second writer: %v", err)
	}
	o.Host = "gw 2/x"
	openTest(t, o)
	if _, err := os.Stat(filepath.Join(o.Dir, "host=gw%202%2Fx")); err != nil {
		t.Error(err)
	}
}

// TestCloseDuringSeal: Close ends a seal that runs, and that is no error; the row log is sealed at the next start.
func TestCloseDuringSeal(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Retention, o.Sync = Retention{}, SyncNever
	begun, seal := make(chan struct{}), o.Seal
	o.Seal = func(ctx context.Context, _ string) (Sealed, error) {
		close(begun)
		<-ctx.Done()
		return Sealed{}, context.Cause(ctx)
	}
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	appendTest(t, w, 0, 60) // one row log is full, and one is written
	<-begun
	if err := w.Close(context.Background()); err != nil {
		t.Errorf("Close: %v", err)
	}
	o.Seal = seal
	w = openTest(t, o)
	await(t, func() bool { return w.Stats.Seals.Load() == 1 })
	eachOnce(t, o.Dir, 0, 60)
}

// TestFullAtEveryStep lets the disk be full at each step, twice, and then have room again: nothing is lost or doubled.
func TestFullAtEveryStep(t *testing.T) {
	defer func() { step = func(string) error { return nil } }()
	for _, s := range []string{"rows.create", "rows.append", "rows.appended", "keep.seal", "seal.create", "seal.written", "seal.synced", "seal.read",
		"keep.sealed", "catalog.open", "catalog.append", "catalog.appended"} {
		var left atomic.Int64
		left.Store(2)
		step = func(at string) error {
			if at == s && left.Add(-1) >= 0 {
				return unix.ENOSPC
			}
			return nil
		}
		o := testOptions(t.TempDir())
		o.Retention, o.Sync = Retention{}, SyncNever // a sync for each record is what takes the time
		w := openTest(t, o)
		for n := 0; n < testRecords; {
			k, err := w.Append([]*flow.Record{numbered(n)})
			n += k
			if err != nil && !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
		}
		await(t, func() bool { return w.Stats.Seals.Load() == 2 })
		if err := w.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		if left.Load() > 0 {
			t.Errorf("the disk was never full at %s", s)
		}
		if s == "rows.appended" { // the record is in the file, and was not acknowledged
			continue
		}
		eachOnce(t, o.Dir, 0, testRecords)
		checkChain(t, s, o.Dir)
	}
}

// TestRemovalOnFullDisk: a disk that is full at a step of a removal, for however long, keeps no segment and swallows no
// tombstone: what is missing is explained in the end.
func TestRemovalOnFullDisk(t *testing.T) {
	defer func() { step = func(string) error { return nil } }()
	for _, s := range []string{"remove.tombstone", "remove.unlink", "catalog.open", "catalog.append", "catalog.appended"} {
		var left atomic.Int64
		step = func(at string) error {
			if at == s && left.Add(-1) >= 0 {
				return unix.ENOSPC
			}
			return nil
		}
		o := testOptions(t.TempDir())
		o.Retention, o.Sync = Retention{}, SyncNever
		sealTest(t, o, 60, 1)
		left.Store(4)
		o.Retention, o.retain = Retention{MaxAge: 5 * 24 * time.Hour}, time.Millisecond
		w := openTest(t, o)
		await(t, func() bool { return w.Stats.RemovedAge.Load() == 1 && left.Load() <= 0 })
		await(t, func() bool {
			catalogs, _ := filepath.Glob(w.dir + "/date=*")
			lines, _, err := ReadCatalog(catalogs[0])
			return err == nil && len(lines) == 2 && lines[1].Removed != nil
		})
		if err := w.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		eachOnce(t, o.Dir, 50, 60)
		checkChain(t, s, o.Dir)
		if v := verifyTest(t, o.Dir, VerifyOptions{}); v.Verdict != Whole || len(v.Removed) != 1 {
			t.Errorf("%s: %s", s, asJSON(v))
		}
	}
}

// TestOwedTombstone: a writer that ends before there is room for the tombstone of a segment that it has removed leaves word of it, and
// the next one writes it, once.
func TestOwedTombstone(t *testing.T) {
	defer func() { step = func(string) error { return nil } }()
	var full, nameless atomic.Bool
	step = func(at string) error {
		if at == "catalog.append" && full.Load() || at == "remove.owe" && nameless.Swap(false) {
			return unix.ENOSPC
		}
		return nil
	}
	for _, tt := range []struct {
		name     string
		nameless bool // there is room for a name only when the segment is gone
		killed   bool // before the segment was gone
	}{
		{name: "ended"},
		{name: "no room for a name", nameless: true},
		{name: "killed", killed: true},
	} {
		full.Store(false)
		nameless.Store(tt.nameless)
		o := testOptions(t.TempDir())
		o.Retention, o.Sync = Retention{}, SyncNever
		sealTest(t, o, 60, 1)
		full.Store(true)
		o.Retention, o.retain = Retention{MaxAge: 5 * 24 * time.Hour}, time.Millisecond
		w := openTest(t, o)
		await(t, func() bool { return w.Stats.RemovedAge.Load() == 1 && w.Stats.KeepErrors.Load() > 0 })
		if err := w.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		owed, _ := filepath.Glob(w.dir + "/date=*/*.parquet" + owedMark + "max_age")
		if len(owed) != 1 {
			t.Fatalf("%s: what is owed: %v", tt.name, owed)
		}
		if seg, _, _ := strings.Cut(owed[0], owedMark); tt.killed {
			if err := os.WriteFile(seg, []byte("x"), fileMode); err != nil {
				t.Fatal(err)
			}
		}
		full.Store(false)
		for range 2 { // the second time, as if it had been killed between the tombstone and the removal of the file
			w = openTest(t, o)
			await(t, func() bool {
				_, err := os.Stat(owed[0])
				return errors.Is(err, fs.ErrNotExist)
			})
			if n, removed := w.Stats.Segments.Load(), w.Stats.RemovedAge.Load(); n != 0 || removed != 0 {
				t.Errorf("%s: %d segments, %d removed", tt.name, n, removed)
			}
			if err := w.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			lines, _, err := ReadCatalog(filepath.Dir(owed[0]))
			if err != nil || len(lines) != 2 || lines[1].Removed == nil || lines[1].Removed.Why != "max_age" || lines[1].Removed.Records != 50 {
				t.Fatalf("%s: the catalog has %s, %v", tt.name, asJSON(lines), err)
			}
			if v := verifyTest(t, o.Dir, VerifyOptions{}); v.Verdict != Whole || len(v.Removed) != 1 {
				t.Errorf("%s: %s", tt.name, asJSON(v))
			}
			if err := os.WriteFile(owed[0], nil, fileMode); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestCatalogReadOnce: to open an archive takes each catalog once.
func TestCatalogReadOnce(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Retention, o.Sync = Retention{}, SyncNever
	sealTest(t, o, 60, 1)
	catalogs, _ := filepath.Glob(o.Dir + "/host=gw1/date=*/" + catalogName)
	lines, _, err := ReadCatalog(filepath.Dir(catalogs[0]))
	if err != nil {
		t.Fatal(err)
	}
	c := chain{dir: o.Dir + "/host=gw1", n: 1, hash: lines[0].Hash}
	date := strings.TrimPrefix(filepath.Base(filepath.Dir(catalogs[0])), "date=")
	big := json.RawMessage(`"` + strings.Repeat("x", 1<<20) + `"`)
	for range 4 {
		if err := c.append(date, Line{Kind: KindRules, Rules: &Rules{LeftOut: big}}); err != nil {
			t.Fatal(err)
		}
	}
	o.LeftOut = big
	read := func() (n int64) {
		b, err := os.ReadFile("/proc/self/io")
		if _, scan := fmt.Sscanf(string(b), "rchar: %d", &n); err != nil || scan != nil {
			t.Fatal(err, scan)
		}
		return n
	}
	before := read()
	w := openTest(t, o)
	if n := read() - before; n < 4<<20 || n > 6<<20 {
		t.Errorf("%d bytes were read of a catalog of 4 MiB", n)
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestShortWrite: a frame that the disk took only a part of is cut off, and written again.
func TestShortWrite(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.Retention = Retention{}
	w := openTest(t, o)
	appendTest(t, w, 0, 10)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = uint64(w.active.size) + 30
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	n, err := w.Append([]*flow.Record{numbered(10)})
	if e := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); e != nil {
		t.Fatal(e)
	}
	if n != 0 || !errors.Is(err, unix.EFBIG) {
		t.Fatalf("%d records, error %v", n, err)
	}
	eachOnce(t, dir, 0, 10)
	appendTest(t, w, 10, 20)
	eachOnce(t, dir, 0, 20)
}

// TestTornTail: what a crash has torn off the end of a row log leaves a gap, with the number where it is known.
func TestTornTail(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Retention = Retention{}
	w := openTest(t, o)
	appendTest(t, w, 0, 10)
	path := w.active.path
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-5); err != nil {
		t.Fatal(err)
	}
	w = openTest(t, o)
	appendTest(t, w, 10, 15)
	r, err := OpenReader(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	gaps, err := gapsOf(r.Hosts[0])
	if err != nil || len(gaps) != 1 || gaps[0].Cause != "crash" || gaps[0].Lost == nil || *gaps[0].Lost != 1 {
		t.Errorf("gaps %+v, error %v", gaps, err)
	}
	n := counts(t, o.Dir)
	if n[8] != 1 || n[9] != 0 || n[14] != 1 {
		t.Errorf("records %v", n)
	}
}

// gapsOf returns the gaps that are on record in catalogs and row logs, by the files that they stand in.
func gapsOf(h *Host) (gaps []Gap, err error) {
	for i := range h.Lines {
		if l := &h.Lines[i]; l.Segment != nil {
			gaps = append(gaps, l.Gaps...)
		}
	}
	for _, path := range h.RowLogs {
		err = errors.Join(err, scanRowLog(File{Path: path, Host: h}, &Query{}, func(w Row) bool {
			if w.Record.Event == flow.EventGap {
				gaps = append(gaps, GapOf(w.Record))
			}
			return true
		}))
	}
	return gaps, err
}

// TestForeignFiles: truncated, flipped and foreign files in the folder are named and put aside; the rest works.
func TestForeignFiles(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Retention = Retention{}
	sealTest(t, o, 60, 1)
	host := filepath.Join(o.Dir, "host=gw1")
	segments, _ := filepath.Glob(host + "/date=*/*.parquet")
	if len(segments) != 1 {
		t.Fatal(segments)
	}
	good, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	date := filepath.Dir(segments[0])
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 0x40
	for name, data := range map[string][]byte{"20260320T000000Z-90.parquet": good[:len(good)/2], "20260320T000000Z-91.parquet": flipped,
		"notes.parquet": []byte("hello"), "x.parquet.tmp": {1}, "README": []byte("mine")} {
		if err := os.WriteFile(filepath.Join(date, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(host, rowLogName(7)), bytes.Repeat([]byte("x"), 100), 0o644); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var said []string
	o.Log = func(_ Level, msg, file string, err error, _ string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, fmt.Sprintf("%s: %s: %v", filepath.Base(file), msg, err))
	}
	w := openTest(t, o)
	all := strings.Join(said, "\n")
	for _, name := range []string{"20260320T000000Z-90.parquet", "20260320T000000Z-91.parquet", "notes.parquet", rowLogName(7)} {
		if !strings.Contains(all, name) {
			t.Errorf("nothing is said of %s: %s", name, all)
		}
	}
	for _, name := range []string{"20260320T000000Z-90.parquet.aside", "notes.parquet.aside", "README"} {
		if _, err := os.Stat(filepath.Join(date, name)); err != nil {
			t.Error(err)
		}
	}
	if w.Stats.Damaged.Load() != 4 {
		t.Errorf("%d files put aside, want 4", w.Stats.Damaged.Load())
	}
	appendTest(t, w, 60, testRecords)
	await(t, func() bool {
		if w.Stats.SealErrors.Load() > 0 {
			mu.Lock()
			defer mu.Unlock()
			t.Fatal(said)
		}
		return w.Stats.Seals.Load() == 2 // of the row log that was there as well: the damaged one has come after it
	})
	eachOnce(t, o.Dir, 0, testRecords)
}

// TestLineLost: a catalog whose last line is torn, or gone, gets it anew from the segment.
func TestLineLost(t *testing.T) {
	for _, cut := range []int{1, 40, 0} {
		o := testOptions(t.TempDir())
		o.Retention = Retention{}
		sealTest(t, o, 110, 2)
		catalogs, _ := filepath.Glob(o.Dir + "/host=gw1/date=*/" + catalogName)
		text, err := os.ReadFile(catalogs[0])
		if err != nil {
			t.Fatal(err)
		}
		keep := len(text) - cut
		if cut == 0 { // the whole last line
			keep = bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
		}
		if err := os.WriteFile(catalogs[0], text[:keep], 0o644); err != nil {
			t.Fatal(err)
		}
		w := openTest(t, o)
		eachOnce(t, o.Dir, 0, 110)
		checkChain(t, "open", o.Dir)
		after, _ := os.ReadFile(catalogs[0])
		if len(bytes.Split(after, []byte("\n"))) != len(bytes.Split(text, []byte("\n"))) {
			t.Errorf("the catalog has other lines than before:\n%s\n%s", text, after)
		}
		if err := w.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLater: files of a later version are left alone, and told of.
func TestLater(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Retention = Retention{}
	host := filepath.Join(o.Dir, "host=gw1")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := createRowLog(host, Origin{Version: SchemaVersion + 1, Host: "gw1", Sequence: 5})
	if err != nil {
		t.Fatal(err)
	}
	l.file.Close()
	said := 0
	o.Log = func(Level, string, string, error, string) { said++ }
	w := openTest(t, o)
	appendTest(t, w, 0, 10)
	if said != 1 || w.active.Origin.Sequence != 6 {
		t.Errorf("%d messages, the next row log has sequence %d", said, w.active.Origin.Sequence)
	}
	if _, err := os.Stat(l.path); err != nil {
		t.Error(err)
	}
}

// TestDowngrade: what a later version has left in an archive (a segment with its line, one without, a line of a kind that is
// not known, a row log) is left alone and told of; the chain goes on behind it, and all else is written, read and removed.
func TestDowngrade(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Retention = Retention{}
	sealTest(t, o, 110, 2)
	host := filepath.Join(o.Dir, "host=gw1")
	lines, _, err := ReadCatalog(filepath.Join(host, "date=2026-03-20"))
	if err != nil || len(lines) != 2 {
		t.Fatal(lines, err)
	}
	named := filepath.Join(host, "date=2026-03-20", lines[1].File)
	later := bytes.Replace(read(t, named), []byte(`{"version":1,`), []byte(`{"version":9,`), 1)
	write(t, named, later)
	unnamed := filepath.Join(host, "date=2026-03-20", "20260320T110000Z-90.parquet")
	write(t, unnamed, later)
	c := chain{dir: host, n: 2, hash: lines[1].Hash}
	if err := c.append("2026-03-20", Line{Kind: "moved", At: Time(testNow.UnixNano())}); err != nil {
		t.Fatal(err)
	}
	l, err := createRowLog(host, Origin{Version: SchemaVersion + 1, Host: "gw1", Sequence: 4})
	if err != nil {
		t.Fatal(err)
	}
	l.file.Close()

	var mu sync.Mutex
	said := map[string]string{}
	o.Log = func(level Level, msg, file string, err error, _ string) {
		mu.Lock()
		defer mu.Unlock()
		if level > Info {
			said[filepath.Base(file)] = fmt.Sprint(msg, ": ", err)
		}
	}
	w := openTest(t, o)
	mu.Lock()
	if len(said) != 2 || !strings.Contains(said[filepath.Base(unnamed)], "later version is left alone") ||
		!strings.Contains(said[rowLogName(4)], "later version is left alone") {
		t.Errorf("said: %q", said)
	}
	mu.Unlock()
	appendTest(t, w, 110, testRecords)
	w.mu.Lock()
	w.rotate()
	w.mu.Unlock()
	await(t, func() bool { return w.Stats.Seals.Load() == 2 }) // the row log that was there, and the new one
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	checkChain(t, "after the later version", o.Dir)
	for _, path := range []string{named, unnamed, l.path} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	r, err := OpenReader(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	var n [testRecords]int
	newer := 0
	for row, err := range r.Rows(context.Background(), &Query{}) {
		if errors.Is(err, ErrNewer) {
			newer++
		} else if err != nil {
			t.Error(err)
		} else {
			n[row.Record.Mark]++
		}
	}
	if newer != 1 {
		t.Errorf("%d files cannot be read as they are newer, want the row log alone: of a segment the columns are read that are known", newer)
	}
	for i, k := range n {
		if k != 1 {
			t.Errorf("record %d is there %d times", i, k)
		}
	}
	o.Retention, o.retain = Retention{MaxAge: time.Nanosecond}, time.Millisecond
	w = openTest(t, o)
	await(t, func() bool { return w.Stats.Segments.Load() == 0 })
	if _, err := os.Stat(named); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("max_age does not remove a segment of a later version: %v", err)
	}
}

// TestClockSetBack: a clock that is set back by an hour, over midnight, loses nothing and breaks no chain.
func TestClockSetBack(t *testing.T) {
	var now atomic.Int64
	now.Store(time.Date(2026, 3, 21, 0, 20, 0, 0, time.UTC).UnixNano())
	o := testOptions(t.TempDir())
	o.Retention = Retention{}
	o.Now = func() time.Time { return time.Unix(0, now.Load()) }
	w := openTest(t, o)
	appendTest(t, w, 0, 60)
	now.Add(-int64(time.Hour))
	appendTest(t, w, 60, 125)
	now.Add(int64(2 * time.Hour))
	appendTest(t, w, 125, testRecords)
	await(t, func() bool { return w.Stats.RowLogs.Load() == 1 })
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	eachOnce(t, o.Dir, 0, testRecords)
	checkChain(t, "end", o.Dir)
	w = openTest(t, o)
	if w.k.chain.n != 4 {
		t.Errorf("the chain has %d lines, want 4", w.k.chain.n)
	}
}

// TestEndOfDay: a row log is sealed when its day is over, also when no record comes.
func TestEndOfDay(t *testing.T) {
	var now atomic.Int64
	now.Store(testNow.UnixNano())
	o := testOptions(t.TempDir())
	o.Now = func() time.Time { return time.Unix(0, now.Load()) }
	o.Retention = Retention{}
	w := openTest(t, o)
	appendTest(t, w, 0, 5)
	now.Add(int64(24 * time.Hour))
	await(t, func() bool { return w.Stats.Seals.Load() == 1 })
	eachOnce(t, o.Dir, 0, 5)
}

// TestRetention: max_size removes the oldest, min_age keeps them and stops writing, max_age wins over all.
func TestRetention(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Retention = Retention{MaxSize: 1}
	w := openTest(t, o)
	appendTest(t, w, 0, 100)
	await(t, func() bool { return w.Stats.RemovedSize.Load() == 2 })
	eachOnce(t, o.Dir, 0, 0)
	if w.Stats.Segments.Load() != 0 || w.Stats.SegmentBytes.Load() != 0 {
		t.Errorf("%d segments of %d bytes", w.Stats.Segments.Load(), w.Stats.SegmentBytes.Load())
	}

	o = testOptions(t.TempDir())
	o.Retention = Retention{MaxSize: 1, MinAge: 24 * time.Hour, MaxAge: 5 * 24 * time.Hour}
	w = openTest(t, o)
	// The old ones go by age; the young ones stay, and then nothing more is written.
	appendTest(t, w, 0, 100)
	await(t, func() bool {
		_, err := w.Append(nil)
		return errors.Is(err, unix.ENOSPC) && strings.Contains(err.Error(), "min_age")
	})
	if w.Stats.RemovedAge.Load() != 1 || w.Stats.RemovedSize.Load() != 0 {
		t.Errorf("%d removed by age, %d by size", w.Stats.RemovedAge.Load(), w.Stats.RemovedSize.Load())
	}
	eachOnce(t, o.Dir, oldRecords, 100)

	r, err := OpenReader(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if gone := r.Hosts[0].Removed(0, 1); len(gone) != 1 || gone[0].Removed.Why != "max_age" || gone[0].Removed.Records != 50 {
		t.Errorf("tombstones %+v", gone)
	}
}

// TestRemovedInTime: what max_age wants removed goes when it is due, also when nothing else happens; not before.
func TestRemovedInTime(t *testing.T) {
	var now atomic.Int64
	now.Store(testNow.UnixNano())
	o := testOptions(t.TempDir())
	o.Now = func() time.Time { return time.Unix(0, now.Load()) }
	o.Retention, o.retain = Retention{MaxAge: 20 * 24 * time.Hour}, time.Millisecond
	w := openTest(t, o)
	appendTest(t, w, 0, 100)
	due := numbered(oldRecords-1).Stop + int64(o.Retention.MaxAge)
	await(t, func() bool { return w.Stats.Seals.Load() == 2 && w.Stats.NextRemoval.Load() == due })
	now.Store(due) // not yet over
	errs := w.Stats.KeepErrors.Load()
	await(t, func() bool { return w.Stats.Segments.Load() == 2 })
	eachOnce(t, o.Dir, 0, 100)
	now.Store(due + 1)
	await(t, func() bool { return w.Stats.RemovedAge.Load() == 1 })
	eachOnce(t, o.Dir, oldRecords, 100)
	await(t, func() bool { return w.Stats.NextRemoval.Load() == numbered(99).Stop+int64(o.Retention.MaxAge) })
	if w.Stats.KeepErrors.Load() != errs || w.Stats.Oldest.Load() != numbered(oldRecords).Stop {
		t.Errorf("%d errors, the oldest record is of %d", w.Stats.KeepErrors.Load(), w.Stats.Oldest.Load())
	}
}

// TestReserveWithSegments: for the reserve the oldest segments go, but none that min_age keeps: then writing stops, and goes on
// when max_age has removed what min_age kept, as it wins over all.
func TestReserveWithSegments(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Retention = Retention{}
	sealTest(t, o, 100, 2)
	var now atomic.Int64
	now.Store(testNow.UnixNano())
	o.Now = func() time.Time { return time.Unix(0, now.Load()) }
	o.Retention, o.retain = Retention{MaxAge: 30 * 24 * time.Hour, MinAge: 24 * time.Hour, Reserve: 1 << 60}, time.Millisecond
	w := openTest(t, o)
	full := func() bool {
		_, err := w.Append(nil)
		return errors.Is(err, unix.ENOSPC) && strings.Contains(err.Error(), "min_age keeps all that is there")
	}
	await(t, full)
	if w.Stats.RemovedFull.Load() != 1 || w.Stats.Segments.Load() != 1 || !w.Stats.Stopped.Load() {
		t.Errorf("%d removed for the reserve, %d are there", w.Stats.RemovedFull.Load(), w.Stats.Segments.Load())
	}
	eachOnce(t, o.Dir, oldRecords, 100)
	now.Add(int64(30 * 24 * time.Hour))
	await(t, func() bool { return w.Stats.RemovedAge.Load() == 1 })
	eachOnce(t, o.Dir, 0, 0)
}

// TestOpenFiles: open files do not grow with the segments that are made, nor with those that cannot be.
func TestOpenFiles(t *testing.T) {
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	o := testOptions(t.TempDir())
	o.Retention, o.Records, o.Sync = Retention{MaxAge: time.Hour}, 1, SyncNever
	seal := o.Seal
	var fail atomic.Bool
	o.Seal = func(ctx context.Context, path string) (Sealed, error) {
		if fail.Load() {
			return Sealed{}, unix.ENOSPC
		}
		return seal(ctx, path)
	}
	w := openTest(t, o)
	appendTest(t, w, 0, 10)
	await(t, func() bool { return w.Stats.Seals.Load() == 10 })
	before := open()
	appendTest(t, w, 10, testRecords)
	await(t, func() bool { return w.Stats.Seals.Load() == testRecords })
	await(t, func() bool { return open() <= before })
	fail.Store(true)
	appendTest(t, w, 0, testRecords)
	await(t, func() bool { return w.Stats.SealErrors.Load() >= testRecords })
	await(t, func() bool { return open() <= before })
}

// TestReserve: with less free than the reserve, the oldest go; with none left, writing stops.
func TestReserve(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Retention = Retention{Reserve: 1 << 60}
	w := openTest(t, o)
	await(t, func() bool {
		_, err := w.Append([]*flow.Record{numbered(1)})
		return errors.Is(err, unix.ENOSPC)
	})
}

// TestUnmarked: where no state directory tells how long ctlogd was away, a gap covers the time since the last record, be it
// in a row log or sealed; a new archive has none, and neither has one whose restart a mark tells of.
func TestUnmarked(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Retention = Retention{}
	now := testNow
	o.Now = func() time.Time { return now }
	gaps := func(records uint64, unmarked bool) []Gap {
		t.Helper()
		o.Records, o.Unmarked = records, unmarked
		w, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		r, err := OpenReader(filepath.Join(o.Dir, HostFolder(o.Host)))
		if err != nil {
			t.Fatal(err)
		}
		g, err := gapsOf(r.Hosts[0])
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	if g := gaps(50, true); len(g) != 0 {
		t.Errorf("a new archive has gaps: %+v", g)
	}
	o.Unmarked = false
	w := openTest(t, o)
	appendTest(t, w, oldRecords, oldRecords+3)
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	last := Time(numbered(oldRecords + 2).Stop)
	if g := gaps(50, false); len(g) != 0 {
		t.Errorf("with a mark: %+v", g)
	}
	for i, from := range []Time{last, Time(now.UnixNano())} { // a gap is a record as well
		if i > 0 {
			now = now.Add(24 * time.Hour) // the row log of the day before is handed to be sealed
		}
		g := gaps(50, true)
		if len(g) != i+1 {
			t.Fatalf("start %d: %+v, want %d gaps", i, g, i+1)
		}
		k := g[len(g)-1]
		for j := range g {
			if *g[j].To > *k.To {
				k = g[j]
			}
		}
		if *k.From != from || *k.To != Time(now.UnixNano()) || k.Cause != "downtime" || k.Lost != nil || k.Output != o.Output {
			t.Errorf("start %d: %+v, want downtime from %v to %v", i, k, from, now)
		}
	}
}

// TestRules: each change of the rules that keep flows out is on record, since the last record before it, and the catalog of
// each day has what is in force. A full disk keeps no archive closed.
func TestRules(t *testing.T) {
	defer func() { step = func(string) error { return nil } }()
	o := testOptions(t.TempDir())
	o.Retention = Retention{}
	now := testNow
	o.Now = func() time.Time { return now }
	drop := json.RawMessage(`[[{"action":"drop"}]]`)
	rules := func(leftOut json.RawMessage, from, to int) (all []Line) {
		t.Helper()
		o.LeftOut = leftOut
		w := openTest(t, o)
		appendTest(t, w, from, to)
		await(t, func() bool { return w.Stats.Waiting.Load() < int64(o.Records) })
		if err := w.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		r, err := OpenReader(o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range r.Hosts[0].Lines {
			if l.Kind == KindRules {
				all = append(all, l)
			}
		}
		return all
	}
	if all := rules(nil, 0, 3); len(all) != 0 {
		t.Errorf("without rules: %+v", all)
	}
	step = func(at string) error {
		if at == "catalog.append" {
			return unix.ENOSPC
		}
		return nil
	}
	if all := rules(drop, 3, 4); len(all) != 0 {
		t.Errorf("on a full disk: %+v", all)
	}
	step = func(string) error { return nil }
	last := Time(numbered(3).Stop)
	for range 2 { // the second time nothing has changed
		all := rules(drop, 4, 4)
		if len(all) != 1 || all[0].Rules.From != last || all[0].At != Time(now.UnixNano()) || !bytes.Equal(all[0].Rules.LeftOut, drop) || all[0].Rules.Before != nil {
			t.Fatalf("with rules: %+v", all)
		}
	}
	now = now.Add(24 * time.Hour)
	all := rules(drop, 4, 4+int(o.Records)) // another day has a segment
	if len(all) < 2 || all[len(all)-1].Date != Time(now.UnixNano()).date() || all[len(all)-1].Rules.From != last || !bytes.Equal(all[len(all)-1].Rules.LeftOut, drop) {
		t.Fatalf("on another day: %+v", all)
	}
	n := len(all)
	all = rules(nil, 4, 4)
	if r := all[len(all)-1].Rules; len(all) != n+1 || len(r.LeftOut) != 0 || !bytes.Equal(r.Before, drop) {
		t.Errorf("without rules again: %+v", all)
	}
	if v := verifyTest(t, o.Dir, VerifyOptions{}); v.Verdict != Whole {
		t.Error(asJSON(v))
	}
}
