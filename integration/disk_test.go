//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestFullDisk fills the disk that has the state directory, a log, and another log with its spool. A log elsewhere gets
// every flow; the process rests while there is nothing to do but to try again; and with room again nothing is missing.
func TestFullDisk(t *testing.T) {
	need(t, "mkfs.ext4")
	const n = 2000
	ns, f := newFloodNS(t)
	dir := t.TempDir()
	disk, err := lab.NewDisk(filepath.Join(dir, "image"), t.TempDir(), "16M")
	must(t, err)
	restore(t, func() { _ = disk.Close() })
	must(t, os.Mkdir(filepath.Join(disk.Dir, "state"), 0o700))
	conf := filepath.Join(dir, "ctlogd.yaml")
	logs := []*lineCounter{{path: filepath.Join(dir, "best.jsonl")}, {path: filepath.Join(disk.Dir, "bare.jsonl")},
		{path: filepath.Join(disk.Dir, "spooled.jsonl")}}
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "state_directory: %s/state\noutputs:\n  jsonl:\n    - path: %s\n    - path: %s\n"+
		"    - {path: %s, spool: {path: %[1]s/spool, max_size: 4MiB}}\n", disk.Dir, logs[0].path, logs[1].path, logs[2].path), 0o600))
	p := start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", conf))
	logged := func(what string, times int) {
		t.Helper()
		eventually(t, "the log says: "+what, func() bool { return strings.Count(p.stderr.String(), what) >= times })
	}
	every := func(logs []*lineCounter, n int) {
		t.Helper()
		for _, l := range logs {
			eventually(t, l.path+" has every flow", func() bool { return l.count(t) == n })
		}
	}
	logged("logging flows", 1)
	must(t, f.Churn(0, 10))
	every(logs, 10)

	eventually(t, "the log says that the mark is in memory for now", func() bool {
		if err := disk.Fill(0); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return strings.Contains(p.stderr.String(), "the mark is in memory for now")
	})
	must(t, f.Churn(10, n))
	every(logs[:1], n)
	logged("write to output", 2)
	const over = 3 * time.Second
	before := p.processorTime(t)
	time.Sleep(over) // what is measured takes time
	if used := p.processorTime(t) - before; used > over/3 {
		t.Errorf("%v of processor time in %v, with nothing to do", used, over)
	} else {
		t.Logf("%v of processor time in %v", used, over)
	}

	must(t, disk.Free())
	logged("the mark can be written again", 1)
	every(logs, n)
	must(t, f.Churn(n, n+1))
	every(logs, n+1)
	p.stop(t)
	for _, l := range logs {
		text, err := os.ReadFile(l.path)
		must(t, err)
		if bytes.Contains(text, []byte(`"event":"gap"`)) {
			t.Errorf("%s has a gap", l.path)
		}
	}
}

// processorTime returns what a process has used.
func (p *process) processorTime(t *testing.T) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	must(t, err)
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from the third on
	var ticks int
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		must(t, err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
}
