package ctnetlink

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"

	"github.com/ctlogd/ctlogd/flow"
)

// corpus returns the captured messages.
func corpus(t testing.TB) [][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/events.hex")
	if err != nil {
		t.Fatal(err)
	}
	var msgs [][]byte
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		msg, err := hex.DecodeString(line)
		if err != nil {
			t.Fatal(err)
		}
		msgs = append(msgs, native(msg))
	}
	if len(msgs) == 0 {
		t.Fatal("the corpus is empty")
	}
	return msgs
}

// native returns a message that a little-endian kernel has sent as one of this machine's byte order sends it: the headers
// of messages and attributes are in host order, values are big-endian.
func native(msg []byte) []byte {
	if !hostBigEndian {
		return msg
	}
	swap := func(b []byte) { slices.Reverse(b) }
	swap(msg[0:4])
	swap(msg[4:6])
	swap(msg[6:8])
	swap(msg[8:12])
	swap(msg[12:16])
	var walk func(a []byte)
	walk = func(a []byte) {
		for len(a) >= attrHeader {
			n, typ := int(binary.LittleEndian.Uint16(a)), binary.LittleEndian.Uint16(a[2:])
			swap(a[0:2])
			swap(a[2:4])
			if n < attrHeader || n > len(a) {
				return
			}
			if typ&nested != 0 {
				walk(a[attrHeader:n])
			}
			a = a[min((n+3)&^3, len(a)):]
		}
	}
	walk(msg[msgHeader:])
	return msg
}

// judge decodes msg with ti-mo/conntrack.
func judge(msg []byte) (ev conntrack.Event, err error) {
	m := netlink.Message{
		Header: netlink.Header{
			Length: binary.NativeEndian.Uint32(msg), Type: netlink.HeaderType(binary.NativeEndian.Uint16(msg[4:])),
			Flags:    netlink.HeaderFlags(binary.NativeEndian.Uint16(msg[6:])),
			Sequence: binary.NativeEndian.Uint32(msg[8:]), PID: binary.NativeEndian.Uint32(msg[12:]),
		},
		Data: bytes.Clone(msg[nlHeader:]),
	}
	err = ev.Unmarshal(m)
	return ev, err
}

func tuple(t *flow.Tuple) conntrack.Tuple {
	out := conntrack.Tuple{
		IP:    conntrack.IPTuple{SourceAddress: t.SrcAddr(), DestinationAddress: t.DstAddr()},
		Proto: conntrack.ProtoTuple{Protocol: uint8(t.Proto), ICMPv4: t.Proto == flow.ICMP, ICMPv6: t.Proto == flow.ICMPv6},
		Zone:  t.Zone,
	}
	if t.Proto.IsICMP() {
		out.Proto.ICMPID, out.Proto.ICMPType, out.Proto.ICMPCode = t.ICMPID(), t.ICMPType(), t.ICMPCode()
	} else {
		out.Proto.SourcePort, out.Proto.DestinationPort = t.SrcPort, t.DstPort
	}
	return out
}

// facts is what both decoders say of a message, in the judge's terms.
type facts struct {
	Type                                  string
	Orig, Reply, Master                   conntrack.Tuple
	Status, ID, Mark, Timeout             uint32
	Zone                                  uint16
	OrigPkts, OrigBytes, RepPkts, RepByte uint64
	Start, Stop                           int64
	TCP, DCCP, SCTP                       uint8
	Helper, SecCtx                        string
	Labels                                [16]byte
	Class, Flags                          uint32
}

func ours(r *flow.Record) facts {
	f := facts{
		Type: r.Event.String(), Orig: tuple(&r.Orig), Status: uint32(r.Status), ID: r.ID, Mark: r.Mark,
		Timeout: r.Timeout, Zone: r.Zone, OrigPkts: r.OrigCounters.Packets, OrigBytes: r.OrigCounters.Bytes,
		RepPkts: r.ReplyCounters.Packets, RepByte: r.ReplyCounters.Bytes, Start: r.Start, Stop: r.Stop,
	}
	if r.Has&flow.HasReply != 0 {
		f.Reply = tuple(&r.Reply)
	}
	switch {
	case r.Has&flow.HasTCP != 0:
		f.TCP = r.State
	case r.Has&flow.HasDCCP != 0:
		f.DCCP = r.State
	case r.Has&flow.HasSCTP != 0:
		f.SCTP = r.State
	}
	if x := r.Extra; x != nil {
		if x.HasMaster {
			f.Master = tuple(&x.Master)
		}
		f.Helper, f.SecCtx, f.Labels, f.Class, f.Flags = x.Helper.String(), x.SecCtx, x.Labels, x.Class, x.Flags
	}
	return f
}

func theirs(ev *conntrack.Event) facts {
	cut := func(s string) string {
		s, _, _ = strings.Cut(s, "\x00")
		return s
	}
	helper := func(s string) string { return flow.NameFrom(cut(s)).String() }
	if e := ev.Expect; e != nil {
		name := map[bool]string{true: "expect_new", false: "expect_destroy"}[ev.Type == conntrack.EventExpNew]
		return facts{Type: name, Orig: e.Tuple, Reply: e.Mask, Master: e.TupleMaster, ID: e.ID, Timeout: e.Timeout,
			Zone: e.Zone, Helper: helper(e.HelpName), Class: e.Class, Flags: e.Flags}
	}
	fl := ev.Flow
	f := facts{
		Type: map[bool]string{true: "new"}[ev.Type == conntrack.EventNew],
		Orig: fl.TupleOrig, Reply: fl.TupleReply, Master: fl.TupleMaster, Status: uint32(fl.Status), ID: fl.ID,
		Mark: fl.Mark, Timeout: fl.Timeout, Zone: fl.Zone, OrigPkts: fl.CountersOrig.Packets,
		OrigBytes: fl.CountersOrig.Bytes, RepPkts: fl.CountersReply.Packets, RepByte: fl.CountersReply.Bytes,
		Helper: helper(fl.Helper.Name), SecCtx: cut(string(fl.SecurityContext)),
	}
	switch ev.Type {
	case conntrack.EventUpdate:
		f.Type = "update"
	case conntrack.EventDestroy:
		f.Type = "destroy"
	}
	if !fl.Timestamp.Start.IsZero() {
		f.Start = fl.Timestamp.Start.UnixNano()
	}
	if !fl.Timestamp.Stop.IsZero() {
		f.Stop = fl.Timestamp.Stop.UnixNano()
	}
	switch p := fl.ProtoInfo; {
	case p.TCP != nil:
		f.TCP = p.TCP.State
	case p.DCCP != nil:
		f.DCCP = p.DCCP.State
	case p.SCTP != nil:
		f.SCTP = p.SCTP.State
	}
	copy(f.Labels[:], fl.Labels)
	return f
}

var equalAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// differential decodes msg with both decoders and reports where they disagree.
func differential(t *testing.T, msg []byte) {
	t.Helper()
	b := flow.NewBatch(1, nil)
	r, skipped, err := decode(msg, b)
	if err != nil && len(b.Records) != 0 {
		t.Fatal("a message that failed to decode left a record behind")
	}
	if len(msg) < msgHeader {
		if err != errHeader {
			t.Fatalf("got error %v for a message that is too short, want %v", err, errHeader)
		}
		return
	}
	ev, theirErr := judge(msg)
	switch {
	case odd(msg[msgHeader:]):
		return
	case theirErr != nil || skipped > 0:
		// It refuses what it does not know, children and missing NLA_F_NESTED flags among them; ctlogd skips that. ctlogd
		// skips values that have not the kernel's width.
		return
	case err == nil:
		if diff := cmp.Diff(theirs(&ev), ours(r), equalAddrs); diff != "" {
			t.Errorf("decoders disagree on %x (-ti-mo +ctlogd):\n%s", msg, diff)
		}
	case !errors.Is(err, errOrig): // ctlogd asks more of a flow: its original tuple, with addresses of one family
		t.Errorf("got error %v for %x, which ti-mo/conntrack decodes", err, msg)
	}
}

// odd reports whether there is an attribute, at any depth, that the judge is known to read in a way of its own: it keeps
// only the low byte of a nested attribute's type, and so takes one of a later kernel for one it knows; and it passes
// over an attribute with length 0, which the kernel's nla_ok refuses.
func odd(a attrs) bool {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n == 0 {
			return true
		}
		if n < attrHeader || n > len(a) {
			return false
		}
		if typ > 255 || odd(a[attrHeader:n]) {
			return true
		}
		a = a.behind(n)
	}
	return false
}

func TestDecodeAgreesWithJudge(t *testing.T) {
	kinds := map[flow.Event]int{}
	for _, msg := range corpus(t) {
		b := flow.NewBatch(1, nil)
		r, _, err := decode(msg, b)
		if err != nil {
			t.Errorf("decode %x: %v", msg, err)
			continue
		}
		kinds[r.Event]++
		if _, err := judge(msg); err != nil {
			t.Errorf("the judge cannot decode %x: %v", msg, err)
		}
		differential(t, msg)
	}
	for e := flow.EventNew; e <= flow.EventExpectDestroy; e++ {
		if kinds[e] == 0 && e != flow.EventOpen {
			t.Errorf("the corpus has no message of kind %v", e)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, msg := range corpus(f) {
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) >= nlHeader { // most mutations change the length and would end there
			binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
		}
		differential(t, msg)
	})
}

// attr appends an attribute with the values, one after the other.
func attribute(typ uint16, values ...[]byte) []byte {
	v := bytes.Join(values, nil)
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(v)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, v...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func be(v uint64, width int) []byte { return binary.BigEndian.AppendUint64(nil, v)[8-width:] }

func message(typ, flags uint16, pid uint32, attrs ...[]byte) []byte {
	b := make([]byte, msgHeader)
	b = append(b, bytes.Join(attrs, nil)...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], flags)
	binary.NativeEndian.PutUint32(b[12:], pid)
	b[familyOffset] = 2
	return b
}

func v4Tuple(typ uint16, src, dst byte, proto flow.Proto, rest ...[]byte) []byte {
	return attribute(typ|0x8000,
		attribute(ctaTupleIP|0x8000, attribute(ctaIPv4Src, []byte{10, 0, 0, src}), attribute(ctaIPv4Dst, []byte{10, 0, 0, dst})),
		attribute(ctaTupleProto|0x8000, append([][]byte{attribute(ctaProtoNum, []byte{byte(proto)})}, rest...)...))
}

// TestDecodeEverything builds one message with every attribute and looks at every field, by hand: the judge knows
// nothing of attribute 27, of zones inside tuples that are 0, nor of nlmsg_pid.
func TestDecodeEverything(t *testing.T) {
	zoned := v4Tuple(ctaTupleOrig, 1, 2, flow.TCP, attribute(ctaProtoSrcPort, be(1000, 2)), attribute(ctaProtoDstPort, be(80, 2)))
	zone := attribute(ctaTupleZone, be(0, 2))
	zoned = append(zoned, zone...)
	binary.NativeEndian.PutUint16(zoned, uint16(len(zoned)))
	msg := message(subsysCT<<8|msgDelete, 0, 4711,
		zoned,
		v4Tuple(ctaTupleReply, 2, 9, flow.TCP, attribute(ctaProtoSrcPort, be(80, 2)), attribute(ctaProtoDstPort, be(2000, 2))),
		attribute(ctaID, be(0xfedcba98, 4)), attribute(ctaStatus, be(0x21fe, 4)), attribute(ctaMark, be(7, 4)),
		attribute(ctaTimeout, be(99, 4)), attribute(ctaZone, be(65535, 2)),
		attribute(ctaProtoInfo|0x8000, attribute(ctaProtoInfoTCP|0x8000, attribute(ctaState, []byte{7}))),
		attribute(ctaCountersOrig|0x8000, attribute(ctaCountersPackets, be(1<<40, 8)), attribute(ctaCountersBytes, be(1<<63, 8))),
		attribute(ctaCountersReply|0x8000, attribute(ctaCountersPackets, be(3, 8)), attribute(ctaCountersBytes, be(4, 8))),
		attribute(ctaTimestamp|0x8000, attribute(ctaTimestampStart, be(11, 8)), attribute(ctaTimestampStop, be(22, 8))),
		attribute(ctaTimestampEvent, be(33, 8)),
		attribute(ctaHelp|0x8000, attribute(ctaHelpName, []byte("ftp\x00"))),
		v4Tuple(ctaTupleMaster, 5, 6, flow.ICMP, attribute(ctaProtoICMPID, be(0x1234, 2)), attribute(ctaProtoICMPType, []byte{8}), attribute(ctaProtoICMPCode, []byte{1})),
		attribute(ctaLabels, []byte{1, 2, 3, 4}),
		attribute(ctaSecCtx|0x8000, attribute(ctaSecCtxName, []byte("system_u\x00"))),
		attribute(200, []byte("an attribute of a later kernel")),
	)
	b := flow.NewBatch(1, nil)
	r, skipped, err := decode(msg, b)
	if err != nil || skipped != 0 {
		t.Fatal(skipped, err)
	}
	addr := func(last byte) flow.Addr { return flow.AddrFrom4([4]byte{10, 0, 0, last}) }
	want := flow.Record{
		Event:        flow.EventDestroy,
		Orig:         flow.Tuple{Src: addr(1), Dst: addr(2), Proto: flow.TCP, SrcPort: 1000, DstPort: 80, HasZone: true},
		Reply:        flow.Tuple{Src: addr(2), Dst: addr(9), Proto: flow.TCP, SrcPort: 80, DstPort: 2000},
		OrigCounters: flow.Counters{Packets: 1 << 40, Bytes: 1 << 63}, ReplyCounters: flow.Counters{Packets: 3, Bytes: 4},
		Start: 11, Stop: 22, Stamp: 33, ID: 0xfedcba98, Mark: 7, Timeout: 99, Status: 0x21fe, Zone: 65535, State: 7,
		Has: flow.HasOrig | flow.HasReply | flow.HasStatus | flow.HasID | flow.HasMark | flow.HasZone | flow.HasTimeout |
			flow.HasCounters | flow.HasTCP | flow.ByRequest,
		Extra: &flow.Extra{
			Helper: flow.NameFrom("ftp"), HasMaster: true, HasLabels: true, Labels: [16]byte{1, 2, 3, 4}, SecCtx: "system_u",
			Master: flow.Tuple{Src: addr(5), Dst: addr(6), Proto: flow.ICMP, SrcPort: 0x1234, DstPort: 0x801},
		},
	}
	if diff := cmp.Diff(&want, r); diff != "" {
		t.Errorf("decode (-want +got):\n%s", diff)
	}
}

// TestDecodeMalformed has messages of which nothing can be made.
func TestDecodeMalformed(t *testing.T) {
	good := v4Tuple(ctaTupleOrig, 1, 2, flow.UDP)
	tests := []struct {
		name string
		msg  []byte
		want error
	}{
		{"empty", nil, errHeader},
		{"header cut off", message(subsysCT<<8, 0, 0)[:19], errHeader},
		{"other subsystem", message(3<<8, 0, 0, good), errType},
		{"request, no event", message(subsysCT<<8|1, 0, 0, good), errType},
		{"no tuple", message(subsysCT<<8|msgDelete, 0, 0), errOrig},
		{"tuple without addresses", message(subsysCT<<8|msgDelete, 0, 0, attribute(ctaTupleOrig)), errOrig},
		{"IPv4 address of 16 bytes", message(subsysCT<<8|msgDelete, 0, 0, attribute(ctaTupleOrig,
			attribute(ctaTupleIP, attribute(ctaIPv4Src, make([]byte, 16)), attribute(ctaIPv4Dst, make([]byte, 4))))), errOrig},
		{"two families in one tuple", message(subsysCT<<8|msgDelete, 0, 0, attribute(ctaTupleOrig,
			attribute(ctaTupleIP, attribute(ctaIPv4Src, make([]byte, 4)), attribute(ctaIPv6Dst, make([]byte, 16))))), errOrig},
		{"port of 4 bytes", message(subsysCT<<8|msgDelete, 0, 0,
			v4Tuple(ctaTupleOrig, 1, 2, flow.UDP, attribute(ctaProtoSrcPort, be(80, 4)))), errOrig},
		{"two original tuples, the second one broken", message(subsysCT<<8|msgDelete, 0, 0, good, attribute(ctaTupleOrig)), errOrig},
		{"expectation without tuple", message(subsysExp<<8, 0, 0, attribute(ctaExpectClass, be(1, 4))), errOrig},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := flow.NewBatch(1, nil)
			if _, _, err := decode(tt.msg, b); err != tt.want {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
			if len(b.Records) != 0 {
				t.Error("a record is left in the batch")
			}
		})
	}
}

// TestDecodeSkips has messages with one attribute that is not as it should be: the rest is read, the attribute is counted.
func TestDecodeSkips(t *testing.T) {
	orig := v4Tuple(ctaTupleOrig, 1, 2, flow.UDP, attribute(ctaProtoSrcPort, be(1, 2)), attribute(ctaProtoDstPort, be(2, 2)))
	id := attribute(ctaID, be(9, 4))
	wide := func(typ uint16, children ...[]byte) []byte { return attribute(typ|nested, children...) }
	addr := func(last byte) flow.Addr { return flow.AddrFrom4([4]byte{10, 0, 0, last}) }
	base := flow.Record{Event: flow.EventDestroy, Has: flow.HasOrig | flow.HasID, ID: 9,
		Orig: flow.Tuple{Src: addr(1), Dst: addr(2), Proto: flow.UDP, SrcPort: 1, DstPort: 2}}
	for _, tt := range []struct {
		name string
		attr []byte // between two others
		want func(r *flow.Record)
	}{
		{"mark of 3 bytes", attribute(ctaMark, []byte{1, 2, 3}), nil},
		{"mark of 8 bytes", attribute(ctaMark, be(1, 8)), nil},
		{"status of 8 bytes", attribute(ctaStatus, be(1, 8)), nil},
		{"zone of 4 bytes", attribute(ctaZone, be(1, 4)), nil},
		{"timeout of 8 bytes", attribute(ctaTimeout, be(1, 8)), nil},
		{"time past 2262", attribute(ctaTimestampEvent, be(1<<63, 8)), nil},
		{"start of 4 bytes, a stop", wide(ctaTimestamp, attribute(ctaTimestampStart, be(1, 4)), attribute(ctaTimestampStop, be(1, 8))), nil},
		{"a start, stop of 4 bytes", wide(ctaTimestamp, attribute(ctaTimestampStart, be(7, 8)), attribute(ctaTimestampStop, be(1, 4))),
			func(r *flow.Record) { r.Start = 7 }},
		{"TCP state of 2 bytes", wide(ctaProtoInfo, wide(ctaProtoInfoTCP, attribute(ctaState, be(1, 2)))), nil},
		{"reply tuple without addresses", wide(ctaTupleReply), nil},
		{"master without addresses", wide(ctaTupleMaster), func(r *flow.Record) { r.Extra = &flow.Extra{} }},
		{"labels too wide", attribute(ctaLabels, make([]byte, 20)), func(r *flow.Record) { r.Extra = &flow.Extra{} }},
		{"bytes of 4 bytes", wide(ctaCountersOrig, attribute(ctaCountersPackets, be(5, 8)), attribute(ctaCountersBytes, be(5, 4))), nil},
		{"a child past the end of its parent", wide(ctaCountersReply, []byte{40, 0, 1, 0}), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if hostBigEndian && len(tt.attr) > 4 && tt.attr[4] == 40 {
				tt.attr[4], tt.attr[5] = 0, 40
			}
			want := base
			if tt.want != nil {
				tt.want(&want)
			}
			r, skipped, err := decode(message(subsysCT<<8|msgDelete, 0, 0, orig, tt.attr, id), flow.NewBatch(1, nil))
			if err != nil {
				t.Fatal(err)
			}
			if skipped != 1 {
				t.Errorf("%d attributes skipped, want 1", skipped)
			}
			if diff := cmp.Diff(&want, r); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
	for _, tt := range []struct {
		name string
		tail []byte
	}{
		{"attribute past the end", binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, 40), ctaMark)},
		{"attribute shorter than its header", binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, 3), ctaMark)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := base
			r, skipped, err := decode(message(subsysCT<<8|msgDelete, 0, 0, orig, id, tt.tail), flow.NewBatch(1, nil))
			if err != nil || skipped != 1 {
				t.Fatalf("error %v, %d attributes skipped, want 1", err, skipped)
			}
			if diff := cmp.Diff(&want, r); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDecodeCountersOfOneDirection: what the other one carried is not known, and not 0.
func TestDecodeCountersOfOneDirection(t *testing.T) {
	msg := message(subsysCT<<8|msgDelete, 0, 0, v4Tuple(ctaTupleOrig, 1, 2, flow.UDP),
		attribute(ctaCountersOrig|nested, attribute(ctaCountersPackets, be(5, 8)), attribute(ctaCountersBytes, be(5, 8))),
		attribute(ctaCountersReply|nested, attribute(ctaCountersPackets, be(5, 4)), attribute(ctaCountersBytes, be(5, 8))))
	r, skipped, err := decode(msg, flow.NewBatch(1, nil))
	if err != nil || skipped != 1 || r.Has&flow.HasCounters != 0 || r.OrigCounters != (flow.Counters{}) {
		t.Errorf("error %v, %d skipped, has %b, counters %v", err, skipped, r.Has, r.OrigCounters)
	}
}

// TestDecodeNoPorts: for a protocol that the kernel does not track it sends no ports, which is not the port 0.
func TestDecodeNoPorts(t *testing.T) {
	for _, tt := range []struct {
		name  string
		proto flow.Proto
		ports [][]byte
		want  bool
	}{
		{"none", flow.DCCP, nil, true},
		{"ports", flow.DCCP, [][]byte{attribute(ctaProtoSrcPort, be(1, 2)), attribute(ctaProtoDstPort, be(2, 2))}, false},
		{"port 0", flow.UDP, [][]byte{attribute(ctaProtoSrcPort, be(0, 2)), attribute(ctaProtoDstPort, be(0, 2))}, false},
		{"a protocol without ports", 50, nil, false},
	} {
		r, skipped, err := decode(message(subsysCT<<8|msgDelete, 0, 0, v4Tuple(ctaTupleOrig, 1, 2, tt.proto, tt.ports...)),
			flow.NewBatch(1, nil))
		if err != nil || skipped > 0 || r.Has&flow.NoPorts != 0 != tt.want {
			t.Errorf("%s: error %v, %d skipped, has %b", tt.name, err, skipped, r.Has)
		}
	}
}

func TestDecodeAllocates(t *testing.T) {
	msgs := corpus(t)
	b := flow.NewBatch(len(msgs), nil)
	if n := testing.AllocsPerRun(100, func() {
		b.Reset()
		for _, msg := range msgs {
			if _, _, err := decode(msg, b); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d messages, want 0", n, len(msgs))
	}
}

// slowly decodes msg as decode does, every attribute by its type.
func slowly(msg []byte, b *flow.Batch) (flow.Record, int) {
	r := b.Next()
	skipped := decodeFlow(msg[msgHeader:], b, r)
	return *r, skipped
}

// usually decodes msg as decode does.
func usually(msg []byte, b *flow.Batch) (flow.Record, int) {
	r := b.Next()
	skipped := decodeFlow(decodeUsual(msg[msgHeader:], r), b, r)
	return *r, skipped
}

// sameDecoded fails if what lies where it usually does is read otherwise than the same attributes elsewhere.
func sameDecoded(t *testing.T, msg []byte) {
	t.Helper()
	want, wantSkipped := slowly(msg, flow.NewBatch(1, nil))
	got, skipped := usually(msg, flow.NewBatch(1, nil))
	if skipped != wantSkipped {
		t.Fatalf("%x: %d attributes skipped, want %d", msg, skipped, wantSkipped)
	}
	if !reflect.DeepEqual(want, got) {
		t.Fatalf("%x: record (-want +got):\n%s", msg, cmp.Diff(want, got))
	}
}

// TestDecodeUsual holds the two ways to read a message to each other: on what the kernel sends, on the same with each
// byte changed, and cut off everywhere.
func TestDecodeUsual(t *testing.T) {
	whole := 0
	for _, msg := range corpus(t) {
		if typ := binary.NativeEndian.Uint16(msg[4:]); typ != subsysCT<<8|msgDelete && typ != subsysCT<<8|msgNew {
			continue
		}
		var r flow.Record
		if len(decodeUsual(msg[msgHeader:], &r)) == 0 {
			whole++
		}
		sameDecoded(t, msg)
		for i := msgHeader; i < len(msg); i++ {
			sameDecoded(t, msg[:i])
			for _, bits := range []byte{0x01, 0x02, 0x04, 0x80, 0xff} {
				changed := bytes.Clone(msg)
				changed[i] ^= bits
				sameDecoded(t, changed)
			}
		}
	}
	if whole < 10 {
		t.Errorf("%d messages were read by the short way alone, of the corpus", whole)
	}
}

func FuzzDecodeUsual(f *testing.F) {
	for _, msg := range corpus(f) {
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) >= msgHeader {
			sameDecoded(t, msg)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	kinds := map[string]func(r *flow.Record) bool{
		"tcp": func(r *flow.Record) bool { return r.Orig.Proto == flow.TCP && r.Has&flow.HasTCP != 0 && r.Extra == nil },
		"all": func(*flow.Record) bool { return true },
	}
	for kind, is := range kinds {
		b.Run(kind, func(b *testing.B) {
			batch := flow.NewBatch(256, nil)
			var msgs [][]byte
			for _, msg := range corpus(b) {
				if binary.NativeEndian.Uint16(msg[4:]) != subsysCT<<8|msgDelete {
					continue
				}
				batch.Reset()
				if r, _, err := decode(msg, batch); err == nil && is(r) {
					msgs = append(msgs, msg)
				}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if batch.Full() {
					batch.Reset()
				}
				if _, _, err := decode(msgs[i], batch); err != nil {
					b.Fatal(err)
				}
				if i++; i == len(msgs) {
					i = 0
				}
			}
		})
	}
}
