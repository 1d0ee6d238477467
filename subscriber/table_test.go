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

// BenchmarkLookup reports the median of what a lookup costs, of 256 at a time, each of a lease chosen at random; and with bart.
func BenchmarkLookup(b *testing.B) {
	for _, kind := range []string{"cgn", "scattered", "delegated"} {
		prefixes := pool(kind, 1_000_000)
		rng := rand.New(rand.NewPCG(3, 4))
		asked := make([]netip.Addr, 256)
		measure := func(b *testing.B, lookup func(netip.Addr) bool) {
			for b.Loop() {
				took, best := median(2000, func() {
					for i := range asked {
						asked[i] = prefixes[rng.IntN(len(prefixes))].Addr()
						if kind == "delegated" {
							asked[i] = asked[i].Next()
						}
					}
				}, func() {
					for _, a := range asked {
						if !lookup(a) {
							b.Fatal("not found")
						}
					}
				})
				b.ReportMetric(float64(took.Nanoseconds())/256, "ns/lookup")
				b.ReportMetric(float64(best.Nanoseconds())/256, "best-ns/lookup")
			}
		}
		before := heap()
		t := fill(prefixes)
		ours := heap() - before
		b.Run(kind, func(b *testing.B) {
			measure(b, func(a netip.Addr) bool {
				hi, lo := words(a)
				_, s := t.at(hi, lo, 5)
				return s != nil
			})
			b.ReportMetric(float64(ours)/(1<<20), "MiB")
		})
		before = heap()
		other := new(bart.Table[*lease])
		for i, p := range prefixes {
			other.Insert(p, &lease{1, forever, fmt.Sprintf("02:00:5e:%02x:%02x:%02x", byte(i>>16), byte(i>>8), byte(i)), ""})
		}
		theirs := heap() - before
		b.Run(kind+"/bart", func(b *testing.B) {
			measure(b, func(a netip.Addr) bool {
				l, ok := other.Lookup(a)
				return ok && l.from <= 5 && 5 < l.until
			})
			b.ReportMetric(float64(theirs)/(1<<20), "MiB")
		})
		runtime.KeepAlive(t)
		runtime.KeepAlive(other)
	}
}

// lease is what the table would have at each prefix if it were bart's: the least there is to know, without the past.
type lease struct {
	from, until int64
	id, name    string
}
