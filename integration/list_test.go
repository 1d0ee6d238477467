//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestList: the table as list shows it has what conntrack -L has, its words choose, its sums add up; and an expectation of
// the FTP helper has the star where the client's port may be any, as ti-mo/conntrack reads it too.
func TestList(t *testing.T) {
	need(t, "conntrack")
	ns := newNS(t, "list")
	prepare(t, ns)
	lab.LoadModules("nf_conntrack_ftp")
	must(t, ns.Run("ip", "addr", "add", "127.0.0.2/8", "dev", "lo"))
	must(t, ns.Nft(`table inet lab {
	ct helper ftp { type "ftp" protocol tcp; }
	chain out {
		type filter hook output priority mangle
		tcp dport 21 ct helper set "ftp"
		udp dport 5353 ct mark set 7
	}
	chain nat {
		type nat hook postrouting priority srcnat
		udp dport 5353 snat ip to 127.0.0.2
	}
}`))
	binary := buildDaemon(t, false)
	list := func(args ...string) string {
		t.Helper()
		text, err := ns.Output("", binary, append([]string{"list"}, args...)...)
		must(t, err)
		return string(text)
	}
	if got := list(); got != "" {
		t.Errorf("an empty table: %q", got)
	}
	if got := list("--expect"); got != "" {
		t.Errorf("an empty table of expectations: %q", got)
	}

	// Three flows of UDP that are translated, one of TCP with a helper.
	for range 3 {
		c, err := ns.DialContext(t.Context(), "udp", "127.0.0.1:5353")
		must(t, err)
		defer c.Close()
		_, err = io.WriteString(c, "hello")
		must(t, err)
	}
	l, err := ns.Listen("tcp", "127.0.0.1:21")
	must(t, err)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "220 ready\r\n")
		if line, err := bufio.NewReader(c).ReadString('\n'); err == nil && strings.HasPrefix(line, "PASV") {
			_, _ = io.WriteString(c, "227 Entering Passive Mode (127,0,0,1,79,121)\r\n") // port 20345
		}
		_, _ = io.Copy(io.Discard, c)
	}()
	ftp, err := ns.DialContext(t.Context(), "tcp", "127.0.0.1:21")
	must(t, err)
	defer ftp.Close()
	answers := bufio.NewReader(ftp)
	for _, send := range []string{"", "PASV\r\n"} {
		_, err = io.WriteString(ftp, send)
		must(t, err)
		_, err := answers.ReadString('\n')
		must(t, err)
	}

	theirs, err := ns.Output("", "conntrack", "-L", "-o", "extended")
	must(t, err)
	flows := strings.Count(string(theirs), "\n")
	var got []map[string]any
	for line := range strings.Lines(list("--json")) {
		var m map[string]any
		must(t, json.Unmarshal([]byte(line), &m))
		got = append(got, m)
	}
	if len(got) != flows || flows != 4 {
		t.Errorf("%d flows are listed, conntrack -L has %d:\n%v\n%s", len(got), flows, got, theirs)
	}
	for _, m := range got {
		if m["event"] != "open" || m["flow_id"] == nil || m["proto"] == "tcp" && m["helper"] != "ftp" || m["proto"] == "udp" && m["nat_src_ip"] != "127.0.0.2" {
			t.Errorf("listed: %v", m)
		}
	}
	for words, want := range map[string]int{"proto=udp": 3, "nat=snat": 3, "helper=ftp": 1, "not:nat=snat": 1, "mark=7 dst_port=5353": 3, "zone=3": 0, "-n 2": 2} {
		lines := strings.Count(list(append(strings.Fields(words), "--json")...), "\n")
		if lines != want {
			t.Errorf("%s: %d lines, want %d", words, lines, want)
		}
	}
	text := list("helper=ftp")
	if !regexp.MustCompile(`(?m)^time +event.*\n.* open +tcp +127\.0\.0\.1:\d+ +-> 127\.0\.0\.1:21 .* established +ftp\n$`).MatchString(text) {
		t.Errorf("as lines:\n%s", text)
	}
	sums := list("--count-by", "dst_port")
	if !regexp.MustCompile(`^ +flows +share +bytes  dst_port\n +3  75\.0 % +99  5353/udp\n +1  25\.0 % +\d+  21/tcp\n +4 100\.0 % +\d+  \(all\)\n$`).MatchString(sums) {
		t.Errorf("by port:\n%s", sums)
	}
	for by, want := range map[string]string{"src": `{"bytes":\d+,"flows":4,"src":"127.0.0.1"}`, "helper": `"flows":1,"helper":"ftp"`, "nat_src": `"flows":3,"nat_src":"127.0.0.2"`,
		"state": `"flows":1,"state":"established"`, "mark": `"flows":3,"mark":"7"`, "nat": `"flows":3,"nat":"snat"`, "zone": `"flows":4,"zone":"0"`, "proto": `"flows":3,"proto":"udp"`} {
		if sums := list("--json", "--count-by", by); !regexp.MustCompile(want).MatchString(sums) {
			t.Errorf("by %s:\n%s", by, sums)
		}
	}

	text = list("--expect")
	local := ftp.LocalAddr().(*net.TCPAddr)
	want := fmt.Sprintf(`^tcp 127\.0\.0\.1:\* -> 127\.0\.0\.1:20345 ftp, of tcp 127\.0\.0\.1:%d -> 127\.0\.0\.1:21, \d+ s left\n$`, local.Port)
	if !regexp.MustCompile(want).MatchString(text) {
		t.Errorf("expectations: %q, want %s", text, want)
	}
	if text := list("--expect", "helper=tftp"); text != "" {
		t.Errorf("expectations of tftp: %q", text)
	}
	var e map[string]any
	must(t, json.Unmarshal([]byte(list("--expect", "--json")), &e))
	var judge []conntrack.Expect
	must(t, ns.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer c.Close()
		judge, err = c.DumpExpect()
		return err
	}))
	if len(judge) != 1 {
		t.Fatalf("%d expectations", len(judge))
	}
	j := &judge[0]
	if e["event"] != "expect_new" || e["dst_port"] != float64(j.Tuple.Proto.DestinationPort) || e["dst_ip"] != j.Tuple.IP.DestinationAddress.String() ||
		e["master_src_port"] != float64(j.TupleMaster.Proto.SourcePort) || e["helper"] != j.HelpName || j.Mask.Proto.SourcePort != 0 {
		t.Errorf("%v\n%+v", e, j)
	}

	// Who may not is told how.
	for _, args := range [][]string{{"--count-by", "x"}, {"port"}, {"--color", "red"}, {"-n", "-1"}} {
		if out, err := ns.Output("", binary, append([]string{"list"}, args...)...); err == nil {
			t.Errorf("%v: %s", args, out)
		}
	}
}

// TestListMany: a large table is listed to its end, each flow once, and the memory that takes is bounded. CTLOGD_LONG=1 makes
// it a million flows, and the log says how long they take.
func TestListMany(t *testing.T) {
	need(t)
	n := scale(50_000, 1_000_000)
	room(t, 2*n)
	ns, flood := newFloodNS(t)
	must(t, flood.Create(0, n))
	binary := buildDaemon(t, false)
	for _, args := range [][]string{{"--json"}, {}, {"--count-by", "src", "-n", "10"}} {
		cmd := exec.Command(binary, append([]string{"list"}, args...)...)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, ns.Start(cmd))
		flows, began := 0, time.Now()
		peak := 0 // in KiB; rusage would begin with what this process has
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if flows%(n/20) == 0 {
				peak = max(peak, memory(cmd.Process.Pid, "VmHWM"))
			}
			if strings.Contains(lines.Text(), "10.") { // no head
				flows++
			}
		}
		must(t, cmd.Wait())
		took := time.Since(began)
		t.Logf("list %s: %d flows, %d lines in %.2f s, %.2f s of CPU, %d MiB", strings.Join(args, " "), n, flows, took.Seconds(),
			(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(), peak>>10)
		if want := map[bool]int{true: n, false: 10}[len(args) < 2]; flows != want {
			t.Errorf("list %v: %d lines, want %d", args, flows, want)
		}
		if peak > 96<<10 || peak == 0 && len(args) < 2 {
			t.Errorf("list %v took %d MiB", args, peak>>10)
		}
	}
}

// memory returns what a process has resident (VmRSS), or the most that it has had (VmHWM), in KiB; 0 when it has ended.
func memory(pid int, what string) (kib int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if _, after, ok := strings.Cut(string(text), what+":"); ok {
		_, _ = fmt.Sscan(after, &kib)
	}
	return kib
}
