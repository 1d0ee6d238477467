//go:build !small

package live

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gdamore/tcell/v2"

	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/printable"
)

// topEvery is how often the terminal view asks.
const topEvery = time.Second

// lists are those that top shows, in the order of their keys.
var topLists = []struct {
	name, what string
	list       func(*Talkers) *List
}{
	{"sources", "source", func(t *Talkers) *List { return &t.Sources }},
	{"public addresses", "public address", func(t *Talkers) *List { return &t.Public }},
	{"destinations", "destination", func(t *Talkers) *List { return &t.Destinations }},
	{"ports", "port", func(t *Talkers) *List { return &t.Ports }},
	{"subscribers", "subscriber", func(t *Talkers) *List { return &t.Subscribers }},
}

// The lists that have other columns: ports in use, and no flows of the table, of which nobody says whose they are.
const (
	publicList      = 1
	subscribersList = 4
)

// rows returns a table of a list, its head first.
func (l *List) rows(list, max int) [][]string {
	columns := func(what, flows, bytes, now, tcp, udp string) []string {
		row := []string{what, flows, bytes}
		if list != subscribersList {
			row = append(row, now)
		}
		if list == publicList {
			row = append(row, tcp, udp)
		}
		return row
	}
	rows := [][]string{columns(topLists[list].what, ">flows/min", ">bytes", ">flows now", ">tcp ports", ">udp ports")}
	for _, t := range l.Top[:min(len(l.Top), max)] {
		rows = append(rows, columns(printable.Text(t.Key), group(t.Flows), size(t.Bytes), group(t.Now), portsUsed(t.TCP), portsUsed(t.UDP)))
	}
	return rows
}

// topOrders are by what top sorts.
var topOrders = []struct {
	key  rune
	name string
	by   func(*Talker) uint64
}{
	{'f', "flows/min", func(t *Talker) uint64 { return t.Flows }},
	{'b', "bytes", func(t *Talker) uint64 { return t.Bytes }},
	{'n', "flows now", func(t *Talker) uint64 { return t.Now }},
}

// Top is the terminal view.
type Top struct {
	screen tcell.Screen
	view   *View
	err    error // why there is none any more
	list   int
	order  int
}

// NewTop returns a view on a screen, which must be initialized and is the caller's to end.
func NewTop(screen tcell.Screen) *Top { return &Top{screen: screen} }

// update is what asking has brought.
type update struct {
	tcell.EventTime
	view *View
	err  error
}

// Run shows what ask returns, every second, until ctx ends or a key asks for it.
func (t *Top) Run(ctx context.Context, ask func(context.Context) (*View, error)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, quit := make(chan tcell.Event), make(chan struct{})
	defer close(quit)
	go t.screen.ChannelEvents(events, quit)
	updates := make(chan *update)
	go func() {
		for ctx.Err() == nil {
			v, err := ask(ctx)
			select {
			case updates <- &update{view: v, err: err}:
			case <-ctx.Done():
				return
			}
			select {
			case <-time.After(topEvery):
			case <-ctx.Done():
			}
		}
	}()
	for {
		t.draw()
		select {
		case <-ctx.Done():
			return
		case u := <-updates:
			if t.err = u.err; u.err == nil {
				t.view = u.view
			}
		case e, ok := <-events:
			if !ok || t.handle(e) {
				return
			}
		}
	}
}

// handle does what an event asks for; done says that it is to end.
func (t *Top) handle(e tcell.Event) (done bool) {
	switch e := e.(type) {
	case *tcell.EventResize:
		t.screen.Sync()
	case *tcell.EventKey:
		switch key := e.Key(); {
		case key == tcell.KeyCtrlC, key == tcell.KeyEscape:
			return true
		case key == tcell.KeyTab, key == tcell.KeyRight:
			t.list = (t.list + 1) % len(topLists)
		case key == tcell.KeyBacktab, key == tcell.KeyLeft:
			t.list = (t.list + len(topLists) - 1) % len(topLists)
		case key == tcell.KeyCtrlL:
			t.screen.Sync()
		case key == tcell.KeyRune:
			return t.rune(e.Rune())
		}
	}
	return false
}

func (t *Top) rune(r rune) (done bool) {
	if r == 'q' {
		return true
	}
	if i := int(r - '1'); i >= 0 && i < len(topLists) {
		t.list = i
	}
	for i := range topOrders {
		if topOrders[i].key == r {
			t.order = i
		}
	}
	return false
}

var (
	plain   = tcell.StyleDefault
	strong  = plain.Bold(true)
	faint   = plain.Dim(true)
	reverse = plain.Reverse(true)
	styles  = map[monitor.State]tcell.Style{
		monitor.StateOK:       strong.Foreground(tcell.ColorGreen),
		monitor.StateDegraded: strong.Foreground(tcell.ColorYellow),
		monitor.StateDown:     strong.Foreground(tcell.ColorRed),
	}
)

// draw puts all on the screen. What does not fit is left out from the end.
func (t *Top) draw() {
	s := t.screen
	s.Clear()
	defer s.Show()
	width, height := s.Size()
	y := 0
	put := func(x int, text string, style tcell.Style) {
		if y < height && x < width {
			s.PutStrStyled(x, y, text, style)
		}
	}
	line := func(text string, style tcell.Style) {
		put(0, text, style)
		y++
	}
	v := t.view
	switch {
	case v == nil && t.err == nil:
		line("asking ...", plain)
		return
	case v == nil:
		line(printable.Text(t.err.Error()), styles[monitor.StateDown])
		y = height - 1
		put(0, "q quits", faint)
		return
	}

	head := fmt.Sprintf("ctlogd %s on %s, up %s  ", printable.Text(v.Version), printable.Text(v.Host), age(v.Uptime))
	put(0, head, strong)
	put(len([]rune(head)), string(v.State), styles[v.State])
	clock := v.Time.Local().Format("15:04:05")
	if x := width - len(clock); x > len([]rune(head))+12 {
		put(x, clock, faint)
	}
	y++
	if t.err != nil {
		line(printable.Text(t.err.Error()), styles[monitor.StateDown])
	}
	rows := t.budget(height - y)
	for _, reason := range v.Reasons[:rows.reasons] {
		line("  "+printable.Text(reason), styles[v.State])
	}
	for _, fact := range v.facts()[:rows.facts] {
		put(0, fact[0], faint)
		put(8, fact[1], plain)
		y++
	}
	if rows.blanks {
		y++
	}
	table := layout(v.outputs())
	line(table[0], faint)
	for _, i := range failingFirst(v.Outputs, rows.outputs) {
		style := plain
		if v.Outputs[i].Failing {
			style = styles[monitor.StateDown]
		}
		line(table[i+1], style)
	}
	if rows.blanks {
		y++
	}

	x := 0
	for i, l := range topLists {
		style := plain
		if i == t.list {
			style = reverse
		}
		label := fmt.Sprintf(" %d %s ", i+1, l.name)
		put(x, label, style)
		x += len(label) + 1
	}
	y++
	keys := height - 1
	if rows.blanks {
		keys--
	}
	t.drawTalkers(line, keys-y)
	y = height - 1
	put(0, "1-5, tab: list   f b n: by flows, bytes, flows now   q: quit", faint)
}

// topRows are how many lines each part of the view gets.
type topRows struct {
	reasons, facts, outputs int
	blanks                  bool // between the parts
}

// budget shares out the lines below the head. Where they are few, something of each part stays, the talkers at least
// with the first of them.
func (t *Top) budget(lines int) topRows {
	v := t.view
	r := topRows{reasons: min(len(v.Reasons), 3), facts: len(v.facts()), outputs: len(v.Outputs), blanks: true}
	const blanks, heads, talkers = 3, 3, 3 // heads: of the outputs, of the lists, and the keys
	over := r.reasons + r.facts + r.outputs + heads + talkers + blanks - lines
	if over > 0 {
		r.blanks = false
		over -= blanks
	}
	for _, cut := range []struct {
		n     *int
		least int
	}{{&r.reasons, 1}, {&r.outputs, 2}, {&r.facts, 1}, {&r.outputs, 1}, {&r.facts, 0}, {&r.reasons, 0}, {&r.outputs, 0}} {
		d := max(min(over, *cut.n-cut.least), 0)
		*cut.n -= d
		over -= d
	}
	return r
}

// failingFirst returns the indexes of at most n outputs, of those that fail first of all, in their order.
func failingFirst(outputs []monitor.Output, n int) (which []int) {
	for _, failing := range []bool{true, false} {
		for i := range outputs {
			if outputs[i].Failing == failing && len(which) < n {
				which = append(which, i)
			}
		}
	}
	slices.Sort(which)
	return which
}

// drawTalkers draws the list that is chosen, in no more than rows lines.
func (t *Top) drawTalkers(line func(string, tcell.Style), rows int) {
	talkers := t.view.Talkers
	if talkers == nil || rows < 3 {
		return
	}
	l := *topLists[t.list].list(talkers)
	order := topOrders[t.order]
	l.Top = slices.Clone(l.Top)
	slices.SortStableFunc(l.Top, func(a, b Talker) int { return cmp.Compare(order.by(&b), order.by(&a)) })
	table := l.rows(t.list, rows-2)
	for j, head := range table[0] {
		if strings.TrimPrefix(head, ">") == order.name {
			table[0][j] = head + "*"
		}
	}
	for i, row := range layout(table) {
		style := plain
		if i == 0 {
			style = faint
		}
		line(row, style)
	}
	line(talkers.about(&l), faint)
}

// About says what the figures of the page's lists are worth.
func (t *Talkers) About() string {
	return t.about(&List{LowFlows: max(t.Public.LowFlows, t.Ports.LowFlows), LowBytes: max(t.Public.LowBytes, t.Ports.LowBytes),
		LowNow: max(t.Public.LowNow, t.Ports.LowNow)})
}

// about says what the figures of a list are worth.
func (t *Talkers) about(l *List) string {
	parts := []string{fmt.Sprintf("flows that ended in the last %.0f s", t.Since)}
	if t.TableRead {
		parts = append(parts, fmt.Sprintf("now: as of %s ago", age(t.Table)))
	} else {
		parts = append(parts, "now: the table is being read")
	}
	if l.LowFlows+l.LowNow > 0 {
		parts = append(parts, fmt.Sprintf("up to %s flows, %s, %s now too low", group(l.LowFlows), size(l.LowBytes), group(l.LowNow)))
	}
	if t.Missed > 0 {
		parts = append(parts, group(t.Missed)+" came too fast to be counted")
	}
	return strings.Join(parts, "; ")
}

// Plain writes what top shows as text: the status, and every list.
func (v *View) Plain() string {
	var b strings.Builder
	b.WriteString(v.Status(false))
	if v.Talkers == nil {
		return b.String()
	}
	for i, l := range topLists {
		list := l.list(v.Talkers)
		if i == subscribersList && len(list.Top) == 0 { // mostly because there are no sources
			continue
		}
		b.WriteByte('\n')
		for _, row := range layout(list.rows(i, 10)) {
			b.WriteString(row + "\n")
		}
		if i == 0 || list.LowFlows+list.LowNow > 0 {
			b.WriteString("(" + v.Talkers.about(list) + ")\n")
		}
	}
	return b.String()
}
