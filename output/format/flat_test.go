package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/ctlogd/ctlogd/flow"
)

// allKeys are the keys of the format in their order.
var allKeys = slices.Concat([]string{"v", "time", "time_source", "clock", "event"}, keyNames[:],
	[]string{"cause", "from", "to", "lost", "output", "origin", "lines", "hash", "note"})

// withCommunity returns an encoder of the flat format that has all keys but those of drop.
func withCommunity(t testing.TB, drop ...string) Encoder {
	t.Helper()
	o := Options{Host: exampleHost, Observer: exampleObserver, Fields: Fields{Drop: drop}}
	for _, k := range community.names() {
		if !slices.Contains(drop, k) && !slices.ContainsFunc(drop, func(d string) bool { return slices.Contains(hashed.names(), d) }) {
			o.Add = append(o.Add, k)
		}
	}
	e, err := New("flat", o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func flatEncoder(t testing.TB, drop ...string) Encoder {
	t.Helper()
	e, err := New("flat", Options{Host: exampleHost, Observer: exampleObserver, Fields: Fields{Drop: drop}})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// parse returns an object's keys in order and its values.
func parse(t testing.TB, line []byte) (keys []string, values map[string]any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	if err := dec.Decode(&values); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	if dec.InputOffset() != int64(len(line)) || bytes.ContainsAny(line, "\n\r") {
		t.Fatalf("not one line of one object: %q", line)
	}
	dec = json.NewDecoder(bytes.NewReader(line))
	if _, err := dec.Token(); err != nil {
		t.Fatal(err)
	}
	for dec.More() {
		k, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k.(string))
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			t.Fatal(err)
		}
	}
	return keys, values
}

func schema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile("../../docs/flow.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// generate returns n records of all events, as varied as the kernel's may be, always the same ones.
func generate(n int) []example {
	rng := rand.New(rand.NewPCG(3, 4))
	chance := func(percent int) bool { return rng.IntN(100) < percent }
	protos := []flow.Proto{
		flow.TCP, flow.UDP, flow.ICMP, flow.ICMPv6, flow.GRE, flow.SCTP, flow.DCCP, flow.UDPLite, 2, 50, 200,
	}
	randTuple := func(p flow.Proto, v6 bool) (t flow.Tuple) {
		t.Proto, t.V6 = p, v6
		for _, a := range []*flow.Addr{&t.Src, &t.Dst} {
			if v6 {
				for i := range a {
					if chance(60) {
						a[i] = byte(rng.Uint32())
					}
				}
				continue
			}
			*a = flow.AddrFrom4([4]byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())})
		}
		if p.HasPorts() || p.IsICMP() || p == flow.GRE {
			t.SrcPort, t.DstPort = uint16(rng.Uint32()), uint16(rng.Uint32())
		}
		if chance(10) {
			t.Zone, t.HasZone = uint16(rng.Uint32()), true
		}
		return t
	}
	foreign := func(n int) string {
		b := make([]byte, 1+rng.IntN(n))
		for i := range b {
			b[i] = byte(1 + rng.UintN(255))
		}
		return string(b)
	}
	when := func() int64 { return rng.Int64N(2e18) + 1 }
	out := make([]example, 0, n)
	for i := range n {
		p := protos[rng.IntN(len(protos))]
		v6 := p == flow.ICMPv6 || p != flow.ICMP && chance(40)
		r := flow.Record{
			Event: flow.Event(1 + i%7), Has: flow.HasOrig, Received: when(),
			ID: rng.Uint32(), Mark: rng.Uint32(), Timeout: rng.Uint32(), Status: flow.Status(rng.Uint32() >> rng.UintN(32)),
			Zone: uint16(rng.Uint32()), State: uint8(rng.UintN(12)), Orig: randTuple(p, v6), Reply: randTuple(p, v6),
			OrigCounters:  flow.Counters{Packets: rng.Uint64(), Bytes: math.MaxUint64},
			ReplyCounters: flow.Counters{Packets: 0, Bytes: rng.Uint64() >> rng.UintN(64)},
		}
		if chance(50) { // without NAT, or with some of it
			o := &r.Orig
			r.Reply = flow.Tuple{Src: o.Dst, Dst: o.Src, SrcPort: o.DstPort, DstPort: o.SrcPort, Proto: p, V6: v6}
			if p.IsICMP() {
				r.Reply.SrcPort, r.Reply.DstPort = o.SrcPort, 0
			}
			if chance(30) {
				r.Reply.DstPort++
			}
		}
		has := []flow.Has{flow.HasReply, flow.HasID, flow.HasMark, flow.HasZone, flow.HasTimeout}
		if r.Event < flow.EventExpectNew {
			has = append(has, flow.HasStatus, flow.HasCounters, flow.ByRequest, flow.HelperUnknown)
		}
		for _, h := range has {
			if chance(70) {
				r.Has |= h
			}
		}
		if r.Event < flow.EventExpectNew && chance(80) {
			r.Has |= map[flow.Proto]flow.Has{flow.TCP: flow.HasTCP, flow.SCTP: flow.HasSCTP, flow.DCCP: flow.HasDCCP}[p]
		}
		if chance(60) {
			x := &flow.Extra{Class: rng.Uint32(), Flags: rng.Uint32() >> rng.UintN(32)}
			if chance(50) {
				x.Helper = flow.NameFrom(foreign(20))
			}
			if x.HasMaster = chance(50); x.HasMaster {
				x.Master = randTuple(protos[rng.IntN(len(protos))], v6)
			}
			if r.Event < flow.EventExpectNew {
				if x.HasLabels = chance(50); x.HasLabels {
					x.Labels[rng.IntN(16)] = byte(rng.Uint32())
				}
				if chance(50) {
					x.SecCtx = foreign(200)
				}
				if i%2 == 0 {
					x.Subscriber = subscriberOf(i)
				}
			}
			r.Extra = x
		}
		if r.Event < flow.EventExpectNew {
			if chance(70) {
				r.Start = when()
			}
			if chance(70) {
				r.Stop = when()
			}
			if chance(70) {
				r.Stamp = when()
			}
		}
		clock := flow.Has(rng.UintN(4)) * flow.Unsynchronized
		r.Has |= clock
		if i%97 == 0 {
			r = flow.Record{Event: flow.EventCheckpoint, Has: clock, Received: when(), Extra: &flow.Extra{Note: &flow.Note{
				Output: "archive:" + foreign(40), Origin: "ctlogd archive " + foreign(10), Lines: rng.Uint64() >> 1, Text: foreign(200)}}}
			if chance(50) {
				r.Extra.Note.Hash = strings.Repeat("0af9", 16)
			}
		}
		if r.Event == flow.EventGap {
			r = flow.Record{Event: flow.EventGap, Has: clock, Start: when(), Stop: when(), Received: when(), Extra: &flow.Extra{}}
			r.Extra.Gap = flow.Gap{
				Cause: flow.Cause(1 + rng.IntN(len(flow.CauseNames)-1)), Lost: rng.Uint64(), LostKnown: chance(50),
			}
			if chance(50) {
				r.Extra.Gap.Output = foreign(40)
			}
		}
		if i%5 == 0 {
			r.Netns = flow.HoldNetns(int32(i%9)-1, []string{"", "blue", "\xff\n\"="}[i%3])
		}
		out = append(out, example{fmt.Sprintf("generated %d", i), r})
	}
	return out
}

// subscriberOf returns a subscriber with hostile texts.
func subscriberOf(i int) (s flow.Subscriber) {
	rng := rand.New(rand.NewPCG(uint64(i), 7))
	for _, text := range []*string{&s.ID, &s.Name, &s.Next, &s.Source} {
		b := make([]byte, 1+rng.IntN(255))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		*text = string(b)
	}
	s.Dst = i%4 == 0
	return s
}

// TestFlatSchema holds what the encoder writes to docs/flow.schema.json, to the order of the keys, and to "one object
// in one line".
func TestFlatSchema(t *testing.T) {
	s := schema(t)
	e := withCommunity(t)
	seen := map[string]bool{}
	var line []byte
	for _, ex := range append(examples(), generate(2100)...) {
		line = e.Append(line[:0], &ex.rec)
		keys, _ := parse(t, line)
		at := -1
		for _, k := range keys {
			i := slices.Index(allKeys, k)
			if i <= at {
				t.Fatalf("%s: key %q is unknown, repeated or out of order in %s", ex.name, k, line)
			}
			at = i
			seen[k] = true
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(v); err != nil {
			t.Fatalf("%s: %v\n%s", ex.name, err, line)
		}
	}
	for _, k := range allKeys {
		if !seen[k] {
			t.Errorf("no record had the key %q", k)
		}
	}
}

// TestSchemaRefuses makes sure that the schema can tell: each change to a valid line makes it invalid.
func TestSchemaRefuses(t *testing.T) {
	s := schema(t)
	e := flatEncoder(t)
	for _, tt := range []struct {
		example, name string
		change        func(map[string]any)
	}{
		{"destroy", "unknown key", func(m map[string]any) { m["nat_ip"] = "192.0.2.1" }},
		{"destroy", "no time", func(m map[string]any) { delete(m, "time") }},
		{"destroy", "time without zone", func(m map[string]any) { m["time"] = "2026-03-09T14:02:11.504113291" }},
		{"destroy", "three digits", func(m map[string]any) { m["time"] = "2026-03-09T14:02:11.504Z" }},
		{"destroy", "port as string", func(m map[string]any) { m["src_port"] = "51544" }},
		{"destroy", "port out of range", func(m map[string]any) { m["src_port"] = 65536 }},
		{"destroy", "no end reason", func(m map[string]any) { delete(m, "end_reason") }},
		{"destroy", "no source", func(m map[string]any) { delete(m, "src_ip") }},
		{"destroy", "no port", func(m map[string]any) { delete(m, "src_port"); delete(m, "dst_port") }},
		{"destroy", "NAT without address", func(m map[string]any) { delete(m, "nat_src_ip"); delete(m, "nat_src_port") }},
		{"destroy", "not an address", func(m map[string]any) { m["src_ip"] = "10.64.3.256" }},
		{"destroy", "id without start", func(m map[string]any) { delete(m, "start"); delete(m, "duration_ms") }},
		{"destroy", "a gap's key", func(m map[string]any) { m["lost"] = 3 }},
		{"destroy", "icmp in tcp", func(m map[string]any) { m["icmp_type"], m["icmp_code"], m["icmp_id"] = 8, 0, 1 }},
		{"new", "flow id of a new flow", func(m map[string]any) {
			m["start"], m["flow_id"] = m["time"], "bfea1b8136814244aa4f57e3e4f20ec5"
		}},
		{"new", "end of a new flow", func(m map[string]any) { m["end_reason"] = "unknown" }},
		{"open", "end of an open flow", func(m map[string]any) { m["end"] = m["start"] }},
		{"expect_new", "NAT of an expectation", func(m map[string]any) { m["nat"] = "none" }},
		{"gap", "no cause", func(m map[string]any) { delete(m, "cause") }},
		{"gap", "addresses", func(m map[string]any) { m["src_ip"] = "10.0.0.1" }},
		{"gap", "unknown cause", func(m map[string]any) { m["cause"] = "" }},
		{"gap", "a checkpoint's key", func(m map[string]any) { m["lines"] = 3 }},
		{"checkpoint", "no note", func(m map[string]any) { delete(m, "note") }},
		{"checkpoint", "a short hash", func(m map[string]any) { m["hash"] = "ab" }},
		{"checkpoint", "a gap's key", func(m map[string]any) { m["cause"] = "crash" }},
	} {
		r := exampleRecord(t, tt.example)
		_, v := parse(t, e.Append(nil, &r))
		tt.change(v)
		if s.Validate(any(v)) == nil {
			t.Errorf("%s: valid with %s", tt.example, tt.name)
		}
	}
}

// TestFlatDrop drops each key by itself and all at once, and wants the rest untouched.
func TestFlatDrop(t *testing.T) {
	recs := append(examples(), generate(42)...)
	for _, drop := range append(slices.Collect(slices.Chunk(keyNames[:], 1)), keyNames[:]) {
		e, full := withCommunity(t, drop...), withCommunity(t)
		dropped := false
		for _, ex := range recs {
			_, want := parse(t, full.Append(nil, &ex.rec))
			n := len(want)
			for _, k := range drop {
				delete(want, k)
				if slices.Contains(hashed.names(), k) { // a hash of it would give it away
					delete(want, "community_id")
					delete(want, "nat_community_id")
				}
			}
			dropped = dropped || len(want) < n
			_, got := parse(t, e.Append(nil, &ex.rec))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("drop %s: %s (-want +got):\n%s", drop, ex.name, diff)
			}
		}
		if !dropped {
			t.Errorf("drop %s: no record had it", drop)
		}
	}
}

func TestFlatDropErrors(t *testing.T) {
	allowed := "; allowed are: host, flow_id, start, end, duration_ms, proto, "
	for _, k := range []string{"dst_adr", "", "dst_*", "v", "time", "event", "cause", "lost"} {
		_, err := New("flat", Options{Fields: Fields{Drop: []string{"dst_ip", k}}})
		if want := fmt.Sprintf("fields.drop: cannot drop %q", k) + allowed; err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("drop %q: error %v, want %s...", k, err, want)
		}
	}
}

// TestFlatCases are the decisions that the examples do not show.
func TestFlatCases(t *testing.T) {
	const tuples = flow.HasOrig | flow.HasReply
	at := ns("2026-03-09T14:02:11Z")
	for _, tt := range []struct {
		name string
		rec  flow.Record
		want string
	}{
		{
			name: "the port alone translated",
			rec: flow.Record{
				Event: flow.EventDestroy, Has: tuples, Received: at,
				Orig:  tuple(flow.UDP, "10.0.0.1", 1, "10.0.0.2", 2),
				Reply: tuple(flow.UDP, "10.0.0.2", 2, "10.0.0.1", 9),
			},
			want: `"proto":"udp","proto_num":17,"src_ip":"10.0.0.1","src_port":1,"dst_ip":"10.0.0.2","dst_port":2,` +
				`"nat":"snat","nat_src_ip":"10.0.0.1","nat_src_port":9,"end_reason":"unknown"}`,
		},
		{
			name: "both ends translated, in IPv6",
			rec: flow.Record{
				Event: flow.EventUpdate, Has: tuples, Received: at,
				Orig:  tuple(flow.UDPLite, "2001:db8::1", 1, "2001:db8::2", 2),
				Reply: tuple(flow.UDPLite, "2001:db8::3", 3, "2001:db8::4", 1),
			},
			want: `"proto":"udplite","proto_num":136,"src_ip":"2001:db8::1","src_port":1,"dst_ip":"2001:db8::2",` +
				`"dst_port":2,"nat":"both","nat_src_ip":"2001:db8::4","nat_src_port":1,` +
				`"nat_dst_ip":"2001:db8::3","nat_dst_port":3}`,
		},
		{
			name: "a ping with another id alone",
			rec: flow.Record{
				Event: flow.EventUpdate, Has: tuples, Received: at,
				Orig:  tuple(flow.ICMPv6, "2001:db8::1", 7, "2001:db8::2", 128<<8),
				Reply: tuple(flow.ICMPv6, "2001:db8::2", 8, "2001:db8::1", 129<<8),
			},
			want: `"proto":"icmpv6","proto_num":58,"src_ip":"2001:db8::1","dst_ip":"2001:db8::2","nat":"snat",` +
				`"nat_src_ip":"2001:db8::1","icmp_type":128,"icmp_code":0,"icmp_id":7,"nat_icmp_id":8}`,
		},
		{
			name: "a ping with its own id",
			rec: flow.Record{
				Event: flow.EventUpdate, Has: tuples, Received: at,
				Orig:  tuple(flow.ICMP, "10.0.0.1", 7, "10.0.0.2", 3<<8|1),
				Reply: tuple(flow.ICMP, "10.0.0.2", 7, "10.0.0.9", 0),
			},
			want: `"proto":"icmp","proto_num":1,"src_ip":"10.0.0.1","dst_ip":"10.0.0.2","nat":"snat",` +
				`"nat_src_ip":"10.0.0.9","icmp_type":3,"icmp_code":1,"icmp_id":7}`,
		},
		{
			name: "the responder's key translated",
			rec: flow.Record{
				Event: flow.EventUpdate, Has: tuples, Received: at,
				Orig:  tuple(flow.GRE, "10.0.0.1", 7, "10.0.0.2", 8),
				Reply: tuple(flow.GRE, "10.0.0.2", 9, "10.0.0.1", 7),
			},
			want: `"proto":"gre","proto_num":47,"src_ip":"10.0.0.1","dst_ip":"10.0.0.2","nat":"dnat",` +
				`"nat_dst_ip":"10.0.0.2","gre_key":7,"gre_dst_key":8,"nat_gre_dst_key":9}`,
		},
		{
			name: "no reply tuple",
			rec: flow.Record{
				Event: flow.EventUpdate, Has: flow.HasOrig, Received: at,
				Orig: tuple(flow.ICMP, "10.0.0.1", 7, "10.0.0.2", 8<<8),
			},
			want: `"proto":"icmp","proto_num":1,"src_ip":"10.0.0.1","dst_ip":"10.0.0.2","icmp_type":8,"icmp_code":0,` +
				`"icmp_id":7}`,
		},
		{
			name: "an end before the start",
			rec: flow.Record{
				Event: flow.EventDestroy, Has: flow.HasOrig | flow.HasStatus, Received: at, Start: at + 1, Stop: at,
				Orig: tuple(50, "10.0.0.1", 0, "10.0.0.2", 0),
			},
			want: `"start":"2026-03-09T14:02:11.000000001Z",` +
				`"end":"2026-03-09T14:02:11.000000000Z","proto":"esp","proto_num":50,"src_ip":"10.0.0.1","dst_ip":"10.0.0.2",` +
				`"status":[],"end_reason":"timeout"}`,
		},
		{
			name: "a protocol whose ports the kernel does not tell",
			rec: flow.Record{
				Event: flow.EventDestroy, Has: flow.HasOrig | flow.HasReply | flow.HasStatus | flow.NoPorts, Received: at,
				Orig: tuple(flow.DCCP, "10.0.0.1", 0, "10.0.0.2", 0), Reply: tuple(flow.DCCP, "10.0.0.2", 0, "192.0.2.1", 0),
			},
			want: `"proto":"dccp","proto_num":33,"src_ip":"10.0.0.1","dst_ip":"10.0.0.2","nat":"snat","nat_src_ip":"192.0.2.1",` +
				`"status":[],"end_reason":"timeout"}`,
		},
		{
			name: "a stop that is not an end",
			rec: flow.Record{
				Event: flow.EventOpen, Has: flow.HasOrig, Received: at, Stop: at, Orig: tuple(50, "10.0.0.1", 0, "10.0.0.2", 0),
			},
			want: `"proto":"esp","proto_num":50,"src_ip":"10.0.0.1","dst_ip":"10.0.0.2"}`,
		},
		{
			name: "an expectation without a mask",
			rec: flow.Record{
				Event: flow.EventExpectDestroy, Has: flow.HasOrig, Received: at, Orig: tuple(50, "10.0.0.1", 0, "10.0.0.2", 0),
			},
			want: `"proto":"esp","proto_num":50,"src_ip":"10.0.0.1","dst_ip":"10.0.0.2"}`,
		},
		{
			name: "zeros that are known",
			rec: flow.Record{
				Event: flow.EventNew, Received: at,
				Has: flow.HasID | flow.HasMark | flow.HasZone | flow.HasTimeout | flow.HasCounters | flow.HasTCP | flow.HasStatus,
			},
			want: `"orig_packets":0,"orig_bytes":0,"reply_packets":0,"reply_bytes":0,"tcp_state":"none","status":[],` +
				`"zone":0,"mark":0,"ct_id":0,"timeout_s":0}`,
		},
		{
			name: "foreign bytes",
			rec: flow.Record{
				Event: flow.EventNew, Received: at,
				Extra: &flow.Extra{Helper: flow.NameFrom("f\"t\\p\xff"), SecCtx: "a\nb\u2028\x00"},
			},
			want: `"helper":"f\"t\\p\ufffd","secctx":"a\nb\u2028\u0000"}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, err := New("flat", Options{}) // neither host nor flow_id
			if err != nil {
				t.Fatal(err)
			}
			line := string(e.Append(nil, &tt.rec))
			_, got, ok := strings.Cut(line, fmt.Sprintf(`"event":"%s",`, tt.rec.Event))
			if !ok {
				t.Fatalf("no event in %s", line)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestFlatStatusCache makes many different statuses share the few places.
func TestFlatStatusCache(t *testing.T) {
	e := flatEncoder(t)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		r := flow.Record{Event: flow.EventNew, Has: flow.HasStatus, Received: 1, Status: flow.Status(rng.UintN(1 << 10))}
		want := string(appendBits(nil, uint32(r.Status), flow.StatusNames[:]))
		if line := string(e.Append(nil, &r)); !strings.HasSuffix(line, `"status":`+want+"}") {
			t.Fatalf("status %#x, want %s: %s", r.Status, want, line)
		}
	}
}

func TestFlatAllocs(t *testing.T) {
	e := flatEncoder(t)
	recs := append(examples(), generate(140)...)
	var buf []byte
	appendAll := func() {
		buf = buf[:0]
		for i := range recs {
			buf = e.Append(buf, &recs[i].rec)
		}
	}
	appendAll()
	if n := testing.AllocsPerRun(20, appendAll); n != 0 {
		t.Errorf("%v allocations for %d records", n, len(recs))
	}
}

func FuzzFlatForeignBytes(f *testing.F) {
	f.Add("ftp", "system_u:object_r:unlabeled_t:s0", "jsonl:/x", "gw1")
	f.Add("\xff\x00\"", "\u2028\\", "\n", "\x7f\xed\xa0\x80")
	f.Fuzz(func(t *testing.T, helper, secctx, output, host string) {
		e, err := New("flat", Options{Host: host, Observer: host})
		if err != nil {
			t.Fatal(err)
		}
		x := &flow.Extra{Helper: flow.NameFrom(helper), SecCtx: secctx}
		x.Gap = flow.Gap{Cause: flow.CauseOverrun, Output: output}
		_, rec := parse(t, e.Append(nil, &flow.Record{Event: flow.EventNew, Received: 1, Extra: x}))
		_, gap := parse(t, e.Append(nil, &flow.Record{Event: flow.EventGap, Received: 1, Extra: x}))
		for _, tt := range []struct {
			name, in string
			got      any
		}{
			{"helper", x.Helper.String(), rec["helper"]}, {"secctx", secctx, rec["secctx"]}, {"output", output, gap["output"]},
			{"host", host, rec["host"]}, {"host", host, gap["host"]},
		} {
			var want any
			if tt.in != "" { // what encoding/json makes of it, there and back
				b, err := json.Marshal(tt.in)
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(b, &want); err != nil {
					t.Fatal(err)
				}
			}
			if tt.got != want {
				t.Errorf("%s: %q came back as %q", tt.name, tt.in, tt.got)
			}
		}
	})
}

// TestDocs holds docs/json.md to the encoder: its table has the keys in their order, its examples are what the encoder
// writes, its test vectors those of the code.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, row := range regexp.MustCompile("(?m)^\\| ((?:`[a-z_]+`(?:, )?)+) \\|").FindAllSubmatch(doc, -1) {
		keys = append(keys, regexp.MustCompile("[a-z_]+").FindAllString(string(row[1]), -1)...)
	}
	if diff := cmp.Diff(allKeys, keys); diff != "" {
		t.Errorf("keys (-format +docs/json.md):\n%s", diff)
	}

	e := flatEncoder(t)
	for _, ex := range examples() {
		want := fmt.Sprintf("\n%s:\n\n```json\n%s\n```\n", ex.name, e.Append(nil, &ex.rec))
		if !bytes.Contains(doc, []byte(want)) {
			t.Errorf("docs/json.md lacks:%s", want)
		}
	}
	for _, v := range flowIDVectors {
		if !bytes.Contains(doc, []byte(v.want)) {
			t.Errorf("docs/json.md lacks the flow_id %s", v.want)
		}
	}

	raw, err := os.ReadFile("../../docs/flow.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Properties map[string]any
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	for _, k := range allKeys {
		if _, ok := s.Properties[k]; !ok {
			t.Errorf("docs/flow.schema.json lacks %s", k)
		}
	}
	if len(s.Properties) != len(allKeys) {
		t.Errorf("docs/flow.schema.json has %d keys, want %d", len(s.Properties), len(allKeys))
	}
}

// TestFlatTimesSort holds the promise that times sort as strings do.
func TestFlatTimesSort(t *testing.T) {
	var c Clock
	base := time.Date(2026, 12, 31, 23, 59, 59, 999999990, time.UTC).UnixNano()
	last := ""
	for i := range int64(30) {
		if s := string(c.Append(nil, base+i)); s <= last {
			t.Fatalf("%s after %s", s, last)
		} else {
			last = s
		}
	}
}

// TestDocsQueries runs the jq of docs/json.md on the examples.
func TestDocsQueries(t *testing.T) {
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("jq is not installed")
	}
	doc, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	e := flatEncoder(t)
	var lines []byte
	for _, ex := range examples() {
		lines = append(e.Append(lines, &ex.rec), '\n')
	}
	if err := os.WriteFile(dir+"/flows.jsonl", lines, 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range regexp.MustCompile("(?s)```sh\n(jq .*?)```").FindAllStringSubmatch(string(doc), -1) {
		cmd := exec.Command("sh", "-c", m[1])
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s\n%s", err, out, m[1])
		}
		got = append(got, string(out))
	}
	_, ping, _ := strings.Cut(string(lines), "\n")
	ping, _, _ = strings.Cut(ping, "\n")
	want := []string{
		`{"event":"destroy","start":"2026-03-09T14:02:11.504113291Z","end":"2026-03-09T14:04:36.118920404Z","proto":"tcp",` +
			`"src_ip":"10.64.3.7","src_port":51544,"dst_ip":"198.51.100.80","dst_port":443}` + "\n",
		`{"cause":"disk_full","from":"2026-03-09T14:02:11.000000000Z","to":"2026-03-09T14:02:12.500000000Z","lost":4096,` +
			`"output":"jsonl:/var/log/ctlogd/flows.jsonl"}` + "\n" +
			`{"cause":"downtime","from":"2026-03-09T14:05:00.000000000Z","to":"2026-03-09T14:05:09.500000000Z","lost":null,` +
			`"output":null}` + "\n",
		ping + "\n",
		"{\n  \"10.64.3.7\": 22944,\n  \"2001:db8:64::7\": 0\n}\n",
		`{"time":"2026-03-09T14:02:11.500000000Z","clock":["unsynchronized","stepped"],` +
			`"flow_id":"90ec4fc0ed01f8a79a5a8731b60b02e1"}` + "\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
