//go:build integration

package archive

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/engines"
	"github.com/ctlogd/ctlogd/output/format"
)

// TestEngines: DuckDB, ClickHouse and Arrow read from an archive what the JSON lines of the same flows say: all counts, the
// sums of all numbers, and in Arrow every value of every row. The queries of docs/archive.md run as they stand there.
func TestEngines(t *testing.T) {
	python, err := engines.Python()
	if err != nil {
		t.Fatal(err)
	}
	recs := makeTrace(40000, 1)
	for i, r := range recs { // flows of one minute, so that the documented queries find some
		r.Stop = trace0 + int64(i)*int64(time.Minute)/int64(len(recs))
		if r.Start != 0 {
			r.Start = r.Stop - int64(i%100)*int64(time.Second)
		}
	}
	recs[10].Reply.DstPort, recs[10].Start, recs[10].Stop = 40000, trace0, trace0+int64(40*time.Second)
	recs[10].Reply.Dst = flowAddr(203, 0, 112, 5)
	recs = append(recs, everyKind()...)
	dir := writeArchive(t, recs[:20000], recs[20000:], nil)
	enc, err := format.New("flat", format.Options{Host: "gw1", Observer: "obs", Fields: format.Fields{Drop: []string{"ct_id"}}})
	if err != nil {
		t.Fatal(err)
	}
	var lines bytes.Buffer
	for _, r := range recs {
		lines.Write(append(enc.Append(nil, r), '\n'))
	}
	jsonl := filepath.Join(t.TempDir(), "flows.jsonl")
	if err := os.WriteFile(jsonl, lines.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../docs/archive.md")
	if err != nil {
		t.Fatal(err)
	}
	queries := t.TempDir()
	blocks := regexp.MustCompile("(?s)```(sql|python)\n(.*?)```").FindAllSubmatch(doc, -1)
	for i, b := range blocks {
		name := filepath.Join(queries, string(rune('a'+i))+"."+string(b[1]))
		if err := os.WriteFile(name, bytes.ReplaceAll(b[2], []byte("/var/log/ctlogd/archive"), []byte(dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(python, "testdata/engines.py", dir, jsonl, queries).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	checks := 0
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if strings.HasPrefix(s.Text(), "ok ") {
			checks++
		}
	}
	if want := 44 + len(blocks); checks < want || len(blocks) < 5 {
		t.Errorf("%d checks, want %d; %d documented queries", checks, want, len(blocks))
	}
}
