package archive

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "seal" { // archive.Child starts this binary so
		os.Exit(archive.SealMain(os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestNight: the flows of a night go through the output, as fast as they can be sealed. Neither memory nor open files grow.
// With CTLOGD_LONG it is three hours of 5,000 flows a second, 54 million records and 2 GB of disk.
func TestNight(t *testing.T) {
	records, segment := 200_000, 20_000
	if os.Getenv("CTLOGD_LONG") != "" {
		records, segment = 3*3600*5000, 1_000_000
	}
	var cfg Config
	cfg.Defaults()
	cfg.Path, cfg.SegmentRecords = t.TempDir(), segment
	o, err := New(cfg, "gw1", "obs", false, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := trace.Default()
	c.Start = time.Now().Add(-3 * time.Hour)
	tr, b := trace.New(c), flow.NewBatch(256, nil)
	recs := make([]*flow.Record, 256)
	began := time.Now()
	var memory, files []int
	for n := 0; n < records; n += len(recs) {
		b.Reset()
		for i := range recs {
			recs[i] = b.Next()
			tr.Next(recs[i])
		}
		if _, err := o.Write(context.Background(), recs); err != nil {
			t.Fatal(err)
		}
		if n/(records/20) == (n+len(recs))/(records/20) {
			continue
		}
		waitForSeals(t, o, 2)
		m, f := resident(t), openFiles(t)
		memory, files = append(memory, m), append(files, f)
		t.Logf("%s: %d records, %d segments, %d MiB resident, %d open files", time.Since(began).Round(time.Second), n+len(recs),
			o.w.Stats.Segments.Load(), m>>10, f)
	}
	waitForSeals(t, o, 1)
	if err := o.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	// The first quarter is for growing up. A seal that runs has some more files open.
	quarter := len(memory) / 4
	if first, last := most(memory[:quarter]), most(memory[len(memory)-quarter:]); last > first+8<<10 {
		t.Errorf("resident memory has grown from %d to %d KiB", first, last)
	}
	if first, last := most(files[:quarter]), most(files[len(files)-quarter:]); last > first+8 {
		t.Errorf("open files have grown from %d to %d", first, last)
	}
}

// waitForSeals waits until only so many row logs are left.
func waitForSeals(t *testing.T, o *Output, left int64) {
	for deadline := time.Now().Add(10 * time.Minute); o.w.Stats.RowLogs.Load() > left; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d row logs wait to be sealed; %d seals failed", o.w.Stats.RowLogs.Load(), o.w.Stats.SealErrors.Load())
		}
	}
}

func most(list []int) (m int) {
	for _, v := range list {
		m = max(m, v)
	}
	return m
}

// resident returns the resident memory of this process in KiB.
func resident(t *testing.T) int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	fields := strings.Fields(after)
	n, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
