package kafka

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pierrec/lz4/v4"
	"github.com/segmentio/kafka-go/protocol"
)

type decoded struct {
	Offset, Millis int64
	Key, Value     string
	NoKey          bool
	Headers        []protocol.Header
}

// decodeBatch reads a batch as kafka-go's consumer does, CRC and compression included.
func decodeBatch(t testing.TB, batch []byte) (got []decoded, codec string) {
	t.Helper()
	var set protocol.RecordSet
	if n, err := set.ReadFrom(bytes.NewReader(batch)); err != nil || int(n) != len(batch) {
		t.Fatalf("read %d of %d bytes, %v", n, len(batch), err)
	}
	for {
		r, err := set.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return got, set.Attributes.Compression().String()
		}
		if err != nil {
			t.Fatal(err)
		}
		d := decoded{Offset: r.Offset, Millis: r.Time.UnixMilli(), NoKey: r.Key == nil, Headers: r.Headers}
		if r.Key != nil {
			d.Key = read(t, r.Key)
		}
		d.Value = read(t, r.Value)
		got = append(got, d)
	}
}

func read(t testing.TB, b protocol.Bytes) string {
	t.Helper()
	p, err := protocol.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

func TestBatch(t *testing.T) {
	headers := []protocol.Header{{Key: "v", Value: []byte("1")}, {Key: "host", Value: []byte("fw1")}}
	raw := appendHeaders(nil, header{"v", "1"}, header{"host", "fw1"})
	long := string(bytes.Repeat([]byte("abcdefghij"), 30000)) // more than a block of lz4
	want := []decoded{
		{Offset: 0, Millis: 1_700_000_000_000, Key: "192.0.2.1", Value: `{"v":1}`, Headers: headers},
		{Offset: 1, Millis: 1_699_999_999_000, Value: "", NoKey: true, Headers: headers}, // back in time
		{Offset: 2, Millis: 1_700_000_099_123, Key: "2001:db8::1", Value: long, Headers: headers},
	}
	for i, n := range []int{1, 63, 64, 65, 8100, 8191, 8192, 8193} { // where lengths get one more byte
		want = append(want, decoded{Offset: int64(3 + i), Millis: 1_700_000_000_000, Key: "k", Value: long[:n], Headers: headers})
	}
	for number, name := range Compressions {
		t.Run(name, func(t *testing.T) {
			var b batchBuilder
			buf := bytes.Repeat([]byte{0xff}, 200) // of an earlier batch
			for range 2 {
				b.reset()
				for _, w := range want {
					b.open(w.Millis, []byte(w.Key))
					b.records = append(b.records, w.Value...)
					b.close(raw, 1<<20)
				}
				buf = b.encode(buf, number, newCodec(number))
			}
			got, codec := decodeBatch(t, buf)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error("-want +got\n" + diff)
			}
			if codec != name && number != 0 {
				t.Errorf("codec %q, want %q", codec, name)
			}
			if got, want := time.UnixMilli(b.maxTime), time.UnixMilli(1_700_000_099_123); got != want {
				t.Errorf("largest timestamp %v, want %v", got, want)
			}
		})
	}
}

// TestBatchBytes: a batch takes no more than it may, but for a single record.
func TestBatchBytes(t *testing.T) {
	var b batchBuilder
	add := func(value string) bool {
		b.open(0, nil)
		b.records = append(b.records, value...)
		return b.close([]byte{0}, 300)
	}
	long, short := strings.Repeat("x", 400), strings.Repeat("x", 100)
	for _, tc := range []struct {
		values []string
		n      int
	}{
		{[]string{long, short}, 1},
		{[]string{short, short, short}, 2},
		{[]string{short, long, short}, 1},
	} {
		b.reset()
		n := 0
		for n < len(tc.values) && add(tc.values[n]) {
			n++
		}
		got, _ := decodeBatch(t, b.encode(nil, 0, newCodec(0)))
		if n != tc.n || len(got) != n {
			t.Errorf("%d of %d records, and %d in the batch; want %d", n, len(tc.values), len(got), tc.n)
		}
	}
}

// TestEncodeAllocs: what is done for each record makes no garbage.
func TestEncodeAllocs(t *testing.T) {
	recs := records(1000)
	w := newWriter(t, []string{"192.0.2.1:9092"}, "flows", nil)
	w.parts, w.ids = make([]partition, 3), []int{0, 1, 2}
	w.state = make([]byte, len(recs))
	now := time.Now().UnixMilli()
	once := func() {
		for i := range w.parts {
			w.parts[i] = partition{idx: w.parts[i].idx[:0], max: 1 << 30, buf: w.parts[i].buf}
		}
		w.route(recs, w.state, w.parts)
		for i := range w.parts {
			w.encode(&w.parts[i], recs, now)
		}
	}
	once()
	// What earlier tests have left running allocates as well, now and then.
	least := testing.AllocsPerRun(1, once)
	for i := 0; i < 100 && least > 0; i++ {
		time.Sleep(10 * time.Millisecond)
		least = min(least, testing.AllocsPerRun(1, once))
	}
	if least != 0 {
		t.Errorf("%v allocations for %d records", least, len(recs))
	}
}

func uncompress(t testing.TB, frame []byte) []byte {
	t.Helper()
	got, err := io.ReadAll(lz4.NewReader(bytes.NewReader(frame)))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestLZ4(t *testing.T) {
	batch := batchOf(t, 1000)
	noise := make([]byte, 100_000)
	x := uint32(1)
	for i := range noise {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	for _, tc := range []struct {
		name string
		src  []byte
		most int // bytes
	}{
		{"empty", nil, 11},
		{"one byte", []byte("a"), 16},
		{"shorter than any match", []byte("aaaaaaaaaaaaaaa"), 30},
		{"zeros", make([]byte, 200_000), 1000},
		{"noise is stored", noise, len(noise) + 11 + 2*4},
		{"records", batch, len(batch) / 3},
		{"exactly a block", batch[:lz4Block], lz4Block / 3},
		{"a block and a byte", batch[:lz4Block+1], lz4Block / 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			frame := new(lz4Encoder).append([]byte("before"), tc.src)
			frame, ok := bytes.CutPrefix(frame, []byte("before"))
			if !ok {
				t.Fatal("not appended")
			}
			if got := uncompress(t, frame); !bytes.Equal(got, tc.src) {
				t.Errorf("%d bytes came back of %d", len(got), len(tc.src))
			}
			if len(frame) > tc.most {
				t.Errorf("%d bytes, at most %d wanted", len(frame), tc.most)
			}
		})
	}
}

func FuzzLZ4(f *testing.F) {
	batch := batchOf(f, 3)
	f.Add(batch, 3)
	f.Add([]byte("abcdefghabcdefghabcdefghabcdefgh"), 1)
	f.Fuzz(func(t *testing.T, src []byte, repeat int) {
		src = bytes.Repeat(src, 1+repeat&7)
		var e lz4Encoder
		for range 2 { // the table of the first must not show in the second
			if got := uncompress(t, e.append(nil, src)); !bytes.Equal(got, src) {
				t.Fatalf("%q came back as %q", src, got)
			}
		}
	})
}
