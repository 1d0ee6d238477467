package deliver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

// An output fails for a while, refuses a record for good, and is too slow: its status and its counters tell.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		out := &stub{write: func(_ context.Context, _ int, recs []*flow.Record) (int, error) {
			if !up.Load() {
				return 0, errors.New("nobody there")
			}
			return len(recs), nil
		}}
		q := queueOf(out, nil, 3, zap.NewNop())
		p := &line{[]*Queue{q}}
		began := time.Now()
		q.Start()
		if diff := cmp.Diff(Status{Max: 3}, q.Status()); diff != "" {
			t.Errorf("at the start (-want +got):\n%s", diff)
		}
		b := p.Batch()
		r := b.Next()
		r.Event, r.Stop, r.Received = flow.EventDestroy, began.Add(-2*time.Second).UnixNano(), began.UnixNano()
		b = p.Ingest(b)
		synctest.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		is := q.Status()
		if !is.ErrorAt.After(began) || is.ErrorAt.After(time.Now()) {
			t.Errorf("the last error was at %v", is.ErrorAt)
		}
		is.ErrorAt = time.Time{}
		if diff := cmp.Diff(Status{Failing: true, Since: began, Error: "nobody there", Held: 1, Max: 3,
			Oldest: time.Unix(0, began.UnixNano())}, is); diff != "" {
			t.Errorf("failing (-want +got):\n%s", diff)
		}
		if e, again := q.Stats.Errors.Load(), q.Stats.Retries.Load(); e < 5 || again != e-1 {
			t.Errorf("%d errors, and tried again %d times", e, again)
		}

		for range 4 { // there is room for two more
			r := b.Next()
			r.Event, r.Stop, r.Received = flow.EventDestroy, time.Now().UnixNano(), time.Now().UnixNano()
			b = p.Ingest(b)
		}
		lost := &q.Stats.Lost[flow.CauseOutputDown]
		if n, gaps := lost.Lost.Load(), lost.Gaps.Load(); n != 2 || gaps != 1 {
			t.Errorf("%d lost in %d gaps, want 2 in 1", n, gaps)
		}
		up.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		is = q.Status()
		if is.Failing || !is.Since.After(began.Add(time.Minute)) || is.Error != "nobody there" || is.Held != 0 || !is.Oldest.IsZero() {
			t.Errorf("when it goes on: %+v", is)
		}
		counts, _ := q.Stats.Lag.Load()
		observed := uint64(0)
		for _, n := range counts {
			observed += n
		}
		if written, gaps := q.Stats.Written.Load(), q.Stats.Gaps.Load(); observed != 3 || gaps != 1 || written != 4 {
			t.Errorf("lag of %d records, %d gaps, %d written, want 3, 1 and 4", observed, gaps, written)
		}
		p.Close(t.Context())
	})
}

// What a queue has lost elsewhere, before it began, counts as well; what gap records say that pass through does not.
func TestLostCountsOnce(t *testing.T) {
	q := queueOf(&stub{}, nil, 0, zap.NewNop())
	q.Lose(Gap{Gap: flow.Gap{Cause: flow.CauseDowntime}, From: 1, To: 2})
	b := flow.NewBatch(2, nil)
	r := b.Next()
	r.Event, r.Received = flow.EventGap, 5
	b.Extra(r).Gap = flow.Gap{Cause: flow.CauseOverrun, Lost: 9, LostKnown: true}
	r = b.Next()
	r.Event, r.Received = flow.EventDestroy, 5
	q.ledger.addRecords(flow.CauseQueueFull, each(pointers(nil, b)))
	got := map[string][2]uint64{}
	for c := range q.Stats.Lost {
		if n := q.Stats.Lost[c].Gaps.Load(); n > 0 {
			got[flow.Cause(c).String()] = [2]uint64{n, q.Stats.Lost[c].Lost.Load()}
		}
	}
	if diff := cmp.Diff(map[string][2]uint64{"downtime": {1, 0}, "queue_full": {1, 1}}, got); diff != "" {
		t.Errorf("gaps and records lost by cause (-want +got):\n%s", diff)
	}
}

// What a spool finds damaged counts as lost, once.
func TestDamageCounts(t *testing.T) {
	dir := t.TempDir()
	sp := openSpool(t, dir, 0)
	var recs []*flow.Record
	for i := range 10 {
		recs = append(recs, &flow.Record{Event: flow.EventDestroy, ID: uint32(i), Received: int64(1000 + i)})
	}
	for range 2 { // two frames
		if _, err := sp.Append(recs); err != nil {
			t.Fatal(err)
		}
	}
	if err := sp.Close(); err != nil {
		t.Fatal(err)
	}
	segments, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments %v, %v", segments, err)
	}
	f, err := os.OpenFile(segments[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff, 0xff, 0xff}, 120); err != nil { // in the first frame
		t.Fatal(err)
	}
	f.Close()
	q := queueOf(&stub{}, nil, 0, zap.NewNop())
	q.spill(openSpool(t, dir, 0))
	p := start(q)
	for q.Stats.Written.Load() < 11 { // the second frame, and the gap
		time.Sleep(time.Millisecond)
	}
	p.Close(t.Context())
	for range 2 {
		q.Status()
	}
	if lost, damaged := q.Stats.Lost[flow.CauseCrash].Lost.Load(), q.Spool().Stats.Damaged.Load(); lost != damaged || lost != 10 {
		t.Errorf("%d lost, and %d damaged, want 10", lost, damaged)
	}
}

// An output that could be built only at a later try is the one that others find, to open its file again, say; and as long as
// it could not, it is failing.
func TestOutputBuiltLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late, tries := &stub{}, 0
		q := New(Config{Name: "stub", Build: func() (Output, error) {
			if tries++; tries < 5 {
				return nil, errors.New("not yet")
			}
			return late, nil
		}})
		p := start(q)
		synctest.Wait()
		if is := q.Status(); q.Output() != nil || !is.Failing || is.Error != "not yet" {
			t.Errorf("before it is built: output %v, status %+v", q.Output(), is)
		}
		send(p, 1, 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		if is := q.Status(); q.Output() != Output(late) || is.Failing || late.count() != 1 {
			t.Errorf("the output is %v, it has %d records, status %+v", q.Output(), late.count(), is)
		}
		p.Close(t.Context())
	})
}
