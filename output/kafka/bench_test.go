package kafka

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"
)

func perRecord(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
}

// BenchmarkEncode is what a Writer does for its records but for sending them: value, key, partition, batch, codec.
func BenchmarkEncode(b *testing.B) {
	const slice, partitions = 4096, 12
	recs := records(slice)
	for _, name := range Compressions {
		b.Run(name, func(b *testing.B) {
			w := newWriter(b, []string{"192.0.2.1:9092"}, "flows", func(c *Config) { c.Compression = name })
			w.parts = make([]partition, partitions)
			for i := range partitions {
				w.ids = append(w.ids, i)
			}
			size := 0
			now := time.Now().UnixMilli()
			b.ReportAllocs()
			for b.Loop() {
				size = 0
				w.state = make([]byte, slice)
				for i := range w.parts {
					w.parts[i] = partition{idx: w.parts[i].idx[:0], max: 1 << 30, buf: w.parts[i].buf}
				}
				w.route(recs, w.state, w.parts)
				for i := range w.parts {
					for p := &w.parts[i]; len(p.pending()) > 0; p.next += p.sent {
						w.encode(p, recs, now)
						size += len(p.buf)
					}
				}
			}
			perRecord(b, slice)
			b.ReportMetric(float64(size)/slice, "B/record")
		})
	}
	b.Run("value alone", func(b *testing.B) {
		e := newEncoder(b)
		var buf []byte
		size := 0
		for b.Loop() {
			size = 0
			for _, r := range recs {
				buf = e.Append(buf[:0], r)
				size += len(buf)
			}
		}
		perRecord(b, slice)
		b.ReportMetric(float64(size)/slice, "B/record")
	})
}

// BenchmarkCodec compresses what a batch holds.
func BenchmarkCodec(b *testing.B) {
	data := batchOf(b, 1600)
	codecs := map[string]codec{"lz4 of pierrec": pierrec()} // what ours is held against
	for number, name := range Compressions {
		codecs[name] = newCodec(number)
	}
	for _, name := range slices.Sorted(maps.Keys(codecs)) {
		b.Run(name, func(b *testing.B) {
			c := codecs[name]
			var dst []byte
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				dst = c(dst[:0], data)
			}
			b.ReportMetric(float64(len(data))/float64(len(dst)), "ratio")
			perRecord(b, 1600)
		})
	}
}

// batchOf returns n records as they stand in a batch.
func batchOf(t testing.TB, n int) []byte {
	t.Helper()
	e := newEncoder(t)
	var b batchBuilder
	for i, r := range records(n) {
		b.open(r.Stop/1e6, fmt.Appendf(nil, "100.64.0.%d", i%100))
		b.records = e.Append(b.records, r)
		b.close([]byte{0}, 1<<30)
	}
	return b.records
}

// pierrec returns the lz4 of github.com/pierrec/lz4, its fastest, without checksums, as ours has none.
func pierrec() codec {
	w := lz4.NewWriter(nil)
	if err := w.Apply(lz4.CompressionLevelOption(lz4.Fast), lz4.ConcurrencyOption(1), lz4.ChecksumOption(false),
		lz4.BlockSizeOption(lz4.Block64Kb)); err != nil {
		panic(err)
	}
	return func(dst, src []byte) []byte {
		a := appender(dst)
		w.Reset(&a)
		if _, err := w.Write(src); err != nil {
			panic(err)
		}
		if err := w.Close(); err != nil {
			panic(err)
		}
		return a
	}
}
