package ctnetlink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/input/netns"
)

const (
	// guardIdle is how often the guard looks at the socket, guardBusy how often while the socket fills.
	guardIdle = 500 * time.Millisecond
	guardBusy = 10 * time.Millisecond

	// sliceMax is how long ends are thrown away at a time, counted from the first: some ten thousand of them. The kernel
	// tries to deliver again what it holds back when another flow ends, or within a second (nf_conntrack_ecache_work). So
	// nothing is held back if no end comes within sliceWait.
	sliceMax  = 20 * time.Millisecond
	sliceWait = 1200 * time.Millisecond
	sliceStep = time.Millisecond

	// shedPoints is how far below the threshold the table is shed, in percent of its room. The kernel may take a second to
	// give up more, and new connections come meanwhile.
	shedPoints = 10

	// calmAfter is after how long without a failed attempt nothing is held back any more, and after how long without a
	// slice shedding is over. While the kernel holds something back it tries once a second at least.
	calmAfter = 2 * time.Second

	// gapEvery is after how long the gap is handed over while shedding goes on.
	gapEvery = 10 * time.Second

	// quietFor is how long witnesses.difference looks for a moment in which no event is under way.
	quietFor = 20 * time.Millisecond

	// guardQuiet is the least time between two warnings; each has the sum since the last one.
	guardQuiet = 10 * time.Second
)

// guard keeps ended flows from filling the connection tracking table. Under reliable delivery the kernel keeps an ended
// flow until its end has been delivered, and counts it as an entry of the table. So a reader that does not keep up could
// fill the table, and new connections would fail. When the table passes the threshold while the kernel holds ends back,
// the guard has them thrown away, in slices of 20 ms, until the table is well below the threshold, and counts them.
//
// How they are counted. A socket's counter of drops cannot tell an attempt that will be repeated from one that was the
// last: between reading the counter and turning NETLINK_BROADCAST_ERROR off, attempts go on. So the socket of the events
// leaves the group of the ends for a slice, and two others, the witnesses, take its place. Both are full for good: each
// fails at every event, and counts it. The frozen witness wants reliable delivery. While it is a member, every end is held
// back, whoever else is a member. While the loss witness is alone, every end is lost. An event that comes while both are
// members adds one to both counters. Hence
//
//	frozen in, loss in, events out   everything is held back
//	                                 loss - frozen = a
//	frozen out                       ends are lost: loss counts alone
//	frozen in                        everything is held back
//	                                 loss - frozen = b
//	events in, frozen out, loss out  as before; b - a ends were lost, exactly
//
// and each difference is read at a moment in which no event is under way. The counter of the events' socket goes on to
// count repeated attempts alone, and stays the reader's.
type guard struct {
	sock      *socket
	witnesses witnesses
	table     tableSize          // of ctlogd's own namespace
	view      func() *netns.View // of the other namespaces, each of which has a table; nil: they are not listened to
	threshold int                // percent of the table's room
	stats     *Stats
	log       *zap.Logger

	cancel context.CancelFunc // ends the goroutine
	ended  chan struct{}      // closed when it has ended

	members sync.Mutex // held while sock's groups or filter change, and while ends are shed
	pending pendingGap

	// The guard's goroutine's own.
	seen       lastLook
	shedAt     time.Time // when ends were last thrown away
	unreadable bool      // the table cannot be read, which is in the log
	warnedAt   time.Time
	unwarned   uint64 // ends lost since then
	unwarnedIn string // the namespace whose table was too full, the last time
}

// lastLook is what the guard has seen of socket and table.
type lastLook struct {
	at        time.Time
	drops     uint32    // the socket's count
	roseAt    time.Time // when drops was last seen to have risen
	heldSince time.Time // no flow that is held back ended before; zero if nothing is held back
	heldDrops uint32    // the socket's count when heldSince was set, or ends were last thrown away because of a table unseen
	filling   bool      // drops had risen, or half of the socket's buffer was in use
	entries   int64     // in the table, when the socket was last filling
	spaces    map[*netns.Space]tableLook
}

// tableLook is what the guard has seen of another namespace's table.
type tableLook struct {
	at      time.Time
	entries int64
}

// full is a table that is too full, or that may be.
type full struct {
	netns  string // "": ctlogd's own
	space  *netns.Space
	over   int64 // entries above the limit
	target int64
	count  func() (int64, error)
}

// tableSize tells how full the connection tracking table is.
type tableSize struct{ count, max *os.File }

// newGuard prepares everything that shedding needs, so that it cannot fail later for want of memory or descriptors.
func newGuard(sock *socket, threshold int, in interest, stats *Stats, log *zap.Logger) (g *guard, err error) {
	g = &guard{sock: sock, threshold: threshold, stats: stats, log: log, seen: lastLook{at: time.Now()}}
	_ = g.table.open() // read tries again
	if err = g.witnesses.open(in, sock.others); err == nil {
		g.seen.drops, err = sock.drops()
	}
	if err != nil {
		g.close()
		return nil, fmt.Errorf("set up the guard of the table: %w", err)
	}
	return g, nil
}

// close gives everything back. The guard may be nil.
func (g *guard) close() {
	if g != nil {
		g.table.close()
		g.witnesses.close()
	}
}

// start starts the guard's goroutine. It depends on nothing that the reader does, because the guard is for a reader that
// is stuck, starved or gone.
func (g *guard) start() {
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.ended = cancel, make(chan struct{})
	go func() {
		defer close(g.ended)
		g.run(ctx)
	}()
}

// stop ends the goroutine, and returns when it has ended. The guard may be nil, or not started.
func (g *guard) stop() {
	if g != nil && g.cancel != nil {
		g.cancel()
		<-g.ended
	}
}

func (g *guard) run(ctx context.Context) {
	timer := time.NewTimer(guardIdle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(g.look(time.Now()))
	}
}

// look looks at the socket and the table, sheds if that is due, and returns when to look again.
func (g *guard) look(now time.Time) time.Duration {
	mem, err := g.sock.memInfo()
	if err != nil {
		g.log.Error("guard of the table: cannot look at the socket", zap.Error(err))
		return guardIdle
	}
	seen := &g.seen
	rising := mem.Drops != seen.drops
	wasFilling := seen.filling
	seen.filling = rising || mem.Queued > mem.Buffer/2
	switch {
	case rising:
		if seen.heldSince.IsZero() {
			seen.heldSince, seen.heldDrops = seen.at, seen.drops
		}
		seen.roseAt = now
	case now.Sub(seen.roseAt) >= calmAfter:
		seen.heldSince = time.Time{}
	}
	seen.drops, seen.at = mem.Drops, now
	g.pending.handOver(now, g.shedAt)
	g.warn(now)
	if !seen.filling {
		return guardIdle
	}

	entries, room, err := g.table.read()
	if err != nil {
		if !g.unreadable {
			g.log.Error("guard of the table: cannot read how full it is; ended flows that are not delivered may fill it",
				zap.Error(err), zap.String("remedy", "make /proc/sys/net/netfilter readable, or set delivery: best_effort"))
		}
		g.unreadable = true
		return guardIdle
	}
	before := seen.entries
	seen.entries = entries
	behind := rising || !seen.heldSince.IsZero() && mem.Queued > mem.Buffer/8*7
	worst := g.judge("", entries, before, room, func() (int64, error) { return netns.ReadNumber(g.table.count) })
	if g.view != nil {
		worst = fuller(worst, g.others(now, room, mem.Drops))
	}
	if !behind || !wasFilling || worst.over < 0 {
		return guardBusy
	}
	if err := g.shed(worst); err != nil {
		g.log.Error("guard of the table: cannot shed ended flows", zap.Error(err))
		return guardIdle
	}
	return guardBusy
}

// judge says by how much a table is too full: less than 0 if it is not. A reader that catches up needs no help, as long as
// there is room for what comes meanwhile.
func (g *guard) judge(name string, entries, before, room int64, count func() (int64, error)) full {
	limit, target := g.limits(room)
	f := full{netns: name, over: entries - limit, target: target, count: count}
	if entries < before && f.over < room*int64(100-g.threshold)/200 {
		f.over = min(f.over, -1)
	}
	return f
}

func fuller(a, b full) full {
	if b.over > a.over {
		return b
	}
	return a
}

// lookAgain is how often the guard looks at the table of another namespace that is far from full.
const lookAgain = 100 * time.Millisecond

// others returns the fullest of the tables of other namespaces. Each may have as many entries as ctlogd's own, as
// nf_conntrack_max is one number for all. A table that cannot be seen counts as too full when more attempts to deliver have
// failed than a tenth of its room: so many ends it may hold at most.
func (g *guard) others(now time.Time, room int64, drops uint32) (worst full) {
	worst.over = -1
	view, seen := g.view(), &g.seen
	blind := len(view.Unnamed) > 0
	looks := make(map[*netns.Space]tableLook, len(view.Spaces))
	for _, s := range view.Spaces {
		last, ok := seen.spaces[s]
		if ok && now.Sub(last.at) < lookAgain && last.entries < room/4 {
			looks[s] = last
			continue
		}
		entries, err := s.Entries()
		if err != nil {
			blind = true
			continue
		}
		looks[s] = tableLook{now, entries}
		if ok {
			f := g.judge(s.Name, entries, last.entries, room, s.Entries)
			f.space = s
			worst = fuller(worst, f)
		}
	}
	seen.spaces = looks
	if failed := int64(drops - seen.heldDrops); blind && worst.over < 0 && !seen.heldSince.IsZero() && failed > room/10 {
		seen.heldDrops = drops
		worst = full{netns: "?", over: failed, count: func() (int64, error) { return math.MaxInt64, nil }}
	}
	return worst
}

// limits returns from how many entries on the guard sheds, and down to how many.
func (g *guard) limits(room int64) (limit, target int64) {
	return room * int64(g.threshold) / 100, room * int64(max(g.threshold-shedPoints, 0)) / 100
}

// open opens the two sysctls. The files stay those of the network namespace in which they were opened. They exist once the
// module nf_conntrack is loaded, which may happen because of our socket, a moment after.
func (t *tableSize) open() error {
	if t.max != nil {
		return nil
	}
	count, err := os.Open("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return err
	}
	room, err := os.Open("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		_ = count.Close()
		return err
	}
	t.count, t.max = count, room
	return nil
}

func (t *tableSize) close() {
	if t.max != nil {
		_ = t.count.Close()
		_ = t.max.Close()
	}
}

// read returns how many entries the table has, and how many it may have. It opens the files if need be.
func (t *tableSize) read() (entries, room int64, err error) {
	if err = t.open(); err != nil {
		return 0, 0, err
	}
	if entries, err = netns.ReadNumber(t.count); err != nil {
		return 0, 0, err
	}
	room, err = netns.ReadNumber(t.max)
	return entries, room, err
}

// shed throws ends away until the table has no more than its target of entries, for one slice at most: the ends of all
// namespaces, as the kernel makes no difference.
func (g *guard) shed(table full) (err error) {
	g.members.Lock()
	defer g.members.Unlock()
	if !slices.Contains(g.sock.groups, groupDestroy) {
		return nil // no end is held back for us
	}
	w := &g.witnesses
	from := g.seen.heldSince
	joined := true
	restore := func() error {
		var err error
		if !joined {
			err = g.sock.join(groupDestroy)
		}
		return errors.Join(err, w.frozen.leave(groupDestroy), w.loss.leave(groupDestroy))
	}
	if err := errors.Join(w.frozen.join(groupDestroy), w.loss.join(groupDestroy)); err != nil {
		return errors.Join(err, restore())
	}
	// The events' socket leaves last. Otherwise an end could be delivered to it and held back: it would come twice.
	if err := g.sock.leave(groupDestroy); err != nil {
		return errors.Join(err, restore())
	}
	joined = false
	before, exactBefore := w.difference()
	base := w.loss.count()
	start := time.Now()
	limit := start.Add(sliceWait)
	if err := w.frozen.leave(groupDestroy); err != nil {
		return errors.Join(err, restore())
	}
	for waiting := true; ; {
		time.Sleep(sliceStep)
		n, err := table.count()
		now := time.Now()
		if err != nil || n < table.target || now.After(limit) {
			break
		}
		if waiting && w.loss.count() != base {
			waiting, limit = false, now.Add(sliceMax)
		}
	}
	// If this fails, all ends are lost until the events' socket is back. They are counted even so.
	err = w.frozen.join(groupDestroy)
	after, exactAfter := w.difference()
	now := time.Now()
	err = errors.Join(err, restore())

	lost := uint64(after - before) // right across the wrap of the counters
	g.unwarnedIn = table.netns
	g.stats.GuardSheds.Add(1)
	if table.space != nil {
		table.space.Sheds.Add(1)
	}
	g.stats.GuardLost.Add(lost)
	g.unwarned += lost
	g.shedAt = now
	if lost > 0 {
		g.pending.add(guardGap{from: from, to: now, first: start, lost: lost, inexact: !exactBefore || !exactAfter, any: true})
	}
	return err
}

// hold keeps the guard from shedding until release. It waits for a slice that is under way, a second or so at most. Whoever
// changes the socket's groups or filter holds the guard: otherwise losses would be miscounted. The guard may be nil.
func (g *guard) hold() (release func()) {
	if g == nil {
		return func() {}
	}
	g.members.Lock()
	return g.members.Unlock
}

// warn logs how many ends are lost, as a sum.
func (g *guard) warn(now time.Time) {
	if g.unwarned == 0 || now.Sub(g.warnedAt) < guardQuiet {
		return
	}
	g.log.Warn("ended flows that were not read fast enough were filling the table; their ends were thrown away",
		zap.Uint64("lost", g.unwarned), zap.Int64("entries", g.seen.entries), zap.Int("table_guard", g.threshold),
		zap.String("netns", g.unwarnedIn))
	g.warnedAt, g.unwarned = now, 0
}
