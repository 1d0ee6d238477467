package syslog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// datagrams is a connected socket that carries one message in each datagram: UDP, or a unix socket.
type datagrams struct {
	conn conn
	raw  syscall.RawConn
	end  error

	// What sendmmsg(2) gets; kept, so that sending allocates nothing.
	calls [sendBatch]mmsghdr
	iovs  [sendBatch]unix.Iovec
}

// sendBatch is how many datagrams one system call sends.
const sendBatch = 32

// mmsghdr is struct mmsghdr of sendmmsg(2); the compiler pads it as the C one is.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

func dialDatagrams(ctx context.Context, dial Dial, a address) (*datagrams, error) {
	network, to := "udp", net.JoinHostPort(a.host, a.port)
	if a.local() {
		network, to = "unixgram", a.host
	}
	c, err := dial.dial(ctx, network, to)
	if err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		c.Close()
		return nil, err
	}
	d := &datagrams{conn: c, raw: raw}
	if !a.local() {
		err = d.cuttable()
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return d, nil
}

// cuttable lets routers cut what the path does not carry. Otherwise a datagram that is too large for it is lost, and a
// router's word of that is the answer to the next one, however small: EMSGSIZE, as for one that can never be sent.
func (d *datagrams) cuttable() (err error) {
	level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if to, ok := d.conn.RemoteAddr().(*net.UDPAddr); ok && to.IP.To4() == nil {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	failed := d.raw.Control(func(fd uintptr) { // IP_PMTUDISC_DONT is 0 for both families
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DONT))
	})
	return errors.Join(failed, err)
}

// send sends each message as a datagram. Over UDP, ECONNREFUSED is the answer to an earlier one, which is lost: the next
// send gets it, and sends nothing.
func (d *datagrams) send(ctx context.Context, buf []byte, ends []int) (n int, err error) {
	d.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { d.conn.SetWriteDeadline(time.Unix(1, 0)) })()
	}
	for n < len(ends) {
		count := d.prepare(buf, ends, n)
		var done uintptr
		var errno syscall.Errno
		err := d.raw.Write(func(fd uintptr) bool {
			done, _, errno = unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&d.calls[0])), uintptr(count),
				unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
			return errno != unix.EAGAIN
		})
		switch {
		case err != nil && ctx.Err() != nil:
			d.end = ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			d.end = fmt.Errorf("the receiver has read nothing for %s", writeTimeout)
		case err != nil:
			d.end = err
		case errno == 0:
			n += int(done)
			continue
		case errno == unix.EINTR:
			continue
		case errno == unix.EMSGSIZE:
			return n, &oversizeError{int(d.iovs[0].Len)}
		default:
			d.end = os.NewSyscallError("sendmmsg", errno)
		}
		return n, d.end
	}
	return n, nil
}

// prepare fills calls for the messages from the nth on, and returns how many they are.
func (d *datagrams) prepare(buf []byte, ends []int, n int) (count int) {
	start := 0
	if n > 0 {
		start = ends[n-1]
	}
	for ; count < sendBatch && n < len(ends); count, n = count+1, n+1 {
		d.iovs[count].Base = &buf[start]
		d.iovs[count].SetLen(ends[n] - start)
		d.calls[count] = mmsghdr{hdr: unix.Msghdr{Iov: &d.iovs[count]}}
		d.calls[count].hdr.SetIovlen(1)
		start = ends[n]
	}
	return count
}

func (d *datagrams) reliable() bool                    { return false }
func (d *datagrams) err() error                        { return d.end }
func (d *datagrams) progress() (written, acked uint64) { return 0, 0 }
func (d *datagrams) close()                            { d.conn.Close() }
