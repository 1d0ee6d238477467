package main

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/ctlogd/ctlogd/input/ctnetlink"
)

func TestGoingDown(t *testing.T) {
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "nologin"), filepath.Join(dir, "scheduled")}
	if goingDown(files, exists) {
		t.Error("without a file")
	}
	if err := os.WriteFile(files[1], nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !goingDown(files, exists) {
		t.Error("not with one")
	}
}

// A disk that hangs does not keep the end from coming.
func TestGoingDownHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung := make(chan struct{})
		if goingDown([]string{"/etc/nologin"}, func(string) bool { <-hung; return true }) {
			t.Error("it knows, though it could not look")
		}
		close(hung)
	})
}

func TestOpenAtEnd(t *testing.T) {
	if openAtEnd(ctnetlink.OpenNever) {
		t.Error("never asks")
	}
	if !openAtEnd(ctnetlink.OpenAlways) {
		t.Error("always does not")
	}
	if got, want := openAtEnd(ctnetlink.OpenAtReboot), goingDown(shutdownFiles, exists); got != want {
		t.Errorf("reboot says %v, want %v", got, want)
	}
}
