package main

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/input"
)

func TestAskSystemd(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		down, fails  bool
	}{
		{"going down", "echo stopping; exit 1", true, false},
		{"up", "echo running", false, false},
		{"a unit has failed", "echo degraded; exit 1", false, false},
		{"no bus", "exit 1", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "systemctl")
			if err := os.WriteFile(file, []byte("#!/bin/sh\n"+tt.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			if down, err := askSystemd(file); down != tt.down || (err != nil) != tt.fails {
				t.Errorf("got %v, %v", down, err)
			}
		})
	}
}

func TestOpenAtEnd(t *testing.T) {
	if openAtEnd(input.OpenNever, zap.NewNop()) != nil {
		t.Error("never asks")
	}
	if !openAtEnd(input.OpenAlways, zap.NewNop())() {
		t.Error("always does not")
	}
}
