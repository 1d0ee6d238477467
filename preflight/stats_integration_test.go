//go:build integration

package preflight

import (
	"net/netip"
	"os"
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
		expect := func(flows, expectations uint32) {
			t.Helper()
			entries, limit, err := Table()
			if err != nil || entries != flows || limit == 0 {
				t.Errorf("the table has %d entries of %d, %v, want %d", entries, limit, err, flows)
			}
			if n, err := Expectations(); err != nil || n != expectations {
				t.Errorf("%d expectations, %v, want %d", n, err, expectations)
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
		expect(0, 0)
		master := conntrack.NewFlow(6, 0, client, server, 1000, 21, 300, 0)
		master.Helper.Name = "ftp"
		if err := c.Create(master); err != nil {
			return err
		}
		expect(1, 0)
		for port := uint16(2000); port < 2003; port++ {
			data := conntrack.Tuple{IP: conntrack.IPTuple{SourceAddress: server, DestinationAddress: client},
				Proto: conntrack.ProtoTuple{Protocol: 6, SourcePort: 0, DestinationPort: port}}
			mask := conntrack.Tuple{IP: conntrack.IPTuple{SourceAddress: netip.MustParseAddr("255.255.255.255"),
				DestinationAddress: netip.MustParseAddr("255.255.255.255")},
				Proto: conntrack.ProtoTuple{Protocol: 6, SourcePort: 0, DestinationPort: 65535}}
			err := c.CreateExpect(conntrack.Expect{Timeout: 300, TupleMaster: master.TupleOrig, Tuple: data, Mask: mask, HelpName: "ftp"})
			if err != nil {
				return err
			}
		}
		expect(1, 3)
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error { // the expectations went with their master
		n, err := Expectations()
		if n != 0 {
			t.Errorf("%d expectations, want none", n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
