package archive

import (
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

// BenchmarkRowLog reads a row log of 200,000 records as whois does, which looks at the time of each.
func BenchmarkRowLog(b *testing.B) {
	path := writeTrace(b, b.TempDir(), 200_000)
	for b.Loop() {
		last := int64(0)
		q := Query{Where: func(r *flow.Record) bool {
			t, _ := r.Time()
			last = max(last, t)
			return false
		}}
		if err := scanRowLog(File{Path: path}, &q, func(Row) bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/200_000, "ns/record")
}
