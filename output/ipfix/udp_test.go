package ipfix

import (
	"bytes"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTrains sends messages of many sizes, with the kernel cutting trains of them and without: each arrives as a datagram
// of its own, and they keep their order.
func TestTrains(t *testing.T) {
	sizes := []int{1380, 1380, 1380, 700, 1380, 1380, 1400, 1400, 600, 600, 601, 20}
	for range 3 * sendBatch {
		sizes = append(sizes, 1380)
	}
	for range 12 {
		sizes = append(sizes, 8000) // seven of them make a train as long as a datagram may be
	}
	sizes = append(sizes, maxDatagram-20, maxDatagram-20, 100)
	var msgs []*message
	for i, n := range sizes {
		msgs = append(msgs, &message{buf: bytes.Repeat([]byte{byte(i)}, n)})
	}
	for name, prepare := range map[string]func(t *testing.T, u *udp){
		"trains": func(t *testing.T, u *udp) {
			if !u.trains {
				t.Error("this kernel has UDP_SEGMENT, and it is not used")
			}
		},
		"kernel without": func(t *testing.T, u *udp) { u.trains = false },
		"kernel refuses": func(t *testing.T, u *udp) { // it cuts nothing whose checksums it does not make
			if err := unix.SetsockoptInt(u.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			t.Run(name+"/"+host, func(t *testing.T) {
				c, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := c.(*net.UDPConn).SetReadBuffer(8 << 20); err != nil {
					t.Fatal(err)
				}
				u, err := dialUDP(c.LocalAddr().(*net.UDPAddr).AddrPort(), 0, nil, new(atomic.Uint64))
				if err != nil {
					t.Fatal(err)
				}
				defer u.free()
				prepare(t, u)
				for part := range slices.Chunk(msgs, 20) { // so that they fit into the receiver's buffer
					n, err := u.send(t.Context(), part)
					if n != len(part) || err != nil {
						t.Fatalf("sent %d of %d: %v", n, len(part), err)
					}
					for _, m := range part {
						buf := make([]byte, maxMessage)
						c.SetReadDeadline(time.Now().Add(10 * time.Second))
						n, _, err := c.ReadFrom(buf)
						if err != nil {
							t.Fatal(err)
						}
						if !bytes.Equal(buf[:n], m.buf) {
							t.Fatalf("got %d octets of %d, want %d of %d", n, buf[0], len(m.buf), m.buf[0])
						}
					}
				}
				if name == "kernel refuses" && host == "127.0.0.1" && u.trains { // over IPv6 the option means nothing
					t.Error("it tries again and again")
				}
			})
		}
	}
}

// TestTrainLength: messages of one size go out together, with a shorter one behind them, and no train is longer than a
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
			u := &udp{trains: true}
			var msgs []*message
			for _, n := range test.sizes {
				msgs = append(msgs, &message{buf: make([]byte, n)})
			}
			calls := u.prepare(msgs)
			if got := u.counts[:calls]; len(got) != len(test.want) {
				t.Fatalf("messages by call: %v, want %v", got, test.want)
			}
			for i, n := range test.want {
				if u.counts[i] != n || int(u.calls[i].hdr.Iovlen) != n {
					t.Errorf("call %d: %d messages, %d buffers, want %d", i, u.counts[i], u.calls[i].hdr.Iovlen, n)
				}
				if (u.calls[i].hdr.Control != nil) != (n > 1) {
					t.Errorf("call %d of %d messages: control message %v", i, n, u.calls[i].hdr.Control != nil)
				}
			}
		})
	}
}
