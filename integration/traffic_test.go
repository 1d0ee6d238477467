//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// traffic sends one of every kind of flow through the gateway and returns when all of it has been answered. alive is
// called while the flow with mark and labels is open.
func (g *gateway) traffic(t *testing.T, alive func()) {
	t.Helper()
	run := func(name string, f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	run("HTTP through masquerade", func() error { return g.client.Get(clientIP+":40001", "http://"+serverIP+"/") })
	run("HTTP through the port forward", func() error {
		return g.server.Get(serverIP+":40002", "http://"+publicIP+":8080/")
	})
	run("HTTP through both translations", func() error {
		return g.client.Get(clientIP+":40003", "http://"+publicIP+":8080/")
	})
	run("IPv6 without NAT", func() error {
		return g.client.Get("["+clientIP6+"]:40004", "http://["+serverIP6+"]/")
	})
	run("IPv6 with NAT66", func() error {
		return g.client.Get("["+client66+"]:40005", "http://["+serverIP6+"]/")
	})
	run("a flow in a zone", func() error { return g.zoned.Get(zonedIP+":40006", "http://"+serverIP+"/") })
	run("twin A", func() error { return g.twinA.Get(twinIP+":40007", "http://"+serverIP+"/") })
	run("twin B", func() error { return g.twinB.Get(twinIP+":40007", "http://"+serverIP+"/") })
	run("mark and labels", func() error {
		c := g.client.HTTPClient(clientIP + ":40008")
		defer c.CloseIdleConnections()
		if err := lab.Get(c, "http://"+serverIP+":8081/"); err != nil {
			return err
		}
		alive()
		// While that holds the port of the public address, another connection from there gets another port.
		return g.Get(publicIP+":40008", "http://"+serverIP+":8081/")
	})
	run("a closed connection that somebody deletes", func() error {
		if err := g.client.Get(clientIP+":40018", "http://"+serverIP+"/"); err != nil {
			return err
		}
		// A segment that came after would make a flow again.
		eventually(t, "the connection is closed on both sides", func() bool {
			table, err := g.Output("", "conntrack", "-L", "-p", "tcp", "--orig-port-src", "40018", "--state", "TIME_WAIT")
			must(t, err)
			return len(table) > 0
		})
		return g.Run("conntrack", "-D", "-p", "tcp", "--orig-port-src", "40018")
	})
	run("a refused connection", func() error {
		c, err := g.client.DialFrom(context.Background(), "tcp", clientIP+":40009", serverIP+":9")
		if err == nil {
			c.Close()
			return errors.New("it was accepted")
		}
		return nil
	})
	run("ping", func() error { return g.client.Ping(clientIP, serverIP, 777) })
	// The id is taken by then, hence translated; the address stays.
	run("ping from the gateway, with the same id", func() error {
		const key = "net.netfilter.nf_conntrack_icmp_timeout"
		return errors.Join(
			g.Sysctl(key, "120"),
			g.client.Ping(clientIP, serverIP, 776),
			g.Sysctl(key, "1"),
			g.Ping(publicIP, serverIP, 776),
			g.Run("conntrack", "-D", "-p", "icmp", "-s", clientIP, "--icmp-id", "776"))
	})
	run("ping from a twin", func() error { return g.twinA.Ping(twinIP, serverIP, 778) })
	run("ping from its twin, with the same id", func() error { return g.twinB.Ping(twinIP, serverIP, 778) })
	run("ping6", func() error { return g.client.Ping(clientIP6, serverIP6, 779) })
	run("ping6 with NAT66", func() error { return g.client.Ping(client66, serverIP6, 780) })
	run("DNS", func() error {
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return g.client.DialFrom(ctx, "udp4", clientIP+":40010", serverIP+":53")
		}}
		addrs, err := r.LookupNetIP(t.Context(), "ip4", "ctlogd.example.")
		if want := netip.MustParseAddr("192.0.2.1"); err == nil && addrs[0] != want {
			return fmt.Errorf("got %v, want %v", addrs, want)
		}
		return err
	})
	run("SCTP", func() error {
		const sport, dport = 40011, 40012
		return lab.ExchangeIP(g.client, clientIP, g.server, serverIP, 132,
			lab.SCTPInit(false, sport, dport), lab.SCTPInit(true, dport, sport))
	})
	run("GRE", func() error {
		hello := []byte{0, 0, 0x08, 0, 'h', 'e', 'l', 'l', 'o'} // version 0, of IPv4
		return lab.ExchangeIP(g.client, clientIP, g.server, serverIP, 47, hello, hello)
	})
	run("GRE of version 1", func() error { // RFC 2637: key present, PPP, call id 0x0777
		hello := []byte{0x20, 0x01, 0x88, 0x0b, 0, 4, 0x07, 0x77, 'p', 'p', 't', 'p'}
		return lab.ExchangeIP(g.client, clientIP, g.server, serverIP, 47, hello, nil)
	})
	run("a protocol without a name", func() error {
		return lab.ExchangeIP(g.client, clientIP, g.server, serverIP, 253, []byte("ping"), []byte("pong"))
	})
	run("UDP-Lite", func() error {
		// Connection tracking sums up UDP-Lite as if it were UDP and takes it for broken (nf_conntrack_proto_udp.c).
		if err := g.Sysctl("net.netfilter.nf_conntrack_checksum", "0"); err != nil {
			return err
		}
		err := lab.ExchangeUDPLite(g.client, clientIP+":40013", g.server, serverIP+":40014")
		if errors.Is(err, errors.ErrUnsupported) {
			t.Log("left out: this kernel has no UDP-Lite sockets")
			return nil
		}
		g.udplite = err == nil
		return err
	})
	if g.ftp {
		for mode, port := range map[lab.FTPMode]string{lab.FTPPassive: "40015", lab.FTPActive: "40016"} {
			run("FTP", func() error {
				got, err := g.client.FTPGet(clientIP+":"+port, serverIP+":21", "file", mode)
				if err == nil && string(got) != payload {
					return fmt.Errorf("got %q, want %q", got, payload)
				}
				return err
			})
		}
	} else {
		t.Log("left out: FTP, for vsftpd is not installed")
	}
	if g.tftp {
		run("TFTP", func() error {
			got, err := g.client.TFTPGet(clientIP+":40017", serverIP+":69", "file")
			if err == nil && string(got) != payload {
				return fmt.Errorf("got %q, want %q", got, payload)
			}
			return err
		})
	} else {
		t.Log("left out: TFTP, for in.tftpd is not installed")
	}
	run("SIP", g.call)
}

// call makes a call with SIP from the client, INVITE and answer, and sends one packet of speech in each direction.
func (g *gateway) call() error {
	phone, err := g.server.ListenPacket("udp4", serverIP+":5060")
	if err != nil {
		return err
	}
	defer phone.Close()
	media, err := g.server.ListenPacket("udp4", serverIP+":40020")
	if err != nil {
		return err
	}
	defer media.Close()
	ear, err := g.client.ListenPacket("udp4", clientIP+":40022")
	if err != nil {
		return err
	}
	defer ear.Close()
	invited := make(chan string, 1)
	go lab.Answer(phone, func(q []byte) []byte {
		invited <- string(q)
		via := regexp.MustCompile(`(?m)^(Via|From|To|Call-ID|CSeq):.*\r\n`).FindAllString(string(q), -1)
		return sip("SIP/2.0 200 OK\r\n"+strings.Join(via, "")+"Contact: <sip:b@"+serverIP+":5060>\r\n", serverIP, 40020)
	})
	answer, err := g.client.Exchange("udp4", clientIP+":5060", serverIP+":5060", sip(
		"INVITE sip:b@"+serverIP+" SIP/2.0\r\n"+
			"Via: SIP/2.0/UDP "+clientIP+":5060;branch=z9hG4bKlab\r\n"+
			"From: <sip:a@"+clientIP+">;tag=1\r\nTo: <sip:b@"+serverIP+">\r\n"+
			"Call-ID: lab@"+clientIP+"\r\nCSeq: 1 INVITE\r\nContact: <sip:a@"+clientIP+":5060>\r\n", clientIP, 40022))
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(answer, []byte("SIP/2.0 200")) {
		return fmt.Errorf("the answer to INVITE is %q", answer)
	}
	// The helper has translated the address in the body.
	m := regexp.MustCompile(`c=IN IP4 (\S+)\r\n(?s:.*)m=audio (\d+)`).FindStringSubmatch(<-invited)
	if m == nil || m[1] != publicIP {
		return fmt.Errorf("the INVITE that arrived names %q", m)
	}
	port, _ := strconv.Atoi(m[2])
	if _, err := media.WriteTo([]byte("speech"), &net.UDPAddr{IP: net.ParseIP(m[1]), Port: port}); err != nil {
		return err
	}
	buf := make([]byte, 64)
	_, from, err := ear.ReadFrom(buf)
	if err != nil {
		return err
	}
	_, err = ear.WriteTo([]byte("speech"), from)
	return err
}

// sip completes a SIP message with a description of one audio stream (RFC 3261, RFC 4566).
func sip(head, host string, port int) []byte {
	body := fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %s\r\ns=-\r\nc=IN IP4 %[1]s\r\nt=0 0\r\nm=audio %d RTP/AVP 0\r\n", host, port)
	return fmt.Appendf(nil, "%sContent-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s", head, len(body), body)
}
