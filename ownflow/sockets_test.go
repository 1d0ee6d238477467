package ownflow

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// recordOf returns the end of the flow from local to remote.
func recordOf(proto flow.Proto, local, remote netip.AddrPort) flow.Record {
	return flow.Record{Event: flow.EventDestroy, Received: time.Now().UnixNano(), Orig: flow.Tuple{Proto: proto,
		Src: flow.AddrFrom(local.Addr()), Dst: flow.AddrFrom(remote.Addr()), SrcPort: local.Port(), DstPort: remote.Port()}}
}

// own reports whether s drops r, between two records of others, which stay.
func own(t *testing.T, s *Sockets, r flow.Record) bool {
	t.Helper()
	b := flow.NewBatch(3, func(*flow.Batch) {})
	before, after := r, r
	before.Orig.Dst[15]++
	after.Event = flow.EventGap
	for _, r := range []flow.Record{before, r, after} {
		*b.Next() = r
	}
	s.Process(b)
	n := len(b.Records)
	if n < 2 || b.Records[0] != before || b.Records[n-1] != after {
		t.Fatalf("records of others: %+v", b.Records)
	}
	return n == 2
}

var (
	here  = netip.MustParseAddrPort("192.0.2.1:40000")
	there = netip.MustParseAddrPort("198.51.100.7:4739")
)

func TestTrack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		r := func() flow.Record { return recordOf(flow.UDP, here, there) }
		if own(t, s, r()) {
			t.Error("a flow of nobody is taken for one of ours")
		}
		release := s.Track(flow.UDP, here, there)
		time.Sleep(30 * 24 * time.Hour)
		if !own(t, s, r()) {
			t.Error("the flow of an open socket is not known")
		}
		for name, change := range map[string]func(*flow.Tuple){
			"source":           func(t *flow.Tuple) { t.Src[15]++ }, // a host behind the firewall with the same port
			"source port":      func(t *flow.Tuple) { t.SrcPort++ },
			"destination":      func(t *flow.Tuple) { t.Dst[15]++ },
			"destination port": func(t *flow.Tuple) { t.DstPort++ },
			"protocol":         func(t *flow.Tuple) { t.Proto = flow.TCP },
		} {
			other := r()
			change(&other.Orig)
			if own(t, s, other) {
				t.Errorf("a flow with another %s is taken for ours", name)
			}
		}
		second := s.Track(flow.UDP, here, there)
		release()
		release()
		time.Sleep(2 * keep)
		if !own(t, s, r()) {
			t.Error("the first socket's end is taken for that of the second, which has the same tuple")
		}
		second()
		time.Sleep(keep)
		if !own(t, s, r()) {
			t.Error("a flow that ended within an hour after its socket is not known")
		}
		time.Sleep(time.Nanosecond)
		if own(t, s, r()) {
			t.Error("a tuple is known for ever")
		}
	})
}

// TestBound: sockets that come and go leave a bounded number of tuples, the youngest; open ones stay.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		s.Track(flow.UDP, here, there)
		at := func(i int) netip.AddrPort { return netip.AddrPortFrom(here.Addr(), uint16(i)) }
		const n = maxClosed + 10
		for i := range n {
			s.Track(flow.TCP, at(i), there)()
			time.Sleep(time.Millisecond)
		}
		if got := len(s.known.Load().tuples); got != maxClosed+1 {
			t.Errorf("%d tuples, want %d", got, maxClosed+1)
		}
		if own(t, s, recordOf(flow.TCP, at(9), there)) || !own(t, s, recordOf(flow.TCP, at(10), there)) {
			t.Error("not the oldest were forgotten")
		}
		if !own(t, s, recordOf(flow.UDP, here, there)) {
			t.Error("an open socket was forgotten")
		}
	})
}

func TestDial(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		p, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for _, to := range []net.Addr{l.Addr(), p.LocalAddr()} {
			s := New()
			proto := flow.UDP
			if to.Network() == "tcp" {
				proto = flow.TCP
			}
			conn, err := s.DialContext(t.Context(), to.Network(), to.String())
			if err != nil {
				t.Fatal(err)
			}
			r := recordOf(proto, addrPort(conn.LocalAddr()), addrPort(to))
			if !own(t, s, r) {
				t.Errorf("%s %s: not known while it is open", to.Network(), to)
			}
			conn.Close()
			if !own(t, s, r) || s.known.Load().tuples[tuple{r.Orig.Src, r.Orig.Dst, r.Orig.SrcPort, r.Orig.DstPort, proto}] == 0 {
				t.Errorf("%s %s: not known for some time after it has closed", to.Network(), to)
			}
		}
	}
}

// TestFailedDial: an attempt that is refused is a flow, known before its first packet, and the next one is the same.
func TestFailedDial(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		to := l.Addr()
		l.Close()
		s := New()
		for range 3 {
			if conn, err := s.DialContext(t.Context(), "tcp", to.String()); err == nil {
				conn.Close()
				t.Fatalf("%s accepts connections", to)
			}
		}
		if got := len(s.known.Load().tuples); got != 1 {
			t.Errorf("%s: three attempts are %d flows, want 1", to, got)
		}
		port := s.ports[addrPort(to)]
		r := recordOf(flow.TCP, netip.AddrPortFrom(addrPort(to).Addr(), port), addrPort(to))
		if port == 0 || !own(t, s, r) {
			t.Errorf("%s: the attempt from port %d is not known", to, port)
		}
		if l, err = net.Listen("tcp", to.String()); err != nil {
			t.Fatal(err)
		}
		conn, err := s.DialContext(t.Context(), "tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		if got := addrPort(conn.LocalAddr()).Port(); got != port {
			t.Errorf("%s: connected from port %d, the attempts before came from %d", to, got, port)
		}
		// The port is taken now, and the next connection does without it.
		other, err := s.DialContext(t.Context(), "tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		other.Close()
		conn.Close()
		l.Close()
	}
}

// TestResolver: the questions to name servers are flows of ours as well.
func TestResolver(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	s := New()
	conn, err := s.Resolver().Dial(t.Context(), "udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := conn.(net.PacketConn); !ok {
		t.Errorf("%T is no net.PacketConn, so that Go's resolver would speak DNS over TCP to it", conn)
	}
	if !own(t, s, recordOf(flow.UDP, addrPort(conn.LocalAddr()), addrPort(server.LocalAddr()))) {
		t.Error("the question is not known")
	}
	conn.Close()
}

func TestNil(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var s *Sockets
	conn, err := s.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	s.Track(flow.TCP, here, there)()
	if s.Resolver() != net.DefaultResolver {
		t.Error("another resolver than the default")
	}
}

// TestConcurrent is for the race detector.
func TestConcurrent(t *testing.T) {
	s := New()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		b := flow.NewBatch(1, func(*flow.Batch) {})
		for ctx.Err() == nil {
			b.Reset()
			*b.Next() = recordOf(flow.UDP, here, there)
			s.Process(b)
		}
	})
	for range 200 {
		s.Track(flow.UDP, here, there)()
	}
	cancel()
	running.Wait()
}

func fullBatch(own int) (*Sockets, *flow.Batch, []flow.Record) {
	s := New()
	for i := range 16 {
		s.Track(flow.UDP, netip.AddrPortFrom(here.Addr(), uint16(40000+i)), there)
	}
	b := flow.NewBatch(256, func(*flow.Batch) {})
	for i := range 256 {
		src := netip.MustParseAddrPort("10.0.0.1:" + strconv.Itoa(1024+i*200))
		if i < own {
			src = here
		}
		*b.Next() = recordOf(flow.UDP, src, there)
	}
	return s, b, append([]flow.Record(nil), b.Records...)
}

func TestProcessAllocates(t *testing.T) {
	s, b, records := fullBatch(8)
	allocs := testing.AllocsPerRun(100, func() {
		b.Records = append(b.Records[:0], records...)
		s.Process(b)
	})
	if allocs != 0 || len(b.Records) != 248 {
		t.Errorf("%v allocations, %d records left", allocs, len(b.Records))
	}
}

func BenchmarkProcess(bench *testing.B) {
	s, b, _ := fullBatch(0)
	bench.ReportAllocs()
	for bench.Loop() {
		s.Process(b)
	}
	bench.ReportMetric(float64(bench.Elapsed().Nanoseconds())/float64(bench.N)/256, "ns/record")
}
