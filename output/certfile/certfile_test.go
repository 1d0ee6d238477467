package certfile

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

func TestLoad(t *testing.T) {
	cert, key := certtest.New(t).Issue(t, "x", time.Hour)
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certFile := write("cert", cert)
	for name, text := range map[string][]byte{
		"plain": key,
		"pkcs8": pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("a cipher text")}),
		"old": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY",
			Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte("a cipher text")}),
	} {
		file := write(name, text)
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
