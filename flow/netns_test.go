package flow

import (
	"fmt"
	"sync"
	"testing"
	"unsafe"
)

func TestRecordSize(t *testing.T) {
	if n := unsafe.Sizeof(Record{}); n != 184 {
		t.Errorf("a record has %d bytes; the budget is 184", n)
	}
}

// TestNetnsHeldByBatches gives a number to another namespace only when no batch has a record of the first one any more.
func TestNetnsHeldByBatches(t *testing.T) {
	var table netnsTable
	for i := range 3 {
		if n := table.hold(appendNetns(nil, &NetnsInfo{int32(i), "a"})); n != Netns(i+1) {
			t.Fatalf("namespace %d has the number %d", i, n)
		}
	}
	if n := table.hold(appendNetns(nil, &NetnsInfo{1, "a"})); n != 2 {
		t.Fatalf("the same namespace has the number %d", n)
	}
	table.holds[2].Add(-1)
	if n := table.hold(appendNetns(nil, &NetnsInfo{9, "b"})); n != 4 {
		t.Fatalf("a number that is held was given away: %d", n)
	}
	table.holds[2].Add(-1)
	if n := table.hold(appendNetns(nil, &NetnsInfo{10, "c"})); n != 2 {
		t.Fatalf("the number that nobody holds was not given: %d", n)
	}
	if info := table.infos[2].Load(); *info != (NetnsInfo{10, "c"}) {
		t.Fatalf("%+v", info)
	}
	if n := table.hold(appendNetns(nil, &NetnsInfo{1, "a"})); n != 5 {
		t.Fatalf("a namespace that was forgotten has the number %d", n)
	}

	n := HoldNetns(77, "held by batches")
	held := func() int32 { return namespaces.holds[n].Load() }
	before := held()
	freed := 0
	a := NewBatch(3, func(*Batch) { freed++ })
	a.SetNetns(a.Next(), n)
	a.SetNetns(a.Next(), n)
	b := NewBatch(3, nil)
	b.Append(a.Records)
	if b.Records[1].Netns != n || held() != before+2 {
		t.Fatalf("two batches hold it %d times", held()-before)
	}
	a.Reset()
	b.Reset()
	if held() != before {
		t.Fatalf("batches that are empty hold it %d times", held()-before)
	}
	encoded := AppendBinary(nil, &Record{Event: EventDestroy, Netns: n})
	if allocs := testing.AllocsPerRun(100, func() {
		if _, err := b.DecodeBinary(encoded); err != nil || b.Records[0].Netns != n || held() != before+1 {
			t.Fatal(err, held()-before)
		}
		b.Reset()
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	n.Release()
}

// TestNetnsAreTooMany: what finds no number is a namespace of which nothing is known.
func TestNetnsAreTooMany(t *testing.T) {
	const left = 3
	table := netnsTable{used: int(unknownNetns) - 1 - left}
	for n := range table.used {
		table.holds[n+1].Store(1)
	}
	for i := range left + 2 {
		want := unknownNetns
		if i < left {
			want = Netns(int(unknownNetns) - left + i)
		}
		if n := table.hold(appendNetns(nil, &NetnsInfo{int32(i), "x"})); n != want {
			t.Fatalf("namespace %d has the number %d, want %d", i, n, want)
		}
	}
	if info := unknownNetns.Info(); *info != unknownInfo {
		t.Errorf("%+v", info)
	}
}

func TestNetnsConcurrently(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 2000 {
				name := fmt.Sprint(i % 300)
				n := HoldNetns(int32(i%300), name)
				if info := n.Info(); info.Name != name || info.ID != int32(i%300) {
					t.Errorf("%+v, want %s", info, name)
				}
				n.Release()
			}
		})
	}
	wg.Wait()
}
