//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A flow of the kernel is found by whois while it is alive, in the table, and after its end, in the archive that the running
// daemon writes; a moment before it has no holder.
func TestWhois(t *testing.T) {
	need(t)
	ns, flood := newFloodNS(t)
	room(t, 1000)
	dir := t.TempDir()
	store, conf, audit := filepath.Join(dir, "archive"), filepath.Join(dir, "ctlogd.yaml"), filepath.Join(dir, "audit.jsonl")
	binary := buildDaemon(t, false)
	must(t, os.WriteFile(conf, []byte("host: gw1\nobserver: lab\nstate_directory: "+dir+"\nlive: {socket: "+dir+"/live.sock}\noutputs: {archive: [{path: "+store+
		"}]}\nwhois: {audit: "+audit+", case: required}\n"), 0o644))
	d := start(t, ns, exec.Command(binary, "run", "-c", conf))
	eventually(t, "the daemon runs", func() bool { return strings.Contains(d.stderr.String(), "logging flows") })
	must(t, flood.Create(0, 1)) // its end is the archive's first record
	must(t, flood.Delete(0, 1))
	eventually(t, "the archive has a record", func() bool {
		logs, _ := filepath.Glob(store + "/host=gw1/*.rows")
		if len(logs) != 1 {
			return false
		}
		text, _ := exec.Command(binary, "cat", logs[0]).Output()
		return len(text) > 0
	})
	before := time.Now()
	must(t, flood.Create(1, 2))

	type holder struct {
		Inside string `json:"inside_ip"`
		Port   uint16 `json:"inside_port"`
		Start  string `json:"start"`
		End    string `json:"end"`
		Alive  bool   `json:"alive"`
		FlowID string `json:"flow_id"`
	}
	type answer struct {
		Verdict string   `json:"verdict"`
		Holders []holder `json:"holders"`
		Missing []struct {
			Kind string `json:"kind"`
			Text string `json:"text"`
		} `json:"missing"`
	}
	run := func(start func(*exec.Cmd) error, args ...string) (a answer, code int) {
		t.Helper()
		cmd := exec.Command(binary, append([]string{"whois", "-c", conf, "--case", "1", "--json"}, args...)...)
		var out, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &stderr
		must(t, start(cmd))
		_ = cmd.Wait() // the exit status tells the verdict
		if err := json.Unmarshal(out.Bytes(), &a); err != nil {
			t.Fatalf("whois %v: %v\n%s%s", args, err, &out, &stderr)
		}
		return a, cmd.ProcessState.ExitCode()
	}
	ask := func(args ...string) (a answer, code int) {
		t.Helper()
		a, code = run(ns.Start, args...)
		for _, m := range a.Missing {
			if m.Kind != "clock_unsynchronized" { // what the laboratory's clock is like is no matter here
				t.Errorf("whois %v: missing: %s", args, m.Text)
			}
		}
		return a, code
	}
	cmd := exec.Command(binary, "list", "--json")
	var out bytes.Buffer
	cmd.Stdout = &out
	must(t, ns.Start(cmd))
	must(t, cmd.Wait())
	var flow struct {
		IP   string `json:"src_ip"`
		Port uint16 `json:"src_port"`
		// What the far side sees, where it was translated.
		NATIP   string `json:"nat_src_ip"`
		NATPort uint16 `json:"nat_src_port"`
	}
	must(t, json.NewDecoder(&out).Decode(&flow))
	end := fmt.Sprintf("%s:%d", flow.IP, flow.Port)
	if flow.NATIP != "" {
		end = fmt.Sprintf("%s:%d", flow.NATIP, flow.NATPort)
	}
	t.Logf("%s is %+v", end, flow)

	a, _ := ask(end, "--at", "now")
	if a.Verdict != "sole" || len(a.Holders) != 1 || !a.Holders[0].Alive || a.Holders[0].Inside != flow.IP || a.Holders[0].Port != flow.Port || a.Holders[0].Start == "" {
		t.Fatalf("of the flow that is alive: %+v", a)
	}
	alive := a.Holders[0]
	at := alive.Start
	must(t, flood.Delete(1, 2))
	eventually(t, "its end is in the archive", func() bool {
		a, _ = ask(end, "--at", at)
		return len(a.Holders) == 1 && a.Holders[0].End != ""
	})
	if a.Verdict != "sole" || a.Holders[0].FlowID != alive.FlowID || a.Holders[0].Alive {
		t.Errorf("of the flow that has ended: %+v, and it was %+v", a, alive)
	}
	nobody := func(what string, args ...string) {
		t.Helper()
		a, code := ask(args...)
		want := 3
		if len(a.Missing) > 0 { // the clock's doubt, as ask sees to
			want = 5
		}
		if a.Verdict != "none" || code != want {
			t.Errorf("%s: %+v, exit status %d, want %d", what, a, code, want)
		}
	}
	nobody("of the time before it", end, "--at", before.UTC().Format(time.RFC3339Nano))

	// A flow that has ended is in no table. Where the daemon of this table does not run, or writes something else, its record
	// may be missing: that is told, and never "none, complete".
	doubt := func(what, want string, start func(*exec.Cmd) error, args ...string) {
		t.Helper()
		a, code := run(start, append([]string{"192.0.2.1:7", "--at", "now"}, args...)...)
		for _, m := range a.Missing {
			if code == 5 && (m.Kind == "still_alive" || m.Kind == "ends") && strings.Contains(m.Text, want) {
				return
			}
		}
		t.Errorf("%s: exit status %d, %+v; want %q", what, code, a, want)
	}
	mine := fmt.Sprintf("%s:%d", flow.IP, flow.Port)
	nobody("what nobody has, while the daemon runs", "192.0.2.1:7", "--at", "now")
	doubt("of another namespace's table", "another network namespace", (*exec.Cmd).Start)
	twin := filepath.Join(dir, "copy")
	must(t, os.CopyFS(twin, os.DirFS(store)))
	doubt("of a copy on the same machine", "The records end at", ns.Start, "--archive", twin)
	must(t, d.Process.Kill())
	<-d.exited
	doubt("while no daemon runs", "no ctlogd answers", ns.Start)
	down := time.Now().UTC().Format(time.RFC3339Nano)
	must(t, flood.Create(2, 3)) // its end is on nobody's record
	must(t, flood.Delete(2, 3))
	again := start(t, ns, exec.Command(binary, "run", "-c", conf))
	eventually(t, "the daemon runs again, and the gap is on record", func() bool {
		a, _ = run(ns.Start, mine, "--at", down)
		for _, m := range a.Missing {
			if m.Kind == "crash" {
				return true
			}
		}
		return false
	})
	// An archive that is taken out of the configuration, and put in again, has a gap of what came meanwhile.
	with, err := os.ReadFile(conf)
	must(t, err)
	reloads := 0
	reload := func(text string) {
		t.Helper()
		must(t, os.WriteFile(conf, []byte(text), 0o644))
		must(t, again.Process.Signal(syscall.SIGHUP))
		reloads++
		eventually(t, "the configuration is reloaded", func() bool { return strings.Count(again.stderr.String(), "configuration reloaded") == reloads })
	}
	reload(strings.Replace(string(with), "archive: [{path: "+store+"}]", "jsonl: [{path: "+dir+"/flows.jsonl}]", 1))
	away := time.Now().UTC().Format(time.RFC3339Nano)
	must(t, flood.Create(3, 4))
	must(t, flood.Delete(3, 4))
	reload(string(with))
	eventually(t, "what came meanwhile is a gap", func() bool {
		a, _ = run(ns.Start, mine, "--at", away)
		for _, m := range a.Missing {
			if m.Kind == "output_down" {
				return true
			}
		}
		return false
	})
	// A filter that was in force, and is gone, has kept flows out.
	reload(string(with) + "filter: [{action: drop}]\n")
	filtered := time.Now().UTC().Format(time.RFC3339Nano)
	must(t, flood.Create(4, 5))
	must(t, flood.Delete(4, 5))
	reload(string(with))
	missing := func(what, kind, at string, args ...string) {
		t.Helper()
		eventually(t, what, func() bool {
			a, code := run(ns.Start, append([]string{mine, "--at", at}, args...)...)
			for _, m := range a.Missing {
				if m.Kind == kind && code == 5 {
					return true
				}
			}
			return false
		})
	}
	missing("what a filter has kept out is told", "filtered", filtered)
	must(t, os.RemoveAll(twin))
	must(t, os.CopyFS(twin, os.DirFS(store)))
	missing("a copy tells it as well", "filtered", filtered, "--archive", twin)
	again.stop(t)

	// The mark is lost: what came meanwhile is a gap all the same.
	must(t, os.Remove(filepath.Join(dir, "mark.json")))
	lost := time.Now().UTC().Format(time.RFC3339Nano)
	must(t, flood.Create(5, 6))
	must(t, flood.Delete(5, 6))
	again = start(t, ns, exec.Command(binary, "run", "-c", conf))
	missing("a start without a mark is a gap", "downtime", lost)
	again.stop(t)

	text, err := os.ReadFile(audit)
	must(t, err)
	if n := bytes.Count(text, []byte("\n")); n < 3 || !bytes.Contains(text, []byte(`"case":"1"`)) {
		t.Errorf("the audit file has %d lines:\n%s", n, text)
	}
	refused := exec.Command(binary, "whois", "-c", conf, end, "--at", "now")
	if said, _ := refused.CombinedOutput(); refused.ProcessState.ExitCode() != 2 || !bytes.Contains(said, []byte("name it with --case")) {
		t.Errorf("without a case: %d\n%s", refused.ProcessState.ExitCode(), said)
	}
}
