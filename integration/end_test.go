//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestEndWithDeadOutput ends a daemon of which one output fails and has no spool: it is given up long before
// shutdown_timeout, with a gap, and the others have everything. SIGHUP and SIGUSR1 during start and end do no harm.
func TestEndWithDeadOutput(t *testing.T) {
	need(t)
	const n = 1000
	ns, f := newFloodNS(t)
	dir := t.TempDir()
	conf, log := filepath.Join(dir, "ctlogd.yaml"), filepath.Join(dir, "flows.jsonl")
	must(t, syscall.Mkfifo(conf, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "state"), 0o700))
	config := fmt.Sprintf("state_directory: %s/state\nshutdown_timeout: 1h\noutputs:\n  jsonl:\n    - path: %s\n"+
		"  ipfix:\n    - address: tcp://127.0.0.1:4739\n", dir, log)

	p := start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", conf))
	give := func(signals ...os.Signal) {
		pipe, err := os.OpenFile(conf, os.O_WRONLY, 0) // waits until the daemon reads it
		must(t, err)
		for _, s := range signals {
			must(t, p.Process.Signal(s))
		}
		_, err = pipe.WriteString(config)
		must(t, err)
		must(t, pipe.Close())
	}
	logged := func(text string) {
		t.Helper()
		eventually(t, "the log has "+text, func() bool { return strings.Contains(p.stderr.String(), text) })
	}
	give(syscall.SIGHUP, syscall.SIGUSR1)
	logged("logging flows")
	give() // which is what the SIGHUP asks for
	logged("configuration reloaded")
	logged("SIGUSR1")
	logged(`open records", "flows"`) // has to be over before there are flows: each has one record below

	must(t, f.Churn(0, n))
	lines := lineCounter{path: log}
	eventually(t, "the file has every flow", func() bool { return lines.count(t) == n })
	logged("write to output")
	must(t, p.Process.Signal(syscall.SIGTERM))
	logged("told to end")
	must(t, p.Process.Signal(syscall.SIGHUP))
	must(t, p.Process.Signal(syscall.SIGUSR1))
	eventually(t, "the daemon has ended", p.ended)
	if p.err != nil {
		t.Errorf("ended with %v", p.err)
	}

	// The next one, without the dead output, and then with a collector that hears.
	config = strings.Replace(config, "  ipfix:\n    - address: tcp://127.0.0.1:4739\n", "", 1)
	must(t, os.Remove(conf))
	must(t, os.WriteFile(conf, []byte(config), 0o600))
	p = start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", conf))
	logged("gap of an output that is no longer configured")
	logged("logging flows")
	must(t, os.WriteFile(conf, []byte(config+"  ipfix:\n    - address: tcp://127.0.0.1:4739\n"), 0o600))
	collector := newCollector(t, ns)
	must(t, p.Process.Signal(syscall.SIGHUP))
	eventually(t, "the collector has the gap", func() bool {
		collector.mu.Lock()
		defer collector.mu.Unlock()
		must(t, collector.err)
		lost := 0
		for _, g := range collector.gaps {
			lost += max(g.lost, 0)
		}
		return lost == n
	})
	p.stop(t)
	text, err := os.ReadFile(log)
	must(t, err)
	for line := range bytes.Lines(text) {
		var l ledgerLine
		must(t, json.Unmarshal(line, &l))
		if l.Event == "gap" && l.Cause != "downtime" {
			t.Errorf("the file has a gap of another output's: %s", line)
		}
	}
}

// TestEndTimeReloaded ends a daemon whose output is slow and does not fail: how long that is waited for is what the last reload
// has said, also of an output that a reload before that one has taken out. Had it the hour of the start, all that is queued
// would arrive.
func TestEndTimeReloaded(t *testing.T) {
	need(t)
	t.Run("an output", func(t *testing.T) { testEndTimeReloaded(t, false) })
	t.Run("an output that was taken out", func(t *testing.T) { testEndTimeReloaded(t, true) })
}

func testEndTimeReloaded(t *testing.T, takenOut bool) {
	const n = 20_000
	ns, f := newFloodNS(t)
	dir := t.TempDir()
	conf, pipe := filepath.Join(dir, "ctlogd.yaml"), filepath.Join(dir, "flows")
	must(t, syscall.Mkfifo(pipe, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "state"), 0o700))
	configure := func(within, path string) {
		must(t, os.WriteFile(conf, fmt.Appendf(nil, "state_directory: %s/state\nshutdown_timeout: %s\noutputs: {jsonl: [{path: %s}]}\n",
			dir, within, path), 0o600))
	}
	configure("1h", pipe)
	p := start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", conf))
	reader, err := os.OpenFile(pipe, os.O_RDONLY, 0) // waits until the daemon has opened it
	must(t, err)
	defer reader.Close()
	p.awaitMember(t, lab.GroupDestroy)
	must(t, f.Churn(0, n))
	for i, within := range []string{"1h", "1s"} {
		if takenOut {
			configure(within, filepath.Join(dir, "other"))
		} else {
			configure(within, pipe)
		}
		must(t, p.Process.Signal(syscall.SIGHUP))
		eventually(t, "the reload is done", func() bool { return strings.Count(p.stderr.String(), "configuration reloaded") > i })
	}
	must(t, p.Process.Signal(syscall.SIGTERM))
	read, buf := 0, make([]byte, 64<<10)
	for ; !p.ended(); time.Sleep(100 * time.Millisecond) { // a page or two of records each time: some 20 s for all
		k, err := reader.Read(buf)
		if err == io.EOF {
			continue
		}
		must(t, err)
		read += bytes.Count(buf[:k], []byte("\n"))
	}
	if p.err != nil {
		t.Errorf("ended with %v", p.err)
	}
	if read >= n || !strings.Contains(p.stderr.String(), "records left behind") {
		t.Errorf("%d of %d records have arrived: the end was not at the time that the reload has brought", read, n)
	}
	t.Logf("%d of %d records had arrived at the end", read, n)
}

// TestNoDescriptors leaves the daemon no file to open: it logs flows as before, says what it cannot do, and does it again
// when it can.
func TestNoDescriptors(t *testing.T) {
	need(t)
	const n = 1000
	ns, f := newFloodNS(t)
	dir := t.TempDir()
	conf, log := filepath.Join(dir, "ctlogd.yaml"), filepath.Join(dir, "flows.jsonl")
	must(t, os.Mkdir(filepath.Join(dir, "state"), 0o700))
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "state_directory: %s/state\noutputs: {jsonl: [{path: %s}]}\n", dir, log), 0o600))
	p := start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", conf))
	logged := func(text string) {
		t.Helper()
		eventually(t, "the log has "+text, func() bool { return strings.Contains(p.stderr.String(), text) })
	}
	logged("logging flows")
	// What the daemon needs is open from here on. Its outputs open their files beside the start.
	eventually(t, "the log file and the mark are there", func() bool {
		_, logErr := os.Stat(log)
		_, markErr := os.Stat(filepath.Join(dir, "state", "mark.json"))
		return logErr == nil && markErr == nil
	})
	var before unix.Rlimit
	must(t, unix.Prlimit(p.Process.Pid, unix.RLIMIT_NOFILE, nil, &before))
	must(t, unix.Prlimit(p.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}, nil))
	logged("the mark is in memory for now")
	must(t, p.Process.Signal(syscall.SIGHUP))
	logged("the old configuration stays")
	must(t, f.Churn(0, n))
	lines := lineCounter{path: log}
	eventually(t, "the file has every flow", func() bool { return lines.count(t) == n })
	must(t, unix.Prlimit(p.Process.Pid, unix.RLIMIT_NOFILE, &before, nil))
	logged("the mark can be written again")
	must(t, p.Process.Signal(syscall.SIGHUP))
	logged("configuration reloaded")
	p.stop(t)
}

// TestLogReaderGone ends whoever reads the daemon's own log: the flows' log goes on.
func TestLogReaderGone(t *testing.T) {
	need(t)
	const n = 100
	ns, f := newFloodNS(t)
	dir := t.TempDir()
	conf, log := filepath.Join(dir, "ctlogd.yaml"), filepath.Join(dir, "flows.jsonl")
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "outputs: {jsonl: [{path: %s}]}\n", log), 0o600))
	// A shell between the two hands over the pipe, of which nobody has the other end.
	r, w, err := os.Pipe()
	must(t, err)
	p := start(t, ns, exec.Command("sh", "-c", `exec "$0" run -c "$1" 2>&3`, buildDaemon(t, false), conf), w)
	w.Close()
	p.awaitMember(t, lab.GroupDestroy)
	read := bufio.NewReader(r)
	for line := ""; !strings.Contains(line, "logging flows"); {
		line, err = read.ReadString('\n')
		must(t, err)
	}
	r.Close()
	lines := lineCounter{path: log}
	for i := range 3 {
		must(t, p.Process.Signal(syscall.SIGHUP)) // has it write to its log
		must(t, f.Churn(i*n, (i+1)*n))
		eventually(t, "the file has every flow", func() bool { return p.ended() || lines.count(t) == (i+1)*n })
	}
	p.stop(t)
}
