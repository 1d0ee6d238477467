package ctnetlink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	// guardIdle is how often the guard looks at the socket, guardBusy how often while the socket fills.
	guardIdle = 500 * time.Millisecond
	guardBusy = 10 * time.Millisecond

	// sliceMax is how long ends are thrown away at a time, from the first on: some ten thousand. It may take the kernel
	// up to a second (nf_conntrack_ecache_work) to try again to deliver what it holds back, unless another flow ends,
	// at which it tries at once; if there is nothing within sliceWait, nothing is held back.
	sliceMax  = 20 * time.Millisecond
	sliceWait = 1200 * time.Millisecond
	sliceStep = time.Millisecond

	// shedPoints is how far below its mark the table is shed, in percent of its room: it may take the kernel a second to
	// let go of more, and new connections come meanwhile.
	shedPoints = 10

	// calmAfter is how long no attempt has failed, or nothing was thrown away, when that is said to be over. While the
	// kernel holds something back it tries once a second at least.
	calmAfter = 2 * time.Second

	// gapEvery is when the gap of a shedding that does not end is handed over all the same.
	gapEvery = 10 * time.Second

	// quietFor is how long a moment is sought in which no event is under way.
	quietFor = 20 * time.Millisecond

	// guardQuiet is how long a warning that comes again is held back, to be summed up.
	guardQuiet = 10 * time.Second
)

// guard keeps ended flows from filling the connection tracking table. Under reliable delivery the kernel keeps an ended
// flow until its end has been delivered, and counts it as an entry of the table; a reader that does not keep up could
// so fill the table, and new connections would fail. When the table passes its mark while the kernel holds ends back,
// the guard has them thrown away, in slices of 20 ms, until the table is well below the mark, and counts them.
//
// How they are counted. The counter of drops that a socket has cannot tell an attempt that will be repeated from one
// that was the last: between reading the counter and turning NETLINK_BROADCAST_ERROR off, attempts go on. So the
// socket of the events leaves the group of the ends for a slice, and two others, the witnesses, take its place. Both
// are full for good, so each fails at every event, and counts it; they differ in that the frozen one wants reliable
// delivery. While it is a member, every end is held back, whoever else is a member; while the other is alone, every end
// is lost. Whatever happens while both are members adds one to both counters. Hence
//
//	frozen in, loss in, events out   everything is held back
//	                                 loss - frozen = a
//	frozen out                       ends are lost: loss counts alone
//	frozen in                        everything is held back
//	                                 loss - frozen = b
//	events in, frozen out, loss out  as before; b - a ends were lost, exactly
//
// and the two differences are each read at a moment in which no event is under way. The counter of the events' socket
// goes on to count repeated attempts alone; it is the reader's.
type guard struct {
	sock         *socket
	frozen, loss *witness
	barrier      int // a netlink socket that nothing is sent to, see offset
	count, max   *os.File
	mark         int // percent of max
	stats        *Stats
	log          *zap.Logger

	// The guard's goroutine's own.
	looked    time.Time
	drops     uint32    // of sock, when looked
	heldSince time.Time // nothing that is held back ended before; zero if nothing is held back
	rose      time.Time // when drops was last seen to have risen
	busy      bool
	entries   int64 // in the table, when looked
	shedAt    time.Time
	blind     bool // the table cannot be read, which was said
	warned    time.Time
	unwarned  uint64 // ends lost since then

	cancel context.CancelFunc // ends the goroutine
	ended  chan struct{}      // closed when it has ended

	members sync.Mutex // held by who changes sock's groups or filter, or sheds

	due atomic.Bool // gap is for the reader to take
	mu  sync.Mutex
	gap guardGap
}

// guardGap is what has been thrown away and is not yet in a record.
type guardGap struct {
	from, to time.Time
	first    time.Time // the first slice
	lost     uint64
	inexact  bool
	any      bool
}

func (g *guardGap) record() flow.Gap {
	return flow.Gap{Cause: flow.CauseGuard, Lost: g.lost, LostKnown: !g.inexact}
}

// newGuard prepares everything that shedding needs: it must not fail for want of memory or descriptors then.
func newGuard(sock *socket, mark int, in interest, stats *Stats, log *zap.Logger) (g *guard, err error) {
	g = &guard{sock: sock, mark: mark, stats: stats, log: log, barrier: -1, looked: time.Now()}
	defer func() {
		if err != nil {
			g.close()
			g = nil
			err = fmt.Errorf("set up the guard of the table: %w", err)
		}
	}()
	_ = g.openTable() // table tries again
	if g.frozen, err = newWitness(in, true); err != nil {
		return g, err
	}
	if g.loss, err = newWitness(in, false); err != nil {
		return g, err
	}
	if g.barrier, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_USERSOCK); err != nil {
		return g, err
	}
	g.drops, err = sock.drops()
	return g, err
}

// close gives everything back. The guard may be nil.
func (g *guard) close() {
	if g == nil {
		return
	}
	for _, f := range []*os.File{g.count, g.max} {
		_ = f.Close() // of nil: an error
	}
	for _, w := range []*witness{g.frozen, g.loss} {
		if w != nil {
			_ = w.close()
		}
	}
	if g.barrier >= 0 {
		_ = unix.Close(g.barrier)
	}
}

// start starts the guard's goroutine. It depends on nothing that the reader does: one that is stuck or starved is
// guarded against, and so is the time in which nobody reads any more.
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
	rising := mem.Drops != g.drops
	wasBusy := g.busy
	g.busy = rising || mem.Queued > mem.Buffer/2
	switch {
	case rising:
		if g.heldSince.IsZero() {
			g.heldSince = g.looked
		}
		g.rose = now
	case now.Sub(g.rose) >= calmAfter:
		g.heldSince = time.Time{}
	}
	g.drops, g.looked = mem.Drops, now
	g.handOver(now)
	g.warn(now)
	if !g.busy {
		return guardIdle
	}

	entries, room, err := g.table()
	if err != nil {
		if !g.blind {
			g.log.Error("guard of the table: cannot read how full it is; ended flows that are not delivered may fill it",
				zap.Error(err), zap.String("remedy", "make /proc/sys/net/netfilter readable, or set delivery: best_effort"))
		}
		g.blind = true
		return guardIdle
	}
	before := g.entries
	g.entries = entries
	limit, until := g.limit(room)
	over := entries - limit
	// A reader that catches up needs no help, as long as there is room for what comes meanwhile.
	catchingUp := entries < before && over < room*int64(100-g.mark)/200
	behind := rising || !g.heldSince.IsZero() && mem.Queued > mem.Buffer/8*7
	if !behind || !wasBusy || over < 0 || catchingUp {
		return guardBusy
	}
	if err := g.shed(until); err != nil {
		g.log.Error("guard of the table: cannot shed ended flows", zap.Error(err))
		return guardIdle
	}
	return guardBusy
}

// limit returns from how many entries on the guard sheds, and down to how many.
func (g *guard) limit(room int64) (from, until int64) {
	return room * int64(g.mark) / 100, room * int64(max(g.mark-shedPoints, 0)) / 100
}

// openTable opens what tells of the table. The files stay those of the network namespace in which they were opened.
// They are not there before the module nf_conntrack is, which may be loaded because of our socket, a moment after.
func (g *guard) openTable() (err error) {
	if g.max != nil {
		return nil
	}
	count, err := os.Open("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return err
	}
	if g.max, err = os.Open("/proc/sys/net/netfilter/nf_conntrack_max"); err != nil {
		_ = count.Close()
		return err
	}
	g.count = count
	return nil
}

// table returns how many entries the table has, and how many it may have.
func (g *guard) table() (entries, room int64, err error) {
	if err = g.openTable(); err != nil {
		return 0, 0, err
	}
	if entries, err = readNumber(g.count); err != nil {
		return 0, 0, err
	}
	room, err = readNumber(g.max)
	return entries, room, err
}

func readNumber(f *os.File) (int64, error) {
	var b [24]byte
	n, err := f.ReadAt(b[:], 0) // sysctls are formatted anew by each pread from offset 0
	if n == 0 {
		return 0, err
	}
	v, err := strconv.ParseInt(strings.TrimSpace(string(b[:n])), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return v, nil
}

// shed throws ends away until the table has no more than entries entries, for one slice at most.
func (g *guard) shed(entries int64) (err error) {
	g.members.Lock()
	defer g.members.Unlock()
	if !slices.Contains(g.sock.groups, groupDestroy) {
		return nil // no end is held back for us
	}
	from := g.heldSince
	joined := true
	restore := func() error {
		var err error
		if !joined {
			err = g.sock.join(groupDestroy)
		}
		return errors.Join(err, g.frozen.leave(groupDestroy), g.loss.leave(groupDestroy))
	}
	if err := errors.Join(g.frozen.join(groupDestroy), g.loss.join(groupDestroy)); err != nil {
		return errors.Join(err, restore())
	}
	// Last, lest an end be delivered and held back: it would be delivered twice.
	if err := g.sock.leave(groupDestroy); err != nil {
		return errors.Join(err, restore())
	}
	joined = false
	before, exact := g.offset()
	base := g.loss.count()
	start := time.Now()
	limit := start.Add(sliceWait)
	if err := g.frozen.leave(groupDestroy); err != nil {
		return errors.Join(err, restore())
	}
	for waiting := true; ; {
		time.Sleep(sliceStep)
		n, err := readNumber(g.count)
		now := time.Now()
		if err != nil || n < entries || now.After(limit) {
			break
		}
		if waiting && g.loss.count() != base {
			waiting, limit = false, now.Add(sliceMax)
		}
	}
	// If this fails, all that comes until the events' socket is back is lost, and counted still.
	err = g.frozen.join(groupDestroy)
	after, exact2 := g.offset()
	now := time.Now()
	err = errors.Join(err, restore())

	lost := uint64(after - before) // right across the wrap of the counters
	g.stats.GuardSheds.Add(1)
	g.stats.GuardLost.Add(lost)
	g.unwarned += lost
	g.shedAt = now
	if lost == 0 {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.gap.any {
		g.gap = guardGap{from: from, first: start, any: true}
	}
	if from.Before(g.gap.from) {
		g.gap.from = from
	}
	g.gap.to = now
	g.gap.lost += lost
	g.gap.inexact = g.gap.inexact || !exact || !exact2
	return err
}

// hold keeps the guard from shedding, and waits until it does not, a second or so at most. Who changes the socket's
// groups or filter holds it, or what is lost would be miscounted. The guard may be nil.
func (g *guard) hold() (release func()) {
	if g == nil {
		return func() {}
	}
	g.members.Lock()
	return g.members.Unlock
}

// offset returns how much more the loss witness has counted than the frozen one, at a moment in which no event is under
// way; if there is none, exact is false. Both must be members. An event that is being broadcast may have been
// counted by one alone; to change the members of any group the kernel waits until no broadcast is under way
// (netlink_table_grab), so if two readings around such a change agree, none was at the first, and the difference holds.
func (g *guard) offset() (offset uint32, exact bool) {
	for deadline := time.Now().Add(quietFor); ; {
		a, b := g.frozen.count(), g.loss.count()
		err := unix.SetsockoptInt(g.barrier, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, 1)
		if err == nil && a == g.frozen.count() && b == g.loss.count() {
			return b - a, true
		}
		if time.Now().After(deadline) {
			return b - a, false
		}
	}
}

// handOver lets the reader have the gap when shedding has been over for a while, or has gone on for long.
func (g *guard) handOver(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gap.any && (now.Sub(g.shedAt) >= calmAfter || now.Sub(g.gap.first) >= gapEvery) {
		g.due.Store(true)
	}
}

// take returns the gap that is due; at the end any. The guard may be nil.
func (g *guard) take(end bool) (gap guardGap, ok bool) {
	if g == nil || !end && !g.due.Load() {
		return gap, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	gap = g.gap
	g.gap = guardGap{}
	g.due.Store(false)
	return gap, gap.any
}

// warn says what is lost, summed up.
func (g *guard) warn(now time.Time) {
	if g.unwarned == 0 || now.Sub(g.warned) < guardQuiet {
		return
	}
	g.log.Warn("ended flows that were not read fast enough were filling the table; their ends were thrown away",
		zap.Uint64("lost", g.unwarned), zap.Int64("entries", g.entries), zap.Int("table_guard", g.mark))
	g.warned, g.unwarned = now, 0
}

// witness is a socket that can take no event, ever, and counts each.
type witness struct{ socket }

// newWitness returns a witness of the events that the filter for in lets through. If reliable, the kernel holds back
// each end that it witnesses.
func newWitness(in interest, reliable bool) (w *witness, err error) {
	w = new(witness)
	if w.fd, err = newSocket(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = w.close()
			w = nil
		}
	}()
	if err = attachFilter(w.fd, filterProgram(in)); err != nil {
		return w, fmt.Errorf("attach socket filter: %w", err)
	}
	if err = unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil { // the kernel's least
		return w, fmt.Errorf("set receive buffer: %w", err)
	}
	if err = unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return w, fmt.Errorf("bind netlink socket: %w", err)
	}
	if err = w.setReliable(reliable); err != nil {
		return w, err
	}
	return w, w.fill()
}

// fill has the kernel send acknowledgements until one does not fit. Without NETLINK_NO_ENOBUFS nothing is put into a
// socket that was once overrun until it has been read empty, and this one is never read.
func (w *witness) fill() error {
	req := []byte{nlHeader, 0, 0, 0, unix.NLMSG_NOOP, 0, unix.NLM_F_REQUEST | unix.NLM_F_ACK, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if hostBigEndian {
		req[0], req[3] = 0, nlHeader
		req[4], req[5] = 0, unix.NLMSG_NOOP
		req[6], req[7] = 0, unix.NLM_F_REQUEST|unix.NLM_F_ACK
	}
	for range 1000 {
		if err := unix.Sendto(w.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("fill a socket: %w", err)
		}
		drops, err := w.drops()
		if err != nil {
			return err
		}
		if drops > 0 {
			return nil
		}
	}
	return errors.New("fill a socket: it takes in a thousand messages")
}

// count is drops for a socket of which nothing else is asked, so that nothing can fail.
func (w *witness) count() uint32 {
	n, _ := w.drops()
	return n
}
