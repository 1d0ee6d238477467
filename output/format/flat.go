package format

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ctlogd/ctlogd/flow"
)

// key is a key that can be dropped.
type key uint

const (
	kHost key = iota
	kFlowID
	kStart
	kEnd
	kDurationMS
	kProto
	kProtoNum
	kSrcIP
	kSrcPort
	kDstIP
	kDstPort
	kNAT
	kNATSrcIP
	kNATSrcPort
	kNATDstIP
	kNATDstPort
	kICMPType
	kICMPCode
	kICMPID
	kNATICMPID
	kGREKey
	kGREDstKey
	kNATGREKey
	kNATGREDstKey
	kOrigPackets
	kOrigBytes
	kReplyPackets
	kReplyBytes
	kTCPState
	kSCTPState
	kDCCPState
	kStatus
	kHelper
	kHelperUnknown
	kMasterProto
	kMasterSrcIP
	kMasterSrcPort
	kMasterDstIP
	kMasterDstPort
	kZone
	kZoneOrig
	kZoneReply
	kMark
	kLabels
	kSecCtx
	kCTID
	kEndReason
	kMaskSrcIP
	kMaskDstIP
	kMaskSrcPort
	kMaskDstPort
	kClass
	kFlags
	kTimeoutS
	kWildcard
	keyCount // at most 64: Flat.keep is a word
)

// keyNames are the names of the keys that can be dropped, indexed by key, in the order in which they are written.
// Before them stand v, time, time_source, clock and event, behind them a gap's cause, from, to, lost and output, all of which
// always stay: without them a reader cannot tell what it has, nor that something is missing.
var keyNames = [keyCount]string{
	"host", "flow_id", "start", "end", "duration_ms", "proto", "proto_num", "src_ip",
	"src_port", "dst_ip", "dst_port", "nat", "nat_src_ip", "nat_src_port", "nat_dst_ip", "nat_dst_port", "icmp_type",
	"icmp_code", "icmp_id", "nat_icmp_id", "gre_key", "gre_dst_key", "nat_gre_key", "nat_gre_dst_key",
	"orig_packets", "orig_bytes", "reply_packets", "reply_bytes", "tcp_state", "sctp_state", "dccp_state", "status",
	"helper", "helper_unknown", "master_proto", "master_src_ip", "master_src_port", "master_dst_ip",
	"master_dst_port", "zone", "zone_orig", "zone_reply", "mark", "labels", "secctx", "ct_id", "end_reason",
	"mask_src_ip", "mask_dst_ip", "mask_src_port", "mask_dst_port", "class", "flags", "timeout_s", "wildcard",
}

// FlatOptions are what a Flat needs to know beyond the records.
type FlatOptions struct {
	Host     string   // value of the key host; "" leaves it out
	Observer string   // whose flow ids these are, see NewObserverKey; "" leaves flow_id out
	Drop     []string // keys to leave out
}

// Flat is the flat JSON format, version 1: one object for each record, no value nested but lists of names, keys in
// one fixed order and absent where the value is not known. It is for one goroutine.
type Flat struct {
	keep     uint64 // bit set of key
	heads    [8][len(flow.EventNames)]string
	protos   [256]string // proto and proto_num, by flow.Proto
	nats     [len(flow.NATNames)]string
	reasons  [len(flow.EndReasonNames)]string
	tcp      [256]string // tcp_state, by flow.Record.State
	observer ObserverKey
	clock    clock
	status   [64]statusText
}

// statusText is a status with its rendering; few values recur over and over.
type statusText struct {
	status flow.Status
	text   []byte // nil: free
}

// NewFlat returns a new encoder. The error tells a key in o.Drop that cannot be dropped.
func NewFlat(o FlatOptions) (*Flat, error) {
	e := &Flat{keep: 1<<keyCount - 1, observer: NewObserverKey(o.Observer)}
	for _, name := range o.Drop {
		i := slices.Index(keyNames[:], name)
		if i < 0 {
			return nil, fmt.Errorf("cannot drop %q; allowed are: %s", name, strings.Join(keyNames[:], ", "))
		}
		e.keep &^= 1 << i
	}
	if o.Observer == "" {
		e.keep &^= 1 << kFlowID
	}
	host := ""
	if o.Host != "" && e.has(kHost) {
		host = `,"host":` + string(appendString(nil, o.Host))
	}
	for i := range e.heads { // see head
		source, clock := [2]string{"received", "kernel"}[i&1], [4]string{
			"", `,"clock":["unsynchronized"]`, `,"clock":["stepped"]`, `,"clock":["unsynchronized","stepped"]`}[i>>1]
		for ev, name := range flow.EventNames {
			e.heads[i][ev] = `","time_source":"` + source + `"` + clock + `,"event":"` + name + `"` + host
		}
	}
	for i := range e.protos {
		p := flow.Proto(i)
		if e.has(kProto) {
			e.protos[i] = `,"proto":"` + p.String() + `"`
		}
		if e.has(kProtoNum) {
			e.protos[i] += `,"proto_num":` + strconv.Itoa(i)
		}
		if r := (flow.Record{Has: flow.HasTCP, State: uint8(i)}); e.has(kTCPState) {
			e.tcp[i] = `,"tcp_state":"` + r.StateName() + `"`
		}
	}
	for i, name := range flow.NATNames {
		if e.has(kNAT) {
			e.nats[i] = `,"nat":"` + name + `"`
		}
	}
	for i, name := range flow.EndReasonNames {
		if e.has(kEndReason) {
			e.reasons[i] = `,"end_reason":"` + name + `"`
		}
	}
	return e, nil
}

func (e *Flat) has(k key) bool { return e.keep>>k&1 != 0 }

// Append appends r as a JSON object.
func (e *Flat) Append(dst []byte, r *flow.Record) []byte {
	b := slices.Grow(dst, 1024) // more than most lines are, so that dst grows once if at all

	now, kernel := r.Time()
	b = append(b, `{"v":1,"time":"`...)
	nowAt := len(b)
	b = e.clock.append(b, now)
	b = append(b, e.head(r, kernel)...)
	if r.Event == flow.EventGap {
		return append(e.appendGap(b, r), '}')
	}

	if e.has(kFlowID) {
		if id, ok := FlowID(e.observer, r); ok {
			b = append(appendHex(append(b, `,"flow_id":"`...), id[:]), '"')
		}
	}
	if r.Start != 0 && e.has(kStart) {
		b = append(e.clock.append(append(b, `,"start":"`...), r.Start), '"')
	}
	switch {
	case r.Stop == 0 || r.Event != flow.EventDestroy:
	default:
		if e.has(kEnd) {
			b = append(b, `,"end":"`...)
			b = append(b, b[nowAt:nowAt+timeLen]...) // the end is the time of a DESTROY, see flow.Record.Time
			b = append(b, '"')
		}
		if r.Start != 0 && r.Stop >= r.Start && e.has(kDurationMS) {
			b = appendUint(append(b, `,"duration_ms":`...), uint64(r.Stop-r.Start)/1e6)
		}
	}
	if r.Has&flow.HasOrig != 0 {
		b = e.appendTuple(b, &r.Orig)
	}
	expectation := r.Event >= flow.EventExpectNew
	if r.Has&flow.HasReply != 0 && r.Has&flow.HasOrig != 0 && !expectation {
		b = e.appendNAT(b, r)
	}
	if r.Has&flow.HasOrig != 0 {
		b = e.appendIDs(b, r, !expectation && r.Has&flow.HasReply != 0)
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
	switch {
	case r.Has&(flow.HasTCP|flow.HasSCTP|flow.HasDCCP) == 0:
	case r.Has&flow.HasTCP != 0:
		b = append(b, e.tcp[r.State]...)
	case r.Has&flow.HasSCTP != 0:
		if e.has(kSCTPState) {
			b = append(append(append(b, `,"sctp_state":"`...), r.StateName()...), '"')
		}
	default:
		if e.has(kDCCPState) {
			b = append(append(append(b, `,"dccp_state":"`...), r.StateName()...), '"')
		}
	}
	if r.Has&flow.HasStatus != 0 && e.has(kStatus) {
		b = append(b, e.statusOf(r.Status)...)
	}
	if x := r.Extra; x != nil {
		if n := x.Helper.Len(); n != 0 && e.has(kHelper) {
			b = appendString(append(b, `,"helper":`...), x.Helper[:n])
		}
	}
	if r.Has&flow.HelperUnknown != 0 && e.has(kHelperUnknown) {
		b = append(b, `,"helper_unknown":true`...)
	}
	if x := r.Extra; x != nil && x.HasMaster {
		b = e.appendMaster(b, &x.Master)
	}
	if r.Has&flow.HasZone != 0 && e.has(kZone) {
		b = appendUint(append(b, `,"zone":`...), uint64(r.Zone))
	}
	if r.Has&flow.HasOrig != 0 && r.Orig.HasZone && e.has(kZoneOrig) {
		b = appendUint(append(b, `,"zone_orig":`...), uint64(r.Orig.Zone))
	}
	if r.Has&flow.HasReply != 0 && r.Reply.HasZone && !expectation && e.has(kZoneReply) {
		b = appendUint(append(b, `,"zone_reply":`...), uint64(r.Reply.Zone))
	}
	if r.Has&flow.HasMark != 0 && e.has(kMark) {
		b = appendUint(append(b, `,"mark":`...), uint64(r.Mark))
	}
	if x := r.Extra; x != nil {
		if x.HasLabels && e.has(kLabels) {
			b = append(appendHex(append(b, `,"labels":"`...), x.Labels[:]), '"')
		}
		if x.SecCtx != "" && e.has(kSecCtx) {
			b = appendString(append(b, `,"secctx":`...), x.SecCtx)
		}
	}
	if r.Has&flow.HasID != 0 && e.has(kCTID) {
		b = appendUint(append(b, `,"ct_id":`...), uint64(r.ID))
	}
	if r.Event == flow.EventDestroy {
		b = append(b, e.reasons[r.EndReason()]...)
	}
	if expectation {
		b = e.appendExpectation(b, r)
	}
	// The kernel sends a DESTROY's timeout only to say that it had not run out: end_reason tells that.
	if r.Has&flow.HasTimeout != 0 && r.Event != flow.EventDestroy && e.has(kTimeoutS) {
		b = appendUint(append(b, `,"timeout_s":`...), uint64(r.Timeout))
	}
	if expectation && r.Has&flow.HasReply != 0 && e.has(kWildcard) && r.Wildcard() {
		b = append(b, `,"wildcard":true`...)
	}
	return append(b, '}')
}

// head returns the keys from time_source to host, with the quote that ends the time before them.
func (e *Flat) head(r *flow.Record, kernel bool) string {
	i := 0
	if kernel {
		i = 1
	}
	if r.Has&flow.Unsynchronized != 0 {
		i |= 2
	}
	if r.Has&flow.Stepped != 0 {
		i |= 4
	}
	return e.heads[i][int(r.Event)%len(flow.EventNames)]
}

// appendTuple appends protocol, addresses and ports.
func (e *Flat) appendTuple(b []byte, t *flow.Tuple) []byte {
	b = append(b, e.protos[t.Proto]...)
	ports := t.Proto.HasPorts()
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
func (e *Flat) appendNAT(b []byte, r *flow.Record) []byte {
	nat := r.NAT()
	b = append(b, e.nats[nat]...)
	t := &r.Reply
	ports := t.Proto.HasPorts()
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

// appendIDs appends what ICMP and GRE have in place of ports; reply says that r.Reply is its reply tuple.
func (e *Flat) appendIDs(b []byte, r *flow.Record, reply bool) []byte {
	o, p := &r.Orig, &r.Reply
	switch {
	case o.Proto.IsICMP():
		if e.has(kICMPType) {
			b = appendUint(append(b, `,"icmp_type":`...), uint64(o.ICMPType()))
		}
		if e.has(kICMPCode) {
			b = appendUint(append(b, `,"icmp_code":`...), uint64(o.ICMPCode()))
		}
		if e.has(kICMPID) {
			b = appendUint(append(b, `,"icmp_id":`...), uint64(o.ICMPID()))
		}
		if reply && p.ICMPID() != o.ICMPID() && e.has(kNATICMPID) {
			b = appendUint(append(b, `,"nat_icmp_id":`...), uint64(p.ICMPID()))
		}
	case o.Proto == flow.GRE:
		if e.has(kGREKey) {
			b = appendUint(append(b, `,"gre_key":`...), uint64(o.SrcPort))
		}
		if e.has(kGREDstKey) {
			b = appendUint(append(b, `,"gre_dst_key":`...), uint64(o.DstPort))
		}
		if reply && p.DstPort != o.SrcPort && e.has(kNATGREKey) {
			b = appendUint(append(b, `,"nat_gre_key":`...), uint64(p.DstPort))
		}
		if reply && p.SrcPort != o.DstPort && e.has(kNATGREDstKey) {
			b = appendUint(append(b, `,"nat_gre_dst_key":`...), uint64(p.SrcPort))
		}
	}
	return b
}

// appendMaster appends the original tuple of the flow that a helper watched when it expected this one.
func (e *Flat) appendMaster(b []byte, t *flow.Tuple) []byte {
	if e.has(kMasterProto) {
		b = append(append(append(b, `,"master_proto":"`...), t.Proto.String()...), '"')
	}
	ports := t.Proto.HasPorts()
	if e.has(kMasterSrcIP) {
		b = append(appendAddr(append(b, `,"master_src_ip":"`...), &t.Src, t.V6), '"')
	}
	if ports && e.has(kMasterSrcPort) {
		b = appendUint(append(b, `,"master_src_port":`...), uint64(t.SrcPort))
	}
	if e.has(kMasterDstIP) {
		b = append(appendAddr(append(b, `,"master_dst_ip":"`...), &t.Dst, t.V6), '"')
	}
	if ports && e.has(kMasterDstPort) {
		b = appendUint(append(b, `,"master_dst_port":`...), uint64(t.DstPort))
	}
	return b
}

// appendExpectation appends the mask, class and flags of an expectation. The mask's family is the expected tuple's.
func (e *Flat) appendExpectation(b []byte, r *flow.Record) []byte {
	if m, t := &r.Reply, &r.Orig; r.Has&flow.HasReply != 0 {
		if e.has(kMaskSrcIP) {
			b = append(appendAddr(append(b, `,"mask_src_ip":"`...), &m.Src, t.V6), '"')
		}
		if e.has(kMaskDstIP) {
			b = append(appendAddr(append(b, `,"mask_dst_ip":"`...), &m.Dst, t.V6), '"')
		}
		if t.Proto.HasPorts() || t.Proto == flow.GRE {
			if e.has(kMaskSrcPort) {
				b = appendUint(append(b, `,"mask_src_port":`...), uint64(m.SrcPort))
			}
			if e.has(kMaskDstPort) {
				b = appendUint(append(b, `,"mask_dst_port":`...), uint64(m.DstPort))
			}
		}
	}
	if x := r.Extra; x != nil {
		if e.has(kClass) {
			b = appendUint(append(b, `,"class":`...), uint64(x.Class))
		}
		if e.has(kFlags) {
			b = appendBits(append(b, `,"flags":`...), x.Flags, flow.ExpectFlagNames[:])
		}
	}
	return b
}

// appendGap appends what is missing.
func (e *Flat) appendGap(b []byte, r *flow.Record) []byte {
	var gap flow.Gap
	if r.Extra != nil {
		gap = r.Extra.Gap
	}
	b = append(append(append(b, `,"cause":"`...), gap.Cause.String()...), '"')
	if r.Start != 0 {
		b = append(e.clock.append(append(b, `,"from":"`...), r.Start), '"')
	}
	if r.Stop != 0 {
		b = append(e.clock.append(append(b, `,"to":"`...), r.Stop), '"')
	}
	if gap.LostKnown {
		b = appendUint(append(b, `,"lost":`...), gap.Lost)
	}
	if gap.Output != "" {
		b = appendString(append(b, `,"output":`...), gap.Output)
	}
	return b
}

// statusOf returns the status key with its value, valid until the next call.
func (e *Flat) statusOf(s flow.Status) []byte {
	c := &e.status[uint32(s)*0x9e3779b1>>26] // Fibonacci hashing to 6 bits
	if c.status != s || c.text == nil {
		c.status = s
		c.text = appendBits(append(c.text[:0], `,"status":`...), uint32(s), flow.StatusNames[:])
	}
	return c.text
}
