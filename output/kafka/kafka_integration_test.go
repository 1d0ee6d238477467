//go:build integration

package kafka

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	kafka "github.com/segmentio/kafka-go"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/broker"
	"github.com/ctlogd/ctlogd/output/format"
)

// message is one line of kcat.
type message struct {
	partition int
	time      int64
	headers   string
	key       string
	value     string
}

func consume(t testing.TB, c *broker.Cluster, topic string) (msgs []message) {
	t.Helper()
	for line := range bytes.Lines(c.Consume(t, topic, "%p %T %h %k %s")) {
		f := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", 5)
		if len(f) != 5 {
			t.Fatalf("odd line of kcat: %q", line)
		}
		p, _ := strconv.Atoi(f[0])
		ms, _ := strconv.ParseInt(f[1], 10, 64)
		msgs = append(msgs, message{p, ms, f[2], f[3], f[4]})
	}
	return msgs
}

// check holds what is on the topic against what was written: every record there, nothing else, every subscriber in one
// partition and, but for duplicates, in order. It returns the number of duplicates.
func check(t testing.TB, msgs []message, recs []*flow.Record) (duplicates int) {
	t.Helper()
	order := make(map[string]int, len(recs)) // by flow_id
	for i, r := range recs {
		id, ok := format.FlowID(format.NewObserverKey(testObserver), r)
		if !ok {
			t.Fatal("a record without flow_id")
		}
		order[hex.EncodeToString(id[:])] = i
	}
	if len(order) != len(recs) {
		t.Fatal("two records with one flow_id")
	}
	seen := make([]bool, len(recs))
	partition, last := map[string]int{}, map[string]int{}
	for _, m := range msgs {
		_, rest, _ := strings.Cut(m.value, `"flow_id":"`)
		id, _, _ := strings.Cut(rest, `"`)
		i, ok := order[id]
		if !ok {
			t.Fatalf("foreign message %q", m.value)
		}
		if want := recs[i].Orig.SrcAddr().String(); m.key != want {
			t.Fatalf("key %q, want %q", m.key, want)
		}
		if p, ok := partition[m.key]; ok && p != m.partition {
			t.Fatalf("%s is in partitions %d and %d", m.key, p, m.partition)
		}
		partition[m.key] = m.partition
		if seen[i] {
			duplicates++
			continue
		}
		seen[i] = true
		if l, ok := last[m.key]; ok && l > i {
			t.Fatalf("%s: record %d stands behind %d", m.key, i, l)
		}
		last[m.key] = i
	}
	missing := 0
	for _, ok := range seen {
		if !ok {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d records are missing", missing, len(recs))
	}
	return duplicates
}

// write gives w all records in slices of 4096, trying again as the worker does, and returns how often Write failed.
func write(t testing.TB, w *Writer, recs []*flow.Record) (failed int) {
	t.Helper()
	for len(recs) > 0 {
		slice := recs[:min(len(recs), 4096)]
		for len(slice) > 0 {
			n, err := w.Write(t.Context(), slice)
			if (n < len(slice)) != (err != nil) {
				t.Fatalf("Write returned %d of %d and %v", n, len(slice), err)
			}
			if err != nil {
				if t.Context().Err() != nil {
					t.Fatal(err)
				}
				if failed++; failed == 1 {
					t.Logf("the first failure: %v", err)
				}
				time.Sleep(20 * time.Millisecond)
			}
			slice, recs = slice[n:], recs[n:]
		}
	}
	return failed
}

// TestOneBroker runs what one plain broker suffices for: starting one takes longer than any of these.
func TestOneBroker(t *testing.T) {
	c := broker.Start(t, broker.Options{})
	t.Run("delivery", func(t *testing.T) { testDelivery(t, c) })
	t.Run("codecs", func(t *testing.T) { testCodecs(t, c) })
	t.Run("partitioner", func(t *testing.T) { testPartitioner(t, c) })
	t.Run("topic limits", func(t *testing.T) { testTopicLimits(t, c) })
}

func testDelivery(t *testing.T, c *broker.Cluster) {
	c.CreateTopic(t, "flows", 12, 1)
	recs := records(200_000)
	w := newWriter(t, c.Addrs, "flows", nil)
	failed := write(t, w, recs) // not at all, if the broker is not short of CPU
	msgs := consume(t, c, "flows")
	if d := check(t, msgs, recs); d != 0 && failed == 0 {
		t.Errorf("%d duplicates", d)
	}
	schema, err := jsonschema.NewCompiler().Compile("../../docs/flow.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range msgs[:1000] {
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(m.value))
		if err == nil {
			err = schema.Validate(value)
		}
		if err != nil || m.headers != "v=1,host=fw1" {
			t.Fatalf("headers %q, value %s: %v", m.headers, m.value, err)
		}
	}
}

func testCodecs(t *testing.T, c *broker.Cluster) {
	recs := records(20_000)
	for _, name := range Compressions {
		t.Run(name, func(t *testing.T) {
			c.CreateTopic(t, "codec-"+name, 3, 1)
			w := newWriter(t, c.Addrs, "codec-"+name, func(c *Config) { c.Compression = name })
			failed := write(t, w, recs)
			if d := check(t, consume(t, c, "codec-"+name), recs); d != 0 && failed == 0 {
				t.Errorf("%d duplicates", d)
			}
			size := w.Stats.Bytes.Load() / uint64(len(recs))
			if name == "none" && size < 500 || name != "none" && size > 300 {
				t.Errorf("%d bytes a record", size)
			}
		})
	}
}

// testPartitioner: other producers put the same key into the same partition. kcat asks for what librdkafka has of the
// Java client's partitioner.
func testPartitioner(t *testing.T, c *broker.Cluster) {
	c.CreateTopic(t, "ours", 12, 1)
	c.CreateTopic(t, "theirs", 12, 1)
	recs := records(2000)
	write(t, newWriter(t, c.Addrs, "ours", nil), recs)
	var keys strings.Builder
	for _, r := range recs {
		keys.WriteString(r.Orig.SrcAddr().String() + "\tx\n")
	}
	c.Produce(t, "theirs", keys.String(), "-K", "\t", "-X", "topic.partitioner=murmur2")
	of := func(topic string) map[string]int {
		m := map[string]int{}
		for _, msg := range consume(t, c, topic) {
			m[msg.key] = msg.partition
		}
		return m
	}
	if diff := cmp.Diff(of("theirs"), of("ours")); diff != "" {
		t.Errorf("-theirs +ours\n%s", diff)
	}
}

// load writes records at about a rate a second from a goroutine of its own, as the worker does, until stop is called,
// which returns what was written and how often Write failed.
func load(t *testing.T, w *Writer, rate int) (stop func() (recs []*flow.Record, failed int)) {
	var (
		g       = newGenerator()
		recs    []*flow.Record
		failed  int
		ending  = make(chan struct{})
		stopped = make(chan struct{})
	)
	go func() {
		defer close(stopped)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ending:
				return
			case <-tick.C:
			}
			next := g.next(rate / 20)
			recs = append(recs, next...)
			failed += write(t, w, next)
		}
	}()
	return func() ([]*flow.Record, int) {
		close(ending)
		<-stopped
		return recs, failed
	}
}

// progress waits until w has got a second's load through since it was called.
func progress(t *testing.T, w *Writer) {
	t.Helper()
	before := w.Stats.Records.Load()
	for w.Stats.Records.Load() < before+20_000 {
		if t.Context().Err() != nil {
			t.Fatal("nothing gets through")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kills is how often brokers are killed: three times with CTLOGD_LONG=1. The daemon's own trial of brokers that are killed is
// in package integration.
func kills(usual int) int {
	if os.Getenv("CTLOGD_LONG") != "" {
		return 3
	}
	return usual
}

// TestBrokerKilled: the only broker is killed and started again, under load. Nothing is missing.
func TestBrokerKilled(t *testing.T) {
	c := broker.Start(t, broker.Options{})
	c.CreateTopic(t, "flows", 6, 1)
	w := newWriter(t, c.Addrs, "flows", nil)
	stop := load(t, w, 20_000)
	for range kills(2) {
		progress(t, w)
		c.Kill(t, 0)
		c.Restart(t, 0)
	}
	progress(t, w)
	recs, failed := stop()
	duplicates := check(t, consume(t, c, "flows"), recs)
	t.Logf("%d records, Write failed %d times, %d duplicates, errors %v", len(recs), failed, duplicates, errorsOf(w))
	if failed == 0 {
		t.Error("the broker was killed, and Write never failed")
	}
	if max := w.Stats.Retries.Load(); uint64(duplicates) > max {
		t.Errorf("%d duplicates, but only %d records were sent again", duplicates, max)
	}
}

// TestBrokersKilled: three brokers, replication 3, min.insync.replicas 2, killed and started again in turn.
func TestBrokersKilled(t *testing.T) {
	c := broker.Start(t, broker.Options{Nodes: 3})
	c.CreateTopic(t, "flows", 6, 3, "min.insync.replicas", "2")
	w := newWriter(t, c.Addrs, "flows", func(c *Config) { c.RequestTimeout = 10 * time.Second })
	stop := load(t, w, 20_000)
	for i := range kills(1) {
		progress(t, w)
		c.Kill(t, i)
		progress(t, w) // the other two take over
		c.Restart(t, i)
		c.AwaitISR(t, "flows", 3)
	}
	recs, failed := stop()
	duplicates := check(t, consume(t, c, "flows"), recs)
	t.Logf("%d records, Write failed %d times, %d duplicates, errors %v", len(recs), failed, duplicates, errorsOf(w))
	if max := w.Stats.Retries.Load(); uint64(duplicates) > max {
		t.Errorf("%d duplicates, but only %d records were sent again", duplicates, max)
	}
}

// attempt is one Write, but for what a broker that is short of CPU may answer at any time.
func attempt(t *testing.T, w *Writer, recs []*flow.Record) (n int, err error) {
	t.Helper()
	for t.Context().Err() == nil {
		n, err = w.Write(t.Context(), recs)
		var e *Error
		if !errors.As(err, &e) || e.Class != ClassLeader && e.Class != ClassReplicas && e.Class != ClassTimeout {
			return n, err
		}
		t.Logf("once more: %v", err)
		time.Sleep(100 * time.Millisecond)
	}
	return n, err
}

// wantError checks that nothing was delivered, and why.
func wantError(t *testing.T, n int, err error, class Class, want string) {
	t.Helper()
	var e *Error
	if n != 0 || !errors.As(err, &e) || e.Class != class || err.Error() != want {
		t.Errorf("%d delivered, error %v\nwant %s", n, err, want)
	}
}

// testTopicLimits: what a real broker refuses, and what becomes of it.
func testTopicLimits(t *testing.T, c *broker.Cluster) {
	recs := records(5000)

	t.Run("small messages only", func(t *testing.T) {
		c.CreateTopic(t, "small", 2, 1, "max.message.bytes", "20000")
		w := newWriter(t, c.Addrs, "small", func(c *Config) { c.Compression = "none" })
		failed := write(t, w, recs)
		if d := check(t, consume(t, c, "small"), recs); d != 0 && failed == 0 {
			t.Errorf("%d duplicates", d)
		}
		if errorsOf(w)["too_large"] == 0 {
			t.Error("nothing was too large")
		}
	})
	t.Run("too small for any", func(t *testing.T) {
		c.CreateTopic(t, "tiny", 1, 1, "max.message.bytes", "100")
		w := newWriter(t, c.Addrs, "tiny", nil)
		n, err := attempt(t, w, recs[:3])
		var r interface{ Rejected() int }
		if n != 0 || !errors.As(err, &r) || r.Rejected() != 3 || !errors.Is(err, kafka.MessageSizeTooLarge) {
			t.Errorf("%d, %v", n, err)
		}
	})
	t.Run("compacted, without key", func(t *testing.T) {
		c.CreateTopic(t, "compacted", 1, 1, "cleanup.policy", "compact")
		w := newWriter(t, c.Addrs, "compacted", func(c *Config) { c.Key = KeyNone })
		n, err := attempt(t, w, recs[:100])
		var r interface{ Rejected() int }
		if n != 0 || !errors.As(err, &r) || r.Rejected() != 100 || !errors.Is(err, kafka.InvalidRecord) {
			t.Errorf("%d, %v", n, err)
		}
	})
	t.Run("old timestamps", func(t *testing.T) {
		c.CreateTopic(t, "recent", 2, 1, "message.timestamp.before.max.ms", "3600000")
		w := newWriter(t, c.Addrs, "recent", nil)
		start := time.Now().UnixMilli()
		mixed := slices.Clone(recs[:1000])
		fresh := *mixed[500]
		fresh.Stop = time.Now().Add(-time.Minute).UnixNano()
		fresh.Start = fresh.Stop - 1e9
		mixed[500] = &fresh
		write(t, w, mixed)
		msgs := consume(t, c, "recent")
		check(t, msgs, mixed)
		kept := 0
		for _, m := range msgs {
			if m.time == fresh.Stop/1e6 {
				kept++
			} else if m.time < start {
				t.Fatalf("time %d of %s", m.time, m.value)
			}
		}
		if kept != 1 {
			t.Errorf("%d kept their own time", kept)
		}
		if n := w.Stats.Clamped.Load(); n != 999 {
			t.Errorf("%d clamped", n)
		}
	})
	t.Run("no clock is right", func(t *testing.T) {
		c.CreateTopic(t, "never", 1, 1, "message.timestamp.before.max.ms", "0", "message.timestamp.after.max.ms", "0")
		w := newWriter(t, c.Addrs, "never", nil)
		// The broker takes what it gets in the very millisecond of its stamp: such messages keep it.
		start := time.Now().UnixMilli()
		var sent []*flow.Record
		for errorsOf(w)["timestamp"] == 0 {
			more := recs[len(sent) : len(sent)+100]
			write(t, w, more)
			sent = recs[:len(sent)+100]
		}
		end := time.Now().UnixMilli()
		for _, m := range consume(t, c, "never") {
			if m.time != -1 && (m.time < start || m.time > end) {
				t.Fatalf("time %d", m.time)
			}
		}
	})
	t.Run("missing", func(t *testing.T) {
		w := newWriter(t, c.Addrs, "missing", nil)
		n, err := attempt(t, w, recs[:10])
		wantError(t, n, err, ClassTopic,
			w.Name()+": "+kafka.UnknownTopicOrPartition.Error()+"; create the topic, or set create_topic")

		w = newWriter(t, c.Addrs, "missing", func(c *Config) {
			c.CreateTopic = &CreateTopic{Partitions: 7, Replication: 1}
		})
		write(t, w, recs)
		check(t, consume(t, c, "missing"), recs)
		if len(w.parts) != 7 {
			t.Errorf("%d partitions", len(w.parts))
		}
	})
	t.Run("cannot be created", func(t *testing.T) {
		w := newWriter(t, c.Addrs, "missing2", func(c *Config) {
			c.CreateTopic = &CreateTopic{Partitions: 1, Replication: 3}
		})
		n, err := attempt(t, w, recs[:10])
		wantError(t, n, err, ClassOther, w.Name()+": create topic: "+kafka.InvalidReplicationFactor.Error()+
			": Unable to replicate the partition 3 time(s): The target replication factor of 3 cannot be reached because "+
			"only 1 broker(s) are registered.")
	})
}

func TestSecurity(t *testing.T) {
	c := broker.Start(t, broker.Options{Secure: true})
	recs := records(5000)
	t.Setenv("CTLOGD_TEST_PASSWORD", broker.Password)
	t.Setenv("CTLOGD_TEST_ADMIN", broker.AdminPassword)
	t.Setenv("CTLOGD_TEST_WRONG", "wrong-horse")
	sasl := func(mechanism, user, env string) *SASL {
		return &SASL{Mechanism: mechanism, Username: user, PasswordEnv: env}
	}
	ca := &TLS{CA: c.CA}
	port := func(addr string) []string { return []string{"localhost" + strings.TrimPrefix(addr, "127.0.0.1")} }

	for _, m := range Mechanisms {
		t.Run(m, func(t *testing.T) {
			topic := "sasl-" + m
			c.CreateTopic(t, topic, 3, 1)
			w := newWriter(t, port(c.SASL[0]), topic, func(cfg *Config) {
				cfg.TLS, cfg.SASL = ca, sasl(m, broker.Admin, "CTLOGD_TEST_ADMIN")
			})
			write(t, w, recs)
			check(t, consume(t, c, topic), recs)
		})
		t.Run(m+", wrong password", func(t *testing.T) {
			w := newWriter(t, c.SASL, "flows", func(cfg *Config) {
				cfg.TLS, cfg.SASL = ca, sasl(m, broker.User, "CTLOGD_TEST_WRONG")
			})
			n, err := attempt(t, w, recs[:10])
			reason := "Authentication failed during authentication due to invalid credentials with SASL mechanism " + m
			if m == "PLAIN" {
				reason = "Authentication failed: Invalid username or password"
			}
			wantError(t, n, err, ClassAuthentication, w.Name()+": "+kafka.SASLAuthenticationFailed.Error()+": "+reason+
				"; check sasl.mechanism, sasl.username and the password")
		})
	}
	t.Run("authorization", func(t *testing.T) {
		c.CreateTopic(t, "private", 3, 1)
		w := newWriter(t, c.SASL, "private", func(cfg *Config) {
			cfg.TLS, cfg.SASL = ca, sasl("SCRAM-SHA-512", broker.User, "CTLOGD_TEST_PASSWORD")
		})
		want := kafka.TopicAuthorizationFailed.Error() + "; grant the user Write and Describe on the topic"
		n, err := attempt(t, w, recs[:1])
		wantError(t, n, err, ClassAuthorization, w.Name()+": "+want)

		c.Allow(t, broker.User, "private", kafka.ACLOperationTypeDescribe)
		for {
			n, err = attempt(t, w, recs[:1])
			if e := new(Error); errors.As(err, &e) && e.Partition < 0 {
				time.Sleep(20 * time.Millisecond)
				continue // the grant is not known everywhere yet
			}
			break
		}
		p := w.parts[slices.IndexFunc(w.parts, func(p partition) bool { return len(p.idx) > 0 })].id
		wantError(t, n, err, ClassAuthorization, w.Name()+" partition "+strconv.Itoa(int(p))+": "+want)

		c.Allow(t, broker.User, "private", kafka.ACLOperationTypeWrite)
		write(t, w, recs)
		check(t, consume(t, c, "private"), recs)
	})
	t.Run("client certificate", func(t *testing.T) {
		c.CreateTopic(t, "mtls", 3, 1)
		w := newWriter(t, c.MTLS, "mtls", func(cfg *Config) { cfg.TLS = &TLS{CA: c.CA, Cert: c.Cert, Key: c.Key} })
		write(t, w, recs)
		check(t, consume(t, c, "mtls"), recs)
	})
	const tlsHint = "; check tls.ca, tls.cert, tls.server_name and that the port speaks TLS"
	for _, tc := range []struct {
		name, addr string
		tls        *TLS
		class      Class
		want       string
	}{
		{"wrong CA", c.SASL[0], &TLS{CA: c.Other}, ClassTLS,
			"tls: failed to verify certificate: x509: certificate signed by unknown authority" + tlsHint},
		{"wrong server name", c.SASL[0], &TLS{CA: c.CA, ServerName: "kafka.example.net"}, ClassTLS,
			"tls: failed to verify certificate: x509: certificate is valid for localhost, collector.example, not kafka.example.net" + tlsHint},
		{"no client certificate", c.MTLS[0], ca, ClassTLS, "remote error: tls: bad certificate" + tlsHint},
		{"TLS to a plain port", c.Addrs[0], ca, ClassConnection,
			"the broker closed the connection (EOF); does the port speak TLS?"},
		{"plain to a TLS port", c.MTLS[0], nil, ClassConnection,
			"the port speaks TLS; set tls"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWriter(t, []string{tc.addr}, "flows", func(cfg *Config) { cfg.TLS = tc.tls })
			n, err := attempt(t, w, recs[:10])
			wantError(t, n, err, tc.class, w.Name()+": "+tc.want)
		})
	}
}

// TestIdleClose: a broker that closes idle connections costs a quiet firewall nothing; and what a real broker says of a
// new topic, and of one that is compacted.
func TestIdleClose(t *testing.T) {
	c := broker.Start(t, broker.Options{Config: map[string]string{"connections.max.idle.ms": "1000"}})
	w := newWriter(t, c.Addrs, "made", func(c *Config) { c.CreateTopic = &CreateTopic{Partitions: 3, Replication: 1} })
	recs := records(300)
	for i := range 3 {
		part := recs[100*i : 100*i+100]
		if n, err := w.Write(t.Context(), part); n != len(part) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		closed := func() bool {
			w.conns.mu.Lock()
			defer w.conns.mu.Unlock()
			for conn := range w.conns.open {
				raw, err := conn.raw.(*net.TCPConn).SyscallConn()
				if err != nil {
					return true
				}
				open := false
				_ = raw.Control(func(fd uintptr) {
					n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
					open = err == unix.EAGAIN || n > 0
				})
				if !open {
					return true
				}
			}
			return false
		}
		for end := time.Now().Add(time.Minute); !closed(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the broker closes no idle connection")
			}
		}
	}
	if e := errorsOf(w); len(e) != 0 {
		t.Errorf("errors %v", e)
	}
	if d := check(t, consume(t, c, "made"), recs); d != 0 {
		t.Errorf("%d duplicates", d)
	}

	c.CreateTopic(t, "compacted", 1, 1, "cleanup.policy", "compact")
	for topic, want := range map[string]string{"made": "", "compacted": "the topic is compacted (cleanup.policy=compact)"} {
		_, err := Config{Brokers: c.Addrs, Topic: topic}.Reach(t.Context())
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("Reach %s: %v, want %q", topic, err, want)
		}
	}
}

// TestAdvertised: a broker whose advertised.listeners is a name that does not resolve here.
func TestAdvertised(t *testing.T) {
	c := broker.Start(t, broker.Options{Config: map[string]string{"advertised.listeners": "PLAIN://kafka-0.invalid:9092"}})
	_, err := Config{Brokers: c.Addrs, Topic: "flows", CreateTopic: &CreateTopic{Partitions: 1, Replication: 1}}.Reach(t.Context())
	if err == nil || !strings.Contains(err.Error(), "kafka-0.invalid:9092") || !strings.Contains(err.Error(), "; set their advertised.listeners") {
		t.Errorf("Reach: %v", err)
	}
}
