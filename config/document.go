package config

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/printable"
)

// A Document is a text that was decoded. It knows the mistakes, and where each key stands.
type Document struct {
	least  string         // the smallest text that works: the error for an empty one shows it
	lines  map[string]int // where each key that the document has stands
	faults []Fault
	broken []string // keys, present or perhaps meant, whose values could not be read

	aliases map[*yaml.Node]bool // those being expanded
	expands int                 // nodes visited under them
	found   map[Fault]bool      // faults found under them, whatever the path
}

// maxExpanded bounds the nodes that aliases may stand for: nested ones grow exponentially.
const maxExpanded = 250_000

// Defaulter is a block that is not all zeros by default. Each entry of a list, and a block behind a pointer, starts
// from there.
type Defaulter interface{ Defaults() }

// Decode fills v, a pointer to a struct, from a text that holds one document. least is the smallest configuration that
// works; it stands in the message for an empty file.
func Decode(text []byte, v any, least string) *Document {
	d := &Document{least: least, lines: map[string]int{"": 1}, aliases: map[*yaml.Node]bool{}, found: map[Fault]bool{}}
	if root := d.parse(text); root != nil {
		d.value(root, reflect.ValueOf(v).Elem(), "")
	} else {
		d.broken = append(d.broken, "")
	}
	return d
}

// Report returns a function by which a block says what is wrong with the value of a key. It leaves out what only
// follows from another mistake: a value that could not be read would also be called missing, or be missed by a key that
// needs it.
func (d *Document) Report() func(path, msg string) {
	broken, above := map[string]bool{}, map[string]bool{}
	for _, b := range d.broken {
		broken[b] = true
		for ; !above[b]; b = parent(b) { // the document is its own parent
			above[b] = true
		}
	}
	unreadable := slices.Clone(d.broken)
	return func(path, msg string) {
		hidden := above[path] || broken[""]
		for p := path; p != "" && !hidden; p = parent(p) {
			hidden = broken[p]
		}
		if hidden || d.follows(path, msg, unreadable) {
			return
		}
		d.faults = append(d.faults, Fault{d.Line(path), path, printable.Text(msg)}) // one line, whatever a value has in it
	}
}

// follows reports whether the message is about another key that has a fault already: one of the same block that could
// not be read, by its name, or any one by its whole path.
func (d *Document) follows(path, msg string, unreadable []string) bool {
	block := parent(entry(path))
	for _, b := range unreadable {
		if key := entry(b); b != "" && parent(key) == block && key != entry(path) &&
			mentions(msg, strings.TrimPrefix(key[len(block):], ".")) {
			return true
		}
	}
	for _, f := range d.faults {
		if key := entry(f.Path); strings.Contains(key, ".") && key != entry(path) && mentions(msg, key) {
			return true
		}
	}
	return false
}

// entry returns the key without the index of an entry of its list: of a.b[1] it is a.b.
func entry(path string) string {
	if i := strings.LastIndexByte(path, '['); i >= 0 && strings.HasSuffix(path, "]") {
		return path[:i]
	}
	return path
}

// mentions reports whether a text has a key as a word.
func mentions(text, key string) bool {
	isKey := func(c byte) bool {
		return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
	}
	for from := 0; ; {
		i := strings.Index(text[from:], key)
		if i < 0 {
			return false
		}
		i += from
		end := i + len(key)
		if (i == 0 || !isKey(text[i-1])) && (end == len(text) || !isKey(text[end])) {
			return true
		}
		from = i + 1
	}
}

// Err returns what is wrong with the file so far, an *Error, or nil if nothing is.
func (d *Document) Err(file string) error {
	if len(d.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(d.faults, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
	return &Error{file, slices.Compact(d.faults)}
}

// fault notes what is wrong with a node, nil for the value of path itself.
func (d *Document) fault(n *yaml.Node, path, format string, args ...any) {
	line := d.Line(path)
	if n != nil {
		line = n.Line
	}
	d.broken = append(d.broken, path)
	f := Fault{line, path, fmt.Sprintf(format, args...)}
	if len(d.aliases) > 0 { // a mistake in what many aliases stand for is one mistake
		shared := Fault{Line: f.Line, Msg: f.Msg}
		if d.found[shared] {
			return
		}
		d.found[shared] = true
	}
	d.faults = append(d.faults, f)
}

// Line returns where a key stands, or the nearest one above it that is there.
func (d *Document) Line(path string) int {
	for {
		if line, ok := d.lines[path]; ok {
			return line
		}
		path = parent(path)
	}
}

// parent returns the key above: of a.b[1] it is a.b, and of a the document, which is "".
func parent(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

// Join returns the path of a key in a block, or of an entry in a list.
func Join(path, key string) string {
	if path == "" || key == "" || key[0] == '[' {
		return path + key
	}
	return path + "." + key
}
