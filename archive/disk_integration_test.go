//go:build integration

package archive

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestFullDisk: on a disk that is full nothing is acknowledged, and nothing of what was before is lost; once there is room
// writing and sealing go on.
func TestFullDisk(t *testing.T) {
	d, err := lab.NewDisk(filepath.Join(t.TempDir(), "image"), t.TempDir(), "8M")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	o := testOptions(filepath.Join(d.Dir, "archive"))
	o.Retention, o.Records = Retention{}, 1_000_000
	w := openTest(t, o)
	if err := d.Fill(4096); err != nil {
		t.Fatal(err)
	}
	recs := make([]*flow.Record, testRecords)
	for i := range recs {
		recs[i] = numbered(i)
	}
	taken := 0
	for err == nil && taken < testRecords {
		var n int
		n, err = w.Append(recs[taken:min(taken+10, testRecords)])
		taken += n
	}
	if !errors.Is(err, unix.ENOSPC) || taken == testRecords {
		t.Fatalf("%d records were taken, error %v", taken, err)
	}
	if err := d.Free(); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool {
		n, err := w.Append(recs[taken:])
		taken += n
		return err == nil && taken == testRecords
	})
	eachOnce(t, o.Dir, 0, testRecords)

	// A seal has no room either; it is tried until there is some.
	if err := d.Fill(0); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.rotate()
	w.mu.Unlock()
	await(t, func() bool { return w.Stats.SealErrors.Load() > 0 })
	eachOnce(t, o.Dir, 0, testRecords)
	if err := d.Free(); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return w.Stats.Seals.Load() == 1 })
	eachOnce(t, o.Dir, 0, testRecords)
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}
