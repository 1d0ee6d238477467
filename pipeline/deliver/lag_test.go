package deliver

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/flow"
)

func TestLag(t *testing.T) {
	now := time.Unix(1000, 0)
	ended := func(ago time.Duration) *flow.Record {
		return &flow.Record{Event: flow.EventDestroy, Stop: now.Add(-ago).UnixNano(), Received: now.UnixNano()}
	}
	var l Lag
	l.observe([]*flow.Record{
		ended(0), ended(25 * time.Millisecond), ended(26 * time.Millisecond), ended(48 * time.Hour),
		ended(-time.Hour), // the clock was set back
		{Event: flow.EventGap, Received: now.Add(-time.Minute).UnixNano()},                                     // counts nowhere
		{Event: flow.EventDestroy, Received: now.Add(-3 * time.Second).UnixNano()},                             // no time from the kernel
		{Event: flow.EventNew, Stamp: now.Add(-time.Second).UnixNano(), Received: now.UnixNano()},              // at its bound
		{Event: flow.EventDestroy, Stop: now.UnixNano(), Stamp: now.Add(-time.Hour).UnixNano(), Received: 1e9}, // its end alone counts
	}, now)
	l.observe([]*flow.Record{ended(time.Hour)}, now)
	counts, sum := l.Load()
	want := map[int]uint64{0: 4, 1: 1, 5: 1, 7: 1, 13: 1, 16: 1}
	got := map[int]uint64{}
	for i, n := range counts {
		if n > 0 {
			got[i] = n
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("buckets (-want +got):\n%s", diff)
	}
	if want := 0.025 + 0.026 + 48*3600 + 3 + 1 + 3600; sum < want-0.001 || sum > want+0.001 {
		t.Errorf("sum %v, want %v", sum, want)
	}
}

// BenchmarkLag says what it costs to observe a record, in writes as they are at a high rate.
func BenchmarkLag(b *testing.B) {
	for _, bench := range []struct {
		name string
		lag  time.Duration
	}{{"fresh", 30 * time.Millisecond}, {"spooled", time.Hour}} {
		b.Run(bench.name, func(b *testing.B) {
			now := time.Now()
			batch := flow.NewBatch(BatchRecords, nil)
			var recs []*flow.Record
			for !batch.Full() {
				r := batch.Next()
				r.Event, r.Stop, r.Received = flow.EventDestroy, now.Add(-bench.lag).UnixNano(), now.UnixNano()
				recs = append(recs, r)
			}
			var l Lag
			b.ReportAllocs()
			for b.Loop() {
				l.observe(recs, time.Now())
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(recs)), "ns/record")
		})
	}
}
