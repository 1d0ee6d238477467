//go:build !small

package monitor

import (
	"bytes"
	"flag"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/exposition.txt, and the tables in docs/metrics.md")

// full returns a snapshot in which every number is there, and most differ.
func full() Snapshot {
	now := time.Unix(1_800_000_000, 0)
	s := Snapshot{
		Time: now, Version: "1.2.3", Commit: "abcdef0", GoVersion: "go1.26", PID: 4711, Host: "gw1",
		Started: now.Add(-time.Hour), Uptime: 3600, Delivery: "reliable",
		Reader: Reader{Events: map[string]uint64{"new": 1, "update": 2, "destroy": 3, "expect_new": 4, "expect_destroy": 5},
			Malformed: 6, Truncated: 7, Skipped: 80, WithoutCounters: 81, WithoutStart: 82,
			Sysctls: map[string]int{"nf_conntrack_events": 1, "nf_conntrack_acct": 0, "nf_conntrack_timestamp": 1}, Refused: 8, KernelDrops: 9, DeliveryRetries: 10, GuardSheds: 11, GuardLost: 12,
			Reads: 13, Naps: 14, Busy: 15.5, Round: now.Add(-200 * time.Millisecond), Dumped: 16, Open: 17,
			ReadTo: now.Add(-300 * time.Millisecond)},
		Helpers: Helpers{Size: 18, Evictions: 19, Unknown: 20}, Filtered: 21, OwnFlows: 22,
		Gaps: []Gap{{Cause: "overrun"}, {Cause: "guard", Gaps: 28, Lost: 29, Last: now.Add(-time.Minute)}},
		Kernel: Kernel{Entries: 30, Limit: 31, Expectations: 32, CPUs: []CPU{
			{CPU: 0, Found: 33, Invalid: 34, Insert: 35, InsertFailed: 36, Drop: 37, EarlyDrop: 38, Error: 39, SearchRestart: 40,
				ClashResolve: 41, ChainTooLong: 42}, {CPU: 1, Found: 43}}},
		Namespaces: &Namespaces{Heard: true, Unnamed: 85, Unlisted: 86, Named: []Namespace{
			{Name: "blue", ID: 3, Events: 87, GuardSheds: 89, Entries: 29, Sysctls: map[string]int{"nf_conntrack_acct": 1}},
			{Name: "red\xff", ID: 4, Events: 88, Entries: -1}}},
		Reloads: Reloads{OK: 44, Failed: 45, Last: now.Add(-time.Minute)}, LogDropped: 80,
		Mark: Mark{Failing: true, Error: "read-only file system", Since: now.Add(-time.Minute)},
	}
	bytes := uint64(46)
	s.Outputs = []Output{
		{Name: "jsonl:/tmp/\xff\"\n", Kind: "jsonl", Failing: true, Since: now.Add(-time.Minute), Error: "no space left",
			Waiting: 47, Used: 48, Max: 50, OldestAge: 49.5, Spool: &Spool{Records: 51, Bytes: 52, Max: 53, Dropped: 54, Damaged: 55},
			Written: 56, Filtered: 57, Dropped: 58, Rejected: 59, Left: 60, GapRecords: 61, Errors: 62, Retries: 63, Bytes: &bytes,
			KeptSince: now.Add(-90 * time.Minute), Counters: []Counter{{"rotations", "success", 70}, {"rotations", "failure", 71},
				{"compressions", "success", 80}, {"compressions", "failure", 81}, {"removed_records", "", 72}, {"removed_files", "", 73}, {"torn_bytes", "", 74}, {"unheard_of", "", 1}},
			Gaps: []Gap{{Cause: "queue_full", Gaps: 64, Lost: 65, Last: now.Add(-time.Hour)}},
			Lag:  Histogram{Bounds: []float64{0.1, 1, 10}, Counts: []uint64{66, 0, 67, 68}, Sum: 69.5}},
		{Name: "kafka:192.0.2.20:9092/flows", Kind: "kafka", Since: now, Counters: []Counter{{"resent_records", "", 75},
			{"clamped_timestamps", "", 76}, {"dead_letters", "", 77}, {"class_errors", "topic", 78}, {"class_errors", "tls\xff", 79}},
			Lag: Histogram{Bounds: []float64{0.1, 1, 10}, Counts: []uint64{0, 0, 0, 0}}},
		{Name: "ipfix:udp://192.0.2.10:4739", Kind: "ipfix", Since: now,
			Counters: []Counter{{"messages", "", 81}, {"sessions", "", 82}, {"refusals", "", 83}, {"address_changes", "", 84},
				{"skipped_records", "", 85}},
			Lag: Histogram{Bounds: []float64{0.1, 1, 10}, Counts: []uint64{0, 0, 0, 0}}},
		{Name: "archive:/var/lib/ctlogd/archive", Kind: "archive", Since: now,
			Counters: []Counter{{"unsealed_records", "", 90}, {"unsealed_files", "", 91}, {"seals", "success", 92}, {"seals", "failure", 93},
				{"seal_seconds", "", 94}, {"seal_failing", "", 95}, {"segments", "", 96}, {"segment_bytes", "", 97},
				{"last_seal_age", "", 103}, {"last_seal_seconds", "", 104}, {"next_removal", "", 105},
				{"checkpoint_age", "", 102}, {"overdue", "", 98}, {"writing_stopped", "", 1}, {"removed_segments", "max_age", 99}, {"keep_errors", "", 100},
				{"damaged_files", "", 101}, {"uploads", "success", 103}, {"uploads", "failure", 104}, {"upload_waiting", "", 105},
				{"upload_failing", "", 106}, {"upload_missed", "", 107}},
			Lag: Histogram{Bounds: []float64{0.1, 1, 10}, Counts: []uint64{0, 0, 0, 0}}},
	}
	s.Subscribers = &Subscribers{Named: 201, Unknown: 202, Changed: 203, Sources: []Source{
		{Name: "dhcp", Type: "kea", Leases: 204, Past: 205, Age: 206, Loads: 207, Broken: 208},
		{Name: "bng", Type: "radius", Packets: map[string]uint64{"accepted": 209, "useless": 210, "forged": 211, "foreign": 212, "damaged": 213, "full": 214}}}}
	s.Judge()
	return s
}

// scrape returns what /metrics answers.
func scrape(t *testing.T, s Snapshot) string {
	t.Helper()
	w := httptest.NewRecorder()
	NewMux(func() Snapshot { return s }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("status %d, %v:\n%s", w.Code, err, body)
	}
	return string(body)
}

// The exposition is fixed: names, types, labels, and where each value comes from.
func TestExposition(t *testing.T) {
	var ours strings.Builder
	for line := range strings.Lines(scrape(t, full())) {
		if strings.Contains(line, "ctlogd_") {
			ours.WriteString(line)
		}
	}
	golden(t, "testdata/exposition.txt", ours.String())
	for _, m := range Metrics() {
		if !strings.Contains(ours.String(), "\n"+m.Name) && !strings.HasPrefix(ours.String(), m.Name) {
			t.Errorf("%s is described and not exported", m.Name)
		}
	}
}

// Before the kernel answers, and before anything has happened, a scrape has its metrics all the same.
func TestExpositionOfNothing(t *testing.T) {
	got := scrape(t, Snapshot{Time: time.Now(), Kernel: Kernel{Error: "operation not permitted"}, Outputs: []Output{{Name: "x"}}})
	for _, want := range []string{"\nctlogd_conntrack_statistics_up 0\n", "\nctlogd_config_last_reload_successful 1\n",
		"\nctlogd_config_last_reload_timestamp_seconds 0\n", "\nprocess_start_time_seconds ", "\ngo_goroutines "} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "ctlogd_conntrack_entries") {
		t.Error("a table is exported that nobody could read")
	}
}

func TestPromtool(t *testing.T) {
	promtool := func(t *testing.T, dir string, stdin string, args ...string) {
		t.Helper()
		path, err := exec.LookPath("promtool")
		if err != nil {
			t.Skip("needs promtool (make test installs Debian's prometheus, as root)")
		}
		cmd := exec.Command(path, args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	t.Run("metrics", func(t *testing.T) { promtool(t, "", scrape(t, full()), "check", "metrics") })
	t.Run("rules", func(t *testing.T) { promtool(t, prometheusDir, "", "check", "rules", "ctlogd.rules.yml") })
	t.Run("alerts", func(t *testing.T) {
		promtool(t, prometheusDir+"/testdata", "", "test", "rules", "ctlogd.rules.test.yml")
	})
	t.Run("dashboard", func(t *testing.T) { // its expressions, as rules
		dir := t.TempDir()
		var rules bytes.Buffer
		rules.WriteString("groups: [{name: dashboard, rules: [")
		for _, e := range dashboardExprs(t) {
			rules.WriteString("{record: x, expr: '" + strings.ReplaceAll(e, "'", "''") + "'},\n")
		}
		rules.WriteString("]}]\n")
		text := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*", "$job", ".*").Replace(rules.String())
		if err := os.WriteFile(filepath.Join(dir, "dashboard.yml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		promtool(t, dir, "", "check", "rules", "--lint=none", "dashboard.yml")
	})
}

const prometheusDir = "../packaging/prometheus"

var metricName = regexp.MustCompile(`\b(ctlogd|process|go)_[a-z0-9_]+`)

// exported returns the names of all series.
func exported(t *testing.T) map[string]bool {
	names := map[string]bool{}
	for line := range strings.Lines(scrape(t, full())) {
		if name := regexp.MustCompile(`^[a-z0-9_]+`).FindString(line); name != "" {
			names[name] = true
		}
	}
	return names
}

// What rules and dashboard ask for is exported under that name.
func TestNamesInRulesAndDashboard(t *testing.T) {
	names := exported(t)
	asked := 0
	for _, text := range append(dashboardExprs(t), ruleExprs(t)...) {
		for _, name := range metricName.FindAllString(text, -1) {
			asked++
			if !names[name] {
				t.Errorf("%s is not exported: %s", name, text)
			}
		}
	}
	if asked < 50 {
		t.Errorf("only %d names found: the test looks at the wrong place", asked)
	}
}

// Every metric has its line in the documentation, and every alert.
func TestDocs(t *testing.T) {
	const file = "../docs/metrics.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := string(text)
	for name, table := range map[string]string{"metrics": metricsTable(), "alerts": alertsTable(t)} {
		begin, end := "<!-- "+name+": begin -->\n", "<!-- "+name+": end -->"
		before, rest, ok := strings.Cut(want, begin)
		_, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no place for the table of %s, between %q and %q", file, name, begin, end)
		}
		want = before + begin + table + end + after
	}
	golden(t, file, want)
}

func metricsTable() string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | |\n| --- | --- | --- | --- |\n")
	for _, m := range Metrics() {
		b.WriteString("| `" + m.Name + "` | " + m.Type + " | " + strings.Join(m.Labels, ", ") + " | " + m.Help + " |\n")
	}
	return b.String()
}

func alertsTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| alert | severity | when | what it means |\n| --- | --- | --- | --- |\n")
	for _, r := range rules(t) {
		when := "`" + r.Expr + "`"
		if r.For != "" {
			when += " for " + r.For
		}
		b.WriteString("| " + r.Alert + " | " + r.Labels["severity"] + " | " + when + " | " + r.Annotations["summary"] + " |\n")
	}
	return b.String()
}

// golden compares got with the file, or writes it there.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is not as it should be; go test ./monitor -update writes it (-is +should be):\n%s", file, diff)
	}
}

func TestHistogramQuantile(t *testing.T) {
	h := Histogram{Bounds: []float64{1, 2, 4}, Counts: []uint64{10, 0, 10, 0}}
	for q, want := range map[float64]float64{0: 0, 0.25: 0.5, 0.5: 1, 0.75: 3, 1: 4} {
		if got := h.Quantile(q); got != want {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	h.Counts[3] = 80 // beyond the last bound
	if got := h.Quantile(0.99); got != 4 {
		t.Errorf("beyond the last bound: %v, want 4", got)
	}
	if got := (&Histogram{Bounds: []float64{1}, Counts: []uint64{0, 0}}).Quantile(0.5); got != 0 {
		t.Errorf("without observations: %v, want 0", got)
	}
}

func TestMetricNames(t *testing.T) {
	var names []string
	for _, m := range Metrics() {
		names = append(names, m.Name)
		if (m.Type == "counter") != strings.HasSuffix(m.Name, "_total") {
			t.Errorf("%s is a %s", m.Name, m.Type)
		}
		if !strings.HasSuffix(m.Help, ".") {
			t.Errorf("%s: the help is no sentence: %s", m.Name, m.Help)
		}
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != len(Metrics()) {
		t.Error("two metrics have one name")
	}
}
