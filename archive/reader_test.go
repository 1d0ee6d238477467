package archive

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// writeArchive makes an archive of one host: the records of each part in a segment, those of the last one in a row log.
func writeArchive(t testing.TB, parts ...[]*flow.Record) string {
	t.Helper()
	dir := t.TempDir()
	host := filepath.Join(dir, HostFolder("gw1"))
	if err := os.Mkdir(host, 0o755); err != nil {
		t.Fatal(err)
	}
	c := chain{dir: host}
	for i, recs := range parts {
		l, err := createRowLog(host, Origin{Version: SchemaVersion, Host: "gw1", Observer: "obs", Sequence: uint64(i + 1),
			Interval: Duration(time.Hour), Created: Time(trace.Default().Start.UnixNano())})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.append(recs); err != nil {
			t.Fatal(err)
		}
		l.file.Close()
		if i == len(parts)-1 {
			break
		}
		seg, date, err := Seal(l.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.append(date, Line{Kind: KindSegment, Segment: &seg}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(l.path); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func makeTrace(n int, seed uint64) []*flow.Record {
	c := trace.Default()
	c.Seed, c.PerSecond = seed, 50
	tr := trace.New(c)
	b := flow.NewBatch(n, nil)
	recs := make([]*flow.Record, n)
	for i := range recs {
		recs[i] = b.Next()
		tr.Next(recs[i])
		switch i % 50 {
		case 0: // a flow that is not translated
			o := &recs[i].Orig
			recs[i].Reply = flow.Tuple{Src: o.Dst, Dst: o.Src, SrcPort: o.DstPort, DstPort: o.SrcPort, Proto: o.Proto}
		case 1: // a forwarded port
			r := recs[i]
			r.Orig, r.Reply = flow.Tuple{Src: r.Orig.Dst, Dst: r.Reply.Dst, SrcPort: 40000, DstPort: 443, Proto: r.Orig.Proto},
				flow.Tuple{Src: r.Orig.Src, Dst: r.Orig.Dst, SrcPort: 8443, DstPort: 40000, Proto: r.Orig.Proto}
		case 2: // a ping
			r := recs[i]
			r.Has &^= flow.HasTCP
			r.Orig.Proto, r.Reply.Proto = flow.ICMP, flow.ICMP
			r.Orig.DstPort, r.Reply.SrcPort = 8<<8, r.Reply.DstPort
		case 3: // nothing is known of the start
			recs[i].Start = 0
		}
	}
	return recs
}

// TestRows: random questions are answered as a scan of all records answers them.
func TestRows(t *testing.T) {
	n, questions := groupRows+4000, 50 // the first segment has two row groups of short flows
	if os.Getenv("CTLOGD_LONG") != "" {
		n, questions = 80000, 500
	}
	recs := makeTrace(n, 1)
	other := everyKind()
	dir := writeArchive(t, recs[:n-2000], append(slices.Clone(recs[n-2000:n-1000]), other...), recs[n-1000:])
	recs = append(recs, other...)
	r, err := OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Hosts) != 1 || len(r.Hosts[0].Segments()) != 2 || len(r.Hosts[0].RowLogs) != 1 {
		t.Fatalf("hosts %d, segments %d, row logs %d", len(r.Hosts), len(r.Hosts[0].Segments()), len(r.Hosts[0].RowLogs))
	}
	enc, _ := format.New("flat", format.Options{Host: "gw1", Observer: "obs", Fields: format.Fields{Drop: []string{"ct_id"}}})
	text := func(r *flow.Record) string { return strings.ReplaceAll(string(enc.Append(nil, r)), "\ufffd", `\ufffd`) }
	rng := rand.New(rand.NewPCG(3, 4))
	found := 0
	for n := range questions {
		w := recs[rng.IntN(len(recs))]
		for !hasTuple(w) {
			w = recs[rng.IntN(len(recs))]
		}
		var q Query
		at, _ := w.Time()
		q.From = at - rng.Int64N(2e9)
		q.To = q.From + rng.Int64N(int64(time.Minute))
		switch n % 5 {
		case 0:
			q.Public, q.Port = PublicSource(w)
			q.HasPort = true
		case 1:
			q.Public, _ = PublicSource(w)
		case 2:
			q.Src = w.Orig.SrcAddr()
			q.To = q.From + int64(time.Hour)
		case 3:
			q.Dst, q.HasDstPort, q.DstPort = w.Orig.DstAddr(), rng.IntN(2) == 0, w.Orig.DstPort
			if hasReply(w) && rng.IntN(2) == 0 {
				q.Dst, q.DstPort = w.Reply.SrcAddr(), w.Reply.SrcPort
			}
		case 4:
			q.Public, q.From, q.To = netip.MustParseAddr("198.51.100.1"), 0, 0
		}
		var want, got []string
		for _, r := range recs {
			if q.Matches(r) {
				want = append(want, text(r))
			}
		}
		for w, err := range r.Rows(context.Background(), &q) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, text(w.Record))
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("question %d %+v: %d rows, want %d", n, q, len(got), len(want))
		}
		found += len(got)
	}
	if found < questions {
		t.Errorf("%d rows in all: the questions ask for nothing", found)
	}
}

// TestWitness: a checkpoint is a witness for a moment if it began late enough to have seen every flow of it, and whole.
func TestWitness(t *testing.T) {
	hour := int64(time.Hour)
	h := &Host{Lines: []Line{{Kind: KindSegment, Segment: &Segment{Facts: Facts{Checkpoints: []Checkpoint{
		{Began: Time(4 * hour), Ended: Time(4*hour + 5), MinAge: Duration(hour), Whole: false},
		{Began: Time(2 * hour), Ended: Time(2*hour + 5), MinAge: Duration(hour), Whole: true},
		{Began: Time(6 * hour), Ended: Time(6*hour + 5), MinAge: Duration(hour), Whole: true},
	}}}}}}
	for _, c := range []struct{ at, want int64 }{{0, 2}, {hour, 2}, {hour + 1, 6}, {4 * hour, 6}, {5 * hour, 6}, {5*hour + 1, 0}} {
		got, ok := h.Witness(c.at)
		if ok != (c.want != 0) || int64(got.Began) != c.want*hour {
			t.Errorf("Witness(%v) = %v %v, want %dh", time.Duration(c.at), time.Duration(got.Began), ok, c.want)
		}
	}
}

// TestRemovedWhileReading: a file that retention removes under a reader is told as removed, by its tombstone.
func TestRemovedWhileReading(t *testing.T) {
	recs := makeTrace(2000, 5)
	dir := writeArchive(t, recs[:1000], recs[1000:1500], recs[1500:])
	r, err := OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := r.Hosts[0]
	s := h.Segments()[0]
	c := chain{dir: h.Dir, n: 2, hash: h.Lines[1].Hash}
	if err := c.append(h.Lines[0].Date, Line{Kind: KindRemoved, Removed: &Removal{File: s.Segment.File, Why: "max_age"}}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.Path); err != nil {
		t.Fatal(err)
	}
	rows, removed := 0, 0
	for _, err := range r.Rows(context.Background(), &Query{}) {
		if gone, ok := err.(*RemovedError); ok && gone.Line != nil && gone.Line.Removed.Why == "max_age" {
			removed++
		} else if err != nil {
			t.Fatal(err)
		} else {
			rows++
		}
	}
	if rows != 1000 || removed != 1 {
		t.Errorf("%d rows and %d removed files, want 1000 and 1", rows, removed)
	}
	if err := h.Reload(); err != nil || len(h.Segments()) != 1 {
		t.Errorf("after a reload there are %d segments, error %v", len(h.Segments()), err)
	}
}

// TestSealedWhileReading: a row log that is sealed under a reader is read from its segment, once.
func TestSealedWhileReading(t *testing.T) {
	recs := makeTrace(1000, 5)
	dir := writeArchive(t, recs[:500], recs[500:])
	r, err := OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := r.Hosts[0]
	seg, date, err := Seal(h.RowLogs[0])
	if err != nil {
		t.Fatal(err)
	}
	c := chain{dir: h.Dir, n: 1, hash: h.Lines[0].Hash}
	if err := c.append(date, Line{Kind: KindSegment, Segment: &seg}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(h.RowLogs[0]); err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, err := range r.Rows(context.Background(), &Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		rows++
	}
	if rows != 1000 {
		t.Errorf("%d rows, want 1000", rows)
	}
}

// TestDamagedSegment: whatever is done to a segment's bytes, reading it ends with rows or an error that names the file.
func TestDamagedSegment(t *testing.T) {
	dir := writeArchive(t, makeTrace(600, 5), nil)
	files := 60
	if os.Getenv("CTLOGD_LONG") != "" {
		files = 3000
	}
	os.Remove(filepath.Join(dir, "host=gw1", rowLogName(2)))
	r, err := OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := r.Hosts[0].Segments()[0].Path
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, 8))
	failed := 0
	for i := range files {
		b := slices.Clone(whole)
		if i%3 == 0 {
			b = b[:rng.IntN(len(b))]
		} else {
			for range 1 + rng.IntN(3) {
				b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
			}
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		for w, err := range r.Rows(context.Background(), &Query{}) {
			if err != nil {
				failed++
				if w.File.Path != path {
					t.Errorf("the error %v is of %q", err, w.File.Path)
				}
			}
		}
	}
	if failed < files/3 {
		t.Errorf("only %d of %d damaged files failed: a flipped byte in a page has to show in its checksum", failed, files)
	}
	t.Logf("%d of %d", failed, files)
}

// TestHoles: a catalog or a row log that a copy lacks is told, also where a folder is a link; a row log that held nothing
// leaves no number behind.
func TestHoles(t *testing.T) {
	dir := t.TempDir()
	var clock atomic.Int64 // the writer's keeper reads both
	var full atomic.Bool
	clock.Store(testNow.UnixNano())
	now := func() time.Time { return time.Unix(0, clock.Load()).UTC() }
	forward := func(d time.Duration) { clock.Add(int64(d)) }
	step = func(s string) error {
		if full.Load() && s == "rows.append" {
			return unix.ENOSPC
		}
		return nil
	}
	defer func() { step = func(string) error { return nil } }()
	o := testOptions(dir)
	o.Retention, o.Now = Retention{}, now
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	day := func(n int) {
		t.Helper()
		r := numbered(oldRecords + n)
		r.Stop = clock.Load()
		r.Start, r.Received = r.Stop-1, r.Stop
		if _, err := w.Append([]*flow.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 4 {
		if n == 2 { // the disk is full just then, until the day is over
			full.Store(true)
			forward(12 * time.Hour)
			if _, err := w.Append([]*flow.Record{numbered(oldRecords)}); err == nil {
				t.Error("a full disk took a record")
			}
			full.Store(false)
			forward(12 * time.Hour)
		}
		day(n)
		await(t, func() bool { return w.Stats.RowLogs.Load() == 1 })
		forward(24 * time.Hour)
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	holes := func() string {
		t.Helper()
		r, err := OpenReader(dir)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(r.Hosts[0].Holes, "; ")
	}
	if got := holes(); got != "" {
		t.Errorf("holes in a whole archive: %s", got)
	}
	dates, _ := filepath.Glob(dir + "/host=gw1/date=*")
	logs, _ := filepath.Glob(dir + "/host=gw1/*.rows")
	if len(dates) != 3 || len(logs) != 1 {
		t.Fatal(dates, logs)
	}
	elsewhere := filepath.Join(t.TempDir(), "disk")
	if err := os.Rename(dates[1], elsewhere); err != nil {
		t.Fatal(err)
	}
	if got := holes(); !strings.HasPrefix(got, "catalog line 1 is not there: they stood between") {
		t.Errorf("without a day: %q", got)
	}
	if err := os.Symlink(elsewhere, dates[1]); err != nil {
		t.Fatal(err)
	}
	if got := holes(); got != "" {
		t.Errorf("a day that is a link: %s", got)
	}
	if err := os.RemoveAll(dates[2]); err != nil {
		t.Fatal(err)
	}
	if got := holes(); got != "row log 3 is neither there nor sealed" {
		t.Errorf("without the last day, and with a later row log: %q", got)
	}
}
