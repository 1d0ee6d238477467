package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/pipeline"
)

// markEvery is how often the mark is written: it bounds how exactly the begin of a gap is known after a crash.
const markEvery = time.Second

// state is the directory in which a process leaves its mark for the next one; nil without one.
type state struct {
	dir    string
	bootID string
	log    *zap.Logger
}

// openState makes sure that marks can be written, so that a missing directory shows at the start and not after a crash.
func openState(dir string, log *zap.Logger) (*state, error) {
	if dir == "" {
		return nil, nil
	}
	probe := filepath.Join(dir, ".writable")
	if err := os.WriteFile(probe, nil, 0o640); err != nil {
		return nil, fmt.Errorf("state_directory: %w; make it, writable by the user that ctlogd runs as", err)
	}
	if err := os.Remove(probe); err != nil {
		return nil, fmt.Errorf("state_directory: %w", err)
	}
	return &state{dir: dir, bootID: pipeline.BootID(), log: log}, nil
}

// restore puts on record, in each queue, what the time since the last process has cost its output. kept says that the
// socket outlived that process.
func (s *state) restore(queues []*pipeline.Queue, kept bool) {
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
	for _, q := range queues {
		for _, g := range mark.Gaps(q.Output().Name(), s.bootID, kept, now) {
			s.log.Warn("gap on record", zap.String("output", q.Output().Name()), zap.Stringer("cause", g.Cause),
				zap.Time("from", time.Unix(0, g.From)), zap.Time("to", time.Unix(0, g.To)),
				zap.Uint64("lost", g.Lost), zap.Bool("lost_known", g.LostKnown))
			q.Lose(g)
		}
	}
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
		m := p.NewMark(s.bootID, read(), false)
		err := m.Save(s.dir)
		if err != nil && !failing {
			s.log.Error("a crash now would make a longer gap than it need be", zap.Error(err))
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// finish writes the last mark of a process that ends in order, after the pipeline is closed.
func (s *state) finish(p *pipeline.Pipeline, read time.Time) {
	if s == nil {
		return
	}
	m := p.NewMark(s.bootID, read, true)
	if err := m.Save(s.dir); err != nil {
		s.log.Error("the next process will take this end for a crash", zap.Error(err))
	}
}
