package ctnetlink

import (
	"encoding/binary"
	"fmt"

	"github.com/ctlogd/ctlogd/flow"
)

// A message of ctnetlink (net/netfilter/nf_conntrack_netlink.c, ctnetlink_conntrack_event and ctnetlink_expect_event):
//
//	 0       4      6       8      12      16       17        18       20
//	+-------+------+-------+------+-------+--------+---------+--------+------------
//	| len   | type | flags | seq  | pid   | family | version | res_id | attributes
//	+-------+------+-------+------+-------+--------+---------+--------+------------
//	 nlmsghdr, in host order               nfgenmsg
//
// and an attribute (struct nlattr), padded to a multiple of 4 bytes:
//
//	+-----+------+---------
//	| len | type | value       len counts its own 4 bytes; the values of ctnetlink are big-endian
//	+-----+------+---------
const (
	nlHeader  = 16
	msgHeader = 20 // nlmsghdr and nfgenmsg

	nlaTypeMask = 0x3fff // NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER

	subsysCT  = 1 // NFNL_SUBSYS_CTNETLINK
	subsysExp = 2 // NFNL_SUBSYS_CTNETLINK_EXP

	msgNew    = 0 // IPCTNL_MSG_CT_NEW, IPCTNL_MSG_EXP_NEW
	msgDelete = 2 // IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_EXP_DELETE

	flagsNew = 0x600 // NLM_F_CREATE | NLM_F_EXCL: told from an update by these alone
)

// Attribute numbers, linux/netfilter/nfnetlink_conntrack.h. No other file knows them, but for the socket filter.
const (
	ctaTupleOrig      = 1  // CTA_TUPLE_ORIG
	ctaTupleReply     = 2  // CTA_TUPLE_REPLY
	ctaStatus         = 3  // CTA_STATUS
	ctaProtoInfo      = 4  // CTA_PROTOINFO
	ctaHelp           = 5  // CTA_HELP
	ctaTimeout        = 7  // CTA_TIMEOUT
	ctaMark           = 8  // CTA_MARK
	ctaCountersOrig   = 9  // CTA_COUNTERS_ORIG
	ctaCountersReply  = 10 // CTA_COUNTERS_REPLY
	ctaID             = 12 // CTA_ID
	ctaTupleMaster    = 14 // CTA_TUPLE_MASTER
	ctaZone           = 18 // CTA_ZONE
	ctaSecCtx         = 19 // CTA_SECCTX
	ctaTimestamp      = 20 // CTA_TIMESTAMP
	ctaLabels         = 22 // CTA_LABELS
	ctaTimestampEvent = 27 // CTA_TIMESTAMP_EVENT, since Linux 6.14

	ctaTupleIP    = 1 // CTA_TUPLE_IP
	ctaTupleProto = 2 // CTA_TUPLE_PROTO
	ctaTupleZone  = 3 // CTA_TUPLE_ZONE

	ctaIPv4Src = 1 // CTA_IP_V4_SRC
	ctaIPv4Dst = 2 // CTA_IP_V4_DST
	ctaIPv6Src = 3 // CTA_IP_V6_SRC
	ctaIPv6Dst = 4 // CTA_IP_V6_DST

	ctaProtoNum        = 1 // CTA_PROTO_NUM
	ctaProtoSrcPort    = 2 // CTA_PROTO_SRC_PORT
	ctaProtoDstPort    = 3 // CTA_PROTO_DST_PORT
	ctaProtoICMPID     = 4 // CTA_PROTO_ICMP_ID
	ctaProtoICMPType   = 5 // CTA_PROTO_ICMP_TYPE
	ctaProtoICMPCode   = 6 // CTA_PROTO_ICMP_CODE
	ctaProtoICMPv6ID   = 7 // CTA_PROTO_ICMPV6_ID
	ctaProtoICMPv6Type = 8 // CTA_PROTO_ICMPV6_TYPE
	ctaProtoICMPv6Code = 9 // CTA_PROTO_ICMPV6_CODE

	ctaProtoInfoTCP  = 1 // CTA_PROTOINFO_TCP
	ctaProtoInfoDCCP = 2 // CTA_PROTOINFO_DCCP
	ctaProtoInfoSCTP = 3 // CTA_PROTOINFO_SCTP
	ctaState         = 1 // CTA_PROTOINFO_TCP_STATE, _DCCP_STATE, _SCTP_STATE

	ctaHelpName = 1 // CTA_HELP_NAME

	ctaCountersPackets = 1 // CTA_COUNTERS_PACKETS
	ctaCountersBytes   = 2 // CTA_COUNTERS_BYTES

	ctaTimestampStart = 1 // CTA_TIMESTAMP_START
	ctaTimestampStop  = 2 // CTA_TIMESTAMP_STOP

	ctaSecCtxName = 1 // CTA_SECCTX_NAME

	ctaExpectMaster   = 1 // CTA_EXPECT_MASTER
	ctaExpectTuple    = 2 // CTA_EXPECT_TUPLE
	ctaExpectMask     = 3 // CTA_EXPECT_MASK
	ctaExpectTimeout  = 4 // CTA_EXPECT_TIMEOUT
	ctaExpectID       = 5 // CTA_EXPECT_ID
	ctaExpectHelpName = 6 // CTA_EXPECT_HELP_NAME
	ctaExpectZone     = 7 // CTA_EXPECT_ZONE
	ctaExpectFlags    = 8 // CTA_EXPECT_FLAGS
	ctaExpectClass    = 9 // CTA_EXPECT_CLASS
)

// malformed is a message that does not keep to the format: where, and what is wrong.
type malformed struct {
	attr string
	what string
}

func (e *malformed) Error() string { return fmt.Sprintf("malformed message: %s: %s", e.attr, e.what) }

// Errors of the decoder; each is made once, so that a flood of malformed messages costs no garbage.
var (
	errHeader = &malformed{"header", "shorter than 20 bytes, or its length passes the end of the datagram"}
	errType   = &malformed{"header", "no event of ctnetlink"}
	errOrig   = &malformed{"message", "no original tuple with source and destination of one address family"}
)

// attrs is what is left to read of a list of attributes. To read one,
//
//	for len(a) >= attrHeader {
//		typ, n := a.head()
//		if n < attrHeader || n > len(a) {
//			return false
//		}
//		v := a[attrHeader:n]
//		a = a.behind(n)
//		...
//	}
//
// which every function below does for itself: a call for each attribute would double the cost of a message.
type attrs []byte

const attrHeader = 4

// head returns the type and the length of the first attribute, its header included.
func (a attrs) head() (typ uint16, n int) {
	return binary.NativeEndian.Uint16(a[2:]) & nlaTypeMask, int(binary.NativeEndian.Uint16(a))
}

// behind returns what follows the first attribute, which is n bytes long.
func (a attrs) behind(n int) attrs { return a[min((n+3)&^3, len(a)):] }

// decode reads msg, one message of ctnetlink, into the next record of b, and returns it. An attribute that is not as it
// should be is left out: skipped is how many. On error, which is for messages without a flow, b is as it was. Nothing of
// msg is referred to afterwards. It allocates nothing, but for a security context.
func decode(msg []byte, b *flow.Batch) (r *flow.Record, skipped int, err error) {
	if len(msg) < msgHeader {
		return nil, 0, errHeader
	}
	event := eventOf(msg)
	if event == 0 {
		return nil, 0, errType
	}
	r = b.Next()
	r.Event = event
	if event < flow.EventExpectNew {
		if binary.NativeEndian.Uint32(msg[12:]) != 0 {
			r.Has |= flow.ByRequest
		}
		skipped = decodeFlow(decodeUsual(msg[msgHeader:], r), b, r)
	} else {
		skipped = decodeExpect(msg[msgHeader:], b, r)
	}
	if r.Has&flow.HasOrig == 0 {
		b.Drop()
		return nil, 0, errOrig
	}
	return r, skipped, nil
}

// eventOf returns the event that a message of at least msgHeader bytes reports, 0 if it is none.
func eventOf(msg []byte) flow.Event {
	switch binary.NativeEndian.Uint16(msg[4:]) {
	case subsysCT<<8 | msgDelete:
		return flow.EventDestroy
	case subsysCT<<8 | msgNew:
		if binary.NativeEndian.Uint16(msg[6:])&flagsNew != 0 {
			return flow.EventNew
		}
		return flow.EventUpdate
	case subsysExp<<8 | msgNew:
		return flow.EventExpectNew
	case subsysExp<<8 | msgDelete:
		return flow.EventExpectDestroy
	}
	return 0
}

// recorded reports whether a message that could not be decoded would have become a record.
func (c *Config) recorded(msg []byte) bool {
	if len(msg) < msgHeader {
		return true
	}
	switch e := eventOf(msg); e {
	case 0:
		return false
	case flow.EventExpectNew, flow.EventExpectDestroy:
		return c.Expectations
	default:
		return c.wants(e.String())
	}
}

func decodeFlow(a attrs, b *flow.Batch, r *flow.Record) (skipped int) {
	noCounters := false
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			skipped++ // and nothing behind it can be found
			break
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		ok := true
		switch typ {
		case ctaTupleOrig:
			r.Has &^= flow.HasOrig | flow.NoPorts
			if ok = decodeTuple(v, &r.Orig); ok {
				r.Has |= flow.HasOrig
				if r.Orig.SrcPort|r.Orig.DstPort == 0 && r.Orig.Proto.HasPorts() && !namesPorts(v) {
					r.Has |= flow.NoPorts
				}
			}
		case ctaTupleReply:
			r.Has &^= flow.HasReply
			if ok = decodeTuple(v, &r.Reply); ok {
				r.Has |= flow.HasReply
			}
		case ctaStatus:
			if ok = u32(v, (*uint32)(&r.Status)); ok {
				r.Has |= flow.HasStatus
			}
		case ctaProtoInfo:
			ok = decodeProtoInfo(v, r)
		case ctaHelp:
			ok = decodeHelp(v, b.Extra(r))
		case ctaTimeout:
			if ok = u32(v, &r.Timeout); ok {
				r.Has |= flow.HasTimeout
			}
		case ctaMark:
			if ok = u32(v, &r.Mark); ok {
				r.Has |= flow.HasMark
			}
		case ctaCountersOrig, ctaCountersReply:
			c := &r.OrigCounters
			if typ == ctaCountersReply {
				c = &r.ReplyCounters
			}
			if ok = decodeCounters(v, c); ok {
				r.Has |= flow.HasCounters
			} else {
				noCounters = true
			}
		case ctaID:
			if ok = u32(v, &r.ID); ok {
				r.Has |= flow.HasID
			}
		case ctaTupleMaster:
			x := b.Extra(r)
			ok = decodeTuple(v, &x.Master)
			x.HasMaster = ok
		case ctaZone:
			if ok = u16(v, &r.Zone); ok {
				r.Has |= flow.HasZone
			}
		case ctaSecCtx:
			ok = decodeSecCtx(v, b.Extra(r))
		case ctaTimestamp:
			ok = decodeTimestamp(v, r)
		case ctaLabels:
			ok = decodeLabels(v, b.Extra(r))
		case ctaTimestampEvent:
			ok = stamp(v, &r.Stamp)
		}
		if !ok {
			skipped++
		}
	}
	if noCounters { // those of one direction alone would say that the other one carried nothing
		r.Has &^= flow.HasCounters
		r.OrigCounters, r.ReplyCounters = flow.Counters{}, flow.Counters{}
	}
	return skipped
}

func decodeExpect(a attrs, b *flow.Batch, r *flow.Record) (skipped int) {
	x := b.Extra(r)
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return skipped + 1
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		ok := true
		switch typ {
		case ctaExpectMaster:
			ok = decodeTuple(v, &x.Master)
			x.HasMaster = ok
		case ctaExpectTuple:
			r.Has &^= flow.HasOrig
			if ok = decodeTuple(v, &r.Orig); ok {
				r.Has |= flow.HasOrig
			}
		case ctaExpectMask:
			r.Has &^= flow.HasReply
			if ok = decodeTuple(v, &r.Reply); ok {
				r.Has |= flow.HasReply
			}
		case ctaExpectTimeout:
			if ok = u32(v, &r.Timeout); ok {
				r.Has |= flow.HasTimeout
			}
		case ctaExpectID:
			if ok = u32(v, &r.ID); ok {
				r.Has |= flow.HasID
			}
		case ctaExpectHelpName:
			x.Helper = name(v)
		case ctaExpectZone:
			if ok = u16(v, &r.Zone); ok {
				r.Has |= flow.HasZone
			}
		case ctaExpectFlags:
			ok = u32(v, &x.Flags)
		case ctaExpectClass:
			ok = u32(v, &x.Class)
		}
		if !ok {
			skipped++
		}
	}
	return skipped
}

// Address attributes that a tuple has, as bits.
const (
	haveV4 = 1<<ctaIPv4Src | 1<<ctaIPv4Dst
	haveV6 = 1<<ctaIPv6Src | 1<<ctaIPv6Dst
)

// decodeTuple reads CTA_TUPLE_ORIG and its like: addresses, protocol and ports, perhaps a zone of this direction. Without
// the addresses, or with anything that is not as it should be, there is no tuple: half of one could be that of another
// flow. t is zeroed then.
func decodeTuple(a attrs, t *flow.Tuple) (ok bool) {
	*t = flow.Tuple{}
	have := 0
	ok = true
	for len(a) >= attrHeader && ok {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			ok = false
			break
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		switch typ {
		case ctaTupleIP:
			have, ok = decodeIP(v, t)
		case ctaTupleProto:
			ok = decodeL4(v, t)
		case ctaTupleZone:
			ok = u16(v, &t.Zone)
			t.HasZone = true
		}
	}
	if !ok || have != haveV4 && have != haveV6 {
		*t = flow.Tuple{}
		return false
	}
	t.V6 = have == haveV6
	return true
}

func decodeIP(a attrs, t *flow.Tuple) (have int, ok bool) {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return 0, false
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		switch {
		case typ == ctaIPv4Src && len(v) == 4:
			t.Src = flow.AddrFrom4([4]byte(v))
		case typ == ctaIPv4Dst && len(v) == 4:
			t.Dst = flow.AddrFrom4([4]byte(v))
		case typ == ctaIPv6Src && len(v) == 16:
			t.Src = flow.Addr(v)
		case typ == ctaIPv6Dst && len(v) == 16:
			t.Dst = flow.Addr(v)
		case typ >= ctaIPv4Src && typ <= ctaIPv6Dst:
			return 0, false
		default:
			continue
		}
		have |= 1 << typ
	}
	return have, true
}

// decodeL4 reads the protocol and its ports.
func decodeL4(a attrs, t *flow.Tuple) bool {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return false
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		ok := true
		var b byte
		switch typ {
		case ctaProtoNum:
			ok = u8(v, (*uint8)(&t.Proto))
		case ctaProtoSrcPort, ctaProtoICMPID, ctaProtoICMPv6ID:
			ok = u16(v, &t.SrcPort)
		case ctaProtoDstPort:
			ok = u16(v, &t.DstPort)
		case ctaProtoICMPType, ctaProtoICMPv6Type:
			ok = u8(v, &b)
			t.DstPort = t.DstPort&0x00ff | uint16(b)<<8
		case ctaProtoICMPCode, ctaProtoICMPv6Code:
			ok = u8(v, &b)
			t.DstPort = t.DstPort&0xff00 | uint16(b)
		}
		if !ok {
			return false
		}
	}
	return true
}

// namesPorts reports whether a tuple that could be decoded has ports. The kernel sends none for a protocol that it does not
// track, such as DCCP since Linux 6.18.
func namesPorts(a attrs) bool {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return false
		}
		if typ == ctaTupleProto {
			for in := a[attrHeader:n]; len(in) >= attrHeader; {
				typ, n := in.head()
				if typ == ctaProtoSrcPort || typ == ctaProtoDstPort {
					return true
				}
				if n < attrHeader || n > len(in) {
					return false
				}
				in = in.behind(n)
			}
		}
		a = a.behind(n)
	}
	return false
}

func decodeProtoInfo(a attrs, r *flow.Record) bool {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return false
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		ok := true
		switch typ {
		case ctaProtoInfoTCP:
			ok = decodeState(v, r, flow.HasTCP)
		case ctaProtoInfoDCCP:
			ok = decodeState(v, r, flow.HasDCCP)
		case ctaProtoInfoSCTP:
			ok = decodeState(v, r, flow.HasSCTP)
		}
		if !ok {
			return false
		}
	}
	return true
}

func decodeState(a attrs, r *flow.Record, has flow.Has) bool {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return false
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		if typ == ctaState {
			if !u8(v, &r.State) {
				return false
			}
			r.Has |= has
		}
	}
	return true
}

func decodeHelp(a attrs, x *flow.Extra) bool {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return false
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		if typ == ctaHelpName {
			x.Helper = name(v)
		}
	}
	return true
}

func decodeCounters(a attrs, c *flow.Counters) bool {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return false
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		ok := true
		switch typ {
		case ctaCountersPackets:
			ok = u64(v, &c.Packets)
		case ctaCountersBytes:
			ok = u64(v, &c.Bytes)
		}
		if !ok {
			return false
		}
	}
	return true
}

func decodeTimestamp(a attrs, r *flow.Record) bool {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return false
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		ok := true
		switch typ {
		case ctaTimestampStart:
			ok = stamp(v, &r.Start)
		case ctaTimestampStop:
			ok = stamp(v, &r.Stop)
		}
		if !ok {
			return false
		}
	}
	return true
}

func decodeSecCtx(a attrs, x *flow.Extra) bool {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return false
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		if typ == ctaSecCtxName {
			x.SecCtx = string(cutNUL(v))
		}
	}
	return true
}

// decodeLabels reads labels: as wide as the kernel's array, 16 bytes; older kernels sent as many words as were in use.
func decodeLabels(v []byte, x *flow.Extra) bool {
	if len(v) > len(x.Labels) || len(v)%4 != 0 {
		return false
	}
	x.Labels = [16]byte{}
	copy(x.Labels[:], v)
	x.HasLabels = true
	return true
}

func name(v []byte) flow.Name { return flow.NameFrom(cutNUL(v)) }

// cutNUL returns the string at the start of v, which ends at its first NUL.
func cutNUL(v []byte) []byte {
	for i, c := range v {
		if c == 0 {
			return v[:i]
		}
	}
	return v
}

func u8(v []byte, p *uint8) bool {
	if len(v) != 1 {
		return false
	}
	*p = v[0]
	return true
}

func u16(v []byte, p *uint16) bool {
	if len(v) != 2 {
		return false
	}
	*p = binary.BigEndian.Uint16(v)
	return true
}

func u32(v []byte, p *uint32) bool {
	if len(v) != 4 {
		return false
	}
	*p = binary.BigEndian.Uint32(v)
	return true
}

func u64(v []byte, p *uint64) bool {
	if len(v) != 8 {
		return false
	}
	*p = binary.BigEndian.Uint64(v)
	return true
}

// stamp reads a time in nanoseconds since 1970. One past the year 2262 is no time that a clock can have shown.
func stamp(v []byte, p *int64) bool {
	var ns uint64
	if !u64(v, &ns) || ns > 1<<63-1 {
		return false
	}
	*p = int64(ns)
	return true
}
