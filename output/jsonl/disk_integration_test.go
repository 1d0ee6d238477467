//go:build integration

package jsonl

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/integration/lab"
	"github.com/ctlogd/ctlogd/output/format"
)

// disk is one that can be full, or fail.
type disk struct{ *lab.Disk }

// newDisk makes and mounts one. options are those of mkfs.ext4.
func newDisk(t *testing.T, size string, options ...string) disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a file system")
	}
	d, err := lab.NewDisk(filepath.Join(t.TempDir(), "image"), t.TempDir(), size, options...)
	must(t, err)
	t.Cleanup(func() { must(t, d.Unmount()) })
	return disk{d}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func shell(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// fillUp takes all room but so many bytes, and returns what gives it back.
func (d disk) fillUp(t *testing.T, but int64) (free func()) {
	t.Helper()
	must(t, d.Fill(but))
	return func() { must(t, d.Free()) }
}

// try opens the file as delivery does.
func try(t *testing.T, cfg Config, log *zap.Logger) (*File, error) {
	t.Helper()
	enc, err := cfg.Encoder(format.Options{Host: "gw1"})
	if err != nil {
		t.Fatal(err)
	}
	return New(cfg, enc, log)
}

// TestAppendOnly: a hardened file (chattr +a), which nobody may cut, is begun with a torn line and gets one when the disk
// is full. Nothing is lost for it, and every line but the one that a crash has torn is whole.
func TestAppendOnly(t *testing.T) {
	d := newDisk(t, "4M")
	path := filepath.Join(d.Dir, "f")
	const torn = `{"v":1,"ct_`
	if err := os.WriteFile(path, []byte("{\"ct_id\":99}\n"+torn), 0o640); err != nil {
		t.Fatal(err)
	}
	shell(t, "chattr", "+a", path)
	t.Cleanup(func() { shell(t, "chattr", "-a", path) })
	core, logs := observer.New(zap.InfoLevel)
	f := newFile(t, Config{Path: path}, zap.New(core))
	write(t, f, records(0, 10))

	free := d.fillUp(t, 64<<10)
	recs := records(10, 400)
	n, err := f.Write(ctx, recs)
	if !errors.Is(err, unix.ENOSPC) || n == len(recs) {
		t.Fatalf("Write = %d, %v, want ENOSPC", n, err)
	}
	for range 3 {
		m, err := f.Write(ctx, recs[n:])
		if n += m; !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("Write = %d, %v, want ENOSPC", m, err)
		}
	}
	free()
	write(t, f, recs[n:])
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := strings.Replace(string(b), torn+"\n", "", 1)
	if len(whole) != len(b)-len(torn)-1 {
		t.Errorf("the torn line is not closed off: %.100q", b)
	}
	all := parseIDs(t, []byte(whole))
	if len(all) > 1+410+1 {
		t.Errorf("%d lines", len(all))
	}
	wantIDs(t, append([]int{99}, upTo(410)...), slices.Compact(all)) // the line that was torn by the full disk comes twice
	if warnings := logs.FilterMessageSnippet("append-only").Len(); warnings != 1 {
		t.Errorf("%d warnings: %v", warnings, logs.All())
	}
}

// TestNewlineOnFullDisk: the last line lacks its newline, and there is no room for one: the first write puts it there.
func TestNewlineOnFullDisk(t *testing.T) {
	d := newDisk(t, "4M")
	path := filepath.Join(d.Dir, "f")
	line := fmt.Sprintf(`{"ct_id":99,"secctx":%q}`, strings.Repeat("x", 4096-24)) // a whole block
	if err := os.WriteFile(path, []byte(line), 0o640); err != nil || len(line) != 4096 {
		t.Fatal(len(line), err)
	}
	free := d.fillUp(t, 0)
	f := newFile(t, Config{Path: path}, nil)
	if n, err := f.Write(ctx, records(0, 1)); n != 0 || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("Write = %d, %v, want ENOSPC", n, err)
	}
	free()
	write(t, f, records(0, 1))
	wantIDs(t, []int{99, 0}, ids(t, path))
}

// TestReadOnlyDisk: the kernel makes the file system read-only after an error. Writing fails, and so does opening, until
// it is mounted anew.
func TestReadOnlyDisk(t *testing.T) {
	d := newDisk(t, "4M")
	must(t, os.Mkdir(filepath.Join(d.Dir, "logs"), 0o750)) // which is not there while the disk is not mounted
	cfg := Config{Path: filepath.Join(d.Dir, "logs", "f")}
	f := newFile(t, cfg, nil)
	write(t, f, records(0, 1))
	must(t, d.Abort())
	if n, err := f.Write(ctx, records(1, 1)); n != 0 || !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EIO) {
		t.Errorf("Write = %d, %v, want EROFS or EIO", n, err)
	}
	if err := f.Close(ctx); err != nil {
		t.Error(err)
	}
	for range 2 {
		if _, err := try(t, cfg, nil); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "; mount it read-write") {
			t.Errorf("New: %v, want EROFS with its remedy", err)
		}
	}
	if err := cfg.Check(); !errors.Is(err, unix.EROFS) {
		t.Errorf("Check: %v", err)
	}
	q := queueOf(t, cfg) // a daemon that starts now
	offer(q, records(1, 1))
	awaitFailing(t, q, "read-only file system")
	must(t, d.Unmount())
	must(t, d.Mount())
	await(t, "the record is written", func() bool { return q.Stats.Written.Load() == 1 })
	retire(q, time.Minute)
	wantIDs(t, upTo(2), ids(t, cfg.Path))
}

// TestNoInodes: no file can be made. What is there is written; it is rotated when there is an inode again.
func TestNoInodes(t *testing.T) {
	d := newDisk(t, "4M", "-N", "32")
	cfg := Config{Path: filepath.Join(d.Dir, "f"), MaxSize: 64 << 10, Keep: 1}
	f := newFile(t, cfg, nil)
	must(t, d.TakeInodes())
	other := Config{Path: filepath.Join(d.Dir, "other")}
	if _, err := try(t, other, nil); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "df -i") {
		t.Errorf("New: %v, want ENOSPC with its remedy", err)
	}
	write(t, f, records(0, 500))
	write(t, f, records(500, 500))
	if f.Stats.RotationErrors.Load() != 1 || f.Stats.Rotations.Load() != 0 {
		t.Errorf("%d rotations, %d errors", f.Stats.Rotations.Load(), f.Stats.RotationErrors.Load())
	}
	wantIDs(t, upTo(1000), ids(t, cfg.Path))
	must(t, d.GiveInodes(2))
	f.writing.Lock()
	f.noRotateBefore = f.noRotateBefore.Add(-rotateRetry)
	f.writing.Unlock()
	write(t, f, records(1000, 1))
	wantIDs(t, upTo(1001), ids(t, cfg.Path+".1", cfg.Path))
	if g, err := try(t, other, nil); err != nil {
		t.Error(err)
	} else if err := g.Close(ctx); err != nil {
		t.Error(err)
	}
}

// TestFailingDisk: the disk cannot be read, so nobody can tell how the file ends. It is opened when it can.
func TestFailingDisk(t *testing.T) {
	d := newDisk(t, "4M", "-O", "^has_journal")
	cfg := Config{Path: filepath.Join(d.Dir, "f")}
	if err := os.WriteFile(cfg.Path, []byte("{\"ct_id\":0}\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	shell(t, "sync", "-f", cfg.Path)
	image, err := os.ReadFile(d.Image)
	if err != nil {
		t.Fatal(err)
	}
	forget(t, cfg.Path)
	if err := os.Truncate(d.Image, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := try(t, cfg, nil); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "; the disk fails: see dmesg") {
		t.Errorf("New: %v, want EIO with its remedy", err)
	}
	file, err := os.OpenFile(d.Image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(image); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	forget(t, cfg.Path)
	f := newFile(t, cfg, nil)
	write(t, f, records(1, 1))
	wantIDs(t, upTo(2), ids(t, cfg.Path))
}

// forget has the kernel read a file from the disk when it is read next.
func forget(t *testing.T, path string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

// TestLockRefused: a file system that has no locks, as the kernel's answers to flock(2) on NFS are, is written all the
// same, with one warning.
func TestLockRefused(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EBADF, unix.ENOLCK, unix.EOPNOTSUPP, unix.ENOSYS} {
		t.Run(unix.ErrnoName(errno), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			core, logs := observer.New(zap.InfoLevel)
			must(t, lab.Refusing(unix.SYS_FLOCK, errno, func() {
				f, err := try(t, Config{Path: path, MaxSize: 64 << 10, Keep: 3}, zap.New(core))
				if err != nil {
					t.Error(err)
					return
				}
				for i := range 3 {
					f.cfg.MaxSize = 1
					if n, err := f.Write(ctx, records(10*i, 10)); n != 10 || err != nil {
						t.Errorf("Write = %d, %v", n, err)
					}
				}
				if err := f.Close(ctx); err != nil {
					t.Error(err)
				}
			}))
			wantIDs(t, upTo(30), ids(t, path+".2", path+".1", path))
			if warnings := logs.FilterMessageSnippet("refuses to lock").All(); len(warnings) != 1 ||
				!strings.Contains(fmt.Sprint(warnings[0].ContextMap()), errno.Error()) {
				t.Errorf("log: %v", logs.All())
			}
		})
	}
}

// TestFileSizeLimit: a file that may not become larger says what to do.
func TestFileSizeLimit(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	f := newFile(t, Config{Path: filepath.Join(t.TempDir(), "f")}, nil)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4096, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	n, err := f.Write(ctx, records(0, 100))
	m, again := f.Write(ctx, records(n, 100-n))
	if lerr := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); lerr != nil {
		t.Fatal(lerr)
	}
	if n == 0 || n == 100 || !errors.Is(err, unix.EFBIG) || !strings.Contains(err.Error(), "; set max_size") {
		t.Errorf("Write = %d, %v, want EFBIG with its remedy", n, err)
	}
	if !errors.Is(again, unix.EFBIG) {
		t.Errorf("the second Write = %d, %v", m, again)
	}
	write(t, f, records(n+m, 100-n-m))
	wantIDs(t, upTo(100), ids(t, f.cfg.Path))
}
