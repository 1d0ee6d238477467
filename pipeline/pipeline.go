package pipeline

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ctlogd/ctlogd/flow"
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

	mu     sync.Mutex // for those who are not the reader's goroutine, which alone changes what follows
	stages []Stage
	queues []*Queue
}

// New returns a pipeline that passes each batch through the stages in their order and offers it to every queue.
func New(stages []Stage, queues []*Queue) *Pipeline {
	return &Pipeline{stages: stages, queues: queues}
}

// Start starts the workers of the outputs. They end when Close is called.
func (p *Pipeline) Start() {
	for _, q := range p.queues {
		go q.work()
	}
}

// Queues returns the queues that are fed now.
func (p *Pipeline) Queues() []*Queue {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.queues)
}

// Swap puts other stages and queues in the place of those there are, between two batches, and starts the workers of the
// queues that are new. The reader's goroutine calls it. Queues that are not among the new ones get nothing more; the
// caller retires them.
func (p *Pipeline) Swap(stages []Stage, queues []*Queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range queues {
		if !slices.Contains(p.queues, q) {
			go q.work()
		}
	}
	p.stages, p.queues = stages, queues
}

// Batch returns an empty batch for the reader to fill.
func (p *Pipeline) Batch() *flow.Batch { return p.pool.get(batchRecords) }

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
	offered := b
	if len(b.Records) <= smallBatch {
		// At a low rate a batch leaves because of its age, nearly empty. A queue's bound is memory, so it is not to be
		// spent on room: the few records move into a batch of their size, and the large one is filled again.
		offered = p.pool.get(smallBatch)
		offered.Append(b.Records)
		offered.Since = b.Since
		b.Reset()
	}
	offered.Hold(1)
	for _, q := range p.queues {
		q.offer(offered)
	}
	if taps := p.taps.Load(); taps != nil {
		for _, t := range *taps {
			t.offer(offered)
		}
	}
	offered.Done()
	if offered == b {
		b = p.pool.get(batchRecords)
	}
	return b
}

// Close tells the workers to deliver what is queued and to end, and returns when they have, or when ctx ends: then
// what was left is counted and logged. Nothing may be ingested any more.
func (p *Pipeline) Close(ctx context.Context) { Retire(ctx, p.Queues()) }

// Retire ends queues that get nothing more: what they hold is delivered until ctx ends.
func Retire(ctx context.Context, queues []*Queue) {
	for _, q := range queues {
		q.close()
	}
	var finished sync.WaitGroup
	for _, q := range queues {
		finished.Go(func() {
			select {
			case <-q.done:
			case <-ctx.Done():
				q.abort()
				select {
				case <-q.done:
				case <-time.After(giveUp):
					q.strand()
					return
				}
			}
			q.finish(ctx)
		})
	}
	finished.Wait()
}

const (
	// batchRecords records fill a batch: about 45 KiB, so that a batch that was just read is still in the cache when it
	// is encoded.
	batchRecords = 256
	smallBatch   = 16
)

// pool keeps batches that are not in use, last in first out: while the outputs keep up, the same two or three batches
// go round and stay in the cache. How many there are is bounded by the queues.
type pool struct {
	mu   sync.Mutex
	free [2][]*flow.Batch // small ones, large ones
}

func (p *pool) get(size int) *flow.Batch {
	class := size / batchRecords
	p.mu.Lock()
	if n := len(p.free[class]); n > 0 {
		b := p.free[class][n-1]
		p.free[class] = p.free[class][:n-1]
		p.mu.Unlock()
		return b
	}
	p.mu.Unlock()
	return flow.NewBatch(size, func(b *flow.Batch) {
		b.Reset()
		p.mu.Lock()
		p.free[class] = append(p.free[class], b)
		p.mu.Unlock()
	})
}

// Select is the stage that keeps the records of the kinds that are asked for and drops what the global filter drops.
// Gaps always stay.
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
		if r.Event != flow.EventGap {
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
