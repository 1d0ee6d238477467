//go:build !small

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/archive"
)

func TestKeyNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "archive.key")
	var stdout, stderr bytes.Buffer
	if code := run([]string{"key", "new", path, "--host", "gw 1"}, &stdout, &stderr); code != 0 {
		t.Fatal(stderr.String())
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	keys, err := archive.ReadKeys(path)
	if err != nil || len(keys) != 1 || keys[0].Name() != "gw%201" {
		t.Fatalf("%v, %v", keys, err)
	}
	if stdout.String() != keys[0].Public+"\n" || !strings.Contains(stderr.String(), "chgrp") { // "> gw1.pub" makes a file for verify
		t.Errorf("not the public key alone: %s", stdout.String())
	}
	before, _ := os.ReadFile(path)
	if code := run([]string{"key", "new", path}, &stdout, &stderr); code != exitFailure || !strings.Contains(stderr.String(), "there already") {
		t.Errorf("a second time: exit status %d: %s", code, stderr.String())
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the key was written over")
	}
}

// TestKeyRotate: the new key stands behind the old one, and of more than two the oldest goes.
func TestKeyRotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "archive.key")
	var stderr bytes.Buffer
	do := func(args ...string) string {
		t.Helper()
		var stdout bytes.Buffer
		if code := run(append([]string{"key"}, args...), &stdout, &stderr); code != 0 {
			t.Fatal(stderr.String())
		}
		first, _, _ := strings.Cut(stdout.String(), "\n")
		if args[0] == "show" {
			return stdout.String()
		}
		return first
	}
	first := do("new", path)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	second := do("rotate", path)
	if got := do("show", path); got != first+"\n"+second+"\n" || first == second {
		t.Errorf("keys are %s, want %s and %s", got, first, second)
	}
	third := do("rotate", path)
	if got := do("show", path); got != second+"\n"+third+"\n" {
		t.Errorf("keys are %s, want %s and %s", got, second, third)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	for _, args := range [][]string{{"rotate", path + "x"}, {"show", path + "x"}} {
		if code := run(append([]string{"key"}, args...), &stderr, &stderr); code != exitFailure {
			t.Errorf("%v: exit status %d", args, code)
		}
	}
}

// TestKeyMode: a private key that others may read is told.
func TestKeyMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "archive.key")
	if _, err := archive.CreateKey(path, "gw1"); err != nil {
		t.Fatal(err)
	}
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o640: true, 0o644: false, 0o660: false, 0o400: true} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := loose(path); (err == nil) != ok {
			t.Errorf("%04o: %v", mode, err)
		}
	}
	if err := loose(""); err != nil {
		t.Error(err)
	}
}
