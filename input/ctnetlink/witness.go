package ctnetlink

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// witnesses count the ends that the guard has thrown away; the comment of guard says how.
type witnesses struct {
	frozen, loss *witness
	barrier      int // a netlink socket that nothing is sent to, see difference; 0: none
}

// open opens the sockets. On error, close gives back those that are open.
func (w *witnesses) open(in interest, others bool) (err error) {
	if w.frozen, err = newWitness(in, true, others); err != nil {
		return err
	}
	if w.loss, err = newWitness(in, false, others); err != nil {
		return err
	}
	w.barrier, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_USERSOCK)
	return err
}

func (w *witnesses) close() {
	for _, s := range []*witness{w.frozen, w.loss} {
		if s != nil {
			_ = s.close()
		}
	}
	if w.barrier > 0 {
		_ = unix.Close(w.barrier)
	}
}

// watch gives the witnesses the socket's new filter: they count what the socket would have been sent.
func (w *witnesses) watch(in interest) error {
	for _, s := range []*witness{w.frozen, w.loss} {
		if err := attachFilter(s.fd, filterProgram(in)); err != nil {
			return fmt.Errorf("attach the socket filter of the guard: %w", err)
		}
	}
	return nil
}

// difference returns how much more the loss witness has counted than the frozen one, at a moment in which no event is under
// way. If there is no such moment, exact is false. Both must be members.
//
// An event that is being broadcast may have been counted by one of them alone. To change the members of any group the
// kernel waits until no broadcast is under way (netlink_table_grab). So if two readings around such a change agree, no
// event was under way at the first, and the difference holds.
func (w *witnesses) difference() (n uint32, exact bool) {
	for deadline := time.Now().Add(quietFor); ; {
		a, b := w.frozen.count(), w.loss.count()
		err := unix.SetsockoptInt(w.barrier, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, 1)
		if err == nil && a == w.frozen.count() && b == w.loss.count() {
			return b - a, true
		}
		if time.Now().After(deadline) {
			return b - a, false
		}
	}
}

// witness is a socket that never takes an event, and counts each.
type witness struct{ socket }

// newWitness returns a witness of the events that the filter for in lets through. If reliable, the kernel holds back
// each end that it witnesses. If others, it witnesses those of other namespaces too.
func newWitness(in interest, reliable, others bool) (w *witness, err error) {
	w = new(witness)
	if w.fd, err = newSocket(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = w.close()
			w = nil
		}
	}()
	if err = attachFilter(w.fd, filterProgram(in)); err != nil {
		return w, fmt.Errorf("attach socket filter: %w", err)
	}
	if err = unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil { // the kernel's least
		return w, fmt.Errorf("set receive buffer: %w", err)
	}
	if err = unix.Bind(w.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return w, fmt.Errorf("bind netlink socket: %w", err)
	}
	if err = w.setReliable(reliable); err != nil {
		return w, err
	}
	if others {
		if err = w.hearOthers(); err != nil {
			return w, err
		}
	}
	return w, w.fill()
}

// fill has the kernel send acknowledgements until one does not fit. Without NETLINK_NO_ENOBUFS the kernel puts nothing into
// a socket that was once overrun, until it has been read empty. This one is never read.
func (w *witness) fill() error {
	req := []byte{nlHeader, 0, 0, 0, unix.NLMSG_NOOP, 0, unix.NLM_F_REQUEST | unix.NLM_F_ACK, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if hostBigEndian {
		req[0], req[3] = 0, nlHeader
		req[4], req[5] = 0, unix.NLMSG_NOOP
		req[6], req[7] = 0, unix.NLM_F_REQUEST|unix.NLM_F_ACK
	}
	for range 1000 {
		if err := unix.Sendto(w.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("fill a socket: %w", err)
		}
		drops, err := w.drops()
		if err != nil {
			return err
		}
		if drops > 0 {
			return nil
		}
	}
	return errors.New("fill a socket: it takes in a thousand messages")
}

// count returns the socket's count of drops. Asking for it cannot fail on a socket that is open.
func (w *witness) count() uint32 {
	n, _ := w.drops()
	return n
}
