package archive

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Kinds of catalog lines.
const (
	KindSegment = "segment" // a segment was sealed
	KindRemoved = "removed" // a segment was removed, and why: a tombstone
	KindKey     = "key"     // from here on, another key signs the checkpoints
	KindRules   = "rules"   // from here on, other rules keep flows out of the records
)

// catalogVersion is of the lines. A line of a later version, or of an unknown kind, counts in the chain and says nothing
// else.
const catalogVersion = 1

const catalogName = "catalog.jsonl"

// Line is a line of a catalog. Lines of all dates of a host are one chain: N counts them, and Prev is the hash of the
// one before.
type Line struct {
	V    int    `json:"v"`
	N    uint64 `json:"n"`
	Kind string `json:"kind"`
	At   Time   `json:"at"` // when the line was written
	*Segment
	Removed *Removal   `json:"removed,omitempty"`
	Key     *KeyChange `json:"key,omitempty"`
	Rules   *Rules     `json:"rules,omitempty"`
	Prev    string     `json:"prev"`

	Date   string `json:"-"` // of the folder that it stands in
	Number int    `json:"-"` // in its file, from 1
	Hash   string `json:"-"` // SHA-256 of the line without its newline
}

// Removal is what a tombstone says.
type Removal struct {
	File    string `json:"file"`
	Why     string `json:"why"` // max_age, max_size, reserve
	Records int64  `json:"records"`
	First   Time   `json:"first"`
	Last    Time   `json:"last"`
}

// Rules says which flows are kept out of the records: what is not there has left no other trace. Lists of rules are JSON as
// Options.LeftOut has it. A day's catalog has the rules again if none of its lines has them, for copies of some days.
type Rules struct {
	From    Time            `json:"from"`               // since when they may have been in force
	LeftOut json.RawMessage `json:"left_out,omitempty"` // absent: nothing is kept out any more
	Before  json.RawMessage `json:"before,omitempty"`   // what was in force until the line was written
}

// LineError is a line of a catalog that cannot be read.
type LineError struct {
	File string
	Line int // from 1
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// maxLine bounds a line; a segment with very many gaps has a long one.
const maxLine = 64 << 20

func hashOf(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// ReadCatalog reads the catalog of a date's folder. whole is the size of it without a torn last line. Lines that cannot
// be read are errors of type *LineError, joined; the other lines are there all the same.
func ReadCatalog(dir string) (lines []Line, whole int64, err error) {
	path := filepath.Join(dir, catalogName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	date := strings.TrimPrefix(filepath.Base(dir), "date=")
	var errs []error
	r := bufio.NewReaderSize(f, 64<<10)
	for n := 1; ; n++ {
		text, err := readLine(r)
		if err == io.EOF {
			break // what is left is torn
		}
		if err != nil {
			return lines, whole, err
		}
		whole += int64(len(text)) + 1
		l := Line{Date: date, Number: n, Hash: hashOf(text)}
		if err := json.Unmarshal(text, &l); err != nil {
			errs = append(errs, &LineError{path, n, err})
			continue
		}
		if l.V > catalogVersion {
			l.Kind = ""
		}
		if l.Kind == KindSegment && (l.Segment == nil || !segmentName(l.File)) || l.Kind == KindRemoved && l.Removed == nil ||
			l.Kind == KindKey && l.Key == nil || l.Kind == KindRules && l.Rules == nil {
			errs = append(errs, &LineError{path, n, errors.New("is no line of a catalog")})
			continue
		}
		lines = append(lines, l)
	}
	return lines, whole, errors.Join(errs...)
}

// readLine returns the next whole line without its newline; io.EOF if there is none.
func readLine(r *bufio.Reader) ([]byte, error) {
	var text []byte
	for {
		part, err := r.ReadSlice('\n')
		if err == nil {
			if text == nil {
				return part[:len(part)-1], nil
			}
			return append(text, part[:len(part)-1]...), nil
		}
		if err != bufio.ErrBufferFull {
			return nil, err
		}
		if text = append(text, part...); len(text) > maxLine {
			return nil, errors.New("a line without end")
		}
	}
}

// segmentName reports whether name may be a segment's: it leads to no other folder.
func segmentName(name string) bool {
	return strings.HasSuffix(name, ".parquet") && !strings.ContainsAny(name, "/\x00") && !strings.HasPrefix(name, ".")
}

// live returns the segments of a catalog that have not been removed.
func live(lines []Line) []*Segment {
	gone := map[string]bool{}
	for i := range lines {
		if l := &lines[i]; l.Kind == KindRemoved {
			gone[l.Removed.File] = true
		}
	}
	var segments []*Segment
	for i := range lines {
		if l := &lines[i]; l.Kind == KindSegment && !gone[l.File] {
			segments = append(segments, l.Segment)
		}
	}
	return segments
}

// dates returns the folders of dates in a host's folder, oldest first.
func dates(host string) ([]string, error) {
	entries, err := os.ReadDir(host)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "date=") && isDir(host, e) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// isDir reports whether an entry of dir is a folder, or a link to one: older dates may lie on another disk.
func isDir(dir string, e fs.DirEntry) bool {
	if e.Type()&fs.ModeSymlink == 0 {
		return e.IsDir()
	}
	info, err := os.Stat(filepath.Join(dir, e.Name()))
	return err == nil && info.IsDir()
}

// chain appends to the catalogs of a host.
type chain struct {
	dir  string // of the host
	n    uint64 // lines there are
	hash string // of the last one
}

// append appends a line to the catalog of date and brings it to the disk. On error there is no such line.
func (c *chain) append(date string, l Line) (err error) {
	l.V, l.N, l.Prev = catalogVersion, c.n, c.hash
	text, err := json.Marshal(&l)
	if err != nil {
		return err
	}
	dir := filepath.Join(c.dir, "date="+date)
	path := filepath.Join(dir, catalogName)
	if err := step("catalog.open"); err != nil {
		return err
	}
	_, err = os.Lstat(path)
	fresh := errors.Is(err, fs.ErrNotExist)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := wholeLines(f)
	if err != nil {
		return err
	}
	// Room for the tombstones that a full disk asks for. Where the file system cannot, they may have to come later.
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, size, int64(len(text))+spareRoom)
	if err := step("catalog.append"); err != nil {
		return err
	}
	if _, err = f.WriteAt(append(text, '\n'), size); err == nil {
		if err = step("catalog.appended"); err == nil {
			err = f.Sync()
		}
	}
	if err != nil {
		return errors.Join(err, f.Truncate(size))
	}
	if fresh {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	c.n, c.hash = c.n+1, hashOf(text)
	return step("catalog.synced")
}

const spareRoom = 64 << 10

// wholeLines cuts off a torn last line, and returns the size of the file without it.
func wholeLines(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	block := make([]byte, 4096)
	for end := size; end > 0; {
		b := block[:min(end, int64(len(block)))]
		if _, err := f.ReadAt(b, end-int64(len(b))); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			whole := end - int64(len(b)) + int64(i) + 1
			if whole < size {
				return whole, f.Truncate(whole)
			}
			return whole, nil
		}
		end -= int64(len(b))
	}
	if size > 0 {
		return 0, f.Truncate(0)
	}
	return 0, nil
}
