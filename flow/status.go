package flow

// Status is the set of bits of enum ip_conntrack_status (linux/netfilter/nf_conntrack_common.h).
type Status uint32

const (
	StatusExpected     Status = 1 << iota // IPS_EXPECTED: the flow was expected by a helper, it has a master
	StatusSeenReply                       // IPS_SEEN_REPLY
	StatusAssured                         // IPS_ASSURED: not dropped early when the table is full
	StatusConfirmed                       // IPS_CONFIRMED: its first packet has left the box
	StatusSrcNAT                          // IPS_SRC_NAT: the original direction needs source translation
	StatusDstNAT                          // IPS_DST_NAT
	StatusSeqAdjust                       // IPS_SEQ_ADJUST
	StatusSrcNATDone                      // IPS_SRC_NAT_DONE
	StatusDstNATDone                      // IPS_DST_NAT_DONE
	StatusDying                           // IPS_DYING
	StatusFixedTimeout                    // IPS_FIXED_TIMEOUT
	StatusTemplate                        // IPS_TEMPLATE
	StatusNATClash                        // IPS_NAT_CLASH (IPS_UNTRACKED on old kernels)
	StatusHelper                          // IPS_HELPER: the rule set attached a helper
	StatusOffload                         // IPS_OFFLOAD: in a flowtable, counters may stand still
	StatusHWOffload                       // IPS_HW_OFFLOAD
)

// StatusNames are the names of the status bits from bit 0 up, as records show them and filters name them.
var StatusNames = [...]string{
	"expected", "seen_reply", "assured", "confirmed", "src_nat", "dst_nat", "seq_adjust", "src_nat_done",
	"dst_nat_done", "dying", "fixed_timeout", "template", "nat_clash", "helper", "offload", "hw_offload",
}

// ParseStatus returns the bit of a name in StatusNames.
func ParseStatus(name string) (Status, bool) {
	for i, n := range StatusNames {
		if n == name {
			return 1 << i, true
		}
	}
	return 0, false
}

// State names of CTA_PROTOINFO, indexed by the kernel's numbers.
var (
	tcpStates = [...]string{ // enum tcp_conntrack
		"none", "syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close",
		"syn_sent2",
	}
	sctpStates = [...]string{ // enum sctp_conntrack
		"none", "closed", "cookie_wait", "cookie_echoed", "established", "shutdown_sent", "shutdown_recd",
		"shutdown_ack_sent", "heartbeat_sent", "heartbeat_acked",
	}
	dccpStates = [...]string{ // enum ct_dccp_states
		"none", "request", "respond", "partopen", "open", "closereq", "closing", "timewait", "ignore", "invalid",
	}
)

// States of TCP that tell how a connection ended (enum tcp_conntrack).
const (
	TCPTimeWait = 7 // TCP_CONNTRACK_TIME_WAIT: both sides have sent FIN
	TCPClose    = 8 // TCP_CONNTRACK_CLOSE: a RST was seen
)
