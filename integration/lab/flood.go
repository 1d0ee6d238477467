package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// FloodFlow is one flow of a Flood: a subscriber behind source NAT.
type FloodFlow struct {
	Proto            uint8 // TCP, every fourth UDP
	Src, Dst, NATSrc netip.Addr
	SrcPort, NATPort uint16
	DstPort          uint16
}

// Flows are numbered in mixed radix: i = block*floodPorts + port. The source address and port hold both digits, and
// so do the translated address and port; hence no two flows share an original tuple, none a reply tuple, and both are
// told from the number alone: the generator's ledger is a formula. The two kinds of tuple differ in their source
// network.
const (
	floodPorts = 60000
	floodMax   = floodPorts << 8 // block is the last octet of the translated address
	floodTime  = 3600            // seconds until an entry that nobody deletes would run out
)

// FlowAt returns the flow of number i, 0 <= i < 15,360,000:
// 10.(i%251).0.(i/60000) : 1024+i%60000 -> 198.18.x.y : 443, translated to 203.0.113.(i/60000) : 1024+i%60000.
func FlowAt(i int) FloodFlow {
	if i < 0 || i >= floodMax {
		panic(fmt.Sprintf("no flood flow has number %d", i))
	}
	block, port := byte(i/floodPorts), uint16(1024+i%floodPorts)
	f := FloodFlow{
		Proto:   unix.IPPROTO_TCP,
		Src:     netip.AddrFrom4([4]byte{10, byte(i % 251), 0, block}),
		Dst:     netip.AddrFrom4([4]byte{198, 18, byte(i % 997 / 256), byte(i % 997)}),
		NATSrc:  netip.AddrFrom4([4]byte{203, 0, 113, block}),
		SrcPort: port, NATPort: port, DstPort: 443,
	}
	if i&3 == 0 {
		f.Proto = unix.IPPROTO_UDP
	}
	return f
}

// FlowNumber returns the number of the flow with a translated source, if there is one.
func FlowNumber(natSrc netip.Addr, natPort uint16) (i int, ok bool) {
	if !natSrc.Is4() || natPort < 1024 || natPort-1024 >= floodPorts {
		return 0, false
	}
	a := natSrc.As4()
	return int(a[3])*floodPorts + int(natPort) - 1024, a[0] == 203 && a[1] == 0 && a[2] == 113
}

// Flood creates and deletes entries of a namespace's connection tracking table through ctnetlink, as fast as the
// kernel goes: to a listener its events are as real as any. It is no faster with several goroutines, and not safe
// for them.
type Flood struct {
	fd  int
	buf []byte
}

// floodBatch is the number of messages that one call to the kernel carries.
const floodBatch = 256

// NewFlood opens a generator in the namespace.
func (n *NS) NewFlood() (*Flood, error) {
	f := &Flood{}
	err := n.Do(func() (err error) {
		f.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		return unix.SetsockoptInt(f.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20)
	})
	return f, err
}

// Close closes the generator. What it has created stays.
func (f *Flood) Close() error { return unix.Close(f.fd) }

// Create creates the flows from <= i < to. Like Delete, it fails if the kernel refuses a single one.
func (f *Flood) Create(from, to int) error {
	return f.each(from, to, floodBatch, func(i, stop int) error { return f.send(i, stop, ipctnlMsgCtNew) })
}

// Delete deletes the flows from <= i < to.
func (f *Flood) Delete(from, to int) error {
	return f.each(from, to, floodBatch, func(i, stop int) error { return f.send(i, stop, ipctnlMsgCtDelete) })
}

// Churn creates and deletes the flows from <= i < to, few at a time.
func (f *Flood) Churn(from, to int) error {
	return f.each(from, to, floodBatch/2, func(i, stop int) error {
		return errors.Join(f.send(i, stop, ipctnlMsgCtNew), f.send(i, stop, ipctnlMsgCtDelete))
	})
}

// Flush deletes every entry of the namespace's table.
func (f *Flood) Flush() error {
	f.buf = append(f.buf[:0], make([]byte, 16)...)
	f.buf = append(f.buf, unix.AF_UNSPEC, 0, 0, 0)
	f.header(0, ipctnlMsgCtDelete, unix.NLM_F_REQUEST)
	return f.talk()
}

func (f *Flood) each(from, to, batch int, do func(i, stop int) error) error {
	for i := from; i < to; i += batch {
		if err := do(i, min(i+batch, to)); err != nil {
			return fmt.Errorf("flood flows %d to %d: %w", from, to, err)
		}
	}
	return nil
}

// Of linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h; golang.org/x/sys has them not.
const (
	nfnlSubsysCTNetlink = 1

	ipctnlMsgCtNew    = 0
	ipctnlMsgCtDelete = 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoinfo  = 4
	ctaTimeout    = 7

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaIPv4Src    = 1
	ctaIPv4Dst    = 2
	ctaProtoNum   = 1
	ctaProtoSport = 2
	ctaProtoDport = 3

	ctaProtoinfoTCP      = 1
	ctaProtoinfoTCPState = 1

	tcpEstablished = 3
	// seen reply, assured, confirmed, source NAT
	floodStatus = 0x1e
)

func (f *Flood) send(from, to int, msg byte) error {
	f.buf = f.buf[:0]
	for i := from; i < to; i++ {
		f.message(FlowAt(i), msg)
	}
	return f.talk()
}

func (f *Flood) message(w FloodFlow, msg byte) {
	start := len(f.buf)
	f.buf = append(f.buf, make([]byte, 16)...)
	f.buf = append(f.buf, unix.AF_INET, 0, 0, 0)
	f.tuple(ctaTupleOrig, w.Proto, w.Src, w.SrcPort, w.Dst, w.DstPort)
	flags := uint16(unix.NLM_F_REQUEST)
	if msg == ipctnlMsgCtNew {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
		f.tuple(ctaTupleReply, w.Proto, w.Dst, w.DstPort, w.NATSrc, w.NATPort)
		f.put(ctaTimeout, 0, 0, floodTime>>8, floodTime&0xff)
		f.put(ctaStatus, 0, 0, 0, floodStatus)
		if w.Proto == unix.IPPROTO_TCP {
			f.nest(ctaProtoinfo, func() {
				f.nest(ctaProtoinfoTCP, func() { f.put(ctaProtoinfoTCPState, tcpEstablished) })
			})
		}
	}
	f.header(start, msg, flags)
}

func (f *Flood) tuple(attr uint16, proto uint8, src netip.Addr, sport uint16, dst netip.Addr, dport uint16) {
	s, d := src.As4(), dst.As4()
	f.nest(attr, func() {
		f.nest(ctaTupleIP, func() {
			f.put(ctaIPv4Src, s[:]...)
			f.put(ctaIPv4Dst, d[:]...)
		})
		f.nest(ctaTupleProto, func() {
			f.put(ctaProtoNum, proto)
			f.put(ctaProtoSport, byte(sport>>8), byte(sport))
			f.put(ctaProtoDport, byte(dport>>8), byte(dport))
		})
	})
}

// header fills in the header of the message that began at start and ends here (struct nlmsghdr, host order).
func (f *Flood) header(start int, msg byte, flags uint16) {
	h := f.buf[start:]
	binary.NativeEndian.PutUint32(h, uint32(len(h)))
	binary.NativeEndian.PutUint16(h[4:], nfnlSubsysCTNetlink<<8|uint16(msg))
	binary.NativeEndian.PutUint16(h[6:], flags)
}

func (f *Flood) put(attr uint16, value ...byte) {
	f.buf = binary.NativeEndian.AppendUint16(f.buf, uint16(4+len(value)))
	f.buf = binary.NativeEndian.AppendUint16(f.buf, attr)
	f.buf = append(f.buf, value...)
	f.buf = append(f.buf, make([]byte, -len(value)&3)...)
}

func (f *Flood) nest(attr uint16, fill func()) {
	start := len(f.buf)
	f.put(attr | unix.NLA_F_NESTED)
	fill()
	binary.NativeEndian.PutUint16(f.buf[start:], uint16(len(f.buf)-start))
}

// talk hands the buffer to the kernel, which has done the work when sendto returns, and reads its complaints.
func (f *Flood) talk() error {
	if err := unix.Sendto(f.fd, f.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to the kernel: %w", err)
	}
	var answer [8192]byte
	var refusal error
	for {
		n, _, err := unix.Recvfrom(f.fd, answer[:], unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return refusal
		case err != nil:
			return fmt.Errorf("read the kernel's answer: %w", err)
		case n >= 20 && binary.NativeEndian.Uint16(answer[4:]) == unix.NLMSG_ERROR:
			if code := int32(binary.NativeEndian.Uint32(answer[16:])); code != 0 {
				refusal = fmt.Errorf("the kernel refuses: %w", unix.Errno(-code))
			}
		}
	}
}
