package lab

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The loss tests stand on this: no two flows share an original tuple, none a reply tuple, and no original tuple is
// another's reply tuple, so that the kernel takes every one and each record can be told to belong to exactly one.
func TestFloodFlowsAreDistinct(t *testing.T) {
	type tuple struct {
		proto        uint8
		src, dst     netip.Addr
		sport, dport uint16
	}
	const n = 1_200_000
	seen := make(map[tuple]int, 2*n)
	add := func(i int, u tuple) {
		if j, ok := seen[u]; ok {
			t.Fatalf("flows %d and %d share the tuple %v", j, i, u)
		}
		seen[u] = i
	}
	for i := range n {
		f := FlowAt(i)
		add(i, tuple{f.Proto, f.Src, f.Dst, f.SrcPort, f.DstPort})
		add(i, tuple{f.Proto, f.Dst, f.NATSrc, f.DstPort, f.NATPort})
		if j, ok := FlowNumber(f.NATSrc, f.NATPort); j != i || !ok {
			t.Fatalf("FlowNumber(%v, %d) = %d, %v, want %d", f.NATSrc, f.NATPort, j, ok, i)
		}
	}
}

func TestFlowAt(t *testing.T) {
	got := FlowAt(123_457)
	want := FloodFlow{
		Proto: 6, Src: netip.MustParseAddr("10.216.0.2"), Dst: netip.MustParseAddr("198.18.3.58"), DstPort: 443,
		NATSrc: netip.MustParseAddr("203.0.113.2"), SrcPort: 4481, NATPort: 4481,
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
	for _, miss := range []struct {
		addr string
		port uint16
	}{{"203.0.114.2", 4481}, {"203.0.113.2", 1023}, {"203.0.113.2", 61024}, {"2001:db8::1", 4481}} {
		if i, ok := FlowNumber(netip.MustParseAddr(miss.addr), miss.port); ok {
			t.Errorf("FlowNumber(%s, %d) = %d, want none", miss.addr, miss.port, i)
		}
	}
}
