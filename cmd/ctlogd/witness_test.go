//go:build !small

package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/monitor"
)

// TestWitness: the daemon bears witness when it has read what has ended, and its output has written all of that.
func TestWitness(t *testing.T) {
	defer func(d time.Duration) { recordWithin = d }(recordWithin)
	recordWithin = 100 * time.Millisecond
	dir := t.TempDir()
	cfg := DefaultConfig()
	cfg.Outputs.Archive = []ArchiveConfig{{}}
	cfg.Outputs.Archive[0].Path = dir
	name := cfg.Outputs.Archive[0].Name()
	for what, c := range map[string]struct {
		answer func(asked int, now time.Time) (*live.View, error)
		want   string // of the error; "": none
	}{
		"it has all": {func(_ int, now time.Time) (*live.View, error) { return viewOf(name, now, now, 0), nil }, ""},
		"it has all at the third look": {func(n int, now time.Time) (*live.View, error) {
			if n < 3 {
				return viewOf(name, now, now.Add(-time.Second), 0), nil
			}
			return viewOf(name, now, now, 0), nil
		}, ""},
		"what waits is younger": {func(n int, now time.Time) (*live.View, error) {
			return viewOf(name, now.Add(time.Duration(n)*time.Second), now.Add(time.Second), 0.001), nil
		}, ""},
		"the reader is behind": {func(_ int, now time.Time) (*live.View, error) { return viewOf(name, now, now.Add(-time.Hour), 0), nil }, "ctlogd has read the kernel's events up to"},
		"the output is behind": {func(_ int, now time.Time) (*live.View, error) {
			v := viewOf(name, now, now, 60)
			v.Outputs[0].Failing, v.Outputs[0].Error = true, "no space left on device"
			return v, nil
		}, "to be written: no space left on device"},
		"another output":     {func(_ int, now time.Time) (*live.View, error) { return viewOf("archive:/elsewhere", now, now, 0), nil }, "has no output " + name},
		"it does not answer": {func(int, time.Time) (*live.View, error) { return nil, errors.New("no ctlogd answers") }, "no ctlogd answers"},
	} {
		asked := 0
		w := &witness{cfg: cfg, ask: func(context.Context) (*live.View, error) { asked++; return c.answer(asked, time.Now()) }}
		err := w.recorded(t.Context(), dir)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
	w := &witness{cfg: cfg}
	if w.output(dir) != name || w.output(t.TempDir()) != "" || w.output(dir+"/none") != "" {
		t.Error("which output writes what is not told")
	}
}

func viewOf(output string, now, readTo time.Time, oldest float64) *live.View {
	v := new(live.View)
	v.Time, v.PID, v.Reader.ReadTo = now, os.Getpid(), readTo
	v.Outputs = []monitor.Output{{Name: output, OldestAge: oldest}}
	return v
}
