//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
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
