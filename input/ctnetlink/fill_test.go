package ctnetlink

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input/netns"
)

// fullBlock returns a source whose block is full of the ends of TCP flows, and what reads it once more.
func fullBlock(t testing.TB) (s *Source, read func(b *flow.Batch) int) {
	t.Helper()
	s = newSource("destroy")
	var datagrams []datagram
	batch := flow.NewBatch(1, nil)
	for len(datagrams) < blockSlots {
		before := len(datagrams)
		for _, msg := range corpus(t) {
			batch.Reset()
			r, _, err := decode(msg, batch)
			if err == nil && r.Event == flow.EventDestroy && r.Has&flow.HasTCP != 0 && r.Extra == nil && len(datagrams) < blockSlots {
				datagrams = append(datagrams, of(msg))
			}
		}
		if len(datagrams) == before {
			t.Fatal("the corpus has no end of a TCP flow")
		}
	}
	s.load(datagrams...)
	return s, func(b *flow.Batch) int {
		s.messages.at, s.messages.rest = 0, nil
		return s.decode(b)
	}
}

// from says that each message of the block is of the namespace that has the id, as the kernel does.
func (s *Source) from(id int32) {
	b := s.messages.block
	b.askNamespaces()
	for i := range b.msgs {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&b.control[i][0]))
		c.Level, c.Type = unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID
		c.SetLen(unix.CmsgLen(4))
		binary.NativeEndian.PutUint32(b.control[i][unix.CmsgLen(0):], uint32(id))
		b.msgs[i].hdr.SetControllen(unix.CmsgSpace(4))
	}
	s.others = &others{all: true, stats: &s.Stats, view: &netns.View{Own: -1}, id: noID, unnamed: map[int32]bool{}}
}

// TestNamespaceOfEvents: each record has the namespace that the kernel names, at no allocation; of what nobody asked for there
// is none; and what is of ctlogd's own namespace has none, even where that has an id.
func TestNamespaceOfEvents(t *testing.T) {
	s, read := fullBlock(t)
	s.from(7)
	b := flow.NewBatch(256, nil)
	if n := read(b); n != blockSlots || len(b.Records) != blockSlots {
		t.Fatalf("%d events are %d records", n, len(b.Records))
	}
	for i := range b.Records {
		if info := b.Records[i].Netns.Info(); info.ID != 7 || info.Name != "7" {
			t.Fatalf("record %d is of %+v", i, info)
		}
	}
	if allocs := testing.AllocsPerRun(100, func() {
		b.Reset()
		read(b)
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	s.others.forget()
	s.others.all = false
	b.Reset()
	if n := read(b); n != blockSlots || len(b.Records) != 0 || s.Stats.Unlisted.Load() != blockSlots {
		t.Errorf("of %d events that nobody asked for %d are records, and %d are counted", n, len(b.Records), s.Stats.Unlisted.Load())
	}
	s.others.forget()
	s.others.view = &netns.View{Own: 7}
	b.Reset()
	if read(b); len(b.Records) != blockSlots || b.Records[0].Netns != 0 {
		t.Errorf("ctlogd's own events are %d records", len(b.Records))
	}
}

func BenchmarkBlock(b *testing.B) {
	run := func(b *testing.B, s *Source, read func(*flow.Batch) int) {
		batch := flow.NewBatch(256, nil)
		b.ReportAllocs()
		for b.Loop() {
			batch.Reset()
			read(batch)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/blockSlots, "ns/event")
	}
	b.Run("own", func(b *testing.B) {
		s, read := fullBlock(b)
		run(b, s, read)
	})
	b.Run("another", func(b *testing.B) {
		s, read := fullBlock(b)
		s.from(7)
		run(b, s, read)
	})
}
