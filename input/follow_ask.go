package input

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// answer is what the kernel says of a flow that it was asked for.
type answer uint8

const (
	noAnswer answer = iota // it has refused, or its answer did not fit into the socket
	absent
	present // there is a flow with this original tuple, or one whose reply tuple it is; not always the same flow
)

// asker asks the kernel for single flows by their original tuples (IPCTNL_MSG_CT_GET), several with one system call.
type asker struct {
	fd    int
	seq   uint32
	req   []byte
	block *block
	batch *flow.Batch
}

func newAsker() (*asker, error) {
	fd, err := newSocket()
	if err != nil {
		return nil, err
	}
	return &asker{fd: fd, block: newBlock(), batch: flow.NewBatch(1, nil)}, nil
}

func (a *asker) close() { _ = unix.Close(a.fd) }

// ask asks for each of flows, at most pageSlots, and stores the kernel's answers in their places. found gets the flows
// that are present, without their Extra.
func (a *asker) ask(flows, found []flow.Record, answers []answer) error {
	clear(answers)
	first := a.seq + 1
	a.req = a.req[:0]
	for i := range flows {
		a.seq++
		a.req = appendGet(a.req, &flows[i], a.seq)
	}
	if err := unix.Sendto(a.fd, a.req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask for flows: %w", err)
	}
	// The kernel has answered when sendto returns.
	for {
		n, err := a.block.read(a.fd)
		if n == 0 || err != nil {
			return err
		}
		for m := range n {
			msg, kernel, truncated := a.block.message(m)
			if !kernel || truncated || len(msg) < nlHeader {
				continue
			}
			i := binary.NativeEndian.Uint32(msg[8:]) - first
			if i >= uint32(len(flows)) {
				continue // an answer to a question of long ago
			}
			if binary.NativeEndian.Uint16(msg[4:]) == unix.NLMSG_ERROR {
				if len(msg) >= nlHeader+4 && -int32(binary.NativeEndian.Uint32(msg[nlHeader:])) == int32(unix.ENOENT) {
					answers[i] = absent
				}
				continue
			}
			a.batch.Reset()
			if r, err := decode(msg, a.batch); err == nil {
				found[i], answers[i] = *r, present
				found[i].Extra = nil
			}
		}
	}
}

// appendGet appends the request for the flow with r's original tuple.
func appendGet(b []byte, r *flow.Record, seq uint32) []byte {
	t := &r.Orig
	family, size, src, dst := byte(unix.AF_INET), 4, uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if t.V6 {
		family, size, src, dst = unix.AF_INET6, 16, ctaIPv6Src, ctaIPv6Dst
	}
	start := len(b)
	b = append(b, make([]byte, nlHeader)...)
	binary.NativeEndian.PutUint16(b[start+4:], subsysCT<<8|msgGet)
	binary.NativeEndian.PutUint16(b[start+6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[start+8:], seq)
	b = append(b, family, unix.NFNETLINK_V0, 0, 0)

	b, tuple := openAttr(b, ctaTupleOrig)
	b, ip := openAttr(b, ctaTupleIP)
	b = appendAttr(b, src, t.Src[16-size:])
	b = appendAttr(b, dst, t.Dst[16-size:])
	closeAttr(b, ip)
	b, proto := openAttr(b, ctaTupleProto)
	b = appendAttr(b, ctaProtoNum, []byte{byte(t.Proto)})
	switch {
	case t.Proto == flow.ICMP:
		b = appendAttr16(b, ctaProtoICMPID, t.SrcPort)
		b = appendAttr(b, ctaProtoICMPType, []byte{t.ICMPType()})
		b = appendAttr(b, ctaProtoICMPCode, []byte{t.ICMPCode()})
	case t.Proto == flow.ICMPv6:
		b = appendAttr16(b, ctaProtoICMPv6ID, t.SrcPort)
		b = appendAttr(b, ctaProtoICMPv6Type, []byte{t.ICMPType()})
		b = appendAttr(b, ctaProtoICMPv6Code, []byte{t.ICMPCode()})
	case t.Proto.HasPorts() || t.Proto == flow.GRE:
		b = appendAttr16(b, ctaProtoSrcPort, t.SrcPort)
		b = appendAttr16(b, ctaProtoDstPort, t.DstPort)
	}
	closeAttr(b, proto)
	if t.HasZone {
		b = appendAttr16(b, ctaTupleZone, t.Zone)
	}
	closeAttr(b, tuple)
	if r.Has&flow.HasZone != 0 {
		b = appendAttr16(b, ctaZone, r.Zone)
	}
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// openAttr appends the header of an attribute that holds others; closeAttr gives it its length.
func openAttr(b []byte, typ uint16) ([]byte, int) {
	return appendAttr(b, typ|unix.NLA_F_NESTED, nil), len(b)
}

func closeAttr(b []byte, at int) { binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at)) }

func appendAttr(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 { // a message begins at a multiple of 4
		b = append(b, 0)
	}
	return b
}

func appendAttr16(b []byte, typ, value uint16) []byte {
	return appendAttr(b, typ, binary.BigEndian.AppendUint16(nil, value))
}
