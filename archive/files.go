package archive

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	fileMode = 0o640
	dirMode  = 0o750
)

// step is called between the steps of every change on disk. Tests replace it, to fail or to end the process there.
var step = func(string) error { return nil }

// syncDir brings the names in dir to the disk. A file system that cannot is taken as it is.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// Time is a time in ns since 1970. In JSON it is RFC 3339 in UTC with nine digits, which sorts as text does.
type Time int64

const timeLayout = "2006-01-02T15:04:05.000000000Z"

// MarshalText returns the time as RFC 3339.
func (t Time) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

func (t Time) String() string { return time.Unix(0, int64(t)).UTC().Format(timeLayout) }

// UnmarshalText reads what MarshalText has written.
func (t *Time) UnmarshalText(b []byte) error {
	v, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return err
	}
	*t = Time(v.UnixNano())
	return nil
}

// date returns the day of the time, in UTC.
func (t Time) date() string { return time.Unix(0, int64(t)).UTC().Format(time.DateOnly) }

// Duration is a time.Duration that JSON has as text.
type Duration time.Duration

// MarshalText returns the duration as Go writes it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what MarshalText has written.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// HostFolder is the name of a host's folder, in the manner of Hive: what is special in a path is escaped.
func HostFolder(host string) string {
	var b strings.Builder
	b.WriteString("host=")
	for _, c := range []byte(host) {
		if c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '-' || c == '_' || c == '.' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// free returns how many bytes the file system of dir has left for those who are not root.
func free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// takeOver gives a file the owner and the mode of another, which it is to replace.
func takeOver(f *os.File, of os.FileInfo) error {
	var err error
	if st, ok := of.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid()) {
		err = f.Chown(int(st.Uid), int(st.Gid))
	}
	return errors.Join(err, f.Chmod(of.Mode().Perm()))
}
