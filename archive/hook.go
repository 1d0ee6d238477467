package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A hook is a foreign program, which may hang, write without end, or leave children behind. So a process of this binary
// stands between it and the daemon: "ctlogd hook TIMEOUT COMMAND...". It has the lowest priority, reads what the hook
// says and keeps the last of it, and ends the hook with all its children when its time is over or the daemon is gone. The
// daemon waits for that process alone, and ends the hook's children if that process is killed.

const (
	hookTail   = 2 << 10 // bytes of what a hook says that are kept
	hookMemory = 24 << 20
	hookGrace  = 2 * time.Second // from SIGTERM to SIGKILL
)

// runHook runs an upload's command for a file. An error has the last words of the command.
func runHook(ctx context.Context, u *Upload, f *UploadFile) error {
	// The signal that ends the child with its parent comes when the thread that has started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithTimeoutCause(ctx, u.Timeout+4*hookGrace, errors.New("the process that watches it hangs"))
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"hook", u.Timeout.String()}, u.Command...)...)
	cmd.Env = append(os.Environ(),
		"CTLOGD_KIND="+f.Kind,
		"CTLOGD_FILE="+f.File,
		"CTLOGD_PATH="+f.Path,
		"CTLOGD_SHA256="+f.SHA256,
		fmt.Sprintf("CTLOGD_SIZE=%d", f.Size),
		"CTLOGD_HOST="+f.Host,
		"CTLOGD_DATE="+f.Date)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 2 * hookGrace
	var group, said bytes.Buffer // see HookMain
	cmd.Stdout, cmd.Stderr = &group, &said
	err := cmd.Run()
	if state := cmd.ProcessState; state != nil && !state.Exited() { // it was killed, and the kernel has killed the hook with it
		if pid, err := strconv.Atoi(strings.TrimSpace(group.String())); err == nil && pid > 1 {
			_ = unix.Kill(-pid, unix.SIGKILL)
		}
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && said.Len() > 0 {
		return errors.New(lastLine(said.String()))
	}
	return err
}

// HookMain is what the process does that stands between daemon and hook. args are a duration and the command. It writes the
// number of the hook's process group to stdout. When the hook fails, it writes one line to stderr that says how. The status is
// the process's: 0 if the hook's was. The end of ctx, SIGTERM or SIGINT ends the hook.
//
// The process may not end before its hook, whatever signals come: the kernel sends SIGTERM for each thread of the daemon
// that ends, and the daemon has sent one before if it ends by itself. So HookMain takes the signals from whoever had them.
func HookMain(ctx context.Context, args []string, stdout, stderr io.Writer) (status int) {
	signal.Reset(unix.SIGTERM, unix.SIGINT)
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE) // or what it writes when the daemon is gone would end it
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	if len(args) < 2 {
		fmt.Fprintln(stderr, "hook TIMEOUT COMMAND...")
		return 2
	}
	timeout, err := time.ParseDuration(args[0])
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 2
	}
	idle()
	runtime.GOMAXPROCS(1)
	debug.SetMemoryLimit(hookMemory)

	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it was ended after %s", timeout))
	defer cancel()
	said := &tail{}
	if err := runGroup(ctx, args[1:], stdout, said); err != nil {
		if last := said.String(); last != "" {
			err = fmt.Errorf("%w: %s", err, last)
		}
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// runGroup runs a command in a process group of its own, and returns when none of it is left. What ends ctx ends the group,
// whose number goes to stdout.
func runGroup(ctx context.Context, argv []string, stdout io.Writer, said *tail) error {
	// The thread that starts the hook gives it its rights: none of the daemon's. For root that is what the bounding set has.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.WaitDelay = hookGrace // children that the hook has left may hold its standard error
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Fprintln(stdout, cmd.Process.Pid)
	group := -cmd.Process.Pid
	ended := make(chan struct{})
	var killing sync.WaitGroup
	killing.Go(func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		_ = unix.Kill(group, unix.SIGTERM)
		select {
		case <-ended:
		case <-time.After(hookGrace):
			_ = unix.Kill(group, unix.SIGKILL)
		}
	})
	err := cmd.Wait()
	close(ended)
	killing.Wait()
	_ = unix.Kill(group, unix.SIGKILL)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, exec.ErrWaitDelay): // the hook itself has ended well
		return nil
	}
	return err
}

// tail keeps the last of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	p = p[max(len(p)-hookTail, 0):]
	if over := len(t.b) + len(p) - hookTail; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	t.b = append(t.b, p...)
	return n, nil
}

// String returns the last line, without what is not text.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, lastLine(string(t.b)))
}
