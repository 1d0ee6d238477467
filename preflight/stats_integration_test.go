//go:build integration

package preflight

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"github.com/ti-mo/conntrack"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// The kernel counts what is made in a namespace, and no more.
func TestStatistics(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a network namespace")
	}
	ns, err := lab.New("statistics")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	client, server := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	err = ns.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer c.Close()
		expect := func(flows uint32) {
			t.Helper()
			entries, limit, err := Table()
			if err != nil || entries != flows || limit == 0 {
				t.Errorf("the table has %d entries of %d, %v, want %d", entries, limit, err, flows)
			}
			stats, err := Stats()
			if err != nil || len(stats) == 0 {
				t.Errorf("statistics of %d CPUs, %v", len(stats), err)
			}
			inserted := uint32(0)
			for i, s := range stats {
				if s.CPU != i {
					t.Errorf("the statistics of CPU %d come as number %d", s.CPU, i)
				}
				inserted += s.Insert
			}
			if inserted != flows {
				t.Errorf("%d entries inserted, want %d", inserted, flows)
			}
		}
		expect(0)
		if err := c.Create(conntrack.NewFlow(6, 0, client, server, 1000, 21, 300, 0)); err != nil {
			return err
		}
		expect(1)
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// An expectation is counted while it waits, and no longer.
func TestExpectations(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a network namespace")
	}
	if _, err := exec.LookPath("conntrack"); err != nil {
		t.Skip("conntrack is not installed")
	}
	ns, err := lab.New("expectations")
	must(t, err)
	defer ns.Close()
	must(t, ns.Run("ip", "link", "set", "lo", "up"))
	must(t, ns.Nft(`table ip t {
		ct helper f { type "ftp" protocol tcp; }
		chain c { type filter hook output priority 0; tcp dport 21 ct helper set "f"; }
	}`))
	l, err := ns.Listen("tcp", "127.0.0.1:21")
	must(t, err)
	defer l.Close()
	conn, err := ns.DialContext(t.Context(), "tcp", "127.0.0.1:21")
	must(t, err)
	defer conn.Close()
	expect := func(want uint32) {
		t.Helper()
		must(t, ns.Do(func() error {
			n, err := Expectations()
			if n != want {
				t.Errorf("%d expectations, want %d", n, want)
			}
			return err
		}))
	}
	expect(0)
	const host = "255.255.255.255"
	_, local, _ := net.SplitHostPort(conn.LocalAddr().String())
	must(t, ns.Run("conntrack", "-I", "expect", "-p", "tcp", "-t", "300",
		"-s", "127.0.0.1", "-d", "127.0.0.1", "--sport", local, "--dport", "21",
		"--tuple-src", "127.0.0.2", "--tuple-dst", "127.0.0.1", "--tuple-port-src", "0", "--tuple-port-dst", "2000",
		"--mask-src", host, "--mask-dst", host, "--mask-port-src", "0", "--mask-port-dst", "65535"))
	expect(1)
	must(t, ns.Run("conntrack", "-F"))
	expect(0) // it went with its master
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
