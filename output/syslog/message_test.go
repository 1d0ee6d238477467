package syslog

import (
	"bytes"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/endpoint"
	"github.com/ctlogd/ctlogd/output/format"
)

const observer = "4f9c1d"

// record returns the end of a flow that i tells from others.
func record(i int) *flow.Record {
	src := flow.AddrFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	dst := flow.AddrFrom(netip.MustParseAddr("198.51.100.80"))
	at := time.Date(2026, 3, 9, 14, 4, 36, 118920404, time.UTC).UnixNano()
	return &flow.Record{
		Event: flow.EventDestroy, Has: flow.HasOrig | flow.HasID, ID: uint32(i), Received: at, Start: at - 1e9, Stop: at,
		Orig: flow.Tuple{Src: src, Dst: dst, SrcPort: 40000, DstPort: 443, Proto: flow.TCP},
	}
}

func records(from, to int) (list []*flow.Record) {
	for i := from; i < to; i++ {
		list = append(list, record(i))
	}
	return list
}

func encoder(t testing.TB, name string) format.Encoder {
	t.Helper()
	e, err := format.New(name, format.Options{Host: "gw1", Observer: observer, Version: "1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func composerOf(t testing.TB, c Config, host string) composer {
	t.Helper()
	c.Defaults()
	return newComposer(&c, encoder(t, c.Format), host, observer)
}

// rfc5424 is what a message has to be (section 6), its structured data being ours.
var rfc5424 = regexp.MustCompile(`^<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ` +
	`([!-~]{1,32}) (-|\[[!-~]{1,32} flow_id="[0-9a-f]{32}"\]) (.*)$`)

func TestMessage(t *testing.T) {
	gap := &flow.Record{Event: flow.EventGap, Received: 1, Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseOverrun}}}
	for _, tt := range []struct {
		name  string
		cfg   Config
		r     *flow.Record
		parts []string // of rfc5424, from the first; "": any
		begin string
	}{
		{"flow", Config{}, record(7), []string{"134", "2026-03-09T14:04:36.118920Z", "gw_1", "ctlogd", "", "destroy",
			`[flow@32473 flow_id="6`}, `{"v":1,`},
		{"gap", Config{}, gap, []string{"132", "", "gw_1", "ctlogd", "", "gap", "-"}, `{"v":1,`},
		{"all set", Config{Facility: "authpriv", Severity: "err", AppName: "nat", SDID: "ct@49", Format: "cef"}, record(7),
			[]string{"83", "", "", "nat", "", "", "[ct@49 "}, "CEF:0|"},
		{"gap of an error", Config{Facility: "kern", Severity: "err"}, gap, []string{"3"}, ""},
		{"no structured data", Config{SDID: "none"}, record(7), []string{"", "", "", "", "", "", "-"}, ""},
	} {
		m := composerOf(t, tt.cfg, "gw 1")
		line := string(m.append([]byte("x"), tt.r))
		got := rfc5424.FindStringSubmatch(line[1:])
		if got == nil {
			t.Fatalf("%s: no message: %s", tt.name, line)
		}
		for i, want := range tt.parts {
			if want != "" && got[i+1] != want && !(i == 6 && strings.HasPrefix(got[7], want[:1])) {
				t.Errorf("%s: part %d is %q, want %q", tt.name, i+1, got[i+1], want)
			}
		}
		if !strings.HasPrefix(got[8], tt.begin) {
			t.Errorf("%s: message %q, want one that begins with %s", tt.name, got[8], tt.begin)
		}
	}
	m := composerOf(t, Config{}, "")
	if got := rfc5424.FindSubmatch(m.append(nil, record(1))); got == nil || string(got[3]) != "-" {
		t.Errorf("without a host: %q", got)
	}
}

// unframe returns the messages of a stream, as a receiver takes it apart.
func unframe(t testing.TB, b []byte, octets bool) (list []string) {
	t.Helper()
	for len(b) > 0 {
		sep := byte('\n')
		if octets {
			sep = ' '
		}
		head, rest, ok := bytes.Cut(b, []byte{sep})
		if !ok {
			t.Fatalf("no end of a frame in %q", b)
		}
		if !octets {
			list, b = append(list, string(head)), rest
			continue
		}
		n, err := strconv.Atoi(string(head))
		if err != nil || head[0] == '0' || n > len(rest) {
			t.Fatalf("length %q of %d octets", head, len(rest))
		}
		list, b = append(list, string(rest[:n])), rest[n:]
	}
	return list
}

func TestMessageAllocs(t *testing.T) {
	w, err := New(Config{Address: "tcp://127.0.0.1:1"}, Options{Encoder: encoder(t, "flat"), Observer: observer, Host: "gw1"})
	if err != nil {
		t.Fatal(err)
	}
	recs := records(0, 50)
	add := func() {
		w.buf, w.ends = w.buf[:0], w.ends[:0]
		for _, r := range recs {
			w.add(r, address{endpoint.Address{Scheme: "tcp"}})
		}
		w.backlog.add(w.buf, w.ends, 0, 1)
		w.backlog.ack(1)
	}
	add()
	if n := testing.AllocsPerRun(20, add); n != 0 {
		t.Errorf("%v allocations for %d records", n, len(recs))
	}
}

// FuzzFraming wants frames that a receiver can take apart, whatever the kernel and the configuration say.
func FuzzFraming(f *testing.F) {
	f.Add("ftp", "a\nb\r\x00 <13>1 - - - - - -", "gw1\n", "ctlogd")
	f.Add("]\"\\", "12 <14>1", "h\xff", "[x]")
	encoders := map[string]format.Encoder{}
	for _, name := range format.Names {
		encoders[name] = encoder(f, name)
	}
	field := regexp.MustCompile("^(PRIORITY|SYSLOG_FACILITY|SYSLOG_IDENTIFIER|CTLOGD_EVENT|CTLOGD_FLOW_ID|MESSAGE)=.*\n$")
	f.Fuzz(func(t *testing.T, helper, secctx, host, app string) {
		r := record(3)
		r.Extra = &flow.Extra{Helper: flow.NameFrom(helper), SecCtx: secctx}
		r.Extra.Gap = flow.Gap{Cause: flow.CauseOverrun, Output: secctx}
		gap := *r
		gap.Event = flow.EventGap
		for _, name := range format.Names {
			for _, framing := range Framings {
				c := Config{Address: "tcp://127.0.0.1:1", Framing: framing, Format: name, AppName: printable(app, 48)}
				w, err := New(c, Options{Encoder: encoders[name], Observer: observer, Host: host})
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range []*flow.Record{r, &gap, record(4)} {
					w.add(r, address{endpoint.Address{Scheme: "tcp"}})
				}
				for line := range bytes.Lines(w.composer.appendFields(nil, r)) {
					if !field.Match(line) {
						t.Fatalf("%s: no field of the journal's: %q", name, line)
					}
				}
				list := unframe(t, w.buf, framing == framingOctets)
				if len(list) != 3 {
					t.Fatalf("%d messages, want 3: %q", len(list), w.buf)
				}
				for _, m := range list {
					if got := rfc5424.FindStringSubmatch(m); got == nil || !utf8.ValidString(m) {
						t.Fatalf("%s: no message: %q", name, m)
					}
				}
			}
		}
	})
}
