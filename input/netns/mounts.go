package netns

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dirs are where namespaces have their names: ip netns, CNI and others; Docker.
var dirs = []string{"/run/netns", "/run/docker/netns"}

// mount is a namespace that is mounted under a name.
type mount struct {
	path  string
	inode uint64 // tells the namespace from all others
}

// mounts reads which namespaces are mounted in one of the directories. It asks the kernel's list of mounts and touches no
// file: what else is mounted there may hang.
type mounts struct {
	fd  int // of /proc/self/mountinfo; poll(2) tells of changes
	buf []byte
}

func openMounts() (m *mounts, err error) {
	m = new(mounts)
	if m.fd, err = unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("read the list of mounts: %w", err)
	}
	return m, nil
}

func (m *mounts) close() { _ = unix.Close(m.fd) }

// read returns the namespaces by their names. Of two mounts of one path the last one counts, which covers the other.
func (m *mounts) read() (map[string]mount, error) {
	if _, err := unix.Seek(m.fd, 0, 0); err != nil {
		return nil, fmt.Errorf("read the list of mounts: %w", err)
	}
	m.buf = m.buf[:0]
	for {
		if cap(m.buf)-len(m.buf) < 4096 {
			m.buf = append(m.buf, make([]byte, 32<<10)...)[:len(m.buf)]
		}
		n, err := unix.Read(m.fd, m.buf[len(m.buf):cap(m.buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the list of mounts: %w", err)
		}
		if n == 0 {
			return parseMounts(m.buf), nil
		}
		m.buf = m.buf[:len(m.buf)+n]
	}
}

// parseMounts reads lines such as these (proc_pid_mountinfo(5)):
//
//	id parent major:minor root             mount point     options   optional fields - type  source options
//	77 42     0:4         net:[4026532281] /run/netns/blue rw shared:1               - nsfs  nsfs   rw
func parseMounts(text []byte) map[string]mount {
	found := map[string]mount{} // by path
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 10 {
			continue
		}
		at := unescape(f[4])
		for _, d := range dirs {
			if d == at || strings.HasPrefix(d, strings.TrimSuffix(at, "/")+"/") { // it covers what was mounted below before
				maps.DeleteFunc(found, func(under string, _ mount) bool { return path.Dir(under) == d })
			}
		}
		delete(found, at) // what covers it may be something else
		if dir, name := path.Split(at); name == "" || !slices.Contains(dirs, strings.TrimSuffix(dir, "/")) {
			continue
		}
		root, ok := strings.CutPrefix(f[3], "net:[")
		root, closed := strings.CutSuffix(root, "]")
		inode, err := strconv.ParseUint(root, 10, 64)
		if !ok || !closed || err != nil || !isNSFS(f) {
			continue
		}
		found[at] = mount{at, inode}
	}
	named := make(map[string]mount, len(found))
	for _, d := range slices.Backward(dirs) { // of one name in both, that in the first counts
		for at, m := range found {
			if path.Dir(at) == d {
				named[path.Base(at)] = m
			}
		}
	}
	return named
}

// isNSFS reports whether the type, which follows a lone dash, is that of namespaces.
func isNSFS(fields []string) bool {
	for i := 6; i+1 < len(fields); i++ {
		if fields[i] == "-" {
			return fields[i+1] == "nsfs"
		}
	}
	return false
}

// unescape undoes the kernel's escapes of spaces, tabs, newlines and backslashes: three octal digits.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
