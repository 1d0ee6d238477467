package live

import (
	"fmt"
	"os"
	"path/filepath"
)

// NoSocket as Config.Socket means that there is none.
const NoSocket = "none"

// maxPath is the longest path of a unix socket (struct sockaddr_un), with what listen appends and a NUL.
const maxPath = 108 - len(".next") - 1

// Config is what the configuration says under live.
type Config struct {
	Socket  string `yaml:"socket"`  // its path; unset: ctlogd.sock in $RUNTIME_DIRECTORY, or none
	Talkers bool   `yaml:"talkers"` // count top talkers also while nobody looks
}

// Validate reports every impossible value.
func (c *Config) Validate(report func(field, msg string)) {
	switch {
	case c.Socket == "" || c.Socket == NoSocket:
	case !filepath.IsAbs(c.Socket):
		report("socket", fmt.Sprintf("%q is no absolute path; write one such as %s, or %s", c.Socket, DefaultSocket, NoSocket))
	case len(c.Socket) > maxPath:
		report("socket", fmt.Sprintf("a path of %d bytes; the kernel allows sockets no more than %d", len(c.Socket), maxPath))
	}
}

// Check tells whether there is a directory for the socket, which must be one.
func (c *Config) Check() error {
	dir := filepath.Dir(c.Socket)
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("socket: %w; make the directory, or write %s", err, NoSocket)
	}
	if !info.IsDir() {
		return fmt.Errorf("socket: %s is no directory; name another one, or write %s", dir, NoSocket)
	}
	return nil
}
