package main

import (
	"bytes"
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// A fault is one mistake in a configuration file.
type fault struct {
	line int
	path string // the key, "outputs.jsonl[1].path"; empty for the file as a whole
	msg  string // what is wrong; what is allowed
}

// FileError is every mistake that one configuration file has, sorted by line. Its text has a line for each:
//
//	ctlogd.yaml:42: outputs.jsonl[1].path: missing; write ...
type FileError struct {
	file   string
	faults []fault
}

func (e *FileError) Error() string { return strings.Join(e.lines(), "\n") }

func (e *FileError) lines() []string {
	lines := make([]string, len(e.faults))
	for i, f := range e.faults {
		lines[i] = fmt.Sprintf("%s:%d: ", e.file, f.line)
		if f.path != "" {
			lines[i] += f.path + ": "
		}
		lines[i] += f.msg
	}
	return lines
}

// A decoder fills a Go value from a YAML document by the value's yaml tags. It does so itself, instead of leaving it to
// the yaml package, so that all mistakes are found in one pass, each with its line and its key, in words that do not
// speak of Go. It knows what configurations are made of: structs (also inline), pointers, slices, scalars, and types
// that read themselves from text. What the document does not mention keeps the value it had.
type decoder struct {
	lines  map[string]int // where each key that the document has stands
	faults []fault
	broken []string // keys, present or perhaps meant, whose values are not to be believed

	aliases map[*yaml.Node]bool // those being expanded
	expands int                 // nodes visited under them
	told    map[fault]bool      // faults found under them, whatever the path
}

// maxExpanded bounds the nodes that aliases may stand for: nested ones grow exponentially.
const maxExpanded = 250_000

// defaulter is a block that is not all zeros by default. In a list, each entry starts from there.
type defaulter interface{ Defaults() }

// decodeYAML fills v, a pointer to a struct, from a text that holds one document. The decoder that it returns knows the
// mistakes, and the lines for those that are found later.
func decodeYAML(text []byte, v any) *decoder {
	d := &decoder{lines: map[string]int{"": 1}, aliases: map[*yaml.Node]bool{}, told: map[fault]bool{}}
	if root := d.parse(text); root != nil {
		d.value(root, reflect.ValueOf(v).Elem(), "")
	} else {
		d.broken = append(d.broken, "")
	}
	return d
}

// validation returns a function by which a block says what is wrong with its values. What has been found wrong with
// the key before, with one above or one below it, stands; a value that could not be read would only be called missing.
func (d *decoder) validation() func(path, msg string) {
	broken, above := map[string]bool{}, map[string]bool{}
	for _, b := range d.broken {
		broken[b] = true
		for ; !above[b]; b = parent(b) { // the document is its own parent
			above[b] = true
		}
	}
	return func(path, msg string) {
		hidden := above[path] || broken[""]
		for p := path; p != "" && !hidden; p = parent(p) {
			hidden = broken[p]
		}
		if !hidden {
			d.faults = append(d.faults, fault{d.line(path), path, msg})
		}
	}
}

// err returns what is wrong with the file so far, nil if nothing is.
func (d *decoder) err(file string) error {
	if len(d.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(d.faults, func(a, b fault) int { return cmp.Compare(a.line, b.line) })
	return &FileError{file, slices.Compact(d.faults)}
}

func (d *decoder) fault(n *yaml.Node, path, format string, args ...any) {
	line := d.line(path)
	if n != nil {
		line = n.Line
	}
	d.broken = append(d.broken, path)
	f := fault{line, path, fmt.Sprintf(format, args...)}
	if len(d.aliases) > 0 { // a mistake in what many aliases stand for is one mistake
		shared := fault{line: f.line, msg: f.msg}
		if d.told[shared] {
			return
		}
		d.told[shared] = true
	}
	d.faults = append(d.faults, f)
}

// line returns where a key stands, or the nearest one above it that is there.
func (d *decoder) line(path string) int {
	for {
		if line, ok := d.lines[path]; ok {
			return line
		}
		path = parent(path)
	}
}

// parent returns the key above: of a.b[1] it is a.b, and of a the document, which is "".
func parent(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

func join(path, key string) string {
	if path == "" || key == "" || key[0] == '[' {
		return path + key
	}
	return path + "." + key
}

// parse returns the text's one document, or nil after a fault.
func (d *decoder) parse(text []byte) *yaml.Node {
	if line, what := foreignBytes(text); line > 0 {
		d.faults = append(d.faults, fault{line, "", what})
		return nil
	}
	var doc, next yaml.Node
	in := yaml.NewDecoder(bytes.NewReader(text))
	err := in.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && (len(doc.Content) == 0 || isNull(doc.Content[0])) {
		d.fault(nil, "", "the file is empty; the least is: %s", leastConfig)
		return nil
	}
	if err != nil {
		d.faults = append(d.faults, syntaxFault(text, err))
		return nil
	}
	switch err := in.Decode(&next); {
	case err == nil:
		d.faults = append(d.faults, fault{next.Line, "",
			"a second document begins here; ctlogd reads one, so remove the ---"})
	case !errors.Is(err, io.EOF):
		d.faults = append(d.faults, syntaxFault(text, err))
	}
	return doc.Content[0]
}

// foreignBytes finds the first line that is no text; the yaml package would not name it. To YAML, some control
// characters end a line as well, which they do to no editor.
func foreignBytes(text []byte) (line int, what string) {
	line = 1
	for l := range bytes.Lines(text) {
		l = bytes.TrimSuffix(bytes.TrimSuffix(l, []byte("\n")), []byte("\r"))
		if !utf8.Valid(l) {
			return line, "not UTF-8; save the file in UTF-8"
		}
		for _, r := range string(l) {
			if unicode.IsControl(r) && r != '\t' || r == '\u2028' || r == '\u2029' {
				return line, fmt.Sprintf("a control character, %U; remove it, or write it as an escape in quotes", r)
			}
		}
		line++
	}
	return 0, ""
}

// syntaxErrors are the messages of the yaml package that are met in practice, in words for those who do not write YAML
// every day.
var syntaxErrors = []struct{ yaml, ours string }{
	{"found a tab character", "a tab in the indentation; use spaces"},
	{"mapping values are not allowed", "a key is not expected here; check the indentation, " +
		"and quote a value that has a colon and a space in it"},
	{"found character that cannot start",
		"a value begins with a character that has a meaning in YAML; quote the value"},
	{"did not find expected key", "a key is expected here; check the indentation"},
	{"did not find expected '-'", "a dash is expected here, as the list goes on; check the indentation"},
	{"did not find expected ',' or ']'", "a list in [ ] is not closed, or lacks a comma"},
	{"did not find expected ',' or '}'", "a block in { } is not closed, or lacks a comma"},
	{"did not find expected node content", "a value is expected here, and each [ and { must be closed"},
	{"found unexpected end of stream", "a quoted text begins here and does not end; add the closing quote"},
}

var (
	yamlError     = regexp.MustCompile(`^yaml: (?:line \d+: )?(.*)`)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced`)
)

// syntaxFault puts an error of the yaml package into our form.
func syntaxFault(text []byte, err error) fault {
	lines := bytes.SplitAfter(text, []byte("\n"))
	at := syntaxLine(lines, err.Error())
	msg := err.Error()
	if m := yamlError.FindStringSubmatch(msg); m != nil {
		msg = m[1]
	}
	if m := unknownAnchor.FindStringSubmatch(msg); m != nil {
		name := keyName(m[1])
		return fault{at, "", fmt.Sprintf("*%s stands for nothing; write &%s before the value to repeat, further up",
			name, name)}
	}
	line := lines[at-1]
	if indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]; bytes.IndexByte(indent, '\t') >= 0 {
		return fault{at, "", syntaxErrors[0].ours}
	}
	for _, e := range syntaxErrors {
		if strings.HasPrefix(msg, e.yaml) {
			return fault{at, "", e.ours}
		}
	}
	return fault{at, "", "not YAML: " + strings.ReplaceAll(msg, "\n", " ")}
}

// syntaxLine finds the line with an error. The yaml package names one in some messages, counted from 0 or from 1, and
// means the error or the beginning of what it is in. But it stops at the first error, so every text that has the line
// with the error gives that error, whatever follows it.
func syntaxLine(lines [][]byte, want string) int {
	return 1 + sort.Search(len(lines)-1, func(i int) bool {
		in := yaml.NewDecoder(bytes.NewReader(bytes.Join(lines[:i+1], nil)))
		var err error
		for err == nil {
			var doc yaml.Node
			err = in.Decode(&doc)
		}
		return err.Error() == want
	})
}

// value fills v from n, the value of the key path.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
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
		d.value(n, p.Elem(), path)
		v.Set(p)
		return
	}
	switch {
	case isScalar(v.Type()):
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
func (d *decoder) follow(n *yaml.Node, path string) (*yaml.Node, func()) {
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
func (d *decoder) block(n *yaml.Node, v reflect.Value, path string, taken map[string]bool) {
	fields := fieldsOf(v.Type())
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
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
		at := join(path, keyName(key.Value))
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
			d.unknown(key, path, names)
		default:
			d.lines[at] = key.Line
			d.value(val, v.FieldByIndex(fields[j].index), at)
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

// merge fills the fields of v that are not taken from the value of a << key: a block, or a list of blocks of which the
// first takes precedence.
func (d *decoder) merge(value *yaml.Node, v reflect.Value, path string, taken map[string]bool) {
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
		d.fault(value, join(path, "<<"), "%s; << takes a block, or a list of blocks", describe(n))
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
			d.fault(item, join(path, "<<"), "%s; << takes a block, or a list of blocks", describe(b))
		}
		done()
	}
}

// unknown reports a key that is none of names. One that was perhaps meant is not called missing on top of it.
func (d *decoder) unknown(key *yaml.Node, path string, names []string) {
	msg := "unknown key; "
	if near := nearest(key.Value, names); near != "" {
		msg += "did you mean " + near + "? "
		d.broken = append(d.broken, join(path, near))
	}
	d.fault(key, join(path, keyName(key.Value)), "%sallowed here: %s", msg, strings.Join(names, ", "))
}

var plainKey = regexp.MustCompile(`^[\w.<-]{1,40}$`)

// keyName is a key as it stands in a path; foreign ones are quoted, as they may hold anything.
func keyName(key string) string {
	if plainKey.MatchString(key) {
		return key
	}
	return abridged(key)
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	elem := v.Type().Elem()
	var items []*yaml.Node
	switch {
	case n.Kind == yaml.SequenceNode:
		items = n.Content
	case n.Kind == yaml.ScalarNode && isScalar(elem): // one value may stand for a list of one
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
		if b, ok := one.Interface().(defaulter); ok {
			b.Defaults()
		}
		d.value(item, one.Elem(), at)
		list = reflect.Append(list, one.Elem())
	}
	v.Set(list)
}

var durationType = reflect.TypeFor[time.Duration]()

// isScalar reports whether values of a type are written as one plain value.
func isScalar(t reflect.Type) bool {
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
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	want := map[reflect.Kind]string{reflect.Bool: "true or false", reflect.String: "one text"}[v.Kind()]
	switch {
	case v.Type() == durationType:
		want = "a duration such as 500ms, 30s or 1h30m"
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
		t, err := time.ParseDuration(n.Value)
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
			d.fault(nil, path, "%s; write a whole number, without quotes", describe(n))
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
	return abridged(n.Value)
}

// abridged quotes the beginning of a text.
func abridged(text string) string {
	const longest = 40
	if len(text) > longest {
		return fmt.Sprintf("%.*q...", longest, text)
	}
	return strconv.Quote(text)
}

// A field is one key of a block, and where it lies in the struct.
type field struct {
	name  string
	index []int
}

// fieldsOf returns the keys of a block in the order of the struct, those of inline structs in their place.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			for _, in := range fieldsOf(f.Type) {
				fields = append(fields, field{in.name, append([]int{i}, in.index...)})
			}
		case f.IsExported() && name != "" && name != "-":
			fields = append(fields, field{name, []int{i}})
		}
	}
	return fields
}

// nearest returns the name that word is most likely a slip for, "" if none is near.
func nearest(word string, names []string) string {
	word = strings.ReplaceAll(strings.ToLower(word), "-", "_")
	if len(word) > 40 {
		return ""
	}
	best, least := "", min(3, len(word)) // two slips at most, and never every letter
	for _, name := range names {
		if n := distance(word, name); n < least {
			best, least = name, n
		}
	}
	for _, name := range names {
		longer := strings.HasPrefix(word, name) || strings.HasPrefix(name, word)
		if best == "" && longer && min(len(word), len(name)) >= 3 {
			best = name // protocol for proto
		}
	}
	return best
}

// distance counts the letters to insert, remove, change or swap with their neighbour that make b of a.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		for j := range rows[i] {
			if i == 0 || j == 0 {
				rows[i][j] = i + j
				continue
			}
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
