//go:build integration

package ctnetlink

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input/netns"
	"github.com/ctlogd/ctlogd/integration/lab"
)

const namesDir = "/run/netns"

func TestMain(m *testing.M) { os.Exit(lab.WithoutNames(m.Run, namesDir)) }

// nameSpace gives a namespace a name until the test ends, or unname is called.
func nameSpace(t *testing.T, ns *lab.NS, name string) (unname func()) {
	t.Helper()
	path := filepath.Join(namesDir, name)
	must(t, os.WriteFile(path, nil, 0))
	must(t, unix.Mount(ns.Path(), path, "none", unix.MS_BIND, ""))
	unname = func() {
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
	}
	t.Cleanup(unname)
	return unname
}

// TestGuardOfOtherNamespaces: ended flows that wait for a reader that is stuck fill the table of another namespace as well,
// and the guard gives some up, which are counted: whether it can look at that table or not.
func TestGuardOfOtherNamespaces(t *testing.T) {
	for _, named := range []bool{true, false} {
		t.Run(fmt.Sprintf("named %t", named), func(t *testing.T) {
			g := newGuardedWith(t, 90, Options{}, AllNamespaces)
			other := newFloodNS(t)
			if named {
				nameSpace(t, other, "other")
			} else { // a link to it gives it an id
				must(t, g.ns.Link("there", nil, other, "here", nil))
				must(t, g.ns.Run("ip", "-d", "link"))
			}
			g.ns, g.flood = other, newFloodIn(t, other)
			until(t, "the other namespace is known", func() bool {
				view, _ := g.Source.Namespaces()
				return len(view.Unnamed) > 0 || len(view.Spaces) > 0 && view.Spaces[0].Entered()
			})
			g.keepsOpen(t, scaled(49_000), scaled(3_000), scaled(2_000))
		})
	}
}

// TestKeptSocketOfAnotherKind: a socket that a process without the rights has opened would hear nothing of others, so it is
// given up, and what it asks of the kernel with it.
func TestKeptSocketOfAnotherKind(t *testing.T) {
	ns := newNamespace(t)
	flood := newFloodIn(t, ns)
	open := func(kept *os.File, namespaces string) (s *Source) {
		t.Helper()
		cfg := Config{Namespaces: []string{namespaces}, ReceiveBuffer: minBuffer}
		cfg.Defaults()
		must(t, ns.Do(func() (err error) {
			s, err = Open(cfg, Options{Kept: kept, Handover: true})
			return err
		}))
		return s
	}
	keep := func(s *Source) *os.File {
		t.Helper()
		fd, err := unix.FcntlInt(uintptr(s.FD()), unix.F_DUPFD_CLOEXEC, 0)
		must(t, err)
		f := os.NewFile(uintptr(fd), "kept")
		t.Cleanup(func() { f.Close() })
		return f
	}
	first := open(nil, OwnNamespace)
	kept, mine := keep(first), keep(first)
	must(t, first.Close())
	second := open(kept, AllNamespaces)
	if second.Adopted() || !second.sock.hearsOthers() {
		t.Error("the socket of a process that heard its own namespace alone is used for all")
	}
	groups, err := (&socket{fd: int(mine.Fd())}).memberships()
	if must(t, err); len(groups) > 0 {
		t.Errorf("whoever keeps it keeps a member of groups %v", groups)
	}
	again := keep(second)
	must(t, second.Close())
	third := open(again, AllNamespaces)
	if !third.Adopted() {
		t.Error("a socket that hears all namespaces is not used for all")
	}
	back := keep(third)
	must(t, third.Close())
	fourth := open(back, OwnNamespace)
	if fourth.Adopted() || fourth.sock.hearsOthers() {
		t.Error("a socket that hears all namespaces is used for one's own alone")
	}
	must(t, flood.Churn(0, 10))
	must(t, fourth.Close())
}

// byHand is a source that is read when the test says so, and what has come of it.
type byHand struct {
	t *testing.T
	*Source
	batch *flow.Batch
	got   map[string]map[int]int // by "NAMESPACE EVENT", the flow's number
	gaps  map[string]flow.Cause  // by namespace
}

func openByHand(t *testing.T, ns *lab.NS, cfg Config) *byHand {
	t.Helper()
	cfg.Defaults()
	h := &byHand{t: t, batch: flow.NewBatch(256, nil), got: map[string]map[int]int{}, gaps: map[string]flow.Cause{}}
	must(t, ns.Do(func() (err error) {
		h.Source, err = Open(cfg, Options{Remember: func(*flow.Record) {}})
		return err
	}))
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

// read reads until ok.
func (h *byHand) read(what string, ok func() bool) {
	h.t.Helper()
	until(h.t, what, func() bool {
		for more := true; more; {
			now := time.Now()
			var err error
			_, more, err = h.Fill(h.batch, now)
			must(h.t, err)
			for i := range h.batch.Records {
				h.Put(&h.batch.Records[i])
			}
			h.batch.Reset()
			more = h.Turn(time.Now(), h) || more
		}
		return ok()
	})
}

func nameOf(n flow.Netns) string {
	if n == 0 {
		return ""
	}
	return n.Info().Name
}

// Put implements input.Sink.
func (h *byHand) Put(r *flow.Record) {
	i, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort)
	if !ok {
		h.t.Errorf("a record of no flood's flow: %+v", r)
	}
	key := nameOf(r.Netns) + " " + r.Event.String()
	if h.got[key] == nil {
		h.got[key] = map[int]int{}
	}
	h.got[key][i]++
}

// Gap implements input.Sink.
func (h *byHand) Gap(from, to time.Time, g flow.Gap) { h.GapIn(0, from, to, g) }

// GapIn implements input.Sink.
func (h *byHand) GapIn(n flow.Netns, from, to time.Time, g flow.Gap) {
	if _, twice := h.gaps[nameOf(n)]; twice || to.Before(from) || g.LostKnown {
		h.t.Errorf("a gap in %q from %v to %v: %+v; twice: %t", nameOf(n), from, to, g, twice)
	}
	h.gaps[nameOf(n)] = g.Cause
}

// check says that one record of each flow from <= i < to is under key, and no others.
func (h *byHand) check(key string, from, to int) {
	h.t.Helper()
	want := map[int]int{}
	for i := from; i < to; i++ {
		want[i] = 1
	}
	if !maps.Equal(h.got[key], want) {
		h.t.Errorf("%q has the flows %v, want those from %d to %d", key, h.got[key], from, to)
	}
}

// known returns the other namespace that is known, of one at most.
func (h *byHand) known() (s *netns.Space) {
	if view, _ := h.Namespaces(); len(view.Spaces) > 0 {
		s = view.Spaces[0]
	}
	return s
}

// beginTenant waits until the only other namespace, which is called tenant, is known, and begins to read its table.
func (h *byHand) beginTenant() *netns.Space {
	h.t.Helper()
	h.read("the namespace is known", func() bool { return h.known() != nil && h.others.known[h.known()] && h.table.dump == nil })
	s := h.known()
	h.RequestOpen()
	until(h.t, "its table is being read", func() bool {
		h.Turn(time.Now(), h)
		return h.table.dump != nil && h.table.dump.space == s && len(h.got["tenant open"]) > 0
	})
	return s
}

// linked makes a namespace that the one called ns has a link to, for which the kernel gives it the lowest id that is free.
func linked(t *testing.T, ns *lab.NS, dev string) *lab.NS {
	t.Helper()
	other := newNamespace(t)
	must(t, ns.Link(dev, nil, other, "here", nil))
	must(t, ns.Run("ip", "-d", "link"))
	return other
}

// TestIDUsedAgain: a namespace without a name goes while nobody reads, and its id goes to another one, which has a name. What
// the first has sent does not get that name; flows that were alive in it are in a gap. When all that was sent before has been
// read, the id stands for the second one.
func TestIDUsedAgain(t *testing.T) {
	for _, namespaces := range []string{AllNamespaces, "tenant"} {
		t.Run(namespaces, func(t *testing.T) {
			home := newNamespace(t)
			h := openByHand(t, home, Config{Namespaces: []string{namespaces}})
			former := linked(t, home, "first")
			f := newFloodIn(t, former)
			must(t, f.Create(0, 20))
			must(t, f.Delete(0, 10))
			must(t, f.Close())
			must(t, former.Close())
			until(t, "its id is free", func() bool {
				out, err := home.Output("", "ip", "netns", "list-id")
				must(t, err)
				return !strings.Contains(string(out), "nsid 0")
			})
			tenant := linked(t, home, "second")
			nameSpace(t, tenant, "tenant")
			until(t, "the other namespace is known", func() bool {
				view, _ := h.Namespaces()
				return view.Find(0) != nil && view.Find(0).Name == "tenant"
			})
			f = newFloodIn(t, tenant)
			must(t, f.Create(100, 120))
			must(t, f.Delete(100, 110))
			ends := func(key string) int { return len(h.got[key+" destroy"]) }
			h.read("what was sent meanwhile has been read", func() bool { return ends("0")+ends("tenant") >= 20 })
			if want := map[bool]int{true: 1}[namespaces == AllNamespaces]; len(h.gaps) < want {
				h.read("the gap has been told", func() bool { return len(h.gaps) >= want })
			}
			h.read("all of it is behind", func() bool {
				if due := h.Due(time.Now()); len(h.others.former) > 0 && due > lookEvery {
					t.Errorf("an idle reader would look again in %v", due)
				}
				return len(h.others.former) == 0
			})
			must(t, f.Delete(110, 120))
			h.read("the last ends have been read", func() bool { return ends("tenant") >= 10 })

			for i := range 10 {
				if h.got["tenant destroy"][i] > 0 {
					t.Errorf("flow %d of another namespace has the name", i)
				}
			}
			h.check("tenant destroy", 110, 120)
			if ends("0") != 20 {
				t.Errorf("under the id are %v", h.got["0 destroy"])
			}
			if len(h.gaps) != 1 || h.gaps["0"] != flow.CauseUntracked {
				t.Errorf("gaps: %v", h.gaps)
			}
		})
	}
}

// TestGoneBeforeItIsRead: a namespace without a name has gone, which is known, before any of what it sent has been read.
func TestGoneBeforeItIsRead(t *testing.T) {
	home := newNamespace(t)
	h := openByHand(t, home, Config{Namespaces: []string{AllNamespaces}})
	former := linked(t, home, "first")
	own := newFloodIn(t, home)
	must(t, own.Churn(0, 300)) // more than are read in one round
	f := newFloodIn(t, former)
	must(t, f.Create(0, 20))
	must(t, f.Delete(0, 10))
	must(t, f.Close())
	known := func(has bool) func() bool {
		return func() bool {
			view, _ := h.Namespaces()
			return view.Ready() && (len(view.Unnamed) > 0) == has
		}
	}
	until(t, "the namespace is known", known(true))
	must(t, former.Close())
	until(t, "it is known that it has gone", known(false))
	h.read("it has been read, and the gap told", func() bool { return len(h.got["0 destroy"]) == 10 && len(h.gaps) > 0 })
	if h.gaps["0"] != flow.CauseUntracked || len(h.gaps) != 1 {
		t.Errorf("gaps: %v", h.gaps)
	}
}

// TestUnwantedWhileRead: a namespace that nobody asks for any more, while its table is read, is read from to the end of the
// chunk: its descriptor may be somebody else's by then.
func TestUnwantedWhileRead(t *testing.T) {
	home := newNamespace(t)
	h := openByHand(t, home, Config{Namespaces: []string{AllNamespaces}})
	tenant := newNamespace(t)
	f := newFloodIn(t, tenant)
	const n = 2000
	must(t, f.Create(0, n))
	nameSpace(t, tenant, "tenant")
	s := h.beginTenant()
	cfg := h.cfg
	cfg.Namespaces = []string{"another"}
	_, err := h.Reconfigure(cfg, nil)
	must(t, err)
	until(t, "it is not known any more", func() bool { return h.known() == nil })
	h.others.refresh() // from here on the Watcher closes what it has of it
	conn := s.Conn()
	until(t, "it has closed the socket", func() bool {
		_, err := unix.FcntlInt(uintptr(conn), unix.F_GETFD, 0)
		return err != nil
	})
	h.read("its table has been read", func() bool { return !h.Requested() })
	h.check("tenant open", 0, n)
}

// TestEmptyTables: the table of a namespace that has no flow is not read, neither as it comes nor as it goes: that would be a
// walk through those of all. The Watcher's Space is let go all the same.
func TestEmptyTables(t *testing.T) {
	home := newNamespace(t)
	h := openByHand(t, home, Config{Namespaces: []string{AllNamespaces}})
	h.read("the own table has been read", func() bool { return h.table.want == 0 && h.table.dump == nil && len(h.table.jobs) == 0 })
	for _, flows := range []int{0, 1} {
		name := fmt.Sprint("with", flows)
		ns := newNamespace(t)
		must(t, newFloodIn(t, ns).Create(0, flows))
		unname := nameSpace(t, ns, name)
		dumps := map[purpose]bool{}
		space := func() *netns.Space {
			if d := h.table.dump; d != nil && d.space != nil {
				dumps[d.purpose] = true
			}
			view, _ := h.Namespaces()
			for _, s := range view.Spaces {
				if s.Name == name {
					return s
				}
			}
			return nil
		}
		h.read("it is known", func() bool { s := space(); return s != nil && h.others.known[s] })
		h.read("nothing is to be read", func() bool { space(); return h.table.dump == nil && len(h.table.jobs) == 0 })
		unname()
		h.read("it is let go", func() bool { return space() == nil })
		if len(dumps) > 0 && flows == 0 || flows > 0 && !dumps[forFarewell] {
			t.Errorf("with %d flows its table was read for %v", flows, dumps)
		}
	}
	h.check("with1 open", 0, 1)
	if len(h.got) != 1 || len(h.gaps) > 0 {
		t.Errorf("there are %v, gaps %v", h.got, h.gaps)
	}
}

// TestGuardOfOneNamespace: one namespace fills its table with ends that wait for a reader that is stuck. The guard has the ends
// of all given up, as the kernel makes no difference, and counts them; the log and a counter name the one that was full.
func TestGuardOfOneNamespace(t *testing.T) {
	core, logged := observer.New(zap.WarnLevel)
	g := newGuardedWith(t, 90, Options{Log: zap.New(core)}, AllNamespaces)
	own := g.flood
	full, calm := newFloodNS(t), newFloodNS(t)
	nameSpace(t, full, "full")
	nameSpace(t, calm, "calm")
	g.ns, g.flood = full, newFloodIn(t, full)
	inCalm := newFloodIn(t, calm)
	var spaces []*netns.Space
	until(t, "both are known", func() bool {
		view, _ := g.Namespaces()
		spaces = view.Spaces
		return len(spaces) == 2
	})
	dead, some := scaled(49_000), 1000
	const calmAt, ownAt = 300_000, 600_000
	must(t, g.flood.Churn(0, 1))
	<-g.stuck
	must(t, g.flood.Create(1, dead))
	must(t, inCalm.Create(calmAt, calmAt+some))
	must(t, own.Create(ownAt, ownAt+some))
	must(t, g.flood.Delete(1, dead/4)) // from here on everything is held back
	must(t, inCalm.Delete(calmAt, calmAt+some))
	must(t, own.Delete(ownAt, ownAt+some))
	must(t, g.flood.Delete(dead/4, dead))
	g.settle(t, guardTable*90/100)
	until(t, "the log says so", func() bool {
		return logged.FilterMessageSnippet("were filling the table").FilterField(zap.String("netns", "full")).Len() > 0
	})
	close(g.release)
	g.settle(t, 0)
	for _, s := range spaces {
		if shed := s.Sheds.Load(); (shed > 0) != (s.Name == "full") {
			t.Errorf("%s counts %d slices", s.Name, shed)
		}
	}
	until(t, "all that was kept has been read", func() bool {
		entries := 0
		for _, ns := range []*lab.NS{calm, full} {
			g.ns = ns
			entries += g.tableCount(t)
		}
		return entries == 0
	})
	g.stop()
	missing := func(from, to int) (n int) {
		for i := from; i < to; i++ {
			if g.ends[i] == 0 {
				n++
			}
		}
		return n
	}
	inFull, inTheCalm, inOwn := missing(0, dead), missing(calmAt, calmAt+some), missing(ownAt, ownAt+some)
	t.Logf("%d slices; missing are %d of %d ends of the full one, %d of %d of the calm one, %d of %d of the own one",
		g.Stats.GuardSheds.Load(), inFull, dead, inTheCalm, some, inOwn, some)
	var lost uint64
	for i := range g.gaps {
		lost += g.lost[i].Lost
		if g.lost[i].Cause != flow.CauseGuard || !g.lost[i].LostKnown || g.gaps[i].Netns != 0 {
			t.Errorf("gap %+v in %d", g.lost[i], g.gaps[i].Netns)
		}
	}
	if lost == 0 || lost != uint64(inFull+inTheCalm+inOwn) {
		t.Errorf("the gaps say %d", lost)
	}
}

// TestNameGoesWhileRead: a namespace's name goes while its table is read, and with it all that held it but ctlogd. That reading
// comes to its end, and the one that is the last one after it.
func TestNameGoesWhileRead(t *testing.T) {
	home := newNamespace(t)
	h := openByHand(t, home, Config{Namespaces: []string{AllNamespaces}})
	tenant := newNamespace(t)
	f := newFloodIn(t, tenant)
	const n = 2000
	must(t, f.Create(0, n))
	unname := nameSpace(t, tenant, "tenant")
	h.beginTenant()
	unname()
	must(t, f.Close())
	must(t, tenant.Close())
	h.read("it is let go", func() bool { return h.known() == nil })
	if len(h.got["tenant open"]) != n || len(h.got) != 1 || len(h.gaps) > 0 {
		t.Errorf("%d flows of %d have an open record; there are records of %d kinds, gaps %v", len(h.got["tenant open"]), n, len(h.got), h.gaps)
	}
	for i, times := range h.got["tenant open"] {
		if times != 2 {
			t.Errorf("flow %d has %d open records", i, times)
		}
	}
	h.read("the kernel has taken it away", func() bool {
		out, err := home.Output("", "ip", "netns", "list-id")
		must(t, err)
		return !strings.Contains(string(out), "nsid")
	})
}
