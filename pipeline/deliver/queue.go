package deliver

import (
	"math"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/spool"
)

// DefaultMax is how many records wait for an output at most, unless configured: about 12 MiB of them.
const DefaultMax = 65536

const (
	// quiet is how long a warning that comes again is held back, to be summed up.
	quiet = 10 * time.Second

	recordsLost = "records lost"
)

// Stats counts what became of an output's records. Any goroutine may read it.
type Stats struct {
	Written  atomic.Uint64 // delivered
	Filtered atomic.Uint64 // dropped by the output's own filter
	Dropped  atomic.Uint64 // lost because the queue was full
	Rejected atomic.Uint64 // lost because the destination refused them for good
	Left     atomic.Uint64 // not delivered when ctlogd ended
	Gaps     atomic.Uint64 // gap records handed to the output for losses of its own
	Errors   atomic.Uint64 // calls that failed
	Retries  atomic.Uint64 // writes that were tried again

	Lost flow.GapStats // what Dropped, Rejected and Left have lost, and a restart has, as gaps
	Lag  Lag           // of the records written
}

// Config is what a Queue needs to begin.
type Config struct {
	// Name is that of the output.
	Name string

	// Build makes the output. The queue's worker calls it, and again as long as it fails. It may wait.
	Build func() (Output, error)

	// Spool opens the spool, under the same terms; nil: the output has none.
	Spool func() (*spool.Spool, error)

	// Filter selects the output's records; nil: all.
	Filter func(*flow.Record) bool

	// Archive says that the output is an archive: it gets the records that are made for archives, and no checkpoint of one.
	Archive bool

	// Max is how many records may wait in memory; 0 is DefaultMax.
	Max int

	Log *zap.Logger // may be nil
}

// Queue holds the records of one output and delivers them. What it loses becomes a gap, which waits until the output takes
// it.
type Queue struct {
	Stats Stats

	name    string
	log     *zap.Logger
	filter  atomic.Pointer[func(*flow.Record) bool]
	archive bool // Config.Archive
	buffer  buffer
	ledger  ledger
	health  health
	flight  flight
	worker  *worker
	spooler *spooler // nil: no spool
	end     *ending
	dropLog throttle // the reader's own
}

// New returns a queue. It touches nothing and starts nothing: a queue that is not used is garbage.
func New(c Config) *Queue {
	log := c.Log
	if log == nil {
		log = zap.NewNop()
	}
	q := &Queue{name: c.Name, log: log.With(zap.String("output", c.Name)), end: newEnding(),
		archive: c.Archive}
	q.ledger.output, q.ledger.stats = c.Name, &q.Stats.Lost
	q.worker = newWorker(q, c.Build)
	if c.Spool != nil {
		q.spooler = newSpooler(q, c.Spool)
	}
	q.Adjust(c.Filter, c.Max)
	return q
}

// Start begins to deliver. Retire ends it.
func (q *Queue) Start() {
	if q.spooler != nil {
		go q.spooler.run()
	}
	go q.worker.run()
}

// Name returns the output's name.
func (q *Queue) Name() string { return q.name }

// Output returns the output that the queue feeds, nil as long as it could not be built.
func (q *Queue) Output() Output { return q.worker.output() }

// Spool returns the queue's spool, nil if there is none or it could not be opened yet.
func (q *Queue) Spool() *spool.Spool { return q.spooler.get() }

// Adjust changes the output's filter and how many records may wait, from the next batch on.
func (q *Queue) Adjust(filter func(*flow.Record) bool, max int) {
	if max == 0 {
		max = DefaultMax
	}
	q.filter.Store(&filter)
	q.buffer.setMax(max)
}

// Replace has the worker close its output after what it is at, and go on with the one that build returns, which has the
// same name. Nothing queued is lost meanwhile.
func (q *Queue) Replace(build func() (Output, error)) { q.worker.replace(build) }

// Lose puts a loss that happened elsewhere on record: what a restart has cost, say.
func (q *Queue) Lose(g Gap) {
	q.ledger.add(g)
	q.worker.wakeUp()
}

// Offer puts the records of b that the output wants into the queue, or loses them if there is no room. b has BatchRecords
// records at most. It never waits. One goroutine, the reader's, calls it.
func (q *Queue) Offer(b *flow.Batch) {
	w, n := want(b, *q.filter.Load(), q.archive)
	if unwanted := len(b.Records) - n; unwanted > 0 {
		q.Stats.Filtered.Add(uint64(unwanted))
	}
	if n == 0 {
		return
	}
	taken, held, room := q.buffer.add(b, &w, n)
	if taken < n {
		q.drop(b, &w)
	}
	if q.spooler != nil && (held > room/2 || q.health.failing.Load()) {
		q.spooler.wakeUp()
	}
	q.worker.wakeUp()
}

// drop loses the records of b for which there is no room.
func (q *Queue) drop(b *flow.Batch, w *wanted) {
	cause := q.cause()
	lost := q.ledger.addRecords(cause, func(lose func(*flow.Record)) { w.each(b.Records, lose) })
	q.Stats.Dropped.Add(lost)
	if n, ok := q.dropLog.add(lost); ok {
		_, _, room := q.buffer.size()
		q.log.Warn(recordsLost, zap.Uint64("records", n), zap.Stringer("cause", cause), zap.Int("queue", room))
	}
}

// cause tells why the queue loses records.
func (q *Queue) cause() flow.Cause {
	if err := q.spooler.cause(); err != nil {
		return causeOf(err)
	}
	return causeOf(q.health.cause())
}

// each returns an iterator over records.
func each(recs []*flow.Record) func(lose func(*flow.Record)) {
	return func(lose func(*flow.Record)) {
		for _, r := range recs {
			lose(r)
		}
	}
}

// Since returns a time such that each flow that ended before it, and before read, has left the queue: delivered and, if the
// output says so, acknowledged, on disk, or lost in a gap. read is the time before which all ends have been read.
func (q *Queue) Since(read time.Time) int64 {
	// Records move from the buffer to the flight, and are in both for a moment: none is overlooked in this order.
	return min(read.UnixNano(), earlier(earlier(math.MaxInt64, q.buffer.since()), q.flight.since()))
}

// Unsynced returns a time such that no flow that ended before it, and has left the queue, would be missing after a power
// failure; 0 if none would. unknown says that only the kernel knows.
func (q *Queue) Unsynced() (since int64, unknown bool) {
	if u, ok := q.Output().(Unsyncer); ok {
		unknown = u.Unsynced()
	}
	if s := q.Spool(); s != nil {
		at, never := s.Unsynced()
		return at, unknown || never
	}
	return 0, unknown
}

// Unrecorded returns the gaps that wait to be put on record, those that the output is being given included.
func (q *Queue) Unrecorded() []Gap {
	q.worker.settle(q.flight.acknowledged())
	return q.ledger.unrecorded()
}

// Status is what a queue's output is doing.
type Status struct {
	Failing bool      // the last call has failed, or hangs
	Since   time.Time // when that began, or ended; zero if it never failed
	Error   string    // the last call that failed said so; "" if none has
	ErrorAt time.Time

	Held   int       // records in memory
	Max    int       // of so many
	Oldest time.Time // when the oldest record that waits was read, in memory or on disk; zero if none waits
}

// Status returns what the queue's output is doing. Any goroutine may call it.
func (q *Queue) Status() Status {
	s := q.health.status()
	s.Held, _, s.Max = q.buffer.size()
	if at := q.buffer.oldest(); at != 0 {
		s.Oldest = time.Unix(0, at)
	}
	q.spooler.countDamage(&q.Stats.Lost)
	if sp := q.Spool(); sp != nil {
		if t := sp.Oldest(); !t.IsZero() && (s.Oldest.IsZero() || t.Before(s.Oldest)) {
			s.Oldest = t
		}
	}
	return s
}

// HalfFull reports whether half of the room is taken. Whoever makes many records, and can make them later, asks first.
func (q *Queue) HalfFull() bool {
	held, _, room := q.buffer.size()
	return held > room/2
}

// throttle sums up what happens often: the first time is reported at once, the rest once an interval. It is used by one
// goroutine at a time.
type throttle struct {
	reported time.Time
	count    uint64
}

// add counts n more; ok says that it is time to log the sum.
func (t *throttle) add(n uint64) (sum uint64, ok bool) {
	t.count += n
	if now := time.Now(); now.Sub(t.reported) >= quiet {
		t.reported = now
		return t.rest(), true
	}
	return 0, false
}

// rest returns what was counted and not reported, and starts anew.
func (t *throttle) rest() uint64 {
	n := t.count
	t.count = 0
	return n
}
