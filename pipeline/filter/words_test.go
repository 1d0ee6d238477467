package filter

import (
	"cmp"
	"fmt"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

func TestWords(t *testing.T) {
	names := "event, nat, proto, family, helper, src, dst, nat_src, nat_dst, host, net, src_port, dst_port, nat_src_port, nat_dst_port, port, " +
		"subscriber, netns, zone, mark, labels, status, min_bytes, min_packets or min_duration"
	for _, tt := range []struct{ words, err string }{
		{"nat=snat,dnat helper=ftp,none dst_port=443,8080-8090 not:src=10.0.0.0/8", ""},
		{"min_bytes=1GiB min_packets=5 min_duration=30s src=::1,192.0.2.1 mark=0x10/0xff", ""},
		{"dst_port=1 dst_port=2 not:dst_port=3", ""},
		{"host=192.0.2.1 net=10.0.0.0/8 not:port=443", ""},
		{"host=10.0.0.0/8", `"host=10.0.0.0/8": 10.0.0.0/8 is a network; write net: 10.0.0.0/8, or one address`},
		{"ftp", `"ftp" is no WORD=VALUE; write one such as dst_port=443 or not:src=10.0.0.0/8`},
		{"nta=snat", `"nta=snat": unknown word "nta"; use ` + names + `, or one of them behind not: for none of these`},
		{"not:not:nat=snat", `"not:not:nat=snat": unknown word "not:nat"; use ` + names + `, or one of them behind not: for none of these`},
		{"nat=full", `"nat=full": unknown NAT type "full"; use none, snat, dnat or both`},
		{"proto=tcp not:src=10.0.0.1/8", `"not:src=10.0.0.1/8": 10.0.0.1/8 is not a network, bits behind its length are set; ` +
			`write 10.0.0.0/8 or 10.0.0.1`},
		{"dst_port=", `"dst_port=": "" is not a port; write a number from 0 to 65535 or a range such as 1024-65535`},
		{"min_packets=1 min_packets=2", `"min_packets=2": given twice`},
		{"min_packets=-1", `"min_packets=-1": "-1" is not a whole number`},
		{"min_duration=long", `"min_duration=long": "long" is not a duration such as 500ms, 30s, 1h30m or 7d`},
		{"min_duration=-1s", `"min_duration=-1s": negative duration; write one such as 500ms, 30s or 1h`},
	} {
		_, err := ParseWords(strings.Fields(tt.words))
		if got := fmt.Sprint(err); got != cmp.Or(tt.err, "<nil>") {
			t.Errorf("%s: %s, want %s", tt.words, got, tt.err)
		}
	}
}

// Words say what a rule with the same matchers says.
func TestWordsMatchAsRulesDo(t *testing.T) {
	f, err := ParseWords([]string{"proto=tcp,udp", "dst_port=443", "dst_port=8080-8090", "not:min_bytes=1KiB"})
	if err != nil {
		t.Fatal(err)
	}
	rec := func(proto flow.Proto, port uint16, bytes uint64, has flow.Has) *flow.Record {
		return &flow.Record{Event: flow.EventDestroy, Has: flow.HasOrig | has, Orig: flow.Tuple{Proto: proto, DstPort: port},
			OrigCounters: flow.Counters{Bytes: bytes}}
	}
	for i, tt := range []struct {
		r    *flow.Record
		want bool
	}{
		{rec(flow.TCP, 443, 10, flow.HasCounters), true},
		{rec(flow.UDP, 8085, 1023, flow.HasCounters), true},
		{rec(flow.TCP, 443, 1024, flow.HasCounters), false},
		{rec(flow.TCP, 443, 10, 0), false}, // not known
		{rec(flow.TCP, 80, 10, flow.HasCounters), false},
		{rec(flow.SCTP, 443, 10, flow.HasCounters), false},
		{&flow.Record{Event: flow.EventGap}, true},
	} {
		if got := f(tt.r); got != tt.want {
			t.Errorf("record %d: %v, want %v", i, got, tt.want)
		}
	}
	if all, err := ParseWords(nil); all != nil || err != nil {
		t.Errorf("no words: %v, want no filter", err)
	}
}

// Whatever words there are, they are a filter or an error that can be shown.
func FuzzWords(f *testing.F) {
	f.Add("nat=snat", "not:src=10.0.0.0/8")
	f.Add("helper=\x1b[31m", "min_bytes=1GiB")
	f.Fuzz(func(t *testing.T, a, b string) {
		filter, err := ParseWords([]string{a, b})
		if (filter == nil) != (err != nil) {
			t.Fatalf("%q %q: filter %v, %v", a, b, filter != nil, err)
		}
		if err != nil {
			if text := err.Error(); strings.ContainsAny(text, "\x1b\x07\n\r") {
				t.Errorf("the error has control characters: %q", text)
			}
			return
		}
		filter(&flow.Record{Event: flow.EventDestroy})
	})
}
