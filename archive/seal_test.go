package archive

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
)

// writeTrace makes a row log of n records of the trace.
func writeTrace(t testing.TB, dir string, n int) string {
	t.Helper()
	tr := trace.New(trace.Default())
	l, err := createRowLog(dir, Origin{Version: SchemaVersion, Host: "gw1", Observer: "obs", Sequence: 1, Interval: Duration(time.Hour), Created: Time(trace.Default().Start.UnixNano())})
	if err != nil {
		t.Fatal(err)
	}
	b := flow.NewBatch(256, nil)
	var recs []*flow.Record
	for n > 0 {
		b.Reset()
		recs = recs[:0]
		for range min(n, 256) {
			r := b.Next()
			tr.Next(r)
			recs = append(recs, r)
		}
		if _, err := l.append(recs); err != nil {
			t.Fatal(err)
		}
		n -= len(recs)
	}
	if err := l.file.Close(); err != nil {
		t.Fatal(err)
	}
	return l.path
}

func TestSealTrace(t *testing.T) {
	n := 5000
	if os.Getenv("CTLOGD_LONG") != "" {
		n = 1_000_000
	}
	path := writeTrace(t, t.TempDir(), n)
	info, _ := os.Stat(path)
	began := time.Now()
	seg, date, err := Seal(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s: %d records, row log %.1f, segment %.1f bytes a record, %v ns a record", date, seg.File, seg.Records,
		float64(info.Size())/float64(seg.Records), float64(seg.Bytes)/float64(seg.Records), time.Since(began).Nanoseconds()/seg.Records)
}

// TestBigEndian: on a big-endian processor nothing makes or reads a segment, and all say why; a row log is read. make cross runs this
// on mips.
func TestBigEndian(t *testing.T) {
	path := writeTrace(t, t.TempDir(), 100)
	seg, date, sealErr := Seal(path)
	_, readErr := inspect(filepath.Join(filepath.Dir(path), "date="+date, seg.File))
	w, openErr := Open(testOptions(t.TempDir()))
	if openErr == nil {
		if err := w.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	big := binary.NativeEndian.Uint16([]byte{0, 1}) == 1
	for what, err := range map[string]error{"seal": sealErr, "read": readErr, "open": openErr} {
		if big != errors.Is(err, ErrBigEndian) || !big && err != nil {
			t.Errorf("%s: %v on a processor that is big-endian: %v", what, err, big)
		}
	}
	n := 0
	if err := Each(path, func(*Origin, *flow.Record) error { n++; return nil }); err != nil || n != 100 {
		t.Errorf("%d records of the row log, %v", n, err)
	}
}
