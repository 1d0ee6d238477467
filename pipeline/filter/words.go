package filter

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/unit"
)

// ParseWords compiles matchers that are written as words, nat=snat,dnat or not:src=10.0.0.0/8, to a Func that accepts
// what all of them accept; nil if there are none. They are the matchers of a rule, read by the same code. The error
// names the word and what is allowed.
func ParseWords(words []string) (Func, error) {
	rule := Rule{Action: "accept"}
	from := map[string]string{} // the word behind each matcher, by its place in the rule
	for _, word := range words {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return nil, fmt.Errorf("%q is no WORD=VALUE; write one such as dst_port=443 or not:src=10.0.0.0/8", word)
		}
		match, key := &rule.Match, "match."
		if bare, negated := strings.CutPrefix(name, "not:"); negated {
			match, key, name = &rule.Not, "not.", bare
		}
		v, ok := matcher(match, name)
		if !ok {
			return nil, fmt.Errorf("%q: unknown word %q; use %s, or one of them behind not: for none of these", word, name, orList(MatcherNames()))
		}
		if err := setMatcher(v, value); err != nil {
			return nil, fmt.Errorf("%q: %w", word, err)
		}
		from[key+name] = word
	}
	if len(words) == 0 {
		return nil, nil
	}
	c := Config{rule, {Action: "drop"}}
	var wrong error
	c.Validate(func(field, msg string) {
		field, _, _ = strings.Cut(strings.TrimPrefix(field, "[0]."), "[")
		if wrong == nil {
			wrong = fmt.Errorf("%q: %s", from[field], msg)
		}
	})
	if wrong != nil {
		return nil, wrong
	}
	return c.Compile(), nil
}

// MatcherNames returns the names of all matchers.
func MatcherNames() (names []string) {
	t := reflect.TypeFor[Match]()
	for i := range t.NumField() {
		names = append(names, t.Field(i).Tag.Get("yaml"))
	}
	return names
}

func matcher(m *Match, name string) (v reflect.Value, ok bool) {
	t := reflect.TypeFor[Match]()
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("yaml") == name {
			return reflect.ValueOf(m).Elem().Field(i), true
		}
	}
	return v, false
}

// setMatcher gives a matcher its value. A list that is given again grows.
func setMatcher(v reflect.Value, value string) error {
	if list, ok := v.Addr().Interface().(*List[string]); ok {
		*list = append(*list, strings.Split(value, ",")...)
		return nil
	}
	if !v.IsNil() {
		return fmt.Errorf("given twice")
	}
	v.Set(reflect.New(v.Type().Elem()))
	switch to := v.Interface().(type) {
	case *time.Duration:
		d, err := unit.ParseDuration(value)
		if err != nil {
			return err
		}
		*to = d
	case encoding.TextUnmarshaler:
		return to.UnmarshalText([]byte(value))
	case *uint64:
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", value)
		}
		*to = n
	}
	return nil
}
