package syslog

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/output/datagram"
)

// datagrams is a session that carries one message in each datagram: over UDP, or to a unix socket.
type datagrams struct {
	*datagram.Socket
	proven bool // somebody listens
	kept   bool // the socket is used by the next session
	msgs   [][]byte
}

// probeWait is for how long the first message of a session over UDP waits for a refusal. It counts as sent only then.
const probeWait = 100 * time.Millisecond

// maxMessage is the most octets that a message may have, which is what UDP over IPv6 carries. It is the same everywhere, so
// that whoever stands in for a receiver takes what that one took.
const maxMessage = 65487

// send sends each message as a datagram. One goes ahead of the others, which finds out whether anybody listens.
func (d *datagrams) send(ctx context.Context, buf []byte, ends []int) (n int, err error) {
	d.msgs = d.msgs[:0]
	start, tooLarge := 0, 0
	for _, end := range ends {
		if end-start > maxMessage {
			tooLarge = end - start
			break
		}
		d.msgs = append(d.msgs, buf[start:end])
		start = end
	}
	if !d.proven && len(d.msgs) > 0 {
		if n, err = d.Send(ctx, d.msgs[:1]); err == nil {
			err = d.Refused(ctx, probeWait)
		}
		if err != nil {
			return 0, d.reason(err, 0)
		}
		d.proven = true
	}
	sent, err := d.Send(ctx, d.msgs[n:])
	n += sent
	if err != nil {
		return n, d.reason(err, n)
	}
	if tooLarge > 0 {
		return n, &oversizeError{tooLarge}
	}
	return n, nil
}

// reason returns the error for err, which was that of message n.
func (d *datagrams) reason(err error, n int) error {
	if errors.Is(err, unix.EMSGSIZE) {
		return &oversizeError{len(d.msgs[n])}
	}
	return err
}

func (d *datagrams) err() error                          { return d.Err() }
func (d *datagrams) progress() (written, arrived uint64) { return d.Progress() }

func (d *datagrams) close() {
	if !d.kept {
		d.Close()
	}
}
