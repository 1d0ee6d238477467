package format

import (
	"slices"
	"strconv"

	"github.com/ctlogd/ctlogd/flow"
)

// ocsfVersion is the version of the Open Cybersecurity Schema Framework that the events follow.
const ocsfVersion = "1.8.0"

// ocsf is the Open Cybersecurity Schema Framework: a flow is a network activity (4001), a gap or a checkpoint a base event (0). NAT stands
// in the endpoints' proxy_endpoint, where the schema wants it. Times are in ms, and whole in the fields of the profile
// datetime. What the schema has no attribute for stands under unmapped, by its flat name.
type ocsf struct {
	parts
	heads    [len(flow.EventNames) + 1]string // by event; the last is of a TCP flow that was reset
	protos   [2][256]string                   // connection_info from protocol_num on, by family and flow.Proto
	reasons  [len(flow.EndReasonNames)]string
	unmapped [markCount]string
}

// ocsfReset is the head of a flow that was reset.
const ocsfReset = len(flow.EventNames)

// ocsfActivities are the values of activity_id of network activity.
var ocsfActivities = [len(flow.EventNames) + 1]struct {
	id   int
	name string
}{
	flow.EventNew: {1, "Open"}, flow.EventUpdate: {6, "Traffic"}, flow.EventDestroy: {2, "Close"}, flow.EventOpen: {6, "Traffic"},
	flow.EventExpectNew: {99, "Expect"}, flow.EventExpectDestroy: {99, "Expectation gone"}, flow.EventGap: {99, "Gap"},
	flow.EventCheckpoint: {99, "Checkpoint"},
	ocsfReset:            {3, "Reset"},
}

func newOCSF(p parts) Encoder {
	e := &ocsf{parts: p}
	product := `{"name":"ctlogd","vendor_name":"ctlogd"`
	if e.Version != "" {
		product += `,"version":` + string(appendString(nil, e.Version))
	}
	host := ""
	if e.has(kHost) {
		host = `,"device":{"type_id":9,"hostname":` + string(appendString(nil, e.Host)) + `}`
	}
	for i, a := range ocsfActivities {
		class, category, severity, code := 4001, 4, 1, ""
		switch i {
		case int(flow.EventGap):
			class, category, severity, code = 0, 0, 4, flow.EventNames[i]
		case int(flow.EventCheckpoint):
			class, category, code = 0, 0, flow.EventNames[i]
		case ocsfReset:
			code = flow.EventNames[flow.EventDestroy]
		default:
			code = flow.EventNames[i]
		}
		name := ""
		if a.id == 99 { // of which the schema has no name
			name = `,"activity_name":"` + a.name + `"`
		}
		e.heads[i] = `{"class_uid":` + strconv.Itoa(class) + `,"category_uid":` + strconv.Itoa(category) + `,"activity_id":` +
			strconv.Itoa(a.id) + name + `,"type_uid":` + strconv.Itoa(class*100+a.id) +
			`,"severity_id":` + strconv.Itoa(severity) + `,"metadata":{"version":"` + ocsfVersion +
			`","profiles":["datetime","host"],"event_code":"` + code + `","product":` + product + `}}` + host + `,"time":`
	}
	for i := range e.protos[0] {
		for v6, version := range []string{"4", "6"} {
			s := ""
			if e.has(kProtoNum) {
				s = `,"protocol_num":` + strconv.Itoa(i)
			}
			if e.has(kProto) {
				s += `,"protocol_name":"` + flow.Proto(i).String() + `","protocol_ver_id":` + version
			}
			e.protos[v6][i] = s
		}
	}
	for i, name := range flow.EndReasonNames {
		if e.has(kEndReason) {
			e.reasons[i] = `,"status_detail":"` + name + `"`
		}
	}
	for i := range e.unmapped {
		e.unmapped[i] = `,"unmapped":{"v":1` + marks(i)
	}
	return e
}

// Append appends r as a JSON object.
func (e *ocsf) Append(dst []byte, r *flow.Record) []byte {
	b := slices.Grow(dst, 2048)
	now, kernel := r.Time()
	reason := r.EndReason()
	head := int(eventOf(r))
	if reason == flow.EndTCPRst {
		head = ocsfReset
	}
	b = append(b, e.heads[head]...)
	nowAt := len(b)
	b = appendMillis(b, now)
	nowEnd := len(b)
	b = append(e.clock.Append(append(b, `,"time_dt":"`...), now), '"')
	if r.Event >= flow.EventGap {
		return e.appendReport(b, r)
	}

	if r.Start != 0 && e.has(kStart) {
		b = appendMillis(append(b, `,"start_time":`...), r.Start)
		b = append(e.clock.Append(append(b, `,"start_time_dt":"`...), r.Start), '"')
	}
	end, duration := ended(r)
	if end != 0 && e.has(kEnd) {
		b = append(b, `,"end_time":`...) // the time of a DESTROY, so that time_dt has it whole
		b = append(b, b[nowAt:nowEnd]...)
	}
	if duration >= 0 && e.has(kDurationMS) {
		b = appendUint(append(b, `,"duration":`...), uint64(duration)/1e6)
	}
	if r.Event == flow.EventDestroy {
		b = append(b, e.reasons[reason]...)
	}
	if r.Has&flow.HasOrig != 0 {
		b = e.appendEnds(b, r)
	}
	if r.Has&flow.HasCounters != 0 {
		b = e.appendTraffic(b, r)
	}

	b = append(b, e.unmapped[markOf(r, kernel)]...)
	return append(e.appendOwn(b, r), `}}`...)
}

// appendMillis appends ns in milliseconds.
func appendMillis(b []byte, ns int64) []byte {
	if ns < 0 {
		return appendUint(append(b, '-'), uint64(-(ns / 1e6)))
	}
	return appendUint(b, uint64(ns)/1e6)
}

// appendEnds appends the endpoints and connection_info. An endpoint without its address is none to the schema.
func (e *ocsf) appendEnds(b []byte, r *flow.Record) []byte {
	t, p, nat := &r.Orig, &r.Reply, r.NAT()
	ports := r.HasPorts()
	if e.has(kSrcIP) {
		b = append(appendAddr(append(b, `,"src_endpoint":{"ip":"`...), &t.Src, t.V6), '"')
		if ports && e.has(kSrcPort) {
			b = appendUint(append(b, `,"port":`...), uint64(t.SrcPort))
		}
		if nat&flow.NATSrc != 0 && e.has(kNATSrcIP) {
			b = append(appendAddr(append(b, `,"proxy_endpoint":{"ip":"`...), &p.Dst, t.V6), '"')
			if ports && e.has(kNATSrcPort) {
				b = appendUint(append(b, `,"port":`...), uint64(p.DstPort))
			}
			b = append(b, '}')
		}
		if s := user(r, false); s != nil {
			b = e.appendUser(b, s, `,"owner":`, `,"uid":`)
		}
		b = append(b, '}')
	}
	if e.has(kDstIP) {
		b = append(appendAddr(append(b, `,"dst_endpoint":{"ip":"`...), &t.Dst, t.V6), '"')
		if ports && e.has(kDstPort) {
			b = appendUint(append(b, `,"port":`...), uint64(t.DstPort))
		}
		if nat&flow.NATDst != 0 && e.has(kNATDstIP) {
			b = append(appendAddr(append(b, `,"proxy_endpoint":{"ip":"`...), &p.Src, t.V6), '"')
			if ports && e.has(kNATDstPort) {
				b = appendUint(append(b, `,"port":`...), uint64(p.SrcPort))
			}
			b = append(b, '}')
		}
		if s := user(r, true); s != nil {
			b = e.appendUser(b, s, `,"owner":`, `,"uid":`)
		}
		b = append(b, '}')
	}
	b = append(b, `,"connection_info":{"direction_id":0`...) // inside and outside are not known here
	family := 0
	if t.V6 {
		family = 1
	}
	b = append(b, e.protos[family][t.Proto]...)
	if e.has(kFlowID) {
		if id, ok := FlowID(e.observer, r); ok {
			b = append(appendHex(append(b, `,"uid":"`...), id[:]), '"')
		}
	}
	if e.has(kCommunityID) && !expectation(r) {
		b = append(e.ids.flow(append(b, `,"community_uid":"`...), r), '"')
	}
	return append(b, '}')
}

// appendTraffic appends what the flow carried. In is towards the source, out from it.
func (e *ocsf) appendTraffic(b []byte, r *flow.Record) []byte {
	name := `,"cumulative_traffic":` // so far
	if r.Event == flow.EventDestroy {
		name = `,"traffic":`
	}
	b, start, members := opened(b, name)
	o, p := &r.OrigCounters, &r.ReplyCounters
	if e.has(kOrigBytes) {
		b = appendUint(append(b, `,"bytes_out":`...), long(o.Bytes))
	}
	if e.has(kReplyBytes) {
		b = appendUint(append(b, `,"bytes_in":`...), long(p.Bytes))
	}
	if e.has(kOrigBytes) && e.has(kReplyBytes) {
		b = appendUint(append(b, `,"bytes":`...), sum(o.Bytes, p.Bytes))
	}
	if e.has(kOrigPackets) {
		b = appendUint(append(b, `,"packets_out":`...), long(o.Packets))
	}
	if e.has(kReplyPackets) {
		b = appendUint(append(b, `,"packets_in":`...), long(p.Packets))
	}
	if e.has(kOrigPackets) && e.has(kReplyPackets) {
		b = appendUint(append(b, `,"packets":`...), sum(o.Packets, p.Packets))
	}
	return closed(b, start, members)
}

// appendReport appends the rest of a gap or a checkpoint.
func (e *ocsf) appendReport(b []byte, r *flow.Record) []byte {
	if r.Event == flow.EventCheckpoint {
		b = append(append(b, `,"status_id":1`...), e.unmapped[markOf(r, false)]...)
		return append(e.appendNote(b, r), `}}`...)
	}
	if r.Start != 0 {
		b = appendMillis(append(b, `,"start_time":`...), r.Start)
	}
	if r.Stop != 0 {
		b = appendMillis(append(b, `,"end_time":`...), r.Stop)
	}
	b = append(b, `,"status_id":2,"status_detail":"`...)
	if x := r.Extra; x != nil {
		b = append(b, x.Gap.Cause.String()...)
	}
	b = append(b, `","message":"records are missing"`...)
	b = append(b, e.unmapped[markOf(r, false)]...)
	return append(e.appendGap(b, r), `}}`...)
}
