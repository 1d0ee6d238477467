package main

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/input"
)

// openOnRequest writes an open record of every flow at each SIGUSR1, until it is stopped.
func (a *app) openOnRequest() (stop func()) {
	requests := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(requests, unix.SIGUSR1)
	go func() {
		defer close(done)
		for range requests {
			a.log.Info("SIGUSR1: writing an open record of every flow")
			a.reader.RequestOpen()
		}
	}()
	return func() {
		signal.Stop(requests)
		close(requests)
		<-done
	}
}

// openAtEnd returns the answer to whether the flows that are alive get an open record as the process ends.
func openAtEnd(when string, log *zap.Logger) func() bool {
	switch when {
	case input.OpenNever:
		return nil
	case input.OpenAlways:
		return func() bool { return true }
	}
	return func() bool {
		down, err := goingDown()
		if err != nil {
			log.Warn("cannot tell whether the system goes down, so no open records are written; "+
				"open_at_shutdown: always does without", zap.Error(err))
		}
		return down
	}
}

// goingDown reports whether the system goes down. Where systemd does not run, nobody can be asked.
func goingDown() (bool, error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		return false, nil
	}
	return askSystemd("systemctl")
}

// askSystemd asks systemd whether the system goes down.
//
// There is no file that tells: /run/systemd/shutdown/scheduled is there only for shutdowns that were announced, and
// /run/nologin comes when it may be too late. The answer to is-system-running is "stopping" from the moment at which
// the job of shutdown.target is queued, hence before any service is told to end.
func askSystemd(systemctl string) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, systemctl, "is-system-running")
	cmd.WaitDelay = time.Second
	state, err := cmd.Output()
	switch s := strings.TrimSpace(string(state)); s {
	case "stopping":
		return true, nil
	case "", "unknown", "offline":
		return false, err
	}
	return false, nil // whatever is not "running" has an exit code, too
}
