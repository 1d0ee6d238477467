//go:build integration

package integration

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// Addresses of the network:
//
//	client  192.168.1.2  fd00:1::2  fd00:66::2 ---.
//	zoned   192.168.5.2 ------------------------- gateway --- server  198.51.100.10  2001:db8:100::10
//	twinA   192.168.7.2 -------------------------/  198.51.100.1
//	twinB   192.168.7.2 ------------------------'   2001:db8:100::1
//
// client is masqueraded, fd00:66::/64 likewise (NAT66), fd00:1::/64 is routed; zoned is in zone 7 in both directions;
// the twins have one address in two zones of the original direction, 101 and 102.
const (
	clientIP, clientIP6, client66 = "192.168.1.2", "fd00:1::2", "fd00:66::2"
	zonedIP, twinIP               = "192.168.5.2", "192.168.7.2"
	serverIP, serverIP6           = "198.51.100.10", "2001:db8:100::10"
	publicIP                      = "198.51.100.1"
)

// The rule set of the gateway. Helpers, marks and labels are given on the way through prerouting, as real rule sets
// do; label 77 comes with the first reply, hence in an UPDATE.
const gatewayRules = `
table inet lab {
	ct helper ftp { type "ftp" protocol tcp; }
	ct helper tftp { type "tftp" protocol udp; }
	ct helper sip { type "sip" protocol udp; }
	ct timeout linger { protocol tcp; policy = { time_wait: 120 }; }
	chain zones {
		type filter hook prerouting priority raw
		iifname "zoned" ct zone set 7
		iifname "server" ip daddr 198.51.100.77 ct zone set 7
		iifname "twinA" ct original zone set 101
		iifname "twinB" ct original zone set 102
	}
	chain classify {
		type filter hook prerouting priority mangle
		tcp dport 21 ct helper set "ftp"
		udp dport 69 ct helper set "tftp"
		udp dport 5060 ct helper set "sip"
		tcp sport 40018 ct timeout set "linger"
		tcp dport 8081 ct state new ct mark set 0xc0ffee ct label set 5
		tcp sport 8081 ct mark 0xc0ffee ct label set 77
		iifname "twinA" ct mark set 101
		iifname "twinB" ct mark set 102
		iifname "server" ct mark { 101, 102 } meta mark set ct mark
	}
	chain forwarding {
		type nat hook prerouting priority dstnat
		iifname "server" tcp dport 8080 dnat ip to 192.168.1.2:80
		iifname "client" ip daddr 198.51.100.1 tcp dport 8080 dnat ip to 198.51.100.10:80
	}
	chain masquerading {
		type nat hook postrouting priority srcnat
		oifname "server" ip saddr 192.168.1.0/24 masquerade
		oifname "server" ip saddr 192.168.5.0/24 snat ip to 198.51.100.77
		oifname "server" ip saddr 192.168.7.0/24 snat ip to 198.51.100.78
		oifname "server" ip6 saddr fd00:66::/64 masquerade
	}
}
`

// gateway is the network, with its servers running.
type gateway struct {
	*lab.NS
	client, zoned, twinA, twinB, server *lab.NS
	ftp                                 bool // vsftpd runs
	tftp                                bool // in.tftpd runs
	udplite                             bool // the kernel has UDP-Lite
}

func newGateway(t *testing.T) *gateway {
	g := &gateway{
		NS: newNS(t, "gateway"), client: newNS(t, "client"), zoned: newNS(t, "zoned"),
		twinA: newNS(t, "twinA"), twinB: newNS(t, "twinB"), server: newNS(t, "server"),
	}
	prepare(t, g.NS)
	lab.LoadModules("nf_nat_ftp", "nf_nat_tftp", "nf_nat_sip")
	for _, key := range []string{
		"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.ip_nonlocal_bind",
	} {
		must(t, g.Sysctl(key, "1"))
	}
	// Both twins have one address, which reverse path filtering would take for a forgery.
	must(t, g.Sysctl("net.ipv4.conf.all.rp_filter", "0"))
	must(t, g.Sysctl("net.ipv4.conf.default.rp_filter", "0"))
	// Flows end soon.
	for key, seconds := range map[string]string{
		"tcp_timeout_time_wait": "1", "tcp_timeout_close": "1", "udp_timeout": "2", "udp_timeout_stream": "2",
		"icmp_timeout": "1", "icmpv6_timeout": "1", "generic_timeout": "1", "gre_timeout": "1",
		"sctp_timeout_cookie_wait": "1",
	} {
		must(t, g.Sysctl("net.netfilter.nf_conntrack_"+key, seconds))
	}
	must(t, g.Link("client", []string{"192.168.1.1/24", "fd00:1::1/64", "fd00:66::1/64"},
		g.client, "eth0", []string{clientIP + "/24", clientIP6 + "/64", client66 + "/64"}))
	must(t, g.Link("zoned", []string{"192.168.5.1/24"}, g.zoned, "eth0", []string{zonedIP + "/24"}))
	must(t, g.Link("twinA", []string{"192.168.7.1/24"}, g.twinA, "eth0", []string{twinIP + "/24"}))
	must(t, g.Link("twinB", []string{"192.168.7.1/24"}, g.twinB, "eth0", []string{twinIP + "/24"}))
	must(t, g.Link("server", []string{publicIP + "/24", "198.51.100.77/24", "198.51.100.78/24", "2001:db8:100::1/64"},
		g.server, "eth0", []string{serverIP + "/24", serverIP6 + "/64"}))
	for ns, via := range map[*lab.NS]string{
		g.client: "192.168.1.1", g.zoned: "192.168.5.1", g.twinA: "192.168.7.1", g.twinB: "192.168.7.1",
	} {
		must(t, ns.Run("ip", "route", "add", "default", "via", via))
	}
	must(t, g.client.Run("ip", "route", "add", "default", "via", "fd00:1::1"))
	must(t, g.server.Run("ip", "route", "add", "fd00:1::/64", "via", "2001:db8:100::1"))
	for mark, dev := range map[string]string{"101": "twinA", "102": "twinB"} {
		must(t, g.Run("ip", "rule", "add", "fwmark", mark, "table", mark))
		must(t, g.Run("ip", "route", "add", "192.168.7.0/24", "dev", dev, "table", mark))
	}
	must(t, g.Nft(gatewayRules))
	t.Cleanup(func() {
		if t.Failed() {
			table, err := g.Output("", "conntrack", "-L")
			t.Logf("flows that are left (%v):\n%s", err, table)
		}
	})

	g.serve(t)
	return g
}

const payload = "what the servers of the lab serve\n"

func (g *gateway) serve(t *testing.T) {
	web := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(payload)) })
	for _, at := range []struct {
		ns      *lab.NS
		address string
	}{
		{g.server, serverIP + ":80"}, {g.server, serverIP + ":8081"}, {g.server, "[" + serverIP6 + "]:80"},
		{g.client, clientIP + ":80"},
	} {
		l, err := at.ns.Listen("tcp", at.address)
		must(t, err)
		srv := &http.Server{Handler: web}
		go func() { _ = srv.Serve(l) }()
		t.Cleanup(func() { _ = srv.Close() })
	}
	dns, err := g.server.ListenPacket("udp", serverIP+":53")
	must(t, err)
	go lab.Answer(dns, answerDNS)
	t.Cleanup(func() { dns.Close() })

	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte(payload), 0o644))
	if _, err := exec.LookPath("vsftpd"); err == nil {
		conf := filepath.Join(t.TempDir(), "vsftpd.conf")
		must(t, os.MkdirAll(filepath.Join(dir, "empty"), 0o755))
		must(t, os.WriteFile(conf, []byte(strings.Join([]string{
			"listen=YES", "background=NO", "anonymous_enable=YES", "no_anon_password=NO", "ftp_username=daemon",
			"anon_root=" + dir, "secure_chroot_dir=" + filepath.Join(dir, "empty"), "seccomp_sandbox=NO",
			"port_enable=YES", "connect_from_port_20=YES", "listen_address=" + serverIP, "",
		}, "\n")), 0o644))
		start(t, g.server, exec.Command("vsftpd", conf))
		awaitListener(t, g.server, "tcp", 21)
		g.ftp = true
	}
	if _, err := exec.LookPath("in.tftpd"); err == nil {
		cmd := exec.Command("in.tftpd", "--foreground", "--address", serverIP+":69", "--secure", dir)
		start(t, g.server, cmd)
		awaitListener(t, g.server, "udp", 69)
		g.tftp = true
	}
}

// answerDNS answers every question with one address.
func answerDNS(query []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true})
	_ = b.StartQuestions()
	_ = b.Question(q)
	_ = b.StartAnswers()
	_ = b.AResource(dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
		dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}})
	answer, _ := b.Finish()
	return answer
}
