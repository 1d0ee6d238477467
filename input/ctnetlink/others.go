package ctnetlink

import (
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input"
	"github.com/ctlogd/ctlogd/input/netns"
)

// others are the other network namespaces whose events are read. The kernel sends them to the one socket, each with the id
// of its namespace. Its methods are for the reader's goroutine, unless they say otherwise.
type others struct {
	watcher *netns.Watcher
	all     bool
	log     *zap.Logger
	stats   *Stats
	table   *table

	view  *netns.View
	id    int32 // of the last event's namespace
	space *netns.Space
	netns flow.Netns // of its records; 0: it is ctlogd's own
	drop  bool       // nobody asked for it
	held  bool       // netns is held, until forget

	compared *netns.View // the last View that the method changed has seen

	unnamed map[int32]bool // ids of namespaces without a name that have sent something
	former  map[int32]gone // ids whose namespace has gone, until all that it sent has been read
	caught  time.Time      // up to when all had been read when tell was last called
	known   map[*netns.Space]bool
	leaving []*leaving

	switches   map[*netns.Space]*switches // the Watcher's goroutine's, as is the next one
	complained [numSwitches]bool

	mu   sync.Mutex // for what the Watcher's goroutine leaves here
	gone map[int32]gone
	gaps []spaceGap
}

// gone is when the namespace of an id has gone.
type gone struct{ from, to time.Time }

// leaving is a namespace whose name is gone.
type leaving struct {
	space *netns.Space
	since time.Time
	read  bool      // its table was read
	err   error     // why not all of the table was
	at    time.Time // when that was over
}

// spaceGap is a time in which flows of one namespace report nothing.
type spaceGap struct {
	netns    flow.Netns // held
	from, to time.Time
}

// and returns g with another time in which a namespace of the same id has gone.
func (g gone) and(from, to time.Time) gone {
	if g.from.IsZero() {
		g.from = from
	}
	g.to = to
	return g
}

// untracked says that flows of n may have no record that were alive between two times.
func untracked(sink input.Sink, n flow.Netns, from, to time.Time) {
	sink.GapIn(n, from, to, flow.Gap{Cause: flow.CauseUntracked})
}

const noID = -2 // of no namespace

var errNotEntered = errors.New("the namespace could not be entered")

// watchOthers starts to watch the namespaces that cfg asks for. wake wakes the reader.
func watchOthers(cfg *Config, stats *Stats, t *table, log *zap.Logger, wake func()) (o *others, err error) {
	o = &others{all: cfg.all(), log: log, stats: stats, table: t, id: noID, unnamed: map[int32]bool{}, former: map[int32]gone{},
		gone: map[int32]gone{}, known: map[*netns.Space]bool{}, switches: map[*netns.Space]*switches{}}
	o.watcher, err = netns.Watch(netns.Options{Log: log, Wanted: cfg.wanted(), Look: o.look, Changed: wake,
		Gone: func(id int32, from, to time.Time) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.gone[id] = o.gone[id].and(from, to)
		}})
	if err != nil {
		return nil, err
	}
	o.view = o.watcher.View()
	return o, nil
}

// look watches the switches of a namespace, on the Watcher's goroutine.
func (o *others) look(s *netns.Space, now time.Time) {
	w := o.switches[s]
	if w == nil {
		o.complain(s)
		w = new(newSwitches(o.log.With(zap.String("netns", s.Name)), now, func(i Switch) string { return s.ReadSysctl(int(i)) }))
		o.switches[s] = w
		for other := range o.switches {
			if _, leaving := other.Leaving(); leaving || other.Released() {
				delete(o.switches, other)
			}
		}
	}
	w.look(now, false, func(from, to time.Time) {
		s.Netns.Hold()
		o.mu.Lock()
		defer o.mu.Unlock()
		o.gaps = append(o.gaps, spaceGap{s.Netns, from, to})
	})
}

// complain says once what is missing in the records of other namespaces. A new namespace has what the module's parameters
// say, not what ctlogd's own one has.
func (o *others) complain(s *netns.Space) {
	for i := range numSwitches {
		if s.ReadSysctl(int(i)) == "0" && !o.complained[i] {
			o.complained[i] = true
			o.log.Warn("in a network namespace, and maybe in others, "+i.Off()+": net.netfilter."+i.Name()+" is 0",
				zap.String("netns", s.Name), zap.String("remedy", "ip netns exec "+s.Name+" sysctl -w net.netfilter."+i.Name()+
					"=1; for all later namespaces: docs/namespaces.md, Sysctls"))
		}
	}
}

// refresh has what follows go by the newest view.
func (o *others) refresh() {
	if v := o.watcher.View(); v != o.view {
		o.forget()
		o.view = v
		o.watcher.Seen(v)
		o.take()
	}
}

// take takes over which namespaces have gone.
func (o *others) take() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, g := range o.gone {
		o.former[id] = o.former[id].and(g.from, g.to)
		delete(o.gone, id)
		o.caught = time.Time{}
		o.forget()
	}
}

// forget forgets the last event's namespace.
func (o *others) forget() {
	if o.held {
		o.netns.Release()
	}
	o.id, o.space, o.netns, o.drop, o.held = noID, nil, 0, false, false
}

// place says of which namespace r, the last record of b, is. It returns false if nobody asked for that one.
func (o *others) place(b *flow.Batch, r *flow.Record, id int32) bool {
	if id != o.id {
		o.turnTo(id)
	}
	if o.space != nil {
		o.space.Events.Add(1)
	}
	if o.drop {
		o.stats.Unlisted.Add(1)
		return false
	}
	b.SetNetns(r, o.netns)
	return true
}

// turnTo makes id the last event's namespace.
func (o *others) turnTo(id int32) {
	o.forget()
	o.id = id
	if id == o.view.Own {
		return
	}
	o.space = o.view.Find(id)
	if _, reused := o.former[id]; reused && o.space != nil {
		o.space = nil // this event may be the former one's: neither has it by its name
	} else if o.space != nil {
		o.netns = o.space.Netns
		return
	} else if o.drop = !o.all; o.drop {
		return
	}
	o.netns, o.held = flow.HoldNetns(id, ""), true
	o.unnamed[id] = true
}

// turn does what is to do besides events. caught is until when all flows that ended have been read, and withheld whether
// some are held back.
func (o *others) turn(now, caught time.Time, withheld bool, sink input.Sink) {
	if o.refresh(); o.compared != o.view {
		o.compared = o.view
		o.changed()
	}
	o.tell(caught, sink)
	o.leaving = slices.DeleteFunc(o.leaving, func(l *leaving) bool {
		if !l.read || withheld || !caught.After(l.at) || o.table.reads(l.space) {
			return false
		}
		if l.err != nil {
			untracked(sink, l.space.Netns, l.since, now)
			o.log.Warn("a network namespace has gone; flows that were alive in it have no record, as a gap says",
				zap.String("netns", l.space.Name), zap.Error(l.err))
		}
		l.space.Release()
		return true
	})
}

// waiting reports whether something is to be done as soon as what was sent before has been read.
func (o *others) waiting() bool { return len(o.leaving) > 0 || len(o.former) > 0 }

// changed compares the new view with what is known.
func (o *others) changed() {
	for _, s := range o.view.Spaces {
		since, leaves := s.Leaving()
		if !o.known[s] {
			o.known[s] = true
			if s.Entered() && !leaves {
				o.table.appeared(s)
			}
		}
		if leaves && !s.Released() && !slices.ContainsFunc(o.leaving, func(l *leaving) bool { return l.space == s }) {
			o.leave(s, since)
		}
	}
	for s := range o.known {
		if s.Released() {
			delete(o.known, s)
		}
	}
}

// leave begins the farewell of a namespace.
func (o *others) leave(s *netns.Space, since time.Time) {
	l := &leaving{space: s, since: since}
	o.leaving = append(o.leaving, l)
	done := func(now time.Time, err error) { l.read, l.err, l.at = true, err, now }
	if !s.Entered() {
		done(since, errNotEntered)
		return
	}
	o.table.farewell(s, done)
}

// tell tells of what the Watcher's goroutine has left, as far as what namespaces sent that have gone has been read: until
// caught.
func (o *others) tell(caught time.Time, sink input.Sink) {
	o.take()
	o.mu.Lock()
	gaps := o.gaps
	o.gaps = nil
	o.mu.Unlock()
	for _, g := range gaps {
		untracked(sink, g.netns, g.from, g.to)
		g.netns.Release()
	}
	if caught.Equal(o.caught) {
		return
	}
	o.caught = caught
	for id, g := range o.former {
		if !caught.After(g.to) {
			continue
		}
		delete(o.former, id)
		if o.id == id {
			o.forget()
		}
		if !o.unnamed[id] {
			continue
		}
		if !slices.Contains(o.view.Unnamed, id) { // else another one has it, and may have sent something
			delete(o.unnamed, id)
		}
		n := flow.HoldNetns(id, "")
		untracked(sink, n, g.from, g.to)
		n.Release()
	}
}

// finish tells of what will not be read any more: the tables of namespaces that go as the reader ends.
func (o *others) finish(now time.Time, sink input.Sink) {
	o.tell(time.Unix(1<<40, 0), sink) // there is no later
	for _, l := range o.leaving {
		if !l.read || l.err != nil {
			untracked(sink, l.space.Netns, l.since, now)
		}
	}
	o.leaving = nil
}

// close ends the Watcher. Any goroutine may call it, when the reader has ended. o may be nil.
func (o *others) close() {
	if o != nil {
		o.watcher.Close()
		o.forget()
	}
}
