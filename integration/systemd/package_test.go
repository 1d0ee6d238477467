//go:build integration

package systemd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// buildDeb builds the Debian package of a version, as make packages does.
func buildDeb(t *testing.T, version string) string {
	t.Helper()
	arch := map[string]string{"amd64": "amd64", "arm64": "arm64", "arm": "arm7"}[runtime.GOARCH]
	if arch == "" {
		t.Skipf("there is no package for %s", runtime.GOARCH)
	}
	cmd := exec.Command("go", "run", "./packaging/build", "-o", buildDir, "-version", version, "-commit", "test",
		"-arch", arch, "-format", "deb")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("build the package: %v\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// The package from its installation to its purge, under load, by the real dpkg: nothing is lost while it is restarted
// and upgraded, what the administrator has changed stays, and in the end nothing is left.
func TestPackage(t *testing.T) {
	skipUnlessBootable(t)
	for _, c := range []string{"dpkg", "deb-systemd-invoke"} {
		if _, err := exec.LookPath(c); err != nil {
			t.Skipf("needs the command %s: this is no Debian", c)
		}
	}
	const first, second = "/root/first.deb", "/root/second.deb"
	m := newMachine(t, map[string]string{first: buildDeb(t, "v1.0.0"), second: buildDeb(t, "v1.0.1")}, nil)
	sysctls := []string{"nf_conntrack_acct", "nf_conntrack_timestamp", "nf_conntrack_events"}
	for _, key := range sysctls {
		must(t, m.ns.Sysctl("net.netfilter."+key, "0"))
	}
	dpkg := func(args ...string) {
		t.Helper()
		clock := time.Now()
		out, err := m.run("dpkg", args...)
		t.Logf("dpkg %s, in %v:\n%s", strings.Join(args, " "), time.Since(clock).Round(time.Millisecond), out)
		must(t, err)
	}

	// Who forbids starts by policy-rc.d(8) has none; the service is enabled for the next boot.
	const policy = "/usr/sbin/policy-rc.d"
	must(t, os.WriteFile(m.path(policy), []byte("#!/bin/sh\nexit 101\n"), 0o755))
	dpkg("-i", first)
	for command, want := range map[string]string{"is-enabled": "enabled", "is-active": "inactive"} {
		if out, _ := m.run("systemctl", command, "ctlogd"); out != want {
			t.Errorf("systemctl %s: %s, want %s", command, out, want)
		}
	}
	dpkg("-P", "ctlogd")
	must(t, os.Remove(m.path(policy)))

	// Installed, the service runs, and the kernel reports all that it can.
	dpkg("-i", first)
	m.await(t, "ctlogd.service")
	for _, key := range sysctls {
		if v, err := m.ns.ReadSysctl("net.netfilter." + key); err != nil || v != "1" {
			t.Errorf("%s = %s, %v", key, v, err)
		}
	}
	gid, readers := m.group(t), m.readers(t)
	for path, want := range map[string]owned{
		"/etc/ctlogd":      {0o750, 0, gid},
		config:             {0o640, 0, gid},
		"/var/log/ctlogd":  {0o750, m.user(t), readers},
		"/var/lib/ctlogd":  {0o700, m.user(t), readers},
		"/run/ctlogd":      {0o750, m.user(t), readers},
		"/usr/bin/ctlogd":  {0o755, 0, 0},
		flowsFile:          {0o640, m.user(t), readers},
		"/usr/lib/systemd": {0o755, 0, 0},
	} {
		if got := m.owned(t, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if out, err := m.run("ctlogd", "version"); err != nil || !strings.HasPrefix(out, "ctlogd 1.0.0, commit test, ") {
		t.Errorf("ctlogd version: %s, %v", out, err)
	}
	if out, err := m.run("ctlogd", "check", "-c", config); err != nil {
		t.Errorf("ctlogd check: %v\n%s", err, out)
	}
	m.idle(t)
	m.gateway(t)

	// The administrator edits the configuration. The service is restarted, reloaded and upgraded under load.
	text, err := os.ReadFile(m.path(config))
	must(t, err)
	edited := append(text, "\n# mine\nhost: edited\ninput: {conntrack: {receive_buffer: 128KiB}}\n"...)
	must(t, os.WriteFile(m.path(config), edited, 0o640))
	c := m.churn(t, 6*time.Second)
	for c.running() {
		time.Sleep(time.Second)
		m.systemctl(t, "restart", "ctlogd")
		m.systemctl(t, "reload", "ctlogd")
		if out, _ := m.run("ctlogd", "version"); strings.HasPrefix(out, "ctlogd 1.0.0") {
			pid := m.show("MainPID")
			dpkg("-i", second)
			if m.show("MainPID") == pid {
				t.Error("the upgrade has not restarted the service")
			}
		}
	}
	n := c.wait(t)
	l := m.settle(t, n)
	t.Logf("%d flows: %d missing, %d twice, %d gaps", n, len(l.missing), l.again, len(l.gaps))
	if len(l.missing)+len(l.gaps) > 0 {
		t.Errorf("%d flows are missing (%v, ...), and there are %d gaps", len(l.missing), l.first(), len(l.gaps))
	}
	if out, err := m.run("ctlogd", "version"); err != nil || !strings.HasPrefix(out, "ctlogd 1.0.1") {
		t.Errorf("ctlogd version after the upgrade: %s, %v", out, err)
	}
	if now, err := os.ReadFile(m.path(config)); err != nil || !bytes.Equal(now, edited) {
		t.Errorf("the configuration after the upgrade, %v:\n%s", err, now)
	}
	if got, want := m.owned(t, config), (owned{0o640, 0, gid}); got != want {
		t.Errorf("%s after the upgrade is %v, want %v", config, got, want)
	}

	// The reader stops: the watchdog ends the process, and the next one reads what was held back.
	const held = 50_000
	pid := m.signal(t, "STOP")
	must(t, m.flood.Churn(n, n+held))
	stopped := time.Now()
	eventually(t, "the watchdog has ended the process", func() bool { return m.show("MainPID") != pid })
	m.await(t, "ctlogd.service")
	l = m.settle(t, n+held)
	t.Logf("the watchdog has ended a process; of %d flows %d are missing", held, len(l.missing))
	l.mustExplain(t, "crash", func(int) time.Time { return stopped })
	// systemd wakes the process for its SIGABRT, so that it may read a few blocks and not come to write them.
	if len(l.missing) > held/100 {
		t.Errorf("%d flows are missing", len(l.missing))
	}

	// One that the administrator has stopped is not started by an upgrade. One that was removed is, when it comes back.
	m.systemctl(t, "stop", "ctlogd")
	dpkg("-i", second)
	if out, _ := m.run("systemctl", "is-active", "ctlogd"); out != "inactive" {
		t.Errorf("after an upgrade of a stopped service it is %s", out)
	}
	dpkg("-r", "ctlogd")
	if now, err := os.ReadFile(m.path(config)); err != nil || !bytes.Equal(now, edited) {
		t.Errorf("the configuration after the removal: %v", err)
	}
	dpkg("-i", second)
	m.await(t, "ctlogd.service")
	dpkg("-P", "ctlogd")
	if k := m.listeners(t); k != 0 {
		t.Errorf("%d sockets are listening after the purge", k)
	}
	left, err := m.run("find", "/", "-xdev", "(", "-path", "/proc", "-o", "-path", "/sys", "-o", "-path", "/tmp", "-o",
		"-path", "/root", "-o", "-path", "/home", "-o", "-path", "/work", ")", "-prune", "-o", "-name", "*ctlogd*", "-print")
	must(t, err)
	run, err := m.run("find", "/run", "-xdev", "-name", "*ctlogd*", "-print")
	must(t, err)
	for path := range strings.Lines(left + "\n" + run) {
		switch path = strings.TrimSpace(path); path {
		case "", ownLog, "/etc/systemd/system/ctlogd.service.d": // the test's
		default:
			if _, err := os.Lstat(path); err != nil { // and not on the machine below
				t.Errorf("the purge has left %s", path)
			}
		}
	}
}

// idle tells what the service costs when there is nothing to log.
func (m *machine) idle(t *testing.T) {
	t.Helper()
	const within = 2 * time.Second
	dir := m.path("/proc/" + m.show("MainPID"))
	ran := func() (sum time.Duration) {
		threads, err := filepath.Glob(dir + "/task/*/schedstat")
		must(t, err)
		for _, thread := range threads {
			text, err := os.ReadFile(thread)
			must(t, err)
			var ns time.Duration
			_, err = fmt.Sscan(string(text), &ns)
			must(t, err)
			sum += ns
		}
		return sum
	}
	before := ran()
	time.Sleep(within)
	used := ran() - before
	status, err := os.ReadFile(dir + "/status")
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS:") || strings.HasPrefix(line, "VmHWM:") {
			t.Log(strings.Join(strings.Fields(line), " "))
		}
	}
	t.Logf("idle, it ran for %v in %v: %.2f %% of a core", used.Round(time.Microsecond), within,
		100*used.Seconds()/within.Seconds())
}

// gateway makes the machine translate the addresses of some exchanges, and reads their records.
func (m *machine) gateway(t *testing.T) {
	t.Helper()
	const n = 50
	client, err := lab.New("client")
	must(t, err)
	defer client.Close()
	server, err := lab.New("server")
	must(t, err)
	defer server.Close()
	must(t, m.ns.Link("lan", []string{"192.168.1.1/24"}, client, "eth0", []string{"192.168.1.2/24"}))
	must(t, m.ns.Link("wan", []string{"198.51.100.1/24"}, server, "eth0", []string{"198.51.100.2/24"}))
	must(t, client.Run("ip", "route", "add", "default", "via", "192.168.1.1"))
	for key, value := range map[string]string{
		"net.ipv4.ip_forward": "1", "net.netfilter.nf_conntrack_udp_timeout": "1",
		"net.netfilter.nf_conntrack_udp_timeout_stream": "1",
	} {
		must(t, m.ns.Sysctl(key, value))
	}
	must(t, m.ns.Nft(`table ip nat {
		chain post {
			type nat hook postrouting priority 100
			oifname "wan" masquerade
		}
	}`))
	conn, err := server.ListenPacket("udp", "198.51.100.2:7")
	must(t, err)
	defer conn.Close()
	go lab.Answer(conn, func(query []byte) []byte { return query })
	for i := range n {
		_, err := client.Exchange("udp", fmt.Sprintf("192.168.1.2:%d", 40000+i), "198.51.100.2:7", []byte("hello"))
		must(t, err)
	}
	eventually(t, "the flows have ended", func() bool {
		left, err := m.ns.Expire()
		must(t, err)
		return left == 0
	})
	m.settle(t, 0)
	file, err := os.ReadFile(m.path(flowsFile))
	must(t, err)
	// A query that a busy machine answers late is a flow of its own, as the first one is over by then.
	translated, ids := map[int]bool{}, map[string]bool{}
	for line := range bytes.Lines(file) {
		var r struct {
			Src   string `json:"src_ip"`
			Port  int    `json:"src_port"`
			NAT   string `json:"nat_src_ip"`
			Bytes int    `json:"orig_bytes"`
			Start string
			ID    string `json:"flow_id"`
		}
		must(t, json.Unmarshal(line, &r))
		if r.Src == "192.168.1.2" && r.Port >= 40000 && r.Port < 40000+n && r.NAT == "198.51.100.1" && r.Bytes > 0 &&
			r.Start != "" && r.ID != "" {
			if ids[r.ID] {
				t.Errorf("flow %s is on record twice", r.ID)
			}
			translated[r.Port], ids[r.ID] = true, true
		}
	}
	if len(translated) != n {
		t.Errorf("%d of %d translated flows are on record, with counters and times:\n%s", len(translated), n, file)
	}
	must(t, m.ns.Run("nft", "flush", "ruleset"))
}

// owned is a file's mode and whose it is.
type owned struct {
	mode     os.FileMode
	uid, gid int
}

func (o owned) String() string { return fmt.Sprintf("%o of %d:%d", o.mode, o.uid, o.gid) }

func (m *machine) owned(t *testing.T, path string) owned {
	t.Helper()
	info, err := os.Stat(m.path(path))
	must(t, err)
	st := info.Sys().(*syscall.Stat_t)
	return owned{info.Mode().Perm(), int(st.Uid), int(st.Gid)}
}

// user and group return the numbers of the service's.
func (m *machine) user(t *testing.T) int  { return m.id(t, "-u") }
func (m *machine) group(t *testing.T) int { return m.id(t, "-g") }

// readers returns the number of the group of those who may read records.
func (m *machine) readers(t *testing.T) (n int) {
	t.Helper()
	out, err := m.run("getent", "group", "ctlogd-readers")
	must(t, err)
	_, err = fmt.Sscanf(out, "ctlogd-readers:x:%d", &n)
	must(t, err)
	return n
}

func (m *machine) id(t *testing.T, which string) (n int) {
	t.Helper()
	out, err := m.run("id", which, "ctlogd")
	must(t, err)
	_, err = fmt.Sscan(out, &n)
	must(t, err)
	return n
}
