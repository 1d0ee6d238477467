// Package deploy has no code: this test says by which tests the files below this folder are run.
package deploy

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ranBy has every file below this folder that is for users, with the test that runs it, as FOLDER.TEST. Folders that hold
// tests alone are left out.
var ranBy = map[string]string{
	"clickhouse/archive.sql":    "clickhouse.TestTables",
	"clickhouse/kafka.sql":      "clickhouse.TestTables", // the engine Kafka itself: clickhouse.TestKafkaEngine
	"clickhouse/rates.sql":      "clickhouse.TestGrafanaQueries",
	"clickhouse/tables.sql":     "clickhouse.TestTables",
	"clickhouse/views.sql":      "clickhouse.TestWhois",
	"container/Containerfile":   "container.TestImage",
	"container/daemonset.yaml":  "container.TestImage", // but for Kubernetes itself
	"grafana/ctlogd-flows.json": "clickhouse.TestGrafanaQueries",
	"upload/ctlogd-upload.conf": "../integration/systemd.TestUploadInSandbox",
	"upload/mc":                 ".TestMC", // by mc itself: ../integration.TestUpload with CTLOGD_LONG=1
	"upload/rclone":             "../integration.TestUpload",
	"upload/rsync":              "../integration.TestUpload",
	"upload/s3cmd":              "../integration.TestUpload",
}

// TestEveryFileIsRun: a file that no test runs does not stay here.
func TestEveryFileIsRun(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || path == "grafana/schema"):
			return fs.SkipDir
		case d.IsDir() || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		seen[path] = true
		if ranBy[path] == "" {
			t.Errorf("%s: which test runs it? Write it into ranBy", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for path, by := range ranBy {
		if !seen[path] {
			t.Errorf("%s is not there", path)
		}
		i := strings.LastIndexByte(by, '.')
		dir, name := by[:i], by[i+1:]
		tests, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, file := range tests {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(text), "func "+name+"(")
		}
		if !found {
			t.Errorf("%s is run by %s, which is not there", path, by)
		}
	}
}

// TestMC: MinIO's client takes long to build, so a stand-in takes the recipe's words here. The client itself runs the recipe in
// integration.TestUpload, with CTLOGD_LONG=1.
func TestMC(t *testing.T) {
	dir := t.TempDir()
	standIn := "#!/bin/sh\nprintf '%s\\n' \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "mc"), []byte(standIn), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("upload/mc")
	cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin", "STATE_DIRECTORY=/var/lib/ctlogd", "LAKE=flows", "CTLOGD_FILE=/a/b c.parquet",
		"CTLOGD_PATH=host=gw1/date=2026-03-09/b c.parquet"}
	out, err := cmd.CombinedOutput()
	want := "--config-dir\n/var/lib/ctlogd/mc\n--quiet\ncp\n/a/b c.parquet\nlake/flows/host=gw1/date=2026-03-09/b c.parquet\n"
	if err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}
