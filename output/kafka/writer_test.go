package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kafka "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// fake is a broker in this process, for the error codes that a real one gives only in trouble. Its answers to Produce
// are answer's; what it accepts is kept.
type fake struct {
	*kfake.Cluster

	mu       sync.Mutex
	answer   func(p int32, batch []got) reply
	accepted map[int32][]got
	batches  [][]string // the values of every batch, in the order of arrival
}

type got struct {
	Value  string
	Millis int64
}

type reply struct {
	code   kafka.Error
	msg    string
	errors []int32 // the records it is about
	hang   bool    // no answer at all
}

func newFake(t *testing.T, partitions int32, answer func(p int32, batch []got) reply) *fake {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, "flows"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	f := &fake{Cluster: cluster, answer: answer, accepted: map[int32][]got{}}
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		f.mu.Lock()
		defer f.mu.Unlock()
		req := r.(*kmsg.ProduceRequest)
		res := req.ResponseKind().(*kmsg.ProduceResponse)
		topic := kmsg.ProduceResponseTopic{Topic: req.Topics[0].Topic}
		for _, p := range req.Topics[0].Partitions {
			batch := decodeFake(t, p.Records)
			var values []string
			for _, g := range batch {
				values = append(values, g.Value)
			}
			f.batches = append(f.batches, values)
			a := f.answer(p.Partition, batch)
			if a.hang {
				return nil, nil, true
			}
			if a.code == 0 {
				f.accepted[p.Partition] = append(f.accepted[p.Partition], batch...)
			}
			part := kmsg.ProduceResponseTopicPartition{Partition: p.Partition, ErrorCode: int16(a.code)}
			if a.msg != "" {
				part.ErrorMessage = &a.msg
			}
			for _, i := range a.errors {
				part.ErrorRecords = append(part.ErrorRecords, kmsg.ProduceResponseTopicPartitionErrorRecord{RelativeOffset: i})
			}
			topic.Partitions = append(topic.Partitions, part)
		}
		res.Topics = append(res.Topics, topic)
		return res, nil, true
	})
	return f
}

// decodeFake decodes what a Produce request holds for one partition.
func decodeFake(t *testing.T, b []byte) (batch []got) {
	var rb kmsg.RecordBatch
	if err := rb.ReadFrom(b); err != nil {
		t.Errorf("record batch: %v", err)
		return nil
	}
	recs, err := kfake.BatchRecords(rb)
	if err != nil {
		t.Errorf("records: %v", err)
	}
	for _, r := range recs {
		batch = append(batch, got{string(r.Value), rb.FirstTimestamp + r.TimestampDelta64})
	}
	return batch
}

// all returns what was accepted, sorted by value.
func (f *fake) all() (values []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.accepted {
		for _, g := range p {
			values = append(values, g.Value)
		}
	}
	slices.Sort(values)
	return values
}

func ok(int32, []got) reply { return reply{} }

func (f *fake) writer(t *testing.T, change func(*Config)) *Writer {
	return newWriter(t, f.ListenAddrs(), "flows", func(c *Config) {
		c.Compression = "none"
		if change != nil {
			change(c)
		}
	})
}

// values returns the records as they should be on the topic, sorted.
func values(t *testing.T, recs []*flow.Record) (v []string) {
	e := newEncoder(t)
	for _, r := range recs {
		v = append(v, string(e.Append(nil, r)))
	}
	slices.Sort(v)
	return v
}

func errorsOf(w *Writer) map[string]uint64 {
	m := map[string]uint64{}
	for c := range w.Stats.Errors {
		if n := w.Stats.Errors[c].Load(); n > 0 {
			m[Class(c).String()] = n
		}
	}
	return m
}

// TestPartialFailure: one partition's leader is away. The others' records are delivered, and the retry sends none of
// them again.
func TestPartialFailure(t *testing.T) {
	const sick = 1
	healed := false
	f := newFake(t, 4, func(p int32, _ []got) reply {
		if p == sick && !healed {
			return reply{code: kafka.NotEnoughReplicas}
		}
		return reply{}
	})
	recs := records(500)
	w := f.writer(t, nil)
	n, err := w.Write(t.Context(), recs)
	want := w.Name() + " partition 1: [19] Not Enough Replicas: " + kafka.NotEnoughReplicas.Description()
	if err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
	if n >= len(recs) {
		t.Fatalf("%d delivered", n)
	}
	// Again, still sick: what is remembered lasts.
	m, err := w.Write(t.Context(), recs[n:])
	if m != 0 || err == nil {
		t.Errorf("second try: %d, %v", m, err)
	}
	f.mu.Lock()
	healed = true
	f.mu.Unlock()
	if m, err := w.Write(t.Context(), recs[n:]); m != len(recs)-n || err != nil {
		t.Errorf("third try: %d of %d, %v", m, len(recs)-n, err)
	}
	if diff := cmp.Diff(values(t, recs), f.all()); diff != "" {
		t.Errorf("not each record once: -want +got\n%s", diff)
	}
	if diff := cmp.Diff(map[string]uint64{"replicas": 2}, errorsOf(w)); diff != "" {
		t.Error(diff)
	}
	if got := w.Stats.Records.Load(); got != uint64(len(recs)) {
		t.Errorf("counted %d records", got)
	}
	sickOnes := uint64(len(f.accepted[sick]))
	if got := w.Stats.Retries.Load(); got != 2*sickOnes {
		t.Errorf("counted %d retries, want %d", got, 2*sickOnes)
	}
}

// TestOtherRecordsAfterFailure: the retry does not come, other records do, in the same memory. None is lost.
func TestOtherRecordsAfterFailure(t *testing.T) {
	fail := true
	f := newFake(t, 4, func(p int32, _ []got) reply {
		if p == 1 && fail {
			return reply{code: kafka.NotEnoughReplicas}
		}
		return reply{}
	})
	all := records(1000)
	old, fresh := all[:500], all[500:]
	slice := make([]flow.Record, 500)
	ptrs := make([]*flow.Record, 500)
	fill := func(from []*flow.Record) {
		for i, r := range from {
			slice[i], ptrs[i] = *r, &slice[i]
		}
	}
	w := f.writer(t, nil)
	fill(old)
	n, err := w.Write(t.Context(), ptrs)
	if err == nil {
		t.Fatal("no error")
	}
	f.mu.Lock()
	fail = false
	f.mu.Unlock()
	fill(fresh)
	if n, err := w.Write(t.Context(), ptrs[:len(fresh)]); n != len(fresh) || err != nil {
		t.Fatalf("fresh records: %d, %v", n, err)
	}
	fill(old)
	if m, err := w.Write(t.Context(), ptrs[n:]); m != len(old)-n || err != nil {
		t.Fatalf("old records: %d, %v", m, err)
	}
	if diff := cmp.Diff(values(t, all), slices.Compact(f.all())); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// TestTwins: two records with the same bytes, of which one was delivered, are not taken for each other.
func TestTwins(t *testing.T) {
	w := newWriter(t, []string{"192.0.2.1:9092"}, "flows", nil)
	recs := records(1)
	twins := []*flow.Record{recs[0], recs[0], recs[0]}
	w.remember(twins, []byte{0, delivered, refused})
	state := make([]byte, 3)
	w.recall(twins, state)
	if diff := cmp.Diff([]byte{delivered, refused, 0}, state); diff != "" {
		t.Error(diff)
	}
}

func TestTooLarge(t *testing.T) {
	const most = 37
	f := newFake(t, 1, func(_ int32, batch []got) reply {
		if len(batch) > most {
			return reply{code: kafka.MessageSizeTooLarge}
		}
		return reply{}
	})
	recs := records(500)
	w := f.writer(t, nil)
	for range 2 {
		if n, err := w.Write(t.Context(), recs); n != len(recs) || err != nil {
			t.Fatal(n, err)
		}
	}
	want := values(t, append(recs, recs...))
	if diff := cmp.Diff(want, f.all()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	// Order holds although halves were sent.
	var order []string
	for _, g := range f.accepted[0] {
		order = append(order, g.Value)
	}
	e := newEncoder(t)
	for i, r := range append(recs, recs...) {
		if order[i] != string(e.Append(nil, r)) {
			t.Fatalf("record %d is out of order", i)
		}
	}
	// The second Write has learnt from the first, which had to halve 500 until 31 fitted.
	if refusals := errorsOf(w)["too_large"]; refusals > 6 {
		t.Errorf("%d batches were too large", refusals)
	}
}

// TestPoison: a record that the broker will never take goes to the dead-letter file; the others are delivered.
func TestPoison(t *testing.T) {
	recs := records(100)
	poison := map[string]bool{}
	for _, i := range []int{0, 1, 50, 99} {
		poison[values(t, recs[i:i+1])[0]] = true
	}
	named := func(code kafka.Error) func(int32, []got) reply {
		return func(_ int32, batch []got) (a reply) {
			for i, g := range batch {
				if poison[g.Value] {
					a.code, a.msg = code, "poison"
					a.errors = append(a.errors, int32(i))
				}
			}
			return a
		}
	}
	for _, tc := range []struct {
		name, reason string
		answer       func(int32, []got) reply
	}{
		{"records named", kafka.InvalidRecord.Error() + " (poison)", named(kafka.InvalidRecord)},
		{"nothing named", kafka.InvalidRecord.Error() + " (poison)", func(p int32, batch []got) reply {
			a := named(kafka.InvalidRecord)(p, batch)
			a.errors = nil
			return a
		}},
		{"too large", kafka.MessageSizeTooLarge.Error() + " (poison)", func(p int32, batch []got) reply {
			a := named(kafka.MessageSizeTooLarge)(p, batch)
			a.errors = nil
			return a
		}},
		{"numbers that are none", kafka.InvalidRecord.Error() + " (poison)", func(p int32, batch []got) reply {
			a := named(kafka.InvalidRecord)(p, batch)
			a.errors = []int32{-1, 1 << 30}
			return a
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t, 3, tc.answer)
			path := filepath.Join(t.TempDir(), "dead.jsonl")
			w := f.writer(t, func(c *Config) { c.DeadLetter = path })

			// As the worker does it.
			var lost []*flow.Record
			for rest := recs; len(rest) > 0; {
				n, err := w.Write(t.Context(), rest)
				rest = rest[n:]
				var r interface {
					error
					Rejected() int
				}
				switch {
				case errors.As(err, &r):
					lost = append(lost, rest[:r.Rejected()]...)
					rest = rest[r.Rejected():]
				case err != nil:
					t.Fatal(err)
				}
			}
			want := slices.Sorted(maps.Keys(poison))
			if diff := cmp.Diff(want, values(t, lost)); diff != "" {
				t.Errorf("rejected: -want +got\n%s", diff)
			}
			delivered := slices.DeleteFunc(values(t, recs), func(v string) bool { return poison[v] })
			if diff := cmp.Diff(delivered, f.all()); diff != "" {
				t.Errorf("delivered: -want +got\n%s", diff)
			}
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var dead []string
			for line := range strings.Lines(string(file)) {
				var l deadLetter
				if err := json.Unmarshal([]byte(line), &l); err != nil {
					t.Fatal(err)
				}
				dead = append(dead, string(l.Value))
				if l.Topic != "flows" || !strings.HasPrefix(l.Key, "100.64.0.") || l.Error != tc.reason {
					t.Errorf("dead letter %s", line)
				}
			}
			slices.Sort(dead)
			if diff := cmp.Diff(want, dead); diff != "" {
				t.Errorf("dead letters: -want +got\n%s", diff)
			}
			if r, d := w.Stats.Rejected.Load(), w.Stats.DeadLetters.Load(); r != 4 || d != 4 {
				t.Errorf("counted %d rejected, %d dead letters", r, d)
			}
		})
	}
}

func TestRejectedError(t *testing.T) {
	f := newFake(t, 1, func(int32, []got) reply { return reply{code: kafka.InvalidRecord} })
	w := f.writer(t, nil)
	n, err := w.Write(t.Context(), records(3))
	want := "refused for good: " + w.Name() + " partition 0: " + kafka.InvalidRecord.Error()
	if n != 0 || err == nil || err.Error() != want {
		t.Errorf("%d, error %v\nwant %s", n, err, want)
	}
}

func TestDeadLettersFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dead.jsonl")
	f := newFake(t, 1, func(int32, []got) reply { return reply{code: kafka.InvalidRecord} })
	w := f.writer(t, func(c *Config) { c.DeadLetter, c.DeadLetterSize = path, 5000 })
	if _, err := w.Write(t.Context(), records(20)); err == nil {
		t.Error("no error")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 5000 || info.Size() < 3000 {
		t.Errorf("%d bytes", info.Size())
	}
	if r, d := w.Stats.Rejected.Load(), w.Stats.DeadLetters.Load(); r != 20 || d == 0 || d >= 20 {
		t.Errorf("counted %d rejected, %d dead letters", r, d)
	}
}

func TestTimestamps(t *testing.T) {
	recs := records(4)
	future := *recs[2]
	future.Stop = time.Now().Add(48 * time.Hour).UnixNano()
	recs[2] = &future
	open := *recs[3]
	open.Event, open.Stop = flow.EventOpen, 0
	recs[3] = &open

	start := time.Now().UnixMilli()
	run := func(t *testing.T, answer func(int32, []got) reply) ([]got, *Writer) {
		f := newFake(t, 1, answer)
		w := f.writer(t, nil)
		if n, err := w.Write(t.Context(), recs); n != len(recs) || err != nil {
			t.Fatal(n, err)
		}
		return f.accepted[0], w
	}
	isNow := func(ms int64) bool { return ms >= start && ms <= time.Now().UnixMilli() }

	t.Run("end, clamped to now", func(t *testing.T) {
		got, w := run(t, ok)
		if got[0].Millis != recs[0].Stop/1e6 || got[1].Millis != recs[1].Stop/1e6 || got[3].Millis != open.Received/1e6 {
			t.Errorf("%v", got)
		}
		if !isNow(got[2].Millis) || w.Stats.Clamped.Load() != 1 {
			t.Errorf("%v, counted %d", got[2], w.Stats.Clamped.Load())
		}
	})
	t.Run("refused: now", func(t *testing.T) {
		got, w := run(t, func(_ int32, batch []got) (a reply) {
			for i, g := range batch {
				if g.Millis == recs[1].Stop/1e6 {
					a.code, a.errors = kafka.InvalidTimestamp, append(a.errors, int32(i))
				}
			}
			return a
		})
		if got[0].Millis != recs[0].Stop/1e6 || !isNow(got[1].Millis) {
			t.Errorf("%v", got)
		}
		if n := w.Stats.Clamped.Load(); n < 2 {
			t.Errorf("counted %d", n)
		}
	})
	t.Run("refused again: none", func(t *testing.T) {
		got, w := run(t, func(_ int32, batch []got) (a reply) {
			for _, g := range batch {
				if g.Millis != -1 {
					a.code = kafka.InvalidTimestamp
				}
			}
			return a
		})
		for _, g := range got {
			if g.Millis != -1 {
				t.Errorf("%v", g)
			}
		}
		if diff := cmp.Diff(map[string]uint64{"timestamp": 2}, errorsOf(w)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("refused for ever: an error", func(t *testing.T) {
		f := newFake(t, 1, func(int32, []got) reply { return reply{code: kafka.InvalidTimestamp} })
		w := f.writer(t, nil)
		_, err := w.Write(t.Context(), recs)
		var e *Error
		if !errors.As(err, &e) || e.Class != ClassTimestamp {
			t.Errorf("error %v", err)
		}
	})
}

// TestErrorCodes: what every answer of a broker is taken for, and that it is tried again.
func TestErrorCodes(t *testing.T) {
	for code, class := range map[kafka.Error]Class{
		kafka.NotLeaderForPartition:        ClassLeader,
		kafka.LeaderNotAvailable:           ClassLeader,
		kafka.KafkaStorageError:            ClassLeader,
		kafka.UnknownTopicOrPartition:      ClassTopic,
		kafka.TopicAuthorizationFailed:     ClassAuthorization,
		kafka.ClusterAuthorizationFailed:   ClassAuthorization,
		kafka.RequestTimedOut:              ClassTimeout,
		kafka.NotEnoughReplicasAfterAppend: ClassReplicas,
		kafka.NetworkException:             ClassConnection,
		kafka.InvalidMessage:               ClassOther,
		kafka.UnsupportedCompressionType:   ClassOther,
		kafka.PolicyViolation:              ClassOther,
		kafka.Error(9999):                  ClassOther,
	} {
		t.Run(fmt.Sprint(int(code)), func(t *testing.T) {
			first := true
			f := newFake(t, 1, func(int32, []got) (a reply) {
				if first {
					a.code, first = code, false
				}
				return a
			})
			w := f.writer(t, nil)
			recs := records(10)
			n, err := w.Write(t.Context(), recs)
			var e *Error
			if n != 0 || !errors.As(err, &e) || e.Class != class || !errors.Is(err, code) {
				t.Errorf("%d, %v", n, err)
			}
			if n, err := w.Write(t.Context(), recs); n != len(recs) || err != nil {
				t.Errorf("again: %d, %v", n, err)
			}
			if diff := cmp.Diff(map[string]uint64{class.String(): 1}, errorsOf(w)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	w := newWriter(t, []string{"127.0.0.1:1"}, "flows", nil)
	n, err := w.Write(t.Context(), records(1))
	const want = "kafka:127.0.0.1:1/flows: dial tcp 127.0.0.1:1: connect: connection refused"
	if n != 0 || err == nil || err.Error() != want {
		t.Errorf("%d, error %v\nwant %s", n, err, want)
	}
}

// TestShutdown: a broker that does not answer holds neither Write nor Close, and what is under way is broken off.
func TestShutdown(t *testing.T) {
	asked := make(chan struct{}, 10)
	f := newFake(t, 1, func(int32, []got) reply {
		asked <- struct{}{}
		return reply{hang: true}
	})
	w := f.writer(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	n, err := w.Write(ctx, records(10))
	if n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d, %v", n, err)
	}
	if len(errorsOf(w)) != 0 {
		t.Errorf("counted %v", errorsOf(w))
	}
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
	w.conns.mu.Lock()
	defer w.conns.mu.Unlock()
	if n := len(w.conns.open); n != 0 {
		t.Errorf("%d connections are open", n)
	}
}

// TestRequestTimeout: an answer that does not come is an error in time, and the next try works.
func TestRequestTimeout(t *testing.T) {
	hang := true
	f := newFake(t, 1, func(int32, []got) reply {
		defer func() { hang = false }()
		return reply{hang: hang}
	})
	w := f.writer(t, func(c *Config) { c.RequestTimeout = 200 * time.Millisecond })
	recs := records(10)
	n, err := w.Write(t.Context(), recs)
	if n != 0 || !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := w.Write(t.Context(), recs); n != len(recs) || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	if diff := cmp.Diff(map[string]uint64{"timeout": 1}, errorsOf(w)); diff != "" {
		t.Error(diff)
	}
}

// TestJava: partitions are those of the Java client. The hashes are from its tests (UtilsTest.testMurmur2).
func TestJava(t *testing.T) {
	var ids []int
	for i := range 1000 {
		ids = append(ids, i)
	}
	for key, hash := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		var m kafka.Murmur2Balancer
		if got, want := m.Balance(kafka.Message{Key: []byte(key)}, ids...), int(hash&0x7fffffff)%len(ids); got != want {
			t.Errorf("%s: partition %d, want %d", key, got, want)
		}
	}
}

func TestKeys(t *testing.T) {
	full := *records(1)[0] // 100.64.0.x -> 203.0.113.x
	src, natSrc := full.Orig.SrcAddr().String(), full.Reply.DstAddr().String()
	plain := full
	plain.Reply.Dst, plain.Reply.DstPort = full.Orig.Src, full.Orig.SrcPort
	v6 := flow.Record{Event: flow.EventNew, Has: flow.HasOrig}
	v6.Orig = flow.Tuple{Src: flow.Addr{0x20, 1, 0xd, 0xb8, 15: 1}, V6: true}
	gap := flow.Record{Event: flow.EventGap}
	observer := format.NewObserverKey(testObserver)
	id, _ := format.FlowID(observer, &full)
	for _, tc := range []struct {
		key  string
		r    *flow.Record
		want string
	}{
		{KeySrc, &full, src},
		{KeySrc, &v6, "2001:db8::1"},
		{KeySrc, &gap, ""},
		{KeyNATSrc, &full, natSrc},
		{KeyNATSrc, &plain, src},
		{KeyNATSrc, &gap, ""},
		{KeyFlowID, &full, fmt.Sprintf("%x", id)},
		{KeyFlowID, &v6, "2001:db8::1"},
		{KeyFlowID, &gap, ""},
		{KeyNone, &full, ""},
	} {
		if got := string(newKeyFunc(tc.key, observer)(nil, tc.r)); got != tc.want {
			t.Errorf("%s of %v: %q, want %q", tc.key, tc.r.Event, got, tc.want)
		}
	}
}

// TestNoKey: records without a key take turns among the partitions, one for each Write, and carry no key at all.
func TestNoKey(t *testing.T) {
	f := newFake(t, 3, ok)
	w := f.writer(t, func(c *Config) { c.Key = KeyNone })
	recs := records(30)
	for i := range 3 {
		if n, err := w.Write(t.Context(), recs[10*i:10*i+10]); n != 10 || err != nil {
			t.Fatal(n, err)
		}
	}
	for p := range int32(3) {
		if n := len(f.accepted[p]); n != 10 {
			t.Errorf("partition %d has %d", p, n)
		}
	}
}

func TestCreateTopic(t *testing.T) {
	f := newFake(t, 1, ok)
	recs := records(10)
	w := newWriter(t, f.ListenAddrs(), "missing", func(c *Config) { c.Compression = "none" })
	n, err := w.Write(t.Context(), recs)
	want := w.Name() + ": " + kafka.UnknownTopicOrPartition.Error() + "; create the topic, or set create_topic"
	if n != 0 || err == nil || err.Error() != want {
		t.Errorf("%d, error %v\nwant %s", n, err, want)
	}
	if f.TopicInfo("missing") != nil {
		t.Error("the topic was created unasked")
	}
	w = newWriter(t, f.ListenAddrs(), "missing", func(c *Config) {
		c.Compression = "none"
		c.CreateTopic = &CreateTopic{Partitions: 5, Replication: 1}
	})
	if n, err := w.Write(t.Context(), recs); n != len(recs) || err != nil {
		t.Fatal(n, err)
	}
	if n := len(f.PartitionInfos("missing")); n != 5 {
		t.Errorf("%d partitions", n)
	}
}
