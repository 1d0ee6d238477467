package ipfix

import (
	"encoding/binary"
	"time"
)

const (
	headerLen    = 16 // message header
	setHeaderLen = 4

	version         = 10
	setTemplate     = 2
	setOptTemplates = 3

	// minMessage is the smallest message size that may be asked for: what an IPv6 packet of 512 octets leaves
	// (RFC 7011, section 10.3.3).
	minMessage   = 464
	maxMessage   = 65535
	maxDatagram  = 65507 // what a UDP datagram over IPv4 carries
	maxAuto      = 8952  // by path MTU: what goflow2 reads (9000 octets) less the headers
	datagramSize = 1400  // default over UDP
	streamSize   = 16384 // default over TCP and TLS
)

// message is an IPFIX message with one set, filled from the front:
//
//	 0  version (2) | length (2)
//	 4  export time (4)
//	 8  sequence number (4)
//	12  observation domain (4)
//	16  set id (2) | set length (2)
//	20  records
//
// Length, time and sequence number are set when it is sent.
type message struct {
	buf     []byte
	domain  *domain
	records int    // data records
	first   int    // index in Write's recs of the first of them
	before  uint64 // how many records Write had reported when the Write of the message began
	end     uint64 // how much the session had carried when the message was through
}

// domain is an observation domain and its sequence number: the data records sent under it in this session, modulo 2^32
// (RFC 7011, section 3.1).
type domain struct {
	id, seq uint32
}

// start makes m an empty message.
func (m *message) start(d *domain, set uint16) {
	m.domain, m.records, m.first, m.before, m.end = d, 0, 0, 0, 0
	m.buf = append(m.buf[:0], 0, version, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	m.buf = binary.BigEndian.AppendUint32(m.buf, d.id)
	m.buf = binary.BigEndian.AppendUint16(m.buf, set)
	m.buf = append(m.buf, 0, 0)
}

// finish sets lengths, export time and sequence number, and counts the records.
func (m *message) finish(export uint32) {
	binary.BigEndian.PutUint16(m.buf[18:], uint16(len(m.buf)-headerLen))
	stamp(m.buf, export, m.domain.seq)
	m.domain.seq += uint32(m.records)
}

// stamp sets length, export time and sequence number of the message in buf.
func stamp(buf []byte, export, seq uint32) {
	binary.BigEndian.PutUint16(buf[2:], uint16(len(buf)))
	binary.BigEndian.PutUint32(buf[4:], export)
	binary.BigEndian.PutUint32(buf[8:], seq)
}

// clock gives export times that never run backwards: no data may look older than its template (RFC 7011, section 8.2).
type clock struct{ last uint32 }

func (c *clock) now() uint32 {
	c.last = max(c.last, uint32(time.Now().Unix()))
	return c.last
}
