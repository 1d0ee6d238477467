package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ctlogd/ctlogd/input/ctnetlink"
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
	if openAtEnd(ctnetlink.OpenNever) {
		t.Error("never asks")
	}
	if !openAtEnd(ctnetlink.OpenAlways) {
		t.Error("always does not")
	}
	if got, want := openAtEnd(ctnetlink.OpenAtReboot), goingDown(shutdownFiles); got != want {
		t.Errorf("reboot says %v, want %v", got, want)
	}
}
