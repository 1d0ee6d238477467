package deliver

import (
	"math/bits"
	"sync"

	"github.com/ctlogd/ctlogd/flow"
)

// BatchRecords is the most records that an offered batch has: about 45 KiB, so that a batch that was just read is still in
// the cache when it is encoded.
const BatchRecords = 256

// writeRecords is the most that one Write gets.
const writeRecords = 8 * BatchRecords

// keepFree is how many empty batches a buffer keeps for its next use. The rest of a backlog's is garbage.
const keepFree = 4

// wanted has a bit for each record of a batch that the output wants.
type wanted [BatchRecords / 64]uint64

// want returns which records of b an output wants, and how many these are. accept may be nil: all. archive says that the
// output is one.
func want(b *flow.Batch, accept func(*flow.Record) bool, archive bool) (w wanted, n int) {
	recs := b.Records
	if accept == nil && b.Plain() { // the records need not be looked at
		for i := range w {
			if left := len(recs) - 64*i; left >= 64 {
				w[i] = ^uint64(0)
			} else if left > 0 {
				w[i] = 1<<left - 1
			}
		}
		return w, len(recs)
	}
	for i := range recs {
		if r := &recs[i]; r.Event == flow.EventGap || wants(r, accept, archive) {
			w[i/64] |= 1 << (i % 64)
			n++
		}
	}
	return w, n
}

// wants reports whether an output wants r, which is no gap. Records that were made for archives are for them alone; an archive's
// checkpoint is for all others, which may be out of the reach of those who could change the archive.
func wants(r *flow.Record, accept func(*flow.Record) bool, archive bool) bool {
	if r.Event == flow.EventCheckpoint {
		return !archive
	}
	if c := r.Checkpoint(); c != 0 && (!archive || c >= flow.CheckpointWhole) {
		return archive
	}
	return accept == nil || accept(r)
}

// each calls do with every record of the batch that is wanted.
func (w *wanted) each(recs []flow.Record, do func(*flow.Record)) {
	for i, word := range w {
		for ; word != 0; word &= word - 1 {
			do(&recs[64*i+bits.TrailingZeros64(word)])
		}
	}
}

// split takes all but the first n from w and returns them.
func (w *wanted) split(n int) (rest wanted) {
	for i, word := range w {
		k := bits.OnesCount64(word)
		for ; k > n; k-- {
			last := uint64(1) << (63 - bits.LeadingZeros64(word))
			word &^= last
			rest[i] |= last
		}
		w[i] = word
		n -= k
	}
	return rest
}

// chunk is the records of one batch that the output wants. It holds the batch.
type chunk struct {
	batch  *flow.Batch
	wanted wanted
	n      int
}

// appendTo appends pointers to the records.
func (c *chunk) appendTo(recs []*flow.Record) []*flow.Record {
	if c.n == len(c.batch.Records) {
		for i := range c.batch.Records {
			recs = append(recs, &c.batch.Records[i])
		}
		return recs
	}
	for i, word := range c.wanted {
		for ; word != 0; word &= word - 1 {
			recs = append(recs, &c.batch.Records[64*i+bits.TrailingZeros64(word)])
		}
	}
	return recs
}

// buffer holds the records that wait in memory for one output, up to a number of records. Only records that the output
// wants are in it.
//
// A batch that is mostly wanted is shared with the other outputs. The records of one that is mostly empty, or mostly
// unwanted, are copied into a batch of the buffer's own. So the memory is at most twice that of the records.
//
// Records stay in the buffer until release or moved: while the worker writes them they are its hand, and while the spooler
// appends them to the disk they are at the head. So whoever asks for the oldest record sees each one at any time.
type buffer struct {
	mu     sync.Mutex
	max    int
	held   int     // records, those in hand included
	chunks []chunk // in order; those before head are gone
	head   int
	moving int         // how many chunks at the head the spooler is putting on the disk
	hand   hand        // what the worker is writing
	onDisk bool        // the spool has records that are older than those in chunks
	tail   *flow.Batch // the buffer's own batch of the last chunk, while it has room; or nil
	free   pool        // of the buffer's own batches
	closed bool
}

// hand is what the worker has taken out of memory for one Write.
type hand struct {
	id      uint64 // tells it from the hands before
	chunks  []chunk
	recs    []*flow.Record
	done    int      // how many of recs are delivered
	gaps    gapRange // the ledger's gaps, which are at the head of recs
	offered bool     // the Write has failed: the spooler may have it
	moving  bool     // the spooler is putting it on the disk
}

// add takes the n records of b that w says, as many as there is room for. Those that find no room stay in w. It returns how
// many it took, how many it holds now, and the room.
func (f *buffer) add(b *flow.Batch, w *wanted, n int) (taken, held, room int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if taken = min(n, max(f.max-f.held, 0)); f.closed {
		taken = 0
	}
	if taken == 0 {
		return 0, f.held, f.max
	}
	mine := *w
	if taken < n {
		*w = mine.split(taken)
	}
	f.held += taken
	if 2*taken >= cap(b.Records) {
		b.Hold(1)
		f.tail = nil
		f.push(chunk{b, mine, taken})
		return taken, f.held, f.max
	}
	since := sinceOf(b)
	for i, word := range mine {
		for ; word != 0; word &= word - 1 {
			f.copy(b, 64*i+bits.TrailingZeros64(word), since)
		}
	}
	return taken, f.held, f.max
}

// copy copies record i of b into the tail. The lock is held.
func (f *buffer) copy(b *flow.Batch, i int, since int64) {
	if f.tail == nil || f.tail.Full() {
		f.tail = f.free.get()
		f.tail.Hold(1)
		f.tail.Since = since
		f.push(chunk{batch: f.tail})
	}
	f.tail.Append(b.Records[i : i+1])
	f.tail.Since = min(f.tail.Since, since)
	last := &f.chunks[len(f.chunks)-1]
	last.wanted[last.n/64] |= 1 << (last.n % 64)
	last.n++
}

// push appends a chunk. The lock is held.
func (f *buffer) push(c chunk) {
	if len(f.chunks) == cap(f.chunks) && f.head > 0 {
		n := copy(f.chunks, f.chunks[f.head:])
		clear(f.chunks[n:])
		f.chunks, f.head = f.chunks[:n], 0
	}
	f.chunks = append(f.chunks, c)
}

// pop removes n chunks behind the first at of them. The lock is held.
func (f *buffer) pop(at, n int) {
	copy(f.chunks[f.head+n:], f.chunks[f.head:f.head+at])
	clear(f.chunks[f.head : f.head+n])
	f.head += n
	if f.head == len(f.chunks) {
		f.chunks, f.head = f.chunks[:0], 0
	}
	f.seal()
}

// seal has nothing more copied into the tail if that is not the last chunk, or if it is on its way to the disk. The lock
// is held.
func (f *buffer) seal() {
	if n := len(f.chunks); n-f.head <= f.moving || f.chunks[n-1].batch != f.tail {
		f.tail = nil
	}
}

// upTo returns how many chunks behind the first at of them make one write: a quarter of the room at most, so that there is
// room for what comes meanwhile, but one chunk at least. The lock is held.
func (f *buffer) upTo(at int) (n int) {
	records := 0
	for i := f.head + at; i < len(f.chunks); i++ {
		records += f.chunks[i].n
		if n > 0 && (records > writeRecords || records > f.max/4) {
			break
		}
		n++
	}
	return n
}

// take makes the next records the worker's hand, behind the ledger's gaps if there are any. It takes no records while older
// ones are on the disk or on their way there, unless past says to go on without those.
func (f *buffer) take(past bool, gaps *flow.Batch, which gapRange) (d delivery) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := &f.hand
	if gaps != nil {
		h.gaps = which
		h.recs = pointers(h.recs, gaps)
	}
	if past || !f.onDisk && f.moving == 0 {
		n := f.upTo(f.moving)
		first := f.head + f.moving
		h.chunks = append(h.chunks, f.chunks[first:first+n]...)
		f.pop(f.moving, n)
	}
	for i := range h.chunks {
		h.recs = h.chunks[i].appendTo(h.recs)
		d.since = earlier(d.since, sinceOf(h.chunks[i].batch))
	}
	d.hand, d.recs = h.id, h.recs
	return d
}

// delivered notes that the output has taken n records of the hand, and returns which of the ledger's gaps these are. ok is
// false if the hand is no longer the worker's.
func (f *buffer) delivered(id uint64, n int) (gaps gapRange, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := &f.hand
	if h.id != id {
		return gapRange{}, false
	}
	h.done += n
	return h.gaps.split(n), true
}

// release ends the hand with that id and gives its room back, unless the spooler has taken the hand over. low says that at
// most half of the room is taken now.
func (f *buffer) release(id uint64) (low bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := &f.hand
	switch {
	case h.id != id:
	case h.moving:
		f.forget() // the spooler reads it yet
	default:
		for i := range h.chunks {
			f.held -= h.chunks[i].n
			h.chunks[i].batch.Done()
		}
		clear(h.chunks)
		clear(h.recs)
		*h = hand{id: id + 1, chunks: h.chunks[:0], recs: h.recs[:0]}
	}
	return f.held <= f.max/2
}

// forget ends the hand without giving its batches back, because another goroutine may be reading them: they are garbage
// when it is done. The lock is held.
func (f *buffer) forget() {
	for i := range f.hand.chunks {
		f.held -= f.hand.chunks[i].n
	}
	f.hand = hand{id: f.hand.id + 1}
}

// offerHand says that the spooler may have what is not delivered of the hand.
func (f *buffer) offerHand(id uint64) {
	f.mu.Lock()
	f.hand.offered = f.hand.id == id
	f.mu.Unlock()
}

// reclaimHand takes the offer back. moving says that the spooler is putting the hand on the disk. gone says that the hand is
// there, or was given up.
func (f *buffer) reclaimHand(id uint64) (moving, gone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hand.id != id {
		return false, true
	}
	f.hand.offered = false
	return f.hand.moving, false
}

// gone reports whether the hand with that id is gone.
func (f *buffer) gone(id uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hand.id != id
}

// lendHand returns what is not delivered of the hand, for the spooler to put on the disk. It returns nil if all is delivered,
// or if the hand was not offered and anyway is false.
func (f *buffer) lendHand(anyway bool) (id uint64, recs []*flow.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := &f.hand
	if h.done == len(h.recs) || !h.offered && !anyway {
		return 0, nil
	}
	h.moving = true
	return h.id, h.recs[h.done:]
}

// handMoved ends what lendHand has begun: the hand is on the disk, or is not. It returns the ledger's gaps that are.
func (f *buffer) handMoved(id uint64, ok bool) (gaps gapRange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.hand.id != id: // the output has taken it meanwhile
	case ok:
		gaps = f.hand.gaps
		f.onDisk = true
		f.forget() // a Write that hangs reads it yet
	default:
		f.hand.moving = false
	}
	return gaps
}

// lend appends to recs the next records that the spooler puts on the disk. They stay here until moved.
func (f *buffer) lend(recs []*flow.Record) []*flow.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moving = f.upTo(0)
	f.seal()
	for i := f.head; i < f.head+f.moving; i++ {
		recs = f.chunks[i].appendTo(recs)
	}
	return recs
}

// moved ends what lend has begun: the records are on the disk, or are not.
func (f *buffer) moved(ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.moving
	f.moving = 0
	if !ok || n == 0 { // or given up meanwhile
		return
	}
	for _, c := range f.chunks[f.head : f.head+n] {
		f.held -= c.n
		c.batch.Done()
	}
	f.pop(0, n)
	f.onDisk = true
}

// setOnDisk says whether the spool has records that are older than those in memory.
func (f *buffer) setOnDisk(on bool) {
	f.mu.Lock()
	f.onDisk = on
	f.mu.Unlock()
}

// older reports whether records that are older than those in memory are on the disk or on their way there.
func (f *buffer) older() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.onDisk || f.moving > 0
}

// size returns how many records the buffer holds, how many of them wait, and how many it has room for.
func (f *buffer) size() (held, waiting, room int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	held = f.held
	for i := range f.hand.chunks {
		held -= f.hand.chunks[i].n
	}
	return f.held, held, f.max
}

func (f *buffer) setMax(n int) {
	f.mu.Lock()
	f.max = n
	f.mu.Unlock()
}

// close has nothing more added.
func (f *buffer) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
}

// abandon empties the buffer and calls lose for what is not delivered. A worker or a spooler that hangs with some of the
// records finds, when its call returns, that they are no longer in its hands. abandon returns the ledger's gaps in hand.
func (f *buffer) abandon(lose func([]*flow.Record)) (gaps gapRange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	recs := f.hand.recs[f.hand.done+f.hand.gaps.len():]
	gaps = f.hand.gaps
	if len(recs) > 0 {
		lose(recs)
	}
	f.forget()
	for i := f.head; i < len(f.chunks); i++ {
		recs = f.chunks[i].appendTo(recs[:0:0])
		lose(recs)
		if i >= f.head+f.moving {
			f.chunks[i].batch.Done()
		}
	}
	f.chunks, f.head, f.moving, f.tail, f.held = nil, 0, 0, nil, 0
	return gaps
}

// sinceOf returns a time before which no flow ended that has a record in b.
func sinceOf(b *flow.Batch) int64 {
	at := b.Records[0].Received
	if b.Since != 0 {
		at = min(at, b.Since)
	}
	return at
}

// earlier returns the earlier of two times, of which 0 is none.
func earlier(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// since returns a time before which no flow ended that has a record in the buffer; 0 if it is empty. All batches are
// looked at: where the clock was set back, the first is not the oldest.
func (f *buffer) since() (oldest int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, chunks := range [...][]chunk{f.hand.chunks, f.chunks[f.head:]} {
		for i := range chunks {
			oldest = earlier(oldest, sinceOf(chunks[i].batch))
		}
	}
	return oldest
}

// oldest returns when the record that waits longest was read; 0 if none waits.
func (f *buffer) oldest() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case len(f.hand.chunks) > 0:
		return f.hand.chunks[0].batch.Records[0].Received
	case f.head < len(f.chunks):
		return f.chunks[f.head].batch.Records[0].Received
	}
	return 0
}

// pool keeps some batches that are not in use.
type pool struct {
	mu    sync.Mutex
	free  []*flow.Batch
	reuse func(*flow.Batch)
}

func (p *pool) get() *flow.Batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b
	}
	if p.reuse == nil {
		p.reuse = func(b *flow.Batch) {
			b.Reset()
			p.mu.Lock()
			if len(p.free) < keepFree {
				p.free = append(p.free, b)
			}
			p.mu.Unlock()
		}
	}
	return flow.NewBatch(BatchRecords, p.reuse)
}
