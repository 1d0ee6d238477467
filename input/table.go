package input

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"os"
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
	for i, name := range []string{"helpers", "flows that may report no end", "interim records", "open records"} {
		if p>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// table reads the connection tracking table for the reader, one dump at a time, a chunk in each turn. Its turns are on
// the reader's goroutine: the memory of helpers needs no lock, and a flow that ends while the table is read is either
// still in the table or its end is still in the socket.
type table struct {
	c    *Conntrack
	dump *dump   // the one under way
	want purpose // of the next one

	unreporting uint64      // flows that may never report their end, as far as the dump has shown them
	interimAt   time.Time   // when the next open records are due
	requested   atomic.Bool // by RequestOpen
}

// reportMargin is how long after the groups were joined a flow may still begin that reports nothing: its first packet was
// on its way then.
const reportMargin = time.Second

// openTable decides what the table is read for at the start. joined is when the groups were joined.
func (c *Conntrack) openTable(joined time.Time) {
	t := &c.table
	t.c = c
	cfg, o := &c.cfg, &c.opts
	if *cfg.InitialDump && *cfg.HelperEntries > 0 && o.Remember != nil {
		t.want |= forHelpers
	}
	if cfg.Interim > 0 {
		t.interimAt = joined.Add(cfg.Interim)
	}
	// A predecessor that left its socket has seen to the flows that are older than itself, and the others report.
	if *cfg.InitialDump && o.Kept == nil && onlyWhileListening() {
		t.want |= forUnreporting
	}
}

// onlyWhileListening reports whether flows that are born while nobody listens never report their end
// (nf_conntrack_events = 2). That is the kernel's default, hence the answer where the sysctl cannot be read.
func onlyWhileListening() bool {
	b, err := os.ReadFile(eventsPath)
	return err != nil || strings.TrimSpace(string(b)) == "2"
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
		if d.purpose&^forHelpers == 0 || c.opts.Room == nil || c.opts.Room() || now.Sub(d.stepped) >= roomWait {
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
	if !t.interimAt.IsZero() {
		wait = min(wait, max(t.interimAt.Sub(now), 0))
	}
	return wait
}

func (t *table) begin(now time.Time) {
	p := t.want
	t.want, t.unreporting = 0, 0
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
		if d.purpose&^forInterim == 0 { // one of many
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
	if p&forUnreporting == 0 {
		return
	}
	if err == nil && t.unreporting == 0 {
		return
	}
	t.c.log.Warn("flows that are older than this process may never report their end: net.netfilter.nf_conntrack_events "+
		"was 2 when they began, and nobody listened; each has an open record, and a gap says how many they are",
		zap.Uint64("flows", t.unreporting), zap.String("remedy", "sysctl -w net.netfilter.nf_conntrack_events=1, for later flows"))
	t.c.gap(now, t.c.joined, time.Time{}, flow.Gap{Cause: flow.CauseUntracked, Lost: t.unreporting, LostKnown: err == nil})
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
	if _, over := t.dump.ended[identity(r)]; over {
		return
	}
	// The age of a flow without a start is not known: rather one record too many. A start in the future, by a clock that
	// was set back, tells nothing either.
	unreporting := p&forUnreporting != 0 && (r.Start < t.c.joined.Add(reportMargin).UnixNano() || r.Start > r.Received)
	if unreporting {
		t.unreporting++
	}
	if unreporting || p&forOpen != 0 || p&forInterim != 0 && (r.Start == 0 || r.Received-r.Start >= int64(t.c.cfg.Interim)) {
		t.c.put(r)
		t.c.Stats.Open.Add(1)
	}
}

// destroyed takes note of the end of a flow.
func (t *table) destroyed(r *flow.Record) {
	if t.dump != nil && t.dump.purpose != forHelpers {
		t.dump.ended[identity(r)] = struct{}{}
	}
}

// finish breaks off the dump under way.
func (t *table) finish() {
	if t.dump != nil {
		t.dump.close()
		t.dump = nil
	}
}

var identitySeed = maphash.MakeSeed()

// identity returns a hash of what tells a flow from all others: tuple, zones, id and start. It is keyed: subscribers
// choose tuples.
func identity(r *flow.Record) uint64 {
	var b [54]byte
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
	binary.NativeEndian.PutUint32(b[42:], r.ID)
	binary.NativeEndian.PutUint64(b[46:], uint64(r.Start))
	return maphash.Bytes(identitySeed, b[:])
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
