package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ctlogd/ctlogd/flow"
)

func TestPipelineDeliversInOrder(t *testing.T) {
	a, b := new(stub), new(stub)
	odd := func(r *flow.Record) bool { return r.ID%2 == 1 }
	qa, qb := queueOf(a, nil, 1<<20, zap.NewNop()), queueOf(b, odd, 1<<20, zap.NewNop())
	p := start(qa, qb)
	var next uint32
	for i := range 500 {
		next = send(p, next, 1+i%3, 16, 17, BatchRecords)
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
	if d := qa.Status().Held; d != 0 {
		t.Errorf("depth %d at the end, want 0", d)
	}
}

// TestSlowOutput holds one output still: the other gets everything, and the one that stands drops what passes its
// bound, by memory and not by batches, and counts it.
func TestSlowOutput(t *testing.T) {
	for _, size := range []int{1, 16, 16 + 1, BatchRecords} {
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
			const bound = 4 * BatchRecords
			core, logged := observer.New(zap.WarnLevel)
			qs, qf := queueOf(slow, nil, bound, zap.New(core)), queueOf(fast, nil, 1<<20, zap.NewNop())
			p := start(qs, qf)
			next := send(p, 0, size)
			<-entered
			var sizes []int
			for range 2 * bound / size {
				sizes = append(sizes, size)
			}
			next = send(p, next, sizes...)
			took := bound // the batch that the output has in hand is one of them
			if got := qs.Status().Held; got != took {
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
				q := queueOf(out, nil, 0, zap.NewNop())
				p := start(q)
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
		}, lastTry},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := queueOf(&stub{write: tt.write}, nil, 0, zap.NewNop())
				p := start(q)
				next := send(p, 0, BatchRecords, BatchRecords, 5)
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

// TestQueueAllocates holds the way of a batch through a queue to no garbage once it is warm: shared, copied because it is
// nearly empty, and copied because little of it is wanted.
func TestQueueAllocates(t *testing.T) {
	for name, filter := range map[string]func(*flow.Record) bool{
		"all": nil, "every": func(*flow.Record) bool { return true }, "few": func(r *flow.Record) bool { return r.ID%10 == 0 },
	} {
		q := queueOf(discard{}, filter, 0, zap.NewNop())
		var free []*flow.Batch
		get := func() *flow.Batch {
			if n := len(free); n > 0 {
				b := free[n-1]
				free = free[:n-1]
				return b
			}
			return flow.NewBatch(BatchRecords, func(b *flow.Batch) { b.Reset(); free = append(free, b) })
		}
		q.worker.turn() // builds the output
		cycle := func(size int) {
			b := get()
			for i := range size {
				r := b.Next()
				r.Event, r.ID = flow.EventDestroy, uint32(i)
			}
			b.Hold(1)
			q.Offer(b)
			b.Done()
			q.worker.turn() // on this goroutine: AllocsPerRun counts those of all
		}
		for _, size := range []int{16, BatchRecords} {
			cycle(size)
			if n := testing.AllocsPerRun(1000, func() { cycle(size) }); n != 0 {
				t.Errorf("%s: %v allocations for a batch of %d records, want 0", name, n, size)
			}
		}
	}
}

// TestLossCause fills the queue of an output whose disk is full and mends it: what does not fit while the backlog is worked
// off is lost for the disk, what does not fit later because the output is slow is not.
func TestLossCause(t *testing.T) {
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
		const bound = 4 * BatchRecords
		q := queueOf(out, nil, bound, zap.NewNop())
		p := start(q)
		overfill := func(first uint32) (next uint32) {
			for range 6 {
				first = send(p, first, BatchRecords)
			}
			return first
		}
		next := send(p, 0, BatchRecords)
		synctest.Wait() // the first write has failed
		next = overfill(next)
		full.Store(false)
		time.Sleep(2 * time.Second) // a write is under way, the queue is as full as before
		next = overfill(next)
		for range 5 {
			select {
			case hold <- struct{}{}:
			case <-time.After(time.Second):
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

// TestSince follows a record through a queue: as long as it is not delivered, Since does not pass it.
func TestSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		q := queueOf(&stub{write: func(_ context.Context, _ int, recs []*flow.Record) (int, error) {
			<-hold
			return len(recs), nil
		}}, nil, 0, zap.NewNop())
		p := &line{[]*Queue{q}}
		const read = 5000
		safe := func() int64 { return q.Since(time.Unix(0, read)) }
		if got := safe(); got != read {
			t.Errorf("empty queue: safe until %d, want %d", got, read)
		}
		send(p, 1000, 5)
		if got := safe(); got != 1000 {
			t.Errorf("queued: safe until %d, want 1000, when the oldest was read", got)
		}
		q.Start()
		synctest.Wait()
		send(p, 2000, 5)
		if got := safe(); got != 1000 {
			t.Errorf("in the write: safe until %d, want 1000", got)
		}
		hold <- struct{}{}
		synctest.Wait()
		if got := safe(); got != 2000 {
			t.Errorf("the next write: safe until %d, want 2000", got)
		}
		hold <- struct{}{}
		synctest.Wait()
		if got := safe(); got != read {
			t.Errorf("delivered: safe until %d, want %d", got, read)
		}
		// The kernel has held them back: they came late, and are older than others that came before.
		for _, n := range []int{5, BatchRecords} { // in a batch of its size, and not
			b := p.Batch()
			b.Since = 700
			for range n {
				r := b.Next()
				r.Event, r.Received = flow.EventDestroy, 3000
			}
			p.Ingest(b)
			synctest.Wait()
			if got := safe(); got != 700 {
				t.Errorf("held back: safe until %d, want 700", got)
			}
			hold <- struct{}{}
			synctest.Wait()
		}
		// The clock is set back.
		send(p, 4000, 5)
		synctest.Wait()
		send(p, 600, 5)
		send(p, 650, 5)
		if got := safe(); got != 600 {
			t.Errorf("the clock was set back: safe until %d, want 600", got)
		}
		hold <- struct{}{}
		hold <- struct{}{}
		synctest.Wait()
		p.Close(t.Context())
	})
}

// The smallest queue delivers, and what it has no room for is in gaps.
func TestSmallQueueDelivers(t *testing.T) {
	for _, max := range []int{1, 200} {
		out := new(stub)
		q := queueOf(out, nil, max, zap.NewNop())
		p := start(q)
		next := uint32(0)
		for range 20 {
			before := out.count()
			next = send(p, next, BatchRecords)
			eventually(t, "something is delivered", func() bool { return out.count() > before })
			// The hand is room taken until the Write has returned: what is sent before finds none, and is in a gap.
			eventually(t, "the queue is empty", func() bool { return q.Status().Held == 0 })
		}
		p.Close(t.Context())
		if got, lost := out.count(), out.lost(); got < 20*max || got+lost != int(next) {
			t.Errorf("a queue of %d: %d delivered, %d in gaps, want %d in all", max, got, lost, next)
		}
	}
}
