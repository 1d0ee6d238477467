// Package stream has the sessions over TCP and TLS of outputs whose receivers acknowledge nothing themselves: what the
// receiver's host has acknowledged has arrived, for all that is known.
package stream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a TCP connection, plain or under TLS. Send, Progress and Close are for one goroutine.
type Conn struct {
	conn net.Conn // what is written to
	wire *wire
	role string // what the receiver is called
	ends []uint64

	mu  sync.Mutex
	end error // why the session is over

	over   chan struct{} // closed when end is set
	reader chan struct{} // closed when the reader has returned
}

// wire is the TCP connection below, with a count of the octets written to it.
type wire struct {
	tcp
	written atomic.Uint64
}

// tcp is what is needed of a net.TCPConn.
type tcp interface {
	net.Conn
	syscall.Conn
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.tcp.Write(p)
	w.written.Add(uint64(n))
	return n, err
}

const (
	// verdictWait is for how long a TLS server may take to refuse the client's certificate. In TLS 1.3 the handshake is
	// complete for the client before the server has looked at it, and what is written until its alert arrives is lost.
	// Servers that accept mostly send a session ticket at once, which ends the wait.
	verdictWait = time.Second

	// partingWait bounds the parting words of TLS to somebody who does not read.
	partingWait = time.Second

	// deadPeer is for how long sent octets may stay unacknowledged (tcp(7), TCP_USER_TIMEOUT).
	deadPeer = 30 * time.Second

	// writeTimeout is for how long a receiver may accept nothing before its session counts as dead.
	writeTimeout = 10 * time.Second

	// deafAfter is how many retransmissions in a row, with waits that double, go unanswered by a host that is not there.
	// One whose receiver does not read answers, and is not sent more than it has room for.
	deafAfter = 3
)

// Dialer connects as net.Dialer's DialContext does.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Dial connects, ends the handshake if secure is not nil, and starts a reader. role is what errors call the receiver. ended
// is called once, from a goroutine of its own, when the session is over.
func Dial(ctx context.Context, dial Dialer, address string, secure *tls.Config, role string, ended func()) (*Conn, error) {
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	raw, ok := conn.(tcp)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("%T has no descriptor", conn)
	}
	c := &Conn{wire: &wire{tcp: raw}, role: role, over: make(chan struct{}), reader: make(chan struct{})}
	c.conn = c.wire
	_ = c.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeer.Milliseconds()))
	})
	var ticket tickets
	if secure != nil {
		ticket = make(tickets, 1)
		secure.ClientSessionCache = ticket
		client := tls.Client(c.wire, secure)
		if err := client.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		c.conn = client
	}
	go c.read(ended)
	if secure != nil {
		if err := c.verdict(ctx, ticket); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// verdict waits until the server has shown that it accepts the session, or has had the time to refuse it.
func (c *Conn) verdict(ctx context.Context, ticket tickets) error {
	timer := time.NewTimer(verdictWait)
	defer timer.Stop()
	select {
	case <-ticket:
	case <-timer.C:
	case <-c.over:
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.Err()
}

// tickets is a tls.ClientSessionCache that keeps nothing, and tells when a ticket arrives.
type tickets chan struct{}

func (t tickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }

func (t tickets) Put(string, *tls.ClientSessionState) {
	select {
	case t <- struct{}{}:
	default:
	}
}

// read reads until the session ends. A receiver has nothing to say (RFC 7011, section 10.4.2; RFC 5425), but only reading
// shows that it has closed, reset or, under TLS, refused the session. The socket stays open for Progress.
func (c *Conn) read(ended func()) {
	defer close(c.reader)
	_, err := io.Copy(io.Discard, c.conn)
	if err == nil {
		err = errors.New("closed by the " + c.role)
	}
	c.fail(err)
	c.wire.SetWriteDeadline(time.Unix(1, 0)) // ends a write that waits
	ended()
}

// fail notes why the session is over; the first reason counts.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil {
		c.end = err
		close(c.over)
	}
}

// Err returns why the session is over, nil while it is not. Any goroutine may call it.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}

// Send writes bufs in their order. ends has how much the session had carried behind each that was written whole, until the
// next Send: they are fewer than bufs if and only if err is not nil, and then the session is over. Send waits for room 10 s at
// most, and no longer than ctx.
func (c *Conn) Send(ctx context.Context, bufs ...[]byte) (ends []uint64, err error) {
	c.wire.SetWriteDeadline(time.Now().Add(writeTimeout))
	if ctx.Done() != nil {
		ended := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			c.wire.SetWriteDeadline(time.Unix(1, 0))
			close(ended)
		})
		defer func() {
			if !stop() {
				<-ended // or it would end the next Send
			}
		}()
	}
	c.ends = c.ends[:0]
	for _, b := range bufs {
		if err := c.Err(); err != nil { // the reader may have seen the end before the deadline above was set
			return c.ends, err
		}
		if _, err := c.conn.Write(b); err != nil {
			if end := c.Err(); end != nil {
				err = end
			} else if ctx.Err() != nil {
				err = ctx.Err()
			} else if errors.Is(err, os.ErrDeadlineExceeded) {
				err = fmt.Errorf("the %s has read nothing for %s", c.role, writeTimeout)
			}
			c.fail(err)
			return c.ends, err
		}
		c.ends = append(c.ends, c.wire.written.Load())
	}
	return c.ends, nil
}

// Progress returns how many octets the session has carried so far, and how many of those the receiver's host has
// acknowledged. It works until Close.
func (c *Conn) Progress() (written, acked uint64) {
	written = c.wire.written.Load()
	var queued int
	if c.control(func(fd int) (err error) {
		queued, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	}) != nil {
		return written, 0
	}
	return written, written - min(written, uint64(queued))
}

// Deaf reports whether the receiver's host has not answered for several attempts.
func (c *Conn) Deaf() bool {
	var info *unix.TCPInfo
	err := c.control(func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	return err == nil && info.Retransmits >= deafAfter
}

// Chain returns the certificates that the receiver has shown, none without TLS.
func (c *Conn) Chain() []*x509.Certificate {
	secure, ok := c.conn.(*tls.Conn)
	if !ok {
		return nil
	}
	return secure.ConnectionState().PeerCertificates
}

// Close ends the session, and waits for its reader.
func (c *Conn) Close() error {
	conn := c.conn
	if c.Err() != nil {
		conn = c.wire // no parting words of TLS to somebody who does not listen
	}
	end := time.AfterFunc(partingWait, func() { c.wire.Close() }) // package tls waits 5 s for its parting words to leave
	err := conn.Close()
	end.Stop()
	<-c.reader
	return err
}

// control calls f with the socket's descriptor.
func (c *Conn) control(f func(fd int) error) error {
	raw, err := c.wire.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = f(int(fd)) }); err != nil {
		return err
	}
	return failure
}
