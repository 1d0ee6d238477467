//go:build integration

package clickhouse

import (
	"os"
	"testing"

	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/integration/broker"
	"github.com/ctlogd/ctlogd/integration/engines"
)

// TestKafkaEngine: the engine Kafka takes what ctlogd's records are from a real broker, each once from all partitions, and what it
// cannot read with its error.
func TestKafkaEngine(t *testing.T) {
	if os.Getenv("CTLOGD_LONG") == "" {
		t.Skip("takes a minute, a broker and a ClickHouse of its own: CTLOGD_LONG=1")
	}
	lib, err := engines.KafkaEngine()
	if err != nil {
		t.Fatal(err)
	}
	c := broker.Start(t, broker.Options{})
	const topic = "ctlogd-flows"
	c.CreateTopic(t, topic, 4, 1)
	path := lines(t, append(scene(2000), trace.Kinds(3000)...))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c.Produce(t, topic, string(text)+"no JSON\n"+`{"v":2,"event":"destroy","time":"2026-03-09T12:00:00Z"}`+"\n")
	t.Setenv("PYTHONPATH", lib)
	judge(t, 4, "judge_kafka.py", path, c.Addrs[0], topic)
}
