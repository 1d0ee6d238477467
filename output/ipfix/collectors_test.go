//go:build integration

package ipfix

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/ipfix/collect"
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
func wanted(recs []*flow.Record, elements []string) (list []collect.Record) {
	for _, r := range recs {
		set := newTemplateSet(&Config{Records: "both"})
		if set.flow(r) != nil {
			list = append(list, collect.Pick(expected(r, false), elements))
		}
		if set.event(r) != nil {
			list = append(list, collect.Pick(expected(r, true), elements))
		}
	}
	return list
}

// same compares two lists of records in any order.
func same(t *testing.T, want, got []collect.Record) {
	t.Helper()
	if diff := cmp.Diff(collect.Sorted(want), collect.Sorted(got)); diff != "" {
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
	got, err := collect.Nfdump(dir)
	if err != nil {
		t.Fatal(err)
	}
	same(t, wanted(recs, collect.NfdumpElements), got)

	nel, err := exec.CommandContext(t.Context(), "nfdump", "-R", dir, "-o", "nel").CombinedOutput()
	if err != nil {
		t.Error(err)
	}
	if nel := string(nel); !strings.Contains(nel, "10.1.2.3:40000") || !strings.Contains(nel, "203.0.113.5:61000") {
		t.Errorf("nel output lacks the event:\n%s", nel)
	}
}

func TestNfacctd(t *testing.T) {
	need(t, "nfacctd")
	dir, port := t.TempDir(), freePort(t)
	out := filepath.Join(dir, "out")
	number, _ := strconv.Atoi(port)
	config, err := collect.ConfigureNfacctd(dir, number, out)
	if err != nil {
		t.Fatal(err)
	}
	stop := daemon(t, "nfacctd", "-f", config)
	bound(t, port)
	// It may be bound before all of it is ready, and lose what comes then.
	const probePort = 9
	probe := with(ended(tuple(flow.UDP, "192.0.2.9", probePort, "192.0.2.9", probePort)), counted(9, 9, 9, 9))
	shown := func() (probes, records int) {
		text, _ := os.ReadFile(out)
		probes = strings.Count(string(text), fmt.Sprintf(`"port_src": %d,`, probePort))
		return probes, strings.Count(string(text), "\n") - probes
	}
	deadline := time.Now().Add(time.Minute)
	wait := func() {
		if time.Now().After(deadline) {
			t.Fatalf("nfacctd does not show what it gets:\n%s", stop())
		}
		time.Sleep(50 * time.Millisecond)
	}
	var again time.Time
	for domain := uint32(1000); ; wait() {
		if probes, _ := shown(); probes > 0 {
			break
		}
		if time.Now().After(again) {
			export(t, Config{Address: "udp://127.0.0.1:" + port, ObservationDomain: &domain}, []*flow.Record{probe})
			again = time.Now().Add(3 * time.Second)
			domain++
		}
	}
	recs := collected()
	export(t, Config{Address: "udp://127.0.0.1:" + port, Records: "both"}, append(recs, gapRecord))
	const records = 13 + 5
	for {
		if _, n := shown(); n >= records {
			break
		}
		wait()
	}
	if log := stop(); strings.Contains(log, "WARN") || strings.Contains(log, "ERROR") {
		t.Errorf("nfacctd complains:\n%s", log)
	}
	got, err := collect.Nfacctd(out)
	if err != nil {
		t.Fatal(err)
	}
	got = slices.DeleteFunc(got, func(m collect.Record) bool {
		return m["sourceTransportPort"] == strconv.Itoa(probePort)
	})
	same(t, wanted(recs, collect.NfacctdElements), got)
}

func TestIPFIXDump(t *testing.T) {
	need(t, "ipfixDump")
	recs := collected()
	recs[1].Mark, recs[1].Extra = 42, &flow.Extra{Helper: flow.NameFrom("ftp")}
	got, out, err := collect.IPFIXDump(
		saved(t, Config{Records: "both", Enterprise: everyElement}, append(slices.Clone(recs), gapRecord)))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.ToLower(out), "warning") {
		t.Errorf("ipfixDump warns:\n%s", out)
	}
	var have []collect.Record
	var gaps []string
	for _, m := range got {
		delete(m, "ctLabels") // shown in a form of its own
		switch {
		case m["notSentFlowTotalCount"] != "":
			gaps = append(gaps, fmt.Sprint(m["notSentFlowTotalCount"], m["observationTimeMilliseconds"],
				m["observationTimeMilliseconds_2"]))
		case m["protocolIdentifier"] != "":
			have = append(have, m)
		}
	}
	if want := "52026-01-01T00:00:00.123Z2026-01-01T00:00:04.567Z"; !slices.Equal(gaps, []string{want}) {
		t.Errorf("gap records %v, want %s", gaps, want)
	}
	want := wanted(recs, allElements())
	for _, m := range want {
		delete(m, "ctLabels")
	}
	same(t, want, have)
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

func TestPythonIPFIX(t *testing.T) {
	if err := exec.CommandContext(t.Context(), collect.Python, "-c", "import ipfix").Run(); err != nil {
		t.Skip("python3-ipfix is not installed")
	}
	recs := collected()
	got, err := collect.PythonIPFIX(saved(t, Config{Records: "both"}, recs))
	if err != nil {
		t.Fatal(err)
	}
	got = slices.DeleteFunc(got, func(m collect.Record) bool { return m["protocolIdentifier"] == "" }) // statistics
	same(t, wanted(recs, registered()), got)
}

// registered returns the names of the elements that are IANA's.
func registered() []string {
	return slices.DeleteFunc(allElements(), func(name string) bool { return strings.HasPrefix(name, "ct") })
}

// pcapOf writes messages as UDP datagrams to a file and returns its name.
func pcapOf(t *testing.T, messages [][]byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "messages.pcap")
	if err := collect.Pcap(name, messages); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTshark(t *testing.T) {
	need(t, "tshark")
	recs := collected()
	no := false
	messages := exported(t, Config{Records: "both", Enterprise: everyElement, MessageSize: "1400"},
		append(slices.Clone(recs), gapRecord))
	notes, n, err := collect.TsharkNotes(pcapOf(t, messages))
	if err != nil {
		t.Fatal(err)
	}
	if notes != "" {
		t.Errorf("tshark has expert notes:\n%s", notes)
	}
	if n != len(messages) {
		t.Errorf("tshark decodes %d of %d messages", n, len(messages))
	}
	got, err := collect.Tshark(pcapOf(t,
		exported(t, Config{Records: "both", Options: &no, MessageSize: "1400"}, recs)))
	if err != nil {
		t.Fatal(err)
	}
	same(t, wanted(recs, collect.TsharkElements), got)
}
