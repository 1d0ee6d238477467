//go:build integration

package ipfix

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/google/go-cmp/cmp"
)

// The collectors are the Debian packages nfdump, pmacct, tshark, libfixbuf-tools and python3-ipfix. Each gets what an
// Exporter sends, over loopback or as a file of it, and has to find in it what expected says: told from the records, in
// words that share nothing with the encoder.

// collected are the records that every collector gets: each kind of flow, with and without translation.
func collected() []*flow.Record {
	alive := with(ended(tuple(flow.TCP, "192.0.2.10", 40009, "198.51.100.22", 22)), counted(100, 1, 200, 2), id(9))
	alive.Event, alive.Stop, alive.Received = flow.EventOpen, 0, goldenEnd+5e9
	ping := func(n uint16) flow.Tuple { return tuple(flow.ICMP, "10.1.2.3", n, "198.51.100.20", 8<<8) }
	ping6 := func(n uint16) flow.Tuple { return tuple(flow.ICMPv6, "fd00:1::10", n, "2001:db8:2::20", 128<<8) }
	begun := with(ended(tuple(flow.TCP, "10.1.2.3", 40000, "198.51.100.20", 443)), snat("203.0.113.5", 61000), zone(5),
		created)
	return []*flow.Record{
		begun,
		with(ended(tuple(flow.TCP, "192.0.2.10", 40001, "198.51.100.20", 443)), closed, counted(1234567, 890, 7654321, 1000),
			id(1)),
		with(ended(tuple(flow.UDP, "192.0.2.11", 53001, "198.51.100.53", 53)), zone(7), counted(70, 1, 250, 1), id(2),
			moved(10, 20)),
		with(ended(tuple(flow.TCP, "10.1.2.3", 40000, "198.51.100.20", 443)), snat("203.0.113.5", 61000), zone(5), closed,
			counted(5e9, 3456789, 7654321, 1000), id(3)),
		with(ended(tuple(flow.UDP, "192.0.2.77", 51515, "203.0.113.5", 8080)), dnat("10.1.2.80", 80), counted(300, 3, 1500,
			2), id(4)),
		with(ended(tuple(flow.TCP, "2001:db8:1::10", 40006, "2001:db8:2::20", 443)), closed, counted(66000, 60, 99000, 90),
			id(5)),
		with(ended(tuple(flow.UDP, "fd00:1::10", 40066, "2001:db8:2::20", 443)), snat("2001:db8:ffff::1", 62066),
			counted(6600, 6, 9900, 9), id(6)),
		with(ended(ping(777)), counted(84, 1, 85, 2), id(7)),
		with(ended(ping(778)), snat("203.0.113.5", 0), counted(252, 3, 253, 4), id(8)),
		alive,
		with(ended(ping6(779)), counted(312, 3, 313, 5), id(10)),
		with(ended(ping6(780)), snat("2001:db8:ffff::2", 0), counted(314, 6, 315, 7), id(13)),
		with(ended(tuple(flow.GRE, "10.1.2.3", 7, "198.51.100.21", 8)), snat("203.0.113.6", 9), counted(5000, 50, 6000, 60),
			id(11)),
		with(ended(tuple(flow.SCTP, "10.1.2.3", 40012, "198.51.100.23", 3868)), counted(700, 7, 800, 8), id(12)),
	}
}

var gapRecord = &flow.Record{Event: flow.EventGap, Start: goldenStart, Stop: goldenEnd,
	Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseOverrun, Lost: 5, LostKnown: true}}}

// wanted returns what a collector that shows the given elements has to show of recs. Zeros are left out: some
// collectors print them for what a record lacks.
func wanted(recs []*flow.Record, elements []string) (list []map[string]string) {
	for _, r := range recs {
		set := newTemplateSet(&Config{Records: "both"})
		if set.flow(r) != nil {
			list = append(list, pick(expected(r, false), elements))
		}
		if set.event(r) != nil {
			list = append(list, pick(expected(r, true), elements))
		}
	}
	return list
}

func pick(m map[string]string, elements []string) map[string]string {
	picked := map[string]string{}
	for _, name := range elements {
		if v := m[name]; v != "" && v != "0" {
			picked[name] = v
		}
	}
	return picked
}

// same compares two lists of records in any order: records of different templates overtake each other.
func same(t *testing.T, want, got []map[string]string) {
	t.Helper()
	sorted := func(list []map[string]string) []map[string]string {
		list = slices.Clone(list)
		slices.SortFunc(list, func(a, b map[string]string) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		return list
	}
	if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// need skips the test if a program is missing.
func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
}

// outputOf runs a program to its end and returns its standard output.
func outputOf(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	return string(out)
}

// daemon starts a collector and returns a function that ends it and returns all that it has printed.
func daemon(t *testing.T, name string, args ...string) func() string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() string {
		cmd.Process.Signal(os.Interrupt) // nfacctd takes no notice of SIGTERM
		cmd.Wait()
		return out.String()
	}
	t.Cleanup(func() { stop() })
	return stop
}

// freePort returns a UDP port that nobody has.
func freePort(t *testing.T) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, port, _ := net.SplitHostPort(conn.LocalAddr().String())
	return port
}

// bound waits until somebody listens on a UDP port of 127.0.0.1.
func bound(t *testing.T, port string) {
	t.Helper()
	var n uint16
	fmt.Sscan(port, &n)
	for {
		table, err := os.ReadFile("/proc/net/udp")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(table), fmt.Sprintf(" 0100007F:%04X ", n)) {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("nobody listens on port %s", port)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// export sends recs to a collector and closes the session.
func export(t *testing.T, c Config, recs []*flow.Record) {
	t.Helper()
	e := newExporter(t, c)
	write(t, e, recs)
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// exported returns what an Exporter sends over TCP.
func exported(t *testing.T, c Config, recs []*flow.Record) (messages [][]byte) {
	t.Helper()
	l := listenTCP(t, "127.0.0.1:0")
	got := newReceived(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := l.Accept(); err == nil {
			got.read(conn, "exporter")
		}
	}()
	c.Address = "tcp://" + l.Addr().String()
	export(t, c, recs)
	<-done
	return got.peek().messages
}

// saved writes what an Exporter sends to a file and returns its name.
func saved(t *testing.T, c Config, recs []*flow.Record) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "messages.ipfix")
	if err := os.WriteFile(name, bytes.Join(exported(t, c, recs), nil), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// object is a JSON object with every value as text.
type object map[string]string

func (o *object) UnmarshalJSON(b []byte) error {
	var raw map[string]any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&raw); err != nil {
		return err
	}
	*o = object{}
	for k, v := range raw {
		(*o)[k] = fmt.Sprint(v)
	}
	return nil
}

// rename returns the values of o under the names of elements, zeros left out.
func (o object) rename(names map[string]string) map[string]string {
	m := map[string]string{}
	for name, v := range o {
		if element, ok := names[name]; ok && v != "" && v != "0" {
			m[element] = v
		}
	}
	return m
}

func elements(names map[string]string) (list []string) {
	for _, name := range names {
		list = append(list, name)
	}
	return list
}

// TestMillion: what Write has taken is what arrives, in order and once, and the sequence numbers say so.
func TestMillion(t *testing.T) {
	l := listenTCP(t, "127.0.0.1:0")
	c := newReceived(t)
	c.quick = true
	c.serve(l)
	e := newExporter(t, Config{Address: "tcp://" + l.Addr().String()})
	const total, batch = 1_000_000, 4000
	for n := 0; n < total; n += batch {
		write(t, e, numbered(1+n, batch))
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.wait(enough(total)).flows(); !slices.Equal(got, numbers(1, total)) {
		t.Error("other records than those written")
	}
	if e.data.seq != total {
		t.Errorf("next sequence number %d", e.data.seq)
	}
}

func TestNfdump(t *testing.T) {
	need(t, "nfcapd")
	dir, port := t.TempDir(), freePort(t)
	stop := daemon(t, "nfcapd", "-w", dir, "-p", port, "-b", "127.0.0.1", "-t", "3600")
	bound(t, port)
	recs := collected()
	export(t, Config{Address: "udp://127.0.0.1:" + port, Records: "both"}, append(recs, gapRecord))
	const flows = 13 + 5
	time.Sleep(500 * time.Millisecond) // nfcapd says nothing about how far it has got
	log := stop()
	if want := fmt.Sprintf("Flows: %d,", flows); !strings.Contains(log, want) || !strings.Contains(log,
		"Sequence Errors: 0,") {
		t.Errorf("nfcapd does not say %q and no sequence errors:\n%s", want, log)
	}
	var got []object
	if err := json.Unmarshal([]byte(outputOf(t, "nfdump", "-R", dir, "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{
		"first": "flowStartMilliseconds", "last": "flowEndMilliseconds", "in_packets": "packetDeltaCount",
		"in_bytes": "octetDeltaCount", "out_packets": "reversePacketDeltaCount", "out_bytes": "reverseOctetDeltaCount",
		"proto": "protocolIdentifier", "src_port": "sourceTransportPort", "dst_port": "destinationTransportPort",
		"src4_addr": "sourceIPv4Address", "dst4_addr": "destinationIPv4Address", "src6_addr": "sourceIPv6Address",
		"dst6_addr": "destinationIPv6Address", "src4_xlt_ip": "postNATSourceIPv4Address",
		"dst4_xlt_ip": "postNATDestinationIPv4Address", "src_xlt_port": "postNAPTSourceTransportPort",
		"dst_xlt_port": "postNAPTDestinationTransportPort", "nat_event_id": "natEvent", "ingress_vrf": "ingressVRFID",
		"t_event": "observationTimeMilliseconds",
	}
	var have []map[string]string
	for _, o := range got {
		m := o.rename(names)
		for _, k := range []string{"flowStartMilliseconds", "flowEndMilliseconds", "observationTimeMilliseconds"} {
			if m[k] != "" {
				m[k] += "Z"
			}
		}
		if o["icmp_type"] != "" && o["icmp_type"] != "0" {
			m["icmp"] = o["icmp_type"] + "." + o["icmp_code"]
		}
		have = append(have, m)
	}
	want := wanted(recs, elements(names))
	for _, m := range want {
		if m["natEvent"] == "" {
			switch m["protocolIdentifier"] {
			case "1":
				m["icmp"] = "8.0"
			case "58":
				m["icmp"] = "128.0"
			}
		}
	}
	same(t, want, have)

	nel := outputOf(t, "nfdump", "-R", dir, "-o", "nel")
	if !strings.Contains(nel, "10.1.2.3:40000") || !strings.Contains(nel, "203.0.113.5:61000") {
		t.Errorf("nel output lacks the event:\n%s", nel)
	}
}

// protocols are the names that nfacctd prints, from /etc/protocols.
var protocols = map[string]string{"icmp": "1", "tcp": "6", "udp": "17", "gre": "47", "ipv6-icmp": "58", "sctp": "132"}

func TestNfacctd(t *testing.T) {
	need(t, "nfacctd")
	dir, port := t.TempDir(), freePort(t)
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	custom := []string{"reverseOctetDeltaCount field_type=29305:1 len=8",
		"reversePacketDeltaCount field_type=29305:2 len=8",
		"ingressVRFID field_type=234 len=4", "flowEndReason field_type=136 len=1", "flowId field_type=148 len=8",
		"natOriginatingAddressRealm field_type=229 len=1", "icmpTypeCodeIPv4 field_type=32 len=2",
		"icmpTypeCodeIPv6 field_type=139 len=2"}
	var primitives, own string
	names := map[string]string{
		"ip_src": "source", "ip_dst": "destination", "port_src": "sourceTransportPort",
		"port_dst": "destinationTransportPort",
		"ip_proto": "protocolIdentifier", "post_nat_ip_src": "postNATSourceIPv4Address",
		"post_nat_ip_dst": "postNATDestinationIPv4Address", "post_nat_port_src": "postNAPTSourceTransportPort",
		"post_nat_port_dst": "postNAPTDestinationTransportPort", "nat_event": "natEvent",
		"timestamp_start": "flowStartMilliseconds", "timestamp_end": "flowEndMilliseconds",
		"packets": "packetDeltaCount", "bytes": "octetDeltaCount",
	}
	for _, p := range custom {
		name, _, _ := strings.Cut(p, " ")
		key := strings.ToLower(name)
		primitives += "name=" + strings.Replace(p, name, key, 1) + " semantics=u_int\n"
		own += ", " + key
		names[key] = name
	}
	out := filepath.Join(dir, "out")
	config := file("nfacctd.conf", strings.Join([]string{
		"daemonize: false", "nfacctd_ip: 127.0.0.1", "nfacctd_port: " + port, "plugins: print", "print_refresh_time: 1",
		"print_output: json", "print_output_file: " + out, "print_output_file_append: true", "timestamps_since_epoch: true",
		"aggregate_primitives: " + file("primitives", primitives),
		"aggregate: src_host, dst_host, src_port, dst_port, proto, post_nat_src_host, post_nat_dst_host, " +
			"post_nat_src_port, " +
			"post_nat_dst_port, nat_event, timestamp_start, timestamp_end" + own, ""}, "\n"))
	stop := daemon(t, "nfacctd", "-f", config)
	bound(t, port)
	recs := collected()
	export(t, Config{Address: "udp://127.0.0.1:" + port, Records: "both"}, append(recs, gapRecord))
	const records = 13 + 5
	var lines []string
	for len(lines) < records {
		text, _ := os.ReadFile(out)
		lines = strings.Split(strings.TrimSpace(string(text)), "\n")
		if t.Context().Err() != nil {
			t.Fatal("test ended")
		}
		time.Sleep(100 * time.Millisecond)
	}
	if log := stop(); strings.Contains(log, "WARN") || strings.Contains(log, "ERROR") {
		t.Errorf("nfacctd complains:\n%s", log)
	}
	var have []map[string]string
	for _, line := range lines {
		var o object
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatal(err)
		}
		m := o.rename(names)
		for _, k := range []string{"flowStartMilliseconds", "flowEndMilliseconds"} {
			m[k] = strings.TrimSuffix(m[k], "000")
		}
		m["protocolIdentifier"] = protocols[m["protocolIdentifier"]]
		have = append(have, m)
	}
	var want []map[string]string
	shown := append(elements(names), "sourceIPv4Address", "sourceIPv6Address", "destinationIPv4Address",
		"destinationIPv6Address")
	for _, m := range wanted(recs, shown) {
		for _, family := range []string{"4", "6"} {
			for _, end := range []string{"source", "destination"} {
				if v, ok := m[end+"IPv"+family+"Address"]; ok {
					m[end] = v
					delete(m, end+"IPv"+family+"Address")
				}
			}
		}
		for _, k := range []string{"flowStartMilliseconds", "flowEndMilliseconds"} {
			at, err := time.Parse(time.RFC3339, m[k])
			if err != nil {
				t.Fatal(err)
			}
			m[k] = fmt.Sprintf("%d.%03d", at.Unix(), at.Nanosecond()/1e6)
		}
		want = append(want, m)
	}
	same(t, want, have)
}

func TestIPFIXDump(t *testing.T) {
	need(t, "ipfixDump")
	recs := collected()
	recs[1].Mark, recs[1].Extra = 42, &flow.Extra{Helper: flow.NameFrom("ftp")}
	out := outputOf(t, "ipfixDump", "--rfc5610", "--data", "--hexdump=16",
		"--in", saved(t, Config{Records: "both", Enterprise: everyElement}, append(slices.Clone(recs), gapRecord)))
	if strings.Contains(strings.ToLower(out), "warning") {
		t.Errorf("ipfixDump warns:\n%s", out)
	}
	var have []map[string]string
	var gaps []string
	for part := range strings.SplitSeq(out, "--- data record ") {
		m := map[string]string{}
		for line := range strings.Lines(part) {
			number, rest, ok := strings.Cut(strings.TrimSpace(line), ")")
			name, value, ok2 := strings.Cut(rest, " : ")
			if !ok || !ok2 || !strings.HasPrefix(number, "(") {
				continue
			}
			name = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(name), "(S)"))
			value = strings.TrimSpace(value)
			if strings.HasSuffix(name, "Milliseconds") {
				value = strings.Replace(value, " ", "T", 1) + "Z"
			}
			if strings.HasSuffix(name, "IPv6Address") { // shown with leading zeros
				if a, err := netip.ParseAddr(value); err == nil {
					value = a.String()
				}
			}
			if name == "ctHelperName" {
				_, value, _ = strings.Cut(value, ") ")
			}
			if name == "observationTimeMilliseconds" && m[name] != "" {
				name += "_2"
			}
			m[name] = value
		}
		switch {
		case m["notSentFlowTotalCount"] != "":
			gaps = append(gaps, fmt.Sprint(m["notSentFlowTotalCount"], m["observationTimeMilliseconds"],
				m["observationTimeMilliseconds_2"]))
		case m["protocolIdentifier"] != "":
			delete(m, "ctLabels") // shown in a form of its own
			have = append(have, pick(m, keys(m)))
		}
	}
	if want := "52026-01-01T00:00:00.123Z2026-01-01T00:00:04.567Z"; !slices.Equal(gaps, []string{want}) {
		t.Errorf("gap records %v, want %s", gaps, want)
	}
	var want []map[string]string
	for _, m := range wanted(recs, allElements()) {
		delete(m, "ctLabels")
		want = append(want, m)
	}
	same(t, want, have)
}

func keys(m map[string]string) (list []string) {
	for k := range m {
		list = append(list, k)
	}
	return list
}

// allElements returns the names of all elements of flows and events.
func allElements() (names []string) {
	for _, t := range AllTemplates() {
		for _, f := range t.Fields {
			if t.Scopes == 0 {
				names = append(names, f.Name)
			}
		}
	}
	return names
}

const pythonReader = `
import json, sys, ipfix.ie, ipfix.reader
ipfix.ie.use_iana_default()
ipfix.ie.use_5103_default()
for record in ipfix.reader.from_stream(open(sys.argv[1], "rb")).namedict_iterator():
    print(json.dumps({name: str(value) for name, value in record.items()}))
`

func TestPythonIPFIX(t *testing.T) {
	const python = "/usr/bin/python3"
	if err := exec.CommandContext(t.Context(), python, "-c", "import ipfix").Run(); err != nil {
		t.Skip("python3-ipfix is not installed")
	}
	recs := collected()
	out := outputOf(t, python, "-c", pythonReader, saved(t, Config{Records: "both"}, recs))
	var have []map[string]string
	for line := range strings.Lines(out) {
		var o object
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatal(err)
		}
		if o["protocolIdentifier"] == "" {
			continue // statistics
		}
		for name, v := range o {
			if strings.HasSuffix(name, "Milliseconds") {
				o[name] = strings.TrimSuffix(strings.Replace(v, " ", "T", 1), "000") + "Z"
			}
		}
		have = append(have, pick(o, keys(o)))
	}
	var want []map[string]string
	for _, m := range wanted(recs, allElements()) {
		for name := range m {
			if strings.HasPrefix(name, "ct") {
				delete(m, name)
			}
		}
		want = append(want, m)
	}
	same(t, want, have)
}

// pcapOf writes messages as UDP datagrams to a file for Wireshark: libpcap's format with bare IPv4 packets.
func pcapOf(t *testing.T, messages [][]byte) string {
	t.Helper()
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	b = append(b, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, 65535)
	b = binary.LittleEndian.AppendUint32(b, 101) // LINKTYPE_RAW
	for _, m := range messages {
		packet := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1, 0xc0, 0, 0x12, 0x83, 0, 0, 0, 0}
		packet = append(packet, m...)
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		binary.BigEndian.PutUint16(packet[24:], uint16(len(packet)-20))
		b = binary.LittleEndian.AppendUint32(b, uint32(time.Now().Unix()))
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(packet)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(packet)))
		b = append(b, packet...)
	}
	name := filepath.Join(t.TempDir(), "messages.pcap")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// pdml is a field of tshark's XML, with the fields in it.
type pdml struct {
	Name   string `xml:"name,attr"`
	Label  string `xml:"showname,attr"`
	Show   string `xml:"show,attr"`
	Value  string `xml:"value,attr"`
	Fields []pdml `xml:",any"`
}

// records returns each flow below f as its fields' names and values; a name that comes again gets "_2".
func (f *pdml) records() (list []map[string]string) {
	if strings.HasPrefix(f.Show, "Flow ") {
		m := map[string]string{}
		f.flatten(m)
		return append(list, m)
	}
	for i := range f.Fields {
		list = append(list, f.Fields[i].records()...)
	}
	return list
}

func (f *pdml) flatten(m map[string]string) {
	for _, field := range f.Fields {
		name := field.Name
		if m[name] != "" {
			name += "_2"
		}
		m[name] = field.Show
		field.flatten(m)
	}
}

func TestTshark(t *testing.T) {
	need(t, "tshark")
	recs := collected()
	no := false
	messages := exported(t, Config{Records: "both", Enterprise: everyElement, MessageSize: "1400"},
		append(slices.Clone(recs), gapRecord))
	file := pcapOf(t, messages)
	const warning = "_ws.expert.severity >= 0x00600000"
	if out := outputOf(t, "tshark", "-r", file, "-d", "udp.port==4739,cflow", "-Y", warning, "-V"); out != "" {
		t.Errorf("tshark has expert notes:\n%s", out)
	}
	if n := strings.Count(outputOf(t, "tshark", "-r", file, "-d", "udp.port==4739,cflow", "-Y", "cflow.version == 10"),
		"\n"); n != len(messages) {
		t.Errorf("tshark decodes %d of %d messages", n, len(messages))
	}

	file = pcapOf(t, exported(t, Config{Records: "both", Options: &no, MessageSize: "1400"}, recs))
	var capture pdml
	if err := xml.Unmarshal([]byte(outputOf(t, "tshark", "-r", file, "-d", "udp.port==4739,cflow", "-T", "pdml")),
		&capture); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{
		"cflow.abstimestart": "flowStartMilliseconds", "cflow.abstimeend": "flowEndMilliseconds",
		"cflow.observation_time_milliseconds": "observationTimeMilliseconds",
		"cflow.srcaddr":                       "sourceIPv4Address", "cflow.dstaddr": "destinationIPv4Address",
		"cflow.srcaddrv6": "sourceIPv6Address", "cflow.dstaddrv6": "destinationIPv6Address",
		"cflow.srcport": "sourceTransportPort", "cflow.dstport": "destinationTransportPort",
		"cflow.post_natsource_ipv4_address":         "postNATSourceIPv4Address",
		"cflow.post_natdestination_ipv4_address":    "postNATDestinationIPv4Address",
		"cflow.post_nat_source_ipv6_address":        "postNATSourceIPv6Address",
		"cflow.post_nat_destination_ipv6_address":   "postNATDestinationIPv6Address",
		"cflow.post_naptsource_transport_port":      "postNAPTSourceTransportPort",
		"cflow.post_naptdestination_transport_port": "postNAPTDestinationTransportPort",
		"cflow.octets":                        "octetDeltaCount",
		"cflow.packets":                       "packetDeltaCount",
		"cflow.octets_2":                      "reverseOctetDeltaCount",
		"cflow.packets_2":                     "reversePacketDeltaCount",
		"cflow.flow_id":                       "flowId",
		"cflow.ingress_vrfid":                 "ingressVRFID",
		"cflow.protocol":                      "protocolIdentifier",
		"cflow.flow_end_reason":               "flowEndReason",
		"cflow.nat_event":                     "natEvent",
		"cflow.nat_originating_address_realm": "natOriginatingAddressRealm",
		"cflow.icmp_type_code_ipv4":           "icmpTypeCodeIPv4",
		"cflow.icmp_ipv6_type":                "icmpTypeCodeIPv6",
	}
	var have []map[string]string
	for _, m := range capture.records() {
		m := object(m).rename(names)
		for name, v := range m {
			if at, err := time.Parse("Jan _2, 2006 15:04:05.000000000 MST", v); err == nil {
				m[name] = at.UTC().Format("2006-01-02T15:04:05.000Z")
			}
		}
		have = append(have, m)
	}
	want := wanted(recs, elements(names))
	for _, m := range want {
		if m["icmpTypeCodeIPv4"] != "" {
			m["icmpTypeCodeIPv4"] = "0x0800"
		}
		if m["icmpTypeCodeIPv6"] != "" {
			m["icmpTypeCodeIPv6"] = "128"
		}
	}
	same(t, want, have)
}
