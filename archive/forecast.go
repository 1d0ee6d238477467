package archive

import (
	"path/filepath"
	"time"
)

// Need is what an archive has, and what it takes.
type Need struct {
	PerDay int64 // bytes of segments that a day of records takes, 0 while there is too little to tell
	Held   int64 // bytes of the segments that are there
	Free   int64 // bytes that the file system has left
}

const (
	needOver  = 7 * 24 * time.Hour // of the newest records: a week has its days and its nights
	needLeast = time.Hour          // of records, before anything is said
)

// Forecast tells it of a host's archive from its catalog.
func Forecast(dir, host string) (n Need, err error) {
	h := &Host{Dir: filepath.Join(dir, HostFolder(host))}
	if err := h.Reload(); err != nil {
		return n, err
	}
	if n.Free, err = free(h.Dir); err != nil {
		return n, err
	}
	files := h.Segments()
	var newest, first Time
	for _, f := range files {
		n.Held += f.Segment.Bytes
		newest = max(newest, f.Segment.Last)
	}
	first = newest
	bytes := int64(0)
	for _, f := range files {
		if s := f.Segment; s.Last > newest-Time(needOver) {
			bytes += s.Bytes
			first = min(first, s.First)
		}
	}
	if span := time.Duration(newest - first); span >= needLeast {
		n.PerDay = int64(float64(bytes) / span.Hours() * 24)
	}
	return n, nil
}
