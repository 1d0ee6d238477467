package kafka

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

const testObserver = "machine-1"

// records returns n ended flows, the same for every call.
func records(n int) []*flow.Record { return newGenerator().next(n) }

// yesterday is when they begin to end: brokers delete at once what is older than their retention.
var yesterday = time.Now().Add(-24 * time.Hour).Truncate(time.Millisecond).UnixNano()

// generator makes the ended flows of a carrier-grade NAT, 100 subscribers behind 4 addresses, a millisecond apart.
type generator struct {
	rnd *rand.Rand
	now int64
}

func newGenerator() *generator {
	return &generator{rand.New(rand.NewPCG(1, 2)), yesterday}
}

func (g *generator) next(n int) []*flow.Record {
	rnd := g.rnd
	recs := make([]flow.Record, n)
	ptrs := make([]*flow.Record, n)
	for i := range recs {
		r := &recs[i]
		subscriber := byte(rnd.IntN(100))
		stop := g.now + rnd.Int64N(1e6)
		g.now += 1e6
		*r = flow.Record{
			Event: flow.EventDestroy,
			Has: flow.HasOrig | flow.HasReply | flow.HasStatus | flow.HasID | flow.HasTCP | flow.HasCounters |
				flow.HasMark,
			Orig: flow.Tuple{
				Src:     flow.AddrFrom4([4]byte{100, 64, 0, subscriber}),
				Dst:     flow.AddrFrom4([4]byte{198, 51, byte(rnd.IntN(256)), byte(rnd.IntN(256))}),
				SrcPort: uint16(1024 + rnd.IntN(60000)), DstPort: 443, Proto: flow.TCP,
			},
			OrigCounters:  flow.Counters{Packets: rnd.Uint64N(100), Bytes: rnd.Uint64N(100000)},
			ReplyCounters: flow.Counters{Packets: rnd.Uint64N(100), Bytes: rnd.Uint64N(1000000)},
			Start:         stop - rnd.Int64N(100e9), Stop: stop, Stamp: stop, Received: stop + 50000,
			ID: rnd.Uint32(), Mark: 1, State: flow.TCPTimeWait,
			Status: flow.StatusSeenReply | flow.StatusAssured | flow.StatusConfirmed | flow.StatusSrcNAT |
				flow.StatusSrcNATDone | flow.StatusDstNATDone | flow.StatusDying,
		}
		r.Reply = flow.Tuple{
			Src: r.Orig.Dst, Dst: flow.AddrFrom4([4]byte{203, 0, 113, subscriber % 4}),
			SrcPort: 443, DstPort: uint16(1024 + rnd.IntN(60000)), Proto: flow.TCP,
		}
		ptrs[i] = r
	}
	return ptrs
}

func newEncoder(t testing.TB) format.Encoder {
	t.Helper()
	e, err := format.New("flat", format.Options{Host: "fw1", Observer: testObserver})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// newWriter returns a Writer for the brokers, its configuration changed by change, and closes it at the end.
func newWriter(t testing.TB, brokers []string, topic string, change func(*Config)) *Writer {
	t.Helper()
	cfg := Config{Brokers: brokers, Topic: topic}
	if change != nil {
		change(&cfg)
	}
	cfg.Validate(func(field, msg string) { t.Errorf("%s: %s", field, msg) })
	w, err := New(cfg, Options{Encoder: newEncoder(t), Observer: format.NewObserverKey(testObserver), Host: "fw1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func ExampleWriter_Name() {
	w, _ := New(Config{Brokers: []string{"192.0.2.20:9092"}, Topic: "flows"}, Options{})
	fmt.Println(w.Name())
	// Output: kafka:192.0.2.20:9092/flows
}
