//go:build integration

package integration

import (
	"cmp"
	"encoding/json"
	"errors"
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

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestLedger has flows end at a steady rate while one thing after another goes wrong, and then holds what the outputs
// got against what the generator did: every flow is on record, or in a gap that covers its end, and a gap that says how
// many it lost says it exactly.
//
// CTLOGD_LEDGER=full has each trial last a minute instead of seconds. CTLOGD_SEED repeats a random mix.
func TestLedger(t *testing.T) {
	need(t, "mkfs.ext4", "fsfreeze")
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
		{"a disk hangs", testDiskHangs},
		{"ended with an output that hangs", testEndedHanging},
		{"reloads that fail", testReloadsFail},
		{"best effort", testBestEffort},
		{"a random mix", testMix},
		{"an archive killed fifty times", testArchiveKilled},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel() // two at a time: each has a namespace of its own
			s.run(t, full)
		})
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
	r := newTrial(t, jsonlOutput{name: "bare", disk: disk}, jsonlOutput{name: "spooled", disk: disk, spool: "1GiB"},
		archiveOutput{disk: disk})
	time.Sleep(time.Second)
	disk.fill(t)
	r.during(full, 4*time.Second, 20*time.Second)
	disk.free(t)
	r.during(full, 3*time.Second, 39*time.Second)
	r.settle(t)
	spooled := r.books[1]
	for _, bare := range []*book{r.books[0], r.books[2]} {
		// When there is room again, the queue is full for a moment yet.
		causes := slices.DeleteFunc(bare.causes(), func(c string) bool { return c == "queue_full" })
		if bare.missing == 0 || !slices.Equal(causes, []string{"disk_full"}) {
			t.Errorf("%s: %d flows are missing, for %v, want some, for [disk_full]", bare.name, bare.missing, bare.causes())
		}
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

// The disk hangs that has the state directory, two logs, an archive, and the spool of a third log. That one, and a fourth, get
// all that there is meanwhile; a reload is done; and when the disk goes on, nothing is missing but what the one log without
// a spool, and the archive, have no room for, which they say exactly.
func testDiskHangs(t *testing.T, full bool) {
	disk := newFrozenDisk(t)
	r := newTrial(t, jsonlOutput{name: "bare", disk: &disk.disk}, jsonlOutput{name: "spooled", disk: &disk.disk, spool: "1GiB"},
		jsonlOutput{name: "well", spoolOn: &disk.disk, spool: "64MiB"}, jsonlOutput{name: "best"}, archiveOutput{disk: &disk.disk})
	r.stop(t)
	mark, err := os.ReadFile(filepath.Join(r.state, "state", "mark.json"))
	must(t, err)
	r.state = disk.dir
	r.configure(t)
	must(t, os.WriteFile(filepath.Join(r.state, "state", "mark.json"), mark, 0o600))
	r.start(t)
	time.Sleep(time.Second)
	disk.freeze(t)
	r.during(full, 8*time.Second, 30*time.Second) // longer than a Write may be out
	r.reload(t)
	eventually(t, "the reload is done", func() bool { return strings.Contains(r.stderr.String(), "configuration reloaded") })
	for _, b := range r.books[2:4] {
		ended, log := r.churn.ended(), lineCounter{path: b.file}
		eventually(t, b.name+" has what ended while the disk hung", func() bool { return log.count(t) >= ended })
	}
	for _, what := range []string{"the output hangs", "the mark is in memory for now"} {
		if !strings.Contains(r.stderr.String(), what) {
			t.Errorf("the log does not say: %s", what)
		}
	}
	disk.thaw(t)
	r.during(full, 2*time.Second, 10*time.Second)
	r.settle(t)
	for _, b := range r.books {
		causes := slices.DeleteFunc(b.causes(), func(c string) bool { return c == "downtime" }) // of its being configured
		if b == r.books[0] || b == r.books[4] {
			if !slices.Contains(causes, "output_down") {
				t.Errorf("%s: gaps for %v, want output_down", b.name, causes)
			}
		} else if len(causes) > 0 {
			t.Errorf("%s: gaps for %v, want none", b.name, causes)
		}
	}
}

// A log's disk hangs, and the daemon is told to end while flows end. It reads on until it has given that log up, so the
// other one has all of it; and what the one has lost the mark says exactly.
func testEndedHanging(t *testing.T, _ bool) {
	disk := newFrozenDisk(t)
	r := newTrial(t, jsonlOutput{name: "hung", disk: &disk.disk}, jsonlOutput{name: "best"})
	time.Sleep(time.Second)
	disk.freeze(t)
	time.Sleep(time.Second)
	written := lineCounter{path: r.books[0].file}
	before := written.count(t)
	r.signal(t, syscall.SIGTERM)
	logged := func(what string) {
		t.Helper()
		eventually(t, "the log says: "+what, func() bool { return strings.Contains(r.stderr.String(), what) })
	}
	logged("told to end")
	// The hang is noticed some 4 s from now at the soonest. Were nobody to read until then, the table would have all
	// that ends.
	at, most := r.churn.ended(), 0
	for began := time.Now(); time.Since(began) < 2500*time.Millisecond; time.Sleep(50 * time.Millisecond) {
		text, err := r.ns.ReadSysctl("net.netfilter.nf_conntrack_count")
		must(t, err)
		n, err := strconv.Atoi(text)
		must(t, err)
		most = max(most, n)
	}
	r.churn.stop(t)
	if n := r.churn.ended() - at; most > n/3 {
		t.Errorf("while it ends, %d flows ended, and the table had up to %d entries", n, most)
	} else {
		t.Logf("while it ends, %d flows ended, and the table had up to %d entries", n, most)
	}
	logged("records left behind")
	logged("events read") // the sums, which come last
	disk.thaw(t)          // until then the kernel does not let the process go
	eventually(t, "the daemon has ended", r.ended)
	ended := r.churn.ended()
	best := lineCounter{path: r.books[1].file}
	if n := best.count(t); n != ended {
		t.Errorf("the other log has %d lines, want all %d", n, ended)
	}
	kept := r.books[2]
	kept.read(t, r.binary, r.churn)
	if kept.audit(t, r.churn); kept.missing+len(kept.gaps) != 0 {
		t.Errorf("the archive misses %d of %d flows", kept.missing, ended)
	}
	text, err := os.ReadFile(filepath.Join(r.state, "state", "mark.json"))
	must(t, err)
	var m struct {
		Clean   bool
		Outputs []struct {
			Name string
			Gaps []struct {
				Lost      int
				LostKnown bool
			}
		}
	}
	must(t, json.Unmarshal(text, &m))
	lost, known := 0, true
	for _, g := range m.Outputs[0].Gaps {
		lost += g.Lost
		known = known && g.LostKnown
	}
	notes := len(r.notes(t)) // of the archive's checkpoints, which are records as well
	if !m.Clean || !known || lost < ended-before || lost > ended-before+notes || len(m.Outputs[1].Gaps) > 0 {
		t.Errorf("the mark says that %d are lost, known %v, want %d of %d, and checkpoints, %d at most: %s", lost, known, ended-before, ended,
			notes, text)
	}
}

// A configuration that is wrong, or names a log in a directory that is not there, leaves nothing behind: the mended one is
// taken, the log works when its directory is there, and also when it is taken out and put in again.
func testReloadsFail(t *testing.T, _ bool) {
	r := newTrial(t, jsonlOutput{})
	outputs := r.outputs
	late := jsonlOutput{name: "late", disk: &disk{filepath.Join(r.dir, "late")}}
	lines := lineCounter{path: late.file(r)}
	say := func(what string, times int) {
		t.Helper()
		eventually(t, "the log says: "+what, func() bool { return strings.Count(r.stderr.String(), what) >= times })
	}
	grows := func() {
		t.Helper()
		n := lines.count(t)
		eventually(t, "the late log grows", func() bool { return lines.count(t) > n })
	}
	r.outputs = append(slices.Clone(outputs), late)
	for i := range 2 {
		r.configure(t)
		conf := filepath.Join(r.dir, "ctlogd.yaml")
		text, err := os.ReadFile(conf)
		must(t, err)
		must(t, os.WriteFile(conf, append(text, "not_a_key: 1\n"...), 0o600))
		r.signal(t, syscall.SIGHUP)
		say("the old configuration stays", i+1)
	}
	r.reload(t)
	say("configuration reloaded", r.reloads)
	say("make it: install -d", 1)
	must(t, os.Mkdir(late.disk.dir, 0o700))
	grows()
	for range 2 {
		r.outputs = outputs
		r.reload(t)
		say("configuration reloaded", r.reloads)
		r.outputs = append(slices.Clone(outputs), late)
		r.reload(t)
		say("configuration reloaded", r.reloads)
		grows()
	}
	r.settle(t)
	r.whole(t)
}

// With delivery best_effort and a small buffer, what the kernel drops while the reader is stopped is counted exactly.
func testBestEffort(t *testing.T, full bool) {
	r := newTrial(t, jsonlOutput{})
	r.stop(t)
	r.input = "delivery: best_effort, receive_buffer: 256KiB, "
	r.configure(t)
	r.start(t)
	for r.goesOn(full, 6*time.Second) {
		r.signal(t, syscall.SIGSTOP)
		time.Sleep(500 * time.Millisecond)
		r.signal(t, syscall.SIGCONT)
		time.Sleep(time.Second)
	}
	r.settle(t)
	if causes := r.books[0].causes(); !slices.Contains(causes, "overrun") || slices.ContainsFunc(causes, func(c string) bool {
		return c != "overrun" && c != "downtime" // while it was configured
	}) {
		t.Errorf("gaps for %v, want [overrun]", causes)
	}
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
	for _, b := range r.books[:2] {
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

// The daemon, or the child that seals for it, is killed fifty times at random. That repeats what other trials do once or
// twice, so that it is run with CTLOGD_LEDGER=full alone.
func testArchiveKilled(t *testing.T, full bool) {
	if !full {
		t.Skip("repeats other trials; CTLOGD_LEDGER=full runs it")
	}
	r := newTrial(t, archiveOutput{records: 5000})
	children := 0
	for range 50 {
		time.Sleep(time.Duration(rand.N(400)) * time.Millisecond)
		if rand.N(2) == 0 {
			r.kill(t)
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", r.Process.Pid))
		tasks, globErr := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", r.Process.Pid))
		must(t, errors.Join(err, globErr))
		for _, name := range tasks {
			more, _ := os.ReadFile(name)
			text = append(text, more...)
		}
		for _, pid := range strings.Fields(string(text)) {
			n, err := strconv.Atoi(pid)
			must(t, err)
			if syscall.Kill(n, syscall.SIGKILL) == nil {
				children++
			}
		}
	}
	r.settle(t)
	r.expect(t, "crash")
	t.Logf("%d kills of the daemon, %d of a child", len(r.kills), children)
	if children == 0 || len(r.kills) == 0 {
		t.Error("one of the two was never killed")
	}
	if out, err := exec.Command(r.binary, "verify", r.books[0].archive).CombinedOutput(); err != nil {
		t.Errorf("verify: %v\n%s", err, out)
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
		jsonlOutput{name: "spooled", disk: disk, spool: "64MiB"}, jsonlOutput{name: "small", disk: disk, spool: "4MiB"}, archiveOutput{disk: disk})
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
	state     string // where its state directory is
	input     string // of the configuration
	outputs   []ledgerOutput
	books     []*book
	collector *collector // nil: none of the outputs is one
	churn     *flowChurn
	began     time.Time
	kills     []outage
	logs      []*syncBuffer // of all processes
	reloads   int           // done by the process that runs
	variant   int           // of the configuration
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
	disk, spoolOn         *disk
}

func (o jsonlOutput) kind() string { return "jsonl" }

func (o jsonlOutput) file(r *trial) string {
	dir := r.dir
	if o.disk != nil {
		dir = o.disk.dir
	}
	return filepath.Join(dir, "flows"+o.name+".jsonl")
}

func (o jsonlOutput) spoolDir(r *trial) string {
	dir := r.dir
	if o.spoolOn != nil {
		dir = o.spoolOn.dir
	}
	return filepath.Join(dir, "spool"+o.name)
}

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

// archiveOutput is an archive, on a disk of its own if there is one. Its segments are small, so that it seals all the time.
type archiveOutput struct {
	disk    *disk
	records int // of a segment; 0: 40,000
}

func (archiveOutput) kind() string { return "archive" }

func (o archiveOutput) dir(r *trial) string {
	if o.disk != nil {
		return filepath.Join(o.disk.dir, "archive")
	}
	return filepath.Join(r.dir, "archive")
}

func (o archiveOutput) config(r *trial, filter string) string {
	return fmt.Sprintf("{path: %s, segment_records: %d, filter: %s}", o.dir(r), cmp.Or(o.records, 40_000), filter)
}

func (o archiveOutput) book(_ *testing.T, r *trial) *book {
	return &book{name: "archive:" + o.dir(r), archive: o.dir(r)}
}

// newTrial starts the daemon and the flows. An archive is one more output of each trial.
func newTrial(t *testing.T, outputs ...ledgerOutput) *trial {
	t.Helper()
	if !slices.ContainsFunc(outputs, func(o ledgerOutput) bool { return o.kind() == "archive" }) {
		outputs = append(outputs, archiveOutput{})
	}
	ns, flood := newFloodNS(t)
	r := &trial{ns: ns, binary: buildDaemon(t, os.Getenv("CTLOGD_RACE") != ""), dir: t.TempDir(), outputs: outputs,
		churn: &flowChurn{flood: flood}}
	r.state = r.dir
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
	must(t, os.MkdirAll(filepath.Join(r.state, "state"), 0o700))
	text := fmt.Sprintf("host: gw1\nobserver: lab\nstate_directory: %s/state\ninput: {conntrack: {%sevents: %s, labels: %v}}\n"+
		"filter: %s\noutputs:\n", r.state, r.input, events[n%len(events)], n%2 == 1, filters[n%len(filters)])
	for _, kind := range []string{"jsonl", "ipfix", "archive"} {
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
	if r.collector != nil {
		r.collector.expect(t)
	}
	r.process = start(t, r.ns, exec.Command(r.binary, "run", "-c", filepath.Join(r.dir, "ctlogd.yaml")))
	r.logs = append(r.logs, &r.process.stderr)
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
	notes := r.notes(t)
	for _, b := range r.books {
		b.read(t, r.binary, r.churn)
		if b.archive == "" { // an archive gets none
			b.without(notes)
		}
		b.audit(t, r.churn)
	}
}

// notes returns when the archive has made checkpoints (ns since 1970), of which each other output gets a record.
func (r *trial) notes(t *testing.T) (at []int64) {
	t.Helper()
	for _, log := range r.logs {
		for _, text := range archive.FindNotes([]byte(log.String())) {
			n, err := archive.ReadNote(text)
			must(t, err)
			at = append(at, int64(n.Time))
		}
	}
	return at
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
