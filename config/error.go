package config

import (
	"fmt"
	"strings"
)

// A Fault is one mistake in a configuration file.
type Fault struct {
	Line int
	Path string // the key, "outputs.jsonl[1].path"; empty for the file as a whole
	Msg  string // what is wrong; what is allowed
}

// Text returns the fault as one line: "ctlogd.yaml:42: outputs.jsonl[1].path: missing; write ...".
func (f Fault) Text(file string) string {
	if f.Path == "" {
		return fmt.Sprintf("%s:%d: %s", file, f.Line, f.Msg)
	}
	return fmt.Sprintf("%s:%d: %s: %s", file, f.Line, f.Path, f.Msg)
}

// Error is every mistake that one configuration file has, sorted by line. Its text has a line for each.
type Error struct {
	File   string
	Faults []Fault
}

func (e *Error) Error() string { return strings.Join(e.Lines(), "\n") }

// Lines returns a line for each mistake.
func (e *Error) Lines() []string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.Text(e.File)
	}
	return lines
}
