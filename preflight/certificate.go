package preflight

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"time"
)

// Certificate is a file of certificates that is in use.
type Certificate struct {
	Name string // "outputs.ipfix[0].tls.cert"
	File string // PEM
}

// soon is how long before its end a certificate is worth a warning.
const soon = 30 * 24 * time.Hour

const renew = "have it renewed; each new connection reads the file, so ctlogd need not be restarted"

// result tells whether the certificates in the file hold, and for how long. One that has expired among authorities is no
// failure as long as another holds.
func (c Certificate) result(now time.Time) Result {
	r := Result{Name: c.Name, Status: Fail}
	text, err := os.ReadFile(c.File)
	if err != nil {
		r.Detail = err.Error()
		return r
	}
	var first *x509.Certificate // the one that ends first of those that hold
	var over []string
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			r.Detail = fmt.Sprintf("%s: %v", c.File, err)
			return r
		case now.After(cert.NotAfter):
			over = append(over, fmt.Sprintf("%s expired on %s", subject(cert), day(cert.NotAfter)))
		case now.Before(cert.NotBefore):
			over = append(over, fmt.Sprintf("%s holds from %s on", subject(cert), day(cert.NotBefore)))
		case first == nil || cert.NotAfter.Before(first.NotAfter):
			first = cert
		}
	}
	switch {
	case first == nil && over == nil:
		r.Detail = c.File + " has no certificate"
	case first == nil:
		r.Detail, r.Remedy = fmt.Sprintf("%s: %s", c.File, strings.Join(over, ", ")), renew
	case over != nil:
		r.Status, r.Remedy = Warn, renew
		r.Detail = fmt.Sprintf("%s: %s", c.File, strings.Join(over, ", "))
	case first.NotAfter.Sub(now) < soon:
		r.Status, r.Remedy = Warn, renew
		r.Detail = fmt.Sprintf("%s: %s expires on %s", c.File, subject(first), day(first.NotAfter))
	default:
		r.Status = Pass
		r.Detail = fmt.Sprintf("%s holds until %s", c.File, day(first.NotAfter))
	}
	return r
}

func subject(c *x509.Certificate) string {
	if name := c.Subject.String(); name != "" {
		return name
	}
	return strings.Join(c.DNSNames, ", ")
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
