package datagram

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// TestPeer: a name with two addresses. Each has one socket, however often it is tried, which closes when the name has moved.
func TestPeer(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("127.79.1.1"), netip.MustParseAddr("127.79.1.2"), netip.MustParseAddr("::ffff:127.79.1.1")}
	var failure error
	asked := 0
	p := &Peer{Host: "receiver.example", Port: "1514", Refused: new(atomic.Uint64), Resolve: func(context.Context, string, string) ([]netip.Addr, error) {
		asked++
		return addrs, failure
	}}
	defer p.Close()
	dial := func(stale time.Duration) *Socket {
		t.Helper()
		s, err := p.Dial(t.Context(), stale)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := dial(time.Hour)
	if p.count() != 2 || p.At() != "127.79.1.1:1514" {
		t.Errorf("%d targets, the first %s", p.count(), p.At())
	}
	p.rotate()
	second := dial(time.Hour)
	p.rotate()
	if dial(time.Hour) != first || first == second || len(p.sockets) != 2 || asked != 1 {
		t.Errorf("%d sockets, asked %d times", len(p.sockets), asked)
	}
	failure = errors.New("server misbehaving")
	if dial(0) != first || asked != 2 {
		t.Error("a name server that fails took the address away")
	}
	failure, addrs = nil, addrs[1:2]
	p.found(false)
	p.resolved = time.Now().Add(-absentRetry)
	if dial(time.Hour) != second || len(p.sockets) != 1 {
		t.Errorf("%d sockets after a move of a peer that was absent", len(p.sockets))
	}
	at := func(s string) []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(s)} }
	if p.Move(at("127.79.1.2:1514")) || p.Move(nil) || p.At() != "127.79.1.2:1514" {
		t.Error("a move to where it is")
	}
	if !p.Move(at("127.79.1.3:1514")) || len(p.sockets) != 0 {
		t.Errorf("%d sockets after a move", len(p.sockets))
	}

	var none *Peer // a stream's
	if none.found(true); none.Named() || none.Stale(0) || none.count() != 1 || none.At() != "" {
		t.Error("no peer has a name")
	}
	none.rotate()
	none.Close()
}
