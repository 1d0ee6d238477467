package ctnetlink

import (
	"encoding/binary"

	"github.com/ctlogd/ctlogd/flow"
)

// Nearly every message has the same attributes in the same order (ctnetlink_conntrack_event in the kernel's
// net/netfilter/nf_conntrack_netlink.c), and what they hold lies at the same places. decodeUsual compares what ought to be
// there and reads it without a loop, in a fifth of the time. A test holds it to what decodeFlow makes of the same message.

// head returns the four bytes at the start of an attribute as they stand in a message: n is its length, header included.
func head(n, typ uint16) uint32 {
	var b [attrHeader]byte
	binary.NativeEndian.PutUint16(b[:], n)
	binary.NativeEndian.PutUint16(b[2:], typ)
	return binary.NativeEndian.Uint32(b[:])
}

// at returns the head that b begins with.
func at(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

const nested = 0x8000 // NLA_F_NESTED

var (
	headOrig4  = head(52, nested|ctaTupleOrig)
	headReply4 = head(52, nested|ctaTupleReply)
	headOrig6  = head(76, nested|ctaTupleOrig)
	headReply6 = head(76, nested|ctaTupleReply)

	headIP4  = head(20, nested|ctaTupleIP)
	headSrc4 = head(8, ctaIPv4Src)
	headDst4 = head(8, ctaIPv4Dst)
	headIP6  = head(44, nested|ctaTupleIP)
	headSrc6 = head(20, ctaIPv6Src)
	headDst6 = head(20, ctaIPv6Dst)

	headL4      = head(28, nested|ctaTupleProto)
	headProto   = head(5, ctaProtoNum)
	headSrcPort = head(6, ctaProtoSrcPort)
	headDstPort = head(6, ctaProtoDstPort)

	headID      = head(8, ctaID)
	headStatus  = head(8, ctaStatus)
	headTimeout = head(8, ctaTimeout)
	headMark    = head(8, ctaMark)
	headStamp   = head(12, ctaTimestampEvent)

	headCountersOrig  = head(28, nested|ctaCountersOrig)
	headCountersReply = head(28, nested|ctaCountersReply)
	headTimestamp     = head(28, nested|ctaTimestamp)
	headFirst         = head(12, 1) // CTA_COUNTERS_PACKETS, CTA_TIMESTAMP_START
	headSecond        = head(12, 2) // CTA_COUNTERS_BYTES, CTA_TIMESTAMP_STOP

	headProtoInfo = head(16, nested|ctaProtoInfo)
	headTCP       = head(12, nested|ctaProtoInfoTCP)
	headState     = head(5, ctaState)
)

// decodeUsual reads the attributes at the front of a that are where they usually are, and returns the rest.
func decodeUsual(a attrs, r *flow.Record) attrs {
	switch {
	case len(a) >= 2*52 && at(a) == headOrig4 && at(a[52:]) == headReply4:
		if !usualTuple4((*[48]byte)(a[4:]), &r.Orig) || !usualTuple4((*[48]byte)(a[56:]), &r.Reply) {
			return a
		}
		a = a[2*52:]
	case len(a) >= 2*76 && at(a) == headOrig6 && at(a[76:]) == headReply6:
		if !usualTuple6((*[72]byte)(a[4:]), &r.Orig) || !usualTuple6((*[72]byte)(a[80:]), &r.Reply) {
			return a
		}
		a = a[2*76:]
	default:
		return a
	}
	r.Has |= flow.HasOrig | flow.HasReply
	if len(a) < 16 || at(a) != headID || at(a[8:]) != headStatus {
		return a
	}
	r.ID, r.Status = binary.BigEndian.Uint32(a[4:]), flow.Status(binary.BigEndian.Uint32(a[12:]))
	r.Has |= flow.HasID | flow.HasStatus
	a = a[16:]
	if len(a) >= 8 && at(a) == headTimeout {
		r.Timeout = binary.BigEndian.Uint32(a[4:])
		r.Has |= flow.HasTimeout
		a = a[8:]
	}
	if len(a) < 3*28 || !usualTimes((*[3 * 28]byte)(a), r) {
		return a
	}
	a = a[3*28:]
	if len(a) >= 16 && at(a) == headProtoInfo && at(a[4:]) == headTCP && at(a[8:]) == headState {
		r.State = a[12]
		r.Has |= flow.HasTCP
		a = a[16:]
	}
	if len(a) >= 8 && at(a) == headMark {
		r.Mark = binary.BigEndian.Uint32(a[4:])
		r.Has |= flow.HasMark
		a = a[8:]
	}
	if len(a) >= 12 && at(a) == headStamp && a[4] < 0x80 { // see stamp
		r.Stamp = int64(binary.BigEndian.Uint64(a[4:]))
		a = a[12:]
	}
	return a
}

// usualTuple4 reads a tuple of IPv4 addresses and ports. If it is none, t is as it was.
func usualTuple4(v *[48]byte, t *flow.Tuple) bool {
	if at(v[0:]) != headIP4 || at(v[4:]) != headSrc4 || at(v[12:]) != headDst4 || !usualPorts((*[28]byte)(v[20:]), t) {
		return false
	}
	t.Src.Set4((*[4]byte)(v[8:]))
	t.Dst.Set4((*[4]byte)(v[16:]))
	return true
}

// usualTuple6 is usualTuple4 for IPv6.
func usualTuple6(v *[72]byte, t *flow.Tuple) bool {
	if at(v[0:]) != headIP6 || at(v[4:]) != headSrc6 || at(v[24:]) != headDst6 || !usualPorts((*[28]byte)(v[44:]), t) {
		return false
	}
	t.Src, t.Dst, t.V6 = flow.Addr(v[8:]), flow.Addr(v[28:]), true
	return true
}

// usualPorts reads the protocol and the ports of a tuple.
func usualPorts(v *[28]byte, t *flow.Tuple) bool {
	if at(v[0:]) != headL4 || at(v[4:]) != headProto || at(v[12:]) != headSrcPort || at(v[20:]) != headDstPort {
		return false
	}
	t.Proto = flow.Proto(v[8])
	t.SrcPort, t.DstPort = binary.BigEndian.Uint16(v[16:]), binary.BigEndian.Uint16(v[24:])
	return true
}

// usualTimes reads the counters of both directions, and start and stop. If these are not there, r is as it was.
func usualTimes(v *[3 * 28]byte, r *flow.Record) bool {
	if at(v[0:]) != headCountersOrig || at(v[4:]) != headFirst || at(v[16:]) != headSecond ||
		at(v[28:]) != headCountersReply || at(v[32:]) != headFirst || at(v[44:]) != headSecond ||
		at(v[56:]) != headTimestamp || at(v[60:]) != headFirst || at(v[72:]) != headSecond ||
		(v[64]|v[76])&0x80 != 0 { // see stamp
		return false
	}
	r.OrigCounters = flow.Counters{Packets: binary.BigEndian.Uint64(v[8:]), Bytes: binary.BigEndian.Uint64(v[20:])}
	r.ReplyCounters = flow.Counters{Packets: binary.BigEndian.Uint64(v[36:]), Bytes: binary.BigEndian.Uint64(v[48:])}
	r.Start, r.Stop = int64(binary.BigEndian.Uint64(v[64:])), int64(binary.BigEndian.Uint64(v[76:]))
	r.Has |= flow.HasCounters
	return true
}
