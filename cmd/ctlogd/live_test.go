package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest"

	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/pipeline"
)

func TestLiveExitCodes(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	noSocket := "no ctlogd answers: there is no socket " + none +
		"; start it (systemctl start ctlogd), or name its live.socket with --socket"
	for _, tt := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"tap nat=full", exitUsage, "",
			"ctlogd: \"nat=full\": unknown NAT type \"full\"; use none, snat, dnat or both\nsee ctlogd tap --help\n"},
		{"tap --color blue", exitUsage, "", "ctlogd: --color blue: use auto, always or never\nsee ctlogd tap --help\n"},
		{"tap --socket " + none, exitFailure, "", "ctlogd: " + noSocket + "\n"},
		{"top --socket " + none, exitFailure, "", "ctlogd: " + noSocket + "\n"},
		{"status --socket " + none, statusDown, "ctlogd: down\n  " + noSocket + "\n", ""},
	} {
		if name, _, _ := strings.Cut(tt.args, " "); !strings.Contains(commandNames, name) {
			continue // in a small build
		}
		var stdout, stderr bytes.Buffer
		if code := run(strings.Fields(tt.args), &stdout, &stderr); code != tt.code {
			t.Errorf("%s: exit code %d, want %d", tt.args, code, tt.code)
		}
		if diff := cmp.Diff([]string{tt.stdout, tt.stderr}, []string{stdout.String(), stderr.String()}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.args, diff)
		}
	}
}

func TestStatus(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		change func(*monitor.Snapshot)
		state  monitor.State
		code   int
		says   string
	}{
		{func(*monitor.Snapshot) {}, monitor.StateOK, statusOK, "ctlogd 1.2.3 on gw1: ok\n"},
		{func(s *monitor.Snapshot) {
			s.Outputs[0].Failing, s.Outputs[0].Error, s.Outputs[0].ErrorAt = true, "disk full", now
		},
			monitor.StateDegraded, statusDegraded, "  jsonl:/f: failing for "},
		{func(s *monitor.Snapshot) { s.Reader.Round = now.Add(-time.Minute) }, monitor.StateDown, statusDown, "  reader: no progress for 1m0s\n"},
		{func(s *monitor.Snapshot) { s.Stopping = true }, monitor.StateDown, statusDown, "  ending: what is left is delivered\n"},
	} {
		s := monitor.Snapshot{Version: "1.2.3", Host: "gw1", Time: now, Reader: monitor.Reader{Round: now},
			Outputs: []monitor.Output{{Name: "jsonl:/f", Since: now.Add(-time.Hour), Max: 1}}}
		tt.change(&s)
		s.Judge()
		server := live.NewServer(live.Options{Pipeline: pipeline.New(nil, nil), Log: zaptest.NewLogger(t),
			Snapshot: func() monitor.Snapshot { return s }})
		socket := filepath.Join(t.TempDir(), "s")
		if err := server.Listen(socket); err != nil {
			t.Fatal(err)
		}
		var text, asJSON, stderr bytes.Buffer
		codes := []int{run([]string{"status", "--socket", socket}, &text, &stderr),
			run([]string{"status", "--json", "--socket", socket}, &asJSON, &stderr)}
		if diff := cmp.Diff([]int{tt.code, tt.code}, codes); diff != "" || stderr.Len() > 0 {
			t.Errorf("%s: exit codes (-want +got):\n%s%s", tt.state, diff, &stderr)
		}
		if !strings.Contains(text.String(), tt.says) {
			t.Errorf("no %q in:\n%s", tt.says, &text)
		}
		var got monitor.Snapshot
		if err := json.Unmarshal(asJSON.Bytes(), &got); err != nil || got.State != tt.state {
			t.Errorf("JSON says %s, %v, want %s", got.State, err, tt.state)
		}
		server.Close()
		if _, err := os.Lstat(socket); err == nil {
			t.Error("the socket is left behind")
		}
	}
}

func TestSocketOfRuntimeDirectory(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", "/run/ctlogd:/run/other")
	for configured, want := range map[string]string{
		"": live.DefaultSocket, live.NoSocket: live.NoSocket, "/run/x.sock": "/run/x.sock",
	} {
		cfg := DefaultConfig()
		cfg.Live.Socket = configured
		if err := cfg.Resolve(); err != nil || cfg.Live.Socket != want {
			t.Errorf("live.socket %q: %q, %v, want %q", configured, cfg.Live.Socket, err, want)
		}
	}
}
