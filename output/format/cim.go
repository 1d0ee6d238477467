package format

import (
	"slices"
	"strconv"

	"github.com/ctlogd/ctlogd/flow"
)

// cim has the field names of Splunk's Common Information Model, Network Traffic, in a flat object. What the model has no
// field for has its flat name. Bytes and packets in are towards the source, as in the model's own add-ons.
type cim struct {
	parts
	heads   [markCount][len(flow.EventNames)]string
	protos  [2][256]string
	reasons [len(flow.EndReasonNames)]string
}

func newCIM(p parts) Encoder {
	e := &cim{parts: p}
	host := ""
	if e.has(kHost) {
		host = `,"dvc":` + string(appendString(nil, e.Host))
	}
	for i := range e.heads {
		for ev, name := range flow.EventNames {
			action := `,"action":"allowed"`
			switch flow.Event(ev) {
			case flow.EventDestroy:
				action = `,"action":"teardown"`
			case flow.EventGap, flow.EventCheckpoint, flow.EventExpectNew, flow.EventExpectDestroy:
				action = ""
			}
			e.heads[i][ev] = marks(i) + `,"vendor_product":"ctlogd","event":"` + name + `"` + action + host
		}
	}
	for i := range e.protos[0] {
		for v6, version := range []string{"ipv4", "ipv6"} {
			s := ""
			if e.has(kProto) {
				s = `,"transport":"` + flow.Proto(i).String() + `","protocol":"ip","protocol_version":"` + version + `"`
			}
			if e.has(kProtoNum) {
				s += `,"proto_num":` + strconv.Itoa(i)
			}
			e.protos[v6][i] = s
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
func (e *cim) Append(dst []byte, r *flow.Record) []byte {
	b := slices.Grow(dst, 1536)
	now, kernel := r.Time()
	b = appendSeconds(append(b, `{"_time":`...), now)
	b = append(b, e.heads[markOf(r, kernel)][eventOf(r)]...)
	if r.Event >= flow.EventGap {
		return append(e.appendReport(b, r), '}')
	}
	if e.has(kFlowID) {
		if id, ok := FlowID(e.observer, r); ok {
			b = append(appendHex(append(b, `,"session_id":"`...), id[:]), '"')
		}
	}
	if r.Start != 0 && e.has(kStart) {
		b = append(e.clock.Append(append(b, `,"start":"`...), r.Start), '"')
	}
	end, duration := ended(r)
	if end != 0 && e.has(kEnd) {
		b = append(e.clock.Append(append(b, `,"end":"`...), end), '"')
	}
	if duration >= 0 && e.has(kDurationMS) {
		b = appendSeconds(append(b, `,"duration":`...), duration)
	}
	if r.Has&flow.HasOrig != 0 {
		b = e.appendEnds(b, r)
		b = e.appendIDs(b, r)
		b = e.appendCommunity(b, r)
	}
	if r.Has&flow.HasCounters != 0 {
		b = e.appendCounters(b, r)
	}
	if s := r.Subscriber(); s != nil && s.ID != "" && e.has(kSubscriber) {
		b = appendString(append(b, `,"user":`...), s.ID)
	}
	b = e.appendState(b, r, e.set&^(1<<kSubscriber))
	if r.Event == flow.EventDestroy {
		b = append(b, e.reasons[r.EndReason()]...)
	}
	return append(e.appendLast(b, r), '}')
}

// appendSeconds appends ns as seconds with nine decimals.
func appendSeconds(b []byte, ns int64) []byte {
	sec, frac := ns/1e9, ns%1e9
	if ns < 0 {
		b, sec, frac = append(b, '-'), -sec, -frac
	}
	b = append(appendUint(b, uint64(sec)), '.')
	return appendDigits(append(b, byte('0'+frac/1e8)), uint64(frac%1e8))
}

func (e *cim) appendEnds(b []byte, r *flow.Record) []byte {
	t, p, nat := &r.Orig, &r.Reply, r.NAT()
	ports := r.HasPorts()
	family := 0
	if t.V6 {
		family = 1
	}
	b = append(b, e.protos[family][t.Proto]...)
	if e.has(kSrcIP) {
		b = append(b, `,"src":"`...)
		from := len(b)
		b = appendAddr(b, &t.Src, t.V6)
		to := len(b)
		b = append(b, `","src_ip":"`...)
		b = append(append(b, b[from:to]...), '"')
	}
	if ports && e.has(kSrcPort) {
		b = appendUint(append(b, `,"src_port":`...), uint64(t.SrcPort))
	}
	if e.has(kDstIP) {
		b = append(b, `,"dest":"`...)
		from := len(b)
		b = appendAddr(b, &t.Dst, t.V6)
		to := len(b)
		b = append(b, `","dest_ip":"`...)
		b = append(append(b, b[from:to]...), '"')
	}
	if ports && e.has(kDstPort) {
		b = appendUint(append(b, `,"dest_port":`...), uint64(t.DstPort))
	}
	if !replies(r) {
		return b
	}
	b = append(b, e.nats[nat]...)
	if nat&flow.NATSrc != 0 {
		if e.has(kNATSrcIP) {
			b = append(appendAddr(append(b, `,"src_translated_ip":"`...), &p.Dst, t.V6), '"')
		}
		if ports && e.has(kNATSrcPort) {
			b = appendUint(append(b, `,"src_translated_port":`...), uint64(p.DstPort))
		}
	}
	if nat&flow.NATDst != 0 {
		if e.has(kNATDstIP) {
			b = append(appendAddr(append(b, `,"dest_translated_ip":"`...), &p.Src, t.V6), '"')
		}
		if ports && e.has(kNATDstPort) {
			b = appendUint(append(b, `,"dest_translated_port":`...), uint64(p.SrcPort))
		}
	}
	return b
}

func (e *cim) appendCounters(b []byte, r *flow.Record) []byte {
	o, p := &r.OrigCounters, &r.ReplyCounters
	if e.has(kOrigBytes) {
		b = appendUint(append(b, `,"bytes_out":`...), o.Bytes)
	}
	if e.has(kReplyBytes) {
		b = appendUint(append(b, `,"bytes_in":`...), p.Bytes)
	}
	if e.has(kOrigBytes) && e.has(kReplyBytes) {
		b = appendUint(append(b, `,"bytes":`...), sum(o.Bytes, p.Bytes))
	}
	if e.has(kOrigPackets) {
		b = appendUint(append(b, `,"packets_out":`...), o.Packets)
	}
	if e.has(kReplyPackets) {
		b = appendUint(append(b, `,"packets_in":`...), p.Packets)
	}
	if e.has(kOrigPackets) && e.has(kReplyPackets) {
		b = appendUint(append(b, `,"packets":`...), sum(o.Packets, p.Packets))
	}
	return b
}
