//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/calmh/ipfix"
	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/integration/lab"
	"github.com/ctlogd/ctlogd/output/ipfix/collect"
)

// exportRules leave the way to the collectors out of connection tracking, which would have a flow of each otherwise.
const exportRules = `
table inet exporter {
	chain output { type filter hook output priority raw; oifname "lo" notrack; }
	chain input { type filter hook prerouting priority raw; iifname "lo" notrack; }
}
`

// TestIPFIXFlows sends the traffic of TestFlows, and holds what collectors have made of its flows and NAT events to
// the JSON lines of the same run.
func TestIPFIXFlows(t *testing.T) {
	need(t, "conntrack", "unshare", "nfcapd", "nfdump", "nfacctd", "tshark", "dumpcap", "ipfixDump", "socat")
	t.Parallel() // it waits, mostly, and has namespaces of its own
	g := newGateway(t)
	must(t, g.Nft(exportRules))
	// The loopback device carries a train of messages whole, and who captures on it sees one; this has it cut before.
	must(t, g.Run("ip", "link", "set", "dev", "lo", "gso_max_segs", "1"))
	const nfcapdPort, nfacctdPort, tcpPort = 4739, 4740, 4741
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }

	must(t, os.Mkdir(path("nfcapd"), 0o755))
	nfcapd := startNfcapd(t, g.NS, nfcapdPort, path("nfcapd"))
	conf, err := collect.ConfigureNfacctd(dir, nfacctdPort, path("nfacctd"))
	must(t, err)
	nfacctd := startCollector(t, g.NS, "nfacctd", "-f", conf)
	awaitPort(t, g.NS, "udp", nfacctdPort)
	socat := startSocat(t, g.NS, tcpPort, path("messages"))
	capture := startCollector(t, g.NS, "dumpcap", "-q", "-i", "lo", "-f", fmt.Sprintf("udp dst port %d", nfcapdPort),
		"-w", path("pcap"))
	eventually(t, "dumpcap captures", func() bool { return strings.Contains(capture.stderr.String(), "File: ") })

	d := startDaemon(t, g.NS, buildDaemon(t, true), "{events: [new, destroy], delivery: reliable}", fmt.Sprintf(
		"ipfix: [{address: udp://127.0.0.1:%d, records: both}, {address: udp://127.0.0.1:%d, records: both}, "+
			"{address: tcp://127.0.0.1:%d, records: both}]", nfcapdPort, nfacctdPort, tcpPort))
	g.traffic(t, func() {})
	g.end(t)
	ended := lineCounter{path: d.file}
	for last := -1; ended.count(t) != last; time.Sleep(time.Second) {
		last = ended.lines
	}
	d.stop(t)

	sent := exported(t, readRecords(t, d.file))
	count := len(sent)
	want := func(elements []string) (list []collect.Record) {
		for _, r := range sent {
			list = append(list, collect.Pick(r, elements))
		}
		return list
	}
	check := func(collector string, want, got []collect.Record) {
		t.Helper()
		if diff := cmp.Diff(collect.Sorted(want), collect.Sorted(got)); diff != "" {
			t.Errorf("records of %s differ from the JSON lines (-want +got):\n%s", collector, diff)
		} else {
			t.Logf("%s has the same %d records, of %d elements, as the file", collector, len(got), len(elementsOf(got)))
		}
	}
	all := elementsOf(sent)

	nfcapd.end(t)
	if log := nfcapd.stderr.String(); !strings.Contains(log, fmt.Sprintf("Flows: %d,", count)) ||
		!strings.Contains(log, "Sequence Errors: 0,") {
		t.Errorf("nfcapd does not tell of %d flows and no sequence errors:\n%s", count, log)
	}
	got, err := collect.Nfdump(path("nfcapd"))
	must(t, err)
	check("nfdump", want(collect.NfdumpElements), got)

	written := lineCounter{path: path("nfacctd")} // each second
	// It sums up what it cannot tell apart: events of pings within one millisecond.
	aggregated := slices.CompactFunc(collect.Sorted(want(collect.NfacctdElements)), maps.Equal)
	eventually(t, "nfacctd has written what it got", func() bool { return written.count(t) >= len(aggregated) })
	nfacctd.end(t)
	got, err = collect.Nfacctd(path("nfacctd"))
	must(t, err)
	check("nfacctd", aggregated, got)

	socat.endSessions(t)
	isFlow := func(r collect.Record) bool { return r["protocolIdentifier"] != "" }
	got, out, err := collect.IPFIXDump(path("messages"))
	must(t, err)
	check("ipfixDump", want(all), filter(got, isFlow))
	if strings.Contains(strings.ToLower(out), "warning") {
		t.Errorf("ipfixDump warns:\n%s", out)
	}
	if exec.Command(collect.Python, "-c", "import ipfix").Run() == nil {
		got, err = collect.PythonIPFIX(path("messages"))
		must(t, err)
		check("python-ipfix", want(all), filter(got, isFlow))
	} else {
		t.Log("left out: python3-ipfix, which is not installed")
	}

	capture.end(t)
	notes, messages, err := collect.TsharkNotes(path("pcap"))
	must(t, err)
	if notes != "" || messages == 0 {
		t.Errorf("tshark sees %d messages and has expert notes:\n%s", messages, notes)
	}
	got, err = collect.Tshark(path("pcap"))
	must(t, err)
	check("tshark", want(collect.TsharkElements), filter(got, isFlow))
}

func filter(list []collect.Record, keep func(collect.Record) bool) []collect.Record {
	return slices.DeleteFunc(list, func(r collect.Record) bool { return !keep(r) })
}

func elementsOf(list []collect.Record) (names []string) {
	for _, r := range list {
		for name := range r {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// exported returns what has to arrive of the records of a file with "records: both": a flow for each that ended, and
// for each IPv4 flow with NAT an event at its begin and one at its end.
func exported(t *testing.T, records []record) (list []collect.Record) {
	t.Helper()
	for _, r := range records {
		text := func(keys ...string) string { // the first that is there
			for _, key := range keys {
				if v, ok := r[key]; ok {
					return fmt.Sprint(v)
				}
			}
			return ""
		}
		at := func(keys ...string) string {
			v, err := time.Parse(time.RFC3339Nano, text(keys...))
			must(t, err)
			return v.UTC().Format("2006-01-02T15:04:05.000Z")
		}
		ended := text("event") == "destroy"
		four := !strings.Contains(text("src_ip"), ":")
		family := map[bool]string{true: "IPv4", false: "IPv6"}[four]
		nat := text("nat")
		m := collect.Record{
			"protocolIdentifier":               text("proto_num"),
			"ingressVRFID":                     text("zone", "zone_orig"),
			"flowStartMilliseconds":            at("start", "time"),
			"flowEndMilliseconds":              at("time"),
			"source" + family + "Address":      text("src_ip"),
			"destination" + family + "Address": text("dst_ip"),
			"sourceTransportPort":              text("src_port"),
			"destinationTransportPort":         text("dst_port"),
		}
		if nat != "none" {
			m["postNATSource"+family+"Address"] = text("nat_src_ip", "src_ip")
			m["postNATDestination"+family+"Address"] = text("nat_dst_ip", "dst_ip")
			m["postNAPTSourceTransportPort"] = text("nat_src_port", "src_port")
			m["postNAPTDestinationTransportPort"] = text("nat_dst_port", "dst_port")
		}
		all := func(m collect.Record) collect.Record { return collect.Pick(m, elementsOf([]collect.Record{m})) }
		if nat != "none" && four {
			event := collect.Record{
				"observationTimeMilliseconds": at("time"),
				"natEvent":                    map[bool]string{true: "5", false: "4"}[ended],
				"natOriginatingAddressRealm":  map[bool]string{true: "2", false: "1"}[nat == "dnat"],
			}
			for k, v := range m {
				event[k] = v
			}
			list = append(list, all(event))
		}
		if !ended {
			continue
		}
		m["octetDeltaCount"], m["packetDeltaCount"] = text("orig_bytes"), text("orig_packets")
		m["reverseOctetDeltaCount"], m["reversePacketDeltaCount"] = text("reply_bytes"), text("reply_packets")
		m["flowId"] = text("ct_id")
		m["flowEndReason"] = map[string]string{
			"timeout": "1", "tcp_fin": "3", "tcp_rst": "3", "deleted": "4"}[text("end_reason")]
		if kind := text("icmp_type"); kind != "" {
			n, err := strconv.Atoi(kind)
			must(t, err)
			code, err := strconv.Atoi(text("icmp_code"))
			must(t, err)
			m["icmpTypeCode"+family] = fmt.Sprint(n<<8 + code)
		}
		list = append(list, all(m))
	}
	return list
}

// TestIPFIXMany flushes many flows.
func TestIPFIXMany(t *testing.T) {
	const port = 4739
	n := many
	t.Run("TCP", func(t *testing.T) {
		need(t, "socat")
		room(t, 2*n)
		ns, f := newFloodNS(t)
		must(t, f.Create(0, n))
		file := filepath.Join(t.TempDir(), "messages")
		socat := startSocat(t, ns, port, file)
		d := startDaemon(t, ns, buildDaemon(t, false), "{delivery: reliable}",
			fmt.Sprintf("ipfix: [{address: tcp://127.0.0.1:%d}]", port))
		must(t, f.Flush())
		d.settle(t, n)
		socat.endSessions(t)
		s := readSession(t, file)
		checkNumbers(t, n, s)
		if len(s.flows) != n || s.gaps > 0 || s.torn > 0 {
			t.Errorf("the collector has %d records, %d gaps and %d octets of a torn message", len(s.flows), s.gaps, s.torn)
		} else {
			t.Logf("the collector has %d records in %d messages, numbered from 0 to %d", n, s.messages, n)
		}
	})
	t.Run("UDP", func(t *testing.T) {
		need(t, "nfcapd")
		const buffer = 400 << 20
		receiveBuffer(t, buffer)
		room(t, 2*n)
		ns, f := newFloodNS(t)
		must(t, f.Create(0, n))
		nfcapd := startNfcapd(t, ns, port, t.TempDir(), "-B", fmt.Sprint(buffer))
		d := startDaemon(t, ns, buildDaemon(t, false), "{delivery: reliable}",
			fmt.Sprintf("ipfix: [{address: udp://127.0.0.1:%d}]", port))
		must(t, f.Flush())
		d.settle(t, n)
		awaitEmpty(t, ns, port)
		nfcapd.end(t)
		log := nfcapd.stderr.String()
		if !strings.Contains(log, fmt.Sprintf("Flows: %d,", n)) || !strings.Contains(log, "Sequence Errors: 0,") {
			t.Errorf("nfcapd does not tell of %d flows and no sequence errors:\n%s", n, log)
		}
		for line := range strings.Lines(log) {
			if strings.Contains(line, "Sequence Errors") {
				t.Logf("nfcapd says: %s", strings.TrimSpace(line))
			}
		}
	})
}

// TestIPFIXKilled kills two collectors over and over while 20,000 flows end each second, one that is fed over TCP from
// a spool, and one that is fed over UDP.
//
// Over TCP, what is missing can only be what the dead collector's kernel had acknowledged: the records that follow
// those that the collector has read. Every other collector has a small receive buffer and is stopped before it is
// killed, until that buffer is full and the exporter's send buffer is filling: then it is known how much this is. Over
// UDP, what arrives can be decoded again within the template interval.
//
// CTLOGD_LONG=1 kills them more often, and longer apart.
func TestIPFIXKilled(t *testing.T) {
	need(t, "socat")
	const (
		rate             = 20_000 // flows a second
		tcpPort, udpPort = 4739, 4740
		interval         = 2  // seconds between templates
		flowSize         = 86 // octets of a record
	)
	kills, up, down := scale(4, 10), scale(time.Second, 6*time.Second), scale(500*time.Millisecond, 4*time.Second)
	ns, f := newFloodNS(t)
	binary := buildDaemon(t, false)
	dir := t.TempDir()
	file := func(kind string, life int) string { return filepath.Join(dir, fmt.Sprint(kind, life)) }
	var tcp, udp *process
	buffers, err := ns.ReadSysctl("net.ipv4.tcp_rmem")
	must(t, err)
	begin := func(life int) {
		if life%2 == 1 {
			must(t, ns.Sysctl("net.ipv4.tcp_rmem", "4096 65536 65536"))
		} else {
			must(t, ns.Sysctl("net.ipv4.tcp_rmem", buffers))
		}
		tcp = startSocat(t, ns, tcpPort, file("tcp", life))
		out, err := os.Create(file("udp", life))
		must(t, err)
		defer out.Close()
		cmd := exec.Command(binary, "ipfix", "listen", fmt.Sprintf("udp://127.0.0.1:%d", udpPort))
		cmd.Stdout = out
		udp = start(t, ns, cmd)
		awaitPort(t, ns, "udp", udpPort)
	}
	begin(0)
	d := startDaemon(t, ns, binary, "{delivery: reliable}", fmt.Sprintf(
		"ipfix: [{address: tcp://127.0.0.1:%d, spool: {path: %s}}, {address: udp://127.0.0.1:%d, template_interval: %ds}]",
		tcpPort, filepath.Join(dir, "spool"), udpPort, interval))

	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for begun, n := time.Now(), 0; ; {
			select {
			case <-stop:
				stopped <- n
				return
			case <-tick.C:
			}
			if due := int(time.Since(begun).Seconds() * rate); due > n {
				if err := f.Churn(n, due); err != nil {
					t.Error(err)
					<-stop
					stopped <- n
					return
				}
				n = due
			}
		}
	}()

	hears := func(life int) func() bool { // both collectors have got records
		return func() bool {
			for _, kind := range []string{"tcp", "udp"} {
				if s, err := os.Stat(file(kind, life)); err != nil || s.Size() < 1<<16 {
					return false
				}
			}
			return true
		}
	}
	var slowest time.Duration
	var unread []int // octets that each collector's kernel held when it was killed; -1: not known
	for life := range kills {
		eventually(t, fmt.Sprintf("collectors of life %d get records", life), hears(life))
		time.Sleep(up)
		unread = append(unread, -1)
		if life%2 == 1 {
			must(t, syscall.Kill(-tcp.Process.Pid, syscall.SIGSTOP))
			eventually(t, "the exporter's send buffer is filling", func() bool {
				waiting, acked := tcpQueues(t, ns, tcpPort)
				unread[life] = acked
				return waiting > 400<<10
			})
		}
		must(t, syscall.Kill(-tcp.Process.Pid, syscall.SIGKILL))
		must(t, udp.Process.Kill())
		<-tcp.exited
		<-udp.exited
		time.Sleep(down)
		begin(life + 1)
		clock := time.Now()
		eventually(t, "the exporter is back over TCP", func() bool {
			s, err := os.Stat(file("tcp", life+1))
			return err == nil && s.Size() > 0
		})
		slowest = max(slowest, time.Since(clock))
	}
	eventually(t, "the last collectors get records", hears(kills))
	time.Sleep(up)
	close(stop)
	n := <-stopped
	d.settle(t, n)
	checkLedger(t, d.file, n)
	tcp.endSessions(t)

	var sessions []*session
	for life := range kills + 1 {
		sessions = append(sessions, readSession(t, file("tcp", life)))
	}
	total := checkNumbers(t, n, sessions...)
	t.Logf("%d flows; back over TCP at most %s after the collector; missing in all: %d, in doubt and sent twice: %d",
		n, slowest.Round(time.Millisecond), total.missing, total.again)
	var lost []int
	for life := range kills {
		a, b := sessions[life], sessions[life+1]
		if len(a.flows) == 0 || len(b.flows) == 0 {
			t.Errorf("the collector of life %d or %d got no records", life, life+1)
			continue
		}
		k := max(0, b.flows[0]-a.flows[len(a.flows)-1]-1)
		lost = append(lost, k)
		// What socat had read and not written, and a message that it had in part, are gone as well.
		if most := unread[life] + socatBuffer + 16<<10; unread[life] >= 0 && k*flowSize > most {
			t.Errorf("%d records, %d octets, are missing after collector %d, whose kernel held %d octets",
				k, k*flowSize, life, unread[life])
		}
	}
	t.Logf("missing at each kill: %d, with octets unread: %d", lost, unread)
	sum := 0
	for _, k := range lost {
		sum += k
	}
	if sum != total.missing {
		t.Errorf("%d flows are missing, but %d behind the last that a collector has read", total.missing, sum)
	}
	if last := sessions[kills].flows; len(last) == 0 || last[len(last)-1] != n-1 {
		t.Error("the last flows are missing")
	}

	for life := 1; life <= kills; life++ {
		wait, blind := undecodable(t, file("udp", life))
		if wait > interval+1 { // export times are whole seconds
			t.Errorf("UDP: %d s passed before anything could be decoded, want %d", wait, interval)
		}
		if blind > 0 || wait > 0 {
			t.Logf("UDP, life %d: %d sets in %d s could not be decoded", life, blind, wait)
		}
	}
}

// undecodable returns how many seconds of export time lie between the first line that "ctlogd ipfix listen" has
// printed of a flow and the first that it could decode, and how many sets it could not.
func undecodable(t *testing.T, file string) (wait time.Duration, sets int) {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	var first time.Time
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var l struct {
			Export time.Time `json:"export_time"`
			Domain uint32    `json:"domain"`
			Error  string    `json:"error"`
		}
		must(t, json.Unmarshal(lines.Bytes(), &l))
		if l.Export.IsZero() {
			t.Fatalf("no export time: %s", lines.Bytes())
		}
		if l.Domain == 0 {
			continue
		}
		if first.IsZero() {
			first = l.Export
		}
		if l.Error == "" {
			return l.Export.Sub(first) / time.Second, sets
		}
		sets++
	}
	t.Errorf("nothing in %s could be decoded", file)
	return 0, sets
}

// session is what arrived in a TCP session.
type session struct {
	flows    []int // numbers of the generator's, in the order of arrival
	messages int
	gaps     int // records 401
	torn     int // octets of a message that has not arrived in full
}

// readSession reads a file of messages with calmh/ipfix. Sequence numbers must count from 0 what is there.
func readSession(t *testing.T, file string) *session {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	s := &session{}
	parser := ipfix.NewSession()
	addr, port := -1, -1 // indices of the translated source in the records
	var buf []byte
	for {
		head, err := r.Peek(16)
		if err != nil {
			s.torn = len(head)
			return s
		}
		version, size := binary.BigEndian.Uint16(head), int(binary.BigEndian.Uint16(head[2:]))
		seq, domain := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
		if version != 10 || size < 20 {
			t.Fatalf("%s: not a message of IPFIX: % x", file, head)
		}
		buf = slices.Grow(buf[:0], size)[:size]
		if n, err := io.ReadFull(r, buf); err != nil {
			s.torn = n
			return s
		}
		s.messages++
		set := binary.BigEndian.Uint16(buf[16:])
		if domain == 0 {
			if set == 401 {
				s.gaps++
			}
			continue
		}
		if int(seq) != len(s.flows) {
			t.Fatalf("%s: message %d has sequence number %d after %d records", file, s.messages, seq, len(s.flows))
		}
		msg, err := parser.ParseBuffer(buf)
		must(t, err)
		for _, tr := range msg.TemplateRecords {
			if tr.TemplateID != 257 {
				continue
			}
			for i, field := range tr.FieldSpecifiers {
				switch {
				case field.EnterpriseID != 0:
				case field.FieldID == 225: // postNATSourceIPv4Address
					addr = i
				case field.FieldID == 227: // postNAPTSourceTransportPort
					port = i
				}
			}
		}
		for _, rec := range msg.DataRecords {
			if rec.TemplateID != 257 || addr < 0 || port < 0 {
				t.Fatalf("%s: a record of template %d", file, rec.TemplateID)
			}
			a, _ := netip.AddrFromSlice(rec.Fields[addr])
			i, ok := lab.FlowNumber(a, binary.BigEndian.Uint16(rec.Fields[port]))
			if !ok {
				t.Fatalf("%s: no flow of the generator's: % x", file, bytes.Join(rec.Fields, nil))
			}
			s.flows = append(s.flows, i)
		}
	}
}

type numbered struct{ missing, again int }

// checkNumbers counts which of the flows 0 <= i < n are in the sessions.
func checkNumbers(t *testing.T, n int, sessions ...*session) (c numbered) {
	t.Helper()
	seen := make([]bool, n)
	for life, s := range sessions {
		if s.gaps > 0 {
			t.Errorf("session %d tells of %d gaps", life, s.gaps)
		}
		for _, i := range s.flows {
			switch {
			case i >= n:
				t.Fatalf("session %d: no flow has number %d", life, i)
			case seen[i]:
				c.again++
			}
			seen[i] = true
		}
	}
	for _, ok := range seen {
		if !ok {
			c.missing++
		}
	}
	return c
}

// startCollector starts a collector, whose standard output is kept with its standard error.
func startCollector(t *testing.T, ns *lab.NS, name string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	return start(t, ns, cmd)
}

func startNfcapd(t *testing.T, ns *lab.NS, port int, dir string, more ...string) *process {
	t.Helper()
	p := startCollector(t, ns, "nfcapd", append([]string{"-w", dir, "-b", "127.0.0.1", "-p", fmt.Sprint(port),
		"-t", "3600"}, more...)...)
	awaitPort(t, ns, "udp", port)
	return p
}

// end ends a collector as from the keyboard: nfacctd takes no notice of SIGTERM.
func (p *process) end(t *testing.T) {
	t.Helper()
	must(t, p.Process.Signal(os.Interrupt))
	eventually(t, p.Path+" has ended", func() bool { return p.ended() })
}

const socatBuffer = 64 << 10

// startSocat starts a collector that appends what it gets over TCP to a file, each session in a process of its own.
func startSocat(t *testing.T, ns *lab.NS, port int, file string) *process {
	t.Helper()
	cmd := exec.Command("socat", "-u", "-b", fmt.Sprint(socatBuffer), fmt.Sprintf("TCP-LISTEN:%d,bind=127.0.0.1,reuseaddr,fork", port),
		"OPEN:"+file+",creat,append")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := start(t, ns, cmd)
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	awaitPort(t, ns, "tcp", port)
	return p
}

// endSessions waits until socat's sessions have been closed by the other side, and ends it.
func (p *process) endSessions(t *testing.T) {
	t.Helper()
	must(t, p.Process.Kill())
	<-p.exited
	eventually(t, "socat's sessions have ended", func() bool {
		return syscall.Kill(-p.Process.Pid, 0) == syscall.ESRCH
	})
}

// awaitPort waits until something listens on a port of 127.0.0.1.
func awaitPort(t *testing.T, ns *lab.NS, network string, port int) {
	t.Helper()
	eventually(t, fmt.Sprintf("something listens on %s port %d", network, port), func() bool {
		return len(sockets(t, ns, network, port)) > 0
	})
}

// sockets returns the lines of /proc/net/tcp or udp of sockets that listen on a port of 127.0.0.1.
func sockets(t *testing.T, ns *lab.NS, network string, port int) (list []string) {
	t.Helper()
	must(t, ns.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/" + network)
		for line := range strings.Lines(string(table)) {
			if strings.Contains(line, fmt.Sprintf(": 0100007F:%04X 00000000:0000 ", port)) {
				list = append(list, line)
			}
		}
		return err
	}))
	return list
}

// tcpQueues returns how many octets wait at the two ends of the session with a collector: those that the exporter's
// kernel holds until they are acknowledged, and those that the collector's kernel has acknowledged and nobody has read.
func tcpQueues(t *testing.T, ns *lab.NS, port int) (waiting, unread int) {
	t.Helper()
	must(t, ns.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/tcp")
		for line := range strings.Lines(string(table)) {
			f, end := strings.Fields(line), fmt.Sprintf("0100007F:%04X", port)
			if len(f) < 5 || f[3] != "01" {
				continue
			}
			var tx, rx int
			if _, err := fmt.Sscanf(f[4], "%X:%X", &tx, &rx); err != nil {
				return err
			}
			switch end {
			case f[1]:
				unread += rx
			case f[2]:
				waiting += tx
			}
		}
		return err
	}))
	return waiting, unread
}

// awaitEmpty waits until the UDP socket on a port has nothing unread.
func awaitEmpty(t *testing.T, ns *lab.NS, port int) {
	t.Helper()
	eventually(t, "the collector has read all", func() bool {
		s := sockets(t, ns, "udp", port)
		return len(s) == 1 && strings.HasSuffix(strings.Fields(s[0])[4], ":00000000")
	})
}

// receiveBuffer allows sockets a receive buffer of that many octets, which is the machine's limit, until the test ends.
func receiveBuffer(t *testing.T, octets int) {
	t.Helper()
	const path = "/proc/sys/net/core/rmem_max"
	before, err := os.ReadFile(path)
	must(t, err)
	if n, _ := strconv.Atoi(string(bytes.TrimSpace(before))); n >= octets {
		return
	}
	restore(t, func() {
		if err := os.WriteFile(path, before, 0); err != nil {
			t.Errorf("put rmem_max back to %s: %v", bytes.TrimSpace(before), err)
		}
	})
	must(t, os.WriteFile(path, fmt.Append(nil, octets), 0))
}
