package stream

import (
	"context"
	"crypto/tls"
	"net"
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
