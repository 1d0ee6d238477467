package syslog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	logtest "go.uber.org/zap/zaptest/observer"

	"github.com/ctlogd/ctlogd/output/datagram"
)

// alone counts the addresses that unused has given out.
var alone atomic.Uint32

// unused returns a loopback address that no other test uses, so that a port of it stays free when it was closed.
func unused() string {
	n := alone.Add(1)
	return fmt.Sprintf("127.78.%d.%d", n>>8&255, n&255)
}

// mailbox keeps the records of the datagrams that come to an address.
type mailbox struct {
	net.PacketConn
	mu  sync.Mutex
	ids []int
}

func openMailbox(t *testing.T, network, address string) *mailbox {
	t.Helper()
	conn, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	m := &mailbox{PacketConn: conn}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.ids = append(m.ids, idOf(t, string(buf[:n])))
			m.mu.Unlock()
		}
	}()
	return m
}

// has reports whether all records from first up to end have come.
func (m *mailbox) has(first, end int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[int]bool{}
	for _, id := range m.ids {
		seen[id] = true
	}
	for id := first; id < end; id++ {
		if !seen[id] {
			return false
		}
	}
	return true
}

// TestRefusedUDP: nobody listens. Write says so as often as it is tried, no record counts as sent, no session begins, and all
// attempts come from one port. A receiver that comes up gets everything.
func TestRefusedUDP(t *testing.T) {
	t.Parallel()
	gone := openMailbox(t, "udp", unused()+":0")
	address := gone.LocalAddr().String()
	gone.Close()
	core, logs := logtest.New(zapcore.InfoLevel)
	w := newWriter(t, Config{Address: "udp://" + address})
	w.log = zap.New(core)
	for range 3 {
		if n, err := w.Write(t.Context(), records(0, 10)); n != 0 || !errors.Is(err, datagram.ErrRefused) {
			t.Fatalf("Write returned %d, %v", n, err)
		}
	}
	if w.counts.refused.Load() < 3 || w.counts.octets.Load() != 0 || w.counts.sessions.Load() != 0 || logs.Len() != 0 {
		t.Errorf("after three refusals %d are counted, %d octets, %d sessions, %v", w.counts.refused.Load(), w.counts.octets.Load(),
			w.counts.sessions.Load(), logs.All())
	}
	back := openMailbox(t, "udp", address)
	write(t, w, records(0, 10))
	eventually(t, "all records", func() bool { return back.has(0, 10) && w.Acknowledged() == 10 })
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRefusedLater: the receiver ends between two records. What was sent since, and was handed to the kernel without an
// error, does not count as arrived, and is sent again when a receiver is back; no Write has to come along for it.
func TestRefusedLater(t *testing.T) {
	t.Parallel()
	first := openMailbox(t, "udp", unused()+":0")
	address := first.LocalAddr().String()
	core, logs := logtest.New(zapcore.WarnLevel)
	w := newWriter(t, Config{Address: "udp://" + address})
	w.log = zap.New(core)
	write(t, w, records(0, 10))
	eventually(t, "the first records have arrived", func() bool { return w.Acknowledged() == 10 })
	first.Close()
	write(t, w, records(10, 20))
	eventually(t, "a refusal is noticed", func() bool { w.Acknowledged(); return w.counts.refused.Load() > 0 })
	if n, err := w.Write(t.Context(), records(20, 21)); n != 0 || !errors.Is(err, datagram.ErrRefused) {
		t.Errorf("Write to a receiver that refuses returned %d, %v", n, err)
	}
	if n := w.Acknowledged(); n != 10 {
		t.Errorf("%d records have arrived, 10 were refused", n)
	}
	back := openMailbox(t, "udp", address)
	eventually(t, "the refused records", func() bool { return back.has(10, 20) && w.Acknowledged() == 20 })
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
	ended := logs.FilterMessage("session ended").All()
	if len(ended) != 1 || ended[0].ContextMap()["remedy"] == nil {
		t.Errorf("one end of a session makes these lines: %v", ended)
	}
}

// TestCloseAwaitsRefusal: Close says what was refused, although the kernel took it.
func TestCloseAwaitsRefusal(t *testing.T) {
	t.Parallel()
	m := openMailbox(t, "udp", unused()+":0")
	w := newWriter(t, Config{Address: "udp://" + m.LocalAddr().String()})
	write(t, w, records(0, 1))
	eventually(t, "the first record has arrived", func() bool { return w.Acknowledged() == 1 })
	m.Close()
	write(t, w, records(1, 6))
	if err := w.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "5 records not acknowledged") {
		t.Errorf("Close: %v", err)
	}
}

// TestUnreadUnix: a receiver at a unix socket ends with messages that it has not read. They go to the next one.
func TestUnreadUnix(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	conn, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, Config{Address: "unix://" + path})
	write(t, w, records(0, 5))
	buf := make([]byte, 64<<10)
	if _, _, err := conn.ReadFrom(buf); err != nil {
		t.Fatal(err)
	}
	if n := w.Acknowledged(); n >= 5 {
		t.Errorf("%d of 5 messages count as read, 1 was", n)
	}
	conn.Close()
	os.Remove(path)
	back := openMailbox(t, "unixgram", path)
	eventually(t, "what was not read", func() bool { return w.Acknowledged() == 5 && back.has(1, 5) })
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestFailoverUDP: nobody listens at the first receiver, and the second is tried in the same Write.
func TestFailoverUDP(t *testing.T) {
	t.Parallel()
	gone := openMailbox(t, "udp", unused()+":0")
	gone.Close()
	second := openMailbox(t, "udp", unused()+":0")
	w := newWriter(t, Config{Address: "udp://" + gone.LocalAddr().String(), Failover: []string{"udp://" + second.LocalAddr().String()}})
	defer w.Close(context.Background())
	write(t, w, records(0, 3))
	eventually(t, "the records", func() bool { return second.has(0, 3) })
}

// TestNames: a name stands for several addresses, and the receiver listens at one of them. It moves, and SIGHUP (Reopen) has
// the name looked up at once.
func TestNames(t *testing.T) {
	t.Parallel()
	here := openMailbox(t, "udp", unused()+":0")
	at := here.LocalAddr().(*net.UDPAddr).AddrPort()
	there := openMailbox(t, "udp", netip.AddrPortFrom(netip.MustParseAddr(unused()), at.Port()).String())
	w := newWriter(t, Config{Address: fmt.Sprint("udp://receiver.example:", at.Port())})
	defer w.Close(context.Background())
	var moved atomic.Bool
	w.receivers[0].peer.Resolve = func(context.Context, string, string) ([]netip.Addr, error) {
		if moved.Load() {
			return []netip.Addr{there.LocalAddr().(*net.UDPAddr).AddrPort().Addr()}, nil
		}
		return []netip.Addr{netip.MustParseAddr("::1"), netip.MustParseAddr(unused()), at.Addr()}, nil
	}
	write(t, w, records(0, 3))
	eventually(t, "the records", func() bool { return here.has(0, 3) && w.Acknowledged() == 3 })
	if n := w.counts.sessions.Load(); n != 1 {
		t.Errorf("%d sessions", n)
	}
	moved.Store(true)
	w.Reopen()
	eventually(t, "the move", func() bool { return w.counts.moves.Load() == 1 })
	write(t, w, records(3, 6))
	eventually(t, "the records elsewhere", func() bool { return there.has(3, 6) })
}

// TestSilentResolver: a name server that does not answer ends with the dial timeout, and SIGHUP does not wait for it.
func TestSilentResolver(t *testing.T) {
	t.Parallel()
	w := newWriter(t, Config{Address: "udp://receiver.example", DialTimeout: 50 * time.Millisecond})
	w.receivers[0].peer.Resolve = func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if n, err := w.Write(t.Context(), records(0, 1)); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Write returned %d, %v", n, err)
	}
	if err := w.Reopen(); err != nil {
		t.Error(err)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestStalledHandshake: somebody accepts, and says nothing of TLS. The dial timeout ends that, and who stands in gets the
// records in the same Write.
func TestStalledHandshake(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // its kernel accepts
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	stalled := "tls://" + silent.Addr().String()
	w := newWriter(t, Config{Address: stalled, DialTimeout: 100 * time.Millisecond})
	if n, err := w.Write(t.Context(), records(0, 1)); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Write returned %d, %v", n, err)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
	second := listen(t, "127.0.0.1:0", nil, true)
	w = newWriter(t, Config{Address: stalled, Failover: []string{"tcp://" + second.Addr().String()}, DialTimeout: 100 * time.Millisecond})
	defer w.Close(context.Background())
	write(t, w, records(0, 3))
	eventually(t, "the records", func() bool { return second.octetsRead() > 0 && len(second.ids(t)) == 3 })
}
