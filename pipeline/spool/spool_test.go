package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	testOutput = "kafka:flows"
	t0         = int64(1790000000000000000)
)

// record returns the record of the serial number i, which stands in its packet counter; every tenth has an Extra. It
// was received i seconds after t0.
func record(i uint64) *flow.Record {
	client := flow.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	server := flow.AddrFrom4([4]byte{192, 0, 2, 9})
	r := &flow.Record{
		Event: flow.EventDestroy, Has: flow.HasOrig | flow.HasReply | flow.HasCounters,
		Orig:         flow.Tuple{Src: client, Dst: server, SrcPort: uint16(i), DstPort: 443, Proto: flow.TCP},
		Reply:        flow.Tuple{Src: server, Dst: client, SrcPort: 443, DstPort: uint16(i), Proto: flow.TCP},
		OrigCounters: flow.Counters{Packets: i, Bytes: 100 * i},
		Start:        t0, Stop: t0 + int64(i)*1e9 - 5, Received: t0 + int64(i)*1e9,
		ID: uint32(i * 2654435761),
	}
	if i%10 == 0 {
		r.Extra = &flow.Extra{Helper: flow.NameFrom("ftp"), SecCtx: fmt.Sprint("ctx", i)}
	}
	return r
}

// records returns the records from serial number from up to to.
func records(from, to uint64) (recs []*flow.Record) {
	for i := from; i < to; i++ {
		recs = append(recs, record(i))
	}
	return recs
}

func gapRecord(cause flow.Cause, lost uint64, received int64) *flow.Record {
	return &flow.Record{Event: flow.EventGap, Start: received - 9, Stop: received, Received: received,
		Extra: &flow.Extra{Gap: flow.Gap{Cause: cause, Lost: lost, LostKnown: true, Output: "jsonl:x"}}}
}

func testConfig(dir string) Config {
	return Config{Path: dir, MaxSize: 1 << 30, WhenFull: DropNewest, Fsync: SyncNever}
}

// openTest opens a spool with segments of segSize bytes and closes it at the end of the test.
func openTest(t testing.TB, cfg Config, segSize int64) *Spool {
	t.Helper()
	s, err := open(cfg, segSize, testOutput, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// appendAll appends the records from up to to, per of them a call.
func appendAll(t testing.TB, s *Spool, from, to, per uint64) {
	t.Helper()
	for i := from; i < to; i += per {
		if lost, err := s.Append(records(i, min(i+per, to))); err != nil || lost != (Loss{}) {
			t.Fatalf("append %d: lost %+v, error %v", i, lost, err)
		}
	}
}

// image copies the spool's files to a new directory, as a process that is killed at this moment would leave them.
func image(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// item is what a test looks at: a serial number, or a gap.
type item struct {
	Serial uint64
	Gap    Loss
}

func itemOf(t testing.TB, r *flow.Record) item {
	t.Helper()
	if r.Event == flow.EventGap {
		g := r.Extra.Gap
		return item{Gap: Loss{g.Cause, r.Start, r.Stop, g.Lost, g.LostKnown}}
	}
	want := record(r.OrigCounters.Packets)
	if bytes.Equal(flow.AppendBinary(nil, want), flow.AppendBinary(nil, r)) {
		return item{Serial: r.OrigCounters.Packets} // Diff is slow
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Fatalf("a record came back different (-want +got):\n%s", diff)
	}
	return item{Serial: r.OrigCounters.Packets}
}

// drain reads and commits all that waits, in batches of per records.
func drain(t testing.TB, s *Spool, per int) (items []item) {
	t.Helper()
	b := flow.NewBatch(per, nil)
	for {
		b.Reset()
		n, err := s.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			if records, _ := s.Len(); records != 0 {
				t.Fatalf("nothing to read, but %d records wait", records)
			}
			return items
		}
		for i := range b.Records {
			items = append(items, itemOf(t, &b.Records[i]))
		}
		if err := s.Commit(n); err != nil {
			t.Fatal(err)
		}
	}
}

func serials(from, to uint64) (items []item) {
	for i := from; i < to; i++ {
		items = append(items, item{Serial: i})
	}
	return items
}

func diffItems(t testing.TB, want, got []item) {
	t.Helper()
	if slices.Equal(want, got) {
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestOrder(t *testing.T) {
	for _, per := range []int{1, 7, 64, 5000} {
		t.Run(fmt.Sprint(per), func(t *testing.T) {
			s := openTest(t, testConfig(t.TempDir()), 4096)
			appendAll(t, s, 0, 1000, 33)
			if n := len(s.index.segments); n < 10 {
				t.Fatalf("%d segments", n)
			}
			if n, bytes := s.Len(); n != 1000 || bytes < 50000 {
				t.Errorf("Len: %d records, %d bytes", n, bytes)
			}
			if got, want := s.Oldest(), time.Unix(0, t0-5); !got.Equal(want) {
				t.Errorf("Oldest: %v, want %v", got, want)
			}
			diffItems(t, serials(0, 1000), drain(t, s, per))
			appendAll(t, s, 1000, 1010, 3)
			diffItems(t, serials(1000, 1010), drain(t, s, per))
			if got := s.Oldest(); !got.IsZero() {
				t.Errorf("Oldest of an empty spool: %v", got)
			}
			if s.Stats.Appended.Load() != 1010 || s.Stats.Delivered.Load() != 1010 {
				t.Errorf("appended %d, delivered %d", s.Stats.Appended.Load(), s.Stats.Delivered.Load())
			}
			if n := len(s.index.segments); n != 1 {
				t.Errorf("%d segments are left", n)
			}
		})
	}
}

// TestReopen goes on after a proper end, whatever was read and committed by then.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	next, appended := uint64(0), uint64(0)
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 40 {
		s := openTest(t, testConfig(dir), 2048)
		n := uint64(rnd.IntN(100))
		appendAll(t, s, appended, appended+n, uint64(1+rnd.IntN(20)))
		appended += n
		b := flow.NewBatch(1+rnd.IntN(150), nil)
		got, err := s.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Records {
			if it := itemOf(t, &b.Records[i]); it.Serial != next+uint64(i) {
				t.Fatalf("read %+v, want %d", it, next+uint64(i))
			}
		}
		commit := rnd.IntN(got + 1)
		if err := s.Commit(commit); err != nil {
			t.Fatal(err)
		}
		next += uint64(commit)
		if n, _ := s.Len(); n != appended-next {
			t.Fatalf("Len: %d, want %d", n, appended-next)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := openTest(t, testConfig(dir), 2048)
	diffItems(t, serials(next, appended), drain(t, s, 50))
	s.Close()
	if files, _ := filepath.Glob(filepath.Join(dir, "*.seg")); len(files) > 1 {
		t.Errorf("files of an empty spool: %q", files)
	}
}

func TestPartialCommit(t *testing.T) {
	s := openTest(t, testConfig(t.TempDir()), 2048)
	appendAll(t, s, 0, 100, 10)
	read := func(n int) (items []item) {
		b := flow.NewBatch(n, nil)
		if _, err := s.Read(b); err != nil {
			t.Fatal(err)
		}
		for i := range b.Records {
			items = append(items, itemOf(t, &b.Records[i]))
		}
		return items
	}
	commit := func(n int) {
		t.Helper()
		if err := s.Commit(n); err != nil {
			t.Fatal(err)
		}
	}
	diffItems(t, serials(0, 25), read(25))
	commit(13) // of the first batch
	diffItems(t, serials(25, 35), read(10))
	commit(12) // the rest of it
	commit(4)
	diffItems(t, serials(29, 32), func() []item { s.Rewind(); return read(3) }())
	if err := s.Commit(4); err == nil || err.Error() != "commit of 4 records, 3 were read" {
		t.Errorf("commit of too many: %v", err)
	}
	s.Rewind()
	diffItems(t, serials(29, 100), drain(t, s, 1000))
}

// TestGapsInPlace: gap records stay where they were appended, and need no room.
func TestGapsInPlace(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, testConfig(dir), 2048)
	appendAll(t, s, 0, 5, 5)
	g1, g2, g3 := gapRecord(flow.CauseOverrun, 7, t0+5e9), gapRecord(flow.CauseQueueFull, 2, t0+6e9),
		gapRecord(flow.CauseQueueFull, 3, t0+8e9)
	if _, err := s.Append([]*flow.Record{record(5), g1, record(6)}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*flow.Record{g2, g3} { // in one place, for one reason: one gap
		if _, err := s.Append([]*flow.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	appendAll(t, s, 7, 9, 2)
	want := append(serials(0, 6), item{Gap: Loss{flow.CauseOverrun, t0 + 5e9 - 9, t0 + 5e9, 7, true}}, item{Serial: 6},
		item{Gap: Loss{flow.CauseQueueFull, t0 + 6e9 - 9, t0 + 8e9, 5, true}}, item{Serial: 7}, item{Serial: 8})
	for range 2 {
		if n, _ := s.Len(); n != uint64(len(want)) {
			t.Errorf("Len: %d, want %d", n, len(want))
		}
		b := flow.NewBatch(4, nil)
		for range 2 {
			b.Reset()
			if _, err := s.Read(b); err != nil {
				t.Fatal(err)
			}
		}
		s = openTest(t, testConfig(image(t, dir)), 2048) // killed before it was committed
	}
	b := flow.NewBatch(10, nil)
	if _, err := s.Read(b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(g1, &b.Records[6]); diff != "" {
		t.Errorf("gap (-want +got):\n%s", diff)
	}
	s.Rewind()
	diffItems(t, want, drain(t, s, 4))
}

// TestGapsBounded: however many gaps there are, they fit, and the sum of what they say stays.
func TestGapsBounded(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, testConfig(dir), 1<<20)
	const n = 1000
	lost := uint64(0)
	for i := range uint64(n) {
		g := gapRecord(flow.CauseQueueFull, i, t0+int64(i)*1e9)
		g.Extra.Gap.Output = strings.Repeat("x", 300)
		if _, err := s.Append([]*flow.Record{record(i), g}); err != nil {
			t.Fatal(err)
		}
		lost += i
	}
	s = openTest(t, testConfig(image(t, dir)), 1<<20)
	next, gaps, got := uint64(0), 0, uint64(0)
	for _, it := range drain(t, s, 100) {
		if it.Gap.Cause == 0 {
			if it.Serial != next {
				t.Fatalf("record %d, want %d", it.Serial, next)
			}
			next++
			continue
		}
		gaps++
		got += it.Gap.Lost
	}
	if next != n || gaps != maxGaps || got != lost {
		t.Errorf("%d records, %d gaps of %d lost; want %d, %d, %d", next, gaps, got, n, maxGaps, lost)
	}
}

// small is a spool of few small segments.
func small(dir, whenFull string) Config {
	return Config{Path: dir, MaxSize: 2*slotSize + 16*1024, WhenFull: whenFull, Fsync: SyncNever}
}

func TestDropNewest(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, small(dir, DropNewest), 4096)
	taken := uint64(0)
	for ; ; taken += 10 {
		lost, err := s.Append(records(taken, taken+10))
		if err != nil {
			t.Fatal(err)
		}
		if lost != (Loss{}) {
			want := Loss{flow.CauseSpoolFull, t0 + int64(taken)*1e9 - 5, t0 + int64(taken+9)*1e9, 10, true}
			if lost != want {
				t.Fatalf("lost %+v, want %+v", lost, want)
			}
			break
		}
	}
	if lost, err := s.Append(records(taken+10, taken+25)); err != nil || lost.Lost != 15 {
		t.Fatalf("lost %+v, error %v", lost, err)
	}
	if _, bytes := s.Len(); bytes > 16*1024 || bytes < 15*1024 {
		t.Errorf("%d bytes", bytes)
	}
	if n := s.Stats.Dropped.Load(); n != 25 {
		t.Errorf("Dropped: %d", n)
	}
	s = openTest(t, small(image(t, dir), DropNewest), 4096)
	b := flow.NewBatch(int(taken)/2, nil)
	n, err := s.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(n); err != nil {
		t.Fatal(err)
	}
	appendAll(t, s, taken+25, taken+30, 5) // there is room again
	want := append(serials(taken/2, taken),
		item{Gap: Loss{flow.CauseSpoolFull, t0 + int64(taken)*1e9 - 5, t0 + int64(taken+24)*1e9, 25, true}})
	diffItems(t, append(want, serials(taken+25, taken+30)...), drain(t, s, 100))
}

// TestFrameAsLargeAsSpool: what has been delivered does not count as full.
func TestFrameAsLargeAsSpool(t *testing.T) {
	s := openTest(t, small(t.TempDir(), DropNewest), 4096)
	for i := range uint64(4) {
		appendAll(t, s, 200*i, 200*(i+1), 200)
		diffItems(t, serials(200*i, 200*(i+1)), drain(t, s, 100))
	}
	if lost, err := s.Append(records(0, 400)); err != nil || lost.Lost != 400 {
		t.Errorf("a frame larger than the spool: lost %+v, error %v", lost, err)
	}
}

// TestDropOldest fills the spool many times over, with and without a batch that was read and is not committed.
func TestDropOldest(t *testing.T) {
	for _, read := range []int{0, 1, 30, 80} {
		t.Run(fmt.Sprint("read ", read), func(t *testing.T) {
			dir := t.TempDir()
			s := openTest(t, small(dir, DropOldest), 2048)
			appendAll(t, s, 0, 100, 5)
			b := flow.NewBatch(max(read, 1), nil)
			if read > 0 {
				if n, err := s.Read(b); n != read || err != nil {
					t.Fatalf("read %d, error %v", n, err)
				}
			}
			var lost Loss
			const all = 1500
			for i := uint64(100); i < all; i += 5 {
				l, err := s.Append(records(i, i+5))
				if err != nil {
					t.Fatal(err)
				}
				if l.Lost > 0 {
					lost.add(l)
				}
				if _, bytes := s.Len(); bytes > 16*1024 {
					t.Fatalf("%d bytes", bytes)
				}
			}
			if lost.Lost < 1000 || !lost.Known || s.Stats.Dropped.Load() != lost.Lost {
				t.Fatalf("lost %+v, counted %d", lost, s.Stats.Dropped.Load())
			}
			check := func(s *Spool) {
				t.Helper()
				items := drain(t, s, 77)
				kept, next, gaps := uint64(0), uint64(0), 0
				for _, it := range items {
					if g := it.Gap; g.Cause != 0 {
						gaps++
						want := Loss{flow.CauseSpoolFull, g.From, g.To, lost.Lost, true}
						if g != want || g.From > t0+int64(next)*1e9 || g.To < t0+int64(next+g.Lost-1)*1e9 {
							t.Errorf("gap %+v at %d, want %+v", g, next, want)
						}
						next += g.Lost
						continue
					}
					if it.Serial != next {
						t.Fatalf("record %d, want %d", it.Serial, next)
					}
					next++
					kept++
				}
				if gaps != 1 || next != all || kept+lost.Lost != all || kept < uint64(read) {
					t.Errorf("%d gaps, %d kept, %d lost", gaps, kept, lost.Lost)
				}
			}
			check(openTest(t, small(image(t, dir), DropOldest), 2048))
			s.Rewind() // what was read is still there
			check(s)
		})
	}
}

// TestKilled ends the process, as it were, between any two steps of a delivery, and looks at what the next one reads.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	s := openTest(t, testConfig(dir), 2048)
	again := func() []item { return drain(t, openTest(t, testConfig(image(t, dir)), 2048), 100) }

	appendAll(t, s, 0, 50, 10)
	diffItems(t, serials(0, 50), again()) // after Append, with no state written since

	b := flow.NewBatch(20, nil)
	if n, err := s.Read(b); n != 20 || err != nil {
		t.Fatal(n, err)
	}
	diffItems(t, serials(0, 50), again()) // between the delivery and its Commit: the batch comes twice

	if err := s.Commit(15); err != nil {
		t.Fatal(err)
	}
	diffItems(t, serials(15, 50), again()) // after Commit

	// Between the data and the cursor: the data is newer than the state.
	old, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, s, 50, 90, 10)
	b.Reset()
	if n, err := s.Read(b); n != 20 || err != nil {
		t.Fatal(n, err)
	}
	if err := errors.Join(s.Commit(20), os.WriteFile(state, old, 0o600)); err != nil {
		t.Fatal(err)
	}
	got := again()
	// Segments that the newer state had done with are gone. That can be only if the machine, too, has gone, and then
	// not either: Commit waits for the state to be on disk before it removes them.
	if first := got[0]; first.Gap.Cause == 0 {
		diffItems(t, serials(15, 90), got)
	} else {
		diffItems(t, serials(15+first.Gap.Lost, 90), got[1:])
	}
}

// TestTornTail cuts the last segment at every byte: all frames before the cut are delivered, and a frame that is torn
// makes a gap, with its numbers if its header is whole.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, testConfig(dir), 1<<20)
	ends := []int64{segmentHeader}
	for i := range uint64(4) {
		appendAll(t, s, 5*i, 5*i+5, 5)
		ends = append(ends, s.index.segments[0].size)
	}
	seg := filepath.Base(s.index.segments[0].path)
	for cut := range ends[4] {
		if cut > ends[1]+2*frameHeader && cut%13 != 0 {
			continue
		}
		torn := image(t, dir)
		if err := os.Truncate(filepath.Join(torn, seg), cut); err != nil {
			t.Fatal(err)
		}
		whole := 0
		for whole < 3 && ends[whole+1] <= cut {
			whole++
		}
		want := serials(0, uint64(5*whole))
		switch at := cut - ends[whole]; {
		case at <= 0:
		case at >= frameHeader:
			from := t0 + int64(5*whole)*1e9 - 5 // when the first flow ended
			want = append(want, item{Gap: Loss{flow.CauseCrash, from, from + 5 + 4e9, 5, true}})
		default:
			want = append(want, item{Gap: Loss{Cause: flow.CauseCrash}})
		}
		want = append(want, serials(100, 103)...)
		s := openTest(t, testConfig(torn), 1<<20)
		appendAll(t, s, 100, 103, 3)
		s = openTest(t, testConfig(image(t, torn)), 1<<20) // once more: it is told once
		got := drain(t, s, 100)
		for i := range got {
			if g := &got[i].Gap; !g.Known && g.From <= g.To {
				g.From, g.To = 0, 0
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("cut at %d (-want +got):\n%s", cut, diff)
		}
		s.Close()
	}
}

// TestDiskFull fills a file system: the frame that does not fit leaves no trace, gaps and deliveries go on.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs takes root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.WriteFile(dir+"/fill", make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openTest(t, testConfig(dir), 1<<20) // one segment, so that a frame is cut short
	taken := uint64(0)
	for ; ; taken += 100 {
		lost, err := s.Append(records(taken, taken+100))
		if errors.Is(err, unix.ENOSPC) && lost == (Loss{}) {
			break
		}
		if err != nil || lost != (Loss{}) || taken > 1e6 {
			t.Fatalf("lost %+v, error %v", lost, err)
		}
	}
	for range 3 { // it stays full
		if _, err := s.Append(records(taken, taken+100)); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("error %v", err)
		}
	}
	seg := s.index.segments[0]
	if info, err := os.Stat(seg.path); err != nil || info.Size() != seg.size {
		t.Fatalf("the file has %d bytes, its frames %d; error %v", info.Size(), seg.size, err)
	}
	gap := gapRecord(flow.CauseDiskFull, 100, t0+int64(taken+100)*1e9)
	if _, err := s.Append([]*flow.Record{gap}); err != nil {
		t.Fatalf("append a gap: %v", err)
	}
	killed := openTest(t, testConfig(image(t, dir)), 1<<20)
	want := append(serials(0, taken), item{Gap: Loss{flow.CauseDiskFull, gap.Start, gap.Stop, 100, true}})
	diffItems(t, want, drain(t, killed, 256))

	b := flow.NewBatch(int(taken), nil)
	n, err := s.Read(b)
	if err != nil || n != int(taken) {
		t.Fatalf("read %d, error %v", n, err)
	}
	if err := s.Commit(n); err != nil {
		t.Fatalf("commit on a full disk: %v", err)
	}
	if err := os.Truncate(dir+"/fill", 0); err != nil {
		t.Fatal(err)
	}
	appendAll(t, s, taken+100, taken+200, 100)
	diffItems(t, append(want[taken:], serials(taken+100, taken+200)...), drain(t, s, 256))
	if n := s.Stats.Damaged.Load(); n != 0 {
		t.Errorf("%d damaged", n)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, testConfig(dir), 4096)
	_, err := Open(testConfig(dir), testOutput, nil)
	want := "open spool " + dir + ": another process has it open; each output needs a directory of its own"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	openTest(t, testConfig(dir), 4096)
	_, aerr := s.Append(records(0, 1))
	_, rerr := s.Read(flow.NewBatch(1, nil))
	for _, err := range []error{aerr, rerr, s.Commit(0)} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// TestNewer: a segment of a later version is not taken for damage.
func TestNewer(t *testing.T) {
	dir := t.TempDir()
	p := appendSegmentHeader(nil, segmentInfo{})
	p[12]++
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p[12:], castagnoli))
	if err := os.WriteFile(segmentPath(dir, 0), p, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(testConfig(dir), testOutput, nil); !errors.Is(err, errNewer) {
		t.Errorf("error %v", err)
	}
}

// TestConcurrent appends, reads and asks all at once, under every policy; the race detector watches.
func TestConcurrent(t *testing.T) {
	for _, policy := range fsync {
		t.Run(policy, func(t *testing.T) {
			cfg := testConfig(t.TempDir())
			cfg.Fsync = policy
			s := openTest(t, cfg, 8192)
			const all = 3000
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := uint64(0); i < all; i += 50 {
					if _, err := s.Append(records(i, i+50)); err != nil {
						t.Error(err)
					}
					if i%500 == 0 {
						s.flush()
					}
				}
			})
			wg.Go(func() {
				b := flow.NewBatch(40, nil)
				for next := uint64(0); next < all; {
					b.Reset()
					n, err := s.Read(b)
					if err != nil {
						t.Error(err)
						return
					}
					for i := range b.Records {
						if got := b.Records[i].OrigCounters.Packets; got != next {
							t.Errorf("record %d, want %d", got, next)
							return
						}
						next++
					}
					if err := s.Commit(n); err != nil {
						t.Error(err)
						return
					}
					s.Len()
					s.Oldest()
				}
			})
			wg.Wait()
		})
	}
}

// TestConcurrentDropOldest: what is dropped while it may be read is either read or in a gap, never both.
func TestConcurrentDropOldest(t *testing.T) {
	s := openTest(t, small(t.TempDir(), DropOldest), 2048)
	const all = 20000
	var lost uint64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := uint64(0); i < all; i += 10 {
			l, err := s.Append(records(i, i+10))
			if err != nil {
				t.Error(err)
			}
			lost += l.Lost
		}
	}()
	var got, gone, next uint64
	b := flow.NewBatch(25, nil)
	for last := false; ; {
		b.Reset()
		n, err := s.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Records {
			it := itemOf(t, &b.Records[i])
			if it.Gap.Cause != 0 {
				gone += it.Gap.Lost
				next += it.Gap.Lost
				continue
			}
			if it.Serial != next {
				t.Fatalf("record %d, want %d", it.Serial, next)
			}
			got++
			next++
		}
		if err := s.Commit(n); err != nil {
			t.Fatal(err)
		}
		if n == 0 && last {
			break
		}
		select {
		case <-done:
			last = true
		default:
		}
	}
	if got+gone != all || gone != lost {
		t.Errorf("%d delivered, %d in gaps, %d said to be lost, of %d", got, gone, lost, all)
	}
	t.Logf("%d delivered, %d in gaps", got, gone)
}

func TestAllocs(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.Fsync = SyncInterval
	s := openTest(t, cfg, 64<<20)
	recs := records(1, 10) // none has a string
	b := flow.NewBatch(len(recs), nil)
	cycle := func() {
		b.Reset()
		_, aerr := s.Append(recs)
		n, rerr := s.Read(b)
		if err := errors.Join(aerr, rerr, s.Commit(n)); err != nil || n != len(recs) {
			t.Error(n, err)
		}
	}
	cycle()
	if n := testing.AllocsPerRun(200, cycle); n != 0 {
		t.Errorf("%v allocations for each batch", n)
	}
}
