package ipfix

import (
	"encoding/binary"

	"github.com/ctlogd/ctlogd/flow"
)

// appendProcessStats appends a record of template 400: what has been sent to this collector since the start.
func appendProcessStats(dst []byte, domain uint32, s *counts) []byte {
	dst = binary.BigEndian.AppendUint32(dst, domain)
	dst = binary.BigEndian.AppendUint64(dst, s.messages.Load())
	dst = binary.BigEndian.AppendUint64(dst, s.records.Load())
	return binary.BigEndian.AppendUint64(dst, s.bytes.Load())
}

// appendReliability appends a record of template 401 for the gap r. notSent is the total of flows lost so far, this gap
// included; it does not grow where a gap's number is unknown. Packets and octets of lost flows are known to nobody: 0.
func appendReliability(dst []byte, process uint32, notSent uint64, r *flow.Record) []byte {
	dst = binary.BigEndian.AppendUint32(dst, process)
	dst = binary.BigEndian.AppendUint64(dst, notSent)
	dst = binary.BigEndian.AppendUint64(dst, 0)
	dst = binary.BigEndian.AppendUint64(dst, 0)
	dst = binary.BigEndian.AppendUint64(dst, millis(r.Start))
	last := r.Stop
	if last == 0 {
		last = r.Received // a gap that is not over yet
	}
	return binary.BigEndian.AppendUint64(dst, millis(last))
}

// appendElementType appends a record of template 403, which describes an enterprise element (RFC 5610, section 3.9).
func appendElementType(dst []byte, e *element) []byte {
	dst = binary.BigEndian.AppendUint32(dst, e.pen)
	dst = binary.BigEndian.AppendUint16(dst, e.id)
	dst = append(dst, e.info.dataType, e.info.semantics)
	dst = append(dst, make([]byte, 2+8+8)...) // units none, range not given
	dst = append(append(dst, byte(len(e.name))), e.name...)
	return append(append(dst, byte(len(e.info.text))), e.info.text...)
}

// lost returns how many records the gap r says are missing, 0 if that is not known.
func lost(r *flow.Record) uint64 {
	if r.Extra == nil || !r.Extra.Gap.LostKnown {
		return 0
	}
	return r.Extra.Gap.Lost
}

// unsentBy reports whether the records of gap r are missing because the output of that name could not take them.
func unsentBy(name string, r *flow.Record) bool {
	return r.Extra != nil && r.Extra.Gap.Output == name
}
