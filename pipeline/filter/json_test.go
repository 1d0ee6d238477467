package filter

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEncode: rules come back from JSON as they were, with every matcher; those that keep no flow out are left away.
func TestEncode(t *testing.T) {
	all := mustDecode(t, `[{action: accept, match: {event: destroy, nat: snat, proto: [tcp, 17], family: ipv4, helper: ftp, src: 10.0.0.0/8,
		dst: 192.0.2.1, nat_src: 203.0.113.5, nat_dst: 203.0.113.6, host: 192.0.2.1, net: 10.0.0.0/8, src_port: 1024-65535, dst_port: 53,
		nat_src_port: 1, nat_dst_port: 2, port: 3, subscriber: "<c&17>\u00e9", netns: blue, zone: 5, mark: 0x1/0xff, status: assured,
		min_bytes: 64KiB, min_packets: 2, min_duration: 1m30s}}, {action: drop, not: {proto: udp}}]`)
	text, err := Encode(all, mustDecode(t, "[{action: drop, match: {event: new}}]"), nil, mustDecode(t, "[{action: drop}]"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseLists(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if d := cmp.Diff([]Config{all, {{Action: "drop"}}}, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", text, d)
	}
	if text, err := Encode(nil, mustDecode(t, "[{action: drop, match: {proto: [udp]}}]")); err != nil || string(text) != `[[{"action":"drop","match":{"proto":["udp"]}}]]` {
		t.Errorf("%s, %v", text, err)
	}
	if text, err := Encode(nil, nil); err != nil || text != nil {
		t.Errorf("no rules: %s, %v", text, err)
	}
	for _, bad := range []string{"", "x", "[[{]", `[[{"action":"drop","match":{"colour":"red"}}]]`, `[[{"action":"deny"}]]`, `{"a":1}`} {
		if got, err := ParseLists([]byte(bad)); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}
