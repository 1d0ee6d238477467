package ipfix

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udp is a connected UDP socket. The runtime's poller does not know of it: the kernel would tell the poller of the room
// that each datagram leaves when it is gone, and wake a thread for it.
type udp struct {
	fd      int
	remote  net.Addr
	header  int  // of IP and UDP
	size    int  // configured message size; 0: by path MTU
	strict  bool // a refusal ends the session, because there is another collector to turn to
	trains  bool // the kernel cuts one buffer into datagrams (UDP_SEGMENT)
	refused *atomic.Uint64

	// What sendmmsg(2) gets; kept, so that sending allocates nothing.
	calls  [sendBatch]mmsghdr
	counts [sendBatch]int // by call: the messages that it sends
	iovs   [sendBatch]unix.Iovec
	sizes  [sendBatch]segment
}

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

func dialUDP(ctx context.Context, a address, size int, strict bool, refused *atomic.Uint64) (*udp, error) {
	dialed, err := (&net.Dialer{}).DialContext(ctx, "udp", net.JoinHostPort(a.host, a.port))
	if err != nil {
		return nil, err
	}
	defer dialed.Close()
	conn := dialed.(*net.UDPConn)
	u := &udp{remote: conn.RemoteAddr(), header: 28, size: size, strict: strict, refused: refused}
	if conn.RemoteAddr().(*net.UDPAddr).IP.To4() == nil {
		u.header = 48
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var dupErr error
		err = raw.Control(func(fd uintptr) { u.fd, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
		if err == nil && dupErr != nil {
			err = os.NewSyscallError("fcntl", dupErr)
		}
	}
	if err != nil {
		return nil, err
	}
	u.trains = unix.SetsockoptInt(u.fd, unix.SOL_UDP, unix.UDP_SEGMENT, 0) == nil // since Linux 4.18
	return u, nil
}

// send sends each message as a datagram.
//
// ECONNREFUSED is the answer to an earlier datagram: the kernel hands it to the next send, which then sends nothing. So
// that one is tried again. Where sendmmsg stops in the middle it keeps the reason to itself, and sending goes on with
// the message at which it stopped.
func (u *udp) send(ctx context.Context, msgs []*message) (n int, err error) {
	refusals := 0
	for n < len(msgs) {
		calls := u.prepare(msgs[n:min(len(msgs), n+sendBatch)])
		// The call does not block, so the scheduler need not be told of it.
		done, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(u.fd), uintptr(unsafe.Pointer(&u.calls[0])),
			uintptr(calls), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			for _, count := range u.counts[:done] {
				n += count
			}
			refusals = 0
		case unix.ECONNREFUSED:
			u.refused.Add(1)
			if refusals++; refusals > 2 || u.strict {
				return n, errRefused
			}
		case unix.EAGAIN:
			if err := u.wait(ctx); err != nil {
				return n, err
			}
		case unix.EINTR:
		default:
			// What the kernel does not cut it may send whole: the path may carry less than a message, or the interface
			// may not do checksums (EINVAL, EIO).
			if u.counts[0] == 1 {
				return n, fmt.Errorf("send to %s: %w", u.remote, errno)
			}
			u.trains = false
		}
	}
	return n, nil
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

func (u *udp) reliable() bool                    { return false }
func (u *udp) err() error                        { return nil }
func (u *udp) progress() (written, acked uint64) { return 0, 0 }
func (u *udp) deaf() bool                        { return false }
func (u *udp) close() error                      { return unix.Close(u.fd) }

// limit returns the configured size, or less if the path carries less without fragments.
func (u *udp) limit() int {
	size := u.size
	if size == 0 {
		size = maxAuto
	}
	return max(minMessage, min(size, u.pathMTU()-u.header))
}

// pathMTU returns what the kernel knows about the path (ip(7), IP_MTU): the MTU of the interface, or what a router has
// reported since.
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
