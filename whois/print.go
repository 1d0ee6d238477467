package whois

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/printable"
)

// Text writes the answer for people.
func (a *Answer) Text(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", a.Question.words())
	complete := "complete"
	if !a.Complete {
		complete = "incomplete"
	}
	fmt.Fprintf(&b, "%s, %s: %s\n", a.Verdict, complete, a.Summary)
	if a.Decides != "" {
		fmt.Fprintf(&b, "%s\n", a.Decides)
	}
	for _, h := range a.Holders {
		fmt.Fprintf(&b, "\n  %s %s\n", h.Orig.Proto, h.path())
		if p := h.Told(); p != "" {
			fmt.Fprintf(&b, "    %s\n", p)
		}
		fmt.Fprintf(&b, "    %s\n", h.life())
		if c := h.counters(); c != "" {
			fmt.Fprintf(&b, "    %s\n", c)
		}
		if len(h.Doubts) > 0 {
			fmt.Fprintf(&b, "    in doubt: %s\n", strings.Join(h.Doubts, ", "))
		}
		if h.Has&flow.Unsynchronized != 0 {
			b.WriteString("    clock: unsynchronized\n")
		}
		fmt.Fprintf(&b, "    %s\n", h.stands())
	}
	if len(a.Missing) > 0 {
		b.WriteString("\nWhat may be missing:\n")
		for _, r := range a.Missing {
			fmt.Fprintf(&b, "  %s\n", r)
		}
	}
	if len(a.Notes) > 0 {
		b.WriteString("\n")
		for _, n := range a.Notes {
			fmt.Fprintf(&b, "%s\n", n)
		}
	}
	_, err := io.WriteString(w, printable.Lines(b.String()))
	return err
}

// path writes who talked to whom, and as whom.
func (h *Holder) path() string {
	far := h.Far.String()
	if far == "" {
		far = "(destination not on record)"
	}
	if h.incoming && h.itself() {
		return fmt.Sprintf("%s -> %s on %s", far, h.Outside, h.host)
	}
	if h.incoming {
		return fmt.Sprintf("%s -> %s, sent on to %s on %s", far, h.Outside, h.Inside, h.host)
	}
	as := ""
	if h.Outside != h.Inside {
		as = " as " + h.Outside.String()
	}
	in := h.Inside.String()
	if in == "" {
		in = "(source not on record)"
	}
	if z := h.zone(); z != "" {
		in += " in " + z
	}
	return fmt.Sprintf("%s%s -> %s on %s", in, as, far, h.host)
}

// Told writes what a source of subscribers has told, "" if none has.
func (h *Holder) Told() string {
	s := h.person()
	if s == nil {
		return ""
	}
	text := "subscriber " + cmp.Or(s.ID, "not known when the flow began")
	if s.Name != "" {
		text += " (" + s.Name + ")"
	}
	if s.Next != "" {
		text += ", and " + s.Next + " when it ended"
	}
	if s.Source != "" {
		text += ", by " + s.Source
	}
	return text
}

// life writes from when to when the flow lived.
func (h *Holder) life() string {
	start := "an unknown time"
	if h.Start != 0 {
		start = short(h.Start)
	}
	switch {
	case h.End != 0 && h.Start != 0:
		return fmt.Sprintf("%s to %s (%s)", start, short(h.End), time.Duration(h.End-h.Start).Round(time.Millisecond))
	case h.End != 0:
		return fmt.Sprintf("%s to %s", start, short(h.End))
	case h.live:
		return fmt.Sprintf("%s until now: it is alive", start)
	}
	return fmt.Sprintf("%s until at least %s, when it was alive", start, short(h.Seen))
}

func (h *Holder) counters() string {
	if h.Has&flow.HasCounters == 0 {
		return ""
	}
	return fmt.Sprintf("%d bytes in %s sent, %d in %s received", h.OrigCounters.Bytes, plural(int(h.OrigCounters.Packets), "packet", "packets"),
		h.ReplyCounters.Bytes, plural(int(h.ReplyCounters.Packets), "packet", "packets"))
}

// stands writes where the record stands.
func (h *Holder) stands() string {
	id := "no flow_id"
	if h.flowID != "" {
		id = "flow " + h.flowID
	}
	if h.live {
		return id + ", in the table of live flows"
	}
	unsealed := ""
	if strings.HasSuffix(h.file, ".rows") {
		unsealed = ", not sealed yet"
	}
	return fmt.Sprintf("%s, %s row %d%s", id, h.file, h.number, unsealed)
}

// The JSON form of an answer. Keys mean what they mean in records, see docs/json.md.
type (
	jsonAnswer struct {
		V           int          `json:"v"`
		Question    jsonQuestion `json:"question"`
		Verdict     string       `json:"verdict,omitempty"`
		Complete    bool         `json:"complete"`
		Summary     string       `json:"summary,omitempty"`
		Decides     string       `json:"decides,omitempty"`
		Subscribers []string     `json:"subscribers"`
		Holders     []jsonHolder `json:"holders"`
		Missing     []jsonReason `json:"missing"`
		Notes       []string     `json:"notes,omitempty"`
		Scanned     bool         `json:"scanned,omitempty"`
		Hosts       []jsonHost   `json:"hosts"`
		Asked       string       `json:"asked"`
	}
	jsonQuestion struct {
		Line    string `json:"line,omitempty"` // of a batch
		Address string `json:"address,omitempty"`
		Port    *int   `json:"port,omitempty"`
		Person  string `json:"subscriber,omitempty"`
		Src     string `json:"src,omitempty"`
		SrcPort *int   `json:"src_port,omitempty"`
		Dst     string `json:"dst,omitempty"`
		DstPort *int   `json:"dst_port,omitempty"`
		Proto   string `json:"proto,omitempty"`
		Netns   string `json:"netns,omitempty"`
		CTZone  *int   `json:"ct_zone,omitempty"`
		At      string `json:"at,omitempty"`
		Zone    string `json:"zone,omitempty"`
		Assumed bool   `json:"zone_assumed,omitempty"`
		From    string `json:"from,omitempty"`
		To      string `json:"to,omitempty"`
		Case    string `json:"case,omitempty"`
	}
	jsonHolder struct {
		Host         string   `json:"host"`
		Subscriber   string   `json:"subscriber"`
		Name         string   `json:"subscriber_name,omitempty"`
		Next         string   `json:"subscriber_next,omitempty"`
		Source       string   `json:"subscriber_source,omitempty"`
		InsideIP     string   `json:"inside_ip,omitempty"`
		InsidePort   *int     `json:"inside_port,omitempty"`
		OutsideIP    string   `json:"outside_ip,omitempty"`
		OutsidePort  *int     `json:"outside_port,omitempty"`
		FarIP        string   `json:"far_ip,omitempty"`
		FarPort      *int     `json:"far_port,omitempty"`
		Proto        string   `json:"proto"`
		Direction    string   `json:"direction"`
		NAT          string   `json:"nat"`
		Start        string   `json:"start,omitempty"`
		End          string   `json:"end,omitempty"`
		Seen         string   `json:"seen,omitempty"`
		Alive        bool     `json:"alive,omitempty"`
		OrigPackets  *uint64  `json:"orig_packets,omitempty"`
		OrigBytes    *uint64  `json:"orig_bytes,omitempty"`
		ReplyPackets *uint64  `json:"reply_packets,omitempty"`
		ReplyBytes   *uint64  `json:"reply_bytes,omitempty"`
		Zone         *int     `json:"zone,omitempty"`
		Netns        string   `json:"netns,omitempty"`
		FlowID       string   `json:"flow_id,omitempty"`
		Certain      bool     `json:"certain"`
		Doubts       []string `json:"doubts,omitempty"`
		Clock        []string `json:"clock,omitempty"`
		Records      int      `json:"records"`
		File         string   `json:"file,omitempty"`
		Row          *int64   `json:"row,omitempty"`
	}
	jsonReason struct {
		Kind string  `json:"kind"`
		Host string  `json:"host"`
		From string  `json:"from,omitempty"`
		To   string  `json:"to,omitempty"`
		Lost *uint64 `json:"lost,omitempty"`
		Text string  `json:"text"`
	}
	jsonHost struct {
		Host         string `json:"host"`
		CatalogLines int    `json:"catalog_lines,omitempty"`
		Checkpoint   string `json:"checkpoint,omitempty"`
		Table        bool   `json:"table,omitempty"`
	}
)

func portOf(e End) *int {
	if !e.HasPort {
		return nil
	}
	return new(int(e.Port))
}

func addrOf(e End) string {
	if !e.Addr.IsValid() {
		return ""
	}
	return e.Addr.String()
}

func stampOr(ns int64) string {
	if ns == 0 {
		return ""
	}
	return stamp(ns)
}

func (q *Question) json() jsonQuestion {
	j := jsonQuestion{Address: addrOf(q.Public), Port: portOf(q.Public), SrcPort: portOf(q.SrcEnd), Dst: addrOf(q.Dst), DstPort: portOf(q.Dst),
		Person: q.Person, At: q.At, Zone: q.Zone, Assumed: q.Note != "", From: stampOr(q.From), To: stampOr(q.To), Case: q.Case}
	if q.HasProto {
		j.Proto = q.Proto.String()
	}
	j.Netns = q.Netns
	if q.HasCTZone {
		j.CTZone = new(int(q.CTZone))
	}
	switch {
	case q.Src.IsValid() && q.Src.IsSingleIP():
		j.Src = q.Src.Addr().String()
	case q.Src.IsValid():
		j.Src = q.Src.String()
	}
	return j
}

func (h *Holder) json() jsonHolder {
	j := jsonHolder{Host: h.host, Subscriber: h.Subscriber, InsideIP: addrOf(h.Inside), InsidePort: portOf(h.Inside), OutsideIP: addrOf(h.Outside),
		OutsidePort: portOf(h.Outside), FarIP: addrOf(h.Far), FarPort: portOf(h.Far), Proto: h.Orig.Proto.String(), Direction: "outgoing",
		NAT: h.NAT().String(), Start: stampOr(h.Start), End: stampOr(h.End), Alive: h.live && h.End == 0, FlowID: h.flowID, Certain: h.Certain(),
		Doubts: h.Doubts, Records: h.Copies, File: h.file}
	if s := h.person(); s != nil {
		j.Name, j.Next, j.Source = s.Name, s.Next, s.Source
	}
	if h.Netns != 0 {
		j.Netns = h.netns()
	}
	if zone, ok := h.ctZone(); ok {
		j.Zone = new(int(zone))
	}
	if h.incoming {
		j.Direction = "incoming"
	}
	if h.End == 0 {
		j.Seen = stampOr(h.Seen)
	}
	if h.Has&flow.HasCounters != 0 {
		j.OrigPackets, j.OrigBytes = &h.OrigCounters.Packets, &h.OrigCounters.Bytes
		j.ReplyPackets, j.ReplyBytes = &h.ReplyCounters.Packets, &h.ReplyCounters.Bytes
	}
	if h.Has&flow.Unsynchronized != 0 {
		j.Clock = append(j.Clock, "unsynchronized")
	}
	if h.Has&flow.Stepped != 0 {
		j.Clock = append(j.Clock, "stepped")
	}
	if h.file != "" {
		j.Row = &h.number
	}
	return j
}

// subscribers returns who is among the holders, each once.
func (a *Answer) subscribers() []string {
	names := []string{}
	seen := map[string]bool{}
	for _, h := range a.Holders {
		for _, name := range []string{h.Subscriber, h.Next} {
			if name != "" && !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names
}

func (a *Answer) json() jsonAnswer {
	j := jsonAnswer{V: 1, Question: a.Question.json(), Verdict: a.Verdict, Complete: a.Complete, Summary: a.Summary, Decides: a.Decides,
		Subscribers: a.subscribers(), Holders: []jsonHolder{}, Missing: []jsonReason{}, Notes: a.Notes, Scanned: a.Scanned, Hosts: []jsonHost{},
		Asked: stamp(a.Asked.UnixNano())}
	j.Question.Line = a.Line
	for _, h := range a.Holders {
		j.Holders = append(j.Holders, h.json())
	}
	for _, r := range a.Missing {
		j.Missing = append(j.Missing, jsonReason{r.Kind, r.Host, stampOr(r.From), stampOr(r.To), r.Lost, r.Text})
	}
	for _, h := range a.Hosts {
		j.Hosts = append(j.Hosts, jsonHost{h.Host, h.Lines, stampOr(h.Until), h.Live})
	}
	return j
}

// JSON writes the answer as one line of JSON.
func (a *Answer) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(a.json())
}

// CSVHead is the first line of answers as CSV.
var CSVHead = []string{"address", "port", "src", "dst", "dst_port", "proto", "from", "to", "verdict", "complete", "subscriber", "inside_ip", "inside_port",
	"outside_ip", "outside_port", "far_ip", "far_port", "flow_proto", "start", "end", "alive", "host", "flow_id", "file", "row", "holders", "text"}

// CSV writes the answer as lines of CSV, one for each holder, or one if there is none. one writes one line in any case.
func (a *Answer) CSV(w *csv.Writer, one bool) error {
	q := a.Question.json()
	num := func(p *int) string {
		if p == nil {
			return ""
		}
		return strconv.Itoa(*p)
	}
	text := a.Summary
	if a.Decides != "" {
		text += " " + a.Decides
	}
	for _, r := range a.Missing {
		text += " " + r.String()
	}
	for _, n := range a.Notes {
		text += " " + n
	}
	head := []string{q.Address, num(q.Port), q.Src, q.Dst, num(q.DstPort), q.Proto, q.From, q.To, a.Verdict, strconv.FormatBool(a.Complete)}
	if len(a.Holders) == 0 {
		return w.Write(append(append(head, make([]string, 15)...), "0", text))
	}
	for i, h := range a.Holders {
		if i > 0 && one {
			break
		}
		j := h.json()
		who := j.Subscriber
		if one {
			who = strings.Join(a.subscribers(), " ")
		}
		row := ""
		if j.Row != nil {
			row = strconv.FormatInt(*j.Row, 10)
		}
		line := append(append([]string{}, head...), who, j.InsideIP, num(j.InsidePort), j.OutsideIP, num(j.OutsidePort), j.FarIP, num(j.FarPort), j.Proto,
			j.Start, j.End, strconv.FormatBool(j.Alive), j.Host, j.FlowID, j.File, row, strconv.Itoa(len(a.Holders)), text)
		if err := w.Write(line); err != nil {
			return err
		}
	}
	return nil
}
