package input

import (
	"sync/atomic"

	"github.com/ctlogd/ctlogd/flow"
)

// Stats counts what the reader has seen. Any goroutine may read it.
type Stats struct {
	Events    [flow.EventGap]atomic.Uint64 // messages decoded, by flow.Event
	Malformed atomic.Uint64                // messages that could not be decoded
	Truncated atomic.Uint64                // messages longer than a slot
	Refused   atomic.Uint64                // messages that the kernel did not send

	// Drops counts messages that did not fit into the socket (SO_MEMINFO): lost for good under best-effort delivery,
	// delivered later under reliable delivery.
	Drops atomic.Uint64

	// GuardSheds counts the slices of time in which the guard gave up reliable delivery, GuardLost the ends that were
	// lost in them. Drops has neither.
	GuardSheds, GuardLost atomic.Uint64

	Reads  atomic.Uint64 // system calls that read at least one message
	Naps   atomic.Uint64
	Busy   atomic.Int64  // ns that the reader did not sleep or wait
	Round  atomic.Int64  // when it went round last, ns since 1970; at least once a second
	Dumped atomic.Uint64 // flows read from the table
	Open   atomic.Uint64 // open records made

	Gaps flow.GapStats // made by the reader: they concern every output
}
