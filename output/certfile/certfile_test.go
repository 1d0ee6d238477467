package certfile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLoad(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"},
		NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, b *pem.Block) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certFile := write("cert", &pem.Block{Type: "CERTIFICATE", Bytes: cert})
	for name, b := range map[string]*pem.Block{
		"plain": {Type: "PRIVATE KEY", Bytes: der},
		"pkcs8": {Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("a cipher text")},
		"old": {Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"},
			Bytes: []byte("a cipher text")},
	} {
		file := write(name, b)
		_, err := Load(certFile, file)
		want := "the key in " + file + " is encrypted, and nobody is there to give its passphrase; write it without one: " +
			"openssl pkey -in " + file + " -out NEW, readable for ctlogd alone"
		if name == "plain" && err != nil || name != "plain" && (err == nil || err.Error() != want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load(certFile, filepath.Join(dir, "none")); err == nil || strings.Contains(err.Error(), "encrypted") {
		t.Errorf("no key: %v", err)
	}
}
