package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/input/ctnetlink"
)

// keptName is the name of the netlink socket in the file descriptor store.
const keptName = "conntrack"

// manager is the service manager that started the process. It is told how the process does, as sd_notify(3) describes.
// Without a manager the methods do nothing. Any goroutine may call them, but pet, which is for one goroutine.
type manager struct {
	fd   int // a socket of ours, -1 without a manager
	addr *unix.SockaddrUnix
	log  *zap.Logger

	kept    *os.File // the netlink socket of the last process, until somebody takes it
	stored  bool     // the manager has the socket
	isReady bool

	mu     sync.Mutex
	unsent []message     // what the manager had no room for, in order; a goroutine sends it
	idle   chan struct{} // closed when there is none; nil: there never was any

	watchdog time.Duration // within which the process must show that it is alive; 0 never
	petted   time.Time
}

// findManager looks for a manager in the environment, clears the environment of it, and takes what the manager has kept. It
// is called before anything that can fail: a kept socket that nobody reads makes the kernel hold ended flows in its table.
func findManager() *manager {
	m := &manager{fd: -1, log: zap.NewNop()}
	env := func(name string) string {
		defer os.Unsetenv(name)
		return os.Getenv(name)
	}
	number := func(name string) int {
		n, _ := strconv.Atoi(env(name))
		return n
	}
	path := env("NOTIFY_SOCKET") // a path, or a name in the abstract namespace, which unix writes with @ too
	if strings.HasPrefix(path, "/") || strings.HasPrefix(path, "@") {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			m.fd, m.addr = fd, &unix.SockaddrUnix{Name: path}
		}
	}
	pid, usec := env("WATCHDOG_PID"), number("WATCHDOG_USEC")
	if m.fd >= 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		m.watchdog = time.Duration(usec) * time.Microsecond
	}
	pid, n, names := env("LISTEN_PID"), number("LISTEN_FDS"), strings.Split(env("LISTEN_FDNAMES"), ":")
	if pid != strconv.Itoa(os.Getpid()) {
		return m
	}
	const first = 3 // SD_LISTEN_FDS_START
	for i := range n {
		fd := first + i
		unix.CloseOnExec(fd)
		if m.kept == nil && i < len(names) && names[i] == keptName {
			m.kept = os.NewFile(uintptr(fd), keptName)
		} else {
			_ = unix.Close(fd)
		}
	}
	return m
}

// take returns the kept socket, nil if there is none. It is the caller's.
func (m *manager) take() *os.File {
	kept := m.kept
	m.kept, m.stored = nil, kept != nil
	return kept
}

// forget has the manager give up the socket that it has, which is of no use: another one will be handed over.
func (m *manager) forget() {
	m.send("FDSTOREREMOVE=1\nFDNAME=" + keptName)
	m.stored = false
}

// ready says that no event is missed from here on, and hands the manager the socket to keep. FDPOLL=0, because the
// manager would drop it at its first error; it has none, but what it reports is for the reader.
func (m *manager) ready(fd int) {
	m.isReady = true
	if !m.stored { // what the manager has passed on it keeps, and would complain of
		m.send("FDSTORE=1\nFDNAME="+keptName+"\nFDPOLL=0", fd)
	}
	m.serving()
}

// serving says that the process does its work, from the start or again.
func (m *manager) serving() { m.send("READY=1\nSTATUS=logging flows") }

// reloading says that the configuration is being read again; serving ends it.
func (m *manager) reloading() {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	m.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=reading the configuration again", t.Nano()/1000))
}

// stopping says that the process is ending.
func (m *manager) stopping() { m.send("STOPPING=1\nSTATUS=delivering what is left") }

// abandon gives up what is kept, unless the process became ready. The kernel must hold nothing back for a process that cannot
// start.
func (m *manager) abandon() {
	defer m.flush()
	if m.isReady {
		return
	}
	if kept := m.take(); kept != nil {
		if err := ctnetlink.Abandon(kept); err != nil {
			m.log.Error("give up the kept netlink socket", zap.Error(err))
		}
	}
	m.send("FDSTOREREMOVE=1\nFDNAME=" + keptName)
}

// pet shows that the reader is alive, twice in each interval of the watchdog. It does not wait: if the manager does not
// listen now, the next call tries again.
func (m *manager) pet() {
	now := time.Now()
	if m.watchdog == 0 || now.Sub(m.petted) < m.watchdog/2-petSlack {
		return
	}
	switch err := m.try(message{text: "WATCHDOG=1"}, unix.MSG_DONTWAIT); err {
	case nil:
		m.petted = now
	case unix.EAGAIN:
	default:
		m.complain("WATCHDOG=1", err)
	}
}

// petSlack lets a pet come a little early. Otherwise it might come one round of the reader late.
const petSlack = 100 * time.Millisecond

// message is what a manager is told.
type message struct {
	text string
	fds  []int
}

// send sends a message, with descriptors. It does not wait: what the manager has no room for, because it hangs, is sent
// when it listens again, before all that comes later.
func (m *manager) send(text string, fds ...int) {
	if m.fd < 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.unsent) == 0 {
		err := m.try(message{text, fds}, unix.MSG_DONTWAIT)
		if err != unix.EAGAIN {
			m.complain(text, err)
			return
		}
		m.log.Warn("the service manager does not listen; it is told when it does")
		m.idle = make(chan struct{})
		go m.sendUnsent()
	}
	later := message{text: text}
	for _, fd := range fds { // it may be closed until then
		if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			later.fds = append(later.fds, dup)
		}
	}
	m.unsent = append(m.unsent, later)
}

// sendUnsent sends what was left, waiting for the manager.
func (m *manager) sendUnsent() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.unsent) > 0 {
		next := m.unsent[0]
		m.mu.Unlock()
		err := m.try(next, 0)
		for _, fd := range next.fds {
			_ = unix.Close(fd)
		}
		m.complain(next.text, err)
		m.mu.Lock()
		m.unsent = m.unsent[1:]
	}
	close(m.idle)
}

// lastWords is how long the end waits for a manager that does not listen.
const lastWords = time.Second

// flush waits a moment for what is unsent.
func (m *manager) flush() {
	m.mu.Lock()
	idle := m.idle
	m.mu.Unlock()
	if idle != nil {
		select {
		case <-idle:
		case <-time.After(lastWords):
		}
	}
}

// try sends a message now.
func (m *manager) try(msg message, flags int) (err error) {
	var rights []byte
	if len(msg.fds) > 0 {
		rights = unix.UnixRights(msg.fds...)
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Sendmsg(m.fd, []byte(msg.text), rights, m.addr, flags)
	}
	return err
}

func (m *manager) complain(text string, err error) {
	if err != nil {
		m.log.Warn("tell the service manager", zap.String("message", strings.SplitN(text, "\n", 2)[0]), zap.Error(err))
	}
}

// managed reports whether there is a manager.
func (m *manager) managed() bool { return m.fd >= 0 }
