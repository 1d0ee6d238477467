package ipfix

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Template describes a template as it goes on the wire.
type Template struct {
	ID     uint16
	Name   string // for people; it is not on the wire
	Scopes int    // how many of the first fields are scope fields; 0: no options template
	Size   int    // the most octets that a record takes
	Fields []Field
}

// Field is an information element in a template.
type Field struct {
	Name   string
	PEN    uint32 // 0 for an element of the IANA registry
	ID     uint16
	Length uint16 // 65535: variable
}

// Templates returns the templates that c exports.
func Templates(c Config) (list []Template) {
	for _, t := range newTemplateSet(&c).all {
		d := Template{ID: t.id, Name: t.name, Scopes: t.scopes, Size: t.size}
		for _, e := range t.fields {
			d.Fields = append(d.Fields, Field{e.name, e.pen, e.id, e.len})
		}
		list = append(list, d)
	}
	return list
}

// AllTemplates returns every template that some configuration exports, by id. Enterprise elements, all of them switched
// on, have the number that is set aside for documentation (RFC 5612).
func AllTemplates() (list []Template) {
	own := Enterprise{PEN: 32473}
	for _, e := range enterprise {
		own.Elements = append(own.Elements, e.info.key)
	}
	no := false
	for _, layout := range []string{layoutTimes, layoutRFC8158} {
		for _, destination := range []*bool{nil, &no} {
			for _, e := range []Enterprise{{}, own} {
				for _, t := range Templates(Config{Records: recordsBoth, Layout: layout, Destination: destination, Enterprise: e}) {
					if !slices.ContainsFunc(list, func(other Template) bool { return other.ID == t.ID }) {
						list = append(list, t)
					}
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b Template) int { return int(a.ID) - int(b.ID) })
	return list
}

// String returns the element's number: 8, or 29305/1 for one of an enterprise.
func (f Field) String() string {
	if f.PEN == 0 {
		return fmt.Sprint(f.ID)
	}
	return fmt.Sprintf("%d/%d", f.PEN, f.ID)
}

// WriteTemplates writes two tables in Markdown: the templates with the numbers of their elements in order, and the
// elements.
func WriteTemplates(w io.Writer, templates []Template) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, "| template | name | octets | elements in order |")
	fmt.Fprintln(b, "| ---: | --- | ---: | --- |")
	var fields []Field
	for _, t := range templates {
		var numbers []string
		for i, f := range t.Fields {
			number := f.String()
			if i < t.Scopes {
				number += " (scope)"
			}
			numbers = append(numbers, number)
			if !slices.Contains(fields, f) {
				fields = append(fields, f)
			}
		}
		size := fmt.Sprint(t.Size)
		if slices.ContainsFunc(t.Fields, func(f Field) bool { return f.Length == variable }) {
			size = "up to " + size
		}
		fmt.Fprintf(b, "| %d | %s | %s | %s |\n", t.ID, t.Name, size, strings.Join(numbers, ", "))
	}
	slices.SortFunc(fields, func(a, b Field) int {
		if a.PEN != b.PEN {
			return int(a.PEN) - int(b.PEN)
		}
		return int(a.ID) - int(b.ID)
	})
	fmt.Fprintln(b, "\n| element | name | octets |")
	fmt.Fprintln(b, "| ---: | --- | ---: |")
	for _, f := range fields {
		length := fmt.Sprint(f.Length)
		if f.Length == variable {
			length = "variable"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", f, f.Name, length)
	}
	return b.Flush()
}
