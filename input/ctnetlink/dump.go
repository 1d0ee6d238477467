package ctnetlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

const msgGet = 1 // IPCTNL_MSG_CT_GET, IPCTNL_MSG_EXP_GET

// dump reads the whole table through a socket of its own, a chunk at a time: it holds one chunk, whatever the size of
// the table. A dump is no snapshot; a flow that moves while the kernel walks its hash table may be missed.
type dump struct {
	job
	netns   flow.Netns // of the records
	fd      int
	asked   chan error // gets what became of the request, once; then it is nil
	buf     []byte
	batch   *flow.Batch // one record at a time
	flows   uint64
	opened  time.Time
	stepped time.Time
	heard   time.Time // when the last chunk came, or the kernel took the request
	silent  bool      // the last step has brought none

	// ended are the flows whose end was read since the last chunk, or since the dump was asked for, by their identity. The
	// kernel fills a chunk when the one before it is read, so that it may show them as alive.
	ended map[uint64]struct{}
	stale bool // they became too many before the dump began: what is read is of no use
}

const (
	// maxEnded bounds dump.ended. A flush of the table, behind which a dump waits, brings millions.
	maxEnded = 1 << 17

	// chunkWithin bounds the wait for a chunk. The kernel has the next one ready when it returns one, so there is no wait, but
	// if it has lost the dump there would be no end of it.
	chunkWithin = 5 * time.Second
)

var errSilent = errors.New("the kernel sends no more of it")

// end takes note of the end of a flow.
func (d *dump) end(identity uint64) {
	switch {
	case d.stale:
	case len(d.ended) >= maxEnded: // and it has not begun, or the reader does nothing but drain its source
		d.stale = true
		clear(d.ended)
	default:
		d.ended[identity] = struct{}{}
	}
}

// crowded reports whether the next chunk has to be read, whoever has room for it, before ended grows too large.
func (d *dump) crowded() bool { return len(d.ended) >= maxEnded/2 }

// newDump asks for the table on a goroutine of its own: the kernel starts no dump while somebody has it delete flows
// (nfnl_lock in net/netfilter/nfnetlink.c), and to flush a million takes seconds, in which the reader has their ends to read.
func newDump(j job, now time.Time) (*dump, error) {
	if j.space != nil {
		// A descriptor of its own: the Watcher may close the other one while this dump is under way.
		fd, err := unix.FcntlInt(uintptr(j.space.Conn()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("keep the namespace's socket open: %w", err)
		}
		d := newDumpOn(fd, subsysCT, j, now)
		d.netns = j.space.Netns
		d.netns.Hold()
		return d, nil
	}
	fd, err := newSocket()
	if err != nil {
		return nil, err
	}
	return newDumpOn(fd, subsysCT, j, now), nil
}

// newDumpOn does so for the flows (subsysCT) or the expectations (subsysExp) of the namespace in which the socket was made. To
// get either is the same message.
func newDumpOn(fd int, subsystem uint16, j job, now time.Time) *dump {
	req := make([]byte, msgHeader)
	binary.NativeEndian.PutUint32(req, msgHeader)
	binary.NativeEndian.PutUint16(req[4:], subsystem<<8|msgGet)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req[familyOffset] = unix.AF_UNSPEC
	asked := make(chan error, 1)
	go func() { asked <- unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) }()
	// 32 KiB is the most that netlink puts into one chunk of a dump (NLMSG_GOODSIZE or what the reader's buffer holds).
	return &dump{job: j, fd: fd, asked: asked, buf: make([]byte, 32<<10), batch: flow.NewBatch(1, nil), opened: now,
		stepped: now, ended: map[uint64]struct{}{}}
}

// begun reports whether the kernel has taken the request, or refused it, which is the error.
func (d *dump) begun(now time.Time) (bool, error) {
	if d.asked == nil {
		return true, nil
	}
	select {
	case err := <-d.asked:
		d.asked, d.heard = nil, now
		if err != nil {
			err = fmt.Errorf("ask for the table: %w", err)
		}
		return true, err
	default:
		return false, nil
	}
}

// close gives the socket back.
func (d *dump) close() {
	if d.space != nil {
		d.netns.Release()
	}
	if asked := d.asked; asked != nil { // the request still needs the socket
		go func() {
			<-asked
			_ = unix.Close(d.fd)
		}()
		return
	}
	_ = unix.Close(d.fd)
}

// step reads one chunk of a dump that has begun, and hands its flows to visit, with Received set. At the end of the table
// more is false; an error says that it broke off.
func (d *dump) step(stats *Stats, now time.Time, visit func(*flow.Record)) (more bool, err error) {
	d.stepped = now
	n, from, err := unix.Recvfrom(d.fd, d.buf, unix.MSG_DONTWAIT)
	d.silent = err == unix.EAGAIN || err == unix.EINTR
	switch {
	case d.silent:
		if d.crowded() || now.Sub(d.heard) >= chunkWithin {
			return false, errSilent
		}
		return true, nil
	case err != nil:
		return false, err
	}
	if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
		stats.Refused.Add(1)
		return true, nil
	}
	d.heard = now
	received := now.UnixNano()
	for rest := d.buf[:n]; len(rest) >= nlHeader; {
		size := int(binary.NativeEndian.Uint32(rest))
		if size < nlHeader || size > len(rest) {
			stats.Malformed.Add(1)
			return false, errHeader
		}
		msg := rest[:size]
		rest = rest[min((size+3)&^3, len(rest)):]
		switch binary.NativeEndian.Uint16(msg[4:]) {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			// Both carry an error number, 0 or negative: a dump that broke off is DONE with one (netlink_dump_done).
			if len(msg) < nlHeader+4 {
				return false, errHeader
			}
			if errno := -int32(binary.NativeEndian.Uint32(msg[nlHeader:])); errno != 0 {
				return false, unix.Errno(errno)
			}
			return false, nil
		}
		d.batch.Reset()
		r, skipped, err := decode(msg, d.batch)
		if err != nil {
			stats.Malformed.Add(1)
			continue
		}
		stats.Skipped.Add(uint64(skipped))
		d.flows++
		if r.Received = received; r.Event < flow.EventExpectNew {
			r.Event = flow.EventOpen
		}
		r.Has &^= flow.ByRequest // the request was the dump
		d.batch.SetNetns(r, d.netns)
		visit(r)
	}
	clear(d.ended)
	return true, nil
}
