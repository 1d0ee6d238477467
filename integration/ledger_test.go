//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestLedger has flows end at a steady rate while one thing after another goes wrong, and then holds what the outputs
// got against what the generator did: every flow is on record, or in a gap that covers its end, and a gap that says how
// many it lost says it exactly.
//
// CTLOGD_LEDGER=full has each trial last a minute instead of seconds. CTLOGD_SEED repeats a random mix.
func TestLedger(t *testing.T) {
	need(t)
	room(t, 2_000_000)
	full := os.Getenv("CTLOGD_LEDGER") == "full"
	for _, s := range []struct {
		name string
		run  func(*testing.T, bool)
	}{
		{"stopped for 5 s", testStopped},
		{"killed and started again", testKilled},
		{"reloaded every second", testReloaded},
		{"the disk full", testDiskFull},
		{"a collector down", testCollectorDown},
		{"killed with records on their way", testKilledOnTheWay},
		{"the spool full", testSpoolFull},
		{"killed between delivery and cursor", testKilledAtCursor},
		{"a random mix", testMix},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t, full) })
	}
}

// The reader is stopped as a whole: the kernel holds the ends back, and nothing is missing.
func testStopped(t *testing.T, full bool) {
	r := newTrial(t, jsonlOutput{})
	for r.goesOn(full, 6*time.Second) {
		r.signal(t, syscall.SIGSTOP)
		time.Sleep(5 * time.Second)
		r.signal(t, syscall.SIGCONT)
		time.Sleep(time.Second)
	}
	r.settle(t)
	r.whole(t)
}

// Without systemd the socket dies with the process: what ends until the next one listens is in the gap.
func testKilled(t *testing.T, full bool) {
	r := newTrial(t, jsonlOutput{})
	for r.goesOn(full, 8*time.Second) {
		time.Sleep(1500 * time.Millisecond)
		r.kill(t)
	}
	r.settle(t)
	r.expect(t, "crash")
	r.cost(t, r.books[0])
}

// SIGHUP brings a configuration that is different each time and selects the same.
func testReloaded(t *testing.T, full bool) {
	r := newTrial(t, jsonlOutput{})
	for r.goesOn(full, 8*time.Second) {
		time.Sleep(time.Second)
		r.reload(t)
	}
	eventually(t, "each reload is done", func() bool {
		return strings.Count(r.stderr.String(), "configuration reloaded") == r.reloads
	})
	r.settle(t)
	r.whole(t)
}

// The disk of two logs is full: the one with a spool misses nothing, the other puts on record what it misses.
func testDiskFull(t *testing.T, full bool) {
	disk := newDisk(t)
	r := newTrial(t, jsonlOutput{name: "bare", disk: disk}, jsonlOutput{name: "spooled", disk: disk, spool: "1GiB"})
	time.Sleep(time.Second)
	disk.fill(t)
	r.during(full, 4*time.Second, 20*time.Second)
	disk.free(t)
	r.during(full, 3*time.Second, 39*time.Second)
	r.settle(t)
	bare, spooled := r.books[0], r.books[1]
	// When there is room again, the queue is full for a moment yet.
	causes := slices.DeleteFunc(bare.causes(), func(c string) bool { return c == "queue_full" })
	if bare.missing == 0 || !slices.Equal(causes, []string{"disk_full"}) {
		t.Errorf("%s: %d flows are missing, for %v, want some, for [disk_full]", bare.name, bare.missing, bare.causes())
	}
	if spooled.missing+len(spooled.gaps) != 0 {
		t.Errorf("%s: %d flows are missing, and there are %d gaps", spooled.name, spooled.missing, len(spooled.gaps))
	}
}

// A collector cannot be reached; the file beside it gets all that there is meanwhile.
func testCollectorDown(t *testing.T, full bool) {
	r := newTrial(t, jsonlOutput{}, ipfixOutput{})
	time.Sleep(time.Second)
	r.collector.cut(t)
	r.during(full, 4*time.Second, 30*time.Second)
	ended, log := r.churn.ended(), lineCounter{path: r.books[0].file}
	eventually(t, "the file has what ended while the collector was down", func() bool { return log.count(t) >= ended })
	heard := r.collector.count()
	r.collector.join(t)
	t.Logf("the file had all of %d flows when the collector had %d", ended, heard)
	r.during(full, 3*time.Second, 29*time.Second)
	r.settle(t)
	r.whole(t)
}

// A collector is cut off, and the process killed that would have sent again what is on its way: it is in a gap, with what
// ended until the next process listened.
func testKilledOnTheWay(t *testing.T, full bool) {
	r := newTrial(t, jsonlOutput{}, ipfixOutput{unspooled: true})
	file, collector := r.books[0], r.books[1]
	for r.goesOn(full, 8*time.Second) {
		time.Sleep(time.Second)
		heard := r.collector.count()
		r.collector.cut(t)
		time.Sleep(time.Duration(rand.N(1500)) * time.Millisecond)
		r.kill(t)
		r.collector.join(t)
		eventually(t, "the collector hears again", func() bool { return r.collector.count() > heard })
	}
	r.settle(t)
	if !slices.Equal(file.causes(), []string{"crash"}) {
		t.Errorf("%s: gaps for %v, want [crash]", file.name, file.causes())
	}
	if collector.missing <= file.missing {
		t.Errorf("%d flows are missing, and %d in the file: nothing was on its way", collector.missing, file.missing)
	}
	r.cost(t, file)
	r.cost(t, collector)
}

// Two logs' disk stays full until their spools are, too.
func testSpoolFull(t *testing.T, full bool) {
	disk := newDisk(t)
	r := newTrial(t, jsonlOutput{name: "newest", disk: disk, spool: "4MiB"},
		jsonlOutput{name: "oldest", disk: disk, spool: "4MiB", whenFull: "drop_oldest"})
	time.Sleep(time.Second)
	disk.fill(t)
	r.during(full, 7*time.Second, 20*time.Second)
	disk.free(t)
	r.during(full, 2*time.Second, 39*time.Second)
	r.settle(t)
	for _, b := range r.books {
		if b.missing == 0 || !slices.Equal(b.causes(), []string{"spool_full"}) {
			t.Errorf("%s: %d flows are missing, for %v, want some, for [spool_full]", b.name, b.missing, b.causes())
		}
	}
}

// A process is killed after the output has taken records from the spool and before the spool knows: they come twice,
// and none is missing. Others are killed while they fill it.
func testKilledAtCursor(t *testing.T, full bool) {
	disk := newDisk(t)
	r := newTrial(t, jsonlOutput{disk: disk, spool: "1GiB"})
	book := r.books[0]
	time.Sleep(time.Second)
	disk.fill(t)
	for r.goesOn(full, 6*time.Second) {
		time.Sleep(1500 * time.Millisecond)
		r.kill(t)
	}
	r.churn.stop(t)
	r.signal(t, syscall.SIGKILL)
	<-r.exited
	disk.free(t)

	for caught := 0; caught < 3 && spoolWaits(t, book.spool); {
		log := lineCounter{path: book.file, offset: wholeLines(t, book.file)}
		cursor := spoolCursor(t, book.spool)
		r.start(t)
		for spoolWaits(t, book.spool) {
			time.Sleep(rand.N(3 * time.Millisecond))
			// A signal that comes during a write takes effect behind it, which is where it is wanted.
			r.signal(t, syscall.SIGSTOP)
			awaitStopped(t, r.Process.Pid)
			took, committed := log.count(t), spoolCursor(t, book.spool)-cursor
			if took > int(committed) {
				t.Logf("killed with %d records taken and %d committed", took, committed)
				caught++
				break
			}
			r.signal(t, syscall.SIGCONT)
		}
		r.signal(t, syscall.SIGKILL)
		<-r.exited
	}
	r.start(t)
	r.settle(t)
	r.expect(t, "crash")
	if book.again == 0 {
		t.Error("no flow came twice: no process was killed between delivery and cursor")
	}
}

// All of it, in an order that nobody chose.
func testMix(t *testing.T, full bool) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CTLOGD_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	t.Logf("CTLOGD_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	between := func(low, high int) time.Duration { return time.Duration(low+random.IntN(high-low)) * time.Millisecond }

	disk := newDisk(t)
	r := newTrial(t, jsonlOutput{name: "bare"}, jsonlOutput{name: "disk", disk: disk}, ipfixOutput{},
		jsonlOutput{name: "spooled", disk: disk, spool: "64MiB"}, jsonlOutput{name: "small", disk: disk, spool: "4MiB"})
	faults := []struct {
		name string
		run  func()
	}{
		{"stop", func() {
			r.signal(t, syscall.SIGSTOP)
			time.Sleep(between(200, 5000))
			r.signal(t, syscall.SIGCONT)
		}},
		{"stop and go", func() {
			for range 30 {
				r.signal(t, syscall.SIGSTOP)
				time.Sleep(between(0, 40))
				r.signal(t, syscall.SIGCONT)
				time.Sleep(between(0, 40))
			}
		}},
		{"kill", func() { r.kill(t) }},
		{"kill while stopped", func() {
			r.signal(t, syscall.SIGSTOP)
			time.Sleep(between(200, 2000))
			r.kill(t)
		}},
		{"kill as it catches up", func() {
			r.signal(t, syscall.SIGSTOP)
			time.Sleep(between(2000, 5000))
			r.signal(t, syscall.SIGCONT)
			time.Sleep(between(0, 1500))
			r.kill(t)
		}},
		{"reload", func() { r.reload(t) }},
		{"fill the disk", func() { disk.fill(t) }},
		{"free the disk", func() { disk.free(t) }},
		{"end and start", func() { r.stop(t); r.start(t) }},
		{"cut the collector off", func() {
			r.collector.cut(t)
			time.Sleep(between(100, 3000))
			if random.IntN(2) == 0 {
				r.reload(t)
			}
			if random.IntN(2) == 0 {
				r.kill(t)
			}
			r.collector.join(t)
		}},
	}
	for r.goesOn(full, 16*time.Second) {
		time.Sleep(between(0, 1500))
		f := faults[random.IntN(len(faults))]
		t.Logf("%6.2f s: %s", time.Since(r.began).Seconds(), f.name)
		f.run()
	}
	disk.free(t)
	r.settle(t)
}

// trial is one daemon, or one after the other, with flows that end all the time.
type trial struct {
	*process
	ns        *lab.NS
	binary    string
	dir       string
	outputs   []ledgerOutput
	books     []*book
	collector *collector // nil: none of the outputs is one
	churn     *flowChurn
	began     time.Time
	kills     []outage
	reloads   int // done by the process that runs
	variant   int // of the configuration
}

// ledgerOutput is an output's part of the configuration.
type ledgerOutput interface {
	kind() string
	config(r *trial, filter string) string
	book(t *testing.T, r *trial) *book
}

// jsonlOutput is a file, on a disk of its own if there is one, with a spool if it has a size.
type jsonlOutput struct {
	name, spool, whenFull string
	disk                  *disk
}

func (o jsonlOutput) kind() string { return "jsonl" }

func (o jsonlOutput) file(r *trial) string {
	dir := r.dir
	if o.disk != nil {
		dir = o.disk.dir
	}
	return filepath.Join(dir, "flows"+o.name+".jsonl")
}

func (o jsonlOutput) spoolDir(r *trial) string { return filepath.Join(r.dir, "spool"+o.name) }

func (o jsonlOutput) config(r *trial, filter string) string {
	c := fmt.Sprintf("{path: %s, filter: %s", o.file(r), filter)
	if o.spool != "" {
		c += fmt.Sprintf(", spool: {path: %s, max_size: %s", o.spoolDir(r), o.spool)
		if o.whenFull != "" {
			c += ", when_full: " + o.whenFull
		}
		c += "}"
	}
	return c + "}"
}

func (o jsonlOutput) book(_ *testing.T, r *trial) *book {
	return &book{name: "jsonl:" + o.file(r), file: o.file(r), spool: o.spoolDir(r)}
}

// ipfixOutput is a collector over TCP, with a spool unless told otherwise.
type ipfixOutput struct{ unspooled bool }

func (ipfixOutput) kind() string { return "ipfix" }

func (o ipfixOutput) config(r *trial, filter string) string {
	c := fmt.Sprintf("{address: tcp://127.0.0.1:4739, dial_timeout: 1s, filter: %s", filter)
	if !o.unspooled {
		c += fmt.Sprintf(", spool: {path: %s, max_size: 1GiB}", filepath.Join(r.dir, "spool-ipfix"))
	}
	return c + "}"
}

func (ipfixOutput) book(t *testing.T, r *trial) *book {
	r.collector = newCollector(t, r.ns)
	return &book{name: "ipfix:tcp:127.0.0.1:4739", collector: r.collector}
}

// newTrial starts the daemon and the flows.
func newTrial(t *testing.T, outputs ...ledgerOutput) *trial {
	t.Helper()
	ns, flood := newFloodNS(t)
	r := &trial{ns: ns, binary: buildDaemon(t, os.Getenv("CTLOGD_RACE") != ""), dir: t.TempDir(), outputs: outputs,
		churn: &flowChurn{flood: flood}}
	must(t, os.Mkdir(filepath.Join(r.dir, "state"), 0o700))
	for _, o := range outputs {
		r.books = append(r.books, o.book(t, r))
	}
	r.configure(t)
	r.start(t)
	r.began = time.Now()
	r.churn.start(t)
	return r
}

// configure writes the next of several configurations that all accept every flow.
func (r *trial) configure(t *testing.T) {
	t.Helper()
	filters := []string{ // of which each drops new, that is of no flow of the ledger's
		"[{action: drop, match: {event: new}}]",
		"[{action: accept, match: {event: destroy, proto: [tcp, udp]}}, {action: drop}]",
		"[{action: drop, match: {event: new}}, {action: drop, match: {family: ipv6}}]",
		"[{action: drop, match: {src: 192.0.2.0/24}}, {action: accept, match: {event: destroy}}, {action: drop}]",
	}
	events := []string{"[destroy]", "[destroy]", "[destroy, new]"}
	n := r.variant
	r.variant++
	text := fmt.Sprintf("state_directory: %s/state\ninput: {conntrack: {events: %s, labels: %v}}\n"+
		"filter: %s\noutputs:\n", r.dir, events[n%len(events)], n%2 == 1, filters[n%len(filters)])
	for _, kind := range []string{"jsonl", "ipfix"} {
		list := ""
		for _, o := range r.outputs {
			if o.kind() == kind {
				list += "    - " + o.config(r, filters[(n+1)%len(filters)]) + "\n"
			}
		}
		if list != "" {
			text += "  " + kind + ":\n" + list
		}
	}
	must(t, os.WriteFile(filepath.Join(r.dir, "ctlogd.yaml"), []byte(text), 0o600))
}

// start starts a daemon, and returns when it logs flows.
func (r *trial) start(t *testing.T) {
	t.Helper()
	r.process = start(t, r.ns, exec.Command(r.binary, "run", "-c", filepath.Join(r.dir, "ctlogd.yaml")))
	r.reloads = 0
	eventually(t, "flows are logged", func() bool {
		if r.ended() {
			t.Fatalf("%s has ended: %v\n%s", r.Path, r.err, &r.stderr)
		}
		return strings.Contains(r.stderr.String(), "logging flows")
	})
}

func (r *trial) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	must(t, r.Process.Signal(s))
}

// outage is from when a process was killed to when the next one logged flows (ns since 1970).
type outage struct{ from, to int64 }

// kill kills the daemon and starts another.
func (r *trial) kill(t *testing.T) {
	t.Helper()
	k := outage{from: time.Now().UnixNano()}
	r.signal(t, syscall.SIGKILL)
	<-r.exited
	r.start(t)
	k.to = time.Now().UnixNano()
	r.kills = append(r.kills, k)
}

// cost tells what the kills cost an output: what a process had read and not written, of which a gap knows that it was
// since the last mark, and what ended while there was none.
func (r *trial) cost(t *testing.T, b *book) {
	t.Helper()
	held, away := 0, 0
	for _, s := range r.churn.steps {
		k := slices.IndexFunc(r.kills, func(k outage) bool { return s.from <= k.to })
		for i := s.first; i < s.end && k >= 0; i++ {
			switch {
			case b.seen[i] > 0:
			case s.to < r.kills[k].from:
				held++
			default:
				away++
			}
		}
	}
	var windows, downs []int64
	for _, k := range r.kills {
		window := int64(0)
		for _, g := range b.gaps {
			if g.from < k.from && k.from < g.to {
				window = max(window, k.from-g.from)
			}
		}
		windows, downs = append(windows, window/1e6), append(downs, (k.to-k.from)/1e6)
	}
	slices.Sort(windows)
	slices.Sort(downs)
	n := len(r.kills)
	t.Logf("%s: %d kills; each cost %d flows that had ended before it, in a window of %d ms, and %d in the %d ms "+
		"until the next process logged flows (times are medians)", b.name, n, held/n, windows[n/2], away/n, downs[n/2])
}

// reload changes the configuration and has the daemon take it.
func (r *trial) reload(t *testing.T) {
	t.Helper()
	r.configure(t)
	r.signal(t, syscall.SIGHUP)
	r.reloads++
}

// goesOn says that the trial has not lasted as long as it should, which is a minute if full.
func (r *trial) goesOn(full bool, brief time.Duration) bool {
	if full {
		brief = time.Minute
	}
	return time.Since(r.began) < brief
}

func (r *trial) during(full bool, brief, long time.Duration) {
	if full {
		brief = long
	}
	time.Sleep(brief)
}

// settle ends the flows and, when all that the kernel has is delivered, the daemon, and does the books.
func (r *trial) settle(t *testing.T) {
	t.Helper()
	r.churn.stop(t)
	eventually(t, "the kernel holds nothing back", func() bool {
		n, err := r.ns.ReadSysctl("net.netfilter.nf_conntrack_count")
		must(t, err)
		return n == "0"
	})
	// A flow that ends now comes last.
	first, behind := r.churn.next, slices.Clone(r.books)
	for deadline := time.Now().Add(3 * time.Minute); len(behind) > 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%s has not got the last flow in three minutes", behind[0].name)
			break
		}
		if r.ended() {
			t.Fatalf("%s has ended: %v", r.Path, r.err)
		}
		r.churn.flows(t, 1)
		behind = slices.DeleteFunc(behind, func(b *book) bool { return b.hasSince(t, first) })
	}
	r.process.stop(t)
	if r.collector != nil {
		r.collector.stop(t)
	}
	for _, b := range r.books {
		b.read(t, r.churn)
		b.audit(t, r.churn)
	}
}

// whole expects that nothing is missing and nothing says that it is.
func (r *trial) whole(t *testing.T) {
	t.Helper()
	for _, b := range r.books {
		if b.missing+len(b.gaps) != 0 {
			t.Errorf("%s: %d flows are missing, and there are %d gaps, want neither", b.name, b.missing, len(b.gaps))
		}
	}
}

// expect expects gaps of one cause alone.
func (r *trial) expect(t *testing.T, cause string) {
	t.Helper()
	for _, b := range r.books {
		if !slices.Equal(b.causes(), []string{cause}) {
			t.Errorf("%s: gaps for %v, want [%s]", b.name, b.causes(), cause)
		}
	}
}
