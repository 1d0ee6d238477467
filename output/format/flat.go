package format

import (
	"slices"
	"strconv"

	"github.com/ctlogd/ctlogd/flow"
)

// flat is the flat JSON format, version 1: one object for each record, no value nested but lists of names, keys in
// one fixed order and absent where the value is not known. It is for one goroutine.
type flat struct {
	parts
	heads   [markCount][len(flow.EventNames)]string
	protos  [256]string // proto and proto_num, by flow.Proto
	reasons [len(flow.EndReasonNames)]string
}

func newFlat(p parts) Encoder {
	e := &flat{parts: p}
	host := ""
	if e.has(kHost) {
		host = `,"host":` + string(appendString(nil, e.Host))
	}
	for i := range e.heads {
		for ev, name := range flow.EventNames {
			e.heads[i][ev] = `"` + marks(i) + `,"event":"` + name + `"` + host
		}
	}
	for i := range e.protos {
		if e.has(kProto) {
			e.protos[i] = `,"proto":"` + flow.Proto(i).String() + `"`
		}
		if e.has(kProtoNum) {
			e.protos[i] += `,"proto_num":` + strconv.Itoa(i)
		}
	}
	for i, name := range flow.EndReasonNames {
		if e.has(kEndReason) {
			e.reasons[i] = `,"end_reason":"` + name + `"`
		}
	}
	return e
}

// Append appends r as a JSON object.
func (e *flat) Append(dst []byte, r *flow.Record) []byte {
	b := slices.Grow(dst, 1024) // more than most lines are, so that dst grows once if at all

	now, kernel := r.Time()
	b = append(b, `{"v":1,"time":"`...)
	nowAt := len(b)
	b = e.clock.Append(b, now)
	b = append(b, e.heads[markOf(r, kernel)][eventOf(r)]...) // from the quote that ends the time to host
	if r.Event >= flow.EventGap {
		return append(e.appendReport(b, r), '}')
	}

	if e.has(kFlowID) {
		if id, ok := FlowID(e.observer, r); ok {
			b = append(appendHex(append(b, `,"flow_id":"`...), id[:]), '"')
		}
	}
	if r.Start != 0 && e.has(kStart) {
		b = append(e.clock.Append(append(b, `,"start":"`...), r.Start), '"')
	}
	end, duration := ended(r)
	if end != 0 && e.has(kEnd) {
		b = append(b, `,"end":"`...)
		b = append(b, b[nowAt:nowAt+timeLen]...) // the end is the time of a DESTROY, see flow.Record.Time
		b = append(b, '"')
	}
	if duration >= 0 && e.has(kDurationMS) {
		b = appendUint(append(b, `,"duration_ms":`...), uint64(duration)/1e6)
	}
	if r.Has&flow.HasOrig != 0 {
		b = e.appendTuple(b, r)
	}
	if replies(r) {
		b = e.appendNAT(b, r)
	}
	if r.Has&flow.HasOrig != 0 {
		b = e.appendIDs(b, r)
		b = e.appendCommunity(b, r)
	}
	if r.Has&flow.HasCounters != 0 {
		if e.has(kOrigPackets) {
			b = appendUint(append(b, `,"orig_packets":`...), r.OrigCounters.Packets)
		}
		if e.has(kOrigBytes) {
			b = appendUint(append(b, `,"orig_bytes":`...), r.OrigCounters.Bytes)
		}
		if e.has(kReplyPackets) {
			b = appendUint(append(b, `,"reply_packets":`...), r.ReplyCounters.Packets)
		}
		if e.has(kReplyBytes) {
			b = appendUint(append(b, `,"reply_bytes":`...), r.ReplyCounters.Bytes)
		}
	}
	b = e.appendState(b, r, e.set)
	if r.Event == flow.EventDestroy {
		b = append(b, e.reasons[r.EndReason()]...)
	}
	return append(e.appendLast(b, r), '}')
}

// appendTuple appends protocol, addresses and ports.
func (e *flat) appendTuple(b []byte, r *flow.Record) []byte {
	t, ports := &r.Orig, r.HasPorts()
	b = append(b, e.protos[t.Proto]...)
	if e.has(kSrcIP) {
		b = append(appendAddr(append(b, `,"src_ip":"`...), &t.Src, t.V6), '"')
	}
	if ports && e.has(kSrcPort) {
		b = appendUint(append(b, `,"src_port":`...), uint64(t.SrcPort))
	}
	if e.has(kDstIP) {
		b = append(appendAddr(append(b, `,"dst_ip":"`...), &t.Dst, t.V6), '"')
	}
	if ports && e.has(kDstPort) {
		b = appendUint(append(b, `,"dst_port":`...), uint64(t.DstPort))
	}
	return b
}

// appendNAT appends the kind of translation, and the translated ends as the far side saw them: the reply tuple turned
// round. Address and port come together even if one of them stayed as it was, so that one search for an address and a
// port finds every record.
func (e *flat) appendNAT(b []byte, r *flow.Record) []byte {
	nat := r.NAT()
	b = append(b, e.nats[nat]...)
	t := &r.Reply
	ports := r.HasPorts()
	if nat&flow.NATSrc != 0 {
		if e.has(kNATSrcIP) {
			b = append(appendAddr(append(b, `,"nat_src_ip":"`...), &t.Dst, t.V6), '"')
		}
		if ports && e.has(kNATSrcPort) {
			b = appendUint(append(b, `,"nat_src_port":`...), uint64(t.DstPort))
		}
	}
	if nat&flow.NATDst != 0 {
		if e.has(kNATDstIP) {
			b = append(appendAddr(append(b, `,"nat_dst_ip":"`...), &t.Src, t.V6), '"')
		}
		if ports && e.has(kNATDstPort) {
			b = appendUint(append(b, `,"nat_dst_port":`...), uint64(t.SrcPort))
		}
	}
	return b
}
