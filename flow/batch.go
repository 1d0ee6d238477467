package flow

import (
	"sync/atomic"
	"unsafe"
)

// Batch is the unit that moves: records in the order in which they were read. It is filled and amended by one
// goroutine, and read-only and shared from the moment at which it is offered to the outputs. The last holder to call
// Done gives it back to the pool that it came from.
type Batch struct {
	Records []Record

	// Since is a time (ns since 1970) before which no flow ended that has a record here or in a later batch, and no gap of
	// this batch begins, or 0. What the kernel holds back comes late, and in no order.
	Since int64

	extras []*[extraChunk]Extra
	used   int
	text   []byte  // what Text returned
	netns  []Netns // held for the records
	refs   atomic.Int32
	free   func(*Batch)
}

const extraChunk = 16

// NewBatch returns an empty batch with room for n records. free is called when the last holder is done with it.
func NewBatch(n int, free func(*Batch)) *Batch {
	return &Batch{Records: make([]Record, 0, n), free: free}
}

// Full reports whether the batch has no room left.
func (b *Batch) Full() bool { return len(b.Records) == cap(b.Records) }

// Next returns the next record of the batch, zeroed, and makes it the last of Records. The batch must not be full.
func (b *Batch) Next() *Record {
	n := len(b.Records)
	b.Records = b.Records[:n+1]
	r := &b.Records[n]
	*r = Record{}
	return r
}

// Drop removes the last record, one that Next returned and that turned out to be of no use.
func (b *Batch) Drop() { b.Records = b.Records[:len(b.Records)-1] }

// Extra returns r's Extra, giving r a zeroed one of this batch's if it has none. Chunks are kept when the batch is
// reused, so that this allocates only while the batch grows to the most it ever held.
func (b *Batch) Extra(r *Record) *Extra {
	if r.Extra == nil {
		if b.used == len(b.extras)*extraChunk {
			b.extras = append(b.extras, new([extraChunk]Extra))
		}
		r.Extra = &b.extras[b.used/extraChunk][b.used%extraChunk]
		*r.Extra = Extra{}
		b.used++
	}
	return r.Extra
}

// Text returns a copy of s in the batch's storage, valid for as long as its records are. The storage is kept when the
// batch is reused.
func (b *Batch) Text(s string) string {
	if len(s) > cap(b.text)-len(b.text) {
		// Texts made before stay where they are; the old storage goes when the last of them does.
		b.text = make([]byte, 0, max(2*cap(b.text), len(s), 1024))
	}
	at := len(b.text)
	b.text = append(b.text, s...)
	return unsafe.String(unsafe.SliceData(b.text[at:]), len(s))
}

// SetNetns says that r, the last record of the batch, is of a flow in n, which somebody must be holding. The batch holds it
// until it is reset.
func (b *Batch) SetNetns(r *Record, n Netns) {
	r.Netns = n
	if last := len(b.netns) - 1; n != 0 && (last < 0 || b.netns[last] != n) {
		n.Hold()
		b.netns = append(b.netns, n)
	}
}

// Plain reports whether no record of the batch has an Extra.
func (b *Batch) Plain() bool { return b.used == 0 }

// Reset empties the batch for its next use.
func (b *Batch) Reset() {
	b.Records = b.Records[:0]
	b.Since = 0
	b.used = 0
	b.text = b.text[:0]
	for _, n := range b.netns {
		n.Release()
	}
	b.netns = b.netns[:0]
}

// Hold makes n more holders of the batch.
func (b *Batch) Hold(n int) { b.refs.Add(int32(n)) }

// Done ends one hold. After it, the caller may not touch the batch or its records.
func (b *Batch) Done() {
	if b.refs.Add(-1) == 0 && b.free != nil {
		b.free(b)
	}
}

// Copy makes r, the last record of the batch, a copy of what from is, its Extra included.
func (b *Batch) Copy(r, from *Record) {
	*r = *from
	if x := r.Extra; x != nil {
		r.Extra = nil
		own := b.Extra(r)
		*own = *x
		s := &own.Subscriber
		s.ID, s.Name, s.Next, s.Source = b.Text(s.ID), b.Text(s.Name), b.Text(s.Next), b.Text(s.Source)
	}
	b.SetNetns(r, from.Netns)
}

// Clone returns a copy of r, its Extra included, that stays when r's batch is used again.
func (r *Record) Clone() *Record {
	b := NewBatch(1, nil)
	b.Copy(b.Next(), r)
	return &b.Records[0]
}

// Append copies recs to the end of the batch, their Extra included. There must be room.
func (b *Batch) Append(recs []Record) {
	for i := range recs {
		b.Copy(b.Next(), &recs[i])
	}
}
