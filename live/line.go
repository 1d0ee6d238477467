package live

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	bold, reset         = "\x1b[1m", "\x1b[0m"
	green, yellow, cyan = "\x1b[32m", "\x1b[33m", "\x1b[36m"
	magenta, red        = "\x1b[35m", "\x1b[31m"
)

// TapName is what a tap is called in the gap records that say what it was too slow for.
const TapName = "tap"

// Printer writes records as lines for people. What the kernel and others have named comes as printable ASCII, whatever
// bytes it has.
type Printer struct {
	Color bool
	Zone  *time.Location // nil: the machine's
}

// Head returns the line above the columns.
func (p *Printer) Head() string {
	line := p.row("time", "event", "proto", "source", "destination", "translated to", "bytes out/in", "why", "helper")
	return p.paint(bold, line)
}

func (p *Printer) paint(color, text string) string {
	if !p.Color || color == "" {
		return text
	}
	return color + text + reset
}

// row lays out one line; columns that hold more than they are wide push the rest to the right rather than be cut.
func (p *Printer) row(when, event, proto, src, dst, nat, bytes, why, helper string) string {
	b := make([]byte, 0, 160)
	for _, c := range []struct {
		text  string
		width int
	}{{when, 12}, {event, 7}, {proto, 6}, {src, 21}, {"->", 2}, {dst, 21}, {nat, 26}, {bytes, -15}, {why, 8}, {helper, 0}} {
		if c.width < 0 {
			b = append(b, strings.Repeat(" ", max(-c.width-len(c.text), 0))...)
		}
		b = append(b, c.text...)
		b = append(b, strings.Repeat(" ", max(c.width-len(c.text), 0)+1)...)
	}
	return strings.TrimRight(string(b), " ")
}

// Line returns r as one line, without its end.
func (p *Printer) Line(r *flow.Record) string {
	ns, _ := r.Time()
	zone := p.Zone
	if zone == nil {
		zone = time.Local
	}
	when := time.Unix(0, ns).In(zone).Format("15:04:05.000")
	if r.Event == flow.EventGap {
		return p.gap(when, r)
	}
	src, dst, nat := end(r.Orig.SrcAddr(), r.Orig.SrcPort, &r.Orig), end(r.Orig.DstAddr(), r.Orig.DstPort, &r.Orig), ""
	if r.Has&flow.HasOrig == 0 {
		src, dst = "?", "?"
	}
	if r.Orig.Proto.IsICMP() {
		src += " id " + strconv.Itoa(int(r.Orig.ICMPID()))
	}
	to := r.NAT()
	if to&flow.NATSrc != 0 {
		nat = "from " + end(r.Reply.DstAddr(), r.Reply.DstPort, &r.Reply)
		if r.Orig.Proto.IsICMP() {
			nat += " id " + strconv.Itoa(int(r.Reply.ICMPID()))
		}
	}
	if to&flow.NATDst != 0 {
		nat = strings.TrimSpace(nat + " to " + end(r.Reply.SrcAddr(), r.Reply.SrcPort, &r.Reply))
	}
	bytes := ""
	if r.Has&flow.HasCounters != 0 {
		bytes = strconv.FormatUint(r.OrigCounters.Bytes, 10) + "/" + strconv.FormatUint(r.ReplyCounters.Bytes, 10)
	}
	why, helper := r.EndReason().String(), ""
	if why == "" {
		why = r.StateName()
	}
	if x := r.Extra; x != nil {
		helper = Printable(x.Helper.String())
		if x.HasMaster {
			helper = strings.TrimPrefix(helper+", data of "+end(x.Master.SrcAddr(), x.Master.SrcPort, &x.Master), ", ")
		}
	}
	color := map[flow.Proto]string{flow.TCP: green, flow.UDP: cyan, flow.ICMP: magenta, flow.ICMPv6: magenta}[r.Orig.Proto]
	line := p.row(when, shortEvents[int(r.Event)%len(shortEvents)], r.Orig.Proto.String(), src, dst, nat, bytes, why, helper)
	if p.Color && nat != "" {
		line = strings.Replace(line, nat, yellow+nat+reset+color, 1)
	}
	return p.paint(color, line)
}

// shortEvents are the names of the events that fit the column.
var shortEvents = [...]string{"", "new", "update", "destroy", "open", "exp_new", "exp_end", "gap"}

// gap tells what is missing: in the log, or in what a tap that reads slowly shows.
func (p *Printer) gap(when string, r *flow.Record) string {
	var g flow.Gap
	if r.Extra != nil {
		g = r.Extra.Gap
	}
	lost := "records"
	if g.LostKnown {
		lost = strconv.FormatUint(g.Lost, 10) + " records"
	}
	if g.Output == TapName {
		return p.paint(yellow, when+" ... "+lost+" not shown")
	}
	text := when + " gap: " + lost + " are missing in the log, " + g.Cause.String()
	if g.Output != "" {
		text += " of " + Printable(g.Output)
	}
	return p.paint(red, text)
}

// end writes an address, and its port if the protocol has them.
func end(a netip.Addr, port uint16, t *flow.Tuple) string {
	if !t.Proto.HasPorts() {
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

// Printable returns foreign bytes as printable ASCII without blanks: a terminal obeys the others. They are written as
// in a Go or C string, \x1b.
func Printable(s string) string {
	const hex = "0123456789abcdef"
	var b []byte
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\\':
			b = append(b, `\\`...)
		case c <= ' ' || c >= 0x7f:
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return string(b)
}
