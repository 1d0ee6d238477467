//go:build !small

package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/config"
)

// Every file that may be a secret can be a credential, and stands where the service manager puts it.
func TestCredentials(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
	const text = `
metrics: {listen: "127.0.0.1:9469", web_config: "credential:web"}
outputs:
  ipfix: [{address: "tls://c", tls: {ca: "credential:ca", cert: "credential:cert", key: "credential:key"}}]
  kafka:
    - {brokers: ["b:9092"], topic: t, tls: {ca: "credential:ca", cert: /etc/cert, key: "credential:key"}, sasl: {mechanism: PLAIN, username: u, password_file: "credential:password"}}
`
	load := func() *Config {
		c := new(Config)
		d := config.Decode([]byte(text), c, leastConfig)
		resolveCredentials(c, credentialsDirectory(), d.Report())
		if err := d.Err("f"); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := load()
	k, x := c.Outputs.Kafka[0], c.Outputs.IPFIX[0]
	got := []string{c.Metrics.WebConfig, x.TLS.CA, x.TLS.Cert, x.TLS.Key, k.TLS.CA, k.TLS.Cert, k.TLS.Key, k.SASL.PasswordFile}
	const dir = "/run/credentials/x/"
	want := []string{dir + "web", dir + "ca", dir + "cert", dir + "key", dir + "ca", "/etc/cert", dir + "key", dir + "password"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, name := range []string{"", "../x", "a/b", ".."} {
		_, err := parseConfig("f", []byte(strings.Replace(text, "credential:password", "credential:"+name, 1)))
		if want := "f:6: outputs.kafka[0].sasl.password_file: \"credential:" + name + "\" is no name of a credential; " +
			"write credential:NAME for LoadCredential=NAME:PATH of the unit"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("credential:%s: %v, want %s", name, err, want)
		}
	}
	// Without the manager's variable they are looked for where the service's are.
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if c := load(); c.Metrics.WebConfig != "/run/credentials/ctlogd.service/web" {
		t.Errorf("%+v", c.Metrics)
	}
}
