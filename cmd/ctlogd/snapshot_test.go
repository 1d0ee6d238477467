//go:build !small

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/preflight"
)

// check tells where metrics could not be served.
func TestCheckMetrics(t *testing.T) {
	for name, want := range map[string]preflight.Status{
		"127.0.0.1:9469": "", "192.0.2.1:9469": preflight.Fail, // TEST-NET-1 is nobody's
	} {
		file := filepath.Join(t.TempDir(), "ctlogd.yaml")
		text := "metrics: {listen: '" + name + "'}\noutputs: {jsonl: [{path: '-'}]}\n"
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		run([]string{"check", "--json", "-c", file}, &stdout, &stderr)
		var all []preflight.Result
		if err := json.Unmarshal(stdout.Bytes(), &all); err != nil {
			t.Fatalf("%v: %s", err, &stdout)
		}
		var got *preflight.Result
		for _, r := range all {
			if r.Name == "metrics" {
				got = &r
			}
		}
		switch {
		case got == nil:
			t.Errorf("%s: metrics are not checked", name)
		case want == "" && got.Status == preflight.Fail: // free, or in use by somebody: that is a warning
			t.Errorf("%s: %+v", name, *got)
		case want != "" && (got.Status != want || got.Remedy == ""):
			t.Errorf("%s: %+v, want %s with a remedy", name, *got, want)
		}
	}
}

// The kernel is asked once a second, however many look.
func TestKernelIsAskedOnceASecond(t *testing.T) {
	now := time.Now()
	k := kernel{asked: now, last: monitor.Kernel{Entries: 4711}}
	if diff := cmp.Diff(monitor.Kernel{Entries: 4711}, k.get(now.Add(kernelEvery-1))); diff != "" {
		t.Errorf("within the second (-want +got):\n%s", diff)
	}
	k.get(now.Add(kernelEvery))
	if !k.asked.Equal(now.Add(kernelEvery)) {
		t.Error("after it, the kernel was not asked")
	}
}

func TestReloads(t *testing.T) {
	var r reloads
	r.note(&Config{Host: "gw1"}, nil)
	r.note(&Config{Host: "gw2"}, os.ErrNotExist)
	if r.OK != 1 || r.Failed != 1 || r.LastOK || r.host != "gw1" || r.Last.IsZero() {
		t.Errorf("%+v", &r)
	}
}

// What each kind of output counts itself has a metric with the right labels.
func TestOwnMetrics(t *testing.T) {
	_, outputs := plan(t, "outputs: {jsonl: [{path: FILE}], ipfix: [{address: udp://192.0.2.1}], "+
		"kafka: [{brokers: 192.0.2.20:9092, topic: flows}], "+
		"archive: [{path: FILE.archive, upload: {command: [/bin/true]}}]}", filepath.Join(t.TempDir(), "flows.jsonl"))
	metrics, used := monitor.OwnMetrics(), map[string]bool{}
	for _, o := range outputs {
		out, err := o.build()
		if err != nil {
			t.Fatal(err)
		}
		var got monitor.Output
		ownCounters(out, &got)
		if got.Bytes == nil {
			t.Errorf("%s: no bytes", o.name)
		}
		if !got.KeptSince.IsZero() {
			t.Errorf("%s: it holds nothing, and reaches back to %v", o.name, got.KeptSince)
		}
		for _, c := range got.Counters {
			m := metrics[c.Name]
			if m == nil || (len(m.Labels) == 2) != (c.Label != "") {
				t.Errorf("%s: %+v has the metric %+v", o.name, c, m)
			}
			used[c.Name] = true
		}
		if err := out.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for name := range metrics {
		if !used[name] {
			t.Errorf("no output counts %s", name)
		}
	}
}
