package input

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// testClock is a clock that the test sets: both readings are in seconds here.
type testClock struct {
	wall, steady   float64
	unsynchronized bool
	refused        error
	asked          int
}

func (c *testClock) watch(log *zap.Logger) *clock {
	ns := func(s float64) int64 { return int64(s * 1e9) }
	w := &clock{log: log, read: func() (int64, int64) { return ns(c.wall), ns(c.steady) },
		ask: func() (bool, error) { c.asked++; return c.unsynchronized, c.refused }}
	w.begin()
	return w
}

func (c *testClock) pass(seconds float64) { c.wall, c.steady = c.wall+seconds, c.steady+seconds }

// mark returns what a record that began at start says of the clock, 0 being one without a start that is read now.
func (c *testClock) mark(w *clock, start float64) flow.Has {
	recs := []flow.Record{{Event: flow.EventDestroy, Start: int64(start * 1e9), Received: int64(c.wall * 1e9)}}
	w.mark(recs)
	return recs[0].Has
}

func TestClockSteps(t *testing.T) {
	for _, tt := range []struct {
		name   string
		step   float64
		starts map[float64]flow.Has // of flows that end 10 s later; the clock showed 1000 when it was set
	}{
		{"forward", 3600, map[float64]flow.Has{999: flow.Stepped, 4600.5: 0, 0: 0}},
		{"back", -3600, map[float64]flow.Has{999: flow.Stepped, -2595: flow.Stepped, 0: flow.Stepped}},
		{"back by no more than the time since", -5, map[float64]flow.Has{999: flow.Stepped, 997: flow.Stepped, 1001: 0, 0: 0}},
		{"slewed", 0.09, map[float64]flow.Has{999: 0, 0: 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &testClock{wall: 1000, steady: 5}
			core, logs := observer.New(zap.WarnLevel)
			w := c.watch(zap.New(core))
			c.wall += tt.step
			w.look()
			c.pass(10)
			for start, want := range tt.starts {
				if got := c.mark(w, start); got != want {
					t.Errorf("a start of %v: %b, want %b", start, got, want)
				}
			}
			if told := logs.Len() == 1; told != (tt.step < -1 || tt.step > 1) {
				t.Errorf("log: %v", logs.All())
			}
		})
	}
}

// Flows from before two steps stay marked, whichever way the second one went.
func TestClockStepsTwice(t *testing.T) {
	c := &testClock{wall: 1000, steady: 5}
	w := c.watch(zap.NewNop())
	c.wall += 1000
	w.look()
	c.pass(1)
	c.wall -= 1000
	w.look()
	c.pass(1)
	if got := c.mark(w, 1001.5); got != flow.Stepped {
		t.Errorf("a time that the clock may show twice: %b", got)
	}
	c.pass(1000)
	if got := c.mark(w, 2001.5); got != 0 {
		t.Errorf("a time beyond all that it had shown: %b", got)
	}
}

// A process that is stopped between the two readings does not take it for a step.
func TestClockStoppedWhileReading(t *testing.T) {
	c := &testClock{wall: 1000, steady: 5}
	core, logs := observer.New(zap.WarnLevel)
	w := c.watch(zap.New(core))
	read := w.read
	w.read = func() (int64, int64) {
		wall, steady := read()
		w.read = read
		return wall, steady + int64(time.Second)
	}
	w.look()
	if got := c.mark(w, 999); got != 0 || logs.Len() > 0 {
		t.Errorf("%b, log: %v", got, logs.All())
	}
}

// The kernel is asked once a second, and not again once it has refused.
func TestClockUnsynchronized(t *testing.T) {
	c := &testClock{wall: 1000, steady: 5, unsynchronized: true}
	w := c.watch(zap.NewNop())
	var got []flow.Has
	for range 8 {
		got = append(got, c.mark(w, 0))
		c.pass(0.5)
		c.unsynchronized = c.steady < 7
	}
	u := flow.Unsynchronized
	if diff := cmp.Diff([]flow.Has{u, u, u, u, 0, 0, 0, 0}, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if c.asked != 4 {
		t.Errorf("asked %d times in 3.5 s", c.asked)
	}
	c.refused, c.unsynchronized = errors.New("seccomp"), true
	for range 8 {
		if got := c.mark(w, 0); got != 0 {
			t.Errorf("refused: %b", got)
		}
		c.pass(0.5)
	}
	if c.asked != 5 {
		t.Errorf("asked %d times, the last of which was refused", c.asked)
	}
}

func TestClockAllocs(t *testing.T) {
	w := newClock(zap.NewNop())
	recs := make([]flow.Record, 256)
	w.steppedFrom = time.Now().UnixNano()
	if n := testing.AllocsPerRun(100, func() { w.mark(recs) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkClockMark(b *testing.B) {
	for name, stepped := range map[string]int64{"synchronised": 0, "stepped": 1} {
		b.Run(name, func(b *testing.B) {
			w := newClock(zap.NewNop())
			w.ask = func() (bool, error) { return false, nil }
			w.unsynchronized = false
			w.steppedFrom = stepped
			recs := make([]flow.Record, 256)
			for b.Loop() {
				w.mark(recs)
			}
		})
	}
}

// Whoever can tell is asked: the kernel, and where that is not allowed, systemd-timesyncd.
func TestUnsynchronised(t *testing.T) {
	dir := t.TempDir()
	kernel := func(state int, status int32, err error) func(*unix.Timex) (int, error) {
		return func(x *unix.Timex) (int, error) {
			x.Status = status
			return state, err
		}
	}
	refused := kernel(-1, 0, unix.EPERM)
	tests := []struct {
		name string
		ask  func(*unix.Timex) (int, error)
		dir  string
		file bool
		want bool
		err  error
	}{
		{"synchronised", kernel(unix.TIME_OK, 0, nil), dir, false, false, nil},
		{"not", kernel(unix.TIME_ERROR, unix.STA_UNSYNC, nil), dir, true, true, nil},
		{"refused, and timesyncd does not run", refused, dir + "/none", false, false, unix.EPERM},
		{"refused, and timesyncd has not synchronised it", refused, dir, false, true, nil},
		{"refused, and timesyncd has", refused, dir, true, false, nil},
		{"another error", kernel(-1, 0, unix.EFAULT), dir, false, false, unix.EFAULT},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(dir, "synchronized")
			_ = os.Remove(file)
			if tt.file {
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := unsynchronised(tt.ask, tt.dir)
			if got != tt.want || err != tt.err {
				t.Errorf("%v, %v; want %v, %v", got, err, tt.want, tt.err)
			}
		})
	}
}
