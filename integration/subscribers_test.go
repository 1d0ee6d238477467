//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// lan is a network whose DHCP server has one address to give, and two clients that want it. The gateway logs.
type lan struct {
	*lab.NS
	dir     string
	clients [2]*lab.NS
	macs    [2]string
}

const lanAddress = "100.64.0.50" // which is given

func newLAN(t *testing.T) *lan {
	t.Helper()
	n := &lan{NS: newNS(t, "lan"), dir: t.TempDir(), macs: [2]string{"02:00:5e:00:53:0a", "02:00:5e:00:53:0b"}}
	prepare(t, n.NS)
	must(t, n.Run("ip", "link", "add", "lan", "type", "bridge"))
	must(t, n.Run("ip", "addr", "add", "100.64.0.1/24", "dev", "lan"))
	for i, mac := range n.macs {
		n.clients[i] = newNS(t, fmt.Sprint("client", i))
		must(t, n.Link(fmt.Sprint("port", i), nil, n.clients[i], "eth0", nil))
		must(t, n.clients[i].Run("ip", "link", "set", "eth0", "address", mac))
		must(t, n.Run("ip", "link", "set", fmt.Sprint("port", i), "master", "lan"))
	}
	must(t, n.Run("ip", "link", "set", "lan", "up"))
	eventually(t, "the bridge is up, without which Kea opens no socket", func() bool {
		out, err := n.Output("", "ip", "-o", "link", "show", "dev", "lan")
		must(t, err)
		return strings.Contains(string(out), "state UP")
	})
	must(t, n.Nft("table inet lab {\n chain in {\n type filter hook input priority 0\n ct state established accept\n }\n}"))
	must(t, os.WriteFile(filepath.Join(n.dir, "script"), []byte("#!/bin/sh\ncase $1 in\nbound|renew) ip addr replace $ip/24 dev $interface ;;\n"+
		"deconfig) ip addr flush dev $interface ;;\nesac\n"+
		"case $reason in\nBOUND|RENEW) ip addr replace $new_ip_address/24 dev $interface ;;\n"+
		"BOUND6) if [ $new_ip6_address ]; then ip addr replace $new_ip6_address/64 dev $interface nodad; fi\n"+
		"if [ $new_ip6_prefix ]; then ip addr replace ${new_ip6_prefix%/*}7/128 dev $interface nodad; fi ;;\nesac\n"), 0o755))
	return n
}

// dhclient has a client run that program.
func (n *lan) dhclient(t *testing.T, i int, args ...string) {
	t.Helper()
	cmd := exec.Command("dhclient", append(append([]string{"-d", "-cf", "/dev/null", "-sf", filepath.Join(n.dir, "script"), "-lf", filepath.Join(n.dir, fmt.Sprint("client", i)),
		"--no-pid"}, args...), "eth0")...)
	start(t, n.clients[i], cmd)
}

// lease has a client get the address, the first one by udhcpc and the second by dhclient; giveUp has the first one release it.
func (n *lan) lease(t *testing.T, i int) (giveUp func()) {
	t.Helper()
	c := n.clients[i]
	var p *process
	if i == 0 {
		p = start(t, c, exec.Command("udhcpc", "-f", "-R", "-i", "eth0", "-t", "20", "-T", "1", "-s", filepath.Join(n.dir, "script")))
	} else {
		n.dhclient(t, i, "-4")
	}
	eventually(t, "the client has "+lanAddress, func() bool {
		out, err := c.Output("", "ip", "-4", "addr", "show", "dev", "eth0")
		must(t, err)
		return strings.Contains(string(out), lanAddress+"/")
	})
	return func() {
		must(t, p.Process.Signal(syscall.SIGTERM))
		eventually(t, "the client has ended", p.ended)
	}
}

// send makes a flow of a client, of one datagram.
func (n *lan) send(t *testing.T, i, port int) {
	t.Helper()
	c, err := n.clients[i].DialFrom(t.Context(), "udp", fmt.Sprintf("%s:%d", lanAddress, port), "100.64.0.1:7")
	must(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "hello")
	must(t, err)
}

// awaitLeases waits until the daemon has read a state of the source in which somebody has the address, by the number of times
// that it has read one.
func awaitLeases(t *testing.T, m *metricsOf, source string, leases, loads float64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has %v leases, and was read %v times", source, leases, loads), func() bool {
		m.scrape(t)
		return m.values[`ctlogd_subscriber_leases{source="`+source+`"}`] >= leases && m.values[`ctlogd_subscriber_loads_total{source="`+source+`"}`] >= loads
	})
}

// records returns those in the file, by source port.
func records(t *testing.T, file string) map[int]map[string]any {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	all := map[int]map[string]any{}
	for in := bufio.NewScanner(f); in.Scan(); {
		var r map[string]any
		must(t, json.Unmarshal(in.Bytes(), &r))
		if port, ok := r["src_port"].(float64); ok {
			all[int(port)] = r
		}
	}
	return all
}

// kea returns a server of Kea with a configuration.
func kea(t *testing.T, n *lan, server string, conf []byte) *exec.Cmd {
	t.Helper()
	file := filepath.Join(n.dir, "kea.json")
	must(t, os.WriteFile(file, conf, 0o644))
	cmd := exec.Command(server, "-c", file)
	cmd.Env = append(os.Environ(), "KEA_LOCKFILE_DIR="+n.dir, "KEA_PIDFILE_DIR="+n.dir)
	cmd.Stdout = os.Stderr
	return cmd
}

// TestSubscribersDHCPv6 has Kea give dhclient an address, and a prefix for what is behind it.
func TestSubscribersDHCPv6(t *testing.T) {
	need(t, "kea-dhcp6", "dhclient", "conntrack")
	n := newLAN(t)
	for _, at := range []struct {
		ns  *lab.NS
		dev string
	}{{n.NS, "lan"}, {n.clients[0], "eth0"}} {
		eventually(t, "the link-local address of "+at.dev+" is nobody else's", func() bool {
			out, err := at.ns.Output("", "ip", "-6", "-o", "addr", "show", "dev", at.dev, "scope", "link")
			must(t, err)
			return strings.Contains(string(out), "fe80:") && !strings.Contains(string(out), "tentative")
		})
	}
	must(t, n.Run("ip", "addr", "add", "2001:db8:1::1/64", "dev", "lan", "nodad"))
	must(t, n.Run("ip", "route", "add", "2001:db8:4200::/40", "dev", "lan"))
	leases := filepath.Join(n.dir, "kea-leases6.csv")
	start(t, n.NS, kea(t, n, "kea-dhcp6", fmt.Appendf(nil, `{"Dhcp6": {"interfaces-config": {"interfaces": ["lan"]}, "preferred-lifetime": 100, "valid-lifetime": 120, "renew-timer": 50, "rebind-timer": 80, "data-directory": %q,
		"lease-database": {"type": "memfile", "name": %q, "lfc-interval": 0}, "loggers": [{"name": "kea-dhcp6", "severity": "WARN", "output_options": [{"output": "stdout"}]}],
		"subnet6": [{"subnet": "2001:db8:1::/64", "interface": "lan", "pools": [{"pool": "2001:db8:1::50-2001:db8:1::50"}],
		"pd-pools": [{"prefix": "2001:db8:4200::", "prefix-len": 40, "delegated-len": 56}]}]}}`, n.dir, leases)))
	d := startDaemonWith(t, n.NS, "metrics: {listen: 127.0.0.1:9469}\nenrich:\n  subscribers:\n    - {type: kea, path: "+leases+"}\n")
	m := &metricsOf{ns: n.NS}
	n.dhclient(t, 0, "-6", "-N", "-P", "-D", "LL")
	var behind string // an address in the prefix
	eventually(t, "the client has an address, and one of its prefix", func() bool {
		out, err := n.clients[0].Output("", "ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global")
		must(t, err)
		behind = ""
		for _, f := range strings.Fields(string(out)) {
			if strings.HasPrefix(f, "2001:db8:42") {
				behind = strings.TrimSuffix(f, "/128")
			}
		}
		return behind != "" && strings.Contains(string(out), "2001:db8:1::50/")
	})
	awaitLeases(t, m, "kea", 2, 1)
	for port, from := range map[int]string{1001: "2001:db8:1::50", 1002: behind} {
		c, err := n.clients[0].DialFrom(t.Context(), "udp", fmt.Sprintf("[%s]:%d", from, port), "[2001:db8:1::1]:7")
		must(t, err)
		_, err = io.WriteString(c, "hello")
		must(t, err)
		must(t, c.Close())
		must(t, n.Run("conntrack", "-D", "-f", "ipv6", "-p", "udp", "--sport", fmt.Sprint(port)))
	}
	d.stop(t)
	for port, from := range map[int]string{1001: "2001:db8:1::50", 1002: behind} {
		if r := records(t, d.file)[port]; r["subscriber"] != n.macs[0] || r["src_ip"] != from || !strings.HasPrefix(fmt.Sprint(r["subscriber_source"]), "kea@20") {
			text, _ := os.ReadFile(leases)
			t.Errorf("from port %d: %v; want subscriber %s\n%s", port, r, n.macs[0], text)
		}
	}
}

// TestSubscribersDHCP has an address move from one client to the other, by real servers, and wants each flow to be of the one
// who had the address when it began, whatever the time at which it is logged.
func TestSubscribersDHCP(t *testing.T) {
	for _, test := range []struct {
		kind  string
		needs []string
		lease string // its file, below the directory
		start func(t *testing.T, n *lan, lease string) *exec.Cmd
	}{
		{"dnsmasq", []string{"dnsmasq"}, "dnsmasq.leases", func(t *testing.T, n *lan, lease string) *exec.Cmd {
			return exec.Command("dnsmasq", "-k", "-p", "0", "-i", "lan", "--bind-interfaces", "-C", "/dev/null", "--no-ping", "-u", "root", "-x", "",
				"-F", lanAddress+","+lanAddress+",255.255.255.0,2m", "--dhcp-authoritative", "-l", lease)
		}},
		{"kea", []string{"kea-dhcp4"}, "kea-leases4.csv", func(t *testing.T, n *lan, lease string) *exec.Cmd {
			return kea(t, n, "kea-dhcp4", fmt.Appendf(nil, `{"Dhcp4": {"interfaces-config": {"interfaces": ["lan"]}, "valid-lifetime": 120, "authoritative": true,
				"lease-database": {"type": "memfile", "name": %q, "lfc-interval": 0}, "loggers": [{"name": "kea-dhcp4", "severity": "WARN", "output_options": [{"output": "stdout"}]}],
				"subnet4": [{"subnet": "100.64.0.0/24", "pools": [{"pool": "%s-%s"}]}]}}`, lease, lanAddress, lanAddress))
		}},
		{"isc", []string{"dhcpd"}, "dhcpd.leases", func(t *testing.T, n *lan, lease string) *exec.Cmd {
			conf := filepath.Join(n.dir, "dhcpd.conf")
			must(t, os.WriteFile(lease, nil, 0o644))
			must(t, os.WriteFile(conf, fmt.Appendf(nil, "authoritative; default-lease-time 120; ping-check false; subnet 100.64.0.0 netmask 255.255.255.0 { range %s; }\n", lanAddress), 0o644))
			return exec.Command("dhcpd", "-f", "-4", "-q", "-user", "root", "-group", "root", "-cf", conf, "-lf", lease, "-pf", filepath.Join(n.dir, "pid"), "lan")
		}},
	} {
		t.Run(test.kind, func(t *testing.T) {
			need(t, append(test.needs, "udhcpc", "dhclient", "conntrack")...)
			n := newLAN(t)
			lease := filepath.Join(n.dir, test.lease)
			server := test.start(t, n, lease)
			server.Stdout = os.Stderr
			start(t, n.NS, server)
			d := startDaemonWith(t, n.NS, "metrics: {listen: 127.0.0.1:9469}\nenrich:\n  subscribers:\n    - {type: "+test.kind+", path: "+lease+"}\n")
			m := &metricsOf{ns: n.NS}
			giveUp := n.lease(t, 0)
			awaitLeases(t, m, test.kind, 1, 1)
			n.send(t, 0, 1001)
			must(t, n.Run("conntrack", "-D", "-p", "udp", "--sport", "1001"))
			n.send(t, 0, 1002) // which outlives the lease
			// Servers tell whole seconds, and of what happens between two looks at a file it is not certain when.
			sent := time.Now()
			eventually(t, "the file was looked at in another second than that of the flow", func() bool {
				m.scrape(t)
				age := m.values[`ctlogd_subscriber_age_seconds{source="`+test.kind+`"}`]
				return time.Since(sent).Seconds() > age && time.Now().Unix() > sent.Unix()
			})
			m.scrape(t)
			loads := m.values[`ctlogd_subscriber_loads_total{source="`+test.kind+`"}`]
			giveUp()
			n.lease(t, 1)
			awaitLeases(t, m, test.kind, 1, loads+1)
			n.send(t, 1, 1003)
			eventually(t, "the other one's address is known", func() bool {
				n.send(t, 1, 1004)
				must(t, n.Run("conntrack", "-D", "-p", "udp", "--sport", "1004"))
				r := records(t, d.file)[1004]
				return r != nil && r["subscriber"] == n.macs[1]
			})
			must(t, n.Run("conntrack", "-D", "-p", "udp", "--sport", "1002"))
			must(t, n.Run("conntrack", "-D", "-p", "udp", "--sport", "1003"))
			d.stop(t)
			all := records(t, d.file)
			for port, want := range map[int][2]any{1001: {n.macs[0], nil}, 1002: {n.macs[0], n.macs[1]}, 1003: {n.macs[1], nil}} {
				r := all[port]
				if r["subscriber"] != want[0] || r["subscriber_next"] != want[1] || !strings.HasPrefix(fmt.Sprint(r["subscriber_source"]), test.kind+"@20") {
					text, _ := os.ReadFile(lease)
					t.Errorf("from port %d: %v; want subscriber %v, next %v\n%s", port, r, want[0], want[1], text)
				}
			}
		})
	}
}

// TestSubscribersRADIUS has FreeRADIUS's client send the accounting of all whose flows a flood makes, while it makes them, and
// somebody else send forged accounting.
func TestSubscribersRADIUS(t *testing.T) {
	need(t, "radclient")
	ns := newNS(t, "radius")
	prepare(t, ns)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	must(t, os.WriteFile(secret, []byte("s3cret"), 0o600))
	d := startDaemonWith(t, ns, "metrics: {listen: 127.0.0.1:9469}\nenrich:\n  subscribers:\n    - {type: radius, name: bng, listen: 127.0.0.1:1813, "+
		"secret_file: "+secret+", clients: [127.0.0.1]}\n")
	m := &metricsOf{ns: ns}
	send := func(secret, kind string, from, to int, name func(i int) string) {
		t.Helper()
		var text strings.Builder
		for i := from; i < to; i++ {
			fmt.Fprintf(&text, "Acct-Status-Type = %s\nUser-Name = \"%s\"\nFramed-IP-Address = 10.%d.0.0\nNAS-Identifier = \"bng\"\nAcct-Session-Id = \"%d\"\n\n",
				kind, name(i), i, i)
		}
		tries, within := "10", "2"
		if secret != "s3cret" {
			tries, within = "1", "0.5"
		}
		out, err := ns.Output(text.String(), "radclient", "-r", tries, "-t", within, "-p", "50", "127.0.0.1:1813", "acct", secret)
		if (secret == "s3cret") != (err == nil) {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	user := func(i int) string { return fmt.Sprintf("user%d@example.net", i) }
	awaitListener(t, ns, "udp", 1813)
	send("s3cret", "Start", 0, 251, user)
	awaitLeases(t, m, "bng", 251, 1)
	flood, err := ns.NewFlood()
	must(t, err)
	defer flood.Close()
	const flows = 20_000
	must(t, flood.Create(0, flows/2))

	// Forged, with the wrong secret; and a flood of no packets at all.
	forger, err := ns.DialContext(t.Context(), "udp", "127.0.0.1:1813")
	must(t, err)
	defer forger.Close()
	for range 2000 {
		_, _ = forger.Write(append([]byte{4, 1, 0, 40}, make([]byte, 36)...))
	}
	send("wrong", "Start", 0, 5, func(int) string { return "mallory" })

	// The second half of the sessions end, and their addresses are others' from then on.
	send("s3cret", "Stop", 126, 251, user)
	send("s3cret", "Start", 126, 251, func(i int) string { return fmt.Sprintf("next%d", i) })
	eventually(t, "the new sessions are known", func() bool {
		m.scrape(t)
		return m.values[`ctlogd_subscriber_past{source="bng"}`] >= 125
	})
	must(t, flood.Create(flows/2, flows))
	must(t, flood.Delete(0, flows))
	d.stop(t)
	f, err := os.Open(d.file)
	must(t, err)
	defer f.Close()
	n := 0
	for in := bufio.NewScanner(f); in.Scan(); {
		var r struct {
			Event, Subscriber, Next, Source string
			SrcIP                           net.IP `json:"src_ip"`
			SubscriberNext                  string `json:"subscriber_next"`
			NATSrcIP                        net.IP `json:"nat_src_ip"`
			NATSrcPort                      uint16 `json:"nat_src_port"`
		}
		must(t, json.Unmarshal(in.Bytes(), &r))
		if r.NATSrcIP == nil {
			continue
		}
		n++
		i := int(r.NATSrcPort) - 1024
		who, next := user(i%251), ""
		if i%251 >= 126 {
			if next = fmt.Sprintf("next%d", i%251); i >= flows/2 {
				who, next = next, ""
			}
		}
		if r.Subscriber != who || r.SubscriberNext != next {
			t.Fatalf("flow %d: %s; want %s, next %q", i, in.Text(), who, next)
		}
	}
	if n != flows {
		t.Errorf("%d flows, want %d", n, flows)
	}
	if m.values[`ctlogd_subscriber_radius_packets_total{result="forged",source="bng"}`] == 0 {
		t.Error("no forged packet was counted")
	}
}

// TestSubscribersRADIUSRestart restarts the daemon, and wants flows to be of those of whom it is known: until it ended, and after
// that only of those whose interim update says that they were there all the time. A file that is broken is put aside.
func TestSubscribersRADIUSRestart(t *testing.T) {
	need(t, "radclient")
	ns, flood := newFloodNS(t)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	must(t, os.WriteFile(secret, []byte("s3cret"), 0o600))
	conf := "state_directory: " + dir + "\nmetrics: {listen: 127.0.0.1:9469}\nenrich:\n  subscribers:\n    - {type: radius, name: bng, listen: 127.0.0.1:1813, " +
		"secret_file: " + secret + ", clients: [127.0.0.1]}\n"
	m := &metricsOf{ns: ns}
	began := time.Now()
	account := func(kind, name string, session int, of ...int) {
		t.Helper()
		var text strings.Builder
		for _, i := range of {
			fmt.Fprintf(&text, "Acct-Status-Type = %s\nUser-Name = \"%s%d\"\nFramed-IP-Address = 10.%d.0.0\nNAS-Identifier = \"bng\"\nAcct-Session-Id = \"%d\"\n", kind, name, i, i, i)
			if session > 0 {
				fmt.Fprintf(&text, "Acct-Session-Time = %d\n", session)
			}
			text.WriteString("\n")
		}
		out, err := ns.Output(text.String(), "radclient", "-r", "10", "-t", "2", "127.0.0.1:1813", "acct", "s3cret")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	const each = 251 // flows, of as many addresses, 10.0.0.0, 10.1.0.0 and so on
	logged := func(d *daemon, flows int) (who map[int]string) {
		eventually(t, "all flows are logged", func() bool {
			text, err := os.ReadFile(d.file)
			must(t, err)
			who = map[int]string{}
			for line := range strings.Lines(string(text)) {
				var r struct {
					Event, Subscriber, SubscriberNext string
					NATSrcPort                        int `json:"nat_src_port"`
				}
				if json.Unmarshal([]byte(line), &r) == nil && r.Event == "destroy" && r.NATSrcPort != 0 {
					who[r.NATSrcPort-1024] = r.Subscriber
				}
			}
			return len(who) == flows
		})
		return who
	}
	d := startDaemonWith(t, ns, conf)
	awaitListener(t, ns, "udp", 1813)
	account("Start", "user", 0, 0, 1, 2, 3)
	awaitLeases(t, m, "bng", 4, 1)
	time.Sleep(time.Until(began.Truncate(time.Second).Add(2 * time.Second))) // sessions are told in whole seconds
	must(t, flood.Create(0, each))
	d.stop(t)
	must(t, flood.Create(each, 3*each)) // while nobody listens

	d = startDaemonWith(t, ns, conf)
	awaitLeases(t, m, "bng", 4, 0)
	awaitListener(t, ns, "udp", 1813)
	must(t, flood.Delete(0, 2*each))
	for i, who := range logged(d, 2*each) {
		want := ""
		if i < 4 {
			want = fmt.Sprint("user", i)
		}
		if who != want {
			t.Errorf("flow %d, before the interim updates: %q, want %q", i, who, want)
		}
	}
	// One that has been there all the time, one that has begun anew, one of whom nobody says how long; and the address of another.
	account("Interim-Update", "user", int(time.Since(began).Seconds()), 0)
	account("Start", "user", 0, 1)
	account("Interim-Update", "user", 0, 2)
	account("Start", "other", 0, 3)
	eventually(t, "accounting is known", func() bool {
		m.scrape(t)
		return m.values[`ctlogd_subscriber_radius_packets_total{result="accepted",source="bng"}`] >= 4 && m.values[`ctlogd_subscriber_past{source="bng"}`] >= 3
	})
	must(t, flood.Create(3*each, 4*each))
	must(t, flood.Delete(2*each, 4*each))
	for i, who := range logged(d, 4*each) {
		want := ""
		switch {
		case i == 2*each:
			want = "user0"
		case i >= 3*each && i < 3*each+3:
			want = fmt.Sprint("user", i-3*each)
		case i == 3*each+3:
			want = "other3"
		}
		if i >= 2*each && who != want {
			t.Errorf("flow %d, after them: %q, want %q", i, who, want)
		}
	}
	d.stop(t)

	file := filepath.Join(dir, "sessions-bng")
	text, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, text[:len(text)/2], 0o600))
	d = startDaemonWith(t, ns, conf)
	awaitListener(t, ns, "udp", 1813)
	m.scrape(t)
	if n := m.values[`ctlogd_subscriber_leases{source="bng"}`]; n != 0 {
		t.Errorf("%v leases of a file that is broken", n)
	}
	if aside, err := os.ReadFile(file + ".broken"); err != nil || len(aside) != len(text)/2 || !strings.Contains(d.stderr.String(), file+".broken") {
		t.Errorf("put aside: %v, %d bytes\n%s", err, len(aside), &d.stderr)
	}
	d.stop(t)
}

// TestSubscribersLive changes, adds and removes sources by SIGHUP while flows go on, and has the disk of one hang: its old
// leases stay, with their age, and all else goes on.
func TestSubscribersLive(t *testing.T) {
	need(t, "mkfs.ext4", "fsfreeze")
	dir := t.TempDir()
	disk, err := lab.NewDisk(filepath.Join(dir, "image"), t.TempDir(), "8M")
	must(t, err)
	t.Cleanup(func() { must(t, disk.Close()) })
	ns, flood := newFloodNS(t) // which sees what is mounted
	leases := func(path, id string) string {
		must(t, os.WriteFile(path+".new", []byte("10.0.0.0/8,,,"+id+",\n"), 0o644))
		must(t, os.Rename(path+".new", path))
		return path
	}
	one, two := leases(filepath.Join(disk.Dir, "one"), "a"), leases(filepath.Join(dir, "two"), "b")
	out, conf := filepath.Join(dir, "flows.jsonl"), filepath.Join(dir, "ctlogd.yaml")
	source := func(name, path string) string {
		return "    - {type: csv, name: " + name + ", path: " + path + "}\n"
	}
	use := func(sources ...string) {
		text := "metrics: {listen: 127.0.0.1:9469}\n"
		if len(sources) > 0 {
			text += "enrich:\n  subscribers:\n" + strings.Join(sources, "")
		}
		must(t, os.WriteFile(conf, []byte(text+"outputs:\n  jsonl:\n    - path: "+out+"\n"), 0o644))
	}
	use(source("one", one))
	d := &daemon{process: start(t, ns, exec.Command(buildDaemon(t, false), "run", "-c", conf)), file: out}
	d.awaitMember(t, lab.GroupDestroy)
	m := &metricsOf{ns: ns}
	awaitListener(t, ns, "tcp", 9469)
	awaitLeases(t, m, "one", 1, 1)
	flows := 0
	logged := func() (all []string) {
		text, err := os.ReadFile(out)
		must(t, err)
		for line := range strings.Lines(string(text)) {
			var r struct{ Event, Subscriber string }
			must(t, json.Unmarshal([]byte(line), &r))
			if r.Event == "destroy" {
				all = append(all, r.Subscriber)
			}
		}
		return all
	}
	// awaitWho makes flows until one is logged as want's: none is lost on the way.
	awaitWho := func(want string) {
		t.Helper()
		eventually(t, "flows are of "+want, func() bool {
			must(t, flood.Create(flows, flows+10))
			must(t, flood.Delete(flows, flows+10))
			flows += 10
			eventually(t, "all flows are logged", func() bool { return len(logged()) >= flows })
			return logged()[flows-1] == want
		})
	}
	reload := func(sources ...string) {
		t.Helper()
		use(sources...)
		must(t, d.Process.Signal(syscall.SIGHUP))
	}
	awaitWho("a")
	reload(source("two", two), source("one", one)) // added, before the other
	awaitWho("b")
	reload(source("two", leases(filepath.Join(dir, "three"), "c")), source("one", one)) // changed
	awaitWho("c")
	reload(source("one", one)) // removed
	awaitWho("a")

	must(t, disk.Freeze())
	changed := make(chan struct{})
	go func() { // hangs with the disk
		defer close(changed)
		_ = os.WriteFile(one, []byte("10.0.0.0/8,,,late,\n"), 0o644)
	}()
	awaitWho("a")
	reload(source("two", two), source("one", one)) // a reload waits for no disk
	awaitWho("b")
	reload(source("one", one))
	awaitWho("a")
	m.scrape(t)
	if age, ok := m.values[`ctlogd_subscriber_age_seconds{source="one"}`]; !ok || age < 0 {
		t.Errorf("the age of what hangs: %v, %v", age, ok)
	}
	must(t, disk.Thaw())
	<-changed
	awaitWho("late")
	d.stop(t)
	if got := len(logged()); got != flows {
		t.Errorf("%d flows logged, want %d", got, flows)
	}
}

// mountSFTP mounts a folder by the SFTP of another process. stall keeps all calls there waiting until resume.
func mountSFTP(t *testing.T, shared string) (dir string, stall, resume func()) {
	t.Helper()
	need(t, "sshfs", "/usr/lib/openssh/sftp-server")
	dir = t.TempDir()
	server, mount := exec.Command("/usr/lib/openssh/sftp-server"), exec.Command("sshfs", ":"+shared, dir, "-f", "-o", "passive,cache=no,allow_other")
	for _, c := range [][2]*exec.Cmd{{server, mount}, {mount, server}} {
		r, w, err := os.Pipe()
		must(t, err)
		defer r.Close() // theirs stay
		defer w.Close()
		c[0].Stdin, c[1].Stdout = r, w
	}
	for _, c := range []*exec.Cmd{server, mount} {
		must(t, c.Start())
		t.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		})
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	eventually(t, "the folder is mounted", func() bool {
		var here, there syscall.Stat_t
		return syscall.Stat(dir, &here) == nil && syscall.Stat(filepath.Dir(dir), &there) == nil && here.Dev != there.Dev
	})
	return dir, func() { must(t, mount.Process.Signal(syscall.SIGSTOP)) }, func() { must(t, mount.Process.Signal(syscall.SIGCONT)) }
}

// TestSubscribersHang has the file system of a source hang. Flows go on and are named by the old table, whose age grows; the daemon
// ends, and begins, as if nothing were; `ctlogd check` names the source.
func TestSubscribersHang(t *testing.T) {
	shared := t.TempDir()
	dir, stall, resume := mountSFTP(t, shared)
	ns, flood := newFloodNS(t) // which sees what is mounted
	leases := func(id string) {
		must(t, os.WriteFile(filepath.Join(shared, "new"), []byte("10.0.0.0/8,,,"+id+",\n"), 0o644))
		must(t, os.Rename(filepath.Join(shared, "new"), filepath.Join(shared, "leases.csv")))
	}
	leases("a")
	conf := "metrics: {listen: 127.0.0.1:9469}\nenrich:\n  subscribers:\n    - {type: csv, path: " + filepath.Join(dir, "leases.csv") + "}\n"
	m, flows := &metricsOf{ns: ns}, 0
	// send makes a flow, and returns whose it was.
	send := func(d *daemon) (who any) {
		must(t, flood.Create(flows, flows+1))
		must(t, flood.Delete(flows, flows+1))
		eventually(t, "the flow is logged", func() bool {
			text, err := os.ReadFile(d.file)
			must(t, err)
			for line := range strings.Lines(string(text)) {
				var r map[string]any
				if json.Unmarshal([]byte(line), &r) == nil && r["event"] == "destroy" && r["nat_src_port"] == float64(1024+flows) {
					who = r["subscriber"]
					return true
				}
			}
			return false
		})
		flows++
		return who
	}
	age := func() float64 {
		m.scrape(t)
		return m.values[`ctlogd_subscriber_age_seconds{source="csv"}`]
	}
	d := startDaemonWith(t, ns, conf)
	awaitListener(t, ns, "tcp", 9469)
	awaitLeases(t, m, "csv", 1, 1)
	if who := send(d); who != "a" {
		t.Fatalf("the flow is of %v", who)
	}

	stall()
	t.Cleanup(resume)
	leases("b")
	file := filepath.Join(t.TempDir(), "ctlogd.yaml")
	must(t, os.WriteFile(file, []byte(conf+"outputs: {jsonl: [{path: "+file+".jsonl}]}\n"), 0o644))
	check := func() (told *syncBuffer, p *process) {
		told = new(syncBuffer)
		cmd := exec.Command(buildDaemon(t, false), "check", "-c", file)
		cmd.Stdout = told
		return told, start(t, ns, cmd)
	}
	told, checked := check()
	eventually(t, "the table is seen to be old", func() bool { return age() > 3 })
	if who := send(d); who != "a" {
		t.Errorf("while the file system hangs, the flow is of %v", who)
	}
	d.stop(t)
	d = startDaemonWith(t, ns, conf)
	awaitListener(t, ns, "tcp", 9469)
	if who := send(d); who != nil {
		t.Errorf("of a file that was never read, the flow is of %v", who)
	}
	eventually(t, "the table is seen to be old", func() bool { return age() > 3 })
	eventually(t, "check has ended", checked.ended)
	if text := told.String(); !strings.Contains(text, "fail  enrich.subscribers[0]") {
		t.Errorf("check says:\n%s", text)
	}
	resume()
	told, checked = check()
	eventually(t, "check has ended", checked.ended)
	if text := told.String(); !strings.Contains(text, "leases.csv: 1 leases") {
		t.Errorf("check says:\n%s", text)
	}
	eventually(t, "flows are of b", func() bool { return send(d) == "b" })
	d.stop(t)
}
