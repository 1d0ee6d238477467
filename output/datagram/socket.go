package datagram

import (
	"context"
	"errors"
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

// Socket is a connected datagram socket. The runtime's poller does not know of it: the kernel would tell the poller of the
// room that each datagram leaves when it is gone, and wake a thread for it. It is for one goroutine.
type Socket struct {
	fd     int
	to     string
	header int    // of IP and UDP; 0 for a unix socket
	path   string // of a unix socket
	file   file   // what was at path when the socket was connected
	trains bool   // the kernel cuts one buffer into datagrams (UDP_SEGMENT)
	over   error  // why the session has ended

	Data any // the caller's own, which lives as long as the socket

	release func() // says that the socket has closed
	refused *atomic.Uint64

	written, arrived uint64  // octets; see Progress
	doubts           []doubt // in their order

	// What sendmmsg(2) gets; kept, so that sending allocates nothing.
	calls  [Batch]mmsghdr
	counts [Batch]int // by call: the datagrams that it sends
	iovs   [Batch]unix.Iovec
	sizes  [Batch]segment
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

	// MaxDoubt bounds what is in doubt over UDP, in octets, as all of it is kept.
	MaxDoubt = 128 << 10

	// writeTimeout is for how long there may be no room in the socket before the session is over.
	writeTimeout = 10 * time.Second

	// Batch is how many datagrams one system call sends. 32 leave little of its cost on each.
	Batch = 32

	// maxDatagram is the most octets that UDP carries over IPv4; over IPv6 it is 20 less.
	maxDatagram = 65507
)

// ErrRefused says that nobody listens: on the UDP port, as an ICMP message says, or at the unix socket.
var ErrRefused = errors.New("nobody listens there (connection refused)")

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

// DialUDP returns a socket that sends to remote, which sends nothing yet. sockets, which may be nil, is told of it. Refusals
// are counted in refused.
func DialUDP(remote netip.AddrPort, sockets *ownflow.Sockets, refused *atomic.Uint64) (*Socket, error) {
	s := &Socket{to: remote.String(), header: 28, refused: refused}
	to, err := sockaddr(remote)
	if err != nil {
		return nil, err
	}
	family, level, discover, queueErrors := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_RECVERR
	if remote.Addr().Is6() {
		family, level, discover, queueErrors = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVERR
		s.header = 48
	}
	s.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// Routers may cut what the path does not carry. A datagram that must not be cut vanishes where ICMP is filtered, and
	// a train leaves without that mark in any case. IP_PMTUDISC_DONT is 0 for both families.
	err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.fd, level, discover, unix.IP_PMTUDISC_DONT))
	if err == nil {
		// Without it the kernel says that it has sent what it throws away because the interface's queue is full (ENOBUFS).
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.fd, level, queueErrors, 1))
	}
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(s.fd, to))
	}
	var local netip.AddrPort
	if err == nil {
		local, err = s.local()
	}
	if err != nil {
		unix.Close(s.fd)
		return nil, err
	}
	s.release = sockets.Track(flow.UDP, local, remote)
	s.trains = unix.SetsockoptInt(s.fd, unix.SOL_UDP, unix.UDP_SEGMENT, 0) == nil // since Linux 4.18
	return s, nil
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

// local returns the address of a UDP socket's own.
func (s *Socket) local() (netip.AddrPort, error) {
	sa, err := unix.Getsockname(s.fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
}

// DialUnix returns a socket that sends to the unix datagram socket at path. With nobody there it is an error. Refusals are
// counted in refused.
func DialUnix(path string, refused *atomic.Uint64) (*Socket, error) {
	s := &Socket{to: path, path: path, release: func() {}, refused: refused}
	var err error
	if s.file, err = fileAt(path); err != nil {
		return nil, err
	}
	if s.fd, err = connectUnix(path); err != nil {
		if err == ErrRefused {
			refused.Add(1)
		}
		return nil, err
	}
	return s, nil
}

func connectUnix(path string) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		if err == unix.ECONNREFUSED {
			return -1, ErrRefused
		}
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// file tells a socket from the next one at its path, which may have its inode again.
type file struct {
	inode   uint64
	changed unix.Timespec
}

func fileAt(path string) (file, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return file{}, os.NewSyscallError("stat", err)
	}
	return file{st.Ino, st.Ctim}, nil
}

// Send sends each of msgs as a datagram and returns how many it has sent: fewer than all if and only if err is not nil. It
// waits for room 10 s at most, and no longer than ctx. After an error the session is over, but for EMSGSIZE: msgs[n] is too
// large to be sent at all, or was for the path a moment ago.
//
// What an ICMP message says about an earlier datagram the kernel hands to the next send, which then sends nothing. Where
// sendmmsg stops in the middle it keeps the reason to itself, and sending goes on with the datagram at which it stopped.
func (s *Socket) Send(ctx context.Context, msgs [][]byte) (n int, err error) {
	defer func() {
		if n > 0 && s.path == "" {
			s.note()
		}
	}()
	if s.over != nil {
		return 0, s.over
	}
	var full time.Time // since when the interface's queue is
	for n < len(msgs) {
		calls := s.prepare(msgs[n:min(len(msgs), n+Batch)])
		// The call does not block, so the scheduler need not be told of it.
		done, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.calls[0])),
			uintptr(calls), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			for _, count := range s.counts[:done] {
				for _, m := range msgs[n : n+count] {
					s.written += uint64(len(m))
				}
				n += count
			}
		case unix.EAGAIN:
			if err := s.wait(ctx); err != nil {
				s.over = err
				return n, err
			}
		case unix.ENOBUFS: // the interface's queue is full, and no poll(2) tells when it is not
			if full.IsZero() {
				full = time.Now()
			}
			if err := s.pause(ctx, full); err != nil {
				s.over = err
				return n, err
			}
			continue
		case unix.EINTR:
			continue
		case unix.EINVAL, unix.EIO, unix.EMSGSIZE, unix.EOPNOTSUPP:
			// What the kernel does not cut it may send whole: the interface may carry less than a message, or may not do
			// checksums.
			if s.counts[0] > 1 {
				s.trains = false
				continue
			}
			if errno == unix.EMSGSIZE {
				s.askError()
				return n, fmt.Errorf("send to %s: %w", s.to, errno)
			}
			return n, s.fail(errno)
		default:
			return n, s.fail(errno)
		}
		full = time.Time{}
	}
	return n, nil
}

// fail notes why the session is over.
func (s *Socket) fail(errno syscall.Errno) error {
	if errno == unix.ECONNREFUSED {
		s.refused.Add(1)
		s.over = ErrRefused
	} else {
		s.over = fmt.Errorf("send to %s: %w", s.to, errno)
	}
	return s.over
}

// note notes how much has been sent by now.
func (s *Socket) note() {
	now := time.Now()
	if last := len(s.doubts) - 1; last >= 0 && now.Sub(s.doubts[last].since) < doubtEvery {
		s.doubts[last].until, s.doubts[last].written = now, s.written
		return
	}
	s.doubts = append(s.doubts, doubt{now, now, s.written})
}

// Written returns how many octets the socket has carried.
func (s *Socket) Written() uint64 { return s.written }

// Progress returns how many octets the socket has carried, and how many of them have arrived for all that is known: over UDP
// what was sent some time ago, if nobody has refused anything since, or so long ago that too much would have to be kept; to
// a unix socket what has been read. It may notice that the session is over.
func (s *Socket) Progress() (written, arrived uint64) {
	if s.path != "" {
		s.read()
		return s.written, s.arrived
	}
	ripe := 0
	for now := time.Now(); ripe < len(s.doubts) && now.Sub(s.doubts[ripe].until) >= refusalWithin; {
		ripe++
	}
	if ripe > 0 {
		s.askError()
	}
	if s.over == nil {
		if ripe > 0 {
			s.arrived = s.doubts[ripe-1].written
			s.doubts = append(s.doubts[:0], s.doubts[ripe:]...)
		}
		s.arrived = max(s.arrived, s.written-min(s.written, MaxDoubt))
	}
	return s.written, s.arrived
}

// read notes what the receiver at a unix socket has read: all but what the kernel holds for it, whose size it gives with its
// own bookkeeping (unix(7), SIOCOUTQ). When nobody listens any more the kernel throws that away; so the question comes
// first, and then whether it is still the same one who listens.
func (s *Socket) read() {
	if s.over != nil || s.arrived == s.written {
		return
	}
	queued, err := unix.IoctlGetInt(s.fd, unix.SIOCOUTQ)
	if err != nil || uint64(queued) >= s.written-s.arrived {
		return
	}
	now, err := fileAt(s.path)
	if err == nil && now != s.file {
		err = fmt.Errorf("%s is another socket now", s.path)
	}
	if err == nil {
		var fd int
		if fd, err = connectUnix(s.path); err == nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		s.over = err
		return
	}
	s.arrived = s.written - uint64(queued)
}

// Refused waits until what was sent is refused, or d is over, or ctx ends. Over UDP the first datagram of a session finds out
// whether somebody listens.
func (s *Socket) Refused(ctx context.Context, d time.Duration) error {
	if s.path != "" {
		return s.over // the kernel has told at once
	}
	for end := time.Now().Add(d); s.over == nil; {
		left := time.Until(end)
		if left <= 0 || ctx.Err() != nil {
			return ctx.Err()
		}
		fds := [1]unix.PollFd{{Fd: int32(s.fd)}} // POLLERR alone, which need not be asked for
		if n, _ := unix.Poll(fds[:], int(min(left, lookEvery)/time.Millisecond)+1); n > 0 {
			s.askError()
		}
	}
	return s.over
}

// askError ends the session if an ICMP message has come that says so (socket(7), SO_ERROR).
func (s *Socket) askError() {
	errno, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 && s.over == nil {
		s.fail(syscall.Errno(errno))
	}
	s.drain()
}

// drain empties the queue of errors (ip(7), IP_RECVERR), which says no more than SO_ERROR did and makes poll(2) return. With
// the last one the kernel forgets SO_ERROR.
func (s *Socket) drain() {
	var hdr unix.Msghdr
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&hdr)),
			unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if errno != 0 && errno != unix.EINTR {
			return
		}
	}
}

// Err returns why the session is over, nil while it is not.
func (s *Socket) Err() error { return s.over }

// Revive begins a session anew on the same UDP socket, so that firewalls on the way see one flow.
func (s *Socket) Revive() {
	s.askError() // what came late is about the session before
	s.over, s.doubts, s.arrived = nil, s.doubts[:0], s.written
}

// Close gives the socket back.
func (s *Socket) Close() {
	unix.Close(s.fd)
	s.release()
}

// prepare fills calls for msgs, no more than Batch, and returns how many they are. Datagrams of the same size that follow
// each other, and a shorter one behind them, are one call: they take the way through the kernel together, up to where they
// become datagrams.
func (s *Socket) prepare(msgs [][]byte) (calls int) {
	for i := 0; i < len(msgs); calls++ {
		first, size := i, len(msgs[i])
		for total := 0; i < len(msgs); {
			n := len(msgs[i])
			if i > first && (!s.trains || n > size || total+n > maxDatagram-20) {
				break
			}
			s.iovs[i].Base = &msgs[i][0]
			s.iovs[i].SetLen(n)
			total += n
			i++
			if n < size {
				break
			}
		}
		call := &s.calls[calls]
		*call = mmsghdr{hdr: unix.Msghdr{Iov: &s.iovs[first]}}
		call.hdr.SetIovlen(i - first)
		s.counts[calls] = i - first
		if i-first > 1 {
			segment := &s.sizes[calls]
			segment.hdr.Level, segment.hdr.Type, segment.size = unix.SOL_UDP, unix.UDP_SEGMENT, uint16(size)
			segment.hdr.SetLen(unix.CmsgLen(2))
			call.hdr.Control = (*byte)(unsafe.Pointer(segment))
			call.hdr.SetControllen(unix.CmsgSpace(2))
		}
	}
	return calls
}

const (
	// lookEvery is how often who waits for room looks whether it is to go on waiting.
	lookEvery = 50 * time.Millisecond

	// pauseFor is how long a full queue of the interface is left alone.
	pauseFor = time.Millisecond
)

// wait waits for room in the socket.
func (s *Socket) wait(ctx context.Context) error {
	fds := [1]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
	for deadline := time.Now().Add(writeTimeout); ctx.Err() == nil; {
		n, err := unix.Poll(fds[:], int(lookEvery/time.Millisecond))
		switch {
		case n > 0:
			if fds[0].Revents&unix.POLLERR != 0 {
				s.askError()
			}
			return s.over
		case err != nil && err != syscall.EINTR:
			return fmt.Errorf("wait for room to send to %s: %w", s.to, err)
		case time.Now().After(deadline):
			return fmt.Errorf("send to %s: no room for %s: %w", s.to, writeTimeout, os.ErrDeadlineExceeded)
		}
	}
	return ctx.Err()
}

// pause waits a moment for an interface whose queue is full since then.
func (s *Socket) pause(ctx context.Context, since time.Time) error {
	if time.Since(since) > writeTimeout {
		return fmt.Errorf("send to %s: the interface's queue has been full for %s: %w", s.to, writeTimeout, unix.ENOBUFS)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pauseFor):
		return nil
	}
}

// PathMTU returns what the kernel knows about the path (ip(7), IP_MTU), the MTU of the interface or of the route, and how
// many octets of it are headers; 0 if it knows nothing. Routers report nothing about datagrams that they may cut.
func (s *Socket) PathMTU() (mtu, header int) {
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if s.header == 48 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	mtu, err := unix.GetsockoptInt(s.fd, level, option)
	if err != nil {
		return 0, s.header
	}
	return mtu, s.header
}
