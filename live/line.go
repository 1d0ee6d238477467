package live

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/printable"
)

const (
	bold, reset         = "\x1b[1m", "\x1b[0m"
	green, yellow, cyan = "\x1b[32m", "\x1b[33m", "\x1b[36m"
	magenta, red        = "\x1b[35m", "\x1b[31m"
)

// TapName is what a tap is called in the gap records that say what it was too slow for.
const TapName = "tap"

// Printer writes records as lines for people. What the kernel and others have named comes as printable ASCII, whatever
// bytes it has. A column becomes as wide as the widest cell so far, so that IPv6 addresses keep to their columns too.
type Printer struct {
	Color bool
	Zone  *time.Location // nil: the machine's

	widths  []int // of the columns
	widened bool  // since Head was called
}

// columns are what a line consists of, each with its least width. A column with a negative width stands to the right.
var columns = []struct {
	head  string
	width int
}{
	{"time", 12}, {"event", 7}, {"proto", 6}, {"source", 21}, {"->", 2}, {"destination", 21}, {"seen as", 21}, {"sent to", 7},
	{"bytes out/in", -15}, {"why", 8}, {"helper", 0},
}

// The columns that show translations.
const (
	columnSeenAs = 6
	columnSentTo = 7
)

// HeadDue says that Head is to be printed: it was not yet, or a column has become wider since.
func (p *Printer) HeadDue() bool { return p.widened || p.widths == nil }

// Head returns the line above the columns.
func (p *Printer) Head() string {
	var cells [11]string
	for i, c := range columns {
		cells[i] = c.head
	}
	line := p.row(bold, &cells)
	p.widened = false
	return line
}

func (p *Printer) paint(color, text string) string {
	if !p.Color || color == "" {
		return text
	}
	return color + text + reset
}

// row lays out one line in a color; the translations have one of their own.
func (p *Printer) row(color string, cells *[11]string) string {
	if p.widths == nil {
		for _, c := range columns {
			p.widths = append(p.widths, max(c.width, -c.width))
		}
	}
	if !p.Color {
		color = ""
	}
	last := len(cells) - 1
	for last > 0 && cells[last] == "" {
		last--
	}
	b := append(make([]byte, 0, 256), color...)
	for i, text := range cells[:last+1] {
		if len(text) > p.widths[i] && i < len(columns)-1 {
			p.widths[i], p.widened = len(text), true
		}
		pad := p.widths[i] - len(text)
		if columns[i].width < 0 {
			b = appendBlanks(b, pad)
		}
		if p.Color && color != bold && text != "" && (i == columnSeenAs || i == columnSentTo) {
			b = append(b, yellow...)
			b = append(b, text...)
			b = append(b, reset...)
			b = append(b, color...)
		} else {
			b = append(b, text...)
		}
		if i == last {
			break
		}
		if columns[i].width > 0 {
			b = appendBlanks(b, pad)
		}
		b = append(b, ' ')
	}
	if color != "" {
		b = append(b, reset...)
	}
	return string(b)
}

func appendBlanks(b []byte, n int) []byte {
	for range n {
		b = append(b, ' ')
	}
	return b
}

// Line returns r as one line, without its end.
func (p *Printer) Line(r *flow.Record) string {
	ns, _ := r.Time()
	zone := p.Zone
	if zone == nil {
		zone = time.Local
	}
	when := time.Unix(0, ns).In(zone).Format("15:04:05.000")
	switch r.Event {
	case flow.EventGap:
		return p.gap(when, r)
	case flow.EventCheckpoint:
		return p.checkpoint(when, r)
	}
	ports := r.HasPorts()
	src, dst, seenAs, sentTo := end(r.Orig.SrcAddr(), r.Orig.SrcPort, ports), end(r.Orig.DstAddr(), r.Orig.DstPort, ports), "", ""
	if r.Has&flow.HasOrig == 0 {
		src, dst = "?", "?"
	}
	icmp := r.Orig.Proto.IsICMP()
	if icmp {
		src += " id " + strconv.Itoa(int(r.Orig.ICMPID()))
	}
	nat := r.NAT()
	if nat&flow.NATSrc != 0 {
		seenAs = end(r.Reply.DstAddr(), r.Reply.DstPort, ports)
		if icmp {
			seenAs += " id " + strconv.Itoa(int(r.Reply.ICMPID()))
		}
	}
	if nat&flow.NATDst != 0 {
		sentTo = end(r.Reply.SrcAddr(), r.Reply.SrcPort, ports)
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
		helper = printable.Word(x.Helper.String())
		if x.HasMaster {
			helper = strings.TrimPrefix(helper+", data of "+end(x.Master.SrcAddr(), x.Master.SrcPort, x.Master.Proto.HasPorts()), ", ")
		}
	}
	if r.Netns != 0 { // last, as helpers are rare
		helper = strings.TrimPrefix(helper+", in "+printable.Word(r.Netns.Info().Name), ", ")
	}
	return p.row(protoColors[r.Orig.Proto], &[11]string{when, shortEvents[int(r.Event)%len(shortEvents)], r.Orig.Proto.String(),
		src, "->", dst, seenAs, sentTo, bytes, why, helper})
}

var protoColors = map[flow.Proto]string{flow.TCP: green, flow.UDP: cyan, flow.ICMP: magenta, flow.ICMPv6: magenta}

// shortEvents are the names of the events that fit the column.
var shortEvents = [...]string{"", "new", "update", "destroy", "open", "exp_new", "exp_end", "gap", "chkpt"}

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
		text += " of " + printable.Word(g.Output)
	}
	if r.Netns != 0 {
		text += " in network namespace " + printable.Word(r.Netns.Info().Name)
	}
	return p.paint(red, text)
}

// checkpoint tells what an archive has put on record.
func (p *Printer) checkpoint(when string, r *flow.Record) string {
	var n flow.Note
	if r.Extra != nil && r.Extra.Note != nil {
		n = *r.Extra.Note
	}
	return p.paint(magenta, when+" checkpoint of "+printable.Word(n.Output)+": "+strconv.FormatUint(n.Lines, 10)+
		" lines of the catalog, the last one "+printable.Word(n.Hash))
}

// end writes an address, and its port if ports are known.
func end(a netip.Addr, port uint16, ports bool) string {
	if !ports {
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}
