//go:build integration

package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"testing"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestPair has a table with flows that were injected, as conntrackd does it on a standby, and others that packets have
// made: with the rule of docs/pairs.md the log has the latter alone, and without counters nothing is left out.
func TestPair(t *testing.T) {
	need(t)
	doc, err := os.ReadFile("../docs/pairs.md")
	must(t, err)
	rule := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(doc)
	if rule == nil {
		t.Fatal("docs/pairs.md has no rule")
	}
	const injected, own = 100, 20
	for acct, want := range map[string]map[string]int{"1": {"own": own}, "0": {"own": own, "injected": injected}} {
		t.Run("nf_conntrack_acct="+acct, func(t *testing.T) {
			ns, f := newFloodNS(t)
			must(t, ns.Sysctl("net.netfilter.nf_conntrack_acct", acct))
			must(t, ns.Nft("table ip track { chain out { type filter hook output priority 0; ct state new accept; }; }"))
			d := startDaemonWith(t, ns, string(rule[1]))
			must(t, f.Create(0, injected))
			echo, err := ns.ListenPacket("udp", "127.0.0.1:7")
			must(t, err)
			defer echo.Close()
			go lab.Answer(echo, func(query []byte) []byte { return query })
			for i := range own {
				c, err := ns.DialFrom(context.Background(), "udp", fmt.Sprintf("127.0.0.1:%d", 40000+i), "127.0.0.1:7")
				must(t, err)
				exchange(t, c)
			}
			must(t, f.Flush())
			got, lines := map[string]int{}, lineCounter{path: d.file}
			eventually(t, "the flows that packets have made are on record", func() bool {
				if clear(got); lines.count(t) == 0 { // the file may not be there yet
					return false
				}
				for _, r := range readRecords(t, d.file) {
					if r["dst_ip"] == "127.0.0.1" {
						got["own"]++
					} else {
						got["injected"]++
					}
				}
				return got["own"] == own && got["injected"] >= want["injected"]
			})
			d.stop(t)
			if got["injected"] != want["injected"] {
				t.Errorf("%v on record, want %v", got, want)
			}
		})
	}
}

// exchange sends a datagram, has it back, and closes.
func exchange(t *testing.T, c net.Conn) {
	t.Helper()
	defer c.Close()
	_, err := c.Write([]byte("hello"))
	must(t, err)
	_, err = c.Read(make([]byte, 16))
	must(t, err)
}
