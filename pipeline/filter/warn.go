package filter

import (
	"fmt"
	"math/bits"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/unit"
)

// Warnings reports rules that are valid and without effect: those that can match nothing, and those that earlier rules
// leave nothing to. It finds what can be told from the rules alone, and does not find all. field is "[2]", the rule.
func (c Config) Warnings(report func(field, msg string)) {
	rules := c.compileValid()
	decided := make([]bool, kinds) // by the rules before
	accepts := false               // some kind, maybe
	for i := range rules {
		field := "[" + strconv.Itoa(i) + "]"
		may, sure := rules[i].kinds()
		if why := c[i].contradiction(); why != "" {
			report(field, "never matches: "+why+"; change or remove one of them")
			continue
		}
		if !slices.Contains(may, true) {
			report(field, "never matches: "+rules[i].exclusion()+"; change or remove one of them")
			continue
		}
		if i > 0 {
			if why := c.coveredBy(i); why != "" {
				report(field, "is never reached: "+why+"; move this rule before it, or remove it")
			} else if left := func(k int) bool { return may[k] && !decided[k] }; !anyKind(left) {
				report(field, "is never reached: the rules before it decide about everything that it matches; move it up, or remove it")
			}
		}
		before := slices.Contains(decided, false)
		for k := range kinds {
			accepts = accepts || rules[i].accept && may[k] && !decided[k]
			decided[k] = decided[k] || sure[k]
		}
		if before && !accepts && !slices.Contains(decided, false) {
			report(field, "leaves nothing but gaps: with it every record is dropped; put a rule before it that accepts what is wanted")
		}
	}
}

// kinds are all records that differ in what Pushdown knows: event, family and protocol.
const kinds = int(flow.EventGap-flow.EventNew) * 2 * 256

// ofKind returns the record of a kind. They are not kept: they would be half of a small daemon's heap.
func ofKind(k int) flow.Record {
	return flow.Record{Event: flow.EventNew + flow.Event(k/512), Has: flow.HasOrig,
		Orig: flow.Tuple{Proto: flow.Proto(k % 256), V6: k/256%2 == 1}}
}

func anyKind(is func(k int) bool) bool {
	for k := range kinds {
		if is(k) {
			return true
		}
	}
	return false
}

// kinds says of each kind whether the rule may match such a record, and whether it surely does.
func (r *rule) kinds() (may, sure []bool) {
	may, sure = make([]bool, kinds), make([]bool, kinds)
	var rec flow.Record
	for k := range kinds {
		rec = ofKind(k)
		sure[k], may[k] = r.possible(&rec)
	}
	return may, sure
}

// exclusion names the matchers by which a rule that matches no kind matches none: one, or two that exclude each other.
func (r *rule) exclusion() string {
	never := func(conds ...condition) bool {
		sub := rule{conds: conds}
		may, _ := sub.kinds()
		return !slices.Contains(may, true)
	}
	for i, a := range r.conds {
		if never(a) {
			return a.key() + " excludes everything"
		}
		for _, b := range r.conds[:i] {
			if never(a, b) {
				return b.key() + " and " + a.key() + " exclude each other"
			}
		}
	}
	return "its matchers exclude each other"
}

// key returns where the matcher stands in the rule.
func (c *condition) key() string {
	if c.want == verdictNo {
		return "not." + c.field
	}
	return "match." + c.field
}

// contradiction says which matcher of the rule its own negation excludes, "" if none does.
func (r *Rule) contradiction() string {
	for _, name := range MatcherNames() {
		if _, given := given(&r.Not, name); given && implies(name, &r.Match, &r.Not) {
			return "match." + name + " and not." + name + " exclude each other"
		}
	}
	return ""
}

// coveredBy says which rule before rule i surely matches whatever rule i matches, "" if none does.
func (c Config) coveredBy(i int) string {
	for j := range i {
		a, b := &c[j], &c[i]
		covers := true
		for _, name := range MatcherNames() {
			if _, needs := given(&a.Match, name); needs && !implies(name, &b.Match, &a.Match) {
				covers = false
				break
			}
			// Who is in none of a's values is, all the more, in none of fewer.
			if _, needs := given(&a.Not, name); needs {
				if _, has := given(&b.Not, name); !has || !implies(name, &a.Not, &b.Not) {
					covers = false
					break
				}
			}
		}
		if covers {
			if len(a.Match.names())+len(a.Not.names()) == 0 {
				return fmt.Sprintf("entry [%d] of this list has no matchers and decides about every record", j)
			}
			return fmt.Sprintf("entry [%d] of this list matches all that this one matches", j)
		}
	}
	return ""
}

// names returns the matchers that are given.
func (m *Match) names() (names []string) {
	for _, name := range MatcherNames() {
		if _, is := given(m, name); is {
			names = append(names, name)
		}
	}
	return names
}

// given returns the value of a matcher, and whether it is there.
func given(m *Match, name string) (v reflect.Value, is bool) {
	v, _ = matcher(m, name)
	return v, !v.IsNil()
}

// maxCompared bounds the work on two long lists.
const maxCompared = 1 << 18

// implies reports whether a record for which the matcher of that name in a says yes surely gets a yes from that in b.
func implies(name string, a, b *Match) bool {
	va, is := given(a, name)
	if !is {
		return false
	}
	vb, is := given(b, name)
	if !is {
		return true
	}
	switch va := va.Interface().(type) {
	case List[string]:
		vb := vb.Interface().(List[string])
		if bits.Len(uint(len(va)))+bits.Len(uint(len(vb))) > bits.Len(maxCompared) {
			return false
		}
		if name == "status" { // all flags of the list, not one of them
			va, vb = vb, va
		}
		for _, x := range va {
			if !slices.ContainsFunc(vb, func(y string) bool { return contains(name, y, x) }) {
				return false
			}
		}
		return true
	case *unit.Size:
		return *va >= *vb.Interface().(*unit.Size)
	case *uint64:
		return *va >= *vb.Interface().(*uint64)
	case *time.Duration:
		return *va >= *vb.Interface().(*time.Duration)
	}
	return false
}

// contains reports whether the value outer of a matcher holds wherever the value inner does.
func contains(name, outer, inner string) bool {
	switch name {
	case "src", "dst", "nat_src", "nat_dst", "host", "net":
		o, oerr := parsePrefix(outer)
		in, ierr := parsePrefix(inner)
		return oerr == nil && ierr == nil && o.Bits() <= in.Bits() && o.Contains(in.Addr())
	case "src_port", "dst_port", "nat_src_port", "nat_dst_port", "port", "zone":
		o, oerr := parsePort(outer)
		in, ierr := parsePort(inner)
		return oerr == nil && ierr == nil && o.from <= in.from && in.to <= o.to
	case "proto":
		o, oerr := parseProto(outer)
		in, ierr := parseProto(inner)
		return oerr == nil && ierr == nil && o == in
	case "mark":
		o, oerr := parseMark(outer)
		in, ierr := parseMark(inner)
		return oerr == nil && ierr == nil && o.mask&^in.mask == 0 && in.value&o.mask == o.value
	}
	return outer == inner
}
