package deliver

import (
	"context"

	"github.com/ctlogd/ctlogd/flow"
)

// Output delivers records to one destination. One goroutine, the output's worker, calls Write and Close; an Output
// needs no locks for them.
type Output interface {
	// Name is stable and unique, "jsonl:/var/log/ctlogd/flows.jsonl"; it stands in logs and is the metrics' label.
	Name() string

	// Write delivers recs in order, gap records among them, and returns how many were delivered: n < len(recs) if
	// and only if err is not nil. The worker tries again with recs[n:], with backoff, until ctx ends; an error that no
	// further try can mend has a method Rejected() int. The records belong to the caller: no reference to them may be kept.
	Write(ctx context.Context, recs []*flow.Record) (n int, err error)

	// Close delivers what Write has buffered, bounded by ctx, and gives everything back. It is called once.
	Close(ctx context.Context) error
}

// Acknowledger is an Output whose Write hands records to a connection, which loses them if the process and the
// destination's host both go before they have arrived. Until then they are not removed from the spool, if they came from
// there, and else the mark does not pass them.
type Acknowledger interface {
	// Acknowledged returns how many of the records that Write has reported as delivered have arrived: the first so many.
	// Any goroutine may call it, after Close as well. It does not wait.
	Acknowledged() uint64
}

// Unsyncer is an Output that leaves it to the kernel when what it has written comes to the disk.
type Unsyncer interface {
	// Unsynced reports whether that is so. Any goroutine may call it.
	Unsynced() bool
}

// Reopener is an Output that opens its file again on request, after somebody else has renamed it.
type Reopener interface {
	// Reopen may be called from any goroutine at any time; the next Write goes to the file opened anew. On error the
	// old file stays in use.
	Reopen() error
}

// Pacer is an Output whose destination cannot slow it down, such as one over UDP: what finds no room in the receiver's
// buffer is lost there without a word.
type Pacer interface {
	// Pace returns how many records of a backlog a second the destination takes for certain; 0: there is no limit.
	Pace() int
}

// Counter is an Output with counters of its own, beside those of its queue.
type Counter interface {
	// Counters calls emit for each of them. label tells counters of one name apart, and is "" for a name that has only
	// one; n counts since the output was built. package monitor has the names (its OwnMetrics). Two are not metrics of
	// one kind of output: bytes, and kept_since, when the oldest record was made that the output still holds, in seconds
	// since 1970. Any goroutine may call it, after Close as well. It does not wait.
	Counters(emit func(name, label string, n uint64))
}

// rejecter is what an error of Write fulfils when the Rejected records after those delivered can never be delivered (a
// broker that refuses them for good, say). The worker counts them as lost, puts a gap on record and goes on behind them.
type rejecter interface {
	error
	Rejected() int
}
