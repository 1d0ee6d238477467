package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// parse returns the text's one document, or nil after a fault.
func (d *Document) parse(text []byte) *yaml.Node {
	if line, what := foreignBytes(text); line > 0 {
		d.faults = append(d.faults, Fault{line, "", what})
		return nil
	}
	var doc, next yaml.Node
	in := yaml.NewDecoder(bytes.NewReader(text))
	err := in.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && (len(doc.Content) == 0 || isNull(doc.Content[0])) {
		d.fault(nil, "", "the file is empty; the least is: %s", d.least)
		return nil
	}
	if err != nil {
		d.faults = append(d.faults, syntaxFault(text, err))
		return nil
	}
	switch err := in.Decode(&next); {
	case err == nil:
		d.faults = append(d.faults, Fault{next.Line, "",
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

// syntaxFault puts an error of the yaml package into our form.
func syntaxFault(text []byte, err error) Fault {
	lines := bytes.SplitAfter(text, []byte("\n"))
	at := syntaxLine(lines, err.Error())
	msg := err.Error()
	if m := regexp.MustCompile(`^yaml: (?:line \d+: )?(.*)`).FindStringSubmatch(msg); m != nil {
		msg = m[1]
	}
	if m := regexp.MustCompile(`^unknown anchor '(.*)' referenced`).FindStringSubmatch(msg); m != nil {
		name := keyName(m[1])
		return Fault{at, "", fmt.Sprintf("*%s stands for nothing; write &%s before the value to repeat, further up",
			name, name)}
	}
	line := lines[at-1]
	if indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]; bytes.IndexByte(indent, '\t') >= 0 {
		return Fault{at, "", syntaxErrors[0].ours}
	}
	for _, e := range syntaxErrors {
		if strings.HasPrefix(msg, e.yaml) {
			return Fault{at, "", e.ours}
		}
	}
	return Fault{at, "", "not YAML: " + strings.ReplaceAll(msg, "\n", " ")}
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
