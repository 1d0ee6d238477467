package certfile

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"
)

// TLS is the block tls of an output: whom to trust, and what to show. Files are PEM and read anew for each connection.
type TLS struct {
	CA         string `yaml:"ca"`          // the authorities to trust; default: the system's
	Cert       string `yaml:"cert"`        // the client's certificate, with its chain
	Key        string `yaml:"key"`         // its private key
	ServerName string `yaml:"server_name"` // the name in the server's certificate; default: the address's host
}

// Validate reports what is wrong, files that cannot be read among it: the key inside the output's block, and a message. A
// certificate that has expired is not reported: one that expires while ctlogd runs keeps nothing else from working either.
// used tells whether anything is reached over TLS.
func (t *TLS) Validate(used bool, report func(field, msg string)) {
	if !used {
		for _, f := range []struct{ field, value string }{
			{"tls.ca", t.CA}, {"tls.cert", t.Cert}, {"tls.key", t.Key}, {"tls.server_name", t.ServerName},
		} {
			if f.value != "" {
				report(f.field, "has no use without a tls:// address; change the address or remove the key")
			}
		}
		return
	}
	if _, err := t.authorities(); err != nil {
		report("tls.ca", err.Error())
	}
	switch {
	case t.Cert != "" && t.Key == "":
		report("tls.key", "missing; a client certificate needs its private key")
	case t.Cert == "" && t.Key != "":
		report("tls.cert", "missing; a private key needs its client certificate")
	case t.Cert != "":
		if _, err := Load(t.Cert, t.Key); err != nil {
			report("tls.cert", err.Error())
		}
	}
}

// authorities returns whom to trust, nil for the system's.
func (t *TLS) authorities() (*x509.CertPool, error) {
	if t.CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s; write the path of a PEM file", t.CA)
	}
	return pool, nil
}

// Config returns what a connection to host needs. TLS 1.2 is the least (RFC 7011 asks for 1.1, which is obsolete).
func (t *TLS) Config(host string) (*tls.Config, error) {
	pool, err := t.authorities()
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: host}
	if t.ServerName != "" {
		c.ServerName = t.ServerName
	}
	if t.Cert == "" {
		return c, nil
	}
	pair, err := Load(t.Cert, t.Key)
	if err != nil {
		return nil, err
	}
	if leaf := pair.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) {
		return nil, fmt.Errorf("%s expired on %s", t.Cert, leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// Expiry returns when the first of certs expires, or before if that is sooner. The zero time stands for none.
func Expiry(before time.Time, certs []*x509.Certificate) time.Time {
	for _, c := range certs {
		if before.IsZero() || c.NotAfter.Before(before) {
			before = c.NotAfter
		}
	}
	return before
}
