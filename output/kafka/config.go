package kafka

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/ctlogd/ctlogd/output/certfile"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/unit"
)

// Config is one entry of outputs.kafka in the configuration. It holds no secret, only where to find it.
type Config struct {
	// Brokers are the addresses to start from, HOST:PORT; the others of the cluster are learnt from them.
	Brokers []string `yaml:"brokers"`

	Topic string `yaml:"topic"`

	// Key decides which records stay together, in one partition and in order; see Keys. Unset: src.
	Key string `yaml:"key"`

	// Format is that of the messages' values, see format.Names. Unset: flat.
	Format string        `yaml:"format"`
	Fields format.Fields `yaml:"fields"`

	// Compression is one of Compressions. Unset: lz4.
	Compression string `yaml:"compression"`

	// RequiredAcks says who has to have a record before it counts as delivered: all replicas in sync, or one, the
	// leader, with which records are lost when it dies. Unset: all.
	RequiredAcks string `yaml:"required_acks"`

	// BatchBytes bounds the records in one batch, before compression. Unset: 1000000, below the brokers' default
	// for message.max.bytes.
	BatchBytes unit.Size `yaml:"batch_bytes"`

	// ConnectTimeout bounds a connection's set-up, TLS and SASL included. Unset: 5s.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`

	// RequestTimeout bounds the wait for an answer. Unset: 30s.
	RequestTimeout time.Duration `yaml:"request_timeout"`

	// ClientID is what the brokers' logs and quotas call us. Unset: ctlogd.
	ClientID string `yaml:"client_id"`

	// TLS turns on TLS if it is there, even empty.
	TLS *TLS `yaml:"tls"`

	SASL *SASL `yaml:"sasl"`

	// CreateTopic creates the topic if it is missing. Unset: it is left to the operator.
	CreateTopic *CreateTopic `yaml:"create_topic"`

	// DeadLetter is the file that keeps the records that no broker will ever take. Unset: they are counted only.
	DeadLetter string `yaml:"dead_letter"`

	// DeadLetterSize is how large that file may become. Unset: 64MiB.
	DeadLetterSize unit.Size `yaml:"dead_letter_size"`
}

// TLS is the block tls. Without a server_name each broker's host is expected.
type TLS = certfile.TLS

// SASL is the block sasl. The password comes from exactly one of the two places.
type SASL struct {
	Mechanism    string `yaml:"mechanism"` // see Mechanisms
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"` // a newline at its end is no part of the password
	PasswordEnv  string `yaml:"password_env"`  // name of an environment variable
}

// Mechanisms are the values of sasl.mechanism.
var Mechanisms = []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}

// CreateTopic is the block create_topic.
type CreateTopic struct {
	Partitions  int `yaml:"partitions"`
	Replication int `yaml:"replication"`
}

// Bounds of what can be configured.
const (
	minBatchBytes = 16 << 10
	maxBatchBytes = 64 << 20
	maxTimeout    = 10 * time.Minute
)

// Name is the output's name: the first broker and the topic.
func (c *Config) Name() string { return "kafka:" + c.Brokers[0] + "/" + c.Topic }

// Defaults fills in what is unset.
func (c *Config) Defaults() {
	c.Key = cmp.Or(c.Key, KeySrc)
	c.Format = cmp.Or(c.Format, format.Names[0])
	c.Compression = cmp.Or(c.Compression, "lz4")
	c.RequiredAcks = cmp.Or(c.RequiredAcks, "all")
	c.BatchBytes = cmp.Or(c.BatchBytes, 1_000_000)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 5*time.Second)
	c.RequestTimeout = cmp.Or(c.RequestTimeout, 30*time.Second)
	c.ClientID = cmp.Or(c.ClientID, "ctlogd")
	c.DeadLetterSize = cmp.Or(c.DeadLetterSize, 64<<20)
}

// Encoder returns a new encoder for the values of this output's messages. o says the rest.
func (c *Config) Encoder(o format.Options) (format.Encoder, error) {
	o.Fields = c.Fields
	return format.New(c.Format, o)
}

// validTopic reports whether a broker accepts the name of a topic.
func validTopic(name string) bool {
	odd := func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c))
	}
	return len(name) > 0 && len(name) <= 249 && !strings.ContainsFunc(name, odd) && name != "." && name != ".."
}

// Validate reports every impossible value by its field, files that cannot be read among them. It asks no broker.
func (c *Config) Validate(report func(field, msg string)) {
	if len(c.Brokers) == 0 {
		report("brokers", "no brokers; write a list of HOST:PORT")
	}
	for i, b := range c.Brokers {
		field := fmt.Sprintf("brokers[%d]", i)
		if msg := checkBroker(b); msg != "" {
			report(field, msg)
		} else if slices.Contains(c.Brokers[:i], b) {
			report(field, fmt.Sprintf("%q stands here twice", b))
		}
	}
	switch {
	case c.Topic == "":
		report("topic", "missing topic; write the name of one")
	case !validTopic(c.Topic):
		report("topic", fmt.Sprintf("%q is no name of a topic; use up to 249 of a-z, A-Z, 0-9, '.', '_' and '-'",
			c.Topic))
	}
	oneOf(report, "key", c.Key, Keys)
	format.Validate(c.Format, c.Fields, report)
	if format.Begins(c.Format) != "" && !format.IsJSON(c.Format) {
		report("format", fmt.Sprintf("format %s is for files and syslog; use %s", c.Format, orList(format.JSONNames)))
	}
	oneOf(report, "compression", c.Compression, Compressions[:])
	if c.RequiredAcks == "none" {
		report("required_acks", "with none, records are lost unseen; use all or one")
	} else {
		oneOf(report, "required_acks", c.RequiredAcks, []string{"all", "one"})
	}
	if n := c.BatchBytes; n != 0 && (n < minBatchBytes || n > maxBatchBytes) {
		report("batch_bytes", fmt.Sprintf("%s is out of range; use %s to %s",
			n, unit.Size(minBatchBytes), unit.Size(maxBatchBytes)))
	}
	for _, t := range []struct {
		field string
		d     time.Duration
	}{{"connect_timeout", c.ConnectTimeout}, {"request_timeout", c.RequestTimeout}} {
		if t.d != 0 && (t.d < 100*time.Millisecond || t.d > maxTimeout) {
			report(t.field, fmt.Sprintf("%s is out of range; use 100ms to %s", t.d, maxTimeout))
		}
	}
	if c.TLS != nil {
		c.TLS.Validate(true, report)
	}
	if c.SASL != nil {
		c.SASL.validate(func(field, msg string) { report("sasl."+field, msg) })
	}
	if t := c.CreateTopic; t != nil {
		if t.Partitions < 1 || t.Partitions > 10000 {
			report("create_topic.partitions", fmt.Sprintf("%d is out of range; use 1 to 10000", t.Partitions))
		}
		if t.Replication < 1 || t.Replication > 100 {
			report("create_topic.replication", fmt.Sprintf("%d is out of range; use 1 to the number of brokers",
				t.Replication))
		}
	}
	if c.DeadLetterSize < 0 {
		report("dead_letter_size", "negative; use "+unit.SizeHelp)
	}
}

// checkBroker returns what is wrong with a broker's address, "" if nothing is.
func checkBroker(b string) string {
	host, port, err := net.SplitHostPort(b)
	switch {
	case strings.Contains(b, "/"):
		return fmt.Sprintf("%q is no address; write HOST:PORT, and tls: {} for TLS", b)
	case err != nil && strings.Contains(err.Error(), "missing port"):
		return fmt.Sprintf("missing port in %q; write HOST:PORT", b)
	case err != nil || strings.ContainsAny(b, ", "):
		return fmt.Sprintf("%q is no address; write HOST:PORT", b)
	case host == "":
		return fmt.Sprintf("missing host in %q; write HOST:PORT", b)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Sprintf("port %q is no number from 1 to 65535; write HOST:PORT", port)
	}
	return ""
}

// oneOf reports a value that is set and not among those allowed.
func oneOf(report func(field, msg string), field, value string, allowed []string) {
	if value != "" && !slices.Contains(allowed, value) {
		report(field, fmt.Sprintf("unknown %s %q; use %s", field[strings.LastIndexByte(field, '.')+1:], value, orList(allowed)))
	}
}

// orList joins words as "a, b or c".
func orList(words []string) string {
	last := len(words) - 1
	list := strings.Join(words[:last], ", ")
	if last > 0 {
		list += " or "
	}
	return list + words[last]
}

func (s *SASL) validate(report func(field, msg string)) {
	if s.Mechanism == "" {
		report("mechanism", "missing mechanism; use "+strings.Join(Mechanisms, ", "))
	}
	oneOf(report, "mechanism", s.Mechanism, Mechanisms)
	if s.Username == "" {
		report("username", "missing username")
	}
	switch {
	case s.PasswordFile == "" && s.PasswordEnv == "":
		report("password_file", "missing password; write password_file or password_env")
	case s.PasswordFile != "" && s.PasswordEnv != "":
		report("password_env", "password_file is set as well; write one of them")
	default:
		if _, err := s.password(); err != nil {
			field := "password_file"
			if s.PasswordEnv != "" {
				field = "password_env"
			}
			report(field, err.Error())
		}
	}
}

// password reads the secret. No error holds any of it.
func (s *SASL) password() (string, error) {
	if s.PasswordEnv != "" {
		p := os.Getenv(s.PasswordEnv)
		if p == "" {
			return "", fmt.Errorf("environment variable %s is not set", s.PasswordEnv)
		}
		return p, nil
	}
	b, err := os.ReadFile(s.PasswordFile)
	if err != nil {
		return "", err
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 {
		return "", fmt.Errorf("%s is empty", s.PasswordFile)
	}
	return string(b), nil
}

// mechanism returns the block as kafka-go wants it, nil for no SASL.
func (s *SASL) mechanism() (sasl.Mechanism, error) {
	if s == nil {
		return nil, nil
	}
	if _, err := s.build(); err != nil {
		return nil, err
	}
	return fresh{s}, nil
}

// fresh is a mechanism that reads the password anew for each connection: an operator who mends it expects no less.
type fresh struct{ *SASL }

func (f fresh) Name() string { return f.Mechanism }

func (f fresh) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	m, err := f.build()
	if err != nil {
		return nil, nil, err
	}
	return m.Start(ctx)
}

func (s *SASL) build() (sasl.Mechanism, error) {
	password, err := s.password()
	if err != nil {
		return nil, err
	}
	var m sasl.Mechanism
	switch s.Mechanism {
	case "PLAIN":
		return plain.Mechanism{Username: s.Username, Password: password}, nil
	case "SCRAM-SHA-256":
		m, err = scram.Mechanism(scram.SHA256, s.Username, password)
	default:
		m, err = scram.Mechanism(scram.SHA512, s.Username, password)
	}
	if err != nil {
		// The library's text is not repeated: what it could not prepare is the password.
		return nil, errors.New("user name or password holds characters that SASL does not allow (RFC 4013)")
	}
	return m, nil
}
