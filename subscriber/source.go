package subscriber

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Source is a source of subscribers at work: it keeps a table up to date, in a goroutine of its own, and shows it to the
// stage. Whatever hangs, hangs there.
type Source struct {
	Stats

	// Large is called, often, when the table is one of more than 100,000 leases. nil: nobody wants to know. It is set before
	// Start.
	Large func()

	cfg   Config
	log   *zap.Logger
	table atomic.Pointer[table] // never nil
	stop  context.CancelFunc
	start sync.Once

	// Of radius, see sessions.go.
	nas    atomic.Pointer[[]string] // who keeps the sessions
	kept   chan struct{}            // closed when nothing is written to the file any more
	before *Source                  // whose file it was, nil if nobody's; until the source has started
}

// Stats are a source's counters. Times are in ns since 1970.
type Stats struct {
	Loads    atomic.Uint64 // times that the table was replaced
	Broken   atomic.Uint64 // lines, or rows of several lines, that were skipped
	Fresh    atomic.Int64  // when the table was last known to be what the source says; 0: never
	Version  atomic.Int64  // the time of that state of the source
	failure  atomic.Pointer[string]
	Accepted atomic.Uint64 // accounting packets that were taken
	Useless  atomic.Uint64 // that say nothing of use, or are of another kind
	Forged   atomic.Uint64 // whose authenticator is wrong
	Foreign  atomic.Uint64 // of senders that are no clients
	Damaged  atomic.Uint64 // that are none
	Full     atomic.Uint64 // that were not taken, since the table is full
}

// New returns a source that does nothing yet.
func New(cfg Config, log *zap.Logger) *Source {
	s := &Source{cfg: cfg, log: log.With(zap.String("source", cfg.label())), kept: make(chan struct{})}
	s.show(newTable(), 0)
	return s
}

// Name returns what the source is called.
func (s *Source) Name() string { return s.cfg.label() }

// Type returns the source's type.
func (s *Source) Type() string { return s.cfg.Type }

// Is reports whether the source is what cfg asks for.
func (s *Source) Is(cfg Config) bool { return reflect.DeepEqual(s.cfg, cfg) }

// Size returns how many leases there are, and how many holders before the present ones are remembered.
func (s *Source) Size() (leases, past int) {
	t := s.table.Load()
	return t.leases, t.past
}

// Failure says why the table is not what the source says, "" if it is.
func (s *Source) Failure() string {
	if msg := s.failure.Load(); msg != nil {
		return *msg
	}
	return ""
}

// Follow says that the source takes the place of another one of its name, which is told to stop. It is called before Start.
func (s *Source) Follow(was *Source) { s.before = was }

// Start begins the work. It does not wait for anything. The directory is where sessions of RADIUS are kept; "" keeps none.
func (s *Source) Start(dir string) {
	s.start.Do(func() {
		ctx, stop := context.WithCancel(context.Background())
		s.stop = stop
		if s.cfg.Type == "radius" {
			go s.listen(ctx, s.sessionsFile(dir))
		} else {
			close(s.kept)
			go newWatcher(s).run(ctx)
		}
	})
}

// Stop tells the source to end. It does not wait: the disk may hang.
func (s *Source) Stop() {
	if s.stop != nil {
		s.stop()
	}
}

// Kept is closed when the source, which was started and told to stop, has written what the next process is to know.
func (s *Source) Kept() <-chan struct{} { return s.kept }

// show puts a table in the place of the one there is. version is the time of the state that it is made of.
func (s *Source) show(t *table, version int64) {
	t.source = s.cfg.label()
	if version != 0 {
		t.source += "@" + time.Unix(0, version).UTC().Format("2006-01-02T15:04:05.000Z")
	}
	s.Version.Store(version)
	s.table.Store(t)
}

// grown looks at what a table has become.
func (s *Source) grown(t *table) *table {
	if s.Large != nil && t.leases > 100_000 {
		s.Large()
	}
	return t
}

// fail notes that the table is not what the source says. The old one stays.
func (s *Source) fail(err error) {
	msg := err.Error()
	if was := s.failure.Swap(&msg); was == nil || *was != msg {
		s.log.Error("the leases cannot be read, the old ones stay", zap.Error(err))
	}
}

// well notes that the table is what the source says.
func (s *Source) well(now time.Time) {
	s.Fresh.Store(now.UnixNano())
	if s.failure.Swap(nil) != nil {
		s.log.Info("the leases can be read again")
	}
}

// errFull is that a source has more leases than it may.
type errFull int

func (e errFull) Error() string {
	return fmt.Sprintf("more than %d leases (limit)", int(e))
}

// pace keeps a goroutine to half of its time: its processor may be the reader's.
type pace struct {
	since, last time.Time
	hurry       bool // without pauses
}

// rest pauses if the work has gone on for long. Whoever works calls it every some 100 us; who has not called it for a while
// has waited.
func (p *pace) rest() {
	const work = 2 * time.Millisecond
	now := time.Now()
	if now.Sub(p.last) > 2*work {
		p.since = now
	}
	if took := now.Sub(p.since); took >= work && !p.hurry {
		time.Sleep(took)
		now = time.Now()
		p.since = now
	}
	p.last = now
}
