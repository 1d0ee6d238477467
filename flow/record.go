package flow

// Event is what a Record reports.
type Event uint8

const (
	EventNew           Event = iota + 1 // a flow was created
	EventUpdate                         // a flow has changed
	EventDestroy                        // a flow has ended
	EventOpen                           // a flow was alive when the table was read
	EventExpectNew                      // a helper expects a flow
	EventExpectDestroy                  // an expectation is gone: met, withdrawn or timed out
	EventGap                            // records are missing here; see Extra.Gap
	EventCheckpoint                     // an archive has put on record what it holds; see Extra.Note
)

// EventNames are the names of the events, indexed by Event.
var EventNames = [...]string{"", "new", "update", "destroy", "open", "expect_new", "expect_destroy", "gap", "checkpoint"}

func (e Event) String() string {
	if int(e) < len(EventNames) {
		return EventNames[e]
	}
	return ""
}

// Has is the set of a record's optional fields that the kernel sent.
type Has uint16

const (
	HasOrig        Has = 1 << iota // Orig (CTA_TUPLE_ORIG)
	HasReply                       // Reply (CTA_TUPLE_REPLY)
	HasStatus                      // Status
	HasID                          // ID
	HasMark                        // Mark
	HasZone                        // Zone
	HasTimeout                     // Timeout
	HasCounters                    // OrigCounters and ReplyCounters
	HasTCP                         // State is a TCP state
	HasSCTP                        // State is an SCTP state
	HasDCCP                        // State is a DCCP state
	ByRequest                      // somebody asked for the change over netlink (nlmsg_pid): conntrack -D, -F
	NoPorts                        // the protocol has ports, and the kernel does not tell them
	HelperUnknown                  // STATUS says that there was a helper or a master, which is not known
	Unsynchronized                 // the machine's clock was not synchronised when the record was read
	Stepped                        // the clock was set since the first of the record's times, or shows it a second time
)

// Record is one event. Times are in nanoseconds since 1970 UTC, 0 where they are not known.
type Record struct {
	Orig  Tuple // the tuple of the packet that created the flow; an expectation's expected tuple
	Reply Tuple // the tuple that replies have, after translation; an expectation's mask

	OrigCounters, ReplyCounters Counters

	Start    int64 // CTA_TIMESTAMP_START: insertion into this box's table; of a gap: from
	Stop     int64 // CTA_TIMESTAMP_STOP: the end, idle timeout included; of a gap: to
	Stamp    int64 // CTA_TIMESTAMP_EVENT: written anew at each delivery attempt
	Received int64 // this process's clock when the message was read; never 0

	ID      uint32 // CTA_ID: a hash, no key
	Mark    uint32
	Timeout uint32 // seconds that were left
	Status  Status

	Zone  uint16 // zone of both directions (CTA_ZONE); a zone of one direction stands in its tuple
	Netns Netns  // see Batch.SetNetns
	Has   Has
	Event Event
	State uint8 // CTA_PROTOINFO's state; which protocol's, says Has

	// Extra is what few records have, or nil. It belongs to the same Batch as the record.
	Extra *Extra
}

// Extra is the part of a record that few flows need: a helper, a master, labels, a security context; what an
// expectation has besides its tuples; and the facts of a gap.
type Extra struct {
	Helper    Name  // "" where there is none
	Master    Tuple // the master's original tuple; valid if HasMaster
	HasMaster bool
	HasLabels bool
	Labels    [16]byte // CTA_LABELS as the kernel sends it
	SecCtx    string   // CTA_SECCTX; foreign bytes

	Class uint32 // CTA_EXPECT_CLASS
	Flags uint32 // CTA_EXPECT_FLAGS, see ExpectFlagNames

	Gap  Gap
	Note *Note // never changed; nil but in an EventCheckpoint

	Checkpoint Checkpoint

	Subscriber Subscriber
}

// Subscriber is who had the flow's inside address, as a source of subscribers tells: foreign text. The texts belong to
// the record's Batch (Batch.Text).
type Subscriber struct {
	ID     string // whose the address was when the flow began; "" where that is not known
	Name   string // what the source calls them besides
	Next   string // whose it was when the flow ended, if that is another
	Source string // the source and the time of the state of it that tells so: dhcp@2026-03-09T14:02:11Z
	Dst    bool   // the address is that of the flow's destination: the flow came from outside
}

// Subscriber returns whose flow it is, nil if that is not known.
func (r *Record) Subscriber() *Subscriber {
	if r.Extra == nil || r.Event >= EventExpectNew || r.Extra.Subscriber.ID == "" && r.Extra.Subscriber.Next == "" {
		return nil
	}
	return &r.Extra.Subscriber
}

// Checkpoint marks the records of a reading of the table that is made for archives: other outputs do not get them.
type Checkpoint uint8

// The marks. A record with one of the latter two is of no flow: it says that a reading, from Start to Stop, is over, and
// that flows that were Timeout seconds old or older then have an open record.
const (
	CheckpointOpen    Checkpoint = iota + 1 // an open record
	CheckpointWhole                         // the reading was whole
	CheckpointPartial                       // it was not
)

// Checkpoint returns the record's mark, 0 if it has none.
func (r *Record) Checkpoint() Checkpoint {
	if r.Extra == nil || r.Event != EventOpen {
		return 0
	}
	return r.Extra.Checkpoint
}

// ExpectFlagNames are the names of an expectation's flags from bit 0 up (NF_CT_EXPECT_PERMANENT, ...).
var ExpectFlagNames = [...]string{"permanent", "inactive", "userspace"}

// Gap says what is missing. Its time span is Start and Stop of its Record.
type Gap struct {
	Cause     Cause
	Lost      uint64 // records; valid if LostKnown
	LostKnown bool
	Output    string // the name of the output concerned; "" if all are
}

// Note is a checkpoint of an archive: who has it can tell later whether the archive was changed since.
type Note struct {
	Output string // the archive's name
	Origin string // of the note: whose archive it is
	Lines  uint64 // of the catalog
	Hash   string // SHA-256 of the last one in hex; "" if there is none
	Text   string // the note itself, with its signatures, without the last newline
}

// Cause is why records are missing.
type Cause uint8

const (
	CauseOverrun    Cause = iota + 1 // the kernel dropped events: the socket's buffer was full
	CauseGuard                       // reliable delivery was suspended, so that the table did not fill
	CauseDowntime                    // ctlogd was not running
	CauseCrash                       // ctlogd ended without writing what it had read
	CauseReboot                      // the machine restarted, which ends flows without an event
	CauseQueueFull                   // an output's queue was full
	CauseSpoolFull                   // an output's spool was full
	CauseDiskFull                    // the disk was full
	CauseOutputDown                  // an output's destination did not accept records
	CauseUntracked                   // flows whose end the kernel does not report
	CauseUnreadable                  // messages of the kernel that could not be decoded
)

// CauseNames are the names of the causes, indexed by Cause.
var CauseNames = [...]string{
	"", "overrun", "guard", "downtime", "crash", "reboot", "queue_full", "spool_full", "disk_full", "output_down",
	"untracked", "unreadable",
}

func (c Cause) String() string {
	if int(c) < len(CauseNames) {
		return CauseNames[c]
	}
	return ""
}

// NameLen is the size of a helper's name with its NUL (NF_CT_HELPER_NAME_LEN).
const NameLen = 16

// Name is a helper's name, NUL-padded: foreign bytes, by convention printable.
type Name [NameLen]byte

// NameFrom returns s as a Name, cut to what fits.
func NameFrom[T string | []byte](s T) (n Name) {
	copy(n[:], s)
	return n
}

// Len returns the length of the name.
func (n *Name) Len() int {
	for i, c := range n {
		if c == 0 {
			return i
		}
	}
	return NameLen
}

func (n Name) String() string { return string(n[:n.Len()]) }

// HasPorts reports whether the ports of r's tuples are known.
func (r *Record) HasPorts() bool { return r.Orig.Proto.HasPorts() && r.Has&NoPorts == 0 }

// NAT says which ends of a flow were translated.
type NAT uint8

const (
	NATNone NAT = 0
	NATSrc  NAT = 1
	NATDst  NAT = 2
	NATBoth NAT = NATSrc | NATDst
)

// NATNames are the names of the NAT types, indexed by NAT.
var NATNames = [...]string{"none", "snat", "dnat", "both"}

func (n NAT) String() string { return NATNames[n&NATBoth] }

// NAT compares the original tuple with the reply tuple turned round. A change of the port, the GRE key or the ICMP id
// alone is a translation too.
func (r *Record) NAT() NAT {
	if r.Has&(HasOrig|HasReply) != HasOrig|HasReply || r.Event >= EventExpectNew {
		return NATNone
	}
	o, p := &r.Orig, &r.Reply
	n := NATNone
	if o.Proto.IsICMP() {
		// The id is the sender's, as a source port is; type and code of the reply differ by nature.
		if o.Src != p.Dst || o.SrcPort != p.SrcPort {
			n |= NATSrc
		}
		if o.Dst != p.Src {
			n |= NATDst
		}
		return n
	}
	if o.Src != p.Dst || o.SrcPort != p.DstPort {
		n |= NATSrc
	}
	if o.Dst != p.Src || o.DstPort != p.SrcPort {
		n |= NATDst
	}
	return n
}

// Time returns the time of the event and whether it is the kernel's: the end of a flow that has ended, the kernel's
// stamp of any other event, else the time at which the message was read.
func (r *Record) Time() (ns int64, kernel bool) { return timeOf(r.Event, r.Received, r.Stop, r.Stamp) }

func timeOf(event Event, received, stop, stamp int64) (ns int64, kernel bool) {
	t := stamp
	if event == EventDestroy {
		t = stop // the stamp of a DESTROY is that of its delivery, up to seconds later
	}
	if t != 0 && event != EventOpen && event < EventGap {
		return t, true
	}
	return received, false
}

// StateName returns the name of the protocol state, "" if there is none; an unknown number gives "unknown".
func (r *Record) StateName() string {
	var names []string
	switch {
	case r.Has&HasTCP != 0:
		names = tcpStates[:]
	case r.Has&HasSCTP != 0:
		names = sctpStates[:]
	case r.Has&HasDCCP != 0:
		names = dccpStates[:]
	default:
		return ""
	}
	if int(r.State) < len(names) {
		return names[r.State]
	}
	return "unknown"
}

// EndReason is why a flow ended.
type EndReason uint8

const (
	EndNone    EndReason = iota // the flow has not ended
	EndTimeout                  // idle for longer than its timeout
	EndTCPFin                   // both sides closed
	EndTCPRst                   // one side reset the connection
	EndDeleted                  // removed before its time: conntrack -D or -F, early drop, an address that went away
	EndUnknown
)

// EndReasonNames are the names of the end reasons, indexed by EndReason.
var EndReasonNames = [...]string{"", "timeout", "tcp_fin", "tcp_rst", "deleted", "unknown"}

func (e EndReason) String() string { return EndReasonNames[e] }

// EndReason derives why the flow ended. A closed TCP connection stays in the table for a while, so its timeout is what
// removes it; the state tells how it was closed. What a request removed was deleted whatever its state.
func (r *Record) EndReason() EndReason {
	switch {
	case r.Event != EventDestroy:
		return EndNone
	case r.Has&ByRequest != 0:
		return EndDeleted
	case r.Has&HasTCP != 0 && r.State == TCPTimeWait:
		return EndTCPFin
	case r.Has&HasTCP != 0 && r.State == TCPClose:
		return EndTCPRst
	case r.Has&HasTimeout != 0:
		return EndDeleted // the kernel sends the timeout of a DESTROY only if some of it was left
	case r.Has&HasStatus == 0:
		return EndUnknown
	}
	return EndTimeout
}

// Wildcard reports whether an expectation lets in any source address or only part of one is given: its mask does not
// cover the source address.
func (r *Record) Wildcard() bool {
	if r.Event != EventExpectNew && r.Event != EventExpectDestroy {
		return false
	}
	mask := r.Reply.Src[:]
	if !r.Orig.V6 {
		mask = mask[12:]
	}
	for _, b := range mask {
		if b != 0xff {
			return true
		}
	}
	return false
}
