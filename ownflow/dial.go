package ownflow

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// DialContext is net.Dialer's, and notes the sockets that it makes: those of attempts that fail as well, which are flows
// too. An attempt that follows a failed one to the same address has its local port again if it is free, so that a
// collector that does not answer is one flow and not one for each attempt. The connection counts as open until Close.
func (s *Sockets) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if s == nil {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return s.dial(ctx, network, address, s.Resolver())
}

// Resolver is Go's, and notes the sockets by which it asks name servers.
func (s *Sockets) Resolver() *net.Resolver {
	if s == nil {
		return net.DefaultResolver
	}
	return &net.Resolver{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return s.dial(ctx, network, address, nil) // the address of a name server is no name
	}}
}

func (s *Sockets) dial(ctx context.Context, network, address string, resolver *net.Resolver) (net.Conn, error) {
	a := attempt{sockets: s}
	dialer := net.Dialer{Resolver: resolver}
	if strings.HasPrefix(network, "tcp") {
		dialer.ControlContext = a.prepare
	}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		a.end(netip.AddrPort{})
		return nil, err
	}
	switch c := conn.(type) {
	case *net.TCPConn:
		remote := addrPort(c.RemoteAddr())
		conn = &tcpConn{c, s.Track(flow.TCP, addrPort(c.LocalAddr()), remote)}
		a.end(remote)
	case *net.UDPConn:
		conn = &udpConn{c, s.Track(flow.UDP, addrPort(c.LocalAddr()), addrPort(c.RemoteAddr()))}
	}
	return conn, nil
}

type tcpConn struct {
	*net.TCPConn
	release func()
}

func (c *tcpConn) Close() error {
	defer c.release()
	return c.TCPConn.Close()
}

type udpConn struct {
	*net.UDPConn
	release func()
}

func (c *udpConn) Close() error {
	defer c.release()
	return c.UDPConn.Close()
}

// attempt is one call of DialContext. A name with several addresses makes several sockets, some of them at once.
type attempt struct {
	sockets *Sockets

	mu    sync.Mutex
	ended bool
	made  []socket
}

// socket is one that is about to connect.
type socket struct {
	remote  netip.AddrPort
	port    uint16
	release func()
}

// prepare gives a TCP socket its local port and notes it, before it connects. That it cannot is no reason not to connect.
func (a *attempt) prepare(_ context.Context, network, address string, raw syscall.RawConn) error {
	remote, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil
	}
	from, err := sourceOf(remote)
	if err != nil {
		return nil
	}
	a.sockets.mu.Lock()
	last := a.sockets.ports[remote]
	a.sockets.mu.Unlock()
	var local uint16
	_ = raw.Control(func(fd uintptr) {
		if last == 0 || bind(int(fd), network, last) != nil {
			if bind(int(fd), network, 0) != nil {
				return
			}
		}
		local, _ = localPort(int(fd))
	})
	if local == 0 {
		return nil
	}
	made := socket{remote, local, a.sockets.Track(flow.TCP, netip.AddrPortFrom(from, local), remote)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		made.release()
		return nil
	}
	a.made = append(a.made, made)
	return nil
}

// end says that the attempt is over. connected is where it has led, invalid if nowhere.
func (a *attempt) end(connected netip.AddrPort) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.sockets.mu.Lock()
	for _, m := range a.made {
		switch {
		case m.remote == connected:
			delete(a.sockets.ports, m.remote)
		case !connected.IsValid():
			a.sockets.ports[m.remote] = m.port
		}
	}
	a.sockets.mu.Unlock()
	for _, m := range a.made {
		m.release()
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// sourceOf returns the address from which this host sends to remote. A datagram socket that connects asks the routing
// table and sends nothing.
func sourceOf(remote netip.AddrPort) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(remote))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return addrPort(c.LocalAddr()).Addr(), nil
}

func bind(fd int, network string, port uint16) error {
	if strings.HasSuffix(network, "6") {
		return unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)})
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)})
}

func localPort(fd int) (uint16, error) {
	sa, err := unix.Getsockname(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, os.NewSyscallError("getsockname", err)
}
