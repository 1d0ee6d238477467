package pipeline

import (
	"context"
	"testing"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

// shut is an output that takes nothing until it is opened.
type shut struct{ open chan struct{} }

func (shut) Name() string { return "shut" }

func (s shut) Write(ctx context.Context, recs []*flow.Record) (int, error) {
	select {
	case <-s.open:
		return len(recs), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (shut) Close(context.Context) error { return nil }

func TestRoom(t *testing.T) {
	free := shut{make(chan struct{})}
	close(free.open)
	slow := shut{make(chan struct{})}
	p := New(nil, []*Queue{NewQueue(free, nil, 0, zap.NewNop()), NewQueue(slow, nil, 2*batchRecords, zap.NewNop())})
	p.Start()
	b := p.Batch()
	fill := func() {
		for !b.Full() {
			b.Next().Received = 1
		}
		b = p.Ingest(b)
	}
	if !p.Room() {
		t.Error("no room at the start")
	}
	fill()
	if !p.Room() {
		t.Error("no room in a queue that is half full")
	}
	fill()
	if p.Room() {
		t.Error("room in a queue that is full")
	}
	close(slow.open)
	p.Close(context.Background())
	if !p.Room() {
		t.Error("no room when all is delivered")
	}
}
