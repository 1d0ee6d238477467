package preflight

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// conntrackGroups are the groups of conntrack's events as a mask: NFNLGRP_CONNTRACK_NEW, which is 1, to
// NFNLGRP_CONNTRACK_EXP_DESTROY, 6.
const conntrackGroups = 1<<6 - 1

// listener is a netlink socket that is a member of some of these groups.
type listener struct {
	inode    uint32
	groups   uint32
	reliable bool // NETLINK_BROADCAST_ERROR is set
	told     bool // that is known
}

// others tells who else listens. A second listener that is reliable as well makes the kernel deliver an end to both
// again and again until both have it: duplicates, and a table that fills when it does not read.
func (h host) others(context.Context) Result {
	r := Result{Name: "other listeners", Status: Pass}
	all, err := h.kernel.listeners()
	if err != nil { // a kernel without netlink_diag
		all, err = h.procListeners()
	}
	if err != nil {
		r.Status, r.Detail = Warn, "cannot be told: "+cause(err).Error()
		return r
	}
	if len(all) == 0 {
		r.Detail = "nobody listens to conntrack's events"
		return r
	}
	owners := h.owners(all)
	groups := map[string]listener{} // by owner: one has several sockets
	for _, l := range all {
		name := owners[l.inode]
		if name.pid == os.Getpid() {
			continue
		}
		g := groups[name.String()]
		g.reliable, g.told = g.reliable || l.reliable, l.told
		groups[name.String()] = g
	}
	var daemons, reliable, doubtful, others []string
	for name, l := range groups {
		switch {
		case strings.HasPrefix(name, "ctlogd "):
			daemons = append(daemons, name)
		case l.reliable:
			reliable = append(reliable, name)
		case !l.told:
			doubtful = append(doubtful, name)
		default:
			others = append(others, name)
		}
	}
	for _, list := range [][]string{daemons, reliable, doubtful, others} {
		slices.Sort(list)
	}
	if h.daemon && len(daemons) > 0 || len(daemons) > 1 {
		reliable = append(daemons, reliable...)
	}
	switch {
	case len(reliable) > 0:
		r.Status = Warn
		r.Detail = fmt.Sprintf("%s listens reliably: ends come again until it has them too, and wait in the table while it does not read",
			strings.Join(reliable, ", "))
		r.Remedy = "one reliable listener is enough: stop the other, or set NetlinkEventsReliable Off (conntrackd), reliable=0 (ulogd2), " +
			"delivery: best_effort (ctlogd)"
	case len(doubtful) > 0:
		r.Status = Warn
		r.Detail = fmt.Sprintf("%s listens, and this kernel does not tell whether reliably", strings.Join(doubtful, ", "))
		r.Remedy = "see that it does not: NetlinkEventsReliable Off (conntrackd), reliable=0 (ulogd2)"
	case len(others) > 0:
		r.Detail = fmt.Sprintf("%s listens, not reliably: it costs the packet path, and no records", strings.Join(others, ", "))
	case len(daemons) > 0:
		r.Detail = "none but " + daemons[0]
	default:
		r.Detail = "none"
	}
	return r
}

// procListeners reads what kernels without netlink_diag tell, which is all but the flags.
func (h host) procListeners() (listeners []listener, err error) {
	text, err := os.ReadFile(filepath.Join(h.proc, "thread-self/net/netlink"))
	if err != nil {
		return nil, err
	}
	// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode; Eth is the protocol
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 10 || f[1] != strconv.Itoa(unix.NETLINK_NETFILTER) {
			continue
		}
		groups, err := strconv.ParseUint(f[3], 16, 32)
		if err != nil || groups&conntrackGroups == 0 {
			continue
		}
		inode, err := strconv.ParseUint(f[9], 10, 32)
		if err != nil {
			continue
		}
		listeners = append(listeners, listener{inode: uint32(inode), groups: uint32(groups)})
	}
	return listeners, nil
}

// owner is a process that has a socket open.
type owner struct {
	pid  int
	name string
}

func (o owner) String() string {
	if o.pid == 0 {
		return "a process that cannot be seen from here"
	}
	return fmt.Sprintf("%s (process %d)", o.name, o.pid)
}

// owners finds the processes that have the sockets open, by the sockets' inodes. Of several it names one other than the
// service manager, which keeps sockets for others.
func (h host) owners(sockets []listener) map[uint32]owner {
	wanted := map[string]uint32{}
	for _, s := range sockets {
		wanted[fmt.Sprintf("socket:[%d]", s.inode)] = s.inode
	}
	found := map[uint32]owner{}
	dirs, _ := filepath.Glob(filepath.Join(h.proc, "[0-9]*"))
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		fds, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue // it is gone, or not ours to see
		}
		for _, fd := range fds {
			link, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
			if err != nil {
				continue
			}
			inode, ok := wanted[link]
			if !ok || found[inode].pid > 1 {
				continue
			}
			comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
			found[inode] = owner{pid, strings.TrimSpace(string(comm))}
		}
	}
	return found
}
