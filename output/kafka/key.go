package kafka

import (
	"encoding/hex"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// Keys are the values of the configuration's key.
var Keys = []string{KeySrc, KeyNATSrc, KeyFlowID, KeyNone}

const (
	KeySrc    = "src"     // the original source address: one subscriber's records
	KeyNATSrc = "nat_src" // the source address after translation, else as KeySrc: one public address's records
	KeyFlowID = "flow_id" // the flow id, else as KeySrc
	KeyNone   = "none"
)

// A keyFunc appends r's key to dst, addresses as text. It appends nothing if r has no key: a gap, say, which belongs to
// no subscriber.
type keyFunc func(dst []byte, r *flow.Record) []byte

func newKeyFunc(name string, observer format.ObserverKey) keyFunc {
	switch name {
	case KeyNATSrc:
		return func(dst []byte, r *flow.Record) []byte {
			if r.NAT()&flow.NATSrc == 0 {
				return appendSrc(dst, r)
			}
			return r.Reply.DstAddr().AppendTo(dst)
		}
	case KeyFlowID:
		return func(dst []byte, r *flow.Record) []byte {
			id, ok := format.FlowID(observer, r)
			if !ok {
				return appendSrc(dst, r)
			}
			return hex.AppendEncode(dst, id[:])
		}
	case KeyNone:
		return func(dst []byte, _ *flow.Record) []byte { return dst }
	}
	return appendSrc
}

func appendSrc(dst []byte, r *flow.Record) []byte {
	if r.Has&flow.HasOrig == 0 {
		return dst
	}
	return r.Orig.SrcAddr().AppendTo(dst)
}
