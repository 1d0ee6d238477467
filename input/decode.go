package input

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
	errHeader    = &malformed{"header", "shorter than 20 bytes, or its length is not that of the message"}
	errType      = &malformed{"header", "no event of ctnetlink"}
	errAttribute = &malformed{"attribute", "its length passes the end of what holds it"}
	errValue     = &malformed{"attribute", "its value has not the length that its type has"}
	errTuple     = &malformed{"tuple", "source and destination of one address family are needed"}
	errOrig      = &malformed{"message", "no original tuple"}
)

// attrs is what is left to read of a list of attributes. To read one,
//
//	for len(a) >= attrHeader {
//		typ, n := a.head()
//		if n < attrHeader || n > len(a) {
//			return errAttribute
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

// decode reads msg, one whole message of ctnetlink, into the next record of b, and returns it. On error b is as it was.
// Nothing of msg is referred to afterwards. It allocates nothing, but for a security context.
func decode(msg []byte, b *flow.Batch) (*flow.Record, error) {
	if len(msg) < msgHeader || int(binary.NativeEndian.Uint32(msg)) != len(msg) {
		return nil, errHeader
	}
	typ, flags := binary.NativeEndian.Uint16(msg[4:]), binary.NativeEndian.Uint16(msg[6:])
	var event flow.Event
	switch typ {
	case subsysCT<<8 | msgDelete:
		event = flow.EventDestroy
	case subsysCT<<8 | msgNew:
		event = flow.EventUpdate
		if flags&flagsNew != 0 {
			event = flow.EventNew
		}
	case subsysExp<<8 | msgNew:
		event = flow.EventExpectNew
	case subsysExp<<8 | msgDelete:
		event = flow.EventExpectDestroy
	default:
		return nil, errType
	}
	r := b.Next()
	r.Event = event
	var err error
	if event < flow.EventExpectNew {
		if binary.NativeEndian.Uint32(msg[12:]) != 0 {
			r.Has |= flow.ByRequest
		}
		err = decodeFlow(decodeUsual(msg[msgHeader:], r), b, r)
	} else {
		err = decodeExpect(msg[msgHeader:], b, r)
	}
	if err == nil && r.Has&flow.HasOrig == 0 {
		err = errOrig
	}
	if err != nil {
		b.Drop()
		return nil, err
	}
	return r, nil
}

func decodeFlow(a attrs, b *flow.Batch, r *flow.Record) error {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return errAttribute
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		var err error
		switch typ {
		case ctaTupleOrig:
			err = decodeTuple(v, &r.Orig)
			r.Has |= flow.HasOrig
		case ctaTupleReply:
			err = decodeTuple(v, &r.Reply)
			r.Has |= flow.HasReply
		case ctaStatus:
			err = u32(v, (*uint32)(&r.Status))
			r.Has |= flow.HasStatus
		case ctaProtoInfo:
			err = decodeProtoInfo(v, r)
		case ctaHelp:
			err = decodeHelp(v, b.Extra(r))
		case ctaTimeout:
			err = u32(v, &r.Timeout)
			r.Has |= flow.HasTimeout
		case ctaMark:
			err = u32(v, &r.Mark)
			r.Has |= flow.HasMark
		case ctaCountersOrig:
			err = decodeCounters(v, &r.OrigCounters)
			r.Has |= flow.HasCounters
		case ctaCountersReply:
			err = decodeCounters(v, &r.ReplyCounters)
			r.Has |= flow.HasCounters
		case ctaID:
			err = u32(v, &r.ID)
			r.Has |= flow.HasID
		case ctaTupleMaster:
			x := b.Extra(r)
			err = decodeTuple(v, &x.Master)
			x.HasMaster = true
		case ctaZone:
			err = u16(v, &r.Zone)
			r.Has |= flow.HasZone
		case ctaSecCtx:
			err = decodeSecCtx(v, b.Extra(r))
		case ctaTimestamp:
			err = decodeTimestamp(v, r)
		case ctaLabels:
			err = decodeLabels(v, b.Extra(r))
		case ctaTimestampEvent:
			err = stamp(v, &r.Stamp)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeExpect(a attrs, b *flow.Batch, r *flow.Record) error {
	x := b.Extra(r)
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return errAttribute
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		var err error
		switch typ {
		case ctaExpectMaster:
			err = decodeTuple(v, &x.Master)
			x.HasMaster = true
		case ctaExpectTuple:
			err = decodeTuple(v, &r.Orig)
			r.Has |= flow.HasOrig
		case ctaExpectMask:
			err = decodeTuple(v, &r.Reply)
			r.Has |= flow.HasReply
		case ctaExpectTimeout:
			err = u32(v, &r.Timeout)
			r.Has |= flow.HasTimeout
		case ctaExpectID:
			err = u32(v, &r.ID)
			r.Has |= flow.HasID
		case ctaExpectHelpName:
			x.Helper = name(v)
		case ctaExpectZone:
			err = u16(v, &r.Zone)
			r.Has |= flow.HasZone
		case ctaExpectFlags:
			err = u32(v, &x.Flags)
		case ctaExpectClass:
			err = u32(v, &x.Class)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Address attributes that a tuple has, as bits.
const (
	haveV4 = 1<<ctaIPv4Src | 1<<ctaIPv4Dst
	haveV6 = 1<<ctaIPv6Src | 1<<ctaIPv6Dst
)

// decodeTuple reads CTA_TUPLE_ORIG and its like: addresses, protocol and ports, perhaps a zone of this direction.
func decodeTuple(a attrs, t *flow.Tuple) error {
	*t = flow.Tuple{}
	have := 0
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return errAttribute
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		var err error
		switch typ {
		case ctaTupleIP:
			have, err = decodeIP(v, t)
		case ctaTupleProto:
			err = decodeL4(v, t)
		case ctaTupleZone:
			err = u16(v, &t.Zone)
			t.HasZone = true
		}
		if err != nil {
			return err
		}
	}
	if have != haveV4 && have != haveV6 {
		return errTuple
	}
	t.V6 = have == haveV6
	return nil
}

func decodeIP(a attrs, t *flow.Tuple) (have int, err error) {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return 0, errAttribute
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
			return 0, errValue
		default:
			continue
		}
		have |= 1 << typ
	}
	return have, nil
}

func decodeL4(a attrs, t *flow.Tuple) error {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return errAttribute
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		var err error
		var b byte
		switch typ {
		case ctaProtoNum:
			err = u8(v, (*uint8)(&t.Proto))
		case ctaProtoSrcPort, ctaProtoICMPID, ctaProtoICMPv6ID:
			err = u16(v, &t.SrcPort)
		case ctaProtoDstPort:
			err = u16(v, &t.DstPort)
		case ctaProtoICMPType, ctaProtoICMPv6Type:
			err = u8(v, &b)
			t.DstPort = t.DstPort&0x00ff | uint16(b)<<8
		case ctaProtoICMPCode, ctaProtoICMPv6Code:
			err = u8(v, &b)
			t.DstPort = t.DstPort&0xff00 | uint16(b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeProtoInfo(a attrs, r *flow.Record) error {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return errAttribute
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		var err error
		switch typ {
		case ctaProtoInfoTCP:
			err = decodeState(v, r, flow.HasTCP)
		case ctaProtoInfoDCCP:
			err = decodeState(v, r, flow.HasDCCP)
		case ctaProtoInfoSCTP:
			err = decodeState(v, r, flow.HasSCTP)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeState(a attrs, r *flow.Record, has flow.Has) error {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return errAttribute
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		if typ == ctaState {
			if err := u8(v, &r.State); err != nil {
				return err
			}
			r.Has |= has
		}
	}
	return nil
}

func decodeHelp(a attrs, x *flow.Extra) error {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return errAttribute
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		if typ == ctaHelpName {
			x.Helper = name(v)
		}
	}
	return nil
}

func decodeCounters(a attrs, c *flow.Counters) error {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return errAttribute
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		var err error
		switch typ {
		case ctaCountersPackets:
			err = u64(v, &c.Packets)
		case ctaCountersBytes:
			err = u64(v, &c.Bytes)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeTimestamp(a attrs, r *flow.Record) error {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return errAttribute
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		var err error
		switch typ {
		case ctaTimestampStart:
			err = stamp(v, &r.Start)
		case ctaTimestampStop:
			err = stamp(v, &r.Stop)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func decodeSecCtx(a attrs, x *flow.Extra) error {
	for len(a) >= attrHeader {
		typ, n := a.head()
		if n < attrHeader || n > len(a) {
			return errAttribute
		}
		v := a[attrHeader:n]
		a = a.behind(n)
		if typ == ctaSecCtxName {
			x.SecCtx = string(cutNUL(v))
		}
	}
	return nil
}

// decodeLabels reads labels: as wide as the kernel's array, 16 bytes; older kernels sent as many words as were in use.
func decodeLabels(v []byte, x *flow.Extra) error {
	if len(v) > len(x.Labels) || len(v)%4 != 0 {
		return errValue
	}
	x.Labels = [16]byte{}
	copy(x.Labels[:], v)
	x.HasLabels = true
	return nil
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

func u8(v []byte, p *uint8) error {
	if len(v) != 1 {
		return errValue
	}
	*p = v[0]
	return nil
}

func u16(v []byte, p *uint16) error {
	if len(v) != 2 {
		return errValue
	}
	*p = binary.BigEndian.Uint16(v)
	return nil
}

func u32(v []byte, p *uint32) error {
	if len(v) != 4 {
		return errValue
	}
	*p = binary.BigEndian.Uint32(v)
	return nil
}

func u64(v []byte, p *uint64) error {
	if len(v) != 8 {
		return errValue
	}
	*p = binary.BigEndian.Uint64(v)
	return nil
}

// stamp reads a time in nanoseconds since 1970. One past the year 2262 is no time that a clock can have shown.
func stamp(v []byte, p *int64) error {
	var ns uint64
	if err := u64(v, &ns); err != nil {
		return err
	}
	if ns > 1<<63-1 {
		return errValue
	}
	*p = int64(ns)
	return nil
}
