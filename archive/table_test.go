package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/parquet-go/parquet-go"
)

// TestForeignSizes wants no room made for what a few bytes say of themselves.
func TestForeignSizes(t *testing.T) {
	const many = 1 << 20
	list := func(head ...byte) []byte { // a field that is a list of so many structures without a field
		b := append(head, 0xf0|thriftStruct)
		b = binary.AppendUvarint(b, many)
		return append(b, make([]byte, many+1)...)
	}
	footer := list(4<<4 | thriftList)
	file := append([]byte(magic), footer...)
	file = binary.LittleEndian.AppendUint32(file, uint32(len(footer)))
	file = append(file, magic...)
	if _, err := openTable(bytes.NewReader(file), int64(len(file))); !errors.Is(err, errDescription) {
		t.Errorf("a million row groups: %v", err)
	}

	pages := list(1<<4 | thriftList)
	g := &rowGroup{rows: many - 1}
	g.chunks[0].offsetEnd = int64(len(pages))
	g.offsetIndexes.end = int64(len(pages))
	table := &table{f: bytes.NewReader(pages), size: int64(len(pages))}
	if _, err := table.places(g, 0, false); !errors.Is(err, errDescription) {
		t.Errorf("more pages than rows: %v", err)
	}

	for n := 1; n < 300; n += 33 {
		b, err := parquet.DeltaBinaryPacked.EncodeInt64(nil, make([]int64, n))
		if err != nil {
			t.Fatal(err)
		}
		if !deltaOf(b, n) || deltaOf(b, n-1) || deltaOf(b[:2], n) {
			t.Errorf("%d values are not told by %x", n, b)
		}
	}
}
