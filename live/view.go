package live

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ctlogd/ctlogd/monitor"
)

const (
	// The history that charts show: a point every pointTime, for five minutes.
	pointTime = 2 * time.Second
	points    = 150

	// ratesOver is what the rates are means over.
	ratesOver = 10 * time.Second
)

// View is all that status, top and the page show.
type View struct {
	monitor.Snapshot
	Rates   Rates    `json:"rates"`
	History []Point  `json:"history,omitempty"` // oldest first
	Talkers *Talkers `json:"talkers,omitempty"`
}

// Rates are means over the last ten seconds, each a second.
type Rates struct {
	Events float64 `json:"events"` // read from the kernel
	Lost   float64 `json:"lost"`   // records put on record as lost
	Busy   float64 `json:"busy"`   // the reader's utilisation, 0 to 1

	Outputs map[string]float64 `json:"outputs"` // records written, by the output's name
}

// Point is one moment of the last minutes. Rates are since the point before.
type Point struct {
	Time    time.Time     `json:"time"`
	Events  float64       `json:"events"`  // a second
	Lost    float64       `json:"lost"`    // records a second
	Table   float64       `json:"table"`   // 0 to 1, how full
	Outputs []OutputPoint `json:"outputs"` // in the order of the snapshot
}

// OutputPoint is one output at one moment.
type OutputPoint struct {
	Name    string  `json:"name"`
	Written float64 `json:"written"` // records a second
	Queue   float64 `json:"queue"`   // 0 to 1, how full
	Age     float64 `json:"age"`     // seconds that the oldest record has waited
	Failing bool    `json:"failing"`
}

// sample is what a point and the rates are made of.
type sample struct {
	time         time.Time
	events, lost uint64
	busy         float64
	written      map[string]uint64
}

func sampleOf(s *monitor.Snapshot) sample {
	p := sample{time: s.Time, lost: s.Lost(), busy: s.Reader.Busy, written: map[string]uint64{}}
	for _, n := range s.Reader.Events {
		p.events += n
	}
	for _, o := range s.Outputs {
		p.written[o.Name] = o.Written
	}
	return p
}

// since returns the rates between two samples.
func (p *sample) since(q *sample) Rates {
	r := Rates{Outputs: map[string]float64{}}
	seconds := p.time.Sub(q.time).Seconds()
	if seconds <= 0 {
		return r
	}
	// A reload may take an output away, and what it has lost with it.
	per := func(now, then uint64) float64 { return float64(now-min(then, now)) / seconds }
	r.Events, r.Lost, r.Busy = per(p.events, q.events), per(p.lost, q.lost), min((p.busy-q.busy)/seconds, 1)
	for name, n := range p.written {
		r.Outputs[name] = per(n, q.written[name])
	}
	return r
}

// history remembers the last minutes.
type history struct {
	snapshot func() monitor.Snapshot

	mu      sync.Mutex
	samples []sample // of ratesOver
	points  []Point
}

// run samples until ctx ends.
func (h *history) run(ctx context.Context) {
	tick := time.NewTicker(pointTime)
	defer tick.Stop()
	for {
		h.add(h.snapshot())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *history) add(s monitor.Snapshot) {
	next := sampleOf(&s)
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.samples); n > 0 {
		rates := next.since(&h.samples[n-1])
		p := Point{Time: s.Time, Events: rates.Events, Lost: rates.Lost, Table: fill(float64(s.Kernel.Entries), float64(s.Kernel.Limit))}
		for _, o := range s.Outputs {
			p.Outputs = append(p.Outputs, OutputPoint{o.Name, rates.Outputs[o.Name], fill(float64(o.Used), float64(o.Max)),
				o.OldestAge, o.Failing})
		}
		if len(h.points) == points {
			h.points = slices.Delete(h.points, 0, 1)
		}
		h.points = append(h.points, p)
	}
	h.samples = append(h.samples, next)
	if over := len(h.samples) - int(ratesOver/pointTime) - 1; over > 0 {
		h.samples = slices.Delete(h.samples, 0, over)
	}
}

func fill(n, of float64) float64 {
	if of == 0 {
		return 0
	}
	return min(n/of, 1)
}

// view returns how things are, with rates; the rest is the caller's to add.
func (h *history) view() View {
	s := h.snapshot()
	now := sampleOf(&s)
	h.mu.Lock()
	defer h.mu.Unlock()
	v := View{Snapshot: s, Rates: Rates{Outputs: map[string]float64{}}}
	if len(h.samples) > 0 {
		v.Rates = now.since(&h.samples[0])
	}
	return v
}

// past returns the points of the last minutes.
func (h *history) past() []Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.points)
}
