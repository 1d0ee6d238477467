package deliver

import (
	"math/rand/v2"
	"slices"
	"testing"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
)

// batchOf returns a batch with room for BatchRecords that has n records, numbered from first. Every call of done counts
// that it was given back.
func batchOf(first uint32, n int, done *int) *flow.Batch {
	b := flow.NewBatch(BatchRecords, func(*flow.Batch) { *done++ })
	for i := range n {
		r := b.Next()
		r.Event, r.ID, r.Received = flow.EventDestroy, first+uint32(i), 1+int64(first)
	}
	b.Hold(1)
	return b
}

// A queue of N holds N records that its output wants, whatever the size of the batches that they come in, and counts no
// others; in no more than twice their memory.
func TestBufferHoldsWhatItSays(t *testing.T) {
	for _, max := range []int{1, 200, BatchRecords, 3000} {
		for _, size := range []int{1, 50, 127, 128, BatchRecords} {
			for _, every := range []uint32{1, 2, 3, 100} { // the output wants one record of so many
				f := buffer{max: max}
				accept := func(r *flow.Record) bool { return r.ID%every == 0 }
				offered, wants, taken, done := uint32(0), 0, 0, 0
				for wants < 2*max && offered < DefaultMax/2 {
					b := batchOf(offered, size, &done)
					w, n := want(b, accept, false)
					k, _, _ := f.add(b, &w, n)
					if left := 0; k < n {
						w.each(b.Records, func(r *flow.Record) {
							if r.ID%every != 0 {
								t.Fatalf("record %d, which is unwanted, found no room", r.ID)
							}
							left++
						})
						if left != n-k {
							t.Fatalf("%d records found no room, %d are told", n-k, left)
						}
					}
					b.Done()
					offered, wants, taken = offered+uint32(size), wants+n, taken+k
				}
				if want := min(max, wants); taken != want || f.held != want {
					t.Errorf("max %d, batches of %d, 1 of %d wanted: %d of %d taken, %d held, want %d", max, size, every, taken,
						wants, f.held, want)
				}
				memory := 0
				for _, c := range f.chunks {
					memory += cap(c.batch.Records)
				}
				if memory > 2*taken+BatchRecords {
					t.Errorf("max %d, batches of %d, 1 of %d wanted: %d records take the memory of %d", max, size, every, taken, memory)
				}
				// They come out again, each once and in order.
				var got []uint32
				for {
					d := f.take(false, nil, gapRange{})
					if len(d.recs) == 0 {
						break
					}
					for _, r := range d.recs {
						got = append(got, r.ID)
					}
					f.delivered(d.hand, len(d.recs))
					f.release(d.hand)
				}
				if len(got) != taken || !slices.IsSorted(got) || slices.ContainsFunc(got, func(id uint32) bool { return id%every != 0 }) {
					t.Fatalf("max %d, batches of %d, 1 of %d wanted: %d records come out, want %d", max, size, every, len(got), taken)
				}
				if f.held != 0 {
					t.Errorf("%d are held at the end", f.held)
				}
			}
		}
	}
}

// Batches that are mostly wanted are shared and given back; the others are copied, and so given back at once.
func TestBufferShares(t *testing.T) {
	for _, tt := range []struct {
		size   int
		every  uint32
		shared bool
	}{{BatchRecords, 1, true}, {BatchRecords, 2, true}, {BatchRecords, 3, false}, {128, 1, true}, {127, 1, false}} {
		f := buffer{max: 1000}
		done := 0
		b := batchOf(0, tt.size, &done)
		w, n := want(b, func(r *flow.Record) bool { return r.ID%tt.every == 0 }, false)
		f.add(b, &w, n)
		b.Done()
		if (done == 0) != tt.shared {
			t.Errorf("1 of %d of %d records: given back at once %v, want %v", tt.every, tt.size, done > 0, !tt.shared)
		}
		d := f.take(false, nil, gapRange{})
		f.release(d.hand)
		if done != 1 {
			t.Errorf("1 of %d of %d records: given back %d times", tt.every, tt.size, done)
		}
	}
}

// What another goroutine may be reading is not given back: the hand of a Write that hangs, taken over or given up.
func TestBufferForgets(t *testing.T) {
	for name, end := range map[string]func(f *buffer, id uint64){
		"the spooler takes it over": func(f *buffer, _ uint64) {
			id, recs := f.lendHand(true)
			if len(recs) != 90 {
				t.Errorf("%d records are lent, want the 90 that are not delivered", len(recs))
			}
			f.handMoved(id, true)
		},
		"the output takes it while the spooler reads": func(f *buffer, id uint64) {
			lent, _ := f.lendHand(true)
			f.delivered(id, 90)
			f.release(id)
			if gaps := f.handMoved(lent, true); gaps.len() > 0 || f.onDisk {
				t.Errorf("it counts as moved: gaps %v, on disk %v", gaps, f.onDisk)
			}
		},
		"it is given up": func(f *buffer, _ uint64) {
			lost := 0
			f.abandon(func(recs []*flow.Record) { lost += len(recs) })
			if lost != 90 {
				t.Errorf("%d records are lost, want the 90 that are not delivered", lost)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := buffer{max: 1000}
			done := 0
			b := batchOf(0, 200, &done)
			w, n := want(b, func(r *flow.Record) bool { return r.ID%2 == 0 }, false)
			f.add(b, &w, n)
			if n != 100 {
				t.Fatalf("%d are wanted", n)
			}
			d := f.take(false, nil, gapRange{})
			recs := slices.Clone(d.recs)
			f.delivered(d.hand, 10)
			end(&f, d.hand)
			if f.held != 0 {
				t.Errorf("%d are held", f.held)
			}
			again := f.take(true, nil, gapRange{})
			if len(again.recs) != 0 || again.hand == d.hand {
				t.Errorf("the hand has %d records", len(again.recs))
			}
			for i := range 100 { // what comes next does not write over it
				b := batchOf(uint32(1000+i), 10, &done)
				f.closed = false
				w, n := want(b, nil, false)
				f.add(b, &w, n)
			}
			for i, r := range recs {
				if r.ID != uint32(2*i) {
					t.Fatalf("record %d is %d by now", 2*i, r.ID)
				}
			}
			f.delivered(d.hand, 5)
			f.release(d.hand) // the call returns: nothing happens
		})
	}
}

// One goroutine each offers, delivers and moves to the disk, where that fails now and then: each record comes out once, and in
// order but for the hands that were moved late.
func TestBufferMoves(t *testing.T) {
	q := queueOf(discard{}, nil, 5000, zap.NewNop())
	f := &q.buffer
	const total = 30_000
	seen := make([]int, total)
	random := rand.New(rand.NewPCG(1, 2))
	next, done := uint32(0), 0
	var disk []uint32
	count := func(id uint32) { seen[id]++ }
	for next < total || f.held > 0 || len(disk) > 0 {
		switch random.IntN(4) {
		case 0:
			if next < total && f.held+BatchRecords <= f.max {
				b := batchOf(next, min(1+random.IntN(BatchRecords), int(total-next)), &done)
				next += uint32(len(b.Records))
				q.Offer(b)
				b.Done()
			}
		case 1: // the worker
			d := f.take(false, nil, gapRange{})
			k := random.IntN(len(d.recs) + 1)
			for _, r := range d.recs[:k] {
				count(r.ID)
			}
			f.delivered(d.hand, k)
			if k < len(d.recs) { // the Write fails, and the spooler has the rest
				f.offerHand(d.hand)
				id, recs := f.lendHand(false)
				for _, r := range recs {
					disk = append(disk, r.ID)
				}
				f.handMoved(id, true)
				f.setOnDisk(len(disk) > 0)
			}
			f.release(d.hand)
		case 2: // the spooler
			recs := f.lend(nil)
			ok := random.IntN(3) > 0
			if ok {
				for _, r := range recs {
					disk = append(disk, r.ID)
				}
			}
			f.moved(ok)
			f.setOnDisk(len(disk) > 0)
		default: // the disk is read
			for _, id := range disk {
				count(id)
			}
			disk = disk[:0]
			f.setOnDisk(false)
		}
	}
	for id, n := range seen {
		if n != 1 {
			t.Fatalf("record %d came %d times", id, n)
		}
	}
}
