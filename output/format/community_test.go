package format

import (
	"fmt"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

// icmp returns what a tuple of ICMP has in place of the destination port.
func icmp(typ, code uint16) uint16 { return typ<<8 | code }

// TestCommunityID has the test vectors of the specification (baseline, seed 0), and each of them the other way round.
func TestCommunityID(t *testing.T) {
	for _, tt := range []struct {
		t    flow.Tuple
		want string
	}{
		{tuple(flow.TCP, "128.232.110.120", 34855, "66.35.250.204", 80), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="},
		{tuple(flow.UDP, "192.168.1.52", 54585, "8.8.8.8", 53), "1:d/FP5EW3wiY1vCndhwleRRKHowQ="},
		{tuple(flow.SCTP, "192.168.170.8", 7, "192.168.170.56", 80), "1:jQgCxbku+pNGw8WPbEc/TS/uTpQ="},
		{tuple(flow.ICMP, "192.168.0.89", 1, "192.168.0.1", icmp(8, 0)), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="},
		{tuple(flow.ICMPv6, "fe80::200:86ff:fe05:80da", 1, "fe80::260:97ff:fe07:69ea", icmp(135, 0)), "1:dGHyGvjMfljg6Bppwm3bg0LO8TY="},
	} {
		p := &tt.t
		got := string(newHasher().append([]byte("x"), p, &p.Src, &p.Dst, p.SrcPort, p.DstPort))
		if got != "x"+tt.want {
			t.Errorf("%v %v -> %v: %s, want x%s", p.Proto, p.SrcAddr(), p.DstAddr(), got, tt.want)
		}
		if p.Proto.IsICMP() {
			continue
		}
		back := string(newHasher().append(nil, p, &p.Dst, &p.Src, p.DstPort, p.SrcPort))
		if back != tt.want {
			t.Errorf("%v %v <- %v: %s, want %s", p.Proto, p.SrcAddr(), p.DstAddr(), back, tt.want)
		}
	}
}

// TestNATCommunityID holds the id of the translated flow to that of the flow as a sensor behind the translation sees it.
func TestNATCommunityID(t *testing.T) {
	for _, tt := range []struct{ orig, reply, outside flow.Tuple }{
		{
			tuple(flow.TCP, "10.64.3.7", 51544, "198.51.100.80", 443), tuple(flow.TCP, "198.51.100.80", 443, "192.0.2.33", 7211),
			tuple(flow.TCP, "192.0.2.33", 7211, "198.51.100.80", 443),
		},
		{
			tuple(flow.UDP, "2001:db8::1", 1, "2001:db8::2", 2), tuple(flow.UDP, "2001:db8::3", 3, "2001:db8::4", 4),
			tuple(flow.UDP, "2001:db8::4", 4, "2001:db8::3", 3),
		},
		{
			tuple(flow.ICMP, "10.64.3.7", 777, "198.51.100.80", icmp(8, 0)), tuple(flow.ICMP, "198.51.100.80", 64110, "192.0.2.33", 0),
			tuple(flow.ICMP, "192.0.2.33", 64110, "198.51.100.80", icmp(8, 0)),
		},
	} {
		r := flow.Record{Event: flow.EventDestroy, Has: flow.HasOrig | flow.HasReply, Orig: tt.orig, Reply: tt.reply}
		out := flow.Record{Event: flow.EventDestroy, Has: flow.HasOrig, Orig: tt.outside}
		if got, want := string(newHasher().translated(nil, &r)), string(newHasher().flow(nil, &out)); got != want {
			t.Errorf("%v: %s, want %s", tt.orig.Proto, got, want)
		}
		if string(newHasher().flow(nil, &r)) == string(newHasher().translated(nil, &r)) {
			t.Errorf("%v: both sides have the same id", tt.orig.Proto)
		}
	}
	e := withCommunity(t)
	plain := flow.Record{Event: flow.EventUpdate, Has: flow.HasOrig | flow.HasReply, Received: 1,
		Orig: tuple(flow.TCP, "10.0.0.1", 1, "10.0.0.2", 2), Reply: tuple(flow.TCP, "10.0.0.2", 2, "10.0.0.1", 1)}
	_, v := parse(t, e.Append(nil, &plain))
	if v["community_id"] == nil || v["nat_community_id"] != nil {
		t.Errorf("without NAT: %s", fmt.Sprint(v))
	}
}
