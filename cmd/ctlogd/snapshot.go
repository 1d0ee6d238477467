package main

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input/ctnetlink"
	"github.com/ctlogd/ctlogd/input/netns"
	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
	"github.com/ctlogd/ctlogd/preflight"
)

// What each may lose, so that the counters are there before it does.
var (
	readerCauses = []flow.Cause{flow.CauseOverrun, flow.CauseGuard, flow.CauseDowntime, flow.CauseUntracked, flow.CauseUnreadable}
	outputCauses = []flow.Cause{flow.CauseQueueFull, flow.CauseSpoolFull, flow.CauseDiskFull, flow.CauseOutputDown,
		flow.CauseDowntime, flow.CauseCrash, flow.CauseReboot}
)

// snapshot returns the state of this moment. Any goroutine may call it.
func (a *app) snapshot() monitor.Snapshot {
	now := time.Now()
	b := readBuild()
	s := monitor.Snapshot{
		Time: now, Version: b.version, Commit: b.commit, GoVersion: b.goVersion, PID: os.Getpid(),
		Started: a.state.started, Uptime: now.Sub(a.state.started).Seconds(), Stopping: a.state.stopping.Load(), Delivery: a.state.delivery,
		Kernel: a.state.kernel.get(now), Filtered: a.selected.Dropped.Load(), OwnFlows: a.sockets.Dropped.Load(),
	}
	a.state.reloads.Lock()
	s.Reloads, s.Host = a.state.reloads.Reloads, a.state.reloads.host
	s.Reloads.LastOK = s.Reloads.LastOK || s.Reloads.Last.IsZero()
	a.state.reloads.Unlock()

	s.LogDropped = a.own.Dropped()

	in, rd := &a.source.Stats, &a.reader.Stats
	if a.keeper != nil {
		if since, err := a.keeper.Failure(); err != nil {
			s.Mark = monitor.Mark{Failing: true, Error: err.Error(), Since: since}
		}
	}
	s.Reader = monitor.Reader{
		Events: map[string]uint64{}, Malformed: in.Malformed.Load(), Truncated: in.Truncated.Load(), Refused: in.Refused.Load(),
		Skipped: in.Skipped.Load(), WithoutCounters: in.WithoutCounters.Load(), WithoutStart: in.WithoutStart.Load(),
		Sysctls:    map[string]int{},
		GuardSheds: in.GuardSheds.Load(), GuardLost: in.GuardLost.Load(), Reads: in.Reads.Load(), Naps: rd.Naps.Load(),
		Busy: time.Duration(rd.Busy.Load()).Seconds(), Round: time.Unix(0, rd.Round.Load()),
		Dumped: in.Dumped.Load(), Open: in.Open.Load(), ReadTo: a.reader.ReadUntil(),
	}
	for _, e := range []flow.Event{flow.EventNew, flow.EventUpdate, flow.EventDestroy, flow.EventExpectNew, flow.EventExpectDestroy} {
		s.Reader.Events[e.String()] = in.Events[e].Load()
	}
	for _, sw := range ctnetlink.Switches() {
		if v, err := strconv.Atoi(a.source.Switch(sw)); err == nil {
			s.Reader.Sysctls[sw.Name()] = v
		}
	}
	if a.state.delivery == ctnetlink.Reliable {
		s.Reader.DeliveryRetries = in.Drops.Load()
	} else {
		s.Reader.KernelDrops = in.Drops.Load()
	}
	s.Gaps = monitor.GapsOf(&rd.Gaps, readerCauses...)
	s.Helpers = monitor.Helpers{Size: a.helpers.Size.Load(), Evictions: a.helpers.Evictions.Load(), Unknown: a.helpers.Unknown.Load()}
	s.Subscribers = a.subscribers(now)
	s.Namespaces = a.namespaces()
	s.Outputs = []monitor.Output{}
	for _, q := range a.pipeline.Queues() {
		s.Outputs = append(s.Outputs, a.outputSnapshot(q, now))
	}
	s.Judge()
	return s
}

// subscribers returns the state of what names subscribers, nil if nothing does.
func (a *app) subscribers(now time.Time) *monitor.Subscribers {
	sources := a.sourcesNow()
	if len(sources) == 0 {
		return nil
	}
	s := &monitor.Subscribers{Named: a.named.Named.Load(), Unknown: a.named.Unknown.Load(), Changed: a.named.Changed.Load()}
	for _, src := range sources {
		o := monitor.Source{Name: src.Name(), Type: src.Type(), Error: src.Failure(), Loads: src.Loads.Load(), Broken: src.Broken.Load()}
		o.Leases, o.Past = src.Size()
		since := a.state.started.UnixNano() // one that was never known is as old as the daemon
		if fresh := src.Fresh.Load(); fresh != 0 {
			since = fresh
		}
		o.Age = max(now.Sub(time.Unix(0, since)), 0).Seconds()
		if src.Type() == "radius" {
			o.Packets = map[string]uint64{"accepted": src.Accepted.Load(), "useless": src.Useless.Load(), "forged": src.Forged.Load(),
				"foreign": src.Foreign.Load(), "damaged": src.Damaged.Load(), "full": src.Full.Load()}
		}
		s.Sources = append(s.Sources, o)
	}
	return s
}

// namespaces returns the other network namespaces, nil if nobody asks for them.
func (a *app) namespaces() *monitor.Namespaces {
	view, asked := a.source.Namespaces()
	if !asked {
		return nil
	}
	n := &monitor.Namespaces{Named: []monitor.Namespace{}, Unlisted: a.source.Stats.Unlisted.Load()}
	if view == nil {
		return n
	}
	n.Heard, n.Unnamed = true, len(view.Unnamed)
	for _, s := range view.Spaces {
		one := monitor.Namespace{Name: s.Name, ID: s.ID, Events: s.Events.Load(), GuardSheds: s.Sheds.Load(), Entries: -1, Sysctls: map[string]int{}}
		_, one.Leaving = s.Leaving()
		if entries, err := s.Entries(); err == nil {
			one.Entries = entries
		}
		for i, name := range netns.Sysctls {
			if v, err := strconv.Atoi(s.LastSysctl(i)); err == nil {
				one.Sysctls[name] = v
			}
		}
		n.Named = append(n.Named, one)
	}
	return n
}

func (a *app) outputSnapshot(q *deliver.Queue, now time.Time) monitor.Output {
	st, is := &q.Stats, q.Status()
	kind, _, _ := strings.Cut(q.Name(), ":")
	o := monitor.Output{
		Name: q.Name(), Kind: kind, Failing: is.Failing, Since: is.Since, Error: is.Error, ErrorAt: is.ErrorAt,
		Waiting: int64(is.Held), Used: is.Held, Max: is.Max,
		Written: st.Written.Load(), Filtered: st.Filtered.Load(), Dropped: st.Dropped.Load(), Rejected: st.Rejected.Load(),
		Left: st.Left.Load(), GapRecords: st.Gaps.Load(), Errors: st.Errors.Load(), Retries: st.Retries.Load(),
		Gaps: monitor.GapsOf(&st.Lost, outputCauses...),
	}
	ownCounters(q.Output(), &o)
	if o.Since.IsZero() {
		o.Since = a.state.started
	}
	if !is.Oldest.IsZero() {
		o.OldestAge = max(now.Sub(is.Oldest), 0).Seconds()
	}
	if sp := q.Spool(); sp != nil {
		o.Spool = &monitor.Spool{Path: sp.Path(), Max: sp.Max(), Dropped: sp.Stats.Dropped.Load(), Damaged: sp.Stats.Damaged.Load()}
		o.Spool.Records, o.Spool.Bytes = sp.Len()
	}
	for _, bound := range deliver.LagBounds {
		o.Lag.Bounds = append(o.Lag.Bounds, bound.Seconds())
	}
	counts, sum := st.Lag.Load()
	o.Lag.Counts, o.Lag.Sum = counts[:], sum
	return o
}

// ownCounters puts what the output itself counts into o. An output that cannot be built counts nothing.
func ownCounters(out deliver.Output, o *monitor.Output) {
	c, ok := out.(deliver.Counter)
	if !ok {
		return
	}
	c.Counters(func(name, label string, n uint64) {
		switch name {
		case "bytes":
			o.Bytes = &n
		case "kept_since":
			if n != 0 { // it holds something
				o.KeptSince = time.Unix(int64(n), 0)
			}
		default:
			o.Counters = append(o.Counters, monitor.Counter{Name: name, Label: label, N: n})
		}
	})
}

// reloads is what SIGHUP has done, and what it changes that a snapshot shows.
type reloads struct {
	sync.Mutex
	monitor.Reloads
	host, observer string // of the records
}

// note counts a reload that has ended.
func (r *reloads) note(cfg *Config, err error) {
	r.Lock()
	defer r.Unlock()
	r.Last, r.LastOK = time.Now(), err == nil
	if err != nil {
		r.Failed++
		return
	}
	r.OK++
	r.host, r.observer = cfg.Host, cfg.Observer
}

// rename notes who the machine is.
func (r *reloads) rename(host, observer string) {
	r.Lock()
	defer r.Unlock()
	r.host, r.observer = host, observer
}

func (r *reloads) names() (host, observer string) {
	r.Lock()
	defer r.Unlock()
	return r.host, r.observer
}

// kernel asks the kernel for its statistics, once a second at most, however many look.
type kernel struct {
	mu    sync.Mutex
	asked time.Time
	last  monitor.Kernel
}

const kernelEvery = time.Second

func (k *kernel) get(now time.Time) monitor.Kernel {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.asked.IsZero() || now.Sub(k.asked) >= kernelEvery {
		k.asked, k.last = now, askKernel()
	}
	return k.last
}

func askKernel() (k monitor.Kernel) {
	var err error
	if k.Entries, k.Limit, err = preflight.Table(); err != nil {
		return monitor.Kernel{Error: "ask for the table's size: " + err.Error()}
	}
	if k.Expectations, err = preflight.Expectations(); err != nil {
		return monitor.Kernel{Error: "ask for the statistics of expectations: " + err.Error()}
	}
	k.ExpectLimit, _ = preflight.ExpectationLimit()
	stats, err := preflight.Stats()
	if err != nil {
		return monitor.Kernel{Error: "ask for conntrack's statistics: " + err.Error()}
	}
	for _, s := range stats {
		k.CPUs = append(k.CPUs, monitor.CPU(s))
	}
	return k
}
