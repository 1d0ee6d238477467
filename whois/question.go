package whois

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/filter"
)

// Question asks who had an address and a port at a time, what a subscriber had, or who talked to a destination. What is
// set has to hold.
type Question struct {
	Public End          // as the far side saw it: source after translation, or a forwarded port
	Person string       // subscriber, by id or by name, as records have it
	Src    netip.Prefix // original source; a whole address, or a prefix
	SrcEnd End          // port of it
	Dst    End          // the far side

	Proto    flow.Proto
	HasProto bool

	Netns     string // network namespace of the holder, OwnNetns for ctlogd's; "": whichever
	CTZone    uint16 // conntrack zone of the holder; 0 is where there is none
	HasCTZone bool

	From, To int64 // ns since 1970, both included

	At   string // as it was written
	Zone string // that At was read in
	Note string // Zone was assumed
	Case string

	Remark string // what was made of it, a sentence; "": nothing
}

// OwnNetns stands for the network namespace that ctlogd runs in, as in filters.
const OwnNetns = filter.OwnNetns

// End is an address and perhaps a port. ICMP's id and GRE's key stand in for a port.
type End struct {
	Addr    netip.Addr
	Port    uint16
	HasPort bool
}

func (e End) String() string {
	switch {
	case !e.Addr.IsValid() && e.HasPort:
		return "port " + strconv.Itoa(int(e.Port))
	case !e.Addr.IsValid():
		return ""
	case e.HasPort:
		return netip.AddrPortFrom(e.Addr, e.Port).String()
	}
	return e.Addr.String()
}

// ParseEnd reads an address with or without a port: 203.0.113.5:40000, [2001:db8::5]:40000, 2001:db8::5.
func ParseEnd(s string) (e End, err error) {
	s = strings.TrimSpace(s)
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		e.Addr = a
	} else if p, err := netip.ParseAddrPort(s); err == nil {
		e.Addr, e.Port, e.HasPort = p.Addr(), p.Port(), true
	} else {
		host, port, ok := cutPort(s)
		_, addrErr := netip.ParseAddr(strings.Trim(host, "[]"))
		if ok && addrErr == nil {
			if n, err := strconv.ParseUint(port, 10, 64); err == nil && n > 65535 {
				return e, fmt.Errorf("%s: port %s is out of range; ports go from 1 to 65535", s, port)
			}
			return e, fmt.Errorf("%s: %q is no port; write a number from 1 to 65535", s, port)
		}
		return e, fmt.Errorf("%q is no address; write one such as 203.0.113.5:40000 or [2001:db8::5]:40000", s)
	}
	if e.Addr.Zone() != "" {
		return e, fmt.Errorf("%s: leave out the zone %%%s", s, e.Addr.Zone())
	}
	e.Addr = e.Addr.Unmap()
	if e.HasPort && e.Port == 0 {
		return e, fmt.Errorf("%s: nobody has port 0; leave the port out to ask for all of the address, or look it up in the mail again", s)
	}
	return e, nil
}

func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// ParseSource reads what --src takes: an address, one with a port, or a prefix.
func ParseSource(s string) (p netip.Prefix, e End, err error) {
	if strings.Contains(s, "/") {
		p, err = netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return p, e, fmt.Errorf("%q is no prefix; write one such as 2001:db8:1::/56", s)
		}
		return p.Masked(), e, nil
	}
	if e, err = ParseEnd(s); err != nil {
		return p, e, err
	}
	return netip.PrefixFrom(e.Addr, e.Addr.BitLen()), e, nil
}

// SetTime sets the span that is asked for: the moment, and so much before and after it.
func (q *Question) SetTime(m Moment, within time.Duration) {
	q.From, q.To = m.From-int64(within), m.To+int64(within)
	q.Zone = m.Zone
	q.Note = ""
	if m.Assumed {
		q.Note = "no zone was given, " + m.Zone + " was assumed"
	}
}

// Validate says why the question cannot be answered. Warnings stand in the answer.
func (q *Question) Validate(now time.Time) error {
	switch {
	case !q.Public.Addr.IsValid() && !q.Src.IsValid() && !q.Dst.Addr.IsValid() && q.Person == "":
		return errors.New("nothing to look for: give an address and port, --src, --dst or --subscriber")
	case q.Person != "" && (q.Public.Addr.IsValid() || q.Src.IsValid()):
		return errors.New("an address and --subscriber are two questions; ask one at a time")
	case q.Public.Addr.IsValid() && q.Src.IsValid():
		return errors.New("an address and --src are two questions; ask one at a time")
	case q.From == 0 && q.To == 0:
		return errors.New("no time: give --at TIME, or --from TIME and --to TIME; an address without a time has no holder")
	case q.From > q.To:
		return fmt.Errorf("--from is after --to: %s and %s", short(q.From), short(q.To))
	case q.From > now.UnixNano():
		return fmt.Errorf("%s lies in the future (it is %s now); look at the zone of the time", short(q.From), short(now.UnixNano()))
	}
	return nil
}

// warnings says what is doubtful about the question.
func (q *Question) warnings() (w []string) {
	if q.Note != "" {
		w = append(w, "Time: "+q.Note+"; "+q.span()+" was looked at.")
	}
	if q.Remark != "" {
		w = append(w, q.Remark)
	}
	a := q.Public.Addr
	switch {
	case !a.IsValid():
	case shared.Contains(a):
		w = append(w, fmt.Sprintf("%s is an address between a provider and its customers (RFC 6598), which the far side does not see: "+
			"who had it inside, --src %s tells.", a, a))
	case private(a):
		w = append(w, fmt.Sprintf("%s is a private address, which the far side does not see: who had it inside, --src %s tells.", a, a))
	case a.IsMulticast() || a.IsUnspecified():
		w = append(w, fmt.Sprintf("Nobody has the address %s for their own.", a))
	}
	switch {
	case q.Person != "":
		w = append(w, "Subscribers have no index: all flows of that time were looked at. Flows of which no subscriber was known are none of theirs.")
	case q.Src.IsValid() && !q.Src.IsSingleIP():
		w = append(w, "A prefix has no index: all flows of that time were looked at.")
	}
	return w
}

var shared = netip.MustParsePrefix("100.64.0.0/10")

// private reports whether an address means something within one network alone.
func private(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || shared.Contains(a)
}

// span writes the time that is asked for.
func (q *Question) span() string {
	if q.From == q.To {
		return short(q.From)
	}
	if q.To-q.From < int64(time.Second) && q.From%1e9 == 0 {
		return short(q.From) + " (that second)"
	}
	if q.To-q.From == int64(time.Minute)-1 && q.From%int64(time.Minute) == 0 {
		return short(q.From) + " (that minute)"
	}
	return strings.TrimSuffix(short(q.From), " UTC") + " to " + short(q.To)
}

// words says the question in a sentence.
func (q *Question) words() string {
	proto := ""
	if q.HasProto {
		proto = " (" + q.Proto.String() + ")"
	}
	dst := ""
	if q.Dst.Addr.IsValid() {
		dst = " in talking to " + q.Dst.String()
	}
	dst += q.place()
	switch {
	case q.Public.Addr.IsValid():
		return fmt.Sprintf("Who had %s%s%s at %s?", q.Public, proto, dst, q.span())
	case q.Src.IsValid():
		src := q.SrcEnd.String()
		if src == "" {
			src = q.Src.String()
		}
		return fmt.Sprintf("What did %s have%s%s at %s?", src, proto, dst, q.span())
	case q.Person != "":
		return fmt.Sprintf("What did the subscriber %s have%s%s at %s?", q.Person, proto, dst, q.span())
	}
	return fmt.Sprintf("Who talked to %s%s%s at %s?", q.Dst, proto, q.place(), q.span())
}

// place says where the holder has to have been.
func (q *Question) place() (text string) {
	switch q.Netns {
	case "":
	case OwnNetns:
		text = " in ctlogd's own namespace"
	default:
		text = " in namespace " + q.Netns
	}
	if q.HasCTZone {
		text += fmt.Sprintf(" in conntrack zone %d", q.CTZone)
	}
	return text
}

// there reports whether a holder was where the question asks.
func (q *Question) there(h *Holder) bool {
	zone, _ := h.ctZone()
	return (q.Netns == "" || q.Netns == h.netns()) && (!q.HasCTZone || q.CTZone == zone)
}

// query is the query of rows that may be alive at the time asked for, or have been since.
func (q *Question) query(since int64) archive.Query {
	return archive.Query{From: since, To: q.To, Proto: q.Proto, HasProto: q.HasProto}
}

// queries are what the archive is asked for. since is the time from which rows matter.
func (q *Question) queries(since int64) (all []archive.Query) {
	base := q.query(since)
	switch {
	case q.Public.Addr.IsValid():
		p := base
		p.Public, p.Port, p.HasPort = q.Public.Addr, q.Public.Port, q.Public.HasPort
		p.Where = func(r *flow.Record) bool { return q.far(r, false) }
		f := base // what came in at it
		f.Dst, f.DstPort, f.HasDstPort = q.Public.Addr, q.Public.Port, q.Public.HasPort
		f.Reached = true
		f.Where = func(r *flow.Record) bool { return q.reached(r) && q.far(r, true) }
		return append(all, p, f)
	case q.Src.IsValid():
		if q.Src.IsSingleIP() {
			base.Src = q.Src.Addr()
		}
		base.SrcPort, base.HasSrcPort = q.SrcEnd.Port, q.SrcEnd.HasPort
		base.Where = func(r *flow.Record) bool {
			return r.Has&flow.HasOrig != 0 && q.Src.Contains(r.Orig.SrcAddr()) && q.far(r, false)
		}
	case q.Person != "":
		base.Where = func(r *flow.Record) bool { return q.theirs(r) && q.far(r, r.Subscriber().Dst) }
	default:
		base.Dst, base.DstPort, base.HasDstPort = q.Dst.Addr, q.Dst.Port, q.Dst.HasPort
	}
	return append(all, base)
}

// theirs reports whether the flow is of the subscriber that is asked for.
func (q *Question) theirs(r *flow.Record) bool {
	s := r.Subscriber()
	return s != nil && (s.ID == q.Person || s.Next == q.Person || s.Name == q.Person)
}

// reached reports whether the flow came in at the address and port that are asked for: to a port that is forwarded, or to
// an address that is not translated, whose machine has answered.
func (q *Question) reached(r *flow.Record) bool {
	if r.Orig.DstAddr() != q.Public.Addr || q.Public.HasPort && r.Orig.DstPort != q.Public.Port || r.Orig.Proto.IsICMP() {
		return false
	}
	return r.NAT()&flow.NATDst != 0 || r.NAT() == 0 && answered(r)
}

// answered reports whether the far side of a flow has answered, as far as that is on record.
func answered(r *flow.Record) bool {
	switch {
	case r.Has&flow.HasCounters != 0:
		return r.ReplyCounters.Packets > 0
	case r.Has&flow.HasStatus != 0:
		return r.Status&flow.StatusSeenReply != 0
	}
	return true
}

// far reports whether the far side is the one that is asked for. What is not on record may be.
func (q *Question) far(r *flow.Record, incoming bool) bool {
	if !q.Dst.Addr.IsValid() {
		return true
	}
	match := func(a flow.Addr, addr netip.Addr, port uint16) bool {
		if a == (flow.Addr{}) {
			return true
		}
		return addr == q.Dst.Addr && (!q.Dst.HasPort || port == q.Dst.Port || port == 0)
	}
	if incoming {
		return match(r.Orig.Src, r.Orig.SrcAddr(), r.Orig.SrcPort)
	}
	return match(r.Orig.Dst, r.Orig.DstAddr(), r.Orig.DstPort) ||
		r.Has&flow.HasReply != 0 && match(r.Reply.Src, r.Reply.SrcAddr(), r.Reply.SrcPort)
}

// matches reports whether a record is asked for, time aside.
func (q *Question) matches(r *flow.Record) bool {
	for _, a := range q.queries(0) {
		a.From, a.To = 0, 0
		if a.Matches(r) {
			return true
		}
	}
	return false
}
