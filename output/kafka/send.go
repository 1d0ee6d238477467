package kafka

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"

	"github.com/ctlogd/ctlogd/flow"
)

// sender sends batches, one request for each broker at a time.
type sender struct {
	*cluster
	acks    int16
	timeout time.Duration // of a request
}

// round sends one batch to every partition that has records left and no error, waits for all answers, and reports
// whether it sent anything.
func (w *Writer) round(ctx context.Context, recs []*flow.Record) bool {
	var busy []*partition
	now := time.Now().UnixMilli()
	for i := range w.parts {
		p := &w.parts[i]
		if p.err == nil && len(p.pending()) > 0 {
			w.encode(p, recs, now)
			busy = append(busy, p)
		}
	}
	if len(busy) == 0 {
		return false
	}
	slices.SortFunc(busy, func(a, b *partition) int { return cmp.Compare(a.leader, b.leader) })
	var wg sync.WaitGroup
	for rest := busy; len(rest) > 0; {
		end := 1
		for end < len(rest) && rest[end].leader == rest[0].leader {
			end++
		}
		group := rest[:end]
		rest = rest[end:]
		if len(rest) == 0 {
			w.sender.send(ctx, group) // the only one, as a rule
			break
		}
		wg.Go(func() { w.sender.send(ctx, group) })
	}
	wg.Wait()
	for _, p := range busy {
		w.answered(p, recs)
	}
	return true
}

// send makes one Produce request of the batches, all for the same broker, and gives each partition its answer.
func (s *sender) send(ctx context.Context, group []*partition) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()

	req := &rawproduce.Request{
		Acks: s.acks,
		// The broker gives up before we do, so that its answer tells why.
		Timeout: int32(s.timeout.Milliseconds() * 2 / 3),
		Topics:  []rawproduce.RequestTopic{{Topic: s.topic}},
	}
	parts := make([]rawproduce.RequestPartition, 0, len(group))
	for _, p := range group {
		parts = append(parts, rawproduce.RequestPartition{
			Partition: p.id,
			RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(p.buf)},
		})
		p.answer, p.err = produce.ResponsePartition{}, errNoAnswer
	}
	req.Topics[0].Partitions = parts

	res, err := s.transport.RoundTrip(ctx, s.addr, req)
	if err != nil {
		for _, p := range group {
			p.err = err
			p.buf = nil // the transport may still be reading it
		}
		return
	}
	for _, t := range res.(*produce.Response).Topics {
		for _, a := range t.Partitions {
			for _, p := range group {
				if p.id == a.Partition {
					p.answer, p.err = a, nil
				}
			}
		}
	}
}

var errNoAnswer = errors.New("the broker's answer leaves the partition out")
