package preflight

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Netfilter's netlink, include/uapi/linux/netfilter/nfnetlink*.h.
const (
	subsysCtnetlink = 1  // NFNL_SUBSYS_CTNETLINK
	subsysNFTables  = 10 // NFNL_SUBSYS_NFTABLES
	subsysHook      = 12 // NFNL_SUBSYS_HOOK

	msgGetStats     = 5  // IPCTNL_MSG_CT_GET_STATS
	msgGetHooks     = 0  // NFNL_MSG_HOOK_GET
	msgGetObjects   = 19 // NFT_MSG_GETOBJ
	msgGetFlowtable = 23 // NFT_MSG_GETFLOWTABLE

	attrEntries    = 1 // CTA_STATS_GLOBAL_ENTRIES
	attrMaxEntries = 2 // CTA_STATS_GLOBAL_MAX_ENTRIES

	attrHookNumber   = 1 // NFNLA_HOOK_HOOKNUM
	attrHookFunction = 4 // NFNLA_HOOK_FUNCTION_NAME

	attrFlowtableTable = 1 // NFTA_FLOWTABLE_TABLE
	attrFlowtableName  = 2 // NFTA_FLOWTABLE_NAME
	attrFlowtableFlags = 7 // NFTA_FLOWTABLE_FLAGS

	flowtableCounter = 2 // NFT_FLOWTABLE_COUNTER, since Linux 5.7

	attrObjectTable = 1 // NFTA_OBJ_TABLE
	attrObjectType  = 3 // NFTA_OBJ_TYPE
	attrObjectData  = 4 // NFTA_OBJ_DATA
	attrHelperName  = 1 // NFTA_CT_HELPER_NAME

	objectHelper = 3 // NFT_OBJECT_CT_HELPER

	hookPrerouting = 0 // NF_INET_PRE_ROUTING

	nfgenLen = 4 // struct nfgenmsg: family, version, 16 bits of resource id
)

// linux is the running kernel, seen from the calling thread's network namespace.
type linux struct{}

func (linux) table() (entries, limit uint32, err error) {
	answers, err := ask(subsysCtnetlink, msgGetStats, unix.NLM_F_ACK, unix.AF_UNSPEC, nil)
	if err != nil {
		return 0, 0, err
	}
	return parseTable(answers)
}

func (linux) hooks(family uint8) ([]string, error) {
	number, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: attrHookNumber, Data: []byte{0, 0, 0, hookPrerouting}},
	})
	if err != nil {
		return nil, err
	}
	answers, err := ask(subsysHook, msgGetHooks, unix.NLM_F_DUMP, family, number)
	if err != nil {
		return nil, err
	}
	return parseHooks(answers)
}

func (linux) flowtables() ([]flowtable, error) {
	answers, err := ask(subsysNFTables, msgGetFlowtable, unix.NLM_F_DUMP, unix.AF_UNSPEC, nil)
	if err != nil {
		return nil, err
	}
	return parseFlowtables(answers)
}

func (linux) helpers() ([]string, error) {
	kind, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: attrObjectType, Data: []byte{0, 0, 0, objectHelper}},
	})
	if err != nil {
		return nil, err
	}
	answers, err := ask(subsysNFTables, msgGetObjects, unix.NLM_F_DUMP, unix.AF_UNSPEC, kind)
	if err != nil {
		return nil, err
	}
	return parseHelpers(answers)
}

// Asking netlink about its sockets, include/uapi/linux/netlink_diag.h.
const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY

	diagShowGroups = 2 // NDIAG_SHOW_GROUPS
	diagShowFlags  = 8 // NDIAG_SHOW_FLAGS

	attrDiagGroups = 1 // NETLINK_DIAG_GROUPS
	attrDiagFlags  = 4 // NETLINK_DIAG_FLAGS

	diagBroadcastError = 4 // NDIAG_FLAG_BROADCAST_ERROR: a reliable listener

	diagInode = 16 // offset of ndiag_ino in struct netlink_diag_msg
	diagLen   = 28 // its size
)

func (linux) listeners() ([]listener, error) {
	// struct netlink_diag_req: family, protocol, padding, inode (any), what to show, cookie (any)
	request := []byte{unix.AF_NETLINK, unix.NETLINK_NETFILTER, 0, 0}
	request = binary.NativeEndian.AppendUint32(request, 0)
	request = binary.NativeEndian.AppendUint32(request, diagShowGroups|diagShowFlags)
	request = append(request, make([]byte, 8)...)
	answers, err := exchange(unix.NETLINK_SOCK_DIAG, sockDiagByFamily, unix.NLM_F_DUMP, request)
	if err != nil {
		return nil, err
	}
	return parseListeners(answers)
}

func (linux) clock() (c clock, err error) {
	var t unix.Timex // asks, as it sets nothing
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return c, err
	}
	return clock{
		unsynchronized: state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0,
		estimated:      time.Duration(t.Esterror) * time.Microsecond,
		most:           time.Duration(t.Maxerror) * time.Microsecond,
	}, nil
}

func (linux) disk(path string) (device, free uint64, err error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, err
	}
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, 0, err
	}
	return uint64(st.Dev), fs.Bavail * uint64(fs.Frsize), nil
}

func (linux) forceBuffer(bytes int) error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes)
}

// ask asks a subsystem of netfilter; the answers begin with an nfgenmsg.
func ask(subsys, msg uint16, flags uint16, family uint8, attrs []byte) ([][]byte, error) {
	return exchange(unix.NETLINK_NETFILTER, subsys<<8|msg, flags, append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...))
}

// exchange sends one request, a dump or one that asks for an acknowledgement, and returns the bodies of the answers.
//
// It has a plain socket instead of a netlink.Conn, which waits for an end that ctnetlink never sends: its answer to
// GET_STATS is flagged as a part of several (NLM_F_MULTI), and nothing but the acknowledgement follows.
func exchange(protocol int, msg, flags uint16, body []byte) ([][]byte, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, err
	}
	defer unix.Close(s)
	// The kernel answers within the request; should it not, the check fails instead of waiting for ever.
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return nil, err
	}
	request, err := netlink.Message{
		Header: netlink.Header{
			Length:   uint32(unix.NLMSG_HDRLEN + len(body)),
			Type:     netlink.HeaderType(msg),
			Flags:    netlink.HeaderFlags(unix.NLM_F_REQUEST | flags),
			Sequence: 1,
		},
		Data: body,
	}.MarshalBinary()
	if err != nil {
		return nil, err
	}
	if err := unix.Sendto(s, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}

	var answers [][]byte
	for {
		block := make([]byte, 32<<10) // the most that a dump puts into one datagram
		n, _, err := unix.Recvfrom(s, block, 0)
		if err == unix.EINTR { // the runtime's signals end a call that has a timeout, see signal(7)
			continue
		}
		if err != nil {
			return nil, err
		}
		msgs, err := syscall.ParseNetlinkMessage(block[:n])
		if err != nil {
			return nil, fmt.Errorf("read the kernel's answer: %w", err)
		}
		for _, m := range msgs {
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR: // both begin with an errno, 0 or negative
				if len(m.Data) < 4 {
					return answers, nil
				}
				if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
					return nil, unix.Errno(-code)
				}
				return answers, nil
			default:
				answers = append(answers, m.Data)
			}
		}
	}
}

func parseTable(answers [][]byte) (entries, limit uint32, err error) {
	for _, a := range answers {
		ad, err := attributes(a)
		if err != nil {
			return 0, 0, err
		}
		for ad.Next() {
			switch ad.Type() {
			case attrEntries:
				entries = ad.Uint32()
			case attrMaxEntries:
				limit = ad.Uint32()
			}
		}
		if err := ad.Err(); err != nil {
			return 0, 0, fmt.Errorf("read conntrack's statistics: %w", err)
		}
	}
	return entries, limit, nil
}

// parseHooks returns one name for each hook; it is empty for a hook without.
func parseHooks(answers [][]byte) ([]string, error) {
	names := make([]string, len(answers))
	for i, a := range answers {
		ad, err := attributes(a)
		if err != nil {
			return nil, err
		}
		for ad.Next() {
			if ad.Type() == attrHookFunction {
				names[i] = ad.String()
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("read the list of hooks: %w", err)
		}
	}
	return names, nil
}

func parseFlowtables(answers [][]byte) ([]flowtable, error) {
	tables := make([]flowtable, len(answers))
	for i, a := range answers {
		ad, err := attributes(a)
		if err != nil {
			return nil, err
		}
		t := &tables[i]
		t.family = a[0]
		for ad.Next() {
			switch ad.Type() {
			case attrFlowtableTable:
				t.table = ad.String()
			case attrFlowtableName:
				t.name = ad.String()
			case attrFlowtableFlags:
				t.counter = ad.Uint32()&flowtableCounter != 0
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("read the list of flowtables: %w", err)
		}
	}
	return tables, nil
}

// parseHelpers returns the name of each helper that an nftables object assigns.
func parseHelpers(answers [][]byte) (names []string, err error) {
	for _, a := range answers {
		ad, err := attributes(a)
		if err != nil {
			return nil, err
		}
		for ad.Next() {
			if ad.Type() == attrObjectData {
				ad.Nested(func(nad *netlink.AttributeDecoder) error {
					for nad.Next() {
						if nad.Type() == attrHelperName {
							names = append(names, nad.String())
						}
					}
					return nil
				})
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("read the list of nftables objects: %w", err)
		}
	}
	return names, nil
}

// parseListeners returns the sockets that are members of one of conntrack's groups.
func parseListeners(answers [][]byte) (listeners []listener, err error) {
	for _, a := range answers {
		if len(a) < diagLen {
			return nil, fmt.Errorf("an answer of %d bytes", len(a))
		}
		ad, err := netlink.NewAttributeDecoder(a[diagLen:])
		if err != nil {
			return nil, err
		}
		l := listener{inode: binary.NativeEndian.Uint32(a[diagInode:]), told: true}
		for ad.Next() {
			switch ad.Type() {
			case attrDiagGroups: // unsigned longs, of which the first has all groups of conntrack
				switch b := ad.Bytes(); {
				case len(b) >= 8:
					l.groups = uint32(binary.NativeEndian.Uint64(b))
				case len(b) >= 4:
					l.groups = binary.NativeEndian.Uint32(b)
				}
			case attrDiagFlags:
				l.reliable = ad.Uint32()&diagBroadcastError != 0
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("read the list of netlink sockets: %w", err)
		}
		// A member of groups comes twice: among the bound ones and among the members.
		if l.groups&conntrackGroups != 0 && !slices.Contains(listeners, l) {
			listeners = append(listeners, l)
		}
	}
	return listeners, nil
}

// attributes reads what follows the nfgenmsg; netfilter's numbers are big-endian.
func attributes(answer []byte) (*netlink.AttributeDecoder, error) {
	if len(answer) < nfgenLen {
		return nil, fmt.Errorf("an answer of %d bytes", len(answer))
	}
	ad, err := netlink.NewAttributeDecoder(answer[nfgenLen:])
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = binary.BigEndian
	return ad, nil
}
