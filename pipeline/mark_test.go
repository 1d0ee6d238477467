package pipeline

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

func TestMarkGaps(t *testing.T) {
	pending := Gap{Gap: flow.Gap{Cause: flow.CauseQueueFull, Lost: 7, LostKnown: true, Output: "a"}, From: 1, To: 2}
	gap := func(c flow.Cause, from int64) Gap {
		return Gap{Gap: flow.Gap{Cause: c, Output: "a"}, From: from, To: 1000}
	}
	mark := func(boot string, clean bool, gaps ...Gap) *Mark {
		return &Mark{Version: 1, BootID: boot, Time: 500, Clean: clean, Outputs: []OutputMark{{Name: "a", Safe: 400,
			Synced: 300, Gaps: gaps}}}
	}
	left := func(s Socket) *Mark {
		m := mark("boot", true)
		m.Socket = &s
		return m
	}
	overrun := func(lost uint64) Gap {
		return Gap{Gap: flow.Gap{Cause: flow.CauseOverrun, Lost: lost, LostKnown: true}, From: 500, To: 1000}
	}
	tests := []struct {
		name string
		mark *Mark
		out  string
		kept bool
		want []Gap
	}{
		{"stopped in order and started again", mark("boot", true), "a", false, []Gap{gap(flow.CauseDowntime, 500)}},
		{"restarted with its socket", mark("boot", true), "a", true, nil},
		{"killed", mark("boot", false), "a", false, []Gap{gap(flow.CauseCrash, 400)}},
		{"killed, its socket kept", mark("boot", false), "a", true, []Gap{gap(flow.CauseCrash, 400)}},
		{"power failed", mark("other", false), "a", false, []Gap{gap(flow.CauseReboot, 300)}},
		{"rebooted in order", mark("other", true), "a", false, []Gap{gap(flow.CauseReboot, 500)}},
		{"a gap was waiting", mark("boot", true, pending), "a", true, []Gap{pending}},
		{"a gap was waiting, and time passed", mark("boot", true, pending), "a", false, []Gap{pending, gap(flow.CauseDowntime, 500)}},
		{"a new output", mark("boot", false, pending), "b", false, []Gap{
			{Gap: flow.Gap{Cause: flow.CauseCrash, Output: "b"}, From: 500, To: 1000}}},
		{"a new output, the socket kept", mark("boot", true, pending), "b", true, nil},
		{"an output that was gone", &Mark{Version: 1, BootID: "boot", Time: 500, Clean: true,
			Gone: []OutputMark{{Name: "a", Gaps: []Gap{pending}}}}, "a", true, []Gap{pending}},
		{"the kept socket has dropped", left(Socket{Cookie: 7, Drops: 1, Lossy: true}), "a", true, []Gap{overrun(1)}},
		{"the count of drops has wrapped", left(Socket{Cookie: 7, Drops: 1<<32 - 3, Lossy: true}), "a", true,
			[]Gap{overrun(5)}},
		{"nothing was dropped", left(Socket{Cookie: 7, Drops: 2, Lossy: true}), "a", true, nil},
		{"what was dropped came again", left(Socket{Cookie: 7, Drops: 1}), "a", true, nil},
		{"another socket", left(Socket{Cookie: 6, Drops: 2, Lossy: true}), "a", true,
			[]Gap{gap(flow.CauseDowntime, 500)}},
		{"not kept", left(Socket{Cookie: 7, Drops: 1, Lossy: true}), "a", false, []Gap{gap(flow.CauseDowntime, 500)}},
		{"killed, and the clock was set back", &Mark{Version: 1, BootID: "boot", Time: 3000, Outputs: []OutputMark{{Name: "a",
			Safe: 2900}}}, "a", false, []Gap{{Gap: flow.Gap{Cause: flow.CauseCrash, Output: "a"}, From: 1000, To: 3000}}},
		{"the clock was set back, and then it was killed", &Mark{Version: 1, BootID: "boot", Time: 500, Outputs: []OutputMark{{Name: "a",
			Safe: 9000}}}, "a", false, []Gap{{Gap: flow.Gap{Cause: flow.CauseCrash, Output: "a"}, From: 500, To: 9000}}},
		{"an unreadable mark", &Mark{Time: 500}, "a", false, []Gap{gap(flow.CauseReboot, 500-int64(writeback()))}},
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
	gap := func(output string, from int64) Gap {
		return Gap{Gap: flow.Gap{Cause: flow.CauseCrash, Output: output}, From: from, To: 500}
	}
	m := &Mark{Time: 500, Outputs: []OutputMark{{Name: "a", Safe: 300}, {Name: "b", Safe: 400, Gaps: []Gap{gap("b", 1)}},
		{Name: "c", Safe: 400}}, Gone: []OutputMark{{Name: "d", Gaps: []Gap{gap("d", 2)}}, {Name: "a"}}}
	want := []OutputMark{{Name: "d", Gaps: []Gap{gap("d", 2)}}, {Name: "b", Gaps: []Gap{gap("b", 1), gap("b", 400)}},
		{Name: "c", Gaps: []Gap{gap("c", 400)}}}
	if diff := cmp.Diff(want, m.Orphans([]string{"a"})); diff != "" {
		t.Errorf("killed (-want +got):\n%s", diff)
	}
	m.Clean = true
	want = []OutputMark{{Name: "d", Gaps: []Gap{gap("d", 2)}}, {Name: "b", Gaps: []Gap{gap("b", 1)}}}
	if diff := cmp.Diff(want, m.Orphans([]string{"a"})); diff != "" {
		t.Errorf("ended in order (-want +got):\n%s", diff)
	}
}

func TestMarkOnDisk(t *testing.T) {
	dir := t.TempDir()
	if m, err := LoadMark(dir); m != nil || err != nil {
		t.Fatalf("first start: got %v and error %v, want neither", m, err)
	}
	want := Mark{Version: 1, BootID: "b", Time: 5, Outputs: []OutputMark{{Name: "a", Safe: 4, Gaps: []Gap{{From: 1, To: 2,
		Gap: flow.Gap{Cause: flow.CauseGuard, Lost: 1 << 63, LostKnown: true, Output: "a"}}}}}}
	if err := want.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := LoadMark(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("mark (-want +got):\n%s", diff)
	}
	whole, err := os.ReadFile(filepath.Join(dir, markName))
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
		name := filepath.Join(dir, markName)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Unix(1e9, 0)
		if err := os.Chtimes(name, then, then); err != nil {
			t.Fatal(err)
		}
		m, err := LoadMark(dir)
		if err == nil || m == nil || m.Time != then.UnixNano() || len(m.Outputs) != 0 {
			t.Errorf("mark %q: got %+v and error %v, want its file's time and an error", text, m, err)
		}
	}
}

// TestMarkIsSafe follows a record through a queue: as long as it is not delivered, the mark does not pass it.
func TestMarkIsSafe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		q := NewQueue(&stub{write: func(_ context.Context, _ int, recs []*flow.Record) (int, error) {
			<-hold
			return len(recs), nil
		}}, nil, 0, zap.NewNop())
		p := New(nil, []*Queue{q})
		const read = 5000
		safe := func() int64 { return NewMark(p.Queues(), "", time.Unix(0, read), false).Outputs[0].Safe }
		if got := safe(); got != read {
			t.Errorf("empty queue: safe until %d, want %d", got, read)
		}
		send(p, 1000, 5)
		if got := safe(); got != 1000 {
			t.Errorf("queued: safe until %d, want 1000, when the oldest was read", got)
		}
		p.Start()
		synctest.Wait()
		send(p, 2000, 5)
		if got := safe(); got != 1000 {
			t.Errorf("in the write: safe until %d, want 1000", got)
		}
		hold <- struct{}{}
		synctest.Wait()
		if got := safe(); got != 2000 {
			t.Errorf("the next write: safe until %d, want 2000", got)
		}
		hold <- struct{}{}
		synctest.Wait()
		if got := safe(); got != read {
			t.Errorf("delivered: safe until %d, want %d", got, read)
		}
		// The kernel has held them back: they came late, and are older than others that came before.
		for _, n := range []int{5, batchRecords} { // in a batch of its size, and not
			b := p.Batch()
			b.Since = 700
			for range n {
				r := b.Next()
				r.Event, r.Received = flow.EventDestroy, 3000
			}
			p.Ingest(b)
			synctest.Wait()
			if got := safe(); got != 700 {
				t.Errorf("held back: safe until %d, want 700", got)
			}
			hold <- struct{}{}
			synctest.Wait()
		}
		// The clock is set back.
		send(p, 4000, 5)
		synctest.Wait()
		send(p, 600, 5)
		send(p, 650, 5)
		if got := safe(); got != 600 {
			t.Errorf("the clock was set back: safe until %d, want 600", got)
		}
		hold <- struct{}{}
		hold <- struct{}{}
		synctest.Wait()
		p.Close(t.Context())
		if got := NewMark(p.Queues(), "", time.Unix(0, read), true).Time; got != read {
			t.Errorf("ended in order: the mark is of %d, want %d, when no more events came", got, read)
		}
	})
}

// unsynced is an output that leaves the disk to the kernel.
type unsynced struct {
	stub
	is bool
}

func (u *unsynced) Unsynced() bool { return u.is }

// What the end of the machine takes with it is more than what that of the process does.
func TestMarkIsSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		for is, want := range map[bool]time.Duration{false: 0, true: writeback()} {
			q := NewQueue(&unsynced{is: is}, nil, 0, zap.NewNop())
			if o := NewMark([]*Queue{q}, "", now, false).Outputs[0]; o.Safe != now.UnixNano() || o.Safe-o.Synced != int64(want) {
				t.Errorf("unsynced %v: safe until %d, synced %v before, want %v", is, o.Safe, time.Duration(o.Safe-o.Synced), want)
			}
		}
	})
	if w := writeback(); w < 5*time.Second || w > time.Hour {
		t.Errorf("the kernel writes back within %v", w)
	}
	q := NewQueue(newSwitched(true), nil, 0, zap.NewNop())
	q.Spill(openSpool(t, t.TempDir(), 0))
	p := New(nil, []*Queue{q})
	p.Start()
	defer p.Close(t.Context())
	send(p, 1000, 5)
	mark := func() OutputMark { return NewMark([]*Queue{q}, "", time.Unix(0, 5000), false).Outputs[0] }
	eventually(t, "the records are in the spool", func() bool { o := mark(); return o.Safe == 5000 && o.Synced == 1000 })
	eventually(t, "the spool is synced", func() bool { o := mark(); return o.Synced == 5000 })
}
