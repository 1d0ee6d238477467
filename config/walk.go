package config

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/unit"
)

// value fills v from n, the value of the key path.
func (d *Document) value(n *yaml.Node, v reflect.Value, path string) {
	n, done := d.follow(n, path)
	if n == nil {
		return
	}
	defer done()
	if isNull(n) {
		d.fault(nil, path, "empty; give it a value, or leave the key out")
		return
	}
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		if b, ok := p.Interface().(Defaulter); ok {
			b.Defaults()
		}
		d.value(n, p.Elem(), path)
		v.Set(p)
		return
	}
	switch {
	case IsScalar(v.Type()):
		d.scalar(n, v, path)
	case v.Kind() == reflect.Struct:
		d.block(n, v, path, map[string]bool{})
	case v.Kind() == reflect.Slice:
		d.list(n, v, path)
	default:
		panic("ctlogd: configurations have no " + v.Type().String())
	}
}

// follow returns what n stands for if it is an alias, and a function to call when that has been read. It returns nil
// after a fault.
func (d *Document) follow(n *yaml.Node, path string) (*yaml.Node, func()) {
	done := func() {}
	if n.Kind == yaml.AliasNode {
		to := n.Alias
		if d.aliases[to] {
			d.fault(n, path, "*%s stands for a value that it is itself part of", n.Value)
			return nil, nil
		}
		d.aliases[to] = true
		n, done = to, func() { delete(d.aliases, to) }
	}
	if len(d.aliases) > 0 {
		d.expands++
		if d.expands == maxExpanded {
			d.fault(nil, path, "aliases stand for more than %d values; write fewer", maxExpanded)
			d.broken = append(d.broken, "") // what follows is missing
		}
		if d.expands >= maxExpanded {
			done()
			return nil, nil
		}
	}
	return n, done
}

// block fills a struct. Keys that are taken have been filled by a block that n is merged into, which takes precedence.
func (d *Document) block(n *yaml.Node, v reflect.Value, path string, taken map[string]bool) {
	elsewhere := absent(v)
	keys := slices.DeleteFunc(Keys(v.Type()), func(k Key) bool { return elsewhere[k.Name] != "" })
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.Name
	}
	if n.Kind != yaml.MappingNode {
		d.fault(nil, path, "%s; write keys and values here: %s", describe(n), strings.Join(names, ", "))
		return
	}
	seen := map[string]int{}
	var merged []*yaml.Node
	for i := 0; i < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			d.fault(key, path, "%s stands where a key should; allowed here: %s", describe(key),
				strings.Join(names, ", "))
			continue
		}
		at := Join(path, keyName(key.Value))
		if first, dup := seen[key.Value]; dup {
			d.fault(key, at, "given twice, first on line %d", first)
			continue
		}
		seen[key.Value] = key.Line
		j := slices.Index(names, key.Value)
		switch {
		case key.ShortTag() == "!!merge":
			merged = append(merged, val)
		case taken[key.Value]:
		case j < 0:
			if instead := removed(v)[key.Value]; instead != "" {
				d.fault(key, at, "there is no such key any more: %s", instead)
				continue
			}
			if why := elsewhere[key.Value]; why != "" {
				d.fault(key, at, "%s", why)
				continue
			}
			d.unknown(key, path, names)
		default:
			d.lines[at] = key.Line
			d.value(val, v.FieldByIndex(keys[j].Index), at)
		}
	}
	for key := range seen {
		taken[key] = true
	}
	for _, m := range merged {
		d.merge(m, v, path, taken)
	}
}

// removed returns the keys of former versions that the block v knows of, and what to write instead.
func removed(v reflect.Value) map[string]string {
	if r, ok := v.Addr().Interface().(interface{ Removed() map[string]string }); ok {
		return r.Removed()
	}
	return nil
}

// absent returns the keys that the block v has in other builds of the program, and what to say of them.
func absent(v reflect.Value) map[string]string {
	if a, ok := v.Addr().Interface().(interface{ Absent() map[string]string }); ok {
		return a.Absent()
	}
	return nil
}

// merge fills the fields of v that are not taken from the value of a << key: a block, or a list of blocks of which the
// first takes precedence.
func (d *Document) merge(value *yaml.Node, v reflect.Value, path string, taken map[string]bool) {
	n, done := d.follow(value, path)
	if n == nil {
		return
	}
	defer done()
	if n.Kind == yaml.MappingNode {
		d.block(n, v, path, taken)
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.fault(value, Join(path, "<<"), "%s; << takes a block, or a list of blocks", describe(n))
		return
	}
	for _, item := range n.Content {
		b, done := d.follow(item, path)
		if b == nil {
			continue
		}
		if b.Kind == yaml.MappingNode {
			d.block(b, v, path, taken)
		} else {
			d.fault(item, Join(path, "<<"), "%s; << takes a block, or a list of blocks", describe(b))
		}
		done()
	}
}

// unknown reports a key that is none of names. One that was perhaps meant is not called missing on top of it.
func (d *Document) unknown(key *yaml.Node, path string, names []string) {
	msg := "unknown key; "
	if near := nearest(key.Value, names); near != "" {
		msg += "did you mean " + near + "? "
		d.broken = append(d.broken, Join(path, near))
	}
	d.fault(key, Join(path, keyName(key.Value)), "%sallowed here: %s", msg, strings.Join(names, ", "))
}

func (d *Document) list(n *yaml.Node, v reflect.Value, path string) {
	elem := v.Type().Elem()
	var items []*yaml.Node
	switch {
	case n.Kind == yaml.SequenceNode:
		items = n.Content
	case n.Kind == yaml.ScalarNode && IsScalar(elem): // one value may stand for a list of one
		items = []*yaml.Node{n}
	default:
		d.fault(nil, path, "%s; write a list, each entry behind a dash", describe(n))
		return
	}
	// An empty list is not nil, so that it can be told from one that is not there.
	list := reflect.MakeSlice(v.Type(), 0, len(items))
	for i, item := range items {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.lines[at] = item.Line
		one := reflect.New(elem)
		if b, ok := one.Interface().(Defaulter); ok {
			b.Defaults()
		}
		d.value(item, one.Elem(), at)
		list = reflect.Append(list, one.Elem())
	}
	v.Set(list)
}

var durationType = reflect.TypeFor[time.Duration]()

// isScalar reports whether values of a type are written as one plain value.
func IsScalar(t reflect.Type) bool {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return true
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Float64, reflect.Int, reflect.Int64, reflect.Uint16, reflect.Uint32,
		reflect.Uint64:
		return true
	}
	return false
}

// scalar fills v from one plain value. Numbers go by YAML's rules (0x10, 1_000), text stays as it was written.
func (d *Document) scalar(n *yaml.Node, v reflect.Value, path string) {
	want := map[reflect.Kind]string{reflect.Bool: "true or false", reflect.String: "one text"}[v.Kind()]
	switch {
	case v.Type() == durationType:
		want = unit.DurationHelp
	case want == "":
		want = "one number"
	}
	text, reads := v.Addr().Interface().(encoding.TextUnmarshaler)
	if reads {
		want = "one value"
	}
	if n.Kind != yaml.ScalarNode {
		d.fault(nil, path, "%s; write %s", describe(n), want)
		return
	}
	switch kind := v.Kind(); {
	case reads:
		if err := text.UnmarshalText([]byte(n.Value)); err != nil {
			d.fault(nil, path, "%v", err)
		}
	case v.Type() == durationType:
		t, err := unit.ParseDuration(n.Value)
		if err != nil {
			d.fault(nil, path, "%s is not %s", describe(n), want)
		}
		v.SetInt(int64(t))
	case kind == reflect.String:
		v.SetString(n.Value)
	case kind == reflect.Bool:
		if n.Decode(v.Addr().Interface()) != nil {
			d.fault(nil, path, "%s; write true or false", describe(n))
		}
	case kind == reflect.Float64:
		if tag := n.ShortTag(); tag != "!!int" && tag != "!!float" || n.Decode(v.Addr().Interface()) != nil {
			d.fault(nil, path, "%s; write a number", describe(n))
		}
	default: // the yaml package would take 1.5 for 1
		if n.ShortTag() != "!!int" {
			remedy := "write a whole number"
			if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
				remedy += ", without quotes"
			}
			d.fault(nil, path, "%s; %s", describe(n), remedy)
		} else if n.Decode(v.Addr().Interface()) != nil {
			d.fault(nil, path, "%s is out of range", describe(n))
		}
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe names what stands where something else should.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a block of keys"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return describe(n.Alias)
	}
	return Abridged(n.Value)
}
