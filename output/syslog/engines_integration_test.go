//go:build integration

package syslog

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

// engine is a real daemon that takes syslog and writes what comes, for each way a file of lines: the structured data, a
// space, the message.
type engine struct {
	dir, out string // its own files; where it writes
	ports    map[string]int
	command  func() *exec.Cmd

	cmd    *exec.Cmd
	stderr string // a file
	exited chan struct{}
}

// freePort returns one that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func newEngine(t *testing.T, ways ...string) *engine {
	e := &engine{dir: t.TempDir(), ports: map[string]int{}}
	e.out = e.dir
	for _, way := range ways {
		e.ports[way] = freePort(t)
	}
	if err := os.Chmod(e.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *engine) begin(t *testing.T) {
	t.Helper()
	e.cmd, e.exited = e.command(), make(chan struct{})
	e.stderr = filepath.Join(e.dir, "stderr")
	f, err := os.OpenFile(e.stderr, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e.cmd.Stderr = f
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, exited := e.cmd, e.exited
	go func() { cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
		if t.Failed() {
			log := e.log()
			t.Logf("%s says:\n%s", cmd.Path, log[:min(len(log), 4000)])
		}
	})
	for way, port := range e.ports {
		if way == "udp" {
			continue
		}
		eventually(t, way+" is listened to", func() bool {
			select {
			case <-exited:
				t.Fatalf("%s has ended", cmd.Path)
			default:
			}
			c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}
}

// log returns what the engine says.
func (e *engine) log() string {
	b, _ := os.ReadFile(e.stderr)
	return string(b)
}

func (e *engine) end(t *testing.T) {
	t.Helper()
	e.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-e.exited:
	case <-time.After(time.Minute):
		t.Fatalf("%s does not end", e.cmd.Path)
	}
}

// file returns the file of what came on a way.
func (e *engine) file(way string) string { return filepath.Join(e.out, way) }

func (e *engine) lines(way string) int {
	b, err := os.ReadFile(e.file(way))
	if err != nil {
		return 0
	}
	return bytes.Count(b, []byte("\n"))
}

// await waits until n lines have come.
func (e *engine) await(t *testing.T, way string, n int) {
	t.Helper()
	last, since := -1, time.Now()
	for {
		now := e.lines(way)
		if now >= n {
			return
		}
		if now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > 30*time.Second {
			t.Fatalf("%s: %d of %d records have come, and no more come", way, now, n)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// check wants the records 0 <= i < n, each once, each with its flow id as structured data.
func (e *engine) check(t *testing.T, way string, n int) {
	t.Helper()
	b, err := os.ReadFile(e.file(way))
	if err != nil {
		t.Fatal(err)
	}
	seen := make([]int, n)
	written := regexp.MustCompile(`^\[flow@32473 flow_id="([0-9a-f]{32})"\] ?(\{.*\})\n$`)
	for line := range bytes.Lines(b) {
		m := written.FindSubmatch(line)
		if m == nil {
			t.Fatalf("%s: %q", way, line)
		}
		var r struct {
			ID   int    `json:"ct_id"`
			Flow string `json:"flow_id"`
		}
		if err := json.Unmarshal(m[2], &r); err != nil {
			t.Fatal(err)
		}
		if r.Flow != string(m[1]) || r.ID >= n {
			t.Fatalf("%s: another record's structured data: %s", way, line)
		}
		seen[r.ID]++
	}
	for i, times := range seen {
		if times != 1 {
			t.Fatalf("%s: record %d came %d times", way, i, times)
		}
	}
}

// certify makes the engine's certificate and the client's.
func (e *engine) certify(t *testing.T) TLS {
	t.Helper()
	ca := certtest.New(t)
	known := certtest.Write(t, "ca.pem", ca.PEM)
	_, cert, key := ca.Pair(t, "server", time.Hour)
	for from, to := range map[string]string{known: "ca.pem", cert: "server.pem", key: "server-key.pem"} {
		copyFile(t, from, filepath.Join(e.dir, to))
	}
	_, cert, key = ca.Pair(t, "client", time.Hour)
	return TLS{CA: known, Cert: cert, Key: key}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// newRsyslogd returns an rsyslogd with an input of each kind, that writes into out, or into its own directory.
func newRsyslogd(t *testing.T, out string) (*engine, TLS) {
	t.Helper()
	if _, err := exec.LookPath("rsyslogd"); err != nil {
		t.Skip("needs rsyslogd (make test installs it on Debian, as root)")
	}
	e := newEngine(t, "udp", "tcp", "tls", "lf")
	if out != "" {
		e.out = out
	}
	secure := e.certify(t)
	text := fmt.Sprintf(`
global(workDirectory="%[1]s" maxMessageSize="64k" DefaultNetstreamDriverCAFile="%[1]s/ca.pem"
    DefaultNetstreamDriverCertFile="%[1]s/server.pem" DefaultNetstreamDriverKeyFile="%[1]s/server-key.pem")
module(load="imudp")
module(load="imtcp" MaxSessions="50")
module(load="imuxsock" SysSock.Use="off")
module(load="imptcp")
template(name="msg" type="string" string="%%structured-data%% %%msg%%\n")
input(type="imudp" port="%[2]d" address="127.0.0.1" ruleset="udp")
input(type="imtcp" port="%[3]d" address="127.0.0.1" ruleset="tcp")
input(type="imtcp" port="%[4]d" address="127.0.0.1" ruleset="tls" StreamDriver.Name="gtls" StreamDriver.Mode="1"
    StreamDriver.AuthMode="x509/certvalid")
input(type="imptcp" port="%[5]d" address="127.0.0.1" ruleset="lf" SupportOctetCountedFraming="off")
input(type="imuxsock" Socket="%[1]s/log" UseSpecialParser="off" ParseHostname="on" RateLimit.Interval="0" ruleset="unix")
`, e.dir, e.ports["udp"], e.ports["tcp"], e.ports["tls"], e.ports["lf"])
	for _, way := range []string{"udp", "tcp", "tls", "lf", "unix"} {
		text += fmt.Sprintf("ruleset(name=%q queue.type=\"LinkedList\" queue.size=\"2000000\" queue.timeoutShutdown=\"60000\") {\n"+
			"    action(type=\"omfile\" file=\"%s\" template=\"msg\" action.resumeRetryCount=\"-1\" action.resumeInterval=\"1\")\n}\n",
			way, e.file(way))
	}
	conf := filepath.Join(e.dir, "rsyslog.conf")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	e.command = func() *exec.Cmd {
		return exec.Command("rsyslogd", "-n", "-f", conf, "-i", filepath.Join(e.dir, "pid"))
	}
	return e, secure
}

// send writes the records from to to, as a queue's worker does: again, until they are taken.
func send(t *testing.T, w *Writer, from, to int) {
	t.Helper()
	const batch = 256
	for from < to {
		n := 0
		recs := records(from, min(from+batch, to))
		var err error
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			var k int
			if k, err = w.Write(context.Background(), recs[n:]); err == nil {
				break
			}
			n += k
			if time.Now().After(deadline) {
				t.Fatalf("%s: records are not taken: %v", w.Name(), err)
			}
		}
		from += len(recs)
	}
}

func acknowledged(t *testing.T, w *Writer, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d records are acknowledged", n), func() bool { return w.Acknowledged() == uint64(n) })
}

// TestRsyslog sends records to a real rsyslogd by every way: over TCP and over TLS very many, CTLOGD_LONG=1 making them a
// million. Each arrives once.
func TestRsyslog(t *testing.T) {
	e, secure := newRsyslogd(t, "")
	e.begin(t)
	many := 100_000
	if os.Getenv("CTLOGD_LONG") != "" {
		many = 1_000_000
	}
	for way, c := range map[string]Config{
		"tcp":  {Address: fmt.Sprint("tcp://127.0.0.1:", e.ports["tcp"])},
		"tls":  {Address: fmt.Sprint("tls://127.0.0.1:", e.ports["tls"]), TLS: secure},
		"lf":   {Address: fmt.Sprint("tcp://127.0.0.1:", e.ports["lf"]), Framing: framingLF},
		"udp":  {Address: fmt.Sprint("udp://127.0.0.1:", e.ports["udp"])},
		"unix": {Address: "unix://" + e.dir + "/log"},
	} {
		n := many
		switch way {
		case "lf", "unix":
			n = 20_000
		case "udp":
			n = 100 // what a socket's buffer holds
		}
		w := newWriter(t, c)
		began := time.Now()
		send(t, w, 0, n)
		acknowledged(t, w, n)
		took := time.Since(began)
		e.await(t, way, n)
		if err := w.Close(context.Background()); err != nil {
			t.Errorf("%s: %v", way, err)
		}
		e.check(t, way, n)
		t.Logf("%s: %d records, each once, in %s", way, n, took.Round(time.Millisecond))
	}
}

// TestRsyslogRestarts restarts rsyslogd between records, has it refuse the client's certificate, and fills its disk: what it
// has not lost itself arrives, each record once.
func TestRsyslogRestarts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a small disk")
	}
	small := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", small).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", small).Run() })
	e, secure := newRsyslogd(t, small)
	_, strangeCert, strangeKey := certtest.New(t).Pair(t, "client", time.Hour)
	shown := secure
	shown.Cert, shown.Key = filepath.Join(e.dir, "shown.pem"), filepath.Join(e.dir, "shown-key.pem")
	show := func(cert, key string) {
		copyFile(t, cert, shown.Cert)
		copyFile(t, key, shown.Key)
	}
	show(secure.Cert, secure.Key)
	e.begin(t)
	tcp := newWriter(t, Config{Address: fmt.Sprint("tcp://127.0.0.1:", e.ports["tcp"])})
	tlsWriter := newWriter(t, Config{Address: fmt.Sprint("tls://127.0.0.1:", e.ports["tls"]), TLS: shown})
	ways := map[string]*Writer{"tcp": tcp, "tls": tlsWriter}
	n := 0
	more := func(count int) {
		t.Helper()
		for _, w := range ways {
			send(t, w, n, n+count)
			acknowledged(t, w, n+count)
		}
		n += count
	}
	arrived := func() {
		t.Helper()
		for way := range ways {
			e.await(t, way, n)
		}
	}
	more(500)
	arrived()

	e.end(t)
	for way, w := range ways {
		eventually(t, way+": the end of the session is seen", func() bool {
			_ = w.tender.Lock(t.Context())
			defer w.tender.Unlock()
			return w.session == nil
		})
		if k, err := w.Write(context.Background(), records(n, n+1)); k != 0 || err == nil {
			t.Errorf("%s: Write without a receiver: %d, %v", way, k, err)
		}
	}
	e.begin(t)
	show(strangeCert, strangeKey)
	k, err := tlsWriter.Write(context.Background(), records(n, n+1))
	if k != 0 || err == nil {
		t.Errorf("with a certificate that is refused: %d, %v", k, err)
	}
	t.Logf("a certificate that is refused: %v", err)
	show(secure.Cert, secure.Key)
	more(500)
	arrived()

	hog := filepath.Join(small, "hog")
	f, err := os.Create(hog)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	f.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	for way := range ways {
		e.check(t, way, n)
	}
	more(500) // taken and thrown away by rsyslogd, which tells nobody but its own log
	eventually(t, "rsyslogd has met the full disk", func() bool { return strings.Contains(e.log(), "No space left on device") })
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	for way, w := range ways {
		eventually(t, way+": records come again", func() bool {
			send(t, w, n, n+1)
			b, err := os.ReadFile(e.file(way))
			return err == nil && bytes.Contains(b, fmt.Appendf(nil, `"ct_id":%d,`, n))
		})
		if err := w.Close(context.Background()); err != nil {
			t.Errorf("%s: %v", way, err)
		}
	}
}

// TestRsyslogKilled has rsyslogd killed and started again between records that go there without a connection. The kernel
// takes some meanwhile, and nothing counts as arrived until rsyslogd listens again: then all of them come, each once.
func TestRsyslogKilled(t *testing.T) {
	e, _ := newRsyslogd(t, "")
	for _, way := range []string{"udp", "unix"} {
		c := Config{Address: fmt.Sprint("udp://127.0.0.1:", e.ports["udp"])}
		if way == "unix" {
			c.Address = "unix://" + e.dir + "/log"
		}
		w := newWriter(t, c)
		n := 0
		for range 2 {
			e.begin(t)
			more := 50 // what a socket's buffer holds
			send(t, w, n, n+more)
			n += more
			acknowledged(t, w, n)
			e.await(t, way, n)

			e.cmd.Process.Kill()
			<-e.exited
			before := w.counts.refused.Load()
			reported, failures := 0, 0
			eventually(t, way+": nothing is taken", func() bool {
				k, err := w.Write(context.Background(), records(n+reported, n+reported+10))
				reported += k
				if err != nil {
					failures++
				}
				return failures == 3
			})
			if a := w.Acknowledged(); a != uint64(n) {
				t.Errorf("%s: %d records count as arrived, %d have", way, a, n)
			}
			if w.counts.refused.Load() == before {
				t.Errorf("%s: no refusal is counted", way)
			}
			n += reported
		}
		e.begin(t)
		send(t, w, n, n+10)
		n += 10
		acknowledged(t, w, n)
		e.await(t, way, n)
		e.check(t, way, n)
		if err := w.Close(context.Background()); err != nil {
			t.Errorf("%s: %v", way, err)
		}
		e.end(t)
	}
}

// syslogNG returns the command of a real syslog-ng, from Debian's packages, which are taken apart in the user's cache:
// installed, they would take rsyslogd's place.
func syslogNG(t *testing.T) func(conf, dir string) *exec.Cmd {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(cache, "ctlogd", "syslog-ng")
	if _, err := os.Stat(filepath.Join(root, "whole")); err != nil {
		os.RemoveAll(root)
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-ec", `
apt-get download -q syslog-ng-core libivykis0 libnet1 libpcre3
for deb in *.deb; do dpkg -x "$deb" .; done
touch whole`)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("needs Debian's packages of syslog-ng: %v\n%s", err, out)
		}
	}
	libs, err := filepath.Glob(filepath.Join(root, "usr/lib/*"))
	if err != nil {
		t.Fatal(err)
	}
	modules, err := filepath.Glob(filepath.Join(root, "usr/lib/syslog-ng/*.*"))
	if err != nil || len(modules) == 0 {
		t.Fatalf("no modules in %s: %v", root, err)
	}
	for _, m := range modules {
		if info, err := os.Stat(m); err == nil && info.IsDir() {
			modules[0] = m
		}
	}
	more, _ := filepath.Glob(filepath.Join(root, "lib/*"))
	libs = append(append(libs, more...), modules[0])
	return func(conf, dir string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(root, "usr/sbin/syslog-ng"), "-F", "--no-caps", "-f", conf, "--persist-file", dir+"/persist",
			"--control", dir+"/ctl", "--pidfile", dir+"/pid", "--module-path", modules[0])
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libs, ":"))
		return cmd
	}
}

// TestSyslogNG sends records to a real syslog-ng, whose json-parser reads them: what it has read of each flow is what was
// sent, and what came while it was restarted is there, too.
func TestSyslogNG(t *testing.T) {
	command := syslogNG(t)
	e := newEngine(t, "tcp", "tls", "lf")
	secure := e.certify(t)
	if err := os.Mkdir(filepath.Join(e.dir, "ca"), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(e.dir, "syslog-ng.conf")
	text := fmt.Sprintf(`@version: 3.38
options { stats-freq(0); log-fifo-size(100000); flush-lines(1); log-msg-size(65536); keep-hostname(yes); };
source s_tcp { syslog(ip("127.0.0.1") transport("tcp") port(%[2]d) max-connections(20) log-iw-size(20000)); };
source s_tls { syslog(ip("127.0.0.1") transport("tls") port(%[3]d) max-connections(20) log-iw-size(20000)
    tls(key-file("%[1]s/server-key.pem") cert-file("%[1]s/server.pem") ca-file("%[1]s/ca.pem") peer-verify(required-trusted))); };
source s_lf { network(ip("127.0.0.1") transport("tcp") port(%[4]d) flags(syslog-protocol) max-connections(20) log-iw-size(20000)); };
parser p_json { json-parser(prefix(".flow.")); };
`, e.dir, e.ports["tcp"], e.ports["tls"], e.ports["lf"])
	for _, way := range []string{"tcp", "tls", "lf"} {
		text += fmt.Sprintf("destination d_%[1]s { file(%[2]q template(\"$SDATA $MSG\\n\")); };\n"+
			"destination p_%[1]s { file(%[3]q template(\"${.flow.ct_id} ${.flow.src_ip} ${.flow.end} ${.SDATA.flow@32473.flow_id}\\n\")); };\n"+
			"log { source(s_%[1]s); destination(d_%[1]s); parser(p_json); destination(p_%[1]s); };\n", way, e.file(way), e.file(way+"-parsed"))
	}
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	e.command = func() *exec.Cmd { return command(conf, e.dir) }
	e.begin(t)
	const n = 2000
	for way, c := range map[string]Config{
		"tcp": {Address: fmt.Sprint("tcp://127.0.0.1:", e.ports["tcp"])},
		"tls": {Address: fmt.Sprint("tls://127.0.0.1:", e.ports["tls"]), TLS: secure},
		"lf":  {Address: fmt.Sprint("tcp://127.0.0.1:", e.ports["lf"]), Framing: framingLF},
	} {
		w := newWriter(t, c)
		send(t, w, 0, n)
		acknowledged(t, w, n)
		e.await(t, way, n)
		e.end(t)
		eventually(t, way+": the end of the session is seen", func() bool {
			_ = w.tender.Lock(t.Context())
			defer w.tender.Unlock()
			return w.session == nil
		})
		e.begin(t)
		send(t, w, n, 2*n)
		acknowledged(t, w, 2*n)
		e.await(t, way, 2*n)
		e.await(t, way+"-parsed", 2*n)
		if err := w.Close(context.Background()); err != nil {
			t.Errorf("%s: %v", way, err)
		}
		e.check(t, way, 2*n)
		e.checkParsed(t, way+"-parsed", 2*n)
	}
}

// checkParsed holds what syslog-ng has read of records to what they are.
func (e *engine) checkParsed(t *testing.T, file string, n int) {
	t.Helper()
	b, err := os.ReadFile(e.file(file))
	if err != nil {
		t.Fatal(err)
	}
	m := composerOf(t, Config{}, "gw1")
	want := map[string]bool{}
	for i := range n {
		r := record(i)
		line := string(m.append(nil, r))
		id := regexp.MustCompile(`flow_id="([0-9a-f]+)"`).FindStringSubmatch(line)[1]
		want[fmt.Sprintln(i, r.Orig.SrcAddr(), time.Unix(0, r.Stop).UTC().Format("2006-01-02T15:04:05.000000000Z"), id)] = true
	}
	for line := range bytes.Lines(b) {
		if !want[string(line)] {
			t.Fatalf("%s: no record says %q", file, line)
		}
		delete(want, string(line))
	}
	if len(want) > 0 {
		t.Errorf("%s: %d records are missing", file, len(want))
	}
}

// TestJournald sends records to a real systemd-journald, of a mount namespace of its own, and reads them with journalctl.
func TestJournald(t *testing.T) {
	const daemon = "/lib/systemd/systemd-journald"
	if _, err := os.Stat(daemon); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and systemd-journald")
	}
	e := newEngine(t)
	script := fmt.Sprintf(`set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal %[1]s/log
mount --bind %[1]s /run/systemd/journal
mount --bind %[1]s/log /run/log/journal
mkdir -p %[1]s/conf && mount --bind %[1]s/conf /etc/systemd
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nReadKMsg=no\nAudit=no\nForwardToSyslog=no\n' >/etc/systemd/journald.conf
exec %[2]s`, e.dir, daemon)
	e.command = func() *exec.Cmd { return exec.Command("unshare", "-m", "sh", "-c", script) }
	e.begin(t)
	socket := filepath.Join(e.dir, "socket")
	eventually(t, "the journal listens", func() bool { _, err := os.Stat(socket); return err == nil })
	const n = 1000
	w := newWriter(t, Config{Address: "journal://" + socket, AppName: "nat"})
	send(t, w, 0, n)
	read := func() (entries []map[string]any) {
		out, err := exec.Command("journalctl", "-D", filepath.Join(e.dir, "log"), "-o", "json", "SYSLOG_IDENTIFIER=nat").Output()
		if err != nil {
			return nil
		}
		for line := range bytes.Lines(out) {
			var m map[string]any
			if err := json.Unmarshal(line, &m); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			entries = append(entries, m)
		}
		return entries
	}
	eventually(t, "all entries are there", func() bool { return len(read()) >= n })
	seen := make([]int, n)
	for _, m := range read() {
		var r struct {
			ID   int    `json:"ct_id"`
			Flow string `json:"flow_id"`
		}
		if err := json.Unmarshal([]byte(m["MESSAGE"].(string)), &r); err != nil {
			t.Fatal(err)
		}
		if m["CTLOGD_FLOW_ID"] != r.Flow || m["CTLOGD_EVENT"] != "destroy" || m["PRIORITY"] != "6" || m["SYSLOG_FACILITY"] != "16" {
			t.Fatalf("fields of %v", m)
		}
		seen[r.ID]++
	}
	for i, times := range seen {
		if times != 1 {
			t.Fatalf("record %d came %d times", i, times)
		}
	}
	if err := w.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestPathTooNarrow has a router say that its next link is narrower than a datagram was. That is no reason to give up the
// next one, which is small.
func TestPathTooNarrow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to send what a router says")
	}
	udp, err := net.ListenPacket("udp", "127.0.0.77:0") // the kernel remembers the narrow path for this address alone
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	w := newWriter(t, Config{Address: "udp://" + udp.LocalAddr().String()})
	defer w.Close(context.Background())
	write(t, w, records(0, 1))
	buf := make([]byte, 64<<10)
	udp.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, from, err := udp.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	router, err := net.ListenPacket("ip4:icmp", "127.0.0.77")
	if err != nil {
		t.Fatal(err)
	}
	defer router.Close()
	port := func(a net.Addr) uint16 { return uint16(a.(*net.UDPAddr).Port) }
	told := []byte{3, 4, 0, 0, 0, 0, 1280 >> 8, 1280 & 255, // fragmentation needed
		0x45, 0, 1500 >> 8, 1500 & 255, 0, 0, 0x40, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 77}
	told = binary.BigEndian.AppendUint16(told, port(from))
	told = binary.BigEndian.AppendUint16(told, port(udp.LocalAddr()))
	told = append(told, 1480>>8, 1480&255, 0, 0)
	var sum uint32
	for i := 0; i < len(told); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(told[i:]))
	}
	binary.BigEndian.PutUint16(told[2:], ^uint16(sum+sum>>16))
	if _, err := router.WriteTo(told, &net.IPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	write(t, w, records(1, 2))
	if _, _, err := udp.ReadFrom(buf); err != nil {
		t.Fatal(err)
	}
}

// TestDocs has a real rsyslogd run what docs/syslog.md says of it, but for ports and paths, and write the messages.
func TestDocs(t *testing.T) {
	if _, err := exec.LookPath("rsyslogd"); err != nil {
		t.Skip("needs rsyslogd (make test installs it on Debian, as root)")
	}
	docs, err := os.ReadFile("../../docs/syslog.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```\n([^`]*imtcp[^`]*)```").FindAllStringSubmatch(string(docs), -1)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks for rsyslog, want one for TCP and one for TLS", len(blocks))
	}
	global, inputs, _ := strings.Cut(blocks[1][1], "module(")
	_, rest, _ := strings.Cut(blocks[0][1], "module(")
	_, rest, _ = strings.Cut(rest, "\n")
	rest, _, _ = strings.Cut(rest, "input(")
	for way, text := range map[string]string{"tcp": blocks[0][1], "tls": global + rest + "module(" + inputs} {
		e := newEngine(t, way)
		secure := e.certify(t)
		text = regexp.MustCompile(`port="\d+"`).ReplaceAllString(text, fmt.Sprintf(`address="127.0.0.1" port="%d"`, e.ports[way]))
		text = strings.NewReplacer("/var/log/ctlogd/flows.jsonl", e.file(way), "/etc/rsyslog.d/ca.pem", e.dir+"/ca.pem",
			"/etc/rsyslog.d/cert.pem", e.dir+"/server.pem", "/etc/rsyslog.d/key.pem", e.dir+"/server-key.pem").Replace(text)
		conf := filepath.Join(e.dir, "rsyslog.conf")
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		e.command = func() *exec.Cmd { return exec.Command("rsyslogd", "-n", "-f", conf, "-i", filepath.Join(e.dir, "pid")) }
		e.begin(t)
		c := Config{Address: fmt.Sprintf("%s://127.0.0.1:%d", way, e.ports[way])}
		if way == "tls" {
			c.TLS = secure
		}
		w := newWriter(t, c)
		send(t, w, 0, 1000)
		e.await(t, way, 1000)
		if err := w.Close(context.Background()); err != nil {
			t.Error(err)
		}
		b, err := os.ReadFile(e.file(way))
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")) {
			var r struct {
				ID int `json:"ct_id"`
			}
			if err := json.Unmarshal(line, &r); err != nil || r.ID != i {
				t.Fatalf("%s: line %d: %v: %s", way, i, err, line)
			}
		}
	}
}
