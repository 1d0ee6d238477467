//go:build integration

package systemd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
)

const (
	outputs = "outputs: {jsonl: [{path: " + flowsFile + "}]}\nstate_directory: /var/lib/ctlogd\n"
	small   = "input: {conntrack: {receive_buffer: 128KiB}}\n" // some hundred events, the rest is held back
	churnHz = 20_000
)

// churnFor is how long flows end beside what the test does, and pause what it leaves between one thing and the next;
// CTLOGD_LONG=1 takes its time.
var churnFor, pause = 10 * time.Second, 2 * time.Second

func init() {
	if os.Getenv("CTLOGD_LONG") != "" {
		churnFor, pause = 20*time.Second, 4*time.Second
	}
}

// The service is up with nothing else there: no journal, no bus, no name service.
func TestBoot(t *testing.T) {
	m := boot(t, outputs)
	must(t, m.flood.Churn(0, 1000))
	m.settle(t, 1000)
	for property, want := range map[string]string{
		"Result": "success", "NFileDescriptorStore": "1", "StatusText": "logging flows",
	} {
		if got := m.show(property); got != want {
			t.Errorf("%s=%s, want %s", property, got, want)
		}
	}
	status, err := os.ReadFile(m.path("/proc/" + m.show("MainPID") + "/status"))
	must(t, err)
	for _, want := range []string{
		"NoNewPrivs:\t1", "Seccomp:\t2",
		"CapEff:\t0000000000001000", "CapBnd:\t0000000000001000", "CapAmb:\t0000000000001000", // CAP_NET_ADMIN
	} {
		if !bytes.Contains(status, []byte(want+"\n")) {
			t.Errorf("the process has no %q:\n%s", want, status)
		}
	}
	m.systemctl(t, "reload", "ctlogd")
	must(t, m.flood.Churn(1000, 2000))
	if l := m.settle(t, 2000); len(l.missing) > 0 {
		t.Errorf("%d flows are missing", len(l.missing))
	}
}

// Who may read the records, and look at the daemon, may not read its passwords and keys; they can be root's alone, and
// come to the service as credentials.
func TestReaders(t *testing.T) {
	const password, key, web = "/etc/ctlogd/kafka.password", "/etc/ctlogd/client.key", "/root/web.yml"
	m := newService(t, map[string]string{config: outputs + "metrics: {listen: '127.0.0.1:9469', web_config: 'credential:web'}\n",
		// The password is "secret": bcrypt of cost 4.
		web:      "basic_auth_users: {prometheus: $2a$04$MPRdoeBgSpU6gOekSvCDzONoWtpGl5m35nE9D/a6pou56gb/oEjbW}\n",
		password: "secret\n", key: "secret\n",
		"/etc/systemd/system/ctlogd.service.d/web.conf": "[Service]\nLoadCredential=web:" + web + "\n"})
	for _, path := range []string{config, password, key} {
		_, err := m.run("chown", "root:ctlogd", path)
		must(t, err)
		must(t, os.Chmod(m.path(path), 0o640))
	}
	must(t, os.Chmod(m.path(web), 0o600))
	// As an older version has left them: the start hands them over.
	_, err := m.run("chgrp", "-R", "ctlogd", "/var/log/ctlogd", "/var/lib/ctlogd")
	must(t, err)
	m.systemctl(t, "restart", "ctlogd")
	must(t, m.flood.Churn(0, 1000))
	m.settle(t, 1000)
	credential := "/run/credentials/ctlogd.service/web"
	as := func(who string, command ...string) (string, error) {
		flags := map[string][]string{
			"reader":  {"--reuid=65534", "--regid=65534", "--groups=ctlogd-readers"},
			"nobody":  {"--reuid=65534", "--regid=65534", "--clear-groups"},
			"service": {"--reuid=ctlogd", "--regid=ctlogd-readers", "--groups=ctlogd"},
		}[who]
		return m.run("setpriv", append(flags, command...)...)
	}
	for _, path := range []string{flowsFile, config, password, key, web, credential, "/var/lib/ctlogd/mark.json"} {
		for who, may := range map[string]bool{"reader": path == flowsFile, "nobody": false,
			"service": path != web} {
			if out, err := as(who, "head", "-c1", path); (err == nil) != may {
				t.Errorf("%s may read %s: %t, want %t: %s", who, path, err == nil, may, out)
			}
		}
	}
	for who, want := range map[string]string{"reader": " 1,000 events", "nobody": "permission denied; become a member of the " +
		"socket's group (usermod -aG ctlogd-readers USER"} {
		if out, err := as(who, "/usr/bin/ctlogd", "status"); !strings.Contains(out, want) {
			t.Errorf("status as %s: %v\n%s", who, err, out)
		}
	}
	// The credential is in use, and check by hand finds it too.
	client := http.Client{Transport: &http.Transport{DialContext: m.ns.DialContext, DisableKeepAlives: true}}
	for url, want := range map[string]int{"http://127.0.0.1:9469/healthz": 401, "http://prometheus:secret@127.0.0.1:9469/healthz": 200} {
		eventually(t, url+" is answered", func() bool {
			r, err := client.Get(url)
			if err != nil {
				return false
			}
			defer r.Body.Close()
			if r.StatusCode != want {
				t.Errorf("%s: %s, want %d", url, r.Status, want)
			}
			return true
		})
	}
	if out, err := m.run("ctlogd", "check", "--config-only", "-c", config); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	m.systemctl(t, "reload", "ctlogd") // its check sees the credential as the service does
}

// A reload with a mistake fails, changes nothing, and opens the files again all the same; the next one is taken. A
// restart with a mistake is tried once, and the journal has the mistake.
func TestMistakes(t *testing.T) {
	m := boot(t, outputs)
	pid := m.show("MainPID")
	write := func(text string) { must(t, os.WriteFile(m.path(config), []byte(text), 0o644)) }
	write("outputs: {jsnol: []}\n")
	eventually(t, "the file is open", func() bool { _, err := os.Stat(m.path(flowsFile)); return err == nil })
	must(t, os.Rename(m.path(flowsFile), m.path(flowsFile+".1")))
	if out, err := m.run("systemctl", "reload", "ctlogd"); err == nil {
		t.Errorf("a reload with a mistake succeeds: %s", out)
	}
	eventually(t, "the file is opened again", func() bool { _, err := os.Stat(m.path(flowsFile)); return err == nil })
	if m.show("ActiveState") != "active" || m.show("MainPID") != pid {
		t.Errorf("the service is %s, and process %s became %s", m.show("ActiveState"), pid, m.show("MainPID"))
	}
	write(outputs + "host: mended\n")
	m.systemctl(t, "reload", "ctlogd")
	must(t, m.flood.Churn(0, 1000))
	if l := m.settle(t, 1000); len(l.missing)+len(l.gaps) > 0 {
		t.Errorf("%d flows are missing, and there are %d gaps", len(l.missing), len(l.gaps))
	}

	write("outputs: {jsnol: []}\n")
	if out, err := m.run("systemctl", "restart", "ctlogd"); err == nil {
		t.Errorf("a restart with a mistake succeeds: %s", out)
	}
	for property, want := range map[string]string{"ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "78"} {
		if got := m.show(property); got != want {
			t.Errorf("%s=%s, want %s", property, got, want)
		}
	}
	if k := m.listeners(t); k != 0 {
		t.Errorf("%d sockets are listening", k)
	}
	if log, err := os.ReadFile(m.path(ownLog)); err != nil || !bytes.Contains(log, []byte(config+":1: outputs.jsnol: unknown key")) {
		t.Errorf("the log does not name the mistake (%v):\n%s", err, log)
	}
	write(outputs)
	m.systemctl(t, "start", "ctlogd")
}

// The unit exposes no more than it must, as systemd counts it: 1.7, of which the host's own name, the records' group and
// the low priority of what seals an archive are 0.1 each or less.
func TestSecurity(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("needs the command systemd-analyze")
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=17",
		"../../packaging/systemd/ctlogd.service").CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// Nothing that the network would have to answer keeps the service from its start, or makes it late: here all that is
// sent vanishes, and every destination may take longer than systemd waits for a start.
func TestBootAlone(t *testing.T) {
	const n = 1000
	m := boot(t, `
state_directory: /var/lib/ctlogd
outputs:
  jsonl: [{path: `+flowsFile+`}]
  ipfix:
    - {address: tcp://192.0.2.10, dial_timeout: 10m}
    - {address: udp://collector.example.net, dial_timeout: 10m, spool: {path: /var/lib/ctlogd/spool/ipfix}}
  kafka:
    - {brokers: ["192.0.2.20:9092", "kafka.example.net:9092"], topic: flows, connect_timeout: 10m}
`)
	if got := m.show("NRestarts"); got != "0" {
		t.Errorf("the service was started %s times more", got)
	}
	must(t, m.flood.Churn(0, n))
	if l := m.settle(t, n); len(l.missing)+len(l.gaps) > 0 {
		t.Errorf("%d flows are missing, and there are %d gaps", len(l.missing), len(l.gaps))
	}
}

// Restarts lose nothing: what comes meanwhile waits in the socket.
func TestRestarts(t *testing.T) {
	m := boot(t, outputs)
	c := m.churn(t, churnFor)
	restarts := 0
	for c.running() {
		time.Sleep(pause)
		clock := time.Now()
		m.systemctl(t, "restart", "ctlogd")
		restarts++
		t.Logf("restarted in %v", time.Since(clock).Round(time.Millisecond))
	}
	n := c.wait(t)
	l := m.settle(t, n)
	t.Logf("%d restarts, %d flows: %d missing, %d twice, %d gaps", restarts, n, len(l.missing), l.again, len(l.gaps))
	if len(l.missing)+len(l.gaps) > 0 {
		t.Errorf("%d flows are missing (%v, ...), and there are %d gaps", len(l.missing), l.first(), len(l.gaps))
	}
}

// A process that ends before it has read all that is held back leaves it to the next one, which makes no gap; where that comes
// only after the socket is gone, what it can no longer read is in the gap of the stop.
func TestEndWhileEndsAreHeldBack(t *testing.T) {
	const n = 50_000
	m := boot(t, small+outputs)
	warnings := func() int {
		log, err := os.ReadFile(m.path(ownLog))
		must(t, err)
		return bytes.Count(log, []byte("told to end while ended flows are still held back"))
	}
	must(t, m.flood.Create(0, 2*n))
	for i, command := range [][]string{{"restart", "ctlogd"}, {"stop", "ctlogd"}} {
		m.signal(t, "STOP")
		must(t, m.flood.Delete(i*n, i*n+n))
		deleted := time.Now()
		m.systemctl(t, command...) // has it continue
		if got := warnings(); got != i+1 {
			t.Errorf("%v: all was read before the end: the test has tested nothing", command)
		}
		if i == 1 {
			m.systemctl(t, "start", "ctlogd")
		}
		l := m.settle(t, i*n+n)
		t.Logf("%v: %d of %d are missing, %d gaps", command, len(l.missing), n, len(l.gaps))
		if i == 0 && len(l.missing)+len(l.gaps) > 0 {
			t.Errorf("%d flows are missing, and there are %d gaps", len(l.missing), len(l.gaps))
		}
		l.mustExplain(t, "downtime", func(int) time.Time { return deleted })
	}
}

// After a crash the next process reads on; what the last one had read and not written is missing, and a gap says when.
func TestCrashes(t *testing.T) {
	m := boot(t, outputs)
	c := m.churn(t, churnFor)
	for range 3 {
		time.Sleep(pause)
		m.signal(t, "KILL")
	}
	n := c.wait(t)
	l := m.settle(t, n)
	t.Logf("3 times killed, %d flows: %d missing, %d twice, %d gaps", n, len(l.missing), l.again, len(l.gaps))
	l.mustExplain(t, "crash", c.at)
}

// What the kernel drops while there is no process, under best_effort, is counted in the gaps as well.
func TestDropsBetweenProcesses(t *testing.T) {
	m := boot(t, "input: {conntrack: {delivery: best_effort, receive_buffer: 128KiB}}\n"+outputs,
		"[Service]\nExecStartPre=/bin/sleep 1\n")
	const step = 5000
	n := 0
	for range 2 {
		must(t, m.flood.Churn(n, n+step))
		n += step
		restarted := make(chan struct{})
		go func() {
			defer close(restarted)
			m.systemctl(t, "restart", "ctlogd")
		}()
		eventually(t, "no process is there", func() bool { return m.show("ActiveState") == "activating" })
		must(t, m.flood.Churn(n, n+step))
		n += step
		<-restarted
	}
	l := m.settle(t, n)
	lost := 0
	for _, g := range l.gaps {
		if g.Cause != "overrun" || g.Lost == nil {
			t.Errorf("a gap of another kind: %+v", g)
			continue
		}
		lost += *g.Lost
	}
	t.Logf("%d flows: %d on record, %d in gaps", n, l.found, lost)
	if len(l.missing) != lost || lost < step/2 || l.again != 0 {
		t.Errorf("%d flows are missing, the gaps tell of %d, and %d came twice", len(l.missing), lost, l.again)
	}
}

// A process that is stopped as a whole is ended by the watchdog, and the next one reads what was held back.
func TestWatchdog(t *testing.T) {
	const n = 100_000
	m := boot(t, small+outputs)
	must(t, m.flood.Create(0, n))
	clock := time.Now()
	pid := m.signal(t, "STOP")
	must(t, m.flood.Delete(0, n))
	deleted := time.Now()
	held := m.entries(t)
	eventually(t, "the watchdog has ended the process", func() bool { return m.show("MainPID") != pid })
	ended := time.Since(clock)
	eventually(t, "the service is up again", func() bool { return m.show("ActiveState") == "active" })
	l := m.settle(t, n)
	t.Logf("%d ends were held back; ended after %v, up again and all read after %v; %d missing", held,
		ended.Round(time.Millisecond), time.Since(clock).Round(time.Millisecond), len(l.missing))
	if held == 0 {
		t.Error("nothing was held back: the test has tested nothing")
	}
	// systemd wakes the process for its SIGABRT, so that it may read a few blocks and not come to write them.
	l.mustExplain(t, "crash", func(int) time.Time { return deleted })
	if len(l.missing) > n/100 {
		t.Errorf("%d flows are missing", len(l.missing))
	}
}

// A process that cannot start gives the socket up the first time.
func TestBrokenConfiguration(t *testing.T) {
	const n = 50_000
	m := boot(t, small+outputs, "[Service]\nRestartSec=3\n")
	must(t, m.flood.Create(0, n))
	must(t, os.WriteFile(m.path(config), []byte("outputs: {}\n"), 0o644))
	m.signal(t, "KILL")
	must(t, m.flood.Delete(0, n))
	held, clock := m.entries(t), time.Now()
	eventually(t, "nothing is held back any more", func() bool { return m.entries(t) == 0 })
	t.Logf("%d ends were held back, for %v", held, time.Since(clock).Round(time.Millisecond))
	if held < n/2 {
		t.Errorf("%d of %d ends were held back: the test has tested nothing", held, n)
	}
	if k := m.listeners(t); k != 0 {
		t.Errorf("%d sockets are listening", k)
	}
	// A good one starts again when it is told to, with a socket of its own.
	eventually(t, "the service has failed", func() bool { return m.show("ActiveState") == "failed" })
	must(t, os.WriteFile(m.path(config), []byte(outputs), 0o644))
	m.systemctl(t, "start", "ctlogd")
	eventually(t, "the service is up again", func() bool { return m.show("ActiveState") == "active" })
	must(t, m.flood.Churn(n, 2*n))
	l := m.settle(t, 2*n)
	if k := 2*n - l.found - n; k > 0 {
		t.Errorf("%d flows since the good start are missing", k)
	}
}

// A program that does not come to giving anything up: the limit of starts makes the manager do it.
func TestCrashLoop(t *testing.T) {
	const n = 50_000
	m := boot(t, small+outputs)
	must(t, m.flood.Create(0, n))
	must(t, os.WriteFile(m.path("/etc/systemd/system/ctlogd.service.d/loop.conf"),
		[]byte("[Service]\nExecStart=\nExecStart=/bin/false\n"), 0o644))
	m.systemctl(t, "daemon-reload")
	m.signal(t, "KILL")
	must(t, m.flood.Delete(0, n))
	held, clock := m.entries(t), time.Now()
	eventually(t, "nothing is held back any more", func() bool { return m.entries(t) == 0 })
	t.Logf("%d ends were held back, for %v and %s starts", held, time.Since(clock).Round(time.Millisecond),
		m.show("NRestarts"))
	if held < n/2 {
		t.Errorf("%d of %d ends were held back: the test has tested nothing", held, n)
	}
	eventually(t, "the service has failed for good", func() bool { return m.show("ActiveState") == "failed" })
	if got := m.show("Result"); got != "start-limit-hit" && got != "exit-code" {
		t.Errorf("Result=%s", got)
	}
}

func TestStopReleases(t *testing.T) {
	const n = 20_000
	m := boot(t, small+outputs)
	must(t, m.flood.Create(0, 2*n))
	must(t, m.flood.Delete(0, n))
	m.systemctl(t, "stop", "ctlogd")
	if k := m.listeners(t); k != 0 {
		t.Errorf("%d sockets are listening after the stop", k)
	}
	must(t, m.flood.Delete(n, 2*n))
	eventually(t, "nothing is held back", func() bool { return m.entries(t) == 0 })
	if l := m.ledger(t, n); len(l.missing) > 0 {
		t.Errorf("of the flows that ended before the stop %d are missing", len(l.missing))
	}
}

// churn makes flows and ends them, 20,000 a second, beside what the test does.
type churn struct {
	done chan struct{}
	err  error
	n    int
	ends []time.Time // by churnStep flows: after their ends
}

const churnStep = churnHz / 100

func (m *machine) churn(t *testing.T, lasting time.Duration) *churn {
	t.Helper()
	c := &churn{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		start := time.Now()
		for next := start; next.Sub(start) < lasting; next = next.Add(time.Second / 100) {
			time.Sleep(time.Until(next))
			if c.err = m.flood.Churn(c.n, c.n+churnStep); c.err != nil {
				return
			}
			c.n += churnStep
			c.ends = append(c.ends, time.Now())
		}
	}()
	return c
}

func (c *churn) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// wait waits for the end, and returns how many flows there were.
func (c *churn) wait(t *testing.T) int {
	t.Helper()
	<-c.done
	must(t, c.err)
	return c.n
}

// at returns when flow i ended, or up to 10 ms and what Churn took later.
func (c *churn) at(i int) time.Time { return c.ends[i/churnStep] }

// ledger is what the file says of the flows 0 <= i < n.
type ledger struct {
	found, again int
	missing      []int
	gaps         []gap
}

// mustExplain makes sure that each flow that is missing ended within a gap of the cause.
func (l *ledger) mustExplain(t *testing.T, cause string, at func(i int) time.Time) {
	t.Helper()
	for _, i := range l.missing {
		at, within := at(i), false
		for _, g := range l.gaps {
			within = within || g.Cause == cause && !at.Before(g.From) && !at.After(g.To)
		}
		if !within {
			t.Fatalf("flow %d, of %v, is missing, and no gap "+cause+" spans it", i, at)
		}
	}
}

func (l *ledger) first() []int { return l.missing[:min(5, len(l.missing))] }

type gap struct {
	Cause    string
	From, To time.Time
	Lost     *int
}

// settle waits until all flows 0 <= i < n are on record and nothing more comes, or nothing has come for three seconds.
func (m *machine) settle(t *testing.T, n int) (l ledger) {
	t.Helper()
	var last, read int64 = -1, -1
	for since := time.Now(); time.Since(since) < 3*time.Second; time.Sleep(50 * time.Millisecond) {
		info, err := os.Stat(m.path(flowsFile))
		must(t, err)
		if info.Size() != last {
			last, since = info.Size(), time.Now()
		}
		if n > 0 && read != last && time.Since(since) > 500*time.Millisecond {
			if l, read = m.ledger(t, n), last; len(l.missing) == 0 {
				return l
			}
		}
	}
	return m.ledger(t, n)
}

func (m *machine) ledger(t *testing.T, n int) (l ledger) {
	t.Helper()
	f, err := os.Open(m.path(flowsFile))
	must(t, err)
	defer f.Close()
	seen := make([]int, n)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var r struct {
			gap
			Event   string
			NATSrc  netip.Addr `json:"nat_src_ip"`
			NATPort uint16     `json:"nat_src_port"`
		}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Logf("torn: %q", lines.Bytes())
			continue
		}
		if r.Event == "gap" {
			l.gaps = append(l.gaps, r.gap)
			t.Logf("%s", bytes.TrimSpace(lines.Bytes()))
		} else if i, ok := lab.FlowNumber(r.NATSrc, r.NATPort); ok && i < n {
			seen[i]++
		}
	}
	must(t, lines.Err())
	for i, k := range seen {
		switch {
		case k == 0:
			l.missing = append(l.missing, i)
		default:
			l.found++
			l.again += k - 1
		}
	}
	return l
}
