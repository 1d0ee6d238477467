package archive

import (
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
	columnCount
)

// cell makes the values of one column. It owns the texts of the values that it has made since reset.
type cell struct {
	arena []byte

	// The list made last: that of the next row is the same, mostly.
	bits uint32
	list []parquet.Value
}

func (c *cell) reset() { c.arena = c.arena[:0] }

// text makes a value of what add appends. Values made before stay valid when the arena grows.
func (c *cell) text(add func(b []byte) []byte) parquet.Value {
	at := len(c.arena)
	c.arena = add(c.arena)
	return parquet.ByteArrayValue(c.arena[at:len(c.arena):len(c.arena)])
}

func (c *cell) addr(t *flow.Tuple, a *flow.Addr) parquet.Value {
	at := len(c.arena)
	c.arena = appendAddr(c.arena, a, t.V6)
	return parquet.ByteArrayValue(c.arena[at:len(c.arena):len(c.arena)])
}

func appendAddr(b []byte, a *flow.Addr, v6 bool) []byte {
	t := flow.Tuple{Src: *a, V6: v6}
	return t.SrcAddr().AppendTo(b)
}

// foreign makes a value of text that comes from elsewhere: bytes that are not UTF-8 become U+FFFD, as in JSON. Readers
// refuse a whole file for one such byte.
func foreign(b []byte) parquet.Value {
	if !utf8.Valid(b) {
		b = []byte(string([]rune(string(b))))
	}
	return parquet.ByteArrayValue(b)
}

var null parquet.Value

func number(v uint64) parquet.Value { return parquet.Int64Value(int64(v)) }
func small(v uint32) parquet.Value  { return parquet.Int32Value(int32(v)) }

// names makes a value of each name once.
func names(list []string) []parquet.Value {
	v := make([]parquet.Value, len(list))
	for i, n := range list {
		v[i] = parquet.ByteArrayValue([]byte(n))
	}
	return v
}

// sets makes the value of a list from bits, with the names that the flat format gives them.
type sets struct{ bits [32]parquet.Value }

func newSets(list []string) *sets {
	s := new(sets)
	for i := range s.bits {
		name := fmt.Sprintf("bit%d", i)
		if i < len(list) {
			name = list[i]
		}
		s.bits[i] = parquet.ByteArrayValue([]byte(name))
	}
	return s
}

// append appends the list of v's bits. An empty list is a value, too.
func (s *sets) append(dst []parquet.Value, v uint32) []parquet.Value {
	if v == 0 {
		return append(dst, null.Level(0, 1, 0))
	}
	rep := 0
	for i := 0; v != 0; i, v = i+1, v>>1 {
		if v&1 != 0 {
			dst = append(dst, s.bits[i].Level(rep, 2, 0))
			rep = 1
		}
	}
	return dst
}

// parse returns the bit of a name.
func (s *sets) parse(name []byte) uint32 {
	for i := range s.bits {
		if string(s.bits[i].ByteArray()) == string(name) {
			return 1 << i
		}
	}
	return 0
}

var (
	eventValues  = names(flow.EventNames[:])
	natValues    = names(flow.NATNames[:])
	endValues    = names(flow.EndReasonNames[:])
	causeValues  = names(flow.CauseNames[:])
	sourceValues = names([]string{"received", "kernel"})
	protoValues  = func() (v [256]parquet.Value) {
		for i := range v {
			v[i] = parquet.ByteArrayValue([]byte(flow.Proto(i).String()))
		}
		return v
	}()
	stateValues = func() (v [3][256]parquet.Value) {
		for k, has := range stateHas {
			for i := range v[k] {
				r := flow.Record{Has: has, State: uint8(i)}
				v[k][i] = parquet.ByteArrayValue([]byte(r.StateName()))
			}
		}
		return v
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

// column is how one column is written. Of scalar and list, one is set. A scalar that is null has no kind.
type column struct {
	name   string
	node   parquet.Node
	needs  feature // without one of these in a group the column is empty there
	scalar func(c *cell, r *flow.Record) parquet.Value
	list   *list
}

// values appends the column's values of some records.
func (c *column) values(dst []parquet.Value, scratch *cell, recs []flow.Record) []parquet.Value {
	if c.list != nil {
		for i := range recs {
			dst = c.list.append(dst, scratch, &recs[i])
		}
		return dst
	}
	scratch.reset()
	for i := range recs {
		v := c.scalar(scratch, &recs[i])
		if !v.IsNull() {
			v.SetDefinitionLevel(1)
		}
		dst = append(dst, v)
	}
	return dst
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
func master(r *flow.Record) *flow.Tuple {
	if r.Extra == nil || !r.Extra.HasMaster || r.Event >= flow.EventGap {
		return nil
	}
	return &r.Extra.Master
}

// isCheckpoint reports whether the record is of no flow, but of a reading of the table that is over.
func isCheckpoint(r *flow.Record) bool { return r.Checkpoint() >= flow.CheckpointWhole }

// checkpointEvent is what the column event calls it.
const checkpointEvent = "checkpoint"

var checkpointValue = parquet.ByteArrayValue([]byte(checkpointEvent))

// ended says that the record's time is the end of a flow, which has a column of its own.
func ended(r *flow.Record) bool { return r.Event == flow.EventDestroy && r.Stop != 0 }

// when makes the functions of columns that are there on a condition.
func when(has func(r *flow.Record) bool, value func(c *cell, r *flow.Record) parquet.Value) func(*cell, *flow.Record) parquet.Value {
	return func(c *cell, r *flow.Record) parquet.Value {
		if !has(r) {
			return null
		}
		return value(c, r)
	}
}

func ported(has func(r *flow.Record) bool, value func(r *flow.Record) uint16) func(*cell, *flow.Record) parquet.Value {
	return func(_ *cell, r *flow.Record) parquet.Value {
		if !has(r) {
			return null
		}
		return small(uint32(value(r)))
	}
}

// natOf is the kind of translation, or none where the reply tuple is not known.
func natOf(r *flow.Record) flow.NAT {
	if !hasReply(r) {
		return flow.NATNone
	}
	return r.NAT()
}

func state(k int) func(*cell, *flow.Record) parquet.Value {
	return func(_ *cell, r *flow.Record) parquet.Value {
		for i, has := range stateHas { // the first that is set counts
			if r.Has&has != 0 {
				if i != k || r.Event >= flow.EventGap {
					return null
				}
				return stateValues[k][r.State]
			}
		}
		return null
	}
}

func gap(r *flow.Record) *flow.Gap {
	if r.Event != flow.EventGap || r.Extra == nil {
		return nil
	}
	return &r.Extra.Gap
}

func portsOf(r *flow.Record) bool { return hasTuple(r) && r.HasPorts() }
func icmpOf(r *flow.Record) bool  { return hasTuple(r) && r.Orig.Proto.IsICMP() }
func greOf(r *flow.Record) bool   { return hasTuple(r) && r.Orig.Proto == flow.GRE }
func natSrc(r *flow.Record) bool  { return natOf(r)&flow.NATSrc != 0 }
func natDst(r *flow.Record) bool  { return natOf(r)&flow.NATDst != 0 }
func stamp(has func(r *flow.Record) bool, ns func(r *flow.Record) int64) func(*cell, *flow.Record) parquet.Value {
	return func(_ *cell, r *flow.Record) parquet.Value {
		if !has(r) {
			return null
		}
		return parquet.Int64Value(ns(r))
	}
}

func counted(n func(r *flow.Record) uint64) func(*cell, *flow.Record) parquet.Value {
	return func(_ *cell, r *flow.Record) parquet.Value {
		if r.Has&flow.HasCounters == 0 || r.Event >= flow.EventGap {
			return null
		}
		return number(n(r))
	}
}

func yes(has func(r *flow.Record) bool) func(*cell, *flow.Record) parquet.Value {
	return func(_ *cell, r *flow.Record) parquet.Value {
		if !has(r) {
			return null
		}
		return parquet.BooleanValue(true)
	}
}

// list is what a column of lists is made of.
type list struct {
	sets *sets
	has  func(r *flow.Record) bool
	bits func(r *flow.Record) uint32
}

func (l *list) append(dst []parquet.Value, c *cell, r *flow.Record) []parquet.Value {
	if !l.has(r) {
		return append(dst, null.Level(0, 0, 0))
	}
	if bits := l.bits(r); bits != c.bits || len(c.list) == 0 {
		c.bits, c.list = bits, l.sets.append(c.list[:0], bits)
	}
	return append(dst, c.list...)
}

func listOf(s *sets, has func(r *flow.Record) bool, bits func(r *flow.Record) uint32) *list {
	return &list{s, has, bits}
}

func extra(r *flow.Record) bool { return r.Extra != nil && r.Event < flow.EventGap }

// columns describes each column, by its number.
var columns = [columnCount]column{
	cEvent: {name: "event", node: textNode, scalar: func(_ *cell, r *flow.Record) parquet.Value {
		if isCheckpoint(r) {
			return checkpointValue
		}
		return eventValues[r.Event]
	}},
	cTime: {name: "time", needs: ofOther, node: timeNode, scalar: func(_ *cell, r *flow.Record) parquet.Value {
		if ended(r) {
			return null
		}
		t, _ := r.Time()
		return parquet.Int64Value(t)
	}},
	cTimeSource: {name: "time_source", node: textNode, scalar: func(_ *cell, r *flow.Record) parquet.Value {
		if _, kernel := r.Time(); kernel {
			return sourceValues[1]
		}
		return sourceValues[0]
	}},
	cClock: {name: "clock", needs: ofClock, list: listOf(clockSets, func(r *flow.Record) bool { return clockBits(r) != 0 }, clockBits)},
	cStart: {name: "start", node: timeNode, scalar: stamp(func(r *flow.Record) bool { return r.Start != 0 && r.Event < flow.EventGap && !isCheckpoint(r) },
		func(r *flow.Record) int64 { return r.Start })},
	cEnd: {name: "end", node: timeNode, scalar: stamp(ended,
		func(r *flow.Record) int64 { return r.Stop })},
	cProto: {name: "proto", node: textNode, scalar: when(hasTuple, func(_ *cell, r *flow.Record) parquet.Value { return protoValues[r.Orig.Proto] })},
	cProtoNum: {name: "proto_num", node: rareNode(8),
		scalar: when(hasTuple, func(_ *cell, r *flow.Record) parquet.Value { return small(uint32(r.Orig.Proto)) })},
	cSrcIP:   {name: "src_ip", node: textNode, scalar: when(hasTuple, func(c *cell, r *flow.Record) parquet.Value { return c.addr(&r.Orig, &r.Orig.Src) })},
	cSrcPort: {name: "src_port", node: portNode, scalar: ported(portsOf, func(r *flow.Record) uint16 { return r.Orig.SrcPort })},
	cDstIP:   {name: "dst_ip", node: textNode, scalar: when(hasTuple, func(c *cell, r *flow.Record) parquet.Value { return c.addr(&r.Orig, &r.Orig.Dst) })},
	cDstPort: {name: "dst_port", node: rareNode(16), scalar: ported(portsOf, func(r *flow.Record) uint16 { return r.Orig.DstPort })},
	cNAT:     {name: "nat", node: textNode, scalar: when(hasReply, func(_ *cell, r *flow.Record) parquet.Value { return natValues[r.NAT()] })},
	cNATSrcIP: {name: "nat_src_ip", node: textNode,
		scalar: when(natSrc, func(c *cell, r *flow.Record) parquet.Value { return c.addr(&r.Reply, &r.Reply.Dst) })},
	cNATSrcPort: {name: "nat_src_port", node: portNode,
		scalar: ported(func(r *flow.Record) bool { return natSrc(r) && r.HasPorts() },
			func(r *flow.Record) uint16 { return r.Reply.DstPort })},
	cNATDstIP: {name: "nat_dst_ip", needs: ofDNAT, node: textNode,
		scalar: when(natDst, func(c *cell, r *flow.Record) parquet.Value { return c.addr(&r.Reply, &r.Reply.Src) })},
	cNATDstPort: {name: "nat_dst_port", needs: ofDNAT, node: rareNode(16),
		scalar: ported(func(r *flow.Record) bool { return natDst(r) && r.HasPorts() },
			func(r *flow.Record) uint16 { return r.Reply.SrcPort })},
	cICMPType: {name: "icmp_type", needs: ofICMP, node: rareNode(8), scalar: ported(icmpOf, func(r *flow.Record) uint16 { return uint16(r.Orig.ICMPType()) })},
	cICMPCode: {name: "icmp_code", needs: ofICMP, node: rareNode(8), scalar: ported(icmpOf, func(r *flow.Record) uint16 { return uint16(r.Orig.ICMPCode()) })},
	cICMPID:   {name: "icmp_id", needs: ofICMP, node: rareNode(16), scalar: ported(icmpOf, func(r *flow.Record) uint16 { return r.Orig.ICMPID() })},
	cNATICMPID: {name: "nat_icmp_id", needs: ofICMP, node: rareNode(16),
		scalar: ported(func(r *flow.Record) bool { return icmpOf(r) && hasReply(r) && r.Reply.ICMPID() != r.Orig.ICMPID() },
			func(r *flow.Record) uint16 { return r.Reply.ICMPID() })},
	cGREKey:    {name: "gre_key", needs: ofGRE, node: rareNode(16), scalar: ported(greOf, func(r *flow.Record) uint16 { return r.Orig.SrcPort })},
	cGREDstKey: {name: "gre_dst_key", needs: ofGRE, node: rareNode(16), scalar: ported(greOf, func(r *flow.Record) uint16 { return r.Orig.DstPort })},
	cNATGREKey: {name: "nat_gre_key", needs: ofGRE, node: rareNode(16),
		scalar: ported(func(r *flow.Record) bool { return greOf(r) && hasReply(r) && r.Reply.DstPort != r.Orig.SrcPort },
			func(r *flow.Record) uint16 { return r.Reply.DstPort })},
	cNATGREDstKey: {name: "nat_gre_dst_key", needs: ofGRE, node: rareNode(16),
		scalar: ported(func(r *flow.Record) bool { return greOf(r) && hasReply(r) && r.Reply.SrcPort != r.Orig.DstPort },
			func(r *flow.Record) uint16 { return r.Reply.SrcPort })},
	cOrigPackets:  {name: "orig_packets", node: rareNode(64), scalar: counted(func(r *flow.Record) uint64 { return r.OrigCounters.Packets })},
	cOrigBytes:    {name: "orig_bytes", node: countNode, scalar: counted(func(r *flow.Record) uint64 { return r.OrigCounters.Bytes })},
	cReplyPackets: {name: "reply_packets", node: rareNode(64), scalar: counted(func(r *flow.Record) uint64 { return r.ReplyCounters.Packets })},
	cReplyBytes:   {name: "reply_bytes", node: countNode, scalar: counted(func(r *flow.Record) uint64 { return r.ReplyCounters.Bytes })},
	cTCPState:     {name: "tcp_state", node: textNode, scalar: state(0)},
	cSCTPState:    {name: "sctp_state", needs: ofState, node: textNode, scalar: state(1)},
	cDCCPState:    {name: "dccp_state", needs: ofState, node: textNode, scalar: state(2)},
	cStatus: {name: "status", list: listOf(statusSets, func(r *flow.Record) bool { return r.Has&flow.HasStatus != 0 && r.Event < flow.EventGap },
		func(r *flow.Record) uint32 { return uint32(r.Status) })},
	cHelper: {name: "helper", needs: ofExtra, node: textNode, scalar: when(func(r *flow.Record) bool { return extra(r) && r.Extra.Helper.Len() != 0 },
		func(_ *cell, r *flow.Record) parquet.Value {
			return foreign(r.Extra.Helper[:r.Extra.Helper.Len()])
		})},
	cHelperUnknown: {name: "helper_unknown", needs: ofHelper, node: parquet.Leaf(parquet.BooleanType),
		scalar: yes(func(r *flow.Record) bool { return r.Has&flow.HelperUnknown != 0 && r.Event < flow.EventGap })},
	cMasterProto: {name: "master_proto", needs: ofExtra, node: textNode, scalar: when(func(r *flow.Record) bool { return master(r) != nil },
		func(_ *cell, r *flow.Record) parquet.Value { return protoValues[master(r).Proto] })},
	cMasterSrcIP: {name: "master_src_ip", needs: ofExtra, node: textNode, scalar: when(func(r *flow.Record) bool { return master(r) != nil },
		func(c *cell, r *flow.Record) parquet.Value { return c.addr(master(r), &master(r).Src) })},
	cMasterSrcPort: {name: "master_src_port", needs: ofExtra, node: rareNode(16),
		scalar: ported(func(r *flow.Record) bool { return master(r) != nil && master(r).Proto.HasPorts() },
			func(r *flow.Record) uint16 { return master(r).SrcPort })},
	cMasterDstIP: {name: "master_dst_ip", needs: ofExtra, node: textNode, scalar: when(func(r *flow.Record) bool { return master(r) != nil },
		func(c *cell, r *flow.Record) parquet.Value { return c.addr(master(r), &master(r).Dst) })},
	cMasterDstPort: {name: "master_dst_port", needs: ofExtra, node: rareNode(16),
		scalar: ported(func(r *flow.Record) bool { return master(r) != nil && master(r).Proto.HasPorts() },
			func(r *flow.Record) uint16 { return master(r).DstPort })},
	cZone: {name: "zone", needs: ofZone, node: rareNode(16),
		scalar: ported(func(r *flow.Record) bool { return r.Has&flow.HasZone != 0 && r.Event < flow.EventGap }, func(r *flow.Record) uint16 { return r.Zone })},
	cZoneOrig: {name: "zone_orig", needs: ofZone, node: rareNode(16),
		scalar: ported(func(r *flow.Record) bool { return hasTuple(r) && r.Orig.HasZone }, func(r *flow.Record) uint16 { return r.Orig.Zone })},
	cZoneReply: {name: "zone_reply", needs: ofZone, node: rareNode(16),
		scalar: ported(func(r *flow.Record) bool { return r.Has&flow.HasReply != 0 && isFlow(r) && r.Reply.HasZone },
			func(r *flow.Record) uint16 { return r.Reply.Zone })},
	cMark: {name: "mark", node: rareNode(32), scalar: when(func(r *flow.Record) bool { return r.Has&flow.HasMark != 0 && r.Event < flow.EventGap },
		func(_ *cell, r *flow.Record) parquet.Value { return small(r.Mark) })},
	cLabels: {name: "labels", needs: ofExtra, node: textNode, scalar: when(func(r *flow.Record) bool { return extra(r) && r.Extra.HasLabels },
		func(c *cell, r *flow.Record) parquet.Value {
			return c.text(func(b []byte) []byte { return fmt.Appendf(b, "%x", r.Extra.Labels[:]) })
		})},
	cSecCtx: {name: "secctx", needs: ofExtra, node: textNode, scalar: when(func(r *flow.Record) bool { return extra(r) && r.Extra.SecCtx != "" },
		func(_ *cell, r *flow.Record) parquet.Value { return foreign([]byte(r.Extra.SecCtx)) })},
	cEndReason: {name: "end_reason", node: textNode, scalar: when(func(r *flow.Record) bool { return r.Event == flow.EventDestroy },
		func(_ *cell, r *flow.Record) parquet.Value { return endValues[r.EndReason()] })},
	cMaskSrcIP: {name: "mask_src_ip", needs: ofExpectation, node: textNode,
		scalar: when(hasMask, func(c *cell, r *flow.Record) parquet.Value { return c.addr(&r.Orig, &r.Reply.Src) })},
	cMaskDstIP: {name: "mask_dst_ip", needs: ofExpectation, node: textNode,
		scalar: when(hasMask, func(c *cell, r *flow.Record) parquet.Value { return c.addr(&r.Orig, &r.Reply.Dst) })},
	cMaskSrcPort: {name: "mask_src_port", needs: ofExpectation, node: rareNode(16), scalar: ported(maskPorts, func(r *flow.Record) uint16 { return r.Reply.SrcPort })},
	cMaskDstPort: {name: "mask_dst_port", needs: ofExpectation, node: rareNode(16), scalar: ported(maskPorts, func(r *flow.Record) uint16 { return r.Reply.DstPort })},
	cClass: {name: "class", needs: ofExpectation, node: rareNode(32), scalar: when(func(r *flow.Record) bool { return isExpect(r) && r.Extra != nil },
		func(_ *cell, r *flow.Record) parquet.Value { return small(r.Extra.Class) })},
	cFlags: {name: "flags", needs: ofExpectation, list: listOf(flagSets, func(r *flow.Record) bool { return isExpect(r) && r.Extra != nil },
		func(r *flow.Record) uint32 { return r.Extra.Flags })},
	cTimeoutS: {name: "timeout_s", needs: ofOther, node: rareNode(32),
		scalar: when(func(r *flow.Record) bool {
			return (r.Has&flow.HasTimeout != 0 || isCheckpoint(r)) && r.Event != flow.EventDestroy && r.Event < flow.EventGap
		},
			func(_ *cell, r *flow.Record) parquet.Value { return small(r.Timeout) })},
	cWildcard: {name: "wildcard", needs: ofExpectation, node: parquet.Leaf(parquet.BooleanType), scalar: yes(func(r *flow.Record) bool { return hasMask(r) && r.Wildcard() })},
	cCause: {name: "cause", needs: ofGap, node: textNode, scalar: when(func(r *flow.Record) bool { return gap(r) != nil },
		func(_ *cell, r *flow.Record) parquet.Value {
			return causeValues[min(int(gap(r).Cause), len(causeValues)-1)]
		})},
	cFrom: {name: "from", needs: ofGap, node: timeNode, scalar: stamp(func(r *flow.Record) bool { return (r.Event >= flow.EventGap || isCheckpoint(r)) && r.Start != 0 },
		func(r *flow.Record) int64 { return r.Start })},
	cTo: {name: "to", needs: ofGap, node: timeNode, scalar: stamp(func(r *flow.Record) bool { return (r.Event >= flow.EventGap || isCheckpoint(r)) && r.Stop != 0 },
		func(r *flow.Record) int64 { return r.Stop })},
	cLost: {name: "lost", needs: ofGap, node: rareNode(64), scalar: when(func(r *flow.Record) bool { return gap(r) != nil && gap(r).LostKnown },
		func(_ *cell, r *flow.Record) parquet.Value { return number(gap(r).Lost) })},
	cWhole: {name: "whole", needs: ofOther, node: parquet.Leaf(parquet.BooleanType), scalar: func(_ *cell, r *flow.Record) parquet.Value {
		if !isCheckpoint(r) {
			return null
		}
		return parquet.BooleanValue(r.Checkpoint() == flow.CheckpointWhole)
	}},
	cOutput: {name: "output", needs: ofGap, node: textNode, scalar: when(func(r *flow.Record) bool { return gap(r) != nil && gap(r).Output != "" },
		func(_ *cell, r *flow.Record) parquet.Value { return foreign([]byte(gap(r).Output)) })},
}

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
var identity = []string{"dst_ip", "dst_port", "icmp_type", "icmp_code", "gre_dst_key", "zone", "zone_orig", "zone_reply"}

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

// schema is the table's.
var schema = func() *parquet.Schema {
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
}()
