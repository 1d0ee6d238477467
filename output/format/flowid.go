package format

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	"github.com/dchest/siphash"

	"github.com/ctlogd/ctlogd/flow"
)

// ObserverKey is the key of an observer's flow ids: the first 16 bytes of the SHA-256 of its name.
type ObserverKey struct{ k0, k1 uint64 }

// NewObserverKey returns the key of the observer called name.
func NewObserverKey(name string) ObserverKey {
	sum := sha256.Sum256([]byte(name))
	return ObserverKey{binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])}
}

// flowIDVersion is the first byte of what is hashed, flowIDNetns that of flows in other network namespaces than ctlogd's.
// Whoever changes a layout gives it another number.
const (
	flowIDVersion = 1
	flowIDNetns   = 2
)

// FlowID returns the identity of r's flow, the same for every delivery of every record of that flow by one observer:
// the 128-bit SipHash-2-4, keyed with key, of these 54 bytes, integers in network order:
//
//	0  version, 1              10  source address, 16 bytes
//	1  family, 4 or 6          26  destination address, 16 bytes
//	2  protocol number         42  source port
//	3  which zones are set     44  destination port
//	4  zone                    46  start, ns since 1970
//	6  zone of the original direction
//	8  zone of the reply direction
//
// The tuple is the original one. An IPv4 address is in its mapped form. In place of the ports, GRE has its keys, ICMP
// its id and then type and code in one byte each; other protocols have zeros. Byte 3 is the sum of 1 for the zone, 2
// for that of the original and 4 for that of the reply direction; a zone that is not set is 0.
//
// ok is false if the record does not tell: the start is not known, and tuples repeat; or it is neither the end of a
// flow nor its entry in the table; or the id of its namespace is not known.
func FlowID(key ObserverKey, r *flow.Record) (id [16]byte, ok bool) {
	if r.Start == 0 || r.Has&flow.HasOrig == 0 || (r.Event != flow.EventDestroy && r.Event != flow.EventOpen) {
		return id, false
	}
	// The bytes are put together in words, as they are read again: a word that was stored in pieces is waited for.
	t := &r.Orig
	family, which := uint64(4), uint64(0)
	var zone, zoneOrig, zoneReply uint16
	if t.V6 {
		family = 6
	}
	if r.Has&flow.HasZone != 0 {
		which, zone = 1, r.Zone
	}
	if t.HasZone {
		which, zoneOrig = which|2, t.Zone
	}
	if r.Has&flow.HasReply != 0 && r.Reply.HasZone {
		which, zoneReply = which|4, r.Reply.Zone
	}
	le, start := binary.LittleEndian, bits.ReverseBytes64(uint64(r.Start))
	src0, src1, dst0, dst1 := le.Uint64(t.Src[:]), le.Uint64(t.Src[8:]), le.Uint64(t.Dst[:]), le.Uint64(t.Dst[8:])
	version, size, nsid := uint64(flowIDVersion), 54, uint64(0)
	if r.Netns != 0 {
		known := r.Netns.Info().ID
		if known < 0 {
			return id, false
		}
		version, size, nsid = flowIDNetns, 58, uint64(bits.ReverseBytes32(uint32(known)))
	}
	var b [64]byte
	le.PutUint64(b[0:], version|family<<8|uint64(t.Proto)<<16|which<<24|network(zone)<<32|network(zoneOrig)<<48)
	le.PutUint64(b[8:], network(zoneReply)|src0<<16)
	le.PutUint64(b[16:], src0>>48|src1<<16)
	le.PutUint64(b[24:], src1>>48|dst0<<16)
	le.PutUint64(b[32:], dst0>>48|dst1<<16)
	le.PutUint64(b[40:], dst1>>48|network(t.SrcPort)<<16|network(t.DstPort)<<32|start<<48)
	le.PutUint64(b[48:], start>>16|nsid<<48)
	le.PutUint64(b[56:], nsid>>16)

	lo, hi := siphash.Hash128(key.k0, key.k1, b[:size])
	binary.LittleEndian.PutUint64(id[:], lo)
	binary.LittleEndian.PutUint64(id[8:], hi)
	return id, true
}

// network returns v in network order, for a word that is stored in little-endian order.
func network(v uint16) uint64 { return uint64(bits.ReverseBytes16(v)) }
