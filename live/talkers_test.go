package live

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/flow"
)

// Nobody looks, so nothing is counted; somebody looks, and the flows that end are, and those in the table.
func TestTalkers(t *testing.T) {
	flows := []flow.Record{
		ended("10.0.0.1", "203.0.113.1", "198.51.100.1", 443, 2000, 100),
		ended("10.0.0.1", "203.0.113.1", "198.51.100.2", 443, 2001, 100),
		ended("10.0.0.2", "203.0.113.2", "198.51.100.2", 80, 2001, 5000),
		ended("10.0.0.3", "10.0.0.3", "198.51.100.3", 443, 40000, 1), // not translated
	}
	gre := ended("10.0.0.2", "203.0.113.2", "198.51.100.2", 0, 0, 7)
	gre.Orig.Proto, gre.Reply.Proto = flow.GRE, flow.GRE
	news := flows[0]
	news.Event = flow.EventNew
	f := newFixture(t, func(f *fixture) { f.table = slices.Clone(flows[:3]) })
	alice := &flow.Extra{Subscriber: flow.Subscriber{ID: "alice"}}
	flows[0].Extra, flows[2].Extra, flows[3].Extra = alice, alice, &flow.Extra{Subscriber: flow.Subscriber{Next: "a customer of a long name"}}
	if f.p.Taps() != 0 {
		t.Fatal("somebody taps already")
	}
	v, err := NewClient(f.socket).Top(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	until(t, "flows are counted", func() bool { return f.p.Taps() == 1 })
	f.end(append(flows, gre, news)...)

	until(t, "all is counted", func() bool {
		if v, err = NewClient(f.socket).Top(t.Context()); err != nil {
			t.Fatal(err)
		}
		return v.Talkers.TableRead && len(v.Talkers.Sources.Top) == 3
	})
	got := v.Talkers
	got.Since, got.Table = 0, 0
	want := &Talkers{TableRead: true,
		Sources: List{Top: []Talker{{Key: "10.0.0.1", Flows: 2, Bytes: 200, Now: 2}, {Key: "10.0.0.2", Flows: 2, Bytes: 5007, Now: 1},
			{Key: "10.0.0.3", Flows: 1, Bytes: 1}}},
		Public: List{Top: []Talker{{Key: "203.0.113.1", Flows: 2, Bytes: 200, Now: 2, TCP: new(2), UDP: new(0)},
			{Key: "203.0.113.2", Flows: 2, Bytes: 5007, Now: 1, TCP: new(1), UDP: new(0)}}},
		Destinations: List{Top: []Talker{{Key: "198.51.100.2", Flows: 3, Bytes: 5107, Now: 2},
			{Key: "198.51.100.1", Flows: 1, Bytes: 100, Now: 1}, {Key: "198.51.100.3", Flows: 1, Bytes: 1}}},
		Ports: List{Top: []Talker{{Key: "tcp/443", Flows: 3, Bytes: 201, Now: 2}, {Key: "tcp/80", Flows: 1, Bytes: 5000, Now: 1},
			{Key: "gre", Flows: 1, Bytes: 7}}},
		Subscribers: List{Top: []Talker{{Key: "alice", Flows: 2, Bytes: 5100}, {Key: "a customer of a long name", Flows: 1, Bytes: 1}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("talkers (-want +got):\n%s", diff)
	}

	f.talkers.mu.Lock()
	f.talkers.looked = time.Now().Add(-2 * lookedFor)
	f.talkers.mu.Unlock()
	until(t, "nobody looks any more", func() bool { return f.p.Taps() == 0 })
}

// The last minute moves on.
func TestTalkersForget(t *testing.T) {
	var c talkers
	r := ended("10.0.0.1", "203.0.113.1", "198.51.100.1", 443, 2000, 100)
	began := time.Now()
	for i := range 20 { // ten seconds apart
		c.slice(began.Add(time.Duration(i) * sliceTime)).add(&r)
	}
	l := c.lists(began.Add(20 * sliceTime))
	if l.Since != 60 || l.Sources.Top[0].Flows != slices60s {
		t.Errorf("%v flows in %v seconds, want %d in 60", l.Sources.Top[0].Flows, l.Since, slices60s)
	}
}

// Ids are remembered for no more subscribers than may be listed, and those for as long as they are.
func TestTalkersIDs(t *testing.T) {
	var c talkers
	now := time.Now()
	s := c.slice(now)
	for i := range 10 * sketchSize {
		s.addID(fmt.Sprint("id", i), counts{1, 1})
		s.addID("alice", counts{1, 1})
	}
	if len(s.ids) > 2*sketchSize {
		t.Errorf("%d ids", len(s.ids))
	}
	if l := c.lists(now).Subscribers; l.Top[0].Key != "alice" || slices.ContainsFunc(l.Top, func(t Talker) bool { return t.Key == "" }) {
		t.Errorf("%+v", l)
	}
}

// A port that the kernel does not tell is not the port 0.
func TestPortName(t *testing.T) {
	r := ended("10.0.0.1", "203.0.113.1", "198.51.100.1", 443, 2000, 100)
	for _, tt := range []struct {
		proto flow.Proto
		has   flow.Has
		want  string
	}{
		{flow.TCP, 0, "tcp/443"}, {flow.DCCP, 0, "dccp/443"}, {flow.DCCP, flow.NoPorts, "dccp"}, {flow.GRE, 0, "gre"},
	} {
		r.Orig.Proto, r.Has = tt.proto, tt.has
		if got := portName(portKey(&r)); got != tt.want {
			t.Errorf("%s with %x: %q, want %q", tt.proto, tt.has, got, tt.want)
		}
	}
}

func TestTalkersAllocations(t *testing.T) {
	s := newSums()
	r := ended("10.0.0.1", "203.0.113.1", "198.51.100.1", 443, 2000, 100)
	if n := testing.AllocsPerRun(1000, func() { s.add(&r) }); n != 0 {
		t.Errorf("%v allocations a flow", n)
	}
}

func BenchmarkTalkers(b *testing.B) {
	s := newSums()
	recs := make([]flow.Record, 997)
	for i := range recs {
		recs[i] = ended("10.0.0.1", "203.0.113.1", "198.51.100.1", 443, 2000, 100)
		recs[i].Orig.Src[15], recs[i].Orig.Dst[15], recs[i].Orig.Dst[14] = byte(i), byte(i), byte(i>>8)
	}
	for i := range b.N {
		s.add(&recs[i%len(recs)])
	}
}
