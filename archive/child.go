package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A seal takes as much memory and CPU as the daemon does otherwise, in a library that is not ours. In a process of its
// own it has neither the daemon's priority nor its memory, and takes nothing along when it dies.

// childMemory is where the child's collector of garbage begins to work hard, childEmpty its exit status for a row log
// without records.
const (
	childMemory = "96MiB"
	childEmpty  = 3
)

// Child seals a row log in a process of this binary: "ctlogd seal PATH".
func Child(ctx context.Context, path string) (s Sealed, err error) { return child(ctx, path) }

// child does so with more in its environment.
func child(ctx context.Context, path string, env ...string) (s Sealed, err error) {
	// The signal that ends the child with its parent comes when the thread that has started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "seal", path)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GOMEMLIMIT="+childMemory, "GOGC=20")
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == childEmpty {
			return s, errEmpty
		}
		return s, fmt.Errorf("seal %s: %w: %s", path, err, lastLine(stderr.String()))
	}
	if err := json.Unmarshal(stdout.Bytes(), &s); err != nil {
		return s, fmt.Errorf("seal %s: what the child said: %w", path, err)
	}
	return s, nil
}

// lastLine keeps a child's last words short.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.LastIndexByte(s, '\n'); i >= 0 {
		s = s[i+1:]
	}
	return s[:min(len(s), 500)]
}

// SealMain is what the child does: it seals the row logs at paths at the lowest priority, and writes a line of JSON for
// each to w. The status is the process's.
func SealMain(paths []string, w, stderr io.Writer) (status int) {
	idle()
	for _, path := range paths {
		seg, date, err := Seal(path)
		switch {
		case errors.Is(err, errEmpty):
			return childEmpty
		case err != nil:
			fmt.Fprintln(stderr, err)
			return 1
		}
		if err := json.NewEncoder(w).Encode(Sealed{seg, date}); err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
	}
	return 0
}

// idle gives the process the lowest priority for processor and disk. What cannot be set stays.
func idle() {
	// When memory is short it is this process that goes, and not the daemon, whose score it has inherited.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0)
	const (
		whoProcess = 1
		classIdle  = 3 << 13
	)
	for _, tid := range threads() {
		_ = unix.Setpriority(unix.PRIO_PROCESS, tid, 19)
		_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(tid), classIdle)
	}
}

// threads returns the threads of this process; those that come later inherit from them.
func threads() (tids []int) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return []int{0}
	}
	for _, e := range entries {
		var tid int
		if _, err := fmt.Sscanf(e.Name(), "%d", &tid); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}
