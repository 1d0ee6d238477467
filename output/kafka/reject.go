package kafka

import (
	"encoding/json"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

// refusalsEvery is how often refused records are logged at most; every one is counted.
const refusalsEvery = 10 * time.Second

// refusals is what becomes of the records that the broker refuses for good.
type refusals struct {
	letters deadLetters
	last    *Error    // why the last one was refused
	logged  time.Time // when that was logged
}

// reject gives the named records up: they go to the dead-letter file, and the rest of the partition's can be sent.
func (w *Writer) reject(p *partition, named []int32, recs []*flow.Record, reason *Error) {
	letters := make([]deadLetter, 0, len(named))
	now := time.Now().UTC()
	for _, i := range named {
		w.state[i] |= refused
		if w.refusals.letters.path == "" {
			continue
		}
		l := deadLetter{Time: now, Topic: w.cfg.Topic, Error: reason.Err.Error(), Key: string(w.keyOf(i))}
		if value := w.opt.Encoder.Append(nil, recs[i]); json.Valid(value) {
			l.Value = value
		} else {
			l.Bytes = value
		}
		letters = append(letters, l)
	}
	rest := slices.DeleteFunc(p.pending(), func(i int32) bool { return w.state[i]&refused != 0 })
	p.idx, p.max = p.idx[:p.next+len(rest)], 1<<30
	w.refusals.last = reason

	n, err := w.refusals.letters.append(letters)
	w.Stats.Rejected.Add(uint64(len(named)))
	w.Stats.DeadLetters.Add(uint64(n))
	if now.Sub(w.refusals.logged) >= refusalsEvery {
		w.refusals.logged = now
		w.log.Error("records can never be delivered", zap.Error(reason),
			zap.Uint64("records_so_far", w.Stats.Rejected.Load()),
			zap.Uint64("dead_letters_so_far", w.Stats.DeadLetters.Load()), zap.NamedError("dead_letter_error", err))
	}
}
