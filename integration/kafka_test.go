//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/ctlogd/ctlogd/integration/broker"
	"github.com/ctlogd/ctlogd/integration/lab"
)

const kafkaTopic, kafkaPartitions = "flows", 12

// kafkaQueue is less than what comes while a broker is down.
var kafkaQueue = scale(16_384, 65_536)

// startKafkaDaemon runs ctlogd with a file of JSON lines and a topic of c, which has a spool, as its outputs.
func startKafkaDaemon(t *testing.T, ns *lab.NS, c *broker.Cluster) *daemon {
	t.Helper()
	dir := t.TempDir()
	d := &daemon{file: filepath.Join(dir, "flows.jsonl")}
	// A broker and a flood beside it leave two processors no time for the file either, at times.
	text := fmt.Sprintf(`input:
  conntrack: {delivery: reliable}
outputs:
  jsonl: [{path: %s, spool: {path: %s}}]
  kafka: [{brokers: [%s], topic: %s, request_timeout: 10s, queue: %d, spool: {path: %s}}]
`, d.file, filepath.Join(dir, "behind"), strings.Join(c.Addrs, ", "), kafkaTopic, kafkaQueue, filepath.Join(dir, "spool"))
	conf := filepath.Join(dir, "ctlogd.yaml")
	must(t, os.WriteFile(conf, []byte(text), 0o644))
	cmd := exec.Command(buildDaemon(t, false), "run", "-c", conf)
	cmd.Stdout = os.Stdout
	d.process = start(t, ns, cmd)
	d.awaitMember(t, lab.GroupDestroy)
	return d
}

// awaitTopic waits until at least n messages are on the topic and no more come, which lie in the queue or the spool.
func (d *daemon) awaitTopic(t *testing.T, c *broker.Cluster, n int) {
	t.Helper()
	for last, since := -1, time.Now(); ; time.Sleep(200 * time.Millisecond) {
		now, err := c.Messages(t, kafkaTopic, kafkaPartitions)
		if d.ended() {
			t.Fatalf("%s has ended: %v", d.Path, d.err)
		}
		if err == nil && now != last {
			last, since = now, time.Now()
		}
		quiet := time.Since(since)
		if last >= n && quiet > 2*time.Second {
			return
		}
		if quiet > time.Minute {
			t.Errorf("%d messages of %d are on the topic, and no more come (%v)", last, n, err)
			return
		}
	}
}

// checkTopic reads the topic with kcat and holds it to the file, which checkLedger has held to what happened: every
// line of it is there, byte for byte, and nothing else; all lines of one subscriber are in one partition and, but for
// repetitions, in the order in which the file has them, which is that of reading. It returns how many are repeated.
func checkTopic(t *testing.T, c *broker.Cluster, file string, n int) (again int) {
	t.Helper()
	seed := maphash.MakeSeed()
	lines, place := make([]uint64, n), make([]int32, n) // by flow: its line's hash, and the line's number
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	scanner := bufio.NewScanner(f)
	for at := int32(0); scanner.Scan(); at++ {
		if i, ok := flowOf(scanner.Bytes()); ok && i < n {
			lines[i], place[i] = maphash.Bytes(seed, scanner.Bytes()), at
		}
	}
	must(t, scanner.Err())

	r, w := io.Pipe()
	go func() {
		w.CloseWithError(c.ConsumeTo(t, kafkaTopic, "%p %k %s", w))
	}()
	type subscriber struct {
		partition string
		place     int32 // of the line last seen
	}
	subscribers := map[string]*subscriber{}
	ids := make(map[[16]byte]struct{}, n)
	seen := make([]bool, n)
	var foreign, wrongKey, torn, disorder int
	complain := func(count *int, what string, line []byte) {
		if *count++; *count <= 3 {
			t.Errorf("%s: %s", what, line)
		}
	}
	scanner = bufio.NewScanner(r)
	for scanner.Scan() {
		partition, rest, _ := bytes.Cut(scanner.Bytes(), []byte(" "))
		key, value, _ := bytes.Cut(rest, []byte(" "))
		i, ok := flowOf(value)
		if !ok || i >= n || maphash.Bytes(seed, value) != lines[i] {
			complain(&foreign, "the file has no such line", value)
			continue
		}
		if src := lab.FlowAt(i).Src.String(); string(key) != src {
			complain(&wrongKey, "the key is not the subscriber's address, "+src, scanner.Bytes())
		}
		s := subscribers[string(key)]
		if s == nil {
			s = &subscriber{partition: string(partition), place: -1}
			subscribers[string(key)] = s
		}
		if s.partition != string(partition) {
			complain(&torn, "the subscriber is in partition "+s.partition+" as well", scanner.Bytes())
		}
		if seen[i] {
			again++
			continue
		}
		seen[i] = true
		if place[i] < s.place {
			complain(&disorder, "out of order", scanner.Bytes())
		}
		s.place = place[i]
		var id [16]byte
		if _, err := hex.Decode(id[:], field(value, "flow_id")); err != nil {
			t.Fatalf("malformed flow_id: %s", value)
		}
		ids[id] = struct{}{}
	}
	must(t, scanner.Err())
	missing := 0
	for _, ok := range seen {
		if !ok {
			missing++
		}
	}
	if missing+foreign+wrongKey+torn+disorder != 0 || len(ids) != n {
		t.Errorf("of %d flows %d are missing on the topic, %d flow_ids; messages: %d foreign, %d with a wrong key, "+
			"%d in a second partition, %d out of order", n, missing, len(ids), foreign, wrongKey, torn, disorder)
	}
	t.Logf("the topic has %d distinct flow_ids of %d, of %d subscribers, and %d messages twice (%.2f %%)",
		len(ids), n, len(subscribers), again, 100*float64(again)/float64(n))
	return again
}

// flowOf returns the number of the flood's flow that a record tells of.
func flowOf(line []byte) (i int, ok bool) {
	addr, err := netip.ParseAddr(string(field(line, "nat_src_ip")))
	port, err2 := strconv.ParseUint(string(field(line, "nat_src_port")), 10, 16)
	if err != nil || err2 != nil {
		return 0, false
	}
	return lab.FlowNumber(addr, uint16(port))
}

// field returns the value of a key of a flat record, without quotes. It is much quicker than encoding/json, and enough
// for records that are held to others.
func field(line []byte, key string) []byte {
	_, rest, _ := bytes.Cut(line, []byte(`"`+key+`":`))
	end := bytes.IndexAny(rest, ",}")
	return bytes.Trim(rest[:max(end, 0)], `"`)
}

func (d *daemon) checkMemory(t *testing.T) {
	t.Helper()
	peak := d.peakMemory(t)
	t.Logf("peak memory: %.1f MiB", float64(peak)/(1<<20))
	if peak > memoryBudget {
		t.Errorf("want at most %d MiB", memoryBudget>>20)
	}
}

// TestKafkaMany has many flows flushed, which is faster than a topic takes them: the spool takes the rest.
func TestKafkaMany(t *testing.T) {
	need(t)
	n := many
	room(t, 2*n)
	ns, f := newFloodNS(t)
	c := broker.Start(t, broker.Options{NS: ns})
	c.CreateTopic(t, kafkaTopic, kafkaPartitions, 1)
	must(t, f.Create(0, n))
	d := startKafkaDaemon(t, ns, c)
	clock := time.Now()
	must(t, f.Flush())
	t.Logf("flushed at %.0f flows a second", float64(n)/time.Since(clock).Seconds())
	d.awaitTopic(t, c, n)
	d.checkMemory(t)
	d.stop(t)
	checkLedger(t, d.file, n)
	again := checkTopic(t, c, d.file, n)
	if again != 0 && !strings.Contains(d.stderr.String(), "write to output") { // as a broker that is starved makes it fail
		t.Errorf("%d messages are there twice, and nothing failed", again)
	}
	checkMessages(t, c)
}

// checkMessages holds what kcat shows to the schema that is published with the format.
func checkMessages(t *testing.T, c *broker.Cluster) {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schema, err := compiler.Compile("../docs/flow.schema.json")
	must(t, err)
	host, err := os.Hostname()
	must(t, err)
	var head bytes.Buffer
	must(t, c.ConsumeTo(t, kafkaTopic, "%h %s", &head, "-c", "1000"))
	lines := slices.Collect(bytes.Lines(head.Bytes()))
	if len(lines) != 1000 {
		t.Errorf("kcat shows %d messages, want 1000", len(lines))
	}
	for _, line := range lines {
		headers, value, _ := bytes.Cut(line, []byte(" "))
		if want := "v=1,host=" + host; string(headers) != want {
			t.Fatalf("headers %q, want %q", headers, want)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(value))
		must(t, err)
		if err := schema.Validate(v); err != nil {
			t.Fatalf("%s\n%v", value, err)
		}
	}
	t.Logf("the schema accepts what kcat shows: %s", lines[0])
}

// churn creates and deletes flows, about rate a second, until stop is called, which returns how many.
func churn(t *testing.T, f *lab.Flood, rate int) (stop func() int) {
	var (
		n       int
		err     error
		ending  = make(chan struct{})
		stopped = make(chan struct{})
	)
	go func() {
		defer close(stopped)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for err == nil {
			select {
			case <-ending:
				return
			case <-tick.C:
			}
			err = f.Churn(n, n+rate/20)
			n += rate / 20
		}
	}()
	return func() int {
		close(ending)
		<-stopped
		must(t, err)
		return n
	}
}

// progress waits until n more messages have arrived on the topic.
func (d *daemon) progress(t *testing.T, c *broker.Cluster, n int) {
	t.Helper()
	first := -1
	eventually(t, "the topic grows", func() bool {
		if d.ended() {
			t.Fatalf("%s has ended: %v", d.Path, d.err)
		}
		now, err := c.Messages(t, kafkaTopic, kafkaPartitions)
		if err == nil && first < 0 {
			first = now
		}
		return err == nil && now >= first+n
	})
}

// TestKafkaBrokersKilled kills brokers, as kill -9 does, and starts them again while flows come and go: nothing may be
// missing, and the daemon must not grow.
func TestKafkaBrokersKilled(t *testing.T) {
	rate := scale(5_000, 20_000)
	for _, tt := range []struct {
		name               string
		brokers, minInSync int
		kills, longKills   int
		down               time.Duration
	}{
		// The only broker, each time for long enough that the queue does not suffice.
		{"one broker", 1, 1, 2, 3, 4 * time.Second},
		// One of three, in turn, of which two go on.
		{"three brokers", 3, 2, 1, 3, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			need(t)
			ns, f := newFloodNS(t)
			c := broker.Start(t, broker.Options{Nodes: tt.brokers, NS: ns})
			c.CreateTopic(t, kafkaTopic, kafkaPartitions, tt.brokers, "min.insync.replicas", strconv.Itoa(tt.minInSync))
			d := startKafkaDaemon(t, ns, c)
			kills := scale(tt.kills, tt.longKills)
			stop := churn(t, f, rate)
			for i := range kills {
				d.progress(t, c, rate)
				c.Kill(t, i%tt.brokers)
				if tt.brokers > 1 {
					d.progress(t, c, rate) // the others take over
				}
				time.Sleep(tt.down)
				c.Restart(t, i%tt.brokers)
				c.AwaitISR(t, kafkaTopic, tt.brokers)
			}
			d.progress(t, c, rate)
			n := stop()
			t.Logf("%d flows", n)
			d.awaitTopic(t, c, n)
			d.checkMemory(t)
			d.stop(t)
			checkLedger(t, d.file, n)
			checkTopic(t, c, d.file, n)
		})
	}
}
