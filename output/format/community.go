package format

import (
	"bytes"
	"crypto/sha1"
	"encoding"
	"encoding/base64"
	"encoding/binary"
	"hash"

	"github.com/ctlogd/ctlogd/flow"
)

// A community id (version 1, seed 0; github.com/corelight/community-id-spec) is a hash of a flow's ends that Zeek,
// Suricata and many others write as well, so that their records of one flow are found together:
//
//	"1:" and the base64 of the SHA-1 of: seed, 2 bytes | source | destination | protocol, 1 | 0, 1 | ports, 2 and 2
//
// Addresses have 4 or 16 bytes. The end that is the smaller one comes first. ICMP has its type in place of the source
// port, and in place of the destination port the type of the answer, or its code where there is none: then the ends are
// not ordered. Protocols without ports have none, and so have those whose ports the specification does not know.

// answers and answers6 are the types that answer each other, by ICMP's and by ICMPv6's type; -1 where there is none.
var answers, answers6 = func() (v4, v6 [256]int16) {
	for i := range v4 {
		v4[i], v6[i] = -1, -1
	}
	pair := func(t *[256]int16, a, b int16) { t[a], t[b] = b, a }
	pair(&v4, 8, 0)     // echo
	pair(&v4, 13, 14)   // timestamp
	pair(&v4, 15, 16)   // information
	pair(&v4, 10, 9)    // router solicitation and advertisement
	pair(&v4, 17, 18)   // address mask
	pair(&v6, 128, 129) // echo
	pair(&v6, 133, 134) // router solicitation and advertisement
	pair(&v6, 135, 136) // neighbour solicitation and advertisement
	pair(&v6, 130, 131) // multicast listener query and report
	pair(&v6, 139, 140) // node information
	pair(&v6, 144, 145) // home agent address discovery
	return v4, v6
}()

// hasher makes community ids. It is for one goroutine.
//
// What is hashed fits into one block of SHA-1, so that the block is written whole, with its padding (RFC 3174, section 4), and
// the hash is the state that is left. Reading it is a third cheaper than crypto/sha1.Sum, which puts the padding together
// anew; the test vectors would tell if the form of the state changed.
type hasher struct {
	sha   hash.Hash
	state encoding.BinaryAppender
	block [sha1.BlockSize]byte
	out   [128]byte
}

func newHasher() *hasher {
	h := sha1.New()
	return &hasher{sha: h, state: h.(encoding.BinaryAppender)}
}

// stateAt is where the hash stands in the state, behind its magic number.
const stateAt = 4

// sum returns the hash of the first n bytes of the block, behind which there are zeros. It is valid until the next call.
func (h *hasher) sum(n int) []byte {
	h.block[n] = 0x80
	binary.BigEndian.PutUint16(h.block[sha1.BlockSize-2:], uint16(8*n))
	h.sha.Reset()
	h.sha.Write(h.block[:])
	state, _ := h.state.AppendBinary(h.out[:0]) // it has no error to return
	return state[stateAt : stateAt+sha1.Size]
}

// append appends the community id of a flow from src to dst. sport and dport are as those of t, which tells the rest.
func (h *hasher) append(b []byte, t *flow.Tuple, src, dst *flow.Addr, sport, dport uint16) []byte {
	ports, oneWay := true, false
	switch t.Proto {
	case flow.TCP, flow.UDP, flow.SCTP:
	case flow.ICMP, flow.ICMPv6:
		table := &answers
		if t.Proto == flow.ICMPv6 {
			table = &answers6
		}
		answer := table[dport>>8]
		if oneWay = answer < 0; oneWay {
			answer = int16(dport & 0xff)
		}
		sport, dport = dport>>8, uint16(answer)
	default:
		ports, sport, dport = false, 0, 0
	}
	if c := bytes.Compare(src[:], dst[:]); !oneWay && (c > 0 || c == 0 && sport > dport) {
		src, dst, sport, dport = dst, src, dport, sport
	}
	text := &h.block
	clear(text[:])
	n := 2
	if t.V6 {
		n += copy(text[n:], src[:])
		n += copy(text[n:], dst[:])
	} else {
		n += copy(text[n:], src[12:])
		n += copy(text[n:], dst[12:])
	}
	text[n] = byte(t.Proto)
	n += 2
	if ports {
		binary.BigEndian.PutUint16(text[n:], sport)
		binary.BigEndian.PutUint16(text[n+2:], dport)
		n += 4
	}
	return base64.StdEncoding.AppendEncode(append(b, "1:"...), h.sum(n))
}

// flow appends the community id of r's flow as its initiator saw it.
func (h *hasher) flow(b []byte, r *flow.Record) []byte {
	t := &r.Orig
	return h.append(b, t, &t.Src, &t.Dst, t.SrcPort, t.DstPort)
}

// translated appends the community id of r's flow as it is behind the translation.
func (h *hasher) translated(b []byte, r *flow.Record) []byte {
	t, p := &r.Orig, &r.Reply
	sport, dport := p.DstPort, p.SrcPort
	if t.Proto.IsICMP() {
		sport, dport = t.SrcPort, t.DstPort // type and code stay what they are
	}
	return h.append(b, t, &p.Dst, &p.Src, sport, dport)
}

// appendCommunity appends the community ids as the flat format has them, that of the translated flow where there is one.
func (e *parts) appendCommunity(b []byte, r *flow.Record) []byte {
	if e.set&community == 0 || expectation(r) {
		return b
	}
	if e.has(kCommunityID) {
		b = append(e.ids.flow(append(b, `,"community_id":"`...), r), '"')
	}
	return e.appendNATCommunity(b, r, r.NAT())
}

func (e *parts) appendNATCommunity(b []byte, r *flow.Record, nat flow.NAT) []byte {
	if e.has(kNATCommunityID) && nat != flow.NATNone {
		b = append(e.ids.translated(append(b, `,"nat_community_id":"`...), r), '"')
	}
	return b
}
