package archive

import (
	"bytes"
	"errors"
	"io"
	"slices"
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
	tw, err := newTableWriter(&w, len(recs), codecOf("zstd-1"), [columnCount]bool{})
	if err == nil {
		err = errors.Join(tw.add(recs), tw.group())
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

// writeTable writes a table of some records, and returns it with the sums of its columns.
func writeTable(t *testing.T, recs []flow.Record) (*parquet.File, columnSums) {
	t.Helper()
	var w bytes.Buffer
	tw, err := newTableWriter(&w, len(recs), codecOf("zstd-1"), [columnCount]bool{})
	if err == nil {
		err = errors.Join(tw.add(recs), tw.group(), tw.close())
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := parquet.OpenFile(bytes.NewReader(w.Bytes()), int64(w.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return f, tw.columnSums()
}

// TestRareValues: columns that few rows have a value in, wherever in a row group these are, are read by the library as they were
// written, null or not.
func TestRareValues(t *testing.T) {
	_, plain := segmentOf(t, 5*blockRows)
	var rare []flow.Record
	for _, r := range everyKind() {
		rare = append(rare, *r)
	}
	// A page begins among rows that were skipped, behind lists of several elements and before others.
	recs := slices.Concat(plain[:2*blockRows+100], rare[:300], plain[2*blockRows:4*blockRows], rare[300:310], plain[4*blockRows:],
		plain[:pageRows], rare[:300])
	f, sums := writeTable(t, recs)
	if len(f.RowGroups()) != 1 {
		t.Fatalf("%d row groups", len(f.RowGroups()))
	}
	some := 0
	for i, chunk := range f.RowGroups()[0].ColumnChunks() {
		var got []parquet.Value
		pages := chunk.Pages()
		index, err := chunk.OffsetIndex()
		if err != nil {
			t.Fatal(err)
		}
		for n, row := 0, int64(0); ; n++ {
			page, err := pages.ReadPage()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", columns[i].name, err)
			}
			values := make([]parquet.Value, page.NumValues())
			if n, err := page.Values().ReadValues(values); n < len(values) {
				t.Fatalf("%s: %v", columns[i].name, err)
			}
			if first := index.FirstRowIndex(n); first != row || values[0].RepetitionLevel() != 0 {
				t.Errorf("%s: page %d begins at row %d, and the index says %d", columns[i].name, n, row, first)
			}
			for _, v := range values {
				if v.RepetitionLevel() == 0 {
					row++
				}
			}
			got = append(got, values...)
		}
		want := columns[i].values(recs, nil)
		if len(got) != len(want) {
			t.Errorf("%s: %d values, want %d", columns[i].name, len(got), len(want))
			continue
		}
		for k := range got {
			if !parquet.Equal(got[k], want[k]) || got[k].DefinitionLevel() != want[k].DefinitionLevel() || got[k].RepetitionLevel() != want[k].RepetitionLevel() {
				t.Errorf("%s: value %d is %v, want %v", columns[i].name, k, got[k], want[k])
				break
			}
		}
		if slices.ContainsFunc(want, func(v parquet.Value) bool { return !v.IsNull() }) {
			some++
		}
	}
	if some < columnCount-5 {
		t.Errorf("only %d columns have a value", some)
	}
	if read, err := sumsOf(f); err != nil || read != sums {
		t.Errorf("what is read has other sums than what was written: %v", err)
	}
}

// TestColumnSums: the sum of a column tells of a value that has changed, has gone, or stands elsewhere.
func TestColumnSums(t *testing.T) {
	_, recs := segmentOf(t, 3000)
	_, before := writeTable(t, recs)
	for _, tt := range []struct {
		name   string
		change func(recs []flow.Record)
		column int
	}{
		{"a number", func(recs []flow.Record) { recs[2500].OrigCounters.Bytes++ }, cOrigBytes},
		{"a number of a dictionary", func(recs []flow.Record) { recs[2500].Orig.DstPort = 4711 }, cDstPort},
		{"an address", func(recs []flow.Record) { recs[10].Orig.Dst[15]++ }, cDstIP},
		{"a name", func(recs []flow.Record) { recs[10].Event = flow.EventOpen }, cEvent},
		{"a list", func(recs []flow.Record) { recs[10].Status ^= 1 << 7 }, cStatus},
		{"two in another order", func(recs []flow.Record) { recs[7].Start, recs[8].Start = recs[8].Start, recs[7].Start }, cStart},
		{"one that is gone", func(recs []flow.Record) { recs[7].Start = 0 }, cStart},
		{"all that are gone", func(recs []flow.Record) {
			for i := range recs {
				recs[i].Start = 0
			}
		}, cStart},
	} {
		changed := slices.Clone(recs)
		tt.change(changed)
		if f, after := writeTable(t, changed); after[tt.column] == before[tt.column] {
			t.Errorf("%s: column %s has the same sum", tt.name, columns[tt.column].name)
		} else if read, err := sumsOf(f); err != nil || read != after {
			t.Errorf("%s: what is read has another sum than what was written: %v", tt.name, err)
		}
	}
}

// TestDictionary: keys that differ in their high halves alone, or in their family, are entries of their own.
func TestDictionary(t *testing.T) {
	var d dictionary
	var numbers, addresses []dictKey
	for i := range uint64(500) {
		numbers = append(numbers, dictKey{lo: i<<32 | 5})
		addresses = append(addresses, dictKey{hi: i, lo: 7, v6: true}, dictKey{hi: i, lo: 7})
	}
	for range 2 {
		for _, keys := range [][]dictKey{append(numbers, numbers...), append(addresses, addresses...)} {
			d.reset()
			seen := map[dictKey]uint32{}
			for _, k := range keys {
				want, known := seen[k]
				if !known {
					want = uint32(len(seen))
					seen[k] = want
				}
				if n, fresh := d.find(k); n != want || fresh == known {
					t.Errorf("%+v is entry %d, fresh %v; want %d, %v", k, n, fresh, want, !known)
				}
			}
		}
	}
}

// TestIncompressible: a column that compression does not make smaller is stored as it is, and costs no reader a decompression.
func TestIncompressible(t *testing.T) {
	file, _ := segmentOf(t, 20000)
	f, err := parquet.OpenFile(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range f.Metadata().RowGroups[0].Columns {
		m := &c.MetaData
		if m.DictionaryPageOffset == 0 && m.TotalCompressedSize > m.TotalUncompressedSize {
			t.Errorf("%s: %d bytes, %d without compression", columns[i].name, m.TotalCompressedSize, m.TotalUncompressedSize)
		}
		if i == cOrigBytes && m.TotalCompressedSize > m.TotalUncompressedSize/2 {
			t.Errorf("%s is not compressed: %d bytes, %d without", columns[i].name, m.TotalCompressedSize, m.TotalUncompressedSize)
		}
	}
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
			w, err := newTableWriter(io.Discard, len(recs), codecOf("zstd-1"), [columnCount]bool{})
			if err == nil {
				err = errors.Join(w.add(recs), w.group())
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
