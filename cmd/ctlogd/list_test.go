package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

// TestExpectation: what the mask leaves open is a star, and a part of an address is told as a prefix.
func TestExpectation(t *testing.T) {
	tuple := func(proto flow.Proto, src string, port uint16, dst string, dstPort uint16) flow.Tuple {
		s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
		return flow.Tuple{Src: flow.AddrFrom(s), Dst: flow.AddrFrom(d), V6: s.Is6(), SrcPort: port, DstPort: dstPort, Proto: proto}
	}
	for _, tt := range []struct {
		tuple, mask flow.Tuple
		extra       *flow.Extra
		want        string
	}{
		{tuple(flow.TCP, "192.0.2.1", 0, "198.51.100.7", 20345), tuple(flow.TCP, "255.255.255.255", 0, "255.255.255.255", 0xffff),
			&flow.Extra{Helper: flow.NameFrom("ftp"), HasMaster: true, Master: tuple(flow.TCP, "10.0.0.7", 4000, "192.0.2.1", 21), Flags: 1},
			"tcp 192.0.2.1:* -> 198.51.100.7:20345 ftp, of tcp 10.0.0.7:4000 -> 192.0.2.1:21, permanent, zone 3, 9 s left"},
		{tuple(flow.UDP, "0.0.0.0", 0, "198.51.100.7", 4000), tuple(flow.UDP, "0.0.0.0", 0, "255.255.255.255", 0xffff), nil,
			"udp *:* -> 198.51.100.7:4000"},
		{tuple(flow.UDP, "192.0.2.0", 53, "198.51.100.7", 4000), tuple(flow.UDP, "255.255.255.0", 0xffff, "255.255.255.255", 0xffff), nil,
			"udp 192.0.2.0/24:53 -> 198.51.100.7:4000"},
		{tuple(flow.UDP, "192.0.2.0", 53, "198.51.100.7", 4000), tuple(flow.UDP, "255.0.255.0", 0xffff, "255.255.255.255", 0xffff), nil,
			"udp 192.0.2.0/255.0.255.0:53 -> 198.51.100.7:4000"},
		{tuple(flow.TCP, "::", 0, "2001:db8::7", 20), tuple(flow.TCP, "::", 0, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0xffff), nil,
			"tcp *:* -> [2001:db8::7]:20"},
		{tuple(flow.GRE, "2001:db8::1", 0, "2001:db8::7", 20), tuple(flow.GRE, "ffff:ffff::", 0, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0xffff), nil,
			"gre 2001:db8::1/32 -> 2001:db8::7"},
	} {
		r := &flow.Record{Event: flow.EventExpectNew, Has: flow.HasOrig | flow.HasReply, Orig: tt.tuple, Reply: tt.mask, Extra: tt.extra}
		if tt.extra != nil {
			r.Has |= flow.HasZone | flow.HasTimeout
			r.Zone, r.Timeout = 3, 9
		}
		if got := expectation(r); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

// TestCountBy: the sums are those of all flows, whatever is shown of them; memory has a bound.
func TestCountBy(t *testing.T) {
	const room = 100
	c := newCounting("mark")
	c.room = room
	for i := range uint32(room + 10) { // ten marks come when there is no room any more
		r := flow.Record{Mark: i, OrigCounters: flow.Counters{Bytes: 1}}
		c.add(&r)
	}
	r := flow.Record{Mark: 7}
	c.add(&r)
	var out bytes.Buffer
	if err := c.print(&out, 1, false); err != nil {
		t.Fatal(err)
	}
	want := "     flows   share            bytes  mark\n" +
		"         2   1.8 %                1  7\n" +
		"       109  98.2 %              109  (others)\n" +
		"       111 100.0 %              110  (all)\n"
	if out.String() != want || len(c.sums) != room {
		t.Errorf("%d values:\n%s", len(c.sums), out.String())
	}
	out.Reset()
	if err := c.print(&out, 1, true); err != nil || out.String() != `{"bytes":1,"flows":2,"mark":"7"}`+"\n" {
		t.Errorf("%s %v", out.String(), err)
	}
}

// TestCountByAllocates: a value that is known costs no memory.
func TestCountByAllocates(t *testing.T) {
	for name := range countable {
		c := newCounting(name)
		r := flow.Record{Has: flow.HasOrig, Orig: flow.Tuple{Proto: flow.TCP, SrcPort: 1, DstPort: 2}, Extra: &flow.Extra{Helper: flow.NameFrom("ftp")}}
		c.add(&r)
		if n := testing.AllocsPerRun(100, func() { c.add(&r) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestListUsage: a wrong command line says what is right.
func TestListUsage(t *testing.T) {
	for args, want := range map[string]string{
		"list --count-by x": "use dst, dst_port, helper, mark, nat, nat_dst, nat_src, netns, proto, src, src_port, state, zone",
		"list src":          "is no WORD=VALUE",
		"list --color red":  "use auto, always or never",
		"list -n -1":        "write a number of lines",
	} {
		var stdout, stderr bytes.Buffer
		if code := run(strings.Fields(args), &stdout, &stderr); code != exitUsage || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: exit status %d: %s", args, code, stderr.String())
		}
	}
}
