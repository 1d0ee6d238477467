package archive

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// A row log is a file named rows-SEQUENCE.rows: a header and then frames, one for each Append. Integers are
// little-endian, checksums CRC-32C.
//
//	header                                         frame
//	 0  magic "ctlogROW"                            0  magic "ctRF"
//	 8  checksum of the rest           uint32       4  checksum of the rest of the header    uint32
//	12  version, 1                     uint32       8  size of the payload                   uint32
//	16  size of the description        uint32      12  records                               uint32
//	20  description, JSON (see Origin)             16  number of the first record            uint64
//	                                               24  checksum of the payload               uint32
//
// The payload is one record after the other, in the form of flow.AppendBinary. Records are numbered from 0 in each file,
// so that what is missing shows.
const (
	rowLogMagic   = "ctlogROW"
	rowLogVersion = 1
	rowLogFixed   = 20
	frameMagic    = "ctRF"
	frameHeader   = 28
	maxFrame      = 1 << 20 // bytes of a frame's payload, but for one record
	maxOrigin     = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Origin says where the records of a row log or a segment come from, and how they are to be kept.
type Origin struct {
	Version  int      `json:"version"` // of the schema
	Host     string   `json:"host"`
	Observer string   `json:"observer"`         // enters each flow_id
	Output   string   `json:"output,omitempty"` // the name that stands in gaps which the archive itself has to tell of
	Sequence uint64   `json:"sequence"`         // of the row log
	Interval Duration `json:"interval"`         // flows that lasted longer are kept apart
	Dropped  []string `json:"dropped,omitempty"`
	Level    string   `json:"compression,omitempty"`
	Created  Time     `json:"created"`
}

// HasFlowID reports whether nothing was left out that a flow_id is computed from.
func (o *Origin) HasFlowID() bool {
	return o.Observer != "" && !slices.ContainsFunc(identity, func(key string) bool { return slices.Contains(o.Dropped, key) }) &&
		!slices.Contains(o.Dropped, "flow_id")
}

// ErrNewer is the error of a file that a later version has written.
var ErrNewer = errors.New("written by a newer ctlogd; upgrade, or read it there")

// errNotRowLog is the error of a file without a row log's header.
var errNotRowLog = errors.New("is no row log, or its header is damaged")

func rowLogName(sequence uint64) string { return fmt.Sprintf("rows-%020d.rows", sequence) }

// rowLogSequence returns the sequence in a row log's name.
func rowLogSequence(name string) (sequence uint64, ok bool) {
	s, starts := strings.CutPrefix(name, "rows-")
	s, ends := strings.CutSuffix(s, ".rows")
	n, err := strconv.ParseUint(s, 10, 64)
	return n, starts && ends && err == nil
}

func appendRowLogHeader(dst []byte, o *Origin) ([]byte, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	if len(text) > maxOrigin {
		return nil, fmt.Errorf("description of %d bytes", len(text))
	}
	start := len(dst)
	dst = append(dst, rowLogMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	dst = binary.LittleEndian.AppendUint32(dst, rowLogVersion)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(text)))
	dst = append(dst, text...)
	binary.LittleEndian.PutUint32(dst[start+8:], crc32.Checksum(dst[start+12:], castagnoli))
	return dst, nil
}

// readRowLogHeader reads the header, and returns where the first frame is.
func readRowLogHeader(f io.ReaderAt) (o Origin, at int64, err error) {
	var fixed [rowLogFixed]byte
	if n, err := f.ReadAt(fixed[:], 0); n < len(fixed) {
		if err == io.EOF {
			err = errNotRowLog
		}
		return o, 0, err
	}
	size := binary.LittleEndian.Uint32(fixed[16:])
	if string(fixed[:8]) != rowLogMagic || size > maxOrigin {
		return o, 0, errNotRowLog
	}
	text := make([]byte, size)
	if n, err := f.ReadAt(text, rowLogFixed); n < len(text) {
		if err == io.EOF {
			err = errNotRowLog
		}
		return o, 0, err
	}
	sum := crc32.Update(crc32.Checksum(fixed[12:], castagnoli), castagnoli, text)
	if binary.LittleEndian.Uint32(fixed[8:]) != sum {
		return o, 0, errNotRowLog
	}
	if binary.LittleEndian.Uint32(fixed[12:]) != rowLogVersion {
		return o, 0, ErrNewer
	}
	if err := json.Unmarshal(text, &o); err != nil {
		return o, 0, errNotRowLog
	}
	if o.Version > SchemaVersion {
		return o, 0, ErrNewer
	}
	return o, rowLogFixed + int64(size), nil
}

// frame is what a frame's header says.
type frame struct {
	size  uint32 // of the payload
	count uint32
	first uint64
	sum   uint32
}

// putFrameHeader fills the first frameHeader bytes of buf, which the payload follows.
func putFrameHeader(buf []byte, first uint64, count int) {
	payload := buf[frameHeader:]
	copy(buf, frameMagic)
	binary.LittleEndian.PutUint32(buf[8:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(buf[12:], uint32(count))
	binary.LittleEndian.PutUint64(buf[16:], first)
	binary.LittleEndian.PutUint32(buf[24:], crc32.Checksum(payload, castagnoli))
	binary.LittleEndian.PutUint32(buf[4:], crc32.Checksum(buf[8:frameHeader], castagnoli))
}

func parseFrameHeader(p []byte) (f frame, ok bool) {
	if len(p) < frameHeader || string(p[:4]) != frameMagic ||
		binary.LittleEndian.Uint32(p[4:]) != crc32.Checksum(p[8:frameHeader], castagnoli) {
		return f, false
	}
	return frame{
		size:  binary.LittleEndian.Uint32(p[8:]),
		count: binary.LittleEndian.Uint32(p[12:]),
		first: binary.LittleEndian.Uint64(p[16:]),
		sum:   binary.LittleEndian.Uint32(p[24:]),
	}, true
}

// rowScan reads the frames of a row log from its start. Damage is passed over and told.
type rowScan struct {
	Origin Origin

	f      io.ReaderAt
	size   int64
	at     int64  // of the next frame
	whole  int64  // end of the last intact frame
	next   uint64 // number that the next record shall have
	ahead  []byte // what was read of the file last
	begins int64  // where that is in the file
	damage damage
	inside damage // of it, what is before the last intact frame
	end    uint64 // number after the last record of that
}

// damage is what frames that are missing or damaged have held.
type damage struct {
	lost  uint64 // records that are known to have been in them
	known bool   // nothing else was
	bytes int64  // that were passed over
	tail  uint64 // of lost: in a last frame that is not whole; a reader may have come while it was written
}

func newRowScan(f io.ReaderAt, size int64) (*rowScan, error) {
	o, at, err := readRowLogHeader(f)
	if err != nil {
		return nil, err
	}
	return &rowScan{Origin: o, f: f, size: size, at: at, whole: at, damage: damage{known: true}}, nil
}

// frame returns the payload of the next intact frame, valid until the next call, where in the file it begins, and how
// many records it holds; io.EOF at the end. What Lost tells then is all that was passed over.
func (s *rowScan) frame() (payload []byte, at int64, f frame, err error) {
	for s.at < s.size {
		if s.size-s.at < frameHeader {
			s.pass(s.size - s.at)
			break
		}
		head, err := s.read(s.at, frameHeader)
		if err != nil {
			return nil, 0, f, err
		}
		f, ok := parseFrameHeader(head)
		if !ok {
			if err := s.find(); err != nil {
				return nil, 0, f, err
			}
			continue
		}
		if int64(f.size) > s.size-s.at-frameHeader {
			lost := s.damage.lost
			s.count(f)
			s.damage.tail = s.damage.lost - lost
			s.damage.bytes += s.size - s.at
			s.at = s.size
			break
		}
		if payload, err = s.read(s.at+frameHeader, int(f.size)); err != nil {
			return nil, 0, f, err
		}
		at = s.at + frameHeader
		s.at = at + int64(f.size)
		if crc32.Checksum(payload, castagnoli) != f.sum {
			s.count(f)
			s.damage.bytes += frameHeader + int64(f.size)
			continue
		}
		if f.first > s.next { // frames before it are missing, and how many records they held is told by the number
			s.damage.lost += f.first - s.next
		}
		s.next = max(s.next, f.first+uint64(f.count))
		s.whole, s.end, s.inside = s.at, s.next, s.damage
		return payload, at, f, nil
	}
	return nil, 0, f, io.EOF
}

// readAhead is how much is read at a time at least: where little happens, a frame has a record or two.
const readAhead = 256 << 10

// read returns n bytes of the file, which are in it, valid until the next call.
func (s *rowScan) read(at int64, n int) ([]byte, error) {
	if at < s.begins || at+int64(n) > s.begins+int64(len(s.ahead)) {
		want := int(min(int64(max(n, readAhead)), s.size-at))
		if cap(s.ahead) < want {
			s.ahead = make([]byte, want)
		}
		got, err := s.f.ReadAt(s.ahead[:want], at)
		s.begins, s.ahead = at, s.ahead[:got]
		if got < n {
			return nil, err
		}
	}
	return s.ahead[at-s.begins:][:n], nil
}

// count counts the records of a frame whose payload is damaged.
func (s *rowScan) count(f frame) {
	if end := f.first + uint64(f.count); end > s.next {
		s.damage.lost += end - s.next
		s.next = end
	}
}

// garbled counts records of an intact frame that cannot be decoded.
func (s *rowScan) garbled(records uint32, bytes int) {
	s.damage.lost += uint64(records)
	s.damage.bytes += int64(bytes)
}

func (s *rowScan) pass(n int64) {
	s.at += n
	s.damage.bytes += n
	s.damage.known = false
}

// find moves to the next intact frame header behind a damaged one, which does not tell where that is.
func (s *rowScan) find() error {
	chunk := make([]byte, 64<<10)
	from := s.at
	for off := s.at + 1; off < s.size; {
		p := chunk[:min(int64(len(chunk)), s.size-off)]
		if _, err := s.f.ReadAt(p, off); err != nil {
			return err
		}
		for i := 0; ; i++ {
			j := bytes.Index(p[i:], []byte(frameMagic))
			if j < 0 {
				break
			}
			i += j
			var head [frameHeader]byte
			if n, _ := s.f.ReadAt(head[:], off+int64(i)); n == frameHeader {
				if f, ok := parseFrameHeader(head[:]); ok && f.first >= s.next {
					// The number of the frame's first record tells what was between, unless nothing follows.
					s.at = off + int64(i)
					s.damage.bytes += s.at - from
					return nil
				}
			}
		}
		off += int64(max(len(p)-len(frameMagic)+1, 1)) // the magic may lie across two chunks
	}
	s.pass(s.size - s.at)
	return nil
}

// damaged returns a gap record for what the scan has passed over, nil if that is nothing. It is in a batch of its own.
func (s *rowScan) damaged(to int64) *flow.Record {
	if s.damage.bytes == 0 && s.damage.lost == 0 {
		return nil
	}
	b := flow.NewBatch(1, nil)
	r := b.Next()
	r.Event, r.Received = flow.EventGap, to
	r.Start, r.Stop = int64(s.Origin.Created), to
	b.Extra(r).Gap = flow.Gap{Cause: flow.CauseCrash, Lost: s.damage.lost, LostKnown: s.damage.known && s.damage.lost > 0, Output: cmp.Or(s.Origin.Output, "archive")}
	return r
}

// rowLog is a row log that is written. It is for one goroutine.
type rowLog struct {
	Origin  Origin
	path    string
	file    *os.File
	size    int64 // of what is whole
	records uint64
	torn    bool // a write fell short, and what it left is still to be cut off
	buf     []byte

	// Of one that is full: since when sealing it has failed (ns since 1970), the pause before the next attempt, and when
	// that is.
	failing int64
	pause   time.Duration
	retryAt time.Time
}

// finish brings what was written to the disk, and closes the file of a row log that is full.
func (l *rowLog) finish() error {
	if l.file == nil {
		return nil
	}
	if l.torn { // what a failed write has left is cut off as damage otherwise
		if err := l.file.Truncate(l.size); err != nil {
			return err
		}
		l.torn = false
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// createRowLog makes a new row log in dir. It is there, with its header, or not at all.
func createRowLog(dir string, o Origin) (l *rowLog, err error) {
	head, err := appendRowLogHeader(nil, &o)
	if err != nil {
		return nil, err
	}
	path := dir + "/" + rowLogName(o.Sequence)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
		}
	}()
	if err := step("rows.create"); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	return &rowLog{Origin: o, path: path, file: f, size: int64(len(head))}, nil
}

// openRowLog opens a row log to append to it. A torn tail is cut off, and a gap record says what it held.
func openRowLog(path string, now int64) (l *rowLog, lost *flow.Record, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	s, err := newRowScan(f, info.Size())
	if err != nil {
		return nil, nil, err
	}
	for {
		if _, _, _, err := s.frame(); err == io.EOF {
			break
		} else if err != nil {
			return nil, nil, err
		}
	}
	l = &rowLog{Origin: s.Origin, path: path, file: f, size: s.whole, records: s.end}
	if s.whole < info.Size() {
		if err := f.Truncate(s.whole); err != nil {
			return nil, nil, fmt.Errorf("cut off the torn tail: %w", err)
		}
	}
	// What is damaged further in front is told when the row log is sealed.
	s.damage.lost -= s.inside.lost
	s.damage.bytes -= s.inside.bytes
	return l, s.damaged(now), nil
}

// append appends recs in frames and returns how many of them are in the file; all of them, or err is not nil.
func (l *rowLog) append(recs []*flow.Record) (n int, err error) {
	if l.torn {
		if err := l.file.Truncate(l.size); err != nil {
			return 0, fmt.Errorf("cut off a torn frame of %s: %w", l.path, err)
		}
		l.torn = false
	}
	for n < len(recs) {
		buf := append(l.buf[:0], make([]byte, frameHeader)...)
		count := 0
		for _, r := range recs[n:] {
			buf = flow.AppendBinary(buf, r)
			count++
			if len(buf) > maxFrame {
				break
			}
		}
		l.buf = buf
		putFrameHeader(buf, l.records, count)
		if err := step("rows.append"); err != nil {
			return n, err
		}
		if _, err := l.file.WriteAt(buf, l.size); err != nil {
			l.torn = true
			// Cut at once, so that readers see no torn frame while the disk is full; if that fails, the next call does it.
			if l.file.Truncate(l.size) == nil {
				l.torn = false
			}
			return n, err
		}
		if err := step("rows.appended"); err != nil {
			return n, err
		}
		l.size += int64(len(buf))
		l.records += uint64(count)
		n += count
	}
	return n, nil
}
