package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// asDaemon in the environment makes the test binary a daemon that drains for ever after the first signal, and
// withConfig ctlogd, run with that configuration.
const (
	asDaemon   = "CTLOGD_TEST_DAEMON"
	withConfig = "CTLOGD_TEST_CONFIG"
	withRoot   = "CTLOGD_TEST_ROOT" // where the unit is

	// asCommand makes it ctlogd with the arguments that it has, at the time that it names: RFC 3339, or "now".
	asCommand = "CTLOGD_TEST_COMMAND"
)

func TestMain(m *testing.M) {
	if root := os.Getenv(withRoot); root != "" {
		hostRoot = root
	} else {
		hostRoot = "/nonexistent" // a ctlogd that is installed here is no concern of the tests
	}
	if len(os.Args) > 2 && os.Args[1] == "check" { // a check with the rights of another user
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	if os.Getenv(asCommand) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	if file := os.Getenv(withConfig); file != "" {
		os.Exit(run([]string{"run", "-c", file}, os.Stdout, os.Stderr))
	}
	if os.Getenv(asDaemon) != "" {
		ctx, _ := untilSignal(os.Stderr)
		fmt.Println("started")
		<-ctx.Done()
		fmt.Println("draining")
		select {}
	}
	os.Exit(m.Run())
}

func TestExitCodes(t *testing.T) {
	bad := filepath.Join("testdata", "bad-enrich.yaml")
	messages, err := os.ReadFile(filepath.Join("testdata", "bad-enrich.err"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   string
		code   int
		stderr string
	}{
		{"version", exitOK, ""},
		{"--help", exitOK, ""},
		{"", exitUsage, "ctlogd: no command given; use " + commandNames + "\nsee ctlogd --help\n"},
		{"start", exitUsage, "ctlogd: unknown command \"start\" for \"ctlogd\"\nsee ctlogd --help\n"},
		{"chekc", exitUsage, "ctlogd: unknown command \"chekc\" for \"ctlogd\"\n\nDid you mean this?\n    check\nsee ctlogd --help\n"},
		{"run flows", exitUsage, "ctlogd: unknown command \"flows\" for \"ctlogd run\"\nsee ctlogd run --help\n"},
		{"run --fix", exitUsage, "ctlogd: unknown flag: --fix\nsee ctlogd run --help\n"},
		{"ipfix", exitUsage, "ctlogd: no command given; use templates or listen\nsee ctlogd ipfix --help\n"},
		{"ipfix send", exitUsage, "ctlogd: unknown command \"send\" for \"ctlogd ipfix\"\nsee ctlogd ipfix --help\n"},
		{"ipfix listen", exitUsage, "ctlogd: accepts 1 arg(s), received 0\nsee ctlogd ipfix listen --help\n"},
		{"ipfix listen sctp://[::1]:4739", exitFailure,
			"ctlogd: unknown scheme \"sctp\"; write udp://HOST:PORT, tcp://HOST:PORT or the name of a file\n"},
		{"ipfix templates", exitOK, ""},
		{"ipfix listen testdata/good-minimal.yaml", exitOK, ""}, // no messages, which it says as a record
		{"ipfix listen testdata/none", exitFailure, "ctlogd: open testdata/none: no such file or directory\n"},
		{"ipfix templates -c testdata/good-minimal.yaml", exitFailure,
			"ctlogd: testdata/good-minimal.yaml has no ipfix output; without -c, all templates are printed\n"},
		{"check --config-only -c testdata/good-minimal.yaml", exitOK, ""},
		{"check --config-only --fix", exitUsage, "ctlogd: if any flags in the group [config-only fix] are set none of the others can be; " +
			"[config-only fix] were all set\nsee ctlogd check --help\n"},
		{"check -c", exitUsage, "ctlogd: flag needs an argument: 'c' in -c\nsee ctlogd check --help\n"},
		{"run -c testdata/none.yaml", exitConfig,
			"ctlogd: read the configuration: open testdata/none.yaml: no such file or directory\n"},
		{"run -c testdata", exitConfig, "ctlogd: read the configuration: read testdata: is a directory\n"},
		{"run -c " + bad, exitConfig, strings.ReplaceAll(string(messages), "ctlogd.yaml:", bad+":")},
	} {
		t.Run(tt.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(strings.Fields(tt.args), &stdout, &stderr); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if diff := cmp.Diff(tt.stderr, stderr.String()); diff != "" {
				t.Errorf("standard error (-want +got):\n%s", diff)
			}
			if (tt.code == exitOK) != (stdout.Len() > 0) {
				t.Errorf("standard output %q", &stdout)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	version, commit = "1.2.3", "abcdef"
	defer func() { version, commit = "", "" }()
	var stdout bytes.Buffer
	if code := run([]string{"version"}, &stdout, io.Discard); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if got := stdout.String(); !strings.HasPrefix(got, "ctlogd 1.2.3, commit abcdef, go1.") {
		t.Errorf("got %q", got)
	}
	want := stdout.String()
	stdout.Reset()
	if code := run([]string{"--version"}, &stdout, io.Discard); code != exitOK || stdout.String() != want {
		t.Errorf("--version: exit code %d, %q; want %q", code, &stdout, want)
	}
}

// The first signal asks the daemon to drain; the second ends it however long that takes.
func TestSignals(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), asDaemon+"=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })

	out := bufio.NewScanner(pipe)
	for _, step := range []struct {
		line   string
		signal unix.Signal
	}{{"started", unix.SIGTERM}, {"draining", unix.SIGINT}} {
		if !out.Scan() || out.Text() != step.line {
			t.Fatalf("got %q, want %q; standard error: %s", out.Text(), step.line, &stderr)
		}
		if err := cmd.Process.Signal(step.signal); err != nil {
			t.Fatal(err)
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 128+int(unix.SIGINT) {
		t.Errorf("got %v, want exit code 130", err)
	}
	if want := "ctlogd: a second signal (interrupt): exit without delivering what is left\n"; stderr.String() != want {
		t.Errorf("standard error %q, want %q", &stderr, want)
	}
}

// A signal that comes before the configuration is read does not end the process.
func TestSignalsDuringStart(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "ctlogd.yaml")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), withConfig+"="+fifo)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	config, err := os.OpenFile(fifo, os.O_WRONLY, 0) // waits until the process reads it
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGUSR1, unix.SIGHUP} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := config.WriteString("outputs: {}\n"); err != nil {
		t.Fatal(err)
	}
	config.Close()
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitConfig || !strings.Contains(stderr.String(), fifo+":1: ") {
		t.Errorf("got %v, want exit code 1; standard error %q", err, &stderr)
	}
}

// A check or a start that waits for what a FIFO does not give ends at SIGTERM.
func TestSignalBeforeConfig(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "ctlogd.yaml")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	// The certificate stands for every file that a configuration names and that is looked into.
	names := filepath.Join(t.TempDir(), "names.yaml")
	text := fmt.Sprintf("outputs: {ipfix: [{address: 'tls://127.0.0.1:1', tls: {ca: %s}}]}", fifo)
	if err := os.WriteFile(names, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		command, file string
		code          int
	}{
		{"check", fifo, exitFailure}, {"run", fifo, exitOK}, {"check", names, exitFailure}, {"run", names, exitOK},
	} {
		cmd := exec.Command(self, tt.command, "-c", tt.file)
		if tt.command == "run" {
			cmd = exec.Command(self)
			cmd.Env = append(os.Environ(), withConfig+"="+tt.file)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		writer, err := os.OpenFile(fifo, os.O_WRONLY, 0) // waits until the process reads it
		if err != nil {
			t.Fatal(err)
		}
		defer writer.Close()
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != tt.code {
			t.Errorf("%s -c %s: exit code %d, want %d", tt.command, tt.file, got, tt.code)
		}
	}
}

// TestStartsLight: no package of ours does work as a command starts that most commands have no use for. Go's own account
// of that start counts allocations, which do not depend on how busy the machine is; one regular expression takes a hundred
// and one that counts to 249 thousands.
func TestStartsLight(t *testing.T) {
	const most = 800
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "version")
	cmd.Env = append(os.Environ(), asCommand+"=now", "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	packages := 0
	for line := range strings.Lines(string(out)) {
		name, rest, _ := strings.Cut(strings.TrimPrefix(line, "init "), " ")
		if _, ours := strings.CutPrefix(name, "github.com/ctlogd/ctlogd/"); !ours {
			continue
		}
		var allocs int
		if _, counts, ok := strings.Cut(rest, " bytes, "); !ok {
			t.Fatalf("what is this? %s", line)
		} else if _, err := fmt.Sscanf(counts, "%d allocs", &allocs); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if packages++; allocs > most {
			t.Errorf("%s has %d allocations before the command begins; %d are enough: let it wait until it is needed (sync.OnceValue)", name, allocs, most)
		}
	}
	if packages < 5 {
		t.Fatalf("Go tells of %d packages of ours:\n%s", packages, out)
	}
}
