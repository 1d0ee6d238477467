package pipeline

import (
	"testing"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
)

// fill ingests batches of records that are numbered from first.
func fill(p *Pipeline, b *flow.Batch, first, batches int) *flow.Batch {
	for i := range batches {
		for j := range deliver.BatchRecords {
			b.Next().ID = uint32(first + i*deliver.BatchRecords + j)
		}
		b = p.Ingest(b)
	}
	return b
}

// A tap that does not read misses what it has no room for, is told so at its place, and costs the pipeline no more
// batches than it has room for.
func TestTapMisses(t *testing.T) {
	p := New(nil, nil)
	b := p.Batch()
	tap := p.Tap(4)
	b = fill(p, b, 0, 10)
	for i := range 4 {
		got, missed, ok := tap.More()
		if !ok || missed != 0 || got.Records[0].ID != uint32(i*deliver.BatchRecords) {
			t.Fatalf("batch %d: begins with %d, missed %d, %v", i, got.Records[0].ID, missed, ok)
		}
		got.Done()
	}
	b = fill(p, b, 10*deliver.BatchRecords, 1)
	got, missed, ok := tap.Next(nil)
	if !ok || missed != 6*deliver.BatchRecords || got.Records[0].ID != 10*deliver.BatchRecords {
		t.Fatalf("missed %d, %v, want %d", missed, ok, 6*deliver.BatchRecords)
	}
	got.Done()

	b = fill(p, b, 0, 5)
	for range 4 {
		got, _, _ := tap.More()
		got.Done()
	}
	if _, missed, ok := tap.More(); ok || missed != deliver.BatchRecords {
		t.Errorf("at the end missed %d, %v, want %d", missed, ok, deliver.BatchRecords)
	}
	if _, missed, ok := tap.More(); ok || missed != 0 {
		t.Errorf("told again of %d", missed)
	}

	b = fill(p, b, 0, 10)
	p.Untap(tap)
	if p.taps.Load() != nil {
		t.Error("the last tap is gone, and the reader still looks for it")
	}
	fill(p, b, 0, 10)
	if n := len(p.pool.free); n > 6 {
		t.Errorf("%d batches came back, want those of the tap and two", n)
	}
}

// Nobody who taps makes the reader allocate.
func TestTapAllocations(t *testing.T) {
	p := New(nil, nil)
	b := fill(p, p.Batch(), 0, 1)
	for _, taps := range []int{0, 1} {
		for range taps {
			tap := p.Tap(4)
			defer p.Untap(tap)
		}
		if n := testing.AllocsPerRun(100, func() { b = fill(p, b, 0, 1) }); n > 0 {
			t.Errorf("%d taps: %v allocations a batch", taps, n)
		}
	}
}
