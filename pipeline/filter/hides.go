package filter

import (
	"reflect"
	"slices"

	"github.com/ctlogd/ctlogd/flow"
)

// Hides reports whether the rules may drop the record of a flow that has carried packets: of one of that protocol, if it
// is known. It looks at events, protocols and min_packets alone; whatever else a rule asks for may hold.
func (c Config) Hides(proto flow.Proto, known bool) bool {
	is := func(name string) bool {
		p, ok := flow.ParseProto(name)
		return !ok || p == proto
	}
	end := flow.EventDestroy.String()
	for i := range c {
		r := &c[i]
		switch {
		case r.Action != "drop":
			if reflect.ValueOf(r.Match).IsZero() && reflect.ValueOf(r.Not).IsZero() {
				return false // what comes behind is never reached
			}
		case r.Match.Event != nil && !slices.Contains(r.Match.Event, end), slices.Contains(r.Not.Event, end):
		case r.Not.MinPackets != nil && *r.Not.MinPackets <= 1:
		case known && r.Match.Proto != nil && !slices.ContainsFunc(r.Match.Proto, is), known && slices.ContainsFunc(r.Not.Proto, is):
		default:
			return true
		}
	}
	return false
}
