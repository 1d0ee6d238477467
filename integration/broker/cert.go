//go:build integration

package broker

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/output/certfile/certtest"
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
	ca := certtest.New(t)
	cert, key := ca.Issue(t, "server", 24*time.Hour)
	write("broker.pem", key, cert)
	c.CA, c.Other = write("ca.pem", ca.PEM), write("other.pem", certtest.New(t).PEM)
	cert, key = ca.Issue(t, "ctlogd", 24*time.Hour)
	c.Cert, c.Key = write("client.pem", cert), write("client.key", key)
}
