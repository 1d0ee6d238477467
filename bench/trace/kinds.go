package trace

import (
	"math/rand/v2"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// Kinds returns n records of every event, protocol and translation, with everything that a record can have, at random; the
// same each time.
func Kinds(n int) []*flow.Record {
	b := flow.NewBatch(n, nil)
	t0 := time.Date(2026, 3, 9, 12, 0, 0, 123456789, time.UTC).UnixNano()
	rng := rand.New(rand.NewPCG(1, 2))
	addr := func(v6 bool) (a flow.Addr) {
		if v6 {
			a = flow.Addr{0x20, 0x01, 0x0d, 0xb8}
			a[15], a[9] = byte(rng.Uint32()), byte(rng.Uint32())
			return a
		}
		return flow.AddrFrom4([4]byte{10, 0, byte(rng.Uint32() % 4), byte(rng.Uint32())})
	}
	protos := []flow.Proto{flow.TCP, flow.UDP, flow.ICMP, flow.ICMPv6, flow.GRE, flow.SCTP, flow.DCCP, flow.UDPLite, 50, 253}
	for i := range n {
		r := b.Next()
		v6 := rng.IntN(3) == 0
		p := protos[rng.IntN(len(protos))]
		r.Event = flow.Event(1 + rng.IntN(int(flow.EventGap)))
		r.Received = t0 + int64(i)*1e7
		if i%11 == 0 {
			b.SetNetns(r, flow.HoldNetns(int32(i%3)-1, []string{"blue", "", "a \xff"}[i/11%3]))
		}
		if r.Event == flow.EventGap {
			r.Start, r.Stop = t0+int64(i), t0+int64(i)*2
			if rng.IntN(3) == 0 {
				r.Start = 0
			}
			b.Extra(r).Gap = flow.Gap{Cause: flow.Cause(1 + rng.IntN(10)), Lost: rng.Uint64(), LostKnown: rng.IntN(2) == 0, Output: []string{"", "jsonl:\"x\xff"}[rng.IntN(2)]}
			if !b.Records[i].Extra.Gap.LostKnown {
				b.Records[i].Extra.Gap.Lost = 0
			}
			r.Has = flow.Has(rng.Uint32()) & (flow.Unsynchronized | flow.Stepped)
			continue
		}
		r.Has = flow.Has(rng.Uint32()) &^ (flow.HasTCP | flow.HasSCTP | flow.HasDCCP)
		if rng.IntN(10) != 0 {
			r.Has |= flow.HasOrig
		}
		switch {
		case p == flow.TCP && rng.IntN(4) > 0:
			r.Has |= flow.HasTCP
		case p == flow.SCTP:
			r.Has |= flow.HasSCTP
		case p == flow.DCCP:
			r.Has |= flow.HasDCCP
		}
		if rng.IntN(4) > 0 {
			r.Has &^= flow.ByRequest | flow.Stepped | flow.HelperUnknown
		}
		r.State = uint8(rng.IntN(14))
		if rng.IntN(4) > 0 {
			r.Start = r.Received - int64(rng.IntN(1e9))*int64(rng.IntN(20000))
		}
		if rng.IntN(8) > 0 {
			r.Stop = r.Received - 1e6
		}
		if rng.IntN(3) > 0 {
			r.Stamp = r.Received - 5e5
		}
		if r.Has&flow.HasOrig != 0 {
			r.Orig = flow.Tuple{Src: addr(v6), Dst: addr(v6), SrcPort: uint16(rng.Uint32()), DstPort: uint16(rng.Uint32()), Proto: p, V6: v6}
			if !p.HasPorts() && !p.IsICMP() && p != flow.GRE {
				r.Orig.SrcPort, r.Orig.DstPort = 0, 0
			}
			if rng.IntN(5) == 0 {
				r.Orig.Zone, r.Orig.HasZone = uint16(rng.Uint32()), true
			}
			o := &r.Orig
			r.Reply = flow.Tuple{Src: o.Dst, Dst: o.Src, SrcPort: o.DstPort, DstPort: o.SrcPort, Proto: p, V6: v6}
			if p.IsICMP() {
				r.Reply.SrcPort, r.Reply.DstPort = o.SrcPort, 0
			}
			nat := rng.IntN(5)
			if nat&1 != 0 {
				r.Reply.Dst = addr(v6)
				switch {
				case p.HasPorts() || p == flow.GRE:
					r.Reply.DstPort = uint16(rng.Uint32())
				case p.IsICMP():
					r.Reply.SrcPort = uint16(rng.Uint32())
				}
			}
			if nat&2 != 0 {
				r.Reply.Src = addr(v6)
				if p.HasPorts() || p == flow.GRE {
					r.Reply.SrcPort = uint16(rng.Uint32())
				}
			}
			if rng.IntN(5) == 0 {
				r.Reply.Zone, r.Reply.HasZone = uint16(rng.Uint32()), true
			}
			if r.Has&flow.HasReply == 0 {
				r.Reply = flow.Tuple{}
			}
		} else {
			r.Has &^= flow.HasReply
		}
		if r.Has&flow.NoPorts != 0 && p.HasPorts() {
			r.Orig.SrcPort, r.Orig.DstPort, r.Reply.SrcPort, r.Reply.DstPort = 0, 0, 0, 0
		}
		r.OrigCounters = flow.Counters{Packets: rng.Uint64N(1000), Bytes: rng.Uint64()}
		r.ReplyCounters = flow.Counters{Packets: rng.Uint64(), Bytes: rng.Uint64N(100)}
		r.ID, r.Mark, r.Timeout, r.Zone = rng.Uint32(), rng.Uint32(), rng.Uint32(), uint16(rng.Uint32())
		r.Status = flow.Status(rng.Uint32())
		if rng.IntN(2) == 0 {
			r.Status &= 0xffff
		}
		if rng.IntN(10) == 0 {
			r.Status = 0
		}
		if rng.IntN(4) == 0 || r.Event >= flow.EventExpectNew {
			x := b.Extra(r)
			x.Helper = flow.NameFrom([]string{"ftp", "sip", "", "a\xffb"}[rng.IntN(4)])
			if x.HasMaster = rng.IntN(2) == 0; x.HasMaster {
				x.Master = flow.Tuple{Src: addr(v6), Dst: addr(v6), SrcPort: 21, DstPort: 4, Proto: protos[rng.IntN(len(protos))], V6: v6}
			}
			if x.HasLabels = rng.IntN(2) == 0; x.HasLabels {
				for i := range x.Labels {
					x.Labels[i] = byte(rng.Uint32())
				}
			}
			x.SecCtx = []string{"", "system_u:object_r\x00\xfe"}[rng.IntN(2)]
			if r.Event < flow.EventExpectNew && len(b.Records)%2 == 0 {
				x.Subscriber = flow.Subscriber{ID: "02:00:5e:00:53:\x00\xfe", Source: "dhcp@2026-03-09T14:02:11.000Z", Dst: len(b.Records)%4 == 0}
				if len(b.Records)%8 == 0 {
					x.Subscriber.Name, x.Subscriber.Next = "\"a\n\u2028'", "b\\"
				}
			}
			if r.Event >= flow.EventExpectNew {
				x.Class, x.Flags = rng.Uint32(), rng.Uint32()&7
			}
		}
	}
	recs := make([]*flow.Record, len(b.Records))
	for i := range b.Records {
		recs[i] = &b.Records[i]
	}
	return recs
}
