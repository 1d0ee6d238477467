package live

import (
	"math/bits"
	"math/rand/v2"
	"slices"

	"github.com/ctlogd/ctlogd/flow"
)

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
//
// It costs some ten nanoseconds a key, a third of what a map does: four keys are counted for each flow that ends.
type sketch struct {
	seed    [2]uint64
	slots   [2 * sketchSize]uint16 // 1 + the index of an entry whose hash led here, or before; 0: free
	entries []entry
	off     counts
	order   []uint64 // for purge
}

// A key is an address, or a protocol and its port (portKey).
type key = flow.Addr

type entry struct {
	key
	counts
}

func newSketch() *sketch {
	// The seed keeps those who choose addresses from choosing ones that meet in one place.
	return &sketch{seed: [2]uint64{rand.Uint64(), rand.Uint64()}, entries: make([]entry, 0, sketchSize)}
}

func (s *sketch) reset() {
	clear(s.slots[:])
	s.entries, s.off = s.entries[:0], counts{}
}

// find returns the slot of a key, or the free one where it would be.
func (s *sketch) find(k *key) (slot *uint16) {
	a, b := k.Words()
	hi, lo := bits.Mul64(a^s.seed[0], b^s.seed[1])
	for i := (hi ^ lo) % uint64(len(s.slots)); ; i = (i + 1) % uint64(len(s.slots)) {
		if n := s.slots[i]; n == 0 || s.entries[n-1].key == *k {
			return &s.slots[i]
		}
	}
}

func (s *sketch) add(k *key, c counts) {
	slot := s.find(k)
	if *slot == 0 {
		if len(s.entries) == sketchSize {
			s.purge()
			slot = s.find(k)
		}
		s.entries = append(s.entries, entry{key: *k})
		*slot = uint16(len(s.entries))
	}
	s.entries[*slot-1].add(c)
}

// get returns what was counted for a key, off too little at most.
func (s *sketch) get(k *key) counts {
	if slot := s.find(k); *slot != 0 {
		return s.entries[*slot-1].counts
	}
	return counts{}
}

// purge makes room. Flows and bytes are subtracted from on their own; a key goes when it has neither left.
func (s *sketch) purge() {
	minus := counts{s.upperQuartile(func(e *entry) uint64 { return e.flows }),
		s.upperQuartile(func(e *entry) uint64 { return e.bytes })}
	s.off.add(minus)
	kept := s.entries[:0]
	for _, e := range s.entries {
		e.flows -= min(e.flows, minus.flows)
		e.bytes -= min(e.bytes, minus.bytes)
		if e.counts != (counts{}) {
			kept = append(kept, e)
		}
	}
	s.entries = kept[:0]
	clear(s.slots[:])
	for i := range kept {
		slot := s.find(&kept[i].key)
		s.entries = kept[:i+1]
		*slot = uint16(i + 1)
	}
}

// upperQuartile returns a value that a quarter of the entries reach and a quarter at most exceed.
func (s *sketch) upperQuartile(of func(*entry) uint64) uint64 {
	s.order = s.order[:0]
	for i := range s.entries {
		s.order = append(s.order, of(&s.entries[i]))
	}
	slices.Sort(s.order)
	return s.order[len(s.order)*3/4]
}

// merged adds up sketches; off is how much too low any of the counts may be.
func merged(sketches []*sketch) (sum map[key]counts, off counts) {
	sum = map[key]counts{}
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
