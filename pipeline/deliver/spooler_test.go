package deliver

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

// TestSpillOverRestarts breaks the output, sends far more than the queue has room for, ends, starts again with the
// output mended, and asks for every record.
func TestSpillOverRestarts(t *testing.T) {
	dir := t.TempDir()
	out := newSwitched(true)
	const bound = 4 * BatchRecords
	var next uint32
	for range 3 { // three processes one after the other, none of which can deliver
		q := queueOf(out, nil, bound, zap.NewNop())
		q.spill(openSpool(t, dir, 0))
		p := start(q)
		for range 20 {
			next = send(p, next, BatchRecords, 3)
			awaitRoom(t, q, bound/2)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		p.Close(ctx)
		if ctx.Err() != nil {
			t.Error("Close waited for the output, with a spool at hand")
		}
		cancel()
		if d, l := q.Stats.Dropped.Load(), q.Stats.Left.Load(); d != 0 || l != 0 {
			t.Fatalf("%d dropped and %d left, want none", d, l)
		}
	}
	if len(out.ids) != 0 {
		t.Fatal("a broken output took records")
	}
	out.broken.Store(false)
	q := queueOf(out, nil, bound, zap.NewNop())
	q.spill(openSpool(t, dir, 0))
	p := start(q)
	next = send(p, next, BatchRecords)
	eventually(t, "everything is delivered", func() bool { return len(out.got()) >= int(next) })
	p.Close(t.Context())
	ids := out.got()
	if !slices.IsSorted(ids) {
		// What a process had in hand when it ended follows what came later; across the three ends that is all.
		breaks := 0
		for i := 1; i < len(ids); i++ {
			if ids[i] < ids[i-1] {
				breaks++
			}
		}
		if breaks > 2*3 {
			t.Errorf("%d places out of order, want two for each end at most", breaks)
		}
	}
	slices.Sort(ids)
	if !slices.Equal(ids, upTo(next)) {
		t.Errorf("%d records delivered, want each of %d once", len(ids), next)
	}
	if lostIn(out.gaps) != 0 {
		t.Errorf("gaps %+v, want none", out.gaps)
	}
}

// TestSpillKeepsOrder breaks and mends the output again and again while records flow, and asks for each of them once, in
// the order in which they were read.
func TestSpillKeepsOrder(t *testing.T) {
	out := newSwitched(false)
	const bound = 64 * BatchRecords
	q := queueOf(out, nil, bound, zap.NewNop())
	q.spill(openSpool(t, t.TempDir(), 0))
	p := start(q)
	stop := make(chan struct{})
	var toggling sync.WaitGroup
	toggling.Go(func() {
		for {
			select {
			case <-stop:
				out.broken.Store(false)
				return
			case <-time.After(30 * time.Millisecond):
				out.broken.Store(!out.broken.Load())
			}
		}
	})
	var next uint32
	for begin := time.Now(); time.Since(begin) < 3*time.Second; {
		next = send(p, next, BatchRecords, 1, 17, BatchRecords)
		time.Sleep(time.Millisecond)
		awaitRoom(t, q, bound-4*BatchRecords)
	}
	close(stop)
	toggling.Wait()
	eventually(t, "everything is delivered", func() bool { return len(out.got()) >= int(next) })
	p.Close(t.Context())
	if !slices.Equal(out.got(), upTo(next)) {
		t.Errorf("%d records delivered, want each of %d once and in order", len(out.got()), next)
	}
	if q.Spool().Stats.Appended.Load() == 0 {
		t.Error("nothing went through the spool, the test proves nothing")
	}
}

// TestSpillFromTheWorker breaks the output while the worker is at the last records there are: they do not wait in its
// hands, where a process that is killed would lose them.
func TestSpillFromTheWorker(t *testing.T) {
	out := newSwitched(true)
	q := queueOf(out, nil, 0, zap.NewNop())
	q.spill(openSpool(t, t.TempDir(), 0))
	p := start(q)
	next := send(p, 0, 7)
	eventually(t, "the records are on the disk", func() bool {
		return spooled(q) == 7 && q.Status().Held == 0
	})
	if got := q.Since(time.Unix(0, 5000)); got != 5000 {
		t.Errorf("safe until %d, want 5000: nothing is in memory", got)
	}
	out.broken.Store(false)
	eventually(t, "everything is delivered", func() bool { return len(out.got()) >= int(next) })
	eventually(t, "the queue knows that the output works", func() bool { return !q.Status().Failing })
	p.Close(t.Context())
}

// TestSpillBesideAHangingOutput has the output hang in one write, which then succeeds or fails: what comes meanwhile goes
// to the disk, nothing is lost, and what the write was about stays before what came later.
func TestSpillBesideAHangingOutput(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail bool
	}{{"succeeds", false}, {"fails", true}} {
		t.Run(tt.name, func(t *testing.T) {
			hold := make(chan struct{})
			out := &stub{write: func(_ context.Context, call int, recs []*flow.Record) (int, error) {
				<-hold
				if tt.fail && call < 3 {
					return 5, errors.New("some of them")
				}
				return len(recs), nil
			}}
			const bound = 4 * BatchRecords
			q := queueOf(out, nil, bound, zap.NewNop())
			q.spill(openSpool(t, t.TempDir(), 0))
			p := start(q)
			var next uint32
			for range 50 {
				next = send(p, next, BatchRecords)
				awaitRoom(t, q, bound-BatchRecords)
			}
			close(hold)
			eventually(t, "everything is delivered", func() bool {
				out.mu.Lock()
				defer out.mu.Unlock()
				return len(out.ids) >= int(next)
			})
			p.Close(t.Context())
			if !slices.Equal(out.ids, upTo(next)) {
				t.Errorf("%d records delivered, want each of %d once and in order", len(out.ids), next)
			}
		})
	}
}

// TestReplaceBroken puts an output in the place of one that never takes what the worker has in its hands.
func TestReplaceBroken(t *testing.T) {
	for _, spooled := range []bool{false, true} {
		t.Run(map[bool]string{false: "no spool", true: "spool"}[spooled], func(t *testing.T) {
			broken, good := newSwitched(true), new(stub)
			q := queueOf(broken, nil, 0, zap.NewNop())
			if spooled {
				q.spill(openSpool(t, t.TempDir(), 0))
			}
			p := start(q)
			next := send(p, 0, BatchRecords, 3)
			eventually(t, "the worker has tried", func() bool { return q.Stats.Errors.Load() > 1 })
			q.Replace(func() (Output, error) { return good, nil })
			eventually(t, "everything is delivered", func() bool { return q.Stats.Written.Load() == uint64(next) })
			p.Close(t.Context())
			if !slices.Equal(good.ids, upTo(next)) {
				t.Errorf("%d records delivered, want each of %d once and in order", len(good.ids), next)
			}
		})
	}
}

// TestSpoolFull fills a small spool and the memory behind it: what is lost is in gaps, exactly.
func TestSpoolFull(t *testing.T) {
	out := newSwitched(true)
	q := queueOf(out, nil, 4*BatchRecords, zap.NewNop())
	q.spill(openSpool(t, t.TempDir(), 1<<20))
	p := start(q)
	var next uint32
	for range 1000 {
		next = send(p, next, BatchRecords)
		time.Sleep(500 * time.Microsecond)
	}
	eventually(t, "records are lost", func() bool { return q.Stats.Dropped.Load() > 0 })
	out.broken.Store(false)
	whole := func() bool {
		out.mu.Lock()
		defer out.mu.Unlock()
		return len(out.ids)+int(lostIn(out.gaps)) >= int(next)
	}
	eventually(t, "everything is delivered or in a gap", whole)
	p.Close(t.Context())
	lost := lostIn(out.gaps)
	if int(lost)+len(out.ids) != int(next) || uint64(lost) != q.Stats.Dropped.Load() {
		t.Errorf("%d delivered, %d lost in gaps, %d counted as lost; want %d in all", len(out.ids), lost, q.Stats.Dropped.Load(), next)
	}
	missing := map[uint32]bool{}
	for _, id := range upTo(next) {
		missing[id] = true
	}
	for _, id := range out.ids {
		if !missing[id] {
			t.Fatalf("record %d came twice", id)
		}
		delete(missing, id)
	}
	for id := range missing {
		received := max(int64(id), 1)
		if !slices.ContainsFunc(out.gaps, func(g Gap) bool { return g.From <= received && received <= g.To }) {
			t.Fatalf("record %d is missing, and in no gap of %+v", id, out.gaps)
		}
	}
}

// Somebody removes the spool's directory: what was in it is a loss, what comes then waits in memory, and all that does not
// fit is in gaps.
func TestSpoolRemoved(t *testing.T) {
	for _, reads := range []bool{true, false} { // before the end, and not
		dir := t.TempDir()
		out := newSwitched(true)
		q := queueOf(out, nil, 4*BatchRecords, zap.NewNop())
		q.spill(openSpool(t, dir, 0))
		p := start(q)
		next := send(p, 1, 100)
		eventually(t, "the records are in the spool", func() bool { return spooled(q) == 100 })
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		for range 8 {
			next = send(p, next, BatchRecords)
		}
		eventually(t, "records are lost", func() bool { return q.Stats.Dropped.Load() > 0 })
		if reads {
			out.broken.Store(false)
			eventually(t, "what was in memory is delivered", func() bool {
				return len(out.got())+int(q.Stats.Dropped.Load()) >= int(next-1)-100
			})
		}
		p.Close(t.Context())
		got := len(out.got())
		lost := int(lostIn(q.Unrecorded()) + lostIn(out.gaps))
		if got+lost != int(next-1) || reads != (got > 0) {
			t.Errorf("read before the end %v: %d delivered, %d in gaps, want %d in all", reads, got, lost, next-1)
		}
	}
}

// paced is an output whose destination cannot slow it down.
type paced struct {
	*switched
	largest atomic.Int64 // of the writes
}

func (p *paced) Pace() int { return 1_000_000 }

func (p *paced) Write(ctx context.Context, recs []*flow.Record) (int, error) {
	p.largest.Store(max(p.largest.Load(), int64(len(recs))))
	return p.switched.Write(ctx, recs)
}

// What a spool has kept goes to a destination that cannot push back in portions that its buffer holds.
func TestPace(t *testing.T) {
	dir := t.TempDir()
	broken := queueOf(newSwitched(true), nil, 0, zap.NewNop())
	broken.spill(openSpool(t, dir, 0))
	p := start(broken)
	next := uint32(0)
	for range 20 {
		next = send(p, next, BatchRecords)
	}
	p.Close(t.Context())

	out := &paced{switched: newSwitched(false)}
	q := queueOf(out, nil, 0, zap.NewNop())
	q.spill(openSpool(t, dir, 0))
	p = start(q)
	eventually(t, "everything is delivered", func() bool { return len(out.got()) >= int(next) })
	p.Close(t.Context())
	if got := out.got(); !slices.Equal(got, upTo(next)) {
		t.Errorf("%d records delivered, want each of %d once, in order", len(got), next)
	}
	if n := out.largest.Load(); n > pacedPortion {
		t.Errorf("a write of %d records, want %d at most", n, pacedPortion)
	}
}
