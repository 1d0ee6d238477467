package deliver

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/spool"
)

// fate is what has become of the records of a queue, whatever outputs it had: they share it.
type fate struct {
	mu   sync.Mutex
	seen map[uint32]bool
	gaps map[told]bool
}

// told is a gap record: one that comes twice is one.
type told struct {
	Gap
	at int64
}

func (f *fate) arrive(recs []*flow.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range recs {
		if r.Event == flow.EventGap {
			f.gaps[told{Gap{r.Extra.Gap, r.Start, r.Stop}, r.Received}] = true
		} else {
			f.seen[r.ID] = true
		}
	}
}

// has reports whether a record was delivered already.
func (f *fate) has(r *flow.Record) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[r.ID]
}

// whims is an output that does whatever an output may do, and keeps what it got for good.
type whims struct {
	*fate
	random *rand.Rand
	down   bool          // for good
	hangs  chan struct{} // what hangs for good, hangs until it is closed; nil: nothing hangs
}

func (*whims) Name() string { return "stub" }

func (*whims) Close(context.Context) error { return nil }

func (w *whims) Write(_ context.Context, recs []*flow.Record) (n int, err error) {
	n, err = w.decide(recs)
	w.arrive(recs[:n])
	return n, err
}

func (w *whims) decide(recs []*flow.Record) (n int, err error) {
	n = len(recs)
	if w.down {
		return 0, errors.New("down")
	}
	switch w.random.IntN(8) {
	case 0:
		w.down = w.random.IntN(20) == 0
		return w.random.IntN(n), errors.New("down")
	case 1:
		k := 1 + w.random.IntN(3)
		if head := recs[:min(k, n)]; hasGap(head) || slices.ContainsFunc(head, w.has) {
			return 0, errors.New("down") // a gap that is refused is told nowhere, and what came twice is there
		}
		if w.hangs != nil && w.random.IntN(2) == 0 {
			time.Sleep(time.Duration(w.random.IntN(8000)) * time.Millisecond)
		}
		return 0, refusal{k}
	case 2:
		longest := 4 * time.Second
		if w.hangs == nil {
			longest = giveUp // what takes longer at the end is given up
		}
		time.Sleep(time.Duration(w.random.Int64N(int64(longest))))
	case 3:
		if w.hangs == nil || hasGap(recs) {
			break // what hangs may come twice, and a gap that comes twice may be a part of another by then
		}
		if w.random.IntN(10) > 0 {
			time.Sleep(time.Duration(w.random.IntN(20_000)) * time.Millisecond)
			break
		}
		<-w.hangs // and in the end it has written nothing
		return 0, errors.New("too late")
	}
	return n, nil
}

func hasGap(recs []*flow.Record) bool {
	return slices.ContainsFunc(recs, func(r *flow.Record) bool { return r.Event == flow.EventGap })
}

// post is an output whose records arrive some time later, and those that are on their way when it is closed perhaps never.
type post struct {
	whims
	mu     sync.Mutex
	luck   *rand.Rand
	sent   []*flow.Record
	acked  int
	closed bool
}

func (p *post) Write(_ context.Context, recs []*flow.Record) (n int, err error) {
	n, err = p.decide(recs)
	p.mu.Lock()
	defer p.mu.Unlock()
	b := flow.NewBatch(n+1, nil)
	for _, r := range recs[:n] {
		b.Copy(b.Next(), r)
	}
	p.sent = append(p.sent, pointers(nil, b)...)
	return n, err
}

func (p *post) Acknowledged() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.advance(p.luck.IntN(len(p.sent) - p.acked + 1))
	}
	return uint64(p.acked)
}

func (p *post) Close(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed = true; p.luck.IntN(2) == 0 {
		p.advance(len(p.sent) - p.acked)
	}
	return nil
}

// Pace implements Pacer.
func (p *post) Pace() int { return 1000 }

// advance has n more arrive. The lock is held.
func (p *post) advance(n int) {
	p.arrive(p.sent[p.acked : p.acked+n])
	p.acked += n
}

// trial is a run of a queue in which everything is by chance.
type trial struct {
	*fate
	received map[uint32]int64 // by record that the queue's filter lets through
	reported []Gap            // what the reader has lost
}

// try runs a queue with a spool in dir, or without one if that is "". Its outputs are made by build.
func try(t *testing.T, random *rand.Rand, dir string, size int64, build func(*fate) (Output, error)) *trial {
	r := &trial{fate: &fate{seen: map[uint32]bool{}, gaps: map[told]bool{}}, received: map[uint32]int64{}}
	every := 1 + random.Uint32N(3)
	filter := func(r *flow.Record) bool { return r.ID%every == 0 }
	q := New(Config{Name: "stub", Build: func() (Output, error) { return build(r.fate) }, Max: 1 + random.IntN(3000), Log: zap.NewNop(), Filter: filter})
	if dir != "" {
		opened, late := openSpool(t, dir, size), random.IntN(3)
		q.spooler = newSpooler(q, func() (*spool.Spool, error) {
			if late--; late > 0 {
				return nil, errors.New("not yet")
			}
			return opened, nil
		})
	}
	p := start(q)
	next := uint32(0)
	for range 50 + random.IntN(100) {
		b := p.Batch()
		for range 1 + random.IntN(BatchRecords-1) {
			rec := b.Next()
			rec.Event, rec.ID, rec.Received = flow.EventDestroy, next, time.Now().UnixNano()
			if next%every == 0 {
				r.received[next] = rec.Received
			}
			next++
		}
		if random.IntN(20) == 0 && !b.Full() { // what the reader has lost
			rec := b.Next()
			g := Gap{flow.Gap{Cause: flow.CauseOverrun, Lost: 1 + random.Uint64N(1000), LostKnown: true},
				time.Now().Add(-time.Second).UnixNano(), time.Now().UnixNano()}
			rec.Event, rec.Start, rec.Stop, rec.Received, b.Since = flow.EventGap, g.From, g.To, g.To, g.From
			b.Extra(rec).Gap = g.Gap
			r.reported = append(r.reported, g)
		}
		p.Ingest(b)
		time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond)
		switch random.IntN(60) {
		case 0, 1:
			q.Replace(func() (Output, error) { return build(r.fate) })
		case 2:
			every = 1 + random.Uint32N(3)
			q.Adjust(filter, 1+random.IntN(3000))
		}
	}
	if random.IntN(2) == 0 {
		time.Sleep(time.Minute)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(20))*time.Second)
	p.Close(ctx)
	cancel()
	unrecorded := q.Unrecorded()
	if dir != "" { // the next process has the rest
		next := queueOf(&whims{fate: r.fate, random: rand.New(steady{})}, nil, 0, zap.NewNop())
		next.spill(openSpool(t, dir, 0))
		p := start(next)
		time.Sleep(time.Minute)
		p.Close(t.Context())
		unrecorded = append(unrecorded, next.Unrecorded()...)
	}
	for i, g := range unrecorded {
		r.gaps[told{g, int64(i)}] = true
	}
	return r
}

// missing returns the records that were not delivered.
func (r *trial) missing() (ids []uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.received {
		if !r.seen[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// lost returns what the gaps of these outputs say, and how many of them have no number; of causes of the reader, or of the queue.
func (r *trial) lost(reader bool) (lost uint64, unknown int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for g := range r.gaps {
		switch {
		case (g.Cause == flow.CauseOverrun) != reader:
		case g.LostKnown:
			lost += g.Lost
		default:
			unknown++
		}
	}
	return lost, unknown
}

// steady makes whims take everything.
type steady struct{}

func (steady) Uint64() uint64 { return 1<<64 - 1 }

// seeds calls do with one seed after the other until one fails.
func seeds(t *testing.T, n uint64, do func(t *testing.T, seed uint64, dir string)) {
	if os.Getenv("CTLOGD_LONG") == "1" {
		n *= 20
	}
	for seed := range n {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) { do(t, seed, dir) })
		if t.Failed() {
			return
		}
	}
}

// Whatever an output does, each record is delivered or counted as lost, and none is both: the numbers are exact. By chance, and in
// all combinations: Writes that fail in the middle, refuse, take long, hang and return late or never; an output that cannot be
// built, or is replaced by another one meanwhile; a queue without room, down to one record, while the worker has records in hand;
// an output's filter, and a reload that changes it; gaps of the reader among the records; without a spool, or with one that opens
// late, or that fills; and an end that leaves no time.
func TestLossesAreExact(t *testing.T) {
	seeds(t, 60, func(t *testing.T, seed uint64, dir string) {
		random, built, whim := rand.New(rand.NewPCG(seed, 7)), uint64(0), rand.New(rand.NewPCG(seed, 8))
		quit, size := make(chan struct{}), int64(0)
		defer time.Sleep(time.Minute)
		defer close(quit)
		hangs := quit
		switch random.IntN(4) {
		case 0, 1:
			dir = ""
		case 2: // what hangs may come although the spool had no room for it
			size, hangs = 4<<10+random.Int64N(64<<10), nil
		}
		r := try(t, random, dir, size, func(f *fate) (Output, error) {
			if whim.IntN(4) == 0 {
				return nil, errors.New("cannot be built")
			}
			built++
			return &whims{fate: f, random: rand.New(rand.NewPCG(seed, built)), down: whim.IntN(8) == 0, hangs: hangs}, nil
		})
		lost, unknown := r.lost(false)
		reported, _ := r.lost(true)
		before := uint64(lostIn(r.reported))
		if missing := uint64(len(r.missing())); lost != missing || reported != before || unknown > 0 {
			t.Errorf("seed %d, spool %q of %d: %d of %d records are missing, and the gaps say %d, %d of them without a number; the reader has lost %d, and they say %d",
				seed, dir, size, missing, len(r.received), lost, unknown, before, reported)
		}
	})
}

// The same for an output that learns later what has arrived, and is closed or replaced before that: what is missing is counted, or
// a gap without a number has its time.
func TestNothingIsLostInSilence(t *testing.T) {
	seeds(t, 60, func(t *testing.T, seed uint64, dir string) {
		random, built, whim := rand.New(rand.NewPCG(seed, 9)), uint64(0), rand.New(rand.NewPCG(seed, 10))
		if random.IntN(2) == 0 {
			dir = ""
		}
		r := try(t, random, dir, 0, func(f *fate) (Output, error) {
			if whim.IntN(4) == 0 {
				return nil, errors.New("cannot be built")
			}
			built++
			return &post{whims: whims{fate: f, random: rand.New(rand.NewPCG(seed, built)), down: whim.IntN(8) == 0}, luck: rand.New(rand.NewPCG(seed, 1000+built))}, nil
		})
		missing := r.missing()
		lost, unknown := r.lost(false)
		reported, _ := r.lost(true)
		if before := uint64(lostIn(r.reported)); lost > uint64(len(missing)) || unknown == 0 && lost < uint64(len(missing)) || reported > before {
			t.Errorf("seed %d, spool %q: %d of %d records are missing, and the gaps say %d, and %d have no number; the reader has lost %d, and they say %d",
				seed, dir, len(missing), len(r.received), lost, unknown, before, reported)
		}
		within := func(from, to int64, is func(told) bool) (ok bool) {
			for g := range r.gaps {
				ok = ok || is(g) && g.From <= from && to <= g.To
			}
			return ok
		}
		for _, id := range missing {
			at := r.received[id]
			if !within(at, at, func(g told) bool { return g.Cause != flow.CauseOverrun }) {
				t.Fatalf("seed %d, spool %q: record %d, of %v, is missing, and no gap has its time", seed, dir, id, time.Unix(0, at))
			}
		}
		for _, lost := range r.reported {
			if !within(lost.From, lost.To, func(g told) bool { return g.Cause == flow.CauseOverrun || !g.LostKnown }) {
				t.Fatalf("seed %d, spool %q: %+v of the reader is told nowhere", seed, dir, lost)
			}
		}
	})
}
