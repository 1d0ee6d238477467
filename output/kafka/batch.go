package kafka

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
)

// A record batch, version 2 (Kafka's documentation, "Record Batch"), behind the size with which it stands in a Produce
// request. It is built here and not by kafka-go so that a record is written once, by its encoder, and no object is made
// for it. Integers are in network order.
//
//	 0  size of all that follows            27  last offset delta
//	 4  base offset: 0                      31  timestamp of the first record, ms since 1970
//	12  length of what follows              39  the largest timestamp
//	16  partition leader epoch: -1          47  producer id, its epoch, base sequence: -1, as it is not idempotent
//	20  magic: 2                            61  number of records
//	21  CRC-32C of all from 25 on           65  the records, compressed
//	25  attributes: the codec
const (
	batchSize       = 0
	batchLength     = 12
	batchEpoch      = 16
	batchMagic      = 20
	batchCRC        = 21
	batchAttributes = 25
	batchLastDelta  = 27
	batchFirstTime  = 31
	batchMaxTime    = 39
	batchProducer   = 47
	batchCount      = 61
	batchHeaderLen  = 65
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batchBuilder collects the records of one batch, uncompressed. Between open and close, a record's value is appended to
// records, so that the encoder writes it where it belongs.
type batchBuilder struct {
	records   []byte
	n         int
	firstTime int64
	maxTime   int64

	// The open record's.
	time         int64
	start, value int // where it and its value begin
}

func (b *batchBuilder) reset() { *b = batchBuilder{records: b.records[:0]} }

// lengthLen is how much room is left for a length that is not known yet: a varint of two bytes tells 64 to 8191, which is
// what records have, but for a few.
const lengthLen = 2

// open begins a record: timestamp in ms, key (empty: none).
//
//	length varint | attributes 0 | timestamp delta varint | offset delta varint
//	key length varint, key | value length varint, value | number of headers varint, headers
func (b *batchBuilder) open(ms int64, key []byte) {
	if b.n == 0 {
		b.firstTime, b.maxTime = ms, ms
	}
	b.time, b.start = ms, len(b.records)
	r := append(b.records, make([]byte, lengthLen+1)...)
	r = binary.AppendVarint(r, ms-b.firstTime)
	r = binary.AppendVarint(r, int64(b.n))
	if len(key) == 0 {
		r = binary.AppendVarint(r, -1)
	} else {
		r = append(binary.AppendVarint(r, int64(len(key))), key...)
	}
	b.records = append(r, make([]byte, lengthLen)...)
	b.value = len(b.records)
}

// close ends the record with its headers, as appendHeaders made them. If the batch has more than most bytes by then, and
// other records, it does without this one and returns false.
func (b *batchBuilder) close(headers []byte, most int) bool {
	b.setLength(b.value)
	b.records = append(b.records, headers...)
	b.setLength(b.start + lengthLen)
	if b.n > 0 && len(b.records) > most {
		b.records = b.records[:b.start]
		return false
	}
	b.maxTime = max(b.maxTime, b.time)
	b.n++
	return true
}

// setLength writes the length of what begins at from and goes to the end, into the room before it. What follows is moved
// in the rare case that the length has more or fewer bytes.
func (b *batchBuilder) setLength(from int) {
	var length [binary.MaxVarintLen64]byte
	n := binary.PutVarint(length[:], int64(len(b.records)-from))
	if n != lengthLen {
		b.records = slices.Replace(b.records, from-lengthLen, from, length[:n]...)
		return
	}
	copy(b.records[from-lengthLen:], length[:n])
}

// encode writes the batch over dst, compressed by c, whose number is attributes.
func (b *batchBuilder) encode(dst []byte, attributes int, c codec) []byte {
	if cap(dst) < batchHeaderLen {
		dst = make([]byte, batchHeaderLen, batchHeaderLen+len(b.records))
	}
	dst = c(dst[:batchHeaderLen], b.records)

	be := binary.BigEndian
	clear(dst[:batchHeaderLen])
	be.PutUint32(dst[batchSize:], uint32(len(dst)-4))
	be.PutUint32(dst[batchLength:], uint32(len(dst)-batchEpoch))
	be.PutUint32(dst[batchEpoch:], ^uint32(0))
	dst[batchMagic] = 2
	be.PutUint16(dst[batchAttributes:], uint16(attributes))
	be.PutUint32(dst[batchLastDelta:], uint32(b.n-1))
	be.PutUint64(dst[batchFirstTime:], uint64(b.firstTime))
	be.PutUint64(dst[batchMaxTime:], uint64(b.maxTime))
	for i := batchProducer; i < batchCount; i++ {
		dst[i] = 0xff
	}
	be.PutUint32(dst[batchCount:], uint32(b.n))
	be.PutUint32(dst[batchCRC:], crc32.Checksum(dst[batchAttributes:], castagnoli))
	return dst
}

// header is a record header.
type header struct{ key, value string }

// appendHeaders appends a record's headers with their number, as they stand at the end of a record.
func appendHeaders(dst []byte, headers ...header) []byte {
	dst = binary.AppendVarint(dst, int64(len(headers)))
	for _, h := range headers {
		dst = append(binary.AppendVarint(dst, int64(len(h.key))), h.key...)
		dst = append(binary.AppendVarint(dst, int64(len(h.value))), h.value...)
	}
	return dst
}
