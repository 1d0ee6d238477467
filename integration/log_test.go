//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// SIGHUP changes the level and the format of ctlogd's own log.
func TestLogReload(t *testing.T) {
	ns := newNS(t, "log")
	var d *process
	dir := t.TempDir()
	conf := filepath.Join(dir, "ctlogd.yaml")
	configure := func(log, file string) {
		text := "log: " + log + "\noutputs: {jsonl: [{path: " + filepath.Join(dir, file) + "}]}\n"
		must(t, os.WriteFile(conf, []byte(text), 0o644))
	}
	reload := func(log, file string) {
		configure(log, file)
		must(t, d.Process.Signal(syscall.SIGHUP))
	}
	await := func(what, line string) {
		pattern := regexp.MustCompile("(?m)" + line)
		eventually(t, what, func() bool { return pattern.MatchString(d.stderr.String()) })
	}
	configure("{level: info, format: console}", "flows")
	d = start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", conf))
	await("the daemon runs", "\tINFO\tlogging flows")
	reload("{level: error, format: json}", "more")
	eventually(t, "the configuration is taken", func() bool { // nothing else tells of it at that level
		_, err := os.Stat(filepath.Join(dir, "more"))
		return err == nil
	})
	reload("{level: loud}", "more")
	await("a wrong level is refused in the new format",
		`^\{"level":"error",.*"msg":"reload: the old configuration stays",.*unknown level`)
	reload("{level: info, format: json}", "more")
	await("the log is JSON at level info", `^\{"level":"info",.*"msg":"configuration reloaded"`)
	if n := strings.Count(d.stderr.String(), "configuration reloaded"); n != 1 {
		t.Errorf("%d lines of level info; the first reload was to level error", n)
	}
	count := func(text string) int { return strings.Count(d.stderr.String(), text) }
	for i, also := range []string{"\nlive: {talkers: true}", "\nlive: {talkers: true}", ""} {
		reload("{level: info, format: json}"+also, "more")
		eventually(t, "the configuration is taken", func() bool { return count("configuration reloaded") == 2+i })
	}
	if n := count(`takes effect at the next start","key":"live.talkers"`); n != 2 {
		t.Errorf("it is said %d times that a key waits for a start, which it did after 2 of 3 reloads:\n%s", n, d.stderr.String())
	}
	d.stop(t)
}

// Standard error is a pipe that is full and that nobody reads: flows are logged, SIGHUP is obeyed, and SIGTERM ends the
// daemon with success.
func TestStderrThatNobodyReads(t *testing.T) {
	need(t)
	const n = 20000
	ns, f := newFloodNS(t)
	stderr := fullPipe(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "ctlogd.yaml")
	log, second := filepath.Join(dir, "flows"), filepath.Join(dir, "more")
	configure := func(files ...string) {
		text := "log: {level: debug}\nshutdown_timeout: 1h\noutputs:\n  jsonl:\n"
		for _, file := range files {
			text += "    - path: " + file + "\n"
		}
		must(t, os.WriteFile(conf, []byte(text), 0o644))
	}
	configure(log)
	d := start(t, ns, exec.Command("sh", "-c", "exec 2>"+stderr+"; exec "+buildDaemon(t, false)+" run -c "+conf))
	d.awaitMember(t, lab.GroupDestroy)
	must(t, f.Churn(0, n))
	lines := lineCounter{path: log}
	eventually(t, "the file has every flow", func() bool { return lines.count(t) == n })
	configure(log, second)
	must(t, d.Process.Signal(syscall.SIGHUP))
	eventually(t, "SIGHUP adds an output", func() bool {
		_, err := os.Stat(second)
		return err == nil
	})
	must(t, f.Churn(n, 2*n))
	eventually(t, "the file has every flow", func() bool { return lines.count(t) == 2*n })
	d.stop(t)
}

// fullPipe returns the path of a pipe that is full and that nobody reads. Opened by it, it is a blocking one, which os.Pipe's is
// not for us.
func fullPipe(t *testing.T) (path string) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	must(t, w.SetWriteDeadline(time.Now().Add(-time.Second))) // it is not waited for room
	for err == nil {
		_, err = w.Write(make([]byte, 4096))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return pipePath(w)
}

// Nobody reads standard error, and what the own log holds in memory is full as well, while ended flows fill the table: the
// guard sheds them nevertheless, says what is missing to the record, and the reader reads the rest. The table is so full that
// the guard does not wait for a reader that catches up.
func TestGuardWithAFullLog(t *testing.T) {
	need(t)
	ns, f := newFloodNS(t)
	entries := func(key string) int {
		text, err := ns.ReadSysctl("net.netfilter.nf_conntrack_" + key)
		must(t, err)
		n, err := strconv.Atoi(text)
		must(t, err)
		return n
	}
	n := entries("max") * 6 / 10
	stderr, dir := fullPipe(t), t.TempDir()
	conf, log := filepath.Join(dir, "ctlogd.yaml"), filepath.Join(dir, "flows")
	good := "input: {conntrack: {table_guard: 1, receive_buffer: 128KiB}}\nmetrics: {listen: 127.0.0.1:9469}\n" +
		"outputs: {jsonl: [{path: " + log + "}]}\n"
	must(t, os.WriteFile(conf, []byte(good), 0o644))
	d := start(t, ns, exec.Command("sh", "-c", "exec 2>"+stderr+"; exec "+buildDaemon(t, false)+" run -c "+conf))
	d.awaitMember(t, lab.GroupDestroy)
	awaitListener(t, ns, "tcp", 9469)
	m := metricsOf{ns: ns}
	metric := func(name string) float64 {
		m.scrape(t)
		return m.value(t, name)
	}
	// Each refused configuration makes a long line.
	must(t, os.WriteFile(conf, []byte(good+"log: {level: "+strings.Repeat("x", 100<<10)+"}\n"), 0o644))
	eventually(t, "lines of the log are dropped", func() bool {
		must(t, d.Process.Signal(syscall.SIGHUP))
		return metric("ctlogd_log_lines_dropped_total") > 0
	})

	feed, release, err := lab.Starve(d.Process.Pid)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(release)
	must(t, f.Create(0, n))
	must(t, f.Delete(0, n))
	eventually(t, "the guard has shed", func() bool { return entries("count") <= entries("max")/100 })
	must(t, feed())
	var got string
	defer func() { t.Log(got) }()
	eventually(t, "each flow is on record, or in a gap", func() bool {
		flows, lost := 0, 0
		for _, r := range readRecords(t, log) {
			if r["event"] != "gap" {
				flows++
			} else if k, err := r["lost"].(json.Number).Int64(); err == nil && r["cause"] == "guard" {
				lost += int(k)
			} else {
				t.Fatalf("a gap of another kind: %v", r)
			}
		}
		got = fmt.Sprintf("of %d flows %d are on record, %d in gaps", n, flows, lost)
		return flows+lost == n && lost > 0
	})
	if metric("ctlogd_guard_sheds_total") == 0 {
		t.Error("nothing was shed")
	}
	d.stop(t)
}

func pipePath(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
