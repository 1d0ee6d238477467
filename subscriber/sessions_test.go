package subscriber

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"layeh.com/radius"
	"layeh.com/radius/rfc4818"
)

// restart returns a listener that begins with what n's has written at a time.
func (n *nas) restart(file string, sec int64) *nas {
	n.Helper()
	if _, err := n.l.source.save(file, func() {}); err != nil {
		n.Fatal(err)
	}
	next := newNAS(n.T, n.l.source.cfg)
	recalled := make(chan *sessions, 1)
	recalled <- next.l.source.recall(file, time.Unix(sec, 0))
	next.l.nas = next.l.source.take(context.Background(), recalled)
	next.l.table = next.l.source.table.Load()
	next.name, next.l.since = n.name, time.Unix(sec, 0)
	return next
}

// TestSessionsAfterARestart wants nobody named for a time in which nobody listened, unless the session is known to have been there
// all the time since.
func TestSessionsAfterARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sessions")
	n := newNAS(t, Config{})
	lan := func(p *radius.Packet) {
		_, prefix, _ := net.ParseCIDR("2001:db8:4200::/56")
		_ = rfc4818.DelegatedIPv6Prefix_Set(p, prefix)
	}
	odd := "a\x00\xff \"\n" + strings.Repeat("b", 100)
	n.send(900, true, n.request(start, "zoe", "100.64.0.1"))
	n.send(950, true, n.request(stop, "zoe", "100.64.0.1"))
	for i, user := range []string{"alice", "bob", "carol", "dave", "eve", odd} {
		n.send(1000, true, n.request(start, user, "100.64.0."+string(rune('1'+i)), lan))
	}
	n.name = "bng2"
	n.send(1000, true, n.request(start, "frank", "100.64.0.9"))
	n.send(1100, true, n.request(stop, "eve", "100.64.0.5"))
	n.send(1150, true, n.request(interim, "alice", "100.64.0.1", lasted(150)))

	n = n.restart(file, 1200) // the last packet was at 1150
	n.had("100.64.0.1", 949, "zoe")
	n.had("100.64.0.1", 1149, "alice")
	n.had("100.64.0.1", 1151, "")
	n.had("100.64.0.5", 1099, "eve")
	n.had("100.64.0.5", 1101, "")
	n.had("100.64.0.6", 1149, odd)
	n.had("2001:db8:4200::1", 1149, odd)
	n.send(1202, true, n.request(start, "mallory", "100.64.0.4"))
	// Two whose sessions went on, one of them without a word of how long.
	n.send(1300, true, n.request(interim, "alice", "100.64.0.1", lasted(300)))
	n.send(1300, true, n.request(interim, "bob", "100.64.0.2"))
	n.had("100.64.0.1", 1151, "alice")
	n.had("100.64.0.1", 1400, "alice")
	n.had("100.64.0.2", 1149, "bob")
	n.had("100.64.0.2", 1200, "")
	n.had("100.64.0.2", 1300, "bob")
	// One that ended meanwhile, and began again; one whose address is another's by now.
	n.send(1300, true, n.request(interim, "carol", "100.64.0.3", lasted(50)))
	n.had("100.64.0.3", 1149, "carol")
	n.had("100.64.0.3", 1240, "")
	n.had("100.64.0.3", 1250, "carol")
	n.had("100.64.0.4", 1149, "dave")
	n.had("100.64.0.4", 1199, "") // dave's, perhaps
	n.had("100.64.0.4", 1201, "mallory")
	// Sessions are still their client's, and a second restart knows them all.
	n = n.restart(file, 1310)
	n.had("100.64.0.1", 949, "zoe")
	n.had("100.64.0.2", 1300, "")
	n.had("100.64.0.3", 1260, "carol")
	n.name = "bng2"
	n.send(1320, true, n.request(interim, "frank", "100.64.0.9", lasted(320)))
	n.name = "bng1"
	n.send(1320, true, n.request(interim, "alice", "100.64.0.1", lasted(320)))
	n.name = "bng2"
	n.send(1330, true, n.request(on, "", ""))
	n.had("100.64.0.9", 1329, "frank")
	n.had("100.64.0.9", 1331, "")
	n.had("100.64.0.1", 1331, "alice")
	// The clock was set back.
	n = n.restart(file, 1050)
	n.had("100.64.0.1", 1049, "alice")
	n.had("100.64.0.1", 1051, "")
	// What ended longer than history ago is forgotten.
	n = n.restart(file, 1_000_000)
	n.had("100.64.0.1", 1049, "")
}

// TestBrokenSessions damages the file at each byte and cuts it at each: never is a part of it taken, and always it is put aside.
func TestBrokenSessions(t *testing.T) {
	n := newNAS(t, Config{})
	n.send(1000, true, n.request(start, "alice", "100.64.0.1"))
	n.send(1000, true, n.request(start, "bob", "100.64.0.2"))
	file := filepath.Join(t.TempDir(), "sessions")
	size, err := n.l.source.save(file, func() {})
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(file)
	if err != nil || int(size)+len("end 00000000\n") != len(good) {
		t.Fatalf("%v: %d bytes, %q", err, size, good)
	}
	try := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if is := n.l.source.recall(file, time.Unix(1100, 0)); is != nil {
			t.Errorf("%d leases of %q", is.table.leases, text)
		}
		if aside, err := os.ReadFile(file + ".broken"); err != nil || !bytes.Equal(aside, text) {
			t.Errorf("put aside: %q, %v", aside, err)
		}
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 1
		try(bad)
		try(good[:i])
	}
	try(bytes.Replace(good, []byte("sessions 1"), []byte("sessions 2"), 1))
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if is := n.l.source.recall(file, time.Unix(1100, 0)); is == nil || is.table.leases != 2 {
		t.Errorf("%+v of what is right", is)
	}
}

// TestSessionsAreKept wants the file to be written each minute, and at the end.
func TestSessionsAreKept(t *testing.T) {
	n := newNAS(t, Config{})
	file := filepath.Join(t.TempDir(), "sessions")
	synctest.Test(t, func(t *testing.T) {
		recalled, ended := make(chan *sessions, 1), make(chan struct{})
		s := New(n.l.source.cfg, zap.NewNop())
		n.l.source = s
		go s.keep(file, nil, recalled, ended)
		has := func(leases int) {
			t.Helper()
			synctest.Wait()
			if is := s.recall(file, time.Unix(1100, 0)); leases == 0 && is != nil || leases != 0 && (is == nil || is.table.leases != leases) {
				t.Errorf("%+v, want %d leases", is, leases)
			}
		}
		time.Sleep(saveEvery + 1)
		has(0) // nothing was ever taken
		n.send(1000, true, n.request(start, "alice", "100.64.0.1"))
		time.Sleep(saveEvery)
		has(1)
		n.send(1000, true, n.request(start, "bob", "100.64.0.2"))
		has(1)
		close(ended)
		<-s.Kept()
		has(2)
	})
}

// TestSessionsWithoutADisk wants sources to begin and to end without a disk for their sessions, and with one that is slow to be had.
func TestSessionsWithoutADisk(t *testing.T) {
	dir := t.TempDir()
	cfg := listening(t)
	cfg.Name, cfg.Listen = "a/../b", "127.0.0.1:0"
	for _, state := range []string{"", filepath.Join(dir, "none"), dir} {
		s := New(cfg, zap.NewNop())
		s.Start(state)
		for s.Fresh.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		s.Stop()
		<-s.Kept()
	}
	if _, err := os.Stat(filepath.Join(dir, "sessions-a%2F..%2Fb")); err != nil {
		t.Error(err)
	}
}

// TestSourceTakesOver has a source take the place of another of its name, as a reload does: it has the socket, and knows the sessions.
func TestSourceTakesOver(t *testing.T) {
	dir := t.TempDir()
	cfg := listening(t)
	await := func(s *Source, packets uint64) {
		for s.Fresh.Load() == 0 || s.Accepted.Load() < packets {
			time.Sleep(time.Millisecond)
		}
	}
	old := New(cfg, zap.NewNop())
	old.Start(dir)
	await(old, 0)
	n := newNAS(t, cfg)
	conn, err := net.Dial("udp", cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(n.request(start, "alice", "100.64.0.1")); err != nil {
		t.Fatal(err)
	}
	await(old, 1)
	began := time.Now().UnixNano()

	cfg.Clients = []string{"127.0.0.0/8"}
	next := New(cfg, zap.NewNop())
	next.Follow(old)
	old.Stop()
	next.Start(dir)
	await(next, 0)
	if got := who(next.table.Load(), "100.64.0.1", began); got != "alice" || next.Failure() != "" {
		t.Errorf("%q, failure %q", got, next.Failure())
	}
	next.Stop()
	<-next.Kept()
}
