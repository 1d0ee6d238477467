package live

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ctlogd.sock")
	first, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|socketMode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	_, err = listen(path)
	if want := "live.socket: a process answers on " + path + " already, another ctlogd perhaps; " +
		"give one of the two another live.socket"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	first.Close() // which leaves the socket, as a process that is killed does
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	second, err := listen(path)
	if err != nil {
		t.Fatalf("the stale socket is in the way: %v", err)
	}
	second.Close()

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file: "live.socket: " + file + " is there and no socket; remove it, or name another",
		filepath.Join(dir, "none", "s"): "live.socket: listen unix " + filepath.Join(dir, "none", "s.next") +
			": bind: no such file or directory; make the directory, writable by the user that ctlogd runs as",
	} {
		if _, err := listen(path); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// A successor's socket stays when the one before it ends.
func TestCloseLeavesASuccessor(t *testing.T) {
	f := newFixture(t)
	if err := os.Remove(f.socket); err != nil {
		t.Fatal(err)
	}
	next, err := listen(f.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	f.Close()
	c, err := net.Dial("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// asClient in the environment makes the test binary ask for the status of the daemon whose socket it names.
const asClient = "CTLOGD_TEST_CLIENT"

func TestMain(m *testing.M) {
	if socket := os.Getenv(asClient); socket != "" {
		_, err := NewClient(socket).Status(context.Background())
		if err != nil {
			_, _ = io.WriteString(os.Stdout, err.Error())
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Users who are not in the socket's group are not let in, and told what to do.
func TestOthersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	f := newFixture(t)
	dir := filepath.Dir(f.socket)
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const nobody, group = 65534, 4242
	if err := os.Chown(f.socket, 0, group); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	client := filepath.Join(dir, "client") // where nobody may run it
	if err := os.WriteFile(client, text, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		groups []uint32
		want   string
	}{
		{nil, f.socket + ": permission denied; become a member of the socket's group (usermod -aG 4242 USER, and log in again), or use sudo"},
		{[]uint32{group}, ""},
	} {
		cmd := exec.Command(client)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), asClient+"="+f.socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, Groups: tt.groups}}
		out, err := cmd.Output()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			t.Fatalf("%v: %s", err, exit.Stderr)
		} else if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(out)) != tt.want {
			t.Errorf("groups %v: %s, want %s", tt.groups, out, tt.want)
		}
	}
}
