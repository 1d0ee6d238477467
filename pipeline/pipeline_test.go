package pipeline

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
)

// stub is an output that keeps the ids of what it is given, as soon as it is open.
type stub struct {
	open chan struct{} // nil: it is

	mu  sync.Mutex
	ids []uint32
}

func (*stub) Name() string { return "stub" }

func (s *stub) Write(ctx context.Context, recs []*flow.Record) (int, error) {
	if s.open != nil {
		select {
		case <-s.open:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range recs {
		s.ids = append(s.ids, r.ID)
	}
	return len(recs), nil
}

func (*stub) Close(context.Context) error { return nil }

func queueOf(out deliver.Output, max int) *deliver.Queue {
	return deliver.New(deliver.Config{Name: out.Name(), Build: func() (deliver.Output, error) { return out, nil }, Max: max,
		Log: zap.NewNop()})
}

// send passes batches of the given sizes through the pipeline, with ids that count up from first.
func send(p *Pipeline, first uint32, sizes ...int) (next uint32) {
	b := p.Batch()
	for _, n := range sizes {
		for range n {
			r := b.Next()
			r.Event, r.ID, r.Received = flow.EventDestroy, first, max(int64(first), 1)
			first++
		}
		b = p.Ingest(b)
	}
	return first
}

func upTo(n uint32) (ids []uint32) {
	for i := range n {
		ids = append(ids, i)
	}
	return ids
}

func TestSelect(t *testing.T) {
	b := flow.NewBatch(8, nil)
	for _, e := range []flow.Event{flow.EventNew, flow.EventDestroy, flow.EventGap, flow.EventDestroy, flow.EventUpdate, flow.EventCheckpoint} {
		r := b.Next()
		r.Event, r.ID = e, uint32(len(b.Records))
	}
	s := &Select{Events: [flow.EventGap]bool{flow.EventDestroy: true}, Filter: func(r *flow.Record) bool { return r.ID == 4 }}
	s.Process(b)
	var got []uint32
	for _, r := range b.Records {
		got = append(got, r.ID)
	}
	if want := []uint32{3, 4, 6}; !slices.Equal(got, want) {
		t.Errorf("kept %v, want %v: gap and checkpoint, whatever the filter, and the end that it accepts", got, want)
	}
	if n := s.Dropped.Load(); n != 1 {
		t.Errorf("%d counted as dropped by the filter, want 1", n)
	}
}

// TestSwap replaces filters, outputs and queues while records flow, and asks that each output got every record that was
// its own, once and in order.
func TestSwap(t *testing.T) {
	first, gone, added := new(stub), new(stub), new(stub)
	kept, old := queueOf(first, 1<<20), queueOf(gone, 1<<20)
	p := New(nil, []*deliver.Queue{kept, old})
	p.Start()
	next := send(p, 0, deliver.BatchRecords, 3, deliver.BatchRecords)
	swapped := next
	fresh := queueOf(added, 1<<20)
	p.Swap(nil, []*deliver.Queue{kept, fresh})
	next = send(p, next, deliver.BatchRecords, 5)
	deliver.Retire(t.Context(), []*deliver.Queue{old})
	second := new(stub)
	fails := 2
	kept.Replace(func() (deliver.Output, error) {
		if fails--; fails >= 0 {
			return nil, errors.New("not yet")
		}
		return second, nil
	})
	next = send(p, next, deliver.BatchRecords, 7)
	p.Close(t.Context())

	if !slices.Equal(gone.ids, upTo(swapped)) {
		t.Errorf("the output that was taken out has %d records, want the first %d", len(gone.ids), swapped)
	}
	if want := upTo(next)[swapped:]; !slices.Equal(added.ids, want) {
		t.Errorf("the output that was added has %d records, want the last %d", len(added.ids), len(want))
	}
	if both := append(first.ids, second.ids...); !slices.Equal(both, upTo(next)) || len(second.ids) == 0 {
		t.Errorf("the output that was replaced has %d records, and %d after it; want all %d in order", len(first.ids),
			len(second.ids), next)
	}
}

func TestRoom(t *testing.T) {
	free, slow := new(stub), &stub{open: make(chan struct{})}
	p := New(nil, []*deliver.Queue{queueOf(free, 0), queueOf(slow, 2*deliver.BatchRecords)})
	p.Start()
	if !p.Room() {
		t.Error("no room at the start")
	}
	send(p, 0, deliver.BatchRecords)
	if !p.Room() {
		t.Error("no room in a queue that is half full")
	}
	send(p, 0, 1)
	if p.Room() {
		t.Error("room in a queue that is more than half full")
	}
	close(slow.open)
	p.Close(context.Background())
	if !p.Room() {
		t.Error("no room when all is delivered")
	}
}

// Batches go round: a pipeline that is warm leaves no garbage, whatever their size.
func TestPipelineAllocates(t *testing.T) {
	p := New([]Stage{&Select{Events: [flow.EventGap]bool{flow.EventDestroy: true}}}, nil)
	b := p.Batch()
	for _, size := range []int{16, deliver.BatchRecords} {
		if n := testing.AllocsPerRun(1000, func() {
			for range size {
				b.Next().Event = flow.EventDestroy
			}
			b = p.Ingest(b)
		}); n != 0 {
			t.Errorf("%v allocations for a batch of %d records, want 0", n, size)
		}
	}
}
