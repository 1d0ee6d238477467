package ownflow

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	// keep is for how long a tuple stays known after its socket has closed.
	keep = time.Hour

	// maxClosed is how many closed tuples are known at most; the oldest are forgotten first.
	maxClosed = 1024
)

// Sockets are the connected sockets of this process. The methods of a nil *Sockets dial, and note nothing.
type Sockets struct {
	Dropped atomic.Uint64 // records that Process dropped
	Log     atomic.Bool   // Process lets them pass

	known atomic.Pointer[table] // what Process reads: never changed, only replaced

	mu     sync.Mutex
	tuples map[tuple]*use
	ports  map[netip.AddrPort]uint16 // local ports of the last attempts to connect that failed, by where they went
}

// tuple is the original direction of a flow.
type tuple struct {
	src, dst         flow.Addr
	srcPort, dstPort uint16
	proto            flow.Proto
}

// use says how long a tuple is known.
type use struct {
	open  int   // sockets that have it now
	until int64 // if none: up to which time (ns since 1970) records are its flow's
}

// table is one state of what is known.
type table struct {
	// A bit for each source port, because few flows have one of them; and before that one for those that have the low bits
	// in common, because the reader looks at every record: two lines of the cache instead of the half of it.
	low    [lowPorts / 64]uint64
	ports  [1 << 16 / 64]uint64
	tuples map[tuple]int64 // until; 0 while a socket is open
}

// lowPorts is how many source ports table.low tells apart.
const lowPorts = 1 << 10

// New returns an empty Sockets.
func New() *Sockets {
	return &Sockets{tuples: map[tuple]*use{}, ports: map[netip.AddrPort]uint16{}}
}

// Process drops the records of flows of this process's sockets, in place. It is called on the reader's goroutine: it
// takes no lock and allocates nothing.
func (s *Sockets) Process(b *flow.Batch) {
	known := s.known.Load()
	if known == nil || s.Log.Load() {
		return
	}
	kept := 0
	for i := range b.Records {
		r := &b.Records[i]
		p := r.Orig.SrcPort
		if low := p % lowPorts; known.low[low>>6]&(1<<(low&63)) != 0 && known.ports[p>>6]&(1<<(p&63)) != 0 && known.has(r) {
			continue
		}
		if kept != i {
			b.Records[kept] = *r
		}
		kept++
	}
	if dropped := len(b.Records) - kept; dropped > 0 {
		s.Dropped.Add(uint64(dropped))
		b.Records = b.Records[:kept]
	}
}

// has reports whether r is of a flow that is known.
func (t *table) has(r *flow.Record) bool {
	switch r.Event {
	case flow.EventNew, flow.EventUpdate, flow.EventDestroy, flow.EventOpen:
	default:
		return false
	}
	o := &r.Orig
	until, ok := t.tuples[tuple{src: o.Src, dst: o.Dst, srcPort: o.SrcPort, dstPort: o.DstPort, proto: o.Proto}]
	return ok && (until == 0 || r.Received <= until)
}

// Track notes a socket that sends from local to remote. release, which may be called more than once, says that it has
// closed.
func (s *Sockets) Track(proto flow.Proto, local, remote netip.AddrPort) (release func()) {
	if s == nil {
		return func() {}
	}
	t := tuple{src: flow.AddrFrom(local.Addr().WithZone("")), dst: flow.AddrFrom(remote.Addr().WithZone("")),
		srcPort: local.Port(), dstPort: remote.Port(), proto: proto}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.tuples[t]
	if u == nil {
		u = new(use)
		s.tuples[t] = u
	}
	u.open++
	s.publish()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		u.open--
		u.until = time.Now().Add(keep).UnixNano()
		s.publish()
	})
}

// publish forgets what is old and shows the rest to Process. The lock is held.
func (s *Sockets) publish() {
	now := time.Now().UnixNano()
	maps.DeleteFunc(s.tuples, func(_ tuple, u *use) bool { return u.open == 0 && u.until < now })
	var closed []tuple
	for t, u := range s.tuples {
		if u.open == 0 {
			closed = append(closed, t)
		}
	}
	if more := len(closed) - maxClosed; more > 0 {
		slices.SortFunc(closed, func(a, b tuple) int { return cmp.Compare(s.tuples[a].until, s.tuples[b].until) })
		for _, t := range closed[:more] {
			delete(s.tuples, t)
		}
	}
	known := &table{tuples: make(map[tuple]int64, len(s.tuples))}
	for t, u := range s.tuples {
		until := u.until
		if u.open > 0 {
			until = 0
		}
		known.tuples[t] = until
		low := t.srcPort % lowPorts
		known.low[low>>6] |= 1 << (low & 63)
		known.ports[t.srcPort>>6] |= 1 << (t.srcPort & 63)
	}
	s.known.Store(known)
}
