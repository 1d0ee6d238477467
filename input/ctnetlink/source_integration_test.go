//go:build integration

package ctnetlink

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// TestGuardOfAnIdleReader has the reader wake up and get stuck before it reads anything: nobody tells the guard.
func TestGuardOfAnIdleReader(t *testing.T) {
	dead := scaled(49_000)
	g := newGuarded(t, 90)
	close(g.release)
	time.Sleep(1200 * time.Millisecond) // it waits for events, and has for long
	stuck, release := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		done <- g.reader.Do(t.Context(), func() error {
			close(stuck)
			<-release
			return nil
		})
	}()
	<-stuck
	must(t, g.flood.Create(0, dead))
	from := time.Now()
	must(t, g.flood.Delete(0, dead))
	g.settle(t, guardTable*90/100)
	close(release)
	must(t, <-done)
	g.settle(t, 0)
	to := time.Now()
	g.stop()
	g.ledger(t, dead, from, to)
}

// TestGuardAfterTheReader: the guard goes on when the reader has ended, until the socket is closed. What it throws away is
// told then.
func TestGuardAfterTheReader(t *testing.T) {
	dead := scaled(49_000)
	g := newGuardedWith(t, 90, Options{Handover: true})
	close(g.release)
	g.end()
	before := time.Now()
	must(t, g.flood.Create(0, dead))
	must(t, g.flood.Delete(0, dead))
	g.settle(t, guardTable*90/100)
	must(t, g.Close())
	from, to, gap, ok := g.Unrecorded()
	if !ok || gap.Cause != flow.CauseGuard || !gap.LostKnown || gap.Lost == 0 || gap.Lost != g.Stats.GuardLost.Load() {
		t.Errorf("gap %+v, %v; the counter says %d", gap, ok, g.Stats.GuardLost.Load())
	}
	if from.After(time.Now()) || to.Before(before) {
		t.Errorf("it is from %v to %v", from.Sub(before), to.Sub(before))
	}
	if _, _, _, again := g.Unrecorded(); again {
		t.Error("it is told twice")
	}
	if len(g.ends) != 0 {
		t.Errorf("%d ends were read", len(g.ends))
	}
}

// TestChangeTakenBack: a change of the socket's settings that fails half way leaves it as it was.
func TestChangeTakenBack(t *testing.T) {
	ns := newNamespace(t)
	var s *socket
	cfg := Config{Events: []string{"destroy"}, ReceiveBuffer: minBuffer}
	cfg.Defaults()
	must(t, ns.Do(func() (err error) {
		s, err = openSocket(&cfg, zap.NewNop(), cfg.interest(nil), nil)
		return err
	}))
	defer s.close()
	type state struct {
		groups []int
		buffer int
		filter int // instructions
	}
	look := func() (st state) {
		var err error
		st.groups, err = s.memberships()
		must(t, err)
		st.buffer, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
		must(t, err)
		size := uint32(0) // SO_GET_FILTER counts instructions
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, 0,
			uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			t.Fatal(errno)
		}
		st.filter = int(size)
		return st
	}
	before, was := look(), s.settings
	if before.filter == 0 || len(before.groups) == 0 {
		t.Fatalf("the socket has no filter, or no groups: %+v", before)
	}
	next := cfg
	next.Events, next.Expectations, next.ReceiveBuffer = []string{"new", "update", "destroy"}, true, 4*minBuffer
	to := next.settings(next.interest(nil))
	to.groups = append(slices.Clone(to.groups), 4000) // the kernel has no such group
	if err := s.change(to, zap.NewNop()); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("error %v, want EINVAL", err)
	}
	if after := look(); !slices.Equal(after.groups, before.groups) || after.buffer != before.buffer || after.filter != before.filter {
		t.Errorf("the socket has %+v, want %+v", after, before)
	}
	if !slices.Equal(s.groups, was.groups) || s.buffer != was.buffer {
		t.Errorf("it is thought to have %+v, want %+v", s.settings, was)
	}
	to.groups = to.groups[:len(to.groups)-1]
	must(t, s.change(to, zap.NewNop()))
	if after := look(); slices.Equal(after.groups, before.groups) || after.buffer == before.buffer || after.filter == before.filter {
		t.Errorf("a change that works has changed nothing: %+v", after)
	}
}

// TestSwitchedOff has somebody set nf_conntrack_acct and _timestamp to 0 while flows are logged: it is said, and counted.
func TestSwitchedOff(t *testing.T) {
	ns := newNamespace(t, "events=1")
	f := newFloodIn(t, ns)
	core, logs := observer.New(zap.InfoLevel)
	w := watch(t, ns, Config{}, Options{Log: zap.New(core)})
	set := func(sysctl, value, says string) {
		n := logs.FilterMessageSnippet(says).Len()
		must(t, ns.Sysctl("net.netfilter."+sysctl, value))
		until(t, says, func() bool { return logs.FilterMessageSnippet(says).Len() == n+1 })
	}
	churn := func(from int) {
		must(t, f.Churn(from, from+100))
		until(t, "all are read", func() bool { return w.Stats.Events[flow.EventDestroy].Load() == uint64(from+100) })
	}
	churn(0)
	set("nf_conntrack_acct", "0", "no packets and no bytes: net.netfilter.nf_conntrack_acct was set to 0")
	churn(100)
	set("nf_conntrack_timestamp", "0", "nf_conntrack_timestamp was set to 0")
	churn(200)
	if got := []string{w.Switch(SwitchEvents), w.Switch(SwitchAccounting), w.Switch(SwitchTimestamps)}; !slices.Equal(got, []string{"1", "0", "0"}) {
		t.Errorf("switches: %v", got)
	}
	for _, e := range logs.FilterMessageSnippet("was set to 0").All() {
		if remedy, _ := e.ContextMap()["remedy"].(string); !strings.Contains(remedy, "sysctl -w net.netfilter.nf_conntrack_") {
			t.Errorf("%q names the remedy %q", e.Message, remedy)
		}
	}
	set("nf_conntrack_acct", "1", "nf_conntrack_acct is on again")
	set("nf_conntrack_timestamp", "1", "nf_conntrack_timestamp is on again")
	churn(300)
	w.stop()
	if n, m := w.Stats.WithoutCounters.Load(), w.Stats.WithoutStart.Load(); n != 200 || m != 100 {
		t.Errorf("%d records without counters, want 200; %d without a start, want 100", n, m)
	}
	for _, r := range w.records() {
		if r.Event == flow.EventGap {
			t.Errorf("a gap: %v", r.Extra.Gap)
		}
	}
}

// TestInjectedFlows shows how the flows of the other machine of a failover pair look, which conntrackd puts into the
// table: as the command conntrack does, over netlink. They have counters, and these are 0 as long as no packet comes here,
// which is what the rule in docs/pairs.md goes by; a flow that a packet has made has one at least.
func TestInjectedFlows(t *testing.T) {
	if _, err := exec.LookPath("conntrack"); err != nil {
		t.Skip("needs the command conntrack")
	}
	ns := newNamespace(t, "events=1")
	must(t, ns.Run("ip", "link", "set", "lo", "up"))
	must(t, ns.Run("nft", "add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c ct state new counter"))
	w := watch(t, ns, Config{Events: []string{"new", "destroy"}}, Options{})
	must(t, ns.Run("conntrack", strings.Fields("-I -p tcp -s 10.0.0.1 -d 192.0.2.1 --sport 1001 --dport 80 --state ESTABLISHED -u ASSURED,SEEN_REPLY -t 600")...))
	must(t, ns.Run("bash", "-c", "echo x > /dev/udp/127.0.0.1/9999"))
	must(t, ns.Run("conntrack", "-D"))
	until(t, "both have ended", func() bool { return w.Stats.Events[flow.EventDestroy].Load() >= 2 })
	w.stop()
	seen := map[flow.Proto]int{}
	for _, r := range w.records() {
		injected := r.Orig.Proto == flow.TCP
		seen[r.Orig.Proto]++
		switch r.Event {
		case flow.EventNew:
			if r.Has&flow.ByRequest != 0 != injected {
				t.Errorf("new, injected %v: has %b", injected, r.Has)
			}
		case flow.EventDestroy:
			if r.Has&flow.HasCounters == 0 || r.OrigCounters.Packets == 0 != injected || r.ReplyCounters.Packets != 0 || r.Start == 0 {
				t.Errorf("destroy, injected %v: has %b, counters %v and %v, start %d", injected, r.Has, r.OrigCounters, r.ReplyCounters, r.Start)
			}
		}
	}
	if seen[flow.TCP] != 2 || seen[flow.UDP] != 2 {
		t.Errorf("records by protocol: %v", seen)
	}
}

// end ends the reader, and returns when it has ended. The socket stays open.
func (g *guarded) end() { g.cancel(); must(g.t, <-g.ended) }
