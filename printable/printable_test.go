package printable

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestPrintable(t *testing.T) {
	for _, tt := range []struct{ in, text, word string }{
		{"plain text", "plain text", `plain\x20text`},
		{"Käse", "Käse", `K\xc3\xa4se`},
		{"\x1b[31mfail\x1b[0m", `\x1b[31mfail\x1b[0m`, `\x1b[31mfail\x1b[0m`},
		{"a\r\nb\t", `a\r\nb\t`, `a\x0d\x0ab\x09`},
		{"\u009b2J", `\u009b2J`, `\xc2\x9b2J`},
		{"abc\u202ecba", `abc\u202ecba`, `abc\xe2\x80\xaecba`},
		{"\xff\x00", `\xff\x00`, `\xff\x00`},
		{`a\b`, `a\b`, `a\\b`},
		{"", "", ""},
	} {
		if got := Text(tt.in); got != tt.text {
			t.Errorf("Text(%q) = %q, want %q", tt.in, got, tt.text)
		}
		if got := Word(tt.in); got != tt.word {
			t.Errorf("Word(%q) = %q, want %q", tt.in, got, tt.word)
		}
	}
	if got := Lines("a\x07\nb\n"); got != "a\\a\nb\n" {
		t.Errorf("Lines: %q", got)
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("\x1b[2J ftp \\ \u0000\xff")
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range Word(s) {
			if c <= ' ' || c > '~' {
				t.Errorf("Word(%q) has %q", s, c)
			}
		}
		text := Text(s)
		if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("Text(%q) = %q", s, text)
		}
		if Text(text) != text {
			t.Errorf("Text(%q) is not final: %q", text, Text(text))
		}
	})
}
