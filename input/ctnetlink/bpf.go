package ctnetlink

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// interest is what the socket filter lets through to user space.
type interest struct {
	news    bool // every NEW, not only those that tell of a helper or a master
	updates bool // every UPDATE
	labels  bool // every NEW and UPDATE with labels

	// drop reports whether every output drops the record for certain, whatever else is in it; nil: none is dropped. A
	// message with a flow's helper, master or labels passes all the same, because another flow's record may need them. So
	// does the end of such a flow, which makes Helpers forget it.
	drop func(event flow.Event, v6 bool, proto flow.Proto) bool
}

// Offsets in a message of ctnetlink, see decode.go. Type and flags are in host order, but a filter loads in big-endian
// order. So it loads single bytes.
const (
	familyOffset = 16
	attrOffset   = msgHeader
)

var subsysOffset, typeOffset, flagsOffset uint32 = func() (uint32, uint32, uint32) {
	if hostBigEndian {
		return 4, 5, 6
	}
	return 5, 4, 7
}()

const (
	passAll = 0xffffffff
	flagNew = flagsNew >> 8 // in the high byte of nlmsg_flags
)

// filterProgram assembles the classic BPF program of the socket; nil means that everything passes. A message that the
// program drops costs the reader nothing.
//
// The extensions that search attributes (SKF_AD_NLATTR, SKF_AD_NLATTR_NEST in net/core/filter.c) take an offset in A and a
// type in X. They return the attribute's offset, or 0.
func filterProgram(in interest) []bpf.Instruction {
	var p program
	if in.news && in.updates && in.drop == nil {
		return nil
	}
	// Subsystem first: EXP_NEW has the same low byte as NEW.
	p.add(bpf.LoadAbsolute{Off: subsysOffset, Size: 1})
	p.unless(bpf.JumpEqual, subsysCT, pass)
	p.add(bpf.LoadAbsolute{Off: typeOffset, Size: 1})
	p.when(bpf.JumpEqual, msgDelete, func(p *program) {
		if in.labels || in.drop == nil {
			pass(p) // any flow may have labels, which are forgotten at its end
			return
		}
		p.passHelped()
		p.records(in, flow.EventDestroy)
	})
	p.unless(bpf.JumpEqual, msgNew, pass)
	p.add(bpf.LoadAbsolute{Off: flagsOffset, Size: 1})
	p.when(bpf.JumpBitsSet, flagNew, func(p *program) {
		p.passWith(ctaHelp)
		p.passWith(ctaTupleMaster)
		if in.labels {
			p.passWith(ctaLabels)
		}
		if !in.news {
			p.add(bpf.RetConstant{Val: 0})
			return
		}
		p.records(in, flow.EventNew)
	})
	if in.labels {
		p.passWith(ctaLabels)
	}
	if in.updates {
		p.records(in, flow.EventUpdate)
	} else {
		p.add(bpf.RetConstant{Val: 0})
	}
	return p.ins
}

// program is a list of instructions under construction. Every path through it ends in a return.
type program struct{ ins []bpf.Instruction }

func (p *program) add(ins ...bpf.Instruction) { p.ins = append(p.ins, ins...) }

func pass(p *program) { p.add(bpf.RetConstant{Val: passAll}) }

// when runs body if A fulfils the test. body must return.
func (p *program) when(test bpf.JumpTest, val uint32, body func(*program)) {
	var in program
	body(&in)
	// A body may be longer than the 8 bits that a conditional jump can skip.
	p.add(bpf.JumpIf{Cond: test, Val: val, SkipTrue: 1}, bpf.Jump{Skip: uint32(len(in.ins))})
	p.add(in.ins...)
}

// unless runs body if A does not fulfil the test.
func (p *program) unless(test bpf.JumpTest, val uint32, body func(*program)) {
	var in program
	body(&in)
	p.add(bpf.JumpIf{Cond: test, Val: val, SkipTrue: uint8(len(in.ins))})
	p.add(in.ins...)
}

// passWith lets the message pass if it has a top-level attribute of the type.
func (p *program) passWith(attr uint32) {
	p.add(
		bpf.LoadConstant{Dst: bpf.RegX, Val: attr},
		bpf.LoadConstant{Dst: bpf.RegA, Val: attrOffset},
		bpf.LoadExtension{Num: bpf.ExtNetlinkAttr},
	)
	p.unless(bpf.JumpEqual, 0, pass)
}

// passHelped lets the message pass if its status says that the flow has a helper or a master.
func (p *program) passHelped() {
	p.add(
		bpf.LoadConstant{Dst: bpf.RegX, Val: ctaStatus},
		bpf.LoadConstant{Dst: bpf.RegA, Val: attrOffset},
		bpf.LoadExtension{Num: bpf.ExtNetlinkAttr},
	)
	p.add(bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 4})
	p.add(bpf.TAX{}, bpf.LoadIndirect{Off: attrHeader + 2, Size: 2}) // the low half of the big-endian status
	p.add(bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: uint32(flow.StatusExpected | flow.StatusHelper), SkipFalse: 1})
	pass(p)
}

// records drops the event's records that no output wants, and passes the rest.
func (p *program) records(in interest, event flow.Event) {
	if in.drop == nil {
		pass(p)
		return
	}
	for _, family := range []uint32{unix.AF_INET, unix.AF_INET6} {
		var drops [256]bool
		n := 0
		for proto := range drops {
			drops[proto] = in.drop(event, family == unix.AF_INET6, flow.Proto(proto))
			if drops[proto] {
				n++
			}
		}
		if n == 0 {
			continue
		}
		p.add(bpf.LoadAbsolute{Off: familyOffset, Size: 1})
		p.when(bpf.JumpEqual, family, func(p *program) {
			if n == len(drops) {
				p.add(bpf.RetConstant{Val: 0})
				return
			}
			p.loadProto()
			rare, verdict := true, uint32(0) // the shorter list: protocols to drop, or protocols to pass
			if n > len(drops)/2 {
				rare, verdict = false, passAll
			}
			for proto, drop := range drops {
				if drop == rare {
					p.when(bpf.JumpEqual, uint32(proto), func(p *program) { p.add(bpf.RetConstant{Val: verdict}) })
				}
			}
			p.add(bpf.RetConstant{Val: passAll - verdict})
		})
	}
	pass(p)
}

// loadProto loads CTA_PROTO_NUM of the original tuple into A, and passes messages that have none.
func (p *program) loadProto() {
	p.add(bpf.LoadConstant{Dst: bpf.RegA, Val: attrOffset})
	for i, attr := range []uint32{ctaTupleOrig, ctaTupleProto, ctaProtoNum} {
		search := bpf.ExtNetlinkAttr
		if i > 0 {
			search = bpf.ExtNetlinkAttrNested
		}
		p.add(bpf.LoadConstant{Dst: bpf.RegX, Val: attr}, bpf.LoadExtension{Num: search})
		p.when(bpf.JumpEqual, 0, pass)
	}
	p.add(bpf.TAX{}, bpf.LoadIndirect{Off: 4, Size: 1}) // behind the attribute's own header
}

var hostBigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// attachFilter makes the program the filter of the socket (SO_ATTACH_FILTER); nil removes any.
func attachFilter(fd int, prog []bpf.Instruction) error {
	if prog == nil {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		if err == unix.ENOENT {
			err = nil
		}
		return err
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return err
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filters[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]})
}
