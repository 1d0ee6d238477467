//go:build integration

package broker

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// writeCertificates makes two authorities, and a broker's and a client's certificate signed by the first.
func (c *Cluster) writeCertificates(t testing.TB, dir string) {
	t.Helper()
	write := func(name string, parts ...[]byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Join(parts, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := issue(t, "ctlogd test authority", nil)
	broker := issue(t, "broker", ca)
	client := issue(t, "ctlogd", ca)
	c.CA = write("ca.pem", ca.cert)
	c.Other = write("other.pem", issue(t, "another authority", nil).cert)
	c.Cert, c.Key = write("client.pem", client.cert), write("client.key", client.key)
	write("broker.pem", broker.key, broker.cert)
}

type identity struct {
	cert, key []byte // PEM
	x509      *x509.Certificate
	private   *ecdsa.PrivateKey
}

// issue makes a certificate signed by ca, or an authority if ca is nil.
func issue(t testing.TB, name string, ca *identity) *identity {
	t.Helper()
	fatal := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	fatal(err)
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  ca == nil,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := tmpl, key
	if ca == nil {
		tmpl.KeyUsage |= x509.KeyUsageCertSign
	} else {
		tmpl.DNSNames, tmpl.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
		parent, signer = ca.x509, ca.private
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	fatal(err)
	cert, err := x509.ParseCertificate(der)
	fatal(err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	fatal(err)
	return &identity{
		cert:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:     pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
		x509:    cert,
		private: key,
	}
}
