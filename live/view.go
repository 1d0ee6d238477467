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

	// ratesOver is what the rates are means over, lagOver what lags are judged by.
	ratesOver = 10 * time.Second
	lagOver   = time.Minute
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
	Events   float64 `json:"events"`   // messages read from the kernel
	Filtered float64 `json:"filtered"` // records of them that the filter for all outputs dropped, or that are of own flows
	Lost     float64 `json:"lost"`     // records put on record as lost
	Busy     float64 `json:"busy"`     // the reader's utilisation, 0 to 1

	Outputs         map[string]float64 `json:"outputs"`          // records written, by the output's name
	OutputsFiltered map[string]float64 `json:"outputs_filtered"` // records that the output's own filter dropped

	// LagP99 is, in seconds and by the output's name, how long after their flow's end 99 of 100 records were written that
	// were in the last minute. An output that has written none has none.
	LagP99 map[string]float64 `json:"lag_p99"`
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
	time                   time.Time
	events, filtered, lost uint64
	busy                   float64
	outputs                map[string]outputSample
}

type outputSample struct {
	written, filtered uint64
	lag               monitor.Histogram
}

func sampleOf(s *monitor.Snapshot) sample {
	p := sample{time: s.Time, filtered: s.Filtered + s.OwnFlows, lost: s.Lost(), busy: s.Reader.Busy, outputs: map[string]outputSample{}}
	for _, n := range s.Reader.Events {
		p.events += n
	}
	for _, o := range s.Outputs {
		p.outputs[o.Name] = outputSample{o.Written, o.Filtered, o.Lag}
	}
	return p
}

// since returns the rates between two samples.
func (p *sample) since(q *sample) Rates {
	r := newRates()
	seconds := p.time.Sub(q.time).Seconds()
	if seconds <= 0 {
		return r
	}
	// A reload may take an output away, and what it has lost with it.
	per := func(now, then uint64) float64 { return float64(now-min(then, now)) / seconds }
	r.Events, r.Filtered, r.Lost = per(p.events, q.events), per(p.filtered, q.filtered), per(p.lost, q.lost)
	r.Busy = min((p.busy-q.busy)/seconds, 1)
	for name, o := range p.outputs {
		r.Outputs[name], r.OutputsFiltered[name] = per(o.written, q.outputs[name].written), per(o.filtered, q.outputs[name].filtered)
	}
	return r
}

func newRates() Rates {
	return Rates{Outputs: map[string]float64{}, OutputsFiltered: map[string]float64{}, LagP99: map[string]float64{}}
}

// lagsSince puts the lags of what was written between two samples into r.
func (p *sample) lagsSince(q *sample, r *Rates) {
	for name, o := range p.outputs {
		then := q.outputs[name].lag
		if lag := o.lag.Since(&then); lag.Count() > 0 {
			r.LagP99[name] = lag.Quantile(0.99)
		}
	}
}

// history remembers the last minutes.
type history struct {
	snapshot func() monitor.Snapshot

	mu      sync.Mutex
	samples []sample // of lagOver
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
	if over := len(h.samples) - int(lagOver/pointTime) - 1; over > 0 {
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
	v := View{Snapshot: s, Rates: newRates()}
	if n := len(h.samples); n > 0 {
		v.Rates = now.since(&h.samples[max(n-1-int(ratesOver/pointTime), 0)])
		now.lagsSince(&h.samples[0], &v.Rates)
	}
	return v
}

// past returns the points of the last minutes.
func (h *history) past() []Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.points)
}
