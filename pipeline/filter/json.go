package filter

import (
	"bytes"
	"encoding/json"
	"fmt"

	"gopkg.in/yaml.v3"
)

// Encode returns lists of rules as compact JSON, an array of arrays, for ParseLists. Keys and values are those of the
// configuration. Nothing is left of lists that can keep no flow out (Hides); if that is all of them, it is nil.
func Encode(lists ...Config) (json.RawMessage, error) {
	var all []any
	for _, c := range lists {
		if !c.Hides(0, false) {
			continue
		}
		text, err := yaml.Marshal(c)
		if err != nil {
			return nil, err
		}
		var rules any
		if err := yaml.Unmarshal(text, &rules); err != nil {
			return nil, err
		}
		all = append(all, prune(rules))
	}
	if all == nil {
		return nil, nil
	}
	return json.Marshal(all)
}

// prune takes what is not set out of decoded YAML.
func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, e := range v {
			if e = prune(e); e == nil {
				delete(v, key)
			} else {
				v[key] = e
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
		if len(v) == 0 {
			return nil
		}
	}
	return v
}

// ParseLists reads what Encode has written. Rules that this version does not know are an error.
func ParseLists(text json.RawMessage) (lists []Config, err error) {
	d := yaml.NewDecoder(bytes.NewReader(text)) // JSON is YAML
	d.KnownFields(true)
	if err := d.Decode(&lists); err != nil {
		return nil, err
	}
	for _, c := range lists {
		c.Validate(func(field, msg string) { err = fmt.Errorf("%s: %s", field, msg) })
		if err != nil {
			return nil, err
		}
	}
	return lists, nil
}
