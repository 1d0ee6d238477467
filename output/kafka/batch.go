package kafka

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
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

// batchBuilder collects the records of one batch, uncompressed.
type batchBuilder struct {
	records   []byte
	n         int
	firstTime int64
	maxTime   int64
}

func (b *batchBuilder) reset() { *b = batchBuilder{records: b.records[:0]} }

// add adds a record: timestamp in ms, key (nil: none), value, and its headers as appendHeaders made them.
//
//	length varint | attributes 0 | timestamp delta varint | offset delta varint
//	key length varint, key | value length varint, value | number of headers varint, headers
func (b *batchBuilder) add(ms int64, key, value, headers []byte) {
	if b.n == 0 {
		b.firstTime, b.maxTime = ms, ms
	}
	b.maxTime = max(b.maxTime, ms)
	delta := ms - b.firstTime
	keyLen := int64(len(key))
	if key == nil {
		keyLen = -1
	}
	length := 1 + varintLen(delta) + varintLen(int64(b.n)) + varintLen(keyLen) + len(key) +
		varintLen(int64(len(value))) + len(value) + len(headers)

	r := binary.AppendVarint(b.records, int64(length))
	r = append(r, 0)
	r = binary.AppendVarint(r, delta)
	r = binary.AppendVarint(r, int64(b.n))
	r = binary.AppendVarint(r, keyLen)
	r = append(r, key...)
	r = binary.AppendVarint(r, int64(len(value)))
	r = append(r, value...)
	b.records = append(r, headers...)
	b.n++
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

// varintLen returns the length of v as binary.AppendVarint writes it, zigzag encoded, which is Kafka's varint too.
func varintLen(v int64) int {
	return (bits.Len64(uint64(v<<1^v>>63)|1) + 6) / 7
}
