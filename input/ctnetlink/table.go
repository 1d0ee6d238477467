package ctnetlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input"
	"github.com/ctlogd/ctlogd/input/netns"
)

const (
	// roomWait is how long a dump for open records waits for outputs that have no room before it goes on by one chunk.
	roomWait = 100 * time.Millisecond

	// askedWait is how often a dump that was asked for is looked for.
	askedWait = 4 * time.Millisecond

	// readyWithin is how long the first reading waits for the other namespaces to be found.
	readyWithin = 2 * time.Second

	// reportMargin is how long after the groups were joined a flow may still begin that reports nothing: its first packet
	// was on its way then.
	reportMargin = time.Second
)

// purpose is what the table is read for. One dump may serve several.
type purpose uint8

const (
	forHelpers     purpose = 1 << iota // Options.Remember is told of helpers, masters and labels
	forUnreporting                     // flows that may never report their end get an open record, and are counted
	forInterim                         // flows older than Config.Interim get an open record
	forOpen                            // all flows do
	forCheckpoint                      // flows older than the checkpoints' distance do, for archives alone
	forFarewell                        // all flows do, of a namespace that is going
)

func (p purpose) String() string {
	var names []string
	for i, name := range []string{"helpers", "flows that may report no end", "interim records", "open records", "checkpoint", "a namespace that is going"} {
		if p>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// job is one table to read: that of a namespace, nil for ctlogd's own.
type job struct {
	space   *netns.Space
	purpose purpose
	reading *reading
}

// reading is the reading of all tables for one purpose, or of one.
type reading struct {
	left   int // jobs
	opened time.Time
	flows  uint64
	err    error                          // of one of them
	done   func(now time.Time, err error) // may be nil
}

// table reads the connection tracking tables for the reader, one dump at a time, a chunk in each turn. Its turns are on
// the reader's goroutine: the memory of helpers needs no lock, and a flow that ends while the table is read is either
// still in the table or its end is still in the socket.
type table struct {
	cfg    *Config
	opts   *Options
	stats  *Stats
	joined time.Time          // when the groups were joined
	view   func() *netns.View // of the other namespaces; nil: nobody asks for them

	dump        *dump // the one under way
	jobs        []job // that come next
	want        purpose
	unreporting uint64    // flows that may never report their end, as far as the dump has shown them
	interimAt   time.Time // when the next open records are due

	requested atomic.Bool // by Source.RequestOpen

	checkpoints  atomic.Int64 // ns between them, by Source.Checkpoints; 0: none
	checkpointAt time.Time    // when the next one is due
}

// newTable decides what the table is read for at the start.
func newTable(cfg *Config, o *Options, stats *Stats, joined time.Time) *table {
	t := &table{cfg: cfg, opts: o, stats: stats, joined: joined}
	if t.remembers() {
		t.want |= forHelpers
	}
	if cfg.Interim > 0 {
		t.interimAt = joined.Add(cfg.Interim)
	}
	// A predecessor that left its socket has seen to the flows that are older than itself, and the others report.
	if *cfg.InitialDump && o.Kept == nil && onlyWhileListening(readSwitch(SwitchEvents)) {
		t.want |= forUnreporting
	}
	return t
}

// remembers reports whether tables are read for helpers.
func (t *table) remembers() bool {
	return *t.cfg.InitialDump && *t.cfg.HelperEntries > 0 && t.opts.Remember != nil
}

// onlyWhileListening reports whether flows that are born while nobody listens never report their end
// (nf_conntrack_events = 2). That is the kernel's default, hence the answer where the sysctl cannot be read.
func onlyWhileListening(events string) bool { return events == "" || events == "2" }

// turn does a little of what is to do; busy says that there is more to do at once.
func (t *table) turn(now time.Time, sink input.Sink) (busy bool) {
	if t.requested.Swap(false) {
		t.want |= forOpen
	}
	if !t.interimAt.IsZero() && !now.Before(t.interimAt) {
		t.want |= forInterim
		t.interimAt = now.Add(t.cfg.Interim)
	}
	if every := time.Duration(t.checkpoints.Load()); every == 0 {
		t.checkpointAt = time.Time{}
	} else if t.checkpointAt.IsZero() {
		t.checkpointAt = now.Add(every)
	} else if !now.Before(t.checkpointAt) {
		t.want |= forCheckpoint
		t.checkpointAt = now.Add(every)
	}
	if t.want != 0 && t.dump == nil && len(t.jobs) == 0 && !t.early(now) {
		t.plan(now)
	}
	for t.dump == nil && len(t.jobs) > 0 {
		t.begin(now, sink)
	}
	d := t.dump
	if d == nil {
		return false
	}
	begun, err := d.begun(now)
	switch {
	case err != nil:
		t.stop(now, err, sink)
		return true
	case !begun:
		return false
	case d.stale && d.space == nil: // the kernel has taken long to begin: which flows have ended since is not known any more
		t.again()
		return true
	}
	// Open records come as fast as the kernel writes them, which is more than an output may take. They can wait, yet not
	// for ever: an output that is down takes none.
	if d.purpose&^forHelpers == 0 || t.opts.Room == nil || t.opts.Room() || now.Sub(d.stepped) >= roomWait || d.crowded() {
		return t.step(now, sink)
	}
	return false
}

// due returns how long there is nothing to do; 0 only if the next turn begins something (input.Source.Due).
func (t *table) due(now time.Time) time.Duration {
	wait := idle
	if t.dump == nil && len(t.jobs) > 0 {
		return 0
	}
	if t.dump == nil && t.want != 0 {
		return askedWait
	}
	if t.dump != nil {
		if t.dump.asked != nil {
			return askedWait
		}
		return roomWait
	}
	if !t.interimAt.IsZero() {
		wait = min(wait, max(t.interimAt.Sub(now), 0))
	}
	if !t.checkpointAt.IsZero() {
		wait = min(wait, max(t.checkpointAt.Sub(now), 0))
	}
	return wait
}

// early reports whether the other namespaces are not known yet.
func (t *table) early(now time.Time) bool {
	return t.view != nil && !t.view().Ready() && now.Sub(t.joined) < readyWithin
}

// plan has every table read for what is wanted.
func (t *table) plan(now time.Time) {
	p := t.want
	t.want = 0
	r := &reading{left: 1, opened: now}
	t.jobs = append(t.jobs, job{nil, p, r})
	if t.view == nil {
		return
	}
	for _, s := range t.view().Spaces {
		if _, leaves := s.Leaving(); s.Entered() && !leaves {
			one := p
			if p&forUnreporting != 0 && !onlyWhileListening(s.ReadSysctl(int(SwitchEvents))) {
				one &^= forUnreporting
			}
			if one != 0 {
				t.jobs = append(t.jobs, job{s, one, r})
				r.left++
			}
		}
	}
}

// appeared has the table of a namespace read that is heard from now on.
func (t *table) appeared(s *netns.Space) {
	atTheStart := t.want&forHelpers != 0
	if t.remembers() && !atTheStart && !slices.ContainsFunc(t.jobs, func(j job) bool { return j.space == s }) {
		t.jobs = append(t.jobs, job{s, forHelpers, &reading{left: 1, opened: time.Now()}})
	}
}

// farewell has the table of a namespace read before all others, and calls done when it has been.
func (t *table) farewell(s *netns.Space, done func(now time.Time, err error)) {
	t.next(job{s, forFarewell, &reading{left: 1, opened: time.Now(), done: done}})
}

// reads reports whether the table of s is being read. Others that were to be are not any more.
func (t *table) reads(s *netns.Space) bool { return t.dump != nil && t.dump.space == s }

func (t *table) begin(now time.Time, sink input.Sink) {
	j := t.jobs[0]
	t.jobs = t.jobs[1:]
	t.unreporting = 0
	if j.space != nil && (j.space.Released() || j.space.Conn() < 0 || empty(j.space)) {
		t.ends(j, now, nil, sink)
		return
	}
	d, err := newDump(j, now)
	if err != nil {
		t.ends(j, now, err, sink)
		return
	}
	t.dump = d
}

// empty reports whether a namespace's table is. To read it would be to walk all of the kernel's hash table, which all
// namespaces share, and most that come or go have no flow then.
func empty(s *netns.Space) bool {
	n, err := s.Entries()
	return err == nil && n == 0
}

// step takes one chunk; busy says that there was one, or that the dump is over.
func (t *table) step(now time.Time, sink input.Sink) (busy bool) {
	d := t.dump
	more, err := d.step(t.stats, now, func(r *flow.Record) {
		if !d.stale {
			t.visit(r, sink)
		}
	})
	switch {
	case more:
		return !d.silent
	case d.stale && err == nil: // the socket of another namespace is kept, so what was asked for is read to its end before
		t.again()
	default:
		t.stop(now, err, sink)
	}
	return true
}

// again gives up the dump under way, and has it made anew.
func (t *table) again() {
	t.next(t.dump.job)
	t.finish()
}

// next puts a job before all others.
func (t *table) next(j job) { t.jobs = slices.Insert(t.jobs, 0, j) }

// stop ends the dump under way, err being why it is not whole.
func (t *table) stop(now time.Time, err error, sink input.Sink) {
	d := t.dump
	t.finish()
	t.stats.Dumped.Add(d.flows)
	d.reading.flows += d.flows
	t.ends(d.job, now, err, sink)
}

// ends says what is to say when a dump is over.
func (t *table) ends(j job, now time.Time, err error, sink input.Sink) {
	if err != nil {
		if j.space != nil {
			err = fmt.Errorf("network namespace %s: %w", j.space.Name, err)
		}
		t.opts.Log.Error("cannot read the whole connection tracking table", zap.Stringer("for", j.purpose), zap.Error(err))
	}
	if j.purpose&forUnreporting != 0 && (err != nil || t.unreporting > 0) {
		in, n := "", flow.Netns(0)
		if j.space != nil {
			in, n = j.space.Name, j.space.Netns
		}
		t.opts.Log.Warn("flows that are older than this process may never report their end: net.netfilter.nf_conntrack_events "+
			"was 2 when they began, and nobody listened; each has an open record, and a gap says how many they are",
			zap.Uint64("flows", t.unreporting), zap.String("netns", in),
			zap.String("remedy", "sysctl -w net.netfilter.nf_conntrack_events=1, for later flows"))
		sink.GapIn(n, t.joined, time.Time{}, flow.Gap{Cause: flow.CauseUntracked, Lost: t.unreporting, LostKnown: err == nil})
	}
	r := j.reading
	r.err = errors.Join(r.err, err)
	if r.left--; r.left > 0 {
		return
	}
	if r.err == nil {
		level := zap.InfoLevel
		if j.purpose&^(forInterim|forCheckpoint) == 0 || j.space != nil { // one of many
			level = zap.DebugLevel
		}
		t.opts.Log.Log(level, "read the connection tracking table", zap.Stringer("for", j.purpose),
			zap.Uint64("flows", r.flows), zap.Duration("took", now.Sub(r.opened)))
	}
	if r.done != nil {
		r.done(now, r.err)
	}
	if j.purpose&forCheckpoint != 0 {
		over := flow.Extra{Checkpoint: flow.CheckpointWhole}
		if r.err != nil {
			over.Checkpoint = flow.CheckpointPartial
		}
		age := time.Duration(t.checkpoints.Load())
		sink.Put(&flow.Record{Event: flow.EventOpen, Start: r.opened.UnixNano(), Stop: now.UnixNano(), Received: now.UnixNano(),
			Timeout: uint32((age + time.Second - 1) / time.Second), Extra: &over})
	}
}

// visit is called for each flow of a dump.
func (t *table) visit(r *flow.Record, sink input.Sink) {
	p := t.dump.purpose
	if p&forHelpers != 0 && r.Extra != nil {
		t.opts.Remember(r)
	}
	if p == forHelpers {
		return
	}
	if _, over := t.dump.ended[identity(r)]; over {
		return
	}
	// The age of a flow without a start is not known: rather one record too many. A start in the future, by a clock that
	// was set back, tells nothing either.
	unreporting := p&forUnreporting != 0 && (r.Start < t.joined.Add(reportMargin).UnixNano() || r.Start > r.Received)
	if unreporting {
		t.unreporting++
	}
	older := func(than int64) bool { return r.Start == 0 || r.Received-r.Start >= than }
	wanted := unreporting || p&(forOpen|forFarewell) != 0 || p&forInterim != 0 && older(int64(t.cfg.Interim))
	if !wanted && p&forCheckpoint != 0 && older(t.checkpoints.Load()) {
		t.dump.batch.Extra(r).Checkpoint = flow.CheckpointOpen
		wanted = true
	}
	if wanted {
		t.stats.Open.Add(1)
		sink.Put(r)
	}
}

// ended takes note of the end of a flow.
func (t *table) ended(r *flow.Record) {
	if t.dump != nil && t.dump.purpose != forHelpers {
		t.dump.end(identity(r))
	}
}

// unfinished reports whether open records that were requested are not all made.
func (t *table) unfinished() bool {
	planned := slices.ContainsFunc(t.jobs, func(j job) bool { return j.purpose&forOpen != 0 })
	return t.requested.Load() || t.want&forOpen != 0 || planned || t.dump != nil && t.dump.purpose&forOpen != 0
}

// finish closes the dump under way.
func (t *table) finish() {
	if t != nil && t.dump != nil {
		t.dump.close()
		t.dump = nil
	}
}

var identitySeed = maphash.MakeSeed()

// identity returns a hash of what tells a flow from all others: namespace, tuple, zones, id and start. It is keyed: subscribers
// choose tuples.
func identity(r *flow.Record) uint64 {
	var b [58]byte
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
	binary.NativeEndian.PutUint32(b[54:], r.Netns.Key())
	return maphash.Bytes(identitySeed, b[:])
}
