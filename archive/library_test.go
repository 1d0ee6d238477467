package archive

import (
	"bytes"
	"io"
	"testing"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/ctlogd/ctlogd/flow"
)

// segmentOf returns a segment of a trace, and the records in it.
func segmentOf(t testing.TB, n int) (file []byte, recs []flow.Record) {
	t.Helper()
	for _, r := range makeTrace(n, 1) {
		recs = append(recs, *r)
	}
	var w bytes.Buffer
	tw, err := newTableWriter(&w, codecOf("zstd-1"), [columnCount]bool{})
	for rest := recs; len(rest) > 0 && err == nil; rest = rest[min(groupRows, len(rest)):] {
		err = tw.group(rest[:min(groupRows, len(rest))])
	}
	if err == nil {
		err = tw.close(format.KeyValue{Key: metaOrigin, Value: "{}"})
	}
	if err != nil {
		t.Fatal(err)
	}
	return w.Bytes(), recs
}

// values makes what the library takes of a column.
func (c *column) values(recs []flow.Record, values []parquet.Value) []parquet.Value {
	var text []byte
	for i := range recs {
		v, ok := parquet.NullValue(), true
		switch {
		case c.list != nil:
			var set uint32
			if set, ok = c.list.bits(&recs[i]); ok && set == 0 {
				values = append(values, parquet.NullValue().Level(0, 1, 0))
				continue
			}
			first := 0
			for bit, name := range c.list.sets {
				if ok && set>>bit&1 != 0 {
					values = append(values, parquet.ByteArrayValue([]byte(name)).Level(first, 2, 0))
					first = 1
				}
			}
			if ok {
				continue
			}
		case c.addr != nil:
			a, v6 := c.addr(&recs[i])
			if ok = a != nil; ok {
				from := len(text)
				text = appendAddr(text, a, v6)
				v = parquet.ByteArrayValue(text[from:])
			}
		case c.text != nil:
			b := c.text(&recs[i])
			if ok = len(b) > 0; ok {
				v = parquet.ByteArrayValue(b)
			}
		default:
			var n uint64
			if n, ok = c.number(&recs[i]); !ok {
				break
			}
			switch kind := c.node.Type().Kind(); {
			case c.names != nil:
				v = parquet.ByteArrayValue([]byte(c.names[n]))
			case kind == parquet.Boolean:
				v = parquet.BooleanValue(n != 0)
			case kind == parquet.Int32:
				v = parquet.Int32Value(int32(n))
			default:
				v = parquet.Int64Value(int64(n))
			}
		}
		if ok {
			v = v.Level(0, 1, 0)
		}
		values = append(values, v)
	}
	return values
}

// BenchmarkWrite says what a row costs that our writer makes a row group of, and one that the library's does.
func BenchmarkWrite(b *testing.B) {
	_, recs := segmentOf(b, groupRows)
	perRow := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(recs)), "ns/row")
	}
	b.Run("own", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w, err := newTableWriter(io.Discard, codecOf("zstd-1"), [columnCount]bool{})
			if err == nil {
				err = w.group(recs)
			}
			if err == nil {
				err = w.close()
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		perRow(b)
	})
	b.Run("library", func(b *testing.B) {
		b.ReportAllocs()
		var values []parquet.Value
		nulls, schema := make([]parquet.Value, pageRows), newSchema()
		for b.Loop() {
			w := parquet.NewGenericWriter[any](io.Discard, schema, parquet.Compression(codecOf("zstd-1")), parquet.PageBufferSize(16<<10),
				parquet.WriteBufferSize(0), parquet.DataPageStatistics(false), parquet.BloomFilters(
					parquet.SplitBlockFilter(filterBits, "src_ip"), parquet.SplitBlockFilter(filterBits, "dst_ip"),
					parquet.SplitBlockFilter(filterBits, "nat_dst_ip")))
			has := featuresOf(recs)
			for i, column := range w.ColumnWriters() {
				c := &columns[i]
				for rest := recs; len(rest) > 0; rest = rest[min(pageRows, len(rest)):] {
					n := min(pageRows, len(rest))
					values = append(values[:0], nulls[:n]...)
					if c.needs&^has == 0 {
						values = c.values(rest[:n], values[:0])
					}
					if _, err := column.WriteRowValues(values); err != nil {
						b.Fatal(err)
					}
				}
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		}
		perRow(b)
	})
}

// BenchmarkOpen says what it costs to open a segment of a million rows, which a question does with each.
func BenchmarkOpen(b *testing.B) {
	file, _ := segmentOf(b, 16*groupRows)
	size := int64(len(file))
	b.Run("own", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := openTable(bytes.NewReader(file), size); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("library", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := parquet.OpenFile(bytes.NewReader(file), size, parquet.SkipPageIndex(true)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
