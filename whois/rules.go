package whois

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/pipeline/filter"
)

// span is how long rules have kept flows out of an archive.
type span struct {
	from, to int64 // to: inForce if they do so still
	rules    json.RawMessage

	read  bool            // what follows is known
	lists []filter.Config // the rules
	odd   bool            // they cannot be read
}

const inForce = 1 << 62

// spans returns what the lines of a catalog say of rules. They are in the order of the chain.
func spans(lines []archive.Line) (all []span) {
	last := -1 // of all: the one in force
	for i := range lines {
		r := lines[i].Rules
		if r == nil {
			continue
		}
		at := int64(lines[i].At)
		if last >= 0 {
			if string(all[last].rules) == string(r.LeftOut) {
				continue
			}
			s := &all[last] // the clock may have been set back
			s.from, s.to = min(s.from, at), max(s.from, at)
		} else if len(all) == 0 && len(r.Before) > 0 { // the line that said so is in no copy
			all = append(all, span{from: -1 << 62, to: at, rules: r.Before})
		}
		last = -1
		if len(r.LeftOut) > 0 {
			last = len(all)
			all = append(all, span{from: int64(r.From), to: inForce, rules: r.LeftOut})
		}
	}
	return all
}

// hide reports whether the rules may have kept out what is asked for: a flow that was alive then and ended while they were in
// force, or was not seen by the checkpoint that saw all. Rules that cannot be read may keep out anything.
func (s *span) hide(f *facts, q *Question) bool {
	if s.to < q.From || f.after != nil && s.from > f.until {
		return false
	}
	if !s.read { // once for many questions
		lists, err := filter.ParseLists(s.rules)
		s.read, s.lists, s.odd = true, lists, err != nil
	}
	return s.odd || slices.ContainsFunc(s.lists, func(c filter.Config) bool { return c.Hides(q.Proto, q.HasProto) })
}

func (s *span) reason(host string) Reason {
	r := Reason{Kind: "filtered", Host: host}
	when := ""
	if s.from > 0 {
		r.From, when = s.from, " from "+short(s.from)
	}
	if s.to != inForce {
		r.To = s.to
		when += " until " + short(s.to)
	} else {
		when += " on"
	}
	r.Text = fmt.Sprintf("A filter kept some flows out of these records%s, and one of them may be meant.", when)
	return r
}
