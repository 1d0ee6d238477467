//go:build integration

package ctnetlink

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// watched is a reader in a namespace of its own whose records are kept.
type watched struct {
	t  *testing.T
	ns *lab.NS
	*Source
	reader *input.Reader
	stop   func() // ends the reader, and returns when it has ended

	mu   sync.Mutex
	recs []flow.Record
	hold chan struct{} // the reader waits in emit while it is locked
}

func newNamespace(t *testing.T, sysctls ...string) *lab.NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and conntrack events")
	}
	ns, err := lab.New("table")
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	for _, s := range append([]string{"timestamp=1", "acct=1", "events=2"}, sysctls...) {
		key, value, _ := strings.Cut(s, "=")
		must(t, ns.Sysctl("net.netfilter.nf_conntrack_"+key, value))
	}
	return ns
}

// silently makes flows as they are born under nf_conntrack_events=2 while nobody listens. That cannot be had here: a
// listener in any namespace counts. Under 0 the flows are the same, they never report anything.
func silently(t *testing.T, ns *lab.NS, make func()) {
	t.Helper()
	must(t, ns.Sysctl("net.netfilter.nf_conntrack_events", "0"))
	make()
	must(t, ns.Sysctl("net.netfilter.nf_conntrack_events", "2"))
}

func newFloodIn(t *testing.T, ns *lab.NS) *lab.Flood {
	t.Helper()
	f, err := ns.NewFlood()
	must(t, err)
	t.Cleanup(func() { _ = f.Flush(); f.Close() })
	return f
}

// watch starts a reader. The goroutine that runs it stays in the namespace.
func watch(t *testing.T, ns *lab.NS, cfg Config, o Options, ro ...input.Options) *watched {
	t.Helper()
	cfg.Defaults()
	if o.Log == nil {
		o.Log = zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel))
	}
	w := &watched{t: t, ns: ns, hold: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	opened, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		ended <- ns.Do(func() (err error) {
			w.Source, err = Open(cfg, o)
			if err == nil {
				w.reader = input.New(w.Source, append(ro, input.Options{})[0])
			}
			opened <- err
			if err != nil {
				return err
			}
			return w.reader.Run(ctx, flow.NewBatch(256, nil), w.emit)
		})
	}()
	must(t, <-opened)
	w.stop = sync.OnceFunc(func() {
		cancel()
		must(t, <-ended)
		must(t, w.Close())
	})
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *watched) emit(b *flow.Batch) *flow.Batch {
	w.hold <- struct{}{}
	w.mu.Lock()
	for _, r := range b.Records {
		if r.Extra != nil {
			r.Extra = new(*r.Extra)
		}
		w.recs = append(w.recs, r)
	}
	w.mu.Unlock()
	<-w.hold
	b.Reset()
	return b
}

func (w *watched) records() []flow.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.recs
}

// until waits until ok. Only a machine that hangs meets the limit.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// described tells which record it is.
func described(r *flow.Record) string {
	if r.Event == flow.EventGap {
		return fmt.Sprintf("gap %s %d", r.Extra.Gap.Cause, r.Extra.Gap.Lost)
	}
	return fmt.Sprintf("%s %s", r.Event, r.Orig.SrcAddr())
}

// TestOlderThanTheReader makes flows while nobody listens, under nf_conntrack_events=2: each gets an open record at the
// start, and a gap has their number. Flows that the reader sees being born do not.
func TestOlderThanTheReader(t *testing.T) {
	ns := newNamespace(t)
	f := newFloodIn(t, ns)
	const n = 3000
	silently(t, ns, func() { must(t, f.Create(0, n)) })
	time.Sleep(10 * time.Millisecond) // the clock of a start is no finer than a tick
	before := time.Now()
	w := watch(t, ns, Config{}, Options{})
	until(t, "the gap is on record", func() bool {
		recs := w.records()
		return len(recs) > 0 && recs[len(recs)-1].Event == flow.EventGap
	})
	time.Sleep(time.Until(before.Add(reportMargin)))
	must(t, f.Create(n, n+100))
	must(t, f.Flush())
	until(t, "the flows that began later have ended", func() bool { return w.Stats.Events[flow.EventDestroy].Load() == 100 })
	w.stop()
	open := map[int]int{}
	for _, r := range w.records() {
		i, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort)
		switch {
		case r.Event == flow.EventGap:
			want := flow.Gap{Cause: flow.CauseUntracked, Lost: n, LostKnown: true}
			if r.Extra.Gap != want || r.Start < before.UnixNano() || r.Stop != 0 {
				t.Errorf("gap %+v from %d to %d, want %+v from %d on", r.Extra.Gap, r.Start, r.Stop, want, before.UnixNano())
			}
		case ok && r.Event == flow.EventOpen && r.Start != 0 && r.Has&flow.HasCounters != 0:
			open[i]++
		case ok && r.Event == flow.EventDestroy && i >= n:
		default:
			t.Fatalf("unexpected: %s, has %b", described(&r), r.Has)
		}
	}
	for i := range n {
		if open[i] != 1 {
			t.Fatalf("flow %d has %d open records, want 1", i, open[i])
		}
	}
	if len(open) != n {
		t.Errorf("%d flows have open records, want %d", len(open), n)
	}
}

// TestOlderThanTheReaderReports is the counterpart: under nf_conntrack_events=1 all flows report, and nothing is written.
func TestOlderThanTheReaderReports(t *testing.T) {
	ns := newNamespace(t, "events=1")
	f := newFloodIn(t, ns)
	const n = 500
	must(t, f.Create(0, n))
	w := watch(t, ns, Config{}, Options{Remember: func(*flow.Record) {}})
	until(t, "the table is read", func() bool { return w.Stats.Dumped.Load() >= n })
	must(t, f.Flush())
	until(t, "all ends are read", func() bool { return w.Stats.Events[flow.EventDestroy].Load() == n })
	w.stop()
	for _, r := range w.records() {
		if r.Event != flow.EventDestroy {
			t.Fatalf("unexpected: %s", described(&r))
		}
	}
}

// TestDumpsUnderChurn reads the table over and over while flows come and go in it: no flow is open after its end, though a
// dump may show one whose end has been read.
func TestDumpsUnderChurn(t *testing.T) {
	ns := newNamespace(t, "events=1")
	f := newFloodIn(t, ns)
	must(t, f.Create(0, 20_000)) // they stay, so that a dump takes its time
	w := watch(t, ns, Config{}, Options{Log: zap.NewNop()})
	const n = 80_000
	for i := 20_000; i < n; i += 2000 { // each lives for some milliseconds
		w.RequestOpen()
		must(t, f.Create(i, i+2000))
		must(t, f.Delete(i, i+2000))
	}
	until(t, "all ends are read", func() bool { return w.Stats.Events[flow.EventDestroy].Load() >= n-20_000 })
	w.stop()
	ended, open := map[int]bool{}, 0
	for _, r := range w.records() {
		i, _ := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort)
		switch r.Event {
		case flow.EventDestroy:
			ended[i] = true
		case flow.EventOpen:
			if ended[i] {
				t.Fatalf("flow %d is open after its end", i)
			}
			if i >= 20_000 {
				open++
			}
		}
	}
	if len(ended) != n-20_000 {
		t.Errorf("%d ends, want %d", len(ended), n-20_000)
	}
	if open == 0 {
		t.Error("no dump has shown a flow that came and went: the test has tested nothing")
	}
	t.Logf("%d flows dumped, %d open records of flows that came and went", w.Stats.Dumped.Load(), open)
}

// counted is a Sink that counts records.
type counted struct {
	gaps
	n int
}

func (c *counted) Put(*flow.Record) { c.n++ }

// TestCrowdedDump has more flows end beside a dump than it may remember, while no output has room and no time passes: the dump
// goes on nevertheless, to its end.
func TestCrowdedDump(t *testing.T) {
	ns := newNamespace(t, "events=1")
	const n = 2000
	must(t, newFloodIn(t, ns).Create(0, n))
	s := newSource("destroy")
	s.opts.Room = func() bool { return false }
	now := time.Now()
	must(t, ns.Do(func() (err error) {
		s.table.dump, err = newDump(job{purpose: forOpen, reading: &reading{left: 1}}, now)
		return err
	}))
	d, sink := s.table.dump, &counted{}
	until(t, "the dump has begun", func() bool { s.table.turn(now, sink); return d.asked == nil })
	ends, chunks := 0, 0
	for s.table.dump != nil {
		before := ends
		for !s.table.turn(now, sink) {
			for range 64 {
				ends++
				s.table.ended(&flow.Record{Event: flow.EventDestroy, ID: uint32(ends)})
			}
			if len(d.ended) > maxEnded || ends-before > maxEnded {
				t.Fatalf("%d flows have ended, %d are remembered, and the dump does not go on", ends-before, len(d.ended))
			}
		}
		chunks++
	}
	if sink.n != n || chunks < 3 {
		t.Errorf("%d open records in %d chunks, want %d in several", sink.n, chunks, n)
	}
}

// TestOpenRecords asks for open records in each of the three ways.
func TestOpenRecords(t *testing.T) {
	ns := newNamespace(t, "events=1")
	f := newFloodIn(t, ns)
	const n = 5000
	must(t, f.Create(0, n))
	time.Sleep(time.Second)
	w := watch(t, ns, Config{Interim: time.Second}, Options{})
	count := func() (open map[int]int) {
		open = map[int]int{}
		for _, r := range w.records() {
			i, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort)
			if !ok || r.Event != flow.EventOpen || r.Start == 0 || r.Has&flow.HasCounters == 0 || r.Has&flow.ByRequest != 0 {
				t.Fatalf("unexpected: %s, has %b", described(&r), r.Has)
			}
			open[i]++
		}
		return open
	}
	until(t, "the first interim records are there", func() bool { return len(count()) == n })
	w.RequestOpen()
	w.stop()
	before := len(w.records())
	if before%n != 0 || before < 2*n {
		t.Errorf("%d records of %d flows", before, n)
	}

	w = watch(t, ns, Config{}, Options{})
	w.RequestOpen()
	until(t, "the flows are written on request", func() bool { return len(w.records()) == n })
	w.stop()
	if got := len(w.records()); got != n {
		t.Errorf("%d records, want %d", got, n)
	}

	w = watch(t, ns, Config{}, Options{})
	w.RequestOpen()
	w.stop() // a request is brought to its end
	if got := len(w.records()); got != n {
		t.Errorf("%d records, want %d", got, n)
	}

	// An output that has no room holds the dump up, not for ever.
	room := 0
	w = watch(t, ns, Config{}, Options{Room: func() bool { room++; return false }}, input.Options{FinishUntil: func() time.Time { return time.Now().Add(10 * roomWait) }})
	w.RequestOpen()
	w.stop()
	if got := len(w.records()); got == 0 || got >= n {
		t.Errorf("%d records, want some, but not all %d", got, n)
	}
	if room == 0 {
		t.Error("nobody was asked for room")
	}
}

// daemon is the program itself, run in a namespace.
type daemon struct {
	t     *testing.T
	cmd   *exec.Cmd
	dir   string
	log   string
	spent time.Duration // CPU, at the last look
}

func startDaemon(t *testing.T, ns *lab.NS, binary, input string) *daemon {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/ctlogd.yaml", fmt.Appendf(nil, "state_directory: %s\ninput: {conntrack: %s}\n"+
		"outputs: {jsonl: [{path: %s/flows}]}\nlog: {level: debug}\n", dir, input, dir), 0o600))
	log, err := os.CreateTemp(dir, "log")
	must(t, err)
	defer log.Close()
	d := &daemon{t: t, dir: dir, log: log.Name()}
	d.cmd = exec.Command(binary, "run", "-c", dir+"/ctlogd.yaml")
	d.cmd.Stderr = log
	must(t, ns.Start(d.cmd))
	t.Cleanup(d.stop)
	d.logged("logging flows", 1)
	return d
}

func (d *daemon) stop() {
	if d.cmd.ProcessState == nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		_ = d.cmd.Wait()
	}
}

// logged waits until the daemon has logged a text n times.
func (d *daemon) logged(text string, n int) {
	d.t.Helper()
	until(d.t, fmt.Sprintf("%q is logged", text), func() bool {
		b, err := os.ReadFile(d.log)
		must(d.t, err)
		return strings.Count(string(b), text) >= n
	})
}

// look tells what the daemon has used: CPU since the last look, memory now and at most.
func (d *daemon) look(what string) {
	d.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	must(d.t, err)
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')'):]))
	user, err := strconv.Atoi(f[12])
	must(d.t, err)
	system, err := strconv.Atoi(f[13])
	must(d.t, err)
	cpu := time.Duration(user+system) * 10 * time.Millisecond // clock ticks of 1/100 s
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	must(d.t, err)
	size := func(key string) int {
		_, line, _ := strings.Cut(string(status), key+":")
		n, err := strconv.Atoi(strings.Fields(line)[0])
		must(d.t, err)
		return n >> 10
	}
	d.t.Logf("%-45s CPU %6s  RSS %3d MiB (at most %3d)", what, (cpu - d.spent).Round(10*time.Millisecond), size("VmRSS"), size("VmHWM"))
	d.spent = cpu
}

// TestDumpMany shows what reading a table of a million flows costs, with CTLOGD_LONG=1. The figures stand in
// docs/reliability-open.md.
func TestDumpMany(t *testing.T) {
	if os.Getenv("CTLOGD_LONG") == "" {
		t.Skip("measures, with CTLOGD_LONG=1; TestOpenRecords and TestDumpsUnderChurn have the cases")
	}
	const n = 1_000_000
	ns := newNamespace(t, "events=1")
	binary := filepath.Join(t.TempDir(), "ctlogd")
	if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/ctlogd").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	setTable(t, 2*n, 1<<20)
	f := newFloodIn(t, ns)
	lines := func(d *daemon, event string) int {
		out, err := exec.Command("grep", "-c", `"event":"`+event+`"`, d.dir+"/flows").Output()
		if err != nil && len(out) == 0 {
			t.Fatal(err)
		}
		k, err := strconv.Atoi(strings.TrimSpace(string(out)))
		must(t, err)
		return k
	}

	d := startDaemon(t, ns, binary, "{}")
	d.logged("read the connection tracking table", 1)
	d.look("empty table")
	d.stop()
	must(t, f.Create(0, n))

	d = startDaemon(t, ns, binary, "{}")
	d.logged("read the connection tracking table", 1)
	d.look("a dump, for helpers alone")
	must(t, d.cmd.Process.Signal(syscall.SIGUSR1))
	d.logged(`"for": "open records"`, 1)
	until(t, "all are written", func() bool { return lines(d, "open") >= n })
	d.look("a dump, with open records as JSON lines")
	if got := lines(d, "gap"); got > 0 {
		t.Errorf("%d gaps", got)
	}
}

// TestCheckpoints: each reading that is made for archives has an open record of every flow that is older than the readings
// are apart, and of no other; a record behind them says from when to when it was read, and that it was whole.
func TestCheckpoints(t *testing.T) {
	const every, n, more = time.Second, 3000, 500
	ns := newNamespace(t, "events=1")
	f := newFloodIn(t, ns)
	must(t, f.Create(0, n))
	w := watch(t, ns, Config{}, Options{})
	w.Checkpoints(every)
	over := func() (readings int) {
		for _, r := range w.records() {
			if r.Checkpoint() == flow.CheckpointWhole {
				readings++
			}
		}
		return readings
	}
	until(t, "a reading is over", func() bool { return over() > 0 })
	must(t, f.Create(n, n+more))
	seen := over()
	until(t, "two more are over, and none of it is young", func() bool { return over() >= seen+3 })
	w.Checkpoints(0)
	w.stop()

	started := map[int]int64{}
	var readings []flow.Record
	var open []map[int]bool // by reading
	under := map[int]bool{}
	for _, r := range w.records() {
		i, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort)
		switch r.Checkpoint() {
		case flow.CheckpointOpen:
			if !ok || under[i] || r.Start == 0 || r.Received-r.Start < int64(every) {
				t.Fatalf("unexpected: %s", described(&r))
			}
			under[i], started[i] = true, r.Start
		case flow.CheckpointWhole:
			if r.Start > r.Stop || r.Timeout != uint32(every/time.Second) {
				t.Errorf("a reading from %d to %d of flows of %d s", r.Start, r.Stop, r.Timeout)
			}
			readings, open = append(readings, r), append(open, under)
			under = map[int]bool{}
		default:
			t.Fatalf("unexpected: %s", described(&r))
		}
	}
	if len(started) != n+more {
		t.Errorf("%d flows have an open record, want %d", len(started), n+more)
	}
	for k, r := range readings {
		for i, start := range started {
			if start <= r.Start-int64(every) && !open[k][i] {
				t.Fatalf("reading %d has no record of flow %d, which was %v old", k, i, time.Duration(r.Start-start))
			}
		}
	}
	t.Logf("%d readings of %d flows", len(readings), n+more)
}
