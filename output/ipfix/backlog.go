package ipfix

import "math"

// backlog holds each data message that was sent until it has arrived: over TCP, until the collector's host has
// acknowledged it; over UDP, until that host has had the time to refuse it. When a session dies, what is left goes to the
// next one first: a record that Write has reported as delivered is not in the caller's hands any more. What was
// acknowledged and not read by the collector before its end is lost; TCP cannot tell, and UDP tells less. The backlog
// itself ends with the process, so that the caller can ask what is in it (Exporter.Acknowledged).
//
// It holds no more than a socket's send buffer, a few MiB, and over UDP no more than datagram.MaxDoubt.
type backlog struct {
	buf  []byte // copies of messages one after the other, from off on
	off  int
	msgs []sent // from next on
	next int

	// lent are messages themselves, younger than the copies: over UDP they are few and soon done with, and a copy would
	// take longer than making the message did.
	lent []*message
}

type sent struct {
	len, records int
	domain       *domain
	before       uint64 // how many records Write had reported when the Write of the message began
	end          uint64 // how much the session had carried when the message was through
}

// never is the end of a message that is not in the current session.
const never = math.MaxUint64

func (b *backlog) empty() bool { return b.next == len(b.msgs) && len(b.lent) == 0 }

// records returns how many records the backlog holds.
func (b *backlog) records() (n int) {
	for _, m := range b.msgs[b.next:] {
		n += m.records
	}
	for _, m := range b.lent {
		n += m.records
	}
	return n
}

// arrived returns how many records have arrived of those that Write has reported, which are so many.
func (b *backlog) arrived(reported uint64) uint64 {
	switch {
	case b.next < len(b.msgs):
		return b.msgs[b.next].before
	case len(b.lent) > 0:
		return b.lent[0].before
	}
	return reported
}

// add keeps a copy of m.
func (b *backlog) add(m *message) {
	if b.next > 0 && len(b.msgs) == cap(b.msgs) {
		b.msgs = b.msgs[:copy(b.msgs, b.msgs[b.next:])]
		b.next = 0
	}
	if b.off > 0 && len(b.buf)+len(m.buf) > cap(b.buf) {
		b.buf = b.buf[:copy(b.buf, b.buf[b.off:])]
		b.off = 0
	}
	b.buf = append(b.buf, m.buf...)
	b.msgs = append(b.msgs, sent{len: len(m.buf), records: m.records, domain: m.domain, before: m.before, end: m.end})
}

// lend keeps m itself, until ack or orphan gives it back.
func (b *backlog) lend(m *message) { b.lent = append(b.lent, m) }

// ack drops what ended at arrived or before, and appends to free the messages that were lent.
func (b *backlog) ack(arrived uint64, free []*message) []*message {
	for b.next < len(b.msgs) && b.msgs[b.next].end <= arrived {
		b.off += b.msgs[b.next].len
		b.next++
	}
	if b.next < len(b.msgs) {
		return free
	}
	b.buf, b.off, b.msgs, b.next = b.buf[:0], 0, b.msgs[:0], 0
	n := 0
	for n < len(b.lent) && b.lent[n].end <= arrived {
		n++
	}
	if n == 0 {
		return free
	}
	free = append(free, b.lent[:n]...)
	b.lent = append(b.lent[:0], b.lent[n:]...)
	return free
}

// orphan says that the session is over. The messages that were lent become copies, and are appended to free.
func (b *backlog) orphan(free []*message) []*message {
	for _, m := range b.lent {
		b.add(m)
	}
	free = append(free, b.lent...)
	b.lent = b.lent[:0]
	for i := range b.msgs[b.next:] {
		b.msgs[b.next+i].end = never
	}
	return free
}
