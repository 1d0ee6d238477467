package preflight

import (
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace runs the rest of the test in a network namespace of its own, which goes with the thread at its end.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace of its own")
	}
	runtime.LockOSThread() // for good: the thread is no use to anybody else
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs a network namespace of its own: %v", err)
	}
	if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil {
		t.Skipf("needs iproute2: ip link set lo up: %v", err)
	}
	if _, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_max"); err != nil {
		t.Skipf("needs nf_conntrack: %v", err)
	}
}

func set(t *testing.T, key, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/netfilter/"+key, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func statuses(results []Result) map[string]Status {
	m := map[string]Status{}
	for _, r := range results {
		m[r.Name] = r.Status
	}
	return m
}

func TestKernelSysctls(t *testing.T) {
	inNamespace(t)
	for _, tt := range []struct {
		key, value, check string
		want              Status
	}{
		{"nf_conntrack_events", "0", "conntrack events", Fail},
		{"nf_conntrack_events", "2", "conntrack events", Warn},
		{"nf_conntrack_acct", "0", "conntrack accounting", Warn},
		{"nf_conntrack_timestamp", "0", "conntrack timestamps", Warn},
	} {
		for _, s := range Sysctls {
			set(t, s.Key, "1")
		}
		set(t, tt.key, tt.value)
		before := statuses(Run(t.Context(), Options{}))
		for _, s := range Sysctls {
			want := Pass
			if s.Key == tt.key {
				want = tt.want
			}
			if before[s.check] != want {
				t.Errorf("%s = %s: %s came out as %s, want %s", tt.key, tt.value, s.check, before[s.check], want)
			}
		}
		if after := statuses(Run(t.Context(), Options{Fix: true})); after[tt.check] != Pass {
			t.Errorf("%s = %s: fixed, it came out as %s", tt.key, tt.value, after[tt.check])
		}
		if got, err := os.ReadFile("/proc/sys/net/netfilter/" + tt.key); strings.TrimSpace(string(got)) != "1" {
			t.Errorf("%s = %s: fixed, it is %q, %v", tt.key, tt.value, got, err)
		}
	}
}

// As conntrack starts with the first rule that uses it, so does the check's verdict change. Kernels that do not list
// their hooks (Linux before 5.14, or without CONFIG_NETFILTER_NETLINK_HOOK) are known by the flows they track.
func TestKernelTracking(t *testing.T) {
	inNamespace(t)
	nft := func(rules string) {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("needs nftables: nft: %v: %s", err, out)
		}
	}
	_, err := linux{}.hooks(nfprotoIPv4)
	lists := err == nil
	t.Logf("this kernel lists its hooks: %v (%v)", lists, err)

	untold := Warn
	if lists {
		untold = Fail
	}
	check := func(when string, want Status) {
		t.Helper()
		results := Run(t.Context(), Options{})
		if got := statuses(results)["conntrack hooks"]; got != want {
			t.Errorf("%s: got %s, want %s: %+v", when, got, want, results)
		}
	}
	check("without rules", untold)
	nft("table inet t { chain c { type filter hook input priority 0; ct state established accept; }; }")
	if lists {
		check("with a rule", Pass)
	} else {
		check("with a rule, before traffic", Warn)
	}
	talk(t)
	check("with a rule and a flow", Pass)
}

// talk makes one UDP flow over the loopback device.
func talk(t *testing.T) {
	t.Helper()
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := net.Dial("udp4", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := server.ReadFrom(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
}

// What the kernel says over netlink is what it says in proc.
func TestKernelTable(t *testing.T) {
	inNamespace(t)
	entries, limit, err := linux{}.table()
	if err != nil {
		t.Fatal(err)
	}
	procEntries, procLimit, err := host{proc: "/proc"}.procTable()
	if err != nil {
		t.Fatal(err)
	}
	if entries != procEntries || limit != procLimit || limit == 0 {
		t.Errorf("netlink says %d of %d, proc %d of %d", entries, limit, procEntries, procLimit)
	}
}

// A subsystem that nobody has registered is refused, not waited for.
func TestKernelUnknownSubsystem(t *testing.T) {
	inNamespace(t)
	if _, err := ask(200, 0, unix.NLM_F_ACK, unix.AF_UNSPEC, nil); err != unix.EINVAL {
		t.Errorf("got %v, want EINVAL", err)
	}
}

func TestKernelWithoutRights(t *testing.T) {
	inNamespace(t)
	before := statuses(Run(t.Context(), Options{ReceiveBuffer: 1 << 29}))
	for _, name := range []string{"capability", "ctnetlink", "conntrack table", "receive buffer"} {
		if before[name] != Pass {
			t.Errorf("with all rights, %s came out as %s", name, before[name])
		}
	}

	// The set of this thread alone, which ends with the test.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
	sets[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
	after := statuses(Run(t.Context(), Options{ReceiveBuffer: 1 << 29}))
	for name, want := range map[string]Status{
		"capability": Fail, "ctnetlink": Warn, "conntrack hooks": Warn, "conntrack table": Pass, "receive buffer": Warn,
	} {
		if after[name] != want {
			t.Errorf("without CAP_NET_ADMIN, %s came out as %s, want %s", name, after[name], want)
		}
	}
}
