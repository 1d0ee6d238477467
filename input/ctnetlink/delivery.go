package ctnetlink

import "time"

// delivery keeps account of how far the kernel's events have been read, from the socket's count of drops (SO_MEMINFO).
// Under best-effort delivery a drop is a lost event. Under reliable delivery it is an attempt that the kernel repeats:
// ended flows are withheld meanwhile.
type delivery struct {
	reliable bool

	drops    uint32    // at the last look; it wraps
	lookedAt time.Time // when that was
	rose     time.Time // when drops was last seen to have risen

	emptied time.Time // the socket was read empty, and this is when the reading began; zero: not since catchUp
	caught  time.Time // all flows that ended before have been read
}

// count takes note of the socket's count, and returns by how much it has grown since when.
func (d *delivery) count(drops uint32, now time.Time) (from time.Time, grown uint32) {
	grown = drops - d.drops // right across the wrap of the counter
	from = d.lookedAt
	d.drops, d.lookedAt = drops, now
	if grown > 0 {
		d.rose = now
	}
	return from, grown
}

// withheld reports whether the kernel may hold ended flows back: then it tries to deliver one once a second at least.
func (d *delivery) withheld(now time.Time) bool {
	return d.reliable && !d.rose.IsZero() && now.Sub(d.rose) < sliceWait
}

// catchUp moves caught up if the socket was read empty, and nothing is withheld. After the last look at the count
// something may be.
func (d *delivery) catchUp(now time.Time) {
	if d.emptied.IsZero() {
		return
	}
	if !d.withheld(now) {
		d.caught = d.emptied
		if d.lookedAt.Before(d.caught) {
			d.caught = d.lookedAt
		}
	}
	d.emptied = time.Time{}
}
