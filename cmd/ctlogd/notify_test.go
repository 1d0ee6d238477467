package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// managerSocket makes a socket as the manager has one, names it in the environment, and returns what receives from it.
func managerSocket(t *testing.T) (receive func() (text string, fds []int)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	return func() (string, []int) {
		var buf, oob [4096]byte
		n, k, _, _, err := unix.Recvmsg(fd, buf[:], oob[:], unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return "", nil
		}
		if err != nil {
			t.Fatal(err)
		}
		var fds []int
		messages, err := unix.ParseSocketControlMessage(oob[:k])
		for _, m := range messages {
			fds, err = unix.ParseUnixRights(&m)
		}
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n]), fds
	}
}

// A manager that hangs is not waited for. When it listens again it is told everything, in order.
func TestManagerHangs(t *testing.T) {
	receive := managerSocket(t)
	m := findManager()
	filled := 0
	for m.try(message{text: "filler"}, unix.MSG_DONTWAIT) == nil {
		filled++
	}
	file, err := os.Open("notify_test.go")
	if err != nil {
		t.Fatal(err)
	}
	m.ready(int(file.Fd()))
	file.Close() // what is sent later is the file all the same
	m.reloading()
	m.serving()
	m.stopping()

	var got []string
	stored := 0
	for until := time.Now().Add(10 * time.Second); len(got) < 5 && time.Now().Before(until); {
		text, fds := receive()
		for _, fd := range fds {
			stored++
			unix.Close(fd)
		}
		if text == "" {
			time.Sleep(time.Millisecond)
		} else if text != "filler" {
			head, _, _ := strings.Cut(text, "\n")
			got = append(got, head)
		}
	}
	m.flush()
	want := []string{"FDSTORE=1", "READY=1", "RELOADING=1", "READY=1", "STOPPING=1"}
	if diff := cmp.Diff(want, got); diff != "" || stored != 1 || filled == 0 {
		t.Errorf("%d descriptors stored behind %d messages, and (-want +got):\n%s", stored, filled, diff)
	}
}

func TestManagerIsTold(t *testing.T) {
	receive := managerSocket(t)
	m := findManager()
	file, err := os.Open("notify_test.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	m.ready(int(file.Fd()))
	text, fds := receive()
	if text != "FDSTORE=1\nFDNAME=conntrack\nFDPOLL=0" || len(fds) != 1 {
		t.Fatalf("stored %v with %q", fds, text)
	}
	defer unix.Close(fds[0])
	var ours, stored unix.Stat_t
	if err := unix.Fstat(fds[0], &stored); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(int(file.Fd()), &ours); err != nil {
		t.Fatal(err)
	}
	if stored.Ino != ours.Ino {
		t.Error("another file is stored")
	}

	m.reloading()
	m.serving()
	m.stopping()
	m.abandon() // too late
	var got []string
	for text, _ := receive(); text != ""; text, _ = receive() {
		got = append(got, text)
	}
	usec := got[1]
	usec = usec[strings.Index(usec, "USEC=")+len("USEC=") : strings.LastIndex(usec, "\n")]
	if n, err := strconv.ParseInt(usec, 10, 64); err != nil || n <= 0 {
		t.Errorf("MONOTONIC_USEC=%s", usec)
	}
	want := []string{
		"READY=1\nSTATUS=logging flows",
		"RELOADING=1\nMONOTONIC_USEC=" + usec + "\nSTATUS=reading the configuration again",
		"READY=1\nSTATUS=logging flows",
		"STOPPING=1\nSTATUS=delivering what is left",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	if left := os.Getenv("NOTIFY_SOCKET"); left != "" {
		t.Errorf("the environment still has %q", left)
	}
}

// A socket that the manager has kept is not handed to it again.
func TestKeptSocketIsNotStoredAgain(t *testing.T) {
	receive := managerSocket(t)
	m := findManager()
	kept, err := os.Open("notify_test.go")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	m.kept = kept
	if m.take() != kept || m.take() != nil {
		t.Error("what is kept is not taken once")
	}
	m.kept = kept
	m.take()
	m.ready(int(kept.Fd()))
	if text, fds := receive(); text != "READY=1\nSTATUS=logging flows" || len(fds) > 0 {
		t.Errorf("told %q with %d descriptors", text, len(fds))
	}
}

// A start that fails gives up what is kept, whether or not there was something.
func TestFailedStartAbandons(t *testing.T) {
	receive := managerSocket(t)
	file := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(file, []byte("outputs: 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := runRun(t.Context(), file, os.Stderr); err == nil {
		t.Fatal("it started")
	}
	if text, _ := receive(); text != "FDSTOREREMOVE=1\nFDNAME=conntrack" {
		t.Errorf("the manager was told %q", text)
	}
}

func TestWatchdogIsPetted(t *testing.T) {
	pid := strconv.Itoa(os.Getpid())
	for _, tt := range []struct {
		name, pid, usec string
		ago             time.Duration // since it was petted
		want            string
	}{
		{"first", pid, "10000000", 1 << 62, "WATCHDOG=1"},
		{"no process named", "", "10000000", 1 << 62, "WATCHDOG=1"},
		{"half the time", pid, "10000000", 5 * time.Second, "WATCHDOG=1"},
		{"too early", pid, "10000000", 3 * time.Second, ""},
		{"for another process", "1", "10000000", 1 << 62, ""},
		{"no watchdog", pid, "", 1 << 62, ""},
		{"nonsense", pid, "soon", 1 << 62, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			receive := managerSocket(t)
			t.Setenv("WATCHDOG_PID", tt.pid)
			t.Setenv("WATCHDOG_USEC", tt.usec)
			m := findManager()
			m.petted = time.Now().Add(-tt.ago)
			m.pet()
			if got, _ := receive(); got != tt.want {
				t.Errorf("the manager was told %q, want %q", got, tt.want)
			}
		})
	}
}

// Without a manager nothing is told, and nothing fails.
func TestNoManager(t *testing.T) {
	for _, socket := range []string{"", "vsock:2:1", "relative"} {
		t.Setenv("NOTIFY_SOCKET", socket)
		t.Setenv("LISTEN_PID", "1")
		t.Setenv("LISTEN_FDS", "3")
		m := findManager()
		if m.managed() || m.take() != nil || m.watchdog != 0 {
			t.Errorf("NOTIFY_SOCKET=%s: %+v", socket, m)
		}
		m.ready(0)
		m.pet()
		m.stopping()
	}
}

// What is kept comes to the next process by its name; the rest is closed. Descriptors begin at 3, which a test cannot
// have to itself, so this is a process of its own.
func TestKeptSocketIsTaken(t *testing.T) {
	if os.Getenv("CTLOGD_TEST_KEPT") != "" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		m := findManager()
		file := m.take()
		if file == nil || file.Fd() != 4 || m.take() != nil {
			t.Fatalf("took %v", file)
		}
		var stat unix.Stat_t
		if unix.Fstat(3, &stat) == nil && stat.Mode&unix.S_IFMT == unix.S_IFREG {
			t.Error("the other file is still open")
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKeptSocketIsTaken$")
	cmd.Env = append(os.Environ(), "CTLOGD_TEST_KEPT=1", "LISTEN_FDS=2", "LISTEN_FDNAMES=other:conntrack")
	for range 2 {
		f, err := os.Open("notify_test.go")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
