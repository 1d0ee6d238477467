package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/bloom"
	"github.com/parquet-go/parquet-go/bloom/xxhash"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"

	"github.com/ctlogd/ctlogd/flow"
)

// tableWriter writes a Parquet file (github.com/apache/parquet-format, version 2.12):
//
//	"PAR1"
//	for each row group: for each column: dictionary page, data pages (version 2); then the filters of the columns that have one
//	for each row group and column: column index (least and greatest value of each page)
//	likewise: offset index (where each page is)
//	footer, size of the footer, "PAR1"
//
// Each column of a row group is cut into pages of the same rows, but for one that has a single value: that is one page.
type tableWriter struct {
	w     io.Writer
	at    int64
	codec compress.Codec
	drop  [columnCount]bool

	rows     int // of the row group that is being made
	builders [columnCount]builder
	scratch  scratch

	meta    format.FileMetaData
	columns [][]format.ColumnIndex
	offsets [][]format.OffsetIndex

	packed []byte
	head   bytes.Buffer
}

const magic = "PAR1"

// newTableWriter returns a writer of a table of some rows to w. The columns in drop are left empty.
func newTableWriter(w io.Writer, rows int, codec compress.Codec, drop [columnCount]bool) (*tableWriter, error) {
	t := &tableWriter{w: w, codec: codec, drop: drop}
	for i := range columns {
		c := &columns[i]
		t.builders[i] = builder{col: c, encoding: encodingOf(c), s: &t.scratch, most: min(rows, groupRows), sum: newColumnHash(), names: nameSums()[c.name]}
	}
	return t, t.write([]byte(magic))
}

// write appends p to the file.
func (t *tableWriter) write(p []byte) error {
	n, err := t.w.Write(p)
	t.at += int64(n)
	return err
}

// encode appends a structure of the format to the file.
func (t *tableWriter) encode(v any) error {
	t.head.Reset()
	if err := thrift.NewEncoder(new(thrift.CompactProtocol).NewWriter(&t.head)).Encode(v); err != nil {
		return err
	}
	return t.write(t.head.Bytes())
}

// blockRows is how many records are taken at once. Each column passes over them, so they are to stay in the cache.
const blockRows = 1024

// add adds rows to the row group, and writes it when it is full.
func (t *tableWriter) add(recs []flow.Record) error {
	for len(recs) > 0 {
		block := recs[:min(len(recs), blockRows, groupRows-t.rows)]
		recs = recs[len(block):]
		has := featuresOf(block)
		for i := range t.builders {
			if b := &t.builders[i]; t.drop[i] || b.col.needs&^has != 0 {
				b.skip(len(block))
			} else {
				b.fill(block)
			}
		}
		if t.rows += len(block); t.rows == groupRows {
			if err := t.group(); err != nil {
				return err
			}
		}
	}
	return nil
}

// group writes the row group, if it has rows.
func (t *tableWriter) group() error {
	if t.rows == 0 {
		return nil
	}
	g := format.RowGroup{NumRows: int64(t.rows), Ordinal: int16(len(t.meta.RowGroups)), FileOffset: t.at}
	columnIndex, offsetIndex := make([]format.ColumnIndex, columnCount), make([]format.OffsetIndex, columnCount)
	var filters [columnCount]bloom.SplitBlockFilter
	for i := range t.builders {
		b := &t.builders[i]
		b.finish()
		chunk, err := t.chunk(b, &columnIndex[i], &offsetIndex[i])
		if err != nil {
			return err
		}
		if b.col.filter {
			filters[i] = b.filter()
		}
		b.reset()
		g.TotalByteSize += chunk.TotalUncompressedSize
		g.TotalCompressedSize += chunk.TotalCompressedSize
		g.Columns = append(g.Columns, format.ColumnChunk{MetaData: chunk})
	}
	for i, f := range filters {
		if len(f) == 0 {
			continue
		}
		m := &g.Columns[i].MetaData
		m.BloomFilterOffset = t.at
		header := format.BloomFilterHeader{NumBytes: int32(len(f.Bytes()))}
		header.Algorithm.Value = &format.SplitBlockAlgorithm{}
		header.Hash.Value = &format.XxHash{}
		header.Compression.Value = &format.BloomFilterUncompressed{}
		if err := t.encode(&header); err != nil {
			return err
		}
		if t.head.Len() >= bloom.BlockSize { // table.filtered goes by that
			return fmt.Errorf("a filter's header of %d bytes", t.head.Len())
		}
		if err := t.write(f.Bytes()); err != nil {
			return err
		}
		m.BloomFilterLength = int32(t.at - m.BloomFilterOffset)
	}
	t.rows = 0
	t.meta.RowGroups = append(t.meta.RowGroups, g)
	t.columns, t.offsets = append(t.columns, columnIndex), append(t.offsets, offsetIndex)
	return nil
}

// chunk writes the column that b holds.
func (t *tableWriter) chunk(b *builder, index *format.ColumnIndex, offsets *format.OffsetIndex) (m format.ColumnMetaData, err error) {
	began := t.at
	m.Type = physical[b.encoding]
	m.PathInSchema = b.col.path()
	m.Codec = t.codec.CompressionCodec()
	m.NumValues = int64(b.levels)
	pack := m.Codec != format.Uncompressed // until a page of the column shows that it does not pay
	encoding := b.encoding.format()
	if b.empty() {
		encoding = format.Plain // there is no dictionary
	}
	m.Encoding = append(m.Encoding, format.RLE, encoding)
	if encoding == format.RLEDictionary {
		m.Encoding = append(m.Encoding, format.Plain)
		m.DictionaryPageOffset = t.at
		header := format.PageHeader{Type: format.DictionaryPage}
		header.DictionaryPageHeader.Set(format.DictionaryPageHeader{NumValues: int32(len(b.dict.keys)), Encoding: format.Plain})
		packed := b.dict.plain
		if pack {
			if packed, err = t.pack(b.dict.plain); err != nil {
				return m, err
			}
		}
		if err := t.page(&m, &header, nil, len(b.dict.plain), packed); err != nil {
			return m, err
		}
	}
	m.DataPageOffset = t.at
	least, greatest, ascending, known := int64(0), int64(0), true, false
	var before [2]int64
	err = b.cuts(func(c cut) error {
		reps, defs, err := b.heads(c)
		if err != nil {
			return err
		}
		if b.s.page = b.s.page[:0]; encoding == b.encoding.format() {
			if err := b.data(c); err != nil {
				return err
			}
		}
		header := format.PageHeader{Type: format.DataPageV2}
		v2 := format.DataPageHeaderV2{NumValues: int32(c.levels), NumNulls: int32(c.nulls), NumRows: int32(c.rows),
			Encoding: encoding, RepetitionLevelsByteLength: int32(reps), DefinitionLevelsByteLength: int32(defs)}
		packed := b.s.page
		if pack && len(b.s.page) > 0 {
			if packed, err = t.pack(b.s.page); err != nil {
				return err
			}
			if len(packed) > len(b.s.page)-len(b.s.page)/leastGain {
				packed, pack = b.s.page, false
			}
		}
		v2.IsCompressed.Set(pack && len(b.s.page) > 0)
		header.DataPageHeaderV2.Set(v2)
		place := format.PageLocation{Offset: t.at, FirstRowIndex: int64(c.row)}
		if err := t.page(&m, &header, b.s.head, len(b.s.page), packed); err != nil {
			return err
		}
		place.CompressedPageSize = int32(t.at - place.Offset)
		offsets.PageLocations = append(offsets.PageLocations, place)

		index.NullPages = append(index.NullPages, c.values() == 0)
		index.NullCounts = append(index.NullCounts, int64(c.nulls))
		if c.values() == 0 {
			index.MinValues, index.MaxValues = append(index.MinValues, nil), append(index.MaxValues, nil)
			return nil
		}
		lo, hi := b.bounds(c)
		index.MinValues, index.MaxValues = append(index.MinValues, b.bound(lo)), append(index.MaxValues, b.bound(hi))
		if !known {
			least, greatest, known = lo, hi, true
		} else {
			ascending = ascending && b.compare(before[0], lo) <= 0 && b.compare(before[1], hi) <= 0
			least, greatest = b.least(least, lo), b.greatest(greatest, hi)
		}
		before = [2]int64{lo, hi}
		return nil
	})
	if err != nil {
		return m, err
	}
	if ascending {
		index.BoundaryOrder = format.Ascending
	}
	m.Statistics.NullCount = int64(b.nulls)
	if known {
		m.Statistics.MinValue, m.Statistics.MaxValue = b.bound(least), b.bound(greatest)
	}
	m.TotalCompressedSize = t.at - began
	return m, nil
}

// leastGain is what compression has to take off a page to be worth its while: one byte of so many.
const leastGain = 64

// pack compresses data. The result is valid until the next call.
func (t *tableWriter) pack(data []byte) (packed []byte, err error) {
	t.packed, err = t.codec.Encode(t.packed, data)
	return t.packed, err
}

// page writes a page of levels, which are not compressed, and data, which has been size bytes before it was.
func (t *tableWriter) page(m *format.ColumnMetaData, header *format.PageHeader, levels []byte, size int, data []byte) error {
	header.UncompressedPageSize = int32(len(levels) + size)
	header.CompressedPageSize = int32(len(levels) + len(data))
	header.CRC = int32(crc32.Update(crc32.ChecksumIEEE(levels), crc32.IEEETable, data))
	if err := t.encode(header); err != nil {
		return err
	}
	m.TotalUncompressedSize += int64(t.head.Len()) + int64(header.UncompressedPageSize)
	if err := t.write(levels); err != nil {
		return err
	}
	return t.write(data)
}

// columnSums returns the sums of what was written.
func (t *tableWriter) columnSums() (sums columnSums) {
	for i := range t.builders {
		sums[i] = t.builders[i].sum.value()
	}
	return sums
}

// close writes what comes after the row groups.
func (t *tableWriter) close(about ...format.KeyValue) error {
	for i := range t.columns {
		for j := range t.columns[i] {
			c := &t.meta.RowGroups[i].Columns[j]
			c.ColumnIndexOffset = t.at
			if err := t.encode(&t.columns[i][j]); err != nil {
				return err
			}
			c.ColumnIndexLength = int32(t.at - c.ColumnIndexOffset)
		}
	}
	for i := range t.offsets {
		for j := range t.offsets[i] {
			c := &t.meta.RowGroups[i].Columns[j]
			c.OffsetIndexOffset = t.at
			if err := t.encode(&t.offsets[i][j]); err != nil {
				return err
			}
			c.OffsetIndexLength = int32(t.at - c.OffsetIndexOffset)
		}
	}
	m := &t.meta
	elements := schemaElements()
	m.Version, m.Schema, m.ColumnOrders = elements.Version, elements.Schema, elements.ColumnOrders
	m.CreatedBy = fmt.Sprintf("ctlogd version %d (build )", SchemaVersion)
	for i := range m.RowGroups {
		m.NumRows += m.RowGroups[i].NumRows
	}
	m.KeyValueMetadata = about
	began := t.at
	if err := t.encode(m); err != nil {
		return err
	}
	return t.write(append(binary.LittleEndian.AppendUint32(nil, uint32(t.at-began)), magic...))
}

// physical are the types of the format that values have.
var physical = [...]format.Type{plain64: format.Int64, plainBool: format.Boolean, delta32: format.Int32, delta64: format.Int64,
	dict32: format.Int32, dict64: format.Int64, dictText: format.ByteArray}

// path is where in the schema the column is.
func (c *column) path() []string {
	if c.list != nil {
		return []string{c.name, "list", "element"}
	}
	return []string{c.name}
}

// filter returns the filter of a column of texts: which ones the row group has.
func (b *builder) filter() bloom.SplitBlockFilter {
	if len(b.dict.keys) == 0 {
		return nil
	}
	f := make(bloom.SplitBlockFilter, bloom.NumSplitBlocksOf(int64(len(b.dict.keys)), filterBits))
	for n := range b.dict.keys {
		f.Insert(xxhash.Sum64(b.dict.entry(int64(n))))
	}
	return f
}

// schemaElements returns the schema as a footer has it: that of an empty file of the library.
var schemaElements = sync.OnceValue(func() *format.FileMetaData {
	w := parquet.NewGenericWriter[any](io.Discard, newSchema())
	_ = w.Close()
	return w.File().Metadata()
})
