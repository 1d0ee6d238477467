//go:build !small

package live

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"

	"github.com/ctlogd/ctlogd/monitor"
)

// shown returns what is on the screen.
func shown(s tcell.SimulationScreen) string {
	cells, width, _ := s.GetContents()
	var b strings.Builder
	for i, c := range cells {
		if i%width == 0 {
			b.WriteByte('\n')
		}
		b.WriteString(string(c.Runes))
	}
	return b.String()
}

func TestTop(t *testing.T) {
	s := tcell.NewSimulationScreen("UTF-8")
	if err := s.Init(); err != nil {
		t.Fatal(err)
	}
	defer s.Fini()
	s.SetSize(120, 30)
	began := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	v := &View{Snapshot: monitor.Snapshot{Time: began, Host: "gw1" + hostile, Version: "1.2.3", State: monitor.StateDegraded,
		Reasons: []string{"disk " + hostile}, Outputs: []monitor.Output{{Name: "jsonl:" + hostile, Failing: true, Since: began.Add(-time.Minute)}},
		Reader: monitor.Reader{Events: map[string]uint64{"destroy": 1234567}}},
		Talkers: &Talkers{Since: 60, TableRead: true, Table: 4,
			Sources: List{Top: []Talker{{Key: "10.0.0.1", Flows: 7, Bytes: 1 << 20}, {Key: "10.0.0.2", Flows: 3, Bytes: 5 << 30, Now: 9}}},
			Public:  List{Top: []Talker{{Key: "203.0.113.5", Flows: 7, TCP: new(12900), UDP: new(0)}}, LowFlows: 3},
			Ports:   List{Top: []Talker{{Key: "tcp/443", Flows: 7}}}, Subscribers: List{Top: []Talker{{Key: "alice" + hostile, Flows: 7, Bytes: 99}}}}}
	top := NewTop(s)
	top.view = v
	see := func(want ...string) {
		t.Helper()
		top.draw()
		got := shown(s)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("no %q in%s", w, got)
			}
		}
		if strings.ContainsAny(got, "\x1b\x07") || strings.Contains(got, "\xff") {
			t.Errorf("control bytes are shown: %q", got)
		}
	}
	press := func(key tcell.Key, r rune) bool { return top.handle(tcell.NewEventKey(key, r, tcell.ModNone)) }

	see("gw1\\x1b]0;", "degraded", "1,234,567 events", "failing for 1m0s", "flows/min*", "10.0.0.1", "as of 4s ago")
	press(tcell.KeyRune, 'b')
	see("bytes*", "5.0 GiB")
	if got := shown(s); strings.Index(got, "10.0.0.2") > strings.Index(got, "10.0.0.1") {
		t.Errorf("not by bytes:%s", got)
	}
	press(tcell.KeyRune, '2')
	see("203.0.113.5", "12,900 (20%)", "up to 3 flows")
	press(tcell.KeyRune, '5')
	see("alice\\x1b]0;")
	if got := shown(s); strings.Contains(got, "flows now*") || strings.Contains(got, ">flows now") {
		t.Errorf("flows that nobody knows:%s", got)
	}
	press(tcell.KeyRune, '2')
	press(tcell.KeyTab, 0)
	press(tcell.KeyTab, 0)
	see("tcp/443")
	top.err = errors.New("the daemon " + hostile + " has ended")
	see("has ended", "tcp/443") // what is known stays
	// On few lines something of each part stays, and of the outputs those that fail.
	v.Outputs = append([]monitor.Output{{Name: "jsonl:/a"}, {Name: "jsonl:/b"}}, v.Outputs...)
	v.Reasons = append(v.Reasons, "late", "full")
	press(tcell.KeyRune, '1')
	for _, lines := range []int{12, 11, 9} {
		s.SetSize(120, lines)
		see("degraded", "flows/min", "10.0.0.2", "flows that ended", "q: quit", "failing for 1m0s")
		if lines == 12 {
			see("disk", "1,234,567 events")
		}
	}
	s.SetSize(20, 3)
	top.handle(tcell.NewEventResize(20, 3))
	see("ctlogd 1.2.3 on gw1")
	if press(tcell.KeyRune, 'x') || !press(tcell.KeyRune, 'q') || !press(tcell.KeyCtrlC, 0) || !press(tcell.KeyEscape, 0) {
		t.Error("not q, Escape and Ctrl-C end it")
	}
}

// The view asks, and ends when a key says so, also while the daemon does not answer.
func TestTopRuns(t *testing.T) {
	s := tcell.NewSimulationScreen("UTF-8")
	if err := s.Init(); err != nil {
		t.Fatal(err)
	}
	defer s.Fini()
	NewTop(s).Run(t.Context(), func(ctx context.Context) (*View, error) {
		s.InjectKey(tcell.KeyRune, 'q', tcell.ModNone)
		<-ctx.Done()
		return nil, ctx.Err()
	})
}
