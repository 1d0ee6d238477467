package live

import (
	"math/rand/v2"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

// What a sketch says is exact while its keys fit, and within its bound whatever comes; the bound is what is promised.
func TestSketchBound(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(rng, 1.1, 1, 1<<20)
	for name, next := range map[string]func(i int) uint32{
		"fits":            func(i int) uint32 { return uint32(i % sketchSize) },
		"each key once":   func(i int) uint32 { return uint32(i) },
		"round and round": func(i int) uint32 { return uint32(i % (sketchSize + 1)) },
		"few large, many small": func(i int) uint32 {
			if i%10 == 0 {
				return uint32(i % 7)
			}
			return rng.Uint32()
		},
		"zipf":               func(int) uint32 { return uint32(zipf.Uint64()) },
		"large, then others": func(i int) uint32 { return uint32(max(i-50_000, 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			s, truth, total := newSketch(), map[uint32]counts{}, counts{}
			for i := range 200_000 {
				n, c := next(i), counts{1, uint64(rng.IntN(1500))}
				k := numbered(n)
				s.add(&k, c)
				sum := truth[n]
				sum.add(c)
				truth[n] = sum
				total.add(c)
			}
			if len(s.entries) > sketchSize {
				t.Errorf("%d entries", len(s.entries))
			}
			if len(truth) <= sketchSize && s.off != (counts{}) {
				t.Errorf("all keys fit, and counts may be %v too low", s.off)
			}
			if s.off.flows > total.flows*4/sketchSize || s.off.bytes > total.bytes*4/sketchSize {
				t.Errorf("off by %v, which is more than 4/%d of %v", s.off, sketchSize, total)
			}
			for n, want := range truth {
				k := numbered(n)
				got := s.get(&k)
				if got.flows > want.flows || got.bytes > want.bytes ||
					got.flows+s.off.flows < want.flows || got.bytes+s.off.bytes < want.bytes {
					t.Fatalf("key %d: %v, truly %v, said to be off by %v at most", n, got, want, s.off)
				}
			}
		})
	}
}

// numbered is a key for each number, the address 0.0.0.0 and up.
func numbered(n uint32) key {
	return flow.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func BenchmarkSketch(b *testing.B) {
	for name, keys := range map[string]uint32{"251 keys": 251, "each key once": 1 << 31} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			s := newSketch()
			for i := range uint32(b.N) {
				k := numbered(i % keys)
				s.add(&k, counts{1, 100})
			}
		})
	}
}
