package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ctlogd/ctlogd/input"
)

func TestGoingDown(t *testing.T) {
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "nologin"), filepath.Join(dir, "scheduled")}
	if goingDown(files) {
		t.Error("without a file")
	}
	if err := os.WriteFile(files[1], nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !goingDown(files) {
		t.Error("not with one")
	}
}

func TestOpenAtEnd(t *testing.T) {
	if openAtEnd(input.OpenNever) != nil {
		t.Error("never asks")
	}
	if !openAtEnd(input.OpenAlways)() {
		t.Error("always does not")
	}
	if got, want := openAtEnd(input.OpenAtReboot)(), goingDown(shutdownFiles); got != want {
		t.Errorf("reboot says %v, want %v", got, want)
	}
}
