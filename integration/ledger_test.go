//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
	"github.com/ctlogd/ctlogd/output/ipfix/listen"
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
	if bare.missing == 0 || !slices.Equal(bare.causes(), []string{"disk_full"}) {
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

	caught := 0
	for tries := 0; caught < 3 && tries < 60; tries++ {
		// What the last one has left of a line is cut off at the next start.
		lines, cursor := bytes.Count(readFile(t, book.file), []byte{'\n'}), spoolCursor(t, book.spool)
		r.start(t)
		// A signal that comes during a write takes effect behind it, which is where it is wanted.
		for !r.ended() && caught < 3 {
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			r.signal(t, syscall.SIGSTOP)
			awaitStopped(t, r.Process.Pid)
			done := spoolCursor(t, book.spool) - cursor
			if took := uint64(bytes.Count(readFile(t, book.file), []byte{'\n'}) - lines); took > done && done > 0 {
				t.Logf("killed with %d records taken and %d committed", took, done)
				caught++
				break
			}
			if !spoolWaits(t, book.spool) {
				caught = max(caught, 1) // emptied: too fast for more
			}
			r.signal(t, syscall.SIGCONT)
			if !spoolWaits(t, book.spool) {
				break
			}
		}
		if !spoolWaits(t, book.spool) {
			break
		}
		r.signal(t, syscall.SIGKILL)
		<-r.exited
	}
	if r.ended() {
		r.start(t)
	}
	r.settle(t)
	r.expect(t, "crash")
	r.cost(t, book)
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
			heard := r.collector.count()
			r.collector.join(t)
			// Only with the collector can a process that is killed take with it what was in flight to it.
			eventually(t, "the collector hears again", func() bool { return r.collector.count() > heard })
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

// ipfixOutput is a collector over TCP, with a spool.
type ipfixOutput struct{}

func (ipfixOutput) kind() string { return "ipfix" }

func (ipfixOutput) config(r *trial, filter string) string {
	return fmt.Sprintf("{address: tcp://127.0.0.1:4739, dial_timeout: 1s, filter: %s, spool: {path: %s, max_size: 64MiB}}",
		filter, filepath.Join(r.dir, "spool-ipfix"))
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
	filters := []string{
		"[]",
		"[{action: accept, match: {proto: [tcp, udp]}}, {action: drop}]",
		"[{action: drop, match: {family: ipv6}}]",
		"[{action: drop, match: {src: 192.0.2.0/24}}, {action: accept, match: {nat: snat}}, {action: drop}]",
	}
	events := []string{"[destroy]", "[destroy]", "[destroy, new]"}
	n := r.variant
	r.variant++
	// A record of another event would be no flow of the ledger's.
	text := fmt.Sprintf("state_directory: %s/state\ninput: {conntrack: {events: %s, labels: %v}}\nfilter: %s\noutputs:\n",
		r.dir, events[n%len(events)], n%2 == 1, filters[n%len(filters)])
	for _, kind := range []string{"jsonl", "ipfix"} {
		list := ""
		for _, o := range r.outputs {
			if o.kind() == kind {
				filter := strings.Replace(filters[(n+1)%len(filters)], "[", "[{action: drop, match: {event: new}}, ", 1)
				list += "    - " + o.config(r, strings.Replace(filter, ", ]", "]", 1)) + "\n"
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

// cost tells what the kills cost an output: what a process had read and not written, of which the gap knows the time
// since the last mark, and what ended while there was none.
func (r *trial) cost(t *testing.T, b *book) {
	t.Helper()
	held, away := 0, 0
	var window, down int64
	for _, k := range r.kills {
		from := k.from
		for _, g := range b.gaps {
			if g.cause == "crash" && g.from < k.from && g.to > k.from {
				from = max(min(from, g.from), k.from-10e9)
			}
		}
		window += k.from - from
		down += k.to - k.from
		for _, s := range r.churn.steps {
			if s.from < from-nearby || s.from > k.to {
				continue
			}
			for i := s.first; i < s.end; i++ {
				switch {
				case b.seen[i] > 0:
				case s.to < k.from:
					held++
				default:
					away++
				}
			}
		}
	}
	n := int64(len(r.kills))
	t.Logf("%s: %d kills; each cost %d flows that had ended before it, in a window of %d ms, and %d in the %d ms until the "+
		"next process listened", b.name, n, int64(held)/n, window/n/1e6, int64(away)/n, down/n/1e6)
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

// churnRate is how many flows end in a second.
const churnRate = 25_000

// flowChurn has flows end at a steady rate, and keeps the ledger.
type flowChurn struct {
	flood *lab.Flood
	next  int    // the number of the next flow
	steps []step // those that ended, in order
	began time.Time
	ran   time.Duration
	quit  chan struct{}
	err   chan error

	mu sync.Mutex // guards next and steps while the flows go on
}

// step is a few flows that ended between two times (ns since 1970).
type step struct {
	first, end int // numbers: first <= i < end
	from, to   int64
}

const stepFlows = 128

func (c *flowChurn) start(t *testing.T) {
	quit := make(chan struct{})
	c.quit, c.err, c.began = quit, make(chan error, 1), time.Now()
	t.Cleanup(func() { c.stop(t) })
	go func() {
		var err error
		for n := 0; err == nil; n += stepFlows {
			select {
			case <-quit:
				c.err <- nil
				return
			case <-time.After(time.Until(c.began.Add(time.Duration(n) * time.Second / churnRate))):
			}
			err = c.do(stepFlows)
		}
		c.err <- err
	}()
}

// stop ends the flows.
func (c *flowChurn) stop(t *testing.T) {
	t.Helper()
	if c.quit == nil {
		return
	}
	close(c.quit)
	c.quit = nil
	must(t, <-c.err)
	c.ran = time.Since(c.began)
	t.Logf("%d flows in %.1f s: %.0f a second", c.next, c.ran.Seconds(), float64(c.next)/c.ran.Seconds())
}

// flows has n flows end.
func (c *flowChurn) flows(t *testing.T, n int) {
	t.Helper()
	must(t, c.do(n))
}

func (c *flowChurn) do(n int) error {
	s := step{first: c.next, end: c.next + n, from: time.Now().UnixNano()}
	err := c.flood.Churn(s.first, s.end)
	s.to = time.Now().UnixNano()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = s.end
	c.steps = append(c.steps, s)
	return err
}

// ended is how many flows have ended.
func (c *flowChurn) ended() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

// step returns when the flow ended.
func (c *flowChurn) step(i int) step {
	k, _ := slices.BinarySearchFunc(c.steps, i, func(s step, i int) int {
		if s.end <= i {
			return -1
		}
		return 1
	})
	return c.steps[k]
}

// book is what one output got.
type book struct {
	name        string
	file, spool string     // of jsonl
	collector   *collector // of ipfix

	seen    []uint8 // how often each flow came
	gaps    []gap
	missing int
	again   int
}

// gap is a gap record.
type gap struct {
	cause    string
	from, to int64
	lost     int // -1: not known
}

func (g gap) String() string {
	lost := "?"
	if g.lost >= 0 {
		lost = strconv.Itoa(g.lost)
	}
	return fmt.Sprintf("%s, %d ms, lost %s", g.cause, (g.to-g.from)/1e6, lost)
}

func (b *book) causes() (causes []string) {
	for _, g := range b.gaps {
		if !slices.Contains(causes, g.cause) {
			causes = append(causes, g.cause)
		}
	}
	return causes
}

// hasSince reports whether one of the flows from first on has come, all of which are at the end.
func (b *book) hasSince(t *testing.T, first int) bool {
	t.Helper()
	if b.collector != nil {
		return b.collector.hasSince(first)
	}
	f, err := os.Open(b.file)
	must(t, err)
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	must(t, err)
	tail := make([]byte, min(size, 64<<10))
	_, err = f.ReadAt(tail, size-int64(len(tail)))
	must(t, err)
	lines := bytes.Split(tail, []byte{'\n'})
	for _, line := range lines[:len(lines)-1] {
		var l ledgerLine
		if json.Unmarshal(line, &l) == nil {
			if i, ok := lab.FlowNumber(l.NATSrc, l.NATPort); ok && i >= first {
				return true
			}
		}
	}
	return false
}

// ledgerLine is what the ledger asks of a line.
type ledgerLine struct {
	Event   string     `json:"event"`
	Start   string     `json:"start"`
	End     string     `json:"end"`
	Proto   uint8      `json:"proto_num"`
	Src     netip.Addr `json:"src_ip"`
	Sport   uint16     `json:"src_port"`
	Dst     netip.Addr `json:"dst_ip"`
	Dport   uint16     `json:"dst_port"`
	NATSrc  netip.Addr `json:"nat_src_ip"`
	NATPort uint16     `json:"nat_src_port"`
	Cause   string     `json:"cause"`
	From    string     `json:"from"`
	To      string     `json:"to"`
	Lost    *int       `json:"lost"`
	Output  string     `json:"output"`
}

// read reads all that the output got. What fits no flow of the generator's, by tuple or by time, is an error.
func (b *book) read(t *testing.T, c *flowChurn) {
	t.Helper()
	b.seen = make([]uint8, c.next)
	if b.collector != nil {
		for _, f := range b.collector.flows {
			b.note(t, c, f.number, f.start, f.end, int64(time.Millisecond), fmt.Sprint(lab.FlowAt(f.number)))
		}
		b.gaps = b.collector.gaps
		return
	}
	f, err := os.Open(b.file)
	must(t, err)
	defer f.Close()
	schema := schemaOf(t)
	lines := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			if len(line) > 0 {
				t.Errorf("%s: the last line is torn: %q", b.name, line)
			}
			return
		}
		var l ledgerLine
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%s: not a line of JSON: %v: %q", b.name, err, line)
		}
		if l.Event == "gap" {
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
			must(t, err)
			if err := schema.Validate(v); err != nil {
				t.Errorf("%s%v", line, err)
			}
			g := gap{cause: l.Cause, from: nanoseconds(t, l.From), to: nanoseconds(t, l.To), lost: -1}
			if l.Lost != nil {
				g.lost = *l.Lost
			}
			if l.Output != "" && l.Output != b.name || g.from > g.to {
				t.Errorf("%s: a gap of another output's, or that ends before it begins: %s", b.name, line)
			}
			b.gaps = append(b.gaps, g)
			continue
		}
		i, ok := lab.FlowNumber(l.NATSrc, l.NATPort)
		got := lab.FloodFlow{Proto: l.Proto, Src: l.Src, Dst: l.Dst, NATSrc: l.NATSrc, SrcPort: l.Sport, NATPort: l.NATPort,
			DstPort: l.Dport}
		if !ok || i >= c.next || l.Event != "destroy" || got != lab.FlowAt(i) {
			t.Errorf("%s: no flow of the generator's: %s", b.name, line)
			continue
		}
		b.note(t, c, i, nanoseconds(t, l.Start), nanoseconds(t, l.End), 1, string(line))
	}
}

// note notes that flow i came, whose times are exact to a unit.
func (b *book) note(t *testing.T, c *flowChurn, i int, start, end, unit int64, what string) {
	t.Helper()
	if s := c.step(i); start < s.from-unit || start > end || end > s.to+unit {
		t.Errorf("%s: a flow that lived between %d and %d, on record from %d to %d: %s", b.name, s.from, s.to, start, end, what)
	}
	if b.seen[i] < 255 {
		b.seen[i]++
	}
}

// stretch is gaps that overlap, or nearly so: a flow may have ended at any time of its step.
type stretch struct {
	from, to int64
	gaps     []gap
	lost     int
	open     bool // one of the gaps does not know how many
	missing  int
}

const nearby = int64(50 * time.Millisecond)

// audit finds each flow that is missing in a gap.
func (b *book) audit(t *testing.T, c *flowChurn) {
	t.Helper()
	var stretches []*stretch
	sorted := slices.Clone(b.gaps)
	slices.SortFunc(sorted, func(a, b gap) int { return int(max(-1, min(1, a.from-b.from))) })
	for _, g := range sorted {
		n := len(stretches)
		if n == 0 || g.from > stretches[n-1].to+nearby {
			stretches = append(stretches, &stretch{from: g.from, to: g.to})
			n++
		}
		s := stretches[n-1]
		s.to = max(s.to, g.to)
		s.gaps = append(s.gaps, g)
		s.lost += max(g.lost, 0)
		s.open = s.open || g.lost < 0
	}
	var silent []stretch
	k := 0
	for _, s := range c.steps { // in order of time, as the stretches are
		for k < len(stretches) && stretches[k].to < s.from {
			k++
		}
		for i := s.first; i < s.end; i++ {
			if b.seen[i] > 1 {
				b.again++
			}
			if b.seen[i] > 0 {
				continue
			}
			b.missing++
			if k < len(stretches) && stretches[k].from <= s.to {
				stretches[k].missing++
				continue
			}
			if n := len(silent); n == 0 || s.from > silent[n-1].to+nearby {
				silent = append(silent, stretch{from: s.from})
			}
			last := &silent[len(silent)-1]
			last.to = s.to
			last.missing++
		}
	}
	for _, s := range silent {
		t.Errorf("%s: %d flows are missing from %s, and no gap says so; gaps nearby: %s", b.name, s.missing,
			c.span(s.from, s.to), b.around(c, s))
	}
	var told []string
	for _, s := range stretches {
		if s.missing < s.lost || !s.open && s.missing != s.lost {
			t.Errorf("%s: %d flows are missing from %s, where the gaps say %d: %v", b.name, s.missing, c.span(s.from, s.to),
				s.lost, s.gaps)
		}
		told = append(told, fmt.Sprintf("%d in %v", s.missing, s.gaps))
	}
	t.Logf("%s: of %d flows %d came, %d of them more than once; %d are missing, in %d gaps: %s", b.name, c.next,
		c.next-b.missing, b.again, b.missing, len(b.gaps), strings.Join(told, "; "))
}

// around tells of the gaps that are near a stretch.
func (b *book) around(c *flowChurn, s stretch) (text string) {
	for _, g := range b.gaps {
		if g.from < s.to+1e9 && g.to > s.from-1e9 {
			text += fmt.Sprintf("[%s from %s]", g, c.span(g.from, g.to))
		}
	}
	return text
}

// span tells of two times, in seconds since the flows began.
func (c *flowChurn) span(from, to int64) string {
	seconds := func(ns int64) float64 { return float64(ns-c.began.UnixNano()) / 1e9 }
	return fmt.Sprintf("%.3f to %.3f s", seconds(from), seconds(to))
}

func nanoseconds(t *testing.T, s string) int64 {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, s)
	must(t, err)
	return at.UnixNano()
}

func schemaOf(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	schema, err := c.Compile("../docs/flow.schema.json")
	must(t, err)
	return schema
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	if !errors.Is(err, os.ErrNotExist) {
		must(t, err)
	}
	return content
}

// disk is a file system that can be full.
type disk struct{ dir string }

const diskSize = 8 << 30 // of memory, as far as it is used

func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t.TempDir()}
	must(t, unix.Mount("tmpfs", d.dir, "tmpfs", 0, fmt.Sprint("size=", diskSize)))
	restore(t, func() { _ = unix.Unmount(d.dir, unix.MNT_DETACH) })
	return d
}

// fill leaves no room, by making the disk as small as what is on it.
func (d *disk) fill(t *testing.T) {
	t.Helper()
	eventually(t, "the disk is full", func() bool {
		var s unix.Statfs_t
		must(t, unix.Statfs(d.dir, &s))
		err := unix.Mount("tmpfs", d.dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprint("size=", max(s.Blocks-s.Bfree, 1)*uint64(s.Bsize)))
		if err == unix.EINVAL { // more is on it by now
			return false
		}
		must(t, err)
		return true
	})
}

func (d *disk) free(t *testing.T) {
	t.Helper()
	must(t, unix.Mount("tmpfs", d.dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprint("size=", diskSize)))
}

// awaitStopped waits until every thread of a process that was sent SIGSTOP has stopped.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "the process has stopped", func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		must(t, err)
		for _, s := range stats {
			b, err := os.ReadFile(s)
			if err != nil {
				continue
			}
			// pid (comm) state
			if f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])); f[0] != "T" {
				return false
			}
		}
		return true
	})
}

// spoolCursor returns up to where the state file says that the spool is delivered (pipeline/spool/state.go).
func spoolCursor(t *testing.T, dir string) (cursor uint64) {
	t.Helper()
	file := readFile(t, filepath.Join(dir, "state"))
	const slot = 32 << 10
	var newest uint64
	for off := 0; off+slot <= len(file); off += slot {
		if gen := binary.LittleEndian.Uint64(file[off+16:]); gen > newest {
			newest, cursor = gen, binary.LittleEndian.Uint64(file[off+32:])
		}
	}
	return cursor
}

// spoolWaits reports whether there are segments in the spool.
func spoolWaits(t *testing.T, dir string) bool {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	must(t, err)
	return len(segments) > 0
}

// collector is an IPFIX collector that can be cut off. It is so by dropping what is sent to it: then all that its host
// has acknowledged has been read, as no sender could know of the rest.
type collector struct {
	ns *lab.NS

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]time.Time // when something was read last
	flows    []collected
	last     int // the highest number
	gaps     []gap
	lost     int // of all gaps
	err      error
	readers  sync.WaitGroup
}

type collected struct {
	number     int
	start, end int64
}

func newCollector(t *testing.T, ns *lab.NS) *collector {
	t.Helper()
	c := &collector{ns: ns, conns: map[net.Conn]time.Time{}, last: -1}
	c.listen(t)
	t.Cleanup(func() { c.hangUp() })
	return c
}

func (c *collector) listen(t *testing.T) {
	t.Helper()
	l, err := c.ns.Listen("tcp4", "127.0.0.1:4739")
	must(t, err)
	c.mu.Lock()
	c.listener = l
	c.mu.Unlock()
	c.readers.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.mu.Lock()
			c.conns[conn] = time.Now()
			c.mu.Unlock()
			c.readers.Go(func() { c.read(conn) })
		}
	})
}

// cut takes the collector from the network and ends it.
func (c *collector) cut(t *testing.T) {
	t.Helper()
	must(t, c.ns.Nft("table inet cut { chain in { type filter hook input priority 0; tcp dport 4739 drop; }; }"))
	eventually(t, "the collector has read what its host has", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, at := range c.conns {
			if time.Since(at) < 300*time.Millisecond {
				return false
			}
		}
		return true
	})
	c.hangUp()
}

func (c *collector) hangUp() {
	c.mu.Lock()
	c.listener.Close()
	for conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.readers.Wait()
}

// join starts the collector again.
func (c *collector) join(t *testing.T) {
	t.Helper()
	c.listen(t)
	must(t, c.ns.Run("nft", "delete", "table", "inet", "cut"))
}

// stop waits until all connections have ended, from the other side.
func (c *collector) stop(t *testing.T) {
	t.Helper()
	eventually(t, "the collector has read all", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.conns) == 0
	})
	c.hangUp()
	if c.err != nil {
		t.Errorf("collector: %v", c.err)
	}
}

func (c *collector) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.flows)
}

func (c *collector) hasSince(first int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last >= first
}

// read reads messages until the connection ends, which may be in the middle of one.
func (c *collector) read(conn net.Conn) {
	defer func() {
		conn.Close()
		c.mu.Lock()
		delete(c.conns, conn)
		c.lost = 0 // the total is of one process; a new one has a new connection
		c.mu.Unlock()
	}()
	d := listen.NewDecoder()
	in := bufio.NewReaderSize(conn, 1<<16)
	var head [4]byte
	var lines []byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		message := make([]byte, max(binary.BigEndian.Uint16(head[2:]), 4))
		copy(message, head[:])
		if _, err := io.ReadFull(in, message[4:]); err != nil {
			return
		}
		var err error
		lines, err = d.Append(lines[:0], "", message)
		c.mu.Lock()
		c.conns[conn] = time.Now()
		if err == nil {
			for line := range bytes.Lines(lines) {
				err = errors.Join(err, c.record(line))
			}
		}
		if err != nil && c.err == nil {
			c.err = err
		}
		c.mu.Unlock()
	}
}

// record notes one record.
func (c *collector) record(line []byte) error {
	var l struct {
		Template int `json:"template"`
		Record   struct {
			Start   time.Time  `json:"flowStartMilliseconds"`
			End     time.Time  `json:"flowEndMilliseconds"`
			Proto   uint8      `json:"protocolIdentifier"`
			Src     netip.Addr `json:"sourceIPv4Address"`
			Sport   uint16     `json:"sourceTransportPort"`
			Dst     netip.Addr `json:"destinationIPv4Address"`
			Dport   uint16     `json:"destinationTransportPort"`
			NATSrc  netip.Addr `json:"postNATSourceIPv4Address"`
			NATPort uint16     `json:"postNAPTSourceTransportPort"`
			From    time.Time  `json:"observationTimeMilliseconds"`
			To      time.Time  `json:"observationTimeMilliseconds_2"`
			Lost    int        `json:"notSentFlowTotalCount"`
		} `json:"record"`
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return err
	}
	r := &l.Record
	const reliability, typeRecords, stats = 401, 403, 400
	switch l.Template {
	case reliability:
		g := gap{cause: "ipfix", from: r.From.UnixNano(), to: r.To.UnixNano() + 1e6, lost: r.Lost - c.lost}
		if g.lost == 0 {
			g.lost = -1
		}
		c.lost = r.Lost
		c.gaps = append(c.gaps, g)
		return nil
	case typeRecords, stats:
		return nil
	}
	i, ok := lab.FlowNumber(r.NATSrc, r.NATPort)
	got := lab.FloodFlow{Proto: r.Proto, Src: r.Src, Dst: r.Dst, NATSrc: r.NATSrc, SrcPort: r.Sport, NATPort: r.NATPort, DstPort: r.Dport}
	if !ok || got != lab.FlowAt(i) {
		return fmt.Errorf("no flow of the generator's: %s", line)
	}
	c.flows = append(c.flows, collected{i, r.Start.UnixNano(), r.End.UnixNano()})
	c.last = max(c.last, i)
	return nil
}
