package flow

import (
	"encoding/binary"
	"errors"
	"math"
	"unsafe"
)

// errCorrupt is what DecodeBinary returns for bytes that AppendBinary did not write.
var errCorrupt = errors.New("corrupt record")

// binaryVersion is the first byte of every encoded record. A change of the layout gets a new number; the decoder goes
// on reading the old ones, as records outlive an upgrade on disk.
const binaryVersion = 1

// The layout of version 1; integers are little-endian, and "v" marks those of variable length (encoding/binary):
//
//	0      1      2          4           6
//	+------+------+----------+-----------+--------------------------------------------------------------+
//	| 0x01 | Event|   Has    | hasX mask | what the mask names, in the order of its bits                |
//	+------+------+----------+-----------+--------------------------------------------------------------+
//
// A field of the value zero is absent. Received has 8 bytes; the other times are v differences from it, which wrap
// around, so that every value survives. A tuple is a byte of tuX bits, the protocol, and what the bits name. Extra is
// a mask of exX bits and what they name. Strings and names have their length (v) in front.
const (
	hasReceived = 1 << iota
	hasStart
	hasStop
	hasStamp
	hasOrig
	hasReply
	hasOrigCounters
	hasReplyCounters
	hasID
	hasMark
	hasTimeout
	hasStatus
	hasZone
	hasState
	hasExtra
	hasMore
)

// What hasMore stands for: a byte of these bits, and what they name.
const (
	moNetns = 1 << iota // length (v) of what follows: the id in 4 bytes, and the name

	moAll = moNetns<<1 - 1
)

const (
	tuSrc4    = 1 << iota // Src is IPv4-mapped: 4 bytes
	tuSrc16               // Src in 16 bytes
	tuDst4                // likewise Dst
	tuDst16               //
	tuPorts               // SrcPort and DstPort
	tuZone                // Zone
	tuV6                  // V6 is true
	tuHasZone             // HasZone is true
)

const (
	exHelper = 1 << iota
	exMaster
	exHasMaster // is true
	exHasLabels // is true
	exLabels
	exSecCtx
	exClass
	exFlags
	exCause
	exLost
	exLostKnown // is true
	exOutput
	exCheckpoint
	exSubscriber // a byte of subX bits, and what they name
	exNote

	exAll = exNote<<1 - 1
)

const (
	subID = 1 << iota
	subName
	subNext
	subSource
	subDst // is true

	subAll = subDst<<1 - 1
)

// AppendBinary appends r, its Extra included, to dst in a compact form that DecodeBinary reads. It is for the disk:
// a typical record of IPv4 with NAT takes some 70 bytes.
func AppendBinary(dst []byte, r *Record) []byte {
	start := len(dst)
	dst = append(dst, binaryVersion, byte(r.Event), byte(r.Has), byte(r.Has>>8), 0, 0)
	mask := 0
	if r.Received != 0 {
		mask |= hasReceived
		dst = binary.LittleEndian.AppendUint64(dst, uint64(r.Received))
	}
	if r.Start != 0 {
		mask |= hasStart
		dst = binary.AppendVarint(dst, r.Received-r.Start)
	}
	if r.Stop != 0 {
		mask |= hasStop
		dst = binary.AppendVarint(dst, r.Received-r.Stop)
	}
	if r.Stamp != 0 {
		mask |= hasStamp
		dst = binary.AppendVarint(dst, r.Received-r.Stamp)
	}
	if r.Orig != (Tuple{}) {
		mask |= hasOrig
		dst = appendTuple(dst, &r.Orig)
	}
	if r.Reply != (Tuple{}) {
		mask |= hasReply
		dst = appendTuple(dst, &r.Reply)
	}
	if r.OrigCounters != (Counters{}) {
		mask |= hasOrigCounters
		dst = binary.AppendUvarint(dst, r.OrigCounters.Packets)
		dst = binary.AppendUvarint(dst, r.OrigCounters.Bytes)
	}
	if r.ReplyCounters != (Counters{}) {
		mask |= hasReplyCounters
		dst = binary.AppendUvarint(dst, r.ReplyCounters.Packets)
		dst = binary.AppendUvarint(dst, r.ReplyCounters.Bytes)
	}
	if r.ID != 0 {
		mask |= hasID
		dst = binary.LittleEndian.AppendUint32(dst, r.ID)
	}
	if r.Mark != 0 {
		mask |= hasMark
		dst = binary.AppendUvarint(dst, uint64(r.Mark))
	}
	if r.Timeout != 0 {
		mask |= hasTimeout
		dst = binary.AppendUvarint(dst, uint64(r.Timeout))
	}
	if r.Status != 0 {
		mask |= hasStatus
		dst = binary.AppendUvarint(dst, uint64(r.Status))
	}
	if r.Zone != 0 {
		mask |= hasZone
		dst = binary.LittleEndian.AppendUint16(dst, r.Zone)
	}
	if r.State != 0 {
		mask |= hasState
		dst = append(dst, r.State)
	}
	if r.Extra != nil {
		mask |= hasExtra
		dst = appendExtra(dst, r.Extra)
	}
	if r.Netns != 0 {
		mask |= hasMore
		dst = appendMore(dst, r)
	}
	binary.LittleEndian.PutUint16(dst[start+4:], uint16(mask))
	return dst
}

func appendMore(dst []byte, r *Record) []byte {
	start := len(dst)
	dst = append(dst, 0)
	mask := byte(0)
	if r.Netns != 0 {
		mask |= moNetns
		info := r.Netns.Info()
		dst = appendNetns(binary.AppendUvarint(dst, uint64(4+len(info.Name))), info)
	}
	dst[start] = mask
	return dst
}

func appendTuple(dst []byte, t *Tuple) []byte {
	start := len(dst)
	dst = append(dst, 0, byte(t.Proto))
	bits := byte(0)
	switch {
	case t.Src.mapped():
		bits |= tuSrc4
		dst = append(dst, t.Src[12:]...)
	case t.Src != Addr{}:
		bits |= tuSrc16
		dst = append(dst, t.Src[:]...)
	}
	switch {
	case t.Dst.mapped():
		bits |= tuDst4
		dst = append(dst, t.Dst[12:]...)
	case t.Dst != Addr{}:
		bits |= tuDst16
		dst = append(dst, t.Dst[:]...)
	}
	if t.SrcPort|t.DstPort != 0 {
		bits |= tuPorts
		dst = binary.LittleEndian.AppendUint16(dst, t.SrcPort)
		dst = binary.LittleEndian.AppendUint16(dst, t.DstPort)
	}
	if t.Zone != 0 {
		bits |= tuZone
		dst = binary.LittleEndian.AppendUint16(dst, t.Zone)
	}
	if t.V6 {
		bits |= tuV6
	}
	if t.HasZone {
		bits |= tuHasZone
	}
	dst[start] = bits
	return dst
}

// mapped reports whether the address has the form that AddrFrom4 returns.
func (a *Addr) mapped() bool {
	hi, lo := a.Words()
	return hi == 0 && lo>>32 == 0xffff
}

func appendExtra(dst []byte, x *Extra) []byte {
	start := len(dst)
	dst = append(dst, 0, 0)
	mask := 0
	if x.Helper != (Name{}) {
		mask |= exHelper
		dst = append(dst, x.Helper[:]...)
	}
	if x.Master != (Tuple{}) {
		mask |= exMaster
		dst = appendTuple(dst, &x.Master)
	}
	if x.HasMaster {
		mask |= exHasMaster
	}
	if x.HasLabels {
		mask |= exHasLabels
	}
	if x.Labels != [16]byte{} {
		mask |= exLabels
		dst = append(dst, x.Labels[:]...)
	}
	if x.SecCtx != "" {
		mask |= exSecCtx
		dst = append(binary.AppendUvarint(dst, uint64(len(x.SecCtx))), x.SecCtx...)
	}
	if x.Class != 0 {
		mask |= exClass
		dst = binary.AppendUvarint(dst, uint64(x.Class))
	}
	if x.Flags != 0 {
		mask |= exFlags
		dst = binary.AppendUvarint(dst, uint64(x.Flags))
	}
	if x.Gap.Cause != 0 {
		mask |= exCause
		dst = append(dst, byte(x.Gap.Cause))
	}
	if x.Gap.Lost != 0 {
		mask |= exLost
		dst = binary.AppendUvarint(dst, x.Gap.Lost)
	}
	if x.Gap.LostKnown {
		mask |= exLostKnown
	}
	if x.Gap.Output != "" {
		mask |= exOutput
		dst = append(binary.AppendUvarint(dst, uint64(len(x.Gap.Output))), x.Gap.Output...)
	}
	if x.Checkpoint != 0 {
		mask |= exCheckpoint
		dst = append(dst, byte(x.Checkpoint))
	}
	if x.Subscriber != (Subscriber{}) {
		mask |= exSubscriber
		dst = appendSubscriber(dst, &x.Subscriber)
	}
	if n := x.Note; n != nil {
		mask |= exNote
		dst = binary.AppendUvarint(dst, n.Lines)
		for _, s := range [...]string{n.Output, n.Origin, n.Hash, n.Text} {
			dst = append(binary.AppendUvarint(dst, uint64(len(s))), s...)
		}
	}
	binary.LittleEndian.PutUint16(dst[start:], uint16(mask))
	return dst
}

func appendSubscriber(dst []byte, s *Subscriber) []byte {
	start := len(dst)
	dst = append(dst, 0)
	for i, text := range [...]string{s.ID, s.Name, s.Next, s.Source} {
		if text != "" {
			dst[start] |= subID << i
			dst = append(binary.AppendUvarint(dst, uint64(len(text))), text...)
		}
	}
	if s.Dst {
		dst[start] |= subDst
	}
	return dst
}

// DecodeBinary appends the record at the start of src, as AppendBinary wrote it, to the batch, which must have room,
// and returns what follows it. The record shares no memory with src. On error nothing is appended.
func (b *Batch) DecodeBinary(src []byte) (rest []byte, err error) {
	used, text := b.used, len(b.text)
	r := b.Next()
	n, mask := 0, 0
	if len(src) >= glanceRoom {
		n, mask = r.read((*[glanceRoom]byte)(src))
	} else {
		n, mask = r.readLast(src)
	}
	d := decoder{src: src, bad: n == 0 || n > len(src)}
	if !d.bad {
		d.src = src[n:]
		if mask&hasExtra != 0 {
			d.extra(b, b.Extra(r))
		}
		if mask&hasMore != 0 {
			d.more(b, r)
		}
	}
	if d.bad {
		b.Drop()
		b.used = used
		b.text = b.text[:min(text, len(b.text))]
		return src, errCorrupt
	}
	return d.src, nil
}

// readLast is read for a record with less behind it, as if zeros followed. What has taken some of them is not whole.
func (r *Record) readLast(src []byte) (n, mask int) {
	var b [glanceRoom]byte
	copy(b[:], src)
	return r.read(&b)
}

// read reads what precedes Extra, and returns how many bytes that takes; 0 if AppendBinary has not written it.
func (r *Record) read(b *[glanceRoom]byte) (n, mask int) {
	r.Event, r.Has = Event(b[1]), Has(binary.LittleEndian.Uint16(b[2:]))
	mask = int(binary.LittleEndian.Uint16(b[4:]))
	if b[0] != binaryVersion || r.Event > EventCheckpoint {
		return 0, 0
	}
	n = 6
	bad := false
	var u uint64
	numbers := uint64(0) // those of 32 bits
	if mask&hasReceived != 0 {
		r.Received = int64(binary.LittleEndian.Uint64(b[n:]))
		n += 8
	}
	if mask&hasStart != 0 {
		u, n = uvarintAt(b, n, &bad)
		r.Start = r.Received - signed(u)
	}
	if mask&hasStop != 0 {
		u, n = uvarintAt(b, n, &bad)
		r.Stop = r.Received - signed(u)
	}
	if mask&hasStamp != 0 {
		u, n = uvarintAt(b, n, &bad)
		r.Stamp = r.Received - signed(u)
	}
	if mask&hasOrig != 0 {
		if n = r.Orig.read(b, n); n == 0 {
			return 0, 0
		}
	}
	if mask&hasReply != 0 {
		if n = r.Reply.read(b, n); n == 0 {
			return 0, 0
		}
	}
	if mask&hasOrigCounters != 0 {
		r.OrigCounters.Packets, n = uvarintAt(b, n, &bad)
		r.OrigCounters.Bytes, n = uvarintAt(b, n, &bad)
	}
	if mask&hasReplyCounters != 0 {
		r.ReplyCounters.Packets, n = uvarintAt(b, n, &bad)
		r.ReplyCounters.Bytes, n = uvarintAt(b, n, &bad)
	}
	if mask&hasID != 0 {
		r.ID = binary.LittleEndian.Uint32(b[n:])
		n += 4
	}
	if mask&hasMark != 0 {
		u, n = uvarintAt(b, n, &bad)
		r.Mark = uint32(u)
		numbers |= u
	}
	if mask&hasTimeout != 0 {
		u, n = uvarintAt(b, n, &bad)
		r.Timeout = uint32(u)
		numbers |= u
	}
	if mask&hasStatus != 0 {
		u, n = uvarintAt(b, n, &bad)
		r.Status = Status(u)
		numbers |= u
	}
	if mask&hasZone != 0 {
		r.Zone = binary.LittleEndian.Uint16(b[n:])
		n += 2
	}
	if mask&hasState != 0 {
		r.State = b[n]
		n++
	}
	if bad || numbers > math.MaxUint32 {
		return 0, 0
	}
	return n, mask
}

// read reads the tuple at b[n:] and returns where it ends, 0 if AppendBinary has not written it.
func (t *Tuple) read(b *[glanceRoom]byte, n int) int {
	form := b[n]
	t.Proto = Proto(b[n+1])
	n += 2
	if form&(tuSrc4|tuSrc16|tuDst4|tuDst16) == tuSrc4|tuDst4 {
		t.Src.Set4((*[4]byte)(b[n:]))
		t.Dst.Set4((*[4]byte)(b[n+4:]))
		n += 8
	} else {
		for i, a := range [...]*Addr{&t.Src, &t.Dst} {
			switch form >> (2 * i) & (tuSrc4 | tuSrc16) {
			case tuSrc4:
				a.Set4((*[4]byte)(b[n:]))
				n += 4
			case tuSrc16:
				copy(a[:], b[n:n+16])
				n += 16
			case tuSrc4 | tuSrc16:
				return 0
			}
		}
	}
	if form&tuPorts != 0 {
		t.SrcPort, t.DstPort = binary.LittleEndian.Uint16(b[n:]), binary.LittleEndian.Uint16(b[n+2:])
		n += 4
	}
	if form&tuZone != 0 {
		t.Zone = binary.LittleEndian.Uint16(b[n:])
		n += 2
	}
	t.V6 = form&tuV6 != 0
	t.HasZone = form&tuHasZone != 0
	return n
}

// uvarintAt returns the integer of variable length at b[n:], and where it ends.
func uvarintAt(b *[glanceRoom]byte, n int, bad *bool) (u uint64, end int) {
	if size := varintSize(b, n); size <= 8 {
		return uvarintOf(b, n, size), n + size
	}
	u, size := binary.Uvarint(b[n:])
	if size <= 0 {
		*bad = true
		return 0, n
	}
	return u, n + size
}

// signed returns the number that an unsigned one stands for as a varint.
func signed(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// decoder takes values from the front of src. Once bad, it stays so, and what it returns is of no meaning.
type decoder struct {
	src []byte
	bad bool
}

func (d *decoder) more(b *Batch, r *Record) {
	mask := d.uint8()
	if mask&^moAll != 0 {
		d.bad = true
		return
	}
	if mask&moNetns != 0 {
		d.netns(b, r)
	}
}

func (d *decoder) netns(b *Batch, r *Record) {
	key := d.bytes(int(d.uvarint(math.MaxInt32)))
	if d.bad || len(key) < 4 {
		d.bad = true
		return
	}
	n := namespaces.hold(key)
	b.SetNetns(r, n)
	n.Release()
}

func (d *decoder) tuple(t *Tuple) {
	var b [glanceRoom]byte
	copy(b[:], d.src)
	n := t.read(&b, 0)
	if n == 0 || n > len(d.src) {
		d.bad, d.src = true, nil
		return
	}
	d.src = d.src[n:]
}

func (d *decoder) extra(b *Batch, x *Extra) {
	mask := int(d.uint16())
	if mask&^exAll != 0 {
		d.bad = true
		return
	}
	if mask&exHelper != 0 {
		copy(x.Helper[:], d.bytes(NameLen))
	}
	if mask&exMaster != 0 {
		d.tuple(&x.Master)
	}
	x.HasMaster = mask&exHasMaster != 0
	x.HasLabels = mask&exHasLabels != 0
	if mask&exLabels != 0 {
		copy(x.Labels[:], d.bytes(len(x.Labels)))
	}
	if mask&exSecCtx != 0 {
		x.SecCtx = d.string()
	}
	if mask&exClass != 0 {
		x.Class = uint32(d.uvarint(math.MaxUint32))
	}
	if mask&exFlags != 0 {
		x.Flags = uint32(d.uvarint(math.MaxUint32))
	}
	if mask&exCause != 0 {
		x.Gap.Cause = Cause(d.uint8())
	}
	if mask&exLost != 0 {
		x.Gap.Lost = d.uvarint(math.MaxUint64)
	}
	x.Gap.LostKnown = mask&exLostKnown != 0
	if mask&exOutput != 0 {
		x.Gap.Output = d.string()
	}
	if mask&exCheckpoint != 0 {
		x.Checkpoint = Checkpoint(d.uint8())
	}
	if mask&exSubscriber != 0 {
		d.subscriber(b, &x.Subscriber)
	}
	if mask&exNote != 0 {
		n := &Note{Lines: d.uvarint(math.MaxUint64)}
		for _, s := range [...]*string{&n.Output, &n.Origin, &n.Hash, &n.Text} {
			*s = d.string()
		}
		x.Note = n
	}
}

func (d *decoder) subscriber(b *Batch, s *Subscriber) {
	bits := d.uint8()
	if bits&^subAll != 0 {
		d.bad = true
		return
	}
	for i, text := range [...]*string{&s.ID, &s.Name, &s.Next, &s.Source} {
		if bits&(subID<<i) != 0 {
			p := d.bytes(int(d.uvarint(math.MaxInt32)))
			*text = b.Text(unsafe.String(unsafe.SliceData(p), len(p)))
		}
	}
	s.Dst = bits&subDst != 0
}

// bytes takes n bytes, which alias src; nil if there are not so many.
func (d *decoder) bytes(n int) []byte {
	if len(d.src) < n {
		d.bad = true
		d.src = nil
		return nil
	}
	p := d.src[:n]
	d.src = d.src[n:]
	return p
}

func (d *decoder) uint8() uint8 {
	if len(d.src) < 1 {
		d.bad = true
		return 0
	}
	v := d.src[0]
	d.src = d.src[1:]
	return v
}

func (d *decoder) uint16() uint16 {
	if len(d.src) < 2 {
		d.bad = true
		return 0
	}
	v := binary.LittleEndian.Uint16(d.src)
	d.src = d.src[2:]
	return v
}

func (d *decoder) uvarint(limit uint64) uint64 {
	if len(d.src) > 0 && d.src[0] < 0x80 { // most are
		v := d.src[0]
		d.src = d.src[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(d.src)
	if n <= 0 || v > limit {
		d.bad = true
		return 0
	}
	d.src = d.src[n:]
	return v
}

func (d *decoder) string() string {
	return string(d.bytes(int(d.uvarint(math.MaxInt32))))
}
