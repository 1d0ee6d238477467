//go:build integration

package input

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// watched is a reader in a namespace of its own whose records are kept.
type watched struct {
	t  *testing.T
	ns *lab.NS
	*Conntrack
	stop func() // ends the reader, and returns when it has ended

	mu   sync.Mutex
	recs []flow.Record
	hold chan struct{} // the reader waits in emit while it is locked
}

func newNamespace(t *testing.T, sysctls ...string) *lab.NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and conntrack events")
	}
	ns, err := lab.New("follow")
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
func watch(t *testing.T, ns *lab.NS, cfg Config, o Options) *watched {
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
			w.Conntrack, err = Open(cfg, o)
			opened <- err
			if err != nil {
				return err
			}
			return w.Run(ctx, flow.NewBatch(256, nil), w.emit)
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

// ctCommand runs the command conntrack in the namespace.
func ctCommand(t *testing.T, ns *lab.NS, args string) {
	t.Helper()
	if _, err := exec.LookPath("conntrack"); err != nil {
		t.Skip("needs the command conntrack")
	}
	must(t, ns.Run("conntrack", strings.Fields(args)...))
}

// kinds are flows of every kind that has tuples of its own, as the command conntrack names them.
var kinds = []string{
	"-p tcp -s 10.0.0.1 -d 192.0.2.1 --sport 1001 --dport 80 --state ESTABLISHED -u ASSURED -n 203.0.113.1:2001",
	"-p udp -s 10.0.0.2 -d 192.0.2.1 --sport 1002 --dport 53",
	"-p udp -s 2001:db8::1 -d 2001:db8::2 --sport 1003 --dport 53",
	"-p icmp -s 10.0.0.4 -d 192.0.2.1 --icmp-type 8 --icmp-code 0 --icmp-id 777",
	"-p icmpv6 -s 2001:db8::1 -d 2001:db8::2 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 778",
	"-p gre -s 10.0.0.6 -d 192.0.2.1 --srckey 0x10 --dstkey 0x20",
	"-p sctp -s 10.0.0.7 -d 192.0.2.1 --sport 1007 --dport 3868 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2",
	"-p udplite -s 10.0.0.8 -d 192.0.2.1 --sport 1008 --dport 53",
	"-p udp -s 10.0.0.9 -d 192.0.2.1 --sport 1009 --dport 53 -w 5",
	"-p udp -s 10.0.0.10 -d 192.0.2.1 --sport 1010 --dport 53 --orig-zone 6",
	"-p udp -s 10.0.0.11 -d 192.0.2.1 --sport 1011 --dport 53 --reply-zone 7",
}

// ended tells a record of an inferred end by the original tuple, or what else it is.
func ended(r *flow.Record) string {
	switch {
	case r.Event == flow.EventGap:
		g := r.Extra.Gap
		return fmt.Sprintf("gap %s %d", g.Cause, g.Lost)
	case r.Event == flow.EventDestroy && r.Has&flow.Inferred != 0:
		return "inferred " + r.Orig.SrcAddr().String()
	}
	return fmt.Sprintf("%s %s", r.Event, r.Orig.SrcAddr())
}

func summary(recs []flow.Record) (s []string) {
	for i := range recs {
		s = append(s, ended(&recs[i]))
	}
	sort.Strings(s)
	return s
}

// TestFollowKinds deletes flows of every kind that were born while nobody listened: the kernel reports none of it. Two
// stay, one of each way to be asked for.
func TestFollowKinds(t *testing.T) {
	ns := newNamespace(t)
	var want []string
	silently(t, ns, func() {
		for _, k := range kinds {
			ctCommand(t, ns, "-I "+k+" -t 3600")
			want = append(want, "inferred "+strings.Fields(k[strings.Index(k, "-s "):])[1])
		}
		ctCommand(t, ns, "-I -p udp -s 10.1.0.1 -d 192.0.2.1 --sport 1 --dport 53 -t 3600")
		ctCommand(t, ns, "-I -p udp -s 10.1.0.2 -d 192.0.2.1 --sport 1 --dport 53 -t 3600 -w 9")
	})
	sort.Strings(want)

	w := watch(t, ns, Config{FollowInterval: time.Second}, Options{})
	until(t, "all are followed", func() bool { return w.Stats.Follow.Followed.Load() == int64(len(kinds)+2) })
	must(t, newFloodIn(t, ns).Create(0, 100)) // among so many others they are asked for
	asked := w.Stats.Follow.Asked.Load()
	until(t, "all were asked for", func() bool { return w.Stats.Follow.Asked.Load() >= asked+uint64(len(kinds)+2) })
	if got := summary(w.records()); len(got) > 0 {
		t.Fatalf("records of flows that are there: %v", got)
	}
	before := time.Now()
	for _, k := range kinds {
		// Without the attributes that do not tell a flow.
		ctCommand(t, ns, "-D "+deletable(k))
	}
	until(t, "all are told of", func() bool { return len(w.records()) >= len(kinds) })
	asked = w.Stats.Follow.Asked.Load()
	until(t, "the others were asked for", func() bool { return w.Stats.Follow.Asked.Load() >= asked+4 })
	w.stop()
	if diff := cmp.Diff(want, summary(w.records())); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if n := w.Stats.Events[flow.EventDestroy].Load(); n > 0 {
		t.Errorf("the kernel has reported %d ends: the test has tested nothing", n)
	}
	for _, r := range w.records() {
		if r.Start == 0 || r.Stamp < r.Start || r.Stop <= r.Stamp || r.Stop < before.UnixNano() || r.Received < r.Stop {
			t.Errorf("%s: started %d, last seen %d, gone %d, received %d", ended(&r), r.Start, r.Stamp, r.Stop, r.Received)
		}
		if r.Has&flow.HasCounters == 0 || r.Has&flow.ByRequest != 0 || r.EndReason() != flow.EndInferred {
			t.Errorf("%s: has %b", ended(&r), r.Has)
		}
		if r.Orig.SrcAddr().String() == "10.0.0.1" && (r.NAT() != flow.NATSrc || r.StateName() != "established") {
			t.Errorf("%s: NAT %s, state %s", ended(&r), r.NAT(), r.StateName())
		}
	}
}

// deletable returns what of a flow's options the command takes when it deletes.
func deletable(k string) string {
	f := strings.Fields(k)
	var keep []string
	for i := 0; i+1 < len(f); i += 2 {
		switch f[i] {
		case "--state", "-u", "-n", "--orig-vtag", "--reply-vtag":
		default:
			keep = append(keep, f[i], f[i+1])
		}
	}
	return strings.Join(keep, " ")
}

// TestFollowEnds ends flows in the ways that there are.
func TestFollowEnds(t *testing.T) {
	ns := newNamespace(t)
	flow1 := func(i int) string { return fmt.Sprintf("-p udp -s 10.0.0.%d -d 192.0.2.1 --sport 7 --dport 53", i) }
	silently(t, ns, func() {
		ctCommand(t, ns, "-I "+flow1(1)+" -t 3")    // runs out
		ctCommand(t, ns, "-I "+flow1(2)+" -t 3600") // is taken again by one that stays
		ctCommand(t, ns, "-I "+flow1(3)+" -t 3600") // is taken again by one that reports its end
		ctCommand(t, ns, "-I "+flow1(4)+" -t 3600") // stays
	})
	w := watch(t, ns, Config{FollowInterval: 2 * time.Second}, Options{})
	until(t, "all are followed", func() bool { return w.Stats.Follow.Followed.Load() == 4 })
	ctCommand(t, ns, "-I "+flow1(5)+" -t 3600") // is born under our eyes
	for _, i := range []int{2, 3} {
		ctCommand(t, ns, "-D "+flow1(i))
		ctCommand(t, ns, "-I "+flow1(i)+" -t 3600")
	}
	ctCommand(t, ns, "-D "+flow1(3))
	ctCommand(t, ns, "-D "+flow1(5))
	until(t, "all is told", func() bool { return len(w.records()) >= 5 })
	time.Sleep(3 * time.Second) // for what should not come
	w.stop()
	want := []string{
		"destroy 10.0.0.3", "destroy 10.0.0.5", "inferred 10.0.0.1", "inferred 10.0.0.2", "inferred 10.0.0.3",
	}
	if diff := cmp.Diff(want, summary(w.records())); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if n := w.Stats.Follow.Followed.Load(); n != 1 {
		t.Errorf("%d followed, want the one that stays", n)
	}
}

// TestFollowCap has more flows than it may follow.
func TestFollowCap(t *testing.T) {
	ns := newNamespace(t)
	f := newFloodIn(t, ns)
	must(t, f.Create(0, 5000))
	w := watch(t, ns, Config{FollowEntries: new(1000)}, Options{})
	until(t, "the gap is on record", func() bool { return len(w.records()) > 0 })
	w.stop()
	if diff := cmp.Diff([]string{"gap untracked 4000"}, summary(w.records())); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if n := w.Stats.Follow.Followed.Load(); n != 1000 {
		t.Errorf("%d followed, want 1000", n)
	}
}

// TestFollowAcrossRestart ends flows before and after a restart, and while nobody runs.
func TestFollowAcrossRestart(t *testing.T) {
	ns := newNamespace(t)
	f := newFloodIn(t, ns)
	const n = 3000
	silently(t, ns, func() { must(t, f.Create(0, n)) })
	dir := t.TempDir()
	cfg := Config{FollowInterval: 2 * time.Second}
	w := watch(t, ns, cfg, Options{StateDir: dir})
	until(t, "all are followed", func() bool { return w.Stats.Follow.Followed.Load() == n })
	must(t, f.Delete(0, 1000))
	until(t, "the first are told of", func() bool { return len(w.records()) >= 1000 })
	w.stop()
	must(t, f.Delete(1000, 2000))
	next := watch(t, ns, cfg, Options{StateDir: dir})
	must(t, f.Delete(2000, 2500))
	until(t, "the rest is told of", func() bool { return len(w.records())+len(next.records()) >= 2500 })
	next.stop()
	seen := map[int]int{}
	for _, r := range append(w.records(), next.records()...) {
		i, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort)
		if !ok || r.Has&flow.Inferred == 0 {
			t.Fatalf("a record of something else: %s", ended(&r))
		}
		seen[i]++
	}
	for i := range n {
		if want := min(max(0, (2500-i+2499)/2500), 1); seen[i] != want {
			t.Fatalf("flow %d has %d records, want %d", i, seen[i], want)
		}
	}
}

// TestReconcileOverrun loses events for want of buffer: every flow that a dump had shown has its record all the same.
func TestReconcileOverrun(t *testing.T) {
	ns := newNamespace(t, "events=1")
	f := newFloodIn(t, ns)
	const n = 30_000
	w := watch(t, ns, Config{
		Delivery: BestEffort, ReceiveBuffer: minBuffer, Reconcile: true, FollowInterval: 5 * time.Second,
	}, Options{})
	must(t, f.Create(0, n))
	until(t, "all are followed", func() bool { return w.Stats.Follow.Followed.Load() == n })
	w.hold <- struct{}{} // the reader is stuck with its next batch
	must(t, f.Flush())
	time.Sleep(time.Second)
	<-w.hold
	ends := func() (ends map[int]int, inferred int) {
		ends = map[int]int{}
		for _, r := range w.records() {
			if i, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort); ok && r.Event == flow.EventDestroy {
				ends[i]++
				if r.Has&flow.Inferred != 0 {
					inferred++
				}
			}
		}
		return ends, inferred
	}
	until(t, "all are told of", func() bool { e, _ := ends(); return len(e) >= n })
	w.stop()
	all, made := ends()
	if drops := w.Stats.Drops.Load(); drops == 0 || made == 0 {
		t.Errorf("%d events dropped, %d ends inferred: the test has tested nothing", drops, made)
	}
	t.Logf("%d events dropped, %d ends inferred", w.Stats.Drops.Load(), made)
	for i, k := range all {
		if k != 1 {
			t.Fatalf("flow %d ended %d times", i, k)
		}
	}
}

// TestDumpsUnderChurn reads the table over and over while flows come and go in it: nobody ends twice, though a dump may
// show a flow whose end has been read.
func TestDumpsUnderChurn(t *testing.T) {
	ns := newNamespace(t, "events=1")
	f := newFloodIn(t, ns)
	must(t, f.Create(0, 20_000)) // they stay, so that a dump takes its time
	w := watch(t, ns, Config{Reconcile: true, FollowInterval: 100 * time.Millisecond}, Options{Log: zap.NewNop()})
	const n = 320_000
	for i := 20_000; i < n; i += 2000 { // each lives for some milliseconds
		must(t, f.Create(i, i+2000))
		must(t, f.Delete(i, i+2000))
	}
	until(t, "all ends are read", func() bool { return w.Stats.Events[flow.EventDestroy].Load() >= n-20_000 })
	time.Sleep(goneFor + time.Second) // for what should not come
	w.stop()
	ends := map[int]int{}
	for _, r := range w.records() {
		if r.Has&flow.Inferred != 0 {
			t.Fatalf("%s, which has reported its end or is there", ended(&r))
		}
		if i, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort); ok {
			ends[i]++
		}
	}
	if len(ends) != n-20_000 {
		t.Errorf("%d ends, want %d", len(ends), n-20_000)
	}
	if dumped := w.Stats.Dumped.Load(); dumped < 100_000 {
		t.Errorf("%d flows dumped: the test has tested nothing", dumped)
	}
	t.Logf("%d flows dumped, %d found their end while followed", w.Stats.Dumped.Load(), w.Stats.Follow.Reported.Load())
}

// TestOpenRecords asks for open records in each of the three ways.
func TestOpenRecords(t *testing.T) {
	ns := newNamespace(t)
	f := newFloodIn(t, ns)
	const n = 5000
	must(t, f.Create(0, n))
	time.Sleep(time.Second)
	atEnd := true
	w := watch(t, ns, Config{Interim: time.Second, Follow: FollowNever}, Options{OpenAtEnd: func() bool { return atEnd }})
	count := func() (open map[int]int) {
		open = map[int]int{}
		for _, r := range w.records() {
			i, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort)
			if !ok || r.Event != flow.EventOpen || r.Start == 0 || r.Has&flow.HasCounters == 0 || r.Has&flow.ByRequest != 0 {
				t.Fatalf("unexpected: %s, has %b", ended(&r), r.Has)
			}
			open[i]++
		}
		return open
	}
	until(t, "the first interim records are there", func() bool { return len(count()) == n })
	w.stop()
	before := len(w.records())
	if before%n != 0 || before < 2*n {
		t.Errorf("%d records of %d flows", before, n)
	}

	w = watch(t, ns, Config{Follow: FollowNever}, Options{OpenAtEnd: func() bool { return !atEnd }})
	w.RequestOpen()
	until(t, "the flows are written on request", func() bool { return len(w.records()) == n })
	w.stop()
	if got := len(w.records()); got != n {
		t.Errorf("%d records, want %d", got, n)
	}

	w = watch(t, ns, Config{Follow: FollowNever}, Options{})
	w.RequestOpen()
	w.stop() // a request is brought to its end
	if got := len(w.records()); got != n {
		t.Errorf("%d records, want %d", got, n)
	}

	// An output that has no room holds the dump up, not for ever.
	room := 0
	w = watch(t, ns, Config{Follow: FollowNever}, Options{
		OpenAtEnd: func() bool { return atEnd }, Room: func() bool { room++; return false }, EndWithin: 10 * roomWait,
	})
	w.stop()
	if got := len(w.records()); got == 0 || got >= n {
		t.Errorf("%d records, want some, but not all %d", got, n)
	}
	if room == 0 {
		t.Error("nobody was asked for room")
	}
}

// largeTable makes room in the connection tracking table, which is the machine's, and puts it back. It waits for others
// who change it.
func largeTable(t *testing.T, entries int) {
	t.Helper()
	const dir = "/proc/sys/net/netfilter/"
	lock, err := os.Open(dir + "nf_conntrack_max")
	must(t, err)
	t.Cleanup(func() { lock.Close() })
	must(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))
	for key, value := range map[string]int{"nf_conntrack_max": entries, "nf_conntrack_buckets": 1 << 20} {
		before, err := os.ReadFile(dir + key)
		must(t, err)
		t.Cleanup(func() { must(t, os.WriteFile(dir+key, before, 0)) })
		must(t, os.WriteFile(dir+key, fmt.Append(nil, value), 0))
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
	return startDaemonIn(t, ns, binary, dir)
}

// startDaemonIn starts one with the configuration that is there.
func startDaemonIn(t *testing.T, ns *lab.NS, binary, dir string) *daemon {
	t.Helper()
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

// look tells what the daemon has used: CPU since the last look, memory now and at most, disk.
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
	disk := int64(0)
	if fi, err := os.Stat(storeFile(d.dir)); err == nil {
		disk = fi.Sys().(*syscall.Stat_t).Blocks * 512
	}
	d.t.Logf("%-45s CPU %6s  RSS %3d MiB (at most %3d)  disk %3d MiB", what, (cpu - d.spent).Round(10*time.Millisecond),
		size("VmRSS"), size("VmHWM"), disk>>20)
	d.spent = cpu
}

// TestFollowMany shows what many flows cost: with CTLOGD_LONG=1 a million, whose figures stand in
// docs/reliability-follow.md.
func TestFollowMany(t *testing.T) {
	n, interval, asking := 100_000, "10s", 10*time.Second
	if os.Getenv("CTLOGD_LONG") != "" {
		n, interval, asking = 1_000_000, "30s", 30*time.Second
	}
	ns := newNamespace(t)
	binary := filepath.Join(t.TempDir(), "ctlogd")
	if out, err := exec.Command("go", "build", "-o", binary, "../cmd/ctlogd").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	largeTable(t, 2*n)
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
	silently(t, ns, func() { must(t, f.Create(0, n)) })

	d = startDaemon(t, ns, binary, "{follow: never}")
	d.logged("read the connection tracking table", 1)
	d.look("a dump, for helpers alone")
	must(t, d.cmd.Process.Signal(syscall.SIGUSR1))
	d.logged(`"for": "open records"`, 1)
	until(t, "all are written", func() bool { return lines(d, "open") >= n })
	d.look("a dump, with open records as JSON lines")
	if got := lines(d, "gap"); got > 0 {
		t.Errorf("%d gaps", got)
	}
	d.stop()

	d = startDaemon(t, ns, binary, "{follow_interval: "+interval+"}")
	d.logged("following flows", 1)
	d.look("a dump, taking up flows to follow")
	d.logged(`"for": "following"`, 1)
	d.look("the next dump, all are there")
	clock := time.Now()
	must(t, f.Flush())
	until(t, "all are told of", func() bool { return lines(d, "destroy") >= n })
	d.look(fmt.Sprintf("all gone, told after %s", time.Since(clock).Round(time.Second)))
	out, _ := exec.Command("grep", "-c", `"end_reason":"inferred"`, d.dir+"/flows").Output()
	if got := strings.TrimSpace(string(out)); got != strconv.Itoa(n) {
		t.Errorf("%s of the ends were inferred", got)
	}
	d.stop()
	silently(t, ns, func() { must(t, f.Create(0, n)) })

	d = startDaemon(t, ns, binary, "{reconcile: true, follow_interval: 10s, follow: always}")
	d.logged("following flows", 1)
	d.look("reconcile: the first dump")
	d.logged(`"for": "following"`, 1)
	d.look("reconcile: another dump")
	d.stop()

	clock = time.Now()
	d = startDaemonIn(t, ns, binary, d.dir)
	d.look(fmt.Sprintf("a start with a list of them, after %s", time.Since(clock).Round(10*time.Millisecond)))
	d.stop()

	// A quarter of the table is older than the daemon: they are asked for, one by one.
	must(t, f.Flush())
	silently(t, ns, func() { must(t, f.Create(0, n/4)) })
	d = startDaemon(t, ns, binary, "{follow_interval: "+interval+"}")
	d.logged("following flows", 1)
	must(t, f.Create(n/4, n))
	d.logged(`"for": "following"`, 1) // which shows how many others there are
	time.Sleep(5 * time.Second)
	d.look("")
	time.Sleep(asking)
	d.look(fmt.Sprintf("%d questions in %s", n/4, asking))
}
