package input

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// A store's file, in native byte order: it does not leave the machine. Page 0 is its header, each other one holds 30
// flows. Nothing of it is mapped: what it takes is the kernel's page cache, not this process's memory.
//
//	 0      4       8        16
//	+------+-------+--------+---------------------------
//	| CRC  | used  | asked  | 30 slots of 136 bytes
//	+------+-------+--------+---------------------------
//
// CRC is the CRC-32C of the rest, used has a bit for each slot that holds a flow, and asked is the time (ns since
// 1970) before which none of them had ended.
const (
	pageSize  = 4096
	pageHead  = 16
	slotBytes = 136
	pageSlots = (pageSize - pageHead) / slotBytes

	pageCRC, pageUsed, pageAsked = 0, 4, 8

	// cachePages pages are held in memory. The flows of a dump come in the order in which an earlier one has found
	// them, but for those found later, which stand behind: a few pages are in use at a time.
	cachePages = 64
)

// Offsets in a slot. The reply tuple's protocol and family are those of the original one.
const (
	slotOrigSrc   = 0
	slotOrigDst   = 16
	slotReplySrc  = 32
	slotReplyDst  = 48
	slotPorts     = 64 // original source and destination, reply source and destination
	slotZones     = 72 // of the original and the reply direction
	slotProto     = 76
	slotFlags     = 77 // tuV6 and so on
	slotCounters  = 78 // original packets and bytes, reply packets and bytes
	slotStart     = 110
	slotID        = 118
	slotMark      = 122
	slotStatus    = 126
	slotZone      = 130
	slotHas       = 132
	slotState     = 134
	slotFlagV6    = 1
	slotFlagOrig  = 2 // the original direction has a zone
	slotFlagReply = 4
)

// slotHasMask are the fields that a slot holds.
const slotHasMask = flow.HasOrig | flow.HasReply | flow.HasStatus | flow.HasID | flow.HasMark | flow.HasZone |
	flow.HasCounters | flow.HasTCP | flow.HasSCTP | flow.HasDCCP

// putSlot writes to s what is kept of r: all that its last record needs but for helper, master and labels, which the
// memory of helpers has.
func putSlot(s []byte, r *flow.Record) {
	_ = s[slotBytes-1]
	o, p := &r.Orig, &r.Reply
	copy(s[slotOrigSrc:], o.Src[:])
	copy(s[slotOrigDst:], o.Dst[:])
	copy(s[slotReplySrc:], p.Src[:])
	copy(s[slotReplyDst:], p.Dst[:])
	for i, v := range [...]uint16{o.SrcPort, o.DstPort, p.SrcPort, p.DstPort, o.Zone, p.Zone} {
		binary.NativeEndian.PutUint16(s[slotPorts+2*i:], v)
	}
	s[slotProto] = byte(o.Proto)
	var flags byte
	if o.V6 {
		flags |= slotFlagV6
	}
	if o.HasZone {
		flags |= slotFlagOrig
	}
	if p.HasZone {
		flags |= slotFlagReply
	}
	s[slotFlags] = flags
	for i, v := range [...]uint64{r.OrigCounters.Packets, r.OrigCounters.Bytes, r.ReplyCounters.Packets,
		r.ReplyCounters.Bytes, uint64(r.Start)} {
		binary.NativeEndian.PutUint64(s[slotCounters+8*i:], v)
	}
	binary.NativeEndian.PutUint32(s[slotID:], r.ID)
	binary.NativeEndian.PutUint32(s[slotMark:], r.Mark)
	binary.NativeEndian.PutUint32(s[slotStatus:], uint32(r.Status))
	binary.NativeEndian.PutUint16(s[slotZone:], r.Zone)
	binary.NativeEndian.PutUint16(s[slotHas:], uint16(r.Has&slotHasMask))
	s[slotState] = r.State
	s[slotState+1] = 0
}

// getSlot reads what putSlot has written.
func getSlot(s []byte, r *flow.Record) {
	_ = s[slotBytes-1]
	*r = flow.Record{}
	o, p := &r.Orig, &r.Reply
	o.Src, o.Dst = flow.Addr(s[slotOrigSrc:slotOrigDst]), flow.Addr(s[slotOrigDst:slotReplySrc])
	p.Src, p.Dst = flow.Addr(s[slotReplySrc:slotReplyDst]), flow.Addr(s[slotReplyDst:slotPorts])
	for i, v := range [...]*uint16{&o.SrcPort, &o.DstPort, &p.SrcPort, &p.DstPort, &o.Zone, &p.Zone} {
		*v = binary.NativeEndian.Uint16(s[slotPorts+2*i:])
	}
	o.Proto = flow.Proto(s[slotProto])
	flags := s[slotFlags]
	o.V6, o.HasZone, p.HasZone = flags&slotFlagV6 != 0, flags&slotFlagOrig != 0, flags&slotFlagReply != 0
	for i, v := range [...]*uint64{&r.OrigCounters.Packets, &r.OrigCounters.Bytes, &r.ReplyCounters.Packets,
		&r.ReplyCounters.Bytes} {
		*v = binary.NativeEndian.Uint64(s[slotCounters+8*i:])
	}
	r.Start = int64(binary.NativeEndian.Uint64(s[slotStart:]))
	r.ID = binary.NativeEndian.Uint32(s[slotID:])
	r.Mark = binary.NativeEndian.Uint32(s[slotMark:])
	r.Status = flow.Status(binary.NativeEndian.Uint32(s[slotStatus:]))
	r.Zone = binary.NativeEndian.Uint16(s[slotZone:])
	r.Has = flow.Has(binary.NativeEndian.Uint16(s[slotHas:])) & slotHasMask
	r.State = s[slotState]
	if r.Has&flow.HasReply != 0 {
		p.Proto, p.V6 = o.Proto, o.V6
	}
}

// page is what is known of a page without reading it. The words have a bit for each slot.
type page struct {
	asked int64  // when none of its flows had ended, ns since 1970
	used  uint32 // holds a flow
	seen  uint32 // was found alive in this round
	gone  uint32 // was found gone, its record is due
}

type cached struct {
	page  int // -1: none
	dirty bool
	data  [pageSize]byte
}

// store keeps followed flows in a file by slot. It is the reader's own.
type store struct {
	file  *os.File
	head  header
	pages []page
	free  []uint32 // slots that were used
	cache [cachePages]cached
}

// header is what a store's file says of itself. Its flows are those of one network namespace; that of another boot is
// unknown by its number, but then every flow has ended.
type header struct {
	Magic [16]byte
	Boot  [36]byte // boot_id
	Dev   uint64   // the namespace, as stat(2) has it
	Ino   uint64
	Since int64 // flows inserted from then on report their end
	Asked int64 // none of the flows had ended by then
}

var storeMagic = [16]byte([]byte("ctlogd follow 1\n"))

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// storeFile returns the path of the store in dir.
func storeFile(dir string) string { return filepath.Join(dir, "follow") }

// openStore opens the store in dir, "" being a file that does not outlast this process, and hands each flow that a
// predecessor has left there to found. What belongs to another namespace, or is damaged, it drops.
func openStore(dir string, found func(slot uint32, r *flow.Record) error) (s *store, left bool, err error) {
	s = &store{}
	for i := range s.cache {
		s.cache[i].page = -1
	}
	if dir == "" {
		dir = os.TempDir()
		if s.file, err = os.CreateTemp(dir, "ctlogd-follow-*"); err == nil {
			err = os.Remove(s.file.Name())
		}
	} else {
		s.file, err = os.OpenFile(storeFile(dir), os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err == nil {
		err = unix.Flock(int(s.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		if s.file != nil {
			_ = s.file.Close()
		}
		return nil, false, fmt.Errorf("open the file of followed flows in %s: %w", dir, err)
	}
	if s.head, err = ownHeader(); err == nil {
		left, err = s.load(found)
	}
	if err != nil {
		_ = s.file.Close()
		return nil, false, err
	}
	return s, left, nil
}

func ownHeader() (h header, err error) {
	h.Magic = storeMagic
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // hidden (ProcSubset=pid), every boot is the same one
	copy(h.Boot[:], strings.TrimSpace(string(boot)))
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return h, fmt.Errorf("tell the network namespace: %w", err)
	}
	h.Dev, h.Ino = st.Dev, st.Ino
	return h, nil
}

// load reads what the file holds; left says that it was this namespace's in this boot.
func (s *store) load(found func(slot uint32, r *flow.Record) error) (left bool, err error) {
	var data [pageSize]byte
	if _, err := s.file.ReadAt(data[:], 0); err != nil && err != io.EOF {
		return false, fmt.Errorf("read the followed flows: %w", err)
	}
	var old header
	if !sound(data[:]) || binary.Read(bytes.NewReader(data[pageHead:]), binary.NativeEndian, &old) != nil ||
		old.Magic != storeMagic || old.Boot == s.head.Boot && (old.Dev != s.head.Dev || old.Ino != s.head.Ino) {
		return false, s.reset()
	}
	left = old.Boot == s.head.Boot
	s.head.Asked, s.head.Since = old.Asked, old.Since
	for len(s.pages) < slotMask/pageSlots {
		if _, err := s.file.ReadAt(data[:], int64(len(s.pages)+1)*pageSize); err == io.EOF {
			break
		} else if err != nil {
			return false, fmt.Errorf("read the followed flows: %w", err)
		}
		p := page{}
		if sound(data[:]) { // a power failure may have cut a page, the end of this process cannot
			p.used = binary.NativeEndian.Uint32(data[pageUsed:]) & (1<<pageSlots - 1)
			p.asked = max(int64(binary.NativeEndian.Uint64(data[pageAsked:])), old.Asked)
		}
		first := uint32(len(s.pages) * pageSlots)
		s.pages = append(s.pages, p)
		for i := range uint32(pageSlots) {
			if p.used>>i&1 == 0 {
				s.free = append(s.free, first+i)
				continue
			}
			var r flow.Record
			getSlot(data[pageHead+i*slotBytes:][:slotBytes], &r)
			if err := found(first+i, &r); err != nil {
				return false, err
			}
		}
	}
	return left, nil
}

func sound(page []byte) bool {
	return binary.NativeEndian.Uint32(page) == crc32.Checksum(page[4:], castagnoli)
}

// writeHead writes the header.
func (s *store) writeHead() error {
	var data [pageSize]byte
	if _, err := binary.Encode(data[pageHead:], binary.NativeEndian, &s.head); err != nil {
		return err
	}
	return s.write(data[:], 0)
}

func (s *store) write(data []byte, number int) error {
	binary.NativeEndian.PutUint32(data, crc32.Checksum(data[4:], castagnoli))
	if _, err := s.file.WriteAt(data, int64(number)*pageSize); err != nil {
		return fmt.Errorf("write the followed flows: %w", err)
	}
	return nil
}

// reset drops every flow and gives the disk back.
func (s *store) reset() error {
	for i := range s.cache {
		s.cache[i].page, s.cache[i].dirty = -1, false
	}
	s.pages, s.free = nil, nil
	if err := s.file.Truncate(0); err != nil {
		return fmt.Errorf("empty the file of followed flows: %w", err)
	}
	return s.writeHead()
}

// at returns a page, its data, and the bit of a slot in it. The data is valid until the next call, and is written back
// if dirty is set.
func (s *store) at(slot uint32) (p *page, c *cached, bit uint32, err error) {
	n := int(slot / pageSlots)
	p, c = &s.pages[n], &s.cache[n%cachePages]
	if c.page != n {
		if err := s.flushPage(c); err != nil {
			return nil, nil, 0, err
		}
		c.page = -1
		if _, err := s.file.ReadAt(c.data[:], int64(n+1)*pageSize); err != nil && err != io.EOF {
			return nil, nil, 0, fmt.Errorf("read the followed flows: %w", err)
		}
		c.page = n
	}
	return p, c, 1 << (slot % pageSlots), nil
}

// slot returns the bytes of a slot in its page.
func (c *cached) slot(slot uint32) []byte {
	return c.data[pageHead+slot%pageSlots*slotBytes:][:slotBytes]
}

// take returns a slot that is free; it is r's from now on.
func (s *store) take(r *flow.Record, now int64) (slot uint32, err error) {
	if n := len(s.free); n > 0 {
		slot = s.free[n-1]
		s.free = s.free[:n-1]
	} else {
		n := len(s.pages)
		s.pages = append(s.pages, page{})
		// Whatever the file held there is no flow.
		c := &s.cache[n%cachePages]
		if err := s.flushPage(c); err != nil {
			return noSlot, err
		}
		c.page, c.data = n, [pageSize]byte{}
		first := uint32(n * pageSlots)
		for i := uint32(pageSlots - 1); i > 0; i-- {
			s.free = append(s.free, first+i)
		}
		slot = first
	}
	p, c, bit, err := s.at(slot)
	if err != nil {
		return noSlot, err
	}
	putSlot(c.slot(slot), r)
	if p.used == 0 {
		p.asked = now
	}
	p.used, p.seen, p.gone, c.dirty = p.used|bit, p.seen|bit, p.gone&^bit, true
	return slot, nil
}

// release frees a slot.
func (s *store) release(slot uint32) error {
	p, c, bit, err := s.at(slot)
	if err != nil {
		return err
	}
	p.used, p.seen, p.gone, c.dirty = p.used&^bit, p.seen&^bit, p.gone&^bit, true
	s.free = append(s.free, slot)
	return nil
}

func (s *store) flushPage(c *cached) error {
	if !c.dirty {
		return nil
	}
	p := &s.pages[c.page]
	binary.NativeEndian.PutUint32(c.data[pageUsed:], p.used)
	if p.gone == 0 { // a successor is to know of those who are gone when they were there last
		binary.NativeEndian.PutUint64(c.data[pageAsked:], uint64(p.asked))
	}
	if err := s.write(c.data[:], c.page+1); err != nil {
		return err
	}
	c.dirty = false
	return nil
}

// flush hands to the kernel what has changed: from then on the end of this process costs none of it.
func (s *store) flush() error {
	for i := range s.cache {
		if err := s.flushPage(&s.cache[i]); err != nil {
			return err
		}
	}
	return nil
}

// left returns how many flows the store holds.
func (s *store) left() (n int) {
	for i := range s.pages {
		n += bits.OnesCount32(s.pages[i].used)
	}
	return n
}

func (s *store) close() error { return errors.Join(s.flush(), s.writeHead(), s.file.Close()) }
