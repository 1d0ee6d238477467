package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ctlogd/ctlogd/unit"
)

// Files are files that ctlogd lets grow up to a bound.
type Files struct {
	Name  string    // whose they are: "outputs.jsonl[0]"
	Path  string    // a file, or a directory that is theirs alone
	Bound unit.Size // of all of them together; 0: there is none
	Keep  int       // rotated files beside Path: PATH.1 to PATH.Keep

	Reserve unit.Size // what they leave free on the file system
}

// system is a file system, and what is to go there.
type system struct {
	path         string // a directory on it
	free         uint64
	err          error // free is not known
	bound, taken int64
	reserve      int64    // what stays free
	names        []string // whose files have a bound
	endless      []string // whose have none
}

// systems sorts the files by the file systems that they are on.
func (h host) systems(files []Files) (systems []*system) {
	byDevice := map[uint64]*system{}
	for _, f := range files {
		dir, ok := existing(f.Path)
		if !ok {
			continue // a FIFO or a device, which takes no room
		}
		device, free, err := h.kernel.disk(dir)
		s := byDevice[device]
		if s == nil || err != nil {
			s = &system{path: dir, free: free, err: err}
			systems = append(systems, s)
		}
		if err == nil {
			byDevice[device] = s
		}
		s.reserve = max(s.reserve, int64(f.Reserve))
		if f.Bound == 0 {
			s.endless = append(s.endless, f.Name)
			continue
		}
		s.bound += int64(f.Bound)
		s.taken += min(f.size(), int64(f.Bound))
		s.names = append(s.names, f.Name)
	}
	return systems
}

// result compares what is free with what the files may still grow by.
func (s *system) result(context.Context) Result {
	r := Result{Name: "disk", Status: Pass}
	if s.err != nil {
		r.Status, r.Detail = Warn, fmt.Sprintf("how much room %s has cannot be told: %v", s.path, cause(s.err))
		return r
	}
	r.Detail = fmt.Sprintf("the file system of %s has %s left", s.path, about(int64(s.free)))
	need := s.bound - s.taken
	if len(s.names) > 0 {
		r.Detail += fmt.Sprintf(", and %s may take %s more", strings.Join(s.names, ", "), about(need))
	}
	if s.reserve > 0 {
		r.Detail += fmt.Sprintf("; %s of it stay free", about(s.reserve))
	}
	if uint64(need+s.reserve) > s.free {
		r.Status = Warn
		r.Remedy = "lower max_size or keep, or make room: a disk that is full loses records"
	}
	if len(s.endless) > 0 {
		r.Detail += "; without max_size, " + strings.Join(s.endless, ", ") + " may grow to any size"
	}
	return r
}

// size is what the files take now.
func (f *Files) size() (sum int64) {
	_ = filepath.WalkDir(f.Path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // what cannot be seen counts as not there
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return nil
	})
	for i := 1; i <= f.Keep; i++ {
		for _, ext := range []string{"", ".gz", ".zst"} {
			if info, err := os.Stat(fmt.Sprintf("%s.%d%s", f.Path, i, ext)); err == nil {
				sum += info.Size()
			}
		}
	}
	return sum
}

// existing returns path, or the next directory above it that is there; false for what is neither file nor directory.
func existing(path string) (string, bool) {
	for {
		info, err := os.Stat(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return path, err != nil || info.IsDir() || info.Mode().IsRegular()
		}
		up := filepath.Dir(path)
		if up == path {
			return path, true
		}
		path = up
	}
}

// about writes a number of bytes with three digits at most.
func about(n int64) string {
	for _, u := range []struct {
		name  string
		bytes float64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if x := float64(n) / u.bytes; x >= 1 {
			return fmt.Sprintf("%.3g %s", x, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
