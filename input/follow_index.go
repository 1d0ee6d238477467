package input

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	slotBits = 24 // of an index entry; the rest is hash
	slotMask = 1<<slotBits - 1

	noSlot = ^uint32(0)
)

// index finds the slots of followed flows by hash: a table with open addressing of words that hold the upper 40 bits
// of the hash and, in the lower 24, the slot plus one. It is a quarter to three quarters full, hence 11 bytes a flow
// and at most 32, and lies outside Go's heap: growing leaves no garbage, and the collector does not see it.
//
// A hash says that the flow may be followed; the caller compares the tuples.
type index struct {
	table []uint64
	shift uint // a hash's place is its upper bits
	n     int
}

const minIndexBits = 10

func newIndex() (*index, error) {
	x := &index{}
	return x, x.resize(minIndexBits)
}

// resize moves the entries into a new table of 1<<bits words.
func (x *index) resize(bits uint) error {
	mem, err := unix.Mmap(-1, 0, 8<<bits, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("get memory for %d flows: %w", 1<<bits, err)
	}
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // searches jump about: fewer misses of the TLB
	old := x.table
	x.table, x.shift = unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), 1<<bits), 64-bits
	for _, e := range old {
		if e != 0 {
			x.insert(e)
		}
	}
	return unmap(old)
}

func unmap(table []uint64) error {
	if table == nil {
		return nil
	}
	return unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(&table[0])), 8*len(table)))
}

func (x *index) close() {
	_ = unmap(x.table)
	x.table, x.n = nil, 0
}

// start returns the position at which a search for hash begins.
func (x *index) start(hash uint64) int { return int(hash >> x.shift) }

// next returns the next slot of hash at or behind position at, and its position; noSlot if there is none.
func (x *index) next(hash uint64, at int) (slot uint32, pos int) {
	for ; ; at++ {
		at &= len(x.table) - 1
		e := x.table[at]
		if e == 0 {
			return noSlot, at
		}
		if (e^hash)>>slotBits == 0 {
			return uint32(e&slotMask) - 1, at
		}
	}
}

// add enters slot, at most slotMask-1, under hash.
func (x *index) add(hash uint64, slot uint32) error {
	if x.n >= len(x.table)/4*3 {
		if err := x.resize(64 - x.shift + 1); err != nil {
			return err
		}
	}
	x.insert(hash&^slotMask | uint64(slot+1))
	x.n++
	return nil
}

func (x *index) insert(entry uint64) {
	at := x.start(entry)
	for x.table[at] != 0 {
		at = (at + 1) & (len(x.table) - 1)
	}
	x.table[at] = entry
}

// remove takes out the entry at a position that next has returned, and moves those behind it up, so that no search
// ends too early.
func (x *index) remove(pos int) {
	mask := len(x.table) - 1
	for at := pos; ; {
		at = (at + 1) & mask
		e := x.table[at]
		if e == 0 {
			break
		}
		if (at-x.start(e))&mask >= (at-pos)&mask {
			x.table[pos] = e
			pos = at
		}
	}
	x.table[pos] = 0
	x.n--
}
