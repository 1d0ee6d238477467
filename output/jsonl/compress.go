package jsonl

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/klauspost/compress/zstd"
)

// Compressions are the values of compress: as what rotated files are kept.
var Compressions = []string{"none", "gzip", "zstd"}

// tmpExt is behind the path in the name of the file that is being compressed to.
const tmpExt = ".compressing"

func compressedExt(compression string) string {
	if compression == "gzip" {
		return ".gz"
	}
	return ".zst"
}

// newCompressor returns what compresses into w. It works in the caller's goroutine, and takes some MiB of memory.
func newCompressor(compression string, w io.Writer) (io.WriteCloser, error) {
	if compression == "gzip" {
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	}
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
}

// compressOne compresses the oldest rotated file that is not compressed yet; done says that there is none.
//
// A crash between any two steps loses nothing: the compressed file gets its name when all of it is on the disk, and the
// plain one goes after that. When both are there, the plain one is compressed once more.
func (h *housekeeper) compressOne(path string) (done bool, err error) {
	files, err := listRotated(path)
	if err != nil {
		return false, err
	}
	for i, r := range files {
		if r.ext != "" {
			continue
		}
		for _, twin := range files[i+1:] {
			if twin.n == r.n {
				if err := h.removeTwin(path, twin); err != nil {
					return false, err
				}
			}
		}
		return false, h.compress(path, r)
	}
	return true, nil
}

// removeTwin removes a compressed file that stands beside the plain one.
func (h *housekeeper) removeTwin(path string, twin rotated) error {
	h.names.Lock()
	defer h.names.Unlock()
	if at, ok := find(path, twin); ok {
		return os.Remove(at.path(path))
	}
	return nil
}

// compress compresses one file.
func (h *housekeeper) compress(path string, r rotated) (err error) {
	if err := h.room(); err != nil {
		return err
	}
	in, err := h.openRotated(path, r)
	if in == nil {
		return err
	}
	defer in.Close()
	tmp := path + tmpExt
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		os.Remove(tmp) // in vain when all went well
		err = errors.Join(err, out.Close())
	}()
	lines, err := h.compressInto(out, in)
	if err != nil {
		return fmt.Errorf("compress %s: %w", in.Name(), err)
	}
	if err := copyAttributes(out, r.info); err != nil {
		return err
	}
	info, err := out.Stat()
	if err != nil {
		return err
	}

	compressed := rotated{ext: compressedExt(h.cfg.Compress), info: info}
	h.names.Lock()
	at, ok := find(path, r)
	if ok {
		compressed.n = at.n
		err = os.Rename(tmp, compressed.path(path))
	}
	h.names.Unlock()
	if err != nil || !ok { // it was removed meanwhile
		return err
	}
	if err := syncDir(path); err != nil {
		return err
	}
	h.names.Lock()
	if at, ok := find(path, at); ok {
		err = os.Remove(at.path(path))
	}
	h.names.Unlock()
	if err != nil {
		return err
	}
	h.forget(r.info)
	h.note(info, lines)
	h.f.Stats.Compressions.Add(1)
	return nil
}

// openRotated opens a file wherever it is by now; nil if it is gone.
func (h *housekeeper) openRotated(path string, r rotated) (*os.File, error) {
	h.names.Lock()
	defer h.names.Unlock()
	if at, ok := find(path, r); ok {
		return os.Open(at.path(path))
	}
	return nil, nil
}

// compressInto compresses in to out, bit by bit, has it written to the disk, and returns how many lines it was.
func (h *housekeeper) compressInto(out, in *os.File) (lines int64, err error) {
	w, err := newCompressor(h.cfg.Compress, out)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, chunk)
	for {
		n, err := in.Read(buf)
		lines += int64(bytes.Count(buf[:n], newline))
		if _, werr := w.Write(buf[:n]); werr != nil {
			return 0, errors.Join(werr, w.Close())
		}
		if err == io.EOF {
			break
		}
		if err == nil {
			err = h.rest()
		}
		if err != nil {
			_ = w.Close() // gives its memory back
			return 0, err
		}
		h.cleanIfWoken()
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	return lines, out.Sync()
}

// cleanIfWoken removes what is too much while a large file is being compressed.
func (h *housekeeper) cleanIfWoken() {
	select {
	case <-h.kick:
		if path, err := filepath.EvalSymlinks(h.cfg.Path); err == nil {
			h.clean(path)
		}
	default:
	}
}

// room returns an error if there is no more free than the reserve: compressing takes some before it gives some.
func (h *housekeeper) room() error {
	if h.cfg.Reserve == 0 {
		return nil
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(h.cfg.Path), &st); err != nil {
		return err
	}
	if int64(st.Bavail)*int64(st.Bsize) < int64(h.cfg.Reserve) {
		return fmt.Errorf("no more is free than the reserve of %s: %w", h.cfg.Reserve, syscall.ENOSPC)
	}
	return nil
}

// copyAttributes gives file the times, the mode and, as far as that is allowed, the owner of another one: whoever may read
// that one shall read this.
func copyAttributes(file *os.File, like os.FileInfo) error {
	if st, ok := like.Sys().(*syscall.Stat_t); ok {
		_ = file.Chown(int(st.Uid), int(st.Gid)) // not ours to give away, as a rule, and ours already
	}
	if err := file.Chmod(like.Mode().Perm()); err != nil {
		return err
	}
	return os.Chtimes(file.Name(), like.ModTime(), like.ModTime())
}

// syncDir has the names in path's directory written to the disk.
func syncDir(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
