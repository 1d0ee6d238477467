package kafka

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"gopkg.in/yaml.v3"
)

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty, junk := file("empty", "\n"), file("junk.pem", "no PEM\n")
	t.Setenv("CTLOGD_TEST_PASSWORD", "secret")
	const good = "brokers: [192.0.2.20:9092]\ntopic: flows\n"

	for _, tc := range []struct {
		name, yaml string
		want       []string
	}{
		{"the least", good, nil},
		{"everything", good + `
key: nat_src
format: flat
compression: zstd
required_acks: one
batch_bytes: 512KiB
connect_timeout: 3s
request_timeout: 20s
client_id: fw1
tls: {server_name: kafka}
sasl: {mechanism: SCRAM-SHA-512, username: ctlogd, password_env: CTLOGD_TEST_PASSWORD}
create_topic: {partitions: 12, replication: 3}
dead_letter: /var/lib/ctlogd/dead.jsonl
dead_letter_size: 1MiB
`, nil},
		{"IPv6 broker", "brokers: ['[2001:db8::1]:9092']\ntopic: flows\n", nil},
		{"nothing", "{}", []string{
			"brokers: no brokers; write a list of HOST:PORT",
			"topic: missing topic; write the name of one",
		}},
		{"brokers", "topic: flows\n" +
			"brokers: [a, 'a:0', 'a:http', ':9092', 'kafka://a:9092', 'a:1,b:2', 'a:1', 'a:1', 'a:b:c']",
			[]string{
				`brokers[0]: missing port in "a"; write HOST:PORT`,
				`brokers[1]: port "0" is no number from 1 to 65535; write HOST:PORT`,
				`brokers[2]: port "http" is no number from 1 to 65535; write HOST:PORT`,
				`brokers[3]: missing host in ":9092"; write HOST:PORT`,
				`brokers[4]: "kafka://a:9092" is no address; write HOST:PORT, and tls: {} for TLS`,
				`brokers[5]: "a:1,b:2" is no address; write HOST:PORT`,
				`brokers[7]: "a:1" stands here twice`,
				`brokers[8]: "a:b:c" is no address; write HOST:PORT`,
			}},
		{"topic", "brokers: ['a:1']\ntopic: my flows", []string{
			`topic: "my flows" is no name of a topic; use up to 249 of a-z, A-Z, 0-9, '.', '_' and '-'`,
		}},
		{"topic of dots", "brokers: ['a:1']\ntopic: ..", []string{
			`topic: ".." is no name of a topic; use up to 249 of a-z, A-Z, 0-9, '.', '_' and '-'`,
		}},
		{"names", good + "key: ip\nformat: xml\ncompression: lzma\nrequired_acks: two", []string{
			`key: unknown key "ip"; use src, nat_src, flow_id or none`,
			`format: unknown format "xml"; allowed are: flat, ecs, ocsf, cim, ulogd2, cef`,
			`compression: unknown compression "lzma"; use none, gzip, snappy, lz4 or zstd`,
			`required_acks: unknown required_acks "two"; use all or one`,
		}},
		{"no acks", good + "required_acks: none", []string{
			"required_acks: with none, records are lost unseen; use all or one",
		}},
		{"numbers", good + "batch_bytes: 1KiB\nconnect_timeout: 1ms\nrequest_timeout: 1h\n" +
			"create_topic: {partitions: 0, replication: -1}\ndead_letter_size: -1", []string{
			"batch_bytes: 1KiB is out of range; use 16KiB to 64MiB",
			"connect_timeout: 1ms is out of range; use 100ms to 10m0s",
			"request_timeout: 1h0m0s is out of range; use 100ms to 10m0s",
			"create_topic.partitions: 0 is out of range; use 1 to 10000",
			"create_topic.replication: -1 is out of range; use 1 to the number of brokers",
		}},
		{"certificate without key", good + "tls: {cert: a.pem}", []string{
			"tls.key: missing; a client certificate needs its private key",
		}},
		{"key without certificate", good + "tls: {key: a.pem}", []string{
			"tls.cert: missing; a private key needs its client certificate",
		}},
		{"files that are missing", good + "tls: {ca: /nonexistent/ca.pem, cert: /nonexistent/c.pem, key: /nonexistent/k.pem}",
			[]string{
				"tls.ca: open /nonexistent/ca.pem: no such file or directory",
				"tls.cert: open /nonexistent/c.pem: no such file or directory",
			}},
		{"files that are no certificates", good + fmt.Sprintf("tls: {ca: %s, cert: %[1]s, key: %[1]s}", junk), []string{
			"tls.ca: no certificate in " + junk + "; write the path of a PEM file",
			"tls.cert: tls: failed to find any PEM data in certificate input",
		}},
		{"sasl, nothing", good + "sasl: {}", []string{
			"sasl.mechanism: missing mechanism; use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
			"sasl.username: missing username",
			"sasl.password_file: missing password; write password_file or password_env",
		}},
		{"sasl, mechanism", good + "sasl: {mechanism: GSSAPI, username: a, password_env: CTLOGD_TEST_PASSWORD}", []string{
			`sasl.mechanism: unknown mechanism "GSSAPI"; use PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512`,
		}},
		{"sasl, two passwords", good + "sasl: {mechanism: PLAIN, username: a, password_env: A, password_file: b}", []string{
			"sasl.password_env: password_file is set as well; write one of them",
		}},
		{"sasl, no such file", good + "sasl: {mechanism: PLAIN, username: a, password_file: /nonexistent/pw}", []string{
			"sasl.password_file: open /nonexistent/pw: no such file or directory",
		}},
		{"sasl, empty file", good + "sasl: {mechanism: PLAIN, username: a, password_file: " + empty + "}", []string{
			"sasl.password_file: " + empty + " is empty",
		}},
		{"sasl, no such variable", good + "sasl: {mechanism: PLAIN, username: a, password_env: CTLOGD_TEST_UNSET}", []string{
			"sasl.password_env: environment variable CTLOGD_TEST_UNSET is not set",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// A negative size is no size for its type: it is set here, as code could.
			src, negative := strings.CutSuffix(tc.yaml, "\ndead_letter_size: -1")
			dec := yaml.NewDecoder(strings.NewReader(src))
			dec.KnownFields(true)
			var c Config
			if err := dec.Decode(&c); err != nil {
				t.Fatal(err)
			}
			want := tc.want
			if negative {
				c.DeadLetterSize = -1
				want = append(want, "dead_letter_size: negative; use a size such as 65536, 512KiB, 64MiB or 10G")
			}
			var got []string
			c.Validate(func(field, msg string) { got = append(got, field+": "+msg) })
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error("-want +got\n" + diff)
			}
		})
	}
}

// TestSecret: whatever is printed or logged of a configuration, a Writer or its errors, the password is not in it.
func TestSecret(t *testing.T) {
	const secret = "correct-horse-battery"
	t.Setenv("CTLOGD_TEST_PASSWORD", secret)
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mechanism := range Mechanisms {
		for _, place := range []SASL{{PasswordFile: file}, {PasswordEnv: "CTLOGD_TEST_PASSWORD"}} {
			place.Mechanism, place.Username = mechanism, "ctlogd"
			cfg := Config{Brokers: []string{"127.0.0.1:1"}, Topic: "flows", SASL: &place}
			if p, err := place.password(); p != secret || err != nil {
				t.Fatalf("password %q, %v", p, err)
			}
			core, logs := observer.New(zapcore.DebugLevel)
			log := zap.New(core)
			w, err := New(cfg, Options{Encoder: newEncoder(t), Log: log})
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.Write(t.Context(), records(1))
			log.Debug("all", zap.Any("config", cfg), zap.Any("writer", w), zap.Any("transport", w.transport), zap.Error(err))
			if err := w.Close(t.Context()); err != nil {
				t.Error(err)
			}

			var out strings.Builder
			enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
			for _, e := range logs.All() {
				buf, err := enc.EncodeEntry(e.Entry, e.Context)
				if err != nil {
					t.Fatal(err)
				}
				out.Write(buf.Bytes())
			}
			y, err := yaml.Marshal(cfg)
			if err != nil {
				t.Fatal(err)
			}
			out.Write(y)
			for _, v := range []any{cfg, &cfg, *cfg.SASL, w, err} {
				fmt.Fprintf(&out, "%v %+v %#v %s\n", v, v, v, v)
			}
			if strings.Contains(out.String(), secret) {
				t.Errorf("%s: the password is in\n%s", mechanism, out.String())
			}
			if !strings.Contains(out.String(), "ctlogd") {
				t.Errorf("%s: nothing was printed:\n%s", mechanism, out.String())
			}
		}
	}
}

// TestSecretNotPrepared: nor is it in the error when SASLprep refuses it.
func TestSecretNotPrepared(t *testing.T) {
	t.Setenv("CTLOGD_TEST_PASSWORD", "correct\u0007horse")
	s := SASL{Mechanism: "SCRAM-SHA-256", Username: "ctlogd", PasswordEnv: "CTLOGD_TEST_PASSWORD"}
	_, err := s.mechanism()
	const want = "user name or password holds characters that SASL does not allow (RFC 4013)"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}
