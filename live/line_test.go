package live

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

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
	evil := tcp
	evil.Extra = &flow.Extra{Helper: flow.NameFrom(hostile)}
	missed := missedRecord(1234)
	missed.Received = at
	gap := flow.Record{Event: flow.EventGap, Received: at, Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseDiskFull, Output: "jsonl:/a b"}}}

	p := Printer{Zone: time.UTC}
	const flowLine = "tcp    192.168.1.10:40000    -> 198.51.100.7:443      from 203.0.113.5:4123               2310/0 tcp_fin"
	for _, tt := range []struct {
		name string
		r    *flow.Record
		want string
	}{
		{"destroy", &tcp, "12:03:07.412 destroy " + flowLine},
		{"helper and master", &named, "12:03:07.412 destroy " + flowLine + "  ftp, data of 192.168.1.10:40000"},
		{"new", &news, "12:03:07.412 new     tcp    192.168.1.10:40000    -> 198.51.100.7:443      from 203.0.113.5:4123"},
		{"ICMPv6", &ping, "12:03:07.412 destroy icmpv6 2001:db8::1 id 777    -> 2001:db8::2                                                 64/0 timeout"},
		{"hostile helper", &evil, "12:03:07.412 destroy " + flowLine + `  \x1b]0;\x07<b>"\xff\x0a\\`},
		{"missed", missed, "12:03:07.412 ... 1234 records not shown"},
		{"gap", &gap, `12:03:07.412 gap: records are missing in the log, disk_full of jsonl:/a\x20b`},
	} {
		if diff := cmp.Diff(tt.want, p.Line(tt.r)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// Whatever bytes there are, a terminal gets printable characters and the colours that are meant.
func FuzzPrintable(f *testing.F) {
	f.Add(hostile)
	f.Add("\u009b31m\u202e\x7f")
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range Printable(s) {
			if c <= ' ' || c > '~' {
				t.Errorf("Printable(%q) has %q", s, c)
			}
		}
		text := Text(s)
		if !utf8.ValidString(text) || strings.ContainsAny(text, "\x1b\x07\n\r\t\x7f\u009b\u202e\u2028") {
			t.Errorf("Text(%q) = %q", s, text)
		}
	})
}
