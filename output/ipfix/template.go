package ipfix

import (
	"encoding/binary"
	"slices"

	"github.com/ctlogd/ctlogd/flow"
)

// Ids of the templates. A layout keeps its id for good, so that a collector that has seen an older configuration is
// never told something new about an id: templates without destinations and templates with enterprise elements have ids
// of their own.
const (
	idFlow4 = 256 + iota
	idFlow4NAT
	idFlow6
	idFlow6NAT
	idICMP4NAT
	idICMP6
	idNAT44
	_ // 263: NAT64 sessions, which Linux does not track
	_ // 264
	idNAT44Times
	idICMP4
	idICMP6NAT

	idUserName      = 16 // added where userName is
	idNoDestination = 32 // added where destinations are left out
	idEnterprise    = 64 // added where there are enterprise elements

	idProcessStats = 400 // RFC 7011, section 4.1
	idReliability  = 401 // RFC 7011, section 4.3
	idElementType  = 403 // RFC 5610, section 3.9
)

// template is a list of elements in the order in which a record has them.
type template struct {
	id     uint16
	name   string
	scopes int // how many of the first elements are scope fields; 0: no options template
	fields []*element

	slot  int                                       // index in templateSet.all
	size  int                                       // the most octets that a record takes
	steps []func(dst []byte, r *flow.Record) []byte // append the fields
}

// appendRecord appends r as a data record.
func (t *template) appendRecord(dst []byte, r *flow.Record) []byte {
	for _, step := range t.steps {
		dst = step(dst, r)
	}
	return dst
}

// appendDefinition appends the template record (RFC 7011, sections 3.4.1 and 3.4.2.2):
//
//	template id (2) | field count (2) | scope field count (2), options templates only
//	per field: E (1 bit) id (15 bits) | length (2) | enterprise number (4), if E
func (t *template) appendDefinition(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, t.id)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(t.fields)))
	if t.scopes > 0 {
		dst = binary.BigEndian.AppendUint16(dst, uint16(t.scopes))
	}
	for _, e := range t.fields {
		if e.pen == 0 {
			dst = binary.BigEndian.AppendUint16(dst, e.id)
			dst = binary.BigEndian.AppendUint16(dst, e.len)
			continue
		}
		dst = binary.BigEndian.AppendUint16(dst, e.id|0x8000)
		dst = binary.BigEndian.AppendUint16(dst, e.len)
		dst = binary.BigEndian.AppendUint32(dst, e.pen)
	}
	return dst
}

// templateSet is what a configuration exports.
type templateSet struct {
	flows   [8]*template // by flowIndex; nil if flows are not exported
	nat     *template    // NAT44 events, or nil
	options []*template  // under the exporter's own domain
	types   []*element   // described by type records
	all     []*template  // flows, nat and options

	reliability *template // one of options, or nil
	stats       *template
	typeInfo    *template
}

// flowIndex returns the index in templateSet.flows of the template that fits.
func flowIndex(v6, icmp, nat bool) (i int) {
	if v6 {
		i |= 4
	}
	if icmp {
		i |= 2
	}
	if nat {
		i |= 1
	}
	return i
}

var (
	times    = []*element{flowStartMilliseconds, flowEndMilliseconds}
	counters = []*element{octetDeltaCount, packetDeltaCount, reverseOctetDeltaCount, reversePacketDeltaCount}
	tail     = []*element{flowID, ingressVRFID, protocolIdentifier, flowEndReason}

	src4, nat4 = []*element{sourceIPv4Address, destinationIPv4Address},
		[]*element{postNATSourceIPv4Address, postNATDestinationIPv4Address}
	src6, nat6 = []*element{sourceIPv6Address, destinationIPv6Address},
		[]*element{postNATSourceIPv6Address, postNATDestinationIPv6Address}
	ports, natPorts = []*element{sourceTransportPort, destinationTransportPort},
		[]*element{postNAPTSourceTransportPort, postNAPTDestinationTransportPort}
	icmp4, icmp6 = []*element{icmpTypeCodeIPv4}, []*element{icmpTypeCodeIPv6}
)

// flowTemplates are the templates of flows, indexed by flowIndex.
var flowTemplates = [8]template{
	{id: idFlow4, name: "flow4", fields: slices.Concat(times, src4, ports, counters, tail)},
	{id: idFlow4NAT, name: "flow4_nat", fields: slices.Concat(times, src4, nat4, ports, natPorts, counters, tail)},
	{id: idICMP4, name: "icmp4", fields: slices.Concat(times, src4, icmp4, counters, tail)},
	{id: idICMP4NAT, name: "icmp4_nat", fields: slices.Concat(times, src4, nat4, icmp4, counters, tail)},
	{id: idFlow6, name: "flow6", fields: slices.Concat(times, src6, ports, counters, tail)},
	{id: idFlow6NAT, name: "flow6_nat", fields: slices.Concat(times, src6, nat6, ports, natPorts, counters, tail)},
	{id: idICMP6, name: "icmp6", fields: slices.Concat(times, src6, icmp6, counters, tail)},
	{id: idICMP6NAT, name: "icmp6_nat", fields: slices.Concat(times, src6, nat6, icmp6, counters, tail)},
}

// session are the elements of a NAT44 session (RFC 8158, section 4.6.1).
var session = []*element{
	sourceIPv4Address, postNATSourceIPv4Address, destinationIPv4Address, postNATDestinationIPv4Address,
	sourceTransportPort, postNAPTSourceTransportPort, destinationTransportPort, postNAPTDestinationTransportPort,
	ingressVRFID, protocolIdentifier, natOriginatingAddressRealm, natEvent,
}

var (
	nat44Template = template{id: idNAT44, name: "nat44", fields: slices.Concat(
		[]*element{observationTimeMilliseconds}, session)}
	nat44TimesTemplate = template{id: idNAT44Times, name: "nat44_times", fields: slices.Concat(
		[]*element{observationTimeMilliseconds}, times, session)}
)

// The options templates. What their records hold does not come from a flow.Record; see options.go.
var (
	processStatsTemplate = template{id: idProcessStats, name: "process_stats", scopes: 1, fields: []*element{
		iana("observationDomainId", 149, 4, nil),
		iana("exportedMessageTotalCount", 41, 8, nil),
		iana("exportedFlowRecordTotalCount", 42, 8, nil),
		iana("exportedOctetTotalCount", 40, 8, nil),
	}}
	reliabilityTemplate = template{id: idReliability, name: "reliability", scopes: 1, fields: []*element{
		iana("exportingProcessId", 144, 4, nil),
		iana("notSentFlowTotalCount", 166, 8, nil),
		iana("notSentPacketTotalCount", 167, 8, nil),
		iana("notSentOctetTotalCount", 168, 8, nil),
		iana("observationTimeMilliseconds", 323, 8, nil),
		iana("observationTimeMilliseconds", 323, 8, nil),
	}}
	elementTypeTemplate = template{id: idElementType, name: "element_type", scopes: 2, fields: []*element{
		iana("privateEnterpriseNumber", 346, 4, nil),
		iana("informationElementId", 303, 2, nil),
		iana("informationElementDataType", 339, 1, nil),
		iana("informationElementSemantics", 344, 1, nil),
		iana("informationElementUnits", 345, 2, nil),
		iana("informationElementRangeBegin", 342, 8, nil),
		iana("informationElementRangeEnd", 343, 8, nil),
		{name: "informationElementName", id: 341, len: variable, max: 64},
		{name: "informationElementDescription", id: 340, len: variable, max: 128},
	}}
)

// destinations are the elements that `destination: false` leaves out.
var destinations = []*element{
	destinationIPv4Address, postNATDestinationIPv4Address, destinationIPv6Address, postNATDestinationIPv6Address,
	destinationTransportPort, postNAPTDestinationTransportPort,
}

// newTemplateSet returns the templates of a valid configuration.
func newTemplateSet(c *Config) *templateSet {
	s := &templateSet{}
	var own []*element
	for _, e := range enterprise {
		if slices.Contains(c.Enterprise.Elements, e.info.key) {
			e := *e
			e.pen = c.Enterprise.PEN
			own = append(own, &e)
		}
	}

	add := func(base template, own []*element) *template {
		t := base
		t.fields = nil
		for _, e := range base.fields {
			if !c.destination() && slices.Contains(destinations, e) {
				continue
			}
			if e == natEvent && c.NATEvent == natEventOld {
				e = natEventHistoric
			}
			t.fields = append(t.fields, e)
		}
		if t.scopes == 0 && c.UserName {
			t.fields = append(t.fields, userName)
			t.id += idUserName
			t.name += "_user"
		}
		t.fields = append(t.fields, own...)
		if t.scopes == 0 && !c.destination() {
			t.id += idNoDestination
			t.name += "_nodst"
		}
		if len(own) > 0 {
			t.id += idEnterprise
			t.name += "_ent"
		}
		t.slot = len(s.all)
		for _, e := range t.fields {
			t.size += e.size()
		}
		t.steps = steps(t.fields)
		s.all = append(s.all, &t)
		return &t
	}
	option := func(base template) *template {
		t := add(base, nil)
		s.options = append(s.options, t)
		return t
	}

	if c.Records != recordsNAT {
		for i, base := range flowTemplates {
			fits := own[:0:0]
			for _, e := range own {
				if icmp := i&2 != 0; (icmp || !e.info.icmp) && (!icmp || !e.info.gre) {
					fits = append(fits, e)
				}
			}
			s.flows[i] = add(base, fits)
		}
	}
	if c.NeedsNew() {
		base := nat44TimesTemplate
		if c.Layout == layoutRFC8158 {
			base = nat44Template
		}
		s.nat = add(base, own)
	}
	if c.options() {
		s.stats = option(processStatsTemplate)
		s.reliability = option(reliabilityTemplate)
		if len(own) > 0 {
			s.typeInfo = option(elementTypeTemplate)
			s.types = own
		}
	}
	return s
}

// flow returns the template for r as a flow, nil if r is none.
func (s *templateSet) flow(r *flow.Record) *template {
	if r.Event != flow.EventDestroy && r.Event != flow.EventOpen {
		return nil
	}
	return s.flows[flowIndex(r.Orig.V6, r.Orig.Proto.IsICMP(), r.NAT() != flow.NATNone)]
}

// event returns the template for r as a NAT44 session event, nil if r is none.
func (s *templateSet) event(r *flow.Record) *template {
	if s.nat == nil || r.Event != flow.EventNew && r.Event != flow.EventDestroy {
		return nil
	}
	if r.Orig.V6 || r.NAT() == flow.NATNone {
		return nil
	}
	return s.nat
}
