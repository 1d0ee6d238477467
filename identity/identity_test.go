package identity

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

// TestMachineHangs: a file that does not answer is told of, keeps one goroutine however often it is looked at, and is read
// when it answers.
func TestMachineHangs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "machine-id")
	if err := unix.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	l := lookup{file: file}
	underWay := func() *reading {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.underWay
	}
	var first *reading
	for range 3 {
		if id, err := l.look(); err == nil || !strings.Contains(err.Error(), "its file system hangs") {
			t.Fatalf("%q, %v", id, err)
		}
		switch r := underWay(); {
		case r == nil:
			t.Fatal("nothing is being read")
		case first == nil:
			first = r
		case r != first:
			t.Error("it is read a second time")
		}
	}
	if err := os.WriteFile(file, []byte("6b1d0e0a2f6c4f6a8f5d3c0e9b7a1234\n"), 0); err != nil { // a FIFO's reader gets it
		t.Fatal(err)
	}
	if r := underWay(); r != nil {
		<-r.done
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := l.look(); err == nil || !strings.Contains(err.Error(), "does not exist") {
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
