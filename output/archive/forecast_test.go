package archive

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
)

// TestForecast: what the catalog says of the last week tells what a day takes, and whether max_age can be kept.
func TestForecast(t *testing.T) {
	c := valid()
	c.Path = t.TempDir()
	if got, err := c.Tell("gw1"), c.Fits("gw1"); got != "" || err != nil {
		t.Fatalf("before anything is there: %q, %v", got, err)
	}
	start := time.Date(2026, 3, 9, 0, 0, 0, 0, time.UTC).UnixNano()
	w, err := archive.Open(archive.Options{Dir: c.Path, Host: "gw1", Observer: "o", Interval: time.Hour, Records: 100, Sync: archive.SyncNever,
		Seal: func(_ context.Context, path string) (archive.Sealed, error) {
			seg, date, err := archive.Seal(path)
			return archive.Sealed{Segment: seg, Date: date}, err
		}})
	if err != nil {
		t.Fatal(err)
	}
	b := flow.NewBatch(300, nil)
	for i := range 300 { // two a minute
		r := b.Next()
		r.Event, r.Received = flow.EventDestroy, start+int64(i)*int64(30*time.Second)
		r.Stop = r.Received
		if _, err := w.Append([]*flow.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(time.Minute); w.Stats.Seals.Load() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no segments within a minute")
		}
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	n, err := archive.Forecast(c.Path, "gw1")
	if err != nil {
		t.Fatal(err)
	}
	held := w.Stats.SegmentBytes.Load()
	if want := int64(float64(held) / (299.0 / 120) * 24); n.Held != held || n.PerDay < want-1 || n.PerDay > want+1 || n.Free == 0 {
		t.Errorf("%+v, want %d a day of %d", n, want, held)
	}
	if got := c.Tell("gw1"); !strings.Contains(got, "a day; there is room for") {
		t.Errorf("%q", got)
	}
	c.MaxAge = 24 * time.Hour
	if err := c.Fits("gw1"); err != nil {
		t.Errorf("a day: %v", err)
	}
	c.MaxAge, c.MaxSize = 365*24*time.Hour, 16<<20
	if err := c.Fits("gw1"); err == nil || !strings.Contains(err.Error(), "max_age of 365 days cannot be kept") {
		t.Errorf("a year in 16 MiB: %v", err)
	}
}
