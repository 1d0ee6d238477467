package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// Multicast groups of ctnetlink (linux/netfilter/nfnetlink.h, enum nfnetlink_groups).
const (
	GroupNew        = 1
	GroupUpdate     = 2
	GroupDestroy    = 3
	GroupExpectNew  = 4
	GroupExpectGone = 6
)

// Listens reports whether a process has a netfilter socket that is a member of a multicast group, and so misses no
// event from now on.
func Listens(pid, group int) bool {
	// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
	table, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", pid))
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 10 || f[1] != strconv.Itoa(unix.NETLINK_NETFILTER) {
			continue
		}
		groups, _ := strconv.ParseUint(f[3], 16, 32)
		if groups&(1<<(group-1)) == 0 {
			continue
		}
		for _, fd := range fds {
			if target, _ := os.Readlink(fd); target == "socket:["+f[9]+"]" {
				return true
			}
		}
	}
	return false
}

// Expire removes the flows that have run out, which the kernel does by itself within a minute, and returns how many
// are left.
func (n *NS) Expire() (left int, err error) {
	c, err := conntrack.Dial(&netlink.Config{NetNS: int(n.file.Fd())})
	if err != nil {
		return 0, fmt.Errorf("open ctnetlink: %w", err)
	}
	defer c.Close()
	// A dump evicts what it finds expired (ctnetlink_dump_table).
	flows, err := c.Dump(nil)
	if err != nil {
		return 0, fmt.Errorf("read the connection tracking table: %w", err)
	}
	return len(flows), nil
}

// LoadModules loads kernel modules that rule sets do not load by themselves. One that is built in, or missing, is no
// error here.
func LoadModules(names ...string) {
	_ = exec.Command("modprobe", append([]string{"--quiet", "--all"}, names...)...).Run()
}
