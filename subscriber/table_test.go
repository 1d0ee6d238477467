package subscriber

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/gaissmai/bart"

	"github.com/ctlogd/ctlogd/flow"
)

// pool returns n prefixes of an operator of some kind.
func pool(kind string, n int) []netip.Prefix {
	rng := rand.New(rand.NewPCG(1, 2))
	out := make([]netip.Prefix, n)
	for i := range out {
		switch kind {
		case "cgn": // every second address of a shared range
			out[i] = netip.PrefixFrom(v4(0x64400000+uint32(i)*2+rng.Uint32N(2)), 32)
		case "scattered":
			out[i] = netip.PrefixFrom(v4(rng.Uint32()), 32)
		case "delegated": // IPv6 prefixes of 56 bits
			var a [16]byte
			binary.BigEndian.PutUint32(a[:], 0x20010db8)
			binary.BigEndian.PutUint32(a[3:], uint32(i)*2)
			out[i] = netip.PrefixFrom(netip.AddrFrom16(a), 56).Masked()
		}
	}
	return out
}

func v4(a uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
}

func words(a netip.Addr) (hi, lo uint64) {
	b := flow.AddrFrom(a)
	return b.Words()
}

// fill returns a table in which each prefix is a subscriber's.
func fill(prefixes []netip.Prefix) *table {
	t := newTable()
	const chunk = 1 << 16
	edits := make([]edit, 0, chunk)
	for i, p := range prefixes {
		edits = append(edits, edit{prefix: prefixOf(p), from: 1, until: forever, id: fmt.Sprintf("02:00:5e:%02x:%02x:%02x", byte(i>>16), byte(i>>8), byte(i))})
		if len(edits) == chunk {
			t = t.with(edits, 0, func() {})
			edits = edits[:0]
		}
	}
	return t.with(edits, 0, func() {})
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemory holds a million leases to 100 MiB; without CTLOGD_LONG, a tenth of each.
func TestMemory(t *testing.T) {
	n := 100_000
	if os.Getenv("CTLOGD_LONG") != "" {
		n = 1_000_000
	}
	for _, kind := range []string{"cgn", "delegated"} {
		prefixes := pool(kind, n)
		before := heap()
		table := fill(prefixes)
		used := heap() - before
		t.Logf("%s: %d leases take %.1f MiB in %d pages", kind, table.leases, float64(used)/(1<<20), len(table.pages))
		if most := uint64(n/10_000) << 20; used > most {
			t.Errorf("%s: %d bytes, want at most %d", kind, used, most)
		}
		runtime.KeepAlive(prefixes)
		runtime.KeepAlive(table)
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, kind := range []string{"cgn", "scattered", "delegated"} {
		prefixes := pool(kind, 1_000_000)
		rng := rand.New(rand.NewPCG(3, 4))
		asked := make([]netip.Addr, 1<<16)
		for i := range asked {
			asked[i] = prefixes[rng.IntN(len(prefixes))].Addr().Next()
			if kind != "delegated" {
				asked[i] = asked[i].Prev()
			}
		}
		t := fill(prefixes)
		b.Run(kind, func(b *testing.B) {
			i := 0
			for b.Loop() {
				hi, lo := words(asked[i&(len(asked)-1)])
				if _, s := t.at(hi, lo, 5); s == nil {
					b.Fatal("not found")
				}
				i++
			}
		})
		other := new(bart.Table[uint32])
		for i, p := range prefixes {
			other.Insert(p, uint32(i))
		}
		b.Run(kind+"/bart", func(b *testing.B) {
			i := 0
			for b.Loop() {
				if _, ok := other.Lookup(asked[i&(len(asked)-1)]); !ok {
					b.Fatal("not found")
				}
				i++
			}
		})
	}
}
