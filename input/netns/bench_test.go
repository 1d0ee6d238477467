package netns

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkParseMounts reads the list of a machine with a thousand namespaces, each of which has its mount twice, as ip netns
// makes them.
func BenchmarkParseMounts(b *testing.B) {
	var text strings.Builder
	for i := range 1000 {
		for range 2 {
			fmt.Fprintf(&text, "%d 42 0:4 net:[%d] /run/netns/tenant%d rw shared:20 - nsfs nsfs rw\n", 100+i, 4026532281+i, i)
		}
	}
	list := []byte(text.String())
	b.ReportAllocs()
	for b.Loop() {
		if n := len(parseMounts(list)); n != 1000 {
			b.Fatal(n)
		}
	}
}
