package ipfix

import (
	"net/netip"

	"github.com/ctlogd/ctlogd/flow"
)

// Times of the golden messages.
const (
	goldenStart = 1767225600123 * 1e6
	goldenEnd   = 1767225604567 * 1e6
)

func addr(s string) flow.Addr { return flow.AddrFrom(netip.MustParseAddr(s)) }

// tuple returns the tuple of proto from src to dst; of ICMP, the ports are id and type and code.
func tuple(proto flow.Proto, src string, srcPort uint16, dst string, dstPort uint16) flow.Tuple {
	return flow.Tuple{
		Proto: proto, Src: addr(src), Dst: addr(dst), SrcPort: srcPort, DstPort: dstPort,
		V6: netip.MustParseAddr(src).Is6(),
	}
}

// ended returns a flow that has ended, untranslated, with no counters.
func ended(t flow.Tuple) *flow.Record {
	reply := t
	reply.Src, reply.Dst = t.Dst, t.Src
	if t.Proto.HasPorts() || t.Proto == flow.GRE {
		reply.SrcPort, reply.DstPort = t.DstPort, t.SrcPort
	}
	return &flow.Record{
		Event: flow.EventDestroy, Orig: t, Reply: reply, Start: goldenStart, Stop: goldenEnd, Received: goldenEnd + 1e9,
		Has: flow.HasOrig | flow.HasReply | flow.HasStatus | flow.HasID | flow.HasCounters,
	}
}

// tcpNAT returns a closed TCP flow behind source NAT.
func tcpNAT(port uint16) *flow.Record {
	r := ended(tuple(flow.TCP, "10.1.2.3", port, "198.51.100.20", 443))
	r.Reply.Dst, r.Reply.DstPort = addr("203.0.113.5"), port+1
	r.Has |= flow.HasTCP
	r.State = flow.TCPTimeWait
	r.OrigCounters = flow.Counters{Packets: 10, Bytes: 1000}
	r.ReplyCounters = flow.Counters{Packets: 20, Bytes: 20000}
	r.ID = 0xcafe0000 | uint32(port)
	return r
}
