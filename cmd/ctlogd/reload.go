package main

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/config"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
)

const (
	// reloadWithin bounds how long the reader may take to see a new configuration.
	reloadWithin = 30 * time.Second

	// reopenWithin bounds how long a reload waits for the files.
	reopenWithin = 2 * time.Second
)

// hangup is the answer to SIGHUP. It opens the outputs' files again, because somebody may have rotated them, and then reads
// the configuration again.
func (a *app) hangup(ctx context.Context) {
	a.manager.reloading()
	a.reopen()
	if a.cfg.file != "" {
		err := a.reload(ctx)
		a.state.reloads.note(a.cfg, err)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				a.log.Error("reload: the old configuration stays", zap.String("error", strings.TrimSpace(line)))
			}
		}
	}
	a.manager.serving()
}

// reopen opens the outputs' files again. A goroutine of its own opens each, and reopen does not wait long for it: its disk may
// hang.
func (a *app) reopen() {
	var opened sync.WaitGroup
	for _, q := range a.pipeline.Queues() {
		r, ok := q.Output().(deliver.Reopener)
		if !ok {
			continue
		}
		opened.Go(func() {
			if err := r.Reopen(); err != nil {
				a.log.Error("reopen: the file in use stays in use", zap.String("output", q.Name()), zap.Error(err))
			} else {
				a.log.Info("opened again", zap.String("output", q.Name()))
			}
		})
	}
	done := make(chan struct{})
	go func() {
		opened.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(reopenWithin):
		a.log.Error("reopen: a file has not been opened yet, its disk hangs; the reload goes on")
	}
}

// reload reads the configuration again. It does everything that can fail before it touches anything that runs. The change
// itself happens on the reader's goroutine between two batches, so that each record meets one configuration. The netlink
// socket stays open.
func (a *app) reload(ctx context.Context) error {
	cfg, err := LoadConfig(ctx, a.cfg.file)
	if err != nil {
		return err
	}
	if err := cfg.Resolve(); err != nil {
		return err
	}
	cfg.keepID(a.cfg)
	cfg.logWarnings(a.log.Named("config"))
	return a.adopt(ctx, cfg)
}

// adopt has the daemon work as cfg says.
func (a *app) adopt(ctx context.Context, cfg *Config) (err error) {
	fixed := fixedKeys(a.began, cfg)
	was := map[string]plannedOutput{}
	for _, o := range a.outputs {
		was[o.name] = o
	}
	outputs := planOutputs(cfg, a.log, a.sockets, a.tell, a.begin)
	var queues, added []*deliver.Queue
	var replaced []plannedOutput
	changed := differingKeys(a.cfg, cfg)
	running := map[string]*deliver.Queue{}
	for _, q := range a.pipeline.Queues() {
		running[q.Name()] = q
	}
	for i := range outputs {
		o := &outputs[i]
		q := running[o.name]
		if q == nil {
			q = o.queue(a.log)
			added = append(added, q)
		} else {
			if reflect.DeepEqual(was[o.name].config, o.config) {
				o.build, o.built = was[o.name].build, was[o.name].built // which runs
			} else {
				o.follow(was[o.name])
				replaced = append(replaced, *o)
			}
			if !o.equal(was[o.name]) {
				changed = append(changed, o.path)
			}
			if !reflect.DeepEqual(was[o.name].common.Spool, o.common.Spool) {
				a.log.Warn("reload: a changed spool takes effect at the next start", zap.String("output", o.name))
			}
			delete(running, o.name)
		}
		queues = append(queues, q)
	}

	sources, ran := a.planSources(cfg), a.sources
	within, cancel := context.WithTimeout(ctx, reloadWithin)
	defer cancel()
	read := a.reader.ReadUntil() // what ends from now on, outputs that go may not get
	err = a.reader.Do(within, func() error {
		keys, err := a.source.Reconfigure(cfg.inputConfig(), pushdown(cfg, outputs))
		if err != nil {
			return err
		}
		for _, key := range keys {
			fixed = append(fixed, "input.conntrack."+key)
		}
		a.choose(cfg)
		a.setSources(sources)
		a.named.Use(sources)
		for i, o := range outputs {
			queues[i].Adjust(o.filter.Compile(), o.common.Queue)
		}
		for _, o := range replaced {
			for _, q := range queues {
				if q.Name() == o.name {
					q.Replace(o.build)
				}
			}
		}
		a.pipeline.Swap(a.stages(), queues)
		return nil
	})
	if err != nil {
		return fmt.Errorf("the kernel does not take it: %w", err)
	}
	for _, key := range fixed {
		a.log.Warn("reload: takes effect at the next start", zap.String("key", key))
	}
	a.startSources(ran)
	a.keeper.Adopt()
	a.outputs, a.cfg = outputs, cfg
	spread(len(outputs))
	a.server.Configure(cfg.Metrics)
	a.own.Set(cfg.Log)
	a.log.Info("configuration reloaded", zap.Int("outputs", len(outputs)), zap.Int("new", len(added)),
		zap.Strings("changed", changed), zap.Int("gone", len(running)))
	if len(running) > 0 {
		a.retire(running, read, cfg.ShutdownTimeout)
	}
	return nil
}

// fixedKeys returns the keys outside of input and outputs that differ and stay as they were until the next start. All
// others are taken from the new configuration where they are used.
func fixedKeys(was, now *Config) []string {
	return slices.DeleteFunc(differingKeys(was, now), func(key string) bool {
		return !slices.Contains([]string{"state_directory", "live.socket", "live.talkers"}, key)
	})
}

// differingKeys returns the keys outside of outputs that differ.
func differingKeys(was, now *Config) (keys []string) {
	var walk func(was, now reflect.Value, path string)
	walk = func(was, now reflect.Value, path string) {
		switch {
		case path == "outputs" || reflect.DeepEqual(was.Interface(), now.Interface()):
		case was.Kind() == reflect.Struct:
			for _, k := range config.Keys(was.Type()) {
				walk(was.FieldByIndex(k.Index), now.FieldByIndex(k.Index), config.Join(path, k.Name))
			}
		default:
			keys = append(keys, path)
		}
	}
	walk(reflect.ValueOf(*was), reflect.ValueOf(*now), "")
	return keys
}

// retire lets queues that get nothing more deliver what they have, in the background. since is from when on.
func (a *app) retire(queues map[string]*deliver.Queue, since time.Time, within time.Duration) {
	var gone []*deliver.Queue
	for _, q := range queues {
		gone = append(gone, q)
	}
	a.keeper.Retire(gone, since)
	a.retiring.Go(func() {
		ctx, cancel := context.WithTimeout(a.end.gone, within)
		defer cancel()
		deliver.Retire(ctx, gone)
		a.keeper.Retired(gone)
	})
}
