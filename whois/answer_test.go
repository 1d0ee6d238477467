package whois

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

var update = flag.Bool("update", false, "write the golden files anew")

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC).UnixNano()

const second = int64(time.Second)

// snat returns the end of a flow that was translated: the source has 203.0.113.5 outside.
func snat(src, dst string, port uint16, start, end int64) *flow.Record {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	return &flow.Record{
		Event: flow.EventDestroy, Has: flow.HasOrig | flow.HasReply | flow.HasCounters, Start: start, Stop: end, Received: max(end, start, noon),
		Orig: flow.Tuple{Src: flow.AddrFrom(s.Addr()), Dst: flow.AddrFrom(d.Addr()), SrcPort: s.Port(), DstPort: d.Port(), Proto: flow.TCP},
		Reply: flow.Tuple{Src: flow.AddrFrom(d.Addr()), Dst: flow.AddrFrom(netip.MustParseAddr("203.0.113.5")),
			SrcPort: d.Port(), DstPort: port, Proto: flow.TCP},
		OrigCounters: flow.Counters{Packets: 14, Bytes: 2211}, ReplyCounters: flow.Counters{Packets: 19, Bytes: 20733},
	}
}

func open(r *flow.Record, seen int64) *flow.Record {
	r.Event, r.Stop, r.Received = flow.EventOpen, 0, seen
	return r
}

// reached makes the flow one that came in at 203.0.113.5:40000, which is not translated.
func reached(r *flow.Record) *flow.Record {
	src, dst := r.Orig.Dst, flow.AddrFrom(netip.MustParseAddr("203.0.113.5"))
	r.Orig = flow.Tuple{Src: src, Dst: dst, SrcPort: 3333, DstPort: 40000, Proto: flow.TCP}
	r.Reply = flow.Tuple{Src: dst, Dst: src, SrcPort: 40000, DstPort: 3333, Proto: flow.TCP}
	return r
}

func inBlue(r *flow.Record) *flow.Record { r.Netns = blue; return r }

func with(r *flow.Record, has flow.Has) *flow.Record { r.Has |= has; return r }

func point(at int64) *Question {
	return &Question{Public: End{netip.MustParseAddr("203.0.113.5"), 40000, true}, From: at, To: at, Zone: "UTC"}
}

// asRows gives each record a flow_id of its tuple and start, as one host's.
func asRows(recs ...*flow.Record) (rows []row) {
	for i, r := range recs {
		own := *r
		id := ""
		if r.Start != 0 {
			id = fmt.Sprint(r.Orig, r.Start)
		}
		rows = append(rows, row{Record: &own, host: "gw1", flowID: id, file: "f", number: int64(i)})
	}
	return rows
}

func gapAt(cause string, from, to int64) archive.Gap {
	g := archive.Gap{Cause: cause, At: archive.Time(max(from, to))}
	if from != 0 {
		g.From = new(archive.Time(from))
	}
	if to != 0 {
		g.To = new(archive.Time(to))
	}
	return g
}

// TestJudge: verdict, completeness and exit status, case by case.
func TestJudge(t *testing.T) {
	minute := 60 * second
	checked := func(at int64) *archive.Checkpoint {
		return &archive.Checkpoint{Began: archive.Time(at), Ended: archive.Time(at + second), MinAge: archive.Duration(time.Hour), Whole: true}
	}
	whole := func(gaps ...archive.Gap) *facts {
		return &facts{host: "gw1", begins: noon - 10*hour, ends: noon + 5*hour, before: checked(noon - hour), after: checked(noon + 2*hour), until: noon + 2*hour + second, gaps: gaps}
	}
	udp := `[[{"action":"drop","match":{"proto":["udp"]}}]]`
	filteredBy := func(from, to int64, rules string) *facts {
		f := whole()
		f.leftOut = []span{{from: from, to: to, rules: []byte(rules)}}
		return f
	}
	unsynced := func(from, to int64) *facts {
		f := whole()
		f.unsynced = []archive.Times{{First: archive.Time(from), Last: archive.Time(to)}}
		return f
	}
	a := func() *flow.Record {
		return snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-minute, noon+minute)
	}
	b := func() *flow.Record {
		return snat("10.64.9.9:1055", "198.51.100.81:443", 40000, noon-minute, noon+minute)
	}
	zero := uint64(0)
	none := gapAt("overrun", noon, noon+minute)
	none.Lost = &zero
	for name, c := range map[string]struct {
		rows    []row
		facts   *facts
		change  func(q *Question)
		verdict string
		exit    int
		missing string // kinds
		decides string
	}{
		"one":                      {rows: asRows(a()), facts: whole(), verdict: Sole},
		"nobody":                   {facts: whole(), verdict: None, exit: 3},
		"before it began":          {rows: asRows(snat("10.1.1.1:1", "9.9.9.9:9", 40000, noon+1, noon+5)), facts: whole(), verdict: None, exit: 3},
		"after it ended":           {rows: asRows(snat("10.1.1.1:1", "9.9.9.9:9", 40000, noon-5, noon-1)), facts: whole(), verdict: None, exit: 3},
		"its first and last":       {rows: asRows(snat("10.1.1.1:1", "9.9.9.9:9", 40000, noon, noon)), facts: whole(), verdict: Sole},
		"two":                      {rows: asRows(a(), b()), facts: whole(), verdict: Ambiguous, exit: 4, decides: "(--dst)"},
		"one subscriber twice":     {rows: asRows(a(), snat("10.64.3.7:51544", "9.9.9.9:9", 40000, noon-minute, noon+minute)), facts: whole(), verdict: Sole},
		"twice delivered":          {rows: asRows(a(), a()), facts: whole(), verdict: Sole},
		"open and its end":         {rows: asRows(open(a(), noon-second), a()), facts: whole(), verdict: Sole},
		"its end, and open before": {rows: asRows(a(), open(a(), noon-second)), facts: whole(), verdict: Sole},
		"open alone, seen later":   {rows: asRows(open(a(), noon+hour)), facts: whole(), verdict: Sole},
		"open, ended before, no flow_id": {rows: func() []row {
			rows := asRows(open(a(), noon-30*second), snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-minute, noon-second))
			rows[0].flowID, rows[1].flowID = "", ""
			return rows
		}(), facts: whole(), verdict: None, exit: 3},
		"itself, reached": {rows: func() []row {
			rows := asRows(reached(a()))
			rows[0].incoming = true
			return rows
		}(), facts: whole(), verdict: Sole},
		"itself, reached, and a subscriber": {rows: func() []row {
			rows := asRows(a(), reached(b()))
			rows[1].incoming = true
			return rows
		}(), facts: whole(), verdict: Sole},
		"itself, reached, and one in doubt": {rows: func() []row {
			r := a()
			r.Start = 0
			rows := asRows(r, reached(b()))
			rows[1].incoming = true
			return rows
		}(), facts: whole(), verdict: Ambiguous, exit: 5, missing: "start_unknown", decides: "the destination decides (--dst)"},
		"open, ended before": {rows: asRows(open(a(), noon-30*second), snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-minute, noon-second)), facts: whole(), verdict: None, exit: 3},
		"last seen by a checkpoint": {rows: asRows(open(snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-4*hour, 0), noon-hour)),
			facts: whole(gapAt("crash", noon-minute, noon-second)), verdict: Sole, exit: 5, missing: "end_unknown"},
		"gone at the next checkpoint": {rows: asRows(open(snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-4*hour, 0), noon-2*hour)), facts: whole(), verdict: None, exit: 3},
		"no start":                    {rows: asRows(snat("10.64.3.7:51544", "198.51.100.80:443", 40000, 0, noon+minute)), facts: whole(), verdict: Sole, exit: 5, missing: "start_unknown"},
		"the clock was set":           {rows: asRows(with(a(), flow.Stepped)), facts: whole(), verdict: Sole, exit: 5, missing: "clock_stepped"},
		"set, of another time":        {rows: asRows(with(snat("10.1.1.1:1", "9.9.9.9:9", 40000, noon-hour, noon-hour+1), flow.Stepped)), facts: whole(), verdict: None, exit: 5, missing: "clock_stepped"},
		"unsynchronised":              {rows: asRows(with(a(), flow.Unsynchronized)), facts: whole(), verdict: Sole, exit: 5, missing: "clock_unsynchronized"},
		"nobody, unsynchronised":      {facts: unsynced(noon-minute, noon+minute), verdict: None, exit: 5, missing: "clock_unsynchronized"},
		"nobody, when it ended":       {facts: unsynced(noon+hour, noon+hour), verdict: None, exit: 5, missing: "clock_unsynchronized"},
		"synchronised by then":        {facts: unsynced(noon-hour, noon-1), verdict: None, exit: 3},
		"behind the witness":          {facts: unsynced(noon+3*hour, noon+4*hour), verdict: None, exit: 3},
		"unsynchronised to the end": {facts: &facts{host: "gw1", begins: noon - hour, ends: noon - minute, live: true,
			unsynced: []archive.Times{{First: archive.Time(noon - hour), Last: archive.Time(noon - minute)}}}, verdict: None, exit: 5, missing: "clock_unsynchronized"},
		"a gap then":                {rows: asRows(a()), facts: whole(gapAt("overrun", noon-minute, noon+minute)), verdict: Sole, exit: 5, missing: "overrun"},
		"a gap that lost nothing":   {rows: asRows(a()), facts: whole(none), verdict: Sole},
		"a gap before":              {rows: asRows(a()), facts: whole(gapAt("downtime", noon-minute, noon-1)), verdict: Sole},
		"a gap later":               {facts: whole(gapAt("reboot", noon+hour, noon+hour+1)), verdict: None, exit: 5, missing: "reboot"},
		"a gap behind the witness":  {facts: whole(gapAt("reboot", noon+3*hour, noon+4*hour)), verdict: None, exit: 3},
		"a gap without an end":      {facts: whole(gapAt("crash", noon-minute, 0)), verdict: None, exit: 3}, // its record came before noon
		"untracked, seen since":     {facts: whole(gapAt("untracked", noon-3*hour, noon-3*hour)), verdict: None, exit: 3},
		"untracked, not seen since": {facts: whole(gapAt("untracked", noon-hour-minute, 0)), verdict: None, exit: 5, missing: "untracked"},
		"untracked, later":          {facts: whole(gapAt("untracked", noon+minute, 0)), verdict: None, exit: 3},
		"no witness":                {rows: asRows(a()), facts: &facts{host: "gw1", begins: noon - hour, ends: noon + hour}, verdict: Sole, exit: 5, missing: "still_alive"},
		"the table is the witness":  {rows: asRows(a()), facts: &facts{host: "gw1", begins: noon - hour, ends: noon + hour, live: true}, verdict: Sole},
		"the table cannot be read":  {facts: &facts{host: "gw1", begins: noon - hour, ends: noon + hour, liveErr: os.ErrPermission}, verdict: None, exit: 5, missing: "still_alive"},
		"begins later":              {facts: &facts{host: "gw1", begins: noon + 1, ends: noon + hour, after: checked(noon + 2*hour), until: noon + 2*hour + second}, verdict: None, exit: 5, missing: "begins"},
		"ends before":               {facts: &facts{host: "gw1", begins: noon - hour, ends: noon - 1}, verdict: None, exit: 5, missing: "ends"},
		"empty":                     {facts: &facts{host: "gw1"}, verdict: None, exit: 5, missing: "empty"},
		"removed": {facts: func() *facts {
			f := whole()
			f.removed = []archive.Line{{Removed: &archive.Removal{File: "x", Why: "max_age", First: archive.Time(noon), Last: archive.Time(noon + hour), Records: 7}}}
			return f
		}(), verdict: None, exit: 5, missing: "removed"},
		"filtered then":         {facts: filteredBy(noon-minute, noon+minute, udp), verdict: None, exit: 5, missing: "filtered"},
		"filtered, long over":   {facts: filteredBy(noon-hour, noon-1, udp), verdict: None, exit: 3},
		"filtered, ended later": {facts: filteredBy(noon+minute, inForce, udp), verdict: None, exit: 5, missing: "filtered"},
		"filtered, seen before": {facts: filteredBy(noon+3*hour, inForce, udp), verdict: None, exit: 3},
		"filtered, another":     {facts: filteredBy(noon-minute, noon+minute, udp), change: func(q *Question) { q.Proto, q.HasProto = flow.TCP, true }, verdict: None, exit: 3},
		"filtered, in other words": {facts: filteredBy(noon-minute, noon+minute, `[[{"action":"drop","match":{"colour":["red"]}}]]`), change: func(q *Question) { q.Proto, q.HasProto = flow.TCP, true },
			verdict: None, exit: 5, missing: "filtered"},
		"ports left out": {facts: func() *facts { f := whole(); f.dropped = []string{"nat_src_port"}; return f }(), verdict: None, exit: 5, missing: "dropped"},
		"destinations left out": {rows: func() []row {
			rows := asRows(a(), b())
			for i := range rows {
				rows[i].dropped = []string{"dst_ip", "dst_port", "nat_dst_ip"}
			}
			return rows
		}(), facts: whole(), verdict: Ambiguous, exit: 4, decides: "nothing in them decides"},
		"no port":   {rows: asRows(a(), snat("10.64.9.9:1055", "198.51.100.81:443", 40001, noon-minute, noon+minute)), facts: whole(), change: func(q *Question) { q.Public.HasPort = false }, verdict: Ambiguous, exit: 4, decides: "the port decides"},
		"protocols": {rows: func() []row { r := b(); r.Orig.Proto, r.Reply.Proto = flow.UDP, flow.UDP; return asRows(a(), r) }(), facts: whole(), verdict: Ambiguous, exit: 4, decides: "--proto"},
		"one after the other": {rows: asRows(snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-minute, noon+1), snat("10.64.9.9:1055", "198.51.100.80:443", 40000, noon+2, noon+minute)), facts: whole(),
			change: func(q *Question) { q.To = noon + second }, verdict: Ambiguous, exit: 4, decides: "more exact time"},
		"one destination, two ports": {rows: asRows(a(), snat("10.64.9.9:1055", "198.51.100.80:80", 40000, noon-minute, noon+minute)), facts: whole(), verdict: Ambiguous, exit: 4, decides: "--dst ADDRESS:PORT"},
		"two namespaces": {rows: func() []row {
			r := a()
			r.Netns, r.Start = flow.HoldNetns(3, "blue"), r.Start+1
			return asRows(a(), r)
		}(), facts: whole(), verdict: Ambiguous, exit: 4, decides: "different namespaces (--netns)"},
		"a subscriber, of whom one of a pair knows": {rows: func() []row {
			r := a()
			r.Start, r.Extra = r.Start+1, &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17"}}
			rows := asRows(a(), r)
			rows[1].host = "gw2"
			return rows
		}(), facts: whole(), verdict: Sole},
		"a subscriber, of whom a flow of the same machine does not tell": {rows: func() []row {
			r := a()
			r.Start, r.Extra = r.Start+1, &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17"}}
			return asRows(a(), r)
		}(), facts: whole(), verdict: Ambiguous, exit: 4, decides: "no source of subscribers told whose they were"},
		"a subscriber, of whom one of three tells, twice": {rows: func() []row {
			rows := asRows(a(), a(), a())
			for i := range rows {
				rows[i].flowID, rows[i].host = fmt.Sprint(i), "gw2"
				rows[i].Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17"}}
			}
			rows[2].host, rows[2].Extra = "gw1", nil
			return rows
		}(), facts: whole(), verdict: Sole},
		"a subscriber, of whom two of three tell something else": {rows: func() []row {
			rows := asRows(a(), a(), a())
			for i := range rows {
				rows[i].flowID, rows[i].host = fmt.Sprint(i), fmt.Sprint("gw", i+1)
			}
			rows[1].Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17"}}
			rows[2].Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-18"}}
			return rows
		}(), facts: whole(), verdict: Ambiguous, exit: 4, decides: "no source of subscribers told whose they were"},
		"a subscriber, of whom another machine knew before": {rows: func() []row {
			rows := asRows(a(), snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-3*minute, noon-2*minute))
			rows[1].Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17"}}
			rows[1].host = "gw2"
			return rows
		}(), facts: whole(), change: func(q *Question) { q.From = noon - 3*minute }, verdict: Ambiguous, exit: 4, decides: "more exact time"},
		"a subscriber with two addresses": {rows: func() []row {
			x, y := a(), b()
			x.Extra, y.Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17"}}, &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17"}}
			return asRows(x, y)
		}(), facts: whole(), verdict: Sole},
		"two subscribers, one address": {rows: func() []row {
			x, y := a(), a()
			y.Start++
			x.Extra, y.Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17"}}, &flow.Extra{Subscriber: flow.Subscriber{ID: "c-18"}}
			return asRows(x, y)
		}(), facts: whole(), verdict: Ambiguous, exit: 4, decides: "Nothing on record"},
		"an address that changed hands": {rows: func() []row {
			x := a()
			x.Extra = &flow.Extra{Subscriber: flow.Subscriber{Next: "c-18"}}
			return asRows(x)
		}(), facts: whole(), verdict: Ambiguous, exit: 4, decides: "from one subscriber to another"},
		"a subscriber of the far side": {rows: func() []row {
			x := a()
			x.Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17", Dst: true}}
			return asRows(x, x)
		}(), facts: whole(), verdict: Sole},
		"two of one name": {rows: func() []row {
			x, y := a(), b()
			x.Extra, y.Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17", Name: "Jane"}}, &flow.Extra{Subscriber: flow.Subscriber{ID: "c-18", Name: "Jane"}}
			return asRows(x, y)
		}(), facts: whole(), change: func(q *Question) { q.Public, q.Person = End{}, "Jane" }, verdict: Ambiguous, exit: 4, decides: "by id"},
		"one of one name, twice": {rows: func() []row {
			x, y := a(), b()
			x.Extra, y.Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17", Name: "Jane"}}, &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17", Name: "Jane"}}
			return asRows(x, y)
		}(), facts: whole(), change: func(q *Question) { q.Public, q.Person = End{}, "Jane" }, verdict: Sole},
		"two zones":          {rows: func() []row { r := a(); r.Zone, r.Start = 5, r.Start+1; return asRows(a(), with(r, flow.HasZone)) }(), facts: whole(), verdict: Ambiguous, exit: 4, decides: "different zones (--ct-zone)"},
		"of zone 5":          {rows: func() []row { r := a(); r.Zone, r.Start = 5, r.Start+1; return asRows(a(), with(r, flow.HasZone)) }(), facts: whole(), change: func(q *Question) { q.CTZone, q.HasCTZone = 5, true }, verdict: Sole},
		"of no zone":         {rows: func() []row { r := a(); r.Zone, r.Start = 5, r.Start+1; return asRows(a(), with(r, flow.HasZone)) }(), facts: whole(), change: func(q *Question) { q.HasCTZone = true }, verdict: Sole},
		"of another zone":    {rows: func() []row { r := a(); r.Zone, r.Start = 5, r.Start+1; return asRows(a(), with(r, flow.HasZone)) }(), facts: whole(), change: func(q *Question) { q.CTZone, q.HasCTZone = 6, true }, verdict: None, exit: 3},
		"of one of two, set": {rows: asRows(inBlue(with(a(), flow.Stepped)), b()), facts: whole(), change: func(q *Question) { q.Netns = OwnNetns }, verdict: Sole},
		"other clients of two namespaces, to one server": {rows: asRows(a(), inBlue(snat("10.64.9.9:1055", "198.51.100.80:443", 40000, noon-minute, noon+minute))), facts: whole(),
			verdict: Ambiguous, exit: 4, decides: "different namespaces (--netns)"},
		"one of these": {rows: asRows(a(), inBlue(snat("10.64.9.9:1055", "198.51.100.80:443", 40000, noon-minute, noon+minute))), facts: whole(),
			change: func(q *Question) { q.Netns = "blue" }, verdict: Sole},
		"two namespaces and zones": {rows: func() []row {
			r := inBlue(a())
			r.Zone, r.Start = 5, r.Start+1
			return asRows(a(), with(r, flow.HasZone))
		}(), facts: whole(), verdict: Ambiguous, exit: 4, decides: "different namespaces (--netns) and zones (--ct-zone)"},
	} {
		q := point(noon)
		if c.change != nil {
			c.change(q)
		}
		got := judge(q, c.rows, []*facts{c.facts}, time.Unix(0, noon+10*hour))
		var kinds []string
		for _, m := range got.Missing {
			kinds = append(kinds, m.Kind)
			if m.Text == "" || !strings.HasSuffix(m.Text, ".") {
				t.Errorf("%s: %q is no sentence", name, m.Text)
			}
		}
		if got.Verdict != c.verdict || got.Exit() != c.exit || strings.Join(kinds, " ") != c.missing || !strings.Contains(got.Decides, c.decides) || (got.Decides != "") != (c.verdict == Ambiguous) {
			t.Errorf("%s: %s, exit %d, missing %v, decides %q; want %s, %d, %q, %q", name, got.Verdict, got.Exit(), kinds, got.Decides, c.verdict, c.exit, c.missing, c.decides)
		}
	}
}

// TestSeveralMachines: what several machines have on record of one inside address is told, once, with their names in order; and
// the holders stand in the order of certainty and of names.
func TestSeveralMachines(t *testing.T) {
	rows := asRows(snat("10.64.9.9:1055", "198.51.100.81:443", 40000, noon-second, noon+second), snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-second, noon+second),
		snat("10.64.3.7:51545", "198.51.100.80:443", 40000, noon-second, noon+second), snat("10.64.3.7:51546", "198.51.100.80:443", 40000, 0, noon+second),
		snat("10.64.3.7:51547", "198.51.100.80:443", 40000, noon-second, noon+second))
	rows[1].host, rows[4].host = "gw2", "gw2"
	a := judge(point(noon), rows, []*facts{{host: "gw1"}, {host: "gw2"}}, time.Unix(0, noon))
	const want = "10.64.3.7 is on record at gw1 and gw2: one subscriber where these are a pair, and perhaps several where they are not (--host asks one)."
	if len(a.Notes) != 1 || a.Notes[0] != want {
		t.Errorf("%q", a.Notes)
	}
	var got []string
	for _, h := range a.Holders {
		got = append(got, fmt.Sprint(h.Inside, " ", h.host))
	}
	if diff := cmp.Diff([]string{"10.64.3.7:51545 gw1", "10.64.3.7:51544 gw2", "10.64.3.7:51547 gw2", "10.64.9.9:1055 gw1", "10.64.3.7:51546 gw1"}, got); diff != "" {
		t.Errorf("holders (-want +got):\n%s", diff)
	}
}

// TestReachedSubscriber: who was reached behind a forwarded port is the subscriber that a source has told of the inside.
func TestReachedSubscriber(t *testing.T) {
	r := reached(snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-second, noon+second))
	r.Reply.Src, r.Reply.SrcPort = flow.AddrFrom(netip.MustParseAddr("10.64.7.7")), 80
	for dst, want := range map[bool]string{true: "c-17", false: "10.64.7.7"} { // false: of the far side
		r.Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17", Dst: dst}}
		rows := asRows(r)
		rows[0].incoming = true
		if a := judge(point(noon), rows, nil, time.Unix(0, noon)); len(a.Holders) != 1 || a.Holders[0].Subscriber != want || a.Holders[0].Inside.String() != "10.64.7.7:80" {
			t.Errorf("told of the destination %t: %+v, want %s", dst, a.Holders[0], want)
		}
	}
}

// small makes an archive of a few flows, sealed and not, in the working directory, which becomes a new one.
func small(t *testing.T) string {
	t.Helper()
	t.Chdir(t.TempDir())
	a := openArchive(t, noon-2*hour, archive.Options{Dir: "archive", Records: 7})
	minute := 60 * second
	done := func(at int64) *flow.Record {
		return &flow.Record{Event: flow.EventOpen, Start: at, Stop: at + second, Received: at + second, Timeout: 3600, Extra: &flow.Extra{Checkpoint: flow.CheckpointWhole}}
	}
	gap := &flow.Record{Event: flow.EventGap, Start: noon + 270*minute, Stop: noon + 271*minute, Received: noon + 271*minute,
		Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseOverrun, Lost: 12, LostKnown: true}}}
	ping := snat("10.64.3.7:777", "198.51.100.80:0", 0, noon, noon+minute)
	ping.Orig.Proto, ping.Reply.Proto, ping.Orig.DstPort, ping.Reply.SrcPort = flow.ICMP, flow.ICMP, 8<<8, 64110
	web := snat("198.51.100.99:3333", "203.0.113.5:8080", 0, noon, noon+minute)
	web.Reply = flow.Tuple{Src: flow.AddrFrom(netip.MustParseAddr("10.64.7.7")), Dst: web.Orig.Src, SrcPort: 80, DstPort: 3333, Proto: flow.TCP}
	recs := []*flow.Record{
		snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-minute, noon+minute),
		snat("10.64.3.8:51000", "198.51.100.81:443", 41000, noon-minute, noon+minute),
		snat("10.64.3.9:51000", "198.51.100.82:443", 41000, noon-30*second, noon+minute),
		ping, web, done(noon + 2*hour),
		snat("10.64.3.7:51600", "198.51.100.80:443", 42000, noon+269*minute, noon+272*minute), gap,
		snat("10.64.3.7:51700", "198.51.100.80:443", 43000, noon+90*minute, noon+91*minute), done(noon + 3*hour), done(noon + 6*hour),
	}
	for _, r := range append([]*flow.Record{snat("10.64.1.1:1", "198.51.100.80:443", 1, noon-5*hour, noon-4*hour)}, recs...) {
		if _, err := a.Append([]*flow.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	closeArchive(t, a, sealed(a))
	return "archive"
}

func answer(t *testing.T, dir string, q *Question) *Answer {
	t.Helper()
	s, err := Open([]string{dir}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return askOne(t, s, q, noon+24*hour)
}

// askOne asks a source one question, at a time.
func askOne(t *testing.T, s Source, q *Question, now int64) *Answer {
	t.Helper()
	if err := s.Prepare(context.Background(), []*Question{q}); err != nil {
		t.Fatal(err)
	}
	a, err := Ask(context.Background(), s, q, time.Unix(0, now))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestGolden: what is printed for people, and for programs.
func TestGolden(t *testing.T) {
	golden, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	dir := small(t)
	for _, c := range []struct {
		name string
		port uint16
		at   string
		exit int
	}{{"sole", 40000, "2026-11-26 12:00:00 UTC", 0}, {"ambiguous", 41000, "2026-11-26 12:00:00 UTC", 4}, {"none", 40000, "2026-11-26 12:01:01 UTC", 3},
		{"incomplete", 42000, "2026-11-26 16:30:00", 5}, {"ping", 64110, "2026-11-26 12:00:30 UTC", 0}, {"forwarded", 8080, "2026-11-26 12:00:30 UTC", 0}, {"unsealed", 43000, "2026-11-26T13:30:30Z", 0}} {
		m, err := ParseTime(c.at, time.Unix(0, noon+24*hour), time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		q := point(0)
		q.Public.Port, q.At, q.Case = c.port, c.at, "2026-77"
		q.SetTime(m, 0)
		a := answer(t, dir, q)
		if a.Exit() != c.exit {
			t.Errorf("%s: exit status %d, want %d", c.name, a.Exit(), c.exit)
		}
		var b bytes.Buffer
		if err := a.Text(&b); err != nil {
			t.Fatal(err)
		}
		b.WriteString("\n")
		if err := a.JSON(&b); err != nil {
			t.Fatal(err)
		}
		w := csv.NewWriter(&b)
		if err := a.CSV(w, false); err != nil {
			t.Fatal(err)
		}
		w.Flush()
		file := filepath.Join(golden, c.name+".golden")
		if *update {
			if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), b.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestReport: the report names the files with their hashes, says when one is another than the catalog says, and escapes what
// others have written.
func TestReport(t *testing.T) {
	dir := small(t)
	q := point(noon)
	q.At, q.Case = "2026-11-26 12:00 <script>alert(1)</script>", "A & B"
	a := answer(t, dir, q)
	who := Who{UID: 1000, User: "abuse", SudoUser: "eve", Host: "desk"}
	r := NewReport(a, who, "test", time.Unix(0, noon+24*hour))
	if len(r.Files) != 2 || r.Files[0].Holders != 1 || r.Files[0].SHA256 != r.Files[0].Catalog || r.Files[0].SHA256 == "" || r.Files[0].Line != 1 {
		t.Fatalf("%+v", r.Files)
	}
	for _, name := range []string{"r.html", "r.json"} {
		if err := r.Write(name); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"10.64.3.7", r.Files[0].SHA256, "one subscriber used the public address 203.0.113.5 with the port number 40000", "eve"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
		if name == "r.html" && strings.Contains(string(text), "<script") || name == "r.json" && !json.Valid(text) {
			t.Errorf("%s:\n%s", name, text)
		}
	}
	if left, _ := filepath.Glob(".r.*"); left != nil {
		t.Errorf("left behind: %v", left)
	}
	path := r.Files[0].Path
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if r = NewReport(a, who, "test", time.Now()); !strings.HasPrefix(r.Files[0].Says, "ALTERED") {
		t.Errorf("%+v", r.Files[0])
	}
	if err := r.Write("no/such/folder/r.html"); err == nil {
		t.Error("a report in a folder that is not there was written")
	}
}

// TestReportOfTwoArchives: the note of an archive covers no other one of the same host.
func TestReportOfTwoArchives(t *testing.T) {
	dir := small(t)
	w := openArchive(t, noon+48*hour, archive.Options{Dir: dir, Records: 7})
	closeArchive(t, w, func() bool { return w.Stats.Checkpointed.Load() > 0 })
	if err := os.CopyFS("other", os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	notes, err := filepath.Glob(filepath.Join(dir, "host=gw1", "*.note"))
	if err != nil || len(notes) == 0 {
		t.Fatal(notes, err)
	}
	for _, n := range notes {
		if err := os.Remove(n); err != nil {
			t.Fatal(err)
		}
	}
	for _, dirs := range [][]string{{dir, "other"}, {"other", dir}} {
		s, err := Open(dirs, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		a := askOne(t, s, point(noon), noon+24*hour)
		covered := map[string]bool{}
		for _, f := range NewReport(a, Who{}, "test", time.Unix(0, noon+24*hour)).Files {
			if f.Line > 0 {
				covered[strings.Split(f.Path, "/")[0]] = f.Covered
			}
		}
		if diff := cmp.Diff(map[string]bool{dir: false, "other": true}, covered); diff != "" {
			t.Errorf("%v: covered (-want +got):\n%s", dirs, diff)
		}
	}
}

// TestReportPrints: on paper, the report of a question with two holders is two pages of A4, with nothing cut off.
func TestReportPrints(t *testing.T) {
	for _, name := range []string{"chromium", "pdftotext", "pdfinfo"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s (Debian packages chromium and poppler-utils)", name)
		}
	}
	dir := small(t)
	q := point(noon)
	q.Public.Port, q.At, q.Case = 41000, "2026-11-26 12:00:00 UTC", "2026-77"
	r := NewReport(answer(t, dir, q), Who{UID: 1000, User: "abuse", SudoUser: "eve", Host: "desk"}, "ctlogd test", time.Unix(0, noon+24*hour))
	if err := r.Write("r.html"); err != nil {
		t.Fatal(err)
	}
	tool := func(name string, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		return string(out)
	}
	tool("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(), "--no-pdf-header-footer", "--print-to-pdf=r.pdf", "r.html")
	if info := tool("pdfinfo", "r.pdf"); !regexp.MustCompile(`Pages: +[23]\n`).MatchString(info) || !strings.Contains(info, "(A4)") {
		t.Error(info)
	}
	// Columns, and lines that were broken, are put together again.
	text := strings.Join(strings.Fields(tool("pdftotext", "-layout", "r.pdf", "-")), "")
	for _, want := range []string{"More than one subscriber; the records are complete", "Case: 2026-77", "10.64.3.8", "10.64.3.9", "eve, as abuse (uid 1000) on desk", "page 1 of",
		r.Files[0].SHA256, r.Answer.Holders[0].flowID, "the destination decides (--dst)"} {
		if !strings.Contains(text, strings.Join(strings.Fields(want), "")) {
			t.Errorf("the paper lacks %q:\n%s", want, text)
		}
	}
}

// TestClockSetBack: where the clock was set back, a checkpoint with an earlier time may come later. The flow that ended
// before it, at a time after it, is found all the same; and a gap of that time counts.
func TestClockSetBack(t *testing.T) {
	dir, minute := t.TempDir(), 60*second
	a := openArchive(t, noon, archive.Options{Dir: dir, Records: 2})
	at := func(start, end int64) *flow.Record {
		r := snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon+start*minute, noon+end*minute)
		r.Received = r.Stop
		return r
	}
	other := func(end int64) *flow.Record {
		r := at(end-1, end)
		r.Reply.DstPort = 1
		return r
	}
	read := func(m int64) *flow.Record {
		return &flow.Record{Event: flow.EventOpen, Start: noon + m*minute, Stop: noon + m*minute + second, Received: noon + m*minute + second, Timeout: 3600,
			Extra: &flow.Extra{Checkpoint: flow.CheckpointWhole}}
	}
	gap := &flow.Record{Event: flow.EventGap, Start: noon + 41*minute, Stop: noon + 42*minute, Received: noon + 42*minute, Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseOverrun}}}
	// The clock of 13:45 is set to 11:45, so to say: 45 becomes -75.
	recs := []*flow.Record{other(-300), other(-290), at(-46, 20), other(25), read(30), other(40), gap, other(43), other(-70), other(-69),
		read(-45), other(-44), read(15), other(16), read(75), other(76), read(135), other(136), other(137), other(138)}
	for _, r := range recs {
		if _, err := a.Append([]*flow.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	closeArchive(t, a, sealed(a))
	for m, want := range map[int64]string{-46: Sole, -45: Sole, -47: None, 21: None} {
		q := point(noon + m*minute)
		got := answer(t, dir, q)
		if got.Verdict != want || got.Complete {
			t.Errorf("minute %d: %s, complete %t, %v", m, got.Verdict, got.Complete, got.Missing)
		}
	}
}

// TestDamage: what is cut off, missing or left out of an archive makes the answer incomplete, in a sentence that names it.
func TestDamage(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, segment string)
		want string
	}{
		"half a segment": {func(t *testing.T, s string) {
			if err := os.Truncate(s, 900); err != nil {
				t.Fatal(err)
			}
		}, "only half of it was copied"},
		"no segment": {func(t *testing.T, s string) { os.Remove(s) }, "is missing, and nothing says that it was removed"},
		"a damaged catalog": {func(t *testing.T, s string) {
			if err := os.WriteFile(filepath.Join(filepath.Dir(s), "catalog.jsonl"), []byte("{\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "The catalog is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := small(t)
			segments, _ := filepath.Glob(dir + "/*/*/*.parquet")
			if len(segments) != 1 {
				t.Fatal(segments)
			}
			c.do(t, segments[0])
			a := answer(t, dir, point(noon))
			var b bytes.Buffer
			if err := a.Text(&b); err != nil {
				t.Fatal(err)
			}
			if a.Exit() != ExitIncomplete || !strings.Contains(b.String(), c.want) {
				t.Errorf("exit status %d:\n%s", a.Exit(), &b)
			}
		})
	}
	t.Chdir(t.TempDir())
	os.Mkdir("empty", 0o755)
	os.WriteFile("x.jsonl", []byte("hello\nworld\n"), 0o644)
	for path, want := range map[string]string{"nowhere": "there is no archive nowhere", "empty": "is no archive: there is no folder host=", "x.jsonl": "has no records of ctlogd"} {
		s, err := Open([]string{path}, nil, nil, nil)
		if err == nil {
			err = s.Prepare(context.Background(), []*Question{point(noon)})
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestHosts: a host that is asked for and of which there is no record makes no answer complete, and a file of others' lines,
// one of them no record, is read.
func TestHosts(t *testing.T) {
	dir := small(t)
	if _, err := Open([]string{dir}, []string{"gw1", "gw2"}, nil, nil); err == nil || !strings.Contains(err.Error(), "no host gw2 there; there are: gw1") {
		t.Errorf("an archive without gw2: %v", err)
	}
	enc, err := format.New("flat", format.Options{Host: "gw1", Observer: "obs"})
	if err != nil {
		t.Fatal(err)
	}
	text := append(enc.Append(nil, snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-second, noon+second)), "\nhello\nx\n"...)
	if err := os.WriteFile("flows.jsonl", text, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, hosts := range map[string][]string{
		"gw2 unreadable, gw2 empty": {"gw2"},
		"gw1 unreadable, gw1 begins, gw1 still_alive, gw1 filter_unknown, gw2 empty": {"gw1", "gw2"},
	} {
		s, err := Open([]string{"flows.jsonl"}, hosts, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		a := askOne(t, s, point(noon), noon+hour)
		var got []string
		for _, r := range a.Missing {
			got = append(got, r.Host+" "+r.Kind)
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%v: %q, want %q", hosts, got, want)
		}
	}
}

// TestRotatedMeanwhile: files that are compressed, and removed, between being listed and being read are no error, and one that
// is there by two names is read once.
func TestRotatedMeanwhile(t *testing.T) {
	t.Chdir(t.TempDir())
	enc, err := format.New("flat", format.Options{Host: "gw1", Observer: "obs"})
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, port uint16) {
		t.Helper()
		r := snat("10.64.3.7:51544", "198.51.100.80:443", port, 0, noon+second) // without a start, and so without a flow_id
		if err := os.WriteFile(name, append(enc.Append(nil, r), '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"flows.jsonl", "flows.jsonl.1", "flows.jsonl.2", "flows.jsonl.10"} {
		write(name, uint16(40000+i))
	}
	files := Files("flows.jsonl")
	if diff := cmp.Diff([]string{"flows.jsonl", "flows.jsonl.1", "flows.jsonl.2", "flows.jsonl.10"}, files); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	s, err := Open(files, nil, nil, unfiltered)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("flows.jsonl.2")
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(text)
	z.Close()
	if err := errors.Join(os.WriteFile("flows.jsonl.2.gz", packed.Bytes(), 0o600), os.Remove("flows.jsonl.2"), os.Remove("flows.jsonl.10"),
		os.Remove("flows.jsonl.1"), os.Link("flows.jsonl", "flows.jsonl.1")); err != nil {
		t.Fatal(err)
	}
	q := point(noon)
	q.Public.HasPort = false
	a := askOne(t, s, q, noon+hour)
	var ports []int
	for _, h := range a.Holders {
		ports = append(ports, int(h.Outside.Port))
	}
	slices.Sort(ports)
	if diff := cmp.Diff([]int{40000, 40002}, ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	if err := os.Remove("flows.jsonl"); err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(context.Background(), []*Question{q}); err == nil {
		t.Error("the file that is written is gone, and that is no error")
	}
}

// TestFolderOfLines: in a folder of JSON lines, what is none of them is left alone: the audit file, and a file that is being made.
func TestFolderOfLines(t *testing.T) {
	dir := t.TempDir()
	enc, err := format.New("flat", format.Options{Host: "gw1", Observer: "obs"})
	if err != nil {
		t.Fatal(err)
	}
	flows := append(enc.Append(nil, snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-second, noon+second)), '\n')
	for name, text := range map[string]string{"flows.jsonl": string(flows), "whois-audit.jsonl": `{"time":"2026-11-26T12:00:00Z","uid":0}` + "\n", "flows.jsonl.compressing": "\x1f\x8b"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := answer(t, dir, point(noon))
	if a.Verdict != Sole || len(a.Holders) != 1 || slices.ContainsFunc(a.Missing, func(r Reason) bool { return r.Kind == "unreadable" }) {
		t.Errorf("%s, %v", a.Verdict, a.Missing)
	}
	if err := os.WriteFile(filepath.Join(dir, "flows.jsonl"), []byte("\x1f\x8b"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open([]string{dir}, nil, nil, nil)
	if err == nil {
		err = s.Prepare(context.Background(), []*Question{point(noon)})
	}
	if err == nil {
		t.Error("a file that cannot be read was left alone")
	}
}

// TestAudit: each answer is a line that was appended; without it there is none.
func TestAudit(t *testing.T) {
	dir := small(t)
	q := point(noon)
	q.Case = "77"
	a := answer(t, dir, q)
	for range 2 {
		if err := Audit("audit.jsonl", Who{UID: 1000, User: "abuse", SudoUser: "eve"}, []*Answer{a}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile("audit.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[1], `"sudo_user":"eve"`) || !strings.Contains(lines[1], `"case":"77"`) || !strings.Contains(lines[1], `"verdict":"sole"`) || !strings.Contains(lines[1], `"address":"203.0.113.5","port":40000`) {
		t.Errorf("%s", text)
	}
	if err := Audit("no/such/audit", Who{}, []*Answer{a}); err == nil || !strings.Contains(err.Error(), "no answer without") {
		t.Errorf("%v", err)
	}
}

// TestPrivateDestination: who reports from behind a NAT writes a destination that the firewall has never seen. That hides
// the holder, so the answer is not complete; one who did talk to a private address is found.
func TestPrivateDestination(t *testing.T) {
	dir := small(t)
	for _, c := range []struct {
		public, dst string
		want        string
		complete    bool
	}{
		{"203.0.113.5:40000", "10.0.0.5:443", None, false},
		{"203.0.113.5:40000", "100.64.0.9", None, false},
		{"203.0.113.5:40000", "127.0.0.1:443", None, false},
		{"203.0.113.5:40000", "198.51.100.99:443", None, true},
		{"203.0.113.5:40000", "198.51.100.80:443", Sole, true},
	} {
		q := &Question{From: noon, To: noon + second - 1}
		var err error
		if q.Public, err = ParseEnd(c.public); err != nil {
			t.Fatal(err)
		}
		if q.Dst, err = ParseEnd(c.dst); err != nil {
			t.Fatal(err)
		}
		if a := answer(t, dir, q); a.Verdict != c.want || a.Complete != c.complete {
			t.Errorf("%s to %s: %s, complete %t, %v; want %s, %t", c.public, c.dst, a.Verdict, a.Complete, a.Missing, c.want, c.complete)
		}
	}
}

// TestSpans: what catalogs say of rules makes spans; a copy of the last days knows by the day's own lines.
func TestSpans(t *testing.T) {
	line := func(at, from int64, leftOut, before string) archive.Line {
		return archive.Line{Kind: archive.KindRules, At: archive.Time(at), Rules: &archive.Rules{From: archive.Time(from), LeftOut: []byte(leftOut), Before: []byte(before)}}
	}
	lines := []archive.Line{{Kind: archive.KindSegment}, line(10, 8, "A", ""), line(20, 8, "A", ""), line(30, 28, "B", "A"), line(40, 40, "", "B"), line(50, 49, "A", "")}
	whole := []span{{from: 8, to: 30, rules: []byte("A")}, {from: 28, to: 40, rules: []byte("B")}, {from: 49, to: inForce, rules: []byte("A")}}
	for skip, want := range [][]span{whole, whole, whole,
		{{from: -1 << 62, to: 30, rules: []byte("A")}, {from: 28, to: 40, rules: []byte("B")}, {from: 49, to: inForce, rules: []byte("A")}},
		{{from: -1 << 62, to: 40, rules: []byte("B")}, {from: 49, to: inForce, rules: []byte("A")}},
		{{from: 49, to: inForce, rules: []byte("A")}},
	} {
		if d := cmp.Diff(want, spans(lines[skip:]), cmp.AllowUnexported(span{})); d != "" {
			t.Errorf("without the first %d lines (-want +got):\n%s", skip, d)
		}
	}
	back := []archive.Line{line(10, 8, "A", ""), line(5, 5, "", "A")}
	if d := cmp.Diff([]span{{from: 5, to: 8, rules: []byte("A")}}, spans(back), cmp.AllowUnexported(span{})); d != "" {
		t.Errorf("of a clock that was set back (-want +got):\n%s", d)
	}
	if got := spans(nil); got != nil {
		t.Errorf("of no lines: %v", got)
	}
}

// TestClockOfNobody: where nobody is found, the records around tell that the clock was not synchronised: of other flows, or of
// checkpoints alone; sealed, in a row log, or in lines.
func TestClockOfNobody(t *testing.T) {
	done := func(at int64, has flow.Has) *flow.Record {
		return &flow.Record{Event: flow.EventOpen, Has: has, Start: at, Stop: at + second, Received: at + second, Timeout: 3600, Extra: &flow.Extra{Checkpoint: flow.CheckpointWhole}}
	}
	other := func(at int64, has flow.Has) *flow.Record {
		return with(snat("10.1.1.1:1", "9.9.9.9:9", 1, at-second, at), has)
	}
	for name, recs := range map[string]func(flow.Has) []*flow.Record{
		"flows": func(has flow.Has) []*flow.Record {
			return []*flow.Record{other(noon-hour, 0), other(noon+hour, has), done(noon+2*hour, 0)}
		},
		"checkpoints": func(has flow.Has) []*flow.Record {
			return []*flow.Record{done(noon-hour, has), done(noon, has), done(noon+2*hour, has)}
		},
	} {
		for _, has := range []flow.Has{0, flow.Unsynchronized} {
			want := map[flow.Has]int{0: ExitNone, flow.Unsynchronized: ExitIncomplete}[has]
			for where, records := range map[string]uint64{"sealed": 3, "row log": 4} {
				dir := t.TempDir()
				a := openArchive(t, noon, archive.Options{Dir: dir, Records: records})
				if _, err := a.Append(recs(has)); err != nil {
					t.Fatal(err)
				}
				closeArchive(t, a, func() bool { return records != 3 || a.Stats.Seals.Load() > 0 })
				if got := answer(t, dir, point(noon)); got.Verdict != None || got.Exit() != want {
					t.Errorf("%s, %s, flags %x: %s, exit status %d, want %d: %v", name, where, has, got.Verdict, got.Exit(), want, got.Missing)
				}
			}
			enc, err := format.New("flat", format.Options{Host: "gw1", Observer: "obs"})
			if err != nil {
				t.Fatal(err)
			}
			var text []byte
			for _, r := range recs(has) {
				text = append(enc.Append(text, r), '\n')
			}
			file := filepath.Join(t.TempDir(), "flows.jsonl")
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			got := answer(t, file, point(noon)) // lines have no checkpoints: they are never complete
			if told := slices.ContainsFunc(got.Missing, func(r Reason) bool { return r.Kind == "clock_unsynchronized" }); got.Verdict != None || told != (has != 0) {
				t.Errorf("%s, lines, flags %x: %s, %v\n%s", name, has, got.Verdict, got.Missing, text)
			}
		}
	}
}
