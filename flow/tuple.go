package flow

import (
	"encoding/binary"
	"net/netip"
)

// Addr is an IP address in 16 bytes, network order; an IPv4 address is held in its IPv4-mapped form
// (::ffff:a.b.c.d). A plain array instead of netip.Addr keeps a Record free of pointers and half as large, which is
// what the reader's cost hangs on. The zero value means that the address is not known.
type Addr [16]byte

// AddrFrom4 returns the IPv4 address a in its mapped form.
func AddrFrom4(a [4]byte) Addr {
	return Addr{10: 0xff, 11: 0xff, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
}

// Set4 makes x what AddrFrom4 returns, in place: with two stores, which what is read soon after does not wait for.
func (x *Addr) Set4(a *[4]byte) {
	binary.LittleEndian.PutUint64(x[:], 0)
	binary.LittleEndian.PutUint64(x[8:], uint64(binary.LittleEndian.Uint32(a[:]))<<32|0xffff_0000)
}

// AddrFrom returns the address a as an Addr.
func AddrFrom(a netip.Addr) Addr { return a.As16() }

// As4 returns the last four bytes: the IPv4 address of a mapped Addr.
func (a Addr) As4() [4]byte { return [4]byte(a[12:]) }

// Tuple is one direction of a flow, as struct nf_conntrack_tuple has it. For protocols with ports, SrcPort and DstPort
// are the ports; for GRE they are the keys (PPTP call ids) of either side; for ICMP and ICMPv6, SrcPort is the id and
// DstPort holds type and code (see ICMPType, ICMPCode). Both are 0 for other protocols.
type Tuple struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Zone             uint16 // zone of this direction alone (CTA_TUPLE_ZONE); valid if HasZone
	Proto            Proto
	V6               bool // the addresses are IPv6
	HasZone          bool
}

// SrcAddr returns the source as a netip.Addr, in 4 bytes if the tuple is IPv4.
func (t *Tuple) SrcAddr() netip.Addr { return t.netip(&t.Src) }

// DstAddr returns the destination as a netip.Addr, in 4 bytes if the tuple is IPv4.
func (t *Tuple) DstAddr() netip.Addr { return t.netip(&t.Dst) }

func (t *Tuple) netip(a *Addr) netip.Addr {
	if t.V6 {
		return netip.AddrFrom16(*a)
	}
	return netip.AddrFrom4(a.As4())
}

// ICMPType returns the ICMP or ICMPv6 type of an ICMP tuple.
func (t *Tuple) ICMPType() uint8 { return uint8(t.DstPort >> 8) }

// ICMPCode returns the ICMP or ICMPv6 code of an ICMP tuple.
func (t *Tuple) ICMPCode() uint8 { return uint8(t.DstPort) }

// ICMPID returns the ICMP or ICMPv6 id of an ICMP tuple, in host order.
func (t *Tuple) ICMPID() uint16 { return t.SrcPort }

// Words returns the address as two integers, for masks and comparisons.
func (a *Addr) Words() (hi, lo uint64) {
	return binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
}

// Counters are what one direction of a flow has carried (struct nf_conn_counter).
type Counters struct {
	Packets, Bytes uint64
}
