package pipeline

import (
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/spool"
)

// spoolAgain is how long a spool that could not be written is left alone.
const spoolAgain = time.Second

// spill is a queue's way to its spool. While the output fails, or half of the queue's room is taken, a goroutine of its
// own moves what waits in memory to the disk, oldest first, and the worker reads the disk before the memory: the order
// holds. So an output that hangs in a write, with its worker, does not keep records from the disk.
//
// What the worker has taken from memory when the output begins to fail it puts into the spool itself, unless newer
// records were moved there while it was in the write. Then, and as long as the spool takes nothing, that stays in its
// hands, and when ctlogd ends, it follows behind what came later.
type spill struct {
	spool *spool.Spool
	ready chan struct{} // holds a token when there is something to see

	// The queue's lock guards these.
	moving  bool      // something is on its way to the disk, from memory or the worker
	err     error     // of the last Append, nil once one succeeds
	again   time.Time // when to try again behind err
	damaged uint64    // of the spool's damaged records, those that are counted
	fullLog throttle  // of whoever appends, the mover or the worker

	batch *flow.Batch    // the worker's: what it has read
	recs  []*flow.Record // the worker's: the same
	moved []*flow.Record // the mover's
}

// Spill makes the queue keep in s what its output does not take, and deliver first what s has kept. It is called before
// the worker is started. The queue closes s.
func (q *Queue) Spill(s *spool.Spool) {
	q.spill = &spill{spool: s, ready: make(chan struct{}, 1), batch: flow.NewBatch(writeRecords, nil)}
}

// Spool returns the queue's spool, or nil.
func (q *Queue) Spool() *spool.Spool {
	if q.spill == nil {
		return nil
	}
	return q.spill.spool
}

// look wakes the mover. s may be nil.
func (s *spill) look() {
	if s == nil {
		return
	}
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// comesFirst reports whether there are records that are older than those in memory. The queue's lock is held.
func (s *spill) comesFirst() bool {
	return s.spool.Unread() || s.moving
}

// read reads what one write takes; false if there is nothing to read yet.
func (s *spill) read() bool {
	s.batch.Reset()
	n, err := s.spool.Read(s.batch)
	return n > 0 || err != nil
}

// deliverSpool delivers what was read from the spool, and removes it from there as far as it has arrived.
func (q *Queue) deliverSpool() {
	s := q.spill
	s.recs = s.recs[:0]
	for i := range s.batch.Records {
		s.recs = append(s.recs, &s.batch.Records[i])
	}
	left := q.deliver(s.recs, false)
	if done := len(s.recs) - len(left); done > 0 {
		q.takeOff(part{spooled: done})
	}
	if len(left) > 0 && q.ctx.Err() == nil { // for another output
		q.exchange()
		s.spool.Rewind()
	}
	if len(s.recs) == 0 {
		// A file could not be read. It is tried again, and what waits in memory stays behind it.
		if n, ok := q.errLog.add(1); ok {
			q.log.Error("read spool", zap.Uint64("errors", n))
		}
		select {
		case <-time.After(spoolAgain):
		case <-q.ctx.Done():
		}
	}
}

// shouldSpill reports whether what waits in memory is to be moved to the disk now. The lock is held.
func (q *Queue) shouldSpill() bool {
	return len(q.batches) > 0 && !q.spill.moving && (q.failing != nil || q.room > q.max/2) &&
		!time.Now().Before(q.spill.again)
}

// spillOver moves batches to the spool, as long as they are to be moved, until stop is closed.
func (q *Queue) spillOver(stop <-chan struct{}) {
	for {
		q.mu.Lock()
		move := q.shouldSpill()
		wait := time.Duration(0)
		if !move && q.spill.err != nil {
			wait = max(time.Until(q.spill.again), time.Millisecond)
		}
		q.mu.Unlock()
		if move {
			q.moveOne()
			continue
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-stop:
			return
		case <-q.spill.ready:
		case <-timer:
		}
	}
}

// moveOne moves as many batches as make one write from memory to the spool. What the spool does not take stays where it
// was.
func (q *Queue) moveOne() {
	s := q.spill
	q.mu.Lock()
	n := q.first()
	if n == 0 || s.moving {
		q.mu.Unlock()
		return
	}
	// They stay at the head of the queue while they are written: the worker, which would take them, does not take from
	// memory as long as something is on its way to the disk.
	batches := q.batches[:n:n]
	s.moving = true
	q.mu.Unlock()

	filter := *q.filter.Load()
	s.moved = s.moved[:0]
	records, room := 0, 0
	for _, b := range batches {
		records += len(b.Records)
		room += cap(b.Records)
		for i := range b.Records {
			if r := &b.Records[i]; r.Event == flow.EventGap || filter == nil || filter(r) {
				s.moved = append(s.moved, r)
			}
		}
	}
	ok := q.appendSpool(s.moved)
	kept := len(s.moved)
	clear(s.moved)

	q.mu.Lock()
	s.moving = false
	if !ok {
		q.mu.Unlock()
		q.wakeUp()
		return
	}
	done := append([]*flow.Batch(nil), q.batches[:n]...)
	rest := copy(q.batches, q.batches[n:])
	clear(q.batches[rest:])
	q.batches = q.batches[:rest]
	q.room -= room
	q.mu.Unlock()
	q.Stats.Filtered.Add(uint64(records - kept))
	q.Stats.Depth.Add(int64(-records))
	for _, b := range done {
		b.Done()
	}
	q.wakeUp()
}

// keep puts what the worker has in its hands into the spool; false if the spool cannot take it, or has newer records.
func (q *Queue) keep(recs []*flow.Record) (ok bool) {
	s := q.spill
	q.mu.Lock()
	first := !s.comesFirst()
	if first {
		s.moving = true // nothing overtakes them on the way
	}
	q.mu.Unlock()
	if !first {
		return false
	}
	ok = q.appendSpool(recs)
	q.mu.Lock()
	s.moving = false
	q.mu.Unlock()
	return ok
}

// appendSpool puts recs into the spool; false if it cannot take them now.
func (q *Queue) appendSpool(recs []*flow.Record) bool {
	s := q.spill
	if len(recs) == 0 {
		return true
	}
	lost, err := s.spool.Append(recs)
	q.mu.Lock()
	defer q.mu.Unlock()
	if lost.Lost > 0 {
		q.Stats.Dropped.Add(lost.Lost) // the spool puts it on record, in one gap as long as it goes on
		now := time.Now()
		more := now.UnixNano()-q.Stats.Lost[lost.Cause].Last.Load() < int64(gapPause)
		q.Stats.Lost.Add(flow.Gap{Cause: lost.Cause, Lost: lost.Lost, LostKnown: lost.Known}, more, now)
		if n, ok := s.fullLog.add(lost.Lost); ok {
			q.log.Warn(recordsLost, zap.Uint64("records", n), zap.Stringer("cause", lost.Cause))
		}
	}
	if err != nil {
		if s.err == nil {
			q.log.Error("the spool takes no records; they wait in memory", zap.Error(err))
		}
		s.again = time.Now().Add(spoolAgain)
	}
	s.err = err
	return err == nil
}

// spillRest puts what is left in memory when ctlogd ends into the spool, gaps that wait included. The worker and the
// mover have ended.
func (q *Queue) spillRest() {
	q.mu.Lock()
	q.spill.again = time.Time{}
	if len(q.losses.gaps) > 0 {
		q.batches = append(q.batches, q.gapBatch(time.Now()))
	}
	q.mu.Unlock()
	for {
		q.mu.Lock()
		more := len(q.batches) > 0
		q.mu.Unlock()
		if !more {
			return
		}
		q.moveOne()
		if q.spill.err != nil {
			return
		}
	}
}

// closeSpool closes the spool, of which nobody else has the use any more.
func (q *Queue) closeSpool() {
	s, log := q.spill, q.log
	n, size := s.spool.Len()
	if n > 0 && s.spool.Removed() {
		now := time.Now()
		q.mu.Lock()
		q.lost(Gap{Gap: flow.Gap{Cause: flow.CauseCrash, Output: q.name, Lost: n, LostKnown: true},
			From: s.spool.Oldest().UnixNano(), To: now.UnixNano()}, now)
		q.mu.Unlock()
		log.Error("somebody has removed the spool with what waited in it", zap.Uint64("records", n))
	} else if n > 0 {
		log.Info("records stay in the spool for the next start", zap.Uint64("records", n), zap.Int64("bytes", size))
	}
	if err := s.spool.Close(); err != nil {
		log.Error("close spool", zap.Error(err))
	}
}
