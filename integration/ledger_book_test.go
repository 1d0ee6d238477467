//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// churnRate is how many flows end in a second.
const churnRate = 25_000

// flowChurn has flows end at a steady rate, and keeps the ledger.
type flowChurn struct {
	flood *lab.Flood
	next  int    // the number of the next flow
	steps []step // those that ended, in order
	began time.Time
	ran   time.Duration
	quit  chan struct{}
	err   chan error

	mu sync.Mutex // guards next and steps while the flows go on
}

// step is a few flows that ended between two times (ns since 1970).
type step struct {
	first, end int // numbers: first <= i < end
	from, to   int64
}

const stepFlows = 128

func (c *flowChurn) start(t *testing.T) {
	quit := make(chan struct{})
	c.quit, c.err, c.began = quit, make(chan error, 1), time.Now()
	t.Cleanup(func() { c.stop(t) })
	go func() {
		var err error
		for n := 0; err == nil; n += stepFlows {
			select {
			case <-quit:
				c.err <- nil
				return
			case <-time.After(time.Until(c.began.Add(time.Duration(n) * time.Second / churnRate))):
			}
			err = c.do(stepFlows)
		}
		c.err <- err
	}()
}

// stop ends the flows.
func (c *flowChurn) stop(t *testing.T) {
	t.Helper()
	if c.quit == nil {
		return
	}
	close(c.quit)
	c.quit = nil
	must(t, <-c.err)
	c.ran = time.Since(c.began)
	t.Logf("%d flows in %.1f s: %.0f a second", c.next, c.ran.Seconds(), float64(c.next)/c.ran.Seconds())
}

// flows has n flows end.
func (c *flowChurn) flows(t *testing.T, n int) {
	t.Helper()
	must(t, c.do(n))
}

func (c *flowChurn) do(n int) error {
	s := step{first: c.next, end: c.next + n, from: time.Now().UnixNano()}
	err := c.flood.Churn(s.first, s.end)
	s.to = time.Now().UnixNano()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = s.end
	c.steps = append(c.steps, s)
	return err
}

// ended is how many flows have ended.
func (c *flowChurn) ended() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

// step returns when the flow ended.
func (c *flowChurn) step(i int) step {
	k, _ := slices.BinarySearchFunc(c.steps, i, func(s step, i int) int {
		if s.end <= i {
			return -1
		}
		return 1
	})
	return c.steps[k]
}

// book is what one output got.
type book struct {
	name        string
	file, spool string     // of jsonl
	collector   *collector // of ipfix
	archive     string     // folder of one

	seen    []uint8 // how often each flow came
	gaps    []gap
	notes   []int64 // checkpoints that came (ns since 1970)
	unseen  []int64 // and those that did not: a gap that counts records counts them as well
	missing int
	again   int
}

// gap is a gap record.
type gap struct {
	cause    string
	from, to int64
	lost     int // -1: not known
}

func (g gap) String() string {
	lost := "?"
	if g.lost >= 0 {
		lost = strconv.Itoa(g.lost)
	}
	return fmt.Sprintf("%s, %d ms, lost %s", g.cause, (g.to-g.from)/1e6, lost)
}

func (b *book) causes() (causes []string) {
	for _, g := range b.gaps {
		if !slices.Contains(causes, g.cause) {
			causes = append(causes, g.cause)
		}
	}
	return causes
}

// hasSince reports whether one of the flows from first on has come, all of which are at the end.
func (b *book) hasSince(t *testing.T, first int) bool {
	t.Helper()
	if b.collector != nil {
		return b.collector.hasSince(first)
	}
	if b.archive != "" {
		return b.archiveHasSince(t, first)
	}
	f, err := os.Open(b.file)
	must(t, err)
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	must(t, err)
	tail := make([]byte, min(size, 64<<10))
	_, err = f.ReadAt(tail, size-int64(len(tail)))
	must(t, err)
	lines := bytes.Split(tail, []byte{'\n'})
	for _, line := range lines[:len(lines)-1] {
		var l ledgerLine
		if json.Unmarshal(line, &l) == nil {
			if i, ok := lab.FlowNumber(l.NATSrc, l.NATPort); ok && i >= first {
				return true
			}
		}
	}
	return false
}

// ledgerLine is what the ledger asks of a line.
type ledgerLine struct {
	Event   string     `json:"event"`
	Time    string     `json:"time"`
	Start   string     `json:"start"`
	End     string     `json:"end"`
	Proto   uint8      `json:"proto_num"`
	Src     netip.Addr `json:"src_ip"`
	Sport   uint16     `json:"src_port"`
	Dst     netip.Addr `json:"dst_ip"`
	Dport   uint16     `json:"dst_port"`
	NATSrc  netip.Addr `json:"nat_src_ip"`
	NATPort uint16     `json:"nat_src_port"`
	Cause   string     `json:"cause"`
	From    string     `json:"from"`
	To      string     `json:"to"`
	Lost    *int       `json:"lost"`
	Output  string     `json:"output"`
}

// archiveHasSince looks into what is not sealed. A flow that is sealed at once has one after it, when it is asked for again.
func (b *book) archiveHasSince(t *testing.T, first int) (has bool) {
	t.Helper()
	a, err := archive.OpenReader(b.archive)
	must(t, err)
	for _, name := range a.Hosts[0].RowLogs {
		err := archive.Each(name, func(_ *archive.Origin, r *flow.Record) error {
			i, ok := lab.FlowNumber(r.Reply.DstAddr(), r.Reply.DstPort)
			has = has || ok && i >= first
			return nil
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return has
}

// cat returns what an archive has, as the command prints it: its segments, and what is not sealed.
func (b *book) cat(t *testing.T, binary string) io.Reader {
	t.Helper()
	a, err := archive.OpenReader(b.archive)
	must(t, err)
	h := a.Hosts[0]
	for _, p := range h.Problems {
		t.Errorf("%s: %v", b.name, p)
	}
	files := h.RowLogs
	for _, s := range h.Segments() {
		files = append(files, s.Path)
	}
	t.Logf("%s: %d segments, %d row logs", b.name, len(files)-len(h.RowLogs), len(h.RowLogs))
	if aside, _ := filepath.Glob(filepath.Join(h.Dir, "*", "*.aside")); len(aside) > 0 {
		t.Errorf("%s: put aside: %v", b.name, aside)
	}
	out, err := exec.Command(binary, append([]string{"cat"}, files...)...).Output()
	must(t, err)
	return bytes.NewReader(out)
}

// without leaves the checkpoints, of which there was one at each of the times, out of what is missing.
func (b *book) without(made []int64) {
	for _, at := range made {
		if !slices.Contains(b.notes, at) {
			b.unseen = append(b.unseen, at)
		}
	}
}

// read reads all that the output got. What fits no flow of the generator's, by tuple or by time, is an error.
func (b *book) read(t *testing.T, binary string, c *flowChurn) {
	t.Helper()
	b.seen = make([]uint8, c.next)
	if b.collector != nil {
		for _, f := range b.collector.flows {
			b.note(t, c, f.number, f.start, f.end, int64(time.Millisecond), fmt.Sprint(lab.FlowAt(f.number)))
		}
		b.gaps = b.collector.gaps
		return
	}
	var text io.Reader
	if b.archive != "" {
		text = b.cat(t, binary)
	} else {
		f, err := os.Open(b.file)
		must(t, err)
		defer f.Close()
		text = f
	}
	schema := schemaOf(t)
	lines := bufio.NewReaderSize(text, 1<<20)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			if len(line) > 0 {
				t.Errorf("%s: the last line is torn: %q", b.name, line)
			}
			return
		}
		var l ledgerLine
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%s: not a line of JSON: %v: %q", b.name, err, line)
		}
		if l.Event == "checkpoint" {
			b.notes = append(b.notes, nanoseconds(t, l.Time))
			continue
		}
		if l.Event == "gap" {
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
			must(t, err)
			if err := schema.Validate(v); err != nil {
				t.Errorf("%s%v", line, err)
			}
			g := gap{cause: l.Cause, from: nanoseconds(t, l.From), to: nanoseconds(t, l.To), lost: -1}
			if l.Lost != nil {
				g.lost = *l.Lost
			}
			if l.Output != "" && l.Output != b.name || g.from > g.to {
				t.Errorf("%s: a gap of another output's, or that ends before it begins: %s", b.name, line)
			}
			b.gaps = append(b.gaps, g)
			continue
		}
		i, ok := lab.FlowNumber(l.NATSrc, l.NATPort)
		got := lab.FloodFlow{Proto: l.Proto, Src: l.Src, Dst: l.Dst, NATSrc: l.NATSrc,
			SrcPort: l.Sport, NATPort: l.NATPort, DstPort: l.Dport}
		if !ok || i >= c.next || l.Event != "destroy" || got != lab.FlowAt(i) {
			t.Errorf("%s: no flow of the generator's: %s", b.name, line)
			continue
		}
		b.note(t, c, i, nanoseconds(t, l.Start), nanoseconds(t, l.End), 1, string(line))
	}
}

// note notes that flow i came, whose times are exact to a unit.
func (b *book) note(t *testing.T, c *flowChurn, i int, start, end, unit int64, what string) {
	t.Helper()
	if s := c.step(i); start < s.from-unit || start > end || end > s.to+unit {
		t.Errorf("%s: a flow that lived between %d and %d is on record from %d to %d: %s", b.name, s.from, s.to,
			start, end, what)
	}
	if b.seen[i] < 255 {
		b.seen[i]++
	}
}

// stretch is gaps that overlap, or nearly so: a flow may have ended at any time of its step.
type stretch struct {
	from, to int64
	gaps     []gap
	lost     int
	open     bool // one of the gaps does not know how many
	missing  int
}

// absorb takes an earlier stretch in.
func (s *stretch) absorb(earlier *stretch) {
	s.from = earlier.from
	s.gaps = append(earlier.gaps, s.gaps...)
	s.lost += earlier.lost
	s.open = s.open || earlier.open
	s.missing += earlier.missing
}

const nearby = int64(50 * time.Millisecond)

// audit finds each flow that is missing in a gap.
func (b *book) audit(t *testing.T, c *flowChurn) {
	t.Helper()
	complaints, summary := b.reckon(c)
	for _, s := range complaints {
		t.Errorf("%s: %s", b.name, s)
	}
	t.Logf("%s: %s", b.name, summary)
}

func (b *book) reckon(c *flowChurn) (complaints []string, summary string) {
	var stretches []*stretch
	sorted := slices.Clone(b.gaps)
	slices.SortFunc(sorted, func(a, b gap) int { return int(max(-1, min(1, a.from-b.from))) })
	for _, g := range sorted {
		n := len(stretches)
		if n == 0 || g.from > stretches[n-1].to+nearby {
			stretches = append(stretches, &stretch{from: g.from, to: g.to})
			n++
		}
		s := stretches[n-1]
		s.to = max(s.to, g.to)
		s.gaps = append(s.gaps, g)
		s.lost += max(g.lost, 0)
		s.open = s.open || g.lost < 0
	}
	var silent []stretch
	k := 0
	for _, s := range c.steps { // in order of time, as the stretches are
		for k < len(stretches) && stretches[k].to < s.from {
			k++
		}
		// A step that reaches into two stretches does not tell in which of them its flows ended.
		for k+1 < len(stretches) && stretches[k].from <= s.to && stretches[k+1].from <= s.to {
			stretches[k+1].absorb(stretches[k])
			stretches = slices.Delete(stretches, k, k+1)
		}
		for i := s.first; i < s.end; i++ {
			if b.seen[i] > 1 {
				b.again++
			}
			if b.seen[i] > 0 {
				continue
			}
			b.missing++
			if k < len(stretches) && stretches[k].from <= s.to {
				stretches[k].missing++
				continue
			}
			if n := len(silent); n == 0 || s.from > silent[n-1].to+nearby {
				silent = append(silent, stretch{from: s.from})
			}
			last := &silent[len(silent)-1]
			last.to = s.to
			last.missing++
		}
	}
	for _, s := range silent {
		complaints = append(complaints, fmt.Sprintf("%d flows are missing from %s, and no gap says so; gaps nearby: %s",
			s.missing, c.span(s.from, s.to), b.around(c, s)))
	}
	var told []string
	for _, s := range stretches {
		notes := 0
		for _, at := range b.unseen {
			if at > s.from-int64(time.Second) && at < s.to+int64(time.Second) {
				notes++
			}
		}
		if s.missing+notes < s.lost || !s.open && s.missing > s.lost {
			complaints = append(complaints, fmt.Sprintf("%d flows are missing from %s, where the gaps say %d: %v",
				s.missing, c.span(s.from, s.to), s.lost, s.gaps))
		}
		told = append(told, fmt.Sprintf("%d in %v", s.missing, s.gaps))
	}
	return complaints, fmt.Sprintf("of %d flows %d came, %d of them more than once; %d are missing, in %d gaps: %s", c.next,
		c.next-b.missing, b.again, b.missing, len(b.gaps), strings.Join(told, "; "))
}

// around tells of the gaps that are near a stretch.
func (b *book) around(c *flowChurn, s stretch) (text string) {
	for _, g := range b.gaps {
		if g.from < s.to+1e9 && g.to > s.from-1e9 {
			text += fmt.Sprintf("[%s from %s]", g, c.span(g.from, g.to))
		}
	}
	return text
}

// span tells of two times, in seconds since the flows began.
func (c *flowChurn) span(from, to int64) string {
	seconds := func(ns int64) float64 { return float64(ns-c.began.UnixNano()) / 1e9 }
	return fmt.Sprintf("%.3f to %.3f s", seconds(from), seconds(to))
}

func nanoseconds(t *testing.T, s string) int64 {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, s)
	must(t, err)
	return at.UnixNano()
}

func schemaOf(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	schema, err := c.Compile("../docs/flow.schema.json")
	must(t, err)
	return schema
}

// wholeLines returns the size of a file without what a kill has left of its last line.
func wholeLines(t *testing.T, name string) int64 {
	t.Helper()
	content, err := os.ReadFile(name)
	must(t, err)
	return int64(bytes.LastIndexByte(content, '\n') + 1)
}

// The ledger is right about a step that touches two gaps, and finds flows that are in none, and gaps that say too little.
func TestAudit(t *testing.T) {
	ms := int64(time.Millisecond)
	steps := []step{{0, 10, 0, 100 * ms}, {10, 20, 100 * ms, 300 * ms}, {20, 30, 300 * ms, 400 * ms}}
	for _, c := range []struct {
		name    string
		missing []int // flows
		gaps    []gap
		want    int // complaints
	}{
		{"all is there", nil, nil, 0},
		{"in a gap", []int{1, 2}, []gap{{"x", 50 * ms, 60 * ms, 2}}, 0},
		{"in none", []int{1, 25}, []gap{{"x", 50 * ms, 60 * ms, 1}}, 1},
		{"one more than it says", []int{1, 2, 3}, []gap{{"x", 50 * ms, 60 * ms, 2}}, 1},
		{"one fewer", []int{1}, []gap{{"x", 50 * ms, 60 * ms, 2}}, 1},
		{"a number that is not known", []int{1, 2, 3}, []gap{{"x", 50 * ms, 60 * ms, -1}}, 0},
		{"a step between two gaps", []int{1, 11, 12, 21}, []gap{{"x", 50 * ms, 110 * ms, 2}, {"x", 290 * ms, 350 * ms, 2}}, 0},
		{"the two say too little", []int{1, 11, 12, 21}, []gap{{"x", 50 * ms, 110 * ms, 1}, {"x", 290 * ms, 350 * ms, 2}}, 1},
	} {
		b := &book{name: c.name, gaps: c.gaps, seen: bytes.Repeat([]byte{1}, 30)}
		for _, i := range c.missing {
			b.seen[i] = 0
		}
		complaints, summary := b.reckon(&flowChurn{steps: steps, next: 30})
		if len(complaints) != c.want || summary == "" || b.missing != len(c.missing) {
			t.Errorf("%s: complaints %q, %d missing, want %d and %d", c.name, complaints, b.missing, c.want, len(c.missing))
		}
	}
}
