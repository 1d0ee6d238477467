package ipfix

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/ownflow"
)

// udp is a connected UDP socket. The runtime's poller does not know of it: the kernel would tell the poller of the room
// that each datagram leaves when it is gone, and wake a thread for it.
type udp struct {
	sequences
	fd      int
	remote  netip.AddrPort
	header  int   // of IP and UDP
	size    int   // configured message size; 0: by path MTU
	trains  bool  // the kernel cuts one buffer into datagrams (UDP_SEGMENT)
	over    error // why the session has ended
	refused *atomic.Uint64
	release func() // says that the socket has closed

	written, arrived uint64  // octets; see progress
	doubts           []doubt // in their order

	// What sendmmsg(2) gets; kept, so that sending allocates nothing.
	calls  [sendBatch]mmsghdr
	counts [sendBatch]int // by call: the messages that it sends
	iovs   [sendBatch]unix.Iovec
	sizes  [sendBatch]segment
}

// doubt is what was sent within a short time, and may yet be refused.
type doubt struct {
	since, until time.Time
	written      uint64 // with all that was sent before
}

const (
	// refusalWithin is how long it may take until a host says that nobody listens. What was sent is in doubt until then.
	refusalWithin = 200 * time.Millisecond

	// doubtEvery is how long the time of one doubt is at most, so that they are few.
	doubtEvery = refusalWithin / 8

	// maxDoubt bounds what is in doubt, in octets, as all of it is kept.
	maxDoubt = 128 << 10
)

// sendBatch is how many messages are collected before they are sent. 32 datagrams to a system call leave little of its
// cost on each.
const sendBatch = 32

// mmsghdr is struct mmsghdr of sendmmsg(2); the compiler pads it as the C one is.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// segment is the control message that has the kernel cut what is sent into datagrams of a size (udp(7), UDP_SEGMENT).
type segment struct {
	hdr  unix.Cmsghdr
	size uint16
	_    [6]byte
}

func dialUDP(remote netip.AddrPort, size int, sockets *ownflow.Sockets, refused *atomic.Uint64) (*udp, error) {
	u := &udp{remote: remote, size: size, refused: refused, header: 28}
	to, err := sockaddr(remote)
	if err != nil {
		return nil, err
	}
	family, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if remote.Addr().Is6() {
		family, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
		u.header = 48
	}
	u.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// Routers may cut what the path does not carry. A datagram that must not be cut vanishes where ICMP is filtered, and
	// a train leaves without that mark in any case. IP_PMTUDISC_DONT is 0 for both families.
	err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(u.fd, level, option, unix.IP_PMTUDISC_DONT))
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(u.fd, to))
	}
	var local netip.AddrPort
	if err == nil {
		local, err = localAddr(u.fd)
	}
	if err != nil {
		unix.Close(u.fd)
		return nil, err
	}
	u.release = sockets.Track(flow.UDP, local, remote)
	u.trains = unix.SetsockoptInt(u.fd, unix.SOL_UDP, unix.UDP_SEGMENT, 0) == nil // since Linux 4.18
	return u, nil
}

func sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	ip := a.Addr()
	if ip.Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: ip.As16()}
	if zone := ip.Zone(); zone != "" {
		dev, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", zone, err)
		}
		sa.ZoneId = uint32(dev.Index)
	}
	return sa, nil
}

func localAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
}

// send sends each message as a datagram.
//
// What an ICMP message says about an earlier datagram the kernel hands to the next send, which then sends nothing. Where
// sendmmsg stops in the middle it keeps the reason to itself, and sending goes on with the message at which it stopped.
func (u *udp) send(ctx context.Context, msgs []*message) (n int, err error) {
	defer func() {
		if n > 0 {
			u.note()
		}
	}()
	for n < len(msgs) {
		calls := u.prepare(msgs[n:min(len(msgs), n+sendBatch)])
		// The call does not block, so the scheduler need not be told of it.
		done, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(u.fd), uintptr(unsafe.Pointer(&u.calls[0])),
			uintptr(calls), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			for _, count := range u.counts[:done] {
				for _, m := range msgs[n : n+count] {
					u.written += uint64(len(m.buf))
					m.end = u.written
				}
				n += count
			}
		case unix.EAGAIN:
			if err := u.wait(ctx); err != nil {
				return n, err
			}
		case unix.EINTR:
		case unix.EINVAL, unix.EIO, unix.EMSGSIZE, unix.EOPNOTSUPP:
			// What the kernel does not cut it may send whole: the interface may carry less than a message, or may not do
			// checksums.
			if u.counts[0] == 1 {
				return n, u.fail(errno)
			}
			u.trains = false
		default:
			return n, u.fail(errno)
		}
	}
	return n, nil
}

// fail notes why the session is over.
func (u *udp) fail(errno syscall.Errno) error {
	if errno == unix.ECONNREFUSED {
		u.refused.Add(1)
		u.over = errRefused
	} else {
		u.over = fmt.Errorf("send to %s: %w", u.remote, errno)
	}
	return u.over
}

// note notes how much has been sent by now.
func (u *udp) note() {
	now := time.Now()
	if last := len(u.doubts) - 1; last >= 0 && now.Sub(u.doubts[last].since) < doubtEvery {
		u.doubts[last].until, u.doubts[last].written = now, u.written
		return
	}
	u.doubts = append(u.doubts, doubt{now, now, u.written})
}

// progress takes for arrived what was sent some time ago, if nobody has refused anything since, or so long ago that too
// much would have to be kept.
func (u *udp) progress() (written, arrived uint64) {
	ripe := 0
	for now := time.Now(); ripe < len(u.doubts) && now.Sub(u.doubts[ripe].until) >= refusalWithin; {
		ripe++
	}
	if ripe > 0 {
		u.askError()
	}
	if u.over == nil {
		if ripe > 0 {
			u.arrived = u.doubts[ripe-1].written
			u.doubts = append(u.doubts[:0], u.doubts[ripe:]...)
		}
		u.arrived = max(u.arrived, u.written-min(u.written, maxDoubt))
	}
	return u.written, u.arrived
}

// askError ends the session if an ICMP message has come that says so (socket(7), SO_ERROR).
func (u *udp) askError() {
	errno, err := unix.GetsockoptInt(u.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 && u.over == nil {
		u.fail(syscall.Errno(errno))
	}
}

// revive begins a session anew.
func (u *udp) revive() {
	u.askError() // what came late is about the session before
	u.over, u.doubts, u.arrived = nil, u.doubts[:0], u.written
}

// prepare fills calls for msgs, no more than sendBatch, and returns how many they are. Messages of the same size that
// follow each other, and a shorter one behind them, are one call: they take the way through the kernel together, up to
// where they become datagrams.
func (u *udp) prepare(msgs []*message) (calls int) {
	for i := 0; i < len(msgs); calls++ {
		first, size := i, len(msgs[i].buf)
		for total := 0; i < len(msgs); {
			n := len(msgs[i].buf)
			if i > first && (!u.trains || n > size || total+n > maxDatagram-20) { // IPv6 carries that much less
				break
			}
			u.iovs[i].Base = &msgs[i].buf[0]
			u.iovs[i].SetLen(n)
			total += n
			i++
			if n < size {
				break
			}
		}
		call := &u.calls[calls]
		*call = mmsghdr{hdr: unix.Msghdr{Iov: &u.iovs[first]}}
		call.hdr.SetIovlen(i - first)
		u.counts[calls] = i - first
		if i-first > 1 {
			s := &u.sizes[calls]
			s.hdr.Level, s.hdr.Type, s.size = unix.SOL_UDP, unix.UDP_SEGMENT, uint16(size)
			s.hdr.SetLen(unix.CmsgLen(2))
			call.hdr.Control = (*byte)(unsafe.Pointer(s))
			call.hdr.SetControllen(unix.CmsgSpace(2))
		}
	}
	return calls
}

// lookEvery is how often who waits for room looks whether it is to go on waiting.
const lookEvery = 50 * time.Millisecond

// wait waits for room in the socket.
func (u *udp) wait(ctx context.Context) error {
	fds := [1]unix.PollFd{{Fd: int32(u.fd), Events: unix.POLLOUT}}
	for deadline := time.Now().Add(writeTimeout); ctx.Err() == nil; {
		n, err := unix.Poll(fds[:], int(lookEvery/time.Millisecond))
		switch {
		case n > 0:
			return nil
		case err != nil && err != syscall.EINTR:
			return fmt.Errorf("wait for room to send to %s: %w", u.remote, err)
		case time.Now().After(deadline):
			return fmt.Errorf("send to %s: %w", u.remote, os.ErrDeadlineExceeded)
		}
	}
	return ctx.Err()
}

func (u *udp) reliable() bool { return false }
func (u *udp) err() error     { return u.over }
func (u *udp) deaf() bool     { return false }

// close ends the session; the socket stays for the next one.
func (u *udp) close() error { return nil }

// free closes the socket.
func (u *udp) free() {
	unix.Close(u.fd)
	u.release()
}

// limit returns the configured size, or less if the interface or the route carries less.
func (u *udp) limit() int {
	size := u.size
	if size == 0 {
		size = maxAuto
	}
	return max(minMessage, min(size, u.pathMTU()-u.header))
}

// pathMTU returns what the kernel knows about the path (ip(7), IP_MTU): the MTU of the interface or of the route. Routers
// report nothing about datagrams that they may cut.
func (u *udp) pathMTU() int {
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if u.header == 48 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	mtu, err := unix.GetsockoptInt(u.fd, level, option)
	if err != nil || mtu == 0 {
		return datagramSize + u.header
	}
	return mtu
}
