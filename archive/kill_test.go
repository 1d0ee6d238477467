package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "seal" { // Child starts this binary so
		at := os.Getenv(killStep)
		step = func(s string) error {
			if s == at {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
			return nil
		}
		os.Exit(SealMain(os.Args[2:], os.Stdout, os.Stderr))
	}
	if len(os.Args) > 2 && os.Args[1] == "hook" {
		os.Exit(HookMain(context.Background(), os.Args[2:], os.Stdout, os.Stderr))
	}
	if script := os.Getenv(killedHook); script != "" {
		_ = runHook(context.Background(), &Upload{Command: []string{"/bin/sh", "-c", script}, Timeout: time.Hour}, &UploadFile{})
		os.Exit(1)
	}
	if os.Getenv("ARCHIVE_TEST_DIR") != "" {
		os.Exit(childMain())
	}
	os.Exit(m.Run())
}

// killStep names the step at which a process that seals kills itself.
const killStep = "ARCHIVE_TEST_SEAL_STEP"

// killedHook is the script of a hook whose daemon is killed.
const killedHook = "ARCHIVE_TEST_KILLED_HOOK"

// Records of these tests are numbered: the number is their mark.
const (
	testRecords = 130
	oldRecords  = 50 // the first segment's, which are so old that retention removes them
)

var testNow = time.Date(2026, 3, 20, 12, 0, 0, 0, time.UTC)

func numbered(n int) *flow.Record {
	b := flow.NewBatch(1, nil)
	r := b.Next()
	*r = *makeTrace(5, uint64(n))[4]
	r.Has |= flow.HasMark
	r.Mark = uint32(n)
	r.Stop = testNow.UnixNano() - int64(time.Hour) + int64(n)
	if n < oldRecords {
		r.Stop -= int64(10 * 24 * time.Hour)
	}
	r.Start = r.Stop - int64(time.Second)
	r.Received = r.Stop
	return r
}

func testOptions(dir string) Options {
	return Options{Dir: dir, Host: "gw1", Observer: "obs", Interval: time.Hour, Records: 50, Sync: SyncAlways,
		Retention: Retention{MaxAge: 5 * 24 * time.Hour}, retry: 10 * time.Millisecond, Now: func() time.Time { return testNow },
		Seal: func(_ context.Context, path string) (Sealed, error) {
			seg, date, err := Seal(path)
			return Sealed{seg, date}, err
		}}
}

// childMain writes the records from number ARCHIVE_TEST_FROM on, prints the number of each that is safe, and waits until
// the archive has nothing to do. It kills itself where ARCHIVE_TEST_STEP says.
func childMain() int {
	name, nth, _ := strings.Cut(os.Getenv("ARCHIVE_TEST_STEP"), "#")
	left, _ := strconv.Atoi(nth)
	step = func(s string) error {
		if s == name {
			if left--; left == 0 {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
		}
		return nil
	}
	from, _ := strconv.Atoi(os.Getenv("ARCHIVE_TEST_FROM"))
	w, err := Open(testOptions(os.Getenv("ARCHIVE_TEST_DIR")))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for n := from; n < testRecords; n += 10 {
		var recs []*flow.Record
		for i := range 10 {
			recs = append(recs, numbered(n+i))
		}
		if _, err := w.Append(recs); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(n + 10)
	}
	for w.Stats.RowLogs.Load() > 1 || w.Stats.RemovedAge.Load() == 0 && os.Getenv("ARCHIVE_TEST_STEP") != "" {
		time.Sleep(time.Millisecond) // polls: what is waited for runs on the keeper's goroutine
	}
	if err := w.Close(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// runChild runs the writer until it ends or is killed, and returns from which number on records are not known to be safe.
func runChild(t *testing.T, dir, at string, from int) (next int, killed bool) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "ARCHIVE_TEST_DIR="+dir, "ARCHIVE_TEST_STEP="+at, "ARCHIVE_TEST_FROM="+strconv.Itoa(from))
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	next = from
	for s := bufio.NewScanner(&out); s.Scan(); {
		next, _ = strconv.Atoi(s.Text())
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return next, true
	}
	if err != nil {
		t.Fatalf("at %s: %v: %s", at, err, stderr.String())
	}
	return next, false
}

// counts returns how often each number is in the archive.
func counts(t *testing.T, dir string) (n [testRecords]int) {
	t.Helper()
	r, err := OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, h := range r.Hosts {
		for _, p := range h.Problems {
			t.Error(p)
		}
	}
	for w, err := range r.Rows(context.Background(), &Query{}) {
		if err != nil {
			t.Error(err)
		} else if w.Record.Event == flow.EventDestroy {
			n[w.Record.Mark]++
		}
	}
	return n
}

// TestKillAtEveryStep kills the writer at every step of writing, sealing, cataloguing and removal, twice at each, and
// starts it again: no record that was acknowledged is lost, none is doubled but those that were in hand, and a reader
// sees each once at every moment, too.
func TestKillAtEveryStep(t *testing.T) {
	var steps []string
	var mu sync.Mutex // steps are the writer's and its keeper's
	step = func(s string) error {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(steps, s) {
			steps = append(steps, s)
		}
		return nil
	}
	dir := t.TempDir()
	func() {
		defer func() { step = func(string) error { return nil } }()
		w, err := Open(testOptions(dir))
		if err != nil {
			t.Fatal(err)
		}
		for n := range testRecords {
			if _, err := w.Append([]*flow.Record{numbered(n)}); err != nil {
				t.Fatal(err)
			}
		}
		await(t, func() bool { return w.Stats.RowLogs.Load() == 1 && w.Stats.RemovedAge.Load() == 1 })
		if err := w.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}()
	if len(steps) < 16 {
		t.Fatalf("only the steps %v", steps)
	}
	var killed atomic.Int64
	t.Run("kill", func(t *testing.T) {
		for _, s := range steps {
			for nth := 1; nth <= 2; nth++ {
				at := fmt.Sprintf("%s#%d", s, nth)
				t.Run(at, func(t *testing.T) {
					t.Parallel()
					if killAt(t, at) {
						killed.Add(1)
					}
				})
			}
		}
	})
	if int(killed.Load()) < len(steps) {
		t.Errorf("killed %d times at %d steps", killed.Load(), len(steps))
	}
	t.Logf("killed %d times at %d steps: %v", killed.Load(), len(steps), steps)
}

// killAt kills the writer at a step, starts it again, and looks at what is there.
func killAt(t *testing.T, at string) (dead bool) {
	dir := t.TempDir()
	next, dead := runChild(t, dir, at, 0)
	if dead {
		check(t, at+", killed", counts(t, dir), next, false)
		runChild(t, dir, "", next)
	}
	w, err := Open(testOptions(dir)) // what was left is finished now, if not before
	if err != nil {
		t.Fatalf("at %s: %v", at, err)
	}
	await(t, func() bool { return w.Stats.RowLogs.Load() == 1 && oldestIsYoung(w) })
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	check(t, at, counts(t, dir), testRecords, true)
	checkChain(t, at, dir)
	if left, _ := filepath.Glob(dir + "/host=gw1/date=*/*.tmp"); len(left) > 0 {
		t.Errorf("at %s: %v are left", at, left)
	}
	return dead
}

func oldestIsYoung(w *Writer) bool {
	next := w.Stats.NextRemoval.Load()
	return next > testNow.UnixNano()
}

func await(t *testing.T, ok func() bool) {
	t.Helper()
	until(t, "what it waits for", ok)
}

// until is await that says for what.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("within a minute not:", what)
		}
	}
}

// check tells what is lost or doubled. Ten records were in hand when the writer was killed.
func check(t *testing.T, at string, n [testRecords]int, safe int, done bool) {
	t.Helper()
	for i, c := range n {
		switch {
		case i < oldRecords:
			// What was in hand is there twice, and moves others into the segment after.
			if done && c != 0 && i < oldRecords-10 || c > 2 {
				t.Errorf("at %s: record %d, which retention removes, is there %d times", at, i, c)
			}
		case i < safe && c == 0:
			t.Errorf("at %s: record %d is lost", at, i)
		case !done && c > 1:
			t.Errorf("at %s: record %d is there %d times", at, i, c)
		}
	}
	doubled := 0
	for _, c := range n {
		if c > 1 {
			doubled++
		}
	}
	if doubled > 10 {
		t.Errorf("at %s: %d records are doubled, and 10 were in hand", at, doubled)
	}
}

// checkChain tells whether the lines of all catalogs are one chain.
func checkChain(t *testing.T, at, dir string) {
	t.Helper()
	r, err := OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	if holes := r.Hosts[0].Holes; len(holes) > 0 {
		t.Errorf("at %s: %v", at, holes)
	}
	prev := ""
	for i, l := range r.Hosts[0].Lines {
		if l.N != uint64(i) || l.Prev != prev {
			t.Errorf("at %s: line %d has number %d and follows %q, want %q", at, i, l.N, l.Prev, prev)
		}
		prev = l.Hash
	}
}

// TestChildKilled: the process that seals is killed at each of its steps; the records stay safe in the row log, and are sealed
// once it is left alone. Another row log is sealed meanwhile.
func TestChildKilled(t *testing.T) {
	for _, at := range []string{"seal.create", "seal.written", "seal.synced", "seal.read", "seal.renamed"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			o := testOptions(t.TempDir())
			o.Retention = Retention{}
			var kills atomic.Int64
			o.Seal = func(ctx context.Context, path string) (Sealed, error) {
				if sequence, _ := rowLogSequence(filepath.Base(path)); sequence == 1 && kills.Add(1) <= 2 {
					return child(ctx, path, killStep+"="+at)
				}
				return Child(ctx, path)
			}
			w, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			var recs []*flow.Record
			for n := range testRecords {
				recs = append(recs, numbered(n))
			}
			if n, err := w.Append(recs); n != len(recs) || err != nil {
				t.Fatal(n, err)
			}
			await(t, func() bool { return w.Stats.SealErrors.Load() >= 1 })
			for i, c := range counts(t, o.Dir) {
				if c != 1 {
					t.Fatalf("record %d is there %d times while sealing fails", i, c)
				}
			}
			await(t, func() bool { return w.Stats.Seals.Load() == 2 })
			if w.Stats.SealErrors.Load() != 2 || w.Stats.Waiting.Load() != 30 || w.Stats.Sealing.Load() != 0 {
				t.Errorf("%d errors, %d waiting, failing since %d", w.Stats.SealErrors.Load(), w.Stats.Waiting.Load(), w.Stats.Sealing.Load())
			}
			if err := w.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			eachOnce(t, o.Dir, 0, testRecords)
			checkChain(t, at, o.Dir)
			if left, _ := filepath.Glob(o.Dir + "/host=gw1/date=*/*.parquet*"); len(left) != 2 {
				t.Errorf("files %v, want two segments", left)
			}
		})
	}
}
