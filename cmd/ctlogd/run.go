package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/output/jsonl"
	"github.com/ctlogd/ctlogd/ownlog"
)

// runRun is the daemon from its command line to its end; ctx ends with the first signal.
func runRun(ctx context.Context, file string, stderr io.Writer) error {
	collect(400) // the heap is small and the events leave no garbage: collecting it less often costs a few MiB
	signals := catchSignals()
	m := findManager()
	defer m.abandon()
	cfg, err := LoadConfig(ctx, file)
	if ctx.Err() != nil {
		return nil // told to end before there was anything to do
	}
	if err != nil {
		return err
	}
	if err := cfg.Resolve(); err != nil {
		return err
	}
	log, own := ownlog.New(cfg.Log, stderr)
	defer own.Close()
	defer zap.RedirectStdLog(log.Named("std"))() // what a library prints would wait for a reader of standard error
	m.log = log.Named("manager")
	cfg.logWarnings(log.Named("config"))
	if !slices.ContainsFunc(cfg.Outputs.JSONL, func(o JSONLConfig) bool { return o.Path == jsonl.Stdout }) {
		// The flows' log goes on when the reader of this log has gone. With records on standard output it would not.
		signal.Ignore(unix.SIGPIPE)
	}
	return runDaemon(ctx, cfg, m, log, own, signals)
}

// processors is how many there are to run on.
var processors = runtime.GOMAXPROCS(0)

// spread has Go code run on one processor for each output, and on no more than there are, unless the environment says on
// how many. A reader and a worker take turns on one within milliseconds: records are encoded where they are still in the
// cache, and no thread on another processor, which has packets to forward, is woken for every batch. What blocks, such
// as a disk, does not hold it.
func spread(outputs int) {
	if _, given := os.LookupEnv("GOMAXPROCS"); !given {
		runtime.GOMAXPROCS(max(1, min(outputs, processors)))
	}
}

// collect has garbage collected when there is so much of it in percent of what is no garbage, unless the environment says when.
func collect(percent int) {
	if _, given := os.LookupEnv("GOGC"); !given {
		debug.SetGCPercent(percent)
	}
}

// collectSooner is for large tables of subscribers. They have next to no pointers, so that looking through them costs nothing,
// and each change of them leaves garbage: four times as much as they are would be hundreds of MiB.
var collectSooner = sync.OnceFunc(func() { collect(50) })

// signals are those that ask the daemon for something. They are caught as long as the process lives: one that comes during
// the start is answered once the daemon runs, and one that comes during the end does not kill it. So nothing ever stops
// catching them: the kernel may deliver one late.
type signals struct{ hangup, open chan os.Signal }

func catchSignals() signals {
	s := signals{hangup: make(chan os.Signal, 1), open: make(chan os.Signal, 1)}
	signal.Notify(s.hangup, unix.SIGHUP)
	signal.Notify(s.open, unix.SIGUSR1)
	return s
}

// answer calls do at each signal until it is stopped, which waits for a call that is under way.
func answer(signals <-chan os.Signal, do func()) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-signals:
				do()
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
