package filter

import (
	"bytes"
	"os"
	"regexp"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/flow"
)

// TestRecipesOfOwnTraffic: the documentation's rules that leave the host's own traffic out drop that, and nothing that
// the host forwards.
func TestRecipesOfOwnTraffic(t *testing.T) {
	doc, err := os.ReadFile("../../docs/filter.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := bytes.Cut(doc, []byte("### The host's own traffic\n"))
	if !ok {
		t.Fatal("no such section")
	}
	section, _, _ = bytes.Cut(section, []byte("\n## "))
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(section, -1)
	const host, far, customer, management = "192.0.2.1", "203.0.113.80", "100.64.1.7", "198.51.100.9"
	between := func(proto flow.Proto, src, dst string, port uint16) *flow.Record {
		r := plain()
		r.Orig.Proto, r.Reply.Proto = proto, proto
		r.Orig.Src, r.Orig.Dst, r.Orig.DstPort = addr(src), addr(dst), port
		r.Reply.Src, r.Reply.Dst, r.Reply.SrcPort = addr(dst), addr(src), port
		return r
	}
	forwarded := between(flow.TCP, far, host, 9469) // a port that leads to a customer
	forwarded.Reply.Src = addr(customer)
	want := [][]struct { // what each block drops
		name string
		rec  *flow.Record
	}{
		{{"a scrape", between(flow.TCP, management, host, 9469)}},
		{{"Kafka", between(flow.TCP, host, far, 9092)}, {"conntrackd", between(flow.UDP, far, host, 3780)}},
		{{"ssh", between(flow.TCP, management, host, 22)}, {"DNS", between(flow.UDP, host, far, 53)},
			{"BGP", between(flow.TCP, far, host, 179)}},
	}
	if len(blocks) != len(want) {
		t.Fatalf("%d recipes, want %d", len(blocks), len(want))
	}
	for i, b := range blocks {
		var c struct{ Filter Config }
		if err := yaml.Unmarshal(b[1], &c); err != nil {
			t.Fatal(err)
		}
		accept := c.Filter.Compile()
		for _, w := range want[i] {
			if accept(w.rec) {
				t.Errorf("%s is kept by\n%s", w.name, b[1])
			}
		}
		for name, r := range map[string]*flow.Record{
			"a customer's web": between(flow.TCP, customer, far, 443), "a customer's DNS": between(flow.UDP, customer, far, 53),
			"a customer's Kafka": between(flow.TCP, customer, far, 9092), "a customer's ssh": between(flow.TCP, customer, far, 22),
			"ssh from elsewhere": between(flow.TCP, far, host, 22), "a forwarded port": forwarded,
		} {
			if !accept(r) {
				t.Errorf("%s is dropped by\n%s", name, b[1])
			}
		}
	}
}
