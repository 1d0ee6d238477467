package ipfix

import (
	"context"

	"github.com/ctlogd/ctlogd/output/datagram"
)

// udp is a session over UDP. It lives as long as its socket: the next session to the same address goes on with it.
type udp struct {
	sequences
	socket *datagram.Socket
	size   int // configured message size; 0: by path MTU
	bufs   [][]byte
}

// sendBatch is how many messages are collected before they are sent.
const sendBatch = datagram.Batch

// sessionOn returns the session of a socket.
func sessionOn(s *datagram.Socket, size int) *udp {
	u, ok := s.Data.(*udp)
	if !ok {
		u = &udp{socket: s}
		s.Data = u
	}
	u.size = size
	return u
}

// send sends each message as a datagram.
func (u *udp) send(ctx context.Context, msgs []*message) (n int, err error) {
	u.bufs = u.bufs[:0]
	for _, m := range msgs {
		u.bufs = append(u.bufs, m.buf)
	}
	end := u.socket.Written()
	n, err = u.socket.Send(ctx, u.bufs)
	for _, m := range msgs[:n] {
		end += uint64(len(m.buf))
		m.end = end
	}
	return n, err
}

func (u *udp) reliable() bool                      { return false }
func (u *udp) err() error                          { return u.socket.Err() }
func (u *udp) progress() (written, arrived uint64) { return u.socket.Progress() }
func (u *udp) deaf() bool                          { return false }

// close ends the session; the socket stays for the next one.
func (u *udp) close() error { return nil }

// limit returns the configured size, or less if the interface or the route carries less.
func (u *udp) limit() int {
	size := u.size
	if size == 0 {
		size = maxAuto
	}
	mtu, header := u.socket.PathMTU()
	if mtu == 0 {
		return max(minMessage, min(size, datagramSize))
	}
	return max(minMessage, min(size, mtu-header))
}
