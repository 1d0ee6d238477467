//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// long chooses the full scale of tests that the usual run has at a smaller one: as many flows as fill a table, more
// kills, longer pauses.
var long = os.Getenv("CTLOGD_LONG") != ""

// scale is usual, or full with CTLOGD_LONG=1.
func scale[T any](usual, full T) T {
	if long {
		return full
	}
	return usual
}

// many are more flows than any buffer or queue on their way holds.
var many = scale(250_000, 1_000_000)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// need skips the test unless it runs as root and the commands are installed.
func need(t *testing.T, commands ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and conntrack events")
	}
	for _, c := range append(commands, "ip", "nft") {
		if _, err := exec.LookPath(c); err != nil {
			t.Skipf("needs the command %s (make test installs it on Debian, as root)", c)
		}
	}
}

func newNS(t *testing.T, name string) *lab.NS {
	t.Helper()
	ns, err := lab.New(name)
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

// prepare makes the kernel report in the namespace all that it can about every flow.
func prepare(t *testing.T, ns *lab.NS) {
	t.Helper()
	for _, key := range []string{"acct", "timestamp", "events"} {
		must(t, ns.Sysctl("net.netfilter.nf_conntrack_"+key, "1"))
	}
}

// eventually waits until ok. Only a machine that hangs meets the limit.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute in vain until %s", what)
		}
	}
}

// process is a command that was started in a namespace.
type process struct {
	*exec.Cmd
	stderr syncBuffer
	exited chan struct{} // closed when it has ended
	err    error         // from Wait, valid then
}

// start starts a command in the namespace, keeps what it writes to standard error, and kills it when the test ends. Files
// are its descriptors from 3 on.
func start(t *testing.T, ns *lab.NS, cmd *exec.Cmd, files ...*os.File) *process {
	t.Helper()
	p := &process{Cmd: cmd, exited: make(chan struct{})}
	cmd.Stderr, cmd.ExtraFiles = &p.stderr, files
	must(t, ns.Start(cmd))
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("%s wrote to standard error:\n%s", filepath.Base(cmd.Path), &p.stderr)
		}
	})
	return p
}

// stop sends SIGTERM and waits until the process has ended, which must be without an error.
func (p *process) stop(t *testing.T) {
	t.Helper()
	must(t, p.Process.Signal(syscall.SIGTERM))
	eventually(t, p.Path+" has ended", func() bool { return p.ended() })
	if p.err != nil {
		t.Errorf("%s ended with %v", p.Path, p.err)
	}
}

func (p *process) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// awaitMember waits until the process has a netfilter socket that is a member of a netlink group (NFNLGRP_...), and so
// misses no event from then on.
func (p *process) awaitMember(t *testing.T, group int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s listens to group %d", p.Path, group), func() bool {
		if p.ended() {
			t.Fatalf("%s has ended: %v", p.Path, p.err)
		}
		return lab.Listens(p.Process.Pid, group)
	})
}

// awaitListener waits until something listens on a port of the namespace.
func awaitListener(t *testing.T, ns *lab.NS, network string, port int) {
	t.Helper()
	eventually(t, fmt.Sprintf("something listens on %s port %d", network, port), func() bool {
		listening := false
		must(t, ns.Do(func() error {
			table, err := os.ReadFile("/proc/thread-self/net/" + network)
			listening = bytes.Contains(table, fmt.Appendf(nil, ":%04X 00000000:0000 ", port))
			return err
		}))
		return listening
	})
}

// syncBuffer is a bytes.Buffer for a writer and readers at once.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// buildDaemon builds ctlogd once for all tests, with the race detector if race is set: then a race ends it
// with an error.
func buildDaemon(t *testing.T, race bool) string {
	t.Helper()
	build := buildPlain
	if _, err := exec.LookPath("gcc"); race && err == nil {
		build = buildRace
	} else if race {
		t.Log("the daemon is built without the race detector, which needs gcc")
	}
	path, err := build()
	must(t, err)
	return path
}

var (
	buildPlain = sync.OnceValues(func() (string, error) { return goBuild("ctlogd") })
	buildRace  = sync.OnceValues(func() (string, error) { return goBuild("ctlogd-race", "-race") })
	buildDir   string // made and removed by TestMain
)

func goBuild(name string, flags ...string) (string, error) {
	path := filepath.Join(buildDir, name)
	args := append(append([]string{"build", "-o", path}, flags...), "../cmd/ctlogd")
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build ctlogd: %w\n%s", err, out)
	}
	return path, nil
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "ctlogd-integration-")
	if err != nil {
		panic(err)
	}
	buildDir = dir
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		undos.Lock()
		for _, undo := range undos.list {
			undo()
		}
		os.RemoveAll(dir)
		os.Exit(1)
	}()
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// daemon is a running ctlogd that writes JSON lines to a file.
type daemon struct {
	*process
	file string
}

// startDaemon runs binary in the namespace, with input as the input's configuration, until it listens. Each of more is
// one more kind of output, such as "ipfix: [{...}]".
func startDaemon(t *testing.T, ns *lab.NS, binary, input string, more ...string) *daemon {
	t.Helper()
	var text strings.Builder
	for _, outputs := range more {
		text.WriteString("  " + outputs + "\n")
	}
	return runDaemon(t, ns, binary, "input:\n  conntrack: "+input+"\n", text.String())
}

// startDaemonWith runs ctlogd with more in its configuration.
func startDaemonWith(t *testing.T, ns *lab.NS, more string) *daemon {
	t.Helper()
	return runDaemon(t, ns, buildDaemon(t, false), more, "")
}

func runDaemon(t *testing.T, ns *lab.NS, binary, top, outputs string) *daemon {
	t.Helper()
	dir := t.TempDir()
	d := &daemon{file: filepath.Join(dir, "flows.jsonl")}
	conf := filepath.Join(dir, "ctlogd.yaml")
	text := top + "outputs:\n  jsonl:\n    - path: " + d.file + "\n" + outputs
	must(t, os.WriteFile(conf, []byte(text), 0o644))
	cmd := exec.Command(binary, "run", "-c", conf)
	cmd.Stdout = os.Stdout
	d.process = start(t, ns, cmd)
	d.awaitMember(t, lab.GroupDestroy)
	eventually(t, "the output has opened its file, beside the start", func() bool {
		_, err := os.Stat(d.file)
		return err == nil
	})
	return d
}

// peakMemory returns the most resident memory that the process has ever had, in bytes.
func (p *process) peakMemory(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.Atoi(f[1])
			must(t, err)
			return kib << 10
		}
	}
	t.Fatal(errors.New("no VmHWM in /proc/PID/status"))
	return 0
}

// descriptors returns how many the process has.
func (p *process) descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Process.Pid))
	must(t, err)
	return len(list)
}

// lineCounter counts the lines of a growing file, reading each byte once.
type lineCounter struct {
	path   string
	offset int64
	lines  int
}

func (c *lineCounter) count(t *testing.T) int {
	t.Helper()
	f, err := os.Open(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	must(t, err)
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := f.ReadAt(buf, c.offset)
		whole := buf[:bytes.LastIndexByte(buf[:n], '\n')+1]
		c.offset += int64(len(whole))
		c.lines += bytes.Count(whole, []byte{'\n'}) - bytes.Count(whole, []byte(`"event":"checkpoint"`))
		if err != nil {
			return c.lines
		}
	}
}

// restore has undo called when the test ends, or when the run is interrupted from the keyboard or told to end, which
// would pass by t.Cleanup.
func restore(t *testing.T, undo func()) {
	undo = sync.OnceFunc(undo)
	undos.Lock()
	undos.list = append(undos.list, undo)
	undos.Unlock()
	t.Cleanup(undo)
}

var undos struct {
	sync.Mutex
	list []func()
}
