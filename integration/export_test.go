//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/lab"
	"github.com/ctlogd/ctlogd/output/ipfix"
	"github.com/ctlogd/ctlogd/output/ipfix/collect"
)

// trackRules have the namespace's own flows tracked, those of the export as well.
const trackRules = `
table inet track {
	chain output {
		type filter hook output priority 0
		ct state new counter
	}
	chain input {
		type filter hook input priority 0
		ct state new counter
	}
}`

// inHosts returns ctlogd's command, run with a file of its own in the place of /etc/hosts.
func inHosts(t *testing.T, hosts, binary, conf string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", `mount --bind "$0" /etc/hosts && exec "$1" run -c "$2"`, hosts, binary, conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// TestCollectorNotThere: a UDP collector that is not running, that ends and comes back, and that moves to another address.
// nfcapd has every flow in the end, the spool keeps them meanwhile, and ctlogd's own flows are in no record.
func TestCollectorNotThere(t *testing.T) {
	need(t, "nfcapd", "nfdump", "nft")
	const port, n = 4739, 100 // few enough for the collector's socket, even all at once
	ns, f := newFloodNS(t)
	must(t, ns.Nft(trackRules))
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	log, conf, hosts := path("flows.jsonl"), path("ctlogd.yaml"), path("hosts")
	for _, d := range []string{"first", "second", "moved"} {
		must(t, os.Mkdir(path(d), 0o755))
	}
	// The collector listens on one of its two addresses alone.
	must(t, os.WriteFile(hosts, []byte("::1 collector.test\n127.0.0.1 collector.test\n"), 0o644))
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "outputs:\n  jsonl:\n    - path: %s\n  ipfix:\n    - address: "+
		"udp://collector.test:%d\n      template_interval: 1s\n      spool: {path: %s}\n", log, port, path("spool")), 0o644))
	p := start(t, ns, inHosts(t, hosts, buildDaemon(t, false), conf))
	p.awaitMember(t, lab.GroupDestroy)
	logged := func(text string) {
		t.Helper()
		eventually(t, "the log has "+text, func() bool { return strings.Contains(p.stderr.String(), text) })
	}
	lines := lineCounter{path: log}
	churn := func(from int) {
		t.Helper()
		must(t, f.Churn(from, from+n))
		eventually(t, "the file has every flow", func() bool { return lines.count(t) >= from+n })
	}
	have := func(name string) (ids map[string]bool) {
		ids = map[string]bool{}
		got, err := collect.Nfdump(path(name))
		must(t, err)
		for _, r := range got {
			ids[fmt.Sprint(r["sourceIPv4Address"], r["sourceTransportPort"], r["destinationIPv4Address"], r["destinationTransportPort"])] = true
		}
		return ids
	}

	churn(0) // nobody is there
	logged("nobody listens there")
	first := startNfcapd(t, ns, port, path("first"))
	logged("session begun")
	logged("output accepts records again")
	churn(n)
	// What arrives is told by the socket's counters: nfcapd writes its file when it ends.
	awaitRead(t, ns, port)
	first.end(t)
	churn(2 * n) // some of it is sent, and refused
	logged("session ended")
	second := startNfcapd(t, ns, port, path("second"))
	eventually(t, "the output accepts records again", func() bool {
		return strings.Count(p.stderr.String(), "session begun") >= 2
	})
	churn(3 * n)
	awaitRead(t, ns, port)

	// It moves, and the old one goes on listening.
	moved := startCollector(t, ns, "nfcapd", "-w", path("moved"), "-b", "127.0.0.9", "-p", fmt.Sprint(port), "-t", "3600")
	eventually(t, "nfcapd listens on the other address", func() bool { return listensAt(t, ns, "0900007F", port) })
	must(t, os.WriteFile(hosts, []byte("127.0.0.9 collector.test\n"), 0o644)) // the same file, as it is mounted
	logged("the collector's address has changed")                             // Go looks at the file every five seconds
	churn(4 * n)
	p.stop(t)
	second.end(t)
	moved.end(t)

	all := map[string]bool{}
	for _, name := range []string{"first", "second", "moved"} {
		ids := have(name)
		t.Logf("%s: %d flows", name, len(ids))
		if len(ids) == 0 {
			t.Errorf("collector %s has nothing", name)
		}
		for id := range ids {
			all[id] = true
		}
	}
	if len(all) != 5*n {
		t.Errorf("the collectors have %d flows, want %d", len(all), 5*n)
	}
	// The sockets have closed; their flows end now, while another process looks.
	for _, r := range readRecords(t, log) {
		if fmt.Sprint(r["dst_port"]) == fmt.Sprint(port) || r["event"] == "gap" {
			t.Errorf("record %v", r)
		}
	}
}

// awaitRead waits until nfcapd has read all that has come.
func awaitRead(t *testing.T, ns *lab.NS, port int) {
	t.Helper()
	eventually(t, "the collector has read everything", func() bool {
		for _, line := range sockets(t, ns, "udp", port) {
			if f := strings.Fields(line); strings.HasSuffix(f[4], ":00000000") {
				return true
			}
		}
		return false
	})
}

// listensAt reports whether something listens on a UDP port of an address, which is as /proc/net/udp has it.
func listensAt(t *testing.T, ns *lab.NS, address string, port int) (found bool) {
	t.Helper()
	must(t, ns.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/udp")
		found = strings.Contains(string(table), fmt.Sprintf(": %s:%04X 00000000:0000 ", address, port))
		return err
	}))
	return found
}

// TestOwnFlows: two collectors are down, and one output reaches a broker's port that refuses. The flows that the attempts
// make are in the table and end; none is logged, and all are with skip_own_flows: false.
func TestOwnFlows(t *testing.T) {
	need(t, "nft", "conntrack")
	for _, skip := range []bool{true, false} {
		ns, f := newFloodNS(t)
		must(t, ns.Nft(trackRules))
		dir := t.TempDir()
		log, conf := filepath.Join(dir, "flows.jsonl"), filepath.Join(dir, "ctlogd.yaml")
		must(t, os.WriteFile(conf, fmt.Appendf(nil, "skip_own_flows: %v\noutputs:\n  jsonl:\n    - path: %s\n  ipfix:\n"+
			"    - address: udp://127.0.0.1:4739\n      failover: [udp://127.0.0.1:4740]\n    - address: tcp://127.0.0.1:4741\n"+
			"  kafka:\n    - {brokers: [127.0.0.1:4742], topic: flows}\n", skip, log), 0o644))
		p := start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", conf))
		p.awaitMember(t, lab.GroupDestroy)
		must(t, f.Churn(0, 100))
		lines := lineCounter{path: log}
		eventually(t, "the file has every flow", func() bool { return lines.count(t) >= 100 })
		// The attempts over UDP stay in the table until they are deleted; those over TCP end at once, with the RST.
		eventually(t, "all four were tried", func() bool {
			table, err := ns.Output("", "conntrack", "-L", "-p", "udp")
			must(t, err)
			log := p.stderr.String()
			return strings.Contains(string(table), "dport=4739 ") && strings.Contains(string(table), "dport=4740 ") &&
				strings.Contains(log, "dial tcp 127.0.0.1:4741: connect: connection refused") &&
				strings.Contains(log, "dial tcp 127.0.0.1:4742: connect: connection refused")
		})
		for _, port := range []string{"4739", "4740"} {
			table, err := ns.Output("", "conntrack", "-L", "-p", "udp", "--dport", port)
			must(t, err)
			if got := strings.Count(string(table), "dport="+port); got != 1 {
				t.Errorf("attempts at UDP port %s make %d flows, want 1:\n%s", port, got, table)
			}
		}
		must(t, ns.Run("conntrack", "-D", "-p", "udp"))
		must(t, f.Churn(100, 200)) // behind them
		eventually(t, "the file has every flow", func() bool { return lines.count(t) >= 200 })
		p.stop(t)
		own := map[any]bool{}
		for _, r := range readRecords(t, log) {
			switch port := fmt.Sprint(r["dst_port"]); port {
			case "4739", "4740", "4741", "4742":
				own[port] = true
			}
		}
		if skip && len(own) > 0 || !skip && len(own) != 4 {
			t.Errorf("skip_own_flows: %v, and these ports of collectors are in the log: %v", skip, own)
		}
	}
}

// TestBlackHole: between exporter and collector is a link that carries less than a datagram, and no router says so. A
// single datagram and a train of them arrive alike.
func TestBlackHole(t *testing.T) {
	need(t, "nft")
	gw, router, far := newNS(t, "gateway"), newNS(t, "router"), newNS(t, "collector")
	must(t, gw.Link("wan", []string{"10.1.0.1/24"}, router, "in", []string{"10.1.0.2/24"}))
	must(t, router.Link("out", []string{"10.2.0.2/24"}, far, "eth0", []string{"10.2.0.1/24"}))
	must(t, gw.Run("ip", "route", "add", "default", "via", "10.1.0.2"))
	must(t, far.Run("ip", "route", "add", "default", "via", "10.2.0.2"))
	must(t, router.Sysctl("net.ipv4.ip_forward", "1"))
	must(t, router.Run("ip", "link", "set", "out", "mtu", "1000"))
	must(t, router.Nft(`
table ip black {
	chain output {
		type filter hook output priority 0
		icmp type destination-unreachable drop
	}
}`))
	l, err := far.ListenPacket("udp4", "10.2.0.1:4739")
	must(t, err)
	defer l.Close()
	must(t, l.(*net.UDPConn).SetReadBuffer(8<<20))
	const template, size = 257, 86
	var arrived, large atomic.Int64
	go func() {
		buf := make([]byte, 65536)
		for {
			n, _, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			if n > 1000 {
				large.Add(1)
			}
			if int(buf[16])<<8|int(buf[17]) == template {
				arrived.Add(int64((n - 20) / size))
			}
		}
	}()
	c := ipfix.Config{Address: "udp://10.2.0.1"}
	c.Defaults()
	e, err := ipfix.New(c, ipfix.Options{})
	must(t, err)
	defer e.Close(t.Context())
	tuple := func(src, dst string, sport, dport uint16) flow.Tuple {
		return flow.Tuple{Src: flow.AddrFrom(netip.MustParseAddr(src)), Dst: flow.AddrFrom(netip.MustParseAddr(dst)),
			SrcPort: sport, DstPort: dport, Proto: flow.UDP}
	}
	now := time.Now().UnixNano()
	r := &flow.Record{Event: flow.EventDestroy, Start: now, Stop: now, Received: now, Has: flow.HasOrig | flow.HasReply,
		Orig: tuple("192.168.1.2", "198.51.100.7", 1024, 53), Reply: tuple("198.51.100.7", "203.0.113.1", 53, 1025)}
	sent := 0
	for _, n := range []int{16, 16 * 20} { // a datagram of 1396 octets, and 20 of them
		must(t, gw.Do(func() error {
			k, err := e.Write(t.Context(), slices.Repeat([]*flow.Record{r}, n))
			sent += k
			return err
		}))
		eventually(t, fmt.Sprintf("%d records arrive", sent), func() bool { return arrived.Load() == int64(sent) })
	}
	if large.Load() != 21 {
		t.Errorf("%d datagrams were larger than the link's MTU, want 21", large.Load())
	}
}

// TestHostName: the box is named while ctlogd runs.
func TestHostName(t *testing.T) {
	need(t, "nsenter", "hostname")
	ns, f := newFloodNS(t)
	dir := t.TempDir()
	log, conf := filepath.Join(dir, "flows.jsonl"), filepath.Join(dir, "ctlogd.yaml")
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "outputs:\n  jsonl:\n    - path: %s\n", log), 0o644))
	cmd := exec.Command("/bin/sh", "-c", `hostname localhost && exec "$0" run -c "$1"`, buildDaemon(t, false), conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUTS}
	p := start(t, ns, cmd)
	p.awaitMember(t, lab.GroupDestroy)
	lines := lineCounter{path: log}
	must(t, f.Churn(0, 10))
	eventually(t, "the file has every flow", func() bool { return lines.count(t) == 10 })
	eventually(t, "the log warns of the name", func() bool {
		return strings.Contains(p.stderr.String(), "the records do not tell this machine from others")
	})
	must(t, ns.Run("nsenter", "--uts", "--target", fmt.Sprint(p.Process.Pid), "hostname", "gw7"))
	eventually(t, "the log tells of the other name", func() bool {
		return strings.Contains(p.stderr.String(), "the machine has another name or id")
	})
	eventually(t, "records say the new name", func() bool {
		before := lines.count(t)
		must(t, f.Churn(before, before+10))
		eventually(t, "the file has every flow", func() bool { return lines.count(t) == before+10 })
		return hostOfLast(t, log) == "gw7"
	})
	p.stop(t)
	hosts := map[any]bool{}
	for _, r := range readRecords(t, log) {
		hosts[r["host"]] = true
		if r["event"] == "gap" {
			t.Errorf("a gap: %v", r)
		}
	}
	if len(hosts) != 2 || !hosts["localhost"] || !hosts["gw7"] {
		t.Errorf("hosts of the records: %v", hosts)
	}
}

// hostOfLast returns host of the last line.
func hostOfLast(t *testing.T, file string) string {
	t.Helper()
	text, err := os.Open(file)
	must(t, err)
	defer text.Close()
	var last struct{ Host string }
	for s := bufio.NewScanner(text); s.Scan(); {
		must(t, json.Unmarshal(s.Bytes(), &last))
	}
	return last.Host
}
