package syslog

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

// eventually waits for ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// listener is a stream's receiver that keeps what it reads, by connection.
type listener struct {
	net.Listener
	octets bool

	mu    sync.Mutex
	conns []net.Conn
	got   []*bytes.Buffer
}

func listen(t *testing.T, address string, secure *tls.Config, octets bool) *listener {
	t.Helper()
	var ln net.Listener
	var err error
	eventually(t, "the address", func() bool { ln, err = net.Listen("tcp", address); return err == nil })
	if secure != nil {
		ln = tls.NewListener(ln, secure)
	}
	r := &listener{Listener: ln, octets: octets}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.conns, r.got = append(r.conns, c), append(r.got, new(bytes.Buffer))
			b := r.got[len(r.got)-1]
			r.mu.Unlock()
			go func() {
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					r.mu.Lock()
					b.Write(buf[:n])
					r.mu.Unlock()
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(r.end)
	return r
}

func (r *listener) end() {
	r.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
}

func (r *listener) octetsRead() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.got {
		n += b.Len()
	}
	return n
}

// ids counts the messages by the ct_id in them.
func (r *listener) ids(t *testing.T) map[int]int {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := map[int]int{}
	for _, b := range r.got {
		for _, m := range unframe(t, b.Bytes(), r.octets) {
			ids[idOf(t, m)]++
		}
	}
	return ids
}

func idOf(t *testing.T, m string) int {
	t.Helper()
	parts := rfc5424.FindStringSubmatch(m)
	if parts == nil {
		t.Fatalf("no message: %q", m)
	}
	var v struct {
		ID int `json:"ct_id"`
	}
	if err := json.Unmarshal([]byte(parts[8]), &v); err != nil {
		t.Fatal(err)
	}
	return v.ID
}

func newWriter(t *testing.T, c Config) *Writer {
	t.Helper()
	w, err := New(c, Options{Encoder: encoder(t, "flat"), Observer: observer, Host: "gw1"})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func write(t *testing.T, w *Writer, recs []*flow.Record) {
	t.Helper()
	if n, err := w.Write(context.Background(), recs); n != len(recs) || err != nil {
		t.Fatalf("Write = %d of %d, %v", n, len(recs), err)
	}
}

func TestStream(t *testing.T) {
	for _, framing := range Framings {
		r := listen(t, "127.0.0.1:0", nil, framing == framingOctets)
		w := newWriter(t, Config{Address: "tcp://" + r.Addr().String(), Framing: framing})
		write(t, w, records(0, 1000))
		write(t, w, records(1000, 1001))
		eventually(t, "the acknowledgement", func() bool { return w.Acknowledged() == 1001 })
		if err := w.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		want := w.counts.octets.Load()
		eventually(t, "all octets", func() bool { return uint64(r.octetsRead()) == want })
		ids := r.ids(t)
		for i := range 1001 {
			if ids[i] != 1 {
				t.Fatalf("%s: record %d came %d times", framing, i, ids[i])
			}
		}
	}
}

// TestReceiverRestarts ends the receiver between two writes; what it had not acknowledged, and what follows, comes to the
// next one, and first to the one that stands in.
func TestReceiverRestarts(t *testing.T) {
	first := listen(t, "127.0.0.1:0", nil, true)
	w := newWriter(t, Config{Address: "tcp://" + first.Addr().String()})
	defer w.Close(context.Background())
	write(t, w, records(0, 100))
	eventually(t, "the first records", func() bool { return uint64(first.octetsRead()) == w.counts.octets.Load() })
	first.end()
	eventually(t, "the end of the session", func() bool {
		_ = w.tender.Lock(t.Context())
		defer w.tender.Unlock()
		return w.session == nil
	})
	if n, err := w.Write(context.Background(), records(100, 101)); n != 0 || err == nil {
		t.Fatalf("Write without a receiver: %d, %v", n, err)
	}
	second := listen(t, first.Addr().String(), nil, true)
	write(t, w, records(100, 200))
	eventually(t, "the acknowledgement", func() bool { return w.Acknowledged() == 200 })
	eventually(t, "the other records", func() bool { return len(second.ids(t)) == 100 })
}

func TestFailover(t *testing.T) {
	first, second := listen(t, "127.0.0.1:0", nil, true), listen(t, "127.0.0.1:0", nil, true)
	w := newWriter(t, Config{Address: "tcp://" + first.Addr().String(), Failover: []string{"tcp://" + second.Addr().String()}})
	defer w.Close(context.Background())
	write(t, w, records(0, 10))
	eventually(t, "the first records", func() bool { return uint64(first.octetsRead()) == w.counts.octets.Load() })
	first.end()
	eventually(t, "the end of the session", func() bool {
		_ = w.tender.Lock(t.Context())
		defer w.tender.Unlock()
		return w.session == nil
	})
	write(t, w, records(10, 20))
	eventually(t, "the other records", func() bool { return second.octetsRead() > 0 && len(second.ids(t)) == 10 })
}

// TestBacklog has a receiver take the connection and nothing from it, and end: what was written goes to the one that
// stands in, without another Write.
func TestBacklog(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	second := listen(t, "127.0.0.1:0", nil, true)
	w := newWriter(t, Config{Address: "tcp://" + ln.Addr().String(), Failover: []string{"tcp://" + second.Addr().String()}})
	defer w.Close(context.Background())
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			c.(*net.TCPConn).SetReadBuffer(4096)
		}
		accepted <- c
	}()
	// More than the receiver's host takes, so that some is not acknowledged; few enough not to wait for room.
	write(t, w, records(0, 3000))
	conn := <-accepted
	if conn == nil {
		t.Fatal("no connection")
	}
	arrived := int(w.Acknowledged())
	if arrived >= 3000 {
		t.Fatalf("all %d records acknowledged, by a receiver that reads none", arrived)
	}
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
	ln.Close()
	eventually(t, "the backlog", func() bool { return w.Acknowledged() == 3000 })
	eventually(t, "the records", func() bool {
		return second.octetsRead() > 0 && func() bool {
			second.mu.Lock()
			defer second.mu.Unlock()
			return bytes.Contains(second.got[len(second.got)-1].Bytes(), []byte(`"ct_id":2999,`)) ||
				bytes.Contains(second.got[len(second.got)-1].Bytes(), []byte(`"ct_id":2999}`))
		}()
	})
	ids := second.ids(t)
	for i := arrived; i < 3000; i++ {
		if ids[i] != 1 {
			t.Fatalf("record %d, which was not acknowledged, came %d times", i, ids[i])
		}
	}
}

// TestDeafReceiver has a receiver that accepts and never reads. Write is ended by its context, Close is bounded.
func TestDeafReceiver(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w := newWriter(t, Config{Address: "tcp://" + ln.Addr().String()})
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	n, written := 0, 0
	for err == nil {
		n, err = w.Write(ctx, records(written, written+256))
		written += n
	}
	if ctx.Err() == nil {
		t.Fatalf("Write gave up before its context: %v", err)
	}
	ended, cancel2 := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel2()
	if err := w.Close(ended); err == nil || !strings.Contains(err.Error(), "not acknowledged") {
		t.Errorf("Close: %v", err)
	}
	if a := int(w.Acknowledged()); a >= written {
		t.Errorf("%d of %d records acknowledged", a, written)
	}
}

func TestDatagrams(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "log")
	local, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	for address, conn := range map[string]net.PacketConn{"udp://" + udp.LocalAddr().String(): udp, "unix://" + path: local} {
		w := newWriter(t, Config{Address: address})
		done := make(chan error, 1)
		go func() {
			n, err := w.Write(context.Background(), records(0, 100))
			if err == nil && n != 100 {
				err = errors.New("short")
			}
			done <- err
		}()
		buf := make([]byte, 64<<10)
		for i := range 100 {
			conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				t.Fatal(err)
			}
			if got := idOf(t, string(buf[:n])); got != i {
				t.Fatalf("%s: message %d is of record %d", address, i, got)
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		eventually(t, "all messages have arrived", func() bool { return w.Acknowledged() == 100 })
		if err := w.Close(context.Background()); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	big := record(0)
	big.Extra = &flow.Extra{SecCtx: strings.Repeat("x", 70000)}
	w := newWriter(t, Config{Address: "udp://127.0.0.1:9"})
	defer w.Close(context.Background())
	n, err := w.Write(context.Background(), []*flow.Record{big})
	var rejected interface{ Rejected() int }
	if n != 0 || !errors.As(err, &rejected) || rejected.Rejected() != 1 {
		t.Errorf("a message that fits no datagram: %d, %v", n, err)
	}
}

// TestUnixReceiverGone wants records kept while the local daemon is not there.
func TestUnixReceiverGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := newWriter(t, Config{Address: "unix://" + path})
	defer w.Close(context.Background())
	if n, err := w.Write(context.Background(), records(0, 1)); n != 0 || err == nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	for round := range 2 { // and again after it was restarted
		conn, err := net.ListenPacket("unixgram", path)
		if err != nil {
			t.Fatal(err)
		}
		var wrote error
		eventually(t, "a session", func() bool {
			_, wrote = w.Write(context.Background(), records(round, round+1))
			return wrote == nil
		})
		buf := make([]byte, 64<<10)
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, _, err := conn.ReadFrom(buf)
		if err != nil || idOf(t, string(buf[:n])) != round {
			t.Fatalf("round %d: %q, %v", round, buf[:n], err)
		}
		eventually(t, "the message has been read", func() bool { return w.Acknowledged() == uint64(round+1) })
		conn.Close()
		os.Remove(path)
	}
}

func TestTLS(t *testing.T) {
	ca, stranger := certtest.New(t), certtest.New(t)
	known, unknown := certtest.Write(t, "ca.pem", ca.PEM), certtest.Write(t, "ca.pem", stranger.PEM)
	server, _, _ := ca.Pair(t, "server", time.Hour)
	_, cert, key := ca.Pair(t, "client", time.Hour)
	mutual := &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool()}
	r := listen(t, "127.0.0.1:0", mutual, true)
	address := "tls://" + r.Addr().String()

	w := newWriter(t, Config{Address: address, TLS: TLS{CA: known, Cert: cert, Key: key}})
	write(t, w, records(0, 500))
	eventually(t, "the records", func() bool { return uint64(r.octetsRead()) == w.counts.octets.Load() })
	if err := w.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if ids := r.ids(t); len(ids) != 500 {
		t.Errorf("%d records, want 500", len(ids))
	}
	if expires, err := (Config{Address: address, TLS: TLS{CA: known, Cert: cert, Key: key}}).Reach(context.Background()); err != nil || expires.IsZero() {
		t.Errorf("Reach: %v, %v", expires, err)
	}

	_, othersCert, othersKey := stranger.Pair(t, "client", time.Hour)
	for name, c := range map[string]TLS{
		"unknown authority": {CA: unknown, Cert: cert, Key: key},
		"no certificate":    {CA: known},
		"wrong certificate": {CA: known, Cert: othersCert, Key: othersKey},
		"wrong name":        {CA: known, Cert: cert, Key: key, ServerName: "example.net"},
	} {
		w := newWriter(t, Config{Address: address, TLS: c})
		if n, err := w.Write(context.Background(), records(0, 1)); n != 0 || err == nil {
			t.Errorf("%s: Write = %d, %v", name, n, err)
		}
		if err := w.Close(context.Background()); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
	}

	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		if c, err := echo.Accept(); err == nil {
			io.WriteString(c, "220 no TLS here\r\n")
			c.Close()
		}
	}()
	w = newWriter(t, Config{Address: "tls://" + echo.Addr().String(), TLS: TLS{CA: known}})
	if n, err := w.Write(context.Background(), records(0, 1)); n != 0 || err == nil {
		t.Errorf("no TLS: Write = %d, %v", n, err)
	}
}
