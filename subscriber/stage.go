package subscriber

import (
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

	searches [256]search // of the last batch
	sink     uint32      // has the compiler keep what search reads in advance
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
	for i, source := range s.sources {
		s.tables[i] = source.table.Load()
	}
	for from := 0; from < len(b.Records); from += len(s.searches) {
		recs := b.Records[from:min(from+len(s.searches), len(b.Records))]
		s.search(recs)
		s.name(b, recs)
	}
	clear(s.tables) // an old table may go
}

// search is that for a record's source address in the first table that has addresses of its family.
type search struct {
	table *table
	page  *page
	entry *uint32 // of the page's index, where the search begins
	slot  *slot   // the address's unless two hashes look the same
	key   prefix
	hash  uint64
}

// What a search has that finds nothing.
var (
	noPage  page
	noEntry uint32
	noSlot  = slot{bits: 255} // no prefix's
)

// search looks where nearly all records find what they look for. Each step of a search waits for memory, so all searches
// take each step together. Loops that do nothing but touch what the next step needs go between: the shorter a loop, the more
// of its turns the processor has under way, and the more of them wait at once.
func (s *Stage) search(recs []flow.Record) {
	var first [2]*table
	for _, t := range s.tables {
		for f := range first {
			if first[f] == nil && len(t.lengths[f]) > 0 {
				first[f] = t
			}
		}
	}
	all := s.searches[:len(recs)]
	for i := range all {
		w := &all[i]
		hi, lo := recs[i].Orig.Src.Words()
		f := family(hi, lo)
		if w.table, w.page = first[f], &noPage; w.table != nil {
			w.key = masked(hi, lo, w.table.lengths[f][0])
			w.hash = w.key.hash()
			w.page = w.table.page(w.hash)
		}
	}
	for i := range all {
		w := &all[i]
		if w.entry = &noEntry; len(w.page.index) > 0 {
			w.entry = &w.page.index[w.page.first(w.hash)]
		}
	}
	sum := uint32(0)
	for i := range all {
		sum += *all[i].entry
	}
	for i := range all {
		w := &all[i]
		if w.slot = &noSlot; *w.entry != 0 {
			w.slot = w.page.likely(w.hash)
		}
	}
	for i := range all {
		sum += uint32(all[i].slot.bits)
	}
	s.sink = sum
}

// name amends the records by what search has found, and looks further where that does not answer.
func (s *Stage) name(b *flow.Batch, recs []flow.Record) {
	var named, unknown, changed uint64
	for i := range recs {
		r := &recs[i]
		if !ofFlow(r) {
			continue
		}
		start, end := lifetime(r)
		w := &s.searches[i]
		if w.slot.is(w.key) && w.slot.holds(start) && end < w.slot.until && w.table.unclear == nil {
			w.page.tell(b, w.slot, &b.Extra(r).Subscriber).Source = w.table.source
			named++
			continue
		}
		var absent *table // one that has none of the longest prefixes around the address
		if w.slot == &noSlot && w.table != nil && w.table.unclear == nil {
			absent = w.table
		}
		who, found := s.ask(b, &r.Orig.Src, start, end, absent)
		if !found && r.Has&flow.HasReply != 0 {
			who, found = s.ask(b, &r.Reply.Src, start, end, nil)
			who.Dst = true
		}
		if !found {
			unknown++
			continue
		}
		named++
		if who.Next != "" {
			changed++
		}
		b.Extra(r).Subscriber = who
	}
	s.Named.Add(named)
	s.Unknown.Add(unknown)
	s.Changed.Add(changed)
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

// ask returns who had the address at the start of the flow, and at its end if that is somebody else. absent is a table whose
// longest prefixes need not be looked at, or nil.
func (s *Stage) ask(b *flow.Batch, a *flow.Addr, start, end int64, absent *table) (who flow.Subscriber, found bool) {
	hi, lo := a.Words()
	for _, t := range s.tables {
		lengths := t.lengths[family(hi, lo)]
		if t == absent {
			lengths = lengths[1:]
		}
		g, first := t.at(hi, lo, start, lengths)
		broken := first == &unclear
		if first != nil && !broken {
			g.tell(b, first, &who)
			who.Source, found = t.source, true
		}
		if !found || end >= first.until {
			if g, last := t.at(hi, lo, end, lengths); last == &unclear {
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
