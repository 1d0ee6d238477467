package filter

import (
	"os"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

// TestPairs holds the rule of docs/pairs.md to what the flows of the other machine of a failover pair look like.
func TestPairs(t *testing.T) {
	text, err := os.ReadFile("../../docs/pairs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rule, _ := strings.Cut(string(text), "```yaml\nfilter:\n")
	rule, _, ok := strings.Cut(rule, "```")
	if !ok {
		t.Fatal("docs/pairs.md has no rule")
	}
	keeps := mustCompile(t, rule)
	none := func(r *flow.Record) { r.OrigCounters, r.ReplyCounters = flow.Counters{}, flow.Counters{} }
	for _, tt := range []struct {
		name string
		rec  *flow.Record
		want bool
	}{
		{"a flow of this machine", plain(), true},
		{"one packet", with(none, func(r *flow.Record) { r.OrigCounters.Packets = 1 }), true},
		{"a reply alone, after a failover", with(none, func(r *flow.Record) { r.ReplyCounters.Packets = 1 }), true},
		{"a flow of the other machine", with(none), false},
		{"the same, open", with(none, event(flow.EventOpen)), false},
		{"a new flow", with(none, lacks(flow.HasCounters), event(flow.EventNew)), true},
		{"without counters", with(none, lacks(flow.HasCounters)), true},
	} {
		if got := keeps(tt.rec); got != tt.want {
			t.Errorf("%s: kept %v, want %v", tt.name, got, tt.want)
		}
	}
}
