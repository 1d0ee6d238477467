//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
	"github.com/ctlogd/ctlogd/live"
)

// notShown is what a tap says of what it missed.
var notShown = regexp.MustCompile(`"event":"gap","host":"[^"]*","cause":"queue_full","lost":(\d+),"output":"tap"`)

// TestLive looks at a daemon in every way while flows end as fast as the kernel goes: one tap reads, one never does, one
// is stopped, top and the page are asked for. The output has every flow, what a tap shows and what it says that it
// missed add up to all, and the page shows the numbers that the metrics have.
func TestLive(t *testing.T) {
	need(t)
	const n, other = 100_000, 600_000 // other is translated to 203.0.113.10
	room(t, 2*n)
	ns, f := newFloodNS(t)
	dir := t.TempDir()
	conf, file, socket := filepath.Join(dir, "ctlogd.yaml"), filepath.Join(dir, "flows.jsonl"), filepath.Join(dir, "ctlogd.sock")
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "metrics: {listen: 127.0.0.1:9469}\nlive: {socket: %s}\noutputs: {jsonl: [{path: %s, queue: 262144}]}\n",
		socket, file), 0o644))
	binary := buildDaemon(t, true)
	d := start(t, ns, exec.Command(binary, "run", "-c", conf))
	d.awaitMember(t, lab.GroupDestroy)
	eventually(t, "the socket is there", func() bool { _, err := os.Stat(socket); return err == nil })
	awaitListener(t, ns, "tcp", 9469)

	deaf, err := net.Dial("unix", socket)
	must(t, err)
	defer deaf.Close()
	_, err = io.WriteString(deaf, "GET /tap HTTP/1.0\r\n\r\n")
	must(t, err)
	head := make([]byte, len("HTTP/1.0 200 OK"))
	_, err = io.ReadFull(deaf, head)
	must(t, err)
	taps := make([]*process, 2)
	shown := make([]string, 2)
	for i := range taps {
		shown[i] = filepath.Join(dir, fmt.Sprintf("tap%d", i))
		out, err := os.Create(shown[i])
		must(t, err)
		defer out.Close()
		cmd := exec.Command(binary, "tap", "--json", "--socket", socket, "nat=snat")
		cmd.Stdout = out
		taps[i] = start(t, ns, cmd)
	}
	want := uint64(n)
	eventually(t, "both taps show what comes", func() bool { // of other flows, until both are there
		must(t, f.Churn(other, other+100))
		want += 100
		for _, file := range shown {
			if content, err := os.ReadFile(file); err != nil || len(content) == 0 {
				return false
			}
		}
		return true
	})
	must(t, taps[1].Process.Signal(syscall.SIGSTOP))

	client := live.NewClient(socket)
	status := func() *live.View {
		v, err := client.Top(t.Context())
		must(t, err)
		return v
	}
	for i := 0; i < n; i += n / 10 {
		must(t, f.Churn(i, i+n/10))
		status()
	}
	eventually(t, "the output has every flow", func() bool { return status().Outputs[0].Written == want })
	lines := lineCounter{path: file}
	if got := lines.count(t); uint64(got) != want {
		t.Errorf("%d lines of %d flows", got, want)
	}
	v := status()
	if v.State != "ok" || v.Lost() != 0 {
		t.Errorf("%s, %d lost: %v", v.State, v.Lost(), v.Reasons)
	}
	if len(v.Talkers.Public.Top) == 0 || v.Talkers.Ports.Top[0].Key != "tcp/443" {
		t.Errorf("the top talkers are %+v", v.Talkers)
	}

	must(t, taps[1].Process.Signal(syscall.SIGCONT))
	for i, tap := range taps {
		var flows, missed int
		eventually(t, "a tap has shown all, or told of it", func() bool {
			content, err := os.ReadFile(shown[i])
			must(t, err)
			flows = bytes.Count(content, []byte(`"event":"destroy"`)) - bytes.Count(content, []byte(`"nat_src_ip":"203.0.113.10"`))
			missed = 0
			for _, gap := range notShown.FindAllSubmatch(content, -1) {
				lost, err := strconv.Atoi(string(gap[1]))
				must(t, err)
				missed += lost
			}
			return flows+missed >= n
		})
		t.Logf("tap %d shows %d records and tells of %d more", i, flows, missed)
		if flows+missed != n {
			t.Errorf("tap %d: %d records and %d missed, of %d", i, flows, missed, n)
		}
		must(t, tap.Process.Signal(syscall.SIGTERM))
		eventually(t, "the tap has ended", tap.ended)
	}

	m := &metricsOf{ns: ns}
	eventually(t, "the table is empty", func() bool { m.scrape(t); return m.value(t, "ctlogd_conntrack_entries") == 0 })
	code, page := m.get(t, "/")
	if code != 200 {
		t.Fatalf("the page: %d", code)
	}
	m.scrape(t)
	for metric, series := range map[string]string{
		"events": `ctlogd_events_total{event="destroy"}`, "entries": "ctlogd_conntrack_entries", "limit": "ctlogd_conntrack_entries_limit",
		"records": label("ctlogd_output_records_total", "jsonl:"+file), "lost": `ctlogd_gap_lost_records_total{cause="overrun",output=""}`,
	} {
		got := regexp.MustCompile(`data-metric="` + metric + `" data-value="(\d+)"`).FindStringSubmatch(page)
		if got == nil || got[1] != strconv.FormatFloat(m.value(t, series), 'f', 0, 64) {
			t.Errorf("the page shows %s %v, and %s is %v", metric, got, series, m.value(t, series))
		}
	}
	began := time.Now()
	d.stop(t)
	t.Logf("ended within %v, with a tap that does not read", time.Since(began).Round(time.Millisecond))
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is left behind")
	}
}
