package kafka

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kafka "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/ctlogd/ctlogd/output/certfile/certtest"
)

func TestCheckAndReach(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "flows"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	up := cluster.ListenAddrs()[0]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	down := l.Addr().String()
	letters := filepath.Join(t.TempDir(), "letters")
	if err := os.WriteFile(letters, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		name         string
		config       Config
		check, reach string // parts of the errors; "" for none
	}{
		{"up", Config{Brokers: []string{up}, Topic: "flows"}, "", ""},
		{"one of two", Config{Brokers: []string{down, up}, Topic: "flows"}, "", ""},
		{"down", Config{Brokers: []string{down}, Topic: "flows"}, "", "connection refused"},
		{"no topic", Config{Brokers: []string{up}, Topic: "none"}, "", "; create the topic, or set create_topic"},
		{"topic to be created", Config{Brokers: []string{up}, Topic: "none", CreateTopic: &CreateTopic{1, 1}}, "", ""},
		{"name", Config{Brokers: []string{up, "broker.invalid:9092"}, Topic: "flows"},
			"broker broker.invalid:9092: lookup broker.invalid", ""},
		{"dead letters", Config{Brokers: []string{up}, Topic: "flows", DeadLetter: letters}, "", ""},
		{"new dead letters", Config{Brokers: []string{up}, Topic: "flows", DeadLetter: letters + "2"}, "", ""},
		{"dead letters nowhere", Config{Brokers: []string{up}, Topic: "flows", DeadLetter: "/nonexistent/letters"},
			"dead_letter /nonexistent/letters: no such file or directory; make the directory ", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, reach := tt.config.Reach(t.Context())
			for what, got := range map[string]struct {
				err  error
				want string
			}{
				"Check": {tt.config.Check(t.Context()), tt.check}, "Reach": {reach, tt.reach},
			} {
				switch {
				case got.want == "" && got.err != nil:
					t.Errorf("%s: %v", what, got.err)
				case got.want != "" && (got.err == nil || !strings.Contains(got.err.Error(), got.want)):
					t.Errorf("%s: %v, want %q", what, got.err, got.want)
				}
			}
		})
	}
}

// Reach tells until when the broker's certificate holds.
func TestReachCertificate(t *testing.T) {
	authority := certtest.New(t)
	pair, _, _ := authority.Pair(t, "server", time.Hour)
	expires := pair.Leaf.NotAfter
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "flows"),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	got, err := Config{Brokers: cluster.ListenAddrs(), Topic: "flows", TLS: &TLS{CA: certtest.Write(t, "ca.pem", authority.PEM)}}.Reach(t.Context())
	if err != nil || !got.Equal(expires) {
		t.Errorf("got %v, %v, want %v", got, err, expires)
	}
}

// TestReachAdvertised: the brokers answer, and name themselves by what does not resolve, or leads nowhere.
func TestReachAdvertised(t *testing.T) {
	for host, want := range map[string]string{
		"kafka-0.invalid": "name addresses that cannot be reached from here: broker 0 as kafka-0.invalid:9092: dial tcp: lookup kafka-0.invalid",
		"":                "",
	} {
		f := newFake(t, 1, ok)
		if host != "" {
			f.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
				f.KeepControl()
				res := r.ResponseKind().(*kmsg.MetadataResponse)
				res.ControllerID = 0
				res.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 0, Host: host, Port: 9092}}
				topic := "flows"
				res.Topics = []kmsg.MetadataResponseTopic{{Topic: &topic,
					Partitions: []kmsg.MetadataResponseTopicPartition{{Replicas: []int32{0}, ISR: []int32{0}}}}}
				return res, nil, true
			})
		}
		c := Config{Brokers: f.ListenAddrs(), Topic: "flows", ConnectTimeout: 2 * time.Second}
		_, err := c.Reach(t.Context())
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), "; set their advertised.listeners")) {
			t.Errorf("Reach: %v, want %q", err, want)
		}
		if host == "" {
			continue
		}
		w := newWriter(t, f.ListenAddrs(), "flows", nil)
		n, err := w.Write(t.Context(), records(1))
		if n != 0 || err == nil || !strings.Contains(err.Error(), "; the brokers name it: set their advertised.listeners") {
			t.Errorf("Write = %d, %v", n, err)
		}
	}
}

// TestReachCompacted: a topic that keeps only the last record of each key is no place for a log.
func TestReachCompacted(t *testing.T) {
	f := newFake(t, 1, ok)
	client := kafka.Client{Addr: kafka.TCP(f.ListenAddrs()...)}
	res, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: "compacted",
		NumPartitions: 1, ReplicationFactor: 1, ConfigEntries: []kafka.ConfigEntry{{ConfigName: "cleanup.policy", ConfigValue: "compact"}}}}})
	if err != nil || res.Errors["compacted"] != nil {
		t.Fatal(res, err)
	}
	_, err = Config{Brokers: f.ListenAddrs(), Topic: "compacted"}.Reach(t.Context())
	if err == nil || !strings.Contains(err.Error(), "the topic is compacted (cleanup.policy=compact)") ||
		!strings.Contains(err.Error(), "; set cleanup.policy=delete for it") {
		t.Errorf("Reach: %v", err)
	}
}

// TestCreatedTopicSettles: the brokers need a moment to know a topic that was created. That is no error.
func TestCreatedTopicSettles(t *testing.T) {
	answers := 0
	f := newFake(t, 1, func(int32, []got) reply {
		if answers++; answers < 3 {
			return reply{code: kafka.UnknownTopicOrPartition}
		}
		return reply{}
	})
	w := newWriter(t, f.ListenAddrs(), "made", func(c *Config) {
		c.Compression, c.CreateTopic = "none", &CreateTopic{Partitions: 1, Replication: 1}
	})
	recs := records(10)
	if n, err := w.Write(t.Context(), recs); n != len(recs) || err != nil {
		t.Errorf("Write = %d, %v", n, err)
	}
	if e := errorsOf(w); len(e) != 0 || answers < 3 {
		t.Errorf("%d answers, errors %v", answers, e)
	}
}

// TestIdleConnection: what the other side closes while nothing is sent is opened anew, and that is no error.
func TestIdleConnection(t *testing.T) {
	f := newFake(t, 2, ok)
	w := f.writer(t, nil)
	recs := records(30)
	for i := range 3 {
		if n, err := w.Write(t.Context(), recs[10*i:10*i+10]); n != 10 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		w.conns.mu.Lock()
		for conn := range w.conns.open {
			_ = conn.raw.(*net.TCPConn).CloseWrite() // which the broker answers by closing
			_ = conn.raw.(*net.TCPConn).CloseRead()
		}
		w.conns.mu.Unlock()
		w.cluster.used = w.cluster.used.Add(-idleFor)
	}
	if diff := cmp.Diff(values(t, recs), f.all()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if e := errorsOf(w); len(e) != 0 {
		t.Errorf("errors %v", e)
	}
	// A broker that is gone is told of, however idle the connections were.
	f.Close()
	w.cluster.used = w.cluster.used.Add(-idleFor)
	var e *Error
	if n, err := w.Write(t.Context(), recs[:1]); n != 0 || !errors.As(err, &e) || e.Class != ClassConnection {
		t.Errorf("Write = %d, %v", n, err)
	}
	if diff := cmp.Diff(map[string]uint64{"connection": 1}, errorsOf(w)); diff != "" {
		t.Error(diff)
	}
}
