package archive

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
)

// TestRowLogAtAGlance: what is passed over at a glance is counted, so that rows have their numbers, and damage is told as if
// all had been decoded; also where frames are larger than what is read at a time, and across its bounds.
func TestRowLogAtAGlance(t *testing.T) {
	path := writeTrace(t, t.TempDir(), 20_000)
	scan := func(glance func(*flow.Glance) bool) (numbers []int64, ends []flow.Tuple, err error) {
		err = scanRowLog(File{Path: path}, &Query{Glance: glance, Where: func(r *flow.Record) bool { return r.Orig.SrcPort%16 == 3 }}, func(w Row) bool {
			numbers, ends = append(numbers, w.Number), append(ends, w.Record.Orig)
			return true
		})
		return numbers, ends, err
	}
	compare := func(what, damage string) {
		t.Helper()
		seen := 0
		all, tuples, err := scan(nil)
		some, same, failed := scan(func(g *flow.Glance) bool { seen++; return g.Orig[0].Port%16 == 3 })
		if len(all) < 100 || !slices.Equal(all, some) || !slices.Equal(tuples, same) || seen < 10*len(all) {
			t.Errorf("%s: %d rows decoded, %d at a glance at %d", what, len(all), len(some), seen)
		}
		if damage == "" != (err == nil) || err != nil && (!strings.Contains(err.Error(), damage) || failed == nil || failed.Error() != err.Error()) {
			t.Errorf("%s: %v, at a glance %v, want %q", what, err, failed, damage)
		}
	}
	compare("whole", "")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{len(text) / 3, len(text) / 2} {
		text[at] ^= 0x10
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	compare("damaged", "512 records are damaged")

	// An intact frame with something else in it.
	buf := append(make([]byte, frameHeader), flow.AppendBinary(nil, makeTrace(1, 1)[0])...)
	buf = append(buf, "no record"...)
	putFrameHeader(buf, 20_000, 2)
	if err := os.WriteFile(path, append(text, buf...), 0o644); err != nil {
		t.Fatal(err)
	}
	compare("with a record of another kind", "513 records are damaged")
}

// BenchmarkAppend says what it takes to append a record to a row log, 256 at a time, and what of that is putting it into its binary form.
func BenchmarkAppend(b *testing.B) {
	tr, batch := trace.New(trace.Default()), flow.NewBatch(256, nil)
	recs := make([]*flow.Record, 256)
	for i := range recs {
		recs[i] = batch.Next()
		tr.Next(recs[i])
	}
	perRecord := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(recs)), "ns/record")
	}
	b.Run("all", func(b *testing.B) {
		l, err := createRowLog(b.TempDir(), Origin{Version: SchemaVersion, Sequence: 1})
		if err != nil {
			b.Fatal(err)
		}
		defer l.file.Close()
		size := l.size
		b.ReportAllocs()
		for b.Loop() {
			if l.size > 256<<20 { // the disk is not what is measured
				if l.size, err = size, l.file.Truncate(size); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := l.append(recs); err != nil {
				b.Fatal(err)
			}
		}
		perRecord(b)
	})
	b.Run("encoding", func(b *testing.B) {
		var buf []byte
		b.ReportAllocs()
		for b.Loop() {
			buf = buf[:0]
			for _, r := range recs {
				buf = flow.AppendBinary(buf, r)
			}
		}
		perRecord(b)
	})
}
