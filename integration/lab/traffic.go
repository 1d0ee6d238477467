package lab

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// HTTPClient returns a client whose connections come from local ("192.168.1.2:40000"), or from any address if it is
// "". A connection stays open until CloseIdleConnections.
func (n *NS) HTTPClient(local string) *http.Client {
	return &http.Client{Timeout: Timeout, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return n.DialFrom(ctx, network, local, address)
		},
	}}
}

// Get fetches a URL over a connection of its own, from local or from any address if that is "".
func (n *NS) Get(local, url string) error {
	c := n.HTTPClient(local)
	defer c.CloseIdleConnections()
	return Get(c, url)
}

// Get fetches a URL and fails unless the answer is 200.
func Get(c *http.Client, url string) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", url, resp.Status)
	}
	return nil
}

// Exchange sends a datagram from local (or from any address if that is "") and waits for an answer; over UDP it asks again
// every two seconds.
func (n *NS) Exchange(network, local, address string, payload []byte) ([]byte, error) {
	c, err := n.DialFrom(context.Background(), network, local, address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	answer, end := make([]byte, 65536), time.Now().Add(Timeout)
	for {
		until := end
		if strings.HasPrefix(network, "udp") { // the first datagram on a new link may be lost
			until = time.Now().Add(2 * time.Second)
		}
		_ = c.SetDeadline(until)
		if _, err := c.Write(payload); err != nil {
			return nil, err
		}
		k, err := c.Read(answer)
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) || until == end {
			return answer[:k], err
		}
	}
}

// Answer answers every datagram that c receives, with what reply makes of it, until c is closed.
func Answer(c net.PacketConn, reply func(query []byte) []byte) {
	buf := make([]byte, 65536)
	for {
		k, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(reply(buf[:k]), from)
	}
}

// Ping sends one echo request with an id of the caller's and waits for the answer.
func (n *NS) Ping(local, address string, id uint16) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if strings.Contains(address, ":") {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := n.ListenPacket(network, local)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(Timeout))
	packet := append([]byte{request, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}, "ctlogd's lab, echo request"...)
	if request == 8 { // the kernel sums up ICMPv6 by itself
		binary.BigEndian.PutUint16(packet[2:], ^onesSum(packet))
	}
	if _, err := c.WriteTo(packet, &net.IPAddr{IP: net.ParseIP(address)}); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	for {
		k, _, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("wait for %s to answer a ping: %w", address, err)
		}
		if k >= 8 && buf[0] == reply && binary.BigEndian.Uint16(buf[4:]) == id {
			return nil
		}
	}
}

// onesSum is the Internet checksum before its complement (RFC 1071).
func onesSum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i&1))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// ExchangeIP sends payload as the body of an IPv4 packet of a protocol that the kernel need not know, and waits at
// server, which listens on every address, until it has arrived; then server answers with answer, unless that is nil,
// to the address that it saw, and the client waits for it.
func ExchangeIP(client *NS, local string, server *NS, address string, proto int, payload, answer []byte) error {
	network := fmt.Sprintf("ip4:%d", proto)
	far, err := server.ListenPacket(network, address)
	if err != nil {
		return err
	}
	defer far.Close()
	near, err := client.ListenPacket(network, local)
	if err != nil {
		return err
	}
	defer near.Close()
	deadline := time.Now().Add(Timeout)
	_ = far.SetDeadline(deadline)
	_ = near.SetDeadline(deadline)
	if _, err := near.WriteTo(payload, &net.IPAddr{IP: net.ParseIP(address)}); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	_, from, err := far.ReadFrom(buf)
	if err != nil {
		return fmt.Errorf("wait for a packet of protocol %d: %w", proto, err)
	}
	if answer == nil {
		return nil
	}
	if _, err := far.WriteTo(answer, from); err != nil {
		return err
	}
	if _, _, err = near.ReadFrom(buf); err != nil {
		return fmt.Errorf("wait for the answer of protocol %d: %w", proto, err)
	}
	return nil
}

// SCTPInit returns an INIT (RFC 9260, section 3.3.2) or, as its answer, an INIT ACK. Only the common header and the
// checksum matter to connection tracking, which needs no SCTP in the kernel.
func SCTPInit(ack bool, sport, dport uint16) []byte {
	b := make([]byte, 32)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	b[12] = 1 // INIT
	if ack {
		b[12] = 2
		binary.BigEndian.PutUint32(b[4:], 0xc71d) // the verification tag is the initiate tag of the INIT
	}
	binary.BigEndian.PutUint16(b[14:], 20)
	binary.BigEndian.PutUint32(b[16:], 0xc71d) // initiate tag
	binary.BigEndian.PutUint32(b[20:], 65536)  // window
	binary.BigEndian.PutUint16(b[24:], 1)      // streams out
	binary.BigEndian.PutUint16(b[26:], 1)      // streams in
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// ExchangeUDPLite sends one UDP-Lite datagram from port sport to server's address and port, which answers it. The
// error wraps errors.ErrUnsupported where the kernel has no UDP-Lite.
func ExchangeUDPLite(client *NS, local string, server *NS, address string) error {
	far, err := server.udpLite(address)
	if err != nil {
		return err
	}
	defer far.Close()
	go Answer(far, func(q []byte) []byte { return q })
	near, err := client.udpLite(local)
	if err != nil {
		return err
	}
	defer near.Close()
	to, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		return err
	}
	_ = near.SetDeadline(time.Now().Add(Timeout))
	if _, err := near.WriteTo([]byte("udp-lite"), to); err != nil {
		return err
	}
	_, _, err = near.ReadFrom(make([]byte, 64))
	return err
}

func (n *NS) udpLite(local string) (c net.PacketConn, err error) {
	addr, err := netip.ParseAddrPort(local)
	if err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDPLITE)
		if err != nil {
			return fmt.Errorf("open a UDP-Lite socket: %w", err) // EPROTONOSUPPORT is errors.ErrUnsupported
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
			_ = unix.Close(fd)
			return err
		}
		f := os.NewFile(uintptr(fd), "udplite")
		defer f.Close()
		c, err = net.FilePacketConn(f)
		return err
	})
	return c, err
}

// FTPMode is how an FTP client gets its data connection.
type FTPMode int

const (
	FTPPassive FTPMode = iota // EPSV, or PASV where the server is IPv4
	FTPActive                 // PORT: the server connects to the client
)

// FTPGet fetches a file by anonymous FTP (RFC 959) from an IPv4 server and returns it. The control connection comes
// from local.
func (n *NS) FTPGet(local, address, file string, mode FTPMode) ([]byte, error) {
	conn, err := n.DialFrom(context.Background(), "tcp4", local, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(Timeout))
	ctl := textproto.NewConn(conn)
	cmd := func(expect int, line string) (string, error) {
		if line != "" {
			if err := ctl.PrintfLine("%s", line); err != nil {
				return "", err
			}
		}
		_, msg, err := ctl.ReadResponse(expect)
		if err != nil {
			return "", fmt.Errorf("ftp %s: %w", line, err)
		}
		return msg, nil
	}
	for _, c := range []struct {
		expect int
		line   string
	}{{220, ""}, {331, "USER anonymous"}, {230, "PASS lab@example.net"}, {200, "TYPE I"}} {
		if _, err := cmd(c.expect, c.line); err != nil {
			return nil, err
		}
	}
	var data net.Conn
	if mode == FTPPassive {
		msg, err := cmd(227, "PASV")
		if err != nil {
			return nil, err
		}
		addr, err := parseHostPort(msg)
		if err != nil {
			return nil, err
		}
		if data, err = n.DialContext(context.Background(), "tcp4", addr.String()); err != nil {
			return nil, err
		}
		if _, err := cmd(150, "RETR "+file); err != nil {
			return nil, err
		}
	} else {
		host := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr()
		l, err := n.Listen("tcp4", netip.AddrPortFrom(host, 0).String())
		if err != nil {
			return nil, err
		}
		defer l.Close()
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(Timeout))
		port := l.Addr().(*net.TCPAddr).Port
		_, err = cmd(200, "PORT "+hostPort(host, port))
		if err != nil {
			return nil, err
		}
		if _, err := cmd(150, "RETR "+file); err != nil {
			return nil, err
		}
		if data, err = l.Accept(); err != nil {
			return nil, fmt.Errorf("wait for the server's data connection: %w", err)
		}
	}
	defer data.Close()
	_ = data.SetDeadline(time.Now().Add(Timeout))
	content, err := io.ReadAll(data)
	if err != nil {
		return nil, err
	}
	data.Close()
	if _, err := cmd(226, ""); err != nil {
		return nil, err
	}
	_, err = cmd(221, "QUIT")
	return content, err
}

// hostPort returns an IPv4 address and a port as FTP writes them.
func hostPort(a netip.Addr, port int) string {
	return fmt.Sprintf("%s,%d,%d", strings.ReplaceAll(a.String(), ".", ","), port>>8, port&0xff)
}

// parseHostPort reads the "h1,h2,h3,h4,p1,p2" in an answer to PASV or in a PORT command.
func parseHostPort(s string) (netip.AddrPort, error) {
	if i := strings.IndexAny(s, "0123456789"); i >= 0 {
		s = s[i:]
	}
	var b [6]byte
	_, err := fmt.Sscanf(s, "%d,%d,%d,%d,%d,%d", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5])
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read an address and port in %q: %w", s, err)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), uint16(b[4])<<8|uint16(b[5])), nil
}

// ServeFTP serves one file to anonymous clients: just enough of RFC 959 for FTPGet, for where no FTP server is
// installed. It returns when l is closed.
func (n *NS) ServeFTP(l net.Listener, content []byte) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go n.serveFTP(c, content)
	}
}

func (n *NS) serveFTP(c net.Conn, content []byte) {
	defer c.Close()
	say := func(line string) { fmt.Fprintf(c, "%s\r\n", line) }
	local := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	var passive net.Listener
	var active netip.AddrPort
	say("220 ready")
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "USER":
			say("331 any password")
		case "PASS":
			say("230 welcome")
		case "TYPE":
			say("200 as you like")
		case "PORT":
			active, _ = parseHostPort(arg)
			say("200 noted")
		case "PASV":
			l, err := n.Listen("tcp4", netip.AddrPortFrom(local, 0).String())
			if err != nil {
				say("425 " + err.Error())
				continue
			}
			defer l.Close()
			passive = l
			p := l.Addr().(*net.TCPAddr).Port
			say("227 listening (" + hostPort(local, p) + ")")
		case "RETR":
			say("150 coming")
			var data net.Conn
			var err error
			if passive != nil {
				data, err = passive.Accept()
			} else {
				from := netip.AddrPortFrom(local, 20).String()
				data, err = n.DialFrom(context.Background(), "tcp4", from, active.String())
			}
			if err != nil {
				say("425 " + err.Error())
				continue
			}
			_, _ = data.Write(content)
			data.Close()
			say("226 done")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("502 not here")
		}
	}
}

// TFTPGet fetches a file of less than 512 bytes by TFTP (RFC 1350).
func (n *NS) TFTPGet(local, server, file string) ([]byte, error) {
	c, err := n.ListenPacket("udp4", local)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(Timeout))
	to, err := net.ResolveUDPAddr("udp4", server)
	if err != nil {
		return nil, err
	}
	if _, err := c.WriteTo([]byte("\x00\x01"+file+"\x00octet\x00"), to); err != nil {
		return nil, err
	}
	buf := make([]byte, 1024)
	k, from, err := c.ReadFrom(buf)
	if err != nil {
		return nil, fmt.Errorf("wait for tftp data: %w", err)
	}
	if k < 4 || buf[1] != 3 { // DATA
		return nil, fmt.Errorf("tftp server answers %q", buf[:k])
	}
	_, err = c.WriteTo([]byte{0, 4, buf[2], buf[3]}, from)
	return buf[4:k], err
}
