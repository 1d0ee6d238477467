package ipfix

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

	"github.com/ctlogd/ctlogd/ownflow"
)

// stream is a TCP connection, plain or under TLS.
type stream struct {
	sequences
	conn net.Conn // what messages are written to
	wire *wire
	size int

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

// verdictWait is for how long a TLS server may take to refuse the client's certificate. In TLS 1.3 the handshake is
// complete for the client before the server has looked at it, and what is written until its alert arrives is lost.
// Servers that accept mostly send a session ticket at once, which ends the wait.
const verdictWait = time.Second

// deadPeer is for how long sent octets may stay unacknowledged (tcp(7), TCP_USER_TIMEOUT).
const deadPeer = 30 * time.Second

// dialStream connects, ends the handshake if secure is not nil, and starts the reader. ended is called once, from a
// goroutine of its own, when the session is over.
func dialStream(ctx context.Context, a address, secure *TLS, size int, sockets *ownflow.Sockets, ended func()) (*stream, error) {
	conn, err := sockets.DialContext(ctx, "tcp", net.JoinHostPort(a.host, a.port))
	if err != nil {
		return nil, err
	}
	s := &stream{wire: &wire{tcp: conn.(tcp)}, size: size,
		over: make(chan struct{}), reader: make(chan struct{})}
	s.conn = s.wire
	s.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeer.Milliseconds()))
	})
	var ticket tickets
	if secure != nil {
		config, err := secure.config(a.host)
		if err != nil {
			conn.Close()
			return nil, err
		}
		ticket = make(tickets, 1)
		config.ClientSessionCache = ticket
		c := tls.Client(s.wire, config)
		if err := c.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		s.conn = c
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

// chain returns the certificates that the collector has shown, none without TLS.
func (s *stream) chain() []*x509.Certificate {
	c, ok := s.conn.(*tls.Conn)
	if !ok {
		return nil
	}
	return c.ConnectionState().PeerCertificates
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

// read reads until the session ends. A collector has nothing to say (RFC 7011, section 10.4.2), but only reading shows
// that it has closed, reset or, under TLS, refused the session. The socket stays open for progress.
func (s *stream) read(ended func()) {
	defer close(s.reader)
	_, err := io.Copy(io.Discard, s.conn)
	if err == nil {
		err = errors.New("closed by the collector")
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

func (s *stream) send(ctx context.Context, msgs []*message) (n int, err error) {
	s.wire.SetWriteDeadline(time.Now().Add(writeTimeout))
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { s.wire.SetWriteDeadline(time.Unix(1, 0)) })()
	}
	for n < len(msgs) {
		if err := s.err(); err != nil { // the reader may have seen the end before the deadline above was set
			return n, err
		}
		if _, err := s.conn.Write(msgs[n].buf); err != nil {
			if end := s.err(); end != nil {
				err = end
			} else if ctx.Err() != nil {
				err = ctx.Err()
			} else if errors.Is(err, os.ErrDeadlineExceeded) {
				err = fmt.Errorf("the collector has read nothing for %s", writeTimeout)
			}
			s.fail(err)
			return n, err
		}
		msgs[n].end = s.wire.written.Load()
		n++
	}
	return n, nil
}

func (s *stream) reliable() bool { return true }

func (s *stream) limit() int {
	if s.size == 0 {
		return streamSize
	}
	return s.size
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

// deafAfter is how many retransmissions in a row, with waits that double, go unanswered by a host that is not there.
// One whose collector does not read answers, and is not sent more than it has room for.
const deafAfter = 3

func (s *stream) deaf() bool {
	var info *unix.TCPInfo
	err := s.control(func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	return err == nil && info.Retransmits >= deafAfter
}

// partingWait bounds the parting words of TLS to a collector that does not read.
const partingWait = time.Second

func (s *stream) close() error {
	conn := s.conn
	if s.err() != nil {
		conn = s.wire // no parting words of TLS to somebody who does not listen
	}
	end := time.AfterFunc(partingWait, func() { s.wire.Close() }) // package tls waits 5 s for its parting words to leave
	err := conn.Close()
	end.Stop()
	<-s.reader
	return err
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
