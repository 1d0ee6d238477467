package format

import "slices"

// key is a key that can be dropped.
type key uint

const (
	kHost key = iota
	kFlowID
	kStart
	kEnd
	kDurationMS
	kProto
	kProtoNum
	kSrcIP
	kSrcPort
	kDstIP
	kDstPort
	kNAT
	kNATSrcIP
	kNATSrcPort
	kNATDstIP
	kNATDstPort
	kICMPType
	kICMPCode
	kICMPID
	kNATICMPID
	kGREKey
	kGREDstKey
	kNATGREKey
	kNATGREDstKey
	kCommunityID
	kNATCommunityID
	kOrigPackets
	kOrigBytes
	kReplyPackets
	kReplyBytes
	kTCPState
	kSCTPState
	kDCCPState
	kStatus
	kHelper
	kHelperUnknown
	kMasterProto
	kMasterSrcIP
	kMasterSrcPort
	kMasterDstIP
	kMasterDstPort
	kNetns
	kNSID
	kZone
	kZoneOrig
	kZoneReply
	kMark
	kLabels
	kSecCtx
	kSubscriber
	kSubscriberName
	kSubscriberSide
	kSubscriberNext
	kSubscriberSource
	kCTID
	kEndReason
	kMaskSrcIP
	kMaskDstIP
	kMaskSrcPort
	kMaskDstPort
	kClass
	kFlags
	kTimeoutS
	kWildcard
	keyCount // at most 64: a set is a word
)

// keyNames are the names of the keys that can be dropped, indexed by key, in the order in which they are written.
// Before them stand v, time, time_source, clock and event, behind them a gap's cause, from, to, lost and output, all of which
// always stay: without them a reader cannot tell what it has, nor that something is missing.
var keyNames = [keyCount]string{
	"host", "flow_id", "start", "end", "duration_ms", "proto", "proto_num", "src_ip",
	"src_port", "dst_ip", "dst_port", "nat", "nat_src_ip", "nat_src_port", "nat_dst_ip", "nat_dst_port", "icmp_type",
	"icmp_code", "icmp_id", "nat_icmp_id", "gre_key", "gre_dst_key", "nat_gre_key", "nat_gre_dst_key",
	"community_id", "nat_community_id",
	"orig_packets", "orig_bytes", "reply_packets", "reply_bytes", "tcp_state", "sctp_state", "dccp_state", "status",
	"helper", "helper_unknown", "master_proto", "master_src_ip", "master_src_port", "master_dst_ip",
	"master_dst_port", "netns", "nsid", "zone", "zone_orig", "zone_reply", "mark", "labels", "secctx", "subscriber", "subscriber_name",
	"subscriber_side", "subscriber_next", "subscriber_source", "ct_id", "end_reason",
	"mask_src_ip", "mask_dst_ip", "mask_src_port", "mask_dst_port", "class", "flags", "timeout_s", "wildcard",
}

// set is a set of keys.
type set uint64

const allOfThem set = 1<<keyCount - 1

// community are the keys that cost a hash, and that a format may leave out unless they are asked for.
const community = set(1<<kCommunityID | 1<<kNATCommunityID)

// hashed are the keys that a community id is a hash of: one who has all but one of them finds the one by trying. So
// without one of them there is no such id.
var hashed = setOf(kSrcIP, kSrcPort, kDstIP, kDstPort)

func (s set) has(k key) bool { return s>>k&1 != 0 }

func setOf(keys ...key) (s set) {
	for _, k := range keys {
		s |= 1 << k
	}
	return s
}

// names returns the names of the keys in s.
func (s set) names() (list []string) {
	for k, name := range keyNames {
		if s.has(key(k)) {
			list = append(list, name)
		}
	}
	return list
}

// lookup returns the key called name, if it is in s.
func (s set) lookup(name string) (k key, ok bool) {
	i := slices.Index(keyNames[:], name)
	return key(i), i >= 0 && s.has(key(i))
}
