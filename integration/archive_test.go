//go:build integration

package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// An archive beside a JSON-lines file: flows of the kernel go into row log and segments, the daemon's child seals, and what
// cat prints is what the file holds.
func TestArchive(t *testing.T) {
	need(t)
	ns, flood := newFloodNS(t)
	const flows = 12000
	room(t, 4*flows)
	dir := t.TempDir()
	file, store := filepath.Join(dir, "flows.jsonl"), filepath.Join(dir, "archive")
	binary := buildDaemon(t, false)
	conf, key, pub := filepath.Join(dir, "ctlogd.yaml"), filepath.Join(dir, "archive.key"), filepath.Join(dir, "gw1.pub")
	public, err := exec.Command(binary, "key", "new", key, "--host", "gw1").Output()
	must(t, err)
	must(t, os.WriteFile(pub, public, 0o600))
	must(t, os.WriteFile(conf, []byte("host: gw1\nobserver: lab\noutputs: {jsonl: [{path: "+file+"}], archive: [{path: "+store+
		", segment_records: 5000, key: "+key+"}]}\n"), 0o644))
	d := start(t, ns, exec.Command(binary, "run", "-c", conf))
	eventually(t, "the daemon runs", func() bool { return strings.Contains(d.stderr.String(), "logging flows") })
	must(t, flood.Create(0, flows))
	must(t, flood.Delete(0, flows))
	var segments []string
	eventually(t, "two segments are sealed", func() bool {
		segments, _ = filepath.Glob(store + "/host=gw1/date=*/*.parquet")
		catalog, _ := exec.Command("sh", "-c", "cat "+store+"/host=gw1/date=*/catalog.jsonl").Output()
		return len(segments) == 2 && bytes.Count(catalog, []byte("\n")) == 3 && // and the key's line
			strings.Contains(d.stderr.String(), `checkpoint: ctlogd archive gw1\n3\n`)
	})
	// What verifies is what another machine would have: a copy, the public key, the log. The daemon still writes.
	log := filepath.Join(t.TempDir(), "log")
	verify := func(dir string, code int, want string) {
		t.Helper()
		must(t, os.WriteFile(log, []byte(d.stderr.String()), 0o600))
		for _, witness := range []string{log, file} { // the records of another output are as good as the log
			cmd := exec.Command(binary, "verify", dir, "--key", pub, "--checkpoint", witness)
			out, _ := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != code || !strings.Contains(string(out), want) {
				t.Errorf("verify by %s ends with %d and no %q:\n%s\n%s", witness, cmd.ProcessState.ExitCode(), want, out, d.stderr.String())
			}
		}
	}
	eventually(t, "the other output has the checkpoint", func() bool {
		text, _ := os.ReadFile(file)
		return bytes.Contains(text, []byte(`"event":"checkpoint","host":"gw1","output":"archive:`+store+`","origin":"ctlogd archive gw1","lines":3,`))
	})
	verify(store, 0, "newest checkpoint witnessed elsewhere")
	d.stop(t)
	copied := filepath.Join(dir, "copy")
	must(t, os.CopyFS(copied, os.DirFS(store)))
	verify(copied, 0, "gw1: sealed and whole")
	one, err := filepath.Glob(copied + "/host=gw1/date=*/*.parquet")
	must(t, err)
	bits, err := os.ReadFile(one[0])
	must(t, err)
	bits[len(bits)/3] ^= 4
	must(t, os.WriteFile(one[0], bits, 0o600))
	verify(copied, 3, "the segment was altered")

	logs, err := filepath.Glob(store + "/host=gw1/*.rows")
	must(t, err)
	out, err := exec.Command(binary, append([]string{"cat"}, append(segments, logs...)...)...).Output()
	must(t, err)
	text, err := os.ReadFile(file)
	must(t, err)
	text = regexp.MustCompile(`,"ct_id":\d+|.*"event":"checkpoint".*\n`).ReplaceAll(text, nil)
	sorted := func(b []byte) []string {
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		slices.Sort(lines)
		return lines
	}
	got, want := sorted(out), sorted(text)
	if len(want) < flows || !slices.Equal(got, want) {
		t.Errorf("the archive has %d records, the file %d, of %d flows; they are equal: %v", len(got), len(want), flows, slices.Equal(got, want))
	}
}
