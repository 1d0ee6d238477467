package flow

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// Glance is what a look at a record in its binary form tells without decoding it: enough to pass over those that nobody has
// asked for. It is what DecodeBinary would say, but for the tails of addresses.
type Glance struct {
	Event       Event
	Has         Has
	Time        int64 // as Record.Time returns it
	Start       int64 // 0: not known
	Orig, Reply GlanceTuple
}

// GlanceTuple has the source and the destination of a tuple.
type GlanceTuple [2]GlanceEnd

// GlanceEnd is an end of a tuple.
type GlanceEnd struct {
	Tail uint32 // of the address, see TailOf
	Port uint16
}

// TailOf returns the last four bytes of an address, by which a Glance tells addresses apart as far as it does.
func TailOf(a *Addr) uint32 { return binary.LittleEndian.Uint32(a[12:]) }

// glanceRoom is how many bytes may be looked at without asking whether they are there: what precedes Extra takes 201 at most,
// and an integer is read with what follows it.
const glanceRoom = 256

// Read looks at the record at the start of src and returns what follows it. What DecodeBinary refuses is an error here,
// too; then the Glance means nothing.
func (g *Glance) Read(src []byte) (rest []byte, err error) {
	n, mask := 0, 0
	if len(src) >= glanceRoom {
		n, mask = g.read((*[glanceRoom]byte)(src))
	} else {
		n, mask = g.readLast(src)
	}
	if n == 0 || n > len(src) {
		return g.decode(src)
	}
	if mask&(hasExtra|hasMore) == 0 {
		return src[n:], nil
	}
	d := decoder{src: src[n:]}
	if mask&hasExtra != 0 {
		d.passExtra()
	}
	if mask&hasMore != 0 {
		d.passMore()
	}
	if d.bad {
		return src, errCorrupt
	}
	return d.src, nil
}

// readLast reads as if zeros followed src. What has taken some of them is not whole.
func (g *Glance) readLast(src []byte) (n, mask int) {
	var b [glanceRoom]byte
	copy(b[:], src)
	return g.read(&b)
}

// decode reads what is corrupt, or has an integer of more than 56 bits.
func (g *Glance) decode(src []byte) (rest []byte, err error) {
	b := NewBatch(1, nil)
	if rest, err = b.DecodeBinary(src); err != nil {
		return src, err
	}
	r := &b.Records[0]
	at, _ := r.Time()
	ends := func(t *Tuple) GlanceTuple {
		return GlanceTuple{{TailOf(&t.Src), t.SrcPort}, {TailOf(&t.Dst), t.DstPort}}
	}
	*g = Glance{r.Event, r.Has, at, r.Start, ends(&r.Orig), ends(&r.Reply)}
	return rest, nil
}

// read reads what precedes Extra, and returns how many bytes that takes; 0 if decode has to do it.
func (g *Glance) read(b *[glanceRoom]byte) (n, mask int) {
	if b[0] != binaryVersion || Event(b[1]) > EventCheckpoint {
		return 0, 0
	}
	*g = Glance{Event: Event(b[1]), Has: Has(binary.LittleEndian.Uint16(b[2:]))}
	mask = int(binary.LittleEndian.Uint16(b[4:]))
	n = 6
	long := 0 // of the integers, the longest
	var received, start, stop, stamp int64
	if mask&hasReceived != 0 {
		received = int64(binary.LittleEndian.Uint64(b[n:]))
		n += 8
	}
	if mask&hasStart != 0 {
		size := varintSize(b, n)
		start = received - varintOf(b, n, size)
		n, long = n+size, max(long, size)
	}
	if mask&hasStop != 0 {
		size := varintSize(b, n)
		stop = received - varintOf(b, n, size)
		n, long = n+size, max(long, size)
	}
	if mask&hasStamp != 0 {
		size := varintSize(b, n)
		stamp = received - varintOf(b, n, size)
		n, long = n+size, max(long, size)
	}
	g.Start = start
	g.Time, _ = timeOf(g.Event, received, stop, stamp)
	if mask&hasOrig != 0 {
		if n = g.Orig.read(b, n); n == 0 {
			return 0, 0
		}
	}
	if mask&hasReply != 0 {
		if n = g.Reply.read(b, n); n == 0 {
			return 0, 0
		}
	}
	for counters := mask & (hasOrigCounters | hasReplyCounters); counters != 0; counters &= counters - 1 {
		packets := varintSize(b, n)
		octets := varintSize(b, n+packets)
		n, long = n+packets+octets, max(long, packets, octets)
	}
	if mask&hasID != 0 {
		n += 4
	}
	for three := mask & (hasMark | hasTimeout | hasStatus); three != 0; three &= three - 1 {
		size := varintSize(b, n)
		if size > 4 && uvarintOf(b, n, size) > math.MaxUint32 {
			return 0, 0
		}
		n, long = n+size, max(long, size)
	}
	if mask&hasZone != 0 {
		n += 2
	}
	if mask&hasState != 0 {
		n++
	}
	if long > 8 {
		return 0, 0
	}
	return n, mask
}

// read reads a tuple at b[n:] and returns where it ends, 0 if it is corrupt.
func (t *GlanceTuple) read(b *[glanceRoom]byte, n int) int {
	form := b[n]
	n += 2 // and the protocol
	for i := range t {
		switch form >> (2 * i) & (tuSrc4 | tuSrc16) {
		case 0:
			continue
		case tuSrc4:
			n += 4
		case tuSrc16:
			n += 16
		default:
			return 0
		}
		t[i].Tail = binary.LittleEndian.Uint32(b[n-4:])
	}
	if form&tuPorts != 0 {
		t[0].Port, t[1].Port = binary.LittleEndian.Uint16(b[n:]), binary.LittleEndian.Uint16(b[n+2:])
		n += 4
	}
	if form&tuZone != 0 {
		n += 2
	}
	return n
}

// varintSize returns how long the integer at b[n:] is; 9 if it is longer than 8.
func varintSize(b *[glanceRoom]byte, n int) int {
	ends := ^binary.LittleEndian.Uint64(b[n:]) & 0x8080808080808080
	return bits.TrailingZeros64(ends)/8 + 1
}

// uvarintOf returns the integer of up to 8 bytes at b[n:], which is put together at once: each byte has 7 bits of it.
func uvarintOf(b *[glanceRoom]byte, n, size int) uint64 {
	above := uint(64-8*size) & 63
	u := binary.LittleEndian.Uint64(b[n:]) << above >> above
	u = u&0x007f007f007f007f | u&0x7f007f007f007f00>>1
	u = u&0x00003fff00003fff | u&0x3fff00003fff0000>>2
	return u&0x000000000fffffff | u&0x0fffffff00000000>>4
}

func varintOf(b *[glanceRoom]byte, n, size int) int64 { return signed(uvarintOf(b, n, size)) }

func (d *decoder) passText() { d.bytes(int(d.uvarint(math.MaxInt32))) }

func (d *decoder) passExtra() {
	mask := int(d.uint16())
	if mask&^exAll != 0 {
		d.bad = true
		return
	}
	if mask&exHelper != 0 {
		d.bytes(NameLen)
	}
	if mask&exMaster != 0 {
		d.tuple(new(Tuple))
	}
	if mask&exLabels != 0 {
		d.bytes(len(Extra{}.Labels))
	}
	if mask&exSecCtx != 0 {
		d.passText()
	}
	if mask&exClass != 0 {
		d.uvarint(math.MaxUint32)
	}
	if mask&exFlags != 0 {
		d.uvarint(math.MaxUint32)
	}
	if mask&exCause != 0 {
		d.uint8()
	}
	if mask&exLost != 0 {
		d.uvarint(math.MaxUint64)
	}
	if mask&exOutput != 0 {
		d.passText()
	}
	if mask&exCheckpoint != 0 {
		d.uint8()
	}
	if mask&exSubscriber != 0 {
		bits := d.uint8()
		if bits&^subAll != 0 {
			d.bad = true
			return
		}
		for i := range 4 {
			if bits&(subID<<i) != 0 {
				d.passText()
			}
		}
	}
	if mask&exNote != 0 {
		d.uvarint(math.MaxUint64)
		for range 4 {
			d.passText()
		}
	}
}

func (d *decoder) passMore() {
	mask := d.uint8()
	if mask&^moAll != 0 {
		d.bad = true
		return
	}
	if mask&moNetns != 0 {
		if key := d.bytes(int(d.uvarint(math.MaxInt32))); len(key) < 4 {
			d.bad = true
		}
	}
}
