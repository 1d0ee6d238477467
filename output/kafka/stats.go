package kafka

import "sync/atomic"

// Stats count since the Writer was made. They may be read at any time.
type Stats struct {
	Records     atomic.Uint64             // acknowledged
	Bytes       atomic.Uint64             // of the batches acknowledged, as sent
	Retries     atomic.Uint64             // records that failed and are sent again, each time: duplicates are among these
	Clamped     atomic.Uint64             // timestamps ahead of the clock, or refused by the broker, that were replaced
	Rejected    atomic.Uint64             // records that no broker will ever take
	DeadLetters atomic.Uint64             // those of them that are in the dead-letter file
	Errors      [NumClasses]atomic.Uint64 // by Class: batches that failed, and attempts that got no further
}

func (s *Stats) emit(emit func(name, label string, n uint64)) {
	emit("bytes", "", s.Bytes.Load())
	emit("resent_records", "", s.Retries.Load())
	emit("clamped_timestamps", "", s.Clamped.Load())
	emit("dead_letters", "", s.DeadLetters.Load())
	for class := range s.Errors {
		emit("class_errors", ClassNames[class], s.Errors[class].Load())
	}
}
