//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestFlows sends real traffic of every kind through a gateway and holds every record, field for field, to what the
// conntrack tool and the kernel's own messages say.
func TestFlows(t *testing.T) {
	need(t, "conntrack", "unshare")
	t.Parallel() // it waits, mostly, and has namespaces of its own
	g := newGateway(t)
	j := newJudge(t, g.NS)
	clock := unsynchronized(t)
	store := filepath.Join(t.TempDir(), "archive")
	d := startDaemon(t, g.NS, buildDaemon(t, true),
		"{events: [destroy], expectations: true, labels: true, delivery: reliable}", "archive: [{path: "+store+"}]")
	d.awaitMember(t, lab.GroupExpectNew)

	g.traffic(t, func() { j.snapshot(t) })
	g.end(t)
	lines := lineCounter{path: d.file}
	wantExpectations := j.expectations(t)
	want := j.ended(t) + len(wantExpectations)
	eventually(t, fmt.Sprintf("%d records are written", want), func() bool { return lines.count(t) >= want })
	d.stop(t)

	inArchive(t, d.Path, store, d.file)

	records := readRecords(t, d.file)
	checkSchema(t, d.file)
	var destroys, expectations []record
	ids := map[any]bool{}
	for _, r := range records {
		if host, _ := r["host"].(string); host == "" {
			t.Errorf("no host in %v", r)
		}
		delete(r, "host")
		if said := r["clock"] != nil; said != clock && clock == unsynchronized(t) {
			t.Errorf("clock is %v, and the kernel says that it is not synchronised: %v", r["clock"], clock)
		}
		delete(r, "clock")
		if strings.HasPrefix(r["event"].(string), "expect_") {
			delete(r, "time") // of the daemon's clock
			expectations = append(expectations, r)
			continue
		}
		if id, _ := r["flow_id"].(string); !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) || ids[id] {
			t.Errorf("flow_id %q is missing, malformed or not unique", id)
		}
		ids[r["flow_id"]] = true
		delete(r, "flow_id")
		destroys = append(destroys, r)
	}
	wantDestroys := j.destroys(t)
	if diff := cmp.Diff(byKey(t, wantDestroys), byKey(t, destroys)); diff != "" {
		t.Errorf("destroy records differ from what happened (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantExpectations, expectations); diff != "" {
		t.Errorf("expectation records differ from what happened (-want +got):\n%s", diff)
	}
	for _, c := range g.owed() {
		t.Run(c.name, func(t *testing.T) {
			found := 0
			for _, r := range destroys {
				if c.match(r) {
					found++
				}
			}
			if found != 1 {
				t.Errorf("%d records match %v, want 1", found, c.has)
			}
		})
	}
	t.Logf("%d flows and %d events of expectations, each as the kernel told it", len(destroys), len(expectations))
}

// inArchive holds what an archive has of flows, in the row log and in the segment that is made of it, to the file of the same
// flows: every field of every kind, byte for byte, but for ct_id.
func inArchive(t *testing.T, binary, store, file string) {
	t.Helper()
	sorted := func(text []byte) []string {
		text = regexp.MustCompile(`,"ct_id":\d+|,"flow_id":"[0-9a-f]+"|.*"event":"checkpoint".*\n`).ReplaceAll(text, nil)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		slices.Sort(lines)
		return lines
	}
	text, err := os.ReadFile(file)
	must(t, err)
	want := sorted(text)
	logs, err := filepath.Glob(store + "/host=*/*.rows")
	must(t, err)
	if len(logs) != 1 {
		t.Fatalf("row logs %v, want one", logs)
	}
	must(t, exec.Command(binary, "seal", logs[0]).Run())
	segments, err := filepath.Glob(store + "/host=*/date=*/*.parquet")
	must(t, err)
	if len(segments) != 1 {
		t.Fatalf("segments %v, want one", segments)
	}
	for _, name := range []string{logs[0], segments[0]} {
		out, err := exec.Command(binary, "cat", name).Output()
		must(t, err)
		if diff := cmp.Diff(want, sorted(out)); diff != "" {
			t.Errorf("%s (-file +archive):\n%s", name, diff)
		}
	}
}

// end makes all flows end.
func (g *gateway) end(t *testing.T) {
	t.Helper()
	// The control flow of the call would last for an hour.
	must(t, g.Run("conntrack", "-D", "-p", "udp", "--orig-port-src", "5060"))
	eventually(t, "all flows have ended", func() bool {
		n, err := g.Expire()
		must(t, err)
		return n == 0
	})
}

// owed is what must be in one record of a kind of flow, in the words of someone who knows what was sent.
type owed struct {
	name string
	has  map[string]string // values as fmt.Sprint prints them; "" wants the key absent
}

func (o owed) match(r record) bool {
	for key, want := range o.has {
		got, ok := r[key]
		if want == "" && ok || want != "" && fmt.Sprint(got) != want {
			return false
		}
	}
	return true
}

func (g *gateway) owed() []owed {
	list := []owed{
		{"HTTP through masquerade", map[string]string{
			"proto": "tcp", "src_ip": clientIP, "src_port": "40001", "dst_ip": serverIP, "dst_port": "80", "nat": "snat",
			"nat_src_ip": publicIP, "nat_src_port": "40001", "nat_dst_ip": "", "tcp_state": "time_wait",
			"end_reason": "tcp_fin", "helper": "", "zone": "", "mark": "", "labels": "",
		}},
		{"HTTP through the port forward", map[string]string{
			"src_ip": serverIP, "src_port": "40002", "dst_ip": publicIP, "dst_port": "8080", "nat": "dnat",
			"nat_dst_ip": clientIP, "nat_dst_port": "80", "nat_src_ip": "",
		}},
		{"HTTP through both translations", map[string]string{
			"src_ip": clientIP, "src_port": "40003", "dst_ip": publicIP, "dst_port": "8080", "nat": "both",
			"nat_src_ip": publicIP, "nat_dst_ip": serverIP, "nat_dst_port": "80",
		}},
		{"IPv6 without NAT", map[string]string{"src_ip": clientIP6, "src_port": "40004", "dst_ip": serverIP6, "nat": "none"}},
		{"IPv6 with NAT66", map[string]string{
			"src_ip": client66, "src_port": "40005", "dst_ip": serverIP6, "nat": "snat", "nat_src_ip": "2001:db8:100::1",
		}},
		{"a zone", map[string]string{"src_port": "40006", "zone": "7", "zone_orig": "", "nat_src_ip": "198.51.100.77"}},
		{"twin A", map[string]string{
			"src_ip": twinIP, "src_port": "40007", "zone_orig": "101", "zone": "", "mark": "101", "nat_src_port": "40007",
		}},
		{"twin B", map[string]string{
			"src_ip": twinIP, "src_port": "40007", "zone_orig": "102", "zone": "", "mark": "102", "nat_src_ip": "198.51.100.78",
		}},
		{"mark and labels", map[string]string{
			"src_port": "40008", "mark": "12648430", "labels": "20000000000000000020000000000000",
		}},
		{"a port taken", map[string]string{
			"src_ip": publicIP, "src_port": "40008", "nat": "snat", "nat_src_ip": publicIP, "mark": "", "labels": "",
		}},
		{"a closed connection that somebody deletes", map[string]string{
			"src_port": "40018", "tcp_state": "time_wait", "end_reason": "deleted",
		}},
		{"a refused connection", map[string]string{"src_port": "40009", "tcp_state": "close", "end_reason": "tcp_rst"}},
		{"ping", map[string]string{
			"proto": "icmp", "src_ip": clientIP, "icmp_type": "8", "icmp_code": "0", "icmp_id": "777", "src_port": "",
			"nat": "snat", "nat_src_ip": publicIP, "end_reason": "timeout",
		}},
		{"a ping of an id taken", map[string]string{
			"proto": "icmp", "src_ip": publicIP, "icmp_id": "776", "nat": "snat", "nat_src_ip": publicIP,
		}},
		{"ping of twin A", map[string]string{"proto": "icmp", "icmp_id": "778", "zone_orig": "101", "nat_icmp_id": ""}},
		{"ping of twin B", map[string]string{"proto": "icmp", "icmp_id": "778", "zone_orig": "102", "nat": "snat"}},
		{"ping6", map[string]string{"proto": "icmpv6", "src_ip": clientIP6, "icmp_type": "128", "icmp_id": "779", "nat": "none"}},
		{"ping6 with NAT66", map[string]string{"proto": "icmpv6", "src_ip": client66, "icmp_id": "780", "nat": "snat"}},
		{"DNS", map[string]string{"proto": "udp", "src_port": "40010", "dst_port": "53", "orig_packets": "1", "reply_packets": "1"}},
		{"SCTP", map[string]string{"proto": "sctp", "src_port": "40011", "dst_port": "40012", "sctp_state": "cookie_wait"}},
		{"GRE", map[string]string{"proto": "gre", "gre_key": "0", "gre_dst_key": "0", "nat": "snat"}},
		{"GRE of version 1", map[string]string{"proto": "gre", "gre_key": "0", "gre_dst_key": "1911", "nat": "snat"}},
		{"a protocol without a name", map[string]string{"proto": "253", "proto_num": "253", "src_port": "", "nat": "snat"}},
		{"SIP", map[string]string{"src_port": "5060", "helper": "sip", "end_reason": "deleted"}},
		{"speech", map[string]string{
			"src_ip": serverIP, "src_port": "40020", "helper": "sip", "nat": "dnat", "nat_dst_ip": clientIP,
			"master_proto": "udp", "master_src_ip": clientIP, "master_src_port": "5060", "master_dst_ip": serverIP,
		}},
	}
	if g.udplite {
		list = append(list, owed{"UDP-Lite", map[string]string{"proto": "udplite", "src_port": "40013", "nat": "snat"}})
	}
	if g.ftp {
		list = append(list,
			owed{"FTP, passive", map[string]string{"src_port": "40015", "dst_port": "21", "helper": "ftp", "master_proto": ""}},
			owed{"its data", map[string]string{
				"src_ip": clientIP, "helper": "ftp", "master_proto": "tcp", "master_src_ip": clientIP,
				"master_src_port": "40015", "master_dst_ip": serverIP, "master_dst_port": "21",
			}},
			owed{"FTP, active", map[string]string{"src_port": "40016", "dst_port": "21", "helper": "ftp", "master_proto": ""}},
			owed{"its data, from the server", map[string]string{
				"src_ip": serverIP, "src_port": "20", "nat": "dnat", "nat_dst_ip": clientIP, "helper": "ftp",
				"master_src_port": "40016", "master_dst_port": "21",
			}})
	}
	if g.tftp {
		list = append(list,
			owed{"TFTP", map[string]string{"src_port": "40017", "dst_port": "69", "helper": "tftp", "master_proto": ""}},
			owed{"the file by TFTP", map[string]string{
				"src_ip": serverIP, "helper": "tftp", "nat": "dnat", "nat_dst_ip": clientIP, "nat_dst_port": "40017",
				"master_proto": "udp", "master_src_port": "40017", "master_dst_port": "69",
			}})
	}
	return list
}

// readRecords returns the records in a file of JSON lines, every line of which must be one.
// unsynchronized reports what the kernel says of this machine's clock.
func unsynchronized(t *testing.T) bool {
	t.Helper()
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	must(t, err)
	return state == unix.TIME_ERROR || tx.Status&unix.STA_UNSYNC != 0
}

func readRecords(t *testing.T, file string) (records []record) {
	t.Helper()
	content, err := os.ReadFile(file)
	must(t, err)
	for line := range bytes.Lines(content) {
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		var r record
		if err := d.Decode(&r); err != nil || line[len(line)-1] != '\n' {
			t.Fatalf("not a line of JSON: %v: %q", err, line)
		}
		records = append(records, r)
	}
	return records
}

// byKey returns flow records by what names each, and complains of flows that have more than one.
func byKey(t *testing.T, records []record) map[string]record {
	t.Helper()
	m := map[string]record{}
	for _, r := range records {
		key := fmt.Sprint(r["proto"], " ", r["src_ip"], ":", r["src_port"], " > ", r["dst_ip"], ":", r["dst_port"], " ",
			r["icmp_id"], " ", r["ct_id"], " ", r["start"])
		if _, ok := m[key]; ok {
			t.Errorf("two records of one flow: %s", key)
		}
		m[key] = r
	}
	return m
}

// checkSchema holds every line to the schema that is published with the format.
func checkSchema(t *testing.T, file string) {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	schema, err := c.Compile("../docs/flow.schema.json")
	must(t, err)
	content, err := os.ReadFile(file)
	must(t, err)
	for line := range bytes.Lines(content) {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
		must(t, err)
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s\n%v", line, err)
		}
	}
}
