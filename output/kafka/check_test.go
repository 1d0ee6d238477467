package kafka

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

func TestCheckAndReach(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "flows"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	up := cluster.ListenAddrs()[0]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	down := l.Addr().String()
	letters := filepath.Join(t.TempDir(), "letters")
	if err := os.WriteFile(letters, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		name         string
		config       Config
		check, reach string // parts of the errors; "" for none
	}{
		{"up", Config{Brokers: []string{up}, Topic: "flows"}, "", ""},
		{"one of two", Config{Brokers: []string{down, up}, Topic: "flows"}, "", ""},
		{"down", Config{Brokers: []string{down}, Topic: "flows"}, "", "connection refused"},
		{"no topic", Config{Brokers: []string{up}, Topic: "none"}, "", "; create the topic, or set create_topic"},
		{"topic to be created", Config{Brokers: []string{up}, Topic: "none", CreateTopic: &CreateTopic{1, 1}}, "", ""},
		{"name", Config{Brokers: []string{up, "broker.invalid:9092"}, Topic: "flows"},
			"broker broker.invalid:9092: lookup broker.invalid", ""},
		{"dead letters", Config{Brokers: []string{up}, Topic: "flows", DeadLetter: letters}, "", ""},
		{"new dead letters", Config{Brokers: []string{up}, Topic: "flows", DeadLetter: letters + "2"}, "", ""},
		{"dead letters nowhere", Config{Brokers: []string{up}, Topic: "flows", DeadLetter: "/nonexistent/letters"},
			"dead_letter /nonexistent/letters: no such file or directory; make the directory ", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, reach := tt.config.Reach(t.Context())
			for what, got := range map[string]struct {
				err  error
				want string
			}{
				"Check": {tt.config.Check(t.Context()), tt.check}, "Reach": {reach, tt.reach},
			} {
				switch {
				case got.want == "" && got.err != nil:
					t.Errorf("%s: %v", what, got.err)
				case got.want != "" && (got.err == nil || !strings.Contains(got.err.Error(), got.want)):
					t.Errorf("%s: %v, want %q", what, got.err, got.want)
				}
			}
		})
	}
}

// Reach tells until when the broker's certificate holds.
func TestReachCertificate(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: expires, IPAddresses: []net.IP{{127, 0, 0, 1}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "flows"),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	got, err := Config{Brokers: cluster.ListenAddrs(), Topic: "flows", TLS: &TLS{CA: ca}}.Reach(t.Context())
	if err != nil || !got.Equal(expires) {
		t.Errorf("got %v, %v, want %v", got, err, expires)
	}
}
