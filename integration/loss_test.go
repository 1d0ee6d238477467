//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// memoryBudget is what the daemon may ever have resident, whatever the size of the table.
const memoryBudget = 64 << 20

// room raises the limits of the connection tracking table, and puts them back.
func room(t *testing.T, entries int) {
	t.Helper()
	undo, err := lab.SetTable(entries, 1<<20)
	must(t, err)
	restore(t, func() {
		if err := undo(); err != nil {
			t.Error(err)
		}
	})
}

// newFloodNS returns a namespace with a generator, whose table the test empties when it ends.
func newFloodNS(t *testing.T) (*lab.NS, *lab.Flood) {
	t.Helper()
	ns := newNS(t, "flood")
	prepare(t, ns)
	f, err := ns.NewFlood()
	must(t, err)
	t.Cleanup(func() { f.Close() })
	t.Cleanup(func() { _ = f.Flush() }) // otherwise the kernel does it, with the namespace, some time later
	return ns, f
}

func TestFlushed(t *testing.T) {
	need(t)
	n := many
	room(t, 2*n)
	ns, f := newFloodNS(t)
	must(t, f.Create(0, n))
	d := startDaemon(t, ns, buildDaemon(t, false), "{delivery: reliable}")
	clock := time.Now()
	must(t, f.Flush())
	t.Logf("flushed at %.0f flows a second", float64(n)/time.Since(clock).Seconds())
	d.settle(t, n)
	checkLedger(t, d.file, n)
}

func TestChurned(t *testing.T) {
	need(t)
	n := many
	room(t, 2*n)
	ns, f := newFloodNS(t)
	d := startDaemon(t, ns, buildDaemon(t, false), "{delivery: reliable}")
	clock := time.Now()
	must(t, f.Churn(0, n))
	t.Logf("created and deleted %.0f flows a second", float64(n)/time.Since(clock).Seconds())
	d.settle(t, n)
	checkLedger(t, d.file, n)
}

// TestStoppedReader stops the daemon as a whole for seconds, while 300,000 flows are flushed: the kernel goes through its
// attempts to deliver the ends, one round after another.
func TestStoppedReader(t *testing.T) {
	need(t)
	const n = 300_000
	room(t, 2*n)
	ns, f := newFloodNS(t)
	must(t, f.Create(0, n))
	d := startDaemon(t, ns, buildDaemon(t, false), "{delivery: reliable}")
	must(t, d.Process.Signal(syscall.SIGSTOP))
	must(t, f.Flush())
	time.Sleep(scale(3*time.Second, 10*time.Second))
	held, err := ns.ReadSysctl("net.netfilter.nf_conntrack_count")
	must(t, err)
	if held == "0" {
		t.Error("the kernel held nothing back: the test has tested nothing")
	}
	t.Logf("the kernel holds back the ends of %s flows", held)
	must(t, d.Process.Signal(syscall.SIGCONT))
	d.settle(t, n)
	checkLedger(t, d.file, n)
}

// TestEventsOff has somebody set nf_conntrack_events to 0 while the daemon runs: the flows that are born then never report
// their end, and a gap says when that was.
func TestEventsOff(t *testing.T) {
	need(t)
	const n = 300 // a third of them before, meanwhile and after
	ns, f := newFloodNS(t)
	d := startDaemon(t, ns, buildDaemon(t, false), "{delivery: reliable}")
	set := func(value string) {
		must(t, ns.Sysctl("net.netfilter.nf_conntrack_events", value))
		want := map[string]string{"0": "report nothing", "1": "report their end"}[value]
		eventually(t, "the log has "+want, func() bool { return strings.Contains(d.stderr.String(), want) })
	}
	must(t, f.Create(0, n/3))
	from := time.Now()
	must(t, ns.Sysctl("net.netfilter.nf_conntrack_events", "0"))
	must(t, f.Create(n/3, n/2)) // before the daemon sees it
	set("0")
	must(t, f.Create(n/2, 2*n/3))
	to := time.Now()
	set("1")
	must(t, f.Create(2*n/3, n))
	must(t, f.Flush())
	ended := func() (ends int, gaps []record) {
		for _, r := range readRecords(t, d.file) {
			if r["event"] == "gap" {
				gaps = append(gaps, r)
			} else {
				ends++
			}
		}
		return ends, gaps
	}
	eventually(t, "the other flows are on record", func() bool {
		ends, _ := ended()
		return ends >= n-n/3
	})
	d.stop(t)
	ends, gaps := ended()
	if ends != n-n/3 {
		t.Errorf("%d ends, want %d", ends, n-n/3)
	}
	var covered time.Time // up to when the gaps reach, without a hole
	for i, r := range gaps {
		begin, err := time.Parse(time.RFC3339Nano, fmt.Sprint(r["from"]))
		must(t, err)
		end, err := time.Parse(time.RFC3339Nano, fmt.Sprint(r["to"]))
		must(t, err)
		if r["cause"] != "untracked" || r["lost"] != nil || i > 0 && begin.After(covered) || i == 0 && begin.After(from) {
			t.Errorf("the gaps have holes, or are others: %v", gaps)
		}
		covered = end
	}
	if covered.Before(to) {
		t.Errorf("flows were born without events from %v to %v, and the gaps are %v", from, to, gaps)
	}
}

// TestOverrun lets the kernel drop events, under best-effort delivery: what is not on record is in gaps, exactly.
func TestOverrun(t *testing.T) {
	need(t)
	const n = 100_000
	room(t, 2*n)
	ns, f := newFloodNS(t)
	must(t, f.Create(0, n))
	d := startDaemon(t, ns, buildDaemon(t, false), "{delivery: best_effort, receive_buffer: 1MiB}")
	must(t, d.Process.Signal(syscall.SIGSTOP))
	from := time.Now()
	must(t, f.Flush())
	must(t, d.Process.Signal(syscall.SIGCONT))
	var written, lost int
	eventually(t, "every end is on record or in a gap", func() bool {
		written, lost = 0, 0
		text, err := os.ReadFile(d.file)
		must(t, err)
		for line := range bytes.Lines(text) {
			var r struct {
				Event, Cause string
				From, To     time.Time
				Lost         int
			}
			if json.Unmarshal(line, &r) != nil {
				return false // its end is still to be written
			}
			if r.Event != "gap" {
				written++
				continue
			}
			if lost += r.Lost; r.Cause != "overrun" || r.From.After(from) || r.To.Before(from) {
				t.Fatalf("the gap does not fit an overrun that begins at %v: %s", from, line)
			}
		}
		return written+lost >= n
	})
	d.stop(t)
	if written+lost != n || lost == 0 {
		t.Errorf("%d on record and %d in gaps, want %d in all, and some in gaps", written, lost, n)
	}
	t.Logf("%d on record, %d in gaps", written, lost)
}

// TestTupleRecurs has one tuple 200 times, which the kernel gives one id every time: the flow_ids must differ.
func TestTupleRecurs(t *testing.T) {
	need(t)
	const n = 200
	ns, f := newFloodNS(t)
	d := startDaemon(t, ns, buildDaemon(t, false), "{delivery: reliable}")
	for range n {
		must(t, f.Churn(0, 1))
	}
	d.settle(t, n)
	ids := map[any]bool{}
	for _, r := range readRecords(t, d.file) {
		ids[r["flow_id"]] = true
	}
	if len(ids) != n {
		t.Errorf("%d flows of one tuple have %d flow_ids", n, len(ids))
	}
}

// settle waits until n records are written, checks the daemon's memory and stops it.
func (d *daemon) settle(t *testing.T, n int) {
	t.Helper()
	lines := lineCounter{path: d.file}
	for last, since := -1, time.Now(); ; time.Sleep(50 * time.Millisecond) {
		now := lines.count(t)
		if now >= n {
			break
		}
		if d.ended() {
			t.Fatalf("%s has ended: %v", d.Path, d.err)
		}
		if now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > 30*time.Second {
			t.Errorf("%d of %d records are written, and no more come", now, n)
			break
		}
	}
	if peak := d.peakMemory(t); peak > memoryBudget {
		t.Errorf("the daemon has had %.1f MiB resident, want at most %d", float64(peak)/(1<<20), memoryBudget>>20)
	} else {
		t.Logf("peak memory: %.1f MiB", float64(peak)/(1<<20))
	}
	d.stop(t)
}

// checkLedger holds a file of JSON lines to the generator's own knowledge: the flows 0 <= i < n, each once.
func checkLedger(t *testing.T, file string, n int) {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	seen := make([]bool, n)
	ids := make(map[[16]byte]struct{}, n)
	found, again, foreign, gaps := 0, 0, 0, 0
	lines := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			if len(line) > 0 {
				t.Errorf("the last line is torn: %q", line)
			}
			break
		}
		var r struct {
			Event   string     `json:"event"`
			FlowID  string     `json:"flow_id"`
			Proto   uint8      `json:"proto_num"`
			Src     netip.Addr `json:"src_ip"`
			Sport   uint16     `json:"src_port"`
			Dst     netip.Addr `json:"dst_ip"`
			Dport   uint16     `json:"dst_port"`
			NAT     string     `json:"nat"`
			NATSrc  netip.Addr `json:"nat_src_ip"`
			NATPort uint16     `json:"nat_src_port"`
		}
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("not a line of JSON: %v: %q", err, line)
		}
		if r.Event == "gap" {
			if gaps++; gaps <= 5 {
				t.Errorf("a gap, and nothing is missing: %s", bytes.TrimSpace(line))
			}
			continue
		}
		var id [16]byte
		if k, err := hex.Decode(id[:], []byte(r.FlowID)); k != 16 || err != nil {
			t.Fatalf("malformed flow_id: %s", line)
		}
		ids[id] = struct{}{}
		i, ok := lab.FlowNumber(r.NATSrc, r.NATPort)
		got := lab.FloodFlow{Proto: r.Proto, Src: r.Src, Dst: r.Dst, NATSrc: r.NATSrc, SrcPort: r.Sport, NATPort: r.NATPort, DstPort: r.Dport}
		switch {
		case !ok || i >= n || got != lab.FlowAt(i) || r.Event != "destroy" || r.NAT != "snat":
			if foreign++; foreign <= 5 {
				t.Errorf("no flow of the generator's: %s", bytes.TrimSpace(line))
			}
		case seen[i]:
			again++
		default:
			seen[i] = true
			found++
		}
	}
	var missing []string
	for i := range seen {
		if !seen[i] && len(missing) < 5 {
			missing = append(missing, fmt.Sprint(lab.FlowAt(i)))
		}
	}
	if found != n || again+foreign+gaps != 0 || len(ids) != n {
		t.Errorf("%d of %d flows are on record; %d lines repeat one, %d fit none, %d are gaps; %d flow_ids; missing: %s",
			found, n, again, foreign, gaps, len(ids), strings.Join(missing, ", "))
	} else {
		t.Logf("all of %d flows are on record, once each, and %d flow_ids", found, len(ids))
	}
}

// The generator does what it says, and fails where the kernel refuses a single flow.
func TestFlood(t *testing.T) {
	need(t)
	const n = 20_000
	ns, f := newFloodNS(t)
	count := func(want int) {
		t.Helper()
		if got, err := ns.ReadSysctl("net.netfilter.nf_conntrack_count"); err != nil || got != fmt.Sprint(want) {
			t.Fatalf("the table holds %s flows (%v), want %d", got, err, want)
		}
	}
	must(t, f.Create(0, n))
	count(n)
	if err := f.Create(n-1, n+1); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("to create a flow twice gives %v, want %v", err, syscall.EEXIST)
	}
	must(t, f.Delete(0, n+1))
	count(0)
	must(t, f.Churn(0, n))
	count(0)
	must(t, f.Create(0, n))
	must(t, f.Flush())
	count(0)
}
