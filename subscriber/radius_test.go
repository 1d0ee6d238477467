package subscriber

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"layeh.com/radius"
	"layeh.com/radius/rfc2865"
	"layeh.com/radius/rfc2866"
	"layeh.com/radius/rfc3162"
	"layeh.com/radius/rfc4818"
)

var secret = []byte("s3cret")

// nas sends accounting of one client to a listener, without a network, at times in seconds since 1970.
type nas struct {
	*testing.T
	l    *listener
	name string
}

func newNAS(t *testing.T, cfg Config) *nas {
	t.Helper()
	cfg.Type = "radius"
	if cfg.History == 0 {
		cfg.History = time.Hour
	}
	if cfg.SessionTimeout == 0 {
		cfg.SessionTimeout = time.Hour
	}
	if cfg.Limit == 0 {
		cfg.Limit = DefaultLimit
	}
	s := New(cfg, zap.NewNop())
	return &nas{t, &listener{source: s, log: s.log, secret: secret, table: s.table.Load(), nas: map[string]uint16{},
		allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, since: time.Unix(0, 0)}, "bng1"}
}

func (n *nas) request(kind rfc2866.AcctStatusType, user, addr string, more ...func(*radius.Packet)) []byte {
	p := radius.New(radius.CodeAccountingRequest, secret)
	_ = rfc2866.AcctStatusType_Set(p, kind)
	_ = rfc2865.NASIdentifier_SetString(p, n.name)
	if user != "" {
		_ = rfc2865.UserName_SetString(p, user)
	}
	if addr != "" {
		_ = rfc2865.FramedIPAddress_Set(p, net.ParseIP(addr))
	}
	for _, m := range more {
		m(p)
	}
	b, err := p.Encode()
	if err != nil {
		n.Fatal(err)
	}
	return b
}

// send wants the packet answered or not.
func (n *nas) send(sec int64, answered bool, b []byte) {
	n.Helper()
	now := time.Unix(sec, 0)
	answer := n.l.packet(b, netip.MustParseAddr("192.0.2.1"), now)
	if (answer != nil) != answered {
		n.Errorf("at %d: answer %x", sec, answer)
	}
	if answer != nil && !radius.IsAuthenticResponse(answer, b, secret) {
		n.Errorf("at %d: an answer that is not authentic", sec)
	}
	n.l.show(now)
}

func (n *nas) had(addr string, sec float64, want string) {
	n.Helper()
	if got := who(n.l.source.table.Load(), addr, int64(sec*1e9)); got != want {
		n.Errorf("%s at %v: %q, want %q", addr, sec, got, want)
	}
}

const (
	start   = rfc2866.AcctStatusType_Value_Start
	interim = rfc2866.AcctStatusType_Value_InterimUpdate
	stop    = rfc2866.AcctStatusType_Value_Stop
	on      = rfc2866.AcctStatusType_Value_AccountingOn
)

func delay(sec uint32) func(*radius.Packet) {
	return func(p *radius.Packet) { _ = rfc2866.AcctDelayTime_Set(p, rfc2866.AcctDelayTime(sec)) }
}

func lasted(sec uint32) func(*radius.Packet) {
	return func(p *radius.Packet) { _ = rfc2866.AcctSessionTime_Set(p, rfc2866.AcctSessionTime(sec)) }
}

func TestAccounting(t *testing.T) {
	n := newNAS(t, Config{})
	six := func(p *radius.Packet) {
		_, wan, _ := net.ParseCIDR("2001:db8:1:7::/64")
		_, lan, _ := net.ParseCIDR("2001:db8:4200::/56")
		_ = rfc3162.FramedIPv6Prefix_Set(p, wan)
		_ = rfc4818.DelegatedIPv6Prefix_Set(p, lan)
	}
	n.send(1000, true, n.request(start, "alice", "100.64.0.7", six))
	n.had("100.64.0.7", 994, "")
	n.had("100.64.0.7", 996, "alice") // her first packets come before her accounting
	n.had("2001:db8:1:7::1", 1000, "alice")
	n.had("2001:db8:4200:ff::1", 1000, "alice")
	n.send(1100, true, n.request(interim, "alice", "100.64.0.7", lasted(100), six))
	n.had("100.64.0.7", 4599, "alice")
	n.send(1200, true, n.request(stop, "alice", "100.64.0.7", delay(10), six))
	n.had("100.64.0.7", 1189, "alice")
	n.had("100.64.0.7", 1191, "")
	n.had("2001:db8:4200:ff::1", 1191, "")
	n.send(1193, true, n.request(start, "bob", "100.64.0.7"))
	n.had("100.64.0.7", 1189, "alice")
	n.had("100.64.0.7", 1190, "bob")
	n.send(1300, true, n.request(stop, "alice", "100.64.0.7")) // once more, late
	n.had("100.64.0.7", 1301, "bob")
	n.send(1400, true, n.request(start, "carol", "100.64.0.7")) // bob's end was lost
	n.had("100.64.0.7", 1399, "bob")
	n.had("100.64.0.7", 1400, "carol")
	// A session that was there before ctlogd, whose end is not told.
	n.send(2000, true, n.request(interim, "dave", "100.64.0.8", lasted(600)))
	n.had("100.64.0.8", 1400, "dave")
	n.had("100.64.0.8", 5599, "dave")
	n.had("100.64.0.8", 5601, "")
}

// TestAddressGivenLater wants an interim update of a session that got its address from another one, which it is older than, to
// leave that one what it had.
func TestAddressGivenLater(t *testing.T) {
	n := newNAS(t, Config{})
	n.send(1000, true, n.request(start, "bob", "100.64.0.7"))
	n.send(1100, true, n.request(interim, "bob", "100.64.0.7", lasted(100)))
	n.send(1200, true, n.request(stop, "bob", "100.64.0.7"))
	n.send(1300, true, n.request(interim, "alice", "100.64.0.7", lasted(900))) // since 400, and the address for a moment
	n.had("100.64.0.7", 500, "")
	n.had("100.64.0.7", 1050, "bob")
	n.had("100.64.0.7", 1250, "")
	n.had("100.64.0.7", 1300, "alice")
	n.send(1400, true, n.request(interim, "alice", "100.64.0.7", lasted(1000)))
	n.had("100.64.0.7", 1150, "bob")
	n.had("100.64.0.7", 1350, "alice")
	// Of one who is still thought to have it, the end was missed.
	n.send(1500, true, n.request(start, "dave", "100.64.0.8"))
	n.send(2000, true, n.request(interim, "dave", "100.64.0.8", lasted(500)))
	n.send(2500, true, n.request(interim, "carol", "100.64.0.8", lasted(1800)))
	n.had("100.64.0.8", 1999, "dave")
	n.had("100.64.0.8", 2001, "")
	n.had("100.64.0.8", 2499, "")
	n.had("100.64.0.8", 2500, "carol")
	// An update that comes late, of before ctlogd listened, takes nothing from others either.
	n.l.since = time.Unix(3000, 0)
	n.send(3010, true, n.request(interim, "carol", "100.64.0.8", lasted(2290), delay(20)))
	n.had("100.64.0.8", 1999, "dave")
	n.had("100.64.0.8", 2499, "")
}

// TestRestartedNAS ends the sessions of the one that has restarted, and no others.
func TestRestartedNAS(t *testing.T) {
	n := newNAS(t, Config{})
	n.send(1000, true, n.request(start, "alice", "100.64.0.7"))
	n.name = "bng2"
	n.send(1000, true, n.request(start, "bob", "100.64.0.8"))
	n.send(1100, true, n.request(on, "", ""))
	n.had("100.64.0.8", 1099, "bob")
	n.had("100.64.0.8", 1101, "")
	n.had("100.64.0.7", 1101, "alice")
}

// TestRefusedPackets wants each kind of them counted, unanswered and without effect.
func TestRefusedPackets(t *testing.T) {
	n := newNAS(t, Config{Limit: 2})
	st := &n.l.source.Stats
	forged := n.request(start, "mallory", "100.64.0.7")
	forged[4] ^= 1
	n.send(1000, false, forged)
	secret = []byte("other")
	b := n.request(start, "mallory", "100.64.0.7")
	secret = []byte("s3cret")
	n.send(1000, false, b)
	n.send(1000, false, b[:30])
	n.send(1000, false, nil)
	access := radius.New(radius.CodeAccessRequest, secret)
	b, _ = access.Encode()
	n.send(1000, false, b)
	if n.l.packet(n.request(start, "mallory", "100.64.0.7"), netip.MustParseAddr("198.51.100.1"), time.Unix(1000, 0)) != nil {
		t.Error("a stranger is answered")
	}
	n.send(1000, true, n.request(start, "", "100.64.0.7"))
	n.send(1000, true, n.request(start, "alice", "255.255.255.254"))
	n.send(1000, true, n.request(99, "alice", "100.64.0.7"))
	n.had("100.64.0.7", 1000, "")
	for i := range 3 {
		n.send(1000, i < 2, n.request(start, "alice", fmt.Sprintf("100.64.0.%d", i)))
	}
	got := [...]uint64{st.Forged.Load(), st.Damaged.Load(), st.Foreign.Load(), st.Useless.Load(), st.Full.Load(), st.Accepted.Load()}
	if want := [...]uint64{2, 2, 1, 4, 1, 2}; got != want {
		t.Errorf("forged, damaged, foreign, useless, full, accepted: %v, want %v", got, want)
	}
}

// listening returns the configuration of a source that takes packets of this host at a port that is free.
func listening(t *testing.T) Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(string(secret)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	return Config{Type: "radius", Listen: free.LocalAddr().String(), SecretFile: file, Clients: []string{"127.0.0.1"}, History: time.Hour,
		SessionTimeout: time.Hour, Limit: 1000}
}

// TestListener sends over a socket, and floods it with what is forged.
func TestListener(t *testing.T) {
	cfg := listening(t)
	cfg.Clients = []string{"127.0.0.0/8"}
	at := cfg.Listen
	s := New(cfg, zap.NewNop())
	s.Start("")
	defer s.Stop()
	conn, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n := &nas{T: t}
	ctx, cancel := context.WithCancel(t.Context())
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		c, err := net.Dial("udp", at)
		if err != nil {
			return
		}
		defer c.Close()
		for b := bytes.Repeat([]byte{4, 0, 0, 200}, 50); ctx.Err() == nil; {
			_, _ = c.Write(b)
		}
	}()
	answer := make([]byte, 4096)
	for deadline := time.Now().Add(20 * time.Second); ; {
		b := n.request(start, "alice", "100.64.0.7")
		_, _ = conn.Write(b)
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		size, err := conn.Read(answer)
		if err == nil && radius.IsAuthenticResponse(answer[:size], b, secret) && s.Damaged.Load()+s.Forged.Load() > 0 { // amid the flood
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no answer")
		}
	}
	cancel()
	<-flooded
	for who(s.table.Load(), "100.64.0.7", time.Now().UnixNano()) != "alice" {
		time.Sleep(10 * time.Millisecond)
	}
	if s.Failure() != "" || s.Damaged.Load()+s.Forged.Load() == 0 {
		t.Errorf("failure %q, %d damaged", s.Failure(), s.Damaged.Load())
	}
}

func FuzzRADIUS(f *testing.F) {
	n := newNAS(&testing.T{}, Config{})
	for _, b := range [][]byte{n.request(start, "alice", "100.64.0.7"), n.request(on, "", ""), n.request(stop, "alice", "100.64.0.7", delay(3), lasted(5))} {
		f.Add(b[20:], false)
	}
	f.Add([]byte{97, 4, 0, 200, 123, 3, 0}, false)
	f.Fuzz(func(t *testing.T, attributes []byte, raw bool) {
		n := newNAS(t, Config{Limit: 1000})
		from, now := netip.MustParseAddr("192.0.2.1"), time.Unix(1_000_000, 0)
		if raw {
			n.l.packet(attributes, from, now)
			return
		}
		p := radius.New(radius.CodeAccountingRequest, secret)
		var err error
		if p.Attributes, err = radius.ParseAttributes(attributes); err != nil {
			return
		}
		b, err := p.Encode()
		if err != nil {
			return
		}
		n.l.packet(b, from, now)
		n.l.show(now)
		n.l.table.each(func(g *page, s *slot) {
			if g.idOf(s) == "" || s.from < 0 {
				t.Fatalf("%+v", s)
			}
		})
	})
}

// TestFullTable wants sessions that are known to go on while the table has no room for others.
func TestFullTable(t *testing.T) {
	n := newNAS(t, Config{Limit: 2, SessionTimeout: time.Minute})
	n.send(1000, true, n.request(start, "alice", "100.64.0.1"))
	n.send(1000, true, n.request(start, "bob", "100.64.0.2"))
	n.send(1050, false, n.request(start, "carol", "100.64.0.3"))
	n.send(1050, true, n.request(interim, "alice", "100.64.0.1"))
	n.send(1055, true, n.request(start, "dave", "100.64.0.2"))
	n.had("100.64.0.1", 1100, "alice")
	n.had("100.64.0.2", 1100, "dave")
	n.had("100.64.0.3", 1100, "")
	if full := n.l.source.Stats.Full.Load(); full != 1 {
		t.Errorf("%d packets were not taken for want of room, want 1", full)
	}
}

// TestMarksOutliveTheSocket wants sessions to stay those of their client when the socket was opened again.
func TestMarksOutliveTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(Config{Type: "radius", Listen: "127.0.0.1:0", SecretFile: path, Clients: []string{"192.0.2.0/24"}, History: time.Hour,
		SessionTimeout: time.Hour, Limit: 10}, zap.NewNop())
	marks := map[string]uint16{}
	open := func(name string) *nas {
		l, conn, err := s.open(context.Background(), marks)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return &nas{t, l, name}
	}
	n := open("bng1")
	n.send(1000, true, n.request(start, "alice", "100.64.0.1"))
	n = open("bng2")
	n.send(1100, true, n.request(rfc2866.AcctStatusType_Value_AccountingOn, "", ""))
	n.had("100.64.0.1", 1200, "alice")
}
