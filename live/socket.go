package live

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultSocket is where the clients look: what the unit makes of RuntimeDirectory=ctlogd.
	DefaultSocket = "/run/ctlogd/ctlogd.sock"

	// socketMode lets in root, the user that ctlogd runs as, and the members of its group.
	socketMode = 0o660
)

// listen makes the socket at path. What a dead process has left there is replaced; a living one's is an error.
func listen(path string) (l *net.UnixListener, err error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("live.socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("live.socket: %s is there and no socket; remove it, or name another", path)
	default:
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("live.socket: a process answers on %s already, another ctlogd perhaps; "+
				"give one of the two another live.socket", path)
		}
	}
	// It gets its mode before it gets its name: nobody is let in meanwhile, and there is always a socket at path.
	next := path + ".next"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("live.socket: %w", err)
	}
	l, err = net.ListenUnix("unix", &net.UnixAddr{Name: next, Net: "unix"})
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; make the directory, writable by the user that ctlogd runs as", err)
		}
		return nil, fmt.Errorf("live.socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(next, socketMode)
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(next)
		return nil, fmt.Errorf("live.socket: %w", err)
	}
	return l, nil
}
