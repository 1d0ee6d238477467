package filter

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

func addr(s string) flow.Addr { return flow.AddrFrom(netip.MustParseAddr(s)) }

const second = int64(time.Second)

// plain is a TCP flow over IPv4 without NAT, about which everything is known that the kernel can say.
func plain() *flow.Record {
	return &flow.Record{
		Event: flow.EventDestroy,
		Has:   flow.HasOrig | flow.HasReply | flow.HasStatus | flow.HasMark | flow.HasCounters,
		Orig: flow.Tuple{
			Src: addr("100.64.1.7"), Dst: addr("198.51.100.80"), SrcPort: 40000, DstPort: 443, Proto: flow.TCP,
		},
		Reply: flow.Tuple{
			Src: addr("198.51.100.80"), Dst: addr("100.64.1.7"), SrcPort: 443, DstPort: 40000, Proto: flow.TCP,
		},
		OrigCounters:  flow.Counters{Packets: 4, Bytes: 400},
		ReplyCounters: flow.Counters{Packets: 6, Bytes: 9600},
		Status:        flow.StatusSeenReply | flow.StatusAssured | flow.StatusConfirmed,
		Mark:          0x110,
		Start:         1000 * second,
		Stop:          1030 * second,
	}
}

// with returns plain after the changes.
func with(changes ...func(*flow.Record)) *flow.Record {
	r := plain()
	for _, change := range changes {
		change(r)
	}
	return r
}

func snat(r *flow.Record) { r.Reply.Dst, r.Reply.DstPort = addr("203.0.113.5"), 61000 }
func dnat(r *flow.Record) { r.Reply.Src, r.Reply.SrcPort = addr("10.0.0.80"), 8443 }
func v6(r *flow.Record) {
	r.Orig.V6, r.Reply.V6 = true, true
	r.Orig.Src, r.Orig.Dst = addr("2001:db8::7"), addr("2001:db8:1::80")
	r.Reply.Src, r.Reply.Dst = r.Orig.Dst, r.Orig.Src
}
func icmp(r *flow.Record) {
	r.Orig.Proto, r.Orig.SrcPort, r.Orig.DstPort = flow.ICMP, 777, 0x0800
	r.Reply.Proto, r.Reply.SrcPort, r.Reply.DstPort = flow.ICMP, 777, 0
}
func lacks(h flow.Has) func(*flow.Record) { return func(r *flow.Record) { r.Has &^= h } }
func event(e flow.Event) func(*flow.Record) {
	return func(r *flow.Record) { r.Event = e }
}
func helper(name string) func(*flow.Record) {
	return func(r *flow.Record) { r.Extra = &flow.Extra{Helper: flow.NameFrom(name)} }
}
func helperUnknown(r *flow.Record) { r.Has |= flow.HelperUnknown }

// expectation is what an FTP helper expects: any source port from a known source.
func expectation(r *flow.Record) {
	*r = flow.Record{
		Event: flow.EventExpectNew,
		Has:   flow.HasOrig | flow.HasReply,
		Orig:  flow.Tuple{Src: addr("198.51.100.80"), Dst: addr("100.64.1.7"), DstPort: 5000, Proto: flow.TCP},
		Reply: flow.Tuple{Src: addr("255.255.255.255"), Dst: addr("255.255.255.255"), DstPort: 0xffff, Proto: flow.TCP},
		Extra: &flow.Extra{Helper: flow.NameFrom("ftp")},
	}
}
func anySource(r *flow.Record) { r.Orig.Src, r.Reply.Src = addr("0.0.0.0"), addr("0.0.0.0") }
func labels(bits ...int) func(*flow.Record) {
	return func(r *flow.Record) {
		r.Extra = &flow.Extra{HasLabels: true}
		for _, b := range bits {
			word := r.Extra.Labels[b/64*8:][:8]
			binary.NativeEndian.PutUint64(word, binary.NativeEndian.Uint64(word)|1<<(b%64))
		}
	}
}
func netns(id int32, name string) func(*flow.Record) {
	return func(r *flow.Record) { r.Netns = flow.HoldNetns(id, name) }
}

func zone(id uint16) func(*flow.Record) {
	return func(r *flow.Record) { r.Zone, r.Has = id, r.Has|flow.HasZone }
}
func origZone(id uint16) func(*flow.Record) {
	return func(r *flow.Record) { r.Orig.Zone, r.Orig.HasZone = id, true }
}
func replyZone(id uint16) func(*flow.Record) {
	return func(r *flow.Record) { r.Reply.Zone, r.Reply.HasZone = id, true }
}

// Every matcher, as match and as not. A matcher that says yes holds as match alone, one that says no as not alone, one
// on an unknown value as neither.
func TestMatchers(t *testing.T) {
	const no, yes, unknown = verdictNo, verdictYes, verdictUnknown
	tests := []struct {
		match string
		rec   *flow.Record
		want  verdict
	}{
		{`event: destroy`, plain(), yes},
		{`event: [new, update, open]`, plain(), no},
		{`event: [new, update, open]`, with(event(flow.EventOpen)), yes},
		{`event: expect_new`, with(expectation), yes},
		{`event: expect_destroy`, with(expectation), no},

		{`nat: none`, plain(), yes},
		{`nat: [snat, dnat, both]`, plain(), no},
		{`nat: snat`, with(snat), yes},
		{`nat: dnat`, with(snat), no},
		{`nat: dnat`, with(dnat), yes},
		{`nat: both`, with(snat, dnat), yes},
		{`nat: [snat, dnat]`, with(snat, dnat), no},
		{`nat: [none, snat]`, with(lacks(flow.HasReply)), unknown},
		{`nat: none`, with(expectation), unknown},

		{`proto: tcp`, plain(), yes},
		{`proto: 6`, plain(), yes},
		{`proto: [udp, 132, "255"]`, plain(), no},
		{`proto: [icmp, icmpv6]`, with(icmp), yes},
		{`proto: tcp`, with(expectation), yes},
		{`proto: tcp`, with(lacks(flow.HasOrig)), unknown},

		{`family: ipv4`, plain(), yes},
		{`family: ipv6`, plain(), no},
		{`family: ipv6`, with(v6), yes},
		{`family: [ipv4, ipv6]`, with(v6), yes},
		{`family: ipv4`, with(lacks(flow.HasOrig)), unknown},

		{`helper: none`, plain(), yes},
		{`helper: none`, with(labels(1)), yes},
		{`helper: ftp`, plain(), no},
		{`helper: ftp`, with(labels(1)), no},
		{`helper: [sip, ftp]`, with(helper("ftp")), yes},
		{`helper: [sip, none]`, with(helper("ftp")), no},
		{`helper: ftp`, with(helper("ftp-2121")), no},
		{`helper: ftp`, with(expectation), yes},
		{`helper: none`, with(helperUnknown), unknown},
		{`helper: [ftp, none]`, with(helper("ftp"), helperUnknown), unknown},

		{`src: 100.64.0.0/10`, plain(), yes},
		{`src: [192.0.2.0/24, 100.64.1.7]`, plain(), yes},
		{`src: [192.0.2.0/24, 100.64.1.6, 100.64.1.8]`, plain(), no},
		{`src: 0.0.0.0/0`, plain(), yes},
		{`src: "::/0"`, plain(), no},
		{`src: 0.0.0.0/0`, with(v6), no},
		{`src: "::/0"`, with(v6), yes},
		{`src: 2001:db8::/64`, with(v6), yes},
		{`src: [2001:db8::6, "2001:db8::8/125"]`, with(v6), no},
		{`src: 2001:db8::7`, with(v6), yes},
		{`src: 0.0.0.0/0`, with(lacks(flow.HasOrig)), unknown},
		{`src: 0.0.0.0/0`, with(func(r *flow.Record) { r.Orig.Src = flow.Addr{} }), unknown},
		{`src: 198.51.100.80`, with(expectation), yes},
		{`src: 0.0.0.0/0`, with(expectation, anySource), unknown},
		{`dst: 198.51.100.0/24`, plain(), yes},
		{`dst: 100.64.0.0/10`, plain(), no},
		{`dst: 2001:db8:1::/48`, with(v6), yes},
		{`dst: 100.64.0.0/10`, with(expectation, anySource), yes},
		{`dst: 198.51.100.0/24`, with(lacks(flow.HasOrig)), unknown},

		{`nat_src: 203.0.113.0/24`, with(snat), yes},
		{`nat_src: 100.64.0.0/10`, with(snat), no},
		{`nat_src: 100.64.0.0/10`, plain(), unknown},
		{`nat_src: 100.64.0.0/10`, with(dnat), unknown},
		{`nat_src: 0.0.0.0/0`, with(expectation), unknown},
		{`nat_dst: 10.0.0.80`, with(dnat), yes},
		{`nat_dst: 198.51.100.80`, with(dnat), no},
		{`nat_dst: 0.0.0.0/0`, with(snat), unknown},

		{`src_port: 40000`, plain(), yes},
		{`src_port: [1-39999, 40001-65535]`, plain(), no},
		{`src_port: 777`, with(icmp), unknown},
		{`src_port: 0-65535`, with(expectation), unknown},
		{`src_port: 0`, with(expectation, func(r *flow.Record) { r.Reply.SrcPort = 0xffff }), yes},
		{`src_port: 40000`, with(lacks(flow.HasOrig)), unknown},
		{`dst_port: 443`, plain(), yes},
		{`dst_port: [80, 400-450]`, plain(), yes},
		{`dst_port: 444-65535`, plain(), no},
		{`dst_port: 5000`, with(expectation), yes},
		{`dst_port: 2048`, with(icmp), unknown},
		{`nat_src_port: 61000`, with(snat), yes},
		{`nat_src_port: 40000`, with(snat), no},
		{`nat_src_port: 40000`, plain(), unknown},
		{`nat_src_port: 777`, with(icmp, func(r *flow.Record) { r.Reply.SrcPort = 778 }), unknown},
		{`nat_dst_port: 8443`, with(dnat), yes},
		{`nat_dst_port: 443`, with(dnat), no},
		{`nat_dst_port: 443`, with(snat), unknown},

		{`host: 100.64.1.7`, plain(), yes},
		{`host: 198.51.100.80`, plain(), yes},
		{`host: 203.0.113.5`, plain(), no},
		{`host: 203.0.113.5`, with(snat), yes},
		{`host: 100.64.1.7`, with(snat), yes},
		{`host: 10.0.0.80`, with(snat, dnat), yes},
		{`host: [10.0.0.81, "2001:db8::7"]`, with(snat, dnat), no},
		{`host: 2001:db8::7`, with(v6), yes},
		{`host: 100.64.1.7`, with(lacks(flow.HasReply)), yes},
		{`host: 203.0.113.5`, with(lacks(flow.HasReply)), unknown}, // it may have been translated
		{`host: 100.64.1.7`, with(lacks(flow.HasOrig)), unknown},
		{`host: 100.64.1.7`, with(expectation, anySource), yes},
		{`host: 203.0.113.5`, with(expectation), unknown},
		{`net: 203.0.113.0/24`, with(snat), yes},
		{`net: [10.0.0.0/8, 192.0.2.1]`, with(dnat), yes},
		{`net: 10.0.0.0/8`, with(snat), no},
		{`net: 0.0.0.0/0`, with(v6), no},
		{`port: 443`, plain(), yes},
		{`port: 40000`, plain(), yes},
		{`port: [1-442, 444-39999, 40001-65535]`, plain(), no},
		{`port: 61000`, plain(), no},
		{`port: 61000`, with(snat), yes},
		{`port: 8443`, with(dnat), yes},
		{`port: 61000`, with(dnat), no},
		{`port: 777`, with(icmp), unknown},
		{`port: 61000`, with(lacks(flow.HasReply)), unknown},
		{`port: 5000`, with(expectation), yes},
		{`port: 5001`, with(expectation), unknown},

		{`netns: own`, plain(), yes},
		{`netns: blue`, plain(), no},
		{`netns: [red, blue]`, with(netns(3, "blue")), yes},
		{`netns: own`, with(netns(3, "blue")), no},
		{`netns: "3"`, with(netns(3, "blue")), no},
		{`netns: "4"`, with(netns(4, "")), yes},
		{`netns: [own, blue]`, with(netns(-1, "")), unknown},
		{`zone: 0`, plain(), yes},
		{`zone: 5`, plain(), no},
		{`zone: [3, 5-7]`, with(zone(6)), yes},
		{`zone: 0`, with(zone(6)), no},
		{`zone: 6`, with(origZone(6)), yes},
		{`zone: 0`, with(origZone(6)), no},
		{`zone: 7`, with(origZone(6), replyZone(7)), yes},
		{`zone: 8`, with(origZone(6), replyZone(7)), no},
		{`zone: 0-65535`, with(expectation), unknown},

		{`mark: 0x110`, plain(), yes},
		{`mark: 272`, plain(), yes},
		{`mark: 0x10`, plain(), no},
		{`mark: 0x10/0xff`, plain(), yes},
		{`mark: [1, 0x20/0xf0]`, plain(), no},
		{`mark: 0`, with(lacks(flow.HasMark)), yes},
		{`mark: 0x100/0x100`, with(lacks(flow.HasMark)), no},
		{`mark: 0`, with(expectation), unknown},

		{`labels: 3`, with(labels(3)), yes},
		{`labels: [1, 127]`, with(labels(64, 127)), yes},
		{`labels: [1, 65]`, with(labels(0, 64)), no},
		{`labels: 1`, with(labels()), no},
		{`labels: 1`, with(helper("ftp")), unknown},
		{`labels: 1`, plain(), unknown},

		{`status: assured`, plain(), yes},
		{`status: [assured, confirmed]`, plain(), yes},
		{`status: [assured, offload]`, plain(), no},
		{`status: assured`, with(lacks(flow.HasStatus)), unknown},

		{`min_bytes: 10000`, plain(), yes},
		{`min_bytes: 10001`, plain(), no},
		{`min_bytes: 10KiB`, plain(), no},
		{`min_bytes: 1GiB`, with(func(r *flow.Record) { r.OrigCounters.Bytes = math.MaxUint64 }), yes},
		{`min_bytes: 0`, with(lacks(flow.HasCounters)), unknown},
		{`min_packets: 10`, plain(), yes},
		{`min_packets: 11`, plain(), no},
		{`min_packets: 0`, with(lacks(flow.HasCounters)), unknown},
		{`min_duration: 30s`, plain(), yes},
		{`min_duration: 30001ms`, plain(), no},
		{`min_duration: 0s`, with(func(r *flow.Record) { r.Start = 0 }), unknown},
		{`min_duration: 0s`, with(func(r *flow.Record) { r.Stop = 0 }), unknown},
		{`min_duration: 0s`, with(func(r *flow.Record) { r.Stop = r.Start - 1 }), unknown},

		{`{proto: tcp, dst_port: 443}`, plain(), yes},
	}
	for _, tt := range tests {
		if tt.match[0] != '{' {
			tt.match = "{" + tt.match + "}"
		}
		var got verdict
		if !mustCompile(t, "[{action: drop, match: "+tt.match+"}]")(tt.rec) {
			got |= verdictYes
		}
		if !mustCompile(t, "[{action: drop, not: "+tt.match+"}]")(tt.rec) {
			got |= verdictNo
		}
		if got == 0 {
			got = verdictUnknown
		}
		if got != tt.want {
			t.Errorf("%s on %+v: got %d, want %d", tt.match, *tt.rec, got, tt.want)
		}
	}
}

// The sets of ports and addresses against the definition: some range or prefix of the list holds the value.
func TestSetsAgainstLists(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var ranges []numRange
		for range rng.IntN(30) {
			from := rng.IntN(1000)
			ranges = append(ranges, numRange{uint16(from), uint16(from + rng.IntN(40))})
		}
		ranges = append(ranges, numRange{65535, 65535})
		list := append([]numRange(nil), ranges...)
		set := newNumSet(ranges)
		for _, v := range append(rng.Perm(1100), 65534, 65535) {
			want := false
			for _, r := range list {
				want = want || int(r.from) <= v && v <= int(r.to)
			}
			if got := set.has(uint16(v)); got != want {
				t.Fatalf("%v has %d: got %t, want %t", list, v, got, want)
			}
		}
	}

	// Few distinct bits, so that prefixes nest and touch, around the border between the two words and at both ends.
	randomAddr := func() netip.Addr {
		if rng.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{0: byte(rng.IntN(4) << 6), 3: byte(rng.IntN(4))})
		}
		return netip.AddrFrom16([16]byte{0: byte(rng.IntN(2) * 255), 7: byte(rng.IntN(4)), 8: byte(rng.IntN(4) << 6),
			15: byte(rng.IntN(4))})
	}
	for range 1000 {
		var prefixes []netip.Prefix
		for range rng.IntN(12) {
			a := randomAddr()
			p, err := a.Prefix(rng.IntN(a.BitLen() + 1))
			if err != nil {
				t.Fatal(err)
			}
			prefixes = append(prefixes, p)
		}
		set := newAddrSet(prefixes)
		for range 50 {
			a, want := randomAddr(), false
			for _, p := range prefixes {
				want = want || p.Contains(a)
			}
			fa := flow.AddrFrom(a)
			if got := set.has(&fa, a.Is6()); got != want {
				t.Fatalf("%v has %v: got %t, want %t", prefixes, a, got, want)
			}
		}
	}
}

func BenchmarkAddrSet(b *testing.B) {
	for _, n := range []int{1, 8, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			var prefixes []netip.Prefix
			for range n {
				a := netip.AddrFrom4([4]byte{byte(rng.IntN(224)), byte(rng.IntN(256)), byte(rng.IntN(256))})
				prefixes = append(prefixes, netip.PrefixFrom(a, 24))
			}
			set := newAddrSet(prefixes)
			var addrs [1024]flow.Addr
			for i := range addrs {
				v := rng.Uint32()
				addrs[i] = flow.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				set.has(&addrs[i%len(addrs)], false)
			}
		})
	}
}
