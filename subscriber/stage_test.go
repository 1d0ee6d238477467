package subscriber

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

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

// BenchmarkStage reports the median of what a record costs, of batches of 256: of any addresses of a million, of 5,000 busy ones
// among them (Zipf), of addresses that are nobody's, of flows that come from outside to any, with a second
// source before that one, and with a line that is broken.
func BenchmarkStage(bench *testing.B) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, kind := range []string{"cgn", "scattered", "delegated"} {
		prefixes := pool(kind, 1_000_000)
		sources := [3]*Source{new(Source), new(Source), new(Source)}
		sources[0].table.Store(fill(prefixes))
		sources[1].table.Store(fill(pool("scattered", 10_000)[5_000:]))
		sources[2].table.Store(sources[0].table.Load().withUnclear(map[prefix]window{prefixOf(prefixes[0]): {1, forever}}))
		stage := NewStage(nil)
		zipf := rand.NewZipf(rng, 1.1, 10, 4999)
		anyone := func() netip.Addr { return prefixes[rng.IntN(len(prefixes))].Addr() }
		for traffic, next := range map[string]func() netip.Addr{
			"any":     anyone,
			"inbound": anyone,
			"second":  anyone,
			"broken":  anyone,
			"busy":    func() netip.Addr { return prefixes[zipf.Uint64()*199].Addr() },
			"nobody":  func() netip.Addr { return netip.AddrFrom4([4]byte{203, 0, byte(rng.Uint32()), byte(rng.Uint32())}) },
		} {
			bench.Run(kind+"/"+traffic, func(bench *testing.B) {
				b := batchOf(prefixes, rng)
				stage.Use(sources[:1])
				switch traffic {
				case "second":
					stage.Use([]*Source{sources[1], sources[0]})
				case "broken":
					stage.Use(sources[2:])
				}
				for bench.Loop() {
					took, best := median(2000, func() {
						records := b.Records
						b.Reset()
						b.Records = records
						for i := range records {
							records[i].Extra = nil
							records[i].Orig.Src = flow.AddrFrom(next())
							if traffic == "inbound" {
								records[i].Orig.Src, records[i].Reply.Src = flow.Addr{1}, records[i].Orig.Src
							}
						}
					}, func() { stage.Process(b) })
					bench.ReportMetric(float64(took.Nanoseconds())/256, "ns/record")
					bench.ReportMetric(float64(best.Nanoseconds())/256, "best-ns/record")
				}
			})
		}
	}
}

// sourceOf returns a source that says so much.
func sourceOf(name string, edits ...edit) *Source {
	s := New(Config{Type: "csv", Name: name, Path: "/x"}, zap.NewNop())
	s.show(s.table.Load().with(edits, 0, func() {}), 1e9)
	return s
}

func held(addr, id string, from, until int64) edit {
	return edit{prefix: prefixOf(mustPrefix(addr)), id: id, name: "Name of " + id, from: from, until: until}
}

// TestStage asks whose flow it is, of flows that begin and end before, with and after a change of hands.
func TestStage(t *testing.T) {
	first := sourceOf("first", held("100.64.0.7", "a", 100, 200), held("100.64.0.7", "b", 200, 300), held("2001:db8:1::/48", "six", 0, forever))
	first.table.Store(first.table.Load().withUnclear(map[prefix]window{prefixOf(mustPrefix("100.64.0.9")): {200, 300}, prefixOf(mustPrefix("100.64.1.0/24")): {0, forever}}))
	second := sourceOf("second", held("100.64.0.0/24", "net", 0, forever), held("10.0.0.80", "server", 0, forever))
	stage := NewStage([]*Source{first, second})
	in := "100.64.0.7"
	for _, test := range []struct {
		name       string
		event      flow.Event
		src, reply string
		start, end int64
		want       flow.Subscriber
	}{
		{"a's", flow.EventDestroy, in, "198.51.100.1", 110, 199, flow.Subscriber{ID: "a", Name: "Name of a", Source: "first"}},
		{"a's, of which b sees the end", flow.EventDestroy, in, "198.51.100.1", 110, 250, flow.Subscriber{ID: "a", Name: "Name of a", Next: "b", Source: "first"}},
		{"b's", flow.EventDestroy, in, "198.51.100.1", 200, 299, flow.Subscriber{ID: "b", Name: "Name of b", Source: "first"}},
		{"b's, whose time is over at the end", flow.EventDestroy, in, "198.51.100.1", 210, 310, flow.Subscriber{ID: "b", Name: "Name of b", Source: "first"}},
		{"nobody's at the start", flow.EventDestroy, in, "198.51.100.1", 50, 150, flow.Subscriber{Next: "a", Source: "first"}},
		{"of whom only the second knows", flow.EventDestroy, in, "198.51.100.1", 301, 310, flow.Subscriber{ID: "net", Name: "Name of net", Source: "second"}},
		{"of unknown start", flow.EventDestroy, in, "198.51.100.1", 0, 250, flow.Subscriber{ID: "b", Name: "Name of b", Source: "first"}},
		{"that has just begun", flow.EventNew, in, "198.51.100.1", 0, 150, flow.Subscriber{ID: "a", Name: "Name of a", Source: "first"}},
		{"that is still there", flow.EventOpen, in, "198.51.100.1", 120, 250, flow.Subscriber{ID: "a", Name: "Name of a", Next: "b", Source: "first"}},
		{"from outside to a server", flow.EventDestroy, "198.51.100.1", "10.0.0.80", 10, 20, flow.Subscriber{ID: "server", Name: "Name of server", Source: "second", Dst: true}},
		{"from outside, routed", flow.EventDestroy, "2001:db8:ff::1", "2001:db8:1:2::3", 10, 20, flow.Subscriber{ID: "six", Name: "Name of six", Source: "first", Dst: true}},
		{"unclear", flow.EventDestroy, "100.64.0.9", "198.51.100.1", 210, 220, flow.Subscriber{}},
		{"unclear at the start", flow.EventDestroy, "100.64.0.9", "198.51.100.1", 210, 310, flow.Subscriber{}},
		{"unclear at the end", flow.EventDestroy, "100.64.0.9", "198.51.100.1", 110, 210, flow.Subscriber{}},
		{"of an unclear network", flow.EventDestroy, "100.64.1.9", "10.0.0.80", 110, 210, flow.Subscriber{ID: "server", Name: "Name of server", Source: "second", Dst: true}},
		{"of nobody", flow.EventDestroy, "198.51.100.1", "198.51.100.2", 10, 20, flow.Subscriber{}},
		{"an expectation", flow.EventExpectNew, in, in, 0, 150, flow.Subscriber{}},
		{"a gap", flow.EventGap, in, in, 110, 150, flow.Subscriber{}},
	} {
		b := flow.NewBatch(1, nil)
		r := b.Next()
		r.Event, r.Has, r.Start, r.Received = test.event, flow.HasOrig|flow.HasReply, test.start, test.end
		if r.Event == flow.EventDestroy {
			r.Stop = test.end
		}
		r.Orig.Src, r.Reply.Src = flow.AddrFrom(netip.MustParseAddr(test.src)), flow.AddrFrom(netip.MustParseAddr(test.reply))
		stage.Process(b)
		var got flow.Subscriber
		if r.Extra != nil {
			got = r.Extra.Subscriber
		}
		if test.want.Source != "" {
			test.want.Source += "@1970-01-01T00:00:01.000Z"
		}
		if got != test.want {
			t.Errorf("%s:\n got %+v\nwant %+v", test.name, got, test.want)
		}
	}
	if named, unknown, changed := stage.Named.Load(), stage.Unknown.Load(), stage.Changed.Load(); named != 12 || unknown != 4 || changed != 3 {
		t.Errorf("named %d, unknown %d, changed %d", named, unknown, changed)
	}
	stage.Use(nil)
	b := batchOf([]netip.Prefix{mustPrefix(in)}, rand.New(rand.NewPCG(1, 1)))
	if stage.Process(b); b.Records[0].Extra != nil {
		t.Error("a name from nowhere")
	}
}

func TestStageAllocates(t *testing.T) {
	prefixes := pool("cgn", 10_000)
	source := sourceOf("x")
	source.table.Store(fill(prefixes))
	stage := NewStage([]*Source{source})
	b := batchOf(prefixes, rand.New(rand.NewPCG(1, 1)))
	records := slices.Clone(b.Records)
	if n := testing.AllocsPerRun(100, func() {
		b.Reset()
		b.Records = append(b.Records, records...)
		stage.Process(b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if stage.Unknown.Load() != 0 || b.Records[255].Subscriber() == nil {
		t.Error("not named")
	}
}

// TestStageWhileTablesChange is for the race detector: a source marks and replaces while the stage reads.
func TestStageWhileTablesChange(t *testing.T) {
	f := newFile(t, Config{Type: "csv"})
	stage := NewStage([]*Source{f.w.source})
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := batchOf([]netip.Prefix{mustPrefix("100.64.0.7")}, rand.New(rand.NewPCG(1, 1)))
		records := slices.Clone(b.Records)
		for range 300 {
			b.Reset()
			b.Records = append(b.Records, records...)
			stage.Process(b)
		}
	}()
	for i := range int64(30) {
		f.must(f.at(100+i, []string{"100.64.0.7,,,a,\n", "100.64.0.7,,,a,\n100.64.0.8,,,b,\n", "100.64.0.7,,,c,\n"}[i%3]))
	}
	<-done
}
