package ipfix

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/google/go-cmp/cmp"
)

// The golden messages in testdata were made by a program of its own from RFC 7011, and have been accepted with the
// right values by nfcapd, nfacctd, tshark, goflow2, ipfixDump, python-ipfix and two Go libraries.

const goldenExport = 1767225605

// golden returns the messages of a file, one to a line.
func golden(t *testing.T, name string) (messages [][]byte) {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		m, err := hex.DecodeString(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, m)
	}
	return messages
}

// finished returns a message under d with one set of what fill appends.
func finished(d *domain, set uint16, records int, fill func([]byte) []byte) []byte {
	var m message
	m.start(d, set)
	m.buf = fill(m.buf)
	m.records = records
	m.finish(goldenExport)
	return m.buf
}

func with(r *flow.Record, amend ...func(*flow.Record)) *flow.Record {
	for _, f := range amend {
		f(r)
	}
	return r
}

func counted(origBytes, origPackets, replyBytes, replyPackets uint64) func(*flow.Record) {
	return func(r *flow.Record) {
		r.OrigCounters = flow.Counters{Bytes: origBytes, Packets: origPackets}
		r.ReplyCounters = flow.Counters{Bytes: replyBytes, Packets: replyPackets}
	}
}

func id(n uint32) func(*flow.Record) { return func(r *flow.Record) { r.ID = n } }

func closed(r *flow.Record) { r.Has |= flow.HasTCP; r.State = flow.TCPTimeWait }

func zone(n uint16) func(*flow.Record) {
	return func(r *flow.Record) { r.Has |= flow.HasZone; r.Zone = n }
}

// moved shifts start and end by milliseconds.
func moved(start, end int64) func(*flow.Record) {
	return func(r *flow.Record) { r.Start += start * 1e6; r.Stop += end * 1e6 }
}

func snat(src string, port uint16) func(*flow.Record) {
	return func(r *flow.Record) { r.Reply.Dst, r.Reply.DstPort = addr(src), port }
}

func dnat(dst string, port uint16) func(*flow.Record) {
	return func(r *flow.Record) { r.Reply.Src, r.Reply.SrcPort = addr(dst), port }
}

// created turns the end of a flow into its beginning: no counters, no times but the kernel's stamp.
func created(r *flow.Record) {
	r.Event, r.Stamp, r.Start, r.Stop = flow.EventNew, r.Start, 0, 0
	r.Has &^= flow.HasCounters | flow.HasTCP
}

func TestGolden(t *testing.T) {
	nat := func() *flow.Record {
		return with(ended(tuple(flow.TCP, "10.1.2.3", 40000, "198.51.100.20", 443)),
			snat("203.0.113.5", 61000), zone(5), closed)
	}
	tests := []struct {
		file   string
		config Config
		seq    uint32
		recs   []*flow.Record
	}{
		{"01_flow4", Config{}, 0, []*flow.Record{
			with(ended(tuple(flow.TCP, "192.0.2.10", 40001, "198.51.100.20", 443)), closed,
				counted(1234567, 890, 7654321, 1000), id(0xdeadbeef)),
			with(ended(tuple(flow.UDP, "192.0.2.11", 53001, "198.51.100.53", 53)), zone(7),
				counted(70, 1, 250, 1), id(0x01020304), moved(10, 20)),
		}},
		{"02_flow4_nat", Config{}, 2, []*flow.Record{
			with(nat(), counted(5e9, 3456789, 7654321, 1000), id(0xcafebabe)),
			with(ended(tuple(flow.UDP, "192.0.2.77", 51515, "203.0.113.5", 8080)), dnat("10.1.2.80", 80),
				counted(300, 3, 1500, 2), id(0x11223344), moved(1, 2)),
		}},
		{"03_flow6", Config{}, 4, []*flow.Record{
			with(ended(tuple(flow.TCP, "2001:db8:1::10", 40006, "2001:db8:2::20", 443)), closed,
				counted(66000, 60, 99000, 90), id(102)),
		}},
		{"04_flow6_nat66", Config{}, 5, []*flow.Record{
			with(ended(tuple(flow.TCP, "fd00:1::10", 40066, "2001:db8:2::20", 443)), closed,
				snat("2001:db8:ffff::1", 62066), counted(6600, 6, 9900, 9), id(103)),
		}},
		{"05_icmp4_nat", Config{}, 6, []*flow.Record{
			with(ended(tuple(flow.ICMP, "10.1.2.3", 777, "198.51.100.20", 8<<8)), snat("203.0.113.5", 0),
				counted(252, 3, 252, 3), id(153)),
		}},
		{"06_icmp6", Config{}, 7, []*flow.Record{
			with(ended(tuple(flow.ICMPv6, "2001:db8:1::10", 778, "2001:db8:2::20", 128<<8)),
				counted(312, 3, 312, 3), id(154)),
		}},
		{"07_nat44_session", Config{Records: "nat_events", Layout: "rfc8158"}, 8, []*flow.Record{
			with(nat(), created), nat(),
		}},
		{"13_nat44_session_times", Config{Records: "nat_events"}, 18, []*flow.Record{
			with(nat(), created), nat(),
		}},
		{"14_icmp4", Config{}, 20, []*flow.Record{
			with(ended(tuple(flow.ICMP, "192.0.2.10", 779, "198.51.100.20", 8<<8)), counted(84, 1, 84, 1), id(155)),
		}},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			set := newTemplateSet(&tt.config)
			var tmpl *template
			d := &domain{id: 1, seq: tt.seq}
			data := func(dst []byte) []byte {
				for _, r := range tt.recs {
					if tmpl = set.event(r); tmpl == nil {
						tmpl = set.flow(r)
					}
					dst = tmpl.appendRecord(dst, r)
				}
				return dst
			}
			data(nil) // to know the template
			got := [][]byte{
				finished(d, setTemplate, 0, tmpl.appendDefinition),
				finished(d, tmpl.id, len(tt.recs), data),
			}
			if diff := cmp.Diff(dump(golden(t, tt.file)), dump(got)); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
			if want := tt.seq + uint32(len(tt.recs)); d.seq != want {
				t.Errorf("next sequence number is %d, want %d", d.seq, want)
			}
		})
	}
}

// TestGoldenEnterprise puts together the golden template, which lacks the zone, from the elements.
func TestGoldenEnterprise(t *testing.T) {
	set := newTemplateSet(&Config{Enterprise: Enterprise{PEN: 32473, Elements: []string{"helper", "mark"}}})
	var fields []*element
	for _, e := range set.flows[0].fields {
		if e != ingressVRFID {
			fields = append(fields, e)
		}
	}
	tmpl := &template{id: 264, fields: fields, steps: steps(fields)}
	recs := []*flow.Record{
		with(ended(tuple(flow.TCP, "192.0.2.10", 40021, "198.51.100.21", 21)), closed, counted(2100, 21, 4200, 42), id(33)),
		with(ended(tuple(flow.TCP, "192.0.2.10", 40022, "198.51.100.22", 22)), counted(2200, 22, 4400, 44), id(34)),
	}
	recs[0].Mark = 42
	recs[0].Extra = &flow.Extra{Helper: flow.NameFrom("ftp")}
	d := &domain{id: 1, seq: 12}
	got := [][]byte{
		finished(d, setTemplate, 0, tmpl.appendDefinition),
		finished(d, tmpl.id, 2, func(dst []byte) []byte {
			return tmpl.appendRecord(tmpl.appendRecord(dst, recs[0]),
				recs[1])
		}),
	}
	if diff := cmp.Diff(dump(golden(t, "09_flow4_enterprise_helper")), dump(got)); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

// TestGoldenOptions leaves out the golden template 402, which counts packets that nobody knows of. The golden template
// 401 has no times; ours has the two that RFC 7011, section 4.3 asks for.
func TestGoldenOptions(t *testing.T) {
	want := golden(t, "10_options_process_stats")
	set := newTemplateSet(&Config{})
	d := &domain{}
	var s counts
	s.messages.Store(1001)
	s.records.Store(20002)
	s.bytes.Store(3000003)
	got := [][]byte{
		finished(d, setOptTemplates, 0, set.stats.appendDefinition),
		finished(d, set.stats.id, 1, func(dst []byte) []byte { return appendProcessStats(dst, 1, &s) }),
	}
	if diff := cmp.Diff(dump(want[:2]), dump(got)); diff != "" {
		t.Errorf("process statistics (-want +got):\n%s", diff)
	}

	gap := &flow.Record{Event: flow.EventGap, Start: goldenStart, Stop: goldenEnd}
	got = [][]byte{
		finished(d, setOptTemplates, 0, set.reliability.appendDefinition),
		finished(d, set.reliability.id, 1, func(dst []byte) []byte { return appendReliability(dst, 4242, 11, gap) }),
	}
	wantDump := []string{
		"000a00326955b90500000001000000000003002201910006000100900004" +
			"00a6000800a7000800a800080143000801430008",
		"000a00406955b905000000010000000001910030" + "00001092000000000000000b" + "0000000000000000" + "0000000000000000" +
			"0000019b76daa87b0000019b76dab9d7",
	}
	if diff := cmp.Diff(wantDump, dump(got)); diff != "" {
		t.Errorf("reliability (-want +got):\n%s", diff)
	}
}

func TestGoldenElementTypes(t *testing.T) {
	set := newTemplateSet(&Config{Enterprise: Enterprise{PEN: 32473, Elements: []string{"helper", "mark"}}})
	d := &domain{seq: 3}
	got := [][]byte{
		finished(d, setOptTemplates, 0, set.typeInfo.appendDefinition),
		finished(d, set.typeInfo.id, 2, func(dst []byte) []byte {
			return appendElementType(appendElementType(dst, set.types[1]), set.types[0])
		}),
	}
	if diff := cmp.Diff(dump(golden(t, "11_options_rfc5610")), dump(got)); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func dump(messages [][]byte) (lines []string) {
	for _, m := range messages {
		lines = append(lines, hex.EncodeToString(m))
	}
	return lines
}

// A gap that is not over yet has lost its last flow when it was told, and not in 1970.
func TestOpenGap(t *testing.T) {
	r := flow.Record{Event: flow.EventGap, Start: 1_000e6, Received: 3_000e6}
	got := appendReliability(nil, 1, 5, &r)
	if first, last := binary.BigEndian.Uint64(got[len(got)-16:]), binary.BigEndian.Uint64(got[len(got)-8:]); first != 1000 || last != 3000 {
		t.Errorf("loss from %d to %d ms, want 1000 to 3000", first, last)
	}
}
