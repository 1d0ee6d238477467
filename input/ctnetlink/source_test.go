package ctnetlink

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input/netns"
)

// gaps is a Sink that keeps them.
type gaps []flow.Gap

func (*gaps) Put(*flow.Record)                                       {}
func (g *gaps) Gap(_, _ time.Time, gap flow.Gap)                     { *g = append(*g, gap) }
func (g *gaps) GapIn(_ flow.Netns, from, to time.Time, gap flow.Gap) { g.Gap(from, to, gap) }
func (s *Source) load(datagrams ...datagram)                         { s.messages.load(datagrams) }
func (m *messages) load(datagrams []datagram) {
	m.n, m.at, m.rest = len(datagrams), 0, nil
	m.put(datagrams)
}
func (d datagram) from(pid uint32) datagram { d.pid = pid; return d }
func (d datagram) cut() datagram            { d.truncated = true; return d }
func of(msgs ...[]byte) (d datagram) {
	for _, m := range msgs {
		d.data = append(d.data, m...)
	}
	return d
}

// datagram is what one slot of a block holds.
type datagram struct {
	data      []byte
	pid       uint32
	truncated bool
}

// put stands in for recvmmsg.
func (m *messages) put(datagrams []datagram) {
	for i, d := range datagrams {
		copy(m.block.data[i*slotStride:], d.data)
		m.block.msgs[i].len = uint32(len(d.data))
		m.block.msgs[i].hdr.Namelen = unix.SizeofSockaddrNetlink
		m.block.msgs[i].hdr.Flags = 0
		if d.truncated {
			m.block.msgs[i].hdr.Flags = unix.MSG_TRUNC
		}
		m.block.names[i].Pid = d.pid
	}
}

func newSource(events ...string) *Source {
	cfg := Config{Events: events}
	cfg.Defaults()
	s := &Source{cfg: cfg, opts: Options{Log: zap.NewNop()}, messages: messages{block: newBlock()}}
	s.table = &table{cfg: &s.cfg, opts: &s.opts, stats: &s.Stats}
	return s
}

// TestDatagrams has blocks of all kinds: what can be read of them becomes records, and what cannot be is in a gap.
func TestDatagrams(t *testing.T) {
	end := func(id uint64) []byte {
		return message(subsysCT<<8|msgDelete, 0, 0, v4Tuple(ctaTupleOrig, 1, 2, flow.UDP), attribute(ctaID, be(id, 4)))
	}
	odd := message(subsysCT<<8|msgDelete, 0, 0, v4Tuple(ctaTupleOrig, 1, 2, flow.UDP), attribute(ctaMark, be(1, 8)), attribute(ctaID, be(9, 4)))
	none := message(subsysCT<<8|msgDelete, 0, 0, attribute(ctaID, be(1, 4)))
	begin := message(subsysCT<<8|msgNew, flagsNew, 0, attribute(ctaID, be(1, 4)))
	for _, tt := range []struct {
		name                                   string
		block                                  []datagram
		ids                                    []uint32
		malformed, skipped, refused, truncated uint64
		gap                                    *flow.Gap
	}{
		{"one each", []datagram{of(end(1)), of(end(2))}, []uint32{1, 2}, 0, 0, 0, 0, nil},
		{"several in one", []datagram{of(end(1), end(2), end(3)), of(end(4))}, []uint32{1, 2, 3, 4}, 0, 0, 0, 0, nil},
		{"an odd attribute", []datagram{of(odd, end(2))}, []uint32{9, 2}, 0, 1, 0, 0, nil},
		{"no tuple", []datagram{of(end(1), none, end(3))}, []uint32{1, 3}, 1, 0, 0, 0, &flow.Gap{Lost: 1, LostKnown: true}},
		{"a message that would be no record", []datagram{of(begin), of(end(3))}, []uint32{3}, 1, 0, 0, 0, nil},
		{"no event", []datagram{of(message(3, 0, 0)), of(end(3))}, []uint32{3}, 1, 0, 0, 0, nil},
		{"a length past the end", []datagram{of(end(1), end(2)[:40]), of(end(3))}, []uint32{1, 3}, 1, 0, 0, 0, &flow.Gap{Lost: 1}},
		{"a few bytes behind", []datagram{of(end(1), []byte{1, 2, 3, 4}), of(end(3))}, []uint32{1, 3}, 1, 0, 0, 0, &flow.Gap{Lost: 1}},
		{"nothing", []datagram{of(), of(end(3))}, []uint32{3}, 1, 0, 0, 0, &flow.Gap{Lost: 1}},
		{"cut off in an attribute", []datagram{of(odd[:len(odd)-2]).cut(), of(end(3))}, []uint32{0, 3}, 0, 2, 0, 1, nil},
		{"cut off in the second", []datagram{of(end(1), odd[:len(odd)-2]).cut(), of(end(3))}, []uint32{1, 0, 3}, 0, 2, 0, 1, nil},
		{"cut off behind the first", []datagram{of(end(1)).cut(), of(end(3))}, []uint32{1, 3}, 1, 0, 0, 1, &flow.Gap{Lost: 1}},
		{"cut off in the header", []datagram{of(end(1)[:18]).cut(), of(end(3))}, []uint32{3}, 1, 0, 0, 1, &flow.Gap{Lost: 1}},
		{"somebody else's", []datagram{of(end(1)).from(4711), of(end(2))}, []uint32{2}, 0, 0, 1, 0, nil},
	} {
		for _, room := range []int{1, 2, 256} {
			t.Run(fmt.Sprintf("%s, room for %d", tt.name, room), func(t *testing.T) {
				s := newSource("destroy")
				s.load(tt.block...)
				var ids []uint32
				for s.messages.at < s.messages.n {
					b := flow.NewBatch(room, nil)
					s.decode(b)
					for _, r := range b.Records {
						ids = append(ids, r.ID)
					}
				}
				if diff := cmp.Diff(tt.ids, ids); diff != "" {
					t.Errorf("records by id (-want +got):\n%s", diff)
				}
				st := &s.Stats
				got := []uint64{st.Malformed.Load(), st.Skipped.Load(), st.Refused.Load(), st.Truncated.Load()}
				if diff := cmp.Diff([]uint64{tt.malformed, tt.skipped, tt.refused, tt.truncated}, got); diff != "" {
					t.Errorf("malformed, skipped, refused, truncated (-want +got):\n%s", diff)
				}
				switch {
				case tt.gap == nil && s.lost.n > 0:
					t.Errorf("%d messages are lost, want none", s.lost.n)
				case tt.gap != nil && (s.lost.n != tt.gap.Lost || s.lost.unknown == tt.gap.LostKnown):
					t.Errorf("lost: %+v, want %+v", s.lost, tt.gap)
				}
			})
		}
	}
}

// TestHandOver: what was taken from the socket is read to its end when a successor is to read on, and nothing more is; and
// what is held back, or waits in the socket, has not been read.
func TestHandOver(t *testing.T) {
	msg := message(subsysCT<<8|msgDelete, 0, 0, v4Tuple(ctaTupleOrig, 1, 2, flow.UDP), attribute(ctaID, be(7, 4)))
	s := newSource("destroy")
	s.opts.Handover = true
	s.load(slices.Repeat([]datagram{of(msg)}, blockSlots)...)
	began := time.Unix(1_800_000_000, 0)
	s.delivery = delivery{reliable: true, caught: began, emptied: began.Add(time.Second), lookedAt: time.Now(), rose: time.Now()}
	b := flow.NewBatch(10, nil)
	if n, more, err := s.Fill(b, time.Now()); n != 10 || !more || err != nil {
		t.Fatalf("%d messages, more %t, error %v", n, more, err)
	}
	if left, err := s.Leave(); left || err != nil {
		t.Fatalf("left %t, error %v", left, err)
	}
	if got := s.ReadUntil(); !got.Equal(began) {
		t.Errorf("all is said to be read that ended until %v after the begin of what is held back", got.Sub(began))
	}
	n, more := 0, true
	for more {
		b.Reset()
		var k int
		k, more, _ = s.Fill(b, time.Now())
		n += k
	}
	if n != blockSlots-10 {
		t.Errorf("%d messages were read after the first 10 of %d", n, blockSlots)
	}
}

// FuzzDatagram has anything at all in a datagram: it is walked to its end, and what becomes a record has a tuple.
func FuzzDatagram(f *testing.F) {
	for _, msg := range corpus(f) {
		f.Add(append(append([]byte(nil), msg...), msg...), false)
		f.Add(msg[:len(msg)-3], true)
	}
	f.Fuzz(func(t *testing.T, data []byte, truncated bool) {
		s := newSource("destroy")
		s.load(datagram{data: data[:min(len(data), slotSize)], truncated: truncated}, of(message(3, 0, 0)))
		for range len(data) + 3 {
			b := flow.NewBatch(3, nil)
			if s.decode(b); s.messages.at == s.messages.n {
				return
			}
			for _, r := range b.Records {
				if r.Has&flow.HasOrig == 0 || r.Event == 0 {
					t.Fatalf("record without a tuple, or of no event: %+v", r)
				}
			}
		}
		t.Fatal("the block does not come to its end")
	})
}

// TestFillAllocs: neither walking a block nor decoding it leaves garbage.
func TestFillAllocs(t *testing.T) {
	s := newSource("destroy")
	msg := message(subsysCT<<8|msgDelete, 0, 0, v4Tuple(ctaTupleOrig, 1, 2, flow.UDP), attribute(ctaID, be(7, 4)))
	block := make([]datagram, blockSlots)
	for i := range block {
		block[i] = of(msg)
	}
	s.load(block...)
	b := flow.NewBatch(256, nil)
	if n := testing.AllocsPerRun(100, func() {
		b.Reset()
		s.messages.at, s.messages.rest = 0, nil
		if n := s.decode(b); n != blockSlots {
			t.Fatalf("%d messages", n)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// TestDelivery: drops are losses under best effort, and delay under reliable delivery; the counter wraps.
func TestDelivery(t *testing.T) {
	base := time.Unix(1_800_000_000, 0)
	at := func(ms int) time.Time { return base.Add(time.Duration(ms) * time.Millisecond) }
	for _, reliable := range []bool{true, false} {
		d := delivery{reliable: reliable, drops: 0xffff_fffe, lookedAt: at(0), caught: at(0)}
		d.emptied = at(10)
		d.count(0xffff_fffe, at(10))
		d.catchUp(at(10))
		if !d.caught.Equal(at(10)) {
			t.Errorf("reliable %v: caught up to %v, want 10 ms", reliable, d.caught.Sub(base))
		}
		if from, grown := d.count(3, at(20)); grown != 5 || !from.Equal(at(10)) {
			t.Errorf("reliable %v: %d more since %v, want 5 since 10 ms", reliable, grown, from.Sub(base))
		}
		d.emptied = at(20)
		d.catchUp(at(20))
		if want := map[bool]time.Time{true: at(10), false: at(20)}[reliable]; !d.caught.Equal(want) || d.withheld(at(20)) != reliable {
			t.Errorf("reliable %v: caught up to %v, withheld %v", reliable, d.caught.Sub(base), d.withheld(at(20)))
		}
		later := 20 + int(sliceWait/time.Millisecond)
		d.emptied = at(later)
		d.catchUp(at(later)) // nobody has looked at the count since
		if want := at(20); !d.caught.Equal(want) {
			t.Errorf("reliable %v: caught up to %v, want 20 ms", reliable, d.caught.Sub(base))
		}
		d.catchUp(at(later + 10)) // the socket was not read empty
		if want := at(20); !d.caught.Equal(want) {
			t.Errorf("reliable %v: caught up to %v, want 20 ms", reliable, d.caught.Sub(base))
		}
	}
}

// TestDumpBehindAFlush: what a dump remembers while it waits is bounded, and what it cannot know it does not guess: it is
// asked for again.
func TestDumpBehindAFlush(t *testing.T) {
	s := newSource("destroy")
	s.opts.Room = func() bool { return true }
	asked := make(chan error, 1)
	first := &dump{job: job{purpose: forOpen, reading: &reading{left: 1}}, fd: -1, asked: asked, ended: map[uint64]struct{}{}}
	s.table.dump = first
	for i := range 3 * maxEnded {
		r := flow.Record{Event: flow.EventDestroy, ID: uint32(i), Start: int64(i)}
		s.table.ended(&r)
		if n := len(first.ended); n > maxEnded {
			t.Fatalf("%d flows are remembered, at most %d are meant to be", n, maxEnded)
		}
	}
	var sink gaps
	if s.table.turn(time.Now(), &sink) || s.table.dump != first {
		t.Error("the dump has begun before the kernel took the request")
	}
	asked <- nil
	if !s.table.turn(time.Now(), &sink) || s.table.dump == first {
		t.Error("a dump that has lost count goes on")
	}
	if s.table.unfinished() == false {
		t.Error("the dump is not asked for again")
	}
	// Once begun, a chunk is read before too many are remembered, whoever has room for it.
	d := &dump{ended: map[uint64]struct{}{}}
	for i := range maxEnded {
		d.end(uint64(i))
	}
	if !d.crowded() {
		t.Error("nothing makes the dump go on")
	}
}

// TestDue goes the reader's rounds over a minute of which only the clock passes: whatever the table waits for, the rounds
// between which the reader does not wait are those in which something is done.
func TestDue(t *testing.T) {
	began := time.Now()
	noRoom := func() bool { return false }
	under := func(asked chan error) func(*testing.T, *table) {
		return func(t *testing.T, tab *table) {
			fd, err := newSocket() // nobody asks for a table on it, so that no chunk comes
			if err != nil {
				t.Fatal(err)
			}
			tab.dump = &dump{job: job{purpose: forOpen, reading: &reading{left: 1}}, fd: fd, asked: asked, buf: make([]byte, 1024),
				stepped: began, heard: began, ended: map[uint64]struct{}{}}
		}
	}
	for _, tt := range []struct {
		name   string
		room   func() bool
		set    func(*testing.T, *table)
		rounds int // at most
		ends   bool
	}{
		{"nothing to do", nil, func(*testing.T, *table) {}, 61, true},
		{"interim records far away", nil, func(_ *testing.T, tab *table) { tab.interimAt = began.Add(time.Hour) }, 61, true},
		{"checkpoints far away", nil, func(_ *testing.T, tab *table) { tab.checkpoints.Store(int64(time.Hour)) }, 61, true},
		{"checkpoints that are over", nil, func(_ *testing.T, tab *table) { tab.checkpointAt = began.Add(-time.Hour) }, 61, true},
		{"the other namespaces are not known", nil, func(_ *testing.T, tab *table) {
			tab.want, tab.joined, tab.view = forOpen, began.Add(time.Hour), func() *netns.View { return &netns.View{} }
		}, int(time.Minute / askedWait), true},
		{"the kernel has not begun", nil, under(make(chan error)), int(time.Minute / askedWait), false},
		{"the kernel has not begun, and no room", noRoom, under(make(chan error)), int(time.Minute / askedWait), false},
		{"no chunk comes", nil, under(nil), 61 + int(chunkWithin/roomWait), true},
		{"no chunk comes, and no room", noRoom, under(nil), 61 + int(chunkWithin/roomWait), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSource("destroy")
			s.opts.Room = tt.room
			core, logged := observer.New(zap.ErrorLevel)
			s.opts.Log = zap.New(core)
			tab := s.table
			tt.set(t, tab)
			broken := tab.dump != nil && tt.ends
			var sink gaps
			rounds := 0
			for now := began; now.Sub(began) < time.Minute && rounds <= tt.rounds; rounds++ {
				if !tab.turn(now, &sink) {
					now = now.Add(min(idle, tab.due(now)))
				}
			}
			if rounds > tt.rounds {
				t.Errorf("more than %d rounds in a minute: the reader spins", tt.rounds)
			}
			if tt.ends != (tab.dump == nil) || broken != (logged.Len() > 0) {
				t.Errorf("the dump is over: %v, want %v; logged: %v", tab.dump == nil, tt.ends, logged.All())
			}
			tab.finish()
		})
	}
	// There is no wait before what the next turn begins.
	tab := newSource("destroy").table
	tab.jobs = []job{{nil, forOpen, &reading{left: 1}}}
	if d := tab.due(began); d != 0 {
		t.Errorf("a table that is to be read waits for %v", d)
	}
	if tab.turn(began, &gaps{}); len(tab.jobs) > 0 {
		t.Error("the turn has begun nothing")
	}
	tab.finish()
}

// A dump that has begun and brings nothing is broken off before it remembers too many ends.
func TestSilentDump(t *testing.T) {
	s := newSource("destroy")
	fd, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	d := &dump{job: job{purpose: forOpen, reading: &reading{left: 1}}, fd: fd, buf: make([]byte, 1024), stepped: now, heard: now,
		ended: map[uint64]struct{}{}}
	s.table.dump = d
	var sink gaps
	for i := 0; s.table.dump != nil; i++ {
		s.table.ended(&flow.Record{Event: flow.EventDestroy, ID: uint32(i)})
		if s.table.turn(now, &sink); len(d.ended) > maxEnded || d.stale {
			t.Fatalf("%d flows are remembered, and there is no end of it", i)
		}
	}
}

// TestGuardThresholds: tables of tens of millions of entries, where the machine's int has 32 bits too.
func TestGuardThresholds(t *testing.T) {
	for _, tt := range []struct {
		room          int64
		threshold     int
		limit, target int64
	}{
		{65536, 90, 58982, 52428}, {23_900_000, 90, 21_510_000, 19_120_000}, {1 << 31, 99, 2126008811, 1911260446},
	} {
		g := &guard{threshold: tt.threshold}
		if limit, target := g.limits(tt.room); limit != tt.limit || target != tt.target {
			t.Errorf("room %d, threshold %d: from %d on to %d, want %d and %d", tt.room, tt.threshold, limit, target, tt.limit, tt.target)
		}
	}
}
