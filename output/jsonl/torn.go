package jsonl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"

	"github.com/ctlogd/ctlogd/output/format"
)

// maxLine is more than any line has: what ends in more bytes without a newline is no file of records.
const maxLine = 1 << 20

// tear is a line at the end of a target that is not whole. A regular file has it cut off; where that is refused, and in
// what cannot be cut, it is finished.
type tear struct {
	torn  int64  // so many bytes at the end are to be cut off
	rest  []byte // what finishes the line
	whole bool   // the line before the torn bytes lacks but its newline, which rest is
}

// mended is what mending has done.
type mended struct {
	written int   // bytes
	cut     int64 // bytes
	refused error // why nothing could be cut off, if so
}

// tearLine notes that of a line only head was written, and rest was not.
func (t *target) tearLine(head, rest []byte) {
	t.tear = tear{rest: append(t.rest[:0], rest...)}
	if t.regular {
		t.torn = int64(len(head))
	}
	if t.pipe != nil && t.pipe.deserted() {
		// The reader that has had the head is gone, and the next one begins with a whole line.
		t.tear = tear{}
	}
}

// mend cuts off or finishes a torn line. What fails is tried again by the next call.
func (t *target) mend(ctx context.Context) (m mended, err error) {
	if t.torn > 0 {
		size, err := t.size()
		if err != nil {
			return m, err
		}
		finish := t.whole
		// Nobody else appends, but somebody may have emptied the file meanwhile (logrotate's copytruncate).
		if size >= t.torn {
			if m.refused = t.file.Truncate(size - t.torn); m.refused == nil {
				m.cut = t.torn
			} else {
				finish = true
			}
		}
		t.torn = 0
		if !finish {
			t.rest = t.rest[:0]
		}
	}
	if len(t.rest) > 0 {
		m.written, err = t.write(ctx, t.rest)
		t.rest = t.rest[m.written:]
		if err != nil && t.pipe != nil && t.pipe.deserted() {
			t.rest = t.rest[:0] // likewise
		}
	}
	return m, err
}

var errNotRecords = errors.New("its last line is no record, so it is not ctlogd's; write another path, or move the file away")

var newline = []byte{'\n'}

// ours reports whether a line, or what there is of it, may be a record. Every format counts: a file whose format was
// changed is ctlogd's all the same. A line may begin with zeros after a power failure.
func ours(line []byte) bool {
	if len(line) == 0 || len(line) >= maxLine {
		return false
	}
	return line[0] == 0 || slices.ContainsFunc(format.Names, func(name string) bool {
		begins := []byte(format.Begins(name))
		return bytes.HasPrefix(line, begins) || bytes.HasPrefix(begins, line)
	})
}

// inspect looks how a file ends: with a whole line, one that is torn, or one that lacks but its newline. The zeros that
// some file systems leave at the end after a power failure are torn too. A file that is neither empty nor one of records
// is an error, and is not touched.
func inspect(file *os.File) (t tear, err error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return t, err
	}
	end := size
	block := make([]byte, 64<<10)
	for end > 0 {
		b := block[:min(end, int64(len(block)))]
		if _, err := file.ReadAt(b, end-int64(len(b))); err != nil {
			return t, err
		}
		rest := bytes.TrimRight(b, "\x00")
		end -= int64(len(b) - len(rest))
		if len(rest) > 0 {
			break
		}
	}

	tail := make([]byte, min(end, 2*maxLine))
	if _, err := file.ReadAt(tail, end-int64(len(tail))); err != nil && len(tail) > 0 {
		return t, err
	}
	begin := bytes.LastIndexByte(tail, '\n') + 1
	line := tail[begin:] // the last one, without a newline
	if begin > 0 {
		last := tail[:begin-1] // the last whole one
		last = last[bytes.LastIndexByte(last, '\n')+1:]
		if !ours(last) {
			return t, errNotRecords
		}
	}
	if len(line) > 0 && !ours(line) {
		return t, errNotRecords
	}
	t.torn = size - end
	switch {
	case len(line) == 0:
	case line[0] == '{' && json.Valid(line), line[0] != '{' && line[0] != 0:
		t.whole = true // or nobody can tell that it is not, in a format that is not JSON
	default:
		t.torn += int64(len(line))
	}
	if t.torn > 0 || t.whole {
		t.rest = []byte{'\n'}
	}
	return t, nil
}
