package mark

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
)

// process is a keeper with the queues of a process.
type process struct {
	*Keeper
	queues atomic.Pointer[[]*deliver.Queue]
	logged *observer.ObservedLogs
}

// run starts a process with outputs that take nothing, whose socket is kept.
func run(dir string, outputs ...string) *process {
	p := new(process)
	p.feed(outputs...)
	core, logged := observer.New(zap.InfoLevel)
	p.logged = logged
	p.Keeper = NewKeeper(Options{Dir: dir, Log: zap.New(core), Queues: func() []*deliver.Queue { return *p.queues.Load() },
		ReadUntil: func() time.Time { return time.Unix(0, 5) }, Joined: time.Unix(0, 5), Kept: &Socket{}})
	p.Start()
	return p
}

func (p *process) feed(outputs ...string) (queues []*deliver.Queue) {
	for _, name := range outputs {
		queues = append(queues, queueOf(name, output{broken: true}, nil))
	}
	p.queues.Store(&queues)
	return queues
}

func (p *process) await(t *testing.T, message string) {
	t.Helper()
	eventually(t, "logged: "+message, func() bool { return p.logged.FilterMessageSnippet(message).Len() > 0 })
}

// saved waits for a mark that is as it should be.
func saved(t *testing.T, dir, what string, is func(*Mark) bool) {
	t.Helper()
	eventually(t, what, func() bool { m, err := Load(dir); return err == nil && m != nil && is(m) })
}

// The gaps of an output that a reload or another configuration takes out wait until there is one of its name again, which
// then has one more, of the time between.
func TestGapsOutliveTheirOutput(t *testing.T) {
	dir := t.TempDir()
	gap := deliver.Gap{Gap: flow.Gap{Cause: flow.CauseOverrun, Lost: 3, LostKnown: true, Output: "old"}, From: 1, To: 2}

	// A process takes the output out.
	p := run(dir, "old")
	old := *p.queues.Load()
	old[0].Lose(gap)
	old[0].Start()
	p.feed("a")
	p.Retire(old, time.Unix(0, 7))
	saved(t, dir, "both are in the mark while the one ends", func(m *Mark) bool {
		return len(m.Outputs) == 2 && m.Outputs[1].Name == "old" && m.Outputs[1].Absent == 7 && cmp.Equal(m.Outputs[1].Gaps, []deliver.Gap{gap})
	})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	deliver.Retire(ended, old)
	p.Retired(old)
	p.Finish(nil)
	want := []OutputMark{{Name: "old", Absent: 7, Gaps: []deliver.Gap{gap}}}
	m, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, m.Gone); diff != "" || len(m.Outputs) != 1 || !m.Clean {
		t.Errorf("when it has ended (-want +got):\n%s%+v", diff, m)
	}

	// The next one has no such output, either, and then has.
	p = run(dir, "a")
	saved(t, dir, "it is kept after a start", func(m *Mark) bool { return !m.Clean && cmp.Equal(m.Gone, want) })
	if n := p.logged.FilterField(zap.String("output", "old")).Len(); n != 1 {
		t.Errorf("the log tells of it %d times, want once", n)
	}
	queues := p.feed("a", "old")
	before := time.Now().UnixNano()
	p.Adopt()
	got := queues[1].Unrecorded()
	if len(got) != 2 || got[1].To < before || got[1].To > time.Now().UnixNano() {
		t.Fatalf("back again: %+v", got)
	}
	away := deliver.Gap{Gap: flow.Gap{Cause: flow.CauseOutputDown, Output: "old"}, From: 7, To: got[1].To}
	if diff := cmp.Diff([]deliver.Gap{gap, away}, got); diff != "" {
		t.Errorf("back again (-want +got):\n%s", diff)
	}
	saved(t, dir, "it is kept as the output's", func(m *Mark) bool {
		return len(m.Gone) == 0 && len(m.Outputs) == 2 && cmp.Equal(m.Outputs[1].Gaps, []deliver.Gap{gap, away})
	})
	p.Finish(nil)
}

// Of two processes one has the directory. The other keeps its marks in memory, says so, and takes over when it can: what was
// lost before it began is on record then.
func TestDirectoryIsOnes(t *testing.T) {
	dir := t.TempDir()
	first := run(dir, "a")
	gap := deliver.Gap{Gap: flow.Gap{Cause: flow.CauseGuard, Lost: 3, LostKnown: true}, From: 1, To: 2}
	(*first.queues.Load())[0].Lose(gap)
	saved(t, dir, "the first one's mark", func(m *Mark) bool { return len(m.Outputs[0].Gaps) == 1 })
	second := run(dir, "a")
	second.await(t, "the mark is in memory for now")
	if since, err := second.Failure(); err == nil || since.IsZero() || !strings.Contains(err.Error(), "another ctlogd's") {
		t.Errorf("the second one's failure: %v since %v", err, since)
	}
	if gaps := (*second.queues.Load())[0].Unrecorded(); len(gaps) > 0 {
		t.Errorf("it takes the first one's gaps: %+v", gaps)
	}
	first.Finish(&Socket{})
	second.await(t, "can be written again")
	if diff := cmp.Diff([]deliver.Gap{gap}, (*second.queues.Load())[0].Unrecorded()); diff != "" {
		t.Errorf("gaps of the first one (-want +got):\n%s", diff)
	}
	if _, err := second.Failure(); err != nil {
		t.Error(err)
	}
	second.Finish(nil)
}

// A directory that is missing, or full, is told once, and when it is of use again; nobody waits for it meanwhile.
func TestDirectoryIsOfNoUse(t *testing.T) {
	for name, ail := range map[string]func(t *testing.T, dir string) (mend func() error){
		"missing": func(t *testing.T, dir string) func() error {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			return func() error { return os.Mkdir(dir, 0o700) }
		},
		"a directory in the mark's way": func(t *testing.T, dir string) func() error {
			if err := os.MkdirAll(filepath.Join(dir, fileName, "x"), 0o700); err != nil {
				t.Fatal(err)
			}
			return func() error { return os.RemoveAll(filepath.Join(dir, fileName)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			mend := ail(t, dir)
			p := run(dir, "a")
			p.await(t, "the mark is in memory for now")
			if err := mend(); err != nil {
				t.Fatal(err)
			}
			p.await(t, "can be written again")
			saved(t, dir, "the mark", func(m *Mark) bool { return !m.Clean })
			p.Finish(nil)
			saved(t, dir, "the last mark", func(m *Mark) bool { return m.Clean })
			messages := []string{}
			for _, e := range p.logged.All() {
				messages = append(messages, e.Message)
			}
			told := func(s string) int {
				return len(slices.DeleteFunc(slices.Clone(messages), func(m string) bool { return !strings.Contains(m, s) }))
			}
			if told("in memory for now") != 1 || told("can be written again") != 1 {
				t.Errorf("logged %q", messages)
			}
			if told("take this end for a crash") != 0 {
				t.Errorf("the last mark is written, and logged %q", messages)
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			ail(t, dir)
			p = run(dir, "a")
			p.await(t, "the mark is in memory for now")
			p.Finish(nil)
			p.await(t, "take this end for a crash")
		})
	}
}

// A directory that hangs holds up neither the process nor its end. (A FIFO in the lock's place hangs the open.)
func TestDirectoryHangs(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, fileName), 0o600); err != nil {
		t.Fatal(err)
	}
	p := run(dir, "a") // the keeper hangs where it reads the last mark
	if _, err := p.Failure(); err != nil {
		t.Errorf("at once: %v", err)
	}
	p.Retire(*p.queues.Load(), time.Now())
	p.Retired(*p.queues.Load())
	p.Adopt()
	p.await(t, "the mark is in memory for now") // after hangAfter
	began := time.Now()
	p.Finish(nil)
	if took := time.Since(began); took < finishWithin || took > 10*finishWithin {
		t.Errorf("the end took %v, want %v", took, finishWithin)
	}
	p.await(t, "will take this end for a crash")
	w, err := os.OpenFile(filepath.Join(dir, fileName), os.O_WRONLY, 0) // lets the keeper go
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	<-p.done
}

// TestMarked: an output that no mark tells of has to tell itself what it has missed: without a mark, without a directory, and
// where the mark does not know it. Once it has told, the marks do.
func TestMarked(t *testing.T) {
	dir := t.TempDir()
	p := run(dir, "a")
	if p.Marked("a") {
		t.Error("marked at the first start")
	}
	p.Began("a")
	if !p.Marked("a") {
		t.Error("not marked after it has begun")
	}
	p.Finish(nil)
	p = run(dir, "a", "b")
	if !p.Marked("a") || p.Marked("b") {
		t.Errorf("at the second start: %v, %v; the mark knows a alone", p.Marked("a"), p.Marked("b"))
	}
	p.Finish(nil)
	if err := os.Remove(filepath.Join(dir, fileName)); err != nil {
		t.Fatal(err)
	}
	p = run(dir, "a")
	if p.Marked("a") {
		t.Error("marked, and the mark is lost")
	}
	p.Finish(nil)
	if p = run(dir, "a"); p.Marked("a") {
		t.Error("marked, and the process before has not told what it missed")
	}
	p.Finish(nil)
	none := run("", "a")
	if none.Marked("a") {
		t.Error("marked without a directory")
	}
	none.Finish(nil)
}
