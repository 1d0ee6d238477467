package input

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	// batchAge is how long a record waits at most for its batch to fill.
	batchAge = 50 * time.Millisecond

	// Naps between reads that found little. While the reader naps, an event costs the packet path no wake-up; the
	// source's buffer holds far more than comes in the longest nap.
	minNap = time.Millisecond
	maxNap = 4 * time.Millisecond

	// How many events are to come in a nap: so many that the nap's own cost, as that of some ten of them, is spread thin,
	// and no more than the caches hold.
	fewEvents  = 128
	manyEvents = 384

	// idleEvery is how often an idle reader looks around.
	idleEvery = time.Second

	// aliveEvery is how often Options.Alive is called at most.
	aliveEvery = 500 * time.Millisecond

	// drainFor bounds the reading of what is left when the reader is told to stop.
	drainFor = 2 * time.Second

	// tellRoom is how many records Tell takes before the reader looks.
	tellRoom = 64

	// finishWithin bounds the finishing of what was requested, unless Options say otherwise.
	finishWithin = 10 * time.Second
)

// Options are what a Reader needs besides its source. All of them may be left out.
type Options struct {
	Log *zap.Logger

	// Alive is called on the reader's goroutine at most twice a second, and at least every other second as long as the
	// reader goes its rounds. It must not wait.
	Alive func()

	// FinishUntil is called when the reader is told to stop. It returns until when the reader may go on for what was
	// requested of the source. Without it, that is 10 s.
	FinishUntil func() time.Time
}

// Stats counts what the reader does. Any goroutine may read it.
type Stats struct {
	Naps  atomic.Uint64
	Busy  atomic.Int64  // ns that the reader did not sleep or wait
	Round atomic.Int64  // when it went round last, ns since 1970; at least once a second
	Gaps  flow.GapStats // made by the reader: they concern every output
}

// Reader reads a source. Its methods are for the goroutine that calls Run, unless they say otherwise.
type Reader struct {
	Stats Stats

	source Source
	opts   Options
	clock  clock
	calls  chan func()       // what Do wants done
	told   chan *flow.Record // what Tell has been told

	batch     *flow.Batch
	emit      func(*flow.Batch) *flow.Batch
	oldest    time.Time    // when the first record of batch was read
	readUntil atomic.Int64 // see ReadUntil
	aliveAt   time.Time    // when Alive was called last
	awake     time.Time    // Stats.Busy covers what was before
}

// New returns a reader of source, which is listening already.
func New(source Source, opts Options) *Reader {
	if opts.Log == nil {
		opts.Log = zap.NewNop()
	}
	if opts.FinishUntil == nil {
		opts.FinishUntil = func() time.Time { return time.Now().Add(finishWithin) }
	}
	r := &Reader{source: source, opts: opts, clock: newClock(opts.Log), calls: make(chan func(), 1),
		told: make(chan *flow.Record, tellRoom)}
	r.readUntil.Store(source.ReadUntil().UnixNano())
	r.Stats.Round.Store(time.Now().UnixNano())
	return r
}

// ReadUntil returns a time such that all flows that ended before it have been handed over. It lags by the age of a batch,
// and by what the source holds back; when Run has returned it is the time from which on no events were asked for, or were
// left to a successor. Any goroutine may call it.
func (r *Reader) ReadUntil() time.Time { return time.Unix(0, r.readUntil.Load()) }

// Run reads until ctx ends, and returns nil then, after it has handed over what waited in the source. It fills batch,
// hands it to emit when it is full or its first record is 50 ms old, and goes on with the batch that emit returns. emit
// runs on the reader's goroutine and must not wait for anything.
func (r *Reader) Run(ctx context.Context, batch *flow.Batch, emit func(*flow.Batch) *flow.Batch) error {
	r.batch, r.emit = batch, emit
	r.awake = time.Now()
	stop := context.AfterFunc(ctx, r.source.Wake)
	defer stop()
	nap, came := minNap, 0
	for ctx.Err() == nil {
		n, busy, err := r.round()
		if err != nil {
			return err
		}
		came += n
		switch {
		case busy:
		case n > 0:
			switch {
			case came > manyEvents:
				nap = max(nap/2, minNap)
			case came < fewEvents:
				nap = min(nap+nap/4, maxNap)
			}
			came = 0
			r.Stats.Naps.Add(1)
			r.nap(nap)
		default:
			came = 0
			if err := r.wait(); err != nil {
				return err
			}
		}
	}
	if err := r.finishRequests(); err != nil {
		return err
	}
	return r.drain()
}

// round reads once, and does a little of what else is to do; busy says that there is more of either to do at once. n is
// how many events were read.
func (r *Reader) round() (n int, busy bool, err error) {
	r.answer()
	now := time.Now()
	r.clock.lookAt(readings(now, r.clock.base))
	r.worked(now)
	n, more, err := r.fill(now)
	if err != nil {
		return n, false, err
	}
	r.takeTold()
	now = time.Now()
	busy = r.source.Turn(now, r)
	if len(r.batch.Records) > 0 && now.Sub(r.oldest) >= batchAge {
		r.flush()
	}
	if len(r.batch.Records) == 0 {
		r.readUntil.Store(r.source.ReadUntil().UnixNano())
	}
	if r.opts.Alive != nil && now.Sub(r.aliveAt) >= aliveEvery {
		r.aliveAt = now
		r.opts.Alive()
	}
	if more {
		// The outputs get their turn before the reader goes on: where it may take all of a processor, they would come to
		// theirs once in 10 ms, and lose in their queues what the source holds as well.
		runtime.Gosched()
	}
	return n, busy || more, nil
}

// fill has the source fill the batch, and hands it over if it is full.
func (r *Reader) fill(now time.Time) (n int, more bool, err error) {
	first := len(r.batch.Records) == 0
	n, more, err = r.source.Fill(r.batch, now)
	if first && len(r.batch.Records) > 0 {
		r.oldest = now
	}
	if r.batch.Full() {
		r.flush()
	}
	return n, more, err
}

// worked counts the time since the reader woke, or was last asked, as spent on work.
func (r *Reader) worked(now time.Time) {
	r.Stats.Busy.Add(int64(now.Sub(r.awake)))
	r.Stats.Round.Store(now.UnixNano())
	r.awake = now
}

func (r *Reader) nap(d time.Duration) {
	r.worked(time.Now())
	time.Sleep(d)
	r.awake = time.Now()
}

// wait blocks until an event comes, the batch is due, somebody wakes the source, or it is time to look around.
func (r *Reader) wait() error {
	now := time.Now()
	timeout := min(idleEvery, r.source.Due(now))
	if len(r.batch.Records) > 0 {
		timeout = min(timeout, max(batchAge-now.Sub(r.oldest), 0))
	}
	r.worked(now)
	err := r.source.Wait(timeout)
	r.awake = time.Now()
	return err
}

// finishRequests goes on with the rounds until the source has done what was requested of it.
func (r *Reader) finishRequests() error {
	for until := r.opts.FinishUntil(); r.source.Requested(); {
		n, busy, err := r.round()
		if err != nil {
			return err
		}
		if time.Now().After(until) {
			r.opts.Log.Error("not all flows that are alive were written: the outputs took too long")
			return nil
		}
		if n == 0 && !busy {
			r.nap(minNap)
		}
	}
	return nil
}

// drain reads what is left in the source. What the sender still holds back comes meanwhile; once no more is asked for, the
// rest is read to its end. A successor, if there may be one, reads that instead.
func (r *Reader) drain() error {
	now := time.Now()
	for deadline := now.Add(drainFor); now.Before(deadline); now = time.Now() {
		n, more, err := r.fill(now)
		if err != nil {
			return err
		}
		if n > 0 || more {
			continue
		}
		if !r.source.Withheld(now, r) {
			break
		}
		r.nap(maxNap)
	}
	withheld, since := r.source.Withheld(now, r), r.source.ReadUntil()
	left, leaveErr := r.source.Leave()
	if withheld {
		r.opts.Log.Warn("told to end while ended flows are still held back")
	}
	if withheld && left { // else a successor reads them, or, if there is none, the mark tells that they are missing
		r.Gap(since, now, flow.Gap{Cause: flow.CauseDowntime})
	}
	for more := true; more; {
		n, again, err := r.fill(time.Now())
		if err != nil {
			return err
		}
		more = again || n > 0
	}
	r.takeTold()
	r.source.Finish(time.Now(), r)
	r.flush()
	r.readUntil.Store(r.source.ReadUntil().UnixNano())
	return leaveErr
}

// flush hands the batch over.
func (r *Reader) flush() {
	if len(r.batch.Records) > 0 {
		r.since(r.readUntil.Load())
		r.clock.mark(r.batch.Records)
		r.batch = r.emit(r.batch)
		r.readUntil.Store(r.source.ReadUntil().UnixNano())
	}
}

// Put implements Sink.
func (r *Reader) Put(rec *flow.Record) {
	r.batch.Copy(r.next(), rec)
	r.added()
}

// Gap implements Sink.
func (r *Reader) Gap(from, to time.Time, gap flow.Gap) { r.GapIn(0, from, to, gap) }

// GapIn implements Sink.
func (r *Reader) GapIn(n flow.Netns, from, to time.Time, gap flow.Gap) {
	now := time.Now()
	r.Stats.Gaps.Add(gap, false, now)
	begin, end := from.UnixNano(), int64(0)
	if !to.IsZero() {
		end = to.UnixNano()
		if end < begin { // the clock was set back meanwhile
			begin, end = end, begin
		}
	}
	rec := r.next()
	rec.Event, rec.Start, rec.Stop, rec.Received = flow.EventGap, begin, end, now.UnixNano()
	r.batch.Extra(rec).Gap = gap
	r.batch.SetNetns(rec, n)
	r.since(begin) // what loses the gap loses flows of that time
	r.added()
}

// since notes that the batch tells of a time.
func (r *Reader) since(at int64) {
	if b := r.batch; b.Since == 0 || at < b.Since {
		b.Since = at
	}
}

// next returns the next record of the batch, which has room for one at least.
func (r *Reader) next() *flow.Record {
	if len(r.batch.Records) == 0 {
		r.oldest = time.Now()
	}
	return r.batch.Next()
}

func (r *Reader) added() {
	if r.batch.Full() {
		r.flush()
	}
}

// Do has f called on the reader's goroutine between two batches: what was read before is handed over first. It returns
// when f has, with its error. Use it from one goroutine at a time while Run runs. When ctx ends it returns, and f is not
// called any more, unless it is running, which is waited for.
func (r *Reader) Do(ctx context.Context, f func() error) (err error) {
	done := make(chan struct{})
	call := func() {
		defer close(done)
		r.flush()
		err = f()
	}
	select {
	case r.calls <- call:
		r.source.Wake()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case <-r.calls:
		return errors.New("the reader has ended")
	case <-done: // it was running
		return err
	}
}

// Tell has a copy of rec handed over behind what is read, within a second. It waits for nothing: ok is false if there is no
// room. What is told while Run puts its last batch together is lost. Any goroutine may call it; rec is not changed any more.
func (r *Reader) Tell(rec *flow.Record) (ok bool) {
	select {
	case r.told <- rec:
		return true
	default:
		return false
	}
}

// takeTold puts what Tell was told into the batch.
func (r *Reader) takeTold() {
	for {
		select {
		case rec := <-r.told:
			r.Put(rec)
		default:
			return
		}
	}
}

// answer runs what Do has asked for.
func (r *Reader) answer() {
	select {
	case call := <-r.calls:
		call()
	default:
	}
}
