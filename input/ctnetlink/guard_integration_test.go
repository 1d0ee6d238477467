//go:build integration

package ctnetlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// guardTable is how large the table is. With CTLOGD_LONG=1 it is larger, and so is all that is measured by it.
var guardTable = 20_000

func init() {
	if os.Getenv("CTLOGD_LONG") != "" {
		guardTable = 50_000
	}
}

// scaled returns n of a table of 50,000 entries as it is of guardTable.
func scaled(n int) int { return n * guardTable / 50_000 }

// smallTable makes the connection tracking table one of guardTable entries, which concerns the whole machine, and puts
// it back.
func smallTable(t *testing.T) { setTable(t, guardTable, 0) }

func setTable(t *testing.T, entries, buckets int) {
	t.Helper()
	undo, err := lab.SetTable(entries, buckets)
	must(t, err)
	t.Cleanup(func() { must(t, undo()) })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// guarded is a reader that is stuck from its first batch on until it is released.
type guarded struct {
	t *testing.T
	*Source
	reader  *input.Reader
	ns      *lab.NS
	flood   *lab.Flood
	stuck   chan struct{} // closed when it is
	release chan struct{} // to be closed
	stop    func()        // ends the reader, and closes its source
	cancel  func()
	ended   chan error

	// Valid when the reader has ended.
	ends map[int]int // how often each flow's end was read
	gaps []flow.Record
	lost []flow.Gap
}

func newGuarded(t *testing.T, mark int) *guarded { return newGuardedWith(t, mark, Options{}) }

// newGuardedWith has the source read the events of namespaces, none for its own alone.
func newGuardedWith(t *testing.T, mark int, o Options, namespaces ...string) *guarded {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and conntrack events")
	}
	smallTable(t)
	ns := newFloodNS(t)
	g := &guarded{t: t, ns: ns, stuck: make(chan struct{}), release: make(chan struct{}), ends: map[int]int{}}
	var err error
	g.flood, err = ns.NewFlood()
	must(t, err)
	t.Cleanup(func() { _ = g.flood.Flush(); g.flood.Close() })

	cfg := Config{TableGuard: &mark, ReceiveBuffer: minBuffer, Namespaces: namespaces}
	cfg.Defaults()
	must(t, ns.Do(func() error {
		g.Source, err = Open(cfg, o)
		return err
	}))
	g.reader = input.New(g.Source, input.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.ended = cancel, make(chan error)
	go func() { g.ended <- g.reader.Run(ctx, flow.NewBatch(256, nil), g.emit) }()
	g.stop = func() {
		g.end()
		must(t, g.Close())
	}
	return g
}

func newFloodNS(t *testing.T) *lab.NS {
	t.Helper()
	ns, err := lab.New("guard")
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	for _, key := range []string{"timestamp", "events"} {
		must(t, ns.Sysctl("net.netfilter.nf_conntrack_"+key, "1"))
	}
	return ns
}

func (g *guarded) emit(b *flow.Batch) *flow.Batch {
	for i := range b.Records {
		r := &b.Records[i]
		switch r.Event {
		case flow.EventGap:
			g.gaps, g.lost = append(g.gaps, *r), append(g.lost, r.Extra.Gap)
		case flow.EventDestroy:
			if n, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort); ok {
				g.ends[n]++
			}
		}
	}
	b.Reset()
	select {
	case <-g.stuck:
	default:
		close(g.stuck)
	}
	<-g.release
	return b
}

func (g *guarded) tableCount(t *testing.T) int {
	t.Helper()
	s, err := g.ns.ReadSysctl("net.netfilter.nf_conntrack_count")
	must(t, err)
	n, err := strconv.Atoi(s)
	must(t, err)
	return n
}

// connect makes flows from <= i < to, so many a second, and returns how many the table took.
func (g *guarded) connect(t *testing.T, from, to, rate int) (in int) {
	t.Helper()
	const step = 100
	next := time.Now()
	for i := from; i < to; i += step {
		for j := i; j < i+step; j++ {
			switch err := g.flood.Create(j, j+1); {
			case err == nil:
				in++
			case !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ENOSPC):
				t.Fatal(err)
			}
		}
		next = next.Add(step * time.Second / time.Duration(rate))
		time.Sleep(time.Until(next))
	}
	return in
}

// fill makes the reader stuck and n ended flows wait for it.
func (g *guarded) fill(t *testing.T, n int) (from time.Time) {
	t.Helper()
	must(t, g.flood.Churn(0, 1))
	<-g.stuck
	must(t, g.flood.Create(1, n))
	from = time.Now()
	must(t, g.flood.Delete(1, n))
	return from
}

// keepsOpen has ended flows fill the table, whose guard is at 90, and new ones come at a rate. The rate is what the room above
// the mark bears: the kernel may take a second, and the guard some time more, until it lets go of what it holds back.
func (g *guarded) keepsOpen(t *testing.T, dead, fresh, rate int) {
	t.Helper()
	from := g.fill(t, dead)
	g.settle(t, guardTable*90/100)
	t.Logf("after %v the table is below its mark", time.Since(from))
	in := g.connect(t, 100_000, 100_000+fresh, rate)
	if in != fresh {
		t.Errorf("of %d new connections %d got in", fresh, in)
	}
	t.Logf("new connections: %d of %d; slices: %d; ends given up: %d; table: %d", in, fresh, g.Stats.GuardSheds.Load(),
		g.Stats.GuardLost.Load(), g.tableCount(t))
	close(g.release)
	g.settle(t, in)
	to := time.Now()
	g.stop()
	g.ledger(t, dead, from, to)
}

func TestGuardKeepsTheTableOpen(t *testing.T) {
	newGuarded(t, 90).keepsOpen(t, scaled(49_000), scaled(6_000), scaled(4_000))
}

// Ends go on to come, at 20,000 a second, while the guard sheds: what it counts is exact all the same.
func TestGuardCountsExactlyUnderChurn(t *testing.T) {
	const step = 100
	dead, churn, rate := scaled(46_000), scaled(30_000), scaled(20_000)
	g := newGuarded(t, 60)
	from := g.fill(t, dead)
	g.settle(t, guardTable*60/100)
	next := time.Now()
	for i := dead; i < dead+churn; i += step {
		must(t, g.flood.Churn(i, i+step))
		next = next.Add(step * time.Second / time.Duration(rate))
		time.Sleep(time.Until(next))
	}
	t.Logf("slices: %d; ends given up: %d; table: %d", g.Stats.GuardSheds.Load(), g.Stats.GuardLost.Load(),
		g.tableCount(t))
	close(g.release)
	g.settle(t, 0)
	to := time.Now()
	g.stop()
	g.ledger(t, dead+churn, from, to)
}

// A process that gets next to no CPU guards the table nevertheless.
func TestGuardStarvedOfCPU(t *testing.T) {
	dead, fresh, rate := scaled(49_000), scaled(4_000), scaled(2_000)
	if os.Getenv("CTLOGD_TEST_STARVED") != "" {
		runStarved(dead)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces, cgroups and conntrack events")
	}
	// Where the machine has much else to do, the flows come so slowly that even this reader keeps up.
	for range 3 {
		sheds := uint64(0)
		t.Run("once", func(t *testing.T) { sheds = starve(t, dead, fresh, rate) })
		if sheds > 0 || t.Failed() {
			return
		}
	}
	t.Error("the guard has thrown nothing away: the test has tested nothing")
}

// starve has a reader that gets no CPU run while the table fills, and returns how often the guard has thrown ends away.
func starve(t *testing.T, dead, fresh, rate int) (sheds uint64) {
	smallTable(t)
	g := &guarded{ns: newFloodNS(t)}
	var err error
	g.flood, err = g.ns.NewFlood()
	must(t, err)
	t.Cleanup(func() { _ = g.flood.Flush(); g.flood.Close() })

	cmd := exec.Command(os.Args[0], "-test.run=^TestGuardStarvedOfCPU$")
	cmd.Env = append(os.Environ(), "CTLOGD_TEST_STARVED=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	must(t, g.ns.Start(cmd))
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for deadline := time.Now().Add(time.Minute); !lab.Listens(cmd.Process.Pid, lab.GroupDestroy); {
		if time.Now().After(deadline) {
			t.Fatal("the reader does not come to listen")
		}
		time.Sleep(time.Millisecond)
	}
	feed, release, err := lab.Starve(cmd.Process.Pid)
	must(t, err)
	t.Cleanup(release)
	must(t, g.flood.Create(0, dead))
	must(t, g.flood.Delete(0, dead))
	g.settle(t, guardTable*90/100)
	in := g.connect(t, 100_000, 100_000+fresh, rate)
	if in != fresh {
		t.Errorf("of %d new connections %d got in", fresh, in)
	}
	must(t, feed())
	g.settle(t, in)
	must(t, cmd.Process.Signal(unix.SIGTERM))
	must(t, cmd.Wait())
	var missing, again, inexact int
	var lost uint64
	if _, err := fmt.Fscan(&out, &missing, &again, &lost, &inexact, &sheds); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	t.Logf("new connections: %d of %d; of %d ends %d are missing, %d were read twice; %d slices", in, fresh, dead,
		missing, again, sheds)
	if uint64(missing) != lost || inexact > 0 {
		t.Errorf("%d ends are missing, and the gaps say %d (%d of them not known)", missing, lost, inexact)
	}
	return sheds
}

// runStarved is the reader that gets no CPU. It reads until it is told to end, and writes down what it has read of the
// flows 0 <= i < n.
func runStarved(n int) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	closed := make(chan struct{})
	close(closed)
	g := &guarded{stuck: closed, release: closed, ends: map[int]int{}}
	cfg := Config{ReceiveBuffer: minBuffer}
	cfg.Defaults()
	var err error
	if g.Source, err = Open(cfg, Options{}); err == nil {
		g.reader = input.New(g.Source, input.Options{})
		err = g.reader.Run(ctx, flow.NewBatch(256, nil), g.emit)
	}
	if err != nil {
		panic(err)
	}
	missing, again, inexact, lost := 0, 0, 0, uint64(0)
	for i := range n {
		if k := g.ends[i]; k == 0 {
			missing++
		} else {
			again += k - 1
		}
	}
	for _, l := range g.lost {
		lost += l.Lost
		if !l.LostKnown {
			inexact++
		}
	}
	fmt.Println(missing, again, lost, inexact, g.Stats.GuardSheds.Load())
}

// Without the guard new connections fail: the test of the guard tests something.
func TestTableFillsWithoutGuard(t *testing.T) {
	dead, fresh := scaled(49_000), scaled(20_000)
	g := newGuarded(t, 0)
	g.fill(t, dead)
	in := g.connect(t, 100_000, 100_000+fresh, scaled(20_000))
	if in > guardTable-dead+scaled(5000) {
		t.Errorf("of %d new connections %d got in, although the table was full", fresh, in)
	}
	t.Logf("new connections: %d of %d", in, fresh)
	close(g.release)
	g.settle(t, in)
	g.stop()
	if len(g.gaps) != 0 || len(g.ends) != dead {
		t.Errorf("%d of %d ends were read, and there are %d gaps", len(g.ends), dead, len(g.gaps))
	}
}

// settle waits until the kernel holds nothing back beside living flows.
func (g *guarded) settle(t *testing.T, living int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); g.tableCount(t) > living; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the table has %d entries, want %d", g.tableCount(t), living)
		}
	}
}

// ledger holds what was read to what has ended: flows 0 <= i < n, all of them in [from, to].
func (g *guarded) ledger(t *testing.T, n int, from, to time.Time) {
	t.Helper()
	missing, again := 0, 0
	for i := range n {
		switch k := g.ends[i]; {
		case k == 0:
			missing++
		case k > 1:
			again += k - 1
		}
	}
	var lost uint64
	for i, r := range g.gaps {
		lost += g.lost[i].Lost
		t.Logf("gap: %v lost %d (known: %v), %v to %v", g.lost[i].Cause, g.lost[i].Lost, g.lost[i].LostKnown,
			time.Duration(r.Start-from.UnixNano()), time.Duration(r.Stop-from.UnixNano()))
		if g.lost[i].Cause != flow.CauseGuard || !g.lost[i].LostKnown {
			t.Errorf("gap %+v, want one of the guard's, with what was lost", g.lost[i])
		}
	}
	if len(g.gaps) == 0 || g.gaps[0].Start > from.UnixNano() || g.gaps[len(g.gaps)-1].Stop > to.UnixNano() {
		t.Errorf("%d gaps, which do not span the ends that are missing", len(g.gaps))
	}
	if uint64(missing) != lost || g.Stats.GuardLost.Load() != lost {
		t.Errorf("%d ends are missing, and the gaps say %d, the counter %d", missing, lost, g.Stats.GuardLost.Load())
	}
	t.Logf("of %d ends %d are missing, %d were read twice", n, missing, again)
}
