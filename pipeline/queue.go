package pipeline

import (
	"context"
	"errors"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/filter"
)

// DefaultQueue is how many records wait for an output at most, unless configured: about 12 MiB of them.
const DefaultQueue = 65536

const (
	// writeRecords is the most that one Write gets.
	writeRecords = 8 * batchRecords

	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second

	// quiet is how long a warning that comes again is held back, to be summed up.
	quiet = 10 * time.Second

	recordsLost = "records lost"
)

// QueueStats counts what became of an output's records. Any goroutine may read it.
type QueueStats struct {
	Written  atomic.Uint64 // delivered
	Filtered atomic.Uint64 // dropped by the output's own filter
	Dropped  atomic.Uint64 // lost because the queue was full
	Rejected atomic.Uint64 // lost because the destination refused them for good
	Left     atomic.Uint64 // not delivered when ctlogd ended
	Gaps     atomic.Uint64 // gap records handed to the output for losses of its own
	Errors   atomic.Uint64 // writes that failed
	Retries  atomic.Uint64 // writes that were tried again
	Depth    atomic.Int64  // records waiting, those of the write under way included

	Lost flow.GapStats // what Dropped, Rejected and Left have lost, and a restart has, as gaps
	Lag  Lag           // of the records written
}

// Queue holds an output's batches, no more than a fixed number of records' worth of room, and its worker delivers
// them. What it loses becomes a gap, which waits until the output takes it.
type Queue struct {
	Stats QueueStats

	name   string
	filter atomic.Pointer[filter.Func]
	log    *zap.Logger
	done   chan struct{} // closed when the worker has ended

	mu      sync.Mutex
	out     Output                 // the worker's to use; others under the lock
	replace func() (Output, error) // builds the output that takes out's place, nil if it stays
	max     int                    // records' worth of room
	batches []*flow.Batch
	room    int    // of the batches here and in the worker's hands
	losses  losses // not on record yet
	failing error  // the last Write's error, until one succeeds
	blame   error  // the same, until what had piled up meanwhile is worked off: what is lost till then is lost for it
	told    failures
	inWrite int64 // since of what is in the worker's hands; 0 if that is nothing
	writing int64 // when its first record was read
	handed  []Gap // the queue's own gaps in the worker's hands
	flight  flight
	closed  bool
	ready   chan struct{} // holds a token when there is something for the worker to see

	spill *spill // nil: no spool

	ctx   context.Context // ends when the worker must give up
	abort context.CancelFunc

	closing chan struct{} // closed with the queue
	ender   *time.Timer   // under the lock: gives up an output that fails while the queue is closed; nil if it does not

	// The worker's own.
	taken  []*flow.Batch
	recs   []*flow.Record
	failed bool // the last Write has failed
	errLog throttle

	dropLog throttle // the reader's own
}

// NewQueue returns the queue of an output. accept, which may be nil, selects its records; max is how many records the
// queue has room for, 0 for DefaultQueue.
func NewQueue(out Output, accept filter.Func, max int, log *zap.Logger) *Queue {
	q := &Queue{name: out.Name(), out: out, log: log.With(zap.String("output", out.Name())),
		ready: make(chan struct{}, 1), done: make(chan struct{}), closing: make(chan struct{})}
	q.ctx, q.abort = context.WithCancel(context.Background())
	q.Adjust(accept, max)
	return q
}

// Name returns the output's name.
func (q *Queue) Name() string { return q.name }

// Output returns the output that the queue feeds.
func (q *Queue) Output() Output {
	q.mu.Lock()
	defer q.mu.Unlock()
	if u, ok := q.out.(*unbuilt); ok {
		return u.built()
	}
	return q.out
}

// Adjust changes the output's filter and the queue's room, from the next batch on.
func (q *Queue) Adjust(accept filter.Func, max int) {
	if max == 0 {
		max = DefaultQueue
	}
	q.filter.Store(&accept)
	q.mu.Lock()
	q.max = max
	q.mu.Unlock()
}

// Replace has the worker close its output after what it is at, and go on with the one that build returns, which has the
// same name. Nothing queued is lost meanwhile. As long as build fails, it is tried again like a write that failed.
func (q *Queue) Replace(build func() (Output, error)) {
	q.mu.Lock()
	q.replace = build
	q.mu.Unlock()
	q.wakeUp()
}

// Lose puts a loss that happened elsewhere on record: what a restart has cost, say.
func (q *Queue) Lose(g Gap) {
	now := time.Now()
	q.mu.Lock()
	q.lost(g, now)
	q.mu.Unlock()
	q.wakeUp()
}

// safe returns a time such that each flow that ended before it, and before read, has left the queue: delivered and, if
// the output says so, acknowledged, on disk, or lost in a gap. read is the time before which all ends have been read.
func (q *Queue) safe(read time.Time) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	safe := read.UnixNano()
	for _, t := range [...]int64{oldest(q.flying()), q.inWrite, since(q.batches)} {
		if t != 0 {
			safe = min(safe, t)
		}
	}
	return safe
}

// since returns a time before which no flow ended that has a record in the batches; 0 if there are none. All of them are
// looked at: where the clock was set back, the first is not the oldest.
func since(batches []*flow.Batch) (oldest int64) {
	for _, b := range batches {
		at := b.Records[0].Received
		if b.Since != 0 {
			at = min(at, b.Since)
		}
		if oldest == 0 || at < oldest {
			oldest = at
		}
	}
	return oldest
}

// Unrecorded returns the gaps that wait to be put on record, those that the output is being given included.
func (q *Queue) Unrecorded() (gaps []Gap) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range q.flying() {
		gaps = append(gaps, p.gaps...)
	}
	gaps = append(gaps, q.handed...)
	return append(gaps, q.losses.gaps...)
}

// offer puts b into the queue, holding it, or loses its records if there is no room. It never waits.
func (q *Queue) offer(b *flow.Batch) {
	q.mu.Lock()
	full := q.closed || q.room+cap(b.Records) > q.max
	var lost uint64
	var cause flow.Cause
	if full {
		cause = q.cause()
		lost = q.lose(b.Records, cause)
	} else {
		b.Hold(1)
		q.batches = append(q.batches, b)
		q.room += cap(b.Records)
		q.Stats.Depth.Add(int64(len(b.Records)))
	}
	spill := q.spill != nil && q.shouldSpill()
	q.mu.Unlock()
	if spill {
		q.spill.look()
	}
	if full {
		q.Stats.Dropped.Add(lost)
		if n, ok := q.dropLog.add(lost); ok {
			q.log.Warn(recordsLost, zap.Uint64("records", n), zap.Stringer("cause", cause), zap.Int("queue", q.max))
		}
	}
	q.wakeUp()
}

// cause tells why the queue loses records. The lock is held.
func (q *Queue) cause() flow.Cause {
	if q.spill != nil && q.spill.err != nil {
		return causeOf(q.spill.err)
	}
	return causeOf(q.blame)
}

// lose makes the loss of recs, as far as the output wanted them, a gap. The lock is held.
func (q *Queue) lose(recs []flow.Record, cause flow.Cause) uint64 {
	filter := *q.filter.Load()
	return q.note(cause, func(yield func(*flow.Record) bool) {
		for i := range recs {
			r := &recs[i]
			if (r.Event == flow.EventGap || filter == nil || filter(r)) && !yield(r) {
				return
			}
		}
	})
}

// note makes one gap of recs, which are lost for the cause, and returns how many they are. What gap records among them
// say is kept. The lock is held.
func (q *Queue) note(cause flow.Cause, recs iter.Seq[*flow.Record]) uint64 {
	now := time.Now()
	g := Gap{Gap: flow.Gap{Cause: cause, Output: q.name, LostKnown: true}}
	for r := range recs {
		g.lose(r, func(kept Gap) { q.losses.add(kept, now) })
	}
	if g.Lost > 0 {
		q.lost(g, now)
	}
	return g.Lost
}

// lost counts a new loss, and has it put on record. The lock is held.
func (q *Queue) lost(g Gap, now time.Time) { q.Stats.Lost.Add(g.Gap, q.losses.add(g, now), now) }

func (q *Queue) wakeUp() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// close ends the queue: what it holds is still delivered.
func (q *Queue) close() {
	q.mu.Lock()
	q.closed = true
	close(q.closing)
	q.lastTries()
	q.mu.Unlock()
	q.wakeUp()
}

// An output that fails when ctlogd ends is given up when it has failed for giveUp; lastTry is for one more in any case.
// While it is tried, ctlogd reads no events any more, and without a manager who keeps the socket the other outputs lose
// what ends meanwhile.
const (
	giveUp  = 2 * time.Second
	lastTry = 250 * time.Millisecond
)

// lastTries gives up an output that fails, in a little while, if the queue is closed. The lock is held.
func (q *Queue) lastTries() {
	switch {
	case !q.closed:
	case q.failing == nil:
		if q.ender != nil {
			q.ender.Stop()
			q.ender = nil
		}
	case q.spill != nil:
		q.abort() // the spool keeps what the output does not take
	case q.ender == nil:
		q.ender = time.AfterFunc(max(giveUp-time.Since(q.told.since), lastTry), q.abort)
	}
}

// take moves as many batches as one write takes into q.taken, behind a batch of gaps if any are due; false if the queue
// is closed and empty.
func (q *Queue) take() bool {
	for {
		q.land()
		now := time.Now()
		q.mu.Lock()
		q.taken = q.taken[:0]
		if q.replace != nil {
			q.mu.Unlock()
			q.exchange()
			continue
		}
		if q.spill != nil && q.spill.comesFirst() {
			// What is on the disk is older than what is in memory.
			closed := q.closed
			q.mu.Unlock()
			if closed {
				return false // the rest goes to the disk as well
			}
			if q.spill.read() {
				return true
			}
			q.await(0)
			continue
		}
		due, in := q.losses.due(now)
		if due || q.closed && len(q.losses.gaps) > 0 {
			q.handed = append(q.handed, q.losses.gaps...)
			q.taken = append(q.taken, q.gapBatch(now))
		}
		n := q.first()
		q.taken = append(q.taken, q.batches[:n]...)
		rest := copy(q.batches, q.batches[n:])
		clear(q.batches[rest:])
		q.batches = q.batches[:rest]
		if n > 0 {
			taken := q.taken[len(q.taken)-n:]
			q.inWrite, q.writing = since(taken), taken[0].Records[0].Received
		}
		closed := q.closed
		q.mu.Unlock()
		switch {
		case len(q.taken) > 0:
			return true
		case closed:
			return false
		}
		q.await(in)
	}
}

// await waits until there is something to see, at most for so long, or without end if that is 0.
func (q *Queue) await(in time.Duration) {
	if len(q.flight.parts) > 0 && (in == 0 || in > lookEvery) {
		in = lookEvery
	}
	var timer <-chan time.Time
	if in > 0 {
		timer = time.After(in)
	}
	select {
	case <-q.ready:
	case <-timer:
	}
}

// first returns how many batches from the head of the queue make one write: some thousand records, but no more than a
// quarter of the queue's room, so that there is room while they are written. The lock is held.
func (q *Queue) first() (n int) {
	records, room := 0, 0
	for _, b := range q.batches {
		records += len(b.Records)
		room += cap(b.Records)
		if n > 0 && (records > writeRecords || room > q.max/4) {
			break
		}
		n++
	}
	return n
}

// closeWithin bounds the end of an output that another one replaces.
const closeWithin = 10 * time.Second

// exchange closes the output, bounded by the queue's own end, and puts the new one in its place, if there is one.
func (q *Queue) exchange() {
	q.mu.Lock()
	build := q.replace
	q.replace = nil
	q.mu.Unlock()
	if build == nil {
		return
	}
	ctx, cancel := context.WithTimeout(q.ctx, closeWithin)
	defer cancel()
	if err := q.out.Close(ctx); err != nil {
		q.log.Error("close output", zap.Error(err))
	}
	q.crash()
	out, err := build()
	if err != nil {
		q.log.Error("replace output", zap.Error(err))
		out = &unbuilt{name: q.name, build: build}
	}
	q.mu.Lock()
	q.out = out
	q.mu.Unlock()
}

// replaced reports whether exchange has something to do.
func (q *Queue) replaced() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.replace != nil
}

// unbuilt is an output that could not be built yet: each Write tries again.
type unbuilt struct {
	name  string
	build func() (Output, error)

	mu  sync.Mutex // against those who look from elsewhere
	out Output     // nil until built
}

func (u *unbuilt) Name() string { return u.name }

func (u *unbuilt) Write(ctx context.Context, recs []*flow.Record) (n int, err error) {
	if u.out == nil {
		out, err := u.build()
		if err != nil {
			return 0, err
		}
		u.mu.Lock()
		u.out = out
		u.mu.Unlock()
	}
	return u.out.Write(ctx, recs)
}

// built returns the output, or u as long as it could not be built.
func (u *unbuilt) built() Output {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.out != nil {
		return u.out
	}
	return u
}

func (u *unbuilt) Acknowledged() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if a, ok := u.out.(Acknowledger); ok {
		return a.Acknowledged()
	}
	return math.MaxUint64
}

func (u *unbuilt) Close(ctx context.Context) error {
	if u.out == nil {
		return nil
	}
	return u.out.Close(ctx)
}

// gapBatch returns a batch with the gaps that wait, which from here on are records like others. The lock is held.
func (q *Queue) gapBatch(now time.Time) *flow.Batch {
	b := flow.NewBatch(len(q.losses.gaps), nil)
	for i := range q.losses.gaps {
		g := &q.losses.gaps[i]
		g.fill(b, b.Next(), now)
		if b.Since == 0 || g.From < b.Since {
			b.Since = g.From
		}
	}
	q.Stats.Gaps.Add(uint64(len(b.Records)))
	q.Stats.Depth.Add(int64(len(b.Records)))
	q.losses.gaps = q.losses.gaps[:0]
	q.room += cap(b.Records)
	b.Hold(1)
	return b
}

// release ends the hold on what was taken.
func (q *Queue) release() {
	room, records := 0, 0
	for _, b := range q.taken {
		room += cap(b.Records)
		records += len(b.Records)
		b.Done()
	}
	clear(q.taken)
	q.taken = q.taken[:0]
	q.Stats.Depth.Add(int64(-records))
	q.mu.Lock()
	q.room -= room
	if q.failing == nil && q.room <= q.max/2 {
		q.blame = nil
	}
	q.inWrite = 0
	q.handed = nil
	q.mu.Unlock()
}

// work delivers until the queue is closed and empty, or aborted.
func (q *Queue) work() {
	defer close(q.done)
	if q.spill != nil {
		stop := make(chan struct{})
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			q.spillOver(stop)
		}()
		defer func() {
			close(stop)
			<-stopped
		}()
	}
	for q.ctx.Err() == nil && q.take() {
		q.handle()
	}
}

// handle delivers what was taken, as far as the output's filter accepts it.
func (q *Queue) handle() {
	if q.spill != nil && len(q.taken) == 0 {
		q.deliverSpool()
		return
	}
	q.recs = q.recs[:0]
	filtered := 0
	filter := *q.filter.Load()
	for _, b := range q.taken {
		for i := range b.Records {
			r := &b.Records[i]
			if filter != nil && r.Event != flow.EventGap && !filter(r) {
				filtered++
				continue
			}
			q.recs = append(q.recs, r)
		}
	}
	if filtered > 0 {
		q.Stats.Filtered.Add(uint64(filtered))
	}
	sent := q.flight.sent
	left := q.deliver(q.recs, true)
	if len(left) > 0 {
		q.leave(left)
	}
	if n := q.flight.sent - sent; n > 0 {
		q.takeOff(part{since: q.inWrite, gaps: q.handed[:min(n, uint64(len(q.handed)))]}) // the gaps come first
	}
	clear(q.recs)
	q.release()
}

// deliver writes recs, trying again with backoff until they are delivered or the queue is aborted, and returns what was
// not delivered. Records from memory go to the spool, if there is one and nothing newer is in it, rather than wait here:
// from there a process that is killed does not take them with it.
func (q *Queue) deliver(recs []*flow.Record, fromMemory bool) (left []*flow.Record) {
	retry, closing := firstRetry, q.closing
	for len(recs) > 0 {
		if q.replaced() { // the new output may be what mends it
			if !fromMemory {
				return recs
			}
			q.exchange()
		}
		n, err := q.out.Write(q.ctx, recs)
		q.Stats.Written.Add(uint64(n))
		q.flight.sent += uint64(n)
		q.Stats.Lag.observe(recs[:n], time.Now())
		recs = recs[n:]
		if err == nil {
			if q.failed {
				q.failed = false
				q.log.Info("output accepts records again")
				q.setFailing(nil)
			}
			return nil
		}
		if q.ctx.Err() != nil {
			return recs
		}
		q.Stats.Errors.Add(1)
		if refused := rejecter(nil); errors.As(err, &refused) {
			recs = q.reject(recs, refused)
			continue
		}
		// First, so that what waits behind these records is not moved before them.
		if fromMemory && q.spill != nil && q.keep(recs) {
			recs = nil
		}
		q.failed = true
		q.setFailing(err)
		if times, ok := q.errLog.add(1); ok {
			q.log.Error("write to output", zap.Error(err), zap.Uint64("errors", times))
		}
		if len(recs) == 0 {
			return nil
		}
		if n > 0 {
			retry = firstRetry
		}
		select {
		case <-q.ctx.Done():
		case <-closing:
			closing, retry = nil, firstRetry/2
		case <-time.After(retry/2 + rand.N(retry/2)): // jitter: many firewalls lose one collector at the same moment
		}
		retry = min(2*retry, lastRetry)
		q.Stats.Retries.Add(1)
	}
	return nil
}

func (q *Queue) setFailing(err error) {
	q.mu.Lock()
	q.told.note(q.failing, err)
	q.failing = err
	if err != nil {
		q.blame = err
	}
	q.lastTries()
	q.mu.Unlock()
	q.spill.look()
}

// reject loses the records that the output refuses for good, and returns those behind them.
func (q *Queue) reject(recs []*flow.Record, refused rejecter) []*flow.Record {
	lost := min(max(refused.Rejected(), 1), len(recs))
	q.Stats.Rejected.Add(uint64(lost))
	q.log.Error("output refuses records for good", zap.Int("records", lost), zap.Error(refused))
	q.mu.Lock()
	defer q.mu.Unlock()
	q.told.note(q.failing, refused)
	q.note(flow.CauseOutputDown, func(yield func(*flow.Record) bool) {
		for _, r := range recs[:lost] {
			if r.Event != flow.EventGap && !yield(r) { // a gap that is refused would be refused again
				return
			}
		}
	})
	return recs[lost:]
}

// leave makes a gap of what the output did not take in time.
func (q *Queue) leave(recs []*flow.Record) {
	if q.spill != nil && q.appendSpool(recs) {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.Stats.Left.Add(q.note(q.cause(), slices.Values(recs)))
}

// Discard gives back what a queue has whose worker was never started.
func (q *Queue) Discard() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	q.finish(ctx)
}

// strand leaves behind a worker that hangs in the output or in the spool: a disk that does not answer cannot be told that
// the time is over. What it has in its hands may be written yet.
func (q *Queue) strand() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if q.inWrite != 0 {
		q.lost(Gap{Gap: flow.Gap{Cause: flow.CauseOutputDown, Output: q.name}, From: q.inWrite, To: now.UnixNano()}, now)
	}
	for _, b := range q.batches {
		q.Stats.Left.Add(q.lose(b.Records, flow.CauseOutputDown))
	}
	q.log.Error("the output hangs, and is left as it is", zap.Uint64("records", q.Stats.Left.Load()))
}

// finish closes the output after its worker has ended, and reports what was not delivered.
func (q *Queue) finish(ctx context.Context) {
	if q.spill != nil {
		q.spillRest()
	}
	q.mu.Lock()
	q.taken = append(q.taken[:0], q.batches...)
	q.batches = nil
	for _, b := range q.taken {
		q.Stats.Left.Add(q.lose(b.Records, q.cause()))
	}
	if q.ender != nil {
		q.ender.Stop()
	}
	q.mu.Unlock()
	q.release()
	if q.ctx.Err() != nil { // it was given up
		brief, cancel := context.WithTimeout(ctx, giveUp/2)
		defer cancel()
		ctx = brief
	}
	if err := q.out.Close(ctx); err != nil {
		q.log.Error("close output", zap.Error(err))
	}
	q.crash()
	if q.spill != nil {
		q.closeSpool()
	}
	if left := q.Stats.Left.Load(); left > 0 {
		q.log.Error("records left behind, the output did not take them in time", zap.Uint64("records", left))
	}
	if n := q.dropLog.rest(); n > 0 {
		q.log.Warn(recordsLost, zap.Uint64("records", n))
	}
}

// throttle sums up what happens often: the first time is told at once, the rest once an interval. It is used by one
// goroutine at a time.
type throttle struct {
	told  time.Time
	count uint64
}

// add counts n more; ok says that it is time to tell the sum.
func (t *throttle) add(n uint64) (sum uint64, ok bool) {
	t.count += n
	if now := time.Now(); now.Sub(t.told) >= quiet {
		t.told = now
		return t.rest(), true
	}
	return 0, false
}

// rest returns what was counted and not told, and starts anew.
func (t *throttle) rest() uint64 {
	n := t.count
	t.count = 0
	return n
}
