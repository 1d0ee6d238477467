package live

import "slices"

// sketchSize is how many keys a sketch holds.
const sketchSize = 1024

// counts is what is counted for a key.
type counts struct{ flows, bytes uint64 }

func (c *counts) add(d counts) {
	c.flows += d.flows
	c.bytes += d.bytes
}

// sketch counts the most frequent keys of a stream in bounded memory. It is exact as long as no more than sketchSize
// keys come. When one more does, as much is subtracted from every key as leaves half of them with nothing (Misra and
// Gries 1982; in batches, as Anderson et al. 2017 have it), so that a count is too low by no more than off, and never
// too high. Whatever comes in whatever order, off is at most 4/sketchSize of the total: what is subtracted once is
// subtracted from a quarter of the keys at least, and no more can be subtracted than was counted.
type sketch[K comparable] struct {
	index   map[K]int32
	entries []entry[K]
	off     counts
	order   []uint64 // for purge
}

type entry[K comparable] struct {
	key K
	counts
}

func newSketch[K comparable]() *sketch[K] {
	return &sketch[K]{index: make(map[K]int32, sketchSize), entries: make([]entry[K], 0, sketchSize)}
}

func (s *sketch[K]) reset() {
	clear(s.index)
	s.entries, s.off = s.entries[:0], counts{}
}

func (s *sketch[K]) add(key K, c counts) {
	i, ok := s.index[key]
	if !ok {
		if len(s.entries) == sketchSize {
			s.purge()
		}
		i = int32(len(s.entries))
		s.index[key] = i
		s.entries = append(s.entries, entry[K]{key: key})
	}
	s.entries[i].add(c)
}

// purge makes room. Flows and bytes are subtracted from on their own; a key goes when it has neither left.
func (s *sketch[K]) purge() {
	minus := counts{s.upperQuartile(func(e *entry[K]) uint64 { return e.flows }),
		s.upperQuartile(func(e *entry[K]) uint64 { return e.bytes })}
	s.off.add(minus)
	kept := s.entries[:0]
	for _, e := range s.entries {
		e.flows -= min(e.flows, minus.flows)
		e.bytes -= min(e.bytes, minus.bytes)
		if e.counts == (counts{}) {
			delete(s.index, e.key)
			continue
		}
		s.index[e.key] = int32(len(kept))
		kept = append(kept, e)
	}
	s.entries = kept
}

// upperQuartile returns a value that a quarter of the entries reach and a quarter at most exceed.
func (s *sketch[K]) upperQuartile(of func(*entry[K]) uint64) uint64 {
	s.order = s.order[:0]
	for i := range s.entries {
		s.order = append(s.order, of(&s.entries[i]))
	}
	slices.Sort(s.order)
	return s.order[len(s.order)*3/4]
}

// merged adds up sketches; off is how much too low any of the counts may be.
func merged[K comparable](sketches []*sketch[K]) (sum map[K]counts, off counts) {
	sum = map[K]counts{}
	for _, s := range sketches {
		off.add(s.off)
		for i := range s.entries {
			e := &s.entries[i]
			c := sum[e.key]
			c.add(e.counts)
			sum[e.key] = c
		}
	}
	return sum, off
}
