//go:build integration

package integration

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// Run as root by hand, no thread of the daemon keeps a capability but CAP_NET_ADMIN, and what comes later works without:
// rotations, reloads, another output, the spool, the mark.
func TestRights(t *testing.T) {
	need(t)
	const n = 20_000
	ns, flood := newFloodNS(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(at("state"), 0o700))
	configure := func(more string) {
		must(t, os.WriteFile(at("ctlogd.yaml"), fmt.Appendf(nil, `
state_directory: %[1]s/state
outputs:
  jsonl:
    - {path: %[1]s/flows.jsonl, max_size: 64KiB, keep: 1000}
%[2]s  ipfix:
    - {address: "tcp://127.0.0.1:1", spool: {path: %[1]s/spool}}
`, dir, more), 0o600))
	}
	configure("")
	d := start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", at("ctlogd.yaml")))
	logged := func(what string) func() bool {
		return func() bool { return d.ended() || strings.Contains(d.stderr.String(), what) }
	}
	eventually(t, "flows are logged", logged("logging flows"))
	d.awaitMember(t, lab.GroupDestroy)
	must(t, flood.Churn(0, n))
	configure("    - {path: " + at("second.jsonl") + "}\n")
	must(t, d.Process.Signal(syscall.SIGHUP))
	eventually(t, "the configuration is reloaded", logged("configuration reloaded"))
	must(t, flood.Churn(n, 2*n))

	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.Process.Pid))
	must(t, err)
	if len(threads) < 2 {
		t.Errorf("there are %d threads", len(threads))
	}
	const netAdmin, none = "0000000000001000", "0000000000000000"
	want := map[string]string{"CapInh": none, "CapPrm": netAdmin, "CapEff": netAdmin, "CapBnd": netAdmin, "CapAmb": none}
	for _, thread := range threads {
		status, err := os.ReadFile(thread)
		must(t, err)
		for set, value := range want {
			if !strings.Contains(string(status), set+":\t"+value+"\n") {
				t.Errorf("%s has no %s of %s:\n%s", thread, set, value, status)
			}
		}
	}

	d.stop(t)
	for _, problem := range []string{"permission denied", "not permitted"} {
		if strings.Contains(d.stderr.String(), problem) {
			t.Errorf("%q in the log:\n%s", problem, &d.stderr)
		}
	}
	if !spoolWaits(t, at("spool")) {
		t.Error("nothing waits in the spool of the collector that is not there")
	}
	if _, err := os.Stat(at("state/mark.json")); err != nil {
		t.Error(err)
	}
	if got := distinctFlows(t, 2*n, at("flows.jsonl*")); got != 2*n {
		t.Errorf("%d of %d flows are in the files", got, 2*n)
	}
	if got := distinctFlows(t, 2*n, at("second.jsonl")); got < n {
		t.Errorf("%d flows are in the file that the reload brought, want %d or more", got, n)
	}
	if _, err := os.Stat(at("flows.jsonl.10")); err != nil {
		t.Errorf("the file was not rotated: %v", err)
	}
}

// distinctFlows returns how many of the flows 0 <= i < n have a line in the files.
func distinctFlows(t *testing.T, n int, glob string) int {
	t.Helper()
	files, err := filepath.Glob(glob)
	must(t, err)
	seen := map[int]bool{}
	for _, name := range files {
		f, err := os.Open(name)
		must(t, err)
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if i, ok := flowOf(lines.Bytes()); ok && i < n {
				seen[i] = true
			}
		}
		must(t, lines.Err())
	}
	return len(seen)
}
