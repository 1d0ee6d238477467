package preflight

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

// fake is a kernel with these answers.
type fake struct {
	entries, limit uint32
	tableErr       error
	v4, v6         []string
	hooksErr       error
	bufferErr      error
	tables         []flowtable
	objects        []string // helpers of nftables
	nftErr         error
	nat            []translation
	expected       uint32
	expectedErr    error
	sockets        []listener
	socketsErr     error
	time           clock
	clockErr       error
	disks          map[string]uint64 // what is free, by the last element of the path; each is a device of its own
}

func (k fake) table() (uint32, uint32, error) { return k.entries, k.limit, k.tableErr }

func (k fake) hooks(family uint8) ([]string, error) {
	if family == nfprotoIPv6 {
		return k.v6, k.hooksErr
	}
	return k.v4, k.hooksErr
}

func (k fake) forceBuffer(int) error { return k.bufferErr }

func (k fake) flowtables() ([]flowtable, error) { return k.tables, k.nftErr }

func (k fake) helpers() ([]string, error) { return k.objects, k.nftErr }

func (k fake) translations() ([]translation, error) { return k.nat, k.nftErr }

func (k fake) expectations() (uint32, error) { return k.expected, k.expectedErr }

func (k fake) listeners() ([]listener, error) { return k.sockets, k.socketsErr }

func (k fake) clock() (clock, error) { return k.time, k.clockErr }

func (k fake) disk(path string) (device, free uint64, err error) {
	free, ok := k.disks[filepath.Base(path)]
	if !ok {
		return 0, 0, unix.EACCES
	}
	return free, free, nil
}

// today is the day on which the tests' machines are looked at.
var today = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// healthy is a machine on which every check passes.
func healthy() (fake, map[string]string) {
	return fake{entries: 10, limit: 1000, v4: []string{"nf_hook", "ipv4_conntrack_in"},
			v6: []string{"ipv6_conntrack_in"}, time: clock{false, 350 * time.Microsecond, 20 * time.Millisecond}},
		map[string]string{
			"sys/net/netfilter/nf_conntrack_buckets":   "125\n",
			"meminfo":                                  "MemTotal:        8388608 kB\nMemFree: 1 kB\n",
			"thread-self/status":                       "Name:\tctlogd\nCapEff:\t0000000000001000\n",
			"sys/net/netfilter/nf_conntrack_events":    "1\n",
			"sys/net/netfilter/nf_conntrack_acct":      "1\n",
			"sys/net/netfilter/nf_conntrack_timestamp": "1\n",
			"sys/net/netfilter/nf_conntrack_count":     "10\n",
			"sys/net/netfilter/nf_conntrack_max":       "1000\n",

			"sys/net/netfilter/nf_conntrack_tcp_timeout_established": "7440\n",
			"sys/net/netfilter/nf_conntrack_expect_max":              "256\n",
			"sys/net/netfilter/nf_conntrack_log_invalid":             "0\n",
			"sys/net/core/rmem_max":                                  "212992\n",
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
	return host{proc: root, kernel: k, now: func() time.Time { return today }}
}

const netfilter = "sys/net/netfilter/"

const (
	fixEvents = "ctlogd check --fix, or sysctl -w net.netfilter.nf_conntrack_events=1; " +
		"it holds for flows born afterwards"
	fixAcct = "ctlogd check --fix, or sysctl -w net.netfilter.nf_conntrack_acct=1; it holds for flows born afterwards"
	fixTime = "ctlogd check --fix, or sysctl -w net.netfilter.nf_conntrack_timestamp=1; " +
		"it holds for flows born afterwards"
	runNTP = "run chrony, ntpd or systemd-timesyncd, and see chronyc tracking, ntpq -p or timedatectl timesync-status"
	rights = "repeat the check with the rights that the daemon will have"
	start  = "load the firewall's rules; the first that uses ct or NAT starts tracking, " +
		"say: nft add rule inet filter forward ct state established,related accept"
)

func TestChecks(t *testing.T) {
	noRights := func(k *fake, proc map[string]string) {
		proc["thread-self/status"] = "CapEff:\t0000000000000000\n"
		k.tableErr, k.hooksErr, k.bufferErr, k.nftErr = unix.EPERM, unix.EPERM, unix.EPERM, unix.EPERM
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
			{"conntrack buckets", Warn, "cannot be told: no such file or directory", ""},
			{"conntrack timeouts", Warn, "cannot be told: no such file or directory", ""},
			{"expectations", Warn, "cannot be told: no such file or directory", ""},
			{"conntrack log", Warn, "cannot be told: no such file or directory", ""},
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
			{"flowtables", Warn, "cannot be told without CAP_NET_ADMIN", rights},
			{"conntrack helpers", Warn, "cannot be told without CAP_NET_ADMIN", rights},
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
			{"flowtables", Warn, "cannot be told without CAP_NET_ADMIN", rights},
			{"conntrack helpers", Warn, "cannot be told without CAP_NET_ADMIN", rights},
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
			[]Result{{"conntrack table", Pass, "10 flows, without a limit", ""},
				{"conntrack buckets", Pass, "125, for any number of flows", ""}}},
		{"buffer refused", func(k *fake, _ map[string]string) { k.bufferErr = unix.ENOBUFS },
			[]Result{{"receive buffer", Warn, "1MiB is refused: no buffer space available", ""}}},
		{"a small machine", func(_ *fake, p map[string]string) { p["meminfo"] = "MemTotal: 4096 kB\n" },
			[]Result{{"receive buffer", Warn, "1MiB is granted, but it may take 2 MiB of the 4 MiB that this machine has",
				"lower input.conntrack.receive_buffer"}}},
		{"few buckets", func(_ *fake, p map[string]string) { p[netfilter+"nf_conntrack_buckets"] = "124\n" },
			[]Result{{"conntrack buckets", Warn, "nf_conntrack_max is 1000, for 124 buckets: a table that fills makes " +
				"every packet search lists of up to 16 entries",
				"sysctl -w net.netfilter.nf_conntrack_buckets=1000, which takes 7.81 KiB; outside any container"}}},
		{"idle connections stay for five days", func(_ *fake, p map[string]string) {
			p[netfilter+"nf_conntrack_tcp_timeout_established"] = "432000\n"
		}, []Result{{"conntrack timeouts", Pass, "nf_conntrack_tcp_timeout_established is 432000 s: the record of a connection that nobody " +
			"ended comes up to 5 days late, and the flow takes its place in the table until then",
			"to have it sooner: sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=86400; RFC 5382 asks for 7440 at least"}}},
		{"idle connections break", func(_ *fake, p map[string]string) {
			p[netfilter+"nf_conntrack_tcp_timeout_established"] = "7439\n"
		}, []Result{{"conntrack timeouts", Warn, "nf_conntrack_tcp_timeout_established is 7439 s: connections that are idle for 2h3m59s " +
			"break, and go on under another flow_id if at all",
			"sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=7440, the least that RFC 5382 asks of a NAT, or more"}}},
		{"many expectations", func(k *fake, _ map[string]string) { k.expected = 205 },
			[]Result{{"expectations", Warn, "205 of 256: when they are full, what helpers let through fails: the data of FTP, the voice of SIP",
				"see ctlogd list --expect, or raise the limit: sysctl -w net.netfilter.nf_conntrack_expect_max=1024"}}},
		{"some expectations", func(k *fake, _ map[string]string) { k.expected = 204 },
			[]Result{{"expectations", Pass, "204 of 256", ""}}},
		{"expectations that cannot be counted", func(k *fake, _ map[string]string) { k.expectedErr = unix.EPERM },
			[]Result{{"expectations", Pass, "256 at most; how many there are cannot be told", ""}}},
		{"invalid packets are logged", func(_ *fake, p map[string]string) { p[netfilter+"nf_conntrack_log_invalid"] = "255\n" },
			[]Result{{"conntrack log", Warn, "nf_conntrack_log_invalid is 255: of the packets that belong to no connection, the kernel logs each one; " +
				"a flood of them takes the processor and fills the log",
				"sysctl -w net.netfilter.nf_conntrack_log_invalid=0, when you have seen what you looked for"}}},
		{"flowtables without counter", func(k *fake, _ map[string]string) {
			k.tables = []flowtable{{1, "filter", "fast", false}, {2, "nat", "f", true}, {10, "t", "g", false}}
		}, []Result{{"flowtables", Warn, "without counter: inet filter fast, ip6 t g; " +
			"the packets and bytes of flows that go through stand still",
			"write counter into the definition: flowtable NAME { hook ingress priority 0; devices = { ... }; counter; }"}}},
		{"flowtables with counter", func(k *fake, _ map[string]string) {
			k.tables = []flowtable{{1, "filter", "fast", true}}
		}, []Result{{"flowtables", Pass, "1, with counters", ""}}},
		{"no nftables", func(k *fake, _ map[string]string) { k.nftErr = unix.EINVAL }, []Result{
			{"flowtables", Pass, "nftables is not there, and no flowtable of it", ""},
			{"conntrack helpers", Pass, "assigned by rules of iptables alone, if at all: nftables is not there", ""},
		}},
		{"nftables silent", func(k *fake, _ map[string]string) { k.nftErr = unix.EAGAIN }, []Result{
			{"flowtables", Warn, "cannot be told: resource temporarily unavailable", ""},
			{"conntrack helpers", Warn, "cannot be told: resource temporarily unavailable", ""},
		}},
		{"helpers by rule", func(k *fake, _ map[string]string) { k.objects = []string{"sip", "ftp", "sip"} },
			[]Result{{"conntrack helpers", Pass, "nftables has rules for ftp, sip", ""}}},
		{"helpers by port", func(_ *fake, p map[string]string) { p[netfilter+"nf_conntrack_helper"] = "1\n" },
			[]Result{{"conntrack helpers", Pass, "assigned to flows by their ports: net.netfilter.nf_conntrack_helper = 1", ""}}},
		{"helpers no longer by port", func(_ *fake, p map[string]string) { p[netfilter+"nf_conntrack_helper"] = "0\n" }, nil},
		{"clock not synchronised", func(k *fake, _ map[string]string) { k.time.unsynchronized = true },
			[]Result{{"clock", Warn, "not synchronised: nobody knows how wrong the times in the records are", runNTP}}},
		{"clock far off", func(k *fake, _ map[string]string) { k.time.estimated = 1500 * time.Millisecond },
			[]Result{{"clock", Warn, "synchronised, but probably wrong by 1.5s", runNTP}}},
		{"clock refused", func(k *fake, _ map[string]string) { k.clockErr = unix.EPERM },
			[]Result{{"clock", Warn, "the kernel does not say whether its clock is synchronised: adjtimex(2) is refused",
				"ProtectClock= and SystemCallFilter= in the unit refuse it: set ProtectClock=no and SystemCallFilter=adjtimex"}}},
		{"clock silent", func(k *fake, _ map[string]string) { k.clockErr = unix.ENOSYS },
			[]Result{{"clock", Warn, "cannot be told: function not implemented", ""}}},
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
			"to keep it over a reboot: echo 'net.netfilter.nf_conntrack_events = 1' >> /etc/sysctl.d/90-ctlogd-local.conf"},
		{"conntrack accounting", Pass,
			"net.netfilter.nf_conntrack_acct = 1, set just now (it was 0), for flows born from now on",
			"to keep it over a reboot: echo 'net.netfilter.nf_conntrack_acct = 1' >> /etc/sysctl.d/90-ctlogd-local.conf"},
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
	there := func(context.Context) (none time.Time, err error) { return }
	refused := func(context.Context) (none time.Time, err error) {
		return none, errors.New("connection refused; start it")
	}
	until := func(t time.Time) func(context.Context) (time.Time, error) {
		return func(context.Context) (time.Time, error) { return t, nil }
	}
	got := build(t, k, proc).run(t.Context(), Options{Outputs: []Output{
		{"outputs.a[0]", "/x", right, nil, func() string { return "" }},
		{"outputs.a[1]", "/y", wrong, nil, nil},
		{"outputs.b[0]", "udp://x", right, there, func() string { return "holds a day" }},
		{"outputs.b[1]", "tcp://x", right, refused, nil},
		{"outputs.b[2]", "tcp://y", wrong, refused, nil},
		{"outputs.b[3]", "tls://x", right, until(today.Add(soon)), nil},
		{"outputs.b[4]", "tls://y", right, until(today.Add(soon - time.Hour)), nil},
	}})
	want := []Result{
		{"outputs.a[0]", Pass, "/x", ""},
		{"outputs.a[1]", Fail, "no directory /y", "make it; then again"},
		{"outputs.b[0]", Pass, "udp://x: holds a day", ""},
		{"outputs.b[1]", Warn, "connection refused", "start it"},
		{"outputs.b[2]", Fail, "no directory /y", "make it; then again"},
		{"outputs.b[3]", Pass, "tls://x", ""},
		{"outputs.b[4]", Warn, "tls://y: a certificate that it shows expires on 2026-03-31",
			"have it renewed there, or records will wait for a session"},
	}
	if diff := cmp.Diff(want, got[len(got)-len(want):]); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
}

// Who else listens, and whether reliably: each socket belongs to a process, and one process may have several.
func TestOthers(t *testing.T) {
	const stop = "one reliable listener is enough: stop the other, or set NetlinkEventsReliable Off (conntrackd), " +
		"reliable=0 (ulogd2), delivery: best_effort (ctlogd)"
	reliable := func(inode uint32) listener { return listener{inode, 1, true, true} }
	besteffort := func(inode uint32) listener { return listener{inode, 4, false, true} }
	// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode, as Linux 6.18 prints them: the first is no netfilter socket,
	// the second is in group 7, which is no conntrack group.
	const table = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n" +
		"0000000000000000 0   1          00000001 0        0        0     2        0        11\n" +
		"0000000000000000 12  2          00000040 0        0        0     2        0        12\n" +
		"0000000000000000 12  3          00000004 0        0        0     2        0        20\n"
	processes := map[string]string{"1": "systemd", "50": "ctlogd", "60": "conntrackd", "70": "ctlogd", "80": "conntrack"}
	fds := map[string][]uint32{"1": {50}, "50": {50, 51, 52}, "60": {60}, "70": {70}, "80": {20}}
	for _, tt := range []struct {
		name    string
		sockets []listener
		err     error
		daemon  bool
		want    Result
	}{
		{"nobody", nil, nil, false, Result{Status: Pass, Detail: "nobody listens to conntrack's events"}},
		{"the daemon, seen from outside, and its kept socket", []listener{reliable(50), besteffort(51), reliable(52)}, nil,
			false, Result{Status: Pass, Detail: "none but ctlogd (process 50)"}},
		{"another daemon, seen from one", []listener{reliable(50)}, nil, true, Result{Status: Warn, Remedy: stop,
			Detail: "ctlogd (process 50) listens reliably: ends come again until it has them too, and wait in the table " +
				"while it does not read"}},
		{"two daemons", []listener{reliable(50), reliable(70)}, nil, false, Result{Status: Warn, Remedy: stop,
			Detail: "ctlogd (process 50), ctlogd (process 70) listens reliably: ends come again until it has them too, " +
				"and wait in the table while it does not read"}},
		{"conntrackd", []listener{reliable(50), reliable(60)}, nil, false, Result{Status: Warn, Remedy: stop,
			Detail: "conntrackd (process 60) listens reliably: ends come again until it has them too, and wait in the table " +
				"while it does not read"}},
		{"conntrack -E", []listener{reliable(50), besteffort(20)}, nil, false, Result{Status: Pass,
			Detail: "conntrack (process 80) listens, not reliably: it costs the packet path, and no records"}},
		{"out of sight", []listener{besteffort(99)}, nil, false, Result{Status: Pass,
			Detail: "a process that cannot be seen from here listens, not reliably: it costs the packet path, and no records"}},
		{"an old kernel", nil, unix.ENOENT, false, Result{Status: Warn,
			Detail: "conntrack (process 80) listens, and this kernel does not tell whether reliably",
			Remedy: "see that it does not: NetlinkEventsReliable Off (conntrackd), reliable=0 (ulogd2)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k, proc := healthy()
			k.sockets, k.socketsErr = tt.sockets, tt.err
			proc["thread-self/net/netlink"] = table
			for pid, name := range processes {
				proc[pid+"/comm"] = name + "\n"
			}
			h := build(t, k, proc)
			h.daemon = tt.daemon
			for pid, inodes := range fds {
				dir := filepath.Join(h.proc, pid, "fd")
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				for i, inode := range inodes {
					if err := os.Symlink(fmt.Sprintf("socket:[%d]", inode), filepath.Join(dir, fmt.Sprint(i))); err != nil {
						t.Fatal(err)
					}
				}
			}
			tt.want.Name = "other listeners"
			if diff := cmp.Diff(tt.want, h.others(t.Context())); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDisks(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	logs := write("log/flows", 1<<20)
	write("log/flows.1", 1<<20)
	write("log/flows.3", 1<<20) // beyond keep
	write("spool/a", 1<<20)
	write("spool/b", 2<<20)
	log := Files{"outputs.jsonl[0]", logs, 4 << 20, 2, 0}
	spool := Files{"outputs.kafka[0].spool", filepath.Join(dir, "spool"), 8 << 20, 0, 0}
	reserving := log
	reserving.Reserve = 1 << 20
	const remedy = "lower max_size or keep, or make room: a disk that is full loses records"
	for _, tt := range []struct {
		name  string
		files []Files
		disks map[string]uint64
		want  []Result
	}{
		{"room for all", []Files{log}, map[string]uint64{"flows": 2 << 20}, []Result{{"disk", Pass,
			"the file system of " + logs + " has 2 MiB left, and outputs.jsonl[0] may take 2 MiB more", ""}}},
		{"one byte short", []Files{log}, map[string]uint64{"flows": 2<<20 - 1}, []Result{{"disk", Warn,
			"the file system of " + logs + " has 2 MiB left, and outputs.jsonl[0] may take 2 MiB more", remedy}}},
		{"too little beside the reserve", []Files{reserving}, map[string]uint64{"flows": 3<<20 - 1}, []Result{{"disk", Warn,
			"the file system of " + logs + " has 3 MiB left, and outputs.jsonl[0] may take 2 MiB more; 1 MiB of it stay free",
			remedy}}},
		{"too little for both on one", []Files{log, spool}, map[string]uint64{"flows": 5 << 20, "spool": 5 << 20},
			[]Result{{"disk", Warn, "the file system of " + logs +
				" has 5 MiB left, and outputs.jsonl[0], outputs.kafka[0].spool may take 7 MiB more", remedy}}},
		{"enough on each of two", []Files{log, spool}, map[string]uint64{"flows": 5<<20 + 1, "spool": 5 << 20}, []Result{
			{"disk", Pass, "the file system of " + logs + " has 5 MiB left, and outputs.jsonl[0] may take 2 MiB more", ""},
			{"disk", Pass, "the file system of " + dir + "/spool has 5 MiB left, and outputs.kafka[0].spool may take 5 MiB more",
				""},
		}},
		{"without a bound, and not there yet", []Files{{"outputs.jsonl[0]", filepath.Join(dir, "spool/x/y"), 0, 0, 0}},
			map[string]uint64{"spool": 100}, []Result{{"disk", Pass, "the file system of " + dir + "/spool has 100 bytes " +
				"left; without max_size, outputs.jsonl[0] may grow to any size", ""}}},
		{"a device", []Files{{"outputs.jsonl[0]", "/dev/null", 0, 0, 0}}, nil, nil},
		{"not ours to ask", []Files{log}, nil, []Result{{"disk", Warn, "how much room " + logs +
			" has cannot be told: permission denied", ""}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []Result
			for _, s := range (host{kernel: fake{disks: tt.disks}}).systems(tt.files) {
				got = append(got, s.result(t.Context()))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("results (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCertificates(t *testing.T) {
	authority := certtest.New(t)
	cert := func(name string, from, to time.Time) string {
		text, _ := authority.IssueFor(t, name, from, to)
		return string(text)
	}
	old := today.AddDate(-1, 0, 0)
	good := cert("good", old, today.Add(soon))
	ending := cert("ending", old, today.Add(soon-time.Second))
	over := cert("over", old, today.Add(-time.Second))
	coming := cert("coming", today.Add(time.Second), today.AddDate(1, 0, 0))
	for _, tt := range []struct {
		name, text string
		status     Status
		detail     string
		remedy     string
	}{
		{"good", good, Pass, "holds until 2026-03-31", ""},
		{"a chain, of which one ends soon", good + ending, Warn, "CN=ending expires on 2026-03-31", renew},
		{"expired", over, Fail, "CN=over expired on 2026-03-01", renew},
		{"not valid yet", coming, Fail, "CN=coming holds from 2026-03-01 on", renew},
		{"authorities, of which one has expired", over + good, Warn, "CN=over expired on 2026-03-01", renew},
		{"no certificate", "x", Fail, "has no certificate", ""},
		{"no such file", "", Fail, "no such file or directory", ""},
		{"broken", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", Fail, "x509: ", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "x.pem")
			if tt.text != "" {
				if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			k, proc := healthy()
			all := build(t, k, proc).run(t.Context(), Options{Certificates: []Certificate{{"outputs.x[0].tls.cert", file}}})
			r := all[len(all)-1]
			if r.Name != "outputs.x[0].tls.cert" || r.Status != tt.status || r.Remedy != tt.remedy ||
				!strings.Contains(r.Detail, file) || !strings.Contains(r.Detail, tt.detail) {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestRunEndsWithContext(t *testing.T) {
	k, proc := healthy()
	ctx, cancel := context.WithCancel(t.Context())
	got := build(t, k, proc).run(ctx, Options{Outputs: []Output{
		{"a", "", func(context.Context) error { cancel(); return nil }, nil, nil},
		{"b", "", func(context.Context) error { t.Error("checked after the end"); return nil }, nil, nil},
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
		_, tablesErr := parseFlowtables([][]byte{body})
		_, helpersErr := parseHelpers([][]byte{body})
		_, listenersErr := parseListeners([][]byte{body})
		_, translationsErr := parseTranslations([][]byte{body})
		if len(body) < 4 && (translationsErr == nil || tableErr == nil || hooksErr == nil || tablesErr == nil || helpersErr == nil || listenersErr == nil) {
			t.Errorf("%x was understood", body)
		}
		if hooksErr == nil && len(names) != 1 {
			t.Errorf("%d names of one answer", len(names))
		}
	})
}

// TestShared: where destinations are left out, a rule that makes several sources one address is told, unless each has ports.
func TestShared(t *testing.T) {
	many := translation{family: 2, table: "nat", chain: "postrouting"}
	ports, one, mapped := many, many, many
	ports.ports, one.one, mapped.unknown = true, true, true
	for name, tt := range map[string]struct {
		rules  []translation
		err    error
		status Status
		want   string
	}{
		"none":          {nil, nil, Pass, "no rule of nftables translates several sources"},
		"masquerade":    {[]translation{ports, many, one, many}, nil, Warn, "2 rules in ip nat postrouting translate several sources into one address, without ports of their own, and outputs.x[0] leaves"},
		"ports, single": {[]translation{ports, one}, nil, Pass, "no rule of nftables translates several sources"},
		"a map":         {[]translation{mapped}, nil, Pass, "1 rules translate by a map"},
		"no rights":     {nil, unix.EPERM, Warn, "cannot be told without CAP_NET_ADMIN"},
		"no nftables":   {nil, unix.EINVAL, Pass, "nftables is not there"},
	} {
		k, proc := healthy()
		k.nat, k.nftErr = tt.rules, tt.err
		h := build(t, k, proc)
		found := false
		for _, r := range h.run(t.Context(), Options{NoDestinations: []string{"outputs.x[0]"}}) {
			if r.Name == "shared addresses" {
				found = true
				if r.Status != tt.status || !strings.Contains(r.Detail, tt.want) || (r.Remedy == "") != (tt.status == Pass) {
					t.Errorf("%s: %+v", name, r)
				}
			}
		}
		if !found {
			t.Errorf("%s: no such check", name)
		}
		for _, r := range h.run(t.Context(), Options{}) {
			if r.Name == "shared addresses" {
				t.Errorf("%s: it is made where no destination is left out", name)
			}
		}
	}
}
