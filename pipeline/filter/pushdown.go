package filter

import "github.com/ctlogd/ctlogd/flow"

// Pushdown says which records no output wants, as far as that can be told from what a socket filter in the kernel
// reads cheaply: the kind of the event, the address family and the protocol of the original tuple. The zero value
// drops nothing.
//
// It speaks of records for the outputs. A message that is wanted for another reason, such as a NEW whose helper is to
// be remembered for later records, must pass whatever it says.
type Pushdown struct {
	// Drop is indexed by flow.Event, by family (0 IPv4, 1 IPv6) and by protocol.
	Drop [len(flow.EventNames)][2][256]bool
}

// Drops reports whether no output wants such a record. A message whose protocol cannot be told must pass.
func (s *Pushdown) Drops(e flow.Event, v6 bool, p flow.Proto) bool {
	return int(e) < len(s.Drop) && s.Drop[e][family(v6)][p]
}

// Empty reports whether nothing is dropped, so that no socket filter is needed.
func (s *Pushdown) Empty() bool { return *s == Pushdown{} }

// NewPushdown returns what every output provably drops, where outputs has one filter, possibly empty, for each output. It
// is sound and not complete: for a record in Drop, whatever its other fields, the global filter or each output's own
// returns false; some records that all filters drop are not in it.
func NewPushdown(global Config, outputs []Config) Pushdown {
	globalRules := global.compileValid()
	outputRules := make([][]rule, len(outputs))
	for i, o := range outputs {
		outputRules[i] = o.compileValid()
	}
	dropped := func(k *flow.Record) bool {
		if surelyDrops(globalRules, k) {
			return true
		}
		for _, rules := range outputRules {
			if !surelyDrops(rules, k) {
				return false
			}
		}
		return len(outputRules) > 0
	}
	var s Pushdown
	for e := flow.EventNew; e < flow.EventGap; e++ {
		for _, v6 := range []bool{false, true} {
			for p := range 256 {
				k := flow.Record{Event: e, Has: flow.HasOrig, Orig: flow.Tuple{Proto: flow.Proto(p), V6: v6}}
				s.Drop[e][family(v6)][p] = dropped(&k)
			}
		}
	}
	return s
}

// surelyDrops reports whether the rules drop every record that has k's event, family and protocol.
func surelyDrops(rules []rule, k *flow.Record) bool {
	for i := range rules {
		sure, may := rules[i].possible(k)
		switch {
		case !may:
		case rules[i].accept:
			return false
		case sure:
			return true // what an earlier rule may have matched it has dropped
		}
	}
	return false
}

// possible reports whether the rule surely matches, and whether it may match, a record of k's event, family and
// protocol.
func (r *rule) possible(k *flow.Record) (sure, may bool) {
	sure = true
	for i := range r.conds {
		c := &r.conds[i]
		v := verdictAny
		if c.possible != nil {
			v = c.possible(k)
		}
		if v&c.want == 0 {
			return false, false
		}
		sure = sure && v == c.want
	}
	return sure, true
}

func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}
