//go:build !small

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/preflight"
)

func TestPrintResults(t *testing.T) {
	var out bytes.Buffer
	err := printResults(&out, []preflight.Result{
		{Name: "ctnetlink", Status: preflight.Pass, Detail: "answers"},
		{Name: "conntrack events", Status: preflight.Warn, Detail: "2", Remedy: "set it to 1"},
		{Name: "x", Status: preflight.Fail, Detail: "y"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "pass  ctnetlink         answers\n" +
		"warn  conntrack events  2\n" +
		"                        -> set it to 1\n" +
		"fail  x                 y\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// check goes on to the host behind a configuration that is wrong, and says all that is.
func TestCheckReportsTheConfiguration(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "nowhere", "flows.jsonl")
	file := filepath.Join(t.TempDir(), "ctlogd.yaml")
	if err := os.WriteFile(file, []byte("outputs: {jsonl: [{path: \"-\"}, {path: "+missing+"}]}\n"),
		0o644); err != nil {
		t.Fatal(err)
	}
	network := filepath.Join(t.TempDir(), "ctlogd.yaml")
	if err := os.WriteFile(network, []byte("outputs: {ipfix: [{address: udp://127.0.0.1}, {address: tcp://127.0.0.1:1}], "+
		"kafka: [{brokers: broker.invalid:9092, topic: flows}]}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	messages, err := os.ReadFile("testdata/bad-many.err")
	if err != nil {
		t.Fatal(err)
	}
	var wrong []preflight.Result
	for line := range strings.Lines(strings.ReplaceAll(string(messages), "ctlogd.yaml:", "testdata/bad-many.yaml:")) {
		wrong = append(wrong, preflight.Result{Name: "configuration", Status: preflight.Fail,
			Detail: strings.TrimSpace(line)})
	}
	for _, tt := range []struct {
		name string
		args []string
		want []preflight.Result // of configuration and outputs
	}{
		{"defaults", nil, []preflight.Result{
			{Name: "configuration", Status: preflight.Pass, Detail: "the defaults, as there is no /nonexistent/etc/ctlogd/ctlogd.yaml; -c FILE checks a file"},
			{Name: "outputs.jsonl[0]", Status: preflight.Pass, Detail: "-"},
		}},
		{"missing file", []string{"-c", "testdata/none.yaml"}, []preflight.Result{{Name: "configuration",
			Status: preflight.Fail,
			Detail: "read the configuration: open testdata/none.yaml: no such file or directory"}}},
		{"wrong file", []string{"-c", "testdata/bad-many.yaml"}, wrong},
		{"no directory", []string{"-c", file}, []preflight.Result{
			{Name: "configuration", Status: preflight.Pass, Detail: file},
			{Name: "outputs.jsonl[0]", Status: preflight.Pass, Detail: "-"},
			{Name: "outputs.jsonl[1]", Status: preflight.Fail},
		}},
		{"no collector and no name", []string{"-c", network}, []preflight.Result{
			{Name: "configuration", Status: preflight.Pass},
			{Name: "outputs.ipfix[0]", Status: preflight.Pass},
			{Name: "outputs.ipfix[1]", Status: preflight.Warn},
			{Name: "outputs.kafka[0]", Status: preflight.Fail},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(append([]string{"check", "--json"}, tt.args...), &stdout, &stderr)
			var all, got []preflight.Result
			if err := json.Unmarshal(stdout.Bytes(), &all); err != nil {
				t.Fatalf("%v: %s", err, &stdout)
			}
			failed, host := false, false
			for _, r := range all {
				failed = failed || r.Status == preflight.Fail
				host = host || r.Name == "ctnetlink"
				if r.Name == "configuration" || strings.HasPrefix(r.Name, "outputs.") {
					got = append(got, r)
				}
			}
			if failed != (code == exitFailure) || stderr.Len() > 0 {
				t.Errorf("exit code %d and standard error %q for\n%s", code, &stderr, &stdout)
			}
			if !host {
				t.Error("the host was not checked")
			}
			theirs := cmp.FilterPath(func(p cmp.Path) bool { // the messages of the outputs' own checks
				return p.Last().String() == ".Remedy" || p.Last().String() == ".Detail" && strings.HasPrefix(tt.name, "no ")
			}, cmp.Ignore())
			if diff := cmp.Diff(tt.want, got, theirs); diff != "" {
				t.Errorf("results (-want +got):\n%s", diff)
			}
		})
	}
}

// run logs what check prints: warnings as warnings, failures as errors, with the remedy.
func TestLogChecks(t *testing.T) {
	cfg, err := parseConfig("x", []byte("outputs: {jsonl: [{path: "+filepath.Join(t.TempDir(), "nowhere",
		"x")+"}, {path: /dev/null}]}"))
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.DebugLevel)
	logChecks(t.Context(), cfg, zap.New(core))
	level := map[string]string{}
	remedy := map[string]bool{}
	for _, e := range logs.All() {
		name := e.ContextMap()["check"].(string)
		level[name] = e.Level.String()
		_, remedy[name] = e.ContextMap()["remedy"]
	}
	if level["outputs.jsonl[0]"] != "error" || !remedy["outputs.jsonl[0]"] {
		t.Errorf("a failure is logged at %s, remedy %v", level["outputs.jsonl[0]"], remedy["outputs.jsonl[0]"])
	}
	if level["outputs.jsonl[1]"] != "debug" || remedy["outputs.jsonl[1]"] {
		t.Errorf("a pass is logged at %s, remedy %v", level["outputs.jsonl[1]"], remedy["outputs.jsonl[1]"])
	}
}

// What stops and starts tracking while the daemon runs is logged, once each; a kernel that does not tell is no news.
func TestWatchTracking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		ctx, cancel := context.WithCancel(t.Context())
		states := []preflight.Status{preflight.Pass, preflight.Pass, preflight.Fail, preflight.Fail, preflight.Pass, preflight.Warn, preflight.Pass}
		looks := 0
		go watchTracking(ctx, func(context.Context) preflight.Result {
			looks++
			return preflight.Result{Name: "conntrack hooks", Status: states[min(looks, len(states))-1], Detail: strconv.Itoa(looks)}
		}, zap.New(core))
		time.Sleep(time.Duration(len(states)) * trackingEvery)
		cancel()
		synctest.Wait()
		var got []string
		for _, e := range logs.All() {
			got = append(got, e.Level.String()+" "+e.Message)
		}
		if diff := cmp.Diff([]string{"error 3", "info 5"}, got); diff != "" {
			t.Errorf("logged (-want +got):\n%s", diff)
		}
	})
}

func TestCheckPrintsText(t *testing.T) {
	var stdout bytes.Buffer
	run([]string{"check"}, &stdout, io.Discard)
	if !strings.HasPrefix(stdout.String(), "pass  configuration         the defaults, as there is no /nonexistent/etc/ctlogd/ctlogd.yaml; -c FILE checks a file\n") {
		t.Errorf("got %q", &stdout)
	}
}

// What others have named cannot make lines of its own, in either form.
func TestCheckIsPrintable(t *testing.T) {
	const hostile = "CN=x\x1b[2K\rfail  ctnetlink  forged\n\u009b31m"
	results := []preflight.Result{{Name: "outputs.ipfix[0]", Status: preflight.Pass, Detail: hostile, Remedy: hostile}}
	for _, asJSON := range []bool{false, true} {
		var out bytes.Buffer
		if err := printChecks(t.Context(), slices.Clone(results), checkOptions{json: asJSON}, &out); err != nil {
			t.Fatal(err)
		}
		text := out.String()
		if strings.ContainsAny(text, "\x1b\r\u009b") || strings.Contains(text, "\nfail") || strings.Count(text, "forged") != 2 {
			t.Errorf("got %q", text)
		}
	}
}

// What would keep the daemon from starting, or from being looked at, is found without it.
func TestCheckDirectories(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, state, socket string
		want                map[string]string // of each check its error
	}{
		{"neither is set", "", "", map[string]string{}},
		{"none is wanted", "", "none", map[string]string{}},
		{"both are right", dir, dir + "/s", map[string]string{"state_directory": "", "live": ""}},
		{"both are missing", dir + "/no", dir + "/no/s", map[string]string{
			"state_directory": "state_directory: open " + dir + "/no/.writable: no such file or directory; " +
				"make it, writable by the user that ctlogd runs as",
			"live": "socket: stat " + dir + "/no: no such file or directory; make the directory, or write none"}},
		{"no directories", file, file + "/s", map[string]string{
			"state_directory": "state_directory: open " + file + "/.writable: not a directory; " +
				"make it, writable by the user that ctlogd runs as",
			"live": "socket: " + file + " is no directory; name another one, or write none"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.StateDirectory, cfg.Live.Socket = tt.state, tt.socket
			got := map[string]string{}
			for _, o := range hostChecks(cfg).Outputs {
				if o.Name != "state_directory" && o.Name != "live" {
					continue
				}
				got[o.Name] = ""
				if err := o.Check(t.Context()); err != nil {
					got[o.Name] = err.Error()
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%d files in the directory, %v; want the one that was there", len(left), err)
	}
}

// TestCheckArchive: check says what the archive takes a day at the rate of the last week, and warns where max_age cannot be kept.
func TestCheckArchive(t *testing.T) {
	dir := t.TempDir()
	start := time.Date(2026, 3, 9, 0, 0, 0, 0, time.UTC).UnixNano()
	w, err := archive.Open(archive.Options{Dir: dir, Host: "gw1", Observer: "o", Interval: time.Hour, Records: 100, Sync: archive.SyncNever,
		Seal: sealHere})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 { // two a minute
		at := start + int64(i)*int64(30*time.Second)
		if _, err := w.Append([]*flow.Record{{Event: flow.EventDestroy, Received: at, Stop: at}}); err != nil {
			t.Fatal(err)
		}
	}
	closeArchive(t, w, func() bool { return w.Stats.Seals.Load() >= 3 })
	for more, want := range map[string]string{
		"":                                   "pass a day; there is room for",
		", max_age: 30d, max_size: 16MiB":    "pass a day; there is room for",
		", max_age: 36500d, max_size: 16MiB": "warn max_age of 36500 days cannot be kept: the archive takes",
	} {
		cfg, err := parseConfig("f", []byte("host: gw1\noutputs: {archive: [{path: "+dir+more+"}]}"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, r := range outputResults(t.Context(), cfg) {
			if strings.HasPrefix(r.Name, "outputs.archive[0]") {
				status, text, _ := strings.Cut(want, " ")
				found = found || string(r.Status) == status && strings.Contains(r.Detail, text)
				t.Log(r.Status, r.Name, r.Detail, r.Remedy)
			}
		}
		if !found {
			t.Errorf("%q: nothing says %q", more, want)
		}
	}
}
