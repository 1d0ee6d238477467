package live

import (
	"cmp"
	"context"
	"encoding/binary"
	"hash/maphash"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline"
)

const (
	// lookedFor is how long counting goes on after somebody has looked.
	lookedFor = time.Minute

	// Ended flows are counted in slices of time, of which the last ones make the last minute.
	sliceTime = 10 * time.Second
	slices60s = 6

	// talkersPause is what counting waits between two looks; what comes faster than 300,000 records a second is missed.
	talkersPause = 50 * time.Millisecond

	// talkersEvery is how often the lists are made at most, whoever looks.
	talkersEvery = 2 * time.Second

	// The table is read for the flows of now, no more often than tableEvery, and so seldom that reading it takes no more
	// than a hundredth of the time.
	tableEvery = 10 * time.Second
	tableShare = 100

	// maxPublic is of how many public addresses the ports are told apart, 16 KiB for each.
	maxPublic = 128

	// listed is how many keys a list has by each of its orders.
	listed = 20
)

// Talkers are those who use the box most. All figures are of the flows that ctlogd sees: what the kernel drops for the
// filters' sake is not among those that have ended.
type Talkers struct {
	Since float64 `json:"seconds"` // that the ended flows cover, up to the last minute
	Table float64 `json:"table_age_seconds"`
	// TableRead says that the table has been read, and Table how long ago.
	TableRead bool   `json:"table_read"`
	Missed    uint64 `json:"missed"` // ended flows that came too fast to be counted

	Sources      List `json:"sources"`      // inside addresses, before translation
	Public       List `json:"public"`       // translated sources
	Destinations List `json:"destinations"` // as the sender has it
	Ports        List `json:"ports"`        // destination ports
	Subscribers  List `json:"subscribers"`  // as the records name them, by id; of those in the table it is not known
}

// List is a list of talkers, most flows first. Low says by how much any of its figures may be too low.
type List struct {
	Top      []Talker `json:"top"`
	LowFlows uint64   `json:"low_flows"`
	LowBytes uint64   `json:"low_bytes"`
	LowNow   uint64   `json:"low_now"`
}

// Talker is one of them.
type Talker struct {
	Key   string `json:"key"`   // an address, or tcp/443
	Flows uint64 `json:"flows"` // that ended within the last minute
	Bytes uint64 `json:"bytes"` // that these carried, both ways, in all their time
	Now   uint64 `json:"now"`   // flows in the table

	// Of a public address: how many of its ports flows in the table have. nil where it was not counted.
	TCP *int `json:"tcp_ports,omitempty"`
	UDP *int `json:"udp_ports,omitempty"`
}

// First returns those who come first by flows.
func (l List) First() []Talker { return l.Top[:min(len(l.Top), 10)] }

// TCPUsed and UDPUsed say how many ports of a public address are in use.
func (t Talker) TCPUsed() string { return portsUsed(t.TCP) }
func (t Talker) UDPUsed() string { return portsUsed(t.UDP) }

// portKey is the key of r's protocol and the port that it goes to, if ports are known.
func portKey(r *flow.Record) key {
	if !r.HasPorts() {
		return key{byte(r.Orig.Proto)}
	}
	port := r.Orig.DstPort
	return key{byte(r.Orig.Proto), byte(port >> 8), byte(port), 1}
}

func portName(k key) string {
	p := flow.Proto(k[0])
	if k[3] == 0 {
		return p.String()
	}
	return p.String() + "/" + strconv.Itoa(int(k[1])<<8|int(k[2]))
}

func addrName(k key) string { return netip.AddrFrom16(k).Unmap().String() }

// sums counts by all kinds of key.
type sums struct {
	by  [kinds]*sketch
	ids map[key]string // of the subscribers that are counted, and of some that are not any more
}

const (
	bySource = iota
	byPublic
	byDestination
	byPort
	bySubscriber
	kinds
)

func newSums() *sums {
	s := &sums{ids: map[key]string{}}
	for i := range s.by {
		s.by[i] = newSketch()
	}
	return s
}

func (s *sums) reset() {
	for _, k := range s.by {
		k.reset()
	}
	clear(s.ids)
}

// idSeeds make keys of ids: of all sums the same ones.
var idSeeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

// addID counts for a subscriber.
func (s *sums) addID(id string, c counts) {
	var k key
	binary.NativeEndian.PutUint64(k[:8], maphash.String(idSeeds[0], id))
	binary.NativeEndian.PutUint64(k[8:], maphash.String(idSeeds[1], id))
	s.by[bySubscriber].add(&k, c)
	if _, known := s.ids[k]; known {
		return
	}
	if len(s.ids) >= 2*sketchSize {
		maps.DeleteFunc(s.ids, func(k key, _ string) bool { return s.by[bySubscriber].get(&k) == counts{} })
	}
	s.ids[k] = strings.Clone(id) // which is its batch's
}

func (s *sums) add(r *flow.Record) {
	if r.Has&flow.HasOrig == 0 {
		return
	}
	c := counts{1, r.OrigCounters.Bytes + r.ReplyCounters.Bytes}
	s.by[bySource].add(&r.Orig.Src, c)
	s.by[byDestination].add(&r.Orig.Dst, c)
	if r.NAT()&flow.NATSrc != 0 {
		s.by[byPublic].add(&r.Reply.Dst, c)
	}
	port := portKey(r)
	s.by[byPort].add(&port, c)
	if who := r.Subscriber(); who != nil {
		s.addID(cmp.Or(who.ID, who.Next), c)
	}
}

// portSet is the ports of one address that flows have, one bit for each.
type portSet struct{ tcp, udp [1 << 16 / 64]uint64 }

func (s *portSet) add(t *flow.Tuple) {
	switch t.Proto {
	case flow.TCP:
		s.tcp[t.DstPort>>6] |= 1 << (t.DstPort & 63)
	case flow.UDP:
		s.udp[t.DstPort>>6] |= 1 << (t.DstPort & 63)
	}
}

func ones(set *[1 << 16 / 64]uint64) (n int) {
	for _, w := range set {
		n += bits.OnesCount64(w)
	}
	return n
}

// inTable is what one reading of the table has shown.
type inTable struct {
	*sums
	at    time.Time
	ports map[flow.Addr]*portSet
}

// talkers counts, on goroutines of its own, while somebody looks.
type talkers struct {
	pipeline *pipeline.Pipeline
	table    func(ctx context.Context, visit func(*flow.Record)) error
	always   bool
	log      *zap.Logger

	wake chan struct{} // holds a token when somebody has begun to look

	mu     sync.Mutex
	looked time.Time
	slices []slice // the last is being filled; nil: nobody looks
	began  time.Time
	missed uint64
	now    *inTable // nil: not read yet
	made   *Talkers // the lists, as of madeAt
	madeAt time.Time
}

type slice struct {
	began time.Time
	*sums
}

// run counts whenever somebody looks, until ctx ends.
func (t *talkers) run(ctx context.Context) {
	for {
		if !t.always {
			select {
			case <-t.wake:
			case <-ctx.Done():
				return
			}
		}
		watching, stop := context.WithCancel(ctx)
		var table sync.WaitGroup
		table.Go(func() { t.readTable(watching) })
		t.count(ctx)
		stop()
		table.Wait()
		t.mu.Lock()
		t.slices, t.now, t.made, t.missed = nil, nil, nil, 0
		if time.Since(t.looked) > lookedFor {
			select {
			case <-t.wake: // of one who looked while it was counted
			default:
			}
		}
		t.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
	}
}

// count counts the flows that end, until nobody looks any more.
func (t *talkers) count(ctx context.Context) {
	tap := t.pipeline.Tap(tapBatches)
	defer t.pipeline.Untap(tap)
	t.mu.Lock()
	t.began = time.Now()
	t.mu.Unlock()
	for ctx.Err() == nil {
		now := time.Now()
		t.mu.Lock()
		idle := !t.always && now.Sub(t.looked) > lookedFor
		sums := t.slice(now)
		for b, missed, ok := tap.More(); ok || missed > 0; b, missed, ok = tap.More() {
			t.missed += missed
			if !ok {
				break
			}
			for i := range b.Records {
				if r := &b.Records[i]; r.Event == flow.EventDestroy {
					sums.add(r)
				}
			}
			b.Done()
		}
		t.mu.Unlock()
		if idle {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(talkersPause):
		}
	}
}

// slice returns what is to be counted in now. The lock is held.
func (t *talkers) slice(now time.Time) *sums {
	n := len(t.slices)
	if n > 0 && now.Sub(t.slices[n-1].began) < sliceTime {
		return t.slices[n-1].sums
	}
	next := slice{began: now}
	if n == slices60s { // the oldest is used again
		next.sums = t.slices[0].sums
		next.reset()
		t.slices = append(t.slices[:0], t.slices[1:]...)
	} else {
		next.sums = newSums()
	}
	t.slices = append(t.slices, next)
	return next.sums
}

// readTable reads the table now and then, until ctx ends.
func (t *talkers) readTable(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		t.mu.Lock()
		before := t.now
		t.mu.Unlock()
		in := &inTable{sums: newSums(), ports: map[flow.Addr]*portSet{}}
		if before != nil {
			// Addresses with many flows come first.
			top := slices.Clone(before.by[byPublic].entries)
			slices.SortFunc(top, func(a, b entry) int { return cmp.Compare(b.flows, a.flows) })
			for _, e := range top[:min(len(top), maxPublic)] {
				in.ports[e.key] = new(portSet)
			}
		}
		err := t.table(ctx, func(r *flow.Record) {
			in.add(r)
			if r.NAT()&flow.NATSrc == 0 {
				return
			}
			set := in.ports[r.Reply.Dst]
			if set == nil {
				if len(in.ports) >= maxPublic {
					return
				}
				set = new(portSet)
				in.ports[r.Reply.Dst] = set
			}
			set.add(&r.Reply)
		})
		in.at = time.Now()
		if err == nil {
			t.mu.Lock()
			t.now, t.made = in, nil
			t.mu.Unlock()
		} else if ctx.Err() == nil {
			t.log.Warn("cannot tell how many flows there are now", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(tableEvery, tableShare*in.at.Sub(began))):
		}
	}
}

// look returns the lists, and has counting go on, or begin.
func (t *talkers) look(now time.Time) *Talkers {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.looked = now
	select {
	case t.wake <- struct{}{}:
	default:
	}
	if t.made == nil || now.Sub(t.madeAt) >= talkersEvery {
		t.made, t.madeAt = t.lists(now), now
	}
	return t.made
}

// lists makes the lists. The lock is held.
func (t *talkers) lists(now time.Time) *Talkers {
	l := &Talkers{Missed: t.missed}
	if len(t.slices) > 0 {
		l.Since = now.Sub(t.slices[0].began).Seconds()
	}
	table := t.now
	if table != nil {
		l.TableRead, l.Table = true, now.Sub(table.at).Seconds()
	} else {
		table = &inTable{sums: newSums()}
	}
	for kind, to := range []*List{&l.Sources, &l.Public, &l.Destinations, &l.Ports, &l.Subscribers} {
		var ended []*sketch
		for _, s := range t.slices {
			ended = append(ended, s.by[kind])
		}
		name := addrName
		switch kind {
		case byPort:
			name = portName
		case bySubscriber:
			name = t.idOf
		}
		*to = list(ended, table.by[kind], name)
	}
	for i := range l.Public.Top {
		top := &l.Public.Top[i]
		set := table.ports[flow.AddrFrom(netip.MustParseAddr(top.Key))]
		switch {
		case set != nil:
			top.TCP, top.UDP = new(ones(&set.tcp)), new(ones(&set.udp))
		case l.TableRead && len(table.ports) < maxPublic: // all there are were told apart
			top.TCP, top.UDP = new(0), new(0)
		}
	}
	return l
}

// idOf returns the subscriber whose key it is. The lock is held.
func (t *talkers) idOf(k key) string {
	for _, s := range t.slices {
		if id, known := s.ids[k]; known {
			return id
		}
	}
	return ""
}

// list returns those who come first by flows, by bytes or by the flows that they have now.
func list(ended []*sketch, now *sketch, name func(key) string) List {
	type sum struct {
		key   key
		ended counts
		now   uint64
	}
	sums, off := merged(ended)
	all := make([]sum, 0, len(sums))
	for key, c := range sums {
		all = append(all, sum{key, c, now.get(&key).flows})
	}
	for i := range now.entries {
		if e := &now.entries[i]; sums[e.key] == (counts{}) {
			all = append(all, sum{key: e.key, now: e.flows})
		}
	}
	l := List{Top: []Talker{}, LowFlows: off.flows, LowBytes: off.bytes, LowNow: now.off.flows}
	taken := map[key]bool{}
	for _, by := range []func(*sum) uint64{
		func(s *sum) uint64 { return s.ended.flows },
		func(s *sum) uint64 { return s.ended.bytes },
		func(s *sum) uint64 { return s.now },
	} {
		for _, i := range largest(len(all), func(i int) uint64 { return by(&all[i]) }) {
			if s := &all[i]; !taken[s.key] {
				taken[s.key] = true
				l.Top = append(l.Top, Talker{Key: name(s.key), Flows: s.ended.flows, Bytes: s.ended.bytes, Now: s.now})
			}
		}
	}
	slices.SortFunc(l.Top, func(a, b Talker) int {
		return cmp.Or(cmp.Compare(b.Flows, a.Flows), cmp.Compare(b.Now, a.Now), cmp.Compare(a.Key, b.Key))
	})
	return l
}

// largest returns the indices, below n, of the largest values that are not 0, listed of them at most.
func largest(n int, value func(int) uint64) (top []int) {
	for i := range n {
		v := value(i)
		if v == 0 || len(top) == listed && v <= value(top[listed-1]) {
			continue
		}
		at := len(top)
		for at > 0 && value(top[at-1]) < v {
			at--
		}
		if top = slices.Insert(top, at, i); len(top) > listed {
			top = top[:listed]
		}
	}
	return top
}
