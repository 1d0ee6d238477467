package mark

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
	"github.com/ctlogd/ctlogd/pipeline/spool"
)

func TestMarkGaps(t *testing.T) {
	pending := deliver.Gap{Gap: flow.Gap{Cause: flow.CauseQueueFull, Lost: 7, LostKnown: true, Output: "a"}, From: 1, To: 2}
	gap := func(c flow.Cause, from int64) deliver.Gap {
		return deliver.Gap{Gap: flow.Gap{Cause: c, Output: "a"}, From: from, To: 1000}
	}
	mark := func(boot string, clean bool, gaps ...deliver.Gap) *Mark {
		return &Mark{Version: 1, BootID: boot, Time: 500, Clean: clean, Outputs: []OutputMark{{Name: "a", DeliveredUntil: 400,
			Synced: 300, Gaps: gaps}}}
	}
	left := func(s Socket) *Mark {
		m := mark("boot", true)
		m.Socket = &s
		return m
	}
	overrun := func(lost uint64) deliver.Gap {
		return deliver.Gap{Gap: flow.Gap{Cause: flow.CauseOverrun, Lost: lost, LostKnown: true}, From: 500, To: 1000}
	}
	tests := []struct {
		name string
		mark *Mark
		out  string
		kept bool
		want []deliver.Gap
	}{
		{"stopped in order and started again", mark("boot", true), "a", false, []deliver.Gap{gap(flow.CauseDowntime, 500)}},
		{"restarted with its socket", mark("boot", true), "a", true, nil},
		{"killed", mark("boot", false), "a", false, []deliver.Gap{gap(flow.CauseCrash, 400)}},
		{"killed, its socket kept", mark("boot", false), "a", true, []deliver.Gap{gap(flow.CauseCrash, 400)}},
		{"power failed", mark("other", false), "a", false, []deliver.Gap{gap(flow.CauseReboot, 300)}},
		{"rebooted in order", mark("other", true), "a", false, []deliver.Gap{gap(flow.CauseReboot, 500)}},
		{"a gap was waiting", mark("boot", true, pending), "a", true, []deliver.Gap{pending}},
		{"a gap was waiting, and time passed", mark("boot", true, pending), "a", false, []deliver.Gap{pending, gap(flow.CauseDowntime, 500)}},
		{"a new output", mark("boot", false, pending), "b", false, []deliver.Gap{
			{Gap: flow.Gap{Cause: flow.CauseCrash, Output: "b"}, From: 500, To: 1000}}},
		{"a new output, the socket kept", mark("boot", true, pending), "b", true, nil},
		{"an output that was gone", &Mark{Version: 1, BootID: "boot", Time: 500, Clean: true,
			Gone: []OutputMark{{Name: "a", Gaps: []deliver.Gap{pending}}}}, "a", true, []deliver.Gap{pending}},
		{"the kept socket has dropped", left(Socket{Cookie: 7, Drops: 1, Lossy: true}), "a", true, []deliver.Gap{overrun(1)}},
		{"the count of drops has wrapped", left(Socket{Cookie: 7, Drops: 1<<32 - 3, Lossy: true}), "a", true,
			[]deliver.Gap{overrun(5)}},
		{"nothing was dropped", left(Socket{Cookie: 7, Drops: 2, Lossy: true}), "a", true, nil},
		{"what was dropped came again", left(Socket{Cookie: 7, Drops: 1}), "a", true, nil},
		{"another socket", left(Socket{Cookie: 6, Drops: 2, Lossy: true}), "a", true,
			[]deliver.Gap{gap(flow.CauseDowntime, 500)}},
		{"not kept", left(Socket{Cookie: 7, Drops: 1, Lossy: true}), "a", false, []deliver.Gap{gap(flow.CauseDowntime, 500)}},
		{"killed, and the clock was set back", &Mark{Version: 1, BootID: "boot", Time: 3000, Outputs: []OutputMark{{Name: "a",
			DeliveredUntil: 2900}}}, "a", false, []deliver.Gap{{Gap: flow.Gap{Cause: flow.CauseCrash, Output: "a"}, From: 1000, To: 3000}}},
		{"the clock was set back, and then it was killed", &Mark{Version: 1, BootID: "boot", Time: 500, Outputs: []OutputMark{{Name: "a",
			DeliveredUntil: 9000}}}, "a", false, []deliver.Gap{{Gap: flow.Gap{Cause: flow.CauseCrash, Output: "a"}, From: 500, To: 9000}}},
		{"an unreadable mark", &Mark{Time: 500}, "a", false, []deliver.Gap{gap(flow.CauseReboot, 500-int64(writeback()))}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var kept *Socket
			if tt.kept {
				kept = &Socket{Cookie: 7, Drops: 2, Lossy: true}
			}
			if diff := cmp.Diff(tt.want, tt.mark.Gaps(tt.out, "boot", kept, time.Unix(0, 1000))); diff != "" {
				t.Errorf("gaps (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMarkOrphans(t *testing.T) {
	gap := func(output string, from int64) deliver.Gap {
		return deliver.Gap{Gap: flow.Gap{Cause: flow.CauseCrash, Output: output}, From: from, To: 500}
	}
	m := &Mark{Time: 500, Outputs: []OutputMark{{Name: "a", DeliveredUntil: 300}, {Name: "b", DeliveredUntil: 400, Gaps: []deliver.Gap{gap("b", 1)}},
		{Name: "c", DeliveredUntil: 400}}, Gone: []OutputMark{{Name: "d", Gaps: []deliver.Gap{gap("d", 2)}}, {Name: "a"}}}
	want := []OutputMark{{Name: "d", Gaps: []deliver.Gap{gap("d", 2)}}, {Name: "b", Absent: 500, Gaps: []deliver.Gap{gap("b", 1), gap("b", 400)}},
		{Name: "c", Absent: 500, Gaps: []deliver.Gap{gap("c", 400)}}}
	if diff := cmp.Diff(want, m.Orphans([]string{"a"})); diff != "" {
		t.Errorf("killed (-want +got):\n%s", diff)
	}
	m.Clean = true
	want = []OutputMark{{Name: "d", Gaps: []deliver.Gap{gap("d", 2)}}, {Name: "b", Absent: 500, Gaps: []deliver.Gap{gap("b", 1)}}, {Name: "c", Absent: 500}}
	if diff := cmp.Diff(want, m.Orphans([]string{"a"})); diff != "" {
		t.Errorf("ended in order (-want +got):\n%s", diff)
	}
}

func TestMarkOnDisk(t *testing.T) {
	dir := t.TempDir()
	if m, err := Load(dir); m != nil || err != nil {
		t.Fatalf("first start: got %v and error %v, want neither", m, err)
	}
	want := Mark{Version: 1, BootID: "b", Time: 5, Outputs: []OutputMark{{Name: "a", DeliveredUntil: 4, Gaps: []deliver.Gap{{From: 1, To: 2,
		Gap: flow.Gap{Cause: flow.CauseGuard, Lost: 1 << 63, LostKnown: true, Output: "a"}}}}}}
	if err := want.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("mark (-want +got):\n%s", diff)
	}
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	bad := []string{"{", `{"version": 99}`, `{"version": "1"}`, string(make([]byte, len(whole))), string(make([]byte, 4096))}
	for cut := range whole { // after a power failure a file may be short, and zeros may be in it
		bad = append(bad, string(whole[:cut]))
		if cut > 0 {
			bad = append(bad, string(whole[:cut-1])+string(make([]byte, len(whole)-cut+1)))
		}
	}
	for _, text := range bad {
		if text == string(whole[:len(whole)-1]) {
			continue // lacks the newline alone
		}
		name := filepath.Join(dir, fileName)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Unix(1e9, 0)
		if err := os.Chtimes(name, then, then); err != nil {
			t.Fatal(err)
		}
		m, err := Load(dir)
		if err == nil || m == nil || m.Time != then.UnixNano() || len(m.Outputs) != 0 {
			t.Errorf("mark %q: got %+v and error %v, want its file's time and an error", text, m, err)
		}
	}
}

// output is one that is there and does as it is told.
type output struct{ unsynced, broken bool }

func (output) Name() string { return "a" }

func (o output) Write(_ context.Context, recs []*flow.Record) (int, error) {
	if o.broken {
		return 0, errors.New("broken")
	}
	return len(recs), nil
}

func (output) Close(context.Context) error { return nil }
func (o output) Unsynced() bool            { return o.unsynced }

func queueOf(name string, o output, open func() (*spool.Spool, error)) *deliver.Queue {
	return deliver.New(deliver.Config{Name: name, Build: func() (deliver.Output, error) { return o, nil }, Spool: open})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

// What the end of the machine takes with it is more than what that of the process does.
func TestMarkIsSynced(t *testing.T) {
	for is, want := range map[bool]time.Duration{false: 0, true: writeback()} {
		q := queueOf("a", output{unsynced: is}, nil)
		q.Start()
		eventually(t, "the output is there", func() bool { return q.Output() != nil })
		before, read := time.Now(), time.Now().Add(time.Hour)
		o := New([]*deliver.Queue{q}, "", read, false).Outputs[0]
		wantSynced := read.UnixNano()
		if is {
			wantSynced = before.Add(-want).UnixNano()
		}
		if o.DeliveredUntil != read.UnixNano() || o.Synced < wantSynced || o.Synced > wantSynced+int64(time.Minute) {
			t.Errorf("unsynced %v: safe until %d, synced until %d, want about %d", is, o.DeliveredUntil, o.Synced, wantSynced)
		}
		deliver.Retire(t.Context(), []*deliver.Queue{q})
	}
	if w := writeback(); w < 5*time.Second || w > time.Hour {
		t.Errorf("the kernel writes back within %v", w)
	}
	cfg := spool.Config{Path: t.TempDir()}
	q := queueOf("a", output{broken: true}, func() (*spool.Spool, error) { return spool.Open(cfg, "a", nil) })
	queues := []*deliver.Queue{q}
	q.Start()
	defer deliver.Retire(t.Context(), queues)
	b := flow.NewBatch(5, nil)
	for !b.Full() {
		r := b.Next()
		r.Event, r.Received = flow.EventDestroy, 1000
	}
	b.Hold(1)
	q.Offer(b)
	mark := func() OutputMark { return New(queues, "", time.Unix(0, 5000), false).Outputs[0] }
	eventually(t, "the records are in the spool", func() bool { o := mark(); return o.DeliveredUntil == 5000 && o.Synced == 1000 })
	eventually(t, "the spool is synced", func() bool { o := mark(); return o.Synced == 5000 })
	if got := New(queues, "", time.Unix(0, 5000), true).Time; got != 5000 {
		t.Errorf("ended in order: the mark is of %d, want 5000, when no more events came", got)
	}
}

// Two outputs of a name, of which one was taken out and has not ended, have one mark: nothing of either is overlooked.
func TestMarkOfTwoOfAName(t *testing.T) {
	gap := func(from int64) deliver.Gap {
		return deliver.Gap{Gap: flow.Gap{Cause: flow.CauseQueueFull}, From: from, To: from}
	}
	m := Mark{Version: 1, BootID: "boot", Time: 500, Outputs: []OutputMark{
		{Name: "a", DeliveredUntil: 400, Synced: 400, Gaps: []deliver.Gap{gap(1)}}, {Name: "a", DeliveredUntil: 300, Synced: 200, Gaps: []deliver.Gap{gap(2)}}}}
	want := []deliver.Gap{gap(1), gap(2), {Gap: flow.Gap{Cause: flow.CauseCrash, Output: "a"}, From: 300, To: 1000}}
	if diff := cmp.Diff(want, m.Gaps("a", "boot", nil, time.Unix(0, 1000))); diff != "" {
		t.Errorf("gaps (-want +got):\n%s", diff)
	}
}
