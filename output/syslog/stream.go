package syslog

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
	"time"

	"golang.org/x/sys/unix"
)

// stream is a TCP connection, plain or under TLS.
type stream struct {
	conn net.Conn // what messages are written to
	wire *wire

	mu  sync.Mutex
	end error // why the session is over

	over   chan struct{} // closed when end is set
	reader chan struct{} // closed when the reader has returned
}

// wire is the TCP connection below, with a count of the octets written to it.
type wire struct {
	conn
	written atomic.Uint64
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.conn.Write(p)
	w.written.Add(uint64(n))
	return n, err
}

// verdictWait is for how long a TLS server may take to refuse the client's certificate: in TLS 1.3 the handshake is
// complete for the client before. A session ticket ends the wait.
const verdictWait = time.Second

// partingWait is for how long a receiver may take to have room for the parting words of TLS.
const partingWait = time.Second

// deadPeer is for how long sent octets may stay unacknowledged (tcp(7), TCP_USER_TIMEOUT).
const deadPeer = 30 * time.Second

// dialStream connects, ends the handshake if secure is not nil, and starts the reader. ended is called once, from a
// goroutine of its own, when the session is over.
func dialStream(ctx context.Context, dial Dial, a address, secure *TLS, ended func()) (*stream, error) {
	c, err := dial.dial(ctx, "tcp", net.JoinHostPort(a.host, a.port))
	if err != nil {
		return nil, err
	}
	s := &stream{wire: &wire{conn: c}, over: make(chan struct{}), reader: make(chan struct{})}
	s.conn = s.wire
	_ = s.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeer.Milliseconds()))
	})
	ticket := make(tickets, 1)
	if secure != nil {
		config, err := secure.config(a.host)
		if err != nil {
			c.Close()
			return nil, err
		}
		config.ClientSessionCache = ticket
		client := tls.Client(s.wire, config)
		if err := client.HandshakeContext(ctx); err != nil {
			c.Close()
			return nil, err
		}
		s.conn = client
	}
	go s.read(ended)
	if secure != nil {
		if err := s.verdict(ctx, ticket); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// chain returns the certificates that the receiver has shown, none without TLS.
func (s *stream) chain() []*x509.Certificate {
	if c, ok := s.conn.(*tls.Conn); ok {
		return c.ConnectionState().PeerCertificates
	}
	return nil
}

// verdict waits until the server has shown that it accepts the session, or has had the time to refuse it.
func (s *stream) verdict(ctx context.Context, ticket tickets) error {
	timer := time.NewTimer(verdictWait)
	defer timer.Stop()
	select {
	case <-ticket:
	case <-timer.C:
	case <-s.over:
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.err()
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

// read reads until the session ends. A receiver has nothing to say, but only reading shows that it has closed, reset or,
// under TLS, refused the session. The socket stays open for progress.
func (s *stream) read(ended func()) {
	defer close(s.reader)
	_, err := io.Copy(io.Discard, s.conn)
	if err == nil {
		err = errClosed
	}
	s.fail(err)
	s.wire.SetWriteDeadline(time.Unix(1, 0)) // ends a write that waits
	ended()
}

// fail notes why the session is over; the first reason counts.
func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end == nil {
		s.end = err
		close(s.over)
	}
}

func (s *stream) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end
}

// send writes all of the messages with one call. On error none counts as written: a part of them may have come.
func (s *stream) send(ctx context.Context, buf []byte, ends []int) (n int, err error) {
	s.wire.SetWriteDeadline(time.Now().Add(writeTimeout))
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { s.wire.SetWriteDeadline(time.Unix(1, 0)) })()
	}
	if err := s.err(); err != nil { // the reader may have seen the end before the deadline above was set
		return 0, err
	}
	if _, err := s.conn.Write(buf); err != nil {
		if end := s.err(); end != nil {
			err = end
		} else if ctx.Err() != nil {
			err = ctx.Err()
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("the receiver has read nothing for %s", writeTimeout)
		}
		s.fail(err)
		return 0, err
	}
	return len(ends), nil
}

func (s *stream) progress() (written, acked uint64) {
	written = s.wire.written.Load()
	var queued int
	if s.control(func(fd int) (err error) {
		queued, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	}) != nil {
		return written, 0
	}
	return written, written - min(written, uint64(queued))
}

func (s *stream) close() {
	if s.err() == nil {
		end := time.AfterFunc(partingWait, func() { s.wire.Close() }) // package tls has a longer deadline of its own
		s.conn.Close()
		end.Stop()
	} else {
		s.wire.Close()
	}
	<-s.reader
}

// control calls f with the socket's descriptor.
func (s *stream) control(f func(fd int) error) error {
	raw, err := s.wire.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = f(int(fd)) }); err != nil {
		return err
	}
	return failure
}
