//go:build integration

package preflight

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// What rules of nftables and of iptables-nft translate is read from the kernel, as it stands there: each chain is named for
// what its rule has to come out as.
func TestTranslations(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a network namespace")
	}
	ns, err := lab.New("translations")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var rules strings.Builder
	names := map[string]bool{}
	for _, r := range []struct{ family, name, rule string }{
		{"ip", "many-1", "oifname lo masquerade"},
		{"ip", "many-2", "ip saddr 10.0.0.0/24 snat to 192.0.2.1"},
		{"ip", "many-3", "ip saddr 10.0.0.0/25 snat to 192.0.2.1"},
		{"ip", "many-4", "ip saddr { 10.0.0.1, 10.0.0.2 } snat to 192.0.2.1-192.0.2.2"},
		{"ip", "many-5", "ip saddr != 10.0.0.1 snat to 192.0.2.1"},
		{"ip", "many-6", "ip daddr 10.0.0.1 snat to 192.0.2.1"},
		{"ip", "many-7", "snat to 192.0.2.1 random"},
		{"inet", "many-8", "ip saddr 10.0.0.0/24 snat ip to 192.0.2.1"},
		{"ip6", "many-9", "snat to 2001:db8::1"},
		{"ip", "ports-1", "ip saddr 10.0.0.0/24 meta l4proto tcp snat to 192.0.2.1:1024-2047"},
		{"ip", "ports-2", "ip protocol udp masquerade to :1024-2047"},
		{"inet", "ports-3", "meta l4proto tcp snat ip to ip saddr map { 10.0.0.1 : 192.0.2.1 . 1024-2047 }"},
		{"ip", "one-1", "ip saddr 10.0.0.1 snat to 192.0.2.1"},
		{"ip6", "one-2", "ip6 saddr fd00::1 masquerade"},
		{"inet", "one-3", "ip saddr 10.0.0.1 snat ip to 192.0.2.1"},
		{"ip", "unknown-1", "snat to ip saddr map { 10.0.0.1 : 192.0.2.1, 10.0.0.2 : 192.0.2.2 }"},
	} {
		fmt.Fprintf(&rules, "table %s t { chain %s { type nat hook postrouting priority srcnat; %s; }; }\n", r.family, r.name, r.rule)
		names[r.name] = true
	}
	rules.WriteString("table ip t { chain none { type nat hook prerouting priority dstnat; tcp dport 80 dnat to 10.0.0.1:8080; ip saddr 10.0.0.1 accept; }; }\n")
	if err := ns.Nft(rules.String()); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][]string{
		{"many-x1", "-j", "MASQUERADE"},
		{"many-x2", "-s", "10.0.0.0/8", "-j", "SNAT", "--to-source", "192.0.2.1"},
		{"ports-x1", "-p", "tcp", "-j", "SNAT", "--to-source", "192.0.2.1:1024-2047"},
		{"ports-x2", "-p", "udp", "-j", "MASQUERADE", "--to-ports", "1024-2047"},
		{"one-x1", "-s", "10.0.0.1/32", "-j", "SNAT", "--to-source", "192.0.2.1"},
	} {
		for _, args := range [][]string{{"-N", r[0]}, {"-A", "POSTROUTING", "-j", r[0]}, append([]string{"-A"}, r...)} {
			if err := ns.Run("iptables-nft", append([]string{"-t", "nat"}, args...)...); err != nil {
				t.Fatal(err)
			}
		}
		names[r[0]] = true
	}
	err = ns.Do(func() error {
		all, err := linux{}.translations()
		if err != nil {
			return err
		}
		for _, r := range all {
			is := "many"
			switch {
			case r.ports:
				is = "ports"
			case r.one:
				is = "one"
			case r.unknown:
				is = "unknown"
			}
			if !strings.HasPrefix(r.chain, is+"-") || !names[r.chain] {
				t.Errorf("%+v is taken for %s", r, is)
			}
			delete(names, r.chain)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(names) > 0 {
		t.Errorf("no rule was seen in %v", names)
	}
}
