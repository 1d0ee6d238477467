package kafka

import (
	kafka "github.com/segmentio/kafka-go"

	"github.com/ctlogd/ctlogd/flow"
)

// router decides which partition a record goes to.
type router struct {
	key    keyFunc
	ids    []int  // of the partitions, 0 to their number, as kafka-go's balancer wants them
	sticky uint   // chooses the partition of records that have no key; moves on with every Write
	keys   []byte // of the records that were routed last, one behind the other
	keyEnd []int  // where each one's ends
}

// route gives every record that is not settled to the partition of its key, as the Java client's default partitioner
// does: murmur2 over all partitions, whether they have a leader or not. Those without a key go to one partition,
// another one in each Write, that has a leader if any has.
func (r *router) route(recs []*flow.Record, state []byte, parts []partition) {
	r.sticky++
	free := int(r.sticky % uint(len(parts)))
	for i := range parts {
		if p := (free + i) % len(parts); parts[p].err == nil {
			free = p
			break
		}
	}
	var murmur2 kafka.Murmur2Balancer
	r.keys, r.keyEnd = r.keys[:0], r.keyEnd[:0]
	for i, rec := range recs {
		start := len(r.keys)
		r.keys = r.key(r.keys, rec)
		r.keyEnd = append(r.keyEnd, len(r.keys))
		if state[i]&settled != 0 {
			continue
		}
		p := free
		if key := r.keys[start:]; len(key) > 0 {
			p = murmur2.Balance(kafka.Message{Key: key}, r.ids...)
		}
		parts[p].idx = append(parts[p].idx, int32(i))
	}
}

// keyOf returns the key of record i, which is valid until the next route.
func (r *router) keyOf(i int32) []byte {
	start := 0
	if i > 0 {
		start = r.keyEnd[i-1]
	}
	return r.keys[start:r.keyEnd[i]]
}
