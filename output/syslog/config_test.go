package syslog

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/output/format"
)

func TestConfigValidate(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want []string
	}{
		{Config{Address: "udp://192.0.2.1"}, nil},
		{Config{Address: "tcp://[2001:db8::1]:601", Failover: []string{"tcp://syslog.example.net"}, Framing: "lf"}, nil},
		{Config{Address: "unix:///dev/log", SDID: "none"}, nil},
		{Config{Address: "tls://192.0.2.1", SDID: "ct@1.3.6"}, nil},
		{Config{}, []string{"address: missing; write udp://HOST:PORT, tcp://HOST:PORT, tls://HOST:PORT, unix:///PATH or journal://"}},
		{Config{Address: "journal://"}, nil},
		{Config{Address: "journal://local"}, []string{
			`address: nothing but the path of another socket may stand in "journal://local"; write journal://`}},
		{Config{Address: "tcp://a", Failover: []string{"udp://b"}}, []string{
			"failover[0]: what was written to tcp:// cannot be sent again to udp://; use tcp:// and tls://, or udp:// and unix://"}},
		{Config{Address: "192.0.2.1:514"}, []string{`address: missing scheme in "192.0.2.1:514"; ` + addressHelp}},
		{Config{Address: "relp://a"}, []string{`address: unknown scheme "relp"; ` + addressHelp}},
		{Config{Address: "unix://dev/log"}, []string{`address: "unix://dev/log" has no absolute path; write unix:///dev/log`}},
		{Config{Address: "tcp://:514"}, []string{`address: missing host in "tcp://:514"; ` + addressHelp}},
		{Config{Address: "tcp://a:0"}, []string{`address: port "0" is not a number from 1 to 65535`}},
		{Config{Address: "tcp://a/b"}, []string{`address: nothing may stand beside host and port in "tcp://a/b"; ` + addressHelp}},
		{Config{Address: "udp://2001:db8::1"}, []string{
			`address: "2001:db8::1" is not HOST:PORT; an IPv6 address stands in brackets: [2001:db8::1]:514`}},
		{Config{Address: "tcp://a", Failover: []string{"tcp://b", "tcp://a:514"}}, []string{`failover[1]: "tcp://a:514" stands here twice`}},
		{Config{Address: "udp://a", Framing: "lf", Facility: "local8", Severity: "error", AppName: "a b", SDID: "flow", Format: "xml",
			TLS: TLS{ServerName: "x"}, Fields: format.Fields{Drop: []string{"time"}}, DialTimeout: -1}, []string{
			`format: unknown format "xml"; allowed are: flat, ecs, ocsf, cim, ulogd2, cef`,
			`fields.drop: cannot drop "time"; allowed are: host, flow_id, start, `,
			"framing: datagrams have no framing; leave it out",
			`facility: unknown facility "local8"; use kern, user, mail, daemon, auth, syslog, lpr, news, uucp, cron, authpriv, ftp, ` +
				"ntp, audit, alert, clock, local0, local1, local2, local3, local4, local5, local6 or local7",
			`severity: unknown severity "error"; use emerg, alert, crit, err, warning, notice, info or debug`,
			`app_name: "a b" is no APP-NAME; use up to 48 printable ASCII characters without spaces`,
			`sd_id: "flow" is no SD-ID; write NAME@NUMBER, the number being your organization's private enterprise number, or none`,
			"dial_timeout: -1ns is out of range; use up to 10m",
			"tls.server_name: has no use without a tls:// address; change the address or remove the key",
		}},
		{Config{Address: "udp://[fe80::1%25wan]"}, []string{
			`address: "fe80::1%25wan" is written as in a URL; write the interface as it is called: udp://[fe80::1%wan]:514`}},
		{Config{Address: "tcp://[fe80::1]"}, []string{"address: fe80::1 is a link-local address, which is another one on each link; " +
			"name the interface: tcp://[fe80::1%eth0]:514"}},
		{Config{Address: "udp://log..example"}, []string{`address: "log..example" is neither an address nor a host name; ` + addressHelp}},
		{Config{Address: "tls://a", TLS: TLS{Cert: "x"}}, []string{"tls.key: missing; a client certificate needs its private key"}},
		{Config{Address: "tls://a", TLS: TLS{CA: "/nowhere"}}, []string{"tls.ca: open /nowhere: no such file or directory"}},
	} {
		var got []string
		tt.cfg.Validate(func(field, msg string) {
			if field == "fields.drop" {
				msg, _, _ = strings.Cut(msg, "end,") // the list of all keys
			}
			got = append(got, field+": "+msg)
		})
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.cfg, diff)
		}
	}
}

func TestCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	ln, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := (Config{Address: "unix://" + path, Failover: []string{"udp://127.0.0.1"}}).Check(context.Background()); err != nil {
		t.Error(err)
	}
	err = Config{Address: "unix://" + path + "x"}.Check(context.Background())
	if err == nil || !strings.Contains(err.Error(), "no such file or directory; start who listens there") {
		t.Errorf("a socket that is not there: %v", err)
	}
	if _, err := (Config{Address: "tcp://127.0.0.1:1"}).Reach(context.Background()); err == nil {
		t.Error("nobody listens there, and it was reached")
	}
}
