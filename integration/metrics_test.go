//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestMetrics has one output's disk full while flows end, and holds the metrics to what happened.
func TestMetrics(t *testing.T) {
	need(t, "promtool", "conntrack")
	const n = 20_000
	room(t, 2*n)
	ns, f := newFloodNS(t)
	full := newDisk(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "ctlogd.yaml")
	good, bad := "jsonl:"+filepath.Join(dir, "flows.jsonl"), "jsonl:"+filepath.Join(full.dir, "flows.jsonl")
	text := fmt.Sprintf("metrics: {listen: 127.0.0.1:9469}\noutputs:\n  jsonl:\n  - path: %s\n  - {path: %s, queue: 2048}\n",
		good[len("jsonl:"):], bad[len("jsonl:"):])
	must(t, os.WriteFile(conf, []byte(text), 0o644))
	d := start(t, ns, exec.Command(buildDaemon(t, true), "run", "-c", conf))
	d.awaitMember(t, lab.GroupDestroy)
	awaitListener(t, ns, "tcp", 9469)
	m := &metricsOf{ns: ns}

	m.scrape(t)
	m.check(t, map[string]float64{
		`ctlogd_events_total{event="destroy"}`: 0, `ctlogd_delivery_reliable`: 1, `ctlogd_config_last_reload_successful`: 1,
		label("ctlogd_output_failing", good): 0, label("ctlogd_delivery_lag_seconds_count", good): 0,
		`ctlogd_conntrack_statistics_up`: 1, `ctlogd_conntrack_entries`: 0, `ctlogd_conntrack_entries_limit`: 2 * n,
	})
	if status, answer := m.get(t, "/readyz"); status != 200 || answer != "ok\n" {
		t.Errorf("/readyz: %d, %q", status, answer)
	}

	must(t, f.Create(0, n))
	eventually(t, "the table's size is exported", func() bool { // it is asked for once a second at most
		m.scrape(t)
		return m.value(t, "ctlogd_conntrack_entries") == n
	})
	full.fill(t)
	must(t, f.Flush())
	eventually(t, "the one has all, and the other what its queue holds", func() bool {
		m.scrape(t)
		return m.value(t, label("ctlogd_output_records_total", good)) == n &&
			m.value(t, label("ctlogd_output_failing", bad)) == 1 && m.value(t, "ctlogd_conntrack_entries") == 0
	})
	info, err := os.Stat(good[len("jsonl:"):])
	must(t, err)
	m.check(t, map[string]float64{
		`ctlogd_events_total{event="destroy"}`:                   n,
		label("ctlogd_delivery_lag_seconds_count", good):         n,
		label("ctlogd_output_bytes_total", good):                 float64(info.Size()),
		label("ctlogd_output_failing", good):                     0,
		label("ctlogd_output_errors_total", good):                0,
		label("ctlogd_output_queue_records", good):               0,
		label("ctlogd_output_queue_limit_records", bad):          2048,
		`ctlogd_kernel_drops_total`:                              0,
		`ctlogd_refused_messages_total`:                          0,
		`ctlogd_decode_errors_total{reason="malformed"}`:         0,
		`ctlogd_gaps_total{cause="overrun",output=""}`:           0,
		`ctlogd_gap_lost_records_total{cause="guard",output=""}`: 0,
	})
	dropped := m.value(t, label("ctlogd_output_lost_records_total", bad, "reason", "dropped"))
	if dropped < n-2048-1024 || dropped >= n { // the queue, and what is being decided on just now
		t.Errorf("%v dropped of %d, with a queue of 2048", dropped, n)
	}
	if lost := m.sum("ctlogd_gap_lost_records_total", bad); lost != dropped {
		t.Errorf("%v records are lost in gaps, and %v are dropped", lost, dropped)
	}
	if status, answer := m.get(t, "/readyz"); status != 200 || !strings.HasPrefix(answer, "degraded\n"+bad+": failing for ") ||
		!strings.Contains(answer, "no space left on device") {
		t.Errorf("/readyz: %d, %q", status, answer)
	}
	checkStatistics(t, ns, m)

	full.free(t)
	lines := &lineCounter{path: bad[len("jsonl:"):]}
	eventually(t, "the other goes on, and its gaps are on record", func() bool {
		m.scrape(t)
		return m.value(t, label("ctlogd_output_failing", bad)) == 0 && m.value(t, label("ctlogd_output_queue_records", bad)) == 0 &&
			m.value(t, label("ctlogd_output_gap_records_total", bad)) > 0 && lines.count(t) > 0
	})
	flows, gaps := 0, map[string]float64{}
	for _, r := range readRecords(t, lines.path) {
		if r["event"] != "gap" {
			flows++
			continue
		}
		cause := r["cause"].(string)
		lost, err := r["lost"].(json.Number).Float64()
		must(t, err)
		gaps[label("ctlogd_gaps_total", bad, "cause", cause)]++
		gaps[label("ctlogd_gap_lost_records_total", bad, "cause", cause)] += lost
		gaps[label("ctlogd_output_gap_records_total", bad)]++
	}
	if float64(flows)+dropped != n {
		t.Errorf("%d flows in the file, and %v dropped, of %d", flows, dropped, n)
	}
	m.check(t, gaps)
	m.check(t, map[string]float64{
		label("ctlogd_delivery_lag_seconds_count", bad):                      float64(flows),
		label("ctlogd_output_records_total", bad):                            float64(lines.count(t)),
		label("ctlogd_output_lost_records_total", bad, "reason", "dropped"):  dropped,
		label("ctlogd_output_lost_records_total", bad, "reason", "rejected"): 0,
	})
	if m.value(t, label("ctlogd_output_errors_total", bad)) == 0 || m.value(t, label("ctlogd_output_retries_total", bad)) == 0 {
		t.Error("no write has failed, or none was tried again")
	}

	must(t, d.Process.Signal(syscall.SIGHUP))
	eventually(t, "a reload is counted", func() bool {
		m.scrape(t)
		return m.value(t, `ctlogd_config_reloads_total{result="success"}`) == 1
	})
	must(t, os.WriteFile(conf, []byte(text+"nonsense: 1\n"), 0o644))
	must(t, d.Process.Signal(syscall.SIGHUP))
	eventually(t, "a reload that failed is counted", func() bool {
		m.scrape(t)
		return m.value(t, `ctlogd_config_reloads_total{result="failure"}`) == 1
	})
	m.check(t, map[string]float64{`ctlogd_config_last_reload_successful`: 0})
	must(t, os.WriteFile(conf, []byte(strings.Replace(text, "9469", "9470", 1)), 0o644))
	must(t, d.Process.Signal(syscall.SIGHUP))
	awaitListener(t, ns, "tcp", 9470)
	m.port = 9470
	m.scrape(t)
	m.check(t, map[string]float64{`ctlogd_config_last_reload_successful`: 1, label("ctlogd_output_records_total", good): n})

	promtool := exec.Command("promtool", "check", "metrics")
	promtool.Stdin = strings.NewReader(m.text)
	if out, err := promtool.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	d.stop(t)
}

// checkStatistics holds the kernel's statistics to what conntrack -S says.
func checkStatistics(t *testing.T, ns *lab.NS, m *metricsOf) {
	t.Helper()
	out, err := ns.Output("", "conntrack", "-S")
	must(t, err)
	want, seen := map[string]float64{}, 0.0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		_, cpu, _ := strings.Cut(fields[0], "=")
		for _, f := range fields[1:] {
			name, value, _ := strings.Cut(f, "=")
			v, err := strconv.ParseFloat(value, 64)
			must(t, err)
			name = strings.Replace(name, "chaintoolong", "chain_toolong", 1)
			want[fmt.Sprintf("ctlogd_conntrack_%s_total{cpu=%q}", name, cpu)] = v
			seen += v
		}
	}
	if len(want) == 0 || seen == 0 {
		t.Errorf("conntrack -S has counted nothing:\n%s", out)
	}
	m.check(t, want)
}

// metricsOf reads the metrics of the daemon in a namespace.
type metricsOf struct {
	ns     *lab.NS
	port   int // 0: 9469
	text   string
	values map[string]float64
}

// label returns the series of an output, and of what else.
func label(name, output string, more ...string) string {
	labels := fmt.Sprintf("output=%q", output)
	if len(more) > 0 { // labels are in their order
		other := fmt.Sprintf("%s=%q", more[0], more[1])
		if more[0] < "output" {
			labels = other + "," + labels
		} else {
			labels += "," + other
		}
	}
	return name + "{" + labels + "}"
}

func (m *metricsOf) get(t *testing.T, path string) (status int, body string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: m.ns.DialContext, DisableKeepAlives: true}, Timeout: lab.Timeout}
	port := m.port
	if port == 0 {
		port = 9469
	}
	r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	must(t, err)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	must(t, err)
	return r.StatusCode, string(text)
}

var sample = regexp.MustCompile(`^([a-z0-9_]+(?:\{.*\})?) (\S+)$`)

func (m *metricsOf) scrape(t *testing.T) {
	t.Helper()
	status, text := m.get(t, "/metrics")
	if status != 200 {
		t.Fatalf("/metrics: status %d\n%s", status, text)
	}
	m.text, m.values = text, map[string]float64{}
	for lines := bufio.NewScanner(bytes.NewBufferString(text)); lines.Scan(); {
		if s := sample.FindStringSubmatch(lines.Text()); s != nil {
			v, err := strconv.ParseFloat(s[2], 64)
			must(t, err)
			m.values[s[1]] = v
		}
	}
}

func (m *metricsOf) value(t *testing.T, series string) float64 {
	t.Helper()
	v, ok := m.values[series]
	if !ok {
		t.Fatalf("%s is not exported:\n%s", series, m.text)
	}
	return v
}

// sum returns the sum of an output's series of that name.
func (m *metricsOf) sum(name, output string) (sum float64) {
	for series, v := range m.values {
		if strings.HasPrefix(series, name+"{") && strings.Contains(series, fmt.Sprintf("output=%q", output)) {
			sum += v
		}
	}
	return sum
}

func (m *metricsOf) check(t *testing.T, want map[string]float64) {
	t.Helper()
	got := map[string]float64{}
	for series := range want {
		got[series] = m.value(t, series)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}
