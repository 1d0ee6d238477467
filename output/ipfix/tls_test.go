package ipfix

import (
	"crypto/tls"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	ours, others := certtest.New(t), certtest.New(t)
	ca, otherCA := certtest.Write(t, "ca.pem", ours.PEM), certtest.Write(t, "other-ca.pem", others.PEM)
	_, cert, key := ours.Pair(t, "client", time.Hour)
	_, strange, strangeKey := others.Pair(t, "client", time.Hour)
	good, _, _ := ours.Pair(t, "server", time.Hour)
	expired, _, _ := ours.Pair(t, "server", -time.Hour)
	pool := ours.Pool()

	tests := []struct {
		name   string
		server *tls.Config
		client TLS
		want   string // in Write's error; "" if it delivers
	}{
		{"server alone is known", &tls.Config{Certificates: []tls.Certificate{good}}, TLS{CA: ca}, ""},
		{"both are known", &tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAndVerifyClientCert},
			TLS{CA: ca, Cert: cert, Key: key}, ""},
		{"TLS 1.2", &tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAndVerifyClientCert,
			MaxVersion: tls.VersionTLS12}, TLS{CA: ca, Cert: cert, Key: key}, ""},
		{"no session tickets", &tls.Config{Certificates: []tls.Certificate{good}, SessionTicketsDisabled: true}, TLS{CA: ca},
			""},
		{"server name", &tls.Config{Certificates: []tls.Certificate{good}}, TLS{CA: ca, ServerName: "collector.example"}, ""},

		{"unknown authority", &tls.Config{Certificates: []tls.Certificate{good}}, TLS{CA: otherCA},
			"certificate signed by unknown authority"},
		{"system's authorities", &tls.Config{Certificates: []tls.Certificate{good}}, TLS{},
			"certificate signed by unknown authority"},
		{"expired", &tls.Config{Certificates: []tls.Certificate{expired}}, TLS{CA: ca}, "certificate has expired"},
		{"wrong name", &tls.Config{Certificates: []tls.Certificate{good}}, TLS{CA: ca, ServerName: "other.example"},
			"certificate is valid for localhost, collector.example, not other.example"},
		{"TLS 1.1", &tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10,
			MaxVersion: tls.VersionTLS11},
			TLS{CA: ca}, "protocol version not supported"},

		// With TLS 1.3 the handshake is over for the client when the server refuses: no record may count as delivered.
		{"client unknown", &tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAndVerifyClientCert},
			TLS{CA: ca}, "tls: certificate required"},
		{"client of another authority", &tls.Config{Certificates: []tls.Certificate{good},
			ClientAuth: tls.RequireAndVerifyClientCert},
			TLS{CA: ca, Cert: strange, Key: strangeKey}, "tls: "},
		{"client unknown, TLS 1.2", &tls.Config{Certificates: []tls.Certificate{good},
			ClientAuth: tls.RequireAndVerifyClientCert,
			MaxVersion: tls.VersionTLS12}, TLS{CA: ca}, "tls: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.server.ClientCAs = pool
			l := listenTCP(t, "127.0.0.1:0")
			c := newReceived(t)
			c.serve(tls.NewListener(l, tt.server))
			_, port, _ := net.SplitHostPort(l.Addr().String())
			e := newExporter(t, Config{Address: "tls://localhost:" + port, TLS: tt.client})
			n, err := e.Write(t.Context(), numbered(1, 1000))
			if tt.want != "" {
				if n != 0 || err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Write returned %d, %v; want 0 and an error with %q", n, err, tt.want)
				}
				return
			}
			if n != 1000 || err != nil {
				t.Fatalf("Write returned %d, %v", n, err)
			}
			if err := e.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if !slices.Equal(c.wait(enough(1000)).flows(), numbers(1, 1000)) {
				t.Error("other records than those written")
			}
		})
	}
}

// TestTLSFilesReadAnew: certificates are renewed while the daemon runs.
func TestTLSFilesReadAnew(t *testing.T) {
	a := certtest.New(t)
	ca := certtest.Write(t, "ca.pem", certtest.New(t).PEM)
	pair, _, _ := a.Pair(t, "server", time.Hour)
	l := listenTCP(t, "127.0.0.1:0")
	c := newReceived(t)
	c.serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}}))
	e := newExporter(t, Config{Address: "tls://" + l.Addr().String(), TLS: TLS{CA: ca}})
	if n, err := e.Write(t.Context(), numbered(1, 1)); n != 0 || err == nil {
		t.Fatalf("Write returned %d, %v", n, err)
	}
	if err := os.WriteFile(ca, a.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, e, numbered(1, 1))
	c.wait(enough(1))
}

// Reach tells until when the collector's certificate holds, of several the one that ends first.
func TestReachCertificate(t *testing.T) {
	a := certtest.New(t)
	ca := certtest.Write(t, "ca.pem", a.PEM)
	var addresses []string
	var first time.Time
	for _, validFor := range []time.Duration{2 * time.Hour, time.Hour} {
		pair, _, _ := a.Pair(t, "server", validFor)
		first = pair.Leaf.NotAfter
		l := listenTCP(t, "127.0.0.1:0")
		newReceived(t).serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}}))
		addresses = append(addresses, "tls://"+l.Addr().String())
	}
	c := Config{Address: addresses[0], Failover: addresses[1:], TLS: TLS{CA: ca}}
	if got, err := c.Reach(t.Context()); err != nil || !got.Equal(first) {
		t.Errorf("got %v, %v, want %v", got, err, first)
	}
	c = Config{Address: "udp://127.0.0.1"}
	if got, err := c.Reach(t.Context()); err != nil || !got.IsZero() {
		t.Errorf("over UDP: got %v, %v", got, err)
	}
}
