package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocs: what docs/fleet.md shows of this program is what it prints. -update is UPDATE=1 in the environment.
func TestDocs(t *testing.T) {
	t.Chdir("../..")
	const path = "docs/fleet.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)    go run ./bench/fleet([^\\n]*)\\n\\n```\\n(.*?)```\\n")
	found := 0
	got := block.ReplaceAllFunc(text, func(b []byte) []byte {
		found++
		args := string(block.FindSubmatch(b)[1])
		var out bytes.Buffer
		if err := run(strings.Fields(args), &out); err != nil {
			t.Fatal(err)
		}
		return []byte("    go run ./bench/fleet" + args + "\n\n```\n" + out.String() + "```\n")
	})
	if found < 2 {
		t.Errorf("it shows %d runs", found)
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(got, text) {
		t.Errorf("UPDATE=1 go test ./bench/fleet writes what is printed now into %s", path)
	}
}

// TestMissing: an output of a benchmark without a line that is needed is an error that names the line.
func TestMissing(t *testing.T) {
	err := run([]string{"-archive", "main.go"}, new(bytes.Buffer))
	if err == nil || !strings.Contains(err.Error(), "main.go has no line like ^size") || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
}
