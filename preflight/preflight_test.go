package preflight

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// fake is a kernel with these answers.
type fake struct {
	entries, limit uint32
	tableErr       error
	v4, v6         []string
	hooksErr       error
	bufferErr      error
}

func (k fake) table() (uint32, uint32, error) { return k.entries, k.limit, k.tableErr }

func (k fake) hooks(family uint8) ([]string, error) {
	if family == nfprotoIPv6 {
		return k.v6, k.hooksErr
	}
	return k.v4, k.hooksErr
}

func (k fake) forceBuffer(int) error { return k.bufferErr }

// healthy is a machine on which every check passes.
func healthy() (fake, map[string]string) {
	return fake{entries: 10, limit: 1000, v4: []string{"nf_hook", "ipv4_conntrack_in"},
			v6: []string{"ipv6_conntrack_in"}},
		map[string]string{
			"thread-self/status":                       "Name:\tctlogd\nCapEff:\t0000000000001000\n",
			"sys/net/netfilter/nf_conntrack_events":    "1\n",
			"sys/net/netfilter/nf_conntrack_acct":      "1\n",
			"sys/net/netfilter/nf_conntrack_timestamp": "1\n",
			"sys/net/netfilter/nf_conntrack_count":     "10\n",
			"sys/net/netfilter/nf_conntrack_max":       "1000\n",
			"sys/net/core/rmem_max":                    "212992\n",
		}
}

func build(t *testing.T, k fake, files map[string]string) host {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return host{root, k}
}

const netfilter = "sys/net/netfilter/"

const (
	fixEvents = "ctlogd check --fix, or sysctl -w net.netfilter.nf_conntrack_events=1; " +
		"it holds for flows born afterwards"
	fixAcct = "ctlogd check --fix, or sysctl -w net.netfilter.nf_conntrack_acct=1; it holds for flows born afterwards"
	fixTime = "ctlogd check --fix, or sysctl -w net.netfilter.nf_conntrack_timestamp=1; " +
		"it holds for flows born afterwards"
	rights = "repeat the check with the rights that the daemon will have"
	start  = "load the firewall's rules; the first that uses ct or NAT starts tracking, " +
		"say: nft add rule inet filter forward ct state established,related accept"
)

func TestChecks(t *testing.T) {
	noRights := func(k *fake, proc map[string]string) {
		proc["thread-self/status"] = "CapEff:\t0000000000000000\n"
		k.tableErr, k.hooksErr, k.bufferErr = unix.EPERM, unix.EPERM, unix.EPERM
	}
	for _, tt := range []struct {
		name   string
		change func(k *fake, proc map[string]string)
		want   []Result // those that differ from the healthy machine's
	}{
		{"events off", func(_ *fake, p map[string]string) { p[netfilter+"nf_conntrack_events"] = "0\n" },
			[]Result{{"conntrack events", Fail,
				"net.netfilter.nf_conntrack_events = 0: the kernel reports no flow at all", fixEvents}}},
		{"events automatic", func(_ *fake, p map[string]string) { p[netfilter+"nf_conntrack_events"] = "2\n" },
			[]Result{{"conntrack events", Warn,
				"net.netfilter.nf_conntrack_events = 2: flows born while nobody listened never report their end",
				fixEvents}}},
		{"no accounting", func(_ *fake, p map[string]string) { p[netfilter+"nf_conntrack_acct"] = "0\n" },
			[]Result{{"conntrack accounting", Warn,
				"net.netfilter.nf_conntrack_acct = 0: records carry no packets and bytes", fixAcct}}},
		{"no timestamps", func(_ *fake, p map[string]string) { p[netfilter+"nf_conntrack_timestamp"] = "0\n" },
			[]Result{{"conntrack timestamps", Warn,
				"net.netfilter.nf_conntrack_timestamp = 0: " +
					"records carry neither the kernel's start and end nor a flow_id", fixTime}}},
		{"a kernel without timestamps", func(_ *fake, p map[string]string) {
			delete(p,
				netfilter+"nf_conntrack_timestamp")
		},
			[]Result{{"conntrack timestamps", Warn, "this kernel has no net.netfilter.nf_conntrack_timestamp: " +
				"records carry neither the kernel's start and end nor a flow_id",
				"a kernel with CONFIG_NF_CONNTRACK_TIMESTAMP"}}},
		{"a kernel without events", func(_ *fake, p map[string]string) { delete(p, netfilter+"nf_conntrack_events") },
			[]Result{{"conntrack events", Fail, "this kernel has no net.netfilter.nf_conntrack_events: " +
				"the kernel reports no flow at all", "a kernel with CONFIG_NF_CONNTRACK_EVENTS"}}},
		{"conntrack not loaded", func(k *fake, p map[string]string) {
			for name := range p {
				if filepath.Dir(name)+"/" == netfilter {
					delete(p, name)
				}
			}
			k.tableErr, k.v4, k.v6 = unix.EINVAL, nil, nil
		}, []Result{
			{"ctnetlink", Fail, "this kernel has netfilter netlink, but not conntrack's part of it",
				"modprobe nf_conntrack_netlink; a kernel without CONFIG_NF_CT_NETLINK cannot report flows"},
			{"conntrack events", Fail,
				"there is no net.netfilter.nf_conntrack_events: connection tracking is not loaded",
				"modprobe nf_conntrack"},
			{"conntrack accounting", Fail,
				"there is no net.netfilter.nf_conntrack_acct: connection tracking is not loaded",
				"modprobe nf_conntrack"},
			{"conntrack timestamps", Fail,
				"there is no net.netfilter.nf_conntrack_timestamp: connection tracking is not loaded",
				"modprobe nf_conntrack"},
			{"conntrack hooks", Fail, "no packet is tracked in this network namespace, so no event will come", start},
			{"conntrack table", Warn, "its fill cannot be told: no such file or directory", ""},
		}},
		{"no netfilter netlink", func(k *fake, _ map[string]string) {
			k.tableErr = fmt.Errorf("dial: %w",
				unix.EPROTONOSUPPORT)
		},
			[]Result{{"ctnetlink", Fail, "this kernel has no netfilter netlink",
				"modprobe nfnetlink; a kernel without CONFIG_NETFILTER_NETLINK cannot report flows"}}},
		{"ctnetlink silent", func(k *fake, _ map[string]string) { k.tableErr = unix.EAGAIN },
			[]Result{{"ctnetlink", Fail, "does not answer: resource temporarily unavailable", ""}}},
		{"no rights", noRights, []Result{
			{"capability", Fail, "CAP_NET_ADMIN is not effective: no events, no dumps, no large buffer", grant},
			{"ctnetlink", Warn, "cannot be told without CAP_NET_ADMIN", rights},
			{"conntrack hooks", Warn, "cannot be told without CAP_NET_ADMIN", rights},
			{"receive buffer", Warn, "without CAP_NET_ADMIN, net.core.rmem_max allows 208KiB of the 1MiB asked for",
				"grant the capability, or sysctl -w net.core.rmem_max=1048576"},
		}},
		{"no rights, large limit", func(k *fake, p map[string]string) {
			noRights(k, p)
			p["sys/net/core/rmem_max"] = "1048576\n"
		}, []Result{
			{"capability", Fail, "CAP_NET_ADMIN is not effective: no events, no dumps, no large buffer", grant},
			{"ctnetlink", Warn, "cannot be told without CAP_NET_ADMIN", rights},
			{"conntrack hooks", Warn, "cannot be told without CAP_NET_ADMIN", rights},
			{"receive buffer", Pass, "1MiB is within net.core.rmem_max", ""},
		}},
		{"user namespace", func(k *fake, p map[string]string) {
			k.tableErr, k.hooksErr, k.bufferErr = unix.EPERM, unix.EPERM, unix.EPERM
			delete(p, "sys/net/core/rmem_max")
		}, []Result{
			{"ctnetlink", Fail, "refuses, although CAP_NET_ADMIN is effective: it holds in another user namespace only",
				"run in the user namespace that owns the network namespace; remove PrivateUsers= from the unit"},
			{"conntrack hooks", Warn, "cannot be told without CAP_NET_ADMIN", rights},
			{"receive buffer", Warn, "1MiB needs CAP_NET_ADMIN here, and net.core.rmem_max cannot be read", grant},
		}},
		{"no status", func(_ *fake, p map[string]string) { p["thread-self/status"] = "Name:\tx\n" },
			[]Result{{"capability", Fail, "effective capabilities cannot be read: no CapEff in thread-self/status",
				grant}}},
		{"IPv4 alone", func(k *fake, _ map[string]string) { k.v6 = nil },
			[]Result{{"conntrack hooks", Pass, "packets of IPv4 alone are tracked in this network namespace", ""}}},
		{"IPv6 alone", func(k *fake, _ map[string]string) { k.v4 = []string{"iptable_raw_hook"} },
			[]Result{{"conntrack hooks", Pass, "packets of IPv6 alone are tracked in this network namespace", ""}}},
		{"no hooks, but flows", func(k *fake, _ map[string]string) { k.v4, k.v6 = nil, nil },
			[]Result{{"conntrack hooks", Fail,
				"no packet is tracked in this network namespace, so no event will come", start}}},
		{"hooks without names, and flows", func(k *fake, _ map[string]string) {
			k.v4, k.v6 = []string{""},
				[]string{""}
		},
			[]Result{{"conntrack hooks", Pass, "the table holds 10 flows (this kernel does not list hooks)", ""}}},
		{"hooks not listed, no flows", func(k *fake, _ map[string]string) { k.hooksErr, k.entries = unix.EINVAL, 0 },
			[]Result{
				{"conntrack hooks", Warn,
					"cannot be told: this kernel does not list hooks, and the table holds no flow at the moment",
					start},
				{"conntrack table", Pass, "0 of 1000 flows (0 %)", ""},
			}},
		{"table nearly full", func(k *fake, _ map[string]string) { k.entries = 800 },
			[]Result{{"conntrack table", Warn, "800 of 1000 flows (80 %): when it is full, new connections fail",
				"find out what fills it, or raise the limit: sysctl -w net.netfilter.nf_conntrack_max=2000"}}},
		{"table below", func(k *fake, _ map[string]string) { k.entries = 799 },
			[]Result{{"conntrack table", Pass, "799 of 1000 flows (79 %)", ""}}},
		{"old kernel: limit in proc alone", func(k *fake, p map[string]string) {
			k.limit = 0
			p[netfilter+"nf_conntrack_count"] = "900\n"
		}, []Result{{"conntrack table", Warn, "900 of 1000 flows (90 %): when it is full, new connections fail",
			"find out what fills it, or raise the limit: sysctl -w net.netfilter.nf_conntrack_max=2000"}}},
		{"no limit", func(k *fake, p map[string]string) { k.limit, p[netfilter+"nf_conntrack_max"] = 0, "0\n" },
			[]Result{{"conntrack table", Pass, "10 flows, without a limit", ""}}},
		{"buffer refused", func(k *fake, _ map[string]string) { k.bufferErr = unix.ENOBUFS },
			[]Result{{"receive buffer", Warn, "1MiB is refused: no buffer space available", ""}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k, proc := healthy()
			before := build(t, k, proc).run(t.Context(), Options{ReceiveBuffer: 1 << 20})
			for _, r := range before {
				if r.Status != Pass || r.Remedy != "" {
					t.Fatalf("the healthy machine: %+v", r)
				}
			}
			tt.change(&k, proc)
			var got []Result
			for i, r := range build(t, k, proc).run(t.Context(), Options{ReceiveBuffer: 1 << 20}) {
				if r != before[i] {
					got = append(got, r)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("results that changed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFix(t *testing.T) {
	k, proc := healthy()
	proc[netfilter+"nf_conntrack_events"] = "2\n"
	proc[netfilter+"nf_conntrack_acct"] = "0\n"
	h := build(t, k, proc)
	got := h.run(t.Context(), Options{Fix: true})[2:5]
	want := []Result{
		{"conntrack events", Pass,
			"net.netfilter.nf_conntrack_events = 1, set just now (it was 2), for flows born from now on",
			"to keep it over a reboot: echo 'net.netfilter.nf_conntrack_events = 1' >> /etc/sysctl.d/60-ctlogd.conf"},
		{"conntrack accounting", Pass,
			"net.netfilter.nf_conntrack_acct = 1, set just now (it was 0), for flows born from now on",
			"to keep it over a reboot: echo 'net.netfilter.nf_conntrack_acct = 1' >> /etc/sysctl.d/60-ctlogd.conf"},
		{"conntrack timestamps", Pass, "net.netfilter.nf_conntrack_timestamp = 1", ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	for _, s := range Sysctls {
		if value, err := h.read(s.Key); value != "1" || err != nil {
			t.Errorf("%s is %q, %v", s.Key, value, err)
		}
	}
}

// A sysctl that cannot be set keeps its verdict.
func TestFixRefused(t *testing.T) {
	k, proc := healthy()
	h := build(t, k, proc)
	path := h.path("nf_conntrack_events")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	// A sysctl that nobody may write, not even root.
	if err := os.Symlink("/proc/sys/kernel/ngroups_max", path); err != nil {
		t.Fatal(err)
	}
	s := Sysctl{"nf_conntrack_events", "conntrack events", map[string]verdict{"65536": {Fail, "why"}}, ""}
	r := h.sysctl(s, true)
	want := Result{"conntrack events", Fail,
		"net.netfilter.nf_conntrack_events = 65536, and it cannot be set: permission denied",
		"as root, outside any container: sysctl -w net.netfilter.nf_conntrack_events=1"}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

func TestOutputs(t *testing.T) {
	k, proc := healthy()
	right := func(context.Context) error { return nil }
	wrong := func(context.Context) error { return errors.New("no directory /y; make it; then again") }
	refused := func(context.Context) error { return errors.New("connection refused; start it") }
	got := build(t, k, proc).run(t.Context(), Options{Outputs: []Output{
		{"outputs.a[0]", "/x", right, nil},
		{"outputs.a[1]", "/y", wrong, nil},
		{"outputs.b[0]", "udp://x", right, right},
		{"outputs.b[1]", "tcp://x", right, refused},
		{"outputs.b[2]", "tcp://y", wrong, refused},
	}})
	want := []Result{
		{"outputs.a[0]", Pass, "/x", ""},
		{"outputs.a[1]", Fail, "no directory /y", "make it; then again"},
		{"outputs.b[0]", Pass, "udp://x", ""},
		{"outputs.b[1]", Warn, "connection refused", "start it"},
		{"outputs.b[2]", Fail, "no directory /y", "make it; then again"},
	}
	if diff := cmp.Diff(want, got[len(got)-len(want):]); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
}

func TestRunEndsWithContext(t *testing.T) {
	k, proc := healthy()
	ctx, cancel := context.WithCancel(t.Context())
	got := build(t, k, proc).run(ctx, Options{Outputs: []Output{
		{"a", "", func(context.Context) error { cancel(); return nil }, nil},
		{"b", "", func(context.Context) error { t.Error("checked after the end"); return nil }, nil},
	}})
	if last := got[len(got)-1].Name; last != "a" {
		t.Errorf("the last result is %s's", last)
	}
}

// answer is a body as the kernel sends it: nfgenmsg and attributes.
func answer(t *testing.T, attrs ...netlink.Attribute) []byte {
	t.Helper()
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{2, 0, 0, 0}, b...)
}

// net/netfilter/nfnetlink_hook.c, nfnl_hook_dump_one: with CONFIG_KALLSYMS module and function, without neither.
func TestParseHooks(t *testing.T) {
	number := netlink.Attribute{Type: 1, Data: []byte{0, 0, 0, 0}}
	priority := netlink.Attribute{Type: 2, Data: binary.BigEndian.AppendUint32(nil, uint32(0xffffff38))} // -200
	got, err := parseHooks([][]byte{
		answer(t, netlink.Attribute{Type: 5, Data: []byte("nf_conntrack\x00")},
			netlink.Attribute{Type: 4, Data: []byte("ipv4_conntrack_in\x00")}, number, priority),
		answer(t, number, priority),
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"ipv4_conntrack_in", ""}, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestParseTable(t *testing.T) {
	// As Linux 6.18 answered.
	entries, limit, err := parseTable([][]byte{{0, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 7, 8, 0, 2, 0, 0, 0x3d, 9, 0}})
	if entries != 7 || limit != 4000000 || err != nil {
		t.Errorf("got %d, %d, %v", entries, limit, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 7})
	f.Add([]byte{2, 0, 0, 0, 8, 0, 4, 0, 'a', 'b', 'c', 0})
	f.Add([]byte{0, 0})
	f.Add([]byte{0, 0, 0, 0, 6, 0, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _, tableErr := parseTable([][]byte{body})
		names, hooksErr := parseHooks([][]byte{body})
		if len(body) < 4 && (tableErr == nil || hooksErr == nil) {
			t.Errorf("%x was understood", body)
		}
		if hooksErr == nil && len(names) != 1 {
			t.Errorf("%d names of one answer", len(names))
		}
	})
}
