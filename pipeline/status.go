package pipeline

import (
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// QueueStatus is what a queue's output is doing.
type QueueStatus struct {
	Failing bool      // the last Write has failed
	Since   time.Time // when that began, or ended; zero if it never failed
	Error   string    // the last Write that failed said so; "" if none has
	ErrorAt time.Time

	Room   int       // records' worth of room that is taken
	Max    int       // of so many
	Oldest time.Time // when the oldest record that waits was read, in memory or on disk; zero if none waits
}

// Status returns what the queue's output is doing. It may be called from any goroutine.
func (q *Queue) Status() QueueStatus {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := QueueStatus{Failing: q.failing != nil, Since: q.told.since, ErrorAt: q.told.at, Room: q.room, Max: q.max}
	if q.told.last != nil {
		s.Error = q.told.last.Error()
	}
	switch {
	case q.inWrite != 0:
		s.Oldest = time.Unix(0, q.writing)
	case len(q.batches) > 0:
		s.Oldest = time.Unix(0, q.batches[0].Records[0].Received)
	}
	if q.spill != nil {
		q.spill.countDamage(&q.Stats.Lost)
		if t := q.spill.spool.Oldest(); !t.IsZero() && (s.Oldest.IsZero() || t.Before(s.Oldest)) {
			s.Oldest = t
		}
	}
	return s
}

// countDamage counts what the spool has found damaged since it was asked last. The queue's lock is held.
func (s *spill) countDamage(lost *flow.GapStats) {
	if n := s.spool.Stats.Damaged.Load(); n > s.damaged {
		lost.Add(flow.Gap{Cause: flow.CauseCrash, Lost: n - s.damaged, LostKnown: true}, false, time.Now())
		s.damaged = n
	}
}

// failures tell what Write said when it failed. The queue's lock guards them.
type failures struct {
	since time.Time // when it began to fail, or did not any more
	last  error
	at    time.Time // of last
}

// note takes what the last Write has said, nil for success; was is what the one before it had.
func (f *failures) note(was, is error) {
	now := time.Now()
	if (was == nil) != (is == nil) {
		f.since = now
	}
	if is != nil {
		f.last, f.at = is, now
	}
}
