package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input"
	"github.com/ctlogd/ctlogd/input/ctnetlink"
	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/ownflow"
	"github.com/ctlogd/ctlogd/ownlog"
	"github.com/ctlogd/ctlogd/pipeline"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
	"github.com/ctlogd/ctlogd/pipeline/mark"
	"github.com/ctlogd/ctlogd/preflight"
	"github.com/ctlogd/ctlogd/subscriber"
)

// app is the running daemon: the reader, the stages and the outputs' queues.
type app struct {
	cfg        *Config
	began      *Config // what the process has begun with: keys that are fixed stay as they are here
	log        *zap.Logger
	own        *ownlog.Log // what log writes to
	manager    *manager
	outputs    []plannedOutput  // those that run
	sockets    *ownflow.Sockets // of the outputs
	helpers    *pipeline.Helpers
	named      *subscriber.Stage
	sources    []*subscriber.Source // those that named asks; for the reader's goroutine and a reload, sourcesNow for all others
	sourceList atomic.Pointer[[]*subscriber.Source]
	selected   *pipeline.Select
	pipeline   *pipeline.Pipeline
	source     *ctnetlink.Source
	reader     *input.Reader
	keeper     *mark.Keeper
	retiring   sync.WaitGroup // queues that a reload has taken out

	end    ending
	state  state           // for snapshot
	server *monitor.Server // shows it
}

// ending is the end of the daemon, once that is told to end.
type ending struct {
	ctx  context.Context // bounds the end
	stop context.CancelFunc

	gone     context.Context // bounds the queues that a reload has taken out
	stopGone context.CancelFunc
}

// state is what snapshot shows and no other part of the daemon has.
type state struct {
	started  time.Time
	delivery string
	stopping atomic.Bool
	reloads  reloads
	kernel   kernel
}

// runDaemon logs flows as cfg says until ctx ends, then delivers what is left.
func runDaemon(ctx context.Context, cfg *Config, m *manager, log *zap.Logger, own *ownlog.Log, signals signals) error {
	kept := m.kept != nil
	a, err := newApp(cfg, m, log)
	if err != nil {
		return err
	}
	a.own = own
	var others []cap.Value
	if cfg.Input.Conntrack.Others() {
		others = append(others, cap.SYS_ADMIN) // to enter namespaces that appear later
	}
	if left, err := giveUpRights(others...); err != nil && os.Geteuid() != 0 {
		log.Warn("rights that are not needed any more stay, as they cannot be given up", zap.Error(err),
			zap.String("remedy", "SystemCallFilter=capset in the unit's drop-in"))
	} else if err != nil {
		return fmt.Errorf("give up the rights that are not needed: %w", err)
	} else if left != nil {
		log.Info("no more capabilities are kept than these; from now on files are opened as their permissions allow",
			zap.Stringer("capabilities", left))
	}
	if kept && !a.source.Adopted() {
		m.forget()
		kept = false
	}
	socket := a.socket(cfg)
	m.ready(a.source.FD())
	if !kept {
		socket = nil
	}
	a.keeper = mark.NewKeeper(mark.Options{Dir: cfg.StateDirectory, Log: log, Queues: a.pipeline.Queues,
		ReadUntil: a.reader.ReadUntil, Joined: time.Now(), Kept: socket})
	a.keeper.Start()
	a.startSources(nil)
	a.pipeline.Start()
	shown := a.show()
	a.server = newMetrics(a.snapshot, shown, log.Named("metrics"))
	a.server.Configure(cfg.Metrics)
	defer a.server.Close()
	checking, stopChecking := context.WithCancel(context.Background())
	defer stopChecking()
	go logChecks(checking, cfg, log.Named("check")) // an output's check may wait for its destination
	go watchTracking(checking, preflight.Tracking, log.Named("check"))
	log.Info("logging flows", zap.Strings("events", cfg.Input.Conntrack.Events),
		zap.String("delivery", cfg.Input.Conntrack.Delivery), zap.Int("outputs", len(a.outputs)))
	stopReloading := a.follow(ctx, signals.hangup)
	stopOpening := answer(signals.open, a.openOnRequest)

	// Reading goes on while the outputs settle: what ends meanwhile is queued, and the guard stands by.
	reading, stopReading := context.WithCancel(context.Background())
	settle := sync.OnceFunc(func() {
		stopReloading()
		stopOpening()
		a.settle()
		stopReading()
	})
	stopWaiting := context.AfterFunc(ctx, settle)
	err = a.reader.Run(reading, a.pipeline.Batch(), a.pipeline.Ingest)
	if err != nil {
		log.Error("reading ended", zap.Error(err))
	}
	stopWaiting()
	settle()                      // if it was not told to end
	for _, s := range a.sources { // no record will ask them any more
		s.Stop()
	}
	socket = a.socket(cfg)
	a.close()
	a.endSources()
	a.keepUnrecorded()
	shown.Close() // behind the last records
	a.keeper.Finish(socket)
	a.report(time.Since(a.state.started))
	return err
}

// settle begins the end: the outputs settle, within the time. No reload is under way any more.
func (a *app) settle() {
	a.end.ctx, a.end.stop = context.WithTimeout(context.Background(), a.cfg.ShutdownTimeout)
	a.log.Info("told to end, delivering what is left", zap.Duration("at_most", a.cfg.ShutdownTimeout))
	a.manager.stopping()
	a.state.stopping.Store(true)
	if openAtEnd(a.cfg.Input.Conntrack.OpenAtShutdown) {
		a.source.RequestOpen()
	}
	a.pipeline.Settle(a.end.ctx)
}

// newApp builds the whole daemon. It opens the netlink socket and nothing else: each output, and the state directory, is
// opened by a goroutine of its own, and again as long as that fails.
func newApp(cfg *Config, m *manager, log *zap.Logger) (_ *app, err error) {
	sockets := ownflow.New()
	a := &app{cfg: cfg, began: cfg, log: log, manager: m, sockets: sockets,
		state: state{started: time.Now(), delivery: cfg.Input.Conntrack.Delivery}}
	a.end.gone, a.end.stopGone = context.WithCancel(context.Background())
	a.outputs = planOutputs(cfg, log, sockets, a.tell, a.begin)
	a.state.reloads.rename(cfg.Host, cfg.Observer)
	var queues []*deliver.Queue
	for i := range a.outputs {
		queues = append(queues, a.outputs[i].queue(log))
	}

	in := cfg.inputConfig()
	a.helpers = pipeline.NewHelpers(*in.HelperEntries, in.Labels)
	a.selected = new(pipeline.Select)
	a.setSources(a.planSources(cfg))
	a.named = subscriber.NewStage(a.sources)
	a.choose(cfg)
	a.pipeline = pipeline.New(a.stages(), queues)

	opts := ctnetlink.Options{Log: log.Named("input"), Drop: pushdown(cfg, a.outputs), Remember: a.helpers.Remember,
		Kept: m.take(), Handover: m.managed(), Room: a.pipeline.Room}
	spread(len(a.outputs))
	if a.source, err = ctnetlink.Open(in, opts); err != nil {
		return nil, err
	}
	a.source.Checkpoints(cfg.Outputs.checkpoints())
	reading := input.Options{Log: log.Named("input"), FinishUntil: func() time.Time {
		until, _ := a.end.ctx.Deadline()
		return until
	}}
	if m.watchdog > 0 {
		reading.Alive = m.pet
	}
	a.reader = input.New(a.source, reading)
	return a, nil
}

// tell has a record that an output has made go to the other ones. Queues call it, which are started after the reader was made.
func (a *app) tell(r *flow.Record) bool { return a.reader.Tell(r) }

// begin builds an output that tells by what is in it what it has missed, if no mark does (unmarked): an archive. The queues'
// goroutines call it.
func (a *app) begin(name string, build func(unmarked bool) (deliver.Output, error)) (deliver.Output, error) {
	out, err := build(!a.keeper.Marked(name))
	if err == nil {
		a.keeper.Began(name)
	}
	return out, err
}

// keepUnrecorded puts into the mark what the guard has thrown away after the reader had ended.
func (a *app) keepUnrecorded() {
	from, to, gap, ok := a.source.Unrecorded()
	if !ok {
		return
	}
	for _, q := range a.pipeline.Queues() {
		q.Lose(deliver.Gap{Gap: gap, From: from.UnixNano(), To: to.UnixNano()})
	}
}

// socket returns the netlink socket as the mark describes it; nil if the kernel does not identify it. cfg is what the process
// was started with.
func (a *app) socket(cfg *Config) *mark.Socket {
	cookie, drops, err := a.source.Dropped()
	if err != nil {
		a.log.Error("what a kept socket drops until the next start will be in no gap", zap.Error(err))
		return nil
	}
	lossy := cfg.Input.Conntrack.Delivery == ctnetlink.BestEffort
	return &mark.Socket{Cookie: cookie, Drops: drops, Lossy: lossy}
}

// stages returns what a batch passes before the outputs.
func (a *app) stages() []pipeline.Stage {
	stages := []pipeline.Stage{a.helpers, a.sockets}
	if len(a.sources) > 0 {
		stages = append(stages, a.named)
	}
	return append(stages, a.selected)
}

// planSources returns the sources of subscribers that cfg asks for. Those that are there already go on; new ones do nothing
// until they are started.
func (a *app) planSources(cfg *Config) (sources []*subscriber.Source) {
	for _, c := range cfg.Enrich.Subscribers {
		i := slices.IndexFunc(a.sources, func(s *subscriber.Source) bool { return s.Is(c) })
		if i >= 0 {
			sources = append(sources, a.sources[i])
		} else {
			s := subscriber.New(c, a.log.Named("subscribers"))
			s.Large = collectSooner
			if i := slices.IndexFunc(a.sources, func(was *subscriber.Source) bool { return was.Name() == s.Name() }); i >= 0 {
				s.Follow(a.sources[i])
			}
			sources = append(sources, s)
		}
	}
	return sources
}

func (a *app) setSources(sources []*subscriber.Source) {
	a.sources = sources
	a.sourceList.Store(&sources)
}

// sourcesNow returns the sources of subscribers. Any goroutine may call it.
func (a *app) sourcesNow() []*subscriber.Source { return *a.sourceList.Load() }

// startSources starts the sources that are new, and stops those of was that are gone.
func (a *app) startSources(was []*subscriber.Source) {
	for _, s := range was {
		if !slices.Contains(a.sources, s) {
			s.Stop()
		}
	}
	for _, s := range a.sources {
		s.Start(a.began.StateDirectory)
	}
}

// endSources waits until the sources, which were told to stop, have written what the next process is to know; not for a disk
// that hangs.
func (a *app) endSources() {
	late := time.After(sourcesWithin)
	for _, s := range a.sources {
		select {
		case <-s.Kept():
		case <-late:
			a.log.Error("a source's sessions are not written, the disk hangs: the next process begins with those of the last time", zap.String("source", s.Name()))
			return
		}
	}
}

// sourcesWithin bounds how long the end waits for sources.
const sourcesWithin = 2 * time.Second

// choose sets the stages to what cfg asks for. Once the reader runs, its goroutine alone calls choose.
func (a *app) choose(cfg *Config) {
	in := cfg.inputConfig()
	a.helpers.SetLabels(in.Labels)
	a.sockets.Log.Store(!cfg.SkipOwnFlows)
	a.selected.Filter = cfg.Filter.Compile()
	if a.source != nil {
		a.source.Checkpoints(cfg.Outputs.checkpoints())
	}
	a.selected.Events = [flow.EventGap]bool{
		flow.EventOpen:      true, // there are none but those that were asked for
		flow.EventExpectNew: in.Expectations, flow.EventExpectDestroy: in.Expectations,
	}
	for _, e := range in.Events {
		a.selected.Events[eventNumber(e)] = true
	}
}

func eventNumber(name string) flow.Event {
	for e, n := range flow.EventNames {
		if n == name {
			return flow.Event(e)
		}
	}
	return 0
}

// lastClose is the least time that the queues have for what the reader brings last.
const lastClose = time.Second

// close delivers what is queued, within what is left of the time, and gives everything back, in reverse order of building.
func (a *app) close() {
	defer a.end.stop()
	ctx := a.end.ctx
	if until, _ := ctx.Deadline(); time.Until(until) < lastClose {
		least, cancel := context.WithTimeout(context.Background(), lastClose)
		defer cancel()
		ctx = least
	}
	defer context.AfterFunc(ctx, a.end.stopGone)() // whatever time a former configuration gave them
	a.pipeline.Close(ctx)
	a.retiring.Wait()
	if err := a.source.Close(); err != nil {
		a.log.Error("close netlink socket", zap.Error(err))
	}
}

// show opens the socket for tap, top and status. Logging does not depend on it.
func (a *app) show() *live.Server {
	cfg, log := a.cfg, a.log.Named("live")
	s := live.NewServer(live.Options{Pipeline: a.pipeline, Snapshot: a.snapshot, Table: ctnetlink.ReadTable,
		Talkers: cfg.Live.Talkers, Log: log,
		Encoder: func() (format.Encoder, error) {
			host, observer := a.state.reloads.names()
			return format.New("", format.Options{Host: host, Observer: observer})
		}})
	if cfg.Live.Socket != "" && cfg.Live.Socket != live.NoSocket {
		if err := s.Listen(cfg.Live.Socket); err != nil {
			log.Error("tap, top and status do not work, logging does", zap.Error(err))
		}
	}
	s.Start()
	return s
}

// report logs the sums of the whole run.
func (a *app) report(ran time.Duration) {
	in := &a.source.Stats
	a.log.Info("events read", zap.Duration("in", ran),
		zap.Uint64("new", in.Events[flow.EventNew].Load()), zap.Uint64("update", in.Events[flow.EventUpdate].Load()),
		zap.Uint64("destroy", in.Events[flow.EventDestroy].Load()),
		zap.Uint64("expectations", in.Events[flow.EventExpectNew].Load()+in.Events[flow.EventExpectDestroy].Load()),
		zap.Uint64("kernel_drops", in.Drops.Load()), zap.Uint64("malformed", in.Malformed.Load()), zap.Uint64("skipped", in.Skipped.Load()),
		zap.Uint64("truncated", in.Truncated.Load()), zap.Uint64("refused", in.Refused.Load()),
		zap.Uint64("filtered", a.selected.Dropped.Load()), zap.Uint64("helper_unknown", a.helpers.Unknown.Load()),
		zap.Uint64("helper_evictions", a.helpers.Evictions.Load()),
		zap.Uint64("open", in.Open.Load()))
	for _, q := range a.pipeline.Queues() {
		s := &q.Stats
		a.log.Info("records", zap.String("output", q.Name()), zap.Uint64("written", s.Written.Load()),
			zap.Uint64("filtered", s.Filtered.Load()), zap.Uint64("dropped", s.Dropped.Load()),
			zap.Uint64("rejected", s.Rejected.Load()), zap.Uint64("left", s.Left.Load()), zap.Uint64("errors", s.Errors.Load()))
	}
}
