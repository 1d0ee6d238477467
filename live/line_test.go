package live

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/flow"
)

func TestLine(t *testing.T) {
	at := time.Date(2026, 11, 21, 12, 3, 7, 412e6, time.UTC).UnixNano()
	tcp := ended("192.168.1.10", "203.0.113.5", "198.51.100.7", 443, 4123, 2310)
	tcp.Stop = at
	named := tcp
	named.Extra = &flow.Extra{Helper: flow.NameFrom("ftp"), HasMaster: true, Master: tcp.Orig}
	news := tcp
	news.Event, news.Has, news.Stamp = flow.EventNew, flow.HasOrig|flow.HasReply, at
	ping := ended("2001:db8::1", "2001:db8::1", "2001:db8::2", 0, 0, 64)
	ping.Stop, ping.Has = at, ping.Has&^flow.HasTCP
	for _, tuple := range []*flow.Tuple{&ping.Orig, &ping.Reply} {
		tuple.Proto, tuple.V6, tuple.SrcPort, tuple.DstPort = flow.ICMPv6, true, 777, 128<<8
	}
	untracked := tcp
	untracked.Has = untracked.Has&^flow.HasTCP | flow.NoPorts
	for _, tuple := range []*flow.Tuple{&untracked.Orig, &untracked.Reply} {
		tuple.Proto, tuple.SrcPort, tuple.DstPort = flow.DCCP, 0, 0
	}
	evil := tcp
	evil.Extra = &flow.Extra{Helper: flow.NameFrom(hostile)}
	missed := missedRecord(1234)
	missed.Received = at
	gap := flow.Record{Event: flow.EventGap, Received: at, Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseDiskFull, Output: "jsonl:/a b"}}}

	both := tcp
	both.Reply.Src, both.Reply.SrcPort = flow.AddrFrom(netip.MustParseAddr("10.0.0.80")), 8443
	const flowLine = "tcp    192.168.1.10:40000    -> 198.51.100.7:443      203.0.113.5:4123                       2310/0 tcp_fin"
	for _, tt := range []struct {
		name string
		r    *flow.Record
		want string
	}{
		{"destroy", &tcp, "12:03:07.412 destroy " + flowLine},
		{"helper and master", &named, "12:03:07.412 destroy " + flowLine + "  ftp, data of 192.168.1.10:40000"},
		{"new", &news, "12:03:07.412 new     tcp    192.168.1.10:40000    -> 198.51.100.7:443      203.0.113.5:4123"},
		{"both translations", &both, "12:03:07.412 destroy tcp    192.168.1.10:40000    -> 198.51.100.7:443      203.0.113.5:4123      " +
			"10.0.0.80:8443          2310/0 tcp_fin"},
		{"ICMPv6", &ping, "12:03:07.412 destroy icmpv6 2001:db8::1 id 777    -> 2001:db8::2                                                    64/0 timeout"},
		{"ports that the kernel does not tell", &untracked,
			"12:03:07.412 destroy dccp   192.168.1.10          -> 198.51.100.7          203.0.113.5                            2310/0 timeout"},
		{"hostile helper", &evil, "12:03:07.412 destroy " + flowLine + `  \x1b]0;\x07<b>"\xff\x0a\\`},
		{"missed", missed, "12:03:07.412 ... 1234 records not shown"},
		{"gap", &gap, `12:03:07.412 gap: records are missing in the log, disk_full of jsonl:/a\x20b`},
	} {
		p := Printer{Zone: time.UTC}
		if diff := cmp.Diff(tt.want, p.Line(tt.r)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// Lines after a wide one keep to its columns, and the head comes again over them.
func TestColumnsWiden(t *testing.T) {
	short := ended("10.0.0.1", "10.0.0.1", "198.51.100.7", 443, 40000, 7)
	long := ended("192.168.1.10", "203.0.113.5", "198.51.100.7", 443, 4123, 2310)
	long.Reply.Src = flow.AddrFrom(netip.MustParseAddr("100.100.100.100"))
	p := Printer{Zone: time.UTC}
	column := func(line, cell string) int {
		i := strings.Index(line, cell)
		if i < 0 {
			t.Fatalf("no %q in %q", cell, line)
		}
		return i
	}
	if !p.HeadDue() {
		t.Error("no head at the beginning")
	}
	if p.Head(); p.HeadDue() {
		t.Error("a second head")
	}
	before := column(p.Line(&short), "tcp_fin")
	wide := column(p.Line(&long), "tcp_fin")
	if !p.HeadDue() || wide <= before {
		t.Errorf("a wide line moves its end from %d to %d, a head is due: %t", before, wide, p.HeadDue())
	}
	if head, after := column(p.Head(), "why"), column(p.Line(&short), "tcp_fin"); head != wide || after != wide {
		t.Errorf("the head is at %d, the next line at %d, the wide one at %d", head, after, wide)
	}
	if p.HeadDue() {
		t.Error("a head again, though nothing became wider")
	}
}

// Only the translations are yellow, also where the same text stands in another column; without the colors it is the
// plain line.
func TestColors(t *testing.T) {
	r := ended("10.0.0.1", "198.51.100.7", "198.51.100.7", 443, 443, 7) // a destination that reads as the translated source
	plain, colored := Printer{Zone: time.UTC}, Printer{Zone: time.UTC, Color: true}
	line := colored.Line(&r)
	if !strings.HasPrefix(line, green) || !strings.HasSuffix(line, reset) ||
		!strings.Contains(line, "-> 198.51.100.7:443      "+yellow+"198.51.100.7:443"+reset+green) {
		t.Errorf("the line is %q", line)
	}
	if diff := cmp.Diff(plain.Line(&r), regexp.MustCompile("\x1b\\[[0-9]*m").ReplaceAllString(line, "")); diff != "" {
		t.Errorf("without its colors (-want +got):\n%s", diff)
	}
	if head := colored.Head(); head != bold+plain.Head()+reset {
		t.Errorf("the head is %q", head)
	}
}
