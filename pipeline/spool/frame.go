package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// A segment is a file named for the number of its first record, 20 digits and ".seg": a header and then frames, one
// for each Append. Numbers count the records that the spool ever took, so that a record that is missing shows,
// wherever it went: the next frame, or the next segment, begins with a higher number than expected. Integers are
// little-endian, checksums CRC-32C.
//
//	segment header                                     frame header
//	 0  magic "ctlogSEG"                                0  magic "ctFR"
//	 8  checksum of the rest              uint32        4  checksum of the rest of the header   uint32
//	12  version, 1                        uint32        8  size of the payload                  uint32
//	16  number of the first record        uint64       12  records                              uint32
//	24  the same of the segment before    uint64       16  number of the first record           uint64
//	32  its records' time span: from      int64        24  the records' time span: from         int64
//	40                          to        int64        32                          to           int64
//	                                                   40  checksum of the payload              uint32
//
// The payload is one record after the other, in the form of flow.AppendBinary.
const (
	segmentMagic   = "ctlogSEG"
	segmentVersion = 1
	segmentHeader  = 48

	frameMagic  = "ctFR"
	frameHeader = 44
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// span is a stretch of time that contains the times and the receipt of some records, in ns since 1970; zero if there are
// none.
type span struct{ from, to int64 }

func (s *span) add(o span) {
	if o == (span{}) {
		return
	}
	if *s == (span{}) {
		*s = o
		return
	}
	s.from, s.to = min(s.from, o.from), max(s.to, o.to)
}

// segmentInfo is what a segment's header says.
type segmentInfo struct {
	first     uint64
	prevFirst uint64
	prev      span
}

func appendSegmentHeader(dst []byte, h segmentInfo) []byte {
	start := len(dst)
	dst = append(dst, segmentMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	dst = binary.LittleEndian.AppendUint32(dst, segmentVersion)
	dst = binary.LittleEndian.AppendUint64(dst, h.first)
	dst = binary.LittleEndian.AppendUint64(dst, h.prevFirst)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.prev.from))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.prev.to))
	binary.LittleEndian.PutUint32(dst[start+8:], crc32.Checksum(dst[start+12:], castagnoli))
	return dst
}

var errNewer = errors.New("written by a newer ctlogd; upgrade, or move the directory away")

// parseSegmentHeader reads a header; ok if it is intact. The error is errNewer.
func parseSegmentHeader(p []byte) (h segmentInfo, ok bool, err error) {
	if len(p) < segmentHeader || string(p[:8]) != segmentMagic ||
		binary.LittleEndian.Uint32(p[8:]) != crc32.Checksum(p[12:segmentHeader], castagnoli) {
		return h, false, nil
	}
	if binary.LittleEndian.Uint32(p[12:]) != segmentVersion {
		return h, false, errNewer
	}
	return segmentInfo{
		first:     binary.LittleEndian.Uint64(p[16:]),
		prevFirst: binary.LittleEndian.Uint64(p[24:]),
		prev:      span{int64(binary.LittleEndian.Uint64(p[32:])), int64(binary.LittleEndian.Uint64(p[40:]))},
	}, true, nil
}

// frame is what a frame's header says.
type frame struct {
	size  int64 // of the payload
	count uint64
	first uint64
	span  span
	sum   uint32
}

func (f *frame) end() uint64 { return f.first + f.count } // the number of the record after the frame
func (f *frame) len() int64  { return frameHeader + f.size }

// putFrameHeader fills the first frameHeader bytes of buf, which the payload follows.
func putFrameHeader(buf []byte, first uint64, count int, s span) {
	payload := buf[frameHeader:]
	copy(buf, frameMagic)
	binary.LittleEndian.PutUint32(buf[8:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(buf[12:], uint32(count))
	binary.LittleEndian.PutUint64(buf[16:], first)
	binary.LittleEndian.PutUint64(buf[24:], uint64(s.from))
	binary.LittleEndian.PutUint64(buf[32:], uint64(s.to))
	binary.LittleEndian.PutUint32(buf[40:], crc32.Checksum(payload, castagnoli))
	binary.LittleEndian.PutUint32(buf[4:], crc32.Checksum(buf[8:frameHeader], castagnoli))
}

// parseFrameHeader reads a frame's header; ok if it is intact.
func parseFrameHeader(p []byte) (f frame, ok bool) {
	if len(p) < frameHeader || string(p[:4]) != frameMagic ||
		binary.LittleEndian.Uint32(p[4:]) != crc32.Checksum(p[8:frameHeader], castagnoli) {
		return f, false
	}
	f = frame{
		size:  int64(binary.LittleEndian.Uint32(p[8:])),
		count: uint64(binary.LittleEndian.Uint32(p[12:])),
		first: binary.LittleEndian.Uint64(p[16:]),
		span:  span{int64(binary.LittleEndian.Uint64(p[24:])), int64(binary.LittleEndian.Uint64(p[32:]))},
		sum:   binary.LittleEndian.Uint32(p[40:]),
	}
	return f, f.count > 0 && f.end() > f.first
}

// segmentReader reads the frames of a segment. Only frames inside its bounds count as frames: no other can be a part
// of the segment.
type segmentReader struct {
	f          io.ReaderAt
	size       int64  // bytes of the file that are there to be read
	first, end uint64 // numbers of the segment's first record, and of the next one's
	head       [frameHeader]byte
	buf        []byte // reused from payload to payload
}

// readAt fills p from off; ok if the file has so many bytes.
func (r *segmentReader) readAt(p []byte, off int64) (ok bool, err error) {
	if off+int64(len(p)) > r.size {
		return false, nil
	}
	switch n, err := r.f.ReadAt(p, off); {
	case n == len(p):
		return true, nil
	case err == io.EOF: // somebody has cut the file
		return false, nil
	default:
		return false, err
	}
}

// header reads the header of the frame at off; ok if it is intact.
func (r *segmentReader) header(off int64) (f frame, ok bool, err error) {
	if ok, err = r.readAt(r.head[:], off); !ok {
		return f, false, err
	}
	f, ok = parseFrameHeader(r.head[:])
	return f, ok && f.first >= r.first && f.end() <= r.end, nil
}

// payload reads the payload of the frame f at off; ok if it is intact. It is valid until the next call.
func (r *segmentReader) payload(off int64, f frame) (p []byte, ok bool, err error) {
	if f.size > r.size-off-frameHeader {
		return nil, false, nil
	}
	if int64(cap(r.buf)) < f.size {
		r.buf = make([]byte, f.size)
	}
	p = r.buf[:f.size]
	if ok, err = r.readAt(p, off+frameHeader); !ok {
		return nil, false, err
	}
	return p, crc32.Checksum(p, castagnoli) == f.sum, nil
}

// find returns where the next intact frame header is, at off or behind it; ok if there is one. It is for what follows
// a damaged header, which does not tell where the next one is.
func (r *segmentReader) find(off int64) (at int64, ok bool, err error) {
	chunk := make([]byte, 64<<10)
	for off+frameHeader <= r.size {
		p := chunk[:min(int64(len(chunk)), r.size-off)]
		if ok, err := r.readAt(p, off); !ok {
			return 0, false, err
		}
		for i := 0; ; i++ {
			j := bytes.Index(p[i:], []byte(frameMagic))
			if j < 0 {
				break
			}
			i += j
			if _, ok, err := r.header(off + int64(i)); ok || err != nil {
				return off + int64(i), ok, err
			}
		}
		off += int64(max(len(p)-len(frameMagic)+1, 1)) // the magic may lie across two chunks
	}
	return 0, false, nil
}

// survey is what is found by reading a whole segment.
type survey struct {
	size int64  // of the file without its damaged tail
	end  uint64 // the number after the last intact record
	span span   // of the intact records

	// What the damaged tail held, as far as its headers tell.
	tail      uint64
	tailSpan  span
	tailKnown bool // nothing else was in it
}

// survey reads the segment from its start. Records before the number seen count for nothing in the damaged tail.
func (r *segmentReader) survey(seen uint64) (s survey, err error) {
	s = survey{size: min(segmentHeader, r.size), end: r.first, tailKnown: true}
	for off := int64(segmentHeader); off < r.size; {
		f, ok, err := r.header(off)
		if err != nil {
			return s, err
		}
		if !ok {
			s.tailKnown = false
			if off, ok, err = r.find(off + 1); err != nil {
				return s, err
			}
			if !ok {
				break
			}
			continue
		}
		_, ok, err = r.payload(off, f)
		if err != nil {
			return s, err
		}
		off += f.len()
		if !ok {
			if f.end() > seen {
				s.tail += f.end() - max(f.first, seen)
				s.tailSpan.add(f.span)
			}
			continue
		}
		s = survey{size: off, end: f.end(), span: s.span, tailKnown: true}
		s.span.add(f.span)
	}
	return s, nil
}
