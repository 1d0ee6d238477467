package deliver

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

// posted is an output that learns later what has arrived.
type posted struct {
	stub
	arrived atomic.Uint64
}

func (p *posted) Acknowledged() uint64 { return p.arrived.Load() }

// What is on its way to a destination is in the mark: its flows, and the gaps.
func TestMarkKnowsWhatIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := new(posted)
		q := queueOf(out, nil, 0, zap.NewNop())
		p := start(q)
		type state struct {
			since int64
			gaps  []Gap
		}
		mark := func() state { return state{q.Since(time.Unix(0, 5000)), q.Unrecorded()} }
		want := func(what string, safe int64, gaps ...Gap) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(state{safe, gaps}, mark(), cmp.AllowUnexported(state{})); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		send(p, 1000, 5)
		want("the first", 1000)
		send(p, 2000, 5)
		want("both", 1000)
		out.arrived.Store(3)
		want("a part of the first has arrived", 1000)
		out.arrived.Store(5)
		want("the first has arrived", 2000)
		out.arrived.Store(10)
		want("both have arrived", 5000)

		gap := Gap{Gap: flow.Gap{Cause: flow.CauseDowntime, Output: "stub"}, From: 100, To: 200}
		q.Lose(gap)
		want("a gap waits", 5000, gap)
		time.Sleep(2 * gapPause)
		synctest.Wait()
		if len(out.gaps) != 1 {
			t.Fatalf("%d gaps are written, want 1", len(out.gaps))
		}
		want("a gap is on its way", 5000, gap)
		out.arrived.Store(11)
		want("the gap has arrived", 5000)
		p.Close(t.Context())
	})
}

// A gap that the output is being given is in the mark as long as it is not taken.
func TestMarkKnowsGapInWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSwitched(true)
		q := queueOf(out, nil, 0, zap.NewNop())
		p := start(q)
		gap := Gap{Gap: flow.Gap{Cause: flow.CauseReboot, Output: "stub"}, From: 100, To: 200}
		q.Lose(gap)
		time.Sleep(10 * gapLast)
		synctest.Wait()
		if diff := cmp.Diff([]Gap{gap}, q.Unrecorded()); diff != "" {
			t.Errorf("while it is written (-want +got):\n%s", diff)
		}
		out.broken.Store(false)
		time.Sleep(2 * lastRetry)
		synctest.Wait()
		if len(q.Unrecorded()) != 0 || len(out.gaps) != 1 {
			t.Errorf("%d gaps taken, and %v wait", len(out.gaps), q.Unrecorded())
		}
		p.Close(t.Context())
	})
}

// What had not arrived when the output was closed is in a gap, and gaps among it wait again.
func TestClosedBeforeItArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := new(posted)
		q := queueOf(out, nil, 0, zap.NewNop())
		p := start(q)
		gap := Gap{Gap: flow.Gap{Cause: flow.CauseQueueFull, Output: "stub", Lost: 7, LostKnown: true}, From: 1, To: 2}
		q.Lose(gap)
		time.Sleep(2 * gapPause)
		send(p, 1000, 5)
		send(p, 2000, 5)
		out.arrived.Store(1 + 4)
		p.Close(t.Context())
		want := []Gap{{Gap: flow.Gap{Cause: flow.CauseOutputDown, Output: "stub"}, From: 1000, To: time.Now().UnixNano()}}
		if diff := cmp.Diff(want, q.Unrecorded()); diff != "" {
			t.Errorf("the gap has arrived, the records not all (-want +got):\n%s", diff)
		}
	})
}

// A gap that has arrived does not wait again, though records behind it in the same Write have not.
func TestClosedBehindAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := new(posted)
		q := queueOf(out, nil, 0, zap.NewNop())
		p := &line{[]*Queue{q}}
		for from := range int64(2) {
			q.Lose(Gap{Gap: flow.Gap{Cause: flow.CauseQueueFull, Output: "stub", Lost: 7, LostKnown: true}, From: 1 + from*int64(time.Hour), To: 2 + from*int64(time.Hour)})
		}
		time.Sleep(2 * gapPause)
		send(p, 1000, 5)
		q.Start()
		synctest.Wait()
		out.arrived.Store(1)
		p.Close(t.Context())
		gaps := q.Unrecorded()
		if len(out.gaps) != 2 || out.calls != 1 || len(gaps) != 2 || gaps[0] != out.gaps[1] && gaps[1] != out.gaps[1] {
			t.Errorf("of %+v the first has arrived; these wait: %+v", out.gaps, gaps)
		}
	})
}

// What comes from the spool stays there until it has arrived, also when the output is replaced.
func TestSpoolKeepsWhatIsOnItsWay(t *testing.T) {
	dir := t.TempDir()
	fill := func(n int) {
		s := openSpool(t, dir, 0)
		var recs []*flow.Record
		for i := range n {
			recs = append(recs, &flow.Record{Event: flow.EventDestroy, ID: uint32(i), Received: int64(i)})
		}
		if _, err := s.Append(recs); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	fill(100)
	run := func(out *posted) (q *Queue, p *line) {
		q = queueOf(out, nil, 0, zap.NewNop())
		q.spill(openSpool(t, dir, 0))
		p = start(q)
		eventually(t, "the spool is read", func() bool { return out.count() >= 100 })
		return q, p
	}
	first := new(posted)
	q, p := run(first)
	send(p, 1000, 5) // past the spool, all of which is read
	eventually(t, "the record behind is delivered", func() bool { return first.count() == 105 })
	if n := spooled(q); n != 100 {
		t.Errorf("%d records are in the spool, want the 100 that have not arrived", n)
	}
	second := new(posted)
	q.Replace(func() (Output, error) { return second, nil })
	eventually(t, "the next output has what did not arrive", func() bool { return second.count() == 100 })
	if gaps := q.Unrecorded(); len(gaps) != 1 || gaps[0].Cause != flow.CauseOutputDown || gaps[0].From != 1000 {
		t.Errorf("gaps %+v, want one of what was not in the spool", gaps)
	}
	second.arrived.Store(100)
	eventually(t, "the spool is empty", func() bool { return spooled(q) == 0 })
	p.Close(t.Context())
	fill(100)
	third := new(posted)
	q, p = run(third)
	p.Close(t.Context())
	fourth := new(posted)
	q, p = run(fourth)
	fourth.arrived.Store(1000)
	eventually(t, "the spool is empty again", func() bool { return spooled(q) == 0 })
	p.Close(t.Context())
	if !slices.Equal(third.ids, fourth.ids[:len(third.ids)]) {
		t.Error("the next process did not read again what had not arrived")
	}
}

// An output breaks in the middle of what comes from the spool, with something before it on its way, and another takes its
// place: that one gets all of it, and the spool is emptied when it has arrived there.
func TestReplacedWithinTheSpool(t *testing.T) {
	s := openSpool(t, t.TempDir(), 0)
	const total = 3 * writeRecords
	var recs []*flow.Record
	for i := range total {
		recs = append(recs, &flow.Record{Event: flow.EventDestroy, ID: uint32(i), Received: 1})
	}
	if _, err := s.Append(recs); err != nil {
		t.Fatal(err)
	}
	broken := new(posted)
	broken.write = func(_ context.Context, call int, recs []*flow.Record) (int, error) {
		switch call {
		case 1:
			return len(recs), nil
		case 2:
			return 10, errors.New("down")
		}
		return 0, errors.New("down")
	}
	q := queueOf(broken, nil, 0, zap.NewNop())
	q.spill(s)
	p := start(q)
	eventually(t, "it is tried again", func() bool { return q.Stats.Errors.Load() > 1 })
	good := new(posted)
	q.Replace(func() (Output, error) { return good, nil })
	eventually(t, "the other has everything", func() bool { return good.count() >= total })
	if n, _ := s.Len(); n != total {
		t.Errorf("%d records are in the spool, want all %d as long as none has arrived", n, total)
	}
	good.arrived.Store(total)
	eventually(t, "the spool is empty", func() bool { n, _ := s.Len(); return n == 0 })
	p.Close(t.Context())
	if !slices.Equal(good.ids, upTo(total)) {
		t.Errorf("%d records delivered, want each of %d once and in order", len(good.ids), total)
	}
}

// An output that fails when ctlogd ends is given up soon, one that is slow is not.
func TestLastTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := func(out Output, after time.Duration) (took time.Duration, q *Queue) {
			q = queueOf(out, nil, 0, zap.NewNop())
			p := start(q)
			send(p, 0, 5)
			time.Sleep(after)
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			p.Close(ctx)
			return time.Since(began), q
		}
		for after, want := range map[time.Duration]time.Duration{
			time.Minute: lastTry, // the waits between its tries are long by now
			time.Second: giveUp - time.Second,
		} {
			if took, q := end(newSwitched(true), after); took != want || q.Stats.Left.Load() != 5 ||
				lostIn(q.Unrecorded()) != 5 || q.Unrecorded()[0].Cause != flow.CauseOutputDown {
				t.Errorf("dead for %v: took %v, %d left, gaps %+v", after, took, q.Stats.Left.Load(), q.Unrecorded())
			}
		}
		slow := &stub{write: func(ctx context.Context, _ int, recs []*flow.Record) (int, error) {
			time.Sleep(4 * time.Second)
			return len(recs), ctx.Err()
		}}
		if took, q := end(slow, time.Second); took != 3*time.Second || len(q.Unrecorded()) != 0 {
			t.Errorf("slow: took %v, gaps %+v", took, q.Unrecorded())
		}
		// It comes back in time: everything is delivered, though it takes long.
		mended := time.Now().Add(time.Minute)
		back := &stub{write: func(_ context.Context, _ int, recs []*flow.Record) (int, error) {
			if time.Now().Before(mended) {
				return 0, errors.New("down")
			}
			time.Sleep(4 * time.Second)
			return len(recs), nil
		}}
		if took, q := end(back, time.Minute); took < 4*time.Second || len(back.ids) != 5 || len(q.Unrecorded()) != 0 {
			t.Errorf("back again: took %v, %d delivered, gaps %+v", took, len(back.ids), q.Unrecorded())
		}
	})
}

// An output that does not know that its time is over, on a disk that does not answer, does not hold up the end. What it has
// in its hands counts as lost, exactly, and it is closed when its call returns.
func TestOutputHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newHanging()
		q := queueOf(out, nil, 0, zap.NewNop())
		p := start(q)
		send(p, 1000, 5)
		synctest.Wait()
		send(p, 2000, 7)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		p.Close(ctx)
		if took := time.Since(began); took != 3*time.Second+giveUp {
			t.Errorf("Close took %v", took)
		}
		down := flow.Gap{Cause: flow.CauseOutputDown, Output: "stub", Lost: 12, LostKnown: true}
		if diff := cmp.Diff([]Gap{{Gap: down, From: 1000, To: 2006}}, q.Unrecorded()); diff != "" {
			t.Errorf("gaps (-want +got):\n%s", diff)
		}
		if out.closed.Load() {
			t.Error("it was closed within its Write")
		}
		close(out.release)
		synctest.Wait()
		if !out.closed.Load() {
			t.Error("it was not closed when its Write had returned")
		}
		if diff := cmp.Diff([]Gap{{Gap: down, From: 1000, To: 2006}}, q.Unrecorded()); diff != "" {
			t.Errorf("gaps when its Write has returned (-want +got):\n%s", diff)
		}
	})
}

// Marks are taken while records are on their way: no record is before the mark that has not arrived.
func TestMarksWhileFlying(t *testing.T) {
	out := new(posted)
	q := queueOf(out, nil, 1<<20, zap.NewNop())
	p := start(q)
	var offered atomic.Uint32
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			arrived, first := int64(out.arrived.Load()), int64(offered.Load())
			safe := q.Since(time.Unix(1, 0))
			if first > arrived && safe > arrived+1 { // Received is the id
				t.Errorf("safe until %d, and of %d records %d have arrived", safe, first, arrived)
				return
			}
			out.arrived.Store(uint64(out.count())) // all of it, a moment later
		}
	}()
	next := uint32(1)
	for range 2000 {
		next = send(p, next, 1, BatchRecords)
		offered.Store(next - 1)
	}
	eventually(t, "all is written", func() bool { return out.count() == int(next)-1 })
	close(stop)
	<-stopped
	if len(q.Unrecorded()) > 0 {
		t.Errorf("gaps: %v", q.Unrecorded())
	}
	out.arrived.Store(uint64(next))
	p.Close(t.Context())
}

// An output is replaced in the middle of a write: what it had taken of that is in a gap, the rest goes to the next one.
func TestReplacedInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := new(posted), new(posted)
		first.write = func(context.Context, int, []*flow.Record) (int, error) { return 3, errors.New("down") }
		q := queueOf(first, nil, 0, zap.NewNop())
		p := &line{[]*Queue{q}}
		send(p, 1000, 10)
		q.Start()
		time.Sleep(firstRetry / 4)
		synctest.Wait()
		q.Replace(func() (Output, error) { return second, nil })
		time.Sleep(lastRetry)
		synctest.Wait()
		if first.count() != 3 || second.count() != 7 {
			t.Errorf("%d records to the first, %d to the second, want 3 and 7", first.count(), second.count())
		}
		second.arrived.Store(8) // with the gap
		synctest.Wait()
		if gaps := second.gaps; len(gaps) != 1 || gaps[0].Cause != flow.CauseOutputDown || gaps[0].From != 1000 || gaps[0].LostKnown {
			t.Errorf("gaps %+v, want one of what the first had taken", gaps)
		}
		p.Close(t.Context())
	})
}

// slow is an output that gets 1000 records of a backlog a second, and learns later what has arrived: when it is closed, that all has,
// or never.
type slow struct {
	posted
	arrives bool
}

func (*slow) Pace() int { return 1000 }

func (s *slow) Close(context.Context) error {
	if s.arrives {
		s.arrived.Store(uint64(s.count()))
	}
	return nil
}

// An output is replaced while a backlog goes to it at its pace, with some of that on its way: the next one begins behind what has
// arrived, and what arrives there is all that the spool forgets.
func TestReplacedAtItsPace(t *testing.T) {
	const total = 20 * pacedPortion
	for _, arrives := range []bool{false, true} {
		dir, before := t.TempDir(), 0
		synctest.Test(t, func(t *testing.T) {
			s := openSpool(t, dir, 0)
			var recs []*flow.Record
			for i := range total {
				recs = append(recs, &flow.Record{Event: flow.EventDestroy, ID: uint32(i), Received: 1})
			}
			if _, err := s.Append(recs); err != nil {
				t.Fatal(err)
			}
			first, second := &slow{arrives: arrives}, new(slow)
			q := queueOf(first, nil, 0, zap.NewNop())
			q.spill(s)
			p := start(q)
			const portion = pacedPortion * time.Millisecond
			time.Sleep(3*portion + portion/2)
			q.Replace(func() (Output, error) { return second, nil })
			time.Sleep(10 * portion)
			second.arrived.Store(pacedPortion)
			time.Sleep(100 * portion)
			if arrives {
				before = first.count()
			}
			if !slices.Equal(second.got(), upTo(total)[before:]) {
				t.Errorf("arrives %t: the second output has %d records, want each of %d once and in order", arrives, second.count(), total-before)
			}
			p.Close(t.Context())
		})
		synctest.Test(t, func(t *testing.T) { // the next process
			out := new(stub)
			q := queueOf(out, nil, 0, zap.NewNop())
			q.spill(openSpool(t, dir, 0))
			p := start(q)
			time.Sleep(time.Minute)
			p.Close(t.Context())
			if got, want := out.got(), upTo(total)[before+pacedPortion:]; !slices.Equal(got, want) {
				t.Errorf("arrives %t: %d records were in the spool, want the %d that had not arrived", arrives, len(got), len(want))
			}
		})
	}
}
