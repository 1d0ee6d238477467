package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
)

// inspect reads a whole segment, and returns what its catalog line has to say.
func inspect(path string) (seg Segment, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = damagedError(p)
		}
	}()
	f, pf, o, err := openSegment(path)
	if err != nil {
		return seg, err
	}
	defer f.Close()
	if o.Version > SchemaVersion {
		return seg, ErrNewer
	}
	text, ok := pf.Lookup(metaFacts)
	if !ok {
		return seg, errors.New("is no segment of an archive")
	}
	if err := json.Unmarshal([]byte(text), &seg.Facts); err != nil {
		return seg, fmt.Errorf("its description: %w", err)
	}
	if pf.NumRows() != seg.Records {
		return seg, fmt.Errorf("%d rows, and its description says %d", pf.NumRows(), seg.Records)
	}
	if _, err := newTable(pf, o).sums(); err != nil {
		return seg, err
	}
	seg.File = filepath.Base(path)
	seg.Bytes, seg.SHA256, err = hashFile(f)
	return seg, err
}
