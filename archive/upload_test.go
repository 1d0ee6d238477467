package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// bucket is where uploads go in tests. fail, if not nil, is asked first.
type bucket struct {
	t   *testing.T
	dir string

	mu   sync.Mutex
	got  []string // paths, in order
	fail func(f *UploadFile) error
}

func newBucket(t *testing.T) *bucket { return &bucket{t: t, dir: t.TempDir()} }

// run takes a file. A catalog that names a segment that has not come is a fault.
func (b *bucket) run(_ context.Context, f *UploadFile) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		if err := b.fail(f); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(f.File)
	if err != nil {
		return err
	}
	if int64(len(text)) != f.Size || hashOf(text) != f.SHA256 {
		b.t.Errorf("%s has %d bytes, and is said to have %d", f.Path, len(text), f.Size)
	}
	path := filepath.Join(b.dir, f.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return err
	}
	b.got = append(b.got, f.Path)
	if f.Kind == kindCatalog {
		lines, whole, err := ReadCatalog(filepath.Dir(path))
		if err != nil || whole != f.Size {
			b.t.Errorf("%s: %d bytes of %d, %v", f.Path, whole, f.Size, err)
		}
		for _, s := range live(lines) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), s.File)); err != nil {
				b.t.Errorf("a catalog came before what it names: %v", err)
			}
		}
	}
	return nil
}

// set changes what fails.
func (b *bucket) set(fail func(f *UploadFile) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = fail
}

func (b *bucket) paths() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got)
}

func (b *bucket) options(t *testing.T) Options {
	o := testOptions(t.TempDir())
	o.Retention = Retention{}
	o.Upload = &Upload{Run: b.run}
	return o
}

// wholeCopy verifies what is in the bucket.
func (b *bucket) wholeCopy(segments int) error {
	r, err := OpenReader(b.dir)
	if err != nil {
		return err
	}
	v, err := Verify(context.Background(), r.Hosts[0], VerifyOptions{Sealed: true})
	if err != nil {
		return err
	}
	if v.Verdict != Whole || v.Segments != segments || v.Note == nil {
		return fmt.Errorf("%+v", v)
	}
	return nil
}

// TestUpload: segments, then catalogs, then the note come to another place, where they are a whole archive.
func TestUpload(t *testing.T) {
	b := newBucket(t)
	o := b.options(t)
	w := openTest(t, o)
	appendTest(t, w, 0, 130)
	until(t, "a whole copy", func() bool { return len(b.paths()) > 4 && b.wholeCopy(2) == nil })
	until(t, "the last note", func() bool {
		msg, err := os.ReadFile(filepath.Join(b.dir, "host=gw1", noteName))
		n, noteErr := ReadNote(msg)
		return err == nil && noteErr == nil && n.Lines == 2
	})
	if n := w.Stats.Upload.Waiting.Load(); n != 0 {
		t.Errorf("%d wait", n)
	}
	eachOnce(t, b.dir, 0, 100)
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	before := len(b.paths())

	// The firewall keeps them for a shorter time than the copy, which then has tombstones of files that are there.
	o.Retention = Retention{MaxAge: 5 * 24 * time.Hour}
	w = openTest(t, o)
	until(t, "the tombstone in the copy", func() bool {
		return w.Stats.RemovedAge.Load() == 1 && len(b.paths()) > before && b.wholeCopy(2) == nil
	})
	eachOnce(t, b.dir, 0, 100)
	r, err := OpenReader(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	if gone := r.Hosts[0].Removed(0, 1); len(gone) != 0 {
		t.Errorf("%+v is there, and is said to be removed", gone)
	}
	for _, path := range b.paths()[before:] {
		if strings.HasSuffix(path, ".parquet") {
			t.Errorf("%s was uploaded again after a restart", path)
		}
	}
}

// TestUploadFails: uploads that fail are tried again, over a restart as well, and nothing else waits for them.
func TestUploadFails(t *testing.T) {
	b := newBucket(t)
	down := errors.New("503")
	b.set(func(*UploadFile) error { return down })
	o := b.options(t)
	w := openTest(t, o)
	appendTest(t, w, 0, 130)
	until(t, "seals and failures", func() bool { return w.Stats.Seals.Load() == 2 && w.Stats.Upload.Errors.Load() > 2 })
	if w.Stats.Upload.Failing.Load() == 0 || w.Stats.Upload.Waiting.Load() == 0 {
		t.Errorf("failing since %d, %d wait", w.Stats.Upload.Failing.Load(), w.Stats.Upload.Waiting.Load())
	}
	b.set(func(f *UploadFile) error { // of each kind one comes through, then no more
		if len(b.got) > 0 {
			return down
		}
		return nil
	})
	until(t, "one file", func() bool { return len(b.paths()) == 1 })
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.set(nil)
	w = openTest(t, o)
	until(t, "a whole copy", func() bool { return b.wholeCopy(2) == nil })
	until(t, "no failure", func() bool { return w.Stats.Upload.Failing.Load() == 0 })
	if got := b.paths(); slices.Contains(got[1:], got[0]) {
		t.Errorf("%s was uploaded again after a restart", got[0])
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}

	// What was uploaded is forgotten: all is uploaded again.
	if err := os.WriteFile(filepath.Join(w.dir, uploadsName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := len(b.paths())
	openTest(t, o)
	until(t, "the first one again", func() bool { got := b.paths(); return slices.Contains(got[n:], got[0]) })
}

// TestUploadOfOneFails: a segment that cannot be uploaded keeps back no other one, but the catalogs, which would name it.
// When retention removes it, that is told, and the catalogs go on.
func TestUploadOfOneFails(t *testing.T) {
	b := newBucket(t)
	var bad atomic.Pointer[string]
	b.set(func(f *UploadFile) error {
		if f.Kind == KindSegment && (bad.CompareAndSwap(nil, &f.Path) || *bad.Load() == f.Path) {
			return errors.New("403")
		}
		return nil
	})
	o := b.options(t)
	w := openTest(t, o)
	appendTest(t, w, 0, 130)
	until(t, "the other segment", func() bool { return len(b.paths()) == 1 && w.Stats.Upload.Errors.Load() > 2 })
	if got := b.paths()[0]; !strings.HasSuffix(got, ".parquet") || got == *bad.Load() {
		t.Errorf("%s came first, and %s fails", got, *bad.Load())
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	o.Retention = Retention{MaxAge: time.Minute}
	w = openTest(t, o)
	until(t, "the removal", func() bool { return w.Stats.Upload.Missed.Load() == 1 && b.wholeCopy(1) == nil })
}

// TestUploadOfAnotherCommand: another command may lead to another place, which then gets all that is there, and the log tells how
// many segments that are. What retention has removed before is not missed there.
func TestUploadOfAnotherCommand(t *testing.T) {
	old, b := newBucket(t), newBucket(t)
	o := old.options(t)
	o.Upload.Command = []string{"/usr/bin/env", "LAKE=old"}
	w := openTest(t, o)
	appendTest(t, w, 0, 130)
	until(t, "a whole copy", func() bool { return old.wholeCopy(2) == nil })
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var said []string
	o.Log = func(_ Level, msg, _ string, _ error, _ string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, msg)
	}
	told := func(what string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, msg := range said {
			if strings.Contains(msg, what) {
				n++
			}
		}
		return n
	}
	o.Upload = &Upload{Command: []string{"/usr/bin/env", "LAKE=new"}, Run: b.run}
	w = openTest(t, o)
	until(t, "a whole copy in the new place", func() bool { return b.wholeCopy(2) == nil })
	if n := told("the command of upload is another one: all is uploaded again, 2 segments"); n != 1 {
		t.Errorf("told %d times: %q", n, said)
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}

	n := len(b.paths())
	w = openTest(t, o)
	appendTest(t, w, 130, 160)
	until(t, "the next segment", func() bool { return b.wholeCopy(3) == nil })
	for _, path := range b.paths()[n:] {
		if slices.Contains(b.paths()[:n], path) && strings.HasSuffix(path, ".parquet") {
			t.Errorf("%s was uploaded again by the same command", path)
		}
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	o.Retention = Retention{MaxAge: 5 * 24 * time.Hour}
	o.Upload = nil
	w = openTest(t, o)
	until(t, "the removal", func() bool { return w.Stats.RemovedAge.Load() == 1 })
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	third := newBucket(t)
	o.Upload = &Upload{Command: []string{"/usr/bin/env", "LAKE=third"}, Run: third.run}
	w = openTest(t, o)
	until(t, "a whole copy in the third place", func() bool { return third.wholeCopy(2) == nil })
	if n := told("another one: all is uploaded again, 2 segments"); n != 2 {
		t.Errorf("told %d times: %q", n, said)
	}
	if n := w.Stats.Upload.Missed.Load(); n != 0 {
		t.Errorf("%d are missed", n)
	}
}

// TestUploadInParts: with more catalogs than are looked at at once, the copy has at no time lines without those before them.
func TestUploadInParts(t *testing.T) {
	b := newBucket(t)
	o := b.options(t)
	o.Records, o.Upload = 10, nil
	o.Now = func() time.Time { return testNow.Add(-24 * time.Hour) }
	sealTest(t, o, 60, 6)
	o.Now = func() time.Time { return testNow }
	writer := openTest(t, o)
	appendTest(t, writer, 60, 130)
	until(t, "the segments of the second day", func() bool { return writer.Stats.Seals.Load() == 7 })
	if err := writer.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	o.Upload = &Upload{}
	o.Log = func(Level, string, string, error, string) {}
	w := &Writer{o: o, dir: filepath.Join(o.Dir, HostFolder(o.Host))}
	u := w.newUploader()
	looks, lines := 0, 0
	u.Run = func(ctx context.Context, f *UploadFile) error {
		if err := b.run(ctx, f); err != nil || f.Kind != kindCatalog {
			return err
		}
		looks++
		folders, err := dates(filepath.Join(b.dir, "host=gw1"))
		if err != nil {
			return err
		}
		var chain []uint64
		for _, folder := range folders {
			part, _, err := ReadCatalog(filepath.Join(b.dir, "host=gw1", folder))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			for _, l := range part {
				chain = append(chain, l.N)
			}
		}
		slices.Sort(chain)
		lines = len(chain)
		if last := chain[lines-1]; last != chain[0]+uint64(lines)-1 || chain[0] > 1 {
			t.Errorf("the copy has the lines %d", chain)
		}
		return nil
	}
	u.part = 1
	u.recall()
	if err := u.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if looks < 5 || lines != 13 {
		t.Errorf("%d lines by %d uploads of catalogs", lines, looks)
	}
	eachOnce(t, b.dir, 0, 130)
}

// TestUploadHangs: an upload that hangs keeps nothing back, and ends with the Writer.
func TestUploadHangs(t *testing.T) {
	o := testOptions(t.TempDir())
	hangs := make(chan struct{}, 1)
	o.Upload = &Upload{Run: func(ctx context.Context, _ *UploadFile) error {
		select {
		case hangs <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	w := openTest(t, o)
	appendTest(t, w, 0, 60)
	<-hangs
	appendTest(t, w, 60, 130)
	until(t, "the seals and a removal", func() bool { return w.Stats.Seals.Load() == 2 && w.Stats.RemovedAge.Load() == 1 })
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if w.Stats.Upload.Errors.Load() != 0 {
		t.Error("the end of the Writer counts as a failure")
	}
}

// TestHook runs hooks that misbehave in every way, by the process that stands between.
func TestHook(t *testing.T) {
	dir := t.TempDir()
	file := &UploadFile{Kind: KindSegment, File: "/a/b.parquet", Path: "host=gw1/date=2026-03-20/b.parquet", SHA256: "ab", Size: 7,
		Host: "gw1", Date: "2026-03-20"}
	pids := filepath.Join(dir, "pids")
	for _, c := range []struct {
		name, script, want string
		timeout            time.Duration
	}{
		{name: "succeeds", script: `env | grep ^CTLOGD_ | sort; test "$CTLOGD_KIND $CTLOGD_FILE $CTLOGD_PATH $CTLOGD_SHA256 $CTLOGD_SIZE $CTLOGD_HOST $CTLOGD_DATE" = "segment /a/b.parquet host=gw1/date=2026-03-20/b.parquet ab 7 gw1 2026-03-20"`},
		{name: "fails", script: `echo first >&2; echo 'no such bucket' >&2; exit 3`, want: "exit status 3: no such bucket"},
		{name: "fails with odd words", script: `printf 'a\033[31mb\377\001\n'; exit 1`, want: "exit status 1: a [31mb  "},
		{name: "is killed", script: `kill -9 $$`, want: "signal: killed"},
		{name: "floods", script: `head -c 20000000 /dev/zero | tr '\0' x >&2; echo; echo end; exit 4`, want: "exit status 4: end"},
		{name: "hangs", script: `sleep 600 & echo $! >` + pids + `; wait`, timeout: 300 * time.Millisecond, want: "it was ended after 300ms"},
		{name: "hangs, and floods, and hears nothing", script: `trap '' TERM; echo $$ >` + pids + `; yes >&2`, timeout: 300 * time.Millisecond, want: "it was ended after 300ms: y"},
		{name: "leaves a child", script: `sleep 600 & echo $! >` + pids + `; exit 0`},
		{name: "has the lowest priority", script: `ulimit -c 0; test "$(ps -o cls= -p $$ | tr -d ' ')" = IDL && ionice -p $$ | grep -q idle`},
		{name: "has no rights", script: `grep -q 'CapAmb:.0*$' /proc/self/status`},
	} {
		t.Run(c.name, func(t *testing.T) {
			os.Remove(pids)
			if c.timeout == 0 {
				c.timeout = time.Minute
			}
			err := runHook(t.Context(), &Upload{Command: []string{"/bin/sh", "-c", c.script}, Timeout: c.timeout}, file)
			if c.want == "" && err != nil || c.want != "" && (err == nil || strings.TrimSpace(err.Error()) != strings.TrimSpace(c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if text, err := os.ReadFile(pids); err == nil {
				until(t, "its children gone", func() bool {
					_, err := os.Stat("/proc/" + strings.TrimSpace(string(text)) + "/exe")
					return err != nil
				})
			}
		})
	}
	t.Run("loses the process between", func(t *testing.T) {
		os.Remove(pids)
		err := runHook(t.Context(), &Upload{Command: []string{"/bin/sh", "-c", `sh -c 'sleep 600 & echo $!; wait' >` + pids + ` & sleep 0.1; kill -9 $PPID; wait`}, Timeout: time.Minute}, file)
		if err == nil || err.Error() != "signal: killed" {
			t.Errorf("%v", err)
		}
		text, err := os.ReadFile(pids)
		if err != nil || len(text) == 0 {
			t.Fatalf("no grandchild: %v", err)
		}
		until(t, "its grandchild gone", func() bool {
			_, err := os.Stat("/proc/" + strings.TrimSpace(string(text)) + "/exe")
			return err != nil
		})
	})
	if err := runHook(t.Context(), &Upload{Command: []string{filepath.Join(dir, "none")}, Timeout: time.Minute}, file); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without a program: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if err := runHook(ctx, &Upload{Command: []string{"/bin/sh", "-c", "sleep 600"}, Timeout: time.Minute}, file); !errors.Is(err, context.Canceled) {
		t.Errorf("at the end of the daemon: %v", err)
	}
}

// TestHookWithoutDaemon kills the daemon, which can clean nothing up: the hook, its child and the process between are gone.
func TestHookWithoutDaemon(t *testing.T) {
	for _, c := range []struct{ name, script string }{
		{"hears nothing", `trap '' TERM; sleep 600 & echo $! $$ $PPID >"$PIDS"; wait`},
		{"leaves a child that hears nothing", `(trap '' TERM; exec sleep 600) & echo $! $$ $PPID >"$PIDS"; wait`},
	} {
		for i := range 3 {
			t.Run(fmt.Sprint(c.name, i), func(t *testing.T) {
				t.Parallel()
				pids := filepath.Join(t.TempDir(), "pids")
				daemon := exec.Command("/proc/self/exe")
				daemon.Env = append(os.Environ(), killedHook+"="+c.script, "PIDS="+pids)
				if err := daemon.Start(); err != nil {
					t.Fatal(err)
				}
				var all []string
				until(t, "the hook at work", func() bool {
					text, _ := os.ReadFile(pids)
					all = strings.Fields(string(text))
					return len(all) == 3
				})
				_ = daemon.Process.Kill()
				_ = daemon.Wait()
				for i, who := range []string{"child", "hook", "watcher"} {
					until(t, who+" gone", func() bool {
						_, err := os.Stat("/proc/" + all[i] + "/exe")
						return err != nil
					})
				}
			})
		}
	}
}

// TestCloseWhileItHangs wants Close bounded, and the archive to be given back when what hangs has returned.
func TestCloseWhileItHangs(t *testing.T) {
	b := newBucket(t)
	o := b.options(t)
	hangs, begun := make(chan struct{}), make(chan struct{}, 1)
	o.Upload.Run = func(context.Context, *UploadFile) error {
		select {
		case begun <- struct{}{}:
		default:
		}
		<-hangs
		return errors.New("it hung")
	}
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	appendTest(t, w, 0, 130)
	<-begun
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.Close(over); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v of an upload that hangs", err)
	}
	if _, err := Open(o); err == nil {
		t.Fatal("opened while the other one is at work")
	}
	close(hangs)
	o.Upload = nil
	until(t, "the archive is free", func() bool {
		w, err := Open(o)
		return err == nil && w.Close(context.Background()) == nil
	})
	runtime.KeepAlive(w) // or the garbage collector would close its files
}
