package main

import (
	"os"
	"slices"
	"time"

	"github.com/ctlogd/ctlogd/input/ctnetlink"
)

// openOnRequest is the answer to SIGUSR1: an open record of every flow.
func (a *app) openOnRequest() {
	a.log.Info("SIGUSR1: writing an open record of every flow")
	a.source.RequestOpen()
}

// openAtEnd reports whether the flows that are alive get an open record as the process ends. It looks at files.
func openAtEnd(when string) bool {
	switch when {
	case ctnetlink.OpenNever:
		return false
	case ctnetlink.OpenAlways:
		return true
	}
	return goingDown(shutdownFiles, exists)
}

// shutdownFiles are there when the system goes down, or is about to.
//
// systemd-user-sessions.service writes nologin(5) as it is stopped, which is before network.target is and therefore
// before a ctlogd that is ordered Before=network-pre.target; sysvinit's shutdown(8) writes it, too. The other one is
// that of a shutdown which was announced. PID 1 could be asked, but over a bus that ends earlier than ctlogd does.
var shutdownFiles = []string{"/run/nologin", "/etc/nologin", "/run/systemd/shutdown/scheduled"}

// lookWithin bounds the look at the files: the disk of /etc may hang.
const lookWithin = time.Second

// goingDown reports whether one of the files exists.
func goingDown(files []string, exists func(file string) bool) bool {
	found := make(chan bool, 1)
	go func() { found <- slices.ContainsFunc(files, exists) }()
	select {
	case is := <-found:
		return is
	case <-time.After(lookWithin):
		return false
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
