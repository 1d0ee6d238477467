package format

import (
	"crypto/sha256"
	"encoding/binary"

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

// flowIDVersion is the first byte of what is hashed. Whoever changes the layout raises it.
const flowIDVersion = 1

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
// flow nor its entry in the table.
func FlowID(key ObserverKey, r *flow.Record) (id [16]byte, ok bool) {
	if r.Start == 0 || r.Has&flow.HasOrig == 0 || (r.Event != flow.EventDestroy && r.Event != flow.EventOpen) {
		return id, false
	}
	t := &r.Orig
	var b [54]byte
	b[0], b[1], b[2] = flowIDVersion, 4, byte(t.Proto)
	if t.V6 {
		b[1] = 6
	}
	if r.Has&flow.HasZone != 0 {
		b[3] |= 1
		binary.BigEndian.PutUint16(b[4:], r.Zone)
	}
	if t.HasZone {
		b[3] |= 2
		binary.BigEndian.PutUint16(b[6:], t.Zone)
	}
	if r.Has&flow.HasReply != 0 && r.Reply.HasZone {
		b[3] |= 4
		binary.BigEndian.PutUint16(b[8:], r.Reply.Zone)
	}
	*(*flow.Addr)(b[10:]) = t.Src
	*(*flow.Addr)(b[26:]) = t.Dst
	binary.BigEndian.PutUint16(b[42:], t.SrcPort)
	binary.BigEndian.PutUint16(b[44:], t.DstPort)
	binary.BigEndian.PutUint64(b[46:], uint64(r.Start))

	lo, hi := siphash.Hash128(key.k0, key.k1, b[:])
	binary.LittleEndian.PutUint64(id[:], lo)
	binary.LittleEndian.PutUint64(id[8:], hi)
	return id, true
}
