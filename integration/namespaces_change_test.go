//go:build integration

package integration

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestStoppedWhileNamespacesComeAndGo: the daemon is stopped while namespaces come and go, each with the id that the one before
// had, and one gets a name at last. What they have sent is on record, under the id, a gap tells of what was alive in them, and
// the last one has its name from then on.
func TestStoppedWhileNamespacesComeAndGo(t *testing.T) {
	need(t)
	rounds := scale(10, 200)
	home, own := newSpace(t, "home")
	defer own.Close()
	s := startSpaces(t, home, "{namespaces: all}")
	held, inHeld := newSpace(t, "held")
	s.name(t, held, "held")
	must(t, inHeld.Create(0, 50))
	must(t, s.Process.Signal(syscall.SIGSTOP))
	began := time.Now()
	const flows, ended = 20, 10
	linked := func(i int) (*lab.NS, *lab.Flood) {
		ns, f := newSpace(t, fmt.Sprint("short", i))
		must(t, home.Link(fmt.Sprint("to", i), nil, ns, "back", nil))
		must(t, home.Run("ip", "-d", "link"))
		must(t, f.Create(0, flows))
		must(t, f.Delete(0, ended))
		return ns, f
	}
	for i := range rounds {
		ns, f := linked(i)
		must(t, f.Close())
		must(t, ns.Close())
		eventually(t, "its id is free", func() bool {
			out, err := home.Output("", "ip", "netns", "list-id")
			must(t, err)
			return !strings.Contains(string(out), "nsid 1")
		})
	}
	must(t, inHeld.Delete(0, 20))
	must(t, inHeld.Close())
	must(t, held.Close())
	s.unname(t, "held")
	last, f := linked(rounds)
	defer f.Close()
	s.mount(t, last, "last")
	t.Logf("stopped for %v", time.Since(began))
	must(t, s.Process.Signal(syscall.SIGCONT))

	s.knows(t, "last")
	lines := lineCounter{path: s.file}
	want := (rounds+1)*ended + 50 + 1
	eventually(t, "all records are written", func() bool { return lines.count(t) >= want })
	must(t, f.Delete(ended, flows))
	eventually(t, "the last ones too", func() bool { return lines.count(t) >= want+flows-ended })
	s.stop(t)
	b := s.book(t)
	b.check(t, "held destroy", 0, 20)
	b.check(t, "held open", 20, 50)
	b.check(t, "last destroy", ended, flows)
	for i := range ended {
		if n := b.flows["1 destroy"][i]; n != rounds+1 {
			t.Errorf("flow %d has ended %d times, want %d", i, n, rounds+1)
		}
	}
	if len(b.flows) != 4 || len(b.flows["1 destroy"]) != ended || b.nsids["last"] != 1 {
		t.Errorf("there are %v, ids %v", b.flows, b.nsids)
	}
	if len(b.gaps) != 1 || !strings.Contains(b.gaps[0], `"netns":"1","nsid":1,"cause":"untracked"`) {
		t.Errorf("gaps: %v", b.gaps)
	}
}

// TestReloadedUnderTraffic changes the list of namespaces while flows end in all of them: ctlogd's own lose none, no flow has two
// records, and what is asked for from the last reload on is there.
func TestReloadedUnderTraffic(t *testing.T) {
	need(t)
	home, own := newSpace(t, "home")
	defer own.Close()
	s := startSpaces(t, home, "{namespaces: [blue]}")
	floods := map[string]*lab.Flood{"": own}
	for _, name := range []string{"blue", "red"} {
		ns, f := newSpace(t, name)
		defer f.Close()
		floods[name] = f
		s.mount(t, ns, name)
	}
	s.inside(t, "ip netns set red 77")
	s.knows(t, "blue")
	var churn sync.WaitGroup
	var over atomic.Bool
	begun := map[string]*atomic.Int64{"": {}, "blue": {}, "red": {}} // flows below have begun
	for name, f := range floods {
		churn.Go(func() {
			const step = 16
			for i := 0; !over.Load(); i += step {
				begun[name].Store(int64(i + step))
				if err := f.Churn(i, i+step); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	lines := lineCounter{path: s.file}
	for _, to := range []string{"all", "[red]", "[blue, red]", "[blue]", "all"} {
		s.reload(t, "{namespaces: "+to+"}")
		some := lines.count(t) + 300
		eventually(t, "more is written", func() bool { return s.ended() || lines.count(t) >= some })
	}
	s.knows(t, "blue", "red")
	from := map[string]int{}
	for name, n := range begun {
		from[name] = int(n.Load())
	}
	some := lines.count(t) + 1000
	eventually(t, "more is written", func() bool { return s.ended() || lines.count(t) >= some })
	over.Store(true)
	churn.Wait()
	s.stop(t)

	b := s.book(t)
	from[""] = 0
	for name, n := range begun {
		key := name + " destroy"
		for i := range from[name] {
			if times := b.flows[key][i]; times > 1 {
				t.Errorf("%s: flow %d has %d records", key, i, times)
			}
			delete(b.flows[key], i)
		}
		b.check(t, key, from[name], int(n.Load()))
	}
	if len(b.gaps) > 0 {
		t.Errorf("gaps: %v", b.gaps)
	}
}
