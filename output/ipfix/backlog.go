package ipfix

import "math"

// backlog holds a copy of each data message that was written to a stream until the collector's host has acknowledged
// it. When a session dies, what the kernel had not delivered goes to the next one first: a record that Write has
// reported as delivered is not in the caller's hands any more. What was acknowledged and not read by the collector
// before its end is lost; TCP cannot tell. The backlog itself ends with the process, so that the caller can ask what is
// in it (Exporter.Acknowledged).
//
// It holds no more than a socket's send buffer, a few MiB.
type backlog struct {
	buf  []byte // the messages one after the other, from off on
	off  int
	msgs []sent // from first on
	next int
}

type sent struct {
	len, records int
	domain       *domain
	before       uint64 // how many records Write had reported when the Write of the message began
	end          uint64 // how much the session had carried when the message was through
}

// never is the end of a message that is not in the current session.
const never = math.MaxUint64

func (b *backlog) empty() bool { return b.next == len(b.msgs) }

// records returns how many records the backlog holds.
func (b *backlog) records() (n int) {
	for _, m := range b.msgs[b.next:] {
		n += m.records
	}
	return n
}

// arrived returns how many records have arrived of those that Write has reported, which are so many.
func (b *backlog) arrived(reported uint64) uint64 {
	if b.empty() {
		return reported
	}
	return b.msgs[b.next].before
}

// add keeps a copy of m. Before the call of Write that it is of, Write had reported so many records.
func (b *backlog) add(m *message, before uint64) {
	if b.next > 0 && len(b.msgs) == cap(b.msgs) {
		b.msgs = b.msgs[:copy(b.msgs, b.msgs[b.next:])]
		b.next = 0
	}
	if b.off > 0 && len(b.buf)+len(m.buf) > cap(b.buf) {
		b.buf = b.buf[:copy(b.buf, b.buf[b.off:])]
		b.off = 0
	}
	b.buf = append(b.buf, m.buf...)
	b.msgs = append(b.msgs, sent{len: len(m.buf), records: m.records, domain: m.domain, before: before, end: m.end})
}

// ack drops what ended at acked or before.
func (b *backlog) ack(acked uint64) {
	for !b.empty() && b.msgs[b.next].end <= acked {
		b.off += b.msgs[b.next].len
		b.next++
	}
	if b.empty() {
		b.buf, b.off, b.msgs, b.next = b.buf[:0], 0, b.msgs[:0], 0
	}
}

// orphan says that the session is over.
func (b *backlog) orphan() {
	for i := range b.msgs[b.next:] {
		b.msgs[b.next+i].end = never
	}
}
