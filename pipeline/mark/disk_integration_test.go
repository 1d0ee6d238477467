//go:build integration

package mark

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/lab"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The state directory's disk is read-only, full, or has no inodes left, at the start of a process or while it runs. The
// marks are in memory meanwhile, which the log says once with its remedy; the gaps that the last process has left are on
// record all the same, and when the disk is well again, so are the marks.
func TestDiskIsOfNoUse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	type fault struct {
		ail, mend func(d *lab.Disk) error // mend nil: the disk is mounted anew, which nobody may use meanwhile
		errno     unix.Errno
	}
	faults := map[string]fault{
		"read-only": {ail: (*lab.Disk).Abort, errno: unix.EROFS},
		"full":      {ail: func(d *lab.Disk) error { return d.Fill(0) }, errno: unix.ENOSPC, mend: (*lab.Disk).Free},
		"no inodes": {ail: (*lab.Disk).TakeInodes, errno: unix.ENOSPC, mend: func(d *lab.Disk) error { return d.GiveInodes(2) }},
	}
	gap := deliver.Gap{Gap: flow.Gap{Cause: flow.CauseGuard, Lost: 3, LostKnown: true, Output: "a"}, From: 1, To: 2}
	for name, f := range faults {
		for _, running := range []bool{false, true} {
			t.Run(name+map[bool]string{false: " at the start", true: " while it runs"}[running], func(t *testing.T) {
				t.Parallel()
				d, err := lab.NewDisk(filepath.Join(t.TempDir(), "image"), t.TempDir(), "4M", "-N", "32")
				must(t, err)
				t.Cleanup(func() { must(t, d.Close()) })
				dir := filepath.Join(d.Dir, "state")
				must(t, os.Mkdir(dir, 0o700))
				first := run(dir, "a")
				(*first.queues.Load())[0].Lose(gap)
				first.Finish(&Socket{})
				must(t, os.Remove(filepath.Join(dir, lockName))) // as if it had never been made

				var p *process
				if running {
					p = run(dir, "a")
					saved(t, dir, "its mark", func(m *Mark) bool { return !m.Clean })
				}
				must(t, f.ail(d))
				if !running {
					p = run(dir, "a")
				}
				var told *observer.ObservedLogs
				eventually(t, "the log says that the mark is in memory", func() bool {
					if running && f.mend != nil { // again: the keeper may have given back what it had in hand
						must(t, ignore(f.ail(d), f.errno))
					}
					told = p.logged.FilterMessageSnippet("the mark is in memory for now")
					return told.Len() > 0
				})
				fields := told.All()[0].ContextMap()
				if s, _ := fields["error"].(string); !strings.Contains(s, f.errno.Error()) {
					t.Errorf("the error is %q, want %q", s, f.errno)
				}
				if s, _ := fields["remedy"].(string); !strings.Contains(s, dir) {
					t.Errorf("the remedy is %q", s)
				}
				if since, err := p.Failure(); !errors.Is(err, f.errno) || since.IsZero() {
					t.Errorf("failure %v since %v", err, since)
				}
				if diff := cmp.Diff([]deliver.Gap{gap}, (*p.queues.Load())[0].Unrecorded()); diff != "" {
					t.Errorf("gaps while it is of no use (-want +got):\n%s", diff)
				}
				if m, err := Load(dir); err != nil || m == nil || m.Clean == running {
					t.Errorf("the last mark that was written: %+v, %v", m, err)
				}

				if f.mend != nil {
					must(t, f.mend(d))
				} else if running {
					p.Finish(nil)
					must(t, d.Unmount())
					must(t, d.Mount())
					p = run(dir, "a")
					saved(t, dir, "the next one's mark", func(m *Mark) bool { return cmp.Equal(m.Outputs[0].Gaps[:1], []deliver.Gap{gap}) })
					p.Finish(nil)
					return
				} else {
					eventually(t, "the disk is unmounted, which waits for the keeper's look", func() bool { return d.Unmount() == nil })
					must(t, d.Mount())
				}
				p.await(t, "can be written again")
				saved(t, dir, "the mark", func(m *Mark) bool { return !m.Clean && cmp.Equal(m.Outputs[0].Gaps, []deliver.Gap{gap}) })
				if _, err := p.Failure(); err != nil {
					t.Error(err)
				}
				p.Finish(nil)
				saved(t, dir, "the last mark", func(m *Mark) bool { return m.Clean })
				for _, s := range []string{"in memory for now", "can be written again"} {
					if n := p.logged.FilterMessageSnippet(s).Len(); n != 1 {
						t.Errorf("logged %d times: %s", n, s)
					}
				}
			})
		}
	}
}

// ignore is err, or nil where it is one of these.
func ignore(err error, these ...error) error {
	for _, e := range these {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// A file system that has no locks gets one warning, and the mark is kept there.
func TestLockRefused(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EBADF, unix.ENOLCK, unix.EOPNOTSUPP, unix.ENOSYS} {
		t.Run(unix.ErrnoName(errno), func(t *testing.T) {
			dir := t.TempDir()
			core, logged := observer.New(zap.WarnLevel)
			queues := []*deliver.Queue{queueOf("a", output{broken: true}, nil)}
			k := NewKeeper(Options{Dir: dir, Log: zap.New(core), Queues: func() []*deliver.Queue { return queues },
				ReadUntil: func() time.Time { return time.Unix(0, 5) }})
			must(t, lab.Refusing(unix.SYS_FLOCK, errno, func() {
				for range 2 {
					k.turn(false)
				}
			}))
			if _, err := k.Failure(); err != nil {
				t.Error(err)
			}
			if m, err := Load(dir); err != nil || m == nil {
				t.Errorf("the mark: %+v, %v", m, err)
			}
			all := logged.All()
			if len(all) != 1 || !strings.Contains(all[0].Message, "cannot be locked") || all[0].ContextMap()["error"] != errno.Error() {
				t.Errorf("logged %v", all)
			}
		})
	}
}
