//go:build integration

package systemd

import (
	"bytes"
	"io"
	"os"
	"testing"
)

// A system that goes down has its flows written, though nobody tells of their end: nologin(5) is there before the
// service is told to end, by the order of the units alone.
func TestOpenAtReboot(t *testing.T) {
	const n = 3000
	m := boot(t, outputs)
	must(t, m.flood.Create(0, n))
	m.systemctl(t, "restart", "ctlogd")
	if text, err := os.ReadFile(m.path(flowsFile)); err != nil || bytes.Contains(text, []byte(`"event":"open"`)) {
		t.Errorf("open records at a restart, or %v", err)
	}
	// What stands between the service and the login on a system that is whole.
	const sessions = "/etc/systemd/system/systemd-user-sessions.service.d"
	must(t, os.MkdirAll(m.path(sessions), 0o755))
	must(t, os.WriteFile(m.path(sessions+"/lab.conf"),
		[]byte("[Unit]\nDefaultDependencies=no\nWants=network.target\nConflicts=shutdown.target\nBefore=shutdown.target\n"), 0o644))
	m.systemctl(t, "daemon-reload")
	m.systemctl(t, "start", "systemd-user-sessions.service")

	// The file outlives the machine as long as it is open.
	f, err := os.Open(m.path(flowsFile))
	must(t, err)
	defer f.Close()
	_, err = m.run("systemctl", "poweroff")
	must(t, err)
	eventually(t, "the machine is off", func() bool {
		_, err := os.Stat(m.path("/run/systemd"))
		return err != nil
	})
	text, err := io.ReadAll(f)
	must(t, err)
	if got := bytes.Count(text, []byte(`"event":"open"`)); got != n {
		t.Errorf("%d open records, want %d", got, n)
	}
}
