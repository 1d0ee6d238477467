//go:build integration

package deliver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/lab"
)

// frozen returns a directory on a disk that can be made to hang.
func frozen(t *testing.T) (dir string, freeze, thaw func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	d, err := lab.NewDisk(filepath.Join(t.TempDir(), "image"), t.TempDir(), "64M")
	must(err)
	t.Cleanup(func() { must(d.Close()) })
	return d.Dir, func() { t.Helper(); must(d.Freeze()) }, func() { t.Helper(); must(d.Thaw()) }
}

// file is an output that writes a line for each record and has no idea that a disk may hang.
type file struct {
	stub
	f *os.File
}

func newFile(t *testing.T, name string) *file {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	o := &file{f: f}
	o.write = func(_ context.Context, _ int, recs []*flow.Record) (int, error) {
		var text strings.Builder
		for _, r := range recs {
			fmt.Fprintln(&text, r.ID)
		}
		if _, err := f.WriteString(text.String()); err != nil {
			return 0, err
		}
		return len(recs), nil
	}
	return o
}

// The disk under a spool hangs while the spool is written, read, synced and closed. Its output is well, and gets all that
// there is: what the spool has comes when the disk goes on.
func TestSpoolsDiskHangs(t *testing.T) {
	dir, freeze, thaw := frozen(t)
	out := newSwitched(true)
	q := queueOf(out, nil, 0, zap.NewNop())
	q.spill(openSpool(t, filepath.Join(dir, "spool"), 0))
	p := start(q)
	next := send(p, 0, slices.Repeat([]int{BatchRecords}, 20)...)
	eventually(t, "the records are in the spool", func() bool { return spooled(q) == uint64(next) })
	freeze()
	next = send(p, next, slices.Repeat([]int{BatchRecords}, 20)...)
	eventually(t, "the spooler waits for the disk", func() bool { return q.spooler.watch.out() > 0 })
	out.broken.Store(false)
	inMemory := int(next) / 2
	eventually(t, "what is in memory is delivered past the disk", func() bool { return out.count() > 0 || q.spooler.stuck() })
	next = send(p, next, slices.Repeat([]int{BatchRecords}, 20)...)
	eventually(t, "what comes is delivered", func() bool { return out.count() >= inMemory-writeRecords })
	q.Status()
	q.Since(time.Now())
	q.Unrecorded()
	thaw()
	eventually(t, "all is delivered", func() bool { return out.count() >= int(next) })
	p.Close(t.Context())
	got := out.got()
	slices.Sort(got)
	if !slices.Equal(slices.Compact(got), upTo(next)) {
		t.Errorf("%d records delivered, want each of %d", len(got), next)
	}
	if gaps := q.Unrecorded(); len(gaps)+len(out.gaps) > 0 {
		t.Errorf("gaps %+v %+v", gaps, out.gaps)
	}
}

// The disk under an output hangs, and its queue ends. With a spool on another disk nothing is lost, and without one what is
// lost has its number. The end waits for neither; the output is closed when the disk goes on.
func TestOutputsDiskHangs(t *testing.T) {
	for _, spools := range []bool{false, true} {
		dir, freeze, thaw := frozen(t)
		out := newFile(t, filepath.Join(dir, "lines"))
		q := queueOf(out, nil, 0, zap.NewNop())
		if spools {
			q.spill(openSpool(t, t.TempDir(), 0))
		}
		p := start(q)
		first := send(p, 0, 10)
		eventually(t, "the first are written", func() bool { return out.count() == int(first) })
		freeze()
		next := send(p, first, slices.Repeat([]int{BatchRecords}, 40)...)
		eventually(t, "the hang is noticed", func() bool { return q.Status().Failing })
		sp := q.Spool()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		p.Close(ctx)
		if ctx.Err() != nil {
			t.Error("the end waited for the disk")
		}
		cancel()
		lost, want := lostIn(q.Unrecorded()), int64(next-first)
		if spools {
			want = 0
			if n, _ := sp.Len(); n != uint64(next-first) {
				t.Errorf("%d records are in the spool, want %d", n, next-first)
			}
		}
		if lost != want || q.Stats.Left.Load() != uint64(want) {
			t.Errorf("spool %v: %d lost in gaps, %d counted, want %d", spools, lost, q.Stats.Left.Load(), want)
		}
		if out.closed.Load() {
			t.Error("it is closed, and its call has not returned")
		}
		thaw()
		eventually(t, "the output is closed", out.closed.Load)
		if again := lostIn(q.Unrecorded()); again != lost {
			t.Errorf("%d lost when its call has returned", again)
		}
	}
}
