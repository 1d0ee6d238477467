package spool

import (
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

const benchRecords = 256

// benchBatch returns a batch's worth of records without strings.
func benchBatch() []*flow.Record {
	recs := records(1, 1+benchRecords)
	for _, r := range recs {
		r.Extra = nil
	}
	return recs
}

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
	s, recs := benchOpen(b), benchBatch()
	for b.Loop() {
		if _, err := s.Append(recs); err != nil {
			b.Fatal(err)
		}
	}
	perRecord(b)
}

func BenchmarkRead(b *testing.B) {
	s := benchOpen(b)
	for recs, i := benchBatch(), 0; i < 200; i++ {
		if _, err := s.Append(recs); err != nil {
			b.Fatal(err)
		}
	}
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
	s, recs := benchOpen(b), benchBatch()
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
