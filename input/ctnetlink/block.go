package ctnetlink

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

const (
	// blockSlots messages are read with one system call at most.
	blockSlots = 64
	// slotSize holds any event: the largest has two tuples, a master, a helper's private data, labels and a security
	// context, well below this. A longer one is noticed by MSG_TRUNC.
	slotSize = 4096
	// slotStride is from one slot to the next: slots a power of two apart would share a few lines of the cache.
	slotStride = slotSize + 7*64

	// controlSize holds the id of a namespace in a control message (NETLINK_LISTEN_ALL_NSID), and is a multiple of its
	// alignment.
	controlSize = 32
)

// block is what one recvmmsg fills: fixed slots, each with its sender's address.
type block struct {
	data  []byte // blockSlots slots of slotSize
	msgs  [blockSlots]mmsghdr
	iovs  [blockSlots]unix.Iovec
	names [blockSlots]unix.RawSockaddrNetlink

	// control is where the kernel writes of which namespace a message is; nil: it is not asked.
	control *[blockSlots][controlSize]byte
}

func newBlock() *block {
	b := &block{data: make([]byte, blockSlots*slotStride)}
	for i := range b.msgs {
		b.iovs[i].Base = &b.data[i*slotStride]
		b.iovs[i].SetLen(slotSize)
		b.msgs[i].hdr.Iov = &b.iovs[i]
		b.msgs[i].hdr.SetIovlen(1)
		b.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&b.names[i]))
	}
	return b
}

// askNamespaces has the kernel write of which namespace each message is.
func (b *block) askNamespaces() {
	b.control = new([blockSlots][controlSize]byte)
	for i := range b.msgs {
		b.msgs[i].hdr.Control = &b.control[i][0]
	}
}

// nsid returns the id of the namespace that slot i is of; ok is false if it is ctlogd's own.
func (b *block) nsid(i int) (id int32, ok bool) {
	h := &b.msgs[i].hdr
	if int(h.Controllen) < unix.CmsgLen(4) {
		return 0, false
	}
	c := (*unix.Cmsghdr)(unsafe.Pointer(&b.control[i][0]))
	if c.Level != unix.SOL_NETLINK || c.Type != unix.NETLINK_LISTEN_ALL_NSID || int(c.Len) < unix.CmsgLen(4) {
		return 0, false
	}
	return int32(binary.NativeEndian.Uint32(b.control[i][unix.CmsgLen(0):])), true
}

// read fills the block with what waits in the socket, without blocking, and returns how many slots it filled; 0 if
// nothing waits.
func (b *block) read(fd int) (int, error) {
	for i := range b.msgs {
		b.msgs[i].hdr.Namelen = unix.SizeofSockaddrNetlink // the kernel overwrites it
	}
	if b.control != nil {
		for i := range b.msgs {
			b.msgs[i].hdr.SetControllen(controlSize) // likewise
		}
	}
	for {
		// The call does not block, so the scheduler need not be told of it.
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), blockSlots,
			unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EAGAIN, unix.EINTR, unix.ENOBUFS: // ENOBUFS is no news: drops are counted by SO_MEMINFO
			if errno == unix.EAGAIN {
				return 0, nil
			}
		default:
			return 0, fmt.Errorf("read conntrack events: %w", errno)
		}
	}
}

// message returns slot i, whether the kernel sent it, and whether it was cut off. It is valid until the next read.
func (b *block) message(i int) (msg []byte, kernel, truncated bool) {
	m := &b.msgs[i]
	n := min(int(m.len), slotSize)
	return b.data[i*slotStride : i*slotStride+n], m.hdr.Namelen >= unix.SizeofSockaddrNetlink && b.names[i].Pid == 0,
		m.hdr.Flags&unix.MSG_TRUNC != 0
}

// messages walks the messages of a block. The kernel sends an event as a datagram of its own; a datagram may hold several.
type messages struct {
	block *block
	n     int    // slots that are filled
	at    int    // the slot that is being read
	slot  int    // the one that next returned a message of
	rest  []byte // what is left of it; nil: it is not begun
	cut   bool   // the slot was too small for it
}

// read reads the next block. full says that every slot is filled, so that more messages may wait.
func (m *messages) read(fd int) (full bool, err error) {
	m.at, m.rest = 0, nil
	m.n, err = m.block.read(fd)
	return m.n == blockSlots, err
}

// next returns the next message of the kernel, and nil behind the last one of the block. An error says that what is left
// of a datagram cannot be told apart; the next call goes on with the next one. Of a message that was cut off it returns
// what there is.
func (m *messages) next(stats *Stats) (msg []byte, err error) {
	for m.at < m.n {
		rest := m.rest
		if rest == nil {
			var kernel bool
			m.slot = m.at
			if rest, kernel, m.cut = m.block.message(m.at); !kernel {
				stats.Refused.Add(1)
				m.at++
				continue
			}
			if m.cut {
				stats.Truncated.Add(1)
			}
		}
		size := 0 // where an int has 32 bits, a length above 2 GiB is negative, and refused as one that is too short
		if len(rest) >= nlHeader {
			size = int(binary.NativeEndian.Uint32(rest))
		}
		if size < nlHeader || size > len(rest) {
			m.at, m.rest = m.at+1, nil
			if m.cut && size > len(rest) && len(rest) >= msgHeader {
				return rest, nil
			}
			return nil, errHeader
		}
		if next := (size + 3) &^ 3; next < len(rest) || m.cut { // behind the cut there was more
			m.rest = rest[min(next, len(rest)):]
		} else {
			m.at, m.rest = m.at+1, nil
		}
		return rest[:size], nil
	}
	return nil, nil
}
