package ipfix

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ctlogd/ctlogd/output/datagram"
)

// alone counts the addresses that unused has given out.
var alone atomic.Uint32

// unused returns a loopback address that no other test uses, so that a port of it stays free when it was closed.
func unused() string {
	n := alone.Add(1)
	return fmt.Sprintf("127.77.%d.%d", n>>8&255, n&255)
}

// nobody returns a UDP port on which nobody listens.
func nobody(t *testing.T) (address string) {
	t.Helper()
	c, err := net.ListenPacket("udp", unused()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}

// until calls ok until it says so.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// TestRefusedUDP: nobody listens. Write says so, and spends no record on finding out, however often it is tried. A collector
// that comes up gets everything.
func TestRefusedUDP(t *testing.T) {
	t.Parallel()
	address := nobody(t)
	e := newExporter(t, Config{Address: "udp://" + address})
	for range 3 {
		if n, err := e.Write(t.Context(), numbered(1, 10)); n != 0 || !errors.Is(err, datagram.ErrRefused) {
			t.Fatalf("Write returned %d, %v", n, err)
		}
	}
	if s := e.Stats(); s.Refused < 3 || s.Records != 0 || s.Sessions != 0 {
		t.Errorf("statistics after three refusals: %+v", s)
	}
	c, _ := collectUDP(t, address)
	write(t, e, numbered(1, 10))
	if diff := cmp.Diff(numbers(1, 10), c.wait(enough(10)).flows()); diff != "" {
		t.Errorf("flow ids (-want +got):\n%s", diff)
	}
}

// TestRefusedLater: the collector ends between two records. What was sent since, and was handed to the kernel without an
// error, does not count as arrived, and is sent again when a collector is back; no Write has to come along for it.
func TestRefusedLater(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenPacket("udp", unused()+":0")
	if err != nil {
		t.Fatal(err)
	}
	address := conn.LocalAddr().String()
	core, logs := observer.New(zapcore.WarnLevel)
	e, err := New(Config{Address: "udp://" + address}, Options{Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	write(t, e, numbered(1, 10))
	until(t, "the first records arrive", func() bool { return e.Acknowledged() == 10 })
	conn.Close()
	write(t, e, numbered(11, 10))
	until(t, "a refusal is noticed", func() bool { e.Acknowledged(); return e.Stats().Refused > 0 })
	if n, err := e.Write(t.Context(), numbered(21, 1)); n != 0 || !errors.Is(err, datagram.ErrRefused) {
		t.Errorf("Write to a collector that refuses returned %d, %v", n, err)
	}
	if n := e.Acknowledged(); n != 10 {
		t.Errorf("%d records have arrived, 10 were refused", n)
	}
	c, _ := collectUDP(t, address)
	if diff := cmp.Diff(numbers(11, 10), c.wait(enough(10)).flows()); diff != "" {
		t.Errorf("flow ids (-want +got):\n%s", diff)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
	if n, s := e.Acknowledged(), e.Stats(); n != 20 || s.Resent != 10 {
		t.Errorf("%d records have arrived, %d sent again", n, s.Resent)
	}
	if ended := logs.FilterMessage("session ended").All(); len(ended) != 1 || ended[0].ContextMap()["remedy"] == nil {
		t.Errorf("one end of a session makes these lines: %v", ended)
	}
}

// TestCloseAwaitsRefusal: Close says what was refused, although the kernel took it.
func TestCloseAwaitsRefusal(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenPacket("udp", unused()+":0")
	if err != nil {
		t.Fatal(err)
	}
	e := newExporter(t, Config{Address: "udp://" + conn.LocalAddr().String()})
	write(t, e, numbered(1, 1))
	until(t, "the first record arrives", func() bool { return e.Acknowledged() == 1 })
	conn.Close()
	write(t, e, numbered(2, 5))
	err = e.Close(t.Context())
	if err == nil || !strings.Contains(err.Error(), "5 records not acknowledged") || e.Acknowledged() != 1 {
		t.Errorf("Close: %v; %d records have arrived", err, e.Acknowledged())
	}
}

// TestNames: a name stands for several addresses, and the collector listens at one of them.
func TestNames(t *testing.T) {
	c, at := collectUDP(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(at)
	for _, list := range [][]string{{"::1", "127.0.0.1"}, {"127.0.0.1", "::1"}, {"127.0.0.2", "::1", "127.0.0.1"}} {
		before := len(c.peek().flows())
		e := newExporter(t, Config{Address: "udp://collector.example:" + port})
		e.collectors[0].peer.Resolve = func(_ context.Context, _, host string) (ips []netip.Addr, err error) {
			if host != "collector.example" {
				return nil, fmt.Errorf("asked for %q", host)
			}
			for _, ip := range list {
				ips = append(ips, netip.MustParseAddr(ip))
			}
			return ips, nil
		}
		write(t, e, numbered(1, 3))
		if diff := cmp.Diff(numbers(1, 3), c.wait(enough(before + 3)).flows()[before:]); diff != "" {
			t.Errorf("%v: flow ids (-want +got):\n%s", list, diff)
		}
		if got := e.Stats().Sessions; got != 1 {
			t.Errorf("%v: %d sessions, want 1", list, got)
		}
		e.Close(t.Context())
	}
}

// TestNameMoves: the name's address changes while the old one goes on taking what is sent. SIGHUP (Reopen) has it looked
// up at once, template_interval sooner or later.
func TestNameMoves(t *testing.T) {
	t.Parallel()
	first, second := unused(), unused()
	old, at := collectUDP(t, first+":0")
	_, port, _ := net.SplitHostPort(at)
	moved, _ := collectUDP(t, second+":"+port)
	for _, interval := range []time.Duration{time.Second, time.Hour} {
		var now netip.Addr
		fails := false
		was, is := len(old.peek().flows()), len(moved.peek().flows())
		e := newExporter(t, Config{Address: "udp://collector.example:" + port, TemplateInterval: interval})
		e.collectors[0].peer.Resolve = func(context.Context, string, string) ([]netip.Addr, error) {
			_ = e.tender.Lock(t.Context()) // looked up without the lock, which Write needs
			defer e.tender.Unlock()
			if fails {
				return nil, errors.New("server misbehaving")
			}
			return []netip.Addr{now}, nil
		}
		set := func(ip string, failing bool) {
			_ = e.tender.Lock(t.Context())
			now, fails = netip.MustParseAddr(ip), failing
			e.tender.Unlock()
		}
		now = netip.MustParseAddr(first)
		e.collectors[0].peer.Move([]netip.AddrPort{netip.MustParseAddrPort(at)}) // the first session asks under the lock
		write(t, e, numbered(1, 1))
		old.wait(enough(was + 1))
		set(first, true)
		e.Reopen()
		until(t, "the failing name server is asked", func() bool { return !e.reopen.Load() })
		write(t, e, numbered(2, 1)) // goes on
		old.wait(enough(was + 2))
		set(second, false)
		if interval == time.Hour {
			e.Reopen()
		}
		until(t, "the session moves", func() bool { return e.Stats().Moves == 1 })
		write(t, e, numbered(3, 1))
		// What was sent a moment before may come along.
		moved.wait(func(c capture) bool { ids := c.flows(); return len(ids) > is && ids[len(ids)-1] == 3 })
		e.Close(t.Context())
	}
}

// TestSequenceGoesOn: a session that begins again on the same socket goes on with its numbers, and what was not sent is
// not counted.
func TestSequenceGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		e, _ := fakeExporter(t, Config{Address: "udp://192.0.2.1"}, func() (transport, error) { f.over = nil; return f, nil })
		defer stopFake(e)
		write(t, e, numbered(1, 100))
		f.over = datagram.ErrRefused
		if err := e.session.err(); err == nil {
			t.Fatal("the session is not over")
		}
		write(t, e, numbered(101, 1))
		if e.data.seq != 101 {
			t.Errorf("sequence number %d after 101 records", e.data.seq)
		}
	})
}

// TestNameMovesAway: the name's address changes, and the old one refuses. The new one is found with the next attempts, long
// before template_interval.
func TestNameMovesAway(t *testing.T) {
	t.Parallel()
	first, second := unused(), unused()
	conn, err := net.ListenPacket("udp", first+":0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(conn.LocalAddr().String())
	e := newExporter(t, Config{Address: "udp://collector.example:" + port, TemplateInterval: time.Hour})
	var moved atomic.Bool
	e.collectors[0].peer.Resolve = func(context.Context, string, string) ([]netip.Addr, error) {
		if moved.Load() {
			return []netip.Addr{netip.MustParseAddr(second)}, nil
		}
		return []netip.Addr{netip.MustParseAddr(first)}, nil
	}
	write(t, e, numbered(1, 1))
	until(t, "the first record arrives", func() bool { return e.Acknowledged() == 1 })
	conn.Close()
	c, _ := collectUDP(t, second+":"+port)
	moved.Store(true)
	until(t, "a session begins at the new address", func() bool {
		_, err := e.Write(t.Context(), numbered(2, 1))
		return err == nil && len(c.peek().flows()) > 0
	})
}

// TestReasons: the error names every address that was tried, on one line.
func TestReasons(t *testing.T) {
	t.Parallel()
	_, port, _ := net.SplitHostPort(nobody(t))
	e := newExporter(t, Config{Address: "udp://collector.example:" + port, Failover: []string{"udp://" + nobody(t)}})
	first, second := unused(), unused()
	e.collectors[0].peer.Resolve = func(context.Context, string, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr(first), netip.MustParseAddr(second)}, nil
	}
	_, err := e.Write(t.Context(), numbered(1, 1))
	if !errors.Is(err, datagram.ErrRefused) {
		t.Fatal(err)
	}
	text := err.Error()
	for _, want := range []string{"at " + first + ":" + port, "at " + second + ":" + port, e.collectors[1].String()} {
		if !strings.Contains(text, want) || strings.Contains(text, "\n") {
			t.Errorf("the error lacks %q, or is not one line: %q", want, text)
		}
	}
}
