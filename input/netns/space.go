package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// Space is a network namespace with a name. It is held until it is Leaving and Release was called.
type Space struct {
	ID    int32
	Name  string
	Netns flow.Netns // of its records; valid while a View that has the Space is in use
	Since time.Time  // from when on its events come

	Events atomic.Uint64 // read; counted by who reads them
	Sheds  atomic.Uint64 // times that ends were thrown away as its table was too full; counted by who does

	read     [len(Sysctls)]atomic.Pointer[string]
	path     string
	inode    uint64
	fd       int          // holds the namespace
	in       *inside      // nil: it could not be entered
	leaving  atomic.Int64 // ns since 1970
	released atomic.Bool
	wake     func() // the Watcher
}

// Conn returns a netlink socket for ctnetlink that was made in the namespace, -1 if there is none. It does not block, and is
// for one goroutine, until Release.
func (s *Space) Conn() int {
	if s.in == nil {
		return -1
	}
	return s.in.conn
}

// Entries returns how many entries the connection tracking table has. It does not wait.
func (s *Space) Entries() (int64, error) {
	if s.in == nil {
		return 0, os.ErrPermission
	}
	return ReadNumber(s.in.count)
}

// Entered reports whether the table can be looked at.
func (s *Space) Entered() bool { return s.in != nil }

// ReadSysctl reads one of Sysctls, "" where it is not known. It does not wait.
func (s *Space) ReadSysctl(i int) string {
	if s.in == nil || s.in.sysctls[i] == nil {
		return ""
	}
	v, _ := readFile(s.in.sysctls[i])
	if old := s.read[i].Load(); old == nil || *old != v {
		s.read[i].Store(&v)
	}
	return v
}

// LastSysctl returns what ReadSysctl has read last, "" if it has not read it.
func (s *Space) LastSysctl(i int) string {
	if v := s.read[i].Load(); v != nil {
		return *v
	}
	return ""
}

// Leaving returns since when the namespace has no name any more, and whether that is so. Then it waits for Release.
func (s *Space) Leaving() (since time.Time, ok bool) {
	ns := s.leaving.Load()
	return time.Unix(0, ns), ns != 0
}

// Release lets a namespace go that is Leaving. Any goroutine may call it, once.
func (s *Space) Release() {
	s.released.Store(true)
	s.wake()
}

// Released reports whether Release was called.
func (s *Space) Released() bool { return s.released.Load() }

func (s *Space) String() string { return fmt.Sprintf("%s (nsid %d)", s.Name, s.ID) }

func (s *Space) close() {
	s.in.close()
	closeFD(s.fd)
	s.Netns.Release()
}

// ReadNumber reads a sysctl that is a number. It does not wait.
func ReadNumber(f *os.File) (int64, error) {
	text, err := readFile(f)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return v, nil
}

// readFile reads a sysctl, which is formatted anew by each pread from offset 0.
func readFile(f *os.File) (string, error) {
	var b [64]byte
	n := 0
	conn, err := f.SyscallConn()
	if err != nil {
		return "", err
	}
	closed := conn.Control(func(fd uintptr) { n, err = unix.Pread(int(fd), b[:], 0) }) // ReadAt would ask again for the end
	if err = errors.Join(closed, err); err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b[:n])), nil
}

// View is what is known at one moment. It does not change.
type View struct {
	Spaces  []*Space // by name
	Unnamed []int32  // ids of namespaces without a name
	Own     int32    // the id that ctlogd's own namespace has in itself; -1: none, as usual

	n    uint64
	byID map[int32]*Space
}

// Find returns the namespace that has the id, nil if it has no name.
func (v *View) Find(id int32) *Space { return v.byID[id] }
