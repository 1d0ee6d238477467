//go:build integration

package kafka

import (
	"bytes"
	"encoding/hex"
	"strconv"
	"strings"
	"testing"

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

func TestDelivery(t *testing.T) {
	c := broker.Start(t, broker.Options{})
	c.CreateTopic(t, "flows", 12, 1)
	recs := records(200_000)
	w := newWriter(t, c.Addrs, "flows", nil)
	if n := write(t, w, recs); n != 0 {
		t.Errorf("Write failed %d times", n)
	}
	msgs := consume(t, c, "flows")
	if d := check(t, msgs, recs); d != 0 {
		t.Errorf("%d duplicates", d)
	}
	if m := msgs[0]; m.headers != "v=1,host=fw1" {
		t.Errorf("headers %q", m.headers)
	}
}
