package input

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/flow"
)

// fakeSource is a source whose events the test sends.
type fakeSource struct {
	mu      sync.Mutex
	waiting []uint32 // ids of the records
	caught  time.Time

	arrived chan struct{}
	block   int // events that one Fill reads at most

	turn      func(now time.Time, sink Sink) bool
	due       time.Duration
	requested func() bool
	withheld  func(now time.Time) bool
	handover  bool
	left      bool // Leave has been called
	atHand    int  // so many of waiting, which are not left to a successor
	err       error

	fills, waits int
	calls        []string // Leave and Finish
}

func newFake() *fakeSource {
	return &fakeSource{arrived: make(chan struct{}, 1), block: 64, due: time.Hour, caught: time.Now()}
}

// send makes n more events wait, numbered on from first.
func (s *fakeSource) send(first, n int) {
	s.mu.Lock()
	for i := range n {
		s.waiting = append(s.waiting, uint32(first+i))
	}
	s.mu.Unlock()
	s.Wake()
}

func (s *fakeSource) Fill(b *flow.Batch, now time.Time) (n int, more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fills++
	began := time.Now()
	if s.left && s.handover {
		s.waiting = s.waiting[:min(s.atHand, len(s.waiting))]
		s.atHand = 0
	}
	for ; n < s.block && !b.Full() && len(s.waiting) > 0; n++ {
		r := b.Next()
		r.Event, r.ID, r.Received = flow.EventDestroy, s.waiting[0], began.UnixNano()
		s.waiting = s.waiting[1:]
	}
	if len(s.waiting) == 0 && !s.left && (s.withheld == nil || !s.withheld(now)) {
		s.caught = began
	}
	return n, len(s.waiting) > 0, s.err
}

func (s *fakeSource) Turn(now time.Time, sink Sink) bool { return s.turn != nil && s.turn(now, sink) }
func (s *fakeSource) Due(time.Time) time.Duration        { return s.due }

func (s *fakeSource) Wait(d time.Duration) error {
	s.waits++
	select {
	case <-s.arrived:
	case <-time.After(d):
	}
	return nil
}

func (s *fakeSource) Wake() {
	select {
	case s.arrived <- struct{}{}:
	default:
	}
}

func (s *fakeSource) ReadUntil() time.Time { return s.caught }
func (s *fakeSource) Requested() bool      { return s.requested != nil && s.requested() }

func (s *fakeSource) Withheld(now time.Time, _ Sink) bool {
	return s.withheld != nil && s.withheld(now)
}

func (s *fakeSource) Leave() (bool, error) {
	s.calls = append(s.calls, "leave")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left = true; !s.handover {
		s.caught = time.Now()
	}
	return !s.handover, nil
}

func (s *fakeSource) Finish(now time.Time, sink Sink) {
	s.calls = append(s.calls, "finish")
	sink.Gap(now, now, flow.Gap{Cause: flow.CauseGuard, Lost: 1, LostKnown: true})
}

// run is a reader of a fake source, in a bubble of testing/synctest.
type run struct {
	*Reader
	source *fakeSource
	start  time.Time
	stop   func() // tells it to stop, and waits until it has
	cancel func()
	ended  chan error

	emitted []emitted
	hold    func() // called by emit
}

// emitted is a batch: when it came, and its records, by id or cause.
type emitted struct {
	After time.Duration
	Recs  []string
	Since time.Duration
}

func start(t *testing.T, s *fakeSource, o Options, room int) *run {
	r := &run{Reader: New(s, o), source: s, start: time.Now(), ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() { r.ended <- r.Run(ctx, flow.NewBatch(room, nil), r.take) }()
	r.stop = func() {
		t.Helper()
		cancel()
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
	}
	return r
}

func (r *run) take(b *flow.Batch) *flow.Batch {
	e := emitted{After: time.Since(r.start), Since: time.Duration(b.Since - r.start.UnixNano())}
	for i := range b.Records {
		switch rec := &b.Records[i]; rec.Event {
		case flow.EventGap:
			e.Recs = append(e.Recs, rec.Extra.Gap.Cause.String())
		case flow.EventOpen:
			e.Recs = append(e.Recs, fmt.Sprint("open ", rec.ID))
		case flow.EventCheckpoint:
			e.Recs = append(e.Recs, rec.Extra.Note.Text)
		default:
			e.Recs = append(e.Recs, fmt.Sprint(rec.ID))
		}
	}
	r.emitted = append(r.emitted, e)
	if r.hold != nil {
		r.hold()
	}
	b.Reset()
	return b
}

// records returns all that was emitted, in order.
func (r *run) records() (recs []string) {
	synctest.Wait()
	for _, e := range r.emitted {
		recs = append(recs, e.Recs...)
	}
	return recs
}

func ids(from, to int) (s []string) {
	for i := from; i < to; i++ {
		s = append(s, fmt.Sprint(i))
	}
	return s
}

// A batch leaves when it is full, or when its first record is 50 ms old.
func TestBatchAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFake(), Options{}, 4)
		time.Sleep(time.Second)
		r.source.send(0, 1)
		time.Sleep(30 * time.Millisecond)
		r.source.send(1, 1)
		time.Sleep(time.Second)
		r.source.send(2, 9)
		time.Sleep(time.Second)
		synctest.Wait()
		if len(r.emitted) != 4 {
			t.Fatalf("batches: %v", r.emitted)
		}
		for i, want := range []struct {
			recs []string
			at   time.Duration // of its first record
			age  time.Duration
		}{
			{ids(0, 2), time.Second, batchAge},
			{ids(2, 6), 2030 * time.Millisecond, 0}, {ids(6, 10), 2030 * time.Millisecond, 0},
			{ids(10, 11), 2030 * time.Millisecond, batchAge},
		} {
			e := r.emitted[i]
			if age := e.After - want.at; age < want.age || age > want.age+maxNap || !slices.Equal(e.Recs, want.recs) {
				t.Errorf("batch %d: %v after %v, want %v after %v", i, e.Recs, age, want.recs, want.age)
			}
		}
		r.stop()
	})
}

// The reader naps between reads, the shorter the more comes, and waits when nothing does.
func TestNaps(t *testing.T) {
	for _, tt := range []struct {
		name     string
		perMS    int
		min, max uint64 // naps in 200 ms
	}{
		{"few", 10, 48, 60},
		{"as many as are meant to come in a nap", 100, 48, 200},
		{"many", 500, 180, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, newFake(), Options{}, 256)
				var before uint64
				for i := range 400 {
					if i == 200 {
						before = r.Stats.Naps.Load()
					}
					r.source.send(i*tt.perMS, tt.perMS)
					time.Sleep(time.Millisecond)
				}
				if naps := r.Stats.Naps.Load() - before; naps < tt.min || naps > tt.max {
					t.Errorf("%d naps in 200 ms, want %d to %d", naps, tt.min, tt.max)
				}
				r.stop()
				if got := len(r.records()) - 1; got != 400*tt.perMS {
					t.Errorf("%d records, want %d", got, 400*tt.perMS)
				}
			})
		})
	}
}

// An idle reader looks around once a second, and sooner if its source has something to do.
func TestIdle(t *testing.T) {
	for _, due := range []time.Duration{time.Hour, 250 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			s := newFake()
			s.due = due
			alive := 0
			r := start(t, s, Options{Alive: func() { alive++ }}, 256)
			time.Sleep(100*time.Second + 1)
			r.stop()
			if want := int(100 * time.Second / min(due, idleEvery)); s.waits < want || s.waits > want+2 {
				t.Errorf("%d waits in 100 s, want %d", s.waits, want)
			}
			if alive < 100 || alive > 201 {
				t.Errorf("it showed %d times that it is alive", alive)
			}
			if busy := time.Duration(r.Reader.Stats.Busy.Load()); busy != 0 {
				t.Errorf("it was busy for %v", busy)
			}
		})
	}
}

// What Turn puts lies between the events; a gap's times are in order, whatever the clock did.
func TestSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake()
		turns := 0
		s.turn = func(now time.Time, sink Sink) bool {
			if turns++; turns == 2 {
				sink.Gap(now.Add(time.Minute), now, flow.Gap{Cause: flow.CauseOverrun, Lost: 7, LostKnown: true})
				sink.Gap(now.Add(-time.Hour), time.Time{}, flow.Gap{Cause: flow.CauseUntracked})
				sink.Put(&flow.Record{Event: flow.EventOpen, ID: 5, Extra: &flow.Extra{Helper: flow.NameFrom("ftp")}})
			}
			return turns < 10
		}
		var recs []flow.Record
		r := New(s, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		s.send(0, 1)
		go func() {
			ended <- r.Run(ctx, flow.NewBatch(2, nil), func(b *flow.Batch) *flow.Batch {
				for _, rec := range b.Records {
					if rec.Extra != nil {
						x := *rec.Extra
						rec.Extra = &x
					}
					if rec.Event == flow.EventGap && rec.Start < b.Since {
						t.Errorf("a gap begins %v before all that the batch tells of", time.Duration(b.Since-rec.Start))
					}
					recs = append(recs, rec)
				}
				b.Reset()
				return b
			})
		}()
		time.Sleep(time.Millisecond / 2)
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if turns < 10 || s.fills < 10 {
			t.Errorf("%d turns, %d reads: the reader has slept although its source was busy", turns, s.fills)
		}
		var got []string
		for _, rec := range recs {
			got = append(got, rec.Event.String())
		}
		if diff := cmp.Diff([]string{"destroy", "gap", "gap", "open", "gap"}, got); diff != "" {
			t.Fatalf("records (-want +got):\n%s", diff)
		}
		if g := recs[1]; g.Stop-g.Start != int64(time.Minute) || g.Extra.Gap.Lost != 7 {
			t.Errorf("gap from %d to %d, %+v", g.Start, g.Stop, g.Extra.Gap)
		}
		if g := recs[2]; g.Start == 0 || g.Stop != 0 {
			t.Errorf("a gap without an end is from %d to %d", g.Start, g.Stop)
		}
		if o := recs[3]; o.ID != 5 || o.Extra == nil || o.Extra.Helper.String() != "ftp" {
			t.Errorf("open record: %+v", o)
		}
		if n := r.Stats.Gaps[flow.CauseOverrun].Lost.Load(); n != 7 {
			t.Errorf("%d lost are counted, want 7", n)
		}
	})
}

// Batch.Since is a time before which no flow ended that is in the batch or comes later, and ReadUntil follows it.
func TestReadUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFake(), Options{}, 256)
		began := r.start
		for i := range 100 {
			sent := time.Now()
			r.source.send(i, 1)
			time.Sleep(20 * time.Millisecond)
			if until := r.ReadUntil(); until.After(sent) && !slices.Contains(r.records(), fmt.Sprint(i)) {
				t.Fatalf("event %d of %v is not handed over, and all before %v are said to be", i, sent.Sub(began), until.Sub(began))
			}
		}
		time.Sleep(3 * time.Second)
		if lag := time.Since(r.ReadUntil()); lag > idleEvery {
			t.Errorf("an idle reader lags by %v", lag)
		}
		r.stop()
		for i, e := range r.emitted[:len(r.emitted)-1] {
			var first int
			fmt.Sscan(e.Recs[0], &first)
			if sent := time.Duration(first) * 20 * time.Millisecond; e.Since > sent {
				t.Errorf("batch %d has a record of %v, and says that none is older than %v", i, sent, e.Since)
			}
		}
	})
}

// At the end the reader takes what waits, then what the sender still holds back, and leaves; what comes until then is read.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake()
		r := start(t, s, Options{}, 256)
		time.Sleep(time.Second)
		until := time.Now().Add(time.Second)
		synctest.Wait()
		s.withheld = func(now time.Time) bool { return now.Before(until) }
		r.cancel()
		s.send(0, 1000)
		time.Sleep(500 * time.Millisecond)
		s.send(1000, 1000)
		if err := <-r.ended; err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(append(ids(0, 2000), "guard"), r.records()); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
		if took := time.Since(until); took < 0 || took > maxNap {
			t.Errorf("it ended %v after nothing was held back any more", took)
		}
		if !slices.Equal(s.calls, []string{"leave", "finish"}) {
			t.Errorf("calls: %v", s.calls)
		}
		if !r.ReadUntil().Equal(s.caught) {
			t.Errorf("read until %v, want %v", r.ReadUntil(), s.caught)
		}
	})
}

// What is held back for longer than the reader can wait is in a gap.
func TestDrainGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake()
		s.withheld = func(time.Time) bool { return true }
		r := start(t, s, Options{}, 256)
		time.Sleep(time.Second)
		began := time.Now()
		r.stop()
		if took := time.Since(began); took < drainFor || took > drainFor+maxNap {
			t.Errorf("it took %v", took)
		}
		if got := r.records(); !slices.Equal(got, []string{"downtime", "guard"}) {
			t.Errorf("records: %v", got)
		}
	})
}

// A successor reads what comes after Leave, and what is held back: that is no gap, and the mark is not past it. What the
// source has at hand is not left to the successor.
func TestDrainForSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake()
		s.handover = true
		r := start(t, s, Options{}, 256)
		time.Sleep(time.Second)
		began := time.Now()
		synctest.Wait()
		s.withheld = func(time.Time) bool { return true }
		s.send(0, 10)
		r.cancel()
		time.Sleep(drainFor - time.Millisecond)
		s.atHand = 4
		s.send(10, 1000)
		if err := <-r.ended; err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(append(ids(0, 14), "guard"), r.records()); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
		if r.ReadUntil().After(began) {
			t.Errorf("all is said to be read that ended until %v after something was held back", r.ReadUntil().Sub(began))
		}
	})
}

// What was requested is finished before the reader stops, unless that takes too long.
func TestFinishRequests(t *testing.T) {
	for _, tt := range []struct{ takes, within, want time.Duration }{
		{3 * time.Second, 0, 3 * time.Second},
		{time.Hour, 2 * time.Second, 2 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newFake()
			o := Options{}
			if tt.within > 0 {
				o.FinishUntil = func() time.Time { return time.Now().Add(tt.within) }
			}
			r := start(t, s, o, 256)
			time.Sleep(time.Second)
			began := time.Now()
			synctest.Wait()
			s.requested = func() bool { return time.Since(began) < tt.takes }
			s.send(0, 5)
			r.stop()
			if took := time.Since(began); took < tt.want || took > tt.want+maxNap {
				t.Errorf("it ended after %v, want %v", took, tt.want)
			}
			if diff := cmp.Diff(append(ids(0, 5), "guard"), r.records()); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

// A reader that waits stops at once, and one whose source fails says so.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFake(), Options{}, 256)
		time.Sleep(500 * time.Millisecond)
		began := time.Now()
		r.stop()
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := newFake()
		s.err = errors.New("the socket is gone")
		r := start(t, s, Options{}, 256)
		defer r.cancel()
		if err := <-r.ended; err != s.err {
			t.Errorf("error %v, want %v", err, s.err)
		}
	})
}

// Do runs between two batches: behind what was read before, and before all that is read later.
func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake()
		r := start(t, s, Options{}, 256)
		time.Sleep(time.Second)
		s.send(0, 10)
		synctest.Wait()
		want := errors.New("no")
		err := r.Do(t.Context(), func() error {
			if diff := cmp.Diff(ids(0, 10), r.records()); diff != "" {
				t.Errorf("records before it (-want +got):\n%s", diff)
			}
			return want
		})
		if err != want {
			t.Errorf("error %v, want %v", err, want)
		}
		s.send(10, 10)
		r.stop()
		if diff := cmp.Diff(append(ids(0, 20), "guard"), r.records()); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
	})
}

// Tell hands a record over within a second and the age of a batch, in its order, and waits for nobody: not for a reader
// that is not there.
func TestTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake()
		r := start(t, s, Options{}, 256)
		time.Sleep(time.Second)
		if !r.Tell(&flow.Record{Event: flow.EventCheckpoint, Received: 1, Extra: &flow.Extra{Note: &flow.Note{Text: "note"}}}) {
			t.Error("it is not taken")
		}
		time.Sleep(idleEvery + batchAge)
		if diff := cmp.Diff([]string{"note"}, r.records()); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
		r.stop()
	})
	// Nor is one lost that comes after the last round, while what the sender holds back is waited for.
	synctest.Test(t, func(t *testing.T) {
		s := newFake()
		r := start(t, s, Options{}, 256)
		time.Sleep(time.Second)
		until := time.Now().Add(time.Second)
		synctest.Wait()
		s.withheld = func(now time.Time) bool { return now.Before(until) }
		r.cancel()
		time.Sleep(500 * time.Millisecond)
		if !r.Tell(&flow.Record{Event: flow.EventCheckpoint, Received: 1, Extra: &flow.Extra{Note: &flow.Note{Text: "late note"}}}) {
			t.Error("it is not taken")
		}
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"late note", "guard"}, r.records()); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
	})
	r, told := New(newFake(), Options{}), 0
	for r.Tell(&flow.Record{}) {
		told++
	}
	if told != tellRoom {
		t.Errorf("%d records are taken while nobody reads, want %d", told, tellRoom)
	}
}

// A call that the reader has not come to when the caller gives up is not made any more: what it needs may be closed.
func TestDoTakenBack(t *testing.T) {
	r := New(newFake(), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if err := r.Do(ctx, func() error { t.Error("the call was made"); return nil }); err == nil {
			t.Fatal("no error")
		}
		r.answer()
	}
}

// A batch of outputs that are slow does not lengthen a nap, and a burst is read without one.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake()
		r := start(t, s, Options{}, 256)
		time.Sleep(time.Second)
		began := time.Now()
		s.send(0, 25_600)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if len(r.emitted) != 100 {
			t.Errorf("%d batches without a nap, want 100", len(r.emitted))
		}
		if took := time.Since(began); took > time.Millisecond {
			t.Errorf("it took %v", took)
		}
		r.stop()
	})
}

// A round costs no garbage.
func TestRoundAllocs(t *testing.T) {
	s := newFake()
	r := New(s, Options{})
	r.batch, r.emit = flow.NewBatch(256, nil), func(b *flow.Batch) *flow.Batch { b.Reset(); return b }
	ids := make([]uint32, 64)
	if n := testing.AllocsPerRun(1000, func() {
		s.waiting = ids
		if _, _, err := r.round(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a round, want 0", n)
	}
	if s.fills < 1000 {
		t.Errorf("%d reads", s.fills)
	}
}
