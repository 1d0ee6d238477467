package kafka

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
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
			for what, got := range map[string]struct {
				err  error
				want string
			}{
				"Check": {tt.config.Check(t.Context()), tt.check}, "Reach": {tt.config.Reach(t.Context()), tt.reach},
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
