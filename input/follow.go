package input

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	// goneFor is how long a flow that is gone waits for its DESTROY, which may be queued in the socket or, under
	// reliable delivery, be held back by the kernel, before its end is inferred.
	goneFor = 5 * time.Second

	// maxGone is how many flows wait so at most; as long as so many do, nobody is asked for.
	maxGone = 1 << 17

	// inferEvery is how many records of inferred ends are made in one turn at most.
	inferEvery = 64

	// pagesEvery is how many pages are asked for in one turn at most, and pagesWait how long they are saved up when
	// nothing else is to do.
	pagesEvery = 8
	pagesWait  = 100 * time.Millisecond

	// followFlush is how often the followed flows are handed to the kernel, so that a sudden end costs no more.
	followFlush = time.Second

	// sinceMargin is how long after the groups were joined a flow may still begin whose end nobody reports: its first
	// packet was on its way then.
	sinceMargin = time.Second
)

// FollowStats counts what became of the flows whose end the kernel does not report. Any goroutine may read it.
type FollowStats struct {
	Followed  atomic.Int64  // flows followed now
	Asked     atomic.Uint64 // flows asked for
	Unclear   atomic.Uint64 // of those, not answered: they are asked for again
	Inferred  atomic.Uint64 // ends inferred
	Reported  atomic.Uint64 // followed flows whose end the kernel did report
	Untracked atomic.Uint64 // flows that could not be followed, for want of room
}

// followOptions are what a follower needs of the reader. All is called on the reader's goroutine.
type followOptions struct {
	dir      string        // of its file; "": a file that does not outlast the process
	max      int           // flows
	interval time.Duration // between two looks at a flow
	silent   bool          // nf_conntrack_events=2: flows born while nobody listened never report their end
	all      bool          // follow whatever a dump shows, so that overruns can be made good
	kept     bool          // the socket was a predecessor's

	put  func(*flow.Record) // takes a copy
	gap  func(from, to int64, lost uint64, known bool)
	room func() bool // as Options.Room
}

// follower keeps the flows whose end the kernel does not report, asks for each of them once in every interval, and
// writes the last record of one that is gone. It is the reader's own.
//
// A flow is gone when the kernel says so of its tuple, not when a dump has not shown it: a dump may miss a flow. Asking
// costs 4 us a flow, spread over the interval, and a dump 2 us for each in the table, followed or not: so in each
// interval all are asked for, or there is a dump and those that it has not shown are.
type follower struct {
	followOptions
	stats *FollowStats
	log   *zap.Logger

	index *index
	store *store
	asks  interface {
		ask(flows, found []flow.Record, answers []answer) error
	}
	since  int64 // flows inserted from then on report their end
	adopts bool  // of flows without a start it is not known whether they do
	err    error // why nothing can be followed any more

	// The round under way.
	began time.Time // or the last one
	page  int       // the next one to ask for; all are done: len(store.pages)
	hurry bool      // do not spread it over the interval
	early bool      // begin the next one at once

	// The dump under way.
	dumping   bool
	dumped    int64 // when it, or the last one, began
	taking    bool  // it is the first one
	table     int   // how many flows it has shown, or the last one
	shown     int
	untracked uint64

	gone    []gone // oldest first
	told    int    // of gone, from its begin
	toldAt  time.Time
	flushed time.Time

	flows   [pageSlots]flow.Record
	found   [pageSlots]flow.Record
	answers [pageSlots]answer
	slots   [pageSlots]uint32
	rec     flow.Record
}

// gone is a flow that has ended after one time and before another; noticed is when that was found.
type gone struct {
	slot                   uint32
	after, before, noticed int64
}

// newFollower returns a follower, nil if there is nothing to follow. joined is when the groups were joined.
func newFollower(o followOptions, joined time.Time, stats *FollowStats, log *zap.Logger) (*follower, error) {
	if _, err := os.Stat(storeFile(o.dir)); !o.silent && !o.all && (o.dir == "" || err != nil) {
		return nil, nil
	}
	f := &follower{followOptions: o, stats: stats, log: log, began: joined, flushed: joined}
	left, err := f.open(o.dir)
	if err != nil && o.dir != "" {
		log.Warn("followed flows will not outlast a restart", zap.Error(err))
		left, err = f.open("")
	}
	if err != nil {
		return nil, err
	}
	// With the socket of a predecessor whose list is here, all that was born since it joined reports its end.
	if f.since = f.store.head.Since; !left || !o.kept {
		f.since, f.adopts = joined.Add(sinceMargin).UnixNano(), true
	}
	f.store.head.Since = f.since
	a, err := newAsker()
	if err == nil {
		f.asks = a
		err = f.store.writeHead()
	}
	if err != nil {
		f.index.close()
		return nil, errors.Join(err, f.store.close())
	}
	f.count()
	if f.index.n > 0 {
		log.Info("flows followed before the restart", zap.Int("flows", f.index.n))
	}
	return f, nil
}

// open opens index and store, and says whether a predecessor has left anything there.
func (f *follower) open(dir string) (left bool, err error) {
	if f.index, err = newIndex(); err != nil {
		return false, err
	}
	f.store, left, err = openStore(dir, func(slot uint32, r *flow.Record) error { return f.index.add(hashOf(r), slot) })
	if err != nil {
		f.index.close()
	}
	return left, err
}

// forgetFollowed removes what a predecessor has followed: nobody may take it up when it is out of date.
func forgetFollowed(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.Remove(storeFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget followed flows: %w", err)
	}
	return nil
}

// silentEvents reports whether flows born while nobody listened never report their end. That is the kernel's default,
// hence the answer where it is hidden.
func silentEvents() bool {
	b, err := os.ReadFile(eventsPath)
	return err != nil || strings.TrimSpace(string(b)) == "2"
}

var followSeed = maphash.MakeSeed()

// hashOf returns a hash of r's original tuple and zones. It is keyed: subscribers choose tuples.
func hashOf(r *flow.Record) uint64 {
	var b [42]byte
	t := &r.Orig
	copy(b[:], t.Src[:])
	copy(b[16:], t.Dst[:])
	binary.NativeEndian.PutUint16(b[32:], t.SrcPort)
	binary.NativeEndian.PutUint16(b[34:], t.DstPort)
	b[36] = byte(t.Proto)
	if t.HasZone {
		b[37] |= 1
		binary.NativeEndian.PutUint16(b[38:], t.Zone)
	}
	if r.Has&flow.HasZone != 0 {
		b[37] |= 2
		binary.NativeEndian.PutUint16(b[40:], r.Zone)
	}
	return maphash.Bytes(followSeed, b[:])
}

// sameTuple reports whether two records are of one original tuple and zone; the kernel has no two such flows at a time.
func sameTuple(a, b *flow.Record) bool {
	return a.Orig == b.Orig && a.Has&flow.HasZone == b.Has&flow.HasZone && (a.Has&flow.HasZone == 0 || a.Zone == b.Zone)
}

// sameFlow reports whether now, with the tuple of was, is the same flow at a later time. Without the kernel's start
// times (nf_conntrack_timestamp=0) and counters, a flow that came after it may be taken for it: ids come again.
func sameFlow(was, now *flow.Record) bool {
	if was.Has&now.Has&flow.HasID != 0 && was.ID != now.ID {
		return false
	}
	if was.Start != 0 && now.Start != 0 && was.Start != now.Start {
		return false
	}
	if was.Has&now.Has&flow.HasCounters != 0 {
		o, p := &was.OrigCounters, &was.ReplyCounters
		return now.OrigCounters.Packets >= o.Packets && now.OrigCounters.Bytes >= o.Bytes &&
			now.ReplyCounters.Packets >= p.Packets && now.ReplyCounters.Bytes >= p.Bytes
	}
	return true
}

// find looks for the followed flow with r's tuple and reads it into f.rec. slot is noSlot if there is none.
func (f *follower) find(hash uint64, r *flow.Record) (slot uint32, pos int) {
	slot, pos = f.index.next(hash, f.index.start(hash))
	for slot != noSlot {
		_, c, _, err := f.store.at(slot)
		if err != nil {
			f.fail(err)
			return noSlot, 0
		}
		if getSlot(c.slot(slot), &f.rec); sameTuple(&f.rec, r) {
			break
		}
		slot, pos = f.index.next(hash, pos+1)
	}
	return slot, pos
}

// mayHold reports whether the flow that has ended may be followed. One that was born under our eyes is not, unless all
// are: that costs two comparisons.
func (f *follower) mayHold(r *flow.Record) bool {
	return f.index.n > 0 && (f.all || r.Start < f.since || r.Start > r.Received)
}

// destroyed takes note of the end of a flow that the kernel has reported. If it is not followed that costs a look into
// memory.
func (f *follower) destroyed(hash uint64, r *flow.Record) {
	slot, pos := f.find(hash, r)
	if slot == noSlot {
		return
	}
	f.index.remove(pos)
	if sameFlow(&f.rec, r) {
		f.stats.Reported.Add(1)
		f.release(slot)
	} else { // what is reported came after the followed flow
		f.lost(slot, r.Start, r.Received)
	}
	f.count()
}

// dumpBegins takes note that a dump of the whole table begins, all of which saw is going to see.
func (f *follower) dumpBegins(now time.Time, first bool) {
	f.dumping, f.taking, f.untracked, f.shown = true, first, 0, 0
	f.began, f.dumped, f.early = now, now.UnixNano(), false
	f.unsee()
}

func (f *follower) unsee() {
	for i := range f.store.pages {
		f.store.pages[i].seen = 0
	}
}

// saw takes note of a flow that the dump has shown: one that is followed, or is to be.
func (f *follower) saw(hash uint64, r *flow.Record) {
	if f.err != nil {
		return
	}
	f.shown++
	slot, pos := f.find(hash, r)
	if slot != noSlot {
		if sameFlow(&f.rec, r) {
			f.alive(slot, r)
			return
		}
		f.index.remove(pos)
		f.lost(slot, r.Start, r.Received)
	}
	// A start in the future, by a clock that was set back since, tells nothing.
	silent := f.silent && f.taking &&
		(r.Start == 0 && f.adopts || r.Start != 0 && (r.Start < f.since || r.Start > r.Received))
	if !silent && !f.all || f.err != nil {
		return
	}
	if f.index.n >= f.max {
		if silent {
			f.untracked++
		}
		return
	}
	slot, err := f.store.take(r, r.Received)
	if err == nil {
		err = f.index.add(hash, slot)
	}
	if err != nil {
		f.fail(err)
	}
}

// dumpEnds takes note that the dump is over; whole says that it has shown the whole table. What it has not shown is
// asked for at once.
func (f *follower) dumpEnds(now time.Time, whole bool) {
	f.dumping = false
	if whole {
		f.table = f.shown
	} else {
		f.unsee()
	}
	f.page, f.hurry = 0, true
	if !whole && f.taking && f.silent {
		f.gap(f.dumped, 0, 0, false) // who was not shown is not followed
	}
	if f.untracked > 0 {
		f.stats.Untracked.Add(f.untracked)
		f.log.Error("more flows than can be followed do not report their end; raise follow_entries",
			zap.Uint64("not_followed", f.untracked), zap.Int("followed", f.index.n))
		f.gap(f.dumped, 0, f.untracked, true)
	}
	if f.count(); f.taking {
		f.log.Info("following flows", zap.Int("flows", f.index.n), zap.Bool("all", f.all),
			zap.Duration("interval", f.interval))
	}
}

// alive takes note that a followed flow is still there; f.rec is what was known of it.
func (f *follower) alive(slot uint32, r *flow.Record) {
	p, c, bit, err := f.store.at(slot)
	if err != nil {
		f.fail(err)
		return
	}
	p.seen |= bit
	p.gone &^= bit
	var s [slotBytes]byte
	if putSlot(s[:], r); string(s[:]) != string(c.slot(slot)) {
		copy(c.slot(slot), s[:])
		c.dirty = true
	}
}

// lost takes note that a flow has ended unreported, before start, if that of its successor is known, and now.
func (f *follower) lost(slot uint32, start, now int64) {
	p, _, bit, err := f.store.at(slot)
	if err != nil {
		f.fail(err)
		return
	}
	if p.gone&bit == 0 {
		p.gone |= bit
		before := now
		if start > p.asked && start < now {
			before = start
		}
		if len(f.gone) == cap(f.gone) && f.told >= len(f.gone)/2 {
			f.gone = f.gone[:copy(f.gone, f.gone[f.told:])]
			f.told = 0
		}
		f.gone = append(f.gone, gone{slot, p.asked, before, now})
	}
}

// missed tells that events were lost: whoever has ended meanwhile is to be found soon.
func (f *follower) missed() { f.early = f.all }

// turn does a little of what is to do. emptied is when the socket was last read empty: an end reported before that has
// been read. wantDump asks for a dump; more says that there is something to do at once.
func (f *follower) turn(now, emptied time.Time) (wantDump, more bool) {
	more = f.infer(now, emptied)
	if now.Sub(f.flushed) >= followFlush {
		f.flushed = now
		if err := f.store.flush(); err != nil {
			f.fail(err)
		}
	}
	if f.dumping || f.err != nil {
		return false, more
	}
	if f.page >= len(f.store.pages) && f.roundEnds(now) {
		return true, more
	}
	asked := 0
	for f.page < len(f.store.pages) && f.err == nil && (f.hurry || !now.Before(f.pageDue())) {
		if f.waiting() >= maxGone {
			return false, more
		}
		if asked == pagesEvery {
			return false, true
		}
		if f.askPage(now) {
			asked++
		}
	}
	return false, more || f.hurry
}

// roundEnds begins the next round when it is time, or asks for the dump that begins it.
func (f *follower) roundEnds(now time.Time) (wantDump bool) {
	if f.index.n == 0 && f.waiting() == 0 && len(f.store.pages) > 0 {
		f.page = 0
		if err := f.store.reset(); err != nil {
			f.fail(err)
		}
		if !f.all {
			f.log.Info("no flow is left to follow")
		}
	}
	if f.all || f.index.n > f.table/2 {
		if f.hurry {
			f.hurry = false
			f.mark()
		}
		return !now.Before(f.dumpDue())
	}
	switch next := f.began.Add(f.interval); {
	case f.hurry: // behind a dump, at whose begin everybody was there: the next look is due an interval after it
		f.hurry = false
	case now.Before(next):
		return false
	case now.Before(next.Add(f.interval)):
		f.began = next
	default: // the machine was asleep
		f.began = now
	}
	f.mark()
	f.page = 0
	f.unsee()
	return false
}

// mark writes down since when none of the followed flows had ended, for a successor.
func (f *follower) mark() {
	asked := int64(math.MaxInt64)
	for i := range f.store.pages {
		if p := &f.store.pages[i]; p.used != 0 {
			asked = min(asked, p.asked)
		}
	}
	for _, g := range f.gone[f.told:] {
		asked = min(asked, g.after)
	}
	if len(f.store.pages) > 0 {
		f.store.head.Asked = asked
	}
	if err := f.store.writeHead(); err != nil {
		f.fail(err)
	}
}

// dumpDue returns when the next dump is to begin. Overruns come in swarms: there is no more than a dump in a tenth of
// the interval.
func (f *follower) dumpDue() time.Time {
	if f.early {
		return f.began.Add(f.interval / 10)
	}
	return f.began.Add(f.interval)
}

// pageDue returns when the next page is to be asked for.
func (f *follower) pageDue() time.Time {
	return f.began.Add(time.Duration(float64(f.interval) * float64(f.page+1) / float64(len(f.store.pages))))
}

// due returns how long there is nothing to do for the follower.
func (f *follower) due(now time.Time) time.Duration {
	wait := f.dumpDue().Sub(now)
	if f.page < len(f.store.pages) && !f.dumping {
		wait = max(f.pageDue().Sub(now), pagesWait)
	}
	if f.waiting() > 0 {
		wait = min(wait, max(time.Unix(0, f.gone[f.told].noticed).Add(goneFor).Sub(now), pagesWait))
	}
	return max(wait, 0)
}

// askPage asks for the flows of the next page of the round that no dump has shown in it, if there are any.
func (f *follower) askPage(now time.Time) (asked bool) {
	p := &f.store.pages[f.page]
	first := uint32(f.page * pageSlots)
	f.page++
	at := now.UnixNano()
	if p.seen != 0 {
		at = f.dumped
	}
	n := 0
	for left := p.used &^ p.seen &^ p.gone; left != 0; left &= left - 1 {
		slot := first + uint32(bits.TrailingZeros32(left))
		_, c, _, err := f.store.at(slot)
		if err != nil {
			f.fail(err)
			return false
		}
		getSlot(c.slot(slot), &f.flows[n])
		f.slots[n] = slot
		n++
	}
	answered := true
	if n > 0 {
		if err := f.asks.ask(f.flows[:n], f.found[:n], f.answers[:n]); err != nil {
			f.log.Error("cannot ask for followed flows", zap.Error(err))
		}
		f.stats.Asked.Add(uint64(n))
	}
	for i := range n {
		r := &f.found[i]
		switch {
		case f.answers[i] == noAnswer:
			f.stats.Unclear.Add(1)
			answered = false
		case f.answers[i] == absent: // its DESTROY may be on its way, and is to find it
			f.lost(f.slots[i], 0, now.UnixNano())
		case sameTuple(&f.flows[i], r) && sameFlow(&f.flows[i], r):
			f.alive(f.slots[i], r)
		case sameTuple(&f.flows[i], r): // a DESTROY that comes now is the other's
			f.unindex(f.slots[i], &f.flows[i])
			f.lost(f.slots[i], r.Start, now.UnixNano())
		default: // the other direction of another flow
			f.lost(f.slots[i], 0, now.UnixNano())
		}
	}
	if answered {
		p.asked = at
	}
	return n > 0
}

// infer writes the records of flows that have been gone for long enough; more says that others have, too.
func (f *follower) infer(now, emptied time.Time) (more bool) {
	if f.waiting() == 0 || f.room != nil && !f.room() && now.Sub(f.toldAt) < roomWait {
		return false
	}
	f.toldAt = now
	if f.gone[f.told].noticed > now.UnixNano() { // the clock was set back: their time begins anew
		for i := range f.gone[f.told:] {
			g := &f.gone[f.told+i]
			g.noticed = min(g.noticed, now.UnixNano())
		}
	}
	for i := range inferEvery {
		if f.told == len(f.gone) {
			f.gone, f.told = f.gone[:0], 0
			break
		}
		g := f.gone[f.told]
		noticed := time.Unix(0, g.noticed)
		if now.Sub(noticed) < goneFor || emptied.Before(noticed) {
			break
		}
		f.told++
		f.end(g, now)
		more = i == inferEvery-1
	}
	return more
}

// waiting returns how many flows are gone whose record is due.
func (f *follower) waiting() int { return len(f.gone) - f.told }

// end writes the record of a flow that is gone, unless its DESTROY came after all.
func (f *follower) end(g gone, now time.Time) {
	p, c, bit, err := f.store.at(g.slot)
	if err != nil {
		f.fail(err)
		return
	}
	if p.gone&bit == 0 {
		return
	}
	getSlot(c.slot(g.slot), &f.rec)
	f.unindex(g.slot, &f.rec)
	f.release(g.slot)
	r := f.rec
	r.Event, r.Received = flow.EventDestroy, now.UnixNano()
	r.Has |= flow.Inferred
	// A page's time is that of its oldest flow, and clocks are set back.
	r.Stamp, r.Stop = min(max(g.after, r.Start), g.before), g.before
	f.stats.Inferred.Add(1)
	f.put(&r)
	f.count()
}

// unindex takes a slot out of the index, if it is in.
func (f *follower) unindex(slot uint32, r *flow.Record) {
	if f.err != nil {
		return
	}
	hash := hashOf(r)
	for s, pos := f.index.next(hash, f.index.start(hash)); s != noSlot; s, pos = f.index.next(hash, pos+1) {
		if s == slot {
			f.index.remove(pos)
			return
		}
	}
}

func (f *follower) release(slot uint32) {
	if err := f.store.release(slot); err != nil {
		f.fail(err)
	}
}

func (f *follower) count() { f.stats.Followed.Store(int64(f.index.n)) }

// fail gives up: what was followed is on record as untracked.
func (f *follower) fail(err error) {
	if f.err != nil {
		return
	}
	f.err = err
	lost := uint64(f.store.left())
	f.log.Error("flows cannot be followed any more", zap.Uint64("flows", lost), zap.Error(err))
	f.stats.Untracked.Add(lost)
	f.gap(time.Now().UnixNano(), 0, lost, true)
	f.index.close()
	f.gone, f.told = nil, 0
	f.count()
}

// finish ends the following. last says that no event comes any more: what is gone has not been reported. The others
// are left to a successor.
func (f *follower) finish(now time.Time, last bool) {
	if f.err == nil && last {
		for _, g := range f.gone[f.told:] {
			f.end(g, now)
		}
		f.gone, f.told = nil, 0
	}
	if f.err == nil {
		f.mark()
	}
	if err := f.store.close(); err != nil && f.err == nil {
		f.fail(err)
	}
	if a, ok := f.asks.(*asker); ok {
		a.close()
	}
	f.index.close()
}
