package archive

import (
	"encoding/hex"
	"net/netip"
	"slices"

	"github.com/ctlogd/ctlogd/flow"
)

// row is one row of the table as it is read: the values of the scalar columns, and the bits of the lists.
type row struct {
	v      [columnCount]value
	bits   [columnCount]uint32
	listed [columnCount]bool
}

// What a column without a value has is 0, and no text.
func (w *row) has(c int) bool    { return w.v[c].there }
func (w *row) text(c int) string { return string(w.v[c].text) }
func (w *row) u16(c int) uint16  { return uint16(w.v[c].n) }
func (w *row) u32(c int) uint32  { return uint32(w.v[c].n) }
func (w *row) u64(c int) uint64  { return w.v[c].n }
func (w *row) ns(c int) int64    { return int64(w.v[c].n) }

// index returns which of list the text of column c is, 0 if none.
func (w *row) index(c int, list []string) int {
	b := w.v[c].text
	for i, n := range list {
		if n == string(b) {
			return i
		}
	}
	return 0
}

func (w *row) addr(c int) (a flow.Addr, v6 bool) {
	if !w.v[c].there {
		return a, false
	}
	p, err := netip.ParseAddr(w.text(c))
	if err != nil {
		return a, false
	}
	return flow.AddrFrom(p), p.Is6()
}

// record appends the record that the row was made of to b, as far as the columns tell: its flat JSON is the same but for
// ct_id, and for what was dropped.
func (w *row) record(b *flow.Batch) *flow.Record {
	r := b.Next()
	r.Event = flow.Event(w.index(cEvent, flow.EventNames[:]))
	if w.text(cEvent) == checkpointEvent {
		r.Event, r.Start, r.Stop, r.Received, r.Timeout = flow.EventOpen, w.ns(cFrom), w.ns(cTo), w.ns(cTime), w.u32(cTimeoutS)
		x := b.Extra(r)
		if x.Checkpoint = flow.CheckpointPartial; w.u32(cWhole) != 0 {
			x.Checkpoint = flow.CheckpointWhole
		}
		return r
	}
	if w.has(cNetns) || w.has(cNSID) {
		id := int32(-1)
		if w.has(cNSID) {
			id = int32(w.u32(cNSID))
		}
		n := flow.HoldNetns(id, w.text(cNetns))
		b.SetNetns(r, n)
		n.Release()
	}
	kernel := w.text(cTimeSource) == "kernel"
	if w.bits[cClock]&1 != 0 {
		r.Has |= flow.Unsynchronized
	}
	if w.bits[cClock]&2 != 0 {
		r.Has |= flow.Stepped
	}
	r.Start = w.ns(cStart)
	switch {
	case w.has(cEnd):
		r.Stop = w.ns(cEnd)
		r.Received = r.Stop
	case kernel:
		r.Stamp = w.ns(cTime)
		r.Received = r.Stamp
	default:
		r.Received = w.ns(cTime)
	}
	if r.Event >= flow.EventGap {
		r.Start, r.Stop = w.ns(cFrom), w.ns(cTo)
		x := b.Extra(r)
		x.Gap.Cause = flow.Cause(w.index(cCause, flow.CauseNames[:]))
		x.Gap.Lost, x.Gap.LostKnown = w.u64(cLost), w.has(cLost)
		x.Gap.Output = w.text(cOutput)
		return r
	}
	w.tuples(r)
	w.rest(b, r)
	return r
}

// tuples sets the record's tuples.
func (w *row) tuples(r *flow.Record) {
	if !w.has(cSrcIP) {
		return
	}
	r.Has |= flow.HasOrig
	o := &r.Orig
	o.Proto = flow.Proto(w.u16(cProtoNum))
	o.Src, o.V6 = w.addr(cSrcIP)
	o.Dst, _ = w.addr(cDstIP)
	switch {
	case o.Proto.HasPorts():
		o.SrcPort, o.DstPort = w.u16(cSrcPort), w.u16(cDstPort)
		if !w.has(cSrcPort) {
			r.Has |= flow.NoPorts
		}
	case o.Proto.IsICMP():
		o.SrcPort, o.DstPort = w.u16(cICMPID), w.u16(cICMPType)<<8|w.u16(cICMPCode)
	case o.Proto == flow.GRE:
		o.SrcPort, o.DstPort = w.u16(cGREKey), w.u16(cGREDstKey)
	}
	if w.has(cZoneOrig) {
		o.Zone, o.HasZone = w.u16(cZoneOrig), true
	}
	p := &r.Reply
	if w.has(cMaskSrcIP) {
		r.Has |= flow.HasReply
		p.Src, p.V6 = w.addr(cMaskSrcIP)
		p.Dst, _ = w.addr(cMaskDstIP)
		p.SrcPort, p.DstPort, p.Proto = w.u16(cMaskSrcPort), w.u16(cMaskDstPort), o.Proto
	}
	if !w.has(cNAT) {
		return
	}
	r.Has |= flow.HasReply
	*p = flow.Tuple{Src: o.Dst, Dst: o.Src, SrcPort: o.DstPort, DstPort: o.SrcPort, Proto: o.Proto, V6: o.V6}
	if o.Proto.IsICMP() {
		p.SrcPort, p.DstPort = o.SrcPort, 0 // the id stays the sender's
	}
	if w.has(cZoneReply) {
		p.Zone, p.HasZone = w.u16(cZoneReply), true
	}
	if w.has(cNATSrcIP) {
		p.Dst, _ = w.addr(cNATSrcIP)
	}
	if w.has(cNATDstIP) {
		p.Src, _ = w.addr(cNATDstIP)
	}
	for _, c := range [...]int{cNATSrcPort, cNATGREKey} {
		if w.has(c) {
			p.DstPort = w.u16(c)
		}
	}
	for _, c := range [...]int{cNATDstPort, cNATGREDstKey, cNATICMPID} {
		if w.has(c) {
			p.SrcPort = w.u16(c)
		}
	}
	// Where the destination was left out, nat still tells that it was translated.
	if flow.NAT(w.index(cNAT, flow.NATNames[:]))&flow.NATDst != 0 && r.NAT()&flow.NATDst == 0 {
		p.Src[0] ^= 0xff
	}
}

// rest sets what the record has besides its tuples.
func (w *row) rest(b *flow.Batch, r *flow.Record) {
	if w.has(cOrigBytes) || w.has(cOrigPackets) || w.has(cReplyBytes) || w.has(cReplyPackets) {
		r.Has |= flow.HasCounters
		r.OrigCounters = flow.Counters{Packets: w.u64(cOrigPackets), Bytes: w.u64(cOrigBytes)}
		r.ReplyCounters = flow.Counters{Packets: w.u64(cReplyPackets), Bytes: w.u64(cReplyBytes)}
	}
	for k, c := range [3]int{cTCPState, cSCTPState, cDCCPState} {
		if w.has(c) {
			r.Has |= stateHas[k]
			r.State = 255 // a number without a name
			if i := slices.Index(stateNames[k], w.text(c)); i >= 0 {
				r.State = uint8(i)
			}
		}
	}
	if w.listed[cStatus] {
		r.Has |= flow.HasStatus
		r.Status = flow.Status(w.bits[cStatus])
	}
	if w.has(cHelperUnknown) {
		r.Has |= flow.HelperUnknown
	}
	if w.has(cZone) {
		r.Has |= flow.HasZone
		r.Zone = w.u16(cZone)
	}
	if w.has(cMark) {
		r.Has |= flow.HasMark
		r.Mark = w.u32(cMark)
	}
	if w.has(cTimeoutS) {
		r.Has |= flow.HasTimeout
		r.Timeout = w.u32(cTimeoutS)
	}
	w.endReason(r)
	if w.has(cHelper) {
		b.Extra(r).Helper = flow.NameFrom(w.v[cHelper].text)
	}
	if w.has(cMasterProto) {
		x := b.Extra(r)
		x.HasMaster = true
		x.Master.Proto, _ = flow.ParseProto(w.text(cMasterProto))
		x.Master.Src, x.Master.V6 = w.addr(cMasterSrcIP)
		x.Master.Dst, _ = w.addr(cMasterDstIP)
		x.Master.SrcPort, x.Master.DstPort = w.u16(cMasterSrcPort), w.u16(cMasterDstPort)
	}
	if w.has(cLabels) {
		x := b.Extra(r)
		x.HasLabels = true
		_, _ = hex.Decode(x.Labels[:], w.v[cLabels].text[:min(32, len(w.v[cLabels].text))])
	}
	if w.has(cSecCtx) {
		b.Extra(r).SecCtx = w.text(cSecCtx)
	}
	if w.has(cSubscriber) || w.has(cSubscriberNext) {
		b.Extra(r).Subscriber = flow.Subscriber{ID: w.text(cSubscriber), Name: w.text(cSubscriberName), Next: w.text(cSubscriberNext),
			Source: w.text(cSubscriberSource), Dst: w.has(cSubscriberSide)}
	}
	if w.has(cClass) || w.listed[cFlags] {
		x := b.Extra(r)
		x.Class, x.Flags = w.u32(cClass), w.bits[cFlags]
	}
}

// endReason gives the record what its end reason is derived from, where the columns have not told it yet.
func (w *row) endReason(r *flow.Record) {
	if r.Event != flow.EventDestroy || !w.has(cEndReason) {
		return
	}
	want := flow.EndReason(w.index(cEndReason, flow.EndReasonNames[:]))
	if r.EndReason() == want {
		return
	}
	switch want {
	case flow.EndDeleted:
		r.Has |= flow.ByRequest
	case flow.EndTCPFin:
		r.Has, r.State = r.Has|flow.HasTCP, flow.TCPTimeWait
	case flow.EndTCPRst:
		r.Has, r.State = r.Has|flow.HasTCP, flow.TCPClose
	case flow.EndTimeout:
		r.Has |= flow.HasStatus
	}
}
