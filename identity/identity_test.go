package identity

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnnamed(t *testing.T) {
	for name, want := range map[string]bool{
		"": true, "(none)": true, "localhost": true, "localhost.localdomain": true, "LOCALHOST": true,
		"localhost6.localdomain6": true, "localhost4": true,
		"gw1": false, "localhost1": false, "gw.localhost": false, "localhost6.example.net": false,
	} {
		if Unnamed(name) != want {
			t.Errorf("Unnamed(%q) is %v", name, !want)
		}
	}
}

func TestMachine(t *testing.T) {
	const id = "6b1d0e0a2f6c4f6a8f5d3c0e9b7a1234"
	for text, want := range map[string]string{
		id + "\n": "", id: "", "\n": "is empty", "": "is empty", "uninitialized\n": "says uninitialized",
		strings.Repeat("0", 32) + "\n": "has zeros alone",
	} {
		file := filepath.Join(t.TempDir(), "machine-id")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := machine(file)
		if want == "" && (got != id || err != nil) || want != "" && (got != "" || err == nil || err.Error() != file+" "+want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if _, err := machine("/nonexistent"); err == nil || err.Error() != "/nonexistent does not exist" {
		t.Error(err)
	}
}

func TestHost(t *testing.T) {
	want, err := os.ReadFile("/proc/sys/kernel/hostname")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Host(); got != strings.TrimSpace(string(want)) || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
