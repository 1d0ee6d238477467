package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/unit"
)

const example = "name: x"

// block has every kind of value that a configuration has.
type block struct {
	Name    string        `yaml:"name"`
	On      bool          `yaml:"on"`
	Number  int           `yaml:"number"`
	Port    uint16        `yaml:"port"`
	Ratio   float64       `yaml:"ratio"`
	Size    unit.Size     `yaml:"size"`
	Time    time.Duration `yaml:"time"`
	Maybe   *int          `yaml:"maybe"`
	Words   []string      `yaml:"words"`
	Entries []inner       `yaml:"entries"`
	Inner   *inner        `yaml:"inner"`
	inline  `yaml:",inline"`
	hidden  string `yaml:"hidden"` //lint:ignore U1000 an unexported field is no key
	NoKey   string
}

type inline struct {
	Inlined string `yaml:"inlined"`
}

type inner struct {
	Key  string `yaml:"key"`
	Rest int    `yaml:"rest"`
}

func (i *inner) Defaults() { i.Rest = 7 }

func (i *inner) Removed() map[string]string { return map[string]string{"former": "write key"} }

func TestDecode(t *testing.T) {
	const text = `
name: &n a name
on: true
number: 0x10
port: 443
ratio: 2
size: 10M
time: 1d12h
maybe: 1_000
words: *n
entries: [{key: a}, {key: b, rest: 1}]
inner: {<<: {key: under, rest: 3}, key: over}
inlined: in
`
	var got block
	if err := Decode([]byte(text), &got, example).Err("f"); err != nil {
		t.Fatal(err)
	}
	want := block{Name: "a name", On: true, Number: 16, Port: 443, Ratio: 2, Size: 10 << 20, Time: 36 * time.Hour,
		Maybe: new(1000), Words: []string{"a name"}, Entries: []inner{{"a", 7}, {"b", 1}}, Inner: &inner{"over", 3},
		inline: inline{Inlined: "in"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(block{}, inline{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "f:1: the file is empty; the least is: name: x",
		"name: [a]":                    "f:1: name: a list; write one text",
		"nme: a\non: 3":                "f:1: nme: unknown key; did you mean name? allowed here: name, on, number, port, ratio, size, time, maybe, words, entries, inner, inlined\nf:2: on: \"3\"; write true or false",
		"inner: {former: 1}":           "f:1: inner.former: there is no such key any more: write key",
		"entries:\n- key: a\n- key: ~": "f:3: entries[1].key: empty; give it a value, or leave the key out",
		"number: 1\nnumber: 2":         "f:2: number: given twice, first on line 1",
		"time: 5":                      `f:1: time: "5" is not a duration such as 500ms, 30s, 1h30m or 7d`,
		"size: 10X":                    `f:1: size: "10X" is not a size such as 65536, 512KiB, 64MiB or 10G`,
		"port: 70000\nnumber: 1.5":     "f:1: port: \"70000\" is out of range\nf:2: number: \"1.5\"; write a whole number",
		"number: three":                "f:1: number: \"three\"; write a whole number",
		"number: \"3\"":                "f:1: number: \"3\"; write a whole number, without quotes",
		"name: a: b":                   "f:1: a key is not expected here; check the indentation, and quote a value that has a colon and a space in it",
		"a: &a [*a]\nentries: *a":      "f:1: a: unknown key; allowed here: name, on, number, port, ratio, size, time, maybe, words, entries, inner, inlined\nf:1: entries[0]: *a stands for a value that it is itself part of",
	} {
		var b block
		if got := fmt.Sprint(Decode([]byte(text), &b, example).Err("f")); got != want {
			t.Errorf("%q:\n%s\nwant\n%s", text, got, want)
		}
	}
}

// What only follows from another mistake is not reported.
func TestFollowUps(t *testing.T) {
	for _, tt := range []struct{ text, path, msg, want string }{
		{"number: 1", "number", "too small", "f:1: number: too small"},
		{"number: x", "number", "missing", "unreadable"}, // the same key
		{"inner: x", "inner.key", "missing", "unreadable"},
		{"entries: [{key: [x]}]", "entries", "an entry is missing", "unreadable"}, // above it
		{"size: 10X\nnumber: 3", "number", "3 needs size", "unreadable"},          // beside it, named
		{"size: 10X\nnumber: 3", "number", "3 is odd", "unreadable\nf:2: number: 3 is odd"},
		{"size: 10X\nnumber: 3", "number", "3 oversize", "unreadable\nf:2: number: 3 oversize"},
		{"words: [[a], b]\nnumber: 3", "number", "3 needs words", "unreadable"}, // an entry of the list
		{"inner: {rest: x}\nnumber: 3", "number", "3 needs rest", "unreadable\nf:2: number: 3 needs rest"},
		{"inner: {rest: x}\nnumber: 3", "number", "3 needs inner.rest", "unreadable"}, // elsewhere, by its path
	} {
		var b block
		d := Decode([]byte(tt.text), &b, example)
		d.Report()(tt.path, tt.msg)
		var wrong *Error
		if !errors.As(d.Err("f"), &wrong) {
			t.Fatalf("%s: no error", tt.text)
		}
		got := strings.Join(wrong.Lines(), "\n")
		if want, rest, _ := strings.Cut(tt.want, "\n"); want == "unreadable" {
			first, more, _ := strings.Cut(got, "\n")
			if first == "" || more != rest {
				t.Errorf("%s: %s: %s: got %q, want one line and %q", tt.text, tt.path, tt.msg, got, rest)
			}
		} else if got != tt.want {
			t.Errorf("%s: %s: %s: got %q, want %q", tt.text, tt.path, tt.msg, got, tt.want)
		}
	}
	// One that was found by a block, not by the walk.
	var b block
	d := Decode([]byte("inner: {rest: 1}\nnumber: 3"), &b, example)
	report := d.Report()
	report("inner.rest", "is odd")
	report("number", "inner.rest has no 3")
	if got, want := d.Err("f").Error(), "f:1: inner.rest: is odd"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Whatever the text, the walk ends without a panic, in values or in mistakes that name a line of the text, each in one
// line of its own.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("../cmd/ctlogd/testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("name: &n a\nentries: [&e {key: *n}, {<<: [*e, {rest: 3}]}]\ninner: *e\ntime: 1w2d\nsize: 10 g"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var b block
		d := Decode(text, &b, example)
		d.Report()("entries[1].rest", "needs name and inner.key")
		err := d.Err("f")
		if err == nil {
			t.Fatal("the report is gone, and nothing else is wrong")
		}
		last, lines := 1, strings.Count(string(text), "\n")+1
		for _, fault := range err.(*Error).Faults {
			if fault.Line < last || fault.Line > lines {
				t.Errorf("line %d after %d in a text of %d lines: %s", fault.Line, last, lines, fault.Msg)
			}
			last = fault.Line
			if fault.Msg == "" || strings.ContainsAny(fault.Text("f"), "\n\r\x00\x1b") {
				t.Errorf("no message, or one of more than a line: %q", fault.Text("f"))
			}
		}
	})
}
