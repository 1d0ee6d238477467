package ipfix

import "context"

// transport is a session with one collector.
type transport interface {
	// send writes msgs in order and returns how many were written whole; n < len(msgs) if and only if err is not nil.
	// It waits for room 10 s at most, and no longer than ctx. After an error the session is over.
	send(ctx context.Context, msgs []*message) (n int, err error)

	// reliable reports whether the session is a stream, in which nothing is lost while it lasts.
	reliable() bool

	// limit returns the largest message that the session should carry.
	limit() int

	// err returns why the session is over, nil while it is not.
	err() error

	// progress returns how much the session has carried so far, and how much of that has arrived for all that is known,
	// in octets: over TCP what the collector's host has acknowledged, over UDP what nobody has refused in time. It works
	// until close, and may notice that the session is over.
	progress() (written, arrived uint64)

	// deaf reports whether the collector's host has not answered for several attempts. For reliable transports only.
	deaf() bool

	// sequence returns where the sequence numbers of the session stand while it is not under way.
	sequence() *sequences

	close() error
}

// sequences are the sequence numbers of a session: of the flows' domain, and of the exporter's own.
type sequences struct{ data, own uint32 }

func (s *sequences) sequence() *sequences { return s }
