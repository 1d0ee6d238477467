//go:build integration

package datagram

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestQueueFull: the queue of an interface is shorter than what is sent. What does not fit is sent later, not thrown away, and
// nothing is lost.
func TestQueueFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for an interface of its own")
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "20mbit", "burst", "4k", "limit", "8k"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.(*net.UDPConn).SetReadBuffer(1 << 20)
	s, err := DialUDP(c.LocalAddr().(*net.UDPAddr).AddrPort(), nil, new(atomic.Uint64))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const many = 200
	for i := range many { // of all sizes, so that they are no trains
		n, err := s.Send(t.Context(), [][]byte{append(make([]byte, 500+i), byte(i))})
		if n != 1 || err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
	}
	buf := make([]byte, 2000)
	for i := range many {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, _, err := c.ReadFrom(buf)
		if err != nil || buf[n-1] != byte(i) {
			t.Fatalf("datagram %d: %v, %d", i, err, buf[n-1])
		}
	}
	if err := s.pause(t.Context(), time.Now().Add(-writeTimeout-time.Second)); !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("a queue that stays full: %v", err)
	}
}
