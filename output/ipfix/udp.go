package ipfix

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udp is a connected UDP socket.
type udp struct {
	conn    *net.UDPConn
	raw     syscall.RawConn
	header  int  // of IP and UDP
	size    int  // configured message size; 0: by path MTU
	strict  bool // a refusal ends the session, because there is another collector to turn to
	refused *atomic.Uint64

	// What sendmmsg(2) gets; kept, so that sending allocates nothing.
	msgs  [sendBatch]mmsghdr
	iovs  [sendBatch]unix.Iovec
	write func(fd uintptr) bool
	todo  []mmsghdr
	wait  bool
	sent  int
	errno syscall.Errno
}

// sendBatch is how many messages are collected before they are sent. 32 datagrams to a system call leave little of its
// cost on each.
const sendBatch = 32

// mmsghdr is struct mmsghdr of sendmmsg(2); the compiler pads it as the C one is.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

func dialUDP(ctx context.Context, a address, size int, strict bool, refused *atomic.Uint64) (*udp, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", net.JoinHostPort(a.host, a.port))
	if err != nil {
		return nil, err
	}
	u := &udp{conn: conn.(*net.UDPConn), header: 28, size: size, strict: strict, refused: refused}
	if u.conn.RemoteAddr().(*net.UDPAddr).IP.To4() == nil {
		u.header = 48
	}
	if u.raw, err = u.conn.SyscallConn(); err != nil {
		conn.Close()
		return nil, err
	}
	u.write = u.sendmmsg
	return u, nil
}

// sendmmsg sends what it can of todo. It returns false to be called again when the socket has room.
func (u *udp) sendmmsg(fd uintptr) bool {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&u.todo[0])), uintptr(len(u.todo)), 0, 0, 0)
	if errno == unix.EAGAIN && u.wait {
		return false
	}
	u.sent, u.errno = int(n), errno
	if errno != 0 {
		u.sent = 0
	}
	return true
}

// send sends each message as a datagram.
//
// ECONNREFUSED is the answer to an earlier datagram: the kernel hands it to the next send, which then sends nothing. So
// that one is tried again. Where sendmmsg stops in the middle it keeps the reason to itself, and sending goes on with
// the message at which it stopped.
func (u *udp) send(ctx context.Context, msgs []*message) (n int, err error) {
	refusals := 0
	for n < len(msgs) {
		part := msgs[n:min(len(msgs), n+sendBatch)]
		for i, m := range part {
			u.iovs[i].Base = &m.buf[0]
			u.iovs[i].SetLen(len(m.buf))
			u.msgs[i] = mmsghdr{hdr: unix.Msghdr{Iov: &u.iovs[i], Iovlen: 1}}
		}
		u.todo = u.msgs[:len(part)]
		if err := u.try(ctx); err != nil {
			return n, err
		}
		n += u.sent
		switch u.errno {
		case 0:
			refusals = 0
		case unix.ECONNREFUSED:
			u.refused.Add(1)
			if refusals++; refusals > 2 || u.strict {
				return n, errRefused
			}
		case unix.EINTR:
		default:
			return n, fmt.Errorf("send to %s: %w", u.conn.RemoteAddr(), u.errno)
		}
	}
	return n, nil
}

// try calls sendmmsg once, and waits for room in the socket if there is none.
func (u *udp) try(ctx context.Context) error {
	u.wait = false
	if err := u.raw.Write(u.write); err != nil || u.errno != unix.EAGAIN {
		return err
	}
	u.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	defer u.conn.SetWriteDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { u.conn.SetWriteDeadline(time.Unix(1, 0)) })()
	u.wait = true
	err := u.raw.Write(u.write)
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (u *udp) reliable() bool                    { return false }
func (u *udp) err() error                        { return nil }
func (u *udp) progress() (written, acked uint64) { return 0, 0 }
func (u *udp) deaf() bool                        { return false }
func (u *udp) close() error                      { return u.conn.Close() }

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
func (u *udp) pathMTU() (mtu int) {
	err := u.raw.Control(func(fd uintptr) {
		level, option := unix.IPPROTO_IP, unix.IP_MTU
		if u.header == 48 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
		}
		mtu, _ = unix.GetsockoptInt(int(fd), level, option)
	})
	if err != nil || mtu == 0 {
		return datagramSize + u.header
	}
	return mtu
}
