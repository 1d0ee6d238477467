//go:build !small

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// sealHere seals in this process.
func sealHere(_ context.Context, path string) (archive.Sealed, error) {
	seg, date, err := archive.Seal(path)
	return archive.Sealed{Segment: seg, Date: date}, err
}

// closeArchive waits until done is true, and closes the archive.
func closeArchive(t *testing.T, w *archive.Writer, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the archive is not sealed within a minute")
		}
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// What an archive was given, cat prints as the output jsonl would have written it, from row logs and segments.
func TestCat(t *testing.T) {
	dir := t.TempDir()
	w, err := archive.Open(archive.Options{Dir: dir, Host: "gw1", Observer: "obs", Interval: time.Hour, Records: 20,
		Seal: sealHere})
	if err != nil {
		t.Fatal(err)
	}
	enc, err := format.New("flat", format.Options{Host: "gw1", Observer: "obs", Fields: format.Fields{Drop: []string{"ct_id"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	tr, b := trace.New(trace.Default()), flow.NewBatch(30, nil)
	for range 30 {
		r := b.Next()
		tr.Next(r)
		want[string(enc.Append(nil, r))] = true
		if _, err := w.Append([]*flow.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	closeArchive(t, w, func() bool { return w.Stats.Seals.Load() > 0 })
	segments, _ := filepath.Glob(dir + "/host=gw1/date=*/*.parquet")
	logs, _ := filepath.Glob(dir + "/host=gw1/*.rows")
	var stdout, stderr bytes.Buffer
	if code := run(append([]string{"cat"}, append(segments, logs...)...), &stdout, &stderr); code != 0 {
		t.Fatalf("exit status %d: %s", code, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	for _, line := range lines {
		if !want[line] {
			t.Errorf("unexpected: %s", line)
		}
		delete(want, line)
	}
	if len(want) > 0 || len(segments) != 1 || len(logs) != 1 {
		t.Errorf("%d records are missing; segments %v, row logs %v", len(want), segments, logs)
	}

	foreign := filepath.Join(dir, "foreign")
	if err := os.WriteFile(foreign, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	const noArchive = "it is no file of an archive"
	for path, want := range map[string]string{foreign: noArchive, filepath.Join(dir, "missing"): "no such file", dir: noArchive} {
		stderr.Reset()
		if code := run([]string{"cat", path}, &stdout, &stderr); code != 1 || !strings.Contains(stderr.String(), path) ||
			!strings.Contains(stderr.String(), want) {
			t.Errorf("cat %s: exit status %d: %s", path, code, stderr.String())
		}
	}
}

// What the table is read for at a checkpoint goes to archives and to no other output; what says that the reading is over
// passes the archive's filter as a gap does.
func TestCheckpointsAreForArchives(t *testing.T) {
	cfg, outputs := plan(t, "outputs: {jsonl: [{path: FILE}], archive: [{path: FILE.archive, checkpoint: 5m, "+
		"filter: [{action: drop, match: {proto: udp}}]}]}", filepath.Join(t.TempDir(), "flows.jsonl"))
	if got := cfg.Outputs.checkpoints(); got != 5*time.Minute {
		t.Errorf("checkpoints each %s", got)
	}
	record := func(mark flow.Checkpoint, proto flow.Proto) *flow.Record {
		return &flow.Record{Event: flow.EventOpen, Has: flow.HasOrig, Orig: flow.Tuple{Proto: proto}, Extra: &flow.Extra{Checkpoint: mark}}
	}
	for _, c := range []struct {
		r              *flow.Record
		jsonl, archive bool
	}{
		{record(0, flow.TCP), true, true},
		{record(0, flow.UDP), true, false},
		{record(flow.CheckpointOpen, flow.TCP), false, true},
		{record(flow.CheckpointOpen, flow.UDP), false, false},
		{record(flow.CheckpointWhole, flow.UDP), false, true},
		{record(flow.CheckpointPartial, 0), false, true},
	} {
		for _, o := range outputs {
			want := c.jsonl
			if strings.HasPrefix(o.name, "archive:") {
				want = c.archive
			}
			if got := takes(&o, c.r); got != want {
				t.Errorf("%s takes a record of mark %d, protocol %v: %v", o.name, c.r.Checkpoint(), c.r.Orig.Proto, got)
			}
		}
	}
}
