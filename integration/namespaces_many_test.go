//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestManyNamespaces: what a thousand namespaces cost that do nothing (CTLOGD_LONG=1; a hundred otherwise). Each takes six
// descriptors, and gives them back. The log has memory, CPU and system calls.
func TestManyNamespaces(t *testing.T) {
	need(t, "strace")
	n := scale(100, 1000)
	home, own := newSpace(t, "home")
	defer own.Close()
	s := startSpaces(t, home, "{namespaces: all}")
	files := func() int { return s.descriptors(t) }
	const seconds = 5
	idle := func() string {
		t.Helper()
		before := s.processorTime(t)
		time.Sleep(seconds * time.Second)
		used := s.processorTime(t) - before
		trace := filepath.Join(t.TempDir(), "calls")
		_ = home.Run("timeout", "-s", "INT", fmt.Sprint(seconds), "strace", "-c", "-f", "-q", "-o", trace, "-p", fmt.Sprint(s.Process.Pid)) // it ends by the signal
		calls, err := os.ReadFile(trace)
		must(t, err)
		return fmt.Sprintf("%v of CPU in %d s, %d KiB resident, %d files, and in as long these calls:\n%s", used, seconds, memory(s.Process.Pid, "VmRSS"), files(), calls)
	}
	t.Logf("without namespaces: %s", idle())
	before := files()
	s.inside(t, `for i in $(seq "$1"); do ip netns add many$i; done`, fmt.Sprint(n))
	eventually(t, "all are known", func() bool { return len(s.named(t)) == n })
	t.Logf("with %d: %s", n, idle())
	if got := files() - before; got > 6*n {
		t.Errorf("%d namespaces take %d descriptors", n, got)
	}
	s.inside(t, `for i in $(seq "$1"); do ip netns del many$i; done`, fmt.Sprint(n))
	s.knows(t)
	eventually(t, "all descriptors are closed", func() bool { return files() <= before })
	s.stop(t)
	if b := s.book(t); len(b.flows) > 0 || len(b.gaps) > 0 {
		t.Errorf("there are %v, gaps %v", b.flows, b.gaps)
	}
}

// TestCheckpointOfNamespaces: at a checkpoint the archive gets an open row of each flow of each namespace, those with equal
// tuples too, and the other output gets none.
func TestCheckpointOfNamespaces(t *testing.T) {
	need(t)
	t.Parallel() // it waits for a minute, the shortest interval
	home, own := newSpace(t, "home")
	defer own.Close()
	defer own.Flush()
	const ended = 100 // before they are a minute old
	want := map[string]int{"": 300, "blue": 500, "red": 700}
	places, floods := map[string]*lab.NS{}, map[string]*lab.Flood{"": own}
	for _, name := range []string{"blue", "red"} {
		ns, f := newSpace(t, name)
		defer f.Close()
		places[name], floods[name] = ns, f
	}
	for name, n := range want { // they are older than the daemon, and so old enough for its first checkpoint
		must(t, floods[name].Create(0, n+ended))
	}
	var store string
	s := startSpacesWith(t, home, "{namespaces: all}", func(dir string) string {
		store = filepath.Join(dir, "archive")
		return "  archive: [{path: " + store + ", checkpoint: 1m}]\n"
	})
	for name, ns := range places {
		s.name(t, ns, name)
	}
	for name, n := range want {
		must(t, floods[name].Delete(n, n+ended))
	}
	rows := func() (open map[string]map[int]int, readings int) {
		a, err := archive.OpenReader(store)
		if err != nil || len(a.Hosts) == 0 { // it is being made
			return nil, 0
		}
		open = map[string]map[int]int{}
		files := a.Hosts[0].RowLogs
		for _, segment := range a.Hosts[0].Segments() {
			files = append(files, segment.Path)
		}
		for _, file := range files {
			_ = archive.Each(file, func(_ *archive.Origin, r *flow.Record) error {
				if c, is := archive.CheckpointOf(r); is {
					readings++
					if !c.Whole {
						t.Errorf("the reading is not whole: %+v", c)
					}
					return nil
				}
				if r.Event != flow.EventOpen {
					return nil
				}
				name := ""
				if r.Netns != 0 {
					name = r.Netns.Info().Name
				}
				if open[name] == nil {
					open[name] = map[int]int{}
				}
				i, _ := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort)
				open[name][i]++
				return nil
			})
		}
		return open, readings
	}
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Second) {
		if _, readings := rows(); readings > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no checkpoint within five minutes")
		}
	}
	s.stop(t)
	open, readings := rows()
	for name, n := range want {
		if len(open[name]) != n {
			t.Errorf("%q: %d flows have an open row, want %d", name, len(open[name]), n)
		}
		for i, times := range open[name] {
			if times != readings || i >= n {
				t.Errorf("%q: flow %d has %d open rows", name, i, times)
			}
		}
	}
	if len(open) != len(want) {
		t.Errorf("there are open rows of %d namespaces", len(open))
	}
	b := s.book(t)
	for name, n := range want {
		b.check(t, name+" destroy", n, n+ended)
	}
	if len(b.flows) != len(want) || len(b.gaps) > 0 {
		t.Errorf("the other output has %v, gaps %v", b.flows, b.gaps)
	}
}
