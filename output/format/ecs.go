package format

import (
	"math"
	"slices"
	"strconv"

	"github.com/ctlogd/ctlogd/flow"
)

// ecsVersion is the version of the Elastic Common Schema that the documents follow.
const ecsVersion = "9.4.0"

// ecs is the Elastic Common Schema: nested objects, NAT in source.nat and destination.nat. What the schema has no field
// for stands under ctlogd, by its flat name. A gap is an event of kind pipeline_error.
type ecs struct {
	parts
	heads   [len(flow.EventNames)]string
	protos  [2][256]string // network, up to iana_number, by family and flow.Proto
	reasons [len(flow.EndReasonNames)]string
	ctlogd  [markCount]string
}

// ecsTypes are the values of event.type by event.
var ecsTypes = [len(flow.EventNames)]string{
	flow.EventNew: "start", flow.EventUpdate: "info", flow.EventDestroy: "end", flow.EventOpen: "info",
	flow.EventExpectNew: "info", flow.EventExpectDestroy: "info",
}

func newECS(p parts) Encoder {
	e := &ecs{parts: p}
	observer := `,"observer":{"type":"firewall","vendor":"ctlogd","product":"ctlogd"`
	if e.Version != "" {
		observer += `,"version":` + string(appendString(nil, e.Version))
	}
	if e.has(kHost) {
		observer += `,"hostname":` + string(appendString(nil, e.Host))
	}
	for ev, name := range flow.EventNames {
		kind, types := "event", `"connection","`+ecsTypes[ev]+`"`
		switch flow.Event(ev) {
		case flow.EventGap:
			kind, types = "pipeline_error", `"info"`
		case flow.EventCheckpoint:
			types = `"info"`
		}
		e.heads[ev] = `","ecs":{"version":"` + ecsVersion + `"}` + observer + `},"event":{"kind":"` + kind +
			`","category":["network"],"type":[` + types + `],"module":"ctlogd","dataset":"ctlogd.flow","action":"` + name + `"`
	}
	for i := range e.protos[0] {
		for v6, family := range []string{"ipv4", "ipv6"} {
			s := ""
			if e.has(kProto) {
				s = `,"type":"` + family + `","transport":"` + ianaKeyword(flow.Proto(i)) + `"`
			}
			if e.has(kProtoNum) {
				s += `,"iana_number":"` + strconv.Itoa(i) + `"`
			}
			e.protos[v6][i] = s
		}
	}
	for i, name := range flow.EndReasonNames {
		if e.has(kEndReason) {
			e.reasons[i] = `,"reason":"` + name + `"`
		}
	}
	for i := range e.ctlogd {
		e.ctlogd[i] = `,"ctlogd":{"v":1` + marks(i)
	}
	return e
}

// ianaKeyword is the protocol's name in IANA's registry, where it is another than ours.
func ianaKeyword(p flow.Proto) string {
	switch p {
	case 4:
		return "ipv4"
	case flow.ICMPv6:
		return "ipv6-icmp"
	case 89:
		return "ospfigp"
	}
	return p.String()
}

// long returns v as a signed number of 64 bits can hold it, which is what JSON's readers have.
func long(v uint64) uint64 { return min(v, math.MaxInt64) }

// sum adds two such numbers.
func sum(a, b uint64) uint64 { return long(long(a) + long(b)) }

// Append appends r as a JSON object.
func (e *ecs) Append(dst []byte, r *flow.Record) []byte {
	b := slices.Grow(dst, 2048)
	now, kernel := r.Time()
	b = append(b, `{"@timestamp":"`...)
	nowAt := len(b)
	b = e.clock.Append(b, now)
	b = append(b, e.heads[eventOf(r)]...)
	if r.Event >= flow.EventGap {
		return e.appendReport(b, r)
	}

	if e.has(kFlowID) {
		if id, ok := FlowID(e.observer, r); ok {
			b = append(appendHex(append(b, `,"id":"`...), id[:]), '"')
		}
	}
	if r.Has&flow.HasStatus != 0 && e.has(kStatus) {
		if r.Status&flow.StatusSeenReply != 0 {
			b = append(b, `,"outcome":"success"`...)
		} else {
			b = append(b, `,"outcome":"unknown"`...)
		}
	}
	if r.Start != 0 && e.has(kStart) {
		b = append(e.clock.Append(append(b, `,"start":"`...), r.Start), '"')
	}
	end, duration := ended(r)
	if end != 0 && e.has(kEnd) {
		b = append(b, `,"end":"`...)
		b = append(b, b[nowAt:nowAt+timeLen]...)
		b = append(b, '"')
	}
	if duration >= 0 && e.has(kDurationMS) {
		b = appendUint(append(b, `,"duration":`...), uint64(duration))
	}
	if r.Event == flow.EventDestroy {
		b = append(b, e.reasons[r.EndReason()]...)
	}
	b = append(b, '}')

	if r.Has&flow.HasOrig != 0 {
		b = e.appendEnds(b, r)
		b = e.appendNetwork(b, r)
	}

	b = append(b, e.ctlogd[markOf(r, kernel)]...)
	return append(e.appendOwn(b, r), `}}`...)
}

// appendEnds appends source, destination, and all their addresses once more as related.ip.
func (e *ecs) appendEnds(b []byte, r *flow.Record) []byte {
	t, p, nat := &r.Orig, &r.Reply, r.NAT()
	ports := r.HasPorts()
	counted := r.Has&flow.HasCounters != 0
	var addrs [4][2]int // where they stand in b
	n := 0

	b, start, members := opened(b, `,"source":`)
	if e.has(kSrcIP) {
		b = append(b, `,"ip":"`...)
		addrs[n][0] = len(b)
		b = appendAddr(b, &t.Src, t.V6)
		addrs[n][1] = len(b)
		n++
		b = append(b, '"')
	}
	if ports && e.has(kSrcPort) {
		b = appendUint(append(b, `,"port":`...), uint64(t.SrcPort))
	}
	if counted && e.has(kOrigBytes) {
		b = appendUint(append(b, `,"bytes":`...), long(r.OrigCounters.Bytes))
	}
	if counted && e.has(kOrigPackets) {
		b = appendUint(append(b, `,"packets":`...), long(r.OrigCounters.Packets))
	}
	if nat&flow.NATSrc != 0 {
		var at, inside int
		b, at, inside = opened(b, `,"nat":`)
		if e.has(kNATSrcIP) {
			b = append(b, `,"ip":"`...)
			from := len(b)
			b = appendAddr(b, &p.Dst, t.V6)
			if p.Dst != t.Src || !e.has(kSrcIP) {
				addrs[n] = [2]int{from, len(b)}
				n++
			}
			b = append(b, '"')
		}
		if ports && e.has(kNATSrcPort) {
			b = appendUint(append(b, `,"port":`...), uint64(p.DstPort))
		}
		b = closed(b, at, inside)
	}
	if s := user(r, false); s != nil {
		b = e.appendUser(b, s, `,"user":`, `,"id":`)
	}
	b = closed(b, start, members)

	b, start, members = opened(b, `,"destination":`)
	if e.has(kDstIP) {
		b = append(b, `,"ip":"`...)
		from := len(b)
		b = appendAddr(b, &t.Dst, t.V6)
		if t.Dst != t.Src || !e.has(kSrcIP) {
			addrs[n] = [2]int{from, len(b)}
			n++
		}
		b = append(b, '"')
	}
	if ports && e.has(kDstPort) {
		b = appendUint(append(b, `,"port":`...), uint64(t.DstPort))
	}
	if counted && e.has(kReplyBytes) {
		b = appendUint(append(b, `,"bytes":`...), long(r.ReplyCounters.Bytes))
	}
	if counted && e.has(kReplyPackets) {
		b = appendUint(append(b, `,"packets":`...), long(r.ReplyCounters.Packets))
	}
	if nat&flow.NATDst != 0 {
		var at, inside int
		b, at, inside = opened(b, `,"nat":`)
		if e.has(kNATDstIP) {
			b = append(b, `,"ip":"`...)
			from := len(b)
			b = appendAddr(b, &p.Src, t.V6)
			if p.Src != t.Dst || !e.has(kDstIP) {
				addrs[n] = [2]int{from, len(b)}
				n++
			}
			b = append(b, '"')
		}
		if ports && e.has(kNATDstPort) {
			b = appendUint(append(b, `,"port":`...), uint64(p.SrcPort))
		}
		b = closed(b, at, inside)
	}
	if s := user(r, true); s != nil {
		b = e.appendUser(b, s, `,"user":`, `,"id":`)
	}
	b = closed(b, start, members)

	if n == 0 {
		return b
	}
	b = append(b, `,"related":{"ip":[`...)
	for i, a := range addrs[:n] {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), b[a[0]:a[1]]...), '"')
	}
	return append(b, `]}`...)
}

// appendNetwork appends protocol, community id and what both sides carried together.
func (e *ecs) appendNetwork(b []byte, r *flow.Record) []byte {
	b, start, members := opened(b, `,"network":`)
	family := 0
	if r.Orig.V6 {
		family = 1
	}
	b = append(b, e.protos[family][r.Orig.Proto]...)
	if e.has(kCommunityID) && !expectation(r) {
		b = append(e.ids.flow(append(b, `,"community_id":"`...), r), '"')
	}
	if r.Has&flow.HasCounters != 0 {
		if e.has(kOrigBytes) && e.has(kReplyBytes) {
			b = appendUint(append(b, `,"bytes":`...), sum(r.OrigCounters.Bytes, r.ReplyCounters.Bytes))
		}
		if e.has(kOrigPackets) && e.has(kReplyPackets) {
			b = appendUint(append(b, `,"packets":`...), sum(r.OrigCounters.Packets, r.ReplyCounters.Packets))
		}
	}
	return closed(b, start, members)
}

// appendReport appends the rest of a gap or a checkpoint.
func (e *ecs) appendReport(b []byte, r *flow.Record) []byte {
	if r.Event == flow.EventCheckpoint {
		b = append(append(b, '}'), e.ctlogd[markOf(r, false)]...)
		return append(e.appendNote(b, r), `}}`...)
	}
	b = append(b, `,"outcome":"failure"`...)
	if x := r.Extra; x != nil {
		b = append(append(append(b, `,"reason":"`...), x.Gap.Cause.String()...), '"')
	}
	if r.Start != 0 {
		b = append(e.clock.Append(append(b, `,"start":"`...), r.Start), '"')
	}
	if r.Stop != 0 {
		b = append(e.clock.Append(append(b, `,"end":"`...), r.Stop), '"')
	}
	b = append(b, `},"error":{"message":"records are missing"}`...)
	b = append(b, e.ctlogd[markOf(r, false)]...)
	return append(e.appendGap(b, r), `}}`...)
}
