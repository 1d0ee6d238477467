package whois

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
)

// Verdicts.
const (
	Sole      = "sole"
	Ambiguous = "ambiguous"
	None      = "none"
)

// Exit statuses. What is incomplete says so whatever the verdict: more holders may be missing.
const (
	ExitSole       = 0
	ExitNone       = 3
	ExitAmbiguous  = 4
	ExitIncomplete = 5
)

// Exit returns the exit status for an answer.
func (a *Answer) Exit() int {
	switch {
	case !a.Complete:
		return ExitIncomplete
	case a.Verdict == Ambiguous:
		return ExitAmbiguous
	case a.Verdict == None:
		return ExitNone
	}
	return ExitSole
}

// Answer is what is known.
type Answer struct {
	Line     string // of the batch that the question stands in
	Question *Question
	Asked    time.Time
	Verdict  string
	Complete bool
	Summary  string // the verdict in a sentence
	Decides  string // what would decide, if it is ambiguous
	Holders  []*Holder
	Missing  []Reason // why it is not complete
	Notes    []string
	Scanned  bool
	Hosts    []HostNote
}

// HostNote says how far a host's archive was looked at.
type HostNote struct {
	Host   string
	Folder string
	Lines  int
	Until  int64 // end of the checkpoint by which every flow of that time has a record; 0: there is none
	Live   bool  // the table of live flows was read

	host   *archive.Host
	looked []archive.File // that may have held what was asked for
}

// Reason is why holders may be missing.
type Reason struct {
	Kind     string // the cause of a gap, or removed, missing, unreadable, catalog, begins, still_alive, ...
	Host     string // "": the reason lies in the question
	From, To int64
	Lost     *uint64
	Text     string
}

// String returns the sentence, and which machine it is about.
func (r Reason) String() string {
	if r.Host == "" {
		return r.Text
	}
	return r.Host + ": " + r.Text
}

// Doubts of a holder.
const (
	StartUnknown = "start_unknown" // it may have begun after the time asked for
	EndUnknown   = "end_unknown"   // it may have ended before
	ClockStepped = "clock_stepped"
)

// Holder is a flow that held what is asked for.
type Holder struct {
	row
	Inside, Outside, Far End
	Start, End, Seen     int64 // 0: not known. Seen is when the flow was last seen alive
	Doubts               []string
	Copies               int    // records that say so
	Line                 string // the inside address, in its namespace and zone
	Subscriber           string // whose flow it is: the id where a source of subscribers has told, else Line
	Next                 string // to whom the address went while the flow lived; "": to nobody
}

// Certain reports whether the flow was alive at the time asked for, by its times.
func (h *Holder) Certain() bool { return len(h.Doubts) == 0 }

// judge makes the answer. It is a function of what it is given.
func judge(q *Question, rows []row, hosts []*facts, now time.Time) *Answer {
	a := &Answer{Question: q, Asked: now, Notes: q.warnings()}
	type home struct{ host, folder string } // two archives may hold records of one host
	at := map[home]*facts{}
	for _, f := range hosts {
		at[home{f.host, f.folder}] = f
		n := HostNote{Host: f.host, Folder: f.folder, Lines: f.lines, Live: f.live, host: f.archive, looked: f.looked}
		if f.after != nil {
			n.Until = f.until
		}
		a.Hosts = append(a.Hosts, n)
		a.Scanned = a.Scanned || f.scanned
	}
	stepped := map[string]int{}
	unsynced := map[string]bool{}
	var aside []string // who had it in another namespace or zone
	for _, h := range merge(rows) {
		f := at[home{h.host, h.folder}]
		if f == nil {
			f = new(facts)
		}
		where := h.judge(q, f)
		if where == out {
			continue
		}
		if h.describe(q); !q.there(h) {
			if where == inside && !slices.Contains(aside, h.Line) {
				aside = append(aside, h.Line)
			}
			continue
		}
		if where == elsewhere {
			stepped[h.host]++
			continue
		}
		unsynced[h.host] = unsynced[h.host] || h.Has&flow.Unsynchronized != 0
		a.Holders = append(a.Holders, h)
	}
	if len(aside) > 0 {
		slices.Sort(aside)
		a.Notes = append(a.Notes, fmt.Sprintf("Left out, as not asked for by namespace or zone: %s.", list(aside, 5)))
	}
	a.setAside()
	a.identify()
	a.namesakes()
	slices.SortStableFunc(a.Holders, func(x, y *Holder) int {
		return cmp.Or(cmp.Compare(len(x.Doubts), len(y.Doubts)), cmp.Compare(x.Subscriber, y.Subscriber), cmp.Compare(x.Start, y.Start),
			cmp.Compare(x.host, y.host), cmp.Compare(x.file, y.file), cmp.Compare(x.number, y.number))
	})
	for _, f := range hosts {
		a.Missing = append(a.Missing, f.missing(q)...)
		if n := stepped[f.host]; n > 0 {
			a.Missing = append(a.Missing, Reason{Kind: ClockStepped, Host: f.host, Text: fmt.Sprintf(
				"The clock of the machine was set while %s, so their times may be of another moment; --within widens the question.", plural(n, "flow of it was", "flows of it were")+" alive")})
		}
		if unsynced[f.host] || f.doubtsClock(q) {
			a.Missing = append(a.Missing, Reason{Kind: "clock_unsynchronized", Host: f.host, Text: "The clock of the machine was not synchronised: the times on record may be wrong by any amount."})
		}
	}
	for _, h := range a.Holders {
		if !h.Certain() {
			a.Missing = append(a.Missing, h.doubt())
		}
	}
	if len(a.Holders) == 0 && private(q.Dst.Addr) && q.Public.Addr.IsValid() && !private(q.Public.Addr) {
		a.Missing = append(a.Missing, Reason{Kind: "private_destination", Text: fmt.Sprintf(
			"The destination %s is a private address: whoever wrote it may stand behind a NAT of their own, and these records have the public one. Ask without --dst.", q.Dst.Addr)})
	}
	a.sameNames()
	a.Missing = dedupe(a.Missing)
	a.Complete = len(a.Missing) == 0
	if a.Scanned {
		a.Notes = append(a.Notes, "The answer comes from reading files of JSON lines from end to end; an archive has checkpoints and says more.")
	}
	if i := slices.IndexFunc(hosts, func(f *facts) bool { return f.then != "" }); i >= 0 {
		a.Notes = append(a.Notes, fmt.Sprintf("Which filters there were is by %s, which was named as the configuration of that time.", hosts[i].then))
	}
	a.verdict()
	return a
}

// itself reports whether the address that is asked for is the holder's own: nothing was translated.
func (h *Holder) itself() bool { return h.Inside == h.Outside && h.Inside.Addr.IsValid() }

// setAside takes flows that came in at the address itself out of the holders where somebody is known to have had it by
// translation: who talks to the firewall itself, such as a scanner, makes no second holder.
func (a *Answer) setAside() {
	if !slices.ContainsFunc(a.Holders, func(h *Holder) bool { return h.Certain() && !h.itself() }) {
		return
	}
	n := len(a.Holders)
	a.Holders = slices.DeleteFunc(a.Holders, func(h *Holder) bool { return h.incoming && h.itself() })
	if n -= len(a.Holders); n > 0 {
		a.Notes = append(a.Notes, fmt.Sprintf("Besides, %s at %s itself, untranslated: to the firewall, or whichever machine has the address.",
			plural(n, "flow came in", "flows came in"), a.Question.Public))
	}
}

// sameNames tells when one inside address is on record at several machines: one subscriber behind a pair, and perhaps
// others elsewhere, since private addresses are everybody's.
func (a *Answer) sameNames() {
	at := map[string][]string{}
	var names []string
	for _, h := range a.Holders {
		hosts := at[h.Subscriber]
		if hosts == nil {
			names = append(names, h.Subscriber)
		}
		if !slices.Contains(hosts, h.host) {
			at[h.Subscriber] = append(hosts, h.host)
		}
	}
	for _, name := range names {
		if hosts := at[name]; len(hosts) > 1 {
			slices.Sort(hosts)
			a.Notes = append(a.Notes, fmt.Sprintf("%s is on record at %s: one subscriber where these are a pair, and perhaps several where they are not (--host asks one).",
				name, list(hosts, 5)))
		}
	}
}

func dedupe(reasons []Reason) (out []Reason) {
	seen := map[string]bool{}
	for _, r := range reasons {
		if key := r.Host + "\x00" + r.Text; !seen[key] {
			seen[key] = true
			out = append(out, r)
		}
	}
	return out
}

// merge makes one of the records of each flow. Its end takes the place of records that say that it was alive. Without a
// flow_id ends are never merged; what says that a flow was alive goes where there is an end of what looks the same: what is
// on record of the tuples, and the start to the nanosecond.
func merge(rows []row) (all []*Holder) {
	type look struct {
		host        string
		orig, reply flow.Tuple
		zone        uint16
		netns       flow.Netns
		start       int64
		incoming    bool
	}
	looks := func(h *Holder) look {
		r := *h.Record
		strip(&r, h.dropped) // a row log has more than a segment
		return look{h.host, r.Orig, r.Reply, r.Zone, r.Netns, r.Start, h.incoming}
	}
	ended := map[look]bool{}
	defer func() {
		all = slices.DeleteFunc(all, func(h *Holder) bool { return h.flowID == "" && h.End == 0 && h.Start != 0 && ended[looks(h)] })
	}()
	byID := map[flowKey]*Holder{}
	for _, r := range rows {
		t, _ := r.Time()
		h := &Holder{row: r, Start: r.Start, Copies: 1}
		if r.Event == flow.EventDestroy {
			h.End = t
		} else {
			h.Seen = t
		}
		if r.flowID == "" {
			if all = append(all, h); h.End != 0 {
				ended[looks(h)] = true
			}
			continue
		}
		k := r.flowKey()
		first, ok := byID[k]
		if !ok {
			byID[k] = h
			all = append(all, h)
			continue
		}
		first.Copies++
		if first.End == 0 && (h.End != 0 || h.Seen > first.Seen) {
			h.Copies, h.Seen = first.Copies, max(h.Seen, first.Seen)
			*first = *h
		} else {
			first.Seen = max(first.Seen, h.Seen)
		}
	}
	return all
}

type place int

const (
	out       place = iota // the flow was not alive then
	inside                 // it was, or may have been
	elsewhere              // its clock was set, and its times are of another moment
)

// judge says whether the flow was alive at the time asked for.
func (h *Holder) judge(q *Question, f *facts) place {
	stepped := h.Has&flow.Stepped != 0
	last := max(h.End, h.Seen)
	if stepped {
		lo, hi := min(cmp.Or(h.Start, last), last), max(h.Start, last)
		if hi < q.From || lo > q.To {
			return elsewhere
		}
		h.Doubts = append(h.Doubts, ClockStepped)
		return inside
	}
	if h.Start > q.To {
		return out
	}
	if h.End != 0 {
		if h.End < q.From {
			return out
		}
	} else if h.Seen < q.From {
		// A checkpoint that came later would have seen it, if it was old enough by then.
		if c := f.before; c != nil && h.Seen < int64(c.Began) && cmp.Or(h.Start, h.Seen) <= int64(c.Began)-int64(c.MinAge) {
			return out
		}
		h.Doubts = append(h.Doubts, EndUnknown)
	}
	if h.Start == 0 && last > q.From {
		h.Doubts = append(h.Doubts, StartUnknown)
	}
	return inside
}

func (h *Holder) doubt() Reason {
	r := Reason{Kind: h.Doubts[0], Host: h.host}
	who := h.Inside.String()
	switch h.Doubts[0] {
	case EndUnknown:
		r.Text = fmt.Sprintf("The end of a flow of %s is not on record: it was last seen alive at %s.", who, short(h.Seen))
	case StartUnknown:
		r.Text = fmt.Sprintf("The start of a flow of %s is not on record: it may have begun after the time asked for. nf_conntrack_timestamp=1 records it.", who)
	case ClockStepped:
		r.Text = fmt.Sprintf("The clock of the machine was set while a flow of %s was alive: its times are readings of two clocks.", who)
	}
	return r
}

// describe fills in who, as whom, and with whom.
func (h *Holder) describe(q *Question) {
	own := *h.Record // others may ask about the same row
	r := &own
	h.Record = r
	strip(r, h.dropped)
	end := func(a flow.Addr, addr netip.Addr, port uint16, key string) End {
		if a == (flow.Addr{}) {
			return End{}
		}
		return End{Addr: addr, Port: port, HasPort: (r.HasPorts() || r.Orig.Proto.IsICMP() || r.Orig.Proto == flow.GRE) && !slices.Contains(h.dropped, key)}
	}
	src := end(r.Orig.Src, r.Orig.SrcAddr(), r.Orig.SrcPort, "src_port")
	dst := end(r.Orig.Dst, r.Orig.DstAddr(), r.Orig.DstPort, "dst_port")
	if r.Orig.Proto.IsICMP() {
		dst.HasPort = false
	}
	if h.incoming {
		h.Inside, h.Outside, h.Far = dst, dst, src
		if r.NAT()&flow.NATDst != 0 {
			h.Inside = end(r.Reply.Src, r.Reply.SrcAddr(), r.Reply.SrcPort, "nat_dst_port")
		}
	} else {
		h.Inside, h.Far = src, dst
		a, port := archive.PublicSource(r)
		h.Outside = End{Addr: a, Port: port, HasPort: src.HasPort}
		if q.Dst.Addr.IsValid() && !q.Public.Addr.IsValid() && r.NAT()&flow.NATDst != 0 && r.Reply.SrcAddr() == q.Dst.Addr {
			h.Far = end(r.Reply.Src, r.Reply.SrcAddr(), r.Reply.SrcPort, "nat_dst_port")
		}
	}
	who := "an address that is not on record"
	if h.Inside.Addr.IsValid() {
		who = h.Inside.Addr.String()
	}
	if q.Src.IsValid() && !q.Src.IsSingleIP() && q.Src.Contains(h.Inside.Addr) {
		who = q.Src.String()
	}
	if z := h.zone(); z != "" {
		who += " in " + z
	}
	h.Line, h.Subscriber = who, who
	switch s := h.person(); {
	case q.Person != "":
		h.Subscriber = q.Person
	case s != nil && !(q.Src.IsValid() && !q.Src.IsSingleIP()):
		h.Subscriber, h.Next = cmp.Or(s.ID, who), s.Next
	}
}

// person returns what a source of subscribers has told of who the inside is, nil if it has not.
func (h *Holder) person() *flow.Subscriber {
	s := h.Record.Subscriber()
	if s == nil || h.Inside.Addr != h.personAddr(s) {
		return nil
	}
	return s
}

// personAddr returns the address whose subscriber s is: that of the source, or the one that the flow was sent to.
func (h *Holder) personAddr(s *flow.Subscriber) netip.Addr {
	r := h.Record
	switch {
	case !s.Dst:
		return r.Orig.SrcAddr()
	case r.NAT()&flow.NATDst != 0:
		return r.Reply.SrcAddr()
	}
	return r.Orig.DstAddr()
}

// identify gives holders of whom no source has told the name that another machine tells of the same line at that time: one of
// a pair may have asked it, and the other not. A machine that has told a name of the line has told all that it knows.
func (a *Answer) identify() {
	type named struct {
		id       string // "": several
		from, to int64
		hosts    []string
	}
	lines := map[string]*named{}
	for _, h := range a.Holders {
		if h.Subscriber == h.Line {
			continue
		}
		n := lines[h.Line]
		if n == nil {
			n = &named{id: h.Subscriber, from: h.Start, to: h.until()}
			lines[h.Line] = n
		} else if n.id != h.Subscriber {
			n.id = ""
		}
		n.from, n.to = min(n.from, h.Start), max(n.to, h.until())
		if !slices.Contains(n.hosts, h.host) {
			n.hosts = append(n.hosts, h.host)
		}
	}
	for _, h := range a.Holders {
		n := lines[h.Line]
		if n != nil && n.id != "" && h.Subscriber == h.Line && !slices.Contains(n.hosts, h.host) && h.Start <= n.to && h.until() >= n.from {
			h.Subscriber = n.id
		}
	}
}

// namesakes tells subscribers of one name apart by their ids.
func (a *Answer) namesakes() {
	of := func(h *Holder) string { // the id of whoever has the name that is asked for
		if s := h.Record.Subscriber(); s != nil && s.Name == a.Question.Person && s.ID != a.Question.Person && s.Next != a.Question.Person {
			return s.ID
		}
		return ""
	}
	var ids []string
	for _, h := range a.Holders {
		if id := of(h); a.Question.Person != "" && id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if len(ids) < 2 {
		return
	}
	for _, h := range a.Holders {
		if id := of(h); id != "" {
			h.Subscriber = id
		}
	}
}

// strip takes from a record what is to be left out, as a segment has it: a row log has it still.
func strip(r *flow.Record, dropped []string) {
	if len(dropped) == 0 {
		return
	}
	gone := func(key string) bool { return slices.Contains(dropped, key) }
	nat, ports := r.NAT(), r.Orig.Proto.HasPorts()
	o, p := &r.Orig, &r.Reply
	if gone("dst_ip") {
		o.Dst = flow.Addr{}
	}
	if gone("dst_port") && ports {
		o.DstPort = 0
	}
	if gone("src_port") && ports {
		o.SrcPort = 0
	}
	// What is not on record of the reply is that of a flow that was not translated.
	if r.Has&flow.HasReply != 0 {
		if nat&flow.NATSrc == 0 || gone("nat_src_ip") {
			p.Dst = o.Src
		}
		if nat&flow.NATDst == 0 || gone("nat_dst_ip") {
			p.Src = o.Dst
		}
		if ports && (nat&flow.NATSrc == 0 || gone("nat_src_port")) {
			p.DstPort = o.SrcPort
		}
		if ports && (nat&flow.NATDst == 0 || gone("nat_dst_port")) {
			p.SrcPort = o.DstPort
		}
	}
	if gone("subscriber") && r.Extra != nil {
		x := *r.Extra
		x.Subscriber = flow.Subscriber{}
		r.Extra = &x
	}
	if slices.ContainsFunc([]string{"orig_bytes", "reply_bytes", "orig_packets", "reply_packets"}, gone) {
		r.Has &^= flow.HasCounters
	}
}

// ctZone returns the conntrack zone of the inside; ok is false if it is in none, which is zone 0.
func (h *Holder) ctZone() (zone uint16, ok bool) {
	switch r := h.Record; {
	case r.Has&flow.HasZone != 0:
		return r.Zone, true
	case h.incoming && r.Has&flow.HasReply != 0 && r.Reply.HasZone:
		return r.Reply.Zone, true
	case !h.incoming && r.Orig.HasZone:
		return r.Orig.Zone, true
	}
	return 0, false
}

// netns returns the name of the network namespace of the flow, its number if it has none.
func (h *Holder) netns() string {
	if h.Netns == 0 {
		return OwnNetns
	}
	info := h.Netns.Info()
	return cmp.Or(info.Name, strconv.Itoa(int(info.ID)))
}

// zone returns the namespace and the zone of the inside in words, "" if there is neither.
func (h *Holder) zone() string {
	var words []string
	if h.Netns != 0 {
		words = append(words, "namespace "+h.netns())
	}
	if zone, ok := h.ctZone(); ok {
		words = append(words, "zone "+strconv.Itoa(int(zone)))
	}
	return strings.Join(words, ", ")
}

// verdict counts who held it, and says what that means.
func (a *Answer) verdict() {
	q := a.Question
	names := a.subscribers()
	what := q.Public.String()
	switch {
	case q.Src.IsValid() || q.Person != "":
		what = "a flow"
	case !q.Public.Addr.IsValid():
		what = "a flow to " + q.Dst.String()
	}
	switch len(names) {
	case 0:
		a.Verdict = None
		a.Summary = "Nobody had " + what + "."
		if q.Src.IsValid() {
			a.Summary = cmp.Or(q.SrcEnd.String(), q.Src.String()) + " had no flow."
		} else if q.Person != "" {
			a.Summary = q.Person + " had no flow."
		}
		if len(a.Missing) > 0 {
			a.Summary = strings.TrimSuffix(a.Summary, ".") + ", as far as there are records."
		}
	case 1:
		a.Verdict = Sole
		a.Summary = fmt.Sprintf("%s had %s.", names[0], what)
		if q.Src.IsValid() || q.Person != "" {
			a.Summary = fmt.Sprintf("%s had %s.", names[0], plural(len(a.Holders), "flow", "flows"))
		}
		if q.Public.Addr.IsValid() && !slices.ContainsFunc(a.Holders, func(h *Holder) bool { return !h.itself() }) {
			a.Notes = append(a.Notes, fmt.Sprintf("%s was not translated: the holder is the machine that has this address itself.", q.Public.Addr))
		}
		if !slices.ContainsFunc(a.Holders, (*Holder).Certain) {
			a.Summary = fmt.Sprintf("%s may have had %s: of none of its flows is it certain.", names[0], what)
		}
	default:
		a.Verdict = Ambiguous
		a.Summary = fmt.Sprintf("%d subscribers had %s: %s.", len(names), what, list(names, 5))
		a.Decides = a.decides()
	}
}

func list(names []string, most int) string {
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	if len(names) == 1 {
		return names[0]
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// decides says what would tell the holders apart, in one sentence.
func (a *Answer) decides() string {
	q := a.Question
	apart := func(of func(h *Holder) string) bool {
		owner := map[string]string{}
		for _, h := range a.Holders {
			v := of(h)
			if first, ok := owner[v]; v == "" || ok && first != h.Subscriber {
				return false
			}
			owner[v] = h.Subscriber
		}
		return true
	}
	left := slices.ContainsFunc(a.Holders, func(h *Holder) bool { return !h.Far.Addr.IsValid() })
	oneLine := !slices.ContainsFunc(a.Holders, func(h *Holder) bool { return h.Line != a.Holders[0].Line })
	switch {
	case q.Person != "":
		return "Several subscribers have this name: ask for one of them by id."
	case oneLine && slices.ContainsFunc(a.Holders, func(h *Holder) bool { return h.Next != "" && h.Next != h.Subscriber }):
		return "The inside address went from one subscriber to another while a flow lived: the source that has told so knows when."
	case q.Src.IsValid():
		if slices.ContainsFunc(a.Holders, func(h *Holder) bool { return h.Subscriber != h.Line }) {
			return "Several had the address one after the other: a more exact time decides."
		}
		return "They have one address in " + cmp.Or(a.places(), "different places") + ": which of these is meant decides."
	case !q.Public.Addr.IsValid():
		if !q.Dst.HasPort {
			return "Many may talk to one destination: its port narrows it, and the public address and port of the mail decide."
		}
		return "Many may talk to one destination: the public address and port of the mail decide."
	case !q.Public.HasPort && apart(func(h *Holder) string { return h.Outside.String() }):
		return "They share the address by ports: the port decides."
	case !q.Public.HasPort:
		return "They share the address: the port decides, and the destination (--dst) with it."
	case !q.HasProto && apart(func(h *Holder) string { return h.Orig.Proto.String() }):
		return "They used different protocols: the protocol decides (--proto)."
	case q.To > q.From && apartInTime(a.Holders):
		return "They had it one after the other: a more exact time decides."
	case !left && !q.Dst.Addr.IsValid() && apart(func(h *Holder) string { return h.Far.Addr.String() }):
		return "Linux gives one address and port to several at once if they talk to different destinations: the destination decides (--dst)."
	case !left && !q.Dst.HasPort && apart(func(h *Holder) string { return h.Far.String() }):
		return "They talked to different ports of the destination: the destination with its port decides (--dst ADDRESS:PORT)."
	case !left && !q.Dst.HasPort && apart(func(h *Holder) string { return h.Orig.Proto.String() + " " + h.Far.String() }):
		return "Linux gives one address and port to several at once if they talk to different destinations: the destination with its port decides (--dst ADDRESS:PORT), with the protocol (--proto)."
	case a.places() != "" && apart(func(h *Holder) string { return h.netns() + " " + h.inZone() }):
		return "They were in " + a.places() + ": which of these is meant decides."
	case oneLine && slices.ContainsFunc(a.Holders, func(h *Holder) bool { return h.Subscriber == h.Line }):
		return "They have one inside address, and of some of its flows no source of subscribers told whose they were: DHCP or RADIUS may know who had it then."
	case left:
		return "Linux gives one address and port to several at once if they talk to different destinations, and destinations are left out of these records: nothing in them decides."
	}
	return "Nothing on record tells them apart; who they were to each other, such as a pair of firewalls, may."
}

// inZone returns the number of the zone as text.
func (h *Holder) inZone() string {
	zone, _ := h.ctZone()
	return strconv.Itoa(int(zone))
}

// places says in which way the holders were in different places, and what narrows that; "" if they were not.
func (a *Answer) places() string {
	differ := func(of func(*Holder) string) bool {
		return slices.ContainsFunc(a.Holders, func(h *Holder) bool { return of(h) != of(a.Holders[0]) })
	}
	netns, zones := differ((*Holder).netns), differ((*Holder).inZone)
	switch {
	case netns && zones:
		return "different namespaces (--netns) and zones (--ct-zone)"
	case netns:
		return "different namespaces (--netns)"
	case zones:
		return "different zones (--ct-zone)"
	}
	return ""
}

// apartInTime reports whether no two holders of different subscribers lived at one time.
func apartInTime(holders []*Holder) bool {
	for i, x := range holders {
		for _, y := range holders[i+1:] {
			if x.Subscriber == y.Subscriber {
				continue
			}
			if !x.Certain() || !y.Certain() || x.until() >= y.Start && y.until() >= x.Start {
				return false
			}
		}
	}
	return true
}

// until is how long the flow lived at least.
func (h *Holder) until() int64 { return cmp.Or(h.End, 1<<62) }

// missing returns what may keep a holder from being on record: gaps by the rule of each, and the bounds of the records.
func (f *facts) missing(q *Question) (all []Reason) {
	all = append(all, f.problems...)
	for i := range f.removed {
		all = append(all, removedReason(f.host, &f.removed[i]))
	}
	if f.closed {
		return all
	}
	if f.begins == 0 {
		all = append(all, Reason{Kind: "empty", Host: f.host, Text: "There is not one record."})
	} else if f.begins > q.From {
		all = append(all, Reason{Kind: "begins", Host: f.host, To: f.begins, Text: fmt.Sprintf("The records begin at %s, after the time asked for.", short(f.begins))})
	}
	for i := range f.gaps {
		if g := &f.gaps[i]; f.hides(g, q) {
			all = append(all, gapReason(f.host, g))
		}
	}
	if f.after == nil && !f.live && f.begins != 0 {
		r := Reason{Kind: "still_alive", Host: f.host, From: f.ends}
		switch {
		case f.ends < q.From:
			r.Kind = "ends"
			r.Text = fmt.Sprintf("The records end at %s, before the time asked for.", short(f.ends))
			if f.liveErr != nil {
				r.Text = fmt.Sprintf("The records end at %s, before the time asked for, and %v.", short(f.ends), f.liveErr)
			}
		case f.liveErr != nil:
			r.Text = fmt.Sprintf("A flow that is still alive has no record yet, and %v.", f.liveErr)
		default:
			r.Text = fmt.Sprintf("A flow that has lived since then and had not ended at %s has no record yet; a later checkpoint, or the firewall itself, would tell.", short(f.ends))
		}
		all = append(all, r)
	}
	for _, key := range f.dropped {
		if q.needs(key) {
			all = append(all, Reason{Kind: "dropped", Host: f.host, Text: fmt.Sprintf("%s is left out of these records (fields.drop), and the question needs it.", key)})
		}
	}
	told := false
	for i := range f.leftOut {
		if s := &f.leftOut[i]; s.hide(f, q) {
			all, told = append(all, s.reason(f.host)), told || s.to == inForce
		}
	}
	if f.filter != "" && !told {
		all = append(all, Reason{Kind: "filtered", Host: f.host, Text: fmt.Sprintf("The configuration keeps some flows out of these records (%s), and one of them may be meant.", f.filter)})
	}
	if f.unruled && f.filter == "" && f.begins != 0 {
		all = append(all, Reason{Kind: "filter_unknown", Host: f.host, Text: "Whether a filter kept flows out of these records then is not on record, as it is in an archive. " +
			"Name the configuration of that time (-c), and it is judged by."})
	}
	if f.over {
		all = append(all, Reason{Kind: "limit", Host: f.host, Text: fmt.Sprintf("There are more than %d records; ask for a shorter time, or for a port.", Limit)})
	}
	return all
}

// doubtsClock reports whether the clock was not synchronised at some time of those whose records would have a holder: from the
// time asked for to the checkpoint that has all of it. What the last record says holds on.
func (f *facts) doubtsClock(q *Question) bool {
	for _, t := range f.unsynced {
		last := int64(t.Last)
		if (last >= q.From || last >= f.ends) && (f.after == nil || int64(t.First) <= f.until) {
			return true
		}
	}
	return false
}

// needs reports whether the question cannot be answered without a key of the records.
func (q *Question) needs(key string) bool {
	switch key {
	case "src_ip", "proto_num":
		return true
	case "nat_src_ip":
		return q.Public.Addr.IsValid()
	case "nat_src_port", "src_port":
		return q.Public.HasPort || key == "src_port" && q.SrcEnd.HasPort
	case "dst_ip":
		return q.Dst.Addr.IsValid()
	case "dst_port":
		return q.Dst.HasPort
	}
	return false
}

// hides reports whether a gap may hide a flow that was alive at the time asked for.
func (f *facts) hides(g *archive.Gap, q *Question) bool {
	if g.Lost != nil && *g.Lost == 0 {
		return false
	}
	from, to := int64(-1<<62), int64(g.At)
	if g.From != nil {
		from = int64(*g.From)
	}
	if g.To != nil {
		to = int64(*g.To)
	}
	if g.Cause == flow.CauseUntracked.String() {
		// The end of these flows never comes. They were born by then; a checkpoint before the time asked for has them.
		born := max(from, 0)
		if g.To != nil {
			born = to
		}
		seen := f.before != nil && int64(f.before.Began) >= born+int64(f.before.MinAge)
		return from <= q.To && !seen
	}
	// Missing are the records of flows that ended in the gap. One that was alive before it, and is not seen alive after it.
	return to >= q.From && (f.after == nil || from <= f.until)
}

// causes say what a gap means, for somebody who has not read the documentation.
var causes = map[string]string{
	"overrun": "the kernel's buffer was full", "guard": "flows were let go unrecorded, so that the firewall kept working",
	"downtime": "ctlogd was not running", "crash": "ctlogd ended before it had written all", "reboot": "the machine restarted, which ends flows without a record",
	"queue_full": "the output could not keep up", "spool_full": "the output could not keep up, and its spool was full",
	"disk_full": "the disk was full", "output_down": "the output did not accept records, or was in no configuration",
	"untracked": "the kernel does not report the end of these flows", "unreadable": "messages of the kernel could not be read",
}

func gapReason(host string, g *archive.Gap) Reason {
	r := Reason{Kind: g.Cause, Host: host, Lost: g.Lost}
	span := "at " + short(int64(g.At))
	switch {
	case g.From != nil && g.To != nil:
		r.From, r.To = int64(*g.From), int64(*g.To)
		span = "from " + short(r.From) + " to " + short(r.To)
	case g.From != nil:
		r.From = int64(*g.From)
		span = "since " + short(r.From)
	case g.To != nil:
		r.To = int64(*g.To)
		span = "until " + short(r.To)
	default:
		r.To = int64(g.At)
	}
	lost := "an unknown number of records is missing"
	if g.Lost != nil {
		lost = plural(int(*g.Lost), "record is missing", "records are missing")
	}
	why := causes[g.Cause]
	if why != "" {
		why = ": " + why
	}
	r.Text = fmt.Sprintf("Gap (%s) %s%s; %s, and a flow that ended then is not on record.", g.Cause, span, why, lost)
	if g.Cause == flow.CauseUntracked.String() {
		r.Text = fmt.Sprintf("Gap (%s) %s%s; %s.", g.Cause, span, why, lost)
	}
	return r
}
