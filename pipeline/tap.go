package pipeline

import (
	"slices"
	"sync/atomic"

	"github.com/ctlogd/ctlogd/flow"
)

// A Tap sees the batches that pass the stages, as the outputs get them. It is for those who look on: it never holds up
// the reader, and what it has no room for it misses. While nobody taps, it costs one atomic load a batch.
type Tap struct {
	seen   chan seen
	missed atomic.Uint64 // records, since the last batch that found room
}

type seen struct {
	batch  *flow.Batch
	missed uint64
}

// Tap returns a new tap with room for some batches. Untap ends it.
func (p *Pipeline) Tap(batches int) *Tap {
	t := &Tap{seen: make(chan seen, batches)}
	p.changeTaps(func(taps []*Tap) []*Tap { return append(taps, t) })
	return t
}

// Untap ends t: nothing more comes. A batch that was just being offered may stay in it, and is then garbage.
func (p *Pipeline) Untap(t *Tap) {
	p.changeTaps(func(taps []*Tap) []*Tap { return slices.DeleteFunc(taps, func(o *Tap) bool { return o == t }) })
	for {
		select {
		case s := <-t.seen:
			s.batch.Done()
		default:
			return
		}
	}
}

// changeTaps puts a changed copy in the place of the list, which the reader may be walking.
func (p *Pipeline) changeTaps(change func([]*Tap) []*Tap) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var taps []*Tap
	if old := p.taps.Load(); old != nil {
		taps = slices.Clone(*old)
	}
	if taps = change(taps); len(taps) == 0 {
		p.taps.Store(nil)
		return
	}
	p.taps.Store(&taps)
}

// Taps returns how many taps there are.
func (p *Pipeline) Taps() int {
	taps := p.taps.Load()
	if taps == nil {
		return 0
	}
	return len(*taps)
}

// offer shows b to the tap. The reader's goroutine calls it.
func (t *Tap) offer(b *flow.Batch) {
	b.Hold(1)
	s := seen{b, t.missed.Swap(0)}
	select {
	case t.seen <- s:
	default:
		b.Done()
		t.missed.Add(s.missed + uint64(len(b.Records)))
	}
}

// Next waits for the next batch, or, when all are taken, for done. The batch is read-only, and the caller's until it
// calls Done; missed is how many records before it found no room.
func (t *Tap) Next(done <-chan struct{}) (b *flow.Batch, missed uint64, ok bool) {
	if len(t.seen) > 0 {
		done = nil
	}
	select {
	case s := <-t.seen:
		return s.batch, s.missed, true
	case <-done:
		return nil, 0, false
	}
}

// More is Next without the wait. Without a batch, missed is how many records have found no room so far; Next does not count
// them again.
func (t *Tap) More() (b *flow.Batch, missed uint64, ok bool) {
	select {
	case s := <-t.seen:
		return s.batch, s.missed, true
	default:
		return nil, t.missed.Swap(0), false
	}
}
