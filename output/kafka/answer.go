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
	named := p.named()
	switch class := failed.Class; {
	case class.final() && len(named) > 0:
		w.reject(p, named, recs, failed)
		w.Stats.Retries.Add(uint64(len(batch) - len(named)))
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
	case class == ClassTimestamp && w.restamp(named, batch):
	default:
		p.err = failed
	}
	w.Stats.Retries.Add(uint64(len(batch)))
}

// named returns the records of p's batch that the broker's answer names, or all of it if that is a single one.
func (p *partition) named() []int32 {
	batch := p.pending()[:p.sent]
	if len(batch) == 1 {
		return slices.Clone(batch)
	}
	var named []int32
	for _, e := range p.answer.RecordErrors {
		if i := int(e.BatchIndex); i >= 0 && i < len(batch) && !slices.Contains(named, batch[i]) {
			named = append(named, batch[i])
		}
	}
	return named
}

// restamp changes how the named records are stamped, or all of the batch if none is named, and reports whether
// there was anything left to change.
func (w *Writer) restamp(named, batch []int32) bool {
	if len(named) == 0 {
		named = batch
	}
	changed := false
	for _, i := range named {
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
