package deliver

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second

	// ackEvery is how often the worker looks what has arrived while it waits for something to do.
	ackEvery = 100 * time.Millisecond

	// closeWithin bounds the end of an output that another one replaces.
	closeWithin = 10 * time.Second
)

// worker owns the output: its goroutine alone builds it, writes to it and closes it, so whatever hangs there hangs there
// alone.
type worker struct {
	q     *Queue
	watch *watch          // of the calls into the output
	ready chan struct{}   // holds a token when there is something to see
	done  chan struct{}   // closed when the goroutine has ended
	ctx   context.Context // ends when the worker is to give up
	end   context.CancelFunc

	// ackTimer wakes the worker when it is time to look what has arrived. It is not set for each wait, of which there is one
	// for each batch: as long as ackSet, it will run.
	ackTimer *time.Timer
	ackSet   atomic.Bool

	mu    sync.Mutex
	build func() (Output, error) // of the present output
	next  func() (Output, error) // of the output that is to replace it; nil: none
	out   Output                 // nil as long as it could not be built

	abandoned atomic.Bool // nobody waits for the worker any more

	// The goroutine's own.
	pause      time.Duration  // before the next try
	triedAtEnd bool           // the announced end has cut one pause short
	recs       []*flow.Record // of the spool
	unfinished bool           // some of them are not delivered, and are to be read again
	errLog     throttle
}

func newWorker(q *Queue, build func() (Output, error)) *worker {
	w := &worker{q: q, build: build, ready: make(chan struct{}, 1), done: make(chan struct{}),
		pause: firstRetry}
	w.ctx, w.end = context.WithCancel(context.Background())
	w.watch = newWatch(w.hangs)
	w.ackTimer = time.AfterFunc(time.Hour, func() {
		w.ackSet.Store(false)
		w.wakeUp()
	})
	w.ackTimer.Stop()
	return w
}

// abort has the worker give up.
func (w *worker) abort() {
	w.end()
	w.wakeUp()
}

func (w *worker) wakeUp() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// output returns the output; nil as long as it could not be built.
func (w *worker) output() Output {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out
}

// replace has the output closed after the call that is under way, and the one that build makes put in its place.
func (w *worker) replace(build func() (Output, error)) {
	w.mu.Lock()
	w.next = build
	w.mu.Unlock()
	w.wakeUp()
}

func (w *worker) replaced() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next != nil
}

// hangs is called when a call into the output has been out for long. The records in hand go to the spool, if there is one.
func (w *worker) hangs(out func() bool) {
	if w.abandoned.Load() {
		return
	}
	w.q.log.Error("the output hangs: what comes goes to its spool, or waits in memory and is lost when that is full",
		zap.Duration("for", hangAfter))
	w.note(errHangs)
	if !out() {
		w.q.health.clearHang() // it has returned just now
	}
}

// note takes the outcome of a call into the output, nil for success.
func (w *worker) note(err error) {
	changed := w.q.health.note(err)
	if !changed && err == nil {
		return
	}
	if changed && err == nil {
		w.q.log.Info("output accepts records again")
	}
	w.q.end.giveUpIfFailing(w.q)
	w.q.spooler.wakeUp()
}

// run is the goroutine: it delivers until the queue is closed and empty, or it is told to give up.
func (w *worker) run() {
	defer close(w.done)
	w.awaitSpool()
	for w.ctx.Err() == nil && w.turn() {
	}
	ctx, cancel := w.q.end.context(w.ctx.Err() != nil)
	defer cancel()
	w.closeOutput(ctx)
	w.watch.timer.Stop()
	w.ackTimer.Stop()
}

// awaitSpool gives the spool the time to open: what is in it comes first.
func (w *worker) awaitSpool() {
	if w.q.spooler == nil {
		return
	}
	patience := time.NewTimer(spoolPatience)
	defer patience.Stop()
	for w.q.spooler.get() == nil && w.q.spooler.cause() == nil {
		select {
		case <-w.ready:
		case <-patience.C:
			return
		case <-w.ctx.Done():
			return
		}
	}
}

// turn delivers the next records, waiting for them if need be; false when there will be none.
func (w *worker) turn() bool {
	q := w.q
	if !w.built() {
		if err := w.connect(); err != nil {
			w.failed(err, w.replaced)
		} else {
			w.note(nil)
		}
		return true
	}
	w.settle(q.flight.acknowledged())
	closed := q.end.closed()
	batch, first := q.spooler.next()
	switch {
	case batch != nil:
		w.recs = pointers(w.recs[:0], batch)
		d := delivery{recs: w.recs, spooled: true}
		w.deliver(&d)
		q.spooler.used()
		w.unfinished = len(d.recs) > 0 // then the output is closed next
		return true
	case first && closed:
		return false // the rest goes to the disk as well
	case first:
		w.await(0)
		return true
	}
	gaps, which, in := q.ledger.handOut(closed)
	q.Stats.Gaps.Add(uint64(which.len()))
	d := q.buffer.take(q.spooler.stuck(), gaps, which)
	switch {
	case len(d.recs) > 0:
		w.deliver(&d)
		// What is left when the worker is told to give up stays in hand, for the queue's end.
		if len(d.recs) == 0 && q.buffer.release(d.hand) {
			q.health.caughtUp()
		}
	case closed:
		return false
	default:
		w.await(in)
	}
	return true
}

// await waits until there is something to see, for so long at most; 0 is without end.
func (w *worker) await(in time.Duration) {
	if w.q.flight.waiting() && !w.ackSet.Load() {
		w.ackSet.Store(true)
		w.ackTimer.Reset(ackEvery)
	}
	if in == 0 { // nearly always
		<-w.ready
		return
	}
	select {
	case <-w.ready:
	case <-time.After(in):
	}
}

// built reports whether there is an output, after closing it if another one is to take its place.
func (w *worker) built() bool {
	w.mu.Lock()
	if w.next == nil {
		defer w.mu.Unlock()
		return w.out != nil
	}
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(w.ctx, closeWithin)
	defer cancel()
	w.closeOutput(ctx)
	w.mu.Lock()
	w.build, w.next = w.next, nil
	w.mu.Unlock()
	return false
}

// connect builds the output.
func (w *worker) connect() error {
	w.mu.Lock()
	build := w.build
	w.mu.Unlock()
	w.watch.enter()
	out, err := build()
	w.watch.leave()
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.out = out
	w.mu.Unlock()
	w.q.flight.begin(out)
	return nil
}

// closeOutput closes the output, if there is one. What was on its way to the destination may have arrived or not.
func (w *worker) closeOutput(ctx context.Context) {
	out := w.output()
	if out == nil {
		return
	}
	w.watch.enter()
	err := out.Close(ctx)
	w.watch.leave()
	if err != nil {
		w.q.log.Error("close output", zap.Error(err))
	}
	w.mu.Lock()
	w.out = nil
	w.mu.Unlock()
	if !w.abandoned.Load() {
		w.q.endFlight(w.unfinished)
		w.unfinished = false
	}
}

// settle ends what was on its way and has arrived, or was refused.
func (w *worker) settle(p part) {
	w.q.ledger.confirm(p.gaps)
	w.q.ledger.lose(p.lost)
	w.q.spooler.remove(p.spooled)
}

// delivery is what the worker is delivering: its hand, or what was read from the spool.
type delivery struct {
	recs    []*flow.Record // those that are not delivered yet
	hand    uint64
	since   int64 // no flow in the hand ended before
	spooled bool
}

// took notes that the output has taken the first n records.
func (w *worker) took(d *delivery, n int) {
	p := part{spooled: n}
	if !d.spooled {
		gaps, mine := w.q.buffer.delivered(d.hand, n)
		p = part{gaps: gaps}
		if mine { // else the spool has it, too
			p.since = d.since
		}
	}
	d.recs = d.recs[n:]
	w.settle(w.q.flight.add(n, p))
}

// deliver writes d's records, trying again with backoff until they are delivered or the spool has taken them over. It
// leaves what is not delivered when the worker is told to give up; or, as they can be read again, records of the spool
// when another output is to have them.
func (w *worker) deliver(d *delivery) {
	q := w.q
	for {
		n, err := w.write(d)
		if w.abandoned.Load() {
			return
		}
		if n > 0 {
			q.Stats.Written.Add(uint64(n))
			q.Stats.Lag.observe(d.recs[:n], time.Now())
			w.took(d, n)
			w.pause = firstRetry
		}
		switch {
		case err == nil:
			w.note(nil)
			if len(d.recs) == 0 || w.replaced() || w.ctx.Err() != nil {
				return
			}
			continue
		case w.ctx.Err() != nil:
			return
		}
		if refused := refusalIn(err); refused != nil {
			q.Stats.Errors.Add(1)
			if d.spooled || !w.taken(d) { // else they are refused again when they come from the spool
				w.reject(d, refused)
			}
		} else if w.keep(d, err) {
			return
		} else {
			q.Stats.Retries.Add(1)
		}
		if len(d.recs) == 0 {
			return
		}
	}
}

// pacedPortion is how many records a Pacer gets at a time: some ten datagrams, which any socket's buffer holds.
const pacedPortion = 128

// portion returns the records that the next Write gets: all of them, but that a Pacer gets what comes from the spool at its
// pace. Only that is a backlog that can wait: the disk has room for what comes meanwhile.
func (w *worker) portion(d *delivery) []*flow.Record {
	pacer, ok := w.out.(Pacer)
	if !ok || !d.spooled {
		return d.recs
	}
	pace := pacer.Pace()
	if pace <= 0 {
		return d.recs
	}
	timer := time.NewTimer(pacedPortion * time.Second / time.Duration(pace))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.ctx.Done():
	}
	return d.recs[:min(len(d.recs), pacedPortion)]
}

// refusalIn returns the refusal that err is, or nil.
func refusalIn(err error) (refused rejecter) {
	if errors.As(err, &refused) {
		return refused
	}
	return nil
}

// keep waits before d is tried again, after err. It reports whether d is somewhere else then: the spool has taken the hand
// over, or the records can be read from there again for another output; or the worker is to give up.
func (w *worker) keep(d *delivery, err error) bool {
	buffer := &w.q.buffer
	if d.spooled {
		w.failed(err, w.replaced)
		return w.replaced() || w.ctx.Err() != nil
	}
	buffer.offerHand(d.hand)
	w.failed(err, func() bool { return w.replaced() || buffer.gone(d.hand) })
	return w.taken(d) || w.ctx.Err() != nil
}

// taken reports whether the spool has taken the hand over. If it is about to, that is waited for, unless its disk hangs.
func (w *worker) taken(d *delivery) bool {
	for w.ctx.Err() == nil {
		moving, gone := w.q.buffer.reclaimHand(d.hand)
		if gone {
			d.recs = nil
			return true
		}
		if !moving || w.q.spooler.stuck() {
			return false
		}
		w.await(0)
	}
	return false
}

// write has the output write the next of d's records, and builds it first if need be. Records of the spool go to the output
// that was there when they were read: another one begins where nothing has arrived.
func (w *worker) write(d *delivery) (int, error) {
	if !d.spooled && !w.built() {
		if err := w.connect(); err != nil {
			return 0, err
		}
	}
	recs := w.portion(d)
	w.watch.enter()
	defer w.watch.leave()
	return w.out.Write(w.ctx, recs)
}

// failed notes that the output does not work, and waits before the next try: longer each time, but no longer than until
// over.
func (w *worker) failed(err error, over func() bool) {
	w.q.Stats.Errors.Add(1)
	w.note(err)
	if times, ok := w.errLog.add(1); ok {
		w.q.log.Error("write to output", zap.Error(err), zap.Uint64("errors", times))
	}
	begun := w.q.end.begun
	if w.triedAtEnd {
		begun = nil
	}
	// Jitter, because many firewalls lose one collector at the same moment.
	timer := time.NewTimer(w.pause/2 + rand.N(w.pause/2))
	defer timer.Stop()
	w.pause = min(2*w.pause, lastRetry)
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-begun:
			w.triedAtEnd, w.pause = true, firstRetry
			return
		case <-timer.C:
			return
		case <-w.ready:
			if over() {
				return
			}
		}
	}
}

// reject loses the records at the head of d that the output refuses for good.
func (w *worker) reject(d *delivery, refused rejecter) {
	q := w.q
	n := min(max(refused.Rejected(), 1), len(d.recs))
	q.Stats.Rejected.Add(uint64(n))
	q.log.Error("output refuses records for good", zap.Int("records", n), zap.Error(refused))
	q.health.remark(refused)
	lost := Gap{Gap: flow.Gap{Cause: flow.CauseOutputDown, Output: q.name, LostKnown: true}}
	for _, r := range d.recs[:n] {
		if r.Event != flow.EventGap { // a gap that is refused would be refused again
			lost.lose(r, nil)
		}
	}
	p := part{spooled: n, lost: lost} // until all before has arrived, these may be read again, and refused again
	if !d.spooled {
		q.ledger.lose(lost)
		gaps, _ := q.buffer.delivered(d.hand, n)
		p = part{gaps: gaps}
	}
	d.recs = d.recs[n:]
	w.settle(q.flight.add(0, p))
}
