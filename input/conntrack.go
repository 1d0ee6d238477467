package input

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	// batchAge is how long a record waits at most for its batch to fill.
	batchAge = 50 * time.Millisecond

	// Naps between reads that did not fill their block. While the reader naps, an event costs the packet path no
	// wake-up; the buffer holds far more than comes in the longest nap.
	minNap = time.Millisecond
	maxNap = 4 * time.Millisecond

	// How many messages are to come in a nap: so many that the nap's own cost, as that of some ten of them, is spread
	// thin, and no more than the caches hold.
	fewMessages  = 128
	manyMessages = 384

	// dropsEvery is how often the kernel's count of drops is read while events flow; it bounds how exactly the time of
	// a loss is known.
	dropsEvery = 10 * time.Millisecond

	// idleEvery is how often an idle reader looks around.
	idleEvery = time.Second

	// aliveEvery is how often Options.Alive is called at most.
	aliveEvery = 500 * time.Millisecond

	// drainFor bounds the reading of what is left when the reader is told to stop.
	drainFor = 2 * time.Second
)

// Options are what the reader needs besides its configuration.
type Options struct {
	Log *zap.Logger

	// Drop tells the records that every output drops for certain; the kernel then drops them. May be nil.
	Drop func(event flow.Event, v6 bool, proto flow.Proto) bool

	// Kept is the socket of a predecessor, with what waits in it, or nil. It is Open's, which closes it.
	Kept *os.File

	// Handover leaves the socket a member of its groups at the end, for a successor that has it too.
	Handover bool

	// Alive is called on the reader's goroutine at most twice a second, and at least every other second as long as the
	// reader goes its rounds. It must not wait. May be nil.
	Alive func()

	// Remember is called on the reader's goroutine for every flow of the initial dump that has a helper, a master or
	// labels. The record is the callee's until it returns. May be nil.
	Remember func(*flow.Record)

	// Room reports whether the outputs have room for many records. It is called on the reader's goroutine before each
	// chunk of open records, and must not wait. May be nil: they always have.
	Room func() bool

	// OpenAtEnd decides, when Run is told to end, whether the flows that are alive get an open record. It must not wait.
	// May be nil: they get none.
	OpenAtEnd func() bool

	// EndWithin bounds the time for that; 0 is 10 s.
	EndWithin time.Duration
}

// Conntrack reads the events of the network namespace in which it was opened.
type Conntrack struct {
	Stats Stats

	cfg  Config
	opts Options
	log  *zap.Logger
	sock *socket
	wake int // eventfd that ends a blocking wait

	guard *guard      // nil: off
	calls chan func() // what Reconfigure wants done on the reader's goroutine

	block     *block
	batch     *flow.Batch
	emit      func(*flow.Batch) *flow.Batch
	oldest    time.Time // when the first record of batch was read
	table     table
	clock     clock
	events    eventsSwitch
	lastDrops uint32
	dropsAt   time.Time // when lastDrops was read
	rose      time.Time // when lastDrops was last seen to have risen
	heldSince time.Time // when it first had, of the risings that belong together
	joined    time.Time // when the groups were joined
	caught    time.Time // all flows that ended before are read
	readUntil atomic.Int64
	aliveAt   time.Time // when Alive was called
	awake     time.Time // Stats.Busy has all that was before
}

// Open opens the socket and joins the groups: from here on no event is missed. cfg must be valid and have its defaults.
func Open(cfg Config, opts Options) (*Conntrack, error) {
	if opts.Log == nil {
		opts.Log = zap.NewNop()
	}
	in := interest{news: cfg.wants("new"), updates: cfg.wants("update"), labels: cfg.Labels, drop: opts.Drop}
	sock, err := openSocket(&cfg, opts.Log, in, opts.Kept)
	if err != nil {
		return nil, err
	}
	c := &Conntrack{cfg: cfg, opts: opts, log: opts.Log, sock: sock, wake: -1, block: newBlock(), dropsAt: time.Now(),
		calls: make(chan func(), 1), clock: newClock(opts.Log)}
	joined := c.dropsAt
	c.joined = joined
	c.caught = joined
	c.events = newEventsSwitch(opts.Log, joined)
	c.readUntil.Store(joined.UnixNano())
	c.Stats.Round.Store(joined.UnixNano())
	defer func() {
		if err != nil {
			_ = sock.abandon() // the keeper of a kept one has it open still
			_ = c.Close()
		}
	}()
	if c.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("open eventfd: %w", err)
	}
	// What a kept socket has dropped before is for whoever knows what its former reader has accounted for (Dropped).
	if c.lastDrops, err = sock.drops(); err != nil {
		return nil, err
	}
	if cfg.Delivery == Reliable && *cfg.TableGuard > 0 {
		if c.guard, err = newGuard(sock, *cfg.TableGuard, in, &c.Stats, opts.Log); err != nil {
			return nil, err
		}
	}
	c.openTable(joined)
	return c, nil
}

// ReadUntil returns a time such that all flows that ended before it have been handed over. It lags by the age of a batch,
// and by what the kernel holds back; when Run has returned it is the time at which no more events were asked for. It may
// be called from any goroutine.
func (c *Conntrack) ReadUntil() time.Time { return time.Unix(0, c.readUntil.Load()) }

// Dropped returns how many messages the kernel has not put into the socket since it was opened, modulo 2^32, as far as
// they are accounted for: before Run those that the socket came with, after it also those that Run has made gaps of. The
// cookie tells the socket from any other of this boot.
func (c *Conntrack) Dropped() (cookie uint64, drops uint32, err error) {
	cookie, err = c.sock.cookie()
	return cookie, c.lastDrops, err
}

// FD returns the socket, for somebody to keep for a successor. It is valid until Close.
func (c *Conntrack) FD() int { return c.sock.fd }

// Close gives the socket back. Run must have returned.
func (c *Conntrack) Close() error {
	if c.wake >= 0 {
		_ = unix.Close(c.wake)
	}
	c.table.finish()
	c.guard.close()
	return c.sock.close()
}

// Run reads until ctx ends, and returns nil then, after it has handed over what was queued in the socket. It fills
// batch, hands it to emit when it is full or its first record is 50 ms old, and goes on with the batch that emit
// returns. emit runs on the reader's goroutine and must not wait for anything.
func (c *Conntrack) Run(ctx context.Context, batch *flow.Batch, emit func(*flow.Batch) *flow.Batch) error {
	c.batch, c.emit = batch, emit
	c.awake = time.Now()
	stop := context.AfterFunc(ctx, func() {
		_, _ = unix.Write(c.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // any count above 0 makes the eventfd readable
	})
	defer stop()
	stopGuard := c.guard.start()
	defer stopGuard()
	nap, came := minNap, 0
	for ctx.Err() == nil {
		n, now, busy, err := c.round()
		if err != nil {
			return err
		}
		came += n
		switch {
		case n == blockSlots || busy:
		case n > 0:
			switch {
			case came > manyMessages:
				nap = max(nap/2, minNap)
			case came < fewMessages:
				nap = min(nap+nap/4, maxNap)
			}
			came = 0
			c.Stats.Naps.Add(1)
			c.worked(time.Now())
			time.Sleep(nap)
			c.awake = time.Now()
		default:
			came = 0
			if err := c.wait(now); err != nil {
				return err
			}
		}
	}
	if err := c.openAtEnd(); err != nil {
		return err
	}
	stopGuard()
	return c.drain()
}

// round reads once, and does a little of what else is to do; busy says that there is more of that to do at once. n is
// how many messages were read.
func (c *Conntrack) round() (n int, now time.Time, busy bool, err error) {
	c.answer()
	c.clock.look()
	began := time.Now()
	c.worked(began)
	busy = c.table.turn(began)
	if n, err = c.read(); err != nil {
		return n, now, busy, err
	}
	now = time.Now()
	c.events.look(now, false, c.unborn)
	if len(c.batch.Records) > 0 && now.Sub(c.oldest) >= batchAge {
		c.flush()
	}
	if now.Sub(c.dropsAt) >= dropsEvery {
		c.countDrops(now)
		c.recordShed(now, false)
	}
	if n < blockSlots && !c.heldBack(now) {
		c.caught = began
		if c.dropsAt.Before(began) { // since then, something may be held back
			c.caught = c.dropsAt
		}
		if len(c.batch.Records) == 0 {
			c.readUntil.Store(c.caught.UnixNano())
		}
	}
	if c.opts.Alive != nil && now.Sub(c.aliveAt) >= aliveEvery {
		c.aliveAt = now
		c.opts.Alive()
	}
	return n, now, busy, nil
}

// worked counts the time since the reader woke, or was last asked, as spent on work.
func (c *Conntrack) worked(now time.Time) {
	c.Stats.Busy.Add(int64(now.Sub(c.awake)))
	c.Stats.Round.Store(now.UnixNano())
	c.awake = now
}

// wait blocks until an event comes, the batch is due, ctx ends, or it is time to look around.
func (c *Conntrack) wait(now time.Time) error {
	timeout := c.table.due(now)
	if len(c.batch.Records) > 0 {
		timeout = min(timeout, max(batchAge-now.Sub(c.oldest), 0))
	}
	fds := [...]unix.PollFd{{Fd: int32(c.sock.fd), Events: unix.POLLIN}, {Fd: int32(c.wake), Events: unix.POLLIN}}
	c.guard.waits(now)
	c.worked(time.Now())
	// Rounded up, so that the wait for a due batch does not end just before it is due.
	_, err := unix.Poll(fds[:], int((timeout+time.Millisecond-1)/time.Millisecond))
	c.awake = time.Now()
	c.guard.works()
	if err != nil && err != unix.EINTR {
		return fmt.Errorf("wait for conntrack events: %w", err)
	}
	if fds[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(c.wake, count[:]) // or the next wait would end at once
	}
	return nil
}

// drain reads what is left in the socket. Under reliable delivery what the kernel still holds back comes meanwhile;
// after the groups are left nothing more comes, and the rest is read to its end; unless a successor will.
func (c *Conntrack) drain() error {
	now := time.Now()
	for deadline := now.Add(drainFor); now.Before(deadline); now = time.Now() {
		n, err := c.read()
		if err != nil {
			return err
		}
		c.countDrops(now)
		if n > 0 {
			continue
		}
		if !c.heldBack(now) {
			break
		}
		time.Sleep(maxNap)
	}
	if c.heldBack(now) { // a successor will read it, if there is one
		c.log.Warn("told to end while the kernel still holds ended flows back")
		c.gap(now, c.heldSince, now, flow.Gap{Cause: flow.CauseDowntime})
	}
	var leaveErr error
	c.caught = time.Now()
	if !c.opts.Handover {
		leaveErr = c.sock.leaveAll()
	}
	for !c.opts.Handover {
		n, err := c.read()
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
	}
	c.countDrops(time.Now())
	c.recordShed(time.Now(), true)
	c.events.look(time.Now(), true, c.unborn)
	c.table.finish()
	c.flush()
	c.readUntil.Store(c.caught.UnixNano())
	return leaveErr
}

// read reads one block and decodes it, and returns how many messages it held.
func (c *Conntrack) read() (int, error) {
	n, err := c.block.read(c.sock.fd)
	if n == 0 || err != nil {
		return n, err
	}
	c.guard.alert()
	now := time.Now()
	received := now.UnixNano()
	if len(c.batch.Records) == 0 {
		c.oldest = now
	}
	var events [flow.EventGap]uint64
	for i := range n {
		msg, kernel, truncated := c.block.message(i)
		switch {
		case !kernel:
			c.Stats.Refused.Add(1)
			continue
		case truncated:
			c.Stats.Truncated.Add(1)
			continue
		}
		r, err := decode(msg, c.batch)
		if err != nil {
			c.Stats.Malformed.Add(1)
			if ce := c.log.Check(zap.DebugLevel, "malformed message"); ce != nil {
				ce.Write(zap.Error(err), zap.String("hex", hex.EncodeToString(msg)))
			}
			continue
		}
		r.Received = received
		events[r.Event]++
		if r.Event == flow.EventDestroy {
			c.table.destroyed(r)
		}
		if c.batch.Full() {
			c.flush()
			c.oldest = now
		}
	}
	for e, n := range events {
		if n > 0 {
			c.Stats.Events[e].Add(n)
		}
	}
	c.Stats.Reads.Add(1)
	if n == blockSlots {
		// More waits, and the outputs get their turn first: where the reader may take all of a processor, they would come to
		// theirs once in 10 ms, and lose in their queues what the socket holds as well.
		runtime.Gosched()
	}
	return n, nil
}

func (c *Conntrack) flush() {
	if len(c.batch.Records) > 0 {
		c.batch.Since = c.readUntil.Load()
		c.clock.mark(c.batch.Records)
		c.batch = c.emit(c.batch)
		c.readUntil.Store(c.caught.UnixNano())
	}
}

// countDrops reads the kernel's count of drops. Under best-effort delivery what it has grown by is lost, and a gap says
// so in the batch, from the last look to this one.
func (c *Conntrack) countDrops(now time.Time) {
	drops, err := c.sock.drops()
	if err != nil {
		c.log.Error("cannot tell how many events the kernel dropped", zap.Error(err))
		c.dropsAt = now
		return
	}
	lost := drops - c.lastDrops // right across the wrap of the counter
	from := c.dropsAt
	c.lastDrops, c.dropsAt = drops, now
	if lost == 0 {
		return
	}
	if !c.heldBack(now) {
		c.heldSince = from
	}
	c.rose = now
	c.Stats.Drops.Add(uint64(lost))
	if c.cfg.Delivery == Reliable {
		return
	}
	c.gap(now, from, now, flow.Gap{Cause: flow.CauseOverrun, Lost: uint64(lost), LostKnown: true})
}

// heldBack reports whether the kernel may hold ended flows back: then it tries to deliver one once a second at least.
func (c *Conntrack) heldBack(now time.Time) bool {
	return c.cfg.Delivery == Reliable && !c.rose.IsZero() && now.Sub(c.rose) < sliceWait
}

// recordShed writes down what the guard has thrown away.
func (c *Conntrack) recordShed(now time.Time, end bool) {
	if g, ok := c.guard.take(end); ok {
		c.gap(now, g.from, g.to, flow.Gap{Cause: flow.CauseGuard, Lost: g.lost, LostKnown: !g.inexact})
	}
}

// unborn writes down that flows born between from and to report nothing.
func (c *Conntrack) unborn(from, to time.Time) {
	c.gap(time.Now(), from, to, flow.Gap{Cause: flow.CauseUntracked})
}

// gap adds a gap record to the batch. A zero to says that the gap has no end.
func (c *Conntrack) gap(now, from, to time.Time, gap flow.Gap) {
	c.Stats.Gaps.Add(gap, false, now)
	if len(c.batch.Records) == 0 {
		c.oldest = now
	}
	r := c.batch.Next()
	begin, end := from.UnixNano(), int64(0)
	if !to.IsZero() {
		end = to.UnixNano()
	}
	if !to.IsZero() && end < begin { // the clock was set back meanwhile
		begin, end = end, begin
	}
	r.Event, r.Start, r.Stop, r.Received = flow.EventGap, begin, end, now.UnixNano()
	c.batch.Extra(r).Gap = gap
	if c.batch.Full() {
		c.flush()
		c.oldest = now
	}
}
