package flow

import "strconv"

// Proto is an IP protocol number (IANA "Assigned Internet Protocol Numbers").
type Proto uint8

// The protocols whose tuples carry more than addresses, see struct nf_conntrack_tuple.
const (
	ICMP    Proto = 1
	TCP     Proto = 6
	UDP     Proto = 17
	DCCP    Proto = 33
	GRE     Proto = 47
	ICMPv6  Proto = 58
	SCTP    Proto = 132
	UDPLite Proto = 136
)

var protoNames = func() (names [256]string) {
	for i := range names {
		names[i] = strconv.Itoa(i)
	}
	for p, name := range map[Proto]string{
		ICMP: "icmp", 2: "igmp", 4: "ipencap", TCP: "tcp", UDP: "udp", DCCP: "dccp", 41: "ipv6", GRE: "gre", 50: "esp",
		51: "ah", ICMPv6: "icmpv6", 89: "ospf", 94: "ipip", 103: "pim", 108: "ipcomp", 112: "vrrp", 115: "l2tp",
		SCTP: "sctp", UDPLite: "udplite",
	} {
		names[p] = name
	}
	return names
}()

// String returns the protocol's name, or its number where it has no name here.
func (p Proto) String() string { return protoNames[p] }

// ParseProto returns the protocol of a name that String returns, or of a number from 0 to 255.
func ParseProto(s string) (Proto, bool) {
	if n, err := strconv.ParseUint(s, 10, 8); err == nil {
		return Proto(n), true
	}
	for i, name := range protoNames {
		if name == s {
			return Proto(i), true
		}
	}
	return 0, false
}

// HasPorts reports whether tuples of the protocol carry a source and a destination port.
func (p Proto) HasPorts() bool {
	switch p {
	case TCP, UDP, UDPLite, SCTP, DCCP:
		return true
	}
	return false
}

// IsICMP reports whether tuples of the protocol carry ICMP type, code and id.
func (p Proto) IsICMP() bool { return p == ICMP || p == ICMPv6 }
