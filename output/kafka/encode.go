package kafka

import "github.com/ctlogd/ctlogd/flow"

// encode makes the batch of p's next records.
func (w *Writer) encode(p *partition, recs []*flow.Record, now int64) {
	w.batch.reset()
	p.sent = 0
	for _, i := range p.pending() {
		if p.sent == p.max {
			break
		}
		r := recs[i]
		ms, clamped := timestamp(r, w.state[i], now)
		w.batch.open(ms, w.keyOf(i))
		w.batch.records = w.opt.Encoder.Append(w.batch.records, r)
		if !w.batch.close(w.headers, w.limit) {
			break
		}
		if clamped {
			w.Stats.Clamped.Add(1)
		}
		p.sent++
	}
	p.raw = len(w.batch.records)
	p.buf = w.batch.encode(p.buf, w.codecID, w.codec)
}

// timestamp returns the message's timestamp in ms: when the flow ended or the event was, but never ahead of the clock:
// brokers refuse what is too far ahead. clamped says that this is another time than the record's, for the first time.
func timestamp(r *flow.Record, state byte, now int64) (ms int64, clamped bool) {
	switch {
	case state&stampNone != 0:
		return -1, false
	case state&stampNow != 0:
		return now, false
	}
	ns, _ := r.Time()
	if ms = ns / 1e6; ms > now {
		return now, true
	}
	return ms, false
}
