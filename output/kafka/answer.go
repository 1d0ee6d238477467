package kafka

import (
	"fmt"
	"slices"

	kafka "github.com/segmentio/kafka-go"
	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

// answered settles the records of p's batch, or says in p.err why they are not, or changes what is sent next.
func (w *Writer) answered(p *partition, recs []*flow.Record) {
	batch := p.pending()[:p.sent]
	err := p.err
	if code := kafka.Error(p.answer.ErrorCode); err == nil && code != 0 {
		err = code
		if msg := p.answer.ErrorMessage; msg != "" {
			err = fmt.Errorf("%w (%s)", code, msg)
		}
	}
	if err == nil {
		for _, i := range batch {
			w.state[i] |= delivered
		}
		w.Stats.Records.Add(uint64(len(batch)))
		w.Stats.Bytes.Add(uint64(len(p.buf)))
		p.next, p.max = p.next+p.sent, 1<<30
		w.limit = min(w.limit+w.limit/64, int(w.cfg.BatchBytes))
		return
	}

	failed := w.fail(int(p.id), err)
	accused := p.accused()
	switch class := failed.Class; {
	case class.final() && len(accused) > 0:
		w.reject(p, accused, recs, failed)
		w.Stats.Retries.Add(uint64(len(batch) - len(accused)))
		return
	case class.final():
		// It is one of them, or all together are too many: halves will tell.
		p.max = len(batch) / 2
		if class == ClassTooLarge && w.limit > p.raw/2 {
			if w.limit == int(w.cfg.BatchBytes) {
				w.log.Warn("the topic does not accept batches of this size; sending smaller ones", zap.Error(failed),
					zap.Stringer("batch_bytes", w.cfg.BatchBytes))
			}
			w.limit = max(p.raw/2, minBatchBytes)
		}
	case class == ClassTimestamp && w.restamp(accused, batch):
	default:
		p.err = failed
	}
	w.Stats.Retries.Add(uint64(len(batch)))
}

// accused returns the records of p's batch that the broker's answer names, or all of it if that is a single one.
func (p *partition) accused() []int32 {
	batch := p.pending()[:p.sent]
	if len(batch) == 1 {
		return slices.Clone(batch)
	}
	var accused []int32
	for _, e := range p.answer.RecordErrors {
		if i := int(e.BatchIndex); i >= 0 && i < len(batch) && !slices.Contains(accused, batch[i]) {
			accused = append(accused, batch[i])
		}
	}
	return accused
}

// restamp changes how the accused records are stamped, or all of the batch if none is accused, and reports whether
// there was anything left to change.
func (w *Writer) restamp(accused, batch []int32) bool {
	if len(accused) == 0 {
		accused = batch
	}
	changed := false
	for _, i := range accused {
		switch {
		case w.state[i]&stampNow == 0:
			w.state[i] |= stampNow
			w.Stats.Clamped.Add(1)
			changed = true
		case w.state[i]&stampNone == 0:
			w.state[i] |= stampNone
			changed = true
		}
	}
	return changed
}
