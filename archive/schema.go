package archive

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"

	"github.com/ctlogd/ctlogd/flow"
)

// SchemaVersion is the version of the table's schema, which stands in each segment. Columns are added, never renamed or
// retyped: a reader takes those that it knows.
const SchemaVersion = 1

// The columns. They are named as the keys of the flat JSON format are, and hold the same values. Four keys have no
// column: v; flow_id, which is computed from observer, tuple and start when it is asked for; duration_ms, which is the
// difference of two columns; and ct_id, which is a hash and no evidence. The time of an ended flow is its end.
const (
	cEvent = iota
	cTime
	cTimeSource
	cClock
	cStart
	cEnd
	cProto
	cProtoNum
	cSrcIP
	cSrcPort
	cDstIP
	cDstPort
	cNAT
	cNATSrcIP
	cNATSrcPort
	cNATDstIP
	cNATDstPort
	cICMPType
	cICMPCode
	cICMPID
	cNATICMPID
	cGREKey
	cGREDstKey
	cNATGREKey
	cNATGREDstKey
	cOrigPackets
	cOrigBytes
	cReplyPackets
	cReplyBytes
	cTCPState
	cSCTPState
	cDCCPState
	cStatus
	cHelper
	cHelperUnknown
	cMasterProto
	cMasterSrcIP
	cMasterSrcPort
	cMasterDstIP
	cMasterDstPort
	cZone
	cZoneOrig
	cZoneReply
	cMark
	cLabels
	cSecCtx
	cEndReason
	cMaskSrcIP
	cMaskDstIP
	cMaskSrcPort
	cMaskDstPort
	cClass
	cFlags
	cTimeoutS
	cWildcard
	cCause
	cFrom
	cTo
	cLost
	cOutput
	cWhole
	cNetns
	cNSID
	cSubscriber
	cSubscriberName
	cSubscriberSide
	cSubscriberNext
	cSubscriberSource
	columnCount
)

// column is how one column is made. Of number, addr, text and list, one is set.
type column struct {
	name   string
	node   parquet.Node
	needs  feature // without one of these in a group the column is empty there
	filter bool    // there is a filter of the values of each group

	number func(r *flow.Record) (v uint64, ok bool)     // ok is false for null
	names  []string                                     // if not nil, the value is the text that has this number
	addr   func(r *flow.Record) (a *flow.Addr, v6 bool) // nil is null
	text   func(r *flow.Record) []byte                  // empty is null
	list   *list
}

// list is what a column of lists of texts is made of. An empty list is no null.
type list struct {
	sets *sets
	bits func(r *flow.Record) (v uint32, ok bool)
}

// sets are the names of bits, as the flat format has them.
type sets [32]string

func newSets(names []string) *sets {
	s := new(sets)
	for i := range s {
		s[i] = fmt.Sprintf("bit%d", i)
	}
	copy(s[:], names)
	return s
}

// parse returns the bit of a name, 0 if it is none.
func (s *sets) parse(name []byte) uint32 {
	for i := range s {
		if s[i] == string(name) {
			return 1 << i
		}
	}
	return 0
}

var (
	eventNames  = append(slices.Clone(flow.EventNames[:]), checkpointEvent)
	sourceNames = []string{"received", "kernel"}
	protoNames  = func() (names []string) {
		for i := range 256 {
			names = append(names, flow.Proto(i).String())
		}
		return names
	}()
	stateNames = func() (names [3][]string) {
		for k, has := range stateHas {
			for i := range 256 {
				r := flow.Record{Has: has, State: uint8(i)}
				names[k] = append(names[k], r.StateName())
			}
		}
		return names
	}()
	stateHas = [3]flow.Has{flow.HasTCP, flow.HasSCTP, flow.HasDCCP}

	statusSets = newSets(flow.StatusNames[:])
	flagSets   = newSets(flow.ExpectFlagNames[:])
	clockSets  = newSets([]string{"unsynchronized", "stepped"})
)

// clockBits are the marks of the clock in clockSets.
func clockBits(r *flow.Record) (v uint32) {
	if r.Has&flow.Unsynchronized != 0 {
		v = 1
	}
	if r.Has&flow.Stepped != 0 {
		v |= 2
	}
	return v
}

// feature is what few records have, and columns are there for.
type feature uint32

const (
	ofICMP feature = 1 << iota
	ofGRE
	ofExtra
	ofExpectation
	ofGap
	ofState  // SCTP or DCCP
	ofClock  // Unsynchronized or Stepped
	ofZone   // of any kind
	ofDNAT   //
	ofOther  // is no end of a flow
	ofHelper // HelperUnknown
	ofNetns  // another network namespace than ctlogd's
)

// featuresOf returns what some of recs have.
func featuresOf(recs []flow.Record) (f feature) {
	for i := range recs {
		r := &recs[i]
		switch {
		case r.Orig.Proto.IsICMP():
			f |= ofICMP
		case r.Orig.Proto == flow.GRE:
			f |= ofGRE
		}
		if r.Extra != nil {
			f |= ofExtra
		}
		if r.Event != flow.EventDestroy || r.Stop == 0 {
			f |= ofOther
		}
		if isExpect(r) {
			f |= ofExpectation
		}
		if r.Event >= flow.EventGap || isCheckpoint(r) {
			f |= ofGap
		}
		if r.Has&(flow.HasSCTP|flow.HasDCCP) != 0 {
			f |= ofState
		}
		if r.Has&(flow.Unsynchronized|flow.Stepped) != 0 {
			f |= ofClock
		}
		if r.Has&flow.HasZone != 0 || r.Orig.HasZone || r.Reply.HasZone {
			f |= ofZone
		}
		if r.Has&flow.HelperUnknown != 0 {
			f |= ofHelper
		}
		if r.Netns != 0 {
			f |= ofNetns
		}
		if f&ofDNAT == 0 && natDst(r) {
			f |= ofDNAT
		}
	}
	return f
}

// Nodes. What recurs is put into a dictionary; what does not is packed as differences, or left to the compressor.
var (
	textNode  = parquet.Encoded(parquet.String(), &parquet.RLEDictionary)
	timeNode  = parquet.Encoded(parquet.Timestamp(parquet.Nanosecond), &parquet.DeltaBinaryPacked)
	portNode  = parquet.Encoded(parquet.Uint(16), &parquet.DeltaBinaryPacked)
	countNode = parquet.Encoded(parquet.Uint(64), &parquet.Plain)
	boolNode  = parquet.Leaf(parquet.BooleanType)
)

// rareNode is of numbers that are few, or seldom there.
func rareNode(bits int) parquet.Node {
	return parquet.Encoded(parquet.Uint(bits), &parquet.RLEDictionary)
}

func isFlow(r *flow.Record) bool { return r.Event < flow.EventExpectNew }
func isExpect(r *flow.Record) bool {
	return r.Event == flow.EventExpectNew || r.Event == flow.EventExpectDestroy
}

// hasTuple says that the original tuple is a row's, hasReply that the reply tuple is one.
func hasTuple(r *flow.Record) bool { return r.Has&flow.HasOrig != 0 && r.Event < flow.EventGap }
func hasReply(r *flow.Record) bool { return hasTuple(r) && r.Has&flow.HasReply != 0 && isFlow(r) }
func hasMask(r *flow.Record) bool  { return hasTuple(r) && r.Has&flow.HasReply != 0 && isExpect(r) }

// master returns the master's tuple; an empty one if there is none.
func master(r *flow.Record) (t *flow.Tuple, ok bool) {
	if !hasExtra(r) || !r.Extra.HasMaster {
		return &noTuple, false
	}
	return &r.Extra.Master, true
}

var noTuple flow.Tuple

// isCheckpoint reports whether the record is of no flow, but of a reading of the table that is over.
func isCheckpoint(r *flow.Record) bool { return r.Checkpoint() >= flow.CheckpointWhole }

// checkpointEvent is what the column event calls it.
const checkpointEvent = "checkpoint"

// ended says that the record's time is the end of a flow, which has a column of its own.
func ended(r *flow.Record) bool { return r.Event == flow.EventDestroy && r.Stop != 0 }

// natOf is the kind of translation, or none where the reply tuple is not known.
func natOf(r *flow.Record) flow.NAT {
	if !hasReply(r) {
		return flow.NATNone
	}
	return r.NAT()
}

// state makes the value of one of stateHas: the first that is set counts.
func state(k int) func(r *flow.Record) (uint64, bool) {
	return func(r *flow.Record) (uint64, bool) {
		for i, has := range stateHas {
			if r.Has&has != 0 {
				return uint64(r.State), i == k && r.Event < flow.EventGap
			}
		}
		return 0, false
	}
}

// gap returns what a gap record says; nothing of another record.
func gap(r *flow.Record) (g *flow.Gap, ok bool) {
	if r.Event != flow.EventGap || r.Extra == nil {
		return &noGap, false
	}
	return &r.Extra.Gap, true
}

var noGap flow.Gap

func portsOf(r *flow.Record) bool     { return hasTuple(r) && r.HasPorts() }
func icmpOf(r *flow.Record) bool      { return hasTuple(r) && r.Orig.Proto.IsICMP() }
func greOf(r *flow.Record) bool       { return hasTuple(r) && r.Orig.Proto == flow.GRE }
func natSrc(r *flow.Record) bool      { return natOf(r)&flow.NATSrc != 0 }
func natDst(r *flow.Record) bool      { return natOf(r)&flow.NATDst != 0 }
func hasExtra(r *flow.Record) bool    { return r.Extra != nil && r.Event < flow.EventGap }
func hasCounters(r *flow.Record) bool { return has(r, flow.HasCounters) }

// has reports whether a flag of a record that is no gap is set.
func has(r *flow.Record, flag flow.Has) bool { return r.Has&flag != 0 && r.Event < flow.EventGap }

// isSpan says that start and stop are those of what is missing, or of a reading of the table.
func isSpan(r *flow.Record) bool { return r.Event >= flow.EventGap || isCheckpoint(r) }

// address makes the value of a column of addresses: a, which is one of t's, if it is there.
func address(there bool, t *flow.Tuple, a *flow.Addr) (*flow.Addr, bool) {
	if !there {
		return nil, false
	}
	return a, t.V6
}

// foreign is text that comes from elsewhere: bytes that are not UTF-8 become U+FFFD, as in JSON. Readers refuse a whole
// file for one such byte.
func foreign(b []byte) []byte {
	if !utf8.Valid(b) {
		b = []byte(string([]rune(string(b))))
	}
	return b
}

// columns describes each column, by its number.
var columns = [columnCount]column{
	cEvent: {name: "event", node: textNode, names: eventNames, number: func(r *flow.Record) (uint64, bool) {
		if isCheckpoint(r) {
			return uint64(len(flow.EventNames)), true
		}
		return uint64(r.Event), true
	}},
	cTime: {name: "time", needs: ofOther, node: timeNode, number: func(r *flow.Record) (uint64, bool) {
		t, _ := r.Time()
		return uint64(t), !ended(r)
	}},
	cTimeSource: {name: "time_source", node: textNode, names: sourceNames, number: func(r *flow.Record) (uint64, bool) {
		if _, kernel := r.Time(); kernel {
			return 1, true
		}
		return 0, true
	}},
	cClock: {name: "clock", needs: ofClock, list: &list{clockSets, func(r *flow.Record) (uint32, bool) { v := clockBits(r); return v, v != 0 }}},
	cStart: {name: "start", node: timeNode, number: func(r *flow.Record) (uint64, bool) { return uint64(r.Start), r.Start != 0 && !isSpan(r) }},
	cEnd:   {name: "end", node: timeNode, number: func(r *flow.Record) (uint64, bool) { return uint64(r.Stop), ended(r) }},
	cProto: {name: "proto", node: textNode, names: protoNames, number: func(r *flow.Record) (uint64, bool) { return uint64(r.Orig.Proto), hasTuple(r) }},
	cProtoNum: {name: "proto_num", node: rareNode(8),
		number: func(r *flow.Record) (uint64, bool) { return uint64(r.Orig.Proto), hasTuple(r) }},
	cSrcIP:   {name: "src_ip", node: textNode, filter: true, addr: func(r *flow.Record) (*flow.Addr, bool) { return address(hasTuple(r), &r.Orig, &r.Orig.Src) }},
	cSrcPort: {name: "src_port", node: portNode, number: func(r *flow.Record) (uint64, bool) { return uint64(r.Orig.SrcPort), portsOf(r) }},
	cDstIP:   {name: "dst_ip", node: textNode, filter: true, addr: func(r *flow.Record) (*flow.Addr, bool) { return address(hasTuple(r), &r.Orig, &r.Orig.Dst) }},
	cDstPort: {name: "dst_port", node: rareNode(16), number: func(r *flow.Record) (uint64, bool) { return uint64(r.Orig.DstPort), portsOf(r) }},
	cNAT:     {name: "nat", node: textNode, names: flow.NATNames[:], number: func(r *flow.Record) (uint64, bool) { return uint64(natOf(r)), hasReply(r) }},
	cNATSrcIP: {name: "nat_src_ip", node: textNode,
		addr: func(r *flow.Record) (*flow.Addr, bool) { return address(natSrc(r), &r.Reply, &r.Reply.Dst) }},
	cNATSrcPort: {name: "nat_src_port", node: portNode,
		number: func(r *flow.Record) (uint64, bool) { return uint64(r.Reply.DstPort), natSrc(r) && r.HasPorts() }},
	cNATDstIP: {name: "nat_dst_ip", needs: ofDNAT, node: textNode, filter: true,
		addr: func(r *flow.Record) (*flow.Addr, bool) { return address(natDst(r), &r.Reply, &r.Reply.Src) }},
	cNATDstPort: {name: "nat_dst_port", needs: ofDNAT, node: rareNode(16),
		number: func(r *flow.Record) (uint64, bool) { return uint64(r.Reply.SrcPort), natDst(r) && r.HasPorts() }},
	cICMPType: {name: "icmp_type", needs: ofICMP, node: rareNode(8),
		number: func(r *flow.Record) (uint64, bool) { return uint64(r.Orig.ICMPType()), icmpOf(r) }},
	cICMPCode: {name: "icmp_code", needs: ofICMP, node: rareNode(8),
		number: func(r *flow.Record) (uint64, bool) { return uint64(r.Orig.ICMPCode()), icmpOf(r) }},
	cICMPID: {name: "icmp_id", needs: ofICMP, node: rareNode(16), number: func(r *flow.Record) (uint64, bool) { return uint64(r.Orig.ICMPID()), icmpOf(r) }},
	cNATICMPID: {name: "nat_icmp_id", needs: ofICMP, node: rareNode(16), number: func(r *flow.Record) (uint64, bool) {
		return uint64(r.Reply.ICMPID()), icmpOf(r) && hasReply(r) && r.Reply.ICMPID() != r.Orig.ICMPID()
	}},
	cGREKey:    {name: "gre_key", needs: ofGRE, node: rareNode(16), number: func(r *flow.Record) (uint64, bool) { return uint64(r.Orig.SrcPort), greOf(r) }},
	cGREDstKey: {name: "gre_dst_key", needs: ofGRE, node: rareNode(16), number: func(r *flow.Record) (uint64, bool) { return uint64(r.Orig.DstPort), greOf(r) }},
	cNATGREKey: {name: "nat_gre_key", needs: ofGRE, node: rareNode(16), number: func(r *flow.Record) (uint64, bool) {
		return uint64(r.Reply.DstPort), greOf(r) && hasReply(r) && r.Reply.DstPort != r.Orig.SrcPort
	}},
	cNATGREDstKey: {name: "nat_gre_dst_key", needs: ofGRE, node: rareNode(16), number: func(r *flow.Record) (uint64, bool) {
		return uint64(r.Reply.SrcPort), greOf(r) && hasReply(r) && r.Reply.SrcPort != r.Orig.DstPort
	}},
	cOrigPackets:  {name: "orig_packets", node: rareNode(64), number: func(r *flow.Record) (uint64, bool) { return r.OrigCounters.Packets, hasCounters(r) }},
	cOrigBytes:    {name: "orig_bytes", node: countNode, number: func(r *flow.Record) (uint64, bool) { return r.OrigCounters.Bytes, hasCounters(r) }},
	cReplyPackets: {name: "reply_packets", node: rareNode(64), number: func(r *flow.Record) (uint64, bool) { return r.ReplyCounters.Packets, hasCounters(r) }},
	cReplyBytes:   {name: "reply_bytes", node: countNode, number: func(r *flow.Record) (uint64, bool) { return r.ReplyCounters.Bytes, hasCounters(r) }},
	cTCPState:     {name: "tcp_state", node: textNode, names: stateNames[0], number: state(0)},
	cSCTPState:    {name: "sctp_state", needs: ofState, node: textNode, names: stateNames[1], number: state(1)},
	cDCCPState:    {name: "dccp_state", needs: ofState, node: textNode, names: stateNames[2], number: state(2)},
	cStatus:       {name: "status", list: &list{statusSets, func(r *flow.Record) (uint32, bool) { return uint32(r.Status), has(r, flow.HasStatus) }}},
	cHelper: {name: "helper", needs: ofExtra, node: textNode, text: func(r *flow.Record) []byte {
		if !hasExtra(r) {
			return nil
		}
		return foreign(r.Extra.Helper[:r.Extra.Helper.Len()])
	}},
	cHelperUnknown: {name: "helper_unknown", needs: ofHelper, node: boolNode, number: func(r *flow.Record) (uint64, bool) { return 1, has(r, flow.HelperUnknown) }},
	cMasterProto: {name: "master_proto", needs: ofExtra, node: textNode, names: protoNames,
		number: func(r *flow.Record) (uint64, bool) { m, ok := master(r); return uint64(m.Proto), ok }},
	cMasterSrcIP: {name: "master_src_ip", needs: ofExtra, node: textNode,
		addr: func(r *flow.Record) (*flow.Addr, bool) { m, ok := master(r); return address(ok, m, &m.Src) }},
	cMasterSrcPort: {name: "master_src_port", needs: ofExtra, node: rareNode(16),
		number: func(r *flow.Record) (uint64, bool) {
			m, ok := master(r)
			return uint64(m.SrcPort), ok && m.Proto.HasPorts()
		}},
	cMasterDstIP: {name: "master_dst_ip", needs: ofExtra, node: textNode,
		addr: func(r *flow.Record) (*flow.Addr, bool) { m, ok := master(r); return address(ok, m, &m.Dst) }},
	cMasterDstPort: {name: "master_dst_port", needs: ofExtra, node: rareNode(16),
		number: func(r *flow.Record) (uint64, bool) {
			m, ok := master(r)
			return uint64(m.DstPort), ok && m.Proto.HasPorts()
		}},
	cZone:     {name: "zone", needs: ofZone, node: rareNode(16), number: func(r *flow.Record) (uint64, bool) { return uint64(r.Zone), has(r, flow.HasZone) }},
	cZoneOrig: {name: "zone_orig", needs: ofZone, node: rareNode(16), number: func(r *flow.Record) (uint64, bool) { return uint64(r.Orig.Zone), hasTuple(r) && r.Orig.HasZone }},
	cZoneReply: {name: "zone_reply", needs: ofZone, node: rareNode(16), number: func(r *flow.Record) (uint64, bool) {
		return uint64(r.Reply.Zone), r.Has&flow.HasReply != 0 && isFlow(r) && r.Reply.HasZone
	}},
	cMark: {name: "mark", node: rareNode(32), number: func(r *flow.Record) (uint64, bool) { return uint64(r.Mark), has(r, flow.HasMark) }},
	cLabels: {name: "labels", needs: ofExtra, node: textNode, text: func(r *flow.Record) []byte {
		if !hasExtra(r) || !r.Extra.HasLabels {
			return nil
		}
		return hex.AppendEncode(nil, r.Extra.Labels[:])
	}},
	cSecCtx: {name: "secctx", needs: ofExtra, node: textNode, text: func(r *flow.Record) []byte {
		if !hasExtra(r) {
			return nil
		}
		return foreign([]byte(r.Extra.SecCtx))
	}},
	cEndReason: {name: "end_reason", node: textNode, names: flow.EndReasonNames[:],
		number: func(r *flow.Record) (uint64, bool) { return uint64(r.EndReason()), r.Event == flow.EventDestroy }},
	cMaskSrcIP: {name: "mask_src_ip", needs: ofExpectation, node: textNode,
		addr: func(r *flow.Record) (*flow.Addr, bool) { return address(hasMask(r), &r.Orig, &r.Reply.Src) }},
	cMaskDstIP: {name: "mask_dst_ip", needs: ofExpectation, node: textNode,
		addr: func(r *flow.Record) (*flow.Addr, bool) { return address(hasMask(r), &r.Orig, &r.Reply.Dst) }},
	cMaskSrcPort: {name: "mask_src_port", needs: ofExpectation, node: rareNode(16),
		number: func(r *flow.Record) (uint64, bool) { return uint64(r.Reply.SrcPort), maskPorts(r) }},
	cMaskDstPort: {name: "mask_dst_port", needs: ofExpectation, node: rareNode(16),
		number: func(r *flow.Record) (uint64, bool) { return uint64(r.Reply.DstPort), maskPorts(r) }},
	cClass: {name: "class", needs: ofExpectation, node: rareNode(32), number: func(r *flow.Record) (uint64, bool) {
		if !isExpect(r) || r.Extra == nil {
			return 0, false
		}
		return uint64(r.Extra.Class), true
	}},
	cFlags: {name: "flags", needs: ofExpectation, list: &list{flagSets, func(r *flow.Record) (uint32, bool) {
		if !isExpect(r) || r.Extra == nil {
			return 0, false
		}
		return r.Extra.Flags, true
	}}},
	cTimeoutS: {name: "timeout_s", needs: ofOther, node: rareNode(32), number: func(r *flow.Record) (uint64, bool) {
		return uint64(r.Timeout), (r.Has&flow.HasTimeout != 0 || isCheckpoint(r)) && r.Event != flow.EventDestroy && r.Event < flow.EventGap
	}},
	cWildcard: {name: "wildcard", needs: ofExpectation, node: boolNode, number: func(r *flow.Record) (uint64, bool) { return 1, hasMask(r) && r.Wildcard() }},
	cCause: {name: "cause", needs: ofGap, node: textNode, names: flow.CauseNames[:], number: func(r *flow.Record) (uint64, bool) {
		g, ok := gap(r)
		return uint64(min(int(g.Cause), len(flow.CauseNames)-1)), ok
	}},
	cFrom:   {name: "from", needs: ofGap, node: timeNode, number: func(r *flow.Record) (uint64, bool) { return uint64(r.Start), isSpan(r) && r.Start != 0 }},
	cTo:     {name: "to", needs: ofGap, node: timeNode, number: func(r *flow.Record) (uint64, bool) { return uint64(r.Stop), isSpan(r) && r.Stop != 0 }},
	cLost:   {name: "lost", needs: ofGap, node: rareNode(64), number: func(r *flow.Record) (uint64, bool) { g, _ := gap(r); return g.Lost, g.LostKnown }},
	cOutput: {name: "output", needs: ofGap, node: textNode, text: func(r *flow.Record) []byte { g, _ := gap(r); return foreign([]byte(g.Output)) }},
	cWhole: {name: "whole", needs: ofOther, node: boolNode, number: func(r *flow.Record) (uint64, bool) {
		whole := uint64(0)
		if r.Checkpoint() == flow.CheckpointWhole {
			whole = 1
		}
		return whole, isCheckpoint(r)
	}},
	cNetns: {name: "netns", needs: ofNetns, node: textNode, text: func(r *flow.Record) []byte {
		if r.Netns == 0 {
			return nil
		}
		return foreign([]byte(r.Netns.Info().Name))
	}},
	cNSID: {name: "nsid", needs: ofNetns, node: rareNode(32), number: func(r *flow.Record) (uint64, bool) {
		if r.Netns == 0 {
			return 0, false
		}
		id := r.Netns.Info().ID
		return uint64(id), id >= 0
	}},
	cSubscriber:       {name: "subscriber", needs: ofExtra, node: textNode, filter: true, text: func(r *flow.Record) []byte { return foreign([]byte(user(r).ID)) }},
	cSubscriberName:   {name: "subscriber_name", needs: ofExtra, node: textNode, text: func(r *flow.Record) []byte { return foreign([]byte(user(r).Name)) }},
	cSubscriberSide:   {name: "subscriber_side", needs: ofExtra, node: textNode, names: []string{"dst"}, number: func(r *flow.Record) (uint64, bool) { return 0, user(r).Dst }},
	cSubscriberNext:   {name: "subscriber_next", needs: ofExtra, node: textNode, filter: true, text: func(r *flow.Record) []byte { return foreign([]byte(user(r).Next)) }},
	cSubscriberSource: {name: "subscriber_source", needs: ofExtra, node: textNode, text: func(r *flow.Record) []byte { return foreign([]byte(user(r).Source)) }},
}

// user returns whose flow it is; an empty one if that is not known.
func user(r *flow.Record) *flow.Subscriber {
	if s := r.Subscriber(); s != nil {
		return s
	}
	return &nobody
}

var nobody flow.Subscriber

func maskPorts(r *flow.Record) bool {
	return hasMask(r) && (r.Orig.Proto.HasPorts() || r.Orig.Proto == flow.GRE)
}

// droppable are the keys that an archive can leave out: what is not needed to say who had an address and a port at a time.
var droppable = func() []string {
	keys := []string{"duration_ms", "ct_id", "flow_id"}
	for i := range columns {
		switch i {
		case cEvent, cTime, cTimeSource, cClock, cStart, cEnd, cProto, cProtoNum, cSrcIP, cSrcPort, cNAT,
			cNATSrcIP, cNATSrcPort, cICMPID, cNATICMPID, cGREKey, cNATGREKey, cCause, cFrom, cTo, cLost, cOutput, cWhole, cTimeoutS, cEndReason:
		default:
			keys = append(keys, columns[i].name)
		}
	}
	return keys
}()

// identity are the keys without which a flow_id cannot be computed.
var identity = []string{"dst_ip", "dst_port", "icmp_type", "icmp_code", "gre_dst_key", "zone", "zone_orig", "zone_reply", "nsid"}

// CheckDrop tells a key in drop that an archive cannot leave out.
func CheckDrop(drop []string) error {
	for _, name := range drop {
		if !slices.Contains(droppable, name) {
			return fmt.Errorf("an archive cannot drop %q; allowed are: %s", name, strings.Join(droppable, ", "))
		}
	}
	return nil
}

// dropped returns which columns are left out.
func dropped(drop []string) (d [columnCount]bool) {
	for i := range columns {
		d[i] = slices.Contains(drop, columns[i].name)
	}
	return d
}

// group is a parquet.Group that keeps the columns in their order.
type group struct {
	parquet.Group
	order []string
}

func (g group) Fields() []parquet.Field {
	fields := g.Group.Fields()
	slices.SortFunc(fields, func(a, b parquet.Field) int {
		return slices.Index(g.order, a.Name()) - slices.Index(g.order, b.Name())
	})
	return fields
}

// newSchema returns the table's schema as the library has it.
func newSchema() *parquet.Schema {
	g := group{Group: parquet.Group{}}
	for i := range columns {
		c := &columns[i]
		node := c.node
		if c.list != nil {
			node = parquet.List(textNode)
		}
		g.Group[c.name] = parquet.Optional(node)
		g.order = append(g.order, c.name)
	}
	return parquet.NewSchema("flows", g)
}
