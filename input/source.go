package input

import (
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// Source is where events come from. Its methods are called on the reader's goroutine, but for Wake, and none of them but
// Wait may wait. The reader calls them a few times for each block of events, never for each event.
type Source interface {
	// Fill appends records of waiting events to b, as many as it has at hand and b has room for, and returns how many
	// events it has read. more says that others wait: call it again soon. now was just before the call; the clock is read
	// seldom, as that costs as much as to decode an event.
	Fill(b *flow.Batch, now time.Time) (n int, more bool, err error)

	// Turn does a little of what else there is to do, such as to look for losses. What it finds goes to sink. busy says
	// that it has more to do at once.
	Turn(now time.Time, sink Sink) (busy bool)

	// Due returns how long Turn will have nothing to do, as long as no event comes. The reader waits so long at most: a
	// source that returns 0 while Turn does nothing has it spin.
	Due(now time.Time) time.Duration

	// Wait returns when an event waits, when Wake was called, or after d.
	Wait(d time.Duration) error

	// Wake ends a Wait. Any goroutine may call it.
	Wake()

	// ReadUntil returns a time such that Fill has returned all flows that ended before it.
	ReadUntil() time.Time

	// Requested reports whether something that was asked for is still to be finished before the reader may stop.
	Requested() bool

	// Withheld reports whether the sender holds events back, which will come when there is room.
	Withheld(now time.Time, sink Sink) bool

	// Leave asks for no more events. What was sent before can still be read with Fill. If a successor may read on, it returns
	// false, and Fill returns only what is at hand: the rest is the successor's. What that may have to read ended after ReadUntil.
	Leave() (left bool, err error)

	// Finish is the last call. It tells sink of all losses that it has not told of.
	Finish(now time.Time, sink Sink)
}

// Sink takes what a Source has besides events.
type Sink interface {
	// Put appends a copy of r.
	Put(r *flow.Record)

	// Gap appends a record of g, which is from one time to another. A zero to says that it has no end.
	Gap(from, to time.Time, g flow.Gap)

	// GapIn is Gap for records of one network namespace.
	GapIn(n flow.Netns, from, to time.Time, g flow.Gap)
}
