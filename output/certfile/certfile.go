// Package certfile loads the certificates and keys that outputs show, with errors that say what to do.
package certfile

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
)

// Load reads a certificate, with its chain, and its private key from files in PEM.
func Load(cert, key string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil && encrypted(key) {
		return pair, fmt.Errorf("the key in %s is encrypted, and nobody is there to give its passphrase; "+
			"write it without one: openssl pkey -in %s -out NEW, readable for ctlogd alone", key, key)
	}
	return pair, err
}

// encrypted reports whether a file has a key that needs a passphrase: PKCS #8, or the older form of OpenSSL.
func encrypted(file string) bool {
	text, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return true
		}
	}
	return false
}
