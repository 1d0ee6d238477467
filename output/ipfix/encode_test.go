package ipfix

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	calmh "github.com/calmh/ipfix"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/google/go-cmp/cmp"
)

// randomRecord returns a record made of seed: any event, protocol, translation and size of numbers.
func randomRecord(seed uint64) *flow.Record {
	rnd := rand.New(rand.NewPCG(seed, 4))
	protos := []flow.Proto{flow.TCP, flow.UDP, flow.ICMP, flow.ICMPv6, flow.GRE, flow.SCTP, 50, 255}
	t := flow.Tuple{Proto: protos[rnd.IntN(len(protos))], V6: rnd.IntN(2) == 0, Zone: uint16(rnd.Uint32()),
		HasZone: rnd.IntN(4) == 0, SrcPort: uint16(rnd.Uint32()), DstPort: uint16(rnd.Uint32())}
	ip := func() (a flow.Addr) {
		binary.BigEndian.PutUint64(a[:], rnd.Uint64())
		binary.BigEndian.PutUint64(a[8:], rnd.Uint64())
		if !t.V6 {
			a = flow.AddrFrom4(a.As4())
		}
		return a
	}
	t.Src, t.Dst = ip(), ip()
	r := ended(t)
	if rnd.IntN(2) == 0 {
		r.Reply.Dst, r.Reply.DstPort = ip(), uint16(rnd.Uint32())
	}
	if rnd.IntN(4) == 0 {
		r.Reply.Src, r.Reply.SrcPort = ip(), uint16(rnd.Uint32())
	}
	r.Event = []flow.Event{flow.EventDestroy, flow.EventDestroy, flow.EventNew, flow.EventOpen}[rnd.IntN(4)]
	r.Has |= flow.Has(rnd.Uint32()) & (flow.HasZone | flow.HasTimeout | flow.HasTCP | flow.ByRequest)
	r.State, r.Zone, r.ID, r.Mark = uint8(rnd.IntN(10)), uint16(rnd.Uint32()), rnd.Uint32(), rnd.Uint32()
	r.Status = flow.Status(rnd.Uint32())
	r.Received = goldenEnd + rnd.Int64N(1e18)
	r.Start, r.Stop, r.Stamp = rnd.Int64N(1<<62), rnd.Int64N(1<<62), rnd.Int64N(2)*rnd.Int64N(1<<62)
	if rnd.IntN(4) == 0 {
		r.Start = 0
	}
	r.OrigCounters = flow.Counters{Packets: rnd.Uint64(), Bytes: rnd.Uint64()}
	r.ReplyCounters = flow.Counters{Packets: rnd.Uint64(), Bytes: rnd.Uint64()}
	if rnd.IntN(2) == 0 {
		r.Extra = &flow.Extra{Helper: flow.NameFrom([]string{"", "ftp", "sixteen-octets--"}[rnd.IntN(3)]),
			HasLabels: rnd.IntN(2) == 0}
		binary.BigEndian.PutUint64(r.Extra.Labels[3:], rnd.Uint64())
	}
	return r
}

// expected returns what a decoder has to find in r, by the elements' names, told from the record in words of its own.
func expected(r *flow.Record, event bool) map[string]string {
	m := map[string]string{
		"protocolIdentifier": fmt.Sprint(uint8(r.Orig.Proto)),
		"ingressVRFID":       fmt.Sprint(r.Orig.Zone),
		"ctMark":             fmt.Sprint(r.Mark),
		"ctStatus":           fmt.Sprint(uint32(r.Status)),
		"ctLabels":           fmt.Sprintf("%x", make([]byte, 16)),
		"ctHelperName":       "",
	}
	switch {
	case r.Has&flow.HasZone != 0:
		m["ingressVRFID"] = fmt.Sprint(r.Zone)
	case !r.Orig.HasZone:
		m["ingressVRFID"] = "0"
	}
	if x := r.Extra; x != nil {
		m["ctHelperName"] = x.Helper.String()
		if x.HasLabels {
			m["ctLabels"] = fmt.Sprintf("%x", x.Labels)
		}
	}

	end := r.Received
	switch {
	case r.Event == flow.EventDestroy && r.Stop != 0:
		end = r.Stop
	case r.Event == flow.EventNew && r.Stamp != 0:
		end = r.Stamp
	}
	start := r.Start
	if start == 0 {
		start = end
	}
	ms := func(ns int64) string { return time.UnixMilli(ns / 1e6).UTC().Format("2006-01-02T15:04:05.000Z") }
	m["flowStartMilliseconds"], m["flowEndMilliseconds"] = ms(start), ms(end)

	icmp := r.Orig.Proto == flow.ICMP || r.Orig.Proto == flow.ICMPv6
	hasPorts := slices.Contains([]flow.Proto{6, 17, 33, 132, 136}, r.Orig.Proto)
	port := func(p uint16) string {
		if hasPorts {
			return fmt.Sprint(p)
		}
		return "0"
	}
	only := func(ok bool, p uint16) string {
		if ok {
			return fmt.Sprint(p)
		}
		return "0"
	}
	nat := r.Orig.Src != r.Reply.Dst || r.Orig.Dst != r.Reply.Src
	if icmp {
		nat = nat || r.Orig.SrcPort != r.Reply.SrcPort
	} else {
		nat = nat || r.Orig.SrcPort != r.Reply.DstPort || r.Orig.DstPort != r.Reply.SrcPort
	}
	family := "IPv4"
	if r.Orig.V6 {
		family = "IPv6"
	}
	m["source"+family+"Address"] = r.Orig.SrcAddr().String()
	m["destination"+family+"Address"] = r.Orig.DstAddr().String()
	if nat || event {
		m["postNATSource"+family+"Address"] = r.Reply.DstAddr().String()
		m["postNATDestination"+family+"Address"] = r.Reply.SrcAddr().String()
	}
	if !icmp || event {
		m["sourceTransportPort"], m["destinationTransportPort"] = port(r.Orig.SrcPort), port(r.Orig.DstPort)
		m["ctGREKey"] = only(r.Orig.Proto == flow.GRE, r.Orig.SrcPort)
		m["ctGREDestinationKey"] = only(r.Orig.Proto == flow.GRE, r.Orig.DstPort)
		m["ctPostNATGREDestinationKey"] = only(r.Orig.Proto == flow.GRE, r.Reply.SrcPort)
		m["ctPostNATGREKey"] = only(r.Orig.Proto == flow.GRE, r.Reply.DstPort)
		if nat || event {
			m["postNAPTSourceTransportPort"] = port(r.Reply.DstPort)
			m["postNAPTDestinationTransportPort"] = port(r.Reply.SrcPort)
		}
	}
	if icmp || event {
		m["ctICMPIdentifier"], m["ctPostNATICMPIdentifier"] = only(icmp, r.Orig.SrcPort), only(icmp, r.Reply.SrcPort)
	}
	if event {
		m["observationTimeMilliseconds"] = ms(end)
		m["natEvent"] = map[flow.Event]string{flow.EventNew: "4", flow.EventDestroy: "5"}[r.Event]
		srcTranslated := r.Orig.Src != r.Reply.Dst ||
			!icmp && r.Orig.SrcPort != r.Reply.DstPort || icmp && r.Orig.SrcPort != r.Reply.SrcPort
		m["natOriginatingAddressRealm"] = map[bool]string{true: "1", false: "2"}[srcTranslated]
		return m
	}
	if icmp {
		m["icmpTypeCode"+family] = fmt.Sprint(int(r.Orig.ICMPType())*256 + int(r.Orig.ICMPCode()))
	}
	m["octetDeltaCount"], m["packetDeltaCount"] = fmt.Sprint(r.OrigCounters.Bytes), fmt.Sprint(r.OrigCounters.Packets)
	m["reverseOctetDeltaCount"] = fmt.Sprint(r.ReplyCounters.Bytes)
	m["reversePacketDeltaCount"] = fmt.Sprint(r.ReplyCounters.Packets)
	m["flowId"] = fmt.Sprint(r.ID)
	m["flowEndReason"] = map[string]string{
		"": "2", "timeout": "1", "tcp_fin": "3", "tcp_rst": "3", "deleted": "4", "unknown": "0",
	}[r.EndReason().String()]
	return m
}

// Entries go to a dictionary that all interpreters share, so they are made before any test runs.
func init() {
	in := calmh.NewInterpreter(calmh.NewSession())
	types := map[uint8]calmh.FieldType{
		typeOctetArray: calmh.OctetArray, typeUnsigned16: calmh.Uint16,
		typeUnsigned32: calmh.Uint32, typeString: calmh.String,
	}
	for _, e := range enterprise {
		in.AddDictionaryEntry(calmh.DictionaryEntry{Name: e.name, FieldID: e.id, EnterpriseID: 32473,
			Type: types[e.info.dataType]})
	}
}

// judge decodes messages with calmh/ipfix, which shares nothing with the encoder but the names of enterprise elements.
func judge(t testing.TB, messages ...[]byte) (records []map[string]string) {
	t.Helper()
	s := calmh.NewSession()
	in := calmh.NewInterpreter(s)
	for _, m := range messages {
		if int(binary.BigEndian.Uint16(m[2:])) != len(m) {
			t.Fatalf("length field says %d, message has %d octets", binary.BigEndian.Uint16(m[2:]), len(m))
		}
		msg, err := s.ParseBuffer(m)
		if err != nil {
			t.Fatalf("%x: %v", m, err)
		}
		for _, rec := range msg.DataRecords {
			fields := map[string]string{}
			for _, f := range in.Interpret(rec) {
				if f.Name == "" {
					t.Fatalf("element %d/%d is not known", f.EnterpriseID, f.FieldID)
				}
				switch v := f.Value.(type) {
				case time.Time:
					fields[f.Name] = v.UTC().Format("2006-01-02T15:04:05.000Z")
				case []byte:
					fields[f.Name] = fmt.Sprintf("%x", v)
				case *net.IP:
					fields[f.Name] = v.String()
				default:
					fields[f.Name] = fmt.Sprint(v)
				}
			}
			records = append(records, fields)
		}
	}
	return records
}

var everyElement = Enterprise{PEN: 32473, Elements: []string{
	"mark", "status", "labels", "icmp_id", "nat_icmp_id", "gre_key", "gre_dst_key", "nat_gre_key",
	"nat_gre_dst_key", "helper",
}}

func FuzzRoundTrip(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	set := newTemplateSet(&Config{Records: "both", Enterprise: everyElement})
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := randomRecord(seed)
		for event, tmpl := range map[bool]*template{false: set.flow(r), true: set.event(r)} {
			if tmpl == nil {
				if r.Event == flow.EventDestroy && !event {
					t.Fatal("an ended flow has no template")
				}
				continue
			}
			d := &domain{id: 1}
			got := judge(t,
				finished(d, setTemplate, 0, tmpl.appendDefinition),
				finished(d, tmpl.id, 2, func(dst []byte) []byte { return tmpl.appendRecord(tmpl.appendRecord(dst, r), r) }))
			want := expected(r, event)
			if diff := cmp.Diff([]map[string]string{want, want}, got); diff != "" {
				t.Errorf("%s of %+v (-want +got):\n%s", tmpl.name, r, diff)
			}
		}
	})
}

// TestRuns holds the functions for several elements to what the elements' own functions append.
func TestRuns(t *testing.T) {
	for _, c := range []Config{{Records: "both"}, {Records: "both", Layout: "rfc8158"}, {Records: "both",
		Enterprise: everyElement}} {
		set := newTemplateSet(&c)
		for seed := range uint64(500) {
			r := randomRecord(seed)
			for _, tmpl := range append(set.flows[:], set.nat) {
				var want []byte
				for _, e := range tmpl.fields {
					before := len(want)
					want = e.append(want, r)
					if n := len(want) - before; n > e.size() || e.len != variable && n != int(e.len) {
						t.Fatalf("%s appended %d octets, its template says %d", e.name, n, e.size())
					}
				}
				if got := tmpl.appendRecord(nil, r); !bytes.Equal(want, got) {
					t.Fatalf("%s, seed %d (-elements +runs):\n%s", tmpl.name, seed, cmp.Diff(want, got))
				}
			}
		}
	}
}

func TestWhatIsExported(t *testing.T) {
	plain := ended(tuple(flow.TCP, "192.0.2.1", 1, "192.0.2.2", 2))
	as := func(r *flow.Record, e flow.Event) *flow.Record { c := *r; c.Event = e; return &c }
	nat6 := with(ended(tuple(flow.UDP, "fd00::1", 1, "2001:db8::2", 2)), snat("2001:db8::1", 3))
	portOnly := with(ended(tuple(flow.UDP, "10.0.0.1", 1, "192.0.2.2", 2)), snat("10.0.0.1", 3))
	tests := []struct {
		name string
		r    *flow.Record
		flow uint16 // template of each kind, 0 if none
		nat  uint16
	}{
		{"end", plain, 256, 0},
		{"end with NAT", tcpNAT(1), 257, 265},
		{"end with NAT of the port alone", portOnly, 257, 265},
		{"end with NAT66", nat6, 259, 0},
		{"new", as(plain, flow.EventNew), 0, 0},
		{"new with NAT", as(tcpNAT(1), flow.EventNew), 0, 265},
		{"new with NAT66", as(nat6, flow.EventNew), 0, 0},
		{"update with NAT", as(tcpNAT(1), flow.EventUpdate), 0, 0},
		{"open", as(plain, flow.EventOpen), 256, 0},
		{"open with NAT", as(tcpNAT(1), flow.EventOpen), 257, 0},
		{"expectation", as(plain, flow.EventExpectNew), 0, 0},
		{"gap", &flow.Record{Event: flow.EventGap}, 0, 0},
	}
	set := newTemplateSet(&Config{Records: "both"})
	number := func(t *template) uint16 {
		if t == nil {
			return 0
		}
		return t.id
	}
	for _, tt := range tests {
		if got := [2]uint16{number(set.flow(tt.r)), number(set.event(tt.r))}; got != [2]uint16{tt.flow, tt.nat} {
			t.Errorf("%s: templates %v, want %v", tt.name, got, [2]uint16{tt.flow, tt.nat})
		}
	}
}

func TestVariants(t *testing.T) {
	no := false
	tests := []struct {
		name   string
		config Config
		want   []string
	}{
		{"default", Config{}, []string{"256 flow4 74", "257 flow4_nat 86", "266 icmp4 72", "260 icmp4_nat 80", "258 flow6 98",
			"259 flow6_nat 134", "261 icmp6 96", "267 icmp6_nat 128", "400 process_stats 28", "401 reliability 44"}},
		{"events", Config{Records: "nat_events", Options: &no}, []string{"265 nat44_times 55"}},
		{"compact events", Config{Records: "nat_events", Layout: "rfc8158", Options: &no}, []string{"262 nat44 39"}},
		{"no destination", Config{Records: "both", Destination: &no, Options: &no}, []string{"288 flow4_nodst 68",
			"289 flow4_nat_nodst 74", "298 icmp4_nodst 68", "292 icmp4_nat_nodst 72", "290 flow6_nodst 80",
			"291 flow6_nat_nodst 98", "293 icmp6_nodst 80", "299 icmp6_nat_nodst 96", "297 nat44_times_nodst 43"}},
		{"enterprise", Config{Records: "nat_events", Options: &no, Enterprise: everyElement},
			[]string{"329 nat44_times_ent 108"}},
	}
	for _, tt := range tests {
		var got []string
		for _, t := range newTemplateSet(&tt.config).all {
			got = append(got, fmt.Sprint(t.id, " ", t.name, " ", t.size))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestHistoricEvents(t *testing.T) {
	set := newTemplateSet(&Config{Records: "nat_events", NATEvent: "historic"})
	end := tcpNAT(1)
	begin := with(tcpNAT(1), created)
	d := &domain{id: 1}
	got := judge(t, finished(d, setTemplate, 0, set.nat.appendDefinition),
		finished(d, set.nat.id, 2, func(dst []byte) []byte {
			return set.nat.appendRecord(set.nat.appendRecord(dst, begin),
				end)
		}))
	if got[0]["natEvent"] != "1" || got[1]["natEvent"] != "2" {
		t.Errorf("natEvent %s and %s, want 1 and 2", got[0]["natEvent"], got[1]["natEvent"])
	}
}

// TestUserName: hostile names as well, in templates with ids of their own, before the elements of an enterprise.
func TestUserName(t *testing.T) {
	set := newTemplateSet(&Config{Records: "both", UserName: true, Enterprise: everyElement})
	for _, name := range []string{"alice@example.net", "", "a\n\x00\"é", "\xff\xfe", strings.Repeat("x", 253), strings.Repeat("\xff", 253), strings.Repeat("é", 127)} {
		r := tcpNAT(1)
		r.Extra = &flow.Extra{Helper: flow.NameFrom("ftp"), Subscriber: flow.Subscriber{ID: name}}
		for tmpl, id := range map[*template]uint16{set.flow(r): 257 + 16 + 64, set.event(r): 265 + 16 + 64} {
			d := &domain{id: 1}
			got := judge(t, finished(d, setTemplate, 0, tmpl.appendDefinition),
				finished(d, tmpl.id, 2, func(dst []byte) []byte { return tmpl.appendRecord(tmpl.appendRecord(dst, r), r) }))
			want := strings.ToValidUTF8(name, "\ufffd")
			if bad := strings.Count(name, "\xff"); bad > 2 {
				want = strings.Repeat("\ufffd", 254/3)
			} else if bad > 0 {
				want = "\ufffd\ufffd"
			}
			if tmpl.id != id || len(got) != 2 || got[1]["userName"] != want || got[1]["ctHelperName"] != "ftp" {
				t.Errorf("%d %s: %v, want userName %q", tmpl.id, tmpl.name, got, want)
			}
		}
	}
}

func TestEncodeAllocates(t *testing.T) {
	set := newTemplateSet(&Config{Records: "both", Enterprise: everyElement})
	recs := make([]*flow.Record, 64)
	for i := range recs {
		recs[i] = randomRecord(uint64(i))
	}
	buf := make([]byte, 0, 65536)
	allocs := testing.AllocsPerRun(100, func() {
		buf = buf[:0]
		for _, r := range recs {
			for _, t := range []*template{set.flow(r), set.event(r)} {
				if t != nil {
					buf = t.appendRecord(buf, r)
				}
			}
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations in 64 records", allocs)
	}
}

func TestClockNeverRunsBackwards(t *testing.T) {
	ahead := uint32(time.Now().Unix()) + 1000
	c := clock{last: ahead}
	if got := c.now(); got != ahead {
		t.Errorf("export time %d after %d", got, ahead)
	}
}
