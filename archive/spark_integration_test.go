//go:build integration

package archive

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/engines"
)

// TestSpark: Spark reads an archive by the program in docs/fleet.md, and names the same subscribers of a day as DuckDB does. Installing
// it takes minutes, so only CTLOGD_LONG=1 does.
func TestSpark(t *testing.T) {
	if os.Getenv("CTLOGD_LONG") == "" {
		t.Skip("Spark takes minutes to install: CTLOGD_LONG=1")
	}
	spark, err := engines.Spark()
	if err != nil {
		t.Fatal(err)
	}
	python, err := engines.Python()
	if err != nil {
		t.Fatal(err)
	}
	recs := makeTrace(20000, 1)
	for i, r := range recs {
		r.Stop = trace0 + int64(i)*int64(time.Minute)/int64(len(recs))
	}
	recs = append(recs, everyKind()...)
	dir := writeArchive(t, recs[:10000], recs[10000:], nil)
	doc, err := os.ReadFile("../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(doc)
	if program == nil {
		t.Fatal("docs/fleet.md has no program for Spark")
	}
	cmd := exec.Command(python, "testdata/spark.py", dir)
	cmd.Stdin = strings.NewReader(string(program[1]))
	cmd.Env = append(os.Environ(), "PYTHONPATH="+spark, "PYTHONDONTWRITEBYTECODE=1", "SPARK_LOCAL_IP=127.0.0.1", "PYSPARK_PYTHON="+python)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "\nok 10 subscribers") {
		t.Error(err)
	}
}
