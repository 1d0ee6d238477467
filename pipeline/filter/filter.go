package filter

import (
	"fmt"
	"strconv"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/unit"
)

// Config is a list of rules. The first rule that matches a record decides; a record that no rule matches is
// accepted. docs/filter.md describes it for operators.
type Config []Rule

// Rule applies its action to every record for which all matchers of Match hold and all those of Not hold negated. A
// rule without matchers applies to every record.
type Rule struct {
	Action string `yaml:"action"` // accept or drop
	Match  Match  `yaml:"match"`
	Not    Match  `yaml:"not"`
}

// Match is a set of matchers; those that are nil are absent. A matcher on a value that the record does not have never
// holds, negated or not. The lists hold text as written: Validate and Compile read it by the same functions, so that
// every mistake has its place and its message.
type Match struct {
	Event  List[string] `yaml:"event"`
	NAT    List[string] `yaml:"nat"`
	Proto  List[string] `yaml:"proto"`
	Family List[string] `yaml:"family"`
	Helper List[string] `yaml:"helper"`

	Src    List[string] `yaml:"src"`
	Dst    List[string] `yaml:"dst"`
	NATSrc List[string] `yaml:"nat_src"`
	NATDst List[string] `yaml:"nat_dst"`

	Host List[string] `yaml:"host"` // any of these ends
	Net  List[string] `yaml:"net"`

	SrcPort    List[string] `yaml:"src_port"`
	DstPort    List[string] `yaml:"dst_port"`
	NATSrcPort List[string] `yaml:"nat_src_port"`
	NATDstPort List[string] `yaml:"nat_dst_port"`
	Port       List[string] `yaml:"port"` // of any of these ends

	Subscriber List[string] `yaml:"subscriber"` // at the start or at the end

	Netns  List[string] `yaml:"netns"`
	Zone   List[string] `yaml:"zone"`
	Mark   List[string] `yaml:"mark"`
	Labels List[string] `yaml:"labels"`
	Status List[string] `yaml:"status"` // all of them; of the other lists, one suffices

	MinBytes    *unit.Size     `yaml:"min_bytes"`   // of both directions
	MinPackets  *uint64        `yaml:"min_packets"` // of both directions
	MinDuration *time.Duration `yaml:"min_duration"`
}

// Func reports whether a record is accepted. Gap records always are: a filter chooses among records, it does not
// hide that some are missing. A Func keeps no state, and may be called from any goroutine.
type Func func(*flow.Record) bool

// Validate reports every mistake in the rules. field is the path below the list: "[0].match.proto[1]".
func (c Config) Validate(report func(field, msg string)) { c.compile(report) }

// Compile returns the rules as a Func, nil if there are none. It gives nil, which accepts everything, for rules to
// which Validate objects too: a mistake must not cost records.
func (c Config) Compile() Func {
	rules := c.compileValid()
	if rules == nil {
		return nil
	}
	return func(r *flow.Record) bool {
		if r.Event >= flow.EventGap {
			return true
		}
		for i := range rules {
			if rules[i].match(r) {
				return rules[i].accept
			}
		}
		return true
	}
}

// rule is a compiled Rule.
type rule struct {
	conds  []condition
	accept bool
}

func (r *rule) match(rec *flow.Record) bool {
	for i := range r.conds {
		if c := &r.conds[i]; c.eval(rec) != c.want {
			return false
		}
	}
	return true
}

// compileValid returns the compiled rules, nil if there are none or one is not valid.
func (c Config) compileValid() []rule {
	valid := true
	rules := c.compile(func(string, string) { valid = false })
	if !valid {
		return nil
	}
	return rules
}

func (c Config) compile(report func(field, msg string)) []rule {
	var rules []rule
	for i := range c {
		r := &c[i]
		sub := func(field, msg string) { report("["+strconv.Itoa(i)+"]."+field, msg) }
		switch r.Action {
		case "accept", "drop":
		case "":
			sub("action", "missing action; use accept or drop")
		default:
			sub("action", fmt.Sprintf("unknown action %q; use accept or drop", r.Action))
		}
		conds := r.Match.compile(verdictYes, func(field, msg string) { sub("match."+field, msg) })
		conds = append(conds, r.Not.compile(verdictNo, func(field, msg string) { sub("not."+field, msg) })...)
		rules = append(rules, rule{conds: conds, accept: r.Action == "accept"})
	}
	return rules
}
