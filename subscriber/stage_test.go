package subscriber

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// batchOf returns a batch of ends of flows of the prefixes, chosen at random.
func batchOf(prefixes []netip.Prefix, rng *rand.Rand) *flow.Batch {
	b := flow.NewBatch(256, nil)
	for !b.Full() {
		r := b.Next()
		r.Event, r.Has, r.Received, r.Start, r.Stop = flow.EventDestroy, flow.HasOrig|flow.HasReply, 100, 10, 99
		a := prefixes[rng.IntN(len(prefixes))].Addr()
		r.Orig = flow.Tuple{Src: flow.AddrFrom(a), Dst: flow.Addr{1}, Proto: flow.TCP, V6: a.Is6()}
		r.Reply = flow.Tuple{Src: flow.Addr{1}, Dst: r.Orig.Src, Proto: flow.TCP, V6: a.Is6()}
	}
	return b
}

// median returns the median of how long do takes, and what is less than it at one time in twenty: what others do on this machine disturbs a mean.
func median(n int, prepare, do func()) (half, best time.Duration) {
	took := make([]time.Duration, n)
	for i := range took {
		prepare()
		at := time.Now()
		do()
		took[i] = time.Since(at)
	}
	slices.Sort(took)
	return took[n/2], took[n/20]
}

// BenchmarkStage reports the median of what a record costs, of batches of 256 each of addresses that were not asked for
// before.
func BenchmarkStage(bench *testing.B) {
	for _, kind := range []string{"cgn", "scattered", "delegated"} {
		prefixes := pool(kind, 1_000_000)
		source := new(Source)
		source.table.Store(fill(prefixes))
		stage := NewStage([]*Source{source})
		bench.Run(kind, func(bench *testing.B) {
			rng := rand.New(rand.NewPCG(5, 6))
			b := batchOf(prefixes, rng)
			for bench.Loop() {
				took, best := median(2000, func() {
					records := b.Records
					b.Reset()
					b.Records = records
					for i := range records {
						records[i].Extra = nil
						records[i].Orig.Src = flow.AddrFrom(prefixes[rng.IntN(len(prefixes))].Addr())
					}
				}, func() { stage.Process(b) })
				bench.ReportMetric(float64(took.Nanoseconds())/256, "ns/record")
				bench.ReportMetric(float64(best.Nanoseconds())/256, "best-ns/record")
			}
		})
	}
}
