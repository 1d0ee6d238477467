package certfile_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/output/certfile"
	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

// TestExpired: a certificate that has expired is no mistake in the configuration, which would keep ctlogd from starting; the
// output that shows it fails, and says why.
func TestExpired(t *testing.T) {
	_, cert, key := certtest.New(t).Pair(t, "client", -time.Hour)
	c := certfile.TLS{Cert: cert, Key: key}
	c.Validate(true, func(field, msg string) { t.Errorf("%s: %s", field, msg) })
	if _, err := c.Config("localhost"); err == nil || !strings.Contains(err.Error(), cert+" expired on ") {
		t.Error(err)
	}
}
