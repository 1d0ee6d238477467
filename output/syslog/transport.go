package syslog

import (
	"context"
	"fmt"
)

// transport is a session with one receiver.
type transport interface {
	// send writes the messages in buf, which end at ends, in order, and returns how many were written whole: fewer than all
	// if and only if err is not nil. It waits for room 10 s at most, and no longer than ctx. After an error that is
	// no *oversizeError the session is over.
	send(ctx context.Context, buf []byte, ends []int) (n int, err error)

	// err returns why the session is over, nil while it is not.
	err() error

	// progress returns how many octets the session has carried so far, and how many of those have arrived for all that is
	// known: over TCP what the receiver's host has acknowledged, over UDP what nobody has refused in time, at a unix socket
	// what has been read. It works until close, and may notice that the session is over.
	progress() (written, arrived uint64)

	close()
}

// oversizeError says that a message is too large for a datagram. It will be for ever.
type oversizeError struct{ octets int }

func (e *oversizeError) Error() string {
	return fmt.Sprintf("a message of %d octets is too large for a datagram; use tcp:// or tls://", e.octets)
}

// Rejected returns how many records can never be delivered.
func (e *oversizeError) Rejected() int { return 1 }
