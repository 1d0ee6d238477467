//go:build integration

package ctnetlink

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
)

const namesDir = "/run/netns"

func TestMain(m *testing.M) { os.Exit(lab.WithoutNames(m.Run, namesDir)) }

// nameSpace gives a namespace a name until the test ends.
func nameSpace(t *testing.T, ns *lab.NS, name string) {
	t.Helper()
	path := filepath.Join(namesDir, name)
	must(t, os.WriteFile(path, nil, 0))
	must(t, unix.Mount(ns.Path(), path, "none", unix.MS_BIND, ""))
	t.Cleanup(func() {
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
	})
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
