package deliver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/spool"
	"github.com/ctlogd/ctlogd/unit"
)

// line is what a pipeline does for its queues.
type line struct{ queues []*Queue }

// start starts queues.
func start(queues ...*Queue) *line {
	for _, q := range queues {
		q.Start()
	}
	return &line{queues}
}

func (l *line) Batch() *flow.Batch { return flow.NewBatch(BatchRecords, nil) }

func (l *line) Ingest(b *flow.Batch) *flow.Batch {
	b.Hold(1)
	for _, q := range l.queues {
		q.Offer(b)
	}
	b.Done()
	return l.Batch()
}

func (l *line) Close(ctx context.Context) { Retire(ctx, l.queues) }

// queueOf returns a queue of an output that is there from the beginning.
func queueOf(out Output, filter func(*flow.Record) bool, max int, log *zap.Logger) *Queue {
	return New(Config{Name: out.Name(), Build: func() (Output, error) { return out, nil }, Filter: filter, Max: max, Log: log})
}

// spill gives a queue that is not started yet a spool.
func (q *Queue) spill(s *spool.Spool) {
	q.spooler = newSpooler(q, func() (*spool.Spool, error) { return s, nil })
}

func openSpool(t *testing.T, dir string, size int64) *spool.Spool {
	t.Helper()
	cfg := spool.Config{Path: dir}
	cfg.Defaults()
	if size > 0 {
		cfg.MaxSize = unit.Size(size)
	}
	s, err := spool.Open(cfg, "stub", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stub is an output that keeps the ids of what it is given, and does as its hook says.
type stub struct {
	mu     sync.Mutex
	ids    []uint32
	gaps   []Gap
	calls  int
	closed atomic.Bool
	write  func(ctx context.Context, call int, recs []*flow.Record) (int, error) // nil takes everything
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

func (s *stub) Close(context.Context) error {
	s.closed.Store(true)
	return nil
}

func (s *stub) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ids)
}

func (s *stub) got() []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ids)
}

func (s *stub) lost() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(lostIn(s.gaps))
}

// switched is an output that can be broken and mended.
type switched struct {
	stub
	broken atomic.Bool
}

func newSwitched(broken bool) *switched {
	s := new(switched)
	s.broken.Store(broken)
	s.write = func(_ context.Context, _ int, recs []*flow.Record) (int, error) {
		if s.broken.Load() {
			return 0, errors.New("down")
		}
		return len(recs), nil
	}
	return s
}

// hanging is an output whose Write hangs until it is let go, whatever its context says.
type hanging struct {
	stub
	release chan struct{}
}

func newHanging() *hanging {
	h := &hanging{release: make(chan struct{})}
	h.write = func(_ context.Context, _ int, recs []*flow.Record) (int, error) {
		<-h.release
		return len(recs), nil
	}
	return h
}

type discard struct{}

func (discard) Name() string                                              { return "discard" }
func (discard) Write(_ context.Context, recs []*flow.Record) (int, error) { return len(recs), nil }
func (discard) Close(context.Context) error                               { return nil }

// refusal is the error of an output that will never take some records.
type refusal struct{ n int }

func (r refusal) Error() string { return "refused for good" }
func (r refusal) Rejected() int { return r.n }

// send offers batches of the given sizes, with ids that count up from first. They are when each was received as well, but
// for 0, which is no time.
func send(l *line, first uint32, sizes ...int) (next uint32) {
	b := l.Batch()
	for _, n := range sizes {
		for range n {
			r := b.Next()
			r.Event, r.ID, r.Received = flow.EventDestroy, first, max(int64(first), 1)
			first++
		}
		b = l.Ingest(b)
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

// eventually waits for something that another goroutine is about to do.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

// awaitRoom waits until no more than so many records are held.
func awaitRoom(t *testing.T, q *Queue, held int) {
	t.Helper()
	eventually(t, "the queue has room", func() bool { return q.Status().Held <= held })
}

// spooled returns how many records wait in the queue's spool.
func spooled(q *Queue) uint64 {
	s := q.Spool()
	if s == nil {
		return 0
	}
	n, _ := s.Len()
	return n
}
