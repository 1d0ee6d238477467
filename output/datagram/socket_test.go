package datagram

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// until calls ok until it says so.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// listen returns a receiver on host, and a socket that sends to it.
func listen(t *testing.T, host string) (*net.UDPConn, *Socket) {
	t.Helper()
	c, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := DialUDP(c.LocalAddr().(*net.UDPAddr).AddrPort(), nil, new(atomic.Uint64))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return c.(*net.UDPConn), s
}

// TestTrains sends datagrams of many sizes, with the kernel cutting trains of them and without: each arrives by itself, and
// they keep their order.
func TestTrains(t *testing.T) {
	sizes := []int{1380, 1380, 1380, 700, 1380, 1380, 1400, 1400, 600, 600, 601, 20}
	for range 3 * Batch {
		sizes = append(sizes, 1380)
	}
	for range 12 {
		sizes = append(sizes, 8000) // seven of them make a train as long as a datagram may be
	}
	sizes = append(sizes, maxDatagram-20, maxDatagram-20, 100)
	var msgs [][]byte
	for i, n := range sizes {
		msgs = append(msgs, bytes.Repeat([]byte{byte(i)}, n))
	}
	for name, prepare := range map[string]func(t *testing.T, s *Socket){
		"trains": func(t *testing.T, s *Socket) {
			if !s.trains {
				t.Error("this kernel has UDP_SEGMENT, and it is not used")
			}
		},
		"kernel without": func(t *testing.T, s *Socket) { s.trains = false },
		"kernel refuses": func(t *testing.T, s *Socket) { // it cuts nothing whose checksums it does not make
			if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			t.Run(name+"/"+host, func(t *testing.T) {
				c, s := listen(t, host)
				if err := c.SetReadBuffer(8 << 20); err != nil {
					t.Fatal(err)
				}
				prepare(t, s)
				for part := range slices.Chunk(msgs, 20) { // so that they fit into the receiver's buffer
					n, err := s.Send(t.Context(), part)
					if n != len(part) || err != nil {
						t.Fatalf("sent %d of %d: %v", n, len(part), err)
					}
					for _, m := range part {
						buf := make([]byte, maxDatagram)
						c.SetReadDeadline(time.Now().Add(10 * time.Second))
						n, _, err := c.ReadFrom(buf)
						if err != nil {
							t.Fatal(err)
						}
						if !bytes.Equal(buf[:n], m) {
							t.Fatalf("got %d octets of %d, want %d of %d", n, buf[0], len(m), m[0])
						}
					}
				}
				if name == "kernel refuses" && host == "127.0.0.1" && s.trains { // over IPv6 the option means nothing
					t.Error("it tries again and again")
				}
			})
		}
	}
}

// TestTrainLength: datagrams of one size go out together, with a shorter one behind them, and no train is longer than a
// datagram may be.
func TestTrainLength(t *testing.T) {
	for _, test := range []struct {
		name  string
		sizes []int
		want  []int
	}{
		{"one", []int{100}, []int{1}},
		{"equal", []int{100, 100, 100}, []int{3}},
		{"shorter last", []int{100, 100, 50, 100}, []int{3, 1}},
		{"longer", []int{50, 100, 100}, []int{1, 2}},
		{"a datagram's worth", []int{30000, 30000, 30000}, []int{2, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &Socket{trains: true}
			var msgs [][]byte
			for _, n := range test.sizes {
				msgs = append(msgs, make([]byte, n))
			}
			calls := s.prepare(msgs)
			if got := s.counts[:calls]; len(got) != len(test.want) {
				t.Fatalf("datagrams by call: %v, want %v", got, test.want)
			}
			for i, n := range test.want {
				if s.counts[i] != n || int(s.calls[i].hdr.Iovlen) != n {
					t.Errorf("call %d: %d datagrams, %d buffers, want %d", i, s.counts[i], s.calls[i].hdr.Iovlen, n)
				}
				if (s.calls[i].hdr.Control != nil) != (n > 1) {
					t.Errorf("call %d of %d datagrams: control message %v", i, n, s.calls[i].hdr.Control != nil)
				}
			}
		})
	}
}

// TestDoubt: how long what was sent over UDP may be refused, and that no more of it is in doubt than there is room for.
func TestDoubt(t *testing.T) {
	_, s := listen(t, "127.0.0.1")
	msgs := [][]byte{make([]byte, 1400)}
	send := func() {
		if _, err := s.Send(t.Context(), msgs); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	send()
	if _, arrived := s.Progress(); arrived != 0 && time.Since(begun) < refusalWithin {
		t.Errorf("%d octets count as arrived at once", arrived)
	}
	until(t, "the first datagram arrives", func() bool {
		send() // others behind it do not put it off
		_, arrived := s.Progress()
		return arrived >= 1400
	})
	for range 2 * MaxDoubt / 1400 {
		send()
	}
	if written, arrived := s.Progress(); written-arrived > MaxDoubt {
		t.Errorf("%d octets in doubt", written-arrived)
	}
	if n := len(s.doubts); n > int(refusalWithin/doubtEvery)+2 {
		t.Errorf("%d doubts", n)
	}
	if n := testing.AllocsPerRun(100, func() { send(); s.Progress() }); n != 0 {
		t.Errorf("%v allocations for each datagram", n)
	}
}

// TestRefused: nobody listens. The session ends, one after it begins without what came late, and a wait for room ends.
func TestRefused(t *testing.T) {
	c, s := listen(t, "127.79.0.1")
	c.Close()
	for range 3 {
		if n, err := s.Send(t.Context(), [][]byte{{1}}); n != 1 || err != nil {
			t.Fatalf("the kernel took %d, %v", n, err)
		}
		if err := s.Refused(t.Context(), 20*time.Second); err != ErrRefused || s.Err() != err {
			t.Fatalf("refused: %v, %v", err, s.Err())
		}
		if _, err := s.Send(t.Context(), [][]byte{{1}}); err != ErrRefused {
			t.Fatalf("after the end: %v", err)
		}
		if _, arrived := s.Progress(); arrived == s.written {
			t.Error("what was refused counts as arrived")
		}
		s.Revive()
	}
	if n := s.refused.Load(); n != 3 {
		t.Errorf("%d refusals, want 3", n)
	}
	s.Send(t.Context(), [][]byte{{1}})
	until(t, "an answer is there", func() bool {
		fds := []unix.PollFd{{Fd: int32(s.fd)}}
		n, _ := unix.Poll(fds, 0)
		return n > 0
	})
	if err := s.wait(t.Context()); err != ErrRefused {
		t.Errorf("a wait for room ends with %v", err)
	}
	fds := []unix.PollFd{{Fd: int32(s.fd)}}
	if n, _ := unix.Poll(fds, 0); n != 0 {
		t.Errorf("poll(2) returns at once, for ever: %x", fds[0].Revents)
	}
}

// TestRejected: a message that says anything else than that nobody listens ends the session as well, and does not have the
// kernel cut no trains any more. A datagram that is too large ends nothing.
func TestRejected(t *testing.T) {
	s := &Socket{fd: -1, trains: true}
	if n, err := s.Send(t.Context(), [][]byte{make([]byte, 100), make([]byte, 100)}); n != 0 || err == nil || s.Err() == nil {
		t.Errorf("send returned %d, %v", n, err)
	}
	if !s.trains {
		t.Error("trains were given up")
	}
	_, s = listen(t, "127.0.0.1")
	n, err := s.Send(t.Context(), [][]byte{{1}, make([]byte, maxDatagram+1), {2}})
	if n != 1 || !errors.Is(err, unix.EMSGSIZE) || s.Err() != nil {
		t.Errorf("send returned %d, %v, and the session ended with %v", n, err, s.Err())
	}
	if n, err := s.Send(t.Context(), [][]byte{{2}}); n != 1 || err != nil {
		t.Errorf("send returned %d, %v", n, err)
	}
}

// TestUnix: what nobody has read at a unix socket has not arrived, whoever is there next.
func TestUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if _, err := DialUnix(path, new(atomic.Uint64)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing at the path: %v", err)
	}
	open := func() net.PacketConn {
		c, err := net.ListenPacket("unixgram", path)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := open()
	s, err := DialUnix(path, new(atomic.Uint64))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n, err := s.Send(t.Context(), [][]byte{make([]byte, 500), make([]byte, 500)}); n != 2 || err != nil {
		t.Fatalf("sent %d, %v", n, err)
	}
	if _, arrived := s.Progress(); arrived != 0 {
		t.Errorf("%d octets count as read", arrived)
	}
	buf := make([]byte, 1000)
	for range 2 {
		c.ReadFrom(buf)
	}
	if _, arrived := s.Progress(); arrived != 1000 {
		t.Errorf("%d octets count as read, want 1000", arrived)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for err == nil {
		_, err = s.Send(ctx, [][]byte{make([]byte, 500)})
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a receiver that does not read: %v", err)
	}
	s.over = nil
	for _, again := range []bool{false, true} {
		c.Close()
		os.Remove(path)
		if again { // perhaps with the inode that the old one had
			c = open()
			defer c.Close()
		}
		if _, arrived := s.Progress(); arrived != 1000 || s.Err() == nil {
			t.Errorf("with nobody there (%v): %d octets count as read; %v", again, arrived, s.Err())
		}
		s.over = nil
	}
	refused := new(atomic.Uint64)
	c.Close()
	if _, err := DialUnix(path, refused); err != ErrRefused || refused.Load() != 1 {
		t.Errorf("nobody listens: %v, %d counted", err, refused.Load())
	}
}
