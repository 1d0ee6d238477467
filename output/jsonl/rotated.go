package jsonl

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// rotated is a rotated file: PATH.N, with .gz or .zst behind it when it is compressed. The larger N, the older it is.
type rotated struct {
	n    int
	ext  string // one of extensions
	info os.FileInfo
}

var extensions = []string{"", ".gz", ".zst"}

// path returns where the file is, of the one that was rotated.
func (r rotated) path(of string) string { return of + "." + strconv.Itoa(r.n) + r.ext }

// listRotated returns the rotated files of path, the oldest first; of those with one number the plain one first.
func listRotated(path string) (files []rotated, err error) {
	dir, base := filepath.Split(path)
	entries, err := os.ReadDir(cmp.Or(dir, "."))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), base+".")
		if !ok {
			continue
		}
		for _, ext := range extensions {
			number, ok := strings.CutSuffix(name, ext)
			n, err := strconv.Atoi(number)
			if !ok || err != nil || n < 1 || strconv.Itoa(n) != number {
				continue
			}
			if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
				files = append(files, rotated{n, ext, info})
			}
		}
	}
	slices.SortFunc(files, func(a, b rotated) int { return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.ext, b.ext)) })
	return files, nil
}

// openLines opens a file, compressed or not, as its name tells, to read its lines.
func openLines(path string) (io.ReadCloser, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	switch filepath.Ext(path) {
	case ".gz":
		r, err := gzip.NewReader(file)
		if err != nil {
			file.Close()
			return nil, err
		}
		return lines{r, file.Close}, nil
	case ".zst":
		r, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			file.Close()
			return nil, err
		}
		return lines{r, func() error { r.Close(); return file.Close() }}, nil
	}
	return file, nil
}

// lines reads one thing and closes another.
type lines struct {
	io.Reader
	close func() error
}

func (l lines) Close() error { return l.close() }

// timestamp is how every format but the binary ones writes the time of a record, first of all times in it.
var timestamp = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`)
})

// firstTime returns when the first record of a file was made: what its first line says, else when the file was written
// last. It is the zero time for an empty one. file is the file, if it is open, else nil.
func firstTime(path string, file *os.File) (time.Time, error) {
	head := make([]byte, 4<<10)
	var n int
	var err error
	if file != nil {
		n, err = file.ReadAt(head, 0)
	} else {
		var r io.ReadCloser
		if r, err = openLines(path); err != nil {
			return time.Time{}, err
		}
		defer r.Close()
		n, err = io.ReadFull(r, head)
	}
	if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) || n == 0 {
		if n == 0 && (err == nil || err == io.EOF) {
			return time.Time{}, nil
		}
		return time.Time{}, err
	}
	line, _, _ := bytes.Cut(head[:n], newline)
	if at, err := time.Parse(time.RFC3339Nano, string(timestamp().Find(line))); err == nil {
		return at, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

// countLines counts the lines of a file, compressed or not. rest is called now and then, and may end it with an error.
func countLines(path string, rest func() error) (n int64, err error) {
	r, err := openLines(path)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	b := bufio.NewReaderSize(r, chunk)
	for {
		_, err := b.Peek(1)
		if err == nil {
			block, _ := b.Peek(b.Buffered())
			n += int64(bytes.Count(block, newline))
			_, _ = b.Discard(len(block))
			err = rest()
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
