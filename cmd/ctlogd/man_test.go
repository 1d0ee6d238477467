//go:build !small

package main

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// walk calls do for each command that users see and that does something.
func walk(cmd *cobra.Command, do func(*cobra.Command)) {
	for _, c := range cmd.Commands() {
		switch {
		case c.Hidden || c.Name() == "help":
		case c.HasSubCommands():
			walk(c, do)
		default:
			do(c)
		}
	}
}

var flagWord = regexp.MustCompile(`--\w+`)

// TestManual: each command has its help, its place in the manual page with all its flags, and is in docs/operate.md.
func TestManual(t *testing.T) {
	var page bytes.Buffer
	if code := run([]string{"man"}, &page, io.Discard); code != exitOK {
		t.Fatalf("exit status %d", code)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(page.String(), "\n.SS ")[1:] {
		head, text, _ := strings.Cut(s, "\n")
		text, _, _ = strings.Cut(text, "\n.SH ")
		sections[head] = text
	}
	operate := document(t, "../../docs/operate.md")
	n := 0
	walk(newRoot(io.Discard, io.Discard), func(c *cobra.Command) {
		n++
		path := c.CommandPath()
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || c.Short[:1] != strings.ToUpper(c.Short[:1]) {
			t.Errorf("%s: its short help is %q; write a sentence without its full stop", path, c.Short)
		}
		args := strings.TrimPrefix(c.Use, c.Name())
		if names := flagWord.ReplaceAllString(args, ""); strings.ToUpper(names) != names {
			t.Errorf("%s: its arguments are %q; write them in capital letters", path, args)
		}
		text, ok := sections[roff(path+args)]
		if !ok {
			t.Errorf("%s has no place in the manual page", path+args)
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "help" || f.Hidden {
				return
			}
			name, usage := pflag.UnquoteUsage(f)
			if usage == "" || strings.HasSuffix(usage, ".") || f.Value.Type() != "bool" && name == "" {
				t.Errorf("%s: the flag --%s is described as %q, its value as %q", path, f.Name, usage, name)
			}
			if !strings.Contains(text, roff("--"+f.Name)) {
				t.Errorf("%s: the manual page lacks --%s", path, f.Name)
			}
		})
		for _, example := range strings.Split(c.Example, "\n") {
			if example != "" && !strings.HasPrefix(example, "  ctlogd ") {
				t.Errorf("%s: an example is %q; begin with two blanks and ctlogd", path, example)
			}
		}
		// In the table of commands, those of one purpose share a line: `ctlogd status`, `top`, `tap`
		name := c.Name()
		if !strings.Contains(operate, "`"+path) && !strings.Contains(operate, "`"+name+"`") {
			t.Errorf("docs/operate.md lacks %s", path)
		}
		var help bytes.Buffer
		if code := run(append(strings.Fields(path)[1:], "--help"), &help, io.Discard); code != exitOK || !strings.Contains(help.String(), "Usage:") {
			t.Errorf("%s --help: exit status %d: %s", path, code, help.String())
		}
	})
	if n < 12 || len(sections) < n {
		t.Errorf("%d commands, %d in the manual page", n, len(sections))
	}
}
