package format

import (
	"slices"
	"strconv"

	"github.com/ctlogd/ctlogd/flow"
)

// ulogd2Keys are the keys that ulogd2's records have a place for.
var ulogd2Keys = setOf(kHost, kStart, kEnd, kProtoNum, kSrcIP, kSrcPort, kDstIP, kDstPort, kNATSrcIP, kNATSrcPort,
	kNATDstIP, kNATDstPort, kICMPType, kICMPCode, kOrigPackets, kOrigBytes, kReplyPackets, kReplyBytes, kMark, kCTID)

// ulogd2 has the keys of ulogd2's JSON plugin behind NFCT and IP2STR, in their order and with their spaces, for parsers
// that were written for it. The one difference is the timestamp: it is the event's, in UTC, and says so. What ulogd2 does
// not report (gaps, checkpoints, expectations) has a key event.
type ulogd2 struct {
	parts
	host   string
	protos [2][256]string
}

// ulogd2Events are the values of ct.event: enum nf_conntrack_msg_type. An open record is what ulogd2 reads when it polls.
var ulogd2Events = [len(flow.EventNames)]string{
	flow.EventNew: "1", flow.EventUpdate: "2", flow.EventOpen: "2", flow.EventDestroy: "4",
}

func newUlogd2(p parts) Encoder {
	e := &ulogd2{parts: p}
	if e.has(kHost) {
		e.host = `, "dvc": ` + string(appendString(nil, e.Host))
	}
	for i := range e.protos[0] {
		if e.has(kProtoNum) {
			e.protos[0][i] = `, "orig.ip.protocol": ` + strconv.Itoa(i)
			e.protos[1][i] = `, "reply.ip.protocol": ` + strconv.Itoa(i)
		}
	}
	return e
}

// Append appends r as a JSON object.
func (e *ulogd2) Append(dst []byte, r *flow.Record) []byte {
	b := slices.Grow(dst, 1024)
	now, _ := r.Time()
	b = append(e.clock.Append(append(b, `{"timestamp": "`...), now), '"')
	b = append(b, e.host...)
	event := ulogd2Events[eventOf(r)]
	if event == "" {
		b = append(append(append(b, `, "event": "`...), r.Event.String()...), '"')
	}
	if r.Event >= flow.EventGap {
		return append(e.appendReport(b, r), '}')
	}

	o, p := &r.Orig, &r.Reply
	ports := r.Has&flow.HasOrig != 0 && r.HasPorts()
	if r.Has&flow.HasOrig != 0 {
		b = append(b, e.protos[0][o.Proto]...)
		if ports && e.has(kSrcPort) {
			b = appendUint(append(b, `, "orig.l4.sport": `...), uint64(o.SrcPort))
		}
		if ports && e.has(kDstPort) {
			b = appendUint(append(b, `, "orig.l4.dport": `...), uint64(o.DstPort))
		}
	}
	if !expectation(r) {
		b = e.appendCounters(b, `, "orig.raw.pktlen": `, `, "orig.raw.pktcount": `, kOrigBytes, kOrigPackets, &r.OrigCounters)
	}
	if replies(r) {
		b = append(b, e.protos[1][o.Proto]...)
		if ports && e.has(kNATDstPort) {
			b = appendUint(append(b, `, "reply.l4.sport": `...), uint64(p.SrcPort))
		}
		if ports && e.has(kNATSrcPort) {
			b = appendUint(append(b, `, "reply.l4.dport": `...), uint64(p.DstPort))
		}
	}
	if !expectation(r) {
		b = e.appendCounters(b, `, "reply.raw.pktlen": `, `, "reply.raw.pktcount": `, kReplyBytes, kReplyPackets,
			&r.ReplyCounters)
	}
	if r.Has&flow.HasOrig != 0 && o.Proto == flow.ICMP {
		if e.has(kICMPCode) {
			b = appendUint(append(b, `, "icmp.code": `...), uint64(o.ICMPCode()))
		}
		if e.has(kICMPType) {
			b = appendUint(append(b, `, "icmp.type": `...), uint64(o.ICMPType()))
		}
	}
	if e.has(kMark) && !expectation(r) {
		b = appendUint(append(b, `, "ct.mark": `...), uint64(r.Mark)) // 0 where the kernel tells of none
	}
	if r.Has&flow.HasID != 0 && e.has(kCTID) {
		b = appendUint(append(b, `, "ct.id": `...), uint64(r.ID))
	}
	if event != "" {
		b = append(append(b, `, "ct.event": `...), event...)
	}
	start := r.Start
	if r.Event == flow.EventNew {
		start = now
	}
	if start != 0 && e.has(kStart) {
		b = appendParts(b, `, "flow.start.sec": `, `, "flow.start.usec": `, start)
	}
	if end, _ := ended(r); end != 0 && e.has(kEnd) {
		b = appendParts(b, `, "flow.end.sec": `, `, "flow.end.usec": `, end)
	}
	if r.Has&flow.HasOrig != 0 {
		if o.V6 {
			b = append(b, `, "oob.family": 10, "oob.protocol": 0`...)
		} else {
			b = append(b, `, "oob.family": 2, "oob.protocol": 0`...)
		}
		if e.has(kSrcIP) {
			b = append(appendAddr(append(b, `, "src_ip": "`...), &o.Src, o.V6), '"')
		}
		if e.has(kDstIP) {
			b = append(appendAddr(append(b, `, "dest_ip": "`...), &o.Dst, o.V6), '"')
		}
	}
	if replies(r) {
		if e.has(kNATDstIP) {
			b = append(appendAddr(append(b, `, "reply.ip.saddr.str": "`...), &p.Src, o.V6), '"')
		}
		if e.has(kNATSrcIP) {
			b = append(appendAddr(append(b, `, "reply.ip.daddr.str": "`...), &p.Dst, o.V6), '"')
		}
	}
	return append(b, '}')
}

// appendCounters appends what one side carried; ulogd2 has zeros where the kernel does not count.
func (e *ulogd2) appendCounters(b []byte, bytes, packets string, kBytes, kPackets key, c *flow.Counters) []byte {
	if e.has(kBytes) {
		b = appendUint(append(b, bytes...), c.Bytes)
	}
	if e.has(kPackets) {
		b = appendUint(append(b, packets...), c.Packets)
	}
	return b
}

// appendParts appends ns as seconds and microseconds.
func appendParts(b []byte, sec, usec string, ns int64) []byte {
	ns = max(ns, 0)
	b = appendUint(append(b, sec...), uint64(ns)/1e9)
	return appendUint(append(b, usec...), uint64(ns)%1e9/1e3)
}
