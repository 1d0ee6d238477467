package preflight

import (
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

// nft loads rules, or skips the test where that cannot be done.
func nft(t *testing.T, rules string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("needs nftables: nft: %v: %s", err, out)
	}
}

func find(results []Result, name string) Result {
	for _, r := range results {
		if r.Name == name {
			return r
		}
	}
	return Result{}
}

// As conntrack starts with the first rule that uses it, so does the check's verdict change. Kernels that do not list
// their hooks (Linux before 5.14, or without CONFIG_NETFILTER_NETLINK_HOOK) are known by the flows they track.
func TestKernelTracking(t *testing.T) {
	inNamespace(t)
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
	nft(t, "table inet t { chain c { type filter hook input priority 0; ct state established accept; }; }")
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

// Flowtables are told apart by whether they count.
func TestKernelFlowtables(t *testing.T) {
	inNamespace(t)
	check := func(when string, want Result) {
		t.Helper()
		want.Name = "flowtables"
		got := find(Run(t.Context(), Options{}), "flowtables")
		got.Remedy = ""
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	nft(t, "table inet empty { }") // loads nf_tables
	check("without", Result{Status: Pass, Detail: "none in nftables"})
	nft(t, "table inet filter { flowtable counting { hook ingress priority 0; devices = { lo }; counter; }; }")
	check("one with counter", Result{Status: Pass, Detail: "1, with counters"})
	nft(t, "table ip nat { flowtable silent { hook ingress priority 0; devices = { lo }; }; }")
	check("and one without", Result{Status: Warn,
		Detail: "without counter: ip nat silent; the packets and bytes of flows that go through stand still"})
}

func TestKernelHelpers(t *testing.T) {
	inNamespace(t)
	nft(t, `table inet filter {
		ct helper a { type "ftp" protocol tcp; l3proto ip; }
		ct helper b { type "ftp" protocol tcp; l3proto ip6; }
		counter c { }
	}`)
	got := find(Run(t.Context(), Options{}), "conntrack helpers")
	if _, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_helper"); err == nil {
		t.Logf("this kernel assigns helpers by port as well: %v", got)
	}
	if names, err := (linux{}).helpers(); err != nil || cmp.Diff([]string{"ftp", "ftp"}, names) != "" {
		t.Errorf("got %q, %v", names, err)
	}
}

// Listeners of this namespace are found with their flags and their process: a child that has inherited a socket.
func TestKernelListeners(t *testing.T) {
	inNamespace(t)
	check := func(when string, status Status, detail string) {
		t.Helper()
		got := find(Run(t.Context(), Options{}), "other listeners")
		if got.Status != status || !strings.Contains(got.Detail, detail) {
			t.Errorf("%s: %+v", when, got)
		}
	}
	check("nobody", Pass, "nobody listens")

	// The sockets are passed on to a child of another name and closed here: this process's own do not count.
	listen := func(reliable bool) {
		t.Helper()
		s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << 2}); err != nil {
			t.Fatal(err)
		}
		if reliable {
			if err := unix.SetsockoptInt(s, unix.SOL_NETLINK, unix.NETLINK_BROADCAST_ERROR, 1); err != nil {
				t.Fatal(err)
			}
		}
		f := os.NewFile(uintptr(s), "netlink")
		child := exec.Command("sleep", "600")
		child.ExtraFiles = []*os.File{f}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
	}
	listen(false)
	check("one that is not reliable", Pass, "sleep (process ")
	listeners, err := (linux{}).listeners()
	if err != nil {
		t.Fatalf("netlink_diag: %v", err)
	}
	fromProc, err := host{proc: "/proc"}.procListeners()
	if err != nil || len(fromProc) != 1 || len(listeners) != 1 ||
		fromProc[0].inode != listeners[0].inode || fromProc[0].groups != listeners[0].groups {
		t.Errorf("netlink says %v, proc %v, %v", listeners, fromProc, err)
	}
	listen(true)
	check("a reliable one", Warn, ") listens reliably")
}

// The answers come from this machine, whatever they are; only that they come is for sure.
func TestKernelClockAndDisk(t *testing.T) {
	if c, err := (linux{}).clock(); err != nil {
		t.Errorf("clock: %v", err)
	} else {
		t.Logf("%+v", c)
	}
	dir := t.TempDir()
	device, free, err := linux{}.disk(dir)
	if err != nil || free == 0 {
		t.Errorf("disk: %d bytes, %v", free, err)
	}
	if other, _, err := (linux{}).disk("/proc"); err != nil || other == device {
		t.Errorf("/proc is on the device of %s: %v", dir, err)
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
