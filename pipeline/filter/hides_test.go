package filter

import (
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/flow"
)

// What rules may keep from whoever asks the records about a flow.
func TestHides(t *testing.T) {
	for _, c := range []struct {
		rules     string
		any, tcp  bool
		udp, icmp bool
	}{
		{"[]", false, false, false, false},
		{"[{action: drop, match: {dst_port: 53}}]", true, true, true, true},
		{"[{action: drop, match: {proto: udp, dst_port: 53}}]", true, false, true, false},
		{"[{action: drop, match: {dst_port: 53}, not: {proto: [tcp, udp]}}]", true, false, false, true},
		{"[{action: drop, match: {event: [new, update]}}]", false, false, false, false},
		{"[{action: drop, not: {event: [destroy, open]}}]", false, false, false, false},
		{"[{action: drop, not: {event: destroy}}]", true, true, true, true}, // checkpoints see nobody then
		{"[{action: drop, match: {event: open, proto: udp}}]", true, false, true, false},
		{"[{action: drop, match: {event: [destroy, open]}, not: {min_packets: 1}}]", false, false, false, false},
		{"[{action: drop, not: {min_packets: 2}}]", true, true, true, true},
		{"[{action: accept, match: {proto: tcp}}, {action: drop}]", true, true, true, true},
		{"[{action: accept}, {action: drop}]", false, false, false, false},
	} {
		var rules Config
		if err := yaml.Unmarshal([]byte(c.rules), &rules); err != nil {
			t.Fatal(err)
		}
		rules.Validate(func(field, msg string) { t.Errorf("%s: %s: %s", c.rules, field, msg) })
		got := [4]bool{rules.Hides(0, false), rules.Hides(flow.TCP, true), rules.Hides(flow.UDP, true), rules.Hides(flow.ICMP, true)}
		if want := [4]bool{c.any, c.tcp, c.udp, c.icmp}; got != want {
			t.Errorf("%s: %v, want %v", c.rules, got, want)
		}
	}
}
