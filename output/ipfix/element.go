package ipfix

import (
	"encoding/binary"
	"unicode/utf8"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	variable = 0xffff // field length that says: the length stands before each value (RFC 7011, section 7)

	reversePEN = 29305 // the elements of the reverse direction (RFC 5103, section 6.1)
)

// element is an information element: its number and how to append its value. Adding a field to a template takes one
// line here and one in template.go.
type element struct {
	name string // the name in the IANA registry, or in info
	pen  uint32 // 0 for an element of the IANA registry
	id   uint16
	len  uint16 // in octets; variable
	max  uint16 // the most octets that a value takes, its length included; only if len is variable

	// append appends the value of r to dst, always len octets unless len is variable.
	append func(dst []byte, r *flow.Record) []byte

	// info describes an enterprise element, nil for others.
	info *elementInfo
}

// size returns the most octets that a value takes.
func (e *element) size() int {
	if e.len == variable {
		return int(e.max)
	}
	return int(e.len)
}

// elementInfo is what an enterprise element's type record says (RFC 5610), and where the element makes sense.
type elementInfo struct {
	key       string // in the configuration
	dataType  uint8  // informationElementDataType
	semantics uint8  // informationElementSemantics
	text      string // informationElementDescription
	icmp      bool   // only for templates that ICMP may use
	gre       bool   // only for templates that GRE may use
}

// Values of informationElementDataType and informationElementSemantics (RFC 5610, section 3).
const (
	typeOctetArray = 0
	typeUnsigned16 = 2
	typeUnsigned32 = 3
	typeString     = 13

	semanticsDefault    = 0
	semanticsIdentifier = 4
	semanticsFlags      = 5
)

func iana(name string, id, length uint16, f func([]byte, *flow.Record) []byte) *element {
	return &element{name: name, id: id, len: length, append: f}
}

// The elements in use, named as in the IANA registry.
var (
	observationTimeMilliseconds = iana("observationTimeMilliseconds", 323, 8, appendTime)
	flowStartMilliseconds       = iana("flowStartMilliseconds", 152, 8, appendStart)
	flowEndMilliseconds         = iana("flowEndMilliseconds", 153, 8, appendTime)

	sourceIPv4Address             = iana("sourceIPv4Address", 8, 4, appendSrc4)
	destinationIPv4Address        = iana("destinationIPv4Address", 12, 4, appendDst4)
	postNATSourceIPv4Address      = iana("postNATSourceIPv4Address", 225, 4, appendNATSrc4)
	postNATDestinationIPv4Address = iana("postNATDestinationIPv4Address", 226, 4, appendNATDst4)
	sourceIPv6Address             = iana("sourceIPv6Address", 27, 16, appendSrc6)
	destinationIPv6Address        = iana("destinationIPv6Address", 28, 16, appendDst6)
	postNATSourceIPv6Address      = iana("postNATSourceIPv6Address", 281, 16, appendNATSrc6)
	postNATDestinationIPv6Address = iana("postNATDestinationIPv6Address", 282, 16, appendNATDst6)

	sourceTransportPort              = iana("sourceTransportPort", 7, 2, appendSrcPort)
	destinationTransportPort         = iana("destinationTransportPort", 11, 2, appendDstPort)
	postNAPTSourceTransportPort      = iana("postNAPTSourceTransportPort", 227, 2, appendNATSrcPort)
	postNAPTDestinationTransportPort = iana("postNAPTDestinationTransportPort", 228, 2, appendNATDstPort)
	icmpTypeCodeIPv4                 = iana("icmpTypeCodeIPv4", 32, 2, appendICMP)
	icmpTypeCodeIPv6                 = iana("icmpTypeCodeIPv6", 139, 2, appendICMP)

	octetDeltaCount         = iana("octetDeltaCount", 1, 8, appendOrigBytes)
	packetDeltaCount        = iana("packetDeltaCount", 2, 8, appendOrigPackets)
	reverseOctetDeltaCount  = reverse("reverseOctetDeltaCount", 1, 8, appendReplyBytes)
	reversePacketDeltaCount = reverse("reversePacketDeltaCount", 2, 8, appendReplyPackets)

	flowID             = iana("flowId", 148, 8, appendID)
	ingressVRFID       = iana("ingressVRFID", 234, 4, appendZone)
	protocolIdentifier = iana("protocolIdentifier", 4, 1, appendProto)
	flowEndReason      = iana("flowEndReason", 136, 1, appendEndReason)

	natOriginatingAddressRealm = iana("natOriginatingAddressRealm", 229, 1, appendRealm)
	natEvent                   = iana("natEvent", 230, 1, appendNATEvent)
	natEventHistoric           = iana("natEvent", 230, 1, appendNATEventHistoric)
)

// userName is the subscriber, whom the registry has as "user name associated with the flow". It is empty where nobody knows.
var userName = &element{name: "userName", id: 371, len: variable, max: 1 + maxUserName, append: appendUserName}

// maxUserName is what a length of one octet can tell (RFC 7011, section 7), and as much as an id has.
const maxUserName = 254

func reverse(name string, id, length uint16, f func([]byte, *flow.Record) []byte) *element {
	return &element{name: name, pen: reversePEN, id: id, len: length, append: f}
}

// enterprise holds the elements that the IANA registry lacks, in the order in which templates have them: the one of
// variable length last. Their private enterprise number is configured.
var enterprise = []*element{
	{name: "ctMark", id: 2, len: 4, append: appendMark, info: &elementInfo{key: "mark",
		dataType: typeUnsigned32, semantics: semanticsFlags, text: "nf_conntrack mark"}},
	{name: "ctStatus", id: 3, len: 4, append: appendStatus, info: &elementInfo{key: "status",
		dataType: typeUnsigned32, semantics: semanticsFlags, text: "nf_conntrack status bits, enum ip_conntrack_status"}},
	{name: "ctLabels", id: 4, len: 16, append: appendLabels, info: &elementInfo{key: "labels",
		dataType: typeOctetArray, semantics: semanticsDefault, text: "nf_conntrack labels as ctnetlink sends them"}},
	{name: "ctICMPIdentifier", id: 5, len: 2, append: appendICMPID, info: &elementInfo{key: "icmp_id", icmp: true,
		dataType: typeUnsigned16, semantics: semanticsIdentifier, text: "ICMP identifier of the original direction"}},
	{name: "ctPostNATICMPIdentifier", id: 6, len: 2, append: appendNATICMPID, info: &elementInfo{key: "nat_icmp_id",
		icmp: true, dataType: typeUnsigned16, semantics: semanticsIdentifier, text: "ICMP identifier after translation"}},
	{name: "ctGREKey", id: 7, len: 2, append: appendGREKey, info: &elementInfo{key: "gre_key", gre: true,
		dataType: typeUnsigned16, semantics: semanticsIdentifier, text: "GRE key (PPTP call id) of the source"}},
	{name: "ctGREDestinationKey", id: 9, len: 2, append: appendGREDstKey, info: &elementInfo{key: "gre_dst_key", gre: true,
		dataType: typeUnsigned16, semantics: semanticsIdentifier, text: "GRE key of the destination"}},
	{name: "ctPostNATGREKey", id: 8, len: 2, append: appendNATGREKey, info: &elementInfo{key: "nat_gre_key", gre: true,
		dataType: typeUnsigned16, semantics: semanticsIdentifier, text: "GRE key of the source after translation"}},
	{name: "ctPostNATGREDestinationKey", id: 10, len: 2, append: appendNATGREDstKey, info: &elementInfo{
		key: "nat_gre_dst_key", gre: true, dataType: typeUnsigned16, semantics: semanticsIdentifier,
		text: "GRE key of the destination after translation"}},
	{name: "ctHelperName", id: 1, len: variable, max: 1 + flow.NameLen, append: appendHelper,
		info: &elementInfo{key: "helper", dataType: typeString, semantics: semanticsDefault,
			text: "Name of the conntrack helper attached to the flow"}},
}

// millis converts nanoseconds since 1970 to the milliseconds of dateTimeMilliseconds.
func millis(ns int64) uint64 { return uint64(ns) / 1e6 }

// appendTime appends the time of the event: for a flow that has ended its end, for one that is open the time at which
// it was seen.
func appendTime(dst []byte, r *flow.Record) []byte {
	ns, _ := r.Time()
	return binary.BigEndian.AppendUint64(dst, millis(ns))
}

// appendStart appends the flow's start. Where it is not known (nf_conntrack_timestamp=0; a create event) it is the time
// of the event: a zero would make nfdump show 1970 and break its searches by time.
func appendStart(dst []byte, r *flow.Record) []byte {
	ns := r.Start
	if ns == 0 {
		ns, _ = r.Time()
	}
	return binary.BigEndian.AppendUint64(dst, millis(ns))
}

func appendSrc4(dst []byte, r *flow.Record) []byte { return append(dst, r.Orig.Src[12:]...) }
func appendDst4(dst []byte, r *flow.Record) []byte { return append(dst, r.Orig.Dst[12:]...) }
func appendSrc6(dst []byte, r *flow.Record) []byte { return append(dst, r.Orig.Src[:]...) }
func appendDst6(dst []byte, r *flow.Record) []byte { return append(dst, r.Orig.Dst[:]...) }

// After translation, the source is whom the replies are sent to and the destination is who sends them.

func appendNATSrc4(dst []byte, r *flow.Record) []byte { return append(dst, r.Reply.Dst[12:]...) }
func appendNATDst4(dst []byte, r *flow.Record) []byte { return append(dst, r.Reply.Src[12:]...) }
func appendNATSrc6(dst []byte, r *flow.Record) []byte { return append(dst, r.Reply.Dst[:]...) }
func appendNATDst6(dst []byte, r *flow.Record) []byte { return append(dst, r.Reply.Src[:]...) }

// Ports are 0 for protocols without ports: an ICMP id in a port's place is read as type and code by some collectors.

func appendSrcPort(dst []byte, r *flow.Record) []byte    { return appendPort(dst, r, r.Orig.SrcPort) }
func appendDstPort(dst []byte, r *flow.Record) []byte    { return appendPort(dst, r, r.Orig.DstPort) }
func appendNATSrcPort(dst []byte, r *flow.Record) []byte { return appendPort(dst, r, r.Reply.DstPort) }
func appendNATDstPort(dst []byte, r *flow.Record) []byte { return appendPort(dst, r, r.Reply.SrcPort) }

func appendPort(dst []byte, r *flow.Record, port uint16) []byte {
	if !r.Orig.Proto.HasPorts() {
		port = 0
	}
	return binary.BigEndian.AppendUint16(dst, port)
}

// appendICMP appends type * 256 + code, which is how the tuple holds them.
func appendICMP(dst []byte, r *flow.Record) []byte {
	return binary.BigEndian.AppendUint16(dst, r.Orig.DstPort)
}

func appendOrigBytes(dst []byte, r *flow.Record) []byte {
	return binary.BigEndian.AppendUint64(dst, r.OrigCounters.Bytes)
}

func appendOrigPackets(dst []byte, r *flow.Record) []byte {
	return binary.BigEndian.AppendUint64(dst, r.OrigCounters.Packets)
}

func appendReplyBytes(dst []byte, r *flow.Record) []byte {
	return binary.BigEndian.AppendUint64(dst, r.ReplyCounters.Bytes)
}

func appendReplyPackets(dst []byte, r *flow.Record) []byte {
	return binary.BigEndian.AppendUint64(dst, r.ReplyCounters.Packets)
}

func appendID(dst []byte, r *flow.Record) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(r.ID))
}

func appendZone(dst []byte, r *flow.Record) []byte {
	return binary.BigEndian.AppendUint32(dst, origZone(r))
}

// origZone returns the zone of the original direction.
func origZone(r *flow.Record) uint32 {
	switch {
	case r.Has&flow.HasZone != 0:
		return uint32(r.Zone)
	case r.Orig.HasZone:
		return uint32(r.Orig.Zone)
	}
	return 0
}

func appendProto(dst []byte, r *flow.Record) []byte { return append(dst, byte(r.Orig.Proto)) }

// endReasons maps flow.EndReason to flowEndReason: 1 idle timeout, 2 active timeout (the flow goes on), 3 end of flow
// detected, 4 forced end. A flow that has gone unseen has most probably timed out. The registry has no number for "not
// known"; 0 is the one that it does not use.
var endReasons = [...]byte{
	flow.EndNone:    2,
	flow.EndTimeout: 1,
	flow.EndTCPFin:  3,
	flow.EndTCPRst:  3,
	flow.EndDeleted: 4,
	flow.EndUnknown: 0,
}

func appendEndReason(dst []byte, r *flow.Record) []byte {
	return append(dst, endReasons[r.EndReason()])
}

// appendRealm appends where the session came from: 1 the private side, whose source address was translated, 2 the
// public side.
func appendRealm(dst []byte, r *flow.Record) []byte {
	if r.NAT()&flow.NATSrc != 0 {
		return append(dst, 1)
	}
	return append(dst, 2)
}

// appendNATEvent appends NAT44 session create or delete (RFC 8158, section 4.3).
func appendNATEvent(dst []byte, r *flow.Record) []byte {
	if r.Event == flow.EventNew {
		return append(dst, 4)
	}
	return append(dst, 5)
}

// appendNATEventHistoric appends the numbers from before RFC 8158: translation create or delete.
func appendNATEventHistoric(dst []byte, r *flow.Record) []byte {
	if r.Event == flow.EventNew {
		return append(dst, 1)
	}
	return append(dst, 2)
}

func appendMark(dst []byte, r *flow.Record) []byte {
	return binary.BigEndian.AppendUint32(dst, r.Mark)
}

func appendStatus(dst []byte, r *flow.Record) []byte {
	return binary.BigEndian.AppendUint32(dst, uint32(r.Status))
}

func appendLabels(dst []byte, r *flow.Record) []byte {
	if r.Extra == nil || !r.Extra.HasLabels {
		return append(dst, make([]byte, 16)...)
	}
	return append(dst, r.Extra.Labels[:]...)
}

// The id of an ICMP query is its sender's, and the replies carry it too: the reply tuple has it as translated.

func appendICMPID(dst []byte, r *flow.Record) []byte {
	return appendIf(dst, r.Orig.Proto.IsICMP(), r.Orig.SrcPort)
}

func appendNATICMPID(dst []byte, r *flow.Record) []byte {
	return appendIf(dst, r.Orig.Proto.IsICMP(), r.Reply.SrcPort)
}

func appendGREKey(dst []byte, r *flow.Record) []byte       { return appendGRE(dst, r, r.Orig.SrcPort) }
func appendGREDstKey(dst []byte, r *flow.Record) []byte    { return appendGRE(dst, r, r.Orig.DstPort) }
func appendNATGREKey(dst []byte, r *flow.Record) []byte    { return appendGRE(dst, r, r.Reply.DstPort) }
func appendNATGREDstKey(dst []byte, r *flow.Record) []byte { return appendGRE(dst, r, r.Reply.SrcPort) }

func appendGRE(dst []byte, r *flow.Record, key uint16) []byte {
	return appendIf(dst, r.Orig.Proto == flow.GRE, key)
}

// appendIf appends v if ok, else 0.
func appendIf(dst []byte, ok bool, v uint16) []byte {
	if !ok {
		v = 0
	}
	return binary.BigEndian.AppendUint16(dst, v)
}

// appendUserName appends who had the inside address when the flow began. What is not UTF-8 becomes U+FFFD, as the type string
// asks for; what is too long then is cut.
func appendUserName(dst []byte, r *flow.Record) []byte {
	s := r.Subscriber()
	if s == nil {
		return append(dst, 0)
	}
	at := len(dst)
	dst = append(dst, 0)
	for _, c := range s.ID {
		if n := utf8.RuneLen(c); len(dst)-at-1+n > maxUserName {
			break
		}
		dst = utf8.AppendRune(dst, c)
	}
	dst[at] = byte(len(dst) - at - 1)
	return dst
}

// appendHelper appends the helper's name with its length before it, which is below 255 (RFC 7011, section 7).
func appendHelper(dst []byte, r *flow.Record) []byte {
	if r.Extra == nil {
		return append(dst, 0)
	}
	n := r.Extra.Helper.Len()
	dst = append(dst, byte(n))
	return append(dst, r.Extra.Helper[:n]...)
}
