//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	d.stop(t)
}

// Standard error is a pipe that is full and that nobody reads: flows are logged, SIGHUP is obeyed, and SIGTERM ends the
// daemon with success.
func TestStderrThatNobodyReads(t *testing.T) {
	need(t)
	const n = 20000
	ns, f := newFloodNS(t)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	must(t, w.SetWriteDeadline(time.Now().Add(-time.Second))) // it is not waited for room
	for err = nil; err == nil; {
		_, err = w.Write(make([]byte, 4096))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
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
	// The shell makes it a blocking pipe again, which os.Pipe's is not for us.
	d := start(t, ns, exec.Command("sh", "-c", "exec 2>"+pipePath(w)+"; exec "+buildDaemon(t, false)+" run -c "+conf))
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

func pipePath(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
