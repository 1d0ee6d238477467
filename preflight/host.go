package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/unit"
)

const grant = "run as root, or grant the capability: AmbientCapabilities=CAP_NET_ADMIN in the unit, " +
	"or setcap cap_net_admin+ep on the binary"

func (h host) capability(context.Context) Result {
	r := Result{Name: "capability", Status: Fail, Remedy: grant}
	has, err := h.netAdmin()
	switch {
	case err != nil:
		r.Detail = "effective capabilities cannot be read: " + err.Error()
	case !has:
		r.Detail = "CAP_NET_ADMIN is not effective: no events, no dumps, no large buffer"
	default:
		r = Result{Name: r.Name, Status: Pass, Detail: "CAP_NET_ADMIN is effective"}
	}
	return r
}

// netAdmin reads the calling thread's effective set, as a capability may differ between threads. It says nothing about
// the namespace in which the capability holds; ctnetlink does.
func (h host) netAdmin() (bool, error) {
	status, err := os.ReadFile(filepath.Join(h.proc, "thread-self/status"))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return set>>unix.CAP_NET_ADMIN&1 == 1, err
		}
	}
	return false, errors.New("no CapEff in thread-self/status")
}

func (h host) ctnetlink(context.Context) Result {
	r := Result{Name: "ctnetlink", Status: Fail}
	_, _, err := h.kernel.table()
	switch {
	case err == nil:
		r.Status, r.Detail = Pass, "answers in this network namespace"
	case errors.Is(err, unix.EPERM):
		if has, _ := h.netAdmin(); has {
			r.Detail = "refuses, although CAP_NET_ADMIN is effective: it holds in another user namespace only"
			r.Remedy = "run in the user namespace that owns the network namespace; remove PrivateUsers= from the unit"
		} else {
			r.Status, r.Detail = Warn, "cannot be told without CAP_NET_ADMIN"
			r.Remedy = "repeat the check with the rights that the daemon will have"
		}
	case errors.Is(err, unix.EPROTONOSUPPORT):
		r.Detail = "this kernel has no netfilter netlink"
		r.Remedy = "modprobe nfnetlink; a kernel without CONFIG_NETFILTER_NETLINK cannot report flows"
	case errors.Is(err, unix.EINVAL): // nfnetlink's answer for a subsystem that nobody has registered
		r.Detail = "this kernel has netfilter netlink, but not conntrack's part of it"
		r.Remedy = "modprobe nf_conntrack_netlink; a kernel without CONFIG_NF_CT_NETLINK cannot report flows"
	default:
		r.Detail = "does not answer: " + err.Error()
	}
	return r
}

// Sysctl is a switch under net.netfilter that ctlogd wants at 1.
type Sysctl struct {
	Key   string // "nf_conntrack_acct"
	check string
	wrong map[string]verdict // by value; others pass
	built string             // the kernel option that brings it; empty: always there
}

type verdict struct {
	status Status
	why    string
}

// Sysctls are the switches that Run checks and sets.
var Sysctls = []Sysctl{
	{"nf_conntrack_events", "conntrack events", map[string]verdict{
		"0": {Fail, "the kernel reports no flow at all"},
		"2": {Warn, "flows born while nobody listened never report their end"},
	}, "CONFIG_NF_CONNTRACK_EVENTS"},
	{"nf_conntrack_acct", "conntrack accounting", map[string]verdict{
		"0": {Warn, "records carry no packets and bytes"},
	}, ""},
	{"nf_conntrack_timestamp", "conntrack timestamps", map[string]verdict{
		"0": {Warn, "records carry neither the kernel's start and end nor a flow_id"},
	}, "CONFIG_NF_CONNTRACK_TIMESTAMP"},
}

func (h host) sysctl(s Sysctl, fix bool) Result {
	r := Result{Name: s.check, Status: Fail}
	name := "net.netfilter." + s.Key
	value, err := h.read(s.Key)
	if err != nil {
		return h.absent(s, err)
	}
	wrong, bad := s.wrong[value]
	switch {
	case !bad:
		r.Status, r.Detail = Pass, name+" = "+value
		return r
	case !fix:
		r.Status, r.Detail = wrong.status, fmt.Sprintf("%s = %s: %s", name, value, wrong.why)
		r.Remedy = "ctlogd check --fix, or sysctl -w " + name + "=1; it holds for flows born afterwards"
		return r
	}
	if err := os.WriteFile(h.path(s.Key), []byte("1\n"), 0); err != nil {
		r.Status = wrong.status
		r.Detail = fmt.Sprintf("%s = %s, and it cannot be set: %v", name, value, cause(err))
		r.Remedy = "as root, outside any container: sysctl -w " + name + "=1"
		return r
	}
	r.Status, r.Detail = Pass, fmt.Sprintf("%s = 1, set just now (it was %s), for flows born from now on", name, value)
	r.Remedy = "to keep it over a reboot: echo '" + name + " = 1' >> /etc/sysctl.d/90-ctlogd-local.conf"
	return r
}

// absent explains why a sysctl of conntrack cannot be read. A switch that the kernel was built without is off.
func (h host) absent(s Sysctl, err error) Result {
	r := Result{Name: s.check, Status: Fail}
	name := "net.netfilter." + s.Key
	_, noConntrack := h.read("nf_conntrack_max")
	switch {
	case !errors.Is(err, fs.ErrNotExist):
		r.Detail = fmt.Sprintf("%s cannot be read: %v", name, cause(err))
	case noConntrack != nil:
		r.Detail = "there is no " + name + ": connection tracking is not loaded"
		r.Remedy = "modprobe nf_conntrack"
	default:
		off := s.wrong["0"]
		r.Status, r.Detail = off.status, fmt.Sprintf("this kernel has no %s: %s", name, off.why)
		if s.built != "" {
			r.Remedy = "a kernel with " + s.built
		}
	}
	return r
}

const (
	nfprotoIPv4 = 2  // NFPROTO_IPV4
	nfprotoIPv6 = 10 // NFPROTO_IPV6
)

// tracking tells whether conntrack sees packets in this network namespace. Loading the module is not enough: its hooks
// come with the first rule that uses ct or NAT, and go with the last. Newer kernels list their hooks (5.14,
// CONFIG_NETFILTER_NETLINK_HOOK); where they do not, a table with flows in it is as good a proof, and an empty table
// proves nothing.
func (h host) tracking(context.Context) Result {
	const start = "load the firewall's rules; the first that uses ct or NAT starts tracking, " +
		"say: nft add rule inet filter forward ct state established,related accept"
	r := Result{Name: "conntrack hooks", Status: Pass}

	v4, known4 := h.hooked(nfprotoIPv4)
	v6, known6 := h.hooked(nfprotoIPv6)
	entries, _, err := h.kernel.table()
	switch {
	case v4 && v6:
		r.Detail = "packets of IPv4 and IPv6 are tracked in this network namespace"
	case v4 && known6:
		r.Detail = "packets of IPv4 alone are tracked in this network namespace"
	case v6 && known4:
		r.Detail = "packets of IPv6 alone are tracked in this network namespace"
	case known4 && known6:
		r.Status, r.Remedy = Fail, start
		r.Detail = "no packet is tracked in this network namespace, so no event will come"
	case errors.Is(err, unix.EPERM):
		r.Status, r.Remedy = Warn, "repeat the check with the rights that the daemon will have"
		r.Detail = "cannot be told without CAP_NET_ADMIN"
	case err == nil && entries > 0:
		r.Detail = fmt.Sprintf("the table holds %d flows (this kernel does not list hooks)", entries)
	default:
		r.Status, r.Remedy = Warn, start
		r.Detail = "cannot be told: this kernel does not list hooks, and the table holds no flow at the moment"
	}
	return r
}

// hooked reports whether conntrack has a hook for a family, and whether that could be told: a kernel without
// CONFIG_KALLSYMS lists hooks without names.
func (h host) hooked(family uint8) (yes, known bool) {
	names, err := h.kernel.hooks(family)
	if err != nil {
		return false, false
	}
	known = true
	for _, name := range names {
		if strings.Contains(name, "conntrack") { // ipv4_conntrack_in, ipv6_conntrack_in
			return true, true
		}
		known = known && name != ""
	}
	return false, known
}

// fullAt is the part of the table, in percent, from which on the fill is worth a warning.
const fullAt = 80

func (h host) fill(context.Context) Result {
	r := Result{Name: "conntrack table", Status: Pass}
	// Asked over netlink first: inside a container or under ProcSubset=pid, proc has no count.
	entries, limit, err := h.kernel.table()
	if err != nil || limit == 0 { // the limit stands in the answer since Linux 4.18
		entries, limit, err = h.procTable()
	}
	switch {
	case err != nil:
		r.Status, r.Detail = Warn, "its fill cannot be told: "+cause(err).Error()
		return r
	case limit == 0:
		r.Detail = fmt.Sprintf("%d flows, without a limit", entries)
		return r
	}
	percent := uint64(entries) * 100 / uint64(limit)
	r.Detail = fmt.Sprintf("%d of %d flows (%d %%)", entries, limit, percent)
	if percent >= fullAt {
		r.Status = Warn
		r.Detail += ": when it is full, new connections fail"
		r.Remedy = "find out what fills it, or raise the limit: " +
			fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*uint64(limit))
	}
	return r
}

// deepAt is how many flows may come to a bucket of the table before looking one up costs too much.
const deepAt = 8

// buckets compares the table's size with that of its hash. Each flow stands in it twice, once for each direction, and
// each packet walks half of a bucket's list on average.
func (h host) buckets(context.Context) Result {
	r := Result{Name: "conntrack buckets", Status: Pass}
	buckets, err := h.number("nf_conntrack_buckets")
	limit, err2 := h.number("nf_conntrack_max")
	switch {
	case err != nil || err2 != nil:
		r.Status, r.Detail = Warn, "cannot be told: "+cause(errors.Join(err, err2)).Error()
	case limit > deepAt*buckets:
		r.Status = Warn
		r.Detail = fmt.Sprintf("nf_conntrack_max is %d, for %d buckets: a table that fills makes every packet search lists of up to %d entries",
			limit, buckets, 2*limit/max(buckets, 1))
		r.Remedy = fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_buckets=%d, which takes %s; outside any container", limit, about(int64(limit)*8))
	case limit == 0:
		r.Detail = fmt.Sprintf("%d, for any number of flows", buckets)
	default:
		r.Detail = fmt.Sprintf("%d, for %d flows at most", buckets, limit)
	}
	return r
}

func (h host) number(key string) (uint64, error) {
	text, err := h.read(key)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", key, err)
	}
	return n, nil
}

func (h host) procTable() (entries, limit uint32, err error) {
	count, err := h.number("nf_conntrack_count")
	if err != nil {
		return 0, 0, err
	}
	most, err := h.number("nf_conntrack_max")
	return uint32(count), uint32(most), err
}

func (h host) buffer(size unit.Size) Result {
	r := Result{Name: "receive buffer", Status: Pass}
	err := h.kernel.forceBuffer(int(size))
	if err == nil {
		r.Detail = size.String() + " is granted"
		// The kernel counts what a message takes of its memory, which is twice as much as the buffer at most.
		if total, err := h.memory(); err == nil && 2*int64(size) > total/4 {
			r.Status = Warn
			r.Detail += fmt.Sprintf(", but it may take %s of the %s that this machine has", about(2*int64(size)), about(total))
			r.Remedy = "lower input.conntrack.receive_buffer"
		}
		return r
	}
	if !errors.Is(err, unix.EPERM) {
		r.Status, r.Detail = Warn, fmt.Sprintf("%s is refused: %v", size, cause(err))
		return r
	}
	text, err := os.ReadFile(filepath.Join(h.proc, "sys/net/core/rmem_max"))
	limit, perr := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	switch {
	case err != nil || perr != nil:
		r.Status, r.Remedy = Warn, grant
		r.Detail = size.String() + " needs CAP_NET_ADMIN here, and net.core.rmem_max cannot be read"
	case limit < int64(size):
		r.Status = Warn
		r.Detail = fmt.Sprintf("without CAP_NET_ADMIN, net.core.rmem_max allows %s of the %s asked for",
			unit.Size(limit), size)
		r.Remedy = fmt.Sprintf("grant the capability, or sysctl -w net.core.rmem_max=%d", int64(size))
	default:
		r.Detail = fmt.Sprintf("%s is within net.core.rmem_max", size)
	}
	return r
}

// memory is how much the machine has.
func (h host) memory() (int64, error) {
	text, err := os.ReadFile(filepath.Join(h.proc, "meminfo"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if kib, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kib), "kB")), 10, 54)
			return n << 10, err
		}
	}
	return 0, errors.New("no MemTotal in meminfo")
}

// path is where a sysctl of connection tracking lives; the kernel shows there the values of the calling thread's
// network namespace.
func (h host) path(key string) string { return filepath.Join(h.proc, "sys/net/netfilter", key) }

func (h host) read(key string) (string, error) {
	text, err := os.ReadFile(h.path(key))
	return strings.TrimSpace(string(text)), err
}

// cause is the error without the operation and the path, which stand in the message already.
func cause(err error) error {
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}
