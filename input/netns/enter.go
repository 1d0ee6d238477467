package netns

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// Enter runs f in the namespace fd, which takes CAP_SYS_ADMIN. f must be quick, and start no goroutine that is to run there:
// what it opens stays of that namespace.
func Enter(fd int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // until the thread is back; one that cannot come back ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// /proc/self shows the first thread's namespace, to all of the process. So it stays where it is, and another one goes.
			defer runtime.UnlockOSThread()
			done <- Enter(fd, f)
			return
		}
		own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open the own network namespace: %w", err)
			return
		}
		defer unix.Close(own)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter the namespace: %w", err)
			return
		}
		err = f()
		if unix.Setns(own, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// inside is what is open in a namespace.
type inside struct {
	conn    int // a netlink socket for ctnetlink, which answers for the namespace
	count   *os.File
	sysctls [len(Sysctls)]*os.File // nil where there is none
}

// Sysctls are those of Space.ReadSysctl, in the order of ctnetlink.Switch.
var Sysctls = [...]string{"nf_conntrack_events", "nf_conntrack_acct", "nf_conntrack_timestamp"}

const sysctlDir = "/proc/sys/net/netfilter/"

// enter opens it.
func enter(fd int) (in *inside, err error) {
	in = &inside{conn: -1}
	err = Enter(fd, func() (err error) {
		if in.conn, err = connect(); err != nil {
			return err
		}
		// These files stay those of the namespace in which they were opened, and do not hold it.
		if in.count, err = os.Open(sysctlDir + "nf_conntrack_count"); err != nil {
			return err
		}
		for i, name := range Sysctls {
			if in.sysctls[i], err = os.Open(sysctlDir + name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// connect returns a netlink socket for ctnetlink.
func connect() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, fmt.Errorf("open a netlink socket: %w", err)
	}
	return fd, nil
}

func (in *inside) close() {
	if in == nil {
		return
	}
	if in.conn >= 0 {
		_ = unix.Close(in.conn)
	}
	for _, f := range append(in.sysctls[:], in.count) {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Listing is which namespaces have a name at one moment.
type Listing struct {
	named  map[string]mount
	own    uint64 // inode of the caller's
	opener opener
}

// List lists them.
func List() (*Listing, error) {
	m, err := openMounts()
	if err != nil {
		return nil, err
	}
	defer m.close()
	named, err := m.read()
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return nil, fmt.Errorf("look at the own network namespace: %w", err)
	}
	return &Listing{named: named, own: st.Ino}, nil
}

// Names returns the names of all namespaces but the caller's own.
func (l *Listing) Names() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(l.named)) {
		if l.named[name].inode != l.own {
			names = append(names, name)
		}
	}
	return names
}

// find returns a descriptor of the namespace called name, and whether it is the caller's own.
func (l *Listing) find(name string) (fd int, own bool, err error) {
	m, ok := l.named[name]
	if !ok {
		return -1, false, fmt.Errorf("there is no network namespace %q below %s", name, strings.Join(dirs, " or "))
	}
	fd, err = l.opener.open(m)
	return fd, m.inode == l.own, err
}

// Connect returns a netlink socket for ctnetlink in the namespace called name, which is the caller's to close, and which
// namespace it is, for records. That is held for good.
func (l *Listing) Connect(name string) (conn int, n flow.Netns, err error) {
	fd, own, err := l.find(name)
	if err != nil {
		return -1, 0, err
	}
	defer unix.Close(fd)
	if !own {
		ids, err := openIDs()
		if err != nil {
			return -1, 0, err
		}
		defer ids.close()
		id, err := ids.of(fd)
		if err != nil {
			return -1, 0, err
		}
		n = flow.HoldNetns(id, name)
	}
	err = Enter(fd, func() (err error) {
		conn, err = connect()
		return err
	})
	if err != nil {
		return -1, 0, fmt.Errorf("network namespace %s: %w", name, err)
	}
	return conn, n, nil
}

// Inspection is what a namespace is like.
type Inspection struct {
	Entries int64                // in its table
	Sysctls [len(Sysctls)]string // "": not known
}

// Inspect enters the namespace called name and looks around.
func (l *Listing) Inspect(name string) (i Inspection, err error) {
	fd, _, err := l.find(name)
	if err != nil {
		return i, err
	}
	defer unix.Close(fd)
	in, err := enter(fd)
	if err != nil {
		return i, fmt.Errorf("network namespace %s: %w", name, err)
	}
	defer in.close()
	s := Space{in: in}
	i.Entries, err = s.Entries()
	for n := range i.Sysctls {
		i.Sysctls[n] = s.ReadSysctl(n)
	}
	return i, err
}
