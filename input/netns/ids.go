package netns

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Messages and attributes of ids (linux/net_namespace.h, linux/rtnetlink.h).
const (
	attrNSID = 1 // NETNSA_NSID
	attrFD   = 3 // NETNSA_FD

	groupNSID = 28 // RTNLGRP_NSID

	notAssigned = -1 // NETNSA_NSID_NOT_ASSIGNED

	noticeBuffer = 1 << 20

	rtgenmsg = 4 // struct rtgenmsg, with its padding
)

// ids asks the kernel for ids of namespaces, and gives them.
type ids struct {
	fd     int // requests
	notice int // notifications
	seq    uint32
	buf    []byte
}

func openIDs() (i *ids, err error) {
	i = &ids{fd: -1, notice: -1, buf: make([]byte, 32<<10)}
	defer func() {
		if err != nil {
			i.close()
		}
	}()
	for _, fd := range []*int{&i.fd, &i.notice} {
		if *fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
			return i, fmt.Errorf("open rtnetlink: %w", err)
		}
		if err = unix.Bind(*fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return i, fmt.Errorf("open rtnetlink: %w", err)
		}
		// An answer comes with its request. The limit is for the day on which it does not; what comes later has the number of
		// its request, and is not taken for the answer to another.
		timeout := unix.Timeval{Sec: 1}
		if err = unix.SetsockoptTimeval(*fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return i, fmt.Errorf("open rtnetlink: %w", err)
		}
	}
	// Room for a thousand namespaces that come and go at once. Without CAP_NET_ADMIN it stays what it is.
	_ = unix.SetsockoptInt(i.notice, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, noticeBuffer)
	if err = unix.SetsockoptInt(i.notice, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, groupNSID); err != nil {
		return i, fmt.Errorf("ask for changes of namespaces' ids: %w", err)
	}
	return i, nil
}

func (i *ids) close() {
	for _, fd := range []int{i.fd, i.notice} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// of returns the id of the namespace that fd is of, notAssigned if it has none.
func (i *ids) of(fd int) (id int32, err error) {
	id = notAssigned
	err = i.ask(unix.RTM_GETNSID, 0, attributes(attrFD, int32(fd)), func(typ uint16, got int32) {
		if typ == unix.RTM_NEWNSID {
			id = got
		}
	})
	if err != nil {
		return notAssigned, fmt.Errorf("ask for a namespace's id: %w", err)
	}
	return id, nil
}

// give gives the namespace an id. EEXIST says that it, or another one, has been given one meanwhile.
func (i *ids) give(fd int, id int32) error {
	err := i.ask(unix.RTM_NEWNSID, unix.NLM_F_ACK, append(attributes(attrFD, int32(fd)), attributes(attrNSID, id)...), nil)
	if err != nil {
		return fmt.Errorf("give a namespace the id %d: %w", id, err)
	}
	return nil
}

// all calls f with each id that is in use.
func (i *ids) all(f func(id int32)) error {
	err := i.ask(unix.RTM_GETNSID, unix.NLM_F_DUMP, nil, func(typ uint16, id int32) {
		if typ == unix.RTM_NEWNSID {
			f(id)
		}
	})
	if err != nil {
		return fmt.Errorf("ask for the ids of namespaces: %w", err)
	}
	return nil
}

// changes calls f with each id that was given or whose namespace is gone, as far as notifications wait. An error says that
// some were missed.
func (i *ids) changes(f func(id int32, came bool)) error {
	for {
		n, _, err := unix.Recvfrom(i.notice, i.buf, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return nil
		case err == unix.EINTR:
			continue
		case err != nil: // ENOBUFS: the caller asks for all ids
			return err
		}
		eachMessage(i.buf[:n], func(typ uint16, _ uint32, body []byte) {
			if id, ok := nsid(body); ok && (typ == unix.RTM_NEWNSID || typ == unix.RTM_DELNSID) {
				f(id, typ == unix.RTM_NEWNSID)
			}
		})
	}
}

// ask sends a request and calls f with the type and the id of each message of the answer.
func (i *ids) ask(typ uint16, flags uint16, attrs []byte, f func(typ uint16, id int32)) error {
	req := make([]byte, unix.SizeofNlMsghdr+rtgenmsg, 64)
	req = append(req, attrs...)
	binary.NativeEndian.PutUint32(req, uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], typ)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|flags)
	i.seq++
	binary.NativeEndian.PutUint32(req[8:], i.seq)
	if _, err := unix.Write(i.fd, req); err != nil { // without an address, it goes to the kernel
		return err
	}
	for {
		n, _, err := unix.Recvfrom(i.fd, i.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		done := false
		var failure error
		eachMessage(i.buf[:n], func(typ uint16, seq uint32, body []byte) {
			if seq != i.seq {
				return
			}
			done = done || flags&unix.NLM_F_DUMP == 0
			switch {
			case typ == unix.NLMSG_DONE:
				done = true
			case typ == unix.NLMSG_ERROR && len(body) >= 4:
				done = true
				if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 {
					failure = unix.Errno(errno)
				}
			case f != nil:
				if id, ok := nsid(body); ok {
					f(typ, id)
				}
			}
		})
		if done {
			return failure
		}
	}
}

func attributes(typ uint16, v int32) []byte {
	b := make([]byte, 8)
	binary.NativeEndian.PutUint16(b, 8)
	binary.NativeEndian.PutUint16(b[2:], typ)
	binary.NativeEndian.PutUint32(b[4:], uint32(v))
	return b
}

func eachMessage(b []byte, f func(typ uint16, seq uint32, body []byte)) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// nsid returns the id in the body of a message.
func nsid(body []byte) (id int32, ok bool) {
	if len(body) < rtgenmsg {
		return 0, false
	}
	for a := body[rtgenmsg:]; len(a) >= 4; {
		n := int(binary.NativeEndian.Uint16(a))
		if n < 4 || n > len(a) {
			return 0, false
		}
		if binary.NativeEndian.Uint16(a[2:]) == attrNSID && n == 8 {
			return int32(binary.NativeEndian.Uint32(a[4:])), true
		}
		a = a[min((n+3)&^3, len(a)):]
	}
	return 0, false
}
