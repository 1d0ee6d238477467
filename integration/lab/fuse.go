package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Fuse is a directory in which each name is an empty file. It can hang: whoever looks for a name waits then.
type Fuse struct {
	dir string
	fd  int

	mu      sync.Mutex
	nodes   map[string]uint64
	hangs   bool
	waiting [][]byte // requests
}

// Operations of linux/fuse.h.
const (
	fuseLookup  = 1
	fuseForget  = 2
	fuseGetattr = 3
	fuseInit    = 26

	fuseHeader = 40 // struct fuse_in_header
	fuseRoot   = 1  // FUSE_ROOT_ID
)

// NewFuse mounts one on dir.
func NewFuse(dir string) (*Fuse, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	f := &Fuse{dir: dir, fd: fd, nodes: map[string]uint64{}}
	if err := unix.Mount("lab", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other", fd)); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("mount a FUSE file system: %w", err)
	}
	go f.serve()
	return f, nil
}

// Close takes the directory away. Whoever waits gets an error.
func (f *Fuse) Close() error { return unix.Unmount(f.dir, unix.MNT_DETACH|unix.MNT_FORCE) }

// Hang has everybody wait who looks for a name, until Thaw.
func (f *Fuse) Hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hangs = true
}

// Thaw answers those who wait.
func (f *Fuse) Thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hangs = false
	for _, req := range f.waiting {
		f.answer(req)
	}
	f.waiting = nil
}

// Waiting returns how many wait.
func (f *Fuse) Waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.waiting)
}

// serve ends when the file system is unmounted.
func (f *Fuse) serve() {
	defer unix.Close(f.fd)
	buf := make([]byte, 1<<17)
	for {
		n, err := unix.Read(f.fd, buf)
		if err == unix.EINTR || err == unix.ENOENT { // a request was taken back
			continue
		}
		if err != nil || n < fuseHeader {
			return
		}
		f.mu.Lock()
		if binary.NativeEndian.Uint32(buf[4:]) == fuseLookup && f.hangs {
			f.waiting = append(f.waiting, bytes.Clone(buf[:n]))
		} else {
			f.answer(buf[:n])
		}
		f.mu.Unlock()
	}
}

// answer answers a request. What it does not know is not implemented.
func (f *Fuse) answer(req []byte) {
	le := binary.NativeEndian
	var body []byte
	errno := int32(0)
	switch le.Uint32(req[4:]) {
	case fuseForget:
		return
	case fuseInit:
		body = make([]byte, 64) // struct fuse_init_out: version 7.31, and no more
		le.PutUint32(body, 7)
		le.PutUint32(body[4:], 31)
		le.PutUint32(body[20:], 4096) // max_write
	case fuseLookup:
		name := string(bytes.TrimRight(req[fuseHeader:], "\x00"))
		node := f.nodes[name]
		if node == 0 {
			node = fuseRoot + 1 + uint64(len(f.nodes))
			f.nodes[name] = node
		}
		body = make([]byte, 40) // struct fuse_entry_out, which the kernel may not keep
		le.PutUint64(body, node)
		body = append(body, attributes(node)...)
	case fuseGetattr:
		body = append(make([]byte, 16), attributes(le.Uint64(req[16:]))...) // struct fuse_attr_out
	default:
		errno = -int32(unix.ENOSYS)
	}
	out := make([]byte, 16, 16+len(body)) // struct fuse_out_header
	le.PutUint32(out, uint32(16+len(body)))
	le.PutUint32(out[4:], uint32(errno))
	copy(out[8:16], req[8:16])
	_, _ = unix.Write(f.fd, append(out, body...)) // of no use if whoever asked is gone
}

// attributes returns a node's struct fuse_attr.
func attributes(node uint64) []byte {
	a := make([]byte, 88)
	binary.NativeEndian.PutUint64(a, node)
	mode := uint32(unix.S_IFREG | 0o644)
	if node == fuseRoot {
		mode = unix.S_IFDIR | 0o755
	}
	binary.NativeEndian.PutUint32(a[60:], mode)
	binary.NativeEndian.PutUint32(a[64:], 1) // links
	return a
}
