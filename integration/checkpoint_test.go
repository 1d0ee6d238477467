//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestCheckpoint: at a checkpoint the archive gets an open row of each flow that is older than the interval, and the other
// output does not; flows that end meanwhile are all on record. With CTLOGD_LONG=1 a million flows are alive; what that
// takes is logged.
func TestCheckpoint(t *testing.T) {
	need(t)
	live, pace := 20_000, 500
	if os.Getenv("CTLOGD_LONG") != "" {
		live, pace = 1_000_000, 5000
		room(t, 2_000_000)
	} else {
		t.Parallel() // it waits for a minute, the shortest interval
	}
	ns, flood := newFloodNS(t)
	must(t, flood.Create(0, live))
	dir := t.TempDir()
	file, store, conf := filepath.Join(dir, "flows.jsonl"), filepath.Join(dir, "archive"), filepath.Join(dir, "ctlogd.yaml")
	must(t, os.WriteFile(conf, []byte("host: gw1\nobserver: lab\noutputs: {jsonl: [{path: "+file+"}], archive: [{path: "+store+", checkpoint: 1m}]}\n"), 0o644))
	d := start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", conf))
	eventually(t, "the daemon runs", func() bool { return strings.Contains(d.stderr.String(), "logging flows") })

	ends, err := ns.NewFlood()
	must(t, err)
	defer ends.Close()
	quit, ended, failed := make(chan struct{}), live, make(chan error, 1)
	go func() {
		began, first := time.Now(), live
		for {
			select {
			case <-quit:
				failed <- nil
				return
			case <-time.After(time.Until(began.Add(time.Duration(ended-first) * time.Second / time.Duration(pace)))):
			}
			if err := ends.Churn(ended, ended+pace/10); err != nil {
				failed <- err
				return
			}
			ended += pace / 10
		}
	}()
	before := d.peakMemory(t)
	waiting := func() *archive.Host {
		a, err := archive.OpenReader(store)
		must(t, err)
		return a.Hosts[0]
	}
	// What the row logs say is not in a catalog yet.
	reading := func() (c archive.Checkpoint, ok bool) {
		for _, name := range waiting().RowLogs {
			_ = archive.Each(name, func(_ *archive.Origin, r *flow.Record) error {
				if found, is := archive.CheckpointOf(r); is {
					c, ok = found, true
				}
				return nil
			})
		}
		for _, found := range waiting().Checkpoints() {
			c, ok = found, true
		}
		return c, ok
	}
	var c archive.Checkpoint
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(2 * time.Second) {
		var ok bool
		if c, ok = reading(); ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no checkpoint within five minutes\n%s", d.stderr.String())
		}
	}
	after := d.peakMemory(t)
	close(quit)
	must(t, <-failed)
	if !c.Whole || time.Duration(c.MinAge) != time.Minute {
		t.Errorf("the reading: %+v", c)
	}
	lines := lineCounter{path: file}
	eventually(t, "all ends are in the file", func() bool { return lines.count(t) >= ended-live })
	d.stop(t)

	open, destroyed := map[int]int{}, 0
	h := waiting()
	files := h.RowLogs
	for _, s := range h.Segments() {
		files = append(files, s.Path)
	}
	for _, name := range files {
		must(t, archive.Each(name, func(_ *archive.Origin, r *flow.Record) error {
			if _, is := archive.CheckpointOf(r); is {
				return nil
			}
			i, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort)
			switch {
			case !ok:
				return fmt.Errorf("unexpected: %+v", r)
			case r.Event == flow.EventDestroy:
				destroyed++
			case r.Event != flow.EventOpen || i >= live || r.Received-r.Start < int64(time.Minute) || open[i] > 0 && r.Received <= int64(c.Ended):
				return fmt.Errorf("unexpected: %+v of flow %d", r, i)
			default:
				open[i]++
			}
			return nil
		}))
	}
	if len(open) != live || destroyed != ended-live || lines.count(t) != ended-live {
		t.Errorf("%d open rows of %d flows; of %d that ended the archive has %d, the file %d lines", len(open), live, ended-live, destroyed, lines.count(t))
	}
	text, err := os.ReadFile(file)
	must(t, err)
	for _, event := range []string{"open", "gap"} {
		if n := strings.Count(string(text), `"event":"`+event+`"`); n > 0 {
			t.Errorf("the file has %d records of the event %s", n, event)
		}
	}
	t.Logf("%d live flows were read in %v while %d flows ended a second; the daemon's peak went from %.1f to %.1f MiB", live,
		time.Duration(c.Ended-c.Began), pace, float64(before)/(1<<20), float64(after)/(1<<20))
}
