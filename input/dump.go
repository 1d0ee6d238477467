package input

import (
	"encoding/binary"
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

const msgGet = 1 // IPCTNL_MSG_CT_GET

// dump reads the whole table through a socket of its own, a chunk at a time: it holds one chunk, whatever the size of
// the table. A dump is no snapshot; a flow that moves while the kernel walks its hash table may be missed.
type dump struct {
	fd     int
	buf    []byte
	batch  *flow.Batch // one record at a time
	flows  uint64
	opened time.Time
}

// openDump starts a dump; nil, with a word in the log, where the kernel refuses it.
func (c *Conntrack) openDump() *dump {
	d, err := newDump()
	if err != nil {
		c.log.Error("cannot read the connection tracking table; helpers of flows older than this process are unknown",
			zap.Error(err))
		return nil
	}
	return d
}

func newDump() (*dump, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	req := make([]byte, msgHeader)
	binary.NativeEndian.PutUint32(req, msgHeader)
	binary.NativeEndian.PutUint16(req[4:], subsysCT<<8|msgGet)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req[familyOffset] = unix.AF_UNSPEC
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("ask for the table: %w", err)
	}
	// 32 KiB is the most that netlink puts into one chunk of a dump (NLMSG_GOODSIZE or what the reader's buffer holds).
	return &dump{fd: fd, buf: make([]byte, 32<<10), batch: flow.NewBatch(1, nil), opened: time.Now()}, nil
}

func (d *dump) close() { _ = unix.Close(d.fd) }

// step reads one chunk and hands its flows to Remember; false at the end of the table.
func (d *dump) step(c *Conntrack) (more bool) {
	n, from, err := unix.Recvfrom(d.fd, d.buf, unix.MSG_DONTWAIT)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return true
	case err != nil:
		c.log.Error("reading the connection tracking table broke off", zap.Uint64("flows", d.flows), zap.Error(err))
		return false
	}
	if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
		c.Stats.Refused.Add(1)
		return true
	}
	for rest := d.buf[:n]; len(rest) >= nlHeader; {
		size := int(binary.NativeEndian.Uint32(rest))
		if size < nlHeader || size > len(rest) {
			c.Stats.Malformed.Add(1)
			return false
		}
		msg := rest[:size]
		rest = rest[min((size+3)&^3, len(rest)):]
		switch binary.NativeEndian.Uint16(msg[4:]) {
		case unix.NLMSG_DONE:
			c.log.Info("read the connection tracking table", zap.Uint64("flows", d.flows),
				zap.Duration("took", time.Since(d.opened)))
			return false
		case unix.NLMSG_ERROR:
			err := error(errHeader)
			if len(msg) >= nlHeader+4 {
				err = unix.Errno(-int32(binary.NativeEndian.Uint32(msg[nlHeader:])))
			}
			c.log.Error("the kernel refuses to show its connection tracking table", zap.Error(err))
			return false
		}
		d.batch.Reset()
		r, err := decode(msg, d.batch)
		if err != nil {
			c.Stats.Malformed.Add(1)
			continue
		}
		d.flows++
		c.Stats.Dumped.Add(1)
		if r.Extra != nil {
			r.Event, r.Received = flow.EventOpen, time.Now().UnixNano()
			c.opts.Remember(r)
		}
	}
	return true
}
