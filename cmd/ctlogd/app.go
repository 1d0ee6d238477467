package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/output/jsonl"
	"github.com/ctlogd/ctlogd/pipeline"
)

// app is the running daemon: the reader, the stages and the outputs' queues.
type app struct {
	log      *zap.Logger
	helpers  *pipeline.Helpers
	selected *pipeline.Select
	queues   []*pipeline.Queue
	pipeline *pipeline.Pipeline
	reader   *input.Conntrack
}

// runDaemon logs flows as cfg says until ctx ends, then delivers what is left.
func runDaemon(ctx context.Context, cfg *Config, log *zap.Logger) error {
	st, err := openState(cfg.StateDirectory, log)
	if err != nil {
		return err
	}
	a, err := newApp(cfg, log)
	if err != nil {
		return err
	}
	st.restore(a.queues, false)
	a.pipeline.Start()
	marking, stopMarking := context.WithCancel(context.Background())
	var background sync.WaitGroup
	background.Go(func() { st.keep(marking, a.pipeline) })
	stopReopening := a.reopenOnHangup()
	log.Info("logging flows", zap.Strings("events", cfg.Input.Conntrack.Events),
		zap.String("delivery", cfg.Input.Conntrack.Delivery), zap.Int("outputs", len(a.queues)))
	started := time.Now()
	err = a.reader.Run(ctx, a.pipeline.Batch(), a.pipeline.Ingest)
	if err != nil {
		log.Error("reading ended", zap.Error(err))
	} else {
		log.Info("told to end, delivering what is left", zap.Duration("at_most", cfg.ShutdownTimeout))
	}
	stopReopening()
	a.close(cfg.ShutdownTimeout)
	stopMarking()
	background.Wait()
	st.finish(a.pipeline)
	a.report(time.Since(started))
	return err
}

// newApp builds the whole daemon. The outputs come before the reader: what cannot work says so before the first event
// is taken from the kernel.
func newApp(cfg *Config, log *zap.Logger) (a *app, err error) {
	a = &app{log: log}
	defer func() {
		if err != nil {
			a.close(0)
		}
	}()
	var filters []pipeline.FilterConfig
	add := func(out pipeline.Output, c OutputConfig) {
		a.queues = append(a.queues, pipeline.NewQueue(out, c.Filter.Compile(), c.Queue, log))
		filters = append(filters, c.Filter)
	}
	for i, c := range cfg.Outputs.JSONL {
		enc, err := format.New(c.Format, format.FlatOptions{Host: cfg.Host, Observer: cfg.Observer, Drop: c.Fields.Drop})
		if err != nil {
			return nil, fmt.Errorf("outputs.jsonl[%d]: %w", i, err)
		}
		out, err := jsonl.New(c.Config, enc, log)
		if err != nil {
			return nil, fmt.Errorf("outputs.jsonl[%d]: %w", i, err)
		}
		add(out, c.OutputConfig)
	}

	in := cfg.Input.Conntrack
	a.helpers = pipeline.NewHelpers(*in.HelperEntries, in.Labels)
	a.selected = &pipeline.Select{Filter: cfg.Filter.Compile()}
	for _, e := range in.Events {
		a.selected.Events[eventNumber(e)] = true
	}
	a.selected.Events[flow.EventExpectNew] = in.Expectations
	a.selected.Events[flow.EventExpectDestroy] = in.Expectations
	a.pipeline = pipeline.New([]pipeline.Stage{a.helpers, a.selected}, a.queues)

	opts := input.Options{Log: log.Named("input"), Remember: a.helpers.Remember}
	if spec := pipeline.Pushdown(cfg.Filter, filters); !spec.Empty() {
		opts.Drop = spec.Drops
	}
	a.reader, err = input.Open(in, opts)
	return a, err
}

func eventNumber(name string) flow.Event {
	for e, n := range flow.EventNames {
		if n == name {
			return flow.Event(e)
		}
	}
	return 0
}

// reopenOnHangup opens the outputs' files again at each SIGHUP, for those who rotate them, until it is stopped.
func (a *app) reopenOnHangup() (stop func()) {
	hangup := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(hangup, unix.SIGHUP)
	go func() {
		defer close(done)
		for range hangup {
			for _, q := range a.queues {
				r, ok := q.Output().(pipeline.Reopener)
				if !ok {
					continue
				}
				if err := r.Reopen(); err != nil {
					a.log.Error("SIGHUP: the file in use stays in use", zap.String("output", q.Output().Name()), zap.Error(err))
				} else {
					a.log.Info("SIGHUP: opened again", zap.String("output", q.Output().Name()))
				}
			}
		}
	}()
	return func() {
		signal.Stop(hangup)
		close(hangup)
		<-done
	}
}

// close delivers what is queued, within the time, and gives everything back, in reverse order of building.
func (a *app) close(within time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if a.pipeline != nil {
		a.pipeline.Close(ctx)
	} else {
		for _, q := range a.queues {
			_ = q.Output().Close(ctx)
		}
	}
	if a.reader != nil {
		if err := a.reader.Close(); err != nil {
			a.log.Error("close netlink socket", zap.Error(err))
		}
	}
}

// report logs the sums of the whole run.
func (a *app) report(ran time.Duration) {
	in := &a.reader.Stats
	a.log.Info("events read", zap.Duration("in", ran),
		zap.Uint64("new", in.Events[flow.EventNew].Load()), zap.Uint64("update", in.Events[flow.EventUpdate].Load()),
		zap.Uint64("destroy", in.Events[flow.EventDestroy].Load()),
		zap.Uint64("expectations", in.Events[flow.EventExpectNew].Load()+in.Events[flow.EventExpectDestroy].Load()),
		zap.Uint64("kernel_drops", in.Drops.Load()), zap.Uint64("malformed", in.Malformed.Load()),
		zap.Uint64("truncated", in.Truncated.Load()), zap.Uint64("refused", in.Refused.Load()),
		zap.Uint64("filtered", a.selected.Dropped.Load()), zap.Uint64("helper_unknown", a.helpers.Unknown.Load()),
		zap.Uint64("helper_evictions", a.helpers.Evictions.Load()))
	for _, q := range a.queues {
		s := &q.Stats
		a.log.Info("records", zap.String("output", q.Output().Name()), zap.Uint64("written", s.Written.Load()),
			zap.Uint64("filtered", s.Filtered.Load()), zap.Uint64("dropped", s.Dropped.Load()),
			zap.Uint64("rejected", s.Rejected.Load()), zap.Uint64("left", s.Left.Load()), zap.Uint64("errors", s.Errors.Load()))
	}
}
