package stream

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

// patient is a connection whose deadlines for writing nobody can set.
type patient struct{ *net.TCPConn }

func (patient) SetWriteDeadline(time.Time) error { return nil }

// TestCloseDeafTLS has a receiver take the TLS session and nothing from it: with the socket full, TLS' own parting words
// find no room. Close ends nevertheless.
func TestCloseDeafTLS(t *testing.T) {
	ca := certtest.New(t)
	pair, _, _ := ca.Pair(t, "server", time.Hour)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1) // holds the connection: one that nobody knows any more is closed
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake()
		}
		accepted <- c
	}()
	s, err := Dial(t.Context(), func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return patient{c.(*net.TCPConn)}, nil
	}, ln.Addr().String(), &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}, "receiver", func() {})
	if err != nil {
		t.Fatal(err)
	}
	c := s.wire.tcp.(patient).TCPConn         // full from below, so that the session itself lives
	for _, size := range []int{64 << 10, 1} { // what the last large one left room for, too
		for full := 0; full < 3; full++ { // as long as the other side's kernel takes some
			c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			for n, err := 0, error(nil); err == nil; {
				if n, err = c.Write(make([]byte, size)); n > 0 {
					full = 0
				}
			}
		}
	}
	c.SetWriteDeadline(time.Time{})
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("the session does not end")
	}
	if c := <-accepted; c != nil {
		c.Close()
	}
}

// late is a connection on which it takes a while to end a write, from a goroutine that has begun to.
type late struct {
	*net.TCPConn
	begun, goOn, done chan struct{}
	once              sync.Once
	write             func()
}

func (l *late) SetWriteDeadline(t time.Time) error {
	if t.After(time.Now()) {
		return l.TCPConn.SetWriteDeadline(t)
	}
	l.once.Do(func() {
		close(l.begun)
		<-l.goOn
		l.TCPConn.SetWriteDeadline(t)
		close(l.done)
	})
	return l.TCPConn.SetWriteDeadline(t)
}

func (l *late) Write(p []byte) (int, error) {
	l.write()
	return l.TCPConn.Write(p)
}

// TestSendEndsAlone: what ends one Send, and comes late, does not end the next one.
func TestSendEndsAlone(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l := &late{begun: make(chan struct{}), goOn: make(chan struct{}), done: make(chan struct{})}
	s, err := Dial(t.Context(), func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		l.TCPConn = c.(*net.TCPConn)
		return l, nil
	}, ln.Addr().String(), nil, "receiver", func() {})
	if err != nil {
		t.Fatal(err)
	}
	goOn := sync.OnceFunc(func() { close(l.goOn) })
	ctx, cancel := context.WithCancel(t.Context())
	l.write = func() { // the end comes as the write succeeds
		cancel()
		<-l.begun
	}
	first := make(chan error)
	go func() {
		_, err := s.Send(ctx, []byte("x"))
		first <- err
	}()
	select {
	case err = <-first:
	case <-time.After(200 * time.Millisecond): // it waits
		goOn()
		err = <-first
	}
	if err != nil {
		t.Fatal(err)
	}
	l.write = func() {
		goOn()
		<-l.done
	}
	if _, err := s.Send(t.Context(), []byte("x")); err != nil {
		t.Errorf("the next: %v", err)
	}
	l.TCPConn.Close()
	<-s.reader
}
