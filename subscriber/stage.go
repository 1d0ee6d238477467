package subscriber

import (
	"slices"
	"sync/atomic"

	"github.com/ctlogd/ctlogd/flow"
)

// Stage is the stage of the pipeline that writes into records whose flow they are. It is run on the reader's goroutine,
// takes no lock and allocates nothing; only the counters may be read elsewhere.
type Stage struct {
	Named   atomic.Uint64 // records that say whose flow they are
	Unknown atomic.Uint64 // records of which no source knows it
	Changed atomic.Uint64 // records of flows whose address had another holder at the end than at the start

	sources []*Source
	tables  []*table // of the sources, during Process

	places   [2][]place // where an address may be, in order, by its family
	unclear  []*table   // those that have unclear prefixes
	searches [256]search
	sink     uint32 // has the compiler keep what search reads in advance
}

// NewStage returns a stage that asks the sources, in their order. The first that knows answers.
func NewStage(sources []*Source) *Stage {
	s := new(Stage)
	s.Use(sources)
	return s
}

// Use has the stage ask other sources from now on. The reader's goroutine calls it.
func (s *Stage) Use(sources []*Source) {
	s.sources, s.tables = sources, make([]*table, len(sources))
}

// Process names the subscribers of the batch's records.
func (s *Stage) Process(b *flow.Batch) {
	s.plan()
	unknown := 0
	for from := 0; from < len(b.Records); from += len(s.searches) {
		recs := b.Records[from:min(from+len(s.searches), len(b.Records))]
		for i := range recs {
			s.searches[i].record = uint8(i)
		}
		left := s.name(b, recs, s.searches[:len(recs)], false)
		unknown += len(left)
		replies := 0
		for i := range left {
			if recs[left[i].record].Has&flow.HasReply != 0 {
				left[replies].record = left[i].record
				replies++
			}
		}
		if replies > 0 {
			unknown -= replies - len(s.name(b, recs, left[:replies], true))
		}
	}
	s.Unknown.Add(uint64(unknown))
	clear(s.tables) // old tables may go
	clear(s.places[0])
	clear(s.places[1])
	clear(s.unclear)
}

// place is where an address may be: the prefixes of one length in one table.
type place struct {
	*table
	bits uint8
}

// plan takes the tables as they are now.
func (s *Stage) plan() {
	s.places, s.unclear = [2][]place{s.places[0][:0], s.places[1][:0]}, s.unclear[:0]
	for i, source := range s.sources {
		t := source.table.Load()
		s.tables[i] = t
		if t.unclear != nil {
			s.unclear = append(s.unclear, t)
		}
		for f := range s.places {
			for _, n := range t.lengths[f] {
				s.places[f] = append(s.places[f], place{t, n})
			}
		}
	}
}

// search is that for a record's address: a line of the cache.
type search struct {
	table  *table
	page   *page
	entry  *uint32 // of the page's index, where the search begins
	slot   *slot   // the first that is the address's, unless two hashes look the same
	hash   uint64
	hi, lo uint64 // of the prefix, with bits
	bits   uint8
	record uint8 // its place in the batch, or in 256 records of it
}

// What a search has that finds nothing.
var (
	noPage  page
	noEntry uint32
	noSlot  = slot{bits: 255} // no prefix's
)

// address is the one that is asked for: of the source, or that from which replies come.
func address(r *flow.Record, reply bool) *flow.Addr {
	if reply {
		return &r.Reply.Src
	}
	return &r.Orig.Src
}

// search looks for the records' addresses at one place after the other. Each step of a search waits for memory, so all searches
// take each step together. Loops that do nothing but touch what the next step needs go between: the shorter a loop, the more
// of its turns the processor has under way, and the more of them wait at once.
func (s *Stage) search(recs []flow.Record, open []search, reply bool) {
	sum, most := uint32(0), max(len(s.places[0]), len(s.places[1]))
	for n := 0; n == 0 || n < most && len(open) > 0; n++ {
		var here [2]place
		for f := range here {
			if n < len(s.places[f]) {
				here[f] = s.places[f][n]
			}
		}
		for i := range open {
			w := &open[i]
			hi, lo := address(&recs[w.record], reply).Words()
			at := &here[family(hi, lo)]
			if w.page = &noPage; at.table != nil {
				p := masked(hi, lo, at.bits)
				w.table, w.hi, w.lo, w.bits, w.hash = at.table, p.hi, p.lo, p.bits, p.hash()
				w.page = at.page(w.hash)
			}
		}
		for i := range open {
			w := &open[i]
			if w.entry = &noEntry; len(w.page.index) > 0 {
				w.entry = &w.page.index[w.page.first(w.hash)]
			}
		}
		for i := range open {
			sum += *open[i].entry
		}
		for i := range open {
			w := &open[i]
			if w.slot = &noSlot; *w.entry != 0 {
				w.slot = w.page.likely(w.hash)
			}
		}
		for i := range open {
			sum += uint32(open[i].slot.bits)
		}
		if n+1 >= most {
			break
		}
		left := 0
		for i := range open {
			if open[i].slot == &noSlot {
				open[left], open[i] = open[i], open[left]
				left++
			}
		}
		open = open[:left]
	}
	s.sink = sum
}

// name amends records by who has their address, and returns those of which nobody knows it, in the place of open.
func (s *Stage) name(b *flow.Batch, recs []flow.Record, open []search, reply bool) (unknown []search) {
	s.search(recs, open, reply)
	unknown = open[:0]
	var named, changed uint64
	for i := range open {
		w := &open[i]
		r := &recs[w.record]
		if !ofFlow(r) {
			continue
		}
		start, end := lifetime(r)
		doubt := len(s.unclear) > 0 && s.doubtful(address(r, reply))
		if !doubt && w.slot.holds(start) && end < w.slot.until && w.slot.is(prefix{w.hi, w.lo, w.bits}) {
			who := w.page.tell(b, w.slot, &b.Extra(r).Subscriber)
			who.Source, who.Dst = w.table.source, reply
			named++
			continue
		}
		found := doubt || w.slot != &noSlot
		var who flow.Subscriber
		if found {
			who, found = s.ask(b, address(r, reply), start, end)
		}
		if !found {
			unknown = append(unknown, search{record: w.record})
			continue
		}
		if named++; who.Next != "" {
			changed++
		}
		who.Dst = reply
		b.Extra(r).Subscriber = who
	}
	s.Named.Add(named)
	s.Changed.Add(changed)
	return unknown
}

// doubtful reports whether a source does not know, or did not, who has an address that is somebody's.
func (s *Stage) doubtful(a *flow.Addr) bool {
	hi, lo := a.Words()
	return slices.ContainsFunc(s.unclear, func(t *table) bool { return t.doubtful(hi, lo) })
}

// tell puts who a slot's subscriber is into who, which is empty.
func (g *page) tell(b *flow.Batch, s *slot, who *flow.Subscriber) *flow.Subscriber {
	text := b.Text(g.texts(s))
	who.ID, who.Name = text[:s.id], text[s.id:]
	return who
}

// ofFlow reports whether r is of a flow, with addresses.
func ofFlow(r *flow.Record) bool { return r.Has&flow.HasOrig != 0 && r.Event < flow.EventExpectNew }

// lifetime returns when the flow began, as far as is known, and until when it is known to have been there.
func lifetime(r *flow.Record) (start, end int64) {
	end, _ = r.Time()
	start = r.Start
	if start == 0 || start > end {
		start = end
	}
	return start, end
}

// ask returns who had the address at the start of the flow, and at its end if that is somebody else.
func (s *Stage) ask(b *flow.Batch, a *flow.Addr, start, end int64) (who flow.Subscriber, found bool) {
	hi, lo := a.Words()
	for _, t := range s.tables {
		g, first := t.at(hi, lo, start)
		broken := first == &unclear
		if first != nil && !broken {
			g.tell(b, first, &who)
			who.Source, found = t.source, true
		}
		if !found || end >= first.until {
			if g, last := t.at(hi, lo, end); last == &unclear {
				broken = true
			} else if last != nil && g.idOf(last) != who.ID {
				who.Next, who.Source, found = b.Text(g.idOf(last)), t.source, true
			}
		}
		if found || broken {
			return who, found
		}
	}
	return who, false
}
