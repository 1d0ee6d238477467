package deliver

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

// An output that fails when its queue ends is given up when it has failed for giveUp; lastTry is for one more try in any
// case.
const (
	giveUp  = 2 * time.Second
	lastTry = 250 * time.Millisecond
)

// ending is the end of a queue. First it is announced (Settle), while records still come; then the queue is closed.
type ending struct {
	begun chan struct{} // closed when the end is announced

	mu        sync.Mutex
	ctx       context.Context // bounds the end; nil as long as the queue is open
	deadline  *time.Timer     // gives up an output that fails; nil while it does not
	announced bool            // begun is closed
}

func newEnding() *ending { return &ending{begun: make(chan struct{})} }

// announce has an output that fails tried at once.
func (e *ending) announce() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.announced {
		e.announced = true
		close(e.begun)
	}
}

// close says that nothing more comes, and by when all must be over.
func (e *ending) close(ctx context.Context) {
	e.announce()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ctx = ctx
}

func (e *ending) closed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ctx != nil
}

// context returns what bounds the output's Close. An output that was given up has little time.
func (e *ending) context(givenUp bool) (context.Context, context.CancelFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ctx := e.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	if givenUp {
		return context.WithTimeout(ctx, giveUp/2)
	}
	return context.WithCancel(ctx)
}

// giveUpIfFailing gives up an output that fails while its queue ends. If the spool takes its records, that is at once; if
// not, it is in a while, and the output may recover until then.
func (e *ending) giveUpIfFailing(q *Queue) {
	e.mu.Lock()
	defer e.mu.Unlock()
	failing, ok := q.health.failingFor()
	switch {
	case e.ctx == nil:
	case !ok:
		if e.deadline != nil {
			e.deadline.Stop()
			e.deadline = nil
		}
	case q.spooler.takes():
		q.worker.abort()
	case e.deadline == nil:
		e.deadline = time.AfterFunc(max(giveUp-failing, lastTry), q.worker.abort)
	}
}

// settleEvery is how often Settle looks.
const settleEvery = 10 * time.Millisecond

// Settle prepares the end while records still come: it returns when each queue has caught up, or has an output that has
// been failing for so long that waiting for it is in vain, or when ctx ends.
func Settle(ctx context.Context, queues []*Queue) {
	var settled sync.WaitGroup
	for _, q := range queues {
		q.end.announce()
		settled.Go(func() {
			began := time.Now()
			for !q.settled(time.Since(began)) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(settleEvery):
				}
			}
		})
	}
	settled.Wait()
}

// settled reports whether waiting for the queue, which has gone on for so long, is of no more use.
func (q *Queue) settled(waited time.Duration) bool {
	if failing, ok := q.health.failingFor(); ok {
		return q.spooler.takes() || waited >= lastTry && (failing >= giveUp || q.health.hangs())
	}
	held, waiting, _ := q.buffer.size()
	// A call that is out for longer than usual may be about to hang: that is known in a moment.
	return q.worker.output() != nil && waiting <= writeRecords && (held == waiting || q.worker.watch.out() < giveUp)
}

// Retire ends queues that get nothing more: what they hold is delivered until ctx ends, and what is left then is counted,
// in gaps, and logged.
func Retire(ctx context.Context, queues []*Queue) {
	for _, q := range queues {
		q.buffer.close()
		q.end.close(ctx)
		q.end.giveUpIfFailing(q)
		q.worker.wakeUp()
	}
	var finished sync.WaitGroup
	for _, q := range queues {
		finished.Go(func() { q.finish(ctx) })
	}
	finished.Wait()
}

// finish waits for the end of a queue that is closed.
func (q *Queue) finish(ctx context.Context) {
	w, s := q.worker, q.spooler
	select {
	case <-w.done:
	case <-w.ctx.Done():
	case <-ctx.Done():
	}
	w.abort()
	patience := giveUp
	if ctx.Err() == nil {
		patience = max(giveUp, hangAfter-w.watch.out()) // a call that began lately may end well
	}
	if !within(w.done, patience) {
		// A disk that does not answer cannot be told that the time is over. The goroutine closes the output when its call
		// returns.
		w.abandoned.Store(true)
		q.health.note(errHangs)
		q.log.Error("the output hangs, and is left as it is")
		q.endFlight(false)
	}
	if s != nil {
		s.end()
		select {
		case <-s.stopped:
		case <-ctx.Done():
			if !within(s.stopped, giveUp) {
				q.log.Error("the spool's disk hangs, and is left as it is")
			}
		}
	}
	left := uint64(0)
	q.ledger.takeBack(q.buffer.abandon(func(recs []*flow.Record) {
		left += q.ledger.addRecords(q.cause(), each(recs))
	}))
	q.Stats.Left.Add(left)
	if left > 0 {
		q.log.Error("records left behind, the output did not take them in time", zap.Uint64("records", left))
	}
	if n := q.dropLog.rest(); n > 0 {
		q.log.Warn(recordsLost, zap.Uint64("records", n))
	}
}

// within reports whether done is closed within the time.
func within(done <-chan struct{}, d time.Duration) bool {
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}

// endFlight is for an output that is closed, or was given up. A gap covers what the destination has not acknowledged, unless
// the spool has it: then it is read again from there, as it is if more of what was read is not delivered. What has arrived is
// settled before: the spool removes of what it has read, and not of what it is to read again.
func (q *Queue) endFlight(more bool) {
	q.worker.settle(q.flight.acknowledged())
	spooled := q.flight.end(q.name, time.Now().UnixNano(), q.ledger.add, q.ledger.takeBack, q.ledger.confirm)
	if (spooled || more) && q.spooler != nil {
		q.spooler.readAgain()
	}
}
