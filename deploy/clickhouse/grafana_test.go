//go:build integration

package clickhouse

import (
	"os"
	"os/exec"
	"testing"
)

// TestGrafanaQueries: every query of the dashboard in deploy/grafana runs in the engine, on rates.sql as well, and its sums are
// those of the records.
func TestGrafanaQueries(t *testing.T) {
	judge(t, 25, "judge_grafana.py", lines(t, scene(2000)), "../grafana/ctlogd-flows.json")
}

// TestGrafanaSchema: the dashboards are what Grafana's own types take, by the module in deploy/grafana/schema. It takes most of a
// minute to compile, so only CTLOGD_LONG=1 does.
func TestGrafanaSchema(t *testing.T) {
	if os.Getenv("CTLOGD_LONG") == "" {
		t.Skip("Grafana's types take long to compile: CTLOGD_LONG=1")
	}
	cmd := exec.Command("go", "run", ".", "../ctlogd-flows.json", "../../../packaging/grafana/ctlogd.json")
	cmd.Dir = "../grafana/schema"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
