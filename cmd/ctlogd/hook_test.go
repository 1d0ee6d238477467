//go:build !small

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHookEnds ends the process between an archive and its hook as the kernel does when the daemon is killed: with a SIGTERM
// for each of its threads. A child of the hook does not hear SIGTERM, and may not outlive that process.
func TestHookEnds(t *testing.T) {
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			pid := filepath.Join(t.TempDir(), "pid")
			hook := exec.Command("/proc/self/exe", "hook", "1h", "/bin/sh", "-c", `trap '' TERM; sleep 600 & echo $! >"$PID"; wait`)
			hook.Env = append(os.Environ(), asCommand+"=now", "PID="+pid)
			if err := hook.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = hook.Wait()
			}()
			late := time.After(time.Minute)
			var child string
			for !strings.HasSuffix(child, "\n") {
				select {
				case <-late:
					t.Fatal("the hook did not start")
				case <-time.After(time.Millisecond):
				}
				text, _ := os.ReadFile(pid)
				child = string(text)
			}
			child = strings.TrimSpace(child)
			for over := false; !over; {
				_ = hook.Process.Signal(unix.SIGTERM)
				select {
				case <-ended:
					over = true
				case <-late:
					t.Fatal("the process between does not end")
				case <-time.After(time.Millisecond):
				}
			}
			for {
				if _, err := os.Stat("/proc/" + child + "/exe"); err != nil {
					return
				}
				select {
				case <-late:
					t.Fatal("the hook's child is left")
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
}
