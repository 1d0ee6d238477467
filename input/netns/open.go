package netns

import (
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrForeign says that what has a namespace's name is none.
var ErrForeign = errors.New("is no network namespace")

// openWithin is how long the opening of a namespace may take.
const openWithin = time.Second

// opener opens namespaces, each on a goroutine of its own: the file system on which one is mounted may hang. Until that
// comes back, nothing else in its directory is tried.
type opener struct {
	mu    sync.Mutex
	hangs map[string]bool // directories
}

// open returns a descriptor of the namespace that is mounted. It takes a second at most.
func (o *opener) open(m mount) (fd int, err error) {
	dir := path.Dir(m.path)
	hangs := fmt.Errorf("open %s: its directory hangs", m.path)
	if o.hang(dir) {
		return -1, hangs
	}
	type opened struct {
		fd  int
		err error
	}
	done := make(chan opened, 1)
	go func() {
		fd, err := openPath(m.path)
		done <- opened{fd, err}
	}()
	var got opened
	select {
	case got = <-done:
	case <-time.After(openWithin):
		o.set(dir, true)
		go func() {
			closeFD((<-done).fd)
			o.set(dir, false)
		}()
		return -1, hangs
	}
	if got.err != nil {
		return -1, got.err
	}
	var st unix.Stat_t
	if err := unix.Fstat(got.fd, &st); err != nil || st.Ino != m.inode {
		closeFD(got.fd)
		return -1, errors.Join(err, fmt.Errorf("%s is another namespace by now", m.path))
	}
	return got.fd, nil
}

func (o *opener) hang(dir string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.hangs[dir]
}

func (o *opener) set(dir string, hangs bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hangs == nil {
		o.hangs = map[string]bool{}
	}
	o.hangs[dir] = hangs
}

// openPath returns a descriptor of the namespace that is mounted at path. It waits as long as what is there does.
func openPath(path string) (fd int, err error) {
	if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s %w", path, ErrForeign)
	}
	return fd, nil
}
