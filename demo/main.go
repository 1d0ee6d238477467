// Command demo shows ctlogd at work: a client and a server, joined by a NAT gateway with a port forward and the FTP
// helper, each in a network namespace of its own; some seconds of real traffic; and in the gateway ctlogd, whose
// records appear on standard output, readable on a terminal, as they are in a pipe.
//
// The namespaces have no name and nothing is created outside them, so that nothing is left behind however the demo
// ends.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/lab"
	"github.com/ctlogd/ctlogd/live"
)

func main() {
	ctlogd := flag.String("ctlogd", "bin/ctlogd", "the daemon to show")
	rounds := flag.Int("rounds", 5, "rounds of traffic, about two seconds each")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGPIPE) // "make demo | head" is to leave nothing behind either
	if err := run(ctx, *ctlogd, *rounds); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

const config = `
log: {level: error}
input:
  conntrack: {events: [destroy], delivery: reliable}
outputs:
  jsonl:
    - path: "-"
  archive:
    - path: %[1]s/archive
live: {socket: %[1]s/ctlogd.sock}
`

func run(ctx context.Context, ctlogd string, rounds int) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, for network namespaces and conntrack events; try: sudo make demo")
	}
	for _, c := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(c); err != nil {
			return fmt.Errorf("needs the command %s; on Debian: apt-get install iproute2 nftables", c)
		}
	}
	n, err := newNetwork()
	if err != nil {
		return err
	}
	defer n.close()

	dir, err := os.MkdirTemp("", "ctlogd-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "ctlogd.sock")
	file := filepath.Join(dir, "ctlogd.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, dir), 0o644); err != nil {
		return err
	}
	cmd := exec.Command(ctlogd, "run", "-c", file)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which then ends the daemon
	records, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := n.gateway.Start(cmd); err != nil {
		return err
	}
	ctx, ended := context.WithCancelCause(ctx)
	terminal := isTerminal(os.Stdout)
	read := make(chan int, 1)
	var last atomic.Pointer[translated]
	go func() {
		read <- pass(records, !terminal, &last)
		ended(errors.New("ctlogd has ended"))
	}()
	err = listening(ctx, cmd.Process.Pid, socket)
	var shown sync.WaitGroup
	if err == nil && terminal {
		tapped := make(chan struct{})
		shown.Go(func() { tap(socket, sync.OnceFunc(func() { close(tapped) })) })
		<-tapped
	}
	if err == nil {
		err = n.play(ctx, rounds)
	}
	if err == nil {
		err = n.whois(ctx, ctlogd, file, &last)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
	count := <-read // the pipe ends with the daemon
	late.Stop()
	shown.Wait()
	if exit := cmd.Wait(); exit != nil {
		err = fmt.Errorf("ctlogd: %w", exit)
	}
	say("%d records; what a firewall would have written to its log.", count)
	return err
}

// translated is what a record of a TCP connection from inside tells.
type translated struct {
	Proto string `json:"proto"`
	IP    string `json:"nat_src_ip"`
	Port  uint16 `json:"nat_src_port"`
	Start string `json:"start"`
}

// pass reads the records, as JSON lines, until there are no more, prints them if they are to be seen like this, and
// returns how many there were. last is the last one that was translated.
func pass(records io.Reader, print bool, last *atomic.Pointer[translated]) (count int) {
	for lines := bufio.NewScanner(records); lines.Scan(); count++ {
		if print {
			fmt.Println(lines.Text())
		}
		t := new(translated)
		if json.Unmarshal(lines.Bytes(), t) == nil && t.Proto == "tcp" && t.IP != "" && t.Start != "" {
			last.Store(t)
		}
	}
	return count
}

// whois asks the archive who had the address and port of a flow that has just been seen. The answer goes to standard
// error, as whatever the demo says.
func (n *network) whois(ctx context.Context, ctlogd, file string, last *atomic.Pointer[translated]) error {
	for deadline := time.Now().Add(5 * time.Second); last.Load() == nil; {
		if time.Now().After(deadline) {
			return errors.New("no record of a translated flow has come")
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	t := last.Load()
	end := net.JoinHostPort(t.IP, strconv.Itoa(int(t.Port)))
	say("ctlogd whois %s --at %s", end, t.Start)
	cmd := exec.Command(ctlogd, "whois", end, "--at", t.Start, "-c", file)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := n.gateway.Start(cmd); err != nil {
		return err
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && (!errors.As(err, &exit) || exit.ExitCode() < 3 || exit.ExitCode() > 5) {
		return fmt.Errorf("ctlogd whois: %w", err)
	}
	return nil
}

// tap shows the records as "ctlogd tap" does, until the daemon ends. tapped is called when none is missed any more.
func tap(socket string, tapped func()) {
	defer tapped()
	p := live.Printer{Color: true}
	fmt.Println(p.Head())
	_ = live.NewClient(socket).Tap(context.Background(), nil, func(r *flow.Record) bool {
		fmt.Println(p.Line(r))
		return true
	}, tapped)
}

// listening waits until the daemon listens, for events and on its socket.
func listening(ctx context.Context, pid int, socket string) error {
	listens := func() bool {
		_, err := os.Stat(socket)
		return err == nil && lab.Listens(pid, lab.GroupDestroy)
	}
	for deadline := time.Now().Add(10 * time.Second); !listens(); {
		if time.Now().After(deadline) {
			return errors.New("ctlogd does not listen for conntrack events")
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// play makes traffic, and waits until the flows have ended.
func (n *network) play(ctx context.Context, rounds int) error {
	say("client 192.168.1.2 -- gateway 198.51.100.1 -- server 198.51.100.10; ctlogd runs in the gateway.")
	for round := range rounds {
		if err := n.traffic(round); err != nil {
			return err
		}
		for range 10 {
			if err := sleep(ctx, 200*time.Millisecond); err != nil {
				return err
			}
			if _, err := n.gateway.Expire(); err != nil {
				return err
			}
		}
	}
	for {
		left, err := n.gateway.Expire()
		if err != nil || left == 0 {
			return err
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// say tells what goes on, next to the records.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "# "+format+"\n", args...) }

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// network is the client, the gateway and the server.
type network struct {
	client, gateway, server *lab.NS
	listeners               []interface{ Close() error }
}

const rules = `
table inet demo {
	ct helper ftp { type "ftp" protocol tcp; }
	chain helpers {
		type filter hook prerouting priority mangle
		tcp dport 21 ct helper set "ftp"
	}
	chain forwarding {
		type nat hook prerouting priority dstnat
		iifname "wan" tcp dport 8080 dnat ip to 192.168.1.2:80
	}
	chain masquerading {
		type nat hook postrouting priority srcnat
		oifname "wan" meta nfproto ipv4 masquerade
	}
}
`

func newNetwork() (*network, error) {
	lab.LoadModules("nf_nat_ftp")
	n := &network{}
	for _, m := range []struct {
		ns   **lab.NS
		name string
	}{{&n.client, "client"}, {&n.gateway, "gateway"}, {&n.server, "server"}} {
		var err error
		if *m.ns, err = lab.New(m.name); err != nil {
			return nil, err
		}
	}
	for _, s := range [][2]string{
		{"net.ipv4.ip_forward", "1"}, {"net.ipv6.conf.all.forwarding", "1"},
		// What the kernel tells of a flow, see ctlogd check.
		{"net.netfilter.nf_conntrack_acct", "1"}, {"net.netfilter.nf_conntrack_timestamp", "1"},
		{"net.netfilter.nf_conntrack_events", "1"},
		// Flows end soon, so that there is something to see.
		{"net.netfilter.nf_conntrack_tcp_timeout_time_wait", "1"}, {"net.netfilter.nf_conntrack_tcp_timeout_close", "1"},
		{"net.netfilter.nf_conntrack_udp_timeout", "1"}, {"net.netfilter.nf_conntrack_udp_timeout_stream", "1"},
		{"net.netfilter.nf_conntrack_icmp_timeout", "1"}, {"net.netfilter.nf_conntrack_icmpv6_timeout", "1"},
	} {
		if err := n.gateway.Sysctl(s[0], s[1]); err != nil {
			return nil, err
		}
	}
	err := errors.Join(
		n.gateway.Link("lan", []string{"192.168.1.1/24", "2001:db8:1::1/64"},
			n.client, "eth0", []string{"192.168.1.2/24", "2001:db8:1::2/64"}),
		n.gateway.Link("wan", []string{"198.51.100.1/24", "2001:db8:100::1/64"},
			n.server, "eth0", []string{"198.51.100.10/24", "2001:db8:100::10/64"}))
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		n.client.Run("ip", "route", "add", "default", "via", "192.168.1.1"),
		n.client.Run("ip", "route", "add", "default", "via", "2001:db8:1::1"),
		n.server.Run("ip", "route", "add", "2001:db8:1::/64", "via", "2001:db8:100::1"),
		n.gateway.Nft(rules))
	if err != nil {
		return nil, err
	}
	return n, n.serve()
}

// serve starts the servers, which end with the process.
func (n *network) serve() error {
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var size int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &size)
		_, _ = w.Write(make([]byte, size))
	})
	for _, at := range []struct {
		ns      *lab.NS
		address string
	}{{n.server, "198.51.100.10:80"}, {n.server, "[2001:db8:100::10]:80"}, {n.client, "192.168.1.2:80"}} {
		l, err := at.ns.Listen("tcp", at.address)
		if err != nil {
			return err
		}
		n.listeners = append(n.listeners, l)
		go func() { _ = http.Serve(l, page) }()
	}
	ftp, err := n.server.Listen("tcp", "198.51.100.10:21")
	if err != nil {
		return err
	}
	n.listeners = append(n.listeners, ftp)
	go n.server.ServeFTP(ftp, make([]byte, 50_000))
	echo, err := n.server.ListenPacket("udp", "198.51.100.10:53")
	if err != nil {
		return err
	}
	n.listeners = append(n.listeners, echo)
	go lab.Answer(echo, func(query []byte) []byte { return query })
	return nil
}

func (n *network) close() {
	for _, l := range n.listeners {
		_ = l.Close()
	}
	for _, ns := range []*lab.NS{n.client, n.gateway, n.server} {
		_ = ns.Close()
	}
}

// traffic makes a round of traffic, one flow or more of each kind, all at once.
func (n *network) traffic(round int) error {
	var g errgroup.Group
	for _, size := range []int{200, 4_000, 80_000} {
		url := fmt.Sprintf("http://198.51.100.10/%d", size*(round+1))
		g.Go(func() error { return n.client.Get("", url) })
	}
	g.Go(func() error { return n.server.Get("", "http://198.51.100.1:8080/9000") })
	g.Go(func() error { return n.client.Get("", "http://[2001:db8:100::10]/12000") })
	g.Go(func() error {
		_, err := n.client.FTPGet("", "198.51.100.10:21", "file", []lab.FTPMode{lab.FTPPassive, lab.FTPActive}[round%2])
		return err
	})
	g.Go(func() error { return n.client.Ping("192.168.1.2", "198.51.100.10", uint16(700+round)) })
	g.Go(func() error { return n.client.Ping("2001:db8:1::2", "2001:db8:100::10", uint16(700+round)) })
	g.Go(func() error {
		_, err := n.client.Exchange("udp4", "", "198.51.100.10:53", []byte("where is www.example.net?"))
		return err
	})
	return g.Wait()
}
