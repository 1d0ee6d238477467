package syslog

import "math"

// backlog holds a copy of what was sent until it has arrived. When a session dies, it goes to the next one first: what Write
// has reported as delivered is not in the caller's hands any more. It holds no more than a socket's send buffer, a few MiB,
// and over UDP what is in doubt.
type backlog struct {
	chunks []chunk // the oldest first
	free   []chunk // whose buffers are used again
}

// chunk is what one send carried.
type chunk struct {
	buf    []byte
	ends   []int
	before uint64 // how many records Write had reported when its messages began
	end    uint64 // how much the session had carried when the chunk was through
}

// never is the end of a chunk that is not in the current session.
const never = math.MaxUint64

// keptBuffers is how many buffers wait to be used again; more were needed for a moment.
const keptBuffers = 16

func (b *backlog) empty() bool { return len(b.chunks) == 0 }

// records returns how many records the backlog holds.
func (b *backlog) records() (n int) {
	for _, c := range b.chunks {
		n += len(c.ends)
	}
	return n
}

// arrived returns how many records have arrived of those that Write has reported.
func (b *backlog) arrived(reported uint64) uint64 {
	if b.empty() {
		return reported
	}
	return min(reported, b.chunks[0].before)
}

// add keeps a copy of a chunk.
func (b *backlog) add(buf []byte, ends []int, before, end uint64) {
	var c chunk
	if n := len(b.free); n > 0 {
		c, b.free = b.free[n-1], b.free[:n-1]
	}
	b.chunks = append(b.chunks, chunk{append(c.buf[:0], buf...), append(c.ends[:0], ends...), before, end})
}

// ack drops what ended at acked or before.
func (b *backlog) ack(acked uint64) {
	n := 0
	for n < len(b.chunks) && b.chunks[n].end <= acked {
		if len(b.free) < keptBuffers {
			b.free = append(b.free, b.chunks[n])
		}
		n++
	}
	if n > 0 {
		rest := copy(b.chunks, b.chunks[n:])
		clear(b.chunks[rest:])
		b.chunks = b.chunks[:rest]
	}
}

// orphan says that the session is over.
func (b *backlog) orphan() {
	for i := range b.chunks {
		b.chunks[i].end = never
	}
}
