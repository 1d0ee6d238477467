package live

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/pipeline"
)

// hostile is bytes that break a terminal, a page and JSON, where they are let through.
const hostile = "\x1b]0;\x07<b>\"\xff\n\\"

// fixture is a server whose daemon is made up.
type fixture struct {
	*Server
	p        *pipeline.Pipeline
	b        *flow.Batch
	socket   string
	snapshot monitor.Snapshot
	table    []flow.Record
}

// newFixture starts a server, of a daemon that change may alter before.
func newFixture(t *testing.T, change ...func(*fixture)) *fixture {
	t.Helper()
	f := &fixture{p: pipeline.New(nil, nil), socket: filepath.Join(t.TempDir(), "s")}
	f.b = f.p.Batch()
	began := time.Now().Add(-3 * time.Hour)
	f.snapshot = monitor.Snapshot{
		Version: "1.2.3", Host: "gw1", PID: 4711, Started: began, Delivery: "reliable", State: monitor.StateOK,
		Reader: monitor.Reader{Events: map[string]uint64{"destroy": 1_234_567}},
		Gaps:   []monitor.Gap{},
		Outputs: []monitor.Output{
			{Name: "jsonl:/var/log/ctlogd/flows.jsonl", Kind: "jsonl", Used: 1024, Max: 65536, Written: 1_234_000, OldestAge: 0.03,
				Lag: monitor.Histogram{Bounds: []float64{0.05, 0.1}, Counts: []uint64{10, 90, 0}}},
			{Name: "ipfix:udp://192.0.2.10:4739", Kind: "ipfix", Failing: true, Since: began, Used: 60000, Max: 65536, OldestAge: 71,
				Error: "dial " + hostile, ErrorAt: began, Written: 700_000, Gaps: []monitor.Gap{{Cause: "queue_full", Gaps: 2, Lost: 4321, Last: began}}},
		},
		Kernel: monitor.Kernel{Entries: 30_000, Limit: 262_144},
	}
	f.Server = NewServer(Options{Pipeline: f.p, Log: zaptest.NewLogger(t),
		Snapshot: func() monitor.Snapshot {
			s := f.snapshot
			s.Time = time.Now()
			s.Uptime = s.Time.Sub(s.Started).Seconds()
			return s
		},
		Encoder: func() (format.Encoder, error) { return format.New("", format.Options{Host: "gw1"}) },
		Table: func(_ context.Context, visit func(*flow.Record)) error {
			for i := range f.table {
				visit(&f.table[i])
			}
			return nil
		}})
	for _, c := range change {
		c(f)
	}
	if err := f.Listen(f.socket); err != nil {
		t.Fatal(err)
	}
	f.Start()
	t.Cleanup(f.Close)
	return f
}

// end has the pipeline take records as the reader would.
func (f *fixture) end(recs ...flow.Record) {
	for i := range recs {
		f.b.Append(recs[i : i+1])
		if f.b.Full() {
			f.b = f.p.Ingest(f.b)
		}
	}
	f.b = f.p.Ingest(f.b)
}

// ended is the end of a flow of a subscriber behind source NAT.
func ended(src, public, dst string, port, natPort uint16, bytes uint64) flow.Record {
	now := time.Now().UnixNano()
	s, p, d := flow.AddrFrom(netip.MustParseAddr(src)), flow.AddrFrom(netip.MustParseAddr(public)), flow.AddrFrom(netip.MustParseAddr(dst))
	return flow.Record{Event: flow.EventDestroy, Has: flow.HasOrig | flow.HasReply | flow.HasCounters | flow.HasTCP | flow.HasStatus,
		Orig:         flow.Tuple{Src: s, Dst: d, SrcPort: 40000, DstPort: port, Proto: flow.TCP},
		Reply:        flow.Tuple{Src: d, Dst: p, SrcPort: port, DstPort: natPort, Proto: flow.TCP},
		OrigCounters: flow.Counters{Packets: 1, Bytes: bytes}, Start: now - 1e9, Stop: now, Received: now, State: flow.TCPTimeWait}
}

// awaitTaps waits until so many tap.
func (f *fixture) awaitTaps(t *testing.T, n int32) {
	t.Helper()
	until(t, "the taps are there", func() bool { return f.taps.Load() == n })
}

// until waits for a condition. Only a machine that hangs meets the limit.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
