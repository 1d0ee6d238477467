package ipfix

import (
	"encoding/binary"
	"slices"

	"github.com/ctlogd/ctlogd/flow"
)

// A run is elements that follow each other in templates, with a function that appends all their values at once. The
// element's own functions would do: but calling one through a pointer takes as long as the rest of its work several
// times over, so that runs halve what a record costs. A test holds both to the same bytes.
type run struct {
	elements []*element
	append   func(dst []byte, r *flow.Record) []byte
}

// runs are tried in this order.
var runs = []run{
	{slices.Concat(src4, nat4, ports, natPorts), appendEnds4NAT},
	{slices.Concat(src4, ports), appendEnds4},
	{slices.Concat(src4, nat4), appendAddrs4NAT},
	{session[:8], appendSessionEnds},
	{session[8:11], appendSessionTail},
	{times, appendTimes},
	{counters, appendCounters},
	{tail, appendTail},
}

// steps returns the functions that together append fields.
func steps(fields []*element) (list []func([]byte, *flow.Record) []byte) {
next:
	for len(fields) > 0 {
		for _, run := range runs {
			if n := len(run.elements); len(fields) >= n && slices.Equal(fields[:n], run.elements) {
				list = append(list, run.append)
				fields = fields[n:]
				continue next
			}
		}
		list = append(list, fields[0].append)
		fields = fields[1:]
	}
	return list
}

// extend lengthens dst by n octets and returns these too.
func extend(dst []byte, n int) (all, tail []byte) {
	dst = slices.Grow(dst, n)
	all = dst[:len(dst)+n]
	return all, all[len(dst):]
}

func appendTimes(dst []byte, r *flow.Record) []byte {
	end, _ := r.Time()
	start := r.Start
	if start == 0 {
		start = end
	}
	dst, b := extend(dst, 16)
	binary.BigEndian.PutUint64(b[8:], millis(end))
	binary.BigEndian.PutUint64(b, millis(start))
	return dst
}

func appendEnds4(dst []byte, r *flow.Record) []byte {
	dst, b := extend(dst, 12)
	copy(b, r.Orig.Src[12:])
	copy(b[4:], r.Orig.Dst[12:])
	if r.Orig.Proto.HasPorts() {
		binary.BigEndian.PutUint16(b[8:], r.Orig.SrcPort)
		binary.BigEndian.PutUint16(b[10:], r.Orig.DstPort)
	} else {
		clear(b[8:12])
	}
	return dst
}

func appendAddrs4NAT(dst []byte, r *flow.Record) []byte {
	dst, b := extend(dst, 16)
	copy(b[12:], r.Reply.Src[12:])
	copy(b[8:], r.Reply.Dst[12:])
	copy(b[4:], r.Orig.Dst[12:])
	copy(b, r.Orig.Src[12:])
	return dst
}

func appendEnds4NAT(dst []byte, r *flow.Record) []byte {
	dst = appendAddrs4NAT(dst, r)
	dst, b := extend(dst, 8)
	if r.Orig.Proto.HasPorts() {
		binary.BigEndian.PutUint16(b[6:], r.Reply.SrcPort)
		binary.BigEndian.PutUint16(b[4:], r.Reply.DstPort)
		binary.BigEndian.PutUint16(b[2:], r.Orig.DstPort)
		binary.BigEndian.PutUint16(b, r.Orig.SrcPort)
	} else {
		clear(b)
	}
	return dst
}

func appendSessionEnds(dst []byte, r *flow.Record) []byte {
	dst, b := extend(dst, 24)
	copy(b, r.Orig.Src[12:])
	copy(b[4:], r.Reply.Dst[12:])
	copy(b[8:], r.Orig.Dst[12:])
	copy(b[12:], r.Reply.Src[12:])
	if r.Orig.Proto.HasPorts() {
		binary.BigEndian.PutUint16(b[22:], r.Reply.SrcPort)
		binary.BigEndian.PutUint16(b[20:], r.Orig.DstPort)
		binary.BigEndian.PutUint16(b[18:], r.Reply.DstPort)
		binary.BigEndian.PutUint16(b[16:], r.Orig.SrcPort)
	} else {
		clear(b[16:])
	}
	return dst
}

// appendSessionTail appends zone, protocol and realm.
func appendSessionTail(dst []byte, r *flow.Record) []byte {
	return appendRealm(appendProto(appendZone(dst, r), r), r)
}

func appendCounters(dst []byte, r *flow.Record) []byte {
	dst, b := extend(dst, 32)
	binary.BigEndian.PutUint64(b[24:], r.ReplyCounters.Packets)
	binary.BigEndian.PutUint64(b[16:], r.ReplyCounters.Bytes)
	binary.BigEndian.PutUint64(b[8:], r.OrigCounters.Packets)
	binary.BigEndian.PutUint64(b, r.OrigCounters.Bytes)
	return dst
}

func appendTail(dst []byte, r *flow.Record) []byte {
	dst, b := extend(dst, 14)
	b[13] = endReasons[r.EndReason()]
	b[12] = byte(r.Orig.Proto)
	binary.BigEndian.PutUint32(b[8:], origZone(r))
	binary.BigEndian.PutUint64(b, uint64(r.ID))
	return dst
}
