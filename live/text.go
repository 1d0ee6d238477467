package live

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/printable"
)

// Status writes v as one screen of text.
func (v *View) Status(color bool) string {
	p := Printer{Color: color}
	var b strings.Builder
	fmt.Fprintf(&b, "ctlogd %s on %s: %s\n", printable.Text(v.Version), printable.Text(v.Host), p.paint(stateColors[v.State], string(v.State)))
	fmt.Fprintf(&b, "up %s, pid %d, %s delivery\n", age(v.Uptime), v.PID, printable.Text(strings.ReplaceAll(v.Delivery, "_", " ")))
	for _, reason := range v.Reasons {
		fmt.Fprintf(&b, "  %s\n", p.paint(stateColors[v.State], printable.Text(reason)))
	}
	b.WriteByte('\n')
	for _, line := range append(v.facts(), v.counted()...) {
		fmt.Fprintf(&b, "%-7s %s\n", line[0], line[1])
	}
	b.WriteByte('\n')
	for i, row := range layout(v.outputs()) {
		if i == 0 {
			row = p.paint(bold, row)
		} else if v.Outputs[i-1].Failing {
			row = p.paint(red, row)
		}
		b.WriteString(row + "\n")
		if i > 0 && v.Outputs[i-1].Error != "" {
			o := &v.Outputs[i-1]
			fmt.Fprintf(&b, "  last error %s ago: %s\n", age(v.Time.Sub(o.ErrorAt).Seconds()), printable.Text(o.Error))
		}
	}
	return b.String()
}

var stateColors = map[monitor.State]string{monitor.StateOK: green, monitor.StateDegraded: yellow, monitor.StateDown: red}

// facts are what is said of the daemon besides its outputs, each a word and a sentence.
func (v *View) facts() [][2]string {
	events := uint64(0)
	for _, n := range v.Reader.Events {
		events += n
	}
	gaps, unknown := uint64(0), uint64(0)
	count := func(g []monitor.Gap) {
		for i := range g {
			gaps += g[i].Gaps
			unknown += g[i].Unknown
		}
	}
	count(v.Gaps)
	for i := range v.Outputs {
		count(v.Outputs[i].Gaps)
	}
	table := printable.Text(v.Kernel.Error)
	if v.Kernel.Error == "" {
		table = group(uint64(v.Kernel.Entries)) + " entries, no limit"
		if v.Kernel.Limit > 0 {
			table = fmt.Sprintf("%s of %s entries, %s", group(uint64(v.Kernel.Entries)), group(uint64(v.Kernel.Limit)),
				percent(fill(float64(v.Kernel.Entries), float64(v.Kernel.Limit))))
		}
	}
	if n := v.Kernel.Expectations; n > 0 && v.Kernel.Error == "" {
		table += fmt.Sprintf("; %s expectations", group(uint64(n)))
		if limit := v.Kernel.ExpectLimit; limit > 0 {
			table += fmt.Sprintf(" of %s, %s", group(uint64(limit)), percent(fill(float64(n), float64(limit))))
		}
	}
	lost := fmt.Sprintf("%s records in %s gaps since the start, %s/s", group(v.Lost()), group(gaps), rate(v.Rates.Lost))
	if unknown > 0 {
		lost += fmt.Sprintf("; of %s gaps it is not known how many", group(unknown))
	}
	facts := [][2]string{
		{"reader", fmt.Sprintf("%s events, %s/s%s, busy %s; handed over all that was reported before %s", group(events),
			rate(v.Rates.Events), filtered(v.Rates.Filtered), percent(v.Rates.Busy), v.Reader.ReadTo.Format("15:04:05.000"))},
		{"lost", lost},
		{"table", table},
	}
	if s := v.Subscribers; s != nil {
		facts = append(facts, [2]string{"names", subscribers(s)})
	}
	if v.Namespaces != nil {
		facts = append(facts, [2]string{"netns", v.namespaces()})
	}
	return append(facts, v.archives()...)
}

// subscribers says whose flows records name, and what the sources have.
func subscribers(s *monitor.Subscribers) string {
	text := fmt.Sprintf("%s of records", percent(fill(float64(s.Named), float64(s.Named+s.Unknown))))
	for _, o := range s.Sources {
		text += fmt.Sprintf("; %s: %s leases, %s old", printable.Word(o.Name), group(uint64(o.Leases)), age(o.Age))
		if o.Error != "" {
			text += ", " + printable.Text(o.Error)
		}
	}
	return text
}

// namespaces says which other network namespaces there are.
func (v *View) namespaces() string {
	n := v.Namespaces
	if !n.Heard {
		return "others are not heard: ctlogd lacks CAP_NET_BROADCAST"
	}
	text := fmt.Sprintf("%s by name, %s others with an id", group(uint64(len(n.Named))), group(uint64(n.Unnamed)))
	if closed := n.Closed(); closed > 0 {
		text += fmt.Sprintf("; %s cannot be entered", group(uint64(closed)))
	}
	if most := n.Fullest(); most != nil {
		text += fmt.Sprintf("; the fullest table is that of %s, %s entries", printable.Text(most.Name), group(uint64(most.Entries)))
		if v.Kernel.Limit > 0 {
			text += ", " + percent(fill(float64(most.Entries), float64(v.Kernel.Limit)))
		}
	}
	return text
}

// counters are what connection tracking counts of what is not usual, as conntrack -S calls it, and what each means.
var counters = []struct {
	name, means string
	of          func(*monitor.CPU) uint32
}{
	{"insert_failed", "new flows that were not entered into the table, as the same one was there or its chain was too long: their packet was lost", func(c *monitor.CPU) uint32 { return c.InsertFailed }},
	{"drop", "packets that were dropped: the table was full, or there was no memory", func(c *monitor.CPU) uint32 { return c.Drop }},
	{"early_drop", "flows that were removed early, to make room in a full table", func(c *monitor.CPU) uint32 { return c.EarlyDrop }},
	{"chain_toolong", "new flows that found too many in their part of the table: more nf_conntrack_buckets help", func(c *monitor.CPU) uint32 { return c.ChainTooLong }},
	{"invalid", "packets that belong to no connection; the rules decide what becomes of them", func(c *monitor.CPU) uint32 { return c.Invalid }},
	{"search_restart", "look-ups that began anew, as the table changed meanwhile: it costs a little time", func(c *monitor.CPU) uint32 { return c.SearchRestart }},
	{"clash_resolve", "flows that two packets began at the same time, and that were made one: harmless", func(c *monitor.CPU) uint32 { return c.ClashResolve }},
}

// counted returns those of the kernel's counters that are not 0, summed up over all CPUs since the boot.
func (v *View) counted() (facts [][2]string) {
	head := "kernel"
	for i := range counters {
		n := uint64(0)
		for j := range v.Kernel.CPUs {
			n += uint64(counters[i].of(&v.Kernel.CPUs[j]))
		}
		if n > 0 {
			facts = append(facts, [2]string{head, fmt.Sprintf("%s %s: %s", counters[i].name, group(n), counters[i].means)})
			head = ""
		}
	}
	return facts
}

// filtered says that a filter is why there are fewer records than what comes to it.
func filtered(perSecond float64) string {
	if perSecond == 0 {
		return ""
	}
	return ", " + rate(perSecond) + "/s filtered out"
}

// lag says how late an output writes. One that fails, or has written nothing for a minute, is as late as what waits.
func (v *View) lag(o *monitor.Output) string {
	p99, wrote := v.Rates.LagP99[o.Name]
	switch {
	case o.OldestAge > 0 && (!wrote || o.Failing && o.OldestAge > p99):
		return ">" + age(o.OldestAge)
	case !wrote:
		return "-"
	}
	return age(p99)
}

// outputs returns the table of outputs, its head first.
func (v *View) outputs() [][]string {
	rows := [][]string{{"output", ">queue", ">waits", ">lag p99", ">records/s", ">records", ">lost", "state"}}
	for i := range v.Outputs {
		o := &v.Outputs[i]
		state := "ok"
		if o.Failing {
			state = "failing for " + age(v.Time.Sub(o.Since).Seconds())
		}
		if s := o.Spool; s != nil && s.Records > 0 {
			state += ", " + group(s.Records) + " on disk"
		}
		state += filtered(v.Rates.OutputsFiltered[o.Name])
		if !o.KeptSince.IsZero() {
			state += ", reaches back " + age(v.Time.Sub(o.KeptSince).Seconds())
		}
		if a, ok := archiveOf(o); ok {
			state += a.uploads()
		}
		lost := uint64(0)
		for _, g := range o.Gaps {
			lost += g.Lost
		}
		rows = append(rows, []string{printable.Text(o.Name), percent(fill(float64(o.Used), float64(o.Max))), age(o.OldestAge),
			v.lag(o), rate(v.Rates.Outputs[o.Name]), group(o.Written), group(lost), state})
	}
	return rows
}

func portsUsed(n *int) string {
	if n == nil {
		return "?"
	}
	return fmt.Sprintf("%s (%s)", group(uint64(*n)), percent(float64(*n)/natPorts))
}

// natPorts are how many ports translation has to choose from for each address and protocol, unless a rule says
// otherwise: 1024 to 65535.
const natPorts = 65536 - 1024

// layout puts rows into columns; those whose head begins with > stand to the right.
func layout(rows [][]string) (lines []string) {
	width := make([]int, len(rows[0]))
	for i, row := range rows {
		for j, cell := range row {
			if i == 0 {
				cell = strings.TrimPrefix(cell, ">")
			}
			width[j] = max(width[j], utf8.RuneCountInString(cell))
		}
	}
	for i, row := range rows {
		var b strings.Builder
		for j, cell := range row {
			if i == 0 {
				cell = strings.TrimPrefix(cell, ">")
			}
			pad := strings.Repeat(" ", width[j]-utf8.RuneCountInString(cell))
			if strings.HasPrefix(rows[0][j], ">") {
				cell = pad + cell
			} else {
				cell += pad
			}
			b.WriteString(cell)
			b.WriteString("  ")
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

// group writes a number with its thousands apart.
func group(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func rate(r float64) string {
	if r > 0 && r < 10 {
		return strconv.FormatFloat(r, 'f', 1, 64)
	}
	return group(uint64(r + 0.5))
}

func percent(part float64) string {
	if part > 0 && part < 0.0005 {
		return "<0.1%"
	}
	if part > 0 && part < 0.0995 {
		return strconv.FormatFloat(100*part, 'f', 1, 64) + "%"
	}
	return strconv.FormatFloat(100*part, 'f', 0, 64) + "%"
}

func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + " " + units[i:i+1] + "iB"
}

// age writes seconds as people say them.
func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d <= 0:
		return "0s"
	case d < time.Second:
		return max(d.Round(time.Millisecond), time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}
