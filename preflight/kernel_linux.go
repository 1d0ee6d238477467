package preflight

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Netfilter's netlink, include/uapi/linux/netfilter/nfnetlink*.h.
const (
	subsysCtnetlink = 1  // NFNL_SUBSYS_CTNETLINK
	subsysHook      = 12 // NFNL_SUBSYS_HOOK

	msgGetStats = 5 // IPCTNL_MSG_CT_GET_STATS
	msgGetHooks = 0 // NFNL_MSG_HOOK_GET

	attrEntries    = 1 // CTA_STATS_GLOBAL_ENTRIES
	attrMaxEntries = 2 // CTA_STATS_GLOBAL_MAX_ENTRIES

	attrHookNumber   = 1 // NFNLA_HOOK_HOOKNUM
	attrHookFunction = 4 // NFNLA_HOOK_FUNCTION_NAME

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

func (linux) forceBuffer(bytes int) error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes)
}

// ask sends one request, a dump or one that asks for an acknowledgement, and returns the bodies of the answers, from
// the nfgenmsg on.
//
// It has a plain socket instead of a netlink.Conn, which waits for an end that ctnetlink never sends: its answer to
// GET_STATS is flagged as a part of several (NLM_F_MULTI), and nothing but the acknowledgement follows.
func ask(subsys, msg uint16, flags uint16, family uint8, attrs []byte) ([][]byte, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
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
			Length:   uint32(unix.NLMSG_HDRLEN + nfgenLen + len(attrs)),
			Type:     netlink.HeaderType(subsys<<8 | msg),
			Flags:    netlink.HeaderFlags(unix.NLM_F_REQUEST | flags),
			Sequence: 1,
		},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...),
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
