package ctnetlink

import (
	"sync/atomic"

	"github.com/ctlogd/ctlogd/flow"
)

// Stats counts what the source has seen. Any goroutine may read it.
type Stats struct {
	Events    [flow.EventGap]atomic.Uint64 // messages decoded, by flow.Event
	Malformed atomic.Uint64                // messages that could not be decoded
	Skipped   atomic.Uint64                // attributes that could not be decoded, of messages that could
	Truncated atomic.Uint64                // messages longer than a slot
	Refused   atomic.Uint64                // messages that the kernel did not send

	Unlisted atomic.Uint64 // messages of namespaces that nobody asked for

	// WithoutCounters and WithoutStart count the ends of flows that carry no counters, or no start: those that were born
	// with nf_conntrack_acct=0, or ended with nf_conntrack_timestamp=0.
	WithoutCounters, WithoutStart atomic.Uint64

	// Drops counts messages that did not fit into the socket (SO_MEMINFO): lost for good under best-effort delivery,
	// delivered later under reliable delivery.
	Drops atomic.Uint64

	// GuardSheds counts the slices of time in which the guard gave up reliable delivery, GuardLost the ends that were
	// lost in them. Drops has neither.
	GuardSheds, GuardLost atomic.Uint64

	Reads  atomic.Uint64 // system calls that read at least one message
	Dumped atomic.Uint64 // flows read from the table
	Open   atomic.Uint64 // open records made
}
