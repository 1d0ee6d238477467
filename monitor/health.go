package monitor

import (
	"cmp"
	"fmt"
	"time"
)

// State is how the daemon fares.
type State string

const (
	StateOK       State = "ok"
	StateDegraded State = "degraded" // it works, and something is lost, late, or about to be
	StateDown     State = "down"     // events are not read
)

// What is not well. The alert rules in packaging/prometheus have the same bounds.
const (
	stuckAfter = 10 * time.Second // the reader goes round once a second at least
	recentGap  = 10 * time.Minute
	lateAfter  = time.Minute
	staleAfter = 5 * time.Minute
	tableFull  = 0.8
	spoolFull  = 0.8
	queueFull  = 0.8
)

// alive reports whether the reader makes progress, or what is left is being delivered.
func (s *Snapshot) alive() bool { return s.Stopping || s.Time.Sub(s.Reader.Round) <= stuckAfter }

// Judge fills in State and Reasons from the rest.
func (s *Snapshot) Judge() {
	s.State, s.Reasons = StateOK, []string{}
	say := func(state State, format string, args ...any) {
		if s.State != StateDown {
			s.State = state
		}
		s.Reasons = append(s.Reasons, fmt.Sprintf(format, args...))
	}
	if !s.alive() {
		say(StateDown, "reader: no progress for %s", s.Time.Sub(s.Reader.Round).Round(time.Second))
	}
	if s.Stopping {
		say(StateDown, "ending: what is left is delivered")
	}
	gaps := func(prefix string, gaps []Gap) {
		for _, g := range gaps {
			if age := s.Time.Sub(g.Last); g.Gaps > 0 && age < recentGap {
				say(StateDegraded, "%sgap %s ago: %s, %s for it since the start",
					prefix, age.Round(time.Second), g.Cause, g.lost())
			}
		}
	}
	gaps("", s.Gaps)
	for _, o := range s.Outputs {
		at := o.Name + ": "
		if o.Failing {
			say(StateDegraded, "%sfailing for %s: %s", at, s.Time.Sub(o.Since).Round(time.Second), o.Error)
		} else if o.OldestAge > lateAfter.Seconds() {
			say(StateDegraded, "%s%s late", at, time.Duration(o.OldestAge*float64(time.Second)).Round(time.Second))
		}
		if o.Max > 0 && float64(o.Used) > queueFull*float64(o.Max) {
			say(StateDegraded, "%squeue %.0f %% full", at, 100*float64(o.Used)/float64(o.Max))
		}
		if p := o.Spool; p != nil && p.Max > 0 && float64(p.Bytes) > spoolFull*float64(p.Max) {
			say(StateDegraded, "%sspool %.0f %% full", at, 100*float64(p.Bytes)/float64(p.Max))
		}
		gaps(at, o.Gaps)
	}
	if k := s.Kernel; k.Error != "" {
		say(StateDegraded, "kernel: %s", k.Error)
	} else if k.Limit > 0 && float64(k.Entries) > tableFull*float64(k.Limit) {
		say(StateDegraded, "kernel: table %.0f %% full, %d of %d", 100*float64(k.Entries)/float64(k.Limit), k.Entries, k.Limit)
	}
	if u := s.Subscribers; u != nil {
		for _, o := range u.Sources {
			if o.Age > staleAfter.Seconds() {
				say(StateDegraded, "subscribers: %s was read %s ago, and records name whom it named then: %s", o.Name,
					time.Duration(o.Age*float64(time.Second)).Round(time.Second), cmp.Or(o.Error, "its disk does not answer"))
			}
		}
	}
	if n := s.Namespaces; n != nil {
		if !n.Heard {
			say(StateDegraded, "network namespaces: events of others are not heard, as CAP_NET_BROADCAST is missing")
		} else if closed := n.Closed(); closed > 0 {
			say(StateDegraded, "network namespaces: %d cannot be entered, so their tables are neither read nor guarded", closed)
		}
		if most := n.Fullest(); most != nil && s.Kernel.Limit > 0 && float64(most.Entries) > tableFull*float64(s.Kernel.Limit) {
			say(StateDegraded, "network namespace %s: table %.0f %% full, %d of %d", most.Name,
				100*float64(most.Entries)/float64(s.Kernel.Limit), most.Entries, s.Kernel.Limit)
		}
	}
	if m := s.Mark; m.Failing {
		say(StateDegraded, "state directory of no use for %s: %s", s.Time.Sub(m.Since).Round(time.Second), m.Error)
	}
	if r := s.Reloads; r.Failed > 0 && !r.LastOK {
		say(StateDegraded, "configuration: the last reload failed, %s ago; the old one stays",
			s.Time.Sub(r.Last).Round(time.Second))
	}
}
