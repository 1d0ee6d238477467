package archive

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// reading returns the record that says that a reading of the table is over.
func reading(began, ended int64, mark flow.Checkpoint) *flow.Record {
	b := flow.NewBatch(1, nil)
	r := b.Next()
	r.Event, r.Start, r.Stop, r.Received, r.Timeout = flow.EventOpen, began, ended, ended, 3600
	b.Extra(r).Checkpoint = mark
	return r
}

// TestCheckpointRecord: a reading of the table is a row, and stands in the catalog; it is the witness of a time that lies an
// hour before it. A reading that was not whole is no witness.
func TestCheckpointRecord(t *testing.T) {
	recs := makeTrace(50, 1)
	t0 := testNow.UnixNano()
	hour := int64(time.Hour)
	recs = append(recs, reading(t0, t0+5, flow.CheckpointPartial), reading(t0+hour, t0+hour+7, flow.CheckpointWhole))
	dir := writeArchive(t, recs, nil)
	r, err := OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := r.Hosts[0]
	got := h.Checkpoints()
	if len(got) != 2 || got[0] != (Checkpoint{Time(t0), Time(t0 + 5), Duration(time.Hour), false}) ||
		got[1] != (Checkpoint{Time(t0 + hour), Time(t0 + hour + 7), Duration(time.Hour), true}) {
		t.Fatalf("%+v", got)
	}
	if c, ok := h.Witness(t0); !ok || c != got[1] {
		t.Errorf("%+v %v", c, ok)
	}
	if c, ok := h.Witness(t0 + 1); ok {
		t.Errorf("%+v", c)
	}
	q := Query{Where: isCheckpoint}
	n := 0
	for w, err := range r.Rows(context.Background(), &q) {
		if err != nil {
			t.Fatal(err)
		}
		text := string(AppendCheckpoint(nil, w.Origin, w.Record))
		whole := w.Record.Checkpoint() == flow.CheckpointWhole
		if !strings.Contains(text, `"event":"checkpoint","host":"gw1"`) || strings.Contains(text, `"whole":true`) != whole ||
			!strings.Contains(text, `"min_age_s":3600`) || w.Record.Stop != w.Record.Start+5 && !whole {
			t.Errorf("%s", text)
		}
		n++
	}
	if n != 2 {
		t.Errorf("%d rows", n)
	}
}
