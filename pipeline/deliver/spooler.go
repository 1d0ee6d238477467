package deliver

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/spool"
)

const (
	// spoolAgain is how long a spool that could not be written or read is left alone.
	spoolAgain = time.Second

	// spoolPatience is how long the worker waits at the start for the spool, whose records come before those in memory.
	spoolPatience = time.Second
)

// spooler owns an output's spool: its goroutine alone opens, writes, reads and closes it. The worker asks it for records,
// and waits for them no longer than until the disk hangs (next). While the output fails, or half of the buffer is taken, it
// moves what waits in memory to the disk, the worker's hand first, oldest first; and the worker reads the disk before the
// memory. So the order holds, unless the disk or the output hangs.
type spooler struct {
	q       *Queue
	open    func() (*spool.Spool, error)
	log     *zap.Logger
	watch   *watch
	ready   chan struct{} // holds a token when there is something to do
	stopped chan struct{} // closed when the goroutine has ended

	mu    sync.Mutex
	spool *spool.Spool // nil as long as it could not be opened
	err   error        // of opening it, or the last Append; nil once one succeeds
	again time.Time    // when to try again after err, or after an error of reading
	batch *flow.Batch  // what was read for the worker; nil if nothing was
	asked requests

	damaged uint64 // how many of the spool's damaged records are counted

	scratch spoolerScratch // the goroutine's own
}

// requests are what the spooler has been asked for and has not done yet.
type requests struct {
	read   bool // the worker wants records
	commit int  // so many are to be removed
	rewind bool // what was read and is not committed is to be read again
	end    bool // the worker has ended: what is in memory goes to the disk, and the spool is closed
}

type spoolerScratch struct {
	room    *flow.Batch    // for what is read
	recs    []*flow.Record // on their way to the disk
	fullLog throttle
	readLog throttle
}

func newSpooler(q *Queue, open func() (*spool.Spool, error)) *spooler {
	s := &spooler{q: q, open: open, log: q.log, ready: make(chan struct{}, 1), stopped: make(chan struct{})}
	s.watch = newWatch(func(func() bool) {
		s.log.Error("the spool's disk hangs: records wait in memory, and are lost when that is full",
			zap.Duration("for", hangAfter))
		s.q.worker.wakeUp()
	})
	return s
}

// wakeUp has the goroutine look around. s may be nil.
func (s *spooler) wakeUp() {
	if s == nil {
		return
	}
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// get returns the spool; nil as long as it could not be opened. s may be nil.
func (s *spooler) get() *spool.Spool {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spool
}

// next returns records to be delivered before those in memory. first says that there are such, in the batch or, if that is
// nil, soon. A disk that hangs is passed over. s may be nil.
func (s *spooler) next() (b *flow.Batch, first bool) {
	if s == nil {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.batch != nil:
		return s.batch, true
	case s.stuck():
		return nil, false
	case s.asked.read:
		return nil, true
	case s.q.buffer.older():
		s.asked.read = true
		s.wakeUp()
		return nil, true
	}
	return nil, false
}

// used says that the worker is done with the batch that next returned.
func (s *spooler) used() {
	s.mu.Lock()
	s.batch = nil
	s.mu.Unlock()
}

// remove has the next n records removed that were read: they have arrived. s may be nil.
func (s *spooler) remove(n int) {
	if n == 0 || s == nil {
		return
	}
	s.mu.Lock()
	s.asked.commit += n
	s.mu.Unlock()
	s.wakeUp()
}

// readAgain has what was read and not removed be read again.
func (s *spooler) readAgain() {
	s.q.buffer.setOnDisk(true)
	s.mu.Lock()
	s.asked.rewind, s.asked.read, s.batch = true, false, nil
	s.mu.Unlock()
	s.wakeUp()
}

// cause returns why the spool takes no records; nil if it does. s may be nil.
func (s *spooler) cause() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// takes reports whether the spool takes records, as far as is known. s may be nil.
func (s *spooler) takes() bool {
	if s == nil || s.stuck() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spool != nil && s.err == nil
}

// stuck reports whether the disk hangs. s may be nil.
func (s *spooler) stuck() bool { return s != nil && s.watch.stuck() }

// run is the goroutine.
func (s *spooler) run() {
	defer close(s.stopped)
	for !s.turn() {
	}
}

// turn does what is next, waiting for it if need be, and reports whether that was the end.
func (s *spooler) turn() (end bool) {
	s.mu.Lock()
	sp, again, asked := s.spool, s.again, s.asked
	asked.read = asked.read && s.batch == nil
	s.asked.commit = 0
	s.asked.rewind = asked.rewind && asked.commit > 0 // in its turn
	s.mu.Unlock()
	late := !time.Now().Before(again)

	switch {
	case sp == nil:
		if late || asked.end {
			s.openSpool()
			return asked.end && s.get() == nil
		}
	case asked.commit > 0:
		if err := s.call(func() error { return sp.Commit(asked.commit) }); err != nil {
			s.log.Error("spool: what is delivered may be delivered again", zap.Error(err))
		}
		return false
	case asked.rewind:
		_ = s.call(func() error { sp.Rewind(); return nil })
		s.q.buffer.setOnDisk(sp.Unread())
		s.q.worker.wakeUp()
		return false
	case asked.end:
		s.finish()
		return true
	case asked.read && late:
		s.read()
		return false
	case late && s.moveHand(), late && s.moveOne(false):
		return false
	}
	var timer <-chan time.Time
	if wait := time.Until(again); wait > 0 && !asked.end {
		timer = time.After(wait)
	}
	select {
	case <-s.ready:
	case <-timer:
	}
	return false
}

// call does what may wait for the disk.
func (s *spooler) call(do func() error) error {
	s.watch.enter()
	defer s.watch.leave()
	return do()
}

// failed notes that the spool takes nothing, and when to try again.
func (s *spooler) failed(err error) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first = err != nil && s.err == nil
	s.err = err
	if err != nil {
		s.again = time.Now().Add(spoolAgain)
	}
	return first
}

// openSpool opens the spool. Until it can be opened, records wait in memory.
func (s *spooler) openSpool() {
	var sp *spool.Spool
	err := s.call(func() (err error) {
		sp, err = s.open()
		return err
	})
	if s.failed(err) {
		s.log.Error("the spool cannot be opened; records wait in memory, and it is tried again", zap.Error(err))
	}
	if err == nil {
		s.scratch.room = flow.NewBatch(writeRecords, nil)
		s.q.buffer.setOnDisk(sp.Unread())
		s.mu.Lock()
		s.spool = sp
		s.mu.Unlock()
	}
	s.q.worker.wakeUp()
}

// read reads for the worker what one Write takes.
func (s *spooler) read() {
	room := s.scratch.room
	room.Reset()
	var n int
	err := s.call(func() (err error) {
		n, err = s.spool.Read(room)
		return err
	})
	if err != nil {
		if times, ok := s.scratch.readLog.add(1); ok {
			s.log.Error("read spool; it is tried again, and what waits in memory stays behind it",
				zap.Error(err), zap.Uint64("errors", times))
		}
	}
	more := err != nil || s.spool.Unread()
	s.mu.Lock()
	switch {
	case s.asked.rewind: // the worker does not want them any more
		more = true
	case n > 0:
		s.batch, s.asked.read = room, false
	case err != nil:
		s.again = time.Now().Add(spoolAgain)
	default:
		s.asked.read = false
	}
	s.mu.Unlock()
	if !more {
		s.q.buffer.setOnDisk(false)
	}
	s.q.worker.wakeUp()
}

// moveHand puts on the disk what an output that fails or hangs leaves in the worker's hand. Where newer records were moved
// there before, the hand stays in memory, and is tried first when the output answers: behind them it would be out of order.
// At the end it goes to the disk in any case.
func (s *spooler) moveHand() bool {
	if !s.q.health.failing.Load() || s.q.buffer.older() {
		return false
	}
	id, recs := s.q.buffer.lendHand(s.q.health.hangs())
	if len(recs) == 0 {
		return false
	}
	s.q.ledger.confirm(s.q.buffer.handMoved(id, s.append(recs)))
	s.q.worker.wakeUp()
	return true
}

// moveOne moves as many records as make one Write from memory to the disk, if they are to be moved now or anyway. What
// the spool does not take stays where it was.
func (s *spooler) moveOne(anyway bool) bool {
	held, waiting, room := s.q.buffer.size()
	if waiting == 0 || !anyway && !s.q.health.failing.Load() && held <= room/2 {
		return false
	}
	s.scratch.recs = s.q.buffer.lend(s.scratch.recs[:0])
	s.q.buffer.moved(s.append(s.scratch.recs))
	clear(s.scratch.recs)
	s.q.worker.wakeUp()
	return true
}

// append puts recs into the spool; false if it cannot take them now.
func (s *spooler) append(recs []*flow.Record) bool {
	var lost spool.Loss
	err := s.call(func() (err error) {
		lost, err = s.spool.Append(recs)
		return err
	})
	if lost.Lost > 0 {
		stats := &s.q.Stats
		stats.Dropped.Add(lost.Lost) // the spool puts it on record, in one gap as long as it goes on
		now := time.Now()
		more := now.UnixNano()-stats.Lost[lost.Cause].Last.Load() < int64(gapPause)
		stats.Lost.Add(flow.Gap{Cause: lost.Cause, Lost: lost.Lost, LostKnown: lost.Known}, more, now)
		if n, ok := s.scratch.fullLog.add(lost.Lost); ok {
			s.log.Warn(recordsLost, zap.Uint64("records", n), zap.Stringer("cause", lost.Cause))
		}
	}
	if s.failed(err) {
		s.log.Error("the spool takes no records; they wait in memory", zap.Error(err))
	}
	return err == nil
}

// end has what is left in memory be put on the disk, and the spool be closed. The worker has ended, or hangs.
func (s *spooler) end() {
	s.mu.Lock()
	s.asked.end = true
	s.mu.Unlock()
	s.wakeUp()
}

// finish is the goroutine's end.
func (s *spooler) finish() {
	id, recs := s.q.buffer.lendHand(true)
	ok := true
	if len(recs) > 0 {
		ok = s.append(recs)
		s.q.ledger.confirm(s.q.buffer.handMoved(id, ok))
	}
	for ok && s.moveOne(true) {
		ok = s.cause() == nil
	}
	if gaps, which, _ := s.q.ledger.handOut(true); gaps != nil && ok {
		if s.append(pointers(nil, gaps)) {
			s.q.ledger.confirm(which)
		} else {
			s.q.ledger.takeBack(which)
		}
	}
	s.closeSpool()
}

// closeSpool closes the spool. Nobody else uses it any more.
func (s *spooler) closeSpool() {
	n, size := s.spool.Len()
	if n > 0 && s.spool.Removed() {
		// What is in it will not be there at the next start. It says itself how much that is, in gaps.
		lost := uint64(0)
		_ = s.call(func() (err error) {
			s.spool.Rewind()
			for n = 1; n > 0 && err == nil; {
				s.scratch.room.Reset()
				var read int
				read, err = s.spool.Read(s.scratch.room)
				n = uint64(read)
				lost += s.q.ledger.addRecords(flow.CauseCrash, each(pointers(nil, s.scratch.room)))
			}
			return err
		})
		s.q.Stats.Left.Add(lost)
		s.log.Error("somebody has removed the spool with what waited in it; it is in gaps")
	} else if n > 0 {
		s.log.Info("records stay in the spool for the next start", zap.Uint64("records", n), zap.Int64("bytes", size))
	}
	if err := s.call(s.spool.Close); err != nil {
		s.log.Error("close spool", zap.Error(err))
	}
}

// countDamage counts what the spool has found damaged since it was asked last. s may be nil.
func (s *spooler) countDamage(lost *flow.GapStats) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spool == nil {
		return
	}
	if n := s.spool.Stats.Damaged.Load(); n > s.damaged {
		lost.Add(flow.Gap{Cause: flow.CauseCrash, Lost: n - s.damaged, LostKnown: true}, false, time.Now())
		s.damaged = n
	}
}

// pointers appends pointers to the batch's records.
func pointers(recs []*flow.Record, b *flow.Batch) []*flow.Record {
	for i := range b.Records {
		recs = append(recs, &b.Records[i])
	}
	return recs
}
