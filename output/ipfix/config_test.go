package ipfix

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	authority := certtest.New(t)
	cert, key := authority.Issue(t, "client", time.Hour)
	old, oldKey := authority.Issue(t, "client", -time.Hour)
	_, otherKey := authority.Issue(t, "client", time.Hour)
	ca := write("ca.pem", authority.PEM)
	certFile, keyFile := write("cert.pem", cert), write("key.pem", key)
	oldFile, oldKeyFile := write("old.pem", old), write("old-key.pem", oldKey)
	otherKeyFile, empty := write("other-key.pem", otherKey), write("empty.pem", nil)
	const help = "write udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT"

	tests := []struct {
		yaml string
		want []string
	}{
		{"{address: udp://192.0.2.1}", nil},
		{"{address: 'udp://[2001:db8::1]'}", nil},
		{"{address: 'tcp://[2001:db8::1]:4739'}", nil},
		{"{address: udp://collector.example.net:2055, message_size: auto}", nil},
		{"{address: udp://192.0.2.1, message_size: 464}", nil},
		{"{address: tcp://192.0.2.1, message_size: 65535}", nil},
		{"{address: tcp://192.0.2.1, message_size: 16KiB, template_interval: 10m, template_packets: 0, dial_timeout: 2s}",
			nil},
		{"{address: udp://192.0.2.1, records: both, nat_event: historic, layout: rfc8158, destination: false, " +
			"options: false}", nil},
		{"{address: udp://192.0.2.1, enterprise: {pen: 32473, elements: [mark, status, labels, icmp_id, nat_icmp_id, " +
			"gre_key, gre_dst_key, nat_gre_key, nat_gre_dst_key, helper]}}", nil},
		{"{address: tls://192.0.2.1, tls: {ca: " + ca + ", cert: " + certFile + ", key: " + keyFile +
			", server_name: a.example}}", nil},

		{"{}", []string{"address: missing; " + help}},
		{"{address: '192.0.2.1:4739'}", []string{`address: missing scheme in "192.0.2.1:4739"; ` + help}},
		{"{address: sctp://192.0.2.1}", []string{`address: unknown scheme "sctp"; ` + help}},
		{"{address: 'udp://:4739'}", []string{`address: missing host in "udp://:4739"; ` + help}},
		{"{address: udp://}", []string{`address: missing host in "udp://"; ` + help}},
		{"{address: 'udp://[]'}", []string{`address: missing host in "udp://[]"; ` + help}},
		{"{address: udp://192.0.2.1/ipfix}",
			[]string{`address: nothing may stand beside host and port in "udp://192.0.2.1/ipfix"; ` + help}},
		{"{address: udp://192.0.2.1:0}", []string{`address: port "0" is not a number from 1 to 65535`}},
		{"{address: udp://192.0.2.1:ipfix}", []string{`address: port "ipfix" is not a number from 1 to 65535`}},
		{"{address: udp://192.0.2.1:70000}", []string{`address: port "70000" is not a number from 1 to 65535`}},
		{"{address: 'udp://2001:db8::1'}", []string{
			`address: "2001:db8::1" is not HOST:PORT; an IPv6 address stands in brackets: [2001:db8::1]:4739`}},
		{"{address: 'udp://[fe80::1%wan]'}", nil},
		{"{address: 'udp://_col-1.example.net.:2055'}", nil},
		{"{address: 'udp://[fe80::1%25wan]:2055'}", []string{
			`address: "fe80::1%25wan" is written as in a URL; write the interface as it is called: udp://[fe80::1%wan]:2055`}},
		{"{address: 'tcp://[fe80::1]'}", []string{"address: fe80::1 is a link-local address, which is another one on each link; " +
			"name the interface: tcp://[fe80::1%eth0]:4739"}},
		{"{address: udp://0.0.0.0}", []string{"address: 0.0.0.0 is no address to send to; write where to"}},
		{"{address: udp://host name}", []string{`address: "host name" is neither an address nor a host name; ` + help}},
		{"{address: 'udp://col..example'}", []string{`address: "col..example" is neither an address nor a host name; ` + help}},
		{"{address: udp://192.0.2.1, failover: [tcp://, udp://192.0.2.1]}", []string{
			`failover[0]: missing host in "tcp://"; ` + help,
			`failover[1]: "udp://192.0.2.1" is listed twice; name each collector once`}},
		{"{address: udp://192.0.2.1, records: nat, nat_event: new, layout: compact}", []string{
			`records: unknown value "nat"; write flows, nat_events or both`,
			`nat_event: unknown value "new"; write rfc8158 or historic`,
			`layout: unknown value "compact"; write with_times or rfc8158`}},
		{"{address: udp://192.0.2.1, observation_domain: 0}", []string{
			"observation_domain: 0 is the domain of the exporter's own statistics; write a number from 1 to 4294967295"}},
		{"{address: udp://192.0.2.1, message_size: 463}", []string{
			`message_size: "463" is not a message size; write auto or a size from 464 to 65507`}},
		{"{address: udp://192.0.2.1, message_size: 65535}", []string{
			`message_size: "65535" is not a message size; write auto or a size from 464 to 65507`}},
		{"{address: tcp://192.0.2.1, message_size: 64KiB}", []string{
			`message_size: "64KiB" is not a message size; write auto or a size from 464 to 65535`}},
		{"{address: tcp://192.0.2.1, message_size: big}", []string{
			`message_size: "big" is not a message size; write auto or a size from 464 to 65535`}},
		{"{address: udp://192.0.2.1, template_interval: 1ms, template_packets: -1, dial_timeout: -1s}", []string{
			"template_interval: 1ms is too short; write at least 1s",
			"template_packets: -1 is not a number of messages; write 0 (no limit) or more",
			"dial_timeout: -1s is negative; write a duration such as 5s"}},
		{"{address: udp://192.0.2.1, enterprise: {elements: [mark, mark, user]}}", []string{
			`enterprise.elements[1]: "mark" is listed twice`,
			`enterprise.elements[2]: unknown element "user"; write mark, status, labels, icmp_id, nat_icmp_id, gre_key, ` +
				`gre_dst_key, nat_gre_key, nat_gre_dst_key or helper`,
			"enterprise.pen: missing; enterprise elements need your organization's private enterprise number (IANA)"}},
		{"{address: udp://192.0.2.1, enterprise: {pen: 29305, elements: [mark]}}", []string{
			"enterprise.pen: 29305 is reserved for reverse elements (RFC 5103); write your organization's own number"}},
		{"{address: tcp://192.0.2.1, tls: {ca: a, cert: b, key: c, server_name: d}}", []string{
			"tls.ca: has no use without a tls:// address; change the address or remove the key",
			"tls.cert: has no use without a tls:// address; change the address or remove the key",
			"tls.key: has no use without a tls:// address; change the address or remove the key",
			"tls.server_name: has no use without a tls:// address; change the address or remove the key"}},
		{"{address: tls://192.0.2.1, tls: {ca: /nonexistent, cert: " + certFile + "}}", []string{
			"tls.ca: open /nonexistent: no such file or directory",
			"tls.key: missing; a client certificate needs its private key"}},
		{"{address: tls://192.0.2.1, tls: {ca: " + empty + ", key: " + keyFile + "}}", []string{
			"tls.ca: no certificate in " + empty + "; write the path of a PEM file",
			"tls.cert: missing; a private key needs its client certificate"}},
		{"{address: tls://192.0.2.1, tls: {cert: " + certFile + ", key: " + otherKeyFile + "}}", []string{
			"tls.cert: tls: private key does not match public key"}},
		{"{address: tls://192.0.2.1, tls: {cert: " + oldFile + ", key: " + oldKeyFile + "}}", nil}, // the output fails alone
	}
	for _, tt := range tests {
		var c Config
		dec := yaml.NewDecoder(strings.NewReader(tt.yaml))
		dec.KnownFields(true)
		if err := dec.Decode(&c); err != nil {
			t.Errorf("%s: %v", tt.yaml, err)
			continue
		}
		var got []string
		c.Validate(func(field, msg string) { got = append(got, field+": "+msg) })
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.yaml, diff)
		}
	}
}

func TestNewRefusesBadConfig(t *testing.T) {
	_, err := New(Config{Address: "udp://", Records: "all"}, Options{})
	const want = "address: missing host in \"udp://\"; write udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT\n" +
		"records: unknown value \"all\"; write flows, nat_events or both"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// What is unset and what Defaults sets is the same to every reader of a Config.
func TestDefaults(t *testing.T) {
	unset := Config{Address: "udp://192.0.2.1"}
	set := unset
	set.Defaults()
	type resolved struct {
		New, Destination, Options bool
		Interval, Dial            time.Duration
		Packets                   int
		Templates                 []Template
	}
	of := func(c *Config) resolved {
		return resolved{c.NeedsNew(), c.destination(), c.options(), c.templateInterval(), c.dialTimeout(),
			c.templatePackets(), Templates(*c)}
	}
	if diff := cmp.Diff(of(&unset), of(&set)); diff != "" {
		t.Errorf("(-unset +set):\n%s", diff)
	}
	c := Config{
		Address: "udp://192.0.2.1", Records: recordsBoth, NATEvent: natEventOld, Layout: layoutRFC8158,
		Destination: new(false), TemplateInterval: 1, TemplatePackets: new(0), Options: new(false), DialTimeout: 1,
	}
	before := c
	c.Defaults()
	if diff := cmp.Diff(before, c); diff != "" {
		t.Errorf("what is set changes (-want +got):\n%s", diff)
	}
}

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"udp://192.0.2.1":         "udp://192.0.2.1:4739",
		"tcp://a.example":         "tcp://a.example:4739",
		"tls://a.example":         "tls://a.example:4740",
		"tls://[2001:db8::1]":     "tls://[2001:db8::1]:4740",
		"udp://[fe80::1%eth0]:99": "udp://[fe80::1%eth0]:99",
	} {
		if a, err := parseAddress(in); err != nil || a.String() != want {
			t.Errorf("%s: %v, %v; want %s", in, a, err, want)
		}
	}
}

func TestObservationDomain(t *testing.T) {
	// Fixed for good: a collector's state and reports hang on it.
	const machineID = "0123456789abcdef0123456789abcdef"
	if observationDomain(machineID+"\n") != observationDomain(machineID) {
		t.Error("white space changes the domain")
	}
	if got, want := fmt.Sprint(observationDomain(machineID)), "2716527849"; got != want {
		t.Errorf("domain %s, want %s", got, want)
	}
	if DefaultObservationDomain() == 0 {
		t.Error("the default domain is 0")
	}
	seven := uint32(7)
	if got := (&Config{ObservationDomain: &seven}).Domain(); got != 7 {
		t.Errorf("domain %d, want 7", got)
	}
}

func TestNeedsNew(t *testing.T) {
	for records, want := range map[string]bool{"": false, "flows": false, "nat_events": true, "both": true} {
		if got := (&Config{Records: records}).NeedsNew(); got != want {
			t.Errorf("records %q: %t, want %t", records, got, want)
		}
	}
}
