package archive

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/parquet-go/parquet-go"
)

// inspect reads a whole segment, and returns what its catalog line has to say.
func inspect(path string) (seg Segment, err error) {
	defer damaged(&err)
	t, err := openSegment(path)
	if err != nil {
		return seg, err
	}
	defer t.close()
	if t.origin.Version > SchemaVersion {
		return seg, ErrNewer
	}
	if err := json.Unmarshal(t.facts, &seg.Facts); err != nil {
		return seg, fmt.Errorf("its description: %w", err)
	}
	if t.rows != seg.Records {
		return seg, fmt.Errorf("%d rows, and its description says %d", t.rows, seg.Records)
	}
	pf, err := parquet.OpenFile(t.file, t.size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return seg, err
	}
	if _, err := sumsOf(pf); err != nil {
		return seg, err
	}
	seg.File = filepath.Base(path)
	seg.Bytes, seg.SHA256, err = hashFile(t.file)
	return seg, err
}
