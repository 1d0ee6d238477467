//go:build integration

package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// TestPair has a table with flows that were injected, as conntrackd does it on a standby, and others that packets have
// made: with the rule of docs/pairs.md the log has the latter alone, and without counters nothing is left out.
func TestPair(t *testing.T) {
	need(t)
	rule := pairRule(t)
	const injected, own = 100, 20
	for acct, want := range map[string]map[string]int{"1": {"own": own}, "0": {"own": own, "injected": injected}} {
		t.Run("nf_conntrack_acct="+acct, func(t *testing.T) {
			ns, f := newFloodNS(t)
			must(t, ns.Sysctl("net.netfilter.nf_conntrack_acct", acct))
			must(t, ns.Nft("table ip track { chain out { type filter hook output priority 0; ct state new accept; }; }"))
			d := startDaemonWith(t, ns, rule)
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

// pairRule returns the rule of docs/pairs.md.
func pairRule(t *testing.T) string {
	t.Helper()
	doc, err := os.ReadFile("../docs/pairs.md")
	must(t, err)
	rule := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(doc)
	if rule == nil {
		t.Fatal("docs/pairs.md has no rule")
	}
	return string(rule[1])
}

// box is one gateway of a pair.
type box struct {
	ns   *lab.NS
	log  *daemon
	conf string // conntrackd's
}

// have returns how many flows to the pair's address the box's table has.
func (b *box) have(t *testing.T) int {
	t.Helper()
	out, err := b.ns.Output("", "conntrack", "-L", "-p", "udp", "--orig-dst", "10.9.0.1")
	must(t, err)
	return strings.Count(string(out), "dport=7 ")
}

// conntrackd asks the box's conntrackd for something.
func (b *box) conntrackd(t *testing.T, what string) string {
	t.Helper()
	out, err := b.ns.Output("", "conntrackd", "-C", b.conf, what)
	must(t, err)
	return string(out)
}

// newPair returns two boxes with an address in common, 10.9.0.1, where both answer on port 7, and a real conntrackd on each.
// They forget together: what one has deleted, the other one deletes. route has the client's packets go by one of them.
func newPair(t *testing.T, sync string) (client *lab.NS, boxes [2]*box, route func(to int)) {
	t.Helper()
	client = newNS(t, "client")
	must(t, client.Run("ip", "addr", "add", "10.8.0.2/32", "dev", "lo"))
	for i := range boxes {
		b := &box{ns: newNS(t, fmt.Sprint("box", i))}
		boxes[i] = b
		prepare(t, b.ns)
		must(t, b.ns.Run("ip", "addr", "add", "10.9.0.1/32", "dev", "lo"))
		must(t, client.Link(fmt.Sprint("box", i), []string{fmt.Sprintf("10.%d.0.2/24", i+1)}, b.ns, "client",
			[]string{fmt.Sprintf("10.%d.0.1/24", i+1)}))
		must(t, b.ns.Run("ip", "route", "add", "10.8.0.2/32", "via", fmt.Sprintf("10.%d.0.2", i+1)))
		must(t, b.ns.Nft("table ip track { chain in { type filter hook input priority 0; ct state new accept; }; }"))
		echo, err := b.ns.ListenPacket("udp", "10.9.0.1:7")
		must(t, err)
		t.Cleanup(func() { echo.Close() })
		go lab.Answer(echo, func(query []byte) []byte { return query })
	}
	must(t, boxes[0].ns.Link("sync", []string{"10.3.0.1/24"}, boxes[1].ns, "sync", []string{"10.3.0.2/24"}))
	for i, b := range boxes {
		dir := t.TempDir()
		b.conf = filepath.Join(dir, "conntrackd.conf")
		must(t, os.WriteFile(b.conf, fmt.Appendf(nil, `Sync {
	%s
	UDP {
		IPv4_address 10.3.0.%d
		IPv4_Destination_Address 10.3.0.%d
		Port 3780
		Interface sync
		Checksum on
	}
}
General {
	HashSize 8192
	HashLimit 65535
	LogFile %[4]s/log
	LockFile %[4]s/lock
	UNIX { Path %[4]s/ctl }
	NetlinkBufferSize 2097152
	NetlinkBufferSizeMaxGrowth 8388608
	Filter From Userspace {
		Address Ignore {
			IPv4_address 127.0.0.1
			IPv4_address 10.3.0.1
			IPv4_address 10.3.0.2
		}
	}
}
`, sync, i+1, 2-i, dir), 0o644))
		b.log = startDaemonWith(t, b.ns, pairRule(t))
		d := start(t, b.ns, exec.Command("conntrackd", "-C", b.conf))
		d.awaitMember(t, lab.GroupDestroy)
		eventually(t, "conntrackd answers", func() bool {
			_, err := b.ns.Output("", "conntrackd", "-C", b.conf, "-s")
			return err == nil
		})
	}
	return client, boxes, func(to int) {
		must(t, client.Run("ip", "route", "replace", "10.9.0.1/32", "via", fmt.Sprintf("10.%d.0.1", to+1), "src", "10.8.0.2"))
	}
}

// TestConntrackd has two gateways whose tables real conntrackds copy. Flows begin on the first; some end there, and some move to
// the second. With the rule of docs/pairs.md each box has on record what it has carried, and nothing else.
func TestConntrackd(t *testing.T) {
	need(t, "conntrackd", "conntrack")
	for name, tt := range map[string]struct {
		sync   string
		cached bool // until conntrackd -c
	}{
		"FTFW":                {"Mode FTFW { DisableExternalCache On }", false},
		"NOTRACK":             {"Mode NOTRACK { DisableExternalCache On }", false},
		"FTFW external cache": {"Mode FTFW { }", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, boxes, route := newPair(t, tt.sync)
			route(0)
			const ended, moved = 20, 10
			var conns []net.Conn
			ask := func(c net.Conn) {
				_, err := c.Write([]byte("hello"))
				must(t, err)
				must(t, c.SetReadDeadline(time.Now().Add(lab.Timeout)))
				_, err = c.Read(make([]byte, 16))
				must(t, err)
			}
			for i := range ended + moved {
				c, err := client.DialFrom(context.Background(), "udp", fmt.Sprint("10.8.0.2:", 41000+i), "10.9.0.1:7")
				must(t, err)
				defer c.Close()
				ask(c)
				conns = append(conns, c)
			}
			// known returns how many flows the standby knows of.
			known := func() int {
				if tt.cached {
					return strings.Count(boxes[1].conntrackd(t, "-e"), "dport=7 ")
				}
				return boxes[1].have(t)
			}
			eventually(t, "the standby knows all flows", func() bool { return known() == ended+moved })
			for i := range ended {
				must(t, boxes[0].ns.Run("conntrack", "-D", "-p", "udp", "--orig-port-src", fmt.Sprint(41000+i)))
			}
			eventually(t, "the standby forgets those that have ended", func() bool { return known() == moved })

			route(1)
			if tt.cached {
				boxes[1].conntrackd(t, "-c")
				eventually(t, "the flows are in the table", func() bool { return boxes[1].have(t) == moved })
			}
			for _, c := range conns[ended:] {
				ask(c)
				ask(c)
			}
			for i := range moved {
				for _, b := range boxes { // conntrackd may have been first
					_ = b.ns.Run("conntrack", "-D", "-p", "udp", "--orig-port-src", fmt.Sprint(41000+ended+i))
				}
			}
			packets := func(b *box) map[string]string {
				got := map[string]string{}
				for _, r := range readRecords(t, b.log.file) {
					port := fmt.Sprint(r["src_port"])
					if got[port] != "" || r["dst_ip"] != "10.9.0.1" && r["dst_ip"] != "10.3.0.1" && r["dst_ip"] != "10.3.0.2" {
						t.Errorf("again, or another flow: %v", r)
					}
					if r["dst_ip"] == "10.9.0.1" {
						got[port] = fmt.Sprint(r["orig_packets"])
					}
				}
				return got
			}
			eventually(t, "both boxes have what they carried", func() bool {
				return len(packets(boxes[0])) >= ended+moved && len(packets(boxes[1])) >= moved
			})
			for _, b := range boxes {
				b.log.stop(t)
			}
			first, second := packets(boxes[0]), packets(boxes[1])
			if len(first) != ended+moved || len(second) != moved {
				t.Errorf("%d and %d flows, want %d and %d", len(first), len(second), ended+moved, moved)
			}
			for i := range ended + moved {
				port := fmt.Sprint(41000 + i)
				if want := map[bool]string{true: "2"}[i >= ended]; first[port] != "1" || second[port] != want {
					t.Errorf("port %s: %q and %q packets, want 1 and %q", port, first[port], second[port], want)
				}
			}
		})
	}
}
