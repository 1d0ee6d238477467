package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ctlogd/ctlogd/flow"
)

// stub is an output that keeps the ids of what it is given, and does as its hook says.
type stub struct {
	mu    sync.Mutex
	ids   []uint32
	gaps  []Gap
	calls int
	write func(ctx context.Context, call int, recs []*flow.Record) (int, error) // nil takes everything
}

func (s *stub) Name() string { return "stub" }

func (s *stub) Write(ctx context.Context, recs []*flow.Record) (n int, err error) {
	s.mu.Lock()
	s.calls++
	call := s.calls
	s.mu.Unlock()
	n = len(recs)
	if s.write != nil {
		n, err = s.write(ctx, call, recs)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range recs[:n] {
		if r.Event == flow.EventGap {
			s.gaps = append(s.gaps, Gap{Gap: r.Extra.Gap, From: r.Start, To: r.Stop})
		} else {
			s.ids = append(s.ids, r.ID)
		}
	}
	return n, err
}

func (s *stub) Close(context.Context) error { return nil }

// send passes batches of the given sizes through the pipeline, with ids that count up from first. They are when each was
// received as well, but for 0, which is no time.
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

func lostIn(gaps []Gap) (n int64) {
	for _, g := range gaps {
		n += int64(g.Lost)
	}
	return n
}

func upTo(n uint32) (ids []uint32) {
	for i := range n {
		ids = append(ids, i)
	}
	return ids
}

func TestPipelineDeliversInOrder(t *testing.T) {
	a, b := new(stub), new(stub)
	odd := func(r *flow.Record) bool { return r.ID%2 == 1 }
	qa, qb := NewQueue(a, nil, 1<<20, zap.NewNop()), NewQueue(b, odd, 1<<20, zap.NewNop())
	p := New(nil, []*Queue{qa, qb})
	p.Start()
	var next uint32
	for i := range 500 {
		next = send(p, next, 1+i%3, smallBatch, smallBatch+1, batchRecords)
	}
	p.Close(t.Context())
	if !slices.Equal(a.ids, upTo(next)) {
		t.Errorf("the first output got %d records, want all %d in order", len(a.ids), next)
	}
	want := slices.DeleteFunc(upTo(next), func(id uint32) bool { return id%2 == 0 })
	if !slices.Equal(b.ids, want) {
		t.Errorf("the second output got %d records, want the odd ones", len(b.ids))
	}
	if w, f := qb.Stats.Written.Load(), qb.Stats.Filtered.Load(); w+f != uint64(next) || w != uint64(len(want)) {
		t.Errorf("the second output counts %d written and %d filtered, want %d and %d", w, f, len(want), int(next)-len(want))
	}
	if d := qa.Stats.Depth.Load(); d != 0 {
		t.Errorf("depth %d at the end, want 0", d)
	}
}

// TestSlowOutput holds one output still: the other gets everything, and the one that stands drops what passes its
// bound, by memory and not by batches, and counts it.
func TestSlowOutput(t *testing.T) {
	for _, size := range []int{1, smallBatch, smallBatch + 1, batchRecords} {
		t.Run(fmt.Sprintf("batches of %d", size), func(t *testing.T) {
			hold := make(chan struct{})
			entered := make(chan struct{}, 1)
			slow := &stub{write: func(_ context.Context, _ int, recs []*flow.Record) (int, error) {
				select {
				case entered <- struct{}{}:
				default:
				}
				<-hold
				return len(recs), nil
			}}
			fast := new(stub)
			const bound = 4 * batchRecords
			core, logged := observer.New(zap.WarnLevel)
			qs, qf := NewQueue(slow, nil, bound, zap.New(core)), NewQueue(fast, nil, 1<<20, zap.NewNop())
			p := New(nil, []*Queue{qs, qf})
			p.Start()
			next := send(p, 0, size)
			<-entered
			var sizes []int
			for range 2 * bound / size {
				sizes = append(sizes, size)
			}
			next = send(p, next, sizes...)
			batchCap := batchRecords
			if size <= smallBatch {
				batchCap = smallBatch
			}
			took := bound / batchCap * size // the batch that the output has in hand is one of them
			if got := int(qs.Stats.Depth.Load()); got != took {
				t.Errorf("%d records wait, want %d", got, took)
			}
			close(hold)
			p.Close(t.Context())
			if len(fast.ids) != int(next) {
				t.Errorf("the other output got %d records, want %d", len(fast.ids), next)
			}
			if !slices.Equal(slow.ids, upTo(uint32(took))) {
				t.Errorf("the slow output got %d records, want the first %d", len(slow.ids), took)
			}
			if d := qs.Stats.Dropped.Load(); d != uint64(next)-uint64(took) {
				t.Errorf("%d counted as dropped, want %d", d, int(next)-took)
			}
			want := Gap{Gap: flow.Gap{Cause: flow.CauseQueueFull, Lost: qs.Stats.Dropped.Load(), LostKnown: true, Output: "stub"},
				From: int64(took), To: int64(next) - 1}
			if len(slow.gaps) != 1 || slow.gaps[0] != want {
				t.Errorf("gaps on record: %+v, want %+v", slow.gaps, want)
			}
			var summed uint64
			for _, e := range logged.FilterMessage(recordsLost).All() {
				summed += e.ContextMap()["records"].(uint64)
			}
			if summed != qs.Stats.Dropped.Load() {
				t.Errorf("the log tells of %d lost records, want %d", summed, qs.Stats.Dropped.Load())
			}
		})
	}
}

func TestRetry(t *testing.T) {
	errDown := errors.New("down")
	tests := []struct {
		name     string
		write    func(ctx context.Context, call int, recs []*flow.Record) (int, error)
		want     []uint32
		rejected uint64
		errors   uint64
	}{
		{"nothing taken, twice", func(_ context.Context, call int, recs []*flow.Record) (int, error) {
			if call <= 2 {
				return 0, errDown
			}
			return len(recs), nil
		}, upTo(10), 0, 2},
		{"a part taken each time", func(_ context.Context, call int, recs []*flow.Record) (int, error) {
			if len(recs) > 3 {
				return 3, errDown
			}
			return len(recs), nil
		}, upTo(10), 0, 3},
		{"two refused for good", func(_ context.Context, call int, recs []*flow.Record) (int, error) {
			if call == 1 {
				return 4, refusal{2}
			}
			return len(recs), nil
		}, []uint32{0, 1, 2, 3, 6, 7, 8, 9}, 2, 1},
		{"more refused than there are", func(_ context.Context, call int, recs []*flow.Record) (int, error) {
			if call == 1 {
				return 4, refusal{99}
			}
			return len(recs), nil
		}, upTo(4), 6, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out := &stub{write: tt.write}
				q := NewQueue(out, nil, 0, zap.NewNop())
				p := New(nil, []*Queue{q})
				p.Start()
				send(p, 0, 10)
				time.Sleep(time.Minute)
				p.Close(t.Context())
				if !slices.Equal(out.ids, tt.want) {
					t.Errorf("delivered %v, want %v", out.ids, tt.want)
				}
				if r := q.Stats.Rejected.Load(); r != tt.rejected {
					t.Errorf("%d rejected, want %d", r, tt.rejected)
				}
				if want := int64(tt.rejected); lostIn(out.gaps) != want {
					t.Errorf("gaps tell of %d lost records, want %d: %+v", lostIn(out.gaps), want, out.gaps)
				}
				if e := q.Stats.Errors.Load(); e != tt.errors {
					t.Errorf("%d errors, want %d", e, tt.errors)
				}
			})
		})
	}
}

// TestCloseIsBounded closes a pipeline whose output never takes anything, and one whose output hangs until it is told
// that the time is over.
func TestCloseIsBounded(t *testing.T) {
	for name, tt := range map[string]struct {
		write func(context.Context, int, []*flow.Record) (int, error)
		takes time.Duration
	}{
		"refuses": {func(context.Context, int, []*flow.Record) (int, error) { return 0, errors.New("down") }, lastTry},
		"hangs": {func(ctx context.Context, _ int, _ []*flow.Record) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := NewQueue(&stub{write: tt.write}, nil, 0, zap.NewNop())
				p := New(nil, []*Queue{q})
				p.Start()
				next := send(p, 0, batchRecords, batchRecords, 5)
				time.Sleep(time.Minute)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				began := time.Now()
				p.Close(ctx)
				if took := time.Since(began); took != tt.takes {
					t.Errorf("Close took %v, want %v", took, tt.takes)
				}
				if left := q.Stats.Left.Load(); left != uint64(next) {
					t.Errorf("%d records counted as left behind, want %d", left, next)
				}
				if lost := lostIn(q.Unrecorded()); lost != int64(next) {
					t.Errorf("the gaps that wait tell of %d lost records, want %d", lost, next)
				}
			})
		})
	}
}

// TestPipelineAllocates holds the way of a batch through pipeline and queue to no garbage once it is warm.
func TestPipelineAllocates(t *testing.T) {
	p := New([]Stage{&Select{Events: [flow.EventGap]bool{flow.EventDestroy: true}}}, []*Queue{
		NewQueue(discard{}, func(*flow.Record) bool { return true }, 0, zap.NewNop()),
	})
	q := p.queues[0]
	b := p.Batch()
	cycle := func(size int) {
		for range size {
			b.Next().Event = flow.EventDestroy
		}
		b = p.Ingest(b)
		q.take() // the worker's loop, on this goroutine: AllocsPerRun counts those of all
		q.handle()
	}
	for _, size := range []int{smallBatch, batchRecords} {
		cycle(size)
		if n := testing.AllocsPerRun(1000, func() { cycle(size) }); n != 0 {
			t.Errorf("%v allocations for a batch of %d records, want 0", n, size)
		}
	}
}

// refusal is the error of an output that will never take some records.
type refusal struct{ n int }

func (r refusal) Error() string { return "refused for good" }
func (r refusal) Rejected() int { return r.n }

type discard struct{}

func (discard) Name() string                                              { return "discard" }
func (discard) Write(_ context.Context, recs []*flow.Record) (int, error) { return len(recs), nil }
func (discard) Close(context.Context) error                               { return nil }

func TestSelect(t *testing.T) {
	b := flow.NewBatch(8, nil)
	for _, e := range []flow.Event{flow.EventNew, flow.EventDestroy, flow.EventGap, flow.EventDestroy, flow.EventUpdate} {
		r := b.Next()
		r.Event, r.ID = e, uint32(len(b.Records))
	}
	s := &Select{Events: [flow.EventGap]bool{flow.EventDestroy: true}, Filter: func(r *flow.Record) bool { return r.ID == 4 }}
	s.Process(b)
	var got []uint32
	for _, r := range b.Records {
		got = append(got, r.ID)
	}
	if want := []uint32{3, 4}; !slices.Equal(got, want) {
		t.Errorf("kept %v, want %v: the gap, whatever the filter, and the end that it accepts", got, want)
	}
	if n := s.Dropped.Load(); n != 1 {
		t.Errorf("%d counted as dropped by the filter, want 1", n)
	}
}

// TestSwap replaces filters, outputs and queues while records flow, and asks that each output got every record that was
// its own, once and in order.
func TestSwap(t *testing.T) {
	first, gone, added := new(stub), new(stub), new(stub)
	kept, old := NewQueue(first, nil, 1<<20, zap.NewNop()), NewQueue(gone, nil, 1<<20, zap.NewNop())
	p := New(nil, []*Queue{kept, old})
	p.Start()
	next := send(p, 0, batchRecords, 3, batchRecords)
	swapped := next
	fresh := NewQueue(added, nil, 1<<20, zap.NewNop())
	p.Swap(nil, []*Queue{kept, fresh})
	next = send(p, next, batchRecords, 5)
	Retire(t.Context(), []*Queue{old})
	second := new(stub)
	fails := 2
	kept.Replace(func() (Output, error) {
		if fails--; fails >= 0 {
			return nil, errors.New("not yet")
		}
		return second, nil
	})
	next = send(p, next, batchRecords, 7)
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

// TestBlame fills the queue of an output whose disk is full and mends it: what does not fit while the backlog is worked
// off is lost for the disk, what does not fit later because the output is slow is not.
func TestBlame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		full.Store(true)
		hold := make(chan struct{})
		out := &stub{write: func(_ context.Context, _ int, recs []*flow.Record) (int, error) {
			if full.Load() {
				return 0, syscall.ENOSPC
			}
			<-hold
			return len(recs), nil
		}}
		const bound = 4 * batchRecords
		q := NewQueue(out, nil, bound, zap.NewNop())
		p := New(nil, []*Queue{q})
		p.Start()
		overfill := func(first uint32) (next uint32) {
			for range 6 {
				first = send(p, first, batchRecords)
			}
			return first
		}
		next := send(p, 0, batchRecords)
		synctest.Wait() // the first write has failed
		next = overfill(next)
		full.Store(false)
		time.Sleep(time.Minute) // a write is under way, the queue is as full as before
		next = overfill(next)
		for range 5 {
			select {
			case hold <- struct{}{}:
			case <-time.After(time.Minute):
			}
		}
		synctest.Wait()
		next = overfill(next)
		close(hold)
		p.Close(t.Context())
		var causes []string
		for _, g := range out.gaps {
			causes = append(causes, g.Cause.String())
		}
		if want := []string{"disk_full", "queue_full"}; !slices.Equal(causes, want) {
			t.Errorf("gaps for %v, want %v: %+v", causes, want, out.gaps)
		}
		if len(out.ids)+int(lostIn(out.gaps)) != int(next) {
			t.Errorf("%d delivered and %d in gaps, want %d in all", len(out.ids), lostIn(out.gaps), next)
		}
	})
}
