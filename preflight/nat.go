package preflight

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// translation is a rule that translates sources.
type translation struct {
	family       uint8
	table, chain string
	ports        bool // into a range of ports of its own
	one          bool // of one source, or each into one of its own
	unknown      bool // a map says into which address
}

func (t *translation) String() string {
	return fmt.Sprintf("%s %s %s", families[t.family], t.table, t.chain)
}

// shared tells, where outputs leave the destinations out, whether several sources become one address with the same ports.
// The kernel gives one port to two of them at the same time, if they talk to different destinations: it keeps only the
// reply's tuple unique.
func (h host) shared(outputs []string) Result {
	r := Result{Name: "shared addresses", Status: Pass}
	rules, err := h.kernel.translations()
	if err != nil {
		return untold(r, err, "nftables is not there, and no rule of it; what iptables' rules translate cannot be told")
	}
	var chains []string
	unknown := 0
	for i := range rules {
		switch t := &rules[i]; {
		case t.ports || t.one:
		case t.unknown:
			unknown++
		default:
			chains = append(chains, t.String())
		}
	}
	slices.Sort(chains)
	n := len(chains)
	leave := strings.Join(outputs, ", ")
	switch {
	case n > 0:
		r.Status = Warn
		r.Detail = fmt.Sprintf("%d rules in %s translate several sources into one address, without ports of their own, and %s leaves the destinations out: "+
			"two subscribers may have one public address and port at the same time, and no record tells which of them it was",
			n, strings.Join(slices.Compact(chains), ", "), leave)
		r.Remedy = "take dst_ip and dst_port out of fields.drop, or give each subscriber ports of its own: snat to ADDRESS:FROM-TO"
	case unknown > 0:
		r.Detail = fmt.Sprintf("%s leaves the destinations out; %d rules translate by a map: see that each subscriber has an address or ports of its own there", leave, unknown)
	default:
		r.Detail = leave + " leaves the destinations out, and no rule of nftables translates several sources into one address; what rules of iptables-legacy do cannot be told"
	}
	return r
}

// Rules of nftables, include/uapi/linux/netfilter/nf_tables.h.
const (
	msgGetRules = 7 // NFT_MSG_GETRULE

	attrRuleTable = 1 // NFTA_RULE_TABLE
	attrRuleChain = 2 // NFTA_RULE_CHAIN
	attrRuleExprs = 4 // NFTA_RULE_EXPRESSIONS
	attrExprName  = 1 // NFTA_EXPR_NAME
	attrExprData  = 2 // NFTA_EXPR_DATA

	attrNATType    = 1 // NFTA_NAT_TYPE
	attrNATAddrMin = 3 // NFTA_NAT_REG_ADDR_MIN
	attrNATPortMin = 5 // NFTA_NAT_REG_PROTO_MIN
	attrNATFlags   = 7 // NFTA_NAT_FLAGS
	natSource      = 0 // NFT_NAT_SNAT

	attrMasqPortMin = 2 // NFTA_MASQ_REG_PROTO_MIN

	attrLookupDst = 3 // NFTA_LOOKUP_DREG

	attrPayloadBase   = 2 // NFTA_PAYLOAD_BASE
	attrPayloadOffset = 3 // NFTA_PAYLOAD_OFFSET
	attrPayloadLen    = 4 // NFTA_PAYLOAD_LEN
	payloadNetwork    = 1 // NFT_PAYLOAD_NETWORK_HEADER

	attrCmpOp = 2 // NFTA_CMP_OP
	cmpEqual  = 0 // NFT_CMP_EQ

	attrTargetName = 1 // NFTA_TARGET_NAME
	attrTargetRev  = 2 // NFTA_TARGET_REV
	attrTargetInfo = 3 // NFTA_TARGET_INFO

	rangePorts  = 1 << 1 // NF_NAT_RANGE_PROTO_SPECIFIED
	rangeNetmap = 1 << 6 // NF_NAT_RANGE_NETMAP
)

func (linux) translations() ([]translation, error) {
	answers, err := ask(subsysNFTables, msgGetRules, unix.NLM_F_DUMP, unix.AF_UNSPEC, nil)
	if err != nil {
		return nil, err
	}
	return parseTranslations(answers)
}

// parseTranslations returns the rules that translate sources.
func parseTranslations(answers [][]byte) (all []translation, err error) {
	for _, a := range answers {
		ad, err := attributes(a)
		if err != nil {
			return nil, err
		}
		t := translation{family: a[0]}
		s := ruleState{t: &t, mapped: map[uint32]bool{}}
		for ad.Next() {
			switch ad.Type() {
			case attrRuleTable:
				t.table = ad.String()
			case attrRuleChain:
				t.chain = ad.String()
			case attrRuleExprs:
				ad.Nested(s.expressions)
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("read the rules of nftables: %w", err)
		}
		if s.translates {
			all = append(all, t)
		}
	}
	return all, nil
}

// ruleState is what the expressions of a rule have said so far.
type ruleState struct {
	t          *translation
	translates bool
	source     bool            // the last thing loaded is a whole source address
	mapped     map[uint32]bool // registers that a map has filled
}

// expressions reads the list of a rule's expressions.
func (s *ruleState) expressions(list *netlink.AttributeDecoder) error {
	for list.Next() {
		list.Nested(func(e *netlink.AttributeDecoder) error {
			name := ""
			for e.Next() {
				switch e.Type() {
				case attrExprName:
					name = e.String()
				case attrExprData:
					e.Nested(func(d *netlink.AttributeDecoder) error {
						s.expression(name, d)
						return nil
					})
				}
			}
			return nil
		})
	}
	return nil
}

// expression takes one expression into account.
func (s *ruleState) expression(name string, d *netlink.AttributeDecoder) {
	number, text, info := map[uint16]uint32{}, "", []byte(nil)
	for d.Next() {
		switch data := d.Bytes(); {
		case len(data) == 4:
			number[d.Type()] = binary.BigEndian.Uint32(data)
		case name == "target" && d.Type() == attrTargetName:
			text = strings.TrimRight(string(data), "\x00")
		case name == "target" && d.Type() == attrTargetInfo:
			info = data
		default:
			number[d.Type()] = 0 // that it is there
		}
	}
	if name == "target" && number[attrTargetName] != 0 { // a name of four bytes: "SNAT" without its NUL
		text = string(binary.BigEndian.AppendUint32(nil, number[attrTargetName]))
	}
	_, hasPorts := number[attrNATPortMin]
	switch name {
	case "payload":
		offset, size := number[attrPayloadOffset], number[attrPayloadLen]
		s.source = number[attrPayloadBase] == payloadNetwork && (offset == 12 && size == 4 || offset == 8 && size == 16)
	case "cmp":
		s.t.one = s.t.one || s.source && number[attrCmpOp] == cmpEqual
		s.source = false
	case "bitwise":
		s.source = false
	case "lookup":
		if dst, ok := number[attrLookupDst]; ok {
			s.mapped[dst] = true
		}
		s.source = false
	case "nat":
		if number[attrNATType] != natSource {
			return
		}
		s.translates = true
		s.t.ports = hasPorts
		s.t.one = s.t.one || number[attrNATFlags]&rangeNetmap != 0
		s.t.unknown = s.mapped[number[attrNATAddrMin]]
	case "masq":
		s.translates = true
		_, s.t.ports = number[attrMasqPortMin]
	case "target": // of iptables-nft
		if text != "SNAT" && text != "MASQUERADE" {
			return
		}
		s.translates = true
		// A list of one range and its flags (nf_nat_ipv4_multi_range_compat), or flags first (nf_nat_range).
		at := 0
		if number[attrTargetRev] == 0 {
			at = 4
		}
		s.t.ports = len(info) >= at+4 && binary.NativeEndian.Uint32(info[at:])&rangePorts != 0
	}
}
