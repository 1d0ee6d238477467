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
)

// whims is an output that does whatever an output may do, and keeps what it got for good.
type whims struct {
	stub
	random *rand.Rand
	gapsIn map[Gap]bool // a gap that comes twice is one
	seen   map[uint32]bool
	all    *sync.Mutex // guards them
	quit   chan struct{}
}

func (w *whims) Write(ctx context.Context, recs []*flow.Record) (n int, err error) {
	n = len(recs)
	switch w.random.IntN(8) {
	case 0:
		n, err = w.random.IntN(n), errors.New("down")
	case 1:
		k := 1 + w.random.IntN(3)
		if n, err = 0, (refusal{k}); hasGap(recs[:min(k, len(recs))]) || slices.ContainsFunc(recs[:min(k, len(recs))], w.has) {
			err = errors.New("down") // a gap that is refused is told nowhere, and what hung and came twice is there
		}
	case 2:
		time.Sleep(time.Duration(w.random.IntN(4000)) * time.Millisecond)
	case 3:
		if hasGap(recs) {
			break // what hangs may come twice, and a gap that comes twice may be a part of another by then
		}
		if w.random.IntN(10) > 0 {
			time.Sleep(time.Duration(w.random.IntN(20_000)) * time.Millisecond)
			break
		}
		<-w.quit // it hangs for good, and in the end has written nothing
		return 0, errors.New("too late")
	}
	w.all.Lock()
	defer w.all.Unlock()
	for _, r := range recs[:n] {
		if r.Event == flow.EventGap {
			w.gapsIn[Gap{r.Extra.Gap, r.Start, r.Stop}] = true
		}
	}
	for _, r := range recs[:n] {
		if r.Event != flow.EventGap {
			w.seen[r.ID] = true
		}
	}
	return n, err
}

// has reports whether a record was delivered already.
func (w *whims) has(r *flow.Record) bool {
	w.all.Lock()
	defer w.all.Unlock()
	return w.seen[r.ID]
}

func hasGap(recs []*flow.Record) bool {
	return slices.ContainsFunc(recs, func(r *flow.Record) bool { return r.Event == flow.EventGap })
}

// Whatever an output does, each record is delivered or counted as lost, and none is both: the numbers are exact. By chance, and in
// all combinations: Writes that fail in the middle, refuse, take long, hang and return late or never; an output that cannot be
// built, or is replaced by another one meanwhile; a queue without room, down to one record, while the worker has records in hand;
// an output's filter; gaps of the reader among the records; with a spool or without; and an end that leaves no time.
func TestLossesAreExact(t *testing.T) {
	seeds := uint64(60)
	if os.Getenv("CTLOGD_LONG") == "1" {
		seeds = 1000
	}
	for seed := range seeds {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			spools := random.IntN(2) == 0
			quit, gaps, seen := make(chan struct{}), map[Gap]bool{}, map[uint32]bool{}
			all := new(sync.Mutex)
			built, whim := uint64(0), rand.New(rand.NewPCG(seed, 8))
			build := func() (Output, error) {
				if whim.IntN(4) == 0 {
					return nil, errors.New("cannot be built")
				}
				w := &whims{random: rand.New(rand.NewPCG(seed, built)), gapsIn: gaps, seen: seen, all: all, quit: quit}
				built++
				return w, nil
			}
			every := 1 + random.Uint32N(3)
			q := New(Config{Name: "stub", Build: build, Max: 1 + random.IntN(3000), Log: zap.NewNop(),
				Filter: func(r *flow.Record) bool { return r.ID%every == 0 }})
			if spools {
				q.spill(openSpool(t, dir, 0))
			}
			p := start(q)
			next, wanted, reported := uint32(0), 0, uint64(0)
			for range 50 + random.IntN(100) {
				b := p.Batch()
				for range 1 + random.IntN(BatchRecords-1) {
					r := b.Next()
					r.Event, r.ID, r.Received = flow.EventDestroy, next, time.Now().UnixNano()
					if next%every == 0 {
						wanted++
					}
					next++
				}
				if random.IntN(20) == 0 && !b.Full() { // what the reader has lost
					r := b.Next()
					lost := 1 + random.Uint64N(1000)
					r.Event, r.Start, r.Stop, r.Received = flow.EventGap, 1, time.Now().UnixNano(), time.Now().UnixNano()
					b.Extra(r).Gap = flow.Gap{Cause: flow.CauseOverrun, Lost: lost, LostKnown: true}
					reported += lost
				}
				p.Ingest(b)
				time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond)
				if random.IntN(30) == 0 {
					q.Replace(build)
				}
			}
			if random.IntN(2) == 0 {
				time.Sleep(time.Minute)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(20))*time.Second)
			p.Close(ctx)
			cancel()
			unrecorded := q.Unrecorded()
			if spools { // the next process has the rest
				good := &whims{gapsIn: gaps, seen: seen, all: all, random: rand.New(steady{})}
				next := queueOf(good, nil, 0, zap.NewNop())
				next.spill(openSpool(t, dir, 0))
				p := start(next)
				time.Sleep(time.Minute)
				p.Close(t.Context())
				unrecorded = append(unrecorded, next.Unrecorded()...)
			}
			all.Lock()
			lost, unknown := uint64(0), 0
			for g := range gaps {
				lost += g.Lost
			}
			for _, g := range unrecorded {
				lost += g.Lost
				if !g.LostKnown {
					unknown++
				}
			}
			if missing := uint64(wanted - len(seen)); lost != missing+reported || unknown > 0 {
				t.Errorf("seed %d, spool %v: %d of %d records are missing, and %d were before; the gaps say %d, %d of them without a number",
					seed, spools, missing, wanted, reported, lost, unknown)
			}
			all.Unlock()
			close(quit)
			time.Sleep(time.Minute)
		})
		if t.Failed() {
			return
		}
	}
}

// steady makes whims take everything.
type steady struct{}

func (steady) Uint64() uint64 { return 1<<64 - 1 }
