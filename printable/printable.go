// Package printable makes foreign text safe to print. Names in certificates, what a server answers, helpers, labels and
// the like come from others, and a terminal obeys escape sequences wherever they come from. Everything that ctlogd
// prints or logs and that it did not write itself passes here.
package printable

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text returns s as a line of text. What is not printable is written as an escape: control characters, line ends, marks
// that turn the direction of writing, bytes that are no UTF-8.
func Text(s string) string {
	if isText(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == ' ' || unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	return b.String()
}

func isText(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Lines is Text for a text of several lines, which stay lines.
func Lines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = Text(lines[i])
	}
	return strings.Join(lines, "\n")
}

// Word returns s as one word of ASCII: what is not printable, a blank, and what is no ASCII is written as in a C string,
// \x1b, and a backslash as two. So a column of words stays a column, and the word can be read back.
func Word(s string) string {
	const hex = "0123456789abcdef"
	var b []byte
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\\':
			b = append(b, `\\`...)
		case c <= ' ' || c >= 0x7f:
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return string(b)
}
