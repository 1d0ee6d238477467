package pipeline

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
	"github.com/ctlogd/ctlogd/pipeline/filter"
)

// Stage amends or removes records of a batch, in place, on the reader's goroutine.
type Stage interface {
	Process(b *flow.Batch)
}

// Pipeline takes batches from the reader through the stages to the outputs.
type Pipeline struct {
	pool pool
	taps atomic.Pointer[[]*Tap] // nil: nobody looks on

	// The reader's goroutine alone changes what follows, with the lock, and reads it without. Others take the lock.
	mu     sync.Mutex
	stages []Stage
	queues []*deliver.Queue
}

// New returns a pipeline that passes each batch through the stages in their order and offers it to every queue.
func New(stages []Stage, queues []*deliver.Queue) *Pipeline {
	return &Pipeline{stages: stages, queues: queues}
}

// Start starts the queues. They end when Close is called.
func (p *Pipeline) Start() {
	for _, q := range p.queues {
		q.Start()
	}
}

// Queues returns the queues that are fed now.
func (p *Pipeline) Queues() []*deliver.Queue {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.queues)
}

// Swap puts other stages and queues in the place of those there are, between two batches, and starts the queues that are
// new. The reader's goroutine calls it. Queues that are not among the new ones get nothing more; the caller retires them.
func (p *Pipeline) Swap(stages []Stage, queues []*deliver.Queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range queues {
		if !slices.Contains(p.queues, q) {
			q.Start()
		}
	}
	p.stages, p.queues = stages, queues
}

// Batch returns an empty batch for the reader to fill.
func (p *Pipeline) Batch() *flow.Batch { return p.pool.get() }

// Ingest passes b through the stages, offers what is left to every output's queue, and returns the batch to fill next.
// It never waits: a queue that has no room counts what it cannot take. One goroutine, the reader's, calls it.
func (p *Pipeline) Ingest(b *flow.Batch) *flow.Batch {
	for _, s := range p.stages {
		s.Process(b)
	}
	if len(b.Records) == 0 {
		b.Reset()
		return b
	}
	b.Hold(1)
	for _, q := range p.queues {
		q.Offer(b)
	}
	if taps := p.taps.Load(); taps != nil {
		for _, t := range *taps {
			t.offer(b)
		}
	}
	b.Done()
	return p.pool.get()
}

// Room reports whether every queue is less than half full. Whoever makes many records, and can make them later, asks
// first. It may be called from any goroutine.
func (p *Pipeline) Room() bool {
	return !slices.ContainsFunc(p.Queues(), (*deliver.Queue).HalfFull)
}

// Settle prepares the end, while the reader goes on. It returns when waiting for the outputs is of no more use: each has
// caught up or has been failing for long. It returns when ctx ends in any case.
func (p *Pipeline) Settle(ctx context.Context) { deliver.Settle(ctx, p.Queues()) }

// Close tells the queues to deliver what they hold and to end, and returns when they have, or when ctx ends: then what was
// left is counted and logged. Nothing may be ingested any more.
func (p *Pipeline) Close(ctx context.Context) { deliver.Retire(ctx, p.Queues()) }

// pool keeps batches that are not in use, last in first out: while the outputs keep up, the same two or three batches
// go round and stay in the cache. How many there are is bounded by the queues.
type pool struct {
	mu   sync.Mutex
	free []*flow.Batch
}

func (p *pool) get() *flow.Batch {
	p.mu.Lock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return b
	}
	p.mu.Unlock()
	return flow.NewBatch(deliver.BatchRecords, func(b *flow.Batch) {
		b.Reset()
		p.mu.Lock()
		p.free = append(p.free, b)
		p.mu.Unlock()
	})
}

// Select is the stage that keeps the records of the kinds that are asked for and drops what the global filter drops.
// Gaps and checkpoints always stay.
type Select struct {
	Events  [flow.EventGap]bool // by flow.Event
	Filter  filter.Func         // nil keeps all
	Dropped atomic.Uint64       // records that the filter dropped
}

// Process keeps the batch's records that are wanted, in their order.
func (s *Select) Process(b *flow.Batch) {
	kept, dropped := 0, 0
	for i := range b.Records {
		r := &b.Records[i]
		if r.Event < flow.EventGap && r.Checkpoint() < flow.CheckpointWhole {
			if !s.Events[r.Event] {
				continue
			}
			if s.Filter != nil && !s.Filter(r) {
				dropped++
				continue
			}
		}
		if kept != i {
			b.Records[kept] = *r
		}
		kept++
	}
	b.Records = b.Records[:kept]
	if dropped > 0 {
		s.Dropped.Add(uint64(dropped))
	}
}
