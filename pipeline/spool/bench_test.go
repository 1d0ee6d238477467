package spool

import (
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

const benchRecords = 256

func benchOpen(b *testing.B) *Spool {
	b.Helper()
	s, err := Open(Config{Path: b.TempDir(), MaxSize: 256 << 20, WhenFull: DropOldest}, testOutput, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	b.ReportAllocs()
	return s
}

// perRecord reports the cost of one record, there being benchRecords to an iteration.
func perRecord(b *testing.B) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchRecords, "ns/record")
}

func BenchmarkAppend(b *testing.B) {
	s, recs := benchOpen(b), records(1, 1+benchRecords)
	for b.Loop() {
		if _, err := s.Append(recs); err != nil {
			b.Fatal(err)
		}
	}
	perRecord(b)
}

func BenchmarkRead(b *testing.B) {
	s := benchOpen(b)
	appendAll(b, s, 1, 1+200*benchRecords, benchRecords)
	batch := flow.NewBatch(benchRecords, nil)
	for b.Loop() {
		batch.Reset()
		if n, err := s.Read(batch); err != nil {
			b.Fatal(err)
		} else if n < benchRecords {
			s.Rewind()
		}
	}
	perRecord(b)
}

// BenchmarkThrough is a batch's way through the spool: append, read, commit.
func BenchmarkThrough(b *testing.B) {
	s, recs := benchOpen(b), records(1, 1+benchRecords)
	batch := flow.NewBatch(benchRecords, nil)
	for b.Loop() {
		batch.Reset()
		if _, err := s.Append(recs); err != nil {
			b.Fatal(err)
		}
		n, err := s.Read(batch)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Commit(n); err != nil {
			b.Fatal(err)
		}
	}
	perRecord(b)
}
