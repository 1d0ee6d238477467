package spool

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/ctlogd/ctlogd/flow"
)

// state is what the spool remembers besides its records: which of them are delivered, and the gaps that are not.
type state struct {
	cursor uint64 // the number of the first record that is not delivered
	gaps   gaps
}

// The state file has two slots, written in turn, each with its generation and checksum: a write that is cut short
// leaves the other one, which is one write older. The file is written in place and never grows, so that delivering
// goes on, and gaps are put on record, when the disk is full. A slot, little-endian:
//
//	 0  magic "ctlogSTA"
//	 8  checksum of the rest (CRC-32C)   uint32
//	12  size of the rest                 uint32
//	16  generation                       uint64
//	24  time of writing, ns              int64
//	32  cursor                           uint64
//	40  gaps, each: at, skip, from, to, lost, noted (8 bytes each), cause, known, size of the output's name, the name
const (
	stateName   = "state"
	stateMagic  = "ctlogSTA"
	stateHeader = 16
	slotSize    = 32 << 10
	gapSize     = 6*8 + 3
)

// The slot takes all the gaps there can be.
const _ = uint(slotSize - stateHeader - 3*8 - (maxGaps+1)*(gapSize+maxOutput))

type stateFile struct {
	f   *os.File
	gen uint64
	buf []byte
}

// readState reads the state file, and gives a new or short one its size. written is when the newest readable slot was
// written, 0 if there is none. damaged says that the other slot cannot be read: what it alone knew is lost.
func readState(f *os.File) (sf *stateFile, s state, written int64, damaged bool, err error) {
	sf = &stateFile{f: f}
	blank := make([]byte, 2*slotSize)
	file := make([]byte, 2*slotSize)
	n, err := f.ReadAt(file, 0)
	if err != nil && err != io.EOF {
		return nil, s, 0, false, err
	}
	if n < len(file) {
		// Real zeros rather than a hole: the blocks have to be there.
		if _, err := f.WriteAt(blank[n:], int64(n)); err != nil {
			return nil, s, 0, false, fmt.Errorf("write %s: %w", f.Name(), err)
		}
	}
	for i := range 2 {
		slot := file[i*slotSize:][:slotSize]
		gen, at, t, ok := parseState(slot)
		switch {
		case ok && gen >= sf.gen:
			sf.gen, s, written = gen, t, at
		case !ok && string(slot) != string(blank[:slotSize]):
			damaged = true
		}
	}
	return sf, s, written, damaged, nil
}

// encode prepares the state to be written.
func (sf *stateFile) encode(s *state, now int64) { sf.buf = appendState(sf.buf[:0], sf.gen+1, now, s) }

// write writes what encode has prepared over the older slot.
func (sf *stateFile) write() error {
	if _, err := sf.f.WriteAt(sf.buf, int64((sf.gen+1)%2)*slotSize); err != nil {
		return err
	}
	sf.gen++
	return nil
}

func appendState(dst []byte, gen uint64, now int64, s *state) []byte {
	le := binary.LittleEndian
	dst = append(dst, stateMagic...)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = le.AppendUint64(dst, gen)
	dst = le.AppendUint64(dst, uint64(now))
	dst = le.AppendUint64(dst, s.cursor)
	for _, g := range s.gaps[:min(len(s.gaps), maxGaps+1)] {
		for _, v := range [...]uint64{g.at, g.skip, uint64(g.From), uint64(g.To), g.Lost, uint64(g.noted)} {
			dst = le.AppendUint64(dst, v)
		}
		known := byte(0)
		if g.Known {
			known = 1
		}
		dst = append(dst, byte(g.Cause), known, byte(len(g.output)))
		dst = append(dst, g.output...)
	}
	le.PutUint32(dst[12:], uint32(len(dst)-stateHeader))
	le.PutUint32(dst[8:], crc32.Checksum(dst[12:], castagnoli))
	return dst
}

// parseState reads a slot; ok if it is intact.
func parseState(p []byte) (gen uint64, written int64, s state, ok bool) {
	le := binary.LittleEndian
	if len(p) < stateHeader+3*8 || string(p[:8]) != stateMagic {
		return 0, 0, s, false
	}
	size := le.Uint32(p[12:])
	if size < 3*8 || uint64(size) > uint64(len(p)-stateHeader) ||
		le.Uint32(p[8:]) != crc32.Checksum(p[12:stateHeader+size], castagnoli) {
		return 0, 0, s, false
	}
	p = p[stateHeader : stateHeader+size]
	gen, written, s.cursor = le.Uint64(p), int64(le.Uint64(p[8:])), le.Uint64(p[16:])
	for p = p[24:]; len(p) > 0; {
		if len(p) < gapSize || len(p) < gapSize+int(p[gapSize-1]) {
			return 0, 0, state{}, false
		}
		g := &gap{at: le.Uint64(p), skip: le.Uint64(p[8:]), noted: int64(le.Uint64(p[40:]))}
		g.Loss = Loss{Cause: flow.Cause(p[48]), From: int64(le.Uint64(p[16:])), To: int64(le.Uint64(p[24:])),
			Lost: le.Uint64(p[32:]), Known: p[49] != 0}
		g.output = string(p[gapSize:][:p[gapSize-1]])
		if n := len(s.gaps); g.end() < g.at || n > 0 && g.at < s.gaps[n-1].at { // not of our writing
			return 0, 0, state{}, false
		}
		s.gaps = append(s.gaps, g)
		p = p[gapSize+len(g.output):]
	}
	return gen, written, s, true
}
