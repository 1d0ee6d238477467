package jsonl

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var errNoReader = errors.New("nobody reads the FIFO; start its reader")

// arrivals knows which of the records that were written to a pipe its reader has taken. What sits in a pipe is lost when
// both ends are closed, so it has not arrived.
type arrivals struct {
	conn syscall.RawConn

	mu      sync.Mutex
	written uint64    // bytes
	sent    []landing // what may not have arrived, in order
	records uint64    // that have arrived
}

// landing says that so many records have arrived when so many bytes have.
type landing struct{ bytes, records uint64 }

func newArrivals(file *os.File) (*arrivals, error) {
	conn, err := file.SyscallConn()
	return &arrivals{conn: conn}, err
}

// wrote counts bytes more; so many records are whole in the pipe with them.
func (a *arrivals) wrote(bytes int, records uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.written += uint64(bytes)
	a.land()
	a.sent = append(a.sent, landing{a.written, records})
}

// arrived returns how many records the reader has taken.
func (a *arrivals) arrived() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.land()
	return a.records
}

// land moves on to what the reader has taken. The lock is held.
func (a *arrivals) land() {
	unread, err := a.unread()
	if err != nil || uint64(unread) > a.written { // closed; or a write under way is not counted yet
		return
	}
	n := 0
	for n < len(a.sent) && a.sent[n].bytes <= a.written-uint64(unread) {
		a.records = a.sent[n].records
		n++
	}
	a.sent = a.sent[:copy(a.sent, a.sent[n:])]
}

// unread returns how many bytes sit in the pipe.
func (a *arrivals) unread() (n int, err error) {
	cerr := a.conn.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n, errors.Join(cerr, err)
}

// deserted reports whether the pipe is empty and has no reader.
func (a *arrivals) deserted() bool {
	n, err := a.unread()
	return err == nil && n == 0 && !a.read()
}

// read reports whether anybody has the pipe open for reading.
func (a *arrivals) read() (yes bool) {
	_ = a.conn.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		yes = err != nil || n == 0 || fds[0].Revents&unix.POLLERR == 0
	})
	return yes
}

// drain waits until the pipe is empty, nobody reads it, or ctx ends.
func (a *arrivals) drain(ctx context.Context) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if n, err := a.unread(); err != nil || n == 0 || !a.read() {
			a.arrived()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
