package kafka

import (
	"hash/maphash"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// memory keeps, from a Write that failed to the next one that does not, which records behind the first undelivered one
// are settled and need not be sent again.
type memory struct {
	seen    map[mark]int
	seed    maphash.Seed
	encoder format.Encoder
	value   []byte
}

// mark identifies a record by the bytes that are delivered for it. Pointers will not do: they are used again.
type mark struct {
	hash  uint64
	state byte // delivered or refused
}

// remember keeps which of recs, what was not delivered of a slice, are settled nevertheless. Records with the same
// bytes are counted, so that of two only those settled are left out.
func (m *memory) remember(recs []*flow.Record, state []byte) {
	clear(m.seen)
	for i, r := range recs {
		if s := state[i] & settled; s != 0 {
			m.seen[mark{m.hash(r), s}]++
		}
	}
}

// recall marks the records as settled that a failed Write has settled.
func (m *memory) recall(recs []*flow.Record, state []byte) {
	if len(m.seen) == 0 {
		return
	}
	for i, r := range recs {
		hash := m.hash(r)
		for _, s := range []byte{delivered, refused} {
			if k := (mark{hash, s}); m.seen[k] > 0 {
				m.seen[k]--
				state[i] = s
				break
			}
		}
	}
}

func (m *memory) hash(r *flow.Record) uint64 {
	m.value = m.encoder.Append(m.value[:0], r)
	return maphash.Bytes(m.seed, m.value)
}
