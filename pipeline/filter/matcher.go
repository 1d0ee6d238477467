package filter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ctlogd/ctlogd/flow"
)

// verdict is what a matcher says of a record; as a set, what it may say of records of one kind.
type verdict uint8

const (
	verdictNo verdict = 1 << iota
	verdictYes
	verdictUnknown // the record does not have the value
	verdictAny     = verdictNo | verdictYes | verdictUnknown
)

func verdictOf(yes bool) verdict {
	if yes {
		return verdictYes
	}
	return verdictNo
}

// condition is one compiled matcher. It holds if eval returns want, verdictYes or, negated, verdictNo; so on an unknown
// value it holds neither way.
type condition struct {
	field string // the matcher's name
	want  verdict
	eval  func(r *flow.Record) verdict

	// possible returns a set that holds what eval may return for any record that has the event, family and protocol
	// of k, all else of k being without meaning. nil means verdictAny.
	possible func(k *flow.Record) verdict
}

// compile returns the matchers as conditions, those that are cheap or decide most first, and reports what is wrong.
func (m *Match) compile(want verdict, report func(field, msg string)) []condition {
	var conds []condition
	add := func(field string, eval, possible func(*flow.Record) verdict) {
		conds = append(conds, condition{field, want, eval, possible})
	}
	if events := parseList(m.Event, "event", parseEvent, report); events != nil {
		eval := evalEvent(events)
		add("event", eval, eval)
	}
	if families := parseList(m.Family, "family", parseFamily, report); families != nil {
		eval := evalFamily(families)
		add("family", eval, eval)
	}
	if protos := parseList(m.Proto, "proto", parseProto, report); protos != nil {
		eval := evalProto(protos)
		add("proto", eval, eval)
	}
	if status := parseList(m.Status, "status", parseStatus, report); status != nil {
		add("status", evalStatus(status), nil)
	}
	if m.MinBytes != nil {
		least := uint64(*m.MinBytes)
		add("min_bytes", evalCounters(func(o, r *flow.Counters) bool { return sumAtLeast(o.Bytes, r.Bytes, least) }), nil)
	}
	if m.MinPackets != nil {
		least := *m.MinPackets
		add("min_packets", evalCounters(func(o, r *flow.Counters) bool { return sumAtLeast(o.Packets, r.Packets, least) }), nil)
	}
	if m.MinDuration != nil {
		if *m.MinDuration < 0 {
			report("min_duration", "negative duration; write one such as 500ms, 30s or 1h")
		}
		add("min_duration", evalDuration(int64(*m.MinDuration)), nil)
	}
	for _, p := range []struct {
		field string
		list  List[string]
		end   endpoint
	}{
		{"src_port", m.SrcPort, endSrc}, {"dst_port", m.DstPort, endDst},
		{"nat_src_port", m.NATSrcPort, endNATSrc}, {"nat_dst_port", m.NATDstPort, endNATDst},
	} {
		if ranges := parseList(p.list, p.field, parsePort, report); ranges != nil {
			eval, possible := evalPort(p.end, ranges)
			add(p.field, eval, possible)
		}
	}
	if ranges := parseList(m.Port, "port", parsePort, report); ranges != nil {
		eval, possible := evalAnyPort(ranges)
		add("port", eval, possible)
	}
	if names := parseList(m.Netns, "netns", parseNetns, report); names != nil {
		add("netns", evalNetns(names), nil)
	}
	if zones := parseList(m.Zone, "zone", parseZone, report); zones != nil {
		add("zone", evalZone(zones), nil)
	}
	if marks := parseList(m.Mark, "mark", parseMark, report); marks != nil {
		add("mark", evalMark(marks), nil)
	}
	if types := parseList(m.NAT, "nat", parseNAT, report); types != nil {
		add("nat", evalNAT(types), nil)
	}
	for _, a := range []struct {
		field string
		list  List[string]
		end   endpoint
	}{
		{"src", m.Src, endSrc}, {"dst", m.Dst, endDst}, {"nat_src", m.NATSrc, endNATSrc}, {"nat_dst", m.NATDst, endNATDst},
	} {
		if prefixes := parseList(a.list, a.field, parsePrefix, report); prefixes != nil {
			eval, possible := evalAddr(a.end, prefixes)
			add(a.field, eval, possible)
		}
	}
	if prefixes := parseList(m.Host, "host", parseHost, report); prefixes != nil {
		eval, possible := evalAnyAddr(prefixes)
		add("host", eval, possible)
	}
	if prefixes := parseList(m.Net, "net", parsePrefix, report); prefixes != nil {
		eval, possible := evalAnyAddr(prefixes)
		add("net", eval, possible)
	}
	if helpers := parseList(m.Helper, "helper", parseHelper, report); helpers != nil {
		add("helper", evalHelper(helpers), nil)
	}
	if ids := parseList(m.Subscriber, "subscriber", parseSubscriber, report); ids != nil {
		add("subscriber", evalSubscriber(ids), nil)
	}
	if labels := parseList(m.Labels, "labels", parseLabel, report); labels != nil {
		add("labels", evalLabels(labels), nil)
	}
	return conds
}

// parseList returns the values of a list, nil if the list is absent, and reports those that parse refuses.
func parseList[T any](l List[string], field string, parse func(string) (T, error), report func(field, msg string)) []T {
	if l == nil {
		return nil
	}
	if len(l) == 0 {
		report(field, "empty list; write at least one value or remove the key")
	}
	values := make([]T, 0, len(l))
	for i, s := range l {
		v, err := parse(s)
		if err != nil {
			report(field+"["+strconv.Itoa(i)+"]", err.Error())
			continue
		}
		values = append(values, v)
	}
	return values
}

// isFlow reports whether the record is of a flow, with two tuples that mirror each other, and not of an expectation.
func isFlow(r *flow.Record) bool { return r.Event < flow.EventExpectNew }

func parseEvent(s string) (flow.Event, error) {
	e := flow.Event(max(slices.Index(flow.EventNames[:], s), 0))
	switch e {
	case flow.EventGap, flow.EventCheckpoint:
		return 0, errors.New(s + " records pass every filter; use " + orList(flow.EventNames[1:flow.EventGap]))
	case 0:
		return 0, fmt.Errorf("unknown event %q; use %s", s, orList(flow.EventNames[1:flow.EventGap]))
	}
	return e, nil
}

func evalEvent(events []flow.Event) func(*flow.Record) verdict {
	var set uint32
	for _, e := range events {
		set |= 1 << e
	}
	return func(r *flow.Record) verdict { return verdictOf(set>>r.Event&1 != 0) }
}

func parseFamily(s string) (v6 bool, err error) {
	if s != "ipv4" && s != "ipv6" {
		return false, fmt.Errorf("unknown family %q; use ipv4 or ipv6", s)
	}
	return s == "ipv6", nil
}

func evalFamily(families []bool) func(*flow.Record) verdict {
	var set [2]bool
	for _, v6 := range families {
		set[family(v6)] = true
	}
	return func(r *flow.Record) verdict {
		if r.Has&flow.HasOrig == 0 {
			return verdictUnknown
		}
		return verdictOf(set[family(r.Orig.V6)])
	}
}

func parseProto(s string) (flow.Proto, error) {
	p, ok := flow.ParseProto(s)
	if !ok {
		return 0, fmt.Errorf("unknown protocol %q; use a name such as tcp, udp, icmp or a number from 0 to 255", s)
	}
	return p, nil
}

func evalProto(protos []flow.Proto) func(*flow.Record) verdict {
	var set protoSet
	for _, p := range protos {
		set.add(p)
	}
	return func(r *flow.Record) verdict {
		if r.Has&flow.HasOrig == 0 {
			return verdictUnknown
		}
		return verdictOf(set.has(r.Orig.Proto))
	}
}

func parseStatus(s string) (flow.Status, error) {
	bit, ok := flow.ParseStatus(s)
	if !ok {
		return 0, fmt.Errorf("unknown status flag %q; use %s", s, orList(flow.StatusNames[:]))
	}
	return bit, nil
}

func evalStatus(flags []flow.Status) func(*flow.Record) verdict {
	var all flow.Status
	for _, f := range flags {
		all |= f
	}
	return func(r *flow.Record) verdict {
		if r.Has&flow.HasStatus == 0 {
			return verdictUnknown
		}
		return verdictOf(r.Status&all == all)
	}
}

func evalCounters(enough func(orig, reply *flow.Counters) bool) func(*flow.Record) verdict {
	return func(r *flow.Record) verdict {
		if r.Has&flow.HasCounters == 0 {
			return verdictUnknown
		}
		return verdictOf(enough(&r.OrigCounters, &r.ReplyCounters))
	}
}

func sumAtLeast(a, b, least uint64) bool {
	sum, carry := bits.Add64(a, b, 0)
	return carry != 0 || sum >= least
}

func evalDuration(least int64) func(*flow.Record) verdict {
	return func(r *flow.Record) verdict {
		// A flow that ends before it starts saw the clock set back: its duration is not known.
		if r.Start == 0 || r.Stop < r.Start {
			return verdictUnknown
		}
		return verdictOf(r.Stop-r.Start >= least)
	}
}

// endpoint is one of the four ends of a flow: the original tuple's, and those ends after translation, which exist only
// where the address or the port was translated. They are the reply tuple's, turned round.
type endpoint uint8

const (
	endSrc endpoint = iota
	endDst
	endNATSrc
	endNATDst
)

// addr returns the address of the endpoint, nil if it is not known.
func (e endpoint) addr(r *flow.Record) *flow.Addr {
	var a *flow.Addr
	switch e {
	case endSrc:
		if a = &r.Orig.Src; r.Wildcard() {
			return nil
		}
	case endDst:
		a = &r.Orig.Dst
	case endNATSrc:
		if a = &r.Reply.Dst; r.NAT()&flow.NATSrc == 0 {
			return nil
		}
	case endNATDst:
		if a = &r.Reply.Src; r.NAT()&flow.NATDst == 0 {
			return nil
		}
	}
	if r.Has&flow.HasOrig == 0 || *a == (flow.Addr{}) {
		return nil
	}
	return a
}

// port returns the port of the endpoint, if it is known.
func (e endpoint) port(r *flow.Record) (port uint16, known bool) {
	if r.Has&flow.HasOrig == 0 || !r.HasPorts() {
		return 0, false
	}
	switch e {
	case endSrc:
		return r.Orig.SrcPort, isFlow(r) || r.Reply.SrcPort == 0xffff // an expectation's mask covers it
	case endDst:
		return r.Orig.DstPort, true
	case endNATSrc:
		return r.Reply.DstPort, r.NAT()&flow.NATSrc != 0
	default:
		return r.Reply.SrcPort, r.NAT()&flow.NATDst != 0
	}
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		var a netip.Addr
		if a, err = netip.ParseAddr(s); err == nil && a.Zone() == "" {
			p = netip.PrefixFrom(a, a.BitLen())
		}
	}
	switch {
	case !p.IsValid():
		return p, fmt.Errorf("%q is not an address; write one such as 192.0.2.1 or 2001:db8::1, "+
			"or a network such as 192.0.2.0/24", s)
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%s is an IPv4 address in IPv6 form; write it as IPv4", s)
	case p != p.Masked():
		return p, fmt.Errorf("%s is not a network, bits behind its length are set; write %s or %s", s, p.Masked(), p.Addr())
	}
	return p, nil
}

func evalAddr(end endpoint, prefixes []netip.Prefix) (eval, possible func(*flow.Record) verdict) {
	set := newAddrSet(prefixes)
	return func(r *flow.Record) verdict { return set.holds(end, r) }, set.possible
}

// holds says whether the endpoint's address is in the set.
func (s *addrSet) holds(end endpoint, r *flow.Record) verdict {
	a := end.addr(r)
	if a == nil {
		return verdictUnknown
	}
	return verdictOf(s.has(a, r.Orig.V6)) // both tuples of a flow are of one family
}

// possible says what holds may say of records of k's family.
func (s *addrSet) possible(k *flow.Record) verdict {
	if len(s[family(k.Orig.V6)]) == 0 {
		return verdictNo | verdictUnknown
	}
	return verdictAny
}

// parseHost is parsePrefix for one address.
func parseHost(s string) (netip.Prefix, error) {
	p, err := parsePrefix(s)
	if err == nil && !p.IsSingleIP() {
		err = fmt.Errorf("%s is a network; write net: %s, or one address", s, s)
	}
	return p, err
}

// anyEnd says whether one of a flow's four ends is in a set, where has says so of one. An end that does not exist for
// want of a translation is none that could be missing; but whether there is one must be known, to say that none is.
func anyEnd(r *flow.Record, has func(endpoint) verdict) verdict {
	all := verdictNo
	if r.Has&flow.HasReply == 0 || !isFlow(r) {
		all = verdictUnknown
	}
	nat := r.NAT()
	for e := endSrc; e <= endNATDst; e++ {
		if e == endNATSrc && nat&flow.NATSrc == 0 || e == endNATDst && nat&flow.NATDst == 0 {
			continue
		}
		switch has(e) {
		case verdictYes:
			return verdictYes
		case verdictUnknown:
			all = verdictUnknown
		}
	}
	return all
}

func evalAnyAddr(prefixes []netip.Prefix) (eval, possible func(*flow.Record) verdict) {
	set := newAddrSet(prefixes)
	eval = func(r *flow.Record) verdict {
		return anyEnd(r, func(e endpoint) verdict { return set.holds(e, r) })
	}
	return eval, set.possible
}

func evalAnyPort(ranges []numRange) (eval, possible func(*flow.Record) verdict) {
	set := newNumSet(ranges)
	eval = func(r *flow.Record) verdict {
		return anyEnd(r, func(e endpoint) verdict { return set.holds(e, r) })
	}
	return eval, possiblePort
}

func parsePort(s string) (numRange, error) { return parseRange(s, "port", "1024-65535") }
func parseZone(s string) (numRange, error) { return parseRange(s, "zone", "10-19") }

func parseRange(s, what, example string) (numRange, error) {
	low, high, isRange := strings.Cut(s, "-")
	from, err := strconv.ParseUint(strings.TrimSpace(low), 10, 16)
	to := from
	if isRange && err == nil {
		to, err = strconv.ParseUint(strings.TrimSpace(high), 10, 16)
	}
	if err != nil {
		return numRange{}, fmt.Errorf("%q is not a %s; write a number from 0 to 65535 or a range such as %s",
			s, what, example)
	}
	if from > to {
		return numRange{}, fmt.Errorf("range %s runs backwards; write %d-%d", s, to, from)
	}
	return numRange{uint16(from), uint16(to)}, nil
}

func evalPort(end endpoint, ranges []numRange) (eval, possible func(*flow.Record) verdict) {
	set := newNumSet(ranges)
	return func(r *flow.Record) verdict { return set.holds(end, r) }, possiblePort
}

// holds says whether the endpoint's port is in the set.
func (s numSet) holds(end endpoint, r *flow.Record) verdict {
	port, known := end.port(r)
	if !known {
		return verdictUnknown
	}
	return verdictOf(s.has(port))
}

// possiblePort says what matchers of ports may say of records of k's protocol.
func possiblePort(k *flow.Record) verdict {
	if !k.Orig.Proto.HasPorts() {
		return verdictUnknown
	}
	return verdictAny
}

// OwnNetns stands for ctlogd's own network namespace.
const OwnNetns = "own"

func parseNetns(s string) (string, error) {
	if s == "" || strings.ContainsRune(s, '/') {
		return "", fmt.Errorf("%q is no network namespace; write a name as ip netns shows it, an nsid such as 7 of one "+
			"that has no name, or %s", s, OwnNetns)
	}
	return s, nil
}

func evalNetns(names []string) func(*flow.Record) verdict {
	own := verdictOf(slices.Contains(names, OwnNetns))
	return func(r *flow.Record) verdict {
		if r.Netns == 0 {
			return own
		}
		info := r.Netns.Info()
		if info.Name == "" {
			return verdictUnknown
		}
		return verdictOf(slices.Contains(names, info.Name))
	}
}

// evalZone looks at all zones that the record names. The kernel leaves out zone 0 (ctnetlink_dump_zone_id), so a flow
// that names none is in it; events of expectations do not carry the zone.
func evalZone(ranges []numRange) func(*flow.Record) verdict {
	set := newNumSet(ranges)
	return func(r *flow.Record) verdict {
		zone, orig, reply := r.Has&flow.HasZone != 0, r.Orig.HasZone, r.Reply.HasZone
		switch {
		case zone && set.has(r.Zone), orig && set.has(r.Orig.Zone), reply && set.has(r.Reply.Zone):
			return verdictYes
		case zone || orig || reply:
			return verdictNo
		case !isFlow(r):
			return verdictUnknown
		}
		return verdictOf(set.has(0))
	}
}

type markMask struct{ value, mask uint32 }

func parseMark(s string) (markMask, error) {
	value, mask, masked := strings.Cut(s, "/")
	v, err := strconv.ParseUint(strings.TrimSpace(value), 0, 32)
	m := uint64(0xffffffff)
	if masked && err == nil {
		m, err = strconv.ParseUint(strings.TrimSpace(mask), 0, 32)
	}
	if err != nil {
		return markMask{}, fmt.Errorf("%q is not a mark; write a number of 32 bits such as 16 or 0x10, "+
			"or one with a mask such as 0x10/0xff", s)
	}
	if v&^m != 0 {
		return markMask{}, fmt.Errorf("mark %s never matches, it has bits outside its mask; write 0x%x/0x%x", s, v&m, m)
	}
	return markMask{uint32(v), uint32(m)}, nil
}

// evalMark takes a flow without a mark as one with mark 0, as the kernel does (ctnetlink_dump_mark).
func evalMark(marks []markMask) func(*flow.Record) verdict {
	return func(r *flow.Record) verdict {
		mark := r.Mark
		if r.Has&flow.HasMark == 0 {
			if !isFlow(r) {
				return verdictUnknown
			}
			mark = 0
		}
		for _, m := range marks {
			if mark&m.mask == m.value {
				return verdictYes
			}
		}
		return verdictNo
	}
}

func parseNAT(s string) (flow.NAT, error) {
	i := slices.Index(flow.NATNames[:], s)
	if i < 0 {
		return 0, fmt.Errorf("unknown NAT type %q; use %s", s, orList(flow.NATNames[:]))
	}
	return flow.NAT(i), nil
}

func evalNAT(types []flow.NAT) func(*flow.Record) verdict {
	var set uint8
	for _, n := range types {
		set |= 1 << n
	}
	const both = flow.HasOrig | flow.HasReply
	return func(r *flow.Record) verdict {
		if r.Has&both != both || !isFlow(r) {
			return verdictUnknown
		}
		return verdictOf(set>>r.NAT()&1 != 0)
	}
}

// parseHelper returns the name, the zero Name for "none".
func parseHelper(s string) (flow.Name, error) {
	switch {
	case s == "none":
		return flow.Name{}, nil
	case s == "":
		return flow.Name{}, errors.New("empty helper name; write a name such as ftp or sip, or none")
	case len(s) >= flow.NameLen:
		return flow.Name{}, fmt.Errorf("helper name %q is too long; the kernel allows %d bytes", s, flow.NameLen-1)
	}
	return flow.NameFrom(s), nil
}

func evalHelper(names []flow.Name) func(*flow.Record) verdict {
	none := slices.Contains(names, flow.Name{})
	return func(r *flow.Record) verdict {
		if r.Has&flow.HelperUnknown != 0 {
			return verdictUnknown
		}
		if r.Extra == nil {
			return verdictOf(none)
		}
		for i := range names {
			if names[i] == r.Extra.Helper {
				return verdictYes
			}
		}
		return verdictNo
	}
}

func parseLabel(s string) (uint8, error) {
	n, err := strconv.ParseUint(s, 10, 7)
	if err != nil {
		return 0, fmt.Errorf("%q is not a label; write the number of its bit, from 0 to 127", s)
	}
	return uint8(n), nil
}

// nobody stands for flows of which it is not known whose they are.
const nobody = "none"

func parseSubscriber(s string) (string, error) {
	if s == "" {
		return "", errors.New("empty subscriber; write an id as records show it, or " + nobody)
	}
	return s, nil
}

func evalSubscriber(ids []string) func(*flow.Record) verdict {
	set := map[string]bool{}
	for _, id := range ids {
		set[id] = true
	}
	return func(r *flow.Record) verdict {
		if s := r.Subscriber(); s != nil {
			return verdictOf(s.ID != "" && set[s.ID] || s.Next != "" && set[s.Next])
		}
		if isFlow(r) {
			return verdictOf(set[nobody])
		}
		return verdictUnknown
	}
}

// evalLabels reads the labels as the kernel's bitmap: an array of unsigned long in host order (struct nf_conn_labels).
func evalLabels(labels []uint8) func(*flow.Record) verdict {
	var set [2]uint64
	for _, n := range labels {
		set[n/64] |= 1 << (n % 64)
	}
	return func(r *flow.Record) verdict {
		if r.Extra == nil || !r.Extra.HasLabels {
			return verdictUnknown
		}
		l := &r.Extra.Labels
		return verdictOf(binary.NativeEndian.Uint64(l[:8])&set[0]|binary.NativeEndian.Uint64(l[8:])&set[1] != 0)
	}
}

// orList writes names as a choice: "a, b or c".
func orList(names []string) string {
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}
