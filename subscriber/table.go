package subscriber

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/ctlogd/ctlogd/flow"
)

// forever is the end of what has none.
const forever = math.MaxInt64

// MaxText is the most bytes that an id and a name have, each: as many as a RADIUS attribute.
const MaxText = 253

// prefix is an address with its first bits alone, in the form of flow.Addr: IPv4 is mapped, and has 96 bits more.
type prefix struct {
	hi, lo uint64
	bits   uint8
}

func prefixOf(p netip.Prefix) prefix {
	n := p.Bits()
	if p.Addr().Is4() {
		n += 96
	}
	a := flow.AddrFrom(p.Addr())
	hi, lo := a.Words()
	return masked(hi, lo, uint8(n))
}

// masked returns the first n bits of an address.
func masked(hi, lo uint64, n uint8) prefix {
	switch {
	case n >= 128:
	case n >= 64:
		lo &^= math.MaxUint64 >> (n - 64)
	default:
		hi, lo = hi&^(math.MaxUint64>>n), 0
	}
	return prefix{hi, lo, n}
}

// seeds keep those who choose addresses from choosing where in a table they stand.
var seeds = [2]uint64{rand.Uint64() | 1, rand.Uint64() | 1}

func (p prefix) hash() uint64 {
	hi, lo := bits.Mul64(p.hi^seeds[0], p.lo^seeds[1])
	hi, lo = bits.Mul64(hi^lo^uint64(p.bits), 0x9e3779b97f4a7c15)
	return hi ^ lo
}

// slot is who has, or had, a prefix: a line of the cache, without pointers.
type slot struct {
	hi, lo      uint64
	from, until int64  // ns since 1970: from is part of it, until is not
	mark        uint16 // its source's; see edit. Lookups do not read it, so it may be set while they go on
	bits        uint8  // the prefix's length
	id, name    uint8  // the texts' lengths
	text        [27]byte
}

func (s *slot) is(p prefix) bool    { return s.hi == p.hi && s.lo == p.lo && s.bits == p.bits }
func (s *slot) key() prefix         { return prefix{s.hi, s.lo, s.bits} }
func (s *slot) holds(ns int64) bool { return s.from <= ns && ns < s.until }
func (s *slot) long() bool          { return int(s.id)+int(s.name) > len(s.text) }

// page is a part of a table: a hash table of its own, of some KiB.
type page struct {
	index []uint32 // linear probing: 16 bits of the hash, and the number of the slot from 1; 0 is the end
	slots []slot   // the latest of each prefix
	past  []slot   // those before them
	text  string   // what is too long for its slot
}

// texts returns the id with the name behind it, valid as long as nobody writes to the slot.
func (g *page) texts(s *slot) string {
	n := int(s.id) + int(s.name)
	if s.long() {
		return g.text[binary.LittleEndian.Uint32(s.text[:]):][:n]
	}
	return unsafe.String(&s.text[0], n)
}

func (g *page) idOf(s *slot) string   { return g.texts(s)[:s.id] }
func (g *page) nameOf(s *slot) string { return g.texts(s)[s.id:] }

// first returns where in the index the search for a hash begins.
func (g *page) first(h uint64) int { return int(h & math.MaxUint32 * uint64(len(g.index)) >> 32) }

// find returns the slot of the prefix, nil if there is none.
func (g *page) find(p prefix, h uint64) *slot {
	if len(g.index) == 0 {
		return nil
	}
	tag := tagOf(h)
	for i := g.first(h); ; {
		e := g.index[i]
		if e == 0 {
			return nil
		}
		if (e^tag)>>16 == 0 {
			if s := &g.slots[e&math.MaxUint16-1]; s.is(p) {
				return s
			}
		}
		if i++; i == len(g.index) {
			i = 0
		}
	}
}

// likely returns the slot that is the prefix's of this hash unless another's tag is the same, without a look at it; noSlot
// if there is none. The index must not be empty.
func (g *page) likely(h uint64) *slot {
	tag := tagOf(h)
	for i := g.first(h); ; {
		e := g.index[i]
		if e == 0 {
			return &noSlot
		}
		if (e^tag)>>16 == 0 {
			return &g.slots[e&math.MaxUint16-1]
		}
		if i++; i == len(g.index) {
			i = 0
		}
	}
}

// tagOf returns what an entry of the index has of the hash: the lower bits say least about where the search begins.
func tagOf(h uint64) uint32 { return uint32(h) << 16 }

// table says who had an address at a time. It is read-only but for marks: with makes another one, which shares the pages
// that are the same. A million leases take some 72 MiB, in some thousand objects that the garbage collector need not look
// into.
//
// bart would be the library for the longest prefix. With a lease at each prefix it takes 95 to 145 MiB for a million, all of it
// objects for the garbage collector. Nearly all there is are single addresses, of which a hash knows where they are. For
// prefixes each length that occurs is tried, the longest first, because the longest is not enough: it may have been nobody's at
// the time. go test -bench 'Lookup|Stage' -benchtime 1x ./subscriber measures both.
type table struct {
	pages   []page // a power of two; the upper bits of the hash say which
	shift   uint
	lengths [2][]uint8        // that occur, of IPv4 and IPv6, the longest first
	leases  int               // prefixes
	past    int               // intervals before the latest
	source  string            // for flow.Subscriber.Source
	unclear map[prefix]window // of lines that are, or were, broken; nil: there are none
	doubts  [2][]uint8        // the lengths of these, of IPv4 and IPv6
}

// window is a time in which it is not known who had a prefix: from is part of it, until is not.
type window struct{ from, until int64 }

// unclear is what at returns for an address of which it is not known who had it, though somebody may have: a line of the file
// is broken. Neither a shorter prefix nor another source can tell.
var unclear = slot{bits: 254}

func newTable() *table { return &table{pages: make([]page, 1), shift: 64} }

func (t *table) page(h uint64) *page { return &t.pages[h>>t.shift] }

// family is which of lengths an address has: 0 IPv4, 1 IPv6.
func family(hi, lo uint64) int {
	if hi == 0 && lo>>32 == 0xffff {
		return 0
	}
	return 1
}

// at returns who had the address at a time: nil if nobody, &unclear if the file has it broken.
func (t *table) at(hi, lo uint64, ns int64) (*page, *slot) {
	for _, n := range t.lengths[family(hi, lo)] {
		p := masked(hi, lo, n)
		if w, ok := t.unclear[p]; ok && w.from <= ns && ns < w.until {
			return nil, &unclear
		}
		h := p.hash()
		g := t.page(h)
		s := g.find(p, h)
		if s == nil {
			continue
		}
		if s.holds(ns) {
			return g, s
		}
		for i := range g.past {
			if s := &g.past[i]; s.is(p) && s.holds(ns) {
				return g, s
			}
		}
	}
	return nil, nil
}

// latest returns the latest interval of a prefix, nil if there is none.
func (t *table) latest(p prefix) (*page, *slot) {
	h := p.hash()
	g := t.page(h)
	return g, g.find(p, h)
}

// edit is one thing that a source says: that somebody has a prefix; without an id, that nobody has it any more.
type edit struct {
	prefix
	from, until int64 // of an end, from is when

	// If another had the prefix until then, from is not exact: certain is until when that one certainly had it, 0 meaning until
	// from, and surely is from when this one certainly has it, 0 meaning since from. In between it is nobody's.
	certain, surely int64

	id, name string
	mark     uint16

	// An interim update tells when the session began, but it may have got the prefix later. said is when it was told; 0: from is
	// when it got it.
	said int64

	ends  bool  // whoever id is has it no more from then on
	early int64 // it may have begun so long before from, if nobody else had it then; and not earlier than is known already
}

// perPage is how many leases a page has at most on average.
const perPage = 192

// with returns the table as it is after the edits, in their order. What ended before horizon is forgotten. The edits are
// put into another order. rest is called now and then.
func (t *table) with(edits []edit, horizon int64, rest func()) *table {
	now := *t
	grow := uint(0)
	for t.leases+len(edits) > perPage*len(t.pages)<<grow {
		grow++ // an edit that is of no new lease counts as well: at most one time too early
	}
	now.pages = make([]page, len(t.pages)<<grow)
	now.shift = t.shift - grow
	if grow == 0 {
		copy(now.pages, t.pages)
	}
	pageOf := func(e *edit) uint64 { return e.hash() >> t.shift }
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Compare(pageOf(&a), pageOf(&b)) })
	w := writer{horizon: horizon, index: map[prefix]int{}}
	var lengths [2][129]bool
	for i := range uint64(len(t.pages)) {
		n := 0
		for n < len(edits) && pageOf(&edits[n]) == i {
			n++
		}
		if n == 0 && grow == 0 {
			continue
		}
		rest()
		w.read(&t.pages[i])
		for j := range edits[:n] {
			w.apply(&edits[j])
			if e := &edits[j]; e.id != "" {
				lengths[family(e.hi, e.lo)][e.bits] = true
			}
		}
		edits = edits[n:]
		now.leases -= len(t.pages[i].slots)
		now.past -= len(t.pages[i].past)
		first := i << grow
		for j := range uint64(1) << grow {
			g := w.page(func(p prefix) bool { return p.hash()>>now.shift == first+j })
			now.leases += len(g.slots)
			now.past += len(g.past)
			now.pages[first+j] = g
		}
	}
	now.learn(&lengths)
	return &now
}

// learn adds lengths to those that occur. One that occurs no more costs a look until the source begins anew.
func (t *table) learn(lengths *[2][129]bool) {
	for f := range lengths {
		for _, n := range t.lengths[f] {
			lengths[f][n] = true
		}
		var all []uint8
		for n := len(lengths[f]) - 1; n >= 0; n-- {
			if lengths[f][n] {
				all = append(all, uint8(n))
			}
		}
		t.lengths[f] = all
	}
}

// withUnclear returns the table with these windows in the place of those that it has.
func (t *table) withUnclear(windows map[prefix]window) *table {
	if len(windows) == 0 && t.unclear == nil {
		return t
	}
	now := *t
	now.unclear, now.doubts = nil, [2][]uint8{}
	if len(windows) > 0 {
		now.unclear = windows
	}
	var lengths [2][129]bool
	for p := range windows {
		if f := family(p.hi, p.lo); !lengths[f][p.bits] {
			lengths[f][p.bits] = true
			now.doubts[f] = append(now.doubts[f], p.bits)
		}
	}
	now.learn(&lengths)
	return &now
}

// doubtful reports whether it is, or was, unclear who has the address.
func (t *table) doubtful(hi, lo uint64) bool {
	for _, n := range t.doubts[family(hi, lo)] {
		if _, ok := t.unclear[masked(hi, lo, n)]; ok {
			return true
		}
	}
	return false
}

// chunk is how many edits are made at once.
const chunk = 1 << 16

// without returns the table in which those intervals that over is true of have ended at a time, or never begin if they begin
// later, and how many these are.
func (t *table) without(at int64, over func(*slot) bool, horizon int64, rest func()) (now *table, ended int) {
	next := *t
	next.pages = slices.Clone(t.pages)
	w := writer{horizon: horizon, index: map[prefix]int{}}
	for i := range t.pages {
		g := &t.pages[i]
		if !slices.ContainsFunc(g.slots, func(s slot) bool { return over(&s) }) && !slices.ContainsFunc(g.past, func(s slot) bool { return over(&s) }) {
			continue
		}
		rest()
		w.read(g)
		end := func(slots []slot, spans []span) {
			for j := range slots {
				if s := &spans[j]; over(&slots[j]) {
					s.until = max(s.from, min(s.until, at))
					ended++
				}
			}
		}
		end(g.slots, w.latest)
		end(g.past, w.past)
		w.promote()
		made := w.page(func(prefix) bool { return true })
		next.leases += len(made.slots) - len(g.slots)
		next.past += len(made.past) - len(g.past)
		next.pages[i] = made
	}
	return &next, ended
}

// span is an interval of a page that is being written.
type span struct {
	prefix
	from, until int64
	id, name    string
	mark        uint16
}

// writer makes pages out of pages.
type writer struct {
	horizon int64
	latest  []span
	past    []span
	index   map[prefix]int // into latest
}

func (w *writer) read(g *page) {
	w.latest, w.past = w.latest[:0], w.past[:0]
	clear(w.index)
	of := func(s *slot) span {
		return span{s.key(), s.from, s.until, g.idOf(s), g.nameOf(s), s.mark}
	}
	for i := range g.slots {
		w.index[g.slots[i].key()] = len(w.latest)
		w.latest = append(w.latest, of(&g.slots[i]))
	}
	for i := range g.past {
		w.past = append(w.past, of(&g.past[i]))
	}
}

func (w *writer) apply(e *edit) {
	i, ok := w.index[e.prefix]
	if e.id == "" || e.ends {
		if ok && w.latest[i].holds(e.from) && (e.id == "" || e.id == w.latest[i].id) {
			w.latest[i].until = e.from
		}
		return
	}
	next := span{e.prefix, e.from, e.until, e.id, e.name, e.mark}
	if !ok {
		next.from -= e.early
		w.index[e.prefix] = len(w.latest)
		w.latest = append(w.latest, next)
		return
	}
	s := &w.latest[i]
	same := s.id == e.id && s.name == e.name
	if e.said != 0 && !same && s.until > e.from { // somebody else is known to have had it since the session began
		next.from, e.from = e.said, e.said
		e.certain = max(s.until-(e.until-e.said), 1) // the last word of them, if they still have it: their end was missed
	}
	switch {
	case same && e.from <= s.until && e.until >= s.from: // it goes on
		if s.until, s.mark = e.until, e.mark; e.early == 0 && e.said == 0 {
			s.from = min(s.from, e.from)
		}
	case e.from < s.from: // somebody before
		next.until = min(next.until, s.from)
		w.remember(next)
	default:
		if until := s.until; !same && until > e.from { // from hand to hand
			s.until = e.from
			if e.certain != 0 {
				s.until = min(e.from, e.certain)
			}
			next.from = max(e.from, e.surely)
		} else {
			s.until = min(until, e.from)
			next.from = max(e.from-e.early, s.until)
		}
		w.remember(*s)
		*s = next
	}
}

func (s *span) holds(ns int64) bool { return s.from <= ns && ns < s.until }

// remember puts an interval that is over into the past, unless it is there, or empty.
func (w *writer) remember(s span) {
	if s.from >= s.until {
		return
	}
	for i := range w.past {
		if p := &w.past[i]; p.prefix == s.prefix && p.id == s.id && p.from < s.until && s.from < p.until {
			p.mark = s.mark
			return
		}
	}
	w.past = append(w.past, s)
}

// promote makes up for each latest interval that is empty: the one before it is the latest then.
func (w *writer) promote() {
	for i := range w.latest {
		s := &w.latest[i]
		if s.from < s.until {
			continue
		}
		before := -1
		for j := range w.past {
			if p := &w.past[j]; p.prefix == s.prefix && p.from < p.until && (before < 0 || p.until > w.past[before].until) {
				before = j
			}
		}
		if before >= 0 {
			*s = w.past[before]
			w.past = slices.Delete(w.past, before, before+1)
		}
	}
}

// page returns a page of those intervals whose prefix is in it, without those that are too old or too many.
func (w *writer) page(in func(prefix) bool) (g page) {
	var latest, past []*span
	for i := range w.latest {
		if s := &w.latest[i]; s.until > w.horizon && s.from < s.until && in(s.prefix) {
			latest = append(latest, s)
		}
	}
	for i := range w.past {
		if s := &w.past[i]; s.until > w.horizon && s.from < s.until && in(s.prefix) {
			past = append(past, s)
		}
	}
	if most := max(2*len(latest), 64); len(past) > most {
		slices.SortFunc(past, func(a, b *span) int { return cmp.Compare(b.until, a.until) })
		past = past[:most]
	}
	var text []byte
	made := func(s *span) slot {
		t := slot{hi: s.hi, lo: s.lo, bits: s.bits, from: s.from, until: s.until, mark: s.mark, id: uint8(len(s.id)), name: uint8(len(s.name))}
		if t.long() {
			binary.LittleEndian.PutUint32(t.text[:], uint32(len(text)))
			text = append(append(text, s.id...), s.name...)
		} else {
			copy(t.text[copy(t.text[:], s.id):], s.name)
		}
		return t
	}
	if len(latest) > 0 {
		g.index = make([]uint32, len(latest)*4/3+1) // one at least stays 0
		g.slots = make([]slot, 0, len(latest))
	}
	for _, s := range latest {
		g.slots = append(g.slots, made(s))
		h := s.hash()
		i := g.first(h)
		for g.index[i] != 0 {
			if i++; i == len(g.index) {
				i = 0
			}
		}
		g.index[i] = uint32(h)<<16 | uint32(len(g.slots))
	}
	if len(past) > 0 {
		g.past = make([]slot, 0, len(past))
	}
	for _, s := range past {
		g.past = append(g.past, made(s))
	}
	g.text = string(text)
	return g
}
