package kafka

import "github.com/segmentio/kafka-go/protocol/produce"

// What has become of a record.
const (
	delivered byte = 1 << iota
	refused        // for good
	stampNow       // the broker did not take its timestamp: it gets the time of sending
	stampNone      // nor that one, so one of the two clocks is wrong: it gets none
	settled   = delivered | refused
)

// partition is what one Write has for one partition.
type partition struct {
	id     int32
	leader int32
	idx    []int32 // its records, in order
	next   int     // idx[:next] are delivered
	sent   int     // how many behind those are in the batch under way
	max    int     // how many records the next batch may hold
	buf    []byte  // the batch
	raw    int     // its size before compression
	answer produce.ResponsePartition
	err    error // why there is no answer; after the round: why nothing more is sent
}

// pending returns the records that are not delivered.
func (p *partition) pending() []int32 { return p.idx[p.next:] }
