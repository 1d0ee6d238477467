package filter

import (
	"reflect"
	"slices"

	"github.com/ctlogd/ctlogd/flow"
)

// Hides reports whether the rules may drop the record of a flow that has carried packets: of one of that protocol, if it
// is known. That is the one of its end, or the open one that an archive's checkpoint has of it while it lives. It looks at
// events, protocols and min_packets alone; whatever else a rule asks for may hold.
func (c Config) Hides(proto flow.Proto, known bool) bool {
	is := func(name string) bool {
		p, ok := flow.ParseProto(name)
		return !ok || p == proto
	}
	end, open := flow.EventDestroy.String(), flow.EventOpen.String()
	for i := range c {
		r := &c[i]
		switch {
		case r.Action != "drop":
			if reflect.ValueOf(r.Match).IsZero() && reflect.ValueOf(r.Not).IsZero() {
				return false // what comes behind is never reached
			}
		case r.Match.Event != nil && !slices.Contains(r.Match.Event, end) && !slices.Contains(r.Match.Event, open),
			slices.Contains(r.Not.Event, end) && slices.Contains(r.Not.Event, open):
		case r.Not.MinPackets != nil && *r.Not.MinPackets <= 1:
		case known && r.Match.Proto != nil && !slices.ContainsFunc(r.Match.Proto, is), known && slices.ContainsFunc(r.Not.Proto, is):
		default:
			return true
		}
	}
	return false
}
