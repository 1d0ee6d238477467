package whois

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
)

// unsealed makes an archive of records that are all in the row log, so many in a frame.
func unsealed(t testing.TB, recs []*flow.Record, inFrame int) (dir string) {
	dir = t.TempDir()
	traceArchive(t, dir, "gw1", recs, inFrame, 1<<30)
	return dir
}

// traceArchive writes the archive of a host, so many records in a frame and in a segment. What is left is not sealed.
func traceArchive(t testing.TB, dir, host string, recs []*flow.Record, inFrame int, perSegment uint64) {
	t.Helper()
	w := openArchive(t, trace.Default().Start.UnixNano(), archive.Options{Dir: dir, Host: host, Interval: 1000 * time.Hour, Records: perSegment,
		Compression: archive.Compressions[0]})
	for len(recs) > 0 {
		n := min(len(recs), inFrame)
		if _, err := w.Append(recs[:n]); err != nil {
			t.Fatal(err)
		}
		recs = recs[n:]
	}
	closeArchive(t, w, sealed(w))
}

func traced(n int) (recs []*flow.Record) {
	tr, b := trace.New(trace.Default()), flow.NewBatch(n, nil)
	for range n {
		r := b.Next()
		tr.Next(r)
		recs = append(recs, r)
	}
	return recs
}

// about returns a question about who had what a record says.
func about(r *flow.Record) *Question {
	a, port := archive.PublicSource(r)
	return &Question{Public: End{a, port, true}, From: r.Stop, To: r.Stop}
}

// BenchmarkRowLog reads what is not sealed yet, 200,000 records: for one question, for one without a port, for a batch, and
// where so little happens that a frame has two records.
func BenchmarkRowLog(b *testing.B) {
	const n = 200_000
	recs := traced(n)
	busy, quiet := unsealed(b, recs, 256), unsealed(b, recs, 2)
	one := about(recs[n/2])
	address := about(recs[n/2])
	address.Public.HasPort = false
	var batch []*Question
	for rng := rand.New(rand.NewPCG(1, 1)); len(batch) < 1000; {
		batch = append(batch, about(recs[rng.IntN(n)]))
	}
	for _, c := range []struct {
		name, dir string
		questions []*Question
	}{{"port", busy, []*Question{one}}, {"address", busy, []*Question{address}}, {"batch", busy, batch}, {"quiet", quiet, []*Question{one}}} {
		b.Run(c.name, func(b *testing.B) {
			a, err := OpenArchive([]string{c.dir}, nil, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := a.Prepare(context.Background(), c.questions); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/record")
		})
	}
}

// BenchmarkFleet asks one question of twenty hosts, of which each has five segments and a row log that is half full.
func BenchmarkFleet(b *testing.B) {
	const n = 110_000
	recs := traced(n)
	dir := b.TempDir()
	for host := range 20 {
		traceArchive(b, dir, fmt.Sprintf("gw%d", host), recs, 256, n/11*2)
	}
	for b.Loop() {
		a, err := OpenArchive([]string{dir}, nil, nil)
		if err != nil {
			b.Fatal(err)
		}
		q := about(recs[n/2])
		if err := a.Prepare(context.Background(), []*Question{q}); err != nil {
			b.Fatal(err)
		}
		if got, err := Ask(context.Background(), a, q, time.Unix(0, q.To)); err != nil || len(got.Holders) < 20 || len(got.Hosts) != 20 {
			b.Fatalf("%v: %+v", err, got)
		}
		a.sealed.Close()
	}
}

// TestGlance: what is passed over at a glance is nothing that anybody has asked for: all questions are answered as if each
// record had been decoded.
func TestGlance(t *testing.T) {
	w := newWorld("gw1", 3000, 11)
	rng := rand.New(rand.NewPCG(3, 3))
	var questions []*Question
	for range 500 {
		r := w.recs[rng.IntN(len(w.recs))]
		if !isFlow(r) {
			continue
		}
		q := about(r)
		q.Public.HasPort = rng.IntN(4) > 0
		switch rng.IntN(5) {
		case 0:
			q.Public, q.Dst = End{}, End{r.Orig.DstAddr(), r.Orig.DstPort, rng.IntN(2) > 0}
		case 1:
			q.Public = End{Addr: r.Orig.DstAddr(), Port: r.Orig.DstPort, HasPort: true} // a forwarded port, or an address of IPv6
		}
		questions = append(questions, q)
	}
	for _, n := range []int{1, 30, 100} {
		want, glance := wanted(questions[:n]), glanced(questions[:n])
		found, passed := 0, 0
		for _, r := range w.recs {
			var g flow.Glance
			if _, err := g.Read(flow.AppendBinary(nil, r)); err != nil {
				t.Fatal(err)
			}
			_, check := archive.CheckpointOf(r)
			switch must := want(r) || check || r.Event == flow.EventGap; {
			case must && !glance(&g):
				t.Fatalf("of %d questions, passed over: %+v", n, r)
			case must:
				found++
			case !glance(&g):
				passed++
			}
		}
		if found == 0 || passed == 0 {
			t.Errorf("of %d questions: %d records are asked for, and %d passed over", n, found, passed)
		}
		t.Log(fmt.Sprintf("%d questions:", n), found, "asked for,", passed, "passed over, of", len(w.recs))
	}
}
