package format

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/ctlogd/ctlogd/flow"
)

// cef is the Common Event Format:
//
//	CEF:0|vendor|product|version|class id|name|severity|key=value key=value ...
//
// Values hold spaces as they are; what would end a value or the line is escaped. Keys that the format's dictionary lacks
// begin with ctlogd, as it asks for, and go on as the flat name does. in is what flows from the source to the
// destination, as the dictionary has it. Times are in ms.
type cef struct {
	parts
	heads   [len(flow.EventNames)]string
	marks   [markCount]string
	protos  [256]string
	nats    [len(flow.NATNames)]string
	reasons [len(flow.EndReasonNames)]string
	custom  [keyCount]string // " ctlogdZone="
}

var cefNames = [len(flow.EventNames)]string{
	flow.EventNew: "Flow opened", flow.EventUpdate: "Flow changed", flow.EventDestroy: "Flow ended", flow.EventOpen: "Flow alive",
	flow.EventExpectNew: "Flow expected", flow.EventExpectDestroy: "Expectation gone", flow.EventGap: "Records missing",
	flow.EventCheckpoint: "Archive checkpoint",
}

func newCEF(p parts) Encoder {
	e := &cef{parts: p}
	host := ""
	if e.has(kHost) {
		host = " dvchost=" + string(appendCEF(nil, e.Host))
	}
	escape := strings.NewReplacer(`\`, `\\`, `|`, `\|`)
	for ev, name := range flow.EventNames {
		severity := "1"
		if ev == int(flow.EventGap) {
			severity = "7"
		}
		e.heads[ev] = "CEF:0|ctlogd|ctlogd|" + escape.Replace(string(appendCEF(nil, e.Version))) + "|" + name + "|" + cefNames[ev] +
			"|" + severity + "|"
	}
	for i := range e.marks {
		source, clock := [2]string{"received", "kernel"}[i&1], [4]string{
			"", " ctlogdClock=unsynchronized", " ctlogdClock=stepped", " ctlogdClock=unsynchronized,stepped"}[i>>1]
		e.marks[i] = " ctlogdTimeSource=" + source + clock + host
	}
	for i := range e.protos {
		if e.has(kProto) {
			e.protos[i] = " proto=" + strings.ToUpper(flow.Proto(i).String())
		}
		if e.has(kProtoNum) {
			e.protos[i] += " ctlogdProtoNum=" + strconv.Itoa(i)
		}
	}
	for i, name := range flow.NATNames {
		if e.has(kNAT) {
			e.nats[i] = " cs1Label=nat cs1=" + name
		}
	}
	for i, name := range flow.EndReasonNames {
		if e.has(kEndReason) {
			e.reasons[i] = " reason=" + name
		}
	}
	for k, name := range keyNames {
		s := " ctlogd"
		for word := range strings.SplitSeq(name, "_") {
			s += strings.ToUpper(word[:1]) + word[1:]
		}
		e.custom[k] = s + "="
	}
	return e
}

// Append appends r as a line of CEF.
func (e *cef) Append(dst []byte, r *flow.Record) []byte {
	b := slices.Grow(dst, 1536)
	now, kernel := r.Time()
	b = append(b, e.heads[eventOf(r)]...)
	b = appendMillis(append(b, "rt="...), now)
	b = append(b, e.marks[markOf(r, kernel)]...)
	switch r.Event {
	case flow.EventGap:
		return e.appendGap(b, r)
	case flow.EventCheckpoint:
		return e.appendNote(b, r)
	}
	if e.has(kFlowID) {
		if id, ok := FlowID(e.observer, r); ok {
			b = appendHex(append(b, " externalId="...), id[:])
		}
	}
	if r.Start != 0 && e.has(kStart) {
		b = appendMillis(append(b, " start="...), r.Start)
	}
	end, duration := ended(r)
	if end != 0 && e.has(kEnd) {
		b = appendMillis(append(b, " end="...), end)
	}
	if duration >= 0 && e.has(kDurationMS) {
		b = appendUint(append(b, e.custom[kDurationMS]...), uint64(duration)/1e6)
	}
	if r.Has&flow.HasOrig != 0 {
		b = e.appendEnds(b, r)
	}
	if r.Has&flow.HasCounters != 0 {
		if e.has(kOrigBytes) {
			b = appendUint(append(b, " in="...), r.OrigCounters.Bytes)
		}
		if e.has(kReplyBytes) {
			b = appendUint(append(b, " out="...), r.ReplyCounters.Bytes)
		}
		if e.has(kOrigPackets) {
			b = appendUint(append(b, " cn1Label=orig_packets cn1="...), r.OrigCounters.Packets)
		}
		if e.has(kReplyPackets) {
			b = appendUint(append(b, " cn2Label=reply_packets cn2="...), r.ReplyCounters.Packets)
		}
	}
	b = e.appendState(b, r)
	if r.Event == flow.EventDestroy {
		b = append(b, e.reasons[r.EndReason()]...)
	}
	return e.appendLast(b, r)
}

func (e *cef) appendEnds(b []byte, r *flow.Record) []byte {
	t, p, nat := &r.Orig, &r.Reply, r.NAT()
	ports := r.HasPorts()
	b = append(b, e.protos[t.Proto]...)
	if e.has(kSrcIP) {
		b = appendAddr(append(b, " src="...), &t.Src, t.V6)
	}
	if ports && e.has(kSrcPort) {
		b = appendUint(append(b, " spt="...), uint64(t.SrcPort))
	}
	if e.has(kDstIP) {
		b = appendAddr(append(b, " dst="...), &t.Dst, t.V6)
	}
	if ports && e.has(kDstPort) {
		b = appendUint(append(b, " dpt="...), uint64(t.DstPort))
	}
	if replies(r) {
		b = append(b, e.nats[nat]...)
	}
	if nat&flow.NATSrc != 0 {
		if e.has(kNATSrcIP) {
			b = appendAddr(append(b, " sourceTranslatedAddress="...), &p.Dst, t.V6)
		}
		if ports && e.has(kNATSrcPort) {
			b = appendUint(append(b, " sourceTranslatedPort="...), uint64(p.DstPort))
		}
	}
	if nat&flow.NATDst != 0 {
		if e.has(kNATDstIP) {
			b = appendAddr(append(b, " destinationTranslatedAddress="...), &p.Src, t.V6)
		}
		if ports && e.has(kNATDstPort) {
			b = appendUint(append(b, " destinationTranslatedPort="...), uint64(p.SrcPort))
		}
	}
	switch reply := replies(r); {
	case t.Proto.IsICMP():
		b = e.number(b, kICMPType, uint64(t.ICMPType()))
		b = e.number(b, kICMPCode, uint64(t.ICMPCode()))
		b = e.number(b, kICMPID, uint64(t.ICMPID()))
		if reply && p.ICMPID() != t.ICMPID() {
			b = e.number(b, kNATICMPID, uint64(p.ICMPID()))
		}
	case t.Proto == flow.GRE:
		b = e.number(b, kGREKey, uint64(t.SrcPort))
		b = e.number(b, kGREDstKey, uint64(t.DstPort))
		if reply && p.DstPort != t.SrcPort {
			b = e.number(b, kNATGREKey, uint64(p.DstPort))
		}
		if reply && p.SrcPort != t.DstPort {
			b = e.number(b, kNATGREDstKey, uint64(p.SrcPort))
		}
	}
	if e.set&community == 0 || expectation(r) {
		return b
	}
	if e.has(kCommunityID) {
		b = e.ids.flow(append(b, " cs5Label=community_id cs5="...), r)
	}
	if e.has(kNATCommunityID) && nat != flow.NATNone {
		b = e.ids.translated(append(b, " cs6Label=nat_community_id cs6="...), r)
	}
	return b
}

// number appends a value under a key of our own.
func (e *cef) number(b []byte, k key, v uint64) []byte {
	if !e.has(k) {
		return b
	}
	return appendUint(append(b, e.custom[k]...), v)
}

func (e *cef) appendState(b []byte, r *flow.Record) []byte {
	if state := r.StateName(); state != "" {
		switch {
		case r.Has&flow.HasTCP != 0:
			if e.has(kTCPState) {
				b = append(append(b, " cs2Label=tcp_state cs2="...), state...)
			}
		case r.Has&flow.HasSCTP != 0:
			if e.has(kSCTPState) {
				b = append(append(b, " cs2Label=sctp_state cs2="...), state...)
			}
		default:
			if e.has(kDCCPState) {
				b = append(append(b, " cs2Label=dccp_state cs2="...), state...)
			}
		}
	}
	if r.Has&flow.HasStatus != 0 && e.has(kStatus) {
		b = append(b, e.statusOf(r.Status)...)
	}
	x := r.Extra
	if x != nil {
		if n := x.Helper.Len(); n != 0 && e.has(kHelper) {
			b = appendCEF(append(b, " cs4Label=helper cs4="...), x.Helper[:n])
		}
	}
	if r.Has&flow.HelperUnknown != 0 && e.has(kHelperUnknown) {
		b = append(append(b, e.custom[kHelperUnknown]...), "true"...)
	}
	if x != nil && x.HasMaster {
		b = e.appendMaster(b, &x.Master)
	}
	if r.Netns != 0 {
		b = e.appendNetns(b, r)
	}
	if r.Has&flow.HasZone != 0 {
		b = e.number(b, kZone, uint64(r.Zone))
	}
	if r.Has&flow.HasOrig != 0 && r.Orig.HasZone {
		b = e.number(b, kZoneOrig, uint64(r.Orig.Zone))
	}
	if r.Has&flow.HasReply != 0 && r.Reply.HasZone && !expectation(r) {
		b = e.number(b, kZoneReply, uint64(r.Reply.Zone))
	}
	if r.Has&flow.HasMark != 0 && e.has(kMark) {
		b = appendUint(append(b, " cn3Label=mark cn3="...), uint64(r.Mark))
	}
	if x != nil && x.HasLabels && e.has(kLabels) {
		b = appendHex(append(b, e.custom[kLabels]...), x.Labels[:])
	}
	if x != nil && x.SecCtx != "" && e.has(kSecCtx) {
		b = appendCEF(append(b, e.custom[kSecCtx]...), x.SecCtx)
	}
	if s := r.Subscriber(); s != nil {
		b = e.appendSubscriber(b, s)
	}
	if r.Has&flow.HasID != 0 {
		b = e.number(b, kCTID, uint64(r.ID))
	}
	return b
}

func (e *cef) appendSubscriber(b []byte, s *flow.Subscriber) []byte {
	id, name := " suid=", " suser="
	if s.Dst {
		id, name = " duid=", " duser="
	}
	if s.ID != "" && e.has(kSubscriber) {
		b = appendCEF(append(b, id...), s.ID)
	}
	if s.Name != "" && e.has(kSubscriberName) {
		b = appendCEF(append(b, name...), s.Name)
	}
	if s.Dst && e.has(kSubscriberSide) {
		b = append(append(b, e.custom[kSubscriberSide]...), "dst"...)
	}
	if s.Next != "" && e.has(kSubscriberNext) {
		b = appendCEF(append(b, e.custom[kSubscriberNext]...), s.Next)
	}
	if s.Source != "" && e.has(kSubscriberSource) {
		b = appendCEF(append(b, e.custom[kSubscriberSource]...), s.Source)
	}
	return b
}

func (e *cef) appendNetns(b []byte, r *flow.Record) []byte {
	info := r.Netns.Info()
	if info.Name != "" && e.has(kNetns) {
		b = appendCEF(append(b, e.custom[kNetns]...), info.Name)
	}
	if info.ID >= 0 {
		b = e.number(b, kNSID, uint64(info.ID))
	}
	return b
}

// statusOf returns the status with its key, valid until the next call.
func (e *cef) statusOf(s flow.Status) []byte {
	c, made := e.cached(s)
	if !made {
		c.text = appendNames(append(c.text, " cs3Label=status cs3="...), uint32(s), flow.StatusNames[:])
	}
	return c.text
}

func (e *cef) appendMaster(b []byte, t *flow.Tuple) []byte {
	if e.has(kMasterProto) {
		b = append(append(b, e.custom[kMasterProto]...), t.Proto.String()...)
	}
	if e.has(kMasterSrcIP) {
		b = appendAddr(append(b, e.custom[kMasterSrcIP]...), &t.Src, t.V6)
	}
	if t.Proto.HasPorts() {
		b = e.number(b, kMasterSrcPort, uint64(t.SrcPort))
	}
	if e.has(kMasterDstIP) {
		b = appendAddr(append(b, e.custom[kMasterDstIP]...), &t.Dst, t.V6)
	}
	if t.Proto.HasPorts() {
		b = e.number(b, kMasterDstPort, uint64(t.DstPort))
	}
	return b
}

func (e *cef) appendLast(b []byte, r *flow.Record) []byte {
	if m, t := &r.Reply, &r.Orig; expectation(r) && r.Has&flow.HasReply != 0 {
		if e.has(kMaskSrcIP) {
			b = appendAddr(append(b, e.custom[kMaskSrcIP]...), &m.Src, t.V6)
		}
		if e.has(kMaskDstIP) {
			b = appendAddr(append(b, e.custom[kMaskDstIP]...), &m.Dst, t.V6)
		}
		if t.Proto.HasPorts() || t.Proto == flow.GRE {
			b = e.number(b, kMaskSrcPort, uint64(m.SrcPort))
			b = e.number(b, kMaskDstPort, uint64(m.DstPort))
		}
	}
	if x := r.Extra; expectation(r) && x != nil {
		b = e.number(b, kClass, uint64(x.Class))
		if e.has(kFlags) && x.Flags != 0 {
			b = appendNames(append(b, e.custom[kFlags]...), x.Flags, flow.ExpectFlagNames[:])
		}
	}
	if r.Has&flow.HasTimeout != 0 && r.Event != flow.EventDestroy {
		b = e.number(b, kTimeoutS, uint64(r.Timeout))
	}
	if expectation(r) && r.Has&flow.HasReply != 0 && e.has(kWildcard) && r.Wildcard() {
		b = append(append(b, e.custom[kWildcard]...), "true"...)
	}
	return b
}

// appendGap appends the rest of a gap.
func (e *cef) appendGap(b []byte, r *flow.Record) []byte {
	if r.Start != 0 {
		b = appendMillis(append(b, " start="...), r.Start)
	}
	if r.Stop != 0 {
		b = appendMillis(append(b, " end="...), r.Stop)
	}
	if r.Extra == nil {
		return b
	}
	gap := r.Extra.Gap
	b = append(append(b, " reason="...), gap.Cause.String()...)
	if gap.LostKnown {
		b = appendUint(append(b, " cnt="...), gap.Lost)
	}
	if gap.Output != "" {
		b = appendCEF(append(b, " ctlogdOutput="...), gap.Output)
	}
	if r.Netns != 0 {
		b = e.appendNetns(b, r)
	}
	return b
}

// appendNote appends the rest of a checkpoint.
func (e *cef) appendNote(b []byte, r *flow.Record) []byte {
	if r.Extra == nil || r.Extra.Note == nil {
		return b
	}
	n := r.Extra.Note
	b = appendCEF(append(b, " ctlogdOutput="...), n.Output)
	b = appendCEF(append(b, " ctlogdOrigin="...), n.Origin)
	b = appendUint(append(b, " ctlogdLines="...), n.Lines)
	if n.Hash != "" {
		b = appendCEF(append(b, " ctlogdHash="...), n.Hash)
	}
	return appendCEF(append(b, " ctlogdNote="...), n.Text)
}

// appendCEF appends s, which may be any bytes, as a value. What is not UTF-8, and what ends a line or is obeyed by a
// terminal, becomes U+FFFD, but for newlines, for which there is an escape.
func appendCEF[T string | []byte](b []byte, s T) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			switch {
			case c == '\\' || c == '=':
				b = append(b, '\\', c)
			case c == '\n':
				b = append(b, `\n`...)
			case c == '\r':
				b = append(b, `\r`...)
			case c < ' ' || c == 0x7f:
				b = append(b, "\ufffd"...)
			default:
				b = append(b, c)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
		if r <= '\u009f' || r == '\u2028' || r == '\u2029' {
			r = utf8.RuneError
		}
		b = utf8.AppendRune(b, r)
		i += n
	}
	return b
}
