package kafka

import (
	"encoding/binary"
	"math/bits"
)

// An LZ4 frame (lz4_Frame_format.md, version 1.6.x) of independent blocks without checksums, as a record batch has its
// own CRC:
//
//	magic 04 22 4d 18 | FLG 60: version 1, independent blocks | BD 40: blocks of at most 64 KiB | HC: checksum of both
//	(block size, 4 bytes; bit 31: stored as it is | block)...
//	end mark, 4 zero bytes
//
// The encoder is our own for speed: on a quiet machine it takes 0.21 us a record at a ratio of 3.97, where
// github.com/pierrec/lz4, its fastest level, takes 0.71 at 4.34 (go test -bench Codec ./output/kafka). Records are alike but for their values, and what follows a value is what has
// followed it in an earlier record. So a match is looked for only where a word ends, and there it is found: one look for
// each value that differs. Trying every second byte takes half as long again and saves 5 % of the bytes.
const (
	lz4Head     = "\x04\x22\x4d\x18\x60\x40\x82"
	lz4Block    = 64 << 10
	lz4MinMatch = 8
	lz4Tail     = 16 // the format wants 5 literals at the end and no match that starts in the last 12 bytes

	lz4TableBits = 11
	lz4Stored    = 1 << 31
)

// lz4Encoder compresses; its table says where in the block a hash was last seen.
type lz4Encoder struct{ table [1 << lz4TableBits]uint16 }

// append appends src as an LZ4 frame to dst.
func (e *lz4Encoder) append(dst, src []byte) []byte {
	dst = append(dst, lz4Head...)
	for len(src) > 0 {
		block := src[:min(len(src), lz4Block)]
		src = src[len(block):]

		start := len(dst)
		dst = e.appendBlock(append(dst, 0, 0, 0, 0), block)
		size := uint32(len(dst) - start - 4)
		if int(size) >= len(block) {
			dst = append(dst[:start+4], block...)
			size = uint32(len(block)) | lz4Stored
		}
		binary.LittleEndian.PutUint32(dst[start:], size)
	}
	return append(dst, 0, 0, 0, 0)
}

func lz4Hash(u, v uint64) uint64 {
	return (u ^ bits.RotateLeft64(v, 29)) * 0x9e3779b185ebca87 >> (64 - lz4TableBits)
}

// load64 has the compiler check bounds once and not mask the address, which slicing to the end costs.
func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i : i+8 : i+8]) }

// lz4Word returns the place of the first byte of src from i on that ends a word: a quote, a comma, a space, anything
// below '-'. If there is none before end, it returns a place behind that.
func lz4Word(src []byte, i, end int) int {
	const ones = 0x0101010101010101
	for i <= end {
		x := load64(src, i)
		if below := (x - '-'*ones) &^ x & (0x80 * ones); below != 0 {
			return i + bits.TrailingZeros64(below)>>3
		}
		i += 8
	}
	return i
}

// appendBlock appends src, of at most 64 KiB, as one block (lz4_Block_format.md): a row of sequences, each of which is
// some literals and then a match, a copy of what stands at an offset back.
func (e *lz4Encoder) appendBlock(dst, src []byte) []byte {
	clear(e.table[:])
	anchor := 0 // src[:anchor] is written
	last := len(src) - lz4Tail
	for i := lz4Word(src, 0, last); i <= last; i = lz4Word(src, i, last) {
		u := load64(src, i)
		h := lz4Hash(u, load64(src, i+2))
		m := int(e.table[h])
		e.table[h] = uint16(i)
		if m >= i || load64(src, m) != u {
			i++
			continue
		}
		start := i
		i = lz4MatchEnd(src, i+lz4MinMatch, start-m)
		dst = lz4AppendSequence(dst, src[anchor:start], start-m, i-start)
		anchor = i
	}
	dst = lz4AppendToken(dst, len(src)-anchor, 0)
	return append(dst, src[anchor:]...)
}

// lz4MatchEnd returns where the match at offset ends that holds up to i.
func lz4MatchEnd(src []byte, i, offset int) int {
	for i+8 <= len(src)-5 {
		if x := load64(src, i) ^ load64(src, i-offset); x != 0 {
			return i + bits.TrailingZeros64(x)>>3
		}
		i += 8
	}
	for i < len(src)-5 && src[i] == src[i-offset] {
		i++
	}
	return i
}

// lz4AppendSequence appends literals and a match of at least lz4MinMatch bytes.
func lz4AppendSequence(dst, literals []byte, offset, match int) []byte {
	match -= 4 // the format's own smallest match
	if n := len(dst); len(literals) < 15 && match < 15+255 && cap(literals) >= 16 && cap(dst)-n >= 32 {
		// The usual case. Copying 16 bytes, some of them for nothing, is cheaper than copying as many as needed.
		d := dst[n : n+32]
		*(*[16]byte)(d[1:]) = [16]byte(literals[:16])
		end := 1 + len(literals)
		d[end], d[end+1] = byte(offset), byte(offset>>8)
		d[0] = byte(len(literals)<<4 | min(match, 15))
		if match < 15 {
			return dst[:n+end+2]
		}
		d[end+2] = byte(match - 15)
		return dst[:n+end+3]
	}
	dst = lz4AppendToken(dst, len(literals), match)
	dst = append(dst, literals...)
	dst = append(dst, byte(offset), byte(offset>>8))
	if match >= 15 {
		dst = lz4AppendLength(dst, match-15)
	}
	return dst
}

// lz4AppendToken appends a sequence's token, four bits of either length, and the rest of the literals' length.
func lz4AppendToken(dst []byte, literals, match int) []byte {
	dst = append(dst, byte(min(literals, 15)<<4|min(match, 15)))
	if literals >= 15 {
		dst = lz4AppendLength(dst, literals-15)
	}
	return dst
}

func lz4AppendLength(dst []byte, n int) []byte {
	for ; n >= 255; n -= 255 {
		dst = append(dst, 255)
	}
	return append(dst, byte(n))
}
