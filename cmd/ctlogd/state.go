package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/pipeline"
)

// markEvery is how often the mark is written: it bounds how exactly the begin of a gap is known after a crash.
const markEvery = time.Second

// state is the directory in which a process leaves its mark for the next one; nil without one.
type state struct {
	dir    string
	lock   *os.File // the directory
	bootID string
	log    *zap.Logger

	mu       sync.Mutex
	retiring []*pipeline.Queue     // what a reload has taken out and is not delivered yet
	gone     []pipeline.OutputMark // the gaps of outputs that are no more
}

// openState makes sure that marks can be written, so that a missing directory shows at the start and not after a crash.
func openState(dir string, log *zap.Logger) (*state, error) {
	if dir == "" {
		log.Warn("there is no state_directory: a restart leaves no gap, so what ends meanwhile is missing in silence",
			zap.String("remedy", "set state_directory, such as to /var/lib/ctlogd"))
		return nil, nil
	}
	if err := checkState(dir); err != nil {
		return nil, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("state_directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if err == unix.EWOULDBLOCK {
			return nil, fmt.Errorf("state_directory: %s is another ctlogd's; give each its own", dir)
		}
		return nil, fmt.Errorf("state_directory: lock %s: %w", dir, err)
	}
	return &state{dir: dir, lock: lock, bootID: pipeline.BootID(), log: log}, nil
}

// checkState makes sure that files can be written to the directory.
func checkState(dir string) error {
	probe := filepath.Join(dir, ".writable")
	if err := os.WriteFile(probe, nil, 0o640); err != nil {
		return fmt.Errorf("state_directory: %w; make it, writable by the user that ctlogd runs as", err)
	}
	if err := os.Remove(probe); err != nil {
		return fmt.Errorf("state_directory: %w", err)
	}
	return nil
}

// close gives the directory to the next process.
func (s *state) close() {
	if s != nil {
		s.lock.Close()
	}
}

// restore puts on record, in each queue, what the time since the last process has cost its output. kept is the socket
// that outlived that process, nil if there is none.
func (s *state) restore(queues []*pipeline.Queue, kept *pipeline.Socket) {
	if s == nil {
		return
	}
	mark, err := pipeline.LoadMark(s.dir)
	if err != nil {
		s.log.Error("the last process's mark is of no use; the gap begins at its file's time", zap.Error(err))
	}
	if mark == nil {
		return
	}
	now := time.Now()
	var names []string
	for _, q := range queues {
		names = append(names, q.Name())
		for _, g := range mark.Gaps(q.Name(), s.bootID, kept, now) {
			s.tell("gap on record", q.Name(), g)
			q.Lose(g)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range mark.Orphans(names) {
		s.orphan(o)
	}
}

// orphan keeps the gaps of an output that is no more. The lock is held.
func (s *state) orphan(o pipeline.OutputMark) {
	for _, g := range o.Gaps {
		s.tell("gap of an output that is no longer configured; the mark keeps it until it is", o.Name, g)
	}
	s.gone = append(s.gone, o)
}

func (s *state) tell(what, output string, g pipeline.Gap) {
	fields := []zap.Field{zap.String("output", output), zap.Stringer("cause", g.Cause),
		zap.Time("from", time.Unix(0, g.From)), zap.Time("to", time.Unix(0, g.To))}
	if g.LostKnown {
		fields = append(fields, zap.Uint64("lost", g.Lost))
	}
	s.log.Warn(what, fields...)
}

// retire has the mark know of queues that the pipeline does not feed any more, until retired.
func (s *state) retire(queues []*pipeline.Queue) {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.retiring = append(s.retiring, queues...)
	s.mu.Unlock()
}

// retired has the mark keep what gaps the queues, which have ended, could not deliver.
func (s *state) retired(queues []*pipeline.Queue) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range queues {
		s.retiring = slices.DeleteFunc(s.retiring, func(r *pipeline.Queue) bool { return r == q })
		if gaps := q.Unrecorded(); len(gaps) > 0 {
			s.orphan(pipeline.OutputMark{Name: q.Name(), Gaps: gaps})
		}
	}
}

// adopt gives a new queue the gaps of an output of its name that was taken out before.
func (s *state) adopt(q *pipeline.Queue) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = slices.DeleteFunc(s.gone, func(o pipeline.OutputMark) bool {
		if o.Name != q.Name() {
			return false
		}
		for _, g := range o.Gaps {
			q.Lose(g)
		}
		return true
	})
}

// mark returns the mark of this moment.
func (s *state) mark(p *pipeline.Pipeline, read time.Time, clean bool) pipeline.Mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := pipeline.NewMark(append(p.Queues(), s.retiring...), s.bootID, read, clean)
	m.Gone = slices.Clone(s.gone)
	return m
}

// keep writes the pipeline's mark until ctx ends. A mark that cannot be written is told once, until one can.
func (s *state) keep(ctx context.Context, p *pipeline.Pipeline, read func() time.Time) {
	if s == nil {
		return
	}
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	failing := false
	for {
		m := s.mark(p, read(), false)
		err := m.Save(s.dir)
		if err != nil && !failing {
			s.log.Error("a crash now would make a longer gap than it need be", zap.Error(err))
		} else if err == nil && failing {
			s.log.Info("the mark can be written again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// finish writes the last mark of a process that ends in order, after the pipeline is closed. socket is what it leaves to
// the next one, or nil.
func (s *state) finish(p *pipeline.Pipeline, read time.Time, socket *pipeline.Socket) {
	if s == nil {
		return
	}
	m := s.mark(p, read, true)
	m.Socket = socket
	if err := m.Save(s.dir); err != nil {
		s.log.Error("the next process will take this end for a crash", zap.Error(err))
	}
}
