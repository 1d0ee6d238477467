package ctnetlink

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/unit"
)

// Groups of ctnetlink (enum nfnetlink_groups): plain numbers, no bits.
const (
	groupNew        = 1 // NFNLGRP_CONNTRACK_NEW
	groupUpdate     = 2 // NFNLGRP_CONNTRACK_UPDATE
	groupDestroy    = 3 // NFNLGRP_CONNTRACK_DESTROY
	groupExpNew     = 4 // NFNLGRP_CONNTRACK_EXP_NEW
	groupExpDestroy = 6 // NFNLGRP_CONNTRACK_EXP_DESTROY
)

// socket is the netlink socket of the events.
type socket struct {
	fd       int
	others   bool // it gets the events of other namespaces too
	adopted  bool // a predecessor has opened it
	settings      // what it is set to
}

// settings are what can be changed about a socket while it is open.
type settings struct {
	groups   []int
	buffer   int
	interest interest
	reliable bool
}

// openSocket opens a socket that has everything set before it joins its first group, so that no event slips past the
// filter or meets the small default buffer. One that a predecessor has left queued in, kept, is taken over instead:
// what waits in it is read, and it is brought to what cfg asks for. It is the callee's, which closes it on error.
func openSocket(cfg *Config, log *zap.Logger, in interest, kept *os.File) (*socket, error) {
	s := &socket{}
	var err error
	if kept != nil {
		s.fd, err = takeOver(kept)
	} else {
		s.fd, err = newSocket()
	}
	if err != nil {
		return nil, err
	}
	// The kernel looks at the rights of who opened the socket whenever it has an event of another namespace for it. So one
	// that was opened by a process without them hears nothing of others, whatever its options.
	if s.others = cfg.Others() && mayHearOthers(log); kept != nil && s.hearsOthers() != s.others {
		log.Warn("the socket of the last process is of no use, as input.conntrack.namespaces has changed: what waits in it is lost")
		err := s.abandon() // the keeper has it open still
		_ = unix.Close(s.fd)
		if err != nil {
			return nil, err
		}
		return openSocket(cfg, log, in, nil)
	}
	s.adopted = kept != nil
	if err := s.open(cfg.settings(in), log, kept != nil); err != nil {
		if kept != nil {
			_ = s.abandon() // the keeper has it open still
		}
		_ = unix.Close(s.fd)
		return nil, err
	}
	return s, nil
}

// hearsOthers reports whether the kernel was asked for the events of other namespaces.
func (s *socket) hearsOthers() bool {
	v, err := unix.GetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID)
	return err == nil && v != 0
}

// MayHearOthers returns what keeps the process from asking for the events of other network namespaces, nil if nothing does.
func MayHearOthers() error {
	fd, err := newSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return (&socket{fd: fd}).hearOthers()
}

// mayHearOthers says what keeps the process from it.
func mayHearOthers(log *zap.Logger) bool {
	err := MayHearOthers()
	if err != nil {
		log.Error("events of other network namespaces are not heard; those of ctlogd's own are", zap.Error(err),
			zap.String("remedy", "run as root, or give the process CAP_NET_BROADCAST and CAP_SYS_ADMIN: docs/namespaces.md has the drop-in"))
	}
	return err == nil
}

// hearOthers asks for them.
func (s *socket) hearOthers() error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1); err != nil {
		return fmt.Errorf("ask for the events of other network namespaces: %w", err)
	}
	return nil
}

// settings returns those of the socket that cfg asks for.
func (c *Config) settings(in interest) settings {
	return settings{groups: groups(c), buffer: int(c.ReceiveBuffer), interest: in, reliable: c.Delivery == Reliable}
}

// open sets a socket up. A kept one is bound, and a member of groups already.
func (s *socket) open(to settings, log *zap.Logger, kept bool) error {
	// Without NO_ENOBUFS one overrun makes the kernel drop every later event until the queue has been read empty.
	if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return fmt.Errorf("set NETLINK_NO_ENOBUFS: %w", err)
	}
	if s.others && !kept {
		if err := s.hearOthers(); err != nil {
			return err
		}
	}
	if !kept { // a socket can be bound once
		if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("bind netlink socket: %w", err)
		}
	}
	return s.apply(to, log)
}

// change brings the socket from its settings to others. If that fails half way, it puts back what it had.
func (s *socket) change(to settings, log *zap.Logger) error {
	before := s.settings
	if err := s.apply(to, log); err != nil {
		if undo := s.apply(before, log); undo != nil {
			err = errors.Join(err, fmt.Errorf("put the socket's former settings back: %w", undo))
		}
		return err
	}
	return nil
}

// apply brings the socket to the settings: buffer and filter first, so that no event slips past them.
func (s *socket) apply(to settings, log *zap.Logger) error {
	s.settings = to
	if err := s.setBuffer(to.buffer, log); err != nil {
		return err
	}
	if err := attachFilter(s.fd, filterProgram(to.interest)); err != nil {
		return fmt.Errorf("attach socket filter: %w", err)
	}
	for _, g := range to.groups {
		if err := s.join(g); err != nil {
			return err
		}
	}
	member, err := s.memberships()
	if err != nil {
		return err
	}
	for _, g := range member {
		if !slices.Contains(to.groups, g) {
			if err := s.leave(g); err != nil {
				return err
			}
		}
	}
	return s.setReliable(to.reliable)
}

func newSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, noSocket(err)
	}
	return fd, nil
}

// noSocket returns the error for a netlink socket that the kernel did not give, with what is to be done about it.
func noSocket(err error) error {
	remedy := "is the kernel built with NETFILTER_NETLINK?"
	switch err {
	case unix.EMFILE:
		remedy = "raise the limit of open files: LimitNOFILE= of the unit, ulimit -n"
	case unix.ENFILE:
		remedy = "raise the limit of open files of the whole machine: sysctl fs.file-max"
	case unix.ENOBUFS, unix.ENOMEM:
		remedy = "make room in memory"
	}
	return fmt.Errorf("open netlink socket: %w (%s)", err, remedy)
}

// takeOver returns a descriptor of its own for kept, which it closes, and makes sure that it is what it should be.
func takeOver(kept *os.File) (int, error) {
	defer kept.Close()
	fd := int(kept.Fd())
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	proto, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err = errors.Join(err, err2); err != nil {
		return -1, fmt.Errorf("take over the kept netlink socket: %w", err)
	}
	if domain != unix.AF_NETLINK || proto != unix.NETLINK_NETFILTER {
		return -1, fmt.Errorf("take over the kept netlink socket: it has domain %d and protocol %d", domain, proto)
	}
	if fd, err = unix.FcntlInt(kept.Fd(), unix.F_DUPFD_CLOEXEC, 0); err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return -1, fmt.Errorf("take over the kept netlink socket: %w", err)
	}
	return fd, nil
}

// Abandon ends what a kept socket asks of the kernel, for a process that got one and cannot use it: nothing is held
// back for it any more, whoever else has it open. It closes the file.
func Abandon(kept *os.File) error {
	s := &socket{fd: int(kept.Fd())}
	return errors.Join(s.abandon(), kept.Close())
}

// abandon ends reliable delivery and every membership, whichever they are.
func (s *socket) abandon() error {
	err := s.setReliable(false)
	groups, listErr := s.memberships()
	err = errors.Join(err, listErr)
	for _, g := range groups {
		err = errors.Join(err, s.leave(g))
	}
	return err
}

// groups returns the groups that the configuration asks for. NEW is joined for the helpers' sake alone, too: without
// NEW records the socket filter lets only those through that tell of a helper or a master.
func groups(cfg *Config) []int {
	var g []int
	if cfg.wants("new") || *cfg.HelperEntries > 0 {
		g = append(g, groupNew)
	}
	if cfg.wants("update") || cfg.Labels {
		g = append(g, groupUpdate)
	}
	if cfg.wants("destroy") || *cfg.HelperEntries > 0 {
		g = append(g, groupDestroy) // without it the memory of helpers would not know when a flow has ended
	}
	if cfg.Expectations {
		g = append(g, groupExpNew, groupExpDestroy)
	}
	return g
}

// join makes the socket a member of a group. A member it stays.
func (s *socket) join(group int) error {
	err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("join conntrack events: %w: run as root or give the process CAP_NET_ADMIN", err)
	}
	if err != nil {
		return fmt.Errorf("join conntrack events (group %d): %w", group, err)
	}
	return nil
}

// leave ends the membership in a group; what is queued can still be read.
func (s *socket) leave(group int) error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_DROP_MEMBERSHIP, group); err != nil {
		return fmt.Errorf("leave conntrack events (group %d): %w", group, err)
	}
	return nil
}

// leaveAll ends the membership in every group.
func (s *socket) leaveAll() error {
	for _, g := range s.groups {
		if err := s.leave(g); err != nil {
			return err
		}
	}
	s.groups = nil
	return nil
}

// memberships returns the groups of which the socket is a member.
func (s *socket) memberships() ([]int, error) {
	var mask [8]uint32 // nfnetlink has some dozen groups
	size := uint32(unsafe.Sizeof(mask))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_NETLINK, unix.NETLINK_LIST_MEMBERSHIPS,
		uintptr(unsafe.Pointer(&mask)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return nil, fmt.Errorf("list the groups of the netlink socket: %w", errno)
	}
	var groups []int
	for i := range 32 * len(mask) {
		if mask[i/32]&(1<<(i%32)) != 0 {
			groups = append(groups, i+1)
		}
	}
	return groups, nil
}

// setReliable turns reliable delivery on or off (NETLINK_BROADCAST_ERROR): with it the kernel keeps an ended flow until
// its event has been delivered to this socket.
func (s *socket) setReliable(on bool) error {
	v := 0
	if on {
		v = 1
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_BROADCAST_ERROR, v); err != nil {
		return fmt.Errorf("set NETLINK_BROADCAST_ERROR: %w", err)
	}
	return nil
}

// setBuffer sets the receive buffer. With CAP_NET_ADMIN any size is granted, without it no more than
// net.core.rmem_max.
func (s *socket) setBuffer(size int, log *zap.Logger) error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size); err == nil {
		return nil
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size); err != nil {
		return fmt.Errorf("set receive buffer: %w", err)
	}
	got, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return fmt.Errorf("get receive buffer: %w", err)
	}
	if got /= 2; got < size { // the kernel doubles what is asked for, and returns that
		log.Warn("the receive buffer is smaller than configured",
			zap.Stringer("configured", unit.Size(size)), zap.Stringer("granted", unit.Size(got)),
			zap.String("remedy", fmt.Sprintf("give the process CAP_NET_ADMIN, or: sysctl -w net.core.rmem_max=%d", size)))
	}
	return nil
}

// memInfo is what SO_MEMINFO tells of a socket (linux/sock_diag.h).
type memInfo struct {
	Queued uint32 // SK_MEMINFO_RMEM_ALLOC: bytes of the buffer in use
	Buffer uint32 // SK_MEMINFO_RCVBUF
	_      [6]uint32
	Drops  uint32 // SK_MEMINFO_DROPS: messages that did not fit since the socket was opened; it wraps
}

func (s *socket) memInfo() (m memInfo, err error) {
	size := uint32(unsafe.Sizeof(m))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&m)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return m, fmt.Errorf("get SO_MEMINFO: %w", errno)
	}
	return m, nil
}

// drops returns how many messages the kernel could not put into the socket since it was opened, modulo 2^32. In
// reliable mode these are attempts, made good later.
func (s *socket) drops() (uint32, error) {
	m, err := s.memInfo()
	return m.Drops, err
}

// cookie returns a number that no other socket has until the next boot.
func (s *socket) cookie() (uint64, error) {
	n, err := unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("get SO_COOKIE: %w", err)
	}
	return n, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }
