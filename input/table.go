package input

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	// roomWait is how long a dump for open records waits for outputs that have no room before it goes on by one chunk.
	roomWait = 100 * time.Millisecond

	// endWithin bounds the writing of open records at the end, unless Options say otherwise.
	endWithin = 10 * time.Second
)

func (p purpose) String() string {
	var names []string
	for i, name := range []string{"helpers", "following", "interim records", "open records"} {
		if p>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// table is what the reader does with the connection tracking table besides reading its events: dumps, one at a time, a
// chunk in each turn, and the following of flows. All of it takes turns with the events on the reader's goroutine: the
// memory of helpers needs no lock, and a flow that ends while the table is read is either still in the table or its
// end is still in the socket.
type table struct {
	c      *Conntrack
	dump   *dump   // the one under way
	want   purpose // of the next one
	begun  bool    // a dump has been begun
	follow *follower

	interimAt time.Time   // when the next open records are due
	emptied   time.Time   // when the events' socket was last read empty
	requested atomic.Bool // by RequestOpen
}

// openTable reads what a predecessor has followed. joined is when the groups were joined.
func (c *Conntrack) openTable(joined time.Time) (err error) {
	t := &c.table
	t.c = c
	cfg, o := &c.cfg, &c.opts
	if *cfg.InitialDump && *cfg.HelperEntries > 0 && o.Remember != nil {
		t.want |= forHelpers
	}
	if cfg.Interim > 0 {
		t.interimAt = joined.Add(cfg.Interim)
	}
	if cfg.Follow == FollowNever {
		return forgetFollowed(o.StateDir)
	}
	silent := cfg.Follow == FollowAlways || *cfg.InitialDump && silentEvents()
	t.follow, err = newFollower(followOptions{
		dir: o.StateDir, max: *cfg.FollowEntries, interval: cfg.FollowInterval, silent: silent, all: cfg.Reconcile,
		kept: o.Kept != nil, put: c.put, room: o.Room,
		gap: func(from, to int64, lost uint64, known bool) {
			g, now := flow.Gap{Cause: flow.CauseUntracked, Lost: lost, LostKnown: known}, time.Now()
			c.Stats.Gaps.Add(g, false, now)
			c.put(&flow.Record{Event: flow.EventGap, Start: from, Stop: to, Received: now.UnixNano(), Extra: &flow.Extra{Gap: g}})
		},
	}, joined, &c.Stats.Follow, c.log)
	if err != nil {
		return fmt.Errorf("follow flows that are older than this process: %w", err)
	}
	if t.follow != nil {
		t.want |= forFollow
	}
	return nil
}

// turn does a little of what is to do; busy says that there is more to do at once.
func (t *table) turn(now time.Time) (busy bool) {
	c := t.c
	if t.requested.Swap(false) {
		t.want |= forOpen
	}
	if !t.interimAt.IsZero() && !now.Before(t.interimAt) {
		t.want |= forInterim
		t.interimAt = now.Add(c.cfg.Interim)
	}
	if f := t.follow; f != nil {
		var wants bool
		if wants, busy = f.turn(now, t.emptied); wants {
			t.want |= forFollow
		}
	}
	if t.dump == nil && t.want != 0 {
		t.begin(now)
	}
	if d := t.dump; d != nil {
		begun, err := d.begun()
		if err != nil {
			t.stop(now, err)
			return true
		}
		if !begun {
			return busy
		}
		// Open records come as fast as the kernel writes them, which is more than an output may take. They can wait,
		// yet not for ever: an output that is down takes none.
		if d.purpose&(forOpen|forInterim) == 0 || c.opts.Room == nil || c.opts.Room() || now.Sub(d.stepped) >= roomWait {
			t.step(now)
			busy = true
		}
	}
	return busy
}

// due returns how long there is nothing to do.
func (t *table) due(now time.Time) time.Duration {
	wait := idleEvery
	if t.dump != nil {
		if t.dump.asked != nil {
			return maxNap
		}
		return roomWait
	}
	if t.follow != nil {
		wait = min(wait, t.follow.due(now))
	}
	if !t.interimAt.IsZero() {
		wait = min(wait, max(t.interimAt.Sub(now), 0))
	}
	return wait
}

func (t *table) begin(now time.Time) {
	p := t.want
	t.want = 0
	if p&forFollow != 0 && t.follow != nil {
		t.follow.dumpBegins(now, !t.begun)
	}
	t.begun = true
	d, err := newDump(p, now)
	if err != nil {
		t.end(p, now, err)
		return
	}
	t.dump = d
}

func (t *table) step(now time.Time) {
	d := t.dump
	more, err := d.step(&t.c.Stats, now, t.visit)
	if more {
		return
	}
	t.stop(now, err)
}

// stop ends the dump under way, err being why it is not whole.
func (t *table) stop(now time.Time, err error) {
	d := t.dump
	t.dump = nil
	d.close()
	t.c.Stats.Dumped.Add(d.flows)
	if err == nil {
		level := zap.InfoLevel
		if d.purpose&(forHelpers|forOpen) == 0 { // one of many
			level = zap.DebugLevel
		}
		t.c.log.Log(level, "read the connection tracking table", zap.Stringer("for", d.purpose),
			zap.Uint64("flows", d.flows), zap.Duration("took", now.Sub(d.opened)))
	}
	t.end(d.purpose, now, err)
}

func (t *table) end(p purpose, now time.Time, err error) {
	if err != nil && err != context.Canceled {
		t.c.log.Error("cannot read the whole connection tracking table", zap.Stringer("for", p), zap.Error(err))
	}
	if p&forFollow != 0 && t.follow != nil {
		t.follow.dumpEnds(now, err == nil)
	}
}

// visit is called for each flow of a dump.
func (t *table) visit(r *flow.Record) {
	p := t.dump.purpose
	if p&forHelpers != 0 && r.Extra != nil {
		t.c.opts.Remember(r)
	}
	if p == forHelpers {
		return
	}
	hash := hashOf(r)
	if _, over := t.dump.ended[endOf(hash, r)]; over {
		return
	}
	if p&forFollow != 0 && t.follow != nil {
		t.follow.saw(hash, r)
	}
	// Of a flow without a start it is not known how old it is: rather one record too many.
	if p&forOpen != 0 || p&forInterim != 0 && (r.Start == 0 || r.Received-r.Start >= int64(t.c.cfg.Interim)) {
		t.c.put(r)
		t.c.Stats.Open.Add(1)
	}
}

// endOf returns the key of a flow in dump.ended: the same tuple may be in the table again.
func endOf(hash uint64, r *flow.Record) uint64 {
	return hash ^ uint64(r.ID)*0x9e3779b97f4a7c15 ^ uint64(r.Start)*0xc2b2ae3d27d4eb4f
}

// destroyed takes note of the end of a flow.
func (t *table) destroyed(r *flow.Record) {
	shown := t.dump != nil && t.dump.purpose != forHelpers
	follows := t.follow != nil && t.follow.mayHold(r)
	if !shown && !follows {
		return
	}
	hash := hashOf(r)
	if shown {
		t.dump.ended[endOf(hash, r)] = struct{}{}
	}
	if follows {
		t.follow.destroyed(hash, r)
	}
}

// missed takes note that events were lost.
func (t *table) missed() {
	if t.follow != nil {
		t.follow.missed()
	}
}

// finish ends all of it. last says that no event comes any more.
func (t *table) finish(now time.Time, last bool) {
	if t.dump != nil {
		t.dump.close()
		t.dump = nil
	}
	if t.follow != nil {
		t.follow.finish(now, last)
		t.follow = nil
	}
}

// put adds a copy of r to the batch.
func (c *Conntrack) put(r *flow.Record) {
	if c.batch == nil {
		return // Run has not begun, and there is nobody to tell
	}
	if len(c.batch.Records) == 0 {
		c.oldest = time.Now()
	}
	n := c.batch.Next()
	*n = *r
	if n.Extra = nil; r.Extra != nil {
		*c.batch.Extra(n) = *r.Extra
	}
	if c.batch.Full() {
		c.flush()
	}
}

// RequestOpen asks for an open record of every flow in the table. It may be called from any goroutine while Run runs.
func (c *Conntrack) RequestOpen() {
	c.table.requested.Store(true)
	_, _ = unix.Write(c.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// openAtEnd writes an open record of every flow in the table if Options.OpenAtEnd says so, and brings to its end what
// RequestOpen has begun, while events are read as ever.
func (c *Conntrack) openAtEnd() error {
	t := &c.table
	if c.opts.OpenAtEnd != nil && c.opts.OpenAtEnd() {
		if t.dump != nil {
			t.stop(time.Now(), context.Canceled)
		}
		t.want = forOpen
	}
	within := c.opts.EndWithin
	if within == 0 {
		within = endWithin
	}
	for deadline := time.Now().Add(within); t.requested.Load() || t.purposes()&forOpen != 0; {
		n, now, busy, err := c.round()
		if err != nil {
			return err
		}
		if now.After(deadline) {
			c.log.Error("not all flows that are alive were written: the outputs took too long", zap.Duration("within", within))
			return nil
		}
		if n < blockSlots && !busy {
			time.Sleep(minNap)
		}
	}
	return nil
}

// purposes are those of the dump under way and of the next one.
func (t *table) purposes() purpose {
	if t.dump == nil {
		return t.want
	}
	return t.want | t.dump.purpose
}
