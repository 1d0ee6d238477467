package live

import (
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/monitor"
)

// Rates are of ten seconds and lags of a minute, whatever was before; who has written nothing is as late as what waits.
func TestHistory(t *testing.T) {
	began := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	lag := func(fast, slow uint64) monitor.Histogram {
		return monitor.Histogram{Bounds: []float64{0.1, 60}, Counts: []uint64{fast, slow, 0}}
	}
	var s monitor.Snapshot
	h := history{snapshot: func() monitor.Snapshot { return s }}
	at := func(seconds int, events, filtered uint64, outputs ...monitor.Output) {
		s = monitor.Snapshot{Time: began.Add(time.Duration(seconds) * time.Second), Filtered: filtered / 2, OwnFlows: filtered - filtered/2, Outputs: outputs,
			Reader: monitor.Reader{Events: map[string]uint64{"destroy": events, "new": events}}}
	}
	out := func(name string, written uint64, l monitor.Histogram) monitor.Output {
		return monitor.Output{Name: name, Written: written, Filtered: written / 2, Lag: l}
	}
	// For three minutes records are slow; then, for a minute and more, they are fast, and three times as many.
	second := 0
	for ; second <= 180; second += 2 {
		n := uint64(100 * second)
		at(second, n, n, out("a", n, lag(0, n)), out("b", n, lag(0, n)))
		h.add(s)
	}
	for ; second <= 260; second += 2 {
		n := uint64(18_000 + 300*(second-180))
		at(second, n, n, out("a", n, lag(n-18_000, 18_000)), out("b", 18_000, lag(0, 18_000)))
		h.add(s)
	}
	s.Outputs[1].Failing, s.Outputs[1].OldestAge = true, 72
	s.Outputs[0].KeptSince = s.Time.Add(-36 * time.Hour)
	v := h.view()
	r := v.Rates
	if r.Events != 600 || r.Filtered != 300 || r.Outputs["a"] != 300 || r.OutputsFiltered["a"] != 150 || r.Outputs["b"] != 0 {
		t.Errorf("rates %+v", r)
	}
	if p99 := r.LagP99["a"]; p99 <= 0 || p99 > 0.1 {
		t.Errorf("of the last minute alone the lag is %v", p99)
	}
	if p99, ok := r.LagP99["b"]; ok {
		t.Errorf("an output that has written nothing for a minute has the lag %v", p99)
	}
	text := v.Status(false)
	for _, want := range []string{"600/s, 300/s filtered out,", "99ms", "ok, 150/s filtered out, reaches back 36h0m0s", ">1m12s"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	// One that fails is as late as what waits, even if it wrote before; one without anything to write is not late.
	for want, o := range map[string]monitor.Output{">5s": {Name: "a", Failing: true, OldestAge: 5}, "99ms": {Name: "a", OldestAge: 5}, "-": {Name: "b"}} {
		if got := v.lag(&o); got != want {
			t.Errorf("the lag of %+v is %s, want %s", o, got, want)
		}
	}
	// An output that was replaced counts from its beginning.
	fresh := monitor.Histogram{Bounds: []float64{0.1, 60}, Counts: []uint64{3, 0, 0}}
	then := lag(5, 5)
	if got := fresh.Since(&then); got.Count() != 3 {
		t.Errorf("%+v", got)
	}
}
