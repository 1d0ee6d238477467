//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/integration/lab"
	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

// facts are what every format tells of a flow, in the words of the flat one.
type facts struct {
	Proto                          int
	Src, Dst, NATSrc, NATDst       string // address and port, "" where there was no translation
	OrigBytes, ReplyBytes          string
	Start, End                     int64 // ms since 1970
	ID, EndReason, Helper, TCPType string
}

func millis(t *testing.T, v any) int64 {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, v.(string))
	must(t, err)
	return at.UnixMilli()
}

func end(ip, port any) string {
	if ip == nil {
		return ""
	}
	if port == nil {
		port = ""
	}
	return fmt.Sprint(ip, " ", port)
}

func str(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

func num(t *testing.T, v any) int {
	t.Helper()
	n, err := strconv.Atoi(fmt.Sprint(v))
	must(t, err)
	return n
}

// at returns the value of a path in a decoded object.
func at(v any, path ...string) any {
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[key]
	}
	return v
}

// tell reads the facts of a record of each format. ulogd2 has fewer, and the flat record's are cut down to them.
var tell = map[string]func(t *testing.T, r map[string]any) facts{
	"flat": func(t *testing.T, r map[string]any) facts {
		return facts{
			num(t, r["proto_num"]), end(r["src_ip"], r["src_port"]), end(r["dst_ip"], r["dst_port"]),
			end(r["nat_src_ip"], r["nat_src_port"]), end(r["nat_dst_ip"], r["nat_dst_port"]),
			str(r["orig_bytes"]), str(r["reply_bytes"]), millis(t, r["start"]), millis(t, r["end"]),
			str(r["flow_id"]), str(r["end_reason"]), str(r["helper"]), str(r["tcp_state"]),
		}
	},
	"ecs": func(t *testing.T, r map[string]any) facts {
		return facts{
			num(t, at(r, "network", "iana_number")), end(at(r, "source", "ip"), at(r, "source", "port")),
			end(at(r, "destination", "ip"), at(r, "destination", "port")),
			end(at(r, "source", "nat", "ip"), at(r, "source", "nat", "port")),
			end(at(r, "destination", "nat", "ip"), at(r, "destination", "nat", "port")),
			str(at(r, "source", "bytes")), str(at(r, "destination", "bytes")),
			millis(t, at(r, "event", "start")), millis(t, at(r, "event", "end")), str(at(r, "event", "id")),
			str(at(r, "event", "reason")), str(at(r, "ctlogd", "helper")), str(at(r, "ctlogd", "tcp_state")),
		}
	},
	"ocsf": func(t *testing.T, r map[string]any) facts {
		return facts{
			num(t, at(r, "connection_info", "protocol_num")), end(at(r, "src_endpoint", "ip"), at(r, "src_endpoint", "port")),
			end(at(r, "dst_endpoint", "ip"), at(r, "dst_endpoint", "port")),
			end(at(r, "src_endpoint", "proxy_endpoint", "ip"), at(r, "src_endpoint", "proxy_endpoint", "port")),
			end(at(r, "dst_endpoint", "proxy_endpoint", "ip"), at(r, "dst_endpoint", "proxy_endpoint", "port")),
			str(at(r, "traffic", "bytes_out")), str(at(r, "traffic", "bytes_in")),
			int64(num(t, r["start_time"])), int64(num(t, r["end_time"])), str(at(r, "connection_info", "uid")),
			str(r["status_detail"]), str(at(r, "unmapped", "helper")), str(at(r, "unmapped", "tcp_state")),
		}
	},
	"cim": func(t *testing.T, r map[string]any) facts {
		return facts{
			num(t, r["proto_num"]), end(r["src_ip"], r["src_port"]), end(r["dest_ip"], r["dest_port"]),
			end(r["src_translated_ip"], r["src_translated_port"]), end(r["dest_translated_ip"], r["dest_translated_port"]),
			str(r["bytes_out"]), str(r["bytes_in"]), millis(t, r["start"]), millis(t, r["end"]),
			str(r["session_id"]), str(r["end_reason"]), str(r["helper"]), str(r["tcp_state"]),
		}
	},
	"cef": func(t *testing.T, r map[string]any) facts {
		state := ""
		if r["cs2Label"] == "tcp_state" {
			state = str(r["cs2"])
		}
		return facts{
			num(t, r["ctlogdProtoNum"]), end(r["src"], r["spt"]), end(r["dst"], r["dpt"]),
			end(r["sourceTranslatedAddress"], r["sourceTranslatedPort"]),
			end(r["destinationTranslatedAddress"], r["destinationTranslatedPort"]),
			str(r["in"]), str(r["out"]), int64(num(t, r["start"])), int64(num(t, r["end"])),
			str(r["externalId"]), str(r["reason"]), str(r["cs4"]), state,
		}
	},
}

// parseLine returns the record in a line of a format.
func parseLine(t *testing.T, name string, line []byte) (r map[string]any) {
	t.Helper()
	if name != "cef" {
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		if err := d.Decode(&r); err != nil {
			t.Fatalf("%s: %v in %q", name, err, line)
		}
		return r
	}
	parts := strings.SplitN(string(line), "|", 8)
	if len(parts) != 8 {
		t.Fatalf("no CEF: %q", line)
	}
	r = map[string]any{}
	rest := parts[7]
	for rest != "" {
		key, value, _ := strings.Cut(rest, "=")
		rest = ""
		if next := regexp.MustCompile(` \w+=`).FindStringIndex(value); next != nil {
			value, rest = value[:next[0]], value[next[0]+1:]
		}
		r[key] = value
	}
	return r
}

// isEnd reports whether a line of a format is of the end of a flow.
func isEnd(name string, r map[string]any, line []byte) bool {
	switch name {
	case "ecs":
		return at(r, "event", "action") == "destroy"
	case "ocsf":
		return at(r, "metadata", "event_code") == "destroy"
	case "cef":
		return bytes.Contains(line, []byte("|destroy|"))
	}
	return r["event"] == "destroy"
}

// factsOf returns the facts of the ended flows in lines, by their flow ids, each once.
func factsOf(t *testing.T, name string, lines [][]byte) map[string]facts {
	t.Helper()
	m := map[string]facts{}
	for _, line := range lines {
		r := parseLine(t, name, line)
		if !isEnd(name, r, line) {
			continue
		}
		f := tell[name](t, r)
		if _, twice := m[f.ID]; twice {
			t.Errorf("%s: flow %s came twice", name, f.ID)
		}
		m[f.ID] = f
	}
	return m
}

func linesOf(t *testing.T, file string) (lines [][]byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	for line := range bytes.Lines(b) {
		lines = append(lines, bytes.TrimRight(line, "\n"))
	}
	return lines
}

// rsyslogd is a real one, with inputs of every kind. What comes in goes to a file for each input: the structured data, a
// space and the message. What it makes of JSON that came by TCP goes to the file parsed.
type rsyslogd struct {
	ns   *lab.NS
	dir  string // TLS files, and what it writes
	conf string
	*process
}

const (
	syslogUDP = 5514
	syslogTCP = 5515
	syslogTLS = 5516
	syslogLF  = 5517
)

// newRsyslogd writes the configuration.
func newRsyslogd(t *testing.T, ns *lab.NS) *rsyslogd {
	t.Helper()
	r := &rsyslogd{ns: ns, dir: t.TempDir()}
	out := r.dir
	tlsFiles(t, r.dir)
	must(t, os.Chmod(r.dir, 0o755))
	r.conf = filepath.Join(r.dir, "rsyslog.conf")
	text := fmt.Sprintf(`
global(workDirectory="%[1]s" maxMessageSize="64k" DefaultNetstreamDriverCAFile="%[1]s/ca.pem"
    DefaultNetstreamDriverCertFile="%[1]s/server.pem" DefaultNetstreamDriverKeyFile="%[1]s/server-key.pem")
module(load="imudp")
module(load="imtcp" MaxSessions="50")
module(load="imuxsock" SysSock.Use="off")
module(load="imptcp")
module(load="mmjsonparse")
template(name="msg" type="string" string="%%structured-data%% %%msg%%\n")
template(name="json" type="list") { property(name="$!all-json-plain") constant(value="\n") }
input(type="imudp" port="%[2]d" address="127.0.0.1" ruleset="udp" rcvbufSize="64m")
input(type="imtcp" port="%[3]d" address="127.0.0.1" ruleset="tcp")
input(type="imtcp" port="%[4]d" address="127.0.0.1" ruleset="tls" StreamDriver.Name="gtls" StreamDriver.Mode="1"
    StreamDriver.AuthMode="x509/certvalid")
input(type="imptcp" port="%[5]d" address="127.0.0.1" ruleset="lf" SupportOctetCountedFraming="off")
input(type="imuxsock" Socket="%[1]s/log" ruleset="unix" UseSpecialParser="off" ParseHostname="on" RateLimit.Interval="0")
`, r.dir, syslogUDP, syslogTCP, syslogTLS, syslogLF)
	for _, name := range []string{"udp", "tcp", "tls", "lf", "unix"} {
		text += fmt.Sprintf("ruleset(name=%q queue.type=\"LinkedList\" queue.size=\"2000000\" queue.timeoutShutdown=\"60000\") {\n"+
			"    action(type=\"omfile\" file=\"%s/%s\" template=\"msg\" action.resumeRetryCount=\"-1\" action.resumeInterval=\"1\")\n", name, out, name)
		if name == "tcp" { // what its own parser makes of the message
			text += fmt.Sprintf("    action(type=\"mmjsonparse\" cookie=\"\")\n"+
				"    if $parsesuccess == \"OK\" then action(type=\"omfile\" file=\"%s/parsed\" template=\"json\")\n", out)
		}
		text += "}\n"
	}
	must(t, os.WriteFile(r.conf, []byte(text), 0o644))
	return r
}

func (r *rsyslogd) begin(t *testing.T) {
	t.Helper()
	r.process = start(t, r.ns, exec.Command("rsyslogd", "-n", "-f", r.conf, "-i", filepath.Join(r.dir, "pid")))
	for _, port := range []int{syslogTCP, syslogTLS, syslogLF} {
		awaitListener(t, r.ns, "tcp", port)
	}
}

// tlsFiles makes an authority and certificates: ca.pem, server.pem, for 127.0.0.1, and client.pem with their keys.
func tlsFiles(t *testing.T, dir string) {
	t.Helper()
	write := func(name string, text []byte) {
		must(t, os.WriteFile(filepath.Join(dir, name), text, 0o644))
	}
	ca := certtest.New(t)
	write("ca.pem", ca.PEM)
	for _, name := range []string{"server", "client"} {
		cert, key := ca.Issue(t, name, time.Hour)
		write(name+".pem", cert)
		write(name+"-key.pem", key)
	}
}

// sdMessage takes what rsyslogd wrote apart: the flow id of the structured data, and the message.
func sdMessage(t *testing.T, line []byte) (id string, msg []byte) {
	t.Helper()
	m := regexp.MustCompile(`^(?:-|\[flow@32473 flow_id="([0-9a-f]{32})"\]) ?(.*)$`).FindSubmatch(line)
	if m == nil {
		t.Fatalf("no structured data in %q", line)
	}
	return string(m[1]), m[2]
}

// TestFormats sends real traffic of every kind through a gateway, and holds what every format tells of each flow, in a file
// and after a way through a real rsyslogd, to the flat record; and the format ulogd2 to what the real ulogd2 writes.
func TestFormats(t *testing.T) {
	need(t, "conntrack", "unshare", "rsyslogd", "ulogd")
	g := newGateway(t)
	must(t, g.Nft(`table inet untracked { # what goes to rsyslogd
		chain out { type filter hook output priority raw; oifname lo notrack; }
		chain in { type filter hook prerouting priority raw; iifname lo notrack; }
	}`))
	r := newRsyslogd(t, g.NS)
	r.begin(t)
	u := startUlogd(t, g.NS)
	dir := t.TempDir()
	jsonl := "jsonl: [{path: " + dir + "/flat}"
	for _, name := range []string{"ecs", "ocsf", "cim", "cef", "ulogd2"} {
		jsonl += fmt.Sprintf(", {path: %s/%s, format: %s}", dir, name, name)
	}
	tls := fmt.Sprintf("{ca: %[1]s/ca.pem, cert: %[1]s/client.pem, key: %[1]s/client-key.pem}", r.dir)
	conf := filepath.Join(dir, "ctlogd.yaml")
	must(t, os.WriteFile(conf, []byte(fmt.Sprintf(`
input: {conntrack: {events: [destroy], expectations: true, labels: true, delivery: reliable}}
outputs:
  %s]
  syslog:
    - {address: "udp://127.0.0.1:%d", format: ocsf}
    - {address: "tcp://127.0.0.1:%d", format: ecs}
    - {address: "tls://127.0.0.1:%d", format: cef, tls: %s}
    - {address: "tcp://127.0.0.1:%d", format: cim, framing: lf}
    - {address: "unix://%s/log", format: flat}
`, jsonl, syslogUDP, syslogTCP, syslogTLS, tls, syslogLF, r.dir)), 0o644))
	d := &daemon{file: filepath.Join(dir, "flat")}
	d.process = start(t, g.NS, exec.Command(buildDaemon(t, true), "run", "-c", conf))
	d.awaitMember(t, lab.GroupDestroy)
	d.awaitMember(t, lab.GroupExpectNew)

	g.traffic(t, func() {})
	g.end(t)
	d.stop(t)
	u.stop(t)

	want := factsOf(t, "flat", linesOf(t, d.file))
	if len(want) < 10 {
		t.Fatalf("%d flows ended in the lab", len(want))
	}
	for _, name := range []string{"ecs", "ocsf", "cim", "cef"} {
		if diff := cmp.Diff(want, factsOf(t, name, linesOf(t, filepath.Join(dir, name)))); diff != "" {
			t.Errorf("%s differs from flat (-flat +%s):\n%s", name, name, diff)
		}
	}
	for file, name := range map[string]string{"udp": "ocsf", "tcp": "ecs", "tls": "cef", "lf": "cim", "unix": "flat"} {
		path := filepath.Join(r.dir, file)
		eventually(t, fmt.Sprintf("rsyslogd has written what came by %s", file), func() bool {
			lines := lineCounter{path: path}
			return lines.count(t) >= len(linesOf(t, d.file))
		})
		var lines [][]byte
		for _, line := range linesOf(t, path) {
			id, msg := sdMessage(t, line)
			if bytes.Contains(msg, []byte("destroy")) && !bytes.Contains(msg, []byte(id)) {
				t.Errorf("%s: the structured data has another flow id than %s", file, msg)
			}
			lines = append(lines, msg)
		}
		if diff := cmp.Diff(want, factsOf(t, name, lines)); diff != "" {
			t.Errorf("what came by %s differs from flat (-flat +%s):\n%s", file, name, diff)
		}
	}
	eventually(t, "rsyslogd has parsed all", func() bool {
		lines := lineCounter{path: filepath.Join(r.dir, "parsed")}
		return lines.count(t) >= len(linesOf(t, d.file))
	})
	if diff := cmp.Diff(want, factsOf(t, "ecs", linesOf(t, filepath.Join(r.dir, "parsed")))); diff != "" {
		t.Errorf("what rsyslogd's mmjsonparse reads differs from flat (-flat +parsed):\n%s", diff)
	}
	u.compare(t, filepath.Join(dir, "ulogd2"))
	t.Logf("%d flows, alike in every format and after every way through rsyslogd", len(want))
}

// ulogd is the real ulogd2.
type ulogd struct {
	*process
	file string
}

func startUlogd(t *testing.T, ns *lab.NS) *ulogd {
	t.Helper()
	plugins, err := filepath.Glob("/usr/lib/*/ulogd/ulogd_output_JSON.so")
	must(t, err)
	if len(plugins) == 0 {
		t.Skip("needs ulogd2-json (make test installs it on Debian, as root)")
	}
	dir := t.TempDir()
	text, err := os.ReadFile("../bench/ulogd-json.conf.in")
	must(t, err)
	conf := strings.NewReplacer("@DIR@", dir, "@PLUGINS@", filepath.Dir(plugins[0]), "sync=0", "sync=1").Replace(string(text))
	must(t, os.WriteFile(dir+"/ulogd.conf", []byte(conf), 0o644))
	u := &ulogd{file: dir + "/ulogd.json"}
	u.process = start(t, ns, exec.Command("ulogd", "-c", dir+"/ulogd.conf"))
	u.awaitMember(t, lab.GroupDestroy)
	return u
}

// compare holds a file of ours to ulogd2's: the same flows with the same keys and values, but for the timestamp, which tells
// its zone, and the name of the box.
func (u *ulogd) compare(t *testing.T, file string) {
	t.Helper()
	read := func(file string) map[string]string {
		m := map[string]string{}
		for _, line := range linesOf(t, file) {
			r := parseLine(t, "ulogd2", line)
			if fmt.Sprint(r["ct.event"]) != "4" {
				continue
			}
			stamp := r["timestamp"].(string)
			if _, err := time.Parse(time.RFC3339, stamp); (err == nil) != (file != u.file) {
				t.Errorf("timestamp %s in %s", stamp, file)
			}
			delete(r, "timestamp")
			delete(r, "dvc")
			// The order of the keys is a part of it.
			keys := regexp.MustCompile(`"([a-z][a-z0-9._]*)": `).FindAllSubmatch(line, -1)
			text := ""
			for _, k := range keys {
				if v, ok := r[string(k[1])]; ok {
					text += fmt.Sprintf("%s=%v ", k[1], v)
				}
			}
			m[fmt.Sprint(r["ct.id"], " ", r["flow.start.sec"], ".", r["flow.start.usec"])] = text
		}
		return m
	}
	theirs, ours := read(u.file), read(file)
	if len(theirs) < 10 {
		t.Fatalf("ulogd2 wrote %d flows", len(theirs))
	}
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("format ulogd2 differs from ulogd2 (-ulogd2 +ctlogd):\n%s", diff)
	}
}

// TestSyslogMany has many flows arrive at a real rsyslogd, over TCP and over TLS, each once. CTLOGD_LONG=1 makes them a
// million.
func TestSyslogMany(t *testing.T) {
	n := scale(20_000, 1_000_000)
	for name, port := range map[string]int{"tcp": syslogTCP, "tls": syslogTLS} {
		t.Run(name, func(t *testing.T) {
			need(t, "rsyslogd")
			room(t, 2*n)
			ns, f := newFloodNS(t)
			must(t, f.Create(0, n))
			r := newRsyslogd(t, ns)
			r.begin(t)
			tls := ""
			if name == "tls" {
				tls = fmt.Sprintf(", tls: {ca: %[1]s/ca.pem, cert: %[1]s/client.pem, key: %[1]s/client-key.pem}", r.dir)
			}
			d := startDaemon(t, ns, buildDaemon(t, false), "{delivery: reliable}",
				fmt.Sprintf("syslog: [{address: \"%s://127.0.0.1:%d\", queue: %d%s}]", name, port, 2*n, tls))
			must(t, f.Flush())
			lines := lineCounter{path: filepath.Join(r.dir, name)}
			eventually(t, "all records have come", func() bool { return lines.count(t) >= n })
			d.stop(t)
			checkFlood(t, filepath.Join(r.dir, name), n)
		})
	}
}

// checkFlood holds what rsyslogd wrote to the generator's own knowledge: the flows 0 <= i < n, each once.
func checkFlood(t *testing.T, file string, n int) {
	t.Helper()
	seen := make([]int, n)
	for _, line := range linesOf(t, file) {
		_, msg := sdMessage(t, line)
		var r struct {
			Event   string
			NATSrc  netip.Addr `json:"nat_src_ip"`
			NATPort uint16     `json:"nat_src_port"`
		}
		must(t, json.Unmarshal(msg, &r))
		if r.Event != "destroy" {
			t.Errorf("a record that is no end: %s", msg)
			continue
		}
		i, ok := lab.FlowNumber(r.NATSrc, r.NATPort)
		if !ok || i >= n {
			t.Fatalf("no flow of the generator's: %s", msg)
		}
		seen[i]++
	}
	for i, times := range seen {
		if times != 1 {
			t.Fatalf("flow %d came %d times", i, times)
		}
	}
}
