package input

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

// fakeTable is a connection tracking table to ask.
type fakeTable struct {
	flows map[uint64]flow.Record // by hashOf
	deaf  bool                   // gives no answer
	asked int
}

func (k *fakeTable) ask(flows, found []flow.Record, answers []answer) error {
	for i := range flows {
		k.asked++
		answers[i] = absent
		if r, ok := k.flows[hashOf(&flows[i])]; ok {
			found[i], answers[i] = r, present
		}
		if k.deaf {
			answers[i] = noAnswer
		}
	}
	return nil
}

func (k *fakeTable) set(recs ...flow.Record) {
	for _, r := range recs {
		k.flows[hashOf(&r)] = r
	}
}

// following is a follower with a table to ask and a clock.
type following struct {
	*follower
	kernel fakeTable
	crowd  int // flows in the table that need not be followed
	now    time.Time
	recs   []flow.Record
	t      *testing.T
}

// joined is when the groups were joined, and flows began to report their end.
var joined = time.Unix(1_700_000_000, 0)

func newFollowing(t *testing.T, change func(*followOptions)) *following {
	t.Helper()
	l := &following{t: t, now: joined, kernel: fakeTable{flows: map[uint64]flow.Record{}}}
	o := followOptions{
		dir: t.TempDir(), max: 1000, interval: time.Minute, silent: true,
		put: func(r *flow.Record) { l.recs = append(l.recs, *r) },
		gap: func(from, to int64, lost uint64, known bool) {
			l.recs = append(l.recs, flow.Record{Event: flow.EventGap, Start: from, Stop: to,
				Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseUntracked, Lost: lost, LostKnown: known}}})
		},
	}
	if change != nil {
		change(&o)
	}
	var err error
	if l.follower, err = newFollower(o, l.now.Add(-sinceMargin), new(FollowStats), zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	if l.follower == nil {
		return l
	}
	l.asks.(*asker).close()
	l.asks = &l.kernel
	t.Cleanup(func() { l.finish(l.now, false) })
	return l
}

// dump shows the table as it is now, and what is told of it.
func (l *following) dump(first bool) {
	l.dumpBegins(l.now, first)
	for hash, r := range l.kernel.flows {
		r.Received = l.now.UnixNano()
		l.saw(hash, &r)
	}
	for i := range l.crowd {
		r := again(old(i), l.now)
		r.Orig.DstPort, r.Received = 80, l.now.UnixNano()
		l.saw(hashOf(&r), &r)
	}
	l.dumpEnds(l.now, true)
	l.settle()
}

// settle does what is due now.
func (l *following) settle() {
	for range 1000 {
		if wants, more := l.turn(l.now, l.now); wants {
			l.dump(false)
			return
		} else if !more {
			return
		}
	}
	l.t.Fatal("the follower does not come to rest")
}

// wait lets time pass as the reader does, sleeping as long as there is nothing to do.
func (l *following) wait(d time.Duration) {
	for end := l.now.Add(d); l.now.Before(end); {
		l.now = l.now.Add(max(min(l.due(l.now), end.Sub(l.now)), time.Millisecond))
		l.settle()
	}
}

func (l *following) destroy(r flow.Record) {
	r.Event, r.Received = flow.EventDestroy, l.now.UnixNano()
	delete(l.kernel.flows, hashOf(&r))
	if l.mayHold(&r) {
		l.destroyed(hashOf(&r), &r)
	}
}

// inferred returns the record of an inferred end.
func inferred(r flow.Record, after, before, received time.Time) flow.Record {
	r.Event, r.Has = flow.EventDestroy, r.Has|flow.Inferred
	r.Stamp, r.Stop, r.Received = after.UnixNano(), before.UnixNano(), received.UnixNano()
	return r
}

// old returns the i-th of many flows that were born an hour before the groups were joined.
func old(i int) flow.Record {
	o := flow.Tuple{Src: flow.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Dst: flow.AddrFrom4([4]byte{192, 0, 2, 1}),
		SrcPort: uint16(i), DstPort: 443, Proto: flow.TCP}
	p := flow.Tuple{Src: o.Dst, Dst: o.Src, SrcPort: 443, DstPort: o.SrcPort, Proto: flow.TCP}
	return flow.Record{
		Orig: o, Reply: p, Has: flow.HasOrig | flow.HasReply | flow.HasStatus | flow.HasID | flow.HasCounters | flow.HasTCP,
		OrigCounters: flow.Counters{Packets: 3, Bytes: 300}, ReplyCounters: flow.Counters{Packets: 2, Bytes: 200},
		Start: joined.Add(-time.Hour).UnixNano() + int64(i), ID: uint32(1e6 + i), Status: 0x18e, State: 3,
	}
}

func grown(r flow.Record) flow.Record {
	r.OrigCounters.Packets++
	r.OrigCounters.Bytes += 1500
	return r
}

// again returns a flow with the tuple and the id of r that began at start.
func again(r flow.Record, start time.Time) flow.Record {
	r.Start = start.UnixNano()
	r.OrigCounters, r.ReplyCounters = flow.Counters{Packets: 1, Bytes: 60}, flow.Counters{}
	return r
}

func TestFollow(t *testing.T) {
	const interval = time.Minute
	at := func(d time.Duration) time.Time { return joined.Add(d) }
	for _, tt := range []struct {
		name   string
		change func(*followOptions)
		do     func(l *following)
		want   []flow.Record
		left   int // flows followed at the end
	}{
		{
			name: "one that stays",
			do: func(l *following) {
				l.kernel.set(old(1))
				l.dump(true)
				l.wait(10 * interval)
			},
			left: 1,
		},
		{
			name: "one that is gone, with the counters last seen",
			do: func(l *following) {
				l.kernel.set(old(1))
				l.dump(true)
				l.wait(interval / 2)
				l.kernel.set(grown(old(1)))
				l.wait(2 * interval) // asked for at the end of each round
				clear(l.kernel.flows)
				l.wait(interval + goneFor)
			},
			want: []flow.Record{inferred(grown(old(1)), at(2*interval), at(3*interval), at(3*interval+goneFor))},
		},
		{
			name: "one that reports its end after all",
			do: func(l *following) {
				l.kernel.set(old(1))
				l.dump(true)
				l.wait(interval)
				l.destroy(old(1))
				l.wait(2 * interval)
			},
		},
		{
			name: "one whose end is queued when it is asked for",
			do: func(l *following) {
				l.kernel.set(old(1))
				l.dump(true)
				clear(l.kernel.flows)
				l.wait(interval + goneFor - time.Millisecond)
				l.destroy(old(1))
				l.wait(2 * interval)
			},
		},
		{
			name: "one whose end comes too late",
			do: func(l *following) {
				l.kernel.set(old(1))
				l.dump(true)
				clear(l.kernel.flows)
				l.wait(interval + goneFor)
				l.destroy(old(1)) // a second record, the reader's
			},
			want: []flow.Record{inferred(old(1), at(0), at(interval), at(interval+goneFor))},
		},
		{
			name: "one whose tuple is taken again, found by asking",
			do: func(l *following) {
				l.kernel.set(old(1))
				l.dump(true)
				l.kernel.set(again(old(1), at(10*time.Second)))
				l.wait(interval + goneFor)
			},
			want: []flow.Record{inferred(old(1), at(0), at(10*time.Second), at(interval+goneFor))},
		},
		{
			name: "one whose tuple is taken again, told by the end of the other",
			do: func(l *following) {
				l.kernel.set(old(1))
				l.dump(true)
				l.wait(20 * time.Second)
				l.destroy(again(old(1), at(-time.Minute))) // began before the groups were joined, reports all the same
				l.wait(goneFor)
			},
			want: []flow.Record{inferred(old(1), at(0), at(20*time.Second), at(20*time.Second+goneFor))},
		},
		{
			name: "one whose tuple is taken again without start times: its counters tell",
			do: func(l *following) {
				r := old(1)
				r.Start = 0
				l.kernel.set(r)
				l.dump(true)
				r = again(r, time.Time{})
				r.Start = 0
				l.kernel.set(r)
				l.wait(interval + goneFor)
			},
			want: []flow.Record{inferred(func() flow.Record { r := old(1); r.Start = 0; return r }(),
				at(0), at(interval), at(interval+goneFor))},
		},
		{
			name: "one that is no original tuple any more, but a reply",
			do: func(l *following) {
				l.kernel.set(old(1))
				l.dump(true)
				r := old(1)
				r.Orig, r.Reply = r.Reply, r.Orig
				l.kernel.flows[hashOf(new(old(1)))] = r
				l.wait(interval + goneFor)
			},
			want: []flow.Record{inferred(old(1), at(0), at(interval), at(interval+goneFor))},
		},
		{
			name: "one that the kernel gives no answer for",
			do: func(l *following) {
				l.kernel.set(old(1))
				l.dump(true)
				clear(l.kernel.flows)
				l.kernel.deaf = true
				l.wait(3*interval - time.Second)
				l.kernel.deaf = false
				l.wait(time.Second + goneFor)
			},
			want: []flow.Record{inferred(old(1), at(0), at(3*interval), at(3*interval+goneFor))},
		},
		{
			name: "those that are born under our eyes are none of ours",
			do: func(l *following) {
				l.now = at(10 * time.Second)
				l.kernel.set(again(old(1), at(sinceMargin)), again(old(2), at(time.Hour)), old(3))
				l.dump(true)
				l.wait(0)
			},
			left: 2, // the one with a start in the future among them: a clock was set back
		},
		{
			name:   "more than there is room for",
			change: func(o *followOptions) { o.max = 40 },
			do: func(l *following) {
				for i := range 100 {
					l.kernel.set(old(i))
				}
				l.dump(true)
			},
			want: []flow.Record{{Event: flow.EventGap, Start: joined.UnixNano(),
				Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseUntracked, Lost: 60, LostKnown: true}}}},
			left: 40,
		},
		{
			name: "a dump that breaks off",
			do: func(l *following) {
				l.dumpBegins(l.now, true)
				l.dumpEnds(l.now, false)
			},
			want: []flow.Record{{Event: flow.EventGap, Start: joined.UnixNano(),
				Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseUntracked}}}},
		},
		{
			name:   "reconcile: what a later dump shows is followed, events lost are made good at once",
			change: func(o *followOptions) { o.all, o.silent = true, false },
			do: func(l *following) {
				l.dump(true)
				l.kernel.set(again(old(1), at(time.Second)), again(old(2), at(time.Second)))
				l.wait(interval + time.Second)
				l.destroy(again(old(1), at(time.Second)))
				clear(l.kernel.flows)
				l.missed()
				l.wait(10 * time.Second)
			},
			want: []flow.Record{inferred(again(old(2), at(time.Second)), at(interval), at(interval*11/10),
				at(interval*11/10+goneFor))},
		},
		{
			name:   "reconcile: what a later dump shows in the place of another",
			change: func(o *followOptions) { o.all, o.silent = true, false },
			do: func(l *following) {
				l.kernel.set(again(old(1), at(0)))
				l.dump(true)
				l.kernel.set(again(old(1), at(time.Second)))
				l.wait(interval + goneFor)
			},
			want: []flow.Record{inferred(again(old(1), at(0)), at(0), at(time.Second), at(interval+goneFor))},
			left: 1,
		},
		{
			name:   "reconcile: a dump that misses a flow ends nothing",
			change: func(o *followOptions) { o.all = true },
			do: func(l *following) {
				l.kernel.set(old(1))
				l.dump(true)
				l.wait(interval / 2)
				l.dumpBegins(l.now, false)
				l.dumpEnds(l.now, true)
				l.wait(interval)
				if l.kernel.asked == 0 {
					l.t.Error("nobody was asked for")
				}
			},
			left: 1,
		},
		{
			name:   "without a silent table there is nothing to follow",
			change: func(o *followOptions) { o.silent = false },
			do:     func(l *following) {},
		},
	} {
		// In a crowd the few followed flows are asked for, alone the table is read.
		for where, crowd := range map[string]int{"alone": 0, "in a crowd": 1000} {
			t.Run(tt.name+"/"+where, func(t *testing.T) {
				l := newFollowing(t, tt.change)
				if l.follower != nil && !l.all {
					l.crowd = crowd
				}
				tt.do(l)
				if diff := cmp.Diff(tt.want, l.recs); diff != "" {
					t.Errorf("records (-want +got):\n%s", diff)
				}
				if l.follower == nil {
					return
				}
				if l.index.n != tt.left || l.store.left() != tt.left {
					t.Errorf("%d followed, %d stored, want %d", l.index.n, l.store.left(), tt.left)
				}
			})
		}
	}
}

// A successor takes up what was followed, and tells what has ended meanwhile.
func TestFollowRestart(t *testing.T) {
	dir := t.TempDir()
	in := func(o *followOptions) { o.dir = dir }
	l := newFollowing(t, in)
	l.crowd = 1000
	for i := range 100 {
		l.kernel.set(old(i))
	}
	l.dump(true)
	l.wait(70 * time.Second) // all are asked for once, and the time of the round is written
	for i := range 50 {
		l.destroy(old(i))
	}
	l.finish(l.now, false)

	next := newFollowing(t, in)
	if next.index.n != 50 {
		t.Fatalf("%d flows left, want 50", next.index.n)
	}
	next.now = joined.Add(5 * time.Minute)
	for i := 60; i < 100; i++ {
		next.kernel.set(old(i))
	}
	next.dump(true)
	next.wait(goneFor)
	if len(next.recs) != 10 || next.index.n != 40 {
		t.Fatalf("%d ends inferred, %d flows left; want 10 and 40", len(next.recs), next.index.n)
	}
	for _, r := range next.recs {
		i := int(r.Orig.SrcPort)
		want := inferred(old(i), joined.Add(15*time.Second), joined.Add(5*time.Minute), next.now)
		if i < 50 || i >= 60 {
			t.Errorf("flow %d has not ended", i)
		}
		// The flows fill four pages, the first of which was asked for after 15 s.
		if after := time.Unix(0, r.Stamp); after.Before(time.Unix(0, want.Stamp)) || after.After(joined.Add(70*time.Second)) {
			t.Errorf("flow %d was last seen at %v", i, after)
		}
		r.Stamp = want.Stamp
		if diff := cmp.Diff(want, r); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// With the predecessor's socket, flows that are in the table and not on its list report their end.
func TestFollowKeptSocket(t *testing.T) {
	for _, tt := range []struct {
		name string
		kept bool
		want int
	}{{"kept", true, 1}, {"opened anew", false, 3}} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			l := newFollowing(t, func(o *followOptions) { o.dir = dir })
			l.kernel.set(old(1))
			l.dump(true)
			l.finish(l.now, false)

			next := newFollowing(t, func(o *followOptions) { o.dir, o.kept = dir, tt.kept })
			unknown := old(3)
			unknown.Start = 0
			next.kernel.set(old(1), again(old(2), joined.Add(-time.Minute)), unknown)
			if tt.kept {
				next.kernel.set(again(old(2), joined.Add(time.Minute)))
			}
			next.now = joined.Add(time.Hour)
			next.dump(true)
			if next.index.n != tt.want {
				t.Errorf("%d followed, want %d", next.index.n, tt.want)
			}
		})
	}
}

func TestStoreOfOthers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(h *header)
		want   int
	}{
		{"the same", func(*header) {}, 1},
		{"of the boot before", func(h *header) { h.Boot[0] ^= 1 }, 1},
		{"of another namespace", func(h *header) { h.Ino++ }, 0},
		{"of another version", func(h *header) { h.Magic[14] = '9' }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			l := newFollowing(t, func(o *followOptions) { o.dir = dir })
			l.kernel.set(old(1))
			l.dump(true)
			tt.change(&l.store.head)
			l.finish(l.now, false)
			if next := newFollowing(t, func(o *followOptions) { o.dir = dir }); next.index.n != tt.want {
				t.Errorf("%d flows, want %d", next.index.n, tt.want)
			}
		})
	}
}

// The clock is set back while the end of a flow that is gone is awaited: its record does not wait until it is that late
// again.
func TestFollowClockSetBack(t *testing.T) {
	l := newFollowing(t, nil)
	l.kernel.set(old(1))
	l.dump(true)
	clear(l.kernel.flows)
	for l.waiting() == 0 {
		l.wait(time.Second)
	}
	l.now = l.now.Add(-3 * time.Hour)
	if due := l.due(l.now); l.infer(l.now, l.now) || len(l.recs) > 0 {
		t.Errorf("told at once, due %v: %v", due, l.recs)
	}
	l.now = l.now.Add(goneFor)
	l.infer(l.now, l.now)
	if len(l.recs) != 1 || l.recs[0].Stamp > l.recs[0].Stop {
		t.Errorf("got %v, want the record of one that is gone", l.recs)
	}
}

// Two processes with one directory: the second one goes without.
func TestStoreInUse(t *testing.T) {
	dir := t.TempDir()
	l := newFollowing(t, func(o *followOptions) { o.dir = dir })
	l.kernel.set(old(1))
	l.dump(true)
	other := newFollowing(t, func(o *followOptions) { o.dir = dir })
	if other.index.n != 0 {
		t.Error("the other has taken what is not its own")
	}
	other.kernel.set(old(2))
	other.dump(true)
	if other.index.n != 1 {
		t.Error("the other does not follow")
	}
}

// A disk that fails costs the following, and says so.
func TestFollowDiskFails(t *testing.T) {
	l := newFollowing(t, nil)
	for i := range 70 {
		l.kernel.set(old(i))
	}
	l.dump(true)
	l.store.file.Close()
	l.wait(2 * time.Minute)
	want := []flow.Record{{Event: flow.EventGap,
		Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseUntracked, Lost: 70, LostKnown: true}}}}
	for i := range l.recs {
		l.recs[i].Start = 0
	}
	if diff := cmp.Diff(want, l.recs); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	l.destroy(old(1))
	l.dump(false)
}

// Outputs without room get a few records at a time, until they have it again.
func TestFollowRoom(t *testing.T) {
	room := false
	l := newFollowing(t, func(o *followOptions) { o.room = func() bool { return room } })
	for i := range 1000 {
		l.kernel.set(old(i))
	}
	l.dump(true)
	clear(l.kernel.flows)
	l.wait(l.interval + goneFor + time.Second)
	if got := len(l.recs); got == 0 || got > 12*inferEvery {
		t.Errorf("%d records in a second without room", got)
	}
	room = true
	l.wait(time.Second)
	if got := len(l.recs); got != 1000 {
		t.Errorf("%d records, want 1000", got)
	}
}

// In each interval everybody is asked for once, and no more than a few at a time.
func TestFollowPace(t *testing.T) {
	l := newFollowing(t, func(o *followOptions) { o.max, o.interval = 1<<20, 5*time.Minute })
	const n = 30_000
	l.crowd = n + 1
	for i := range n {
		l.kernel.set(old(i))
	}
	l.dump(true)
	if l.kernel.asked != 0 {
		t.Errorf("%d asked for that a dump has shown", l.kernel.asked)
	}
	most := 0
	for end := l.now.Add(l.interval); l.now.Before(end); {
		before := l.kernel.asked
		l.now = l.now.Add(max(l.due(l.now), time.Millisecond))
		l.settle()
		most = max(most, l.kernel.asked-before)
	}
	if l.kernel.asked != n {
		t.Errorf("%d asked for, want %d", l.kernel.asked, n)
	}
	if most > 2*pageSlots {
		t.Errorf("%d asked for at a time, where 10 in 100 ms are due", most)
	}
}

func TestSlot(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		var s [slotBytes]byte
		for i := range s {
			s[i] = byte(rng.Uint32())
		}
		var r, got flow.Record
		getSlot(s[:], &r)
		putSlot(s[:], &r)
		getSlot(s[:], &got)
		if diff := cmp.Diff(r, got); diff != "" {
			t.Fatal(diff)
		}
	}
	want := old(7)
	want.Zone, want.Has, want.Mark, want.Orig.V6, want.Reply.V6 = 9, want.Has|flow.HasZone|flow.HasMark, 5, true, true
	want.Orig.Zone, want.Orig.HasZone, want.Reply.Zone, want.Reply.HasZone = 3, true, 4, true
	var s [slotBytes]byte
	var got flow.Record
	putSlot(s[:], &want)
	getSlot(s[:], &got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestIndex holds the index to a map, with hashes that meet often.
func TestIndex(t *testing.T) {
	x, err := newIndex()
	if err != nil {
		t.Fatal(err)
	}
	defer x.close()
	rng := rand.New(rand.NewPCG(3, 4))
	want := map[uint32]uint64{} // hash by slot
	find := func(hash uint64, slot uint32) (pos int, ok bool) {
		for s, pos := x.next(hash, x.start(hash)); s != noSlot; s, pos = x.next(hash, pos+1) {
			if s == slot {
				return pos, true
			}
		}
		return 0, false
	}
	for slot := range uint32(20_000) {
		hash := rng.Uint64()
		if rng.IntN(2) == 0 {
			hash = uint64(rng.IntN(3))<<62 - uint64(rng.IntN(50))<<slotBits // near the ends, and often the same
		}
		if err := x.add(hash, slot); err != nil {
			t.Fatal(err)
		}
		want[slot] = hash
		if rng.IntN(3) == 0 {
			for s, h := range want {
				pos, ok := find(h, s)
				if !ok {
					t.Fatalf("slot %d is lost", s)
				}
				x.remove(pos)
				delete(want, s)
				break
			}
		}
	}
	if x.n != len(want) {
		t.Errorf("%d entries, want %d", x.n, len(want))
	}
	for s, h := range want {
		if _, ok := find(h, s); !ok {
			t.Fatalf("slot %d is lost", s)
		}
	}
	if load := float64(x.n) / float64(len(x.table)); load > 0.75 {
		t.Errorf("%.0f %% full", 100*load)
	}
}

func TestFollowAllocs(t *testing.T) {
	l := newFollowing(t, func(o *followOptions) { o.all = true })
	for i := range 500 {
		l.kernel.set(old(i))
	}
	l.dump(true)
	r := old(1000)
	r.Event, r.Received = flow.EventDestroy, l.now.UnixNano()
	tbl := &table{follow: l.follower, dump: &dump{purpose: forFollow, ended: map[uint64]struct{}{}}}
	tbl.destroyed(&r)
	if n := testing.AllocsPerRun(100, func() { tbl.destroyed(&r) }); n != 0 {
		t.Errorf("%v allocations for the end of a flow that is not followed", n)
	}
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		r := old(i)
		i++
		r.Event = flow.EventDestroy
		l.destroyed(hashOf(&r), &r)
	}); n != 0 {
		t.Errorf("%v allocations for the end of a flow that is followed", n)
	}
	if got := l.stats.Reported.Load(); got != uint64(i) {
		t.Errorf("%d ends found their flow, want %d", got, i)
	}
}

// FuzzStore opens a file of any bytes.
func FuzzStore(f *testing.F) {
	dir := f.TempDir()
	s, _, err := openStore(dir, nil)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := s.take(new(old(1)), 1); err != nil {
		f.Fatal(err)
	}
	if err := s.close(); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(storeFile(dir))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, uint16(pageSize+pageUsed), uint32(0xffffffff))
	f.Add(good[:pageSize+100], uint16(0), uint32(0))
	f.Add([]byte{}, uint16(0), uint32(0))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, word uint32) {
		dir := t.TempDir()
		data = append([]byte{}, data...)
		if int(at)+4 <= len(data) {
			binary.NativeEndian.PutUint32(data[at:], word)
		}
		if err := os.WriteFile(storeFile(dir), data, 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		s, _, err := openStore(dir, func(uint32, *flow.Record) error { n++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		if s.left() != n {
			t.Errorf("%d flows, told of %d", s.left(), n)
		}
		if _, err := s.take(new(old(2)), 1); err != nil {
			t.Error(err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
}

// BenchmarkDestroyed is what following a million flows costs each DESTROY of another.
func BenchmarkDestroyed(b *testing.B) {
	l := &following{now: joined, kernel: fakeTable{}}
	f, err := newFollower(followOptions{dir: b.TempDir(), max: 1 << 20, interval: time.Minute, silent: true}, joined,
		new(FollowStats), zap.NewNop())
	if err != nil {
		b.Fatal(err)
	}
	l.follower = f
	defer f.finish(l.now, false)
	f.dumpBegins(l.now, true)
	for i := range 1_000_000 {
		r := many(i)
		r.Received = l.now.UnixNano()
		f.saw(hashOf(&r), &r)
	}
	f.dumpEnds(l.now, true)
	var others [4096]flow.Record
	for i := range others {
		others[i] = many(1<<30 + i*7919)
		others[i].Received = l.now.UnixNano()
	}
	tbl := &table{follow: f}
	for _, tt := range []struct {
		name  string
		start int64
	}{{"start unknown", 0}, {"start known", joined.Add(time.Hour).UnixNano()}} {
		b.Run(tt.name, func(b *testing.B) {
			for i := range others {
				others[i].Start, others[i].Received = tt.start, tt.start+1
			}
			i := 0
			for b.Loop() {
				tbl.destroyed(&others[i%len(others)])
				i++
			}
		})
	}
}

// many returns the i-th of up to 2^32 flows.
func many(i int) flow.Record {
	r := old(0)
	r.Start = 0
	binary.BigEndian.PutUint32(r.Orig.Src[12:], uint32(i))
	return r
}
