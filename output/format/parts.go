package format

import (
	"github.com/ctlogd/ctlogd/flow"
)

// parts is what the encoders share: which keys are kept, and pieces of text that are made once. It is for one goroutine.
type parts struct {
	set
	Options

	clock    Clock
	observer ObserverKey
	ids      *hasher
	nats     [len(flow.NATNames)]string
	tcp      [256]string // tcp_state, by flow.Record.State
	status   [64]statusText
}

// statusText is a status with its rendering; few values recur over and over.
type statusText struct {
	status flow.Status
	text   []byte // nil: free
}

func newParts(keep set, o Options) parts {
	if o.Observer == "" {
		keep &^= 1 << kFlowID
	}
	if o.Host == "" {
		keep &^= 1 << kHost
	}
	e := parts{set: keep, Options: o, observer: NewObserverKey(o.Observer), ids: newHasher()}
	for i := range e.tcp {
		if r := (flow.Record{Has: flow.HasTCP, State: uint8(i)}); e.has(kTCPState) {
			e.tcp[i] = `,"tcp_state":"` + r.StateName() + `"`
		}
	}
	for i, name := range flow.NATNames {
		if e.has(kNAT) {
			e.nats[i] = `,"nat":"` + name + `"`
		}
	}
	return e
}

// ended returns when the flow ended, 0 where it has not or where that is not known, and how long it was there, -1 where
// its start or its end is not known, or where they contradict each other.
func ended(r *flow.Record) (end, duration int64) {
	if r.Event != flow.EventDestroy {
		return 0, -1
	}
	if r.Stop == 0 || r.Start == 0 || r.Stop < r.Start {
		return r.Stop, -1
	}
	return r.Stop, r.Stop - r.Start
}

// expectation reports whether r is of one: its reply tuple is a mask.
func expectation(r *flow.Record) bool { return r.Event >= flow.EventExpectNew }

// replies reports whether r tells both tuples of a flow.
func replies(r *flow.Record) bool {
	const both = flow.HasOrig | flow.HasReply
	return r.Has&both == both && !expectation(r)
}

// opened begins a member whose value is an object, and returns where it and its members begin. Members have a comma
// before them, as all of ours do.
func opened(b []byte, name string) (_ []byte, start, members int) {
	start = len(b)
	b = append(b, name...)
	return b, start, len(b)
}

// closed ends the object; one without members is left out.
func closed(b []byte, start, members int) []byte {
	if len(b) == members {
		return b[:start]
	}
	b[members] = '{' // in place of the first member's comma
	return append(b, '}')
}

// marks returns time_source and clock as text, by markOf.
func marks(i int) string {
	source, clock := [2]string{"received", "kernel"}[i&1], [4]string{
		"", `,"clock":["unsynchronized"]`, `,"clock":["stepped"]`, `,"clock":["unsynchronized","stepped"]`}[i>>1]
	return `,"time_source":"` + source + `"` + clock
}

const markCount = 8

// markOf returns which of the marks r's time has.
func markOf(r *flow.Record, kernel bool) (i int) {
	if kernel {
		i = 1
	}
	if r.Has&flow.Unsynchronized != 0 {
		i |= 2
	}
	if r.Has&flow.Stepped != 0 {
		i |= 4
	}
	return i
}

func eventOf(r *flow.Record) flow.Event { return r.Event % flow.Event(len(flow.EventNames)) }

// placed are the keys of a subscriber that ECS and OCSF have fields for (appendUser).
const placed = set(1<<kSubscriber | 1<<kSubscriberName)

// appendOwn appends the members that have no field in a schema of others: the translation, ids, and what conntrack has.
func (e *parts) appendOwn(b []byte, r *flow.Record) []byte {
	if replies(r) {
		nat := r.NAT()
		b = append(b, e.nats[nat]...)
		b = e.appendNATCommunity(b, r, nat)
	}
	if r.Has&flow.HasOrig != 0 {
		b = e.appendIDs(b, r)
	}
	return e.appendLast(e.appendState(b, r, e.set&^placed), r)
}

// appendState appends what conntrack itself holds of the flow, its state, status, helper, zones, mark, labels and id, and
// those keys of its subscriber that are in keep: schemas of others have places for some of them.
func (e *parts) appendState(b []byte, r *flow.Record, keep set) []byte {
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
			b = appendString(append(b, `,"helper":`...), string(x.Helper[:n]))
		}
	}
	if r.Has&flow.HelperUnknown != 0 && e.has(kHelperUnknown) {
		b = append(b, `,"helper_unknown":true`...)
	}
	if x := r.Extra; x != nil && x.HasMaster {
		b = e.appendMaster(b, &x.Master)
	}
	if r.Netns != 0 {
		b = e.appendNetns(b, r)
	}
	if r.Has&flow.HasZone != 0 && e.has(kZone) {
		b = appendUint(append(b, `,"zone":`...), uint64(r.Zone))
	}
	if r.Has&flow.HasOrig != 0 && r.Orig.HasZone && e.has(kZoneOrig) {
		b = appendUint(append(b, `,"zone_orig":`...), uint64(r.Orig.Zone))
	}
	if r.Has&flow.HasReply != 0 && r.Reply.HasZone && !expectation(r) && e.has(kZoneReply) {
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
		if s := r.Subscriber(); s != nil {
			b = keep.appendSubscriber(b, s)
		}
	}
	if r.Has&flow.HasID != 0 && e.has(kCTID) {
		b = appendUint(append(b, `,"ct_id":`...), uint64(r.ID))
	}
	return b
}

// appendSubscriber appends whose flow it is. The side is told where it is the destination's.
func (keep set) appendSubscriber(b []byte, s *flow.Subscriber) []byte {
	if s.ID != "" && keep.has(kSubscriber) {
		b = appendString(append(b, `,"subscriber":`...), s.ID)
	}
	if s.Name != "" && keep.has(kSubscriberName) {
		b = appendString(append(b, `,"subscriber_name":`...), s.Name)
	}
	if s.Dst && keep.has(kSubscriberSide) {
		b = append(b, `,"subscriber_side":"dst"`...)
	}
	if s.Next != "" && keep.has(kSubscriberNext) {
		b = appendString(append(b, `,"subscriber_next":`...), s.Next)
	}
	if s.Source != "" && keep.has(kSubscriberSource) {
		b = appendString(append(b, `,"subscriber_source":`...), s.Source)
	}
	return b
}

// appendNetns appends the network namespace of a flow that is not in ctlogd's own.
func (e *parts) appendNetns(b []byte, r *flow.Record) []byte {
	info := r.Netns.Info()
	if info.Name != "" && e.has(kNetns) {
		b = appendString(append(b, `,"netns":`...), info.Name)
	}
	if info.ID >= 0 && e.has(kNSID) {
		b = appendUint(append(b, `,"nsid":`...), uint64(info.ID))
	}
	return b
}

// user returns whose the flow is if it is theirs on that side, nil otherwise.
func user(r *flow.Record, dst bool) *flow.Subscriber {
	if s := r.Subscriber(); s != nil && s.Dst == dst {
		return s
	}
	return nil
}

// appendUser appends a member for s, whose end of the flow it is.
func (e *parts) appendUser(b []byte, s *flow.Subscriber, member, id string) []byte {
	b, start, members := opened(b, member)
	if s.ID != "" && e.has(kSubscriber) {
		b = appendString(append(b, id...), s.ID)
	}
	if s.Name != "" && e.has(kSubscriberName) {
		b = appendString(append(b, `,"name":`...), s.Name)
	}
	return closed(b, start, members)
}

// appendLast appends what an expectation has besides, and how many seconds are left. The kernel sends a DESTROY's timeout
// only to say that it had not run out: end_reason tells that.
func (e *parts) appendLast(b []byte, r *flow.Record) []byte {
	if expectation(r) {
		b = e.appendExpectation(b, r)
	}
	if r.Has&flow.HasTimeout != 0 && r.Event != flow.EventDestroy && e.has(kTimeoutS) {
		b = appendUint(append(b, `,"timeout_s":`...), uint64(r.Timeout))
	}
	if expectation(r) && r.Has&flow.HasReply != 0 && e.has(kWildcard) && r.Wildcard() {
		b = append(b, `,"wildcard":true`...)
	}
	return b
}

// appendIDs appends what ICMP and GRE have in place of ports.
func (e *parts) appendIDs(b []byte, r *flow.Record) []byte {
	o, p, reply := &r.Orig, &r.Reply, replies(r)
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
func (e *parts) appendMaster(b []byte, t *flow.Tuple) []byte {
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
func (e *parts) appendExpectation(b []byte, r *flow.Record) []byte {
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
func (e *parts) appendGap(b []byte, r *flow.Record) []byte {
	var gap flow.Gap
	if r.Extra != nil {
		gap = r.Extra.Gap
	}
	if r.Netns != 0 {
		b = e.appendNetns(b, r)
	}
	b = append(append(append(b, `,"cause":"`...), gap.Cause.String()...), '"')
	if r.Start != 0 {
		b = append(e.clock.Append(append(b, `,"from":"`...), r.Start), '"')
	}
	if r.Stop != 0 {
		b = append(e.clock.Append(append(b, `,"to":"`...), r.Stop), '"')
	}
	if gap.LostKnown {
		b = appendUint(append(b, `,"lost":`...), gap.Lost)
	}
	if gap.Output != "" {
		b = appendString(append(b, `,"output":`...), gap.Output)
	}
	return b
}

// appendReport appends what a record that is of no flow says: a gap, or a checkpoint.
func (e *parts) appendReport(b []byte, r *flow.Record) []byte {
	if r.Event == flow.EventGap {
		return e.appendGap(b, r)
	}
	return e.appendNote(b, r)
}

// appendNote appends an archive's checkpoint. The note comes last.
func (e *parts) appendNote(b []byte, r *flow.Record) []byte {
	if r.Extra == nil || r.Extra.Note == nil {
		return b
	}
	n := r.Extra.Note
	b = appendString(append(b, `,"output":`...), n.Output)
	b = appendString(append(b, `,"origin":`...), n.Origin)
	b = appendUint(append(b, `,"lines":`...), n.Lines)
	if n.Hash != "" {
		b = appendString(append(b, `,"hash":`...), n.Hash)
	}
	return appendString(append(b, `,"note":`...), n.Text)
}

// statusOf returns the status key with its value, valid until the next call.
func (e *parts) statusOf(s flow.Status) []byte {
	c, made := e.cached(s)
	if !made {
		c.text = appendBits(append(c.text, `,"status":`...), uint32(s), flow.StatusNames[:])
	}
	return c.text
}

// cached returns the place of s in the cache, and whether its text has been made.
func (e *parts) cached(s flow.Status) (c *statusText, made bool) {
	c = &e.status[uint32(s)*0x9e3779b1>>26] // Fibonacci hashing to 6 bits
	if c.status == s && c.text != nil {
		return c, true
	}
	c.status, c.text = s, c.text[:0]
	return c, false
}
