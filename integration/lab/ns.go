// Package lab builds small networks out of namespaces that have no name and live no longer than this process, and
// sends real traffic through them. The integration tests and the demo stand on it. It needs root, and the commands ip
// (iproute2) and nft (nftables).
//
// Nothing is ever created in the namespace that the process was started in: a process that is killed half way leaves
// nothing behind.
package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// NS is a network namespace. Its methods may be called from any goroutine.
type NS struct {
	Name string // for messages only
	file *os.File
}

// home opens the namespace that the process was started in, to which borrowed threads return.
var home = sync.OnceValues(func() (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/%d/ns/net", os.Getpid()))
})

// New makes a namespace with its loopback interface up.
func New(name string) (*NS, error) {
	n := &NS{Name: name}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace (needs root): %w", err)
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	// Without duplicate address detection, which takes a second or two, addresses of version 6 are usable at once.
	for _, of := range []string{"all", "default"} {
		if err := n.Sysctl("net.ipv6.conf."+of+".accept_dad", "0"); err != nil {
			return nil, err
		}
	}
	return n, n.Run("ip", "link", "set", "lo", "up")
}

// Close lets go of the namespace. It is gone once no process runs in it and no socket of it is open.
func (n *NS) Close() error { return n.file.Close() }

// Path is a path by which other processes reach the namespace as long as this process lives.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Do calls f on a thread that is in the namespace: sockets that f opens and processes that it starts are in it. What
// f starts with the go statement is not.
func (n *NS) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.Name, err)
		}
		return f()
	})
}

// onThread calls f on a thread of its own, which it brings home afterwards.
func onThread(f func() error) error {
	back, err := home()
	if err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := f()
		// A thread that cannot go home ends with this goroutine, since it stays locked.
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Run runs a command in the namespace and returns its output as part of the error if it fails.
func (n *NS) Run(name string, args ...string) error {
	_, err := n.Output("", name, args...)
	return err
}

// Output runs a command in the namespace with stdin as its input and returns what it writes to standard output.
func (n *NS) Output(stdin, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := n.Start(cmd); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %s %s: %w: %s", n.Name, name, strings.Join(args, " "), err, &stderr)
	}
	return stdout.Bytes(), nil
}

// Start starts a command in the namespace. The kernel kills it when this process ends, however that comes about.
func (n *NS) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return n.Do(cmd.Start)
}

// Sysctl sets a sysctl of the namespace, such as "net.ipv4.ip_forward".
func (n *NS) Sysctl(key, value string) error {
	return n.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0) })
}

// ReadSysctl returns a sysctl of the namespace.
func (n *NS) ReadSysctl(key string) (value string, err error) {
	err = n.Do(func() error {
		b, err := os.ReadFile(sysctlPath(key))
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

func sysctlPath(key string) string { return "/proc/sys/" + strings.ReplaceAll(key, ".", "/") }

// Nft loads a rule set.
func (n *NS) Nft(rules string) error {
	_, err := n.Output(rules, "nft", "-f", "-")
	return err
}

// Link joins n's interface dev to peer's interface peerDev by a veth pair and gives each its addresses (CIDR).
func (n *NS) Link(dev string, addrs []string, peer *NS, peerDev string, peerAddrs []string) error {
	err := n.Run("ip", "link", "add", dev, "type", "veth", "peer", "name", peerDev, "netns", peer.Path())
	if err != nil {
		return err
	}
	if err := n.configure(dev, addrs); err != nil {
		return err
	}
	return peer.configure(peerDev, peerAddrs)
}

func (n *NS) configure(dev string, addrs []string) error {
	for _, a := range addrs {
		if err := n.Run("ip", "addr", "add", a, "dev", dev); err != nil {
			return err
		}
	}
	return n.Run("ip", "link", "set", dev, "up")
}

// Listen is net.Listen in the namespace. The address must be literal.
func (n *NS) Listen(network, address string) (l net.Listener, err error) {
	err = n.Do(func() error { l, err = net.Listen(network, address); return err })
	return l, err
}

// ListenPacket is net.ListenPacket in the namespace. The address must be literal.
func (n *NS) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = n.Do(func() error { c, err = net.ListenPacket(network, address); return err })
	return c, err
}

// Timeout bounds every dial and every exchange of the lab's clients.
const Timeout = 10 * time.Second

// DialContext dials from the namespace. The address must be literal.
func (n *NS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return n.DialFrom(ctx, network, "", address)
}

// DialFrom dials from the namespace and from a local address ("192.168.1.2:40000"), or from any if it is "".
func (n *NS) DialFrom(ctx context.Context, network, local, address string) (c net.Conn, err error) {
	d := net.Dialer{Timeout: Timeout}
	if local != "" {
		// The port may be that of a connection of the last seconds.
		d.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}
		if strings.HasPrefix(network, "udp") {
			d.LocalAddr, err = net.ResolveUDPAddr(network, local)
		} else {
			d.LocalAddr, err = net.ResolveTCPAddr(network, local)
		}
		if err != nil {
			return nil, err
		}
	}
	err = n.Do(func() error { c, err = d.DialContext(ctx, network, address); return err })
	return c, err
}
