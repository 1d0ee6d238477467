package whois

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

const hour = int64(time.Hour)

var blue = flow.HoldNetns(3, "blue")

var worldStart = time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC).UnixNano()

// world is a firewall of which everything is known: which flows lived when, and what was recorded of them.
type world struct {
	host  string
	flows []flow.Record // as their end would tell, whether it was recorded or not
	recs  []*flow.Record
	gaps  []flow.Record
	dumps []int64 // whole checkpoints
	end   int64
	twins []int // flows that had their public address and port while the one before them had it
}

// newWorld makes nine hours of a firewall: flows of all kinds, checkpoints each hour, gaps in which ends were lost, records
// that came twice.
func newWorld(host string, n int, seed uint64) *world {
	rng := rand.New(rand.NewPCG(seed, 7))
	w := &world{host: host, end: worldStart + 9*hour}
	for _, g := range []struct {
		from, to int64
		cause    flow.Cause
		lost     bool
	}{{65, 68, flow.CauseReboot, false}, {150, 152, flow.CauseOverrun, true}, {151, 155, flow.CauseQueueFull, true}} {
		b := flow.NewBatch(1, nil)
		r := b.Next()
		r.Event, r.Start, r.Stop = flow.EventGap, worldStart+g.from*int64(time.Minute), worldStart+g.to*int64(time.Minute)
		r.Received = r.Stop + 5
		b.Extra(r).Gap = flow.Gap{Cause: g.cause, Lost: 3, LostKnown: g.lost}
		w.gaps = append(w.gaps, *r)
	}
	for i := range n {
		var f flow.Record
		f.Event = flow.EventDestroy
		f.Has = flow.HasOrig | flow.HasReply | flow.HasStatus | flow.HasCounters
		f.Start = worldStart - hour + rng.Int64N(10*hour)
		life := int64(rng.ExpFloat64() * float64(40*time.Second))
		if rng.IntN(50) == 0 {
			life = hour + int64(rng.ExpFloat64()*float64(2*hour))
		}
		f.Stop = f.Start + life
		f.Received = f.Stop + 1000
		f.OrigCounters = flow.Counters{Packets: 3, Bytes: 1 + rng.Uint64N(1e6)}
		f.ReplyCounters = flow.Counters{Packets: 2, Bytes: 90}
		src := flow.AddrFrom4([4]byte{10, 64, 0, byte(rng.IntN(200))})
		dst := flow.AddrFrom4([4]byte{198, 51, 100, byte(rng.IntN(250))})
		pub := flow.AddrFrom4([4]byte{203, 0, 113, byte(rng.IntN(4))})
		proto := []flow.Proto{flow.TCP, flow.TCP, flow.UDP, flow.UDP, flow.ICMP, flow.GRE}[rng.IntN(6)]
		port, out, to := uint16(1024+rng.IntN(40000)), uint16(2000+rng.IntN(400)), uint16(1+rng.IntN(3)*100)
		switch i % 20 {
		case 0: // IPv6, as it is
			src, dst = flow.AddrFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", 1+rng.IntN(50)))), flow.AddrFrom(netip.MustParseAddr("2001:db8:99::1"))
			f.Orig = flow.Tuple{Src: src, Dst: dst, SrcPort: port, DstPort: to, Proto: flow.TCP, V6: true}
			f.Reply = flow.Tuple{Src: dst, Dst: src, SrcPort: to, DstPort: port, Proto: flow.TCP, V6: true}
		case 1: // a forwarded port
			f.Orig = flow.Tuple{Src: dst, Dst: pub, SrcPort: port, DstPort: out, Proto: flow.TCP}
			f.Reply = flow.Tuple{Src: src, Dst: dst, SrcPort: 80, DstPort: port, Proto: flow.TCP}
		default:
			f.Orig = flow.Tuple{Src: src, Dst: dst, SrcPort: port, DstPort: to, Proto: proto}
			f.Reply = flow.Tuple{Src: dst, Dst: pub, SrcPort: to, DstPort: out, Proto: proto}
			if proto == flow.ICMP {
				f.Orig.DstPort = 8 << 8
				f.Reply.SrcPort, f.Reply.DstPort = out, 0
			}
			switch i % 20 {
			case 2:
				f.Has |= flow.HasZone
				f.Zone = 7
			case 5:
				f.Netns = blue
			}
		}
		w.flows = append(w.flows, f)
		// Two hold one public address and port for some time, as Linux lets them.
		if i%4 == 3 && proto.HasPorts() && !f.Orig.V6 {
			g := f
			g.Start, g.Stop = f.Start+life/4, f.Stop+life/4+1e9
			g.Received = g.Stop + 1000
			last := g.Orig.Src.As4()
			g.Orig.Src = flow.AddrFrom4([4]byte{10, 64, 1, last[3]})
			g.Orig.Dst = flow.AddrFrom4([4]byte{198, 51, 101, 9})
			g.Reply.Src = g.Orig.Dst
			if i%8 == 3 { // the one inside address in another namespace
				g.Orig.Src, g.Netns = f.Orig.Src, blue
			}
			w.twins = append(w.twins, len(w.flows))
			w.flows = append(w.flows, g)
		}
	}
	for i := range w.flows {
		f := &w.flows[i]
		if f.Stop < worldStart || f.Stop > w.end || slices.ContainsFunc(w.gaps, func(g flow.Record) bool { return g.Start <= f.Stop && f.Stop <= g.Stop }) {
			continue
		}
		w.recs = append(w.recs, f)
		if rng.IntN(20) == 0 {
			w.recs = append(w.recs, f)
		}
	}
	for t := worldStart + hour/2; t < w.end; t += hour {
		b := flow.NewBatch(1, nil)
		r := b.Next()
		r.Event, r.Start, r.Stop, r.Received, r.Timeout = flow.EventOpen, t, t+2e9, t+2e9, 3600
		b.Extra(r).Checkpoint = flow.CheckpointWhole
		if len(w.dumps) == 2 { // one was cut short
			b.Extra(r).Checkpoint = flow.CheckpointPartial
			w.dumps = append(w.dumps, 0)
		} else {
			w.dumps = append(w.dumps, t)
			for i := range w.flows {
				if f := &w.flows[i]; f.Start <= t-hour && f.Stop > t+1e9 {
					o := *f
					o.Event, o.Stop, o.Received = flow.EventOpen, 0, t+1e9
					o.Extra = &flow.Extra{Checkpoint: flow.CheckpointOpen}
					w.recs = append(w.recs, &o)
				}
			}
		}
		w.recs = append(w.recs, r)
	}
	for i := range w.gaps {
		w.recs = append(w.recs, &w.gaps[i])
	}
	slices.SortStableFunc(w.recs, func(a, b *flow.Record) int {
		at, _ := a.Time()
		bt, _ := b.Time()
		if a.Checkpoint() >= flow.CheckpointWhole {
			at++
		}
		return int(max(-1, min(1, at-bt)))
	})
	return w
}

// archive writes a world's records as the daemon does. What is older than maxAge at the end of the world is removed; 0:
// nothing is.
func (w *world) archive(t testing.TB, dir string, perSegment uint64, maxAge time.Duration) {
	t.Helper()
	a := openArchive(t, w.end-1, archive.Options{Dir: dir, Host: w.host, Observer: "obs-" + w.host, Records: perSegment, Retention: archive.Retention{MaxAge: maxAge}})
	for recs := w.recs; len(recs) > 0; {
		n := min(500, len(recs))
		if _, err := a.Append(recs[:n]); err != nil {
			t.Fatal(err)
		}
		recs = recs[n:]
	}
	closeArchive(t, a, func() bool { return sealed(a)() && (maxAge == 0 || a.Stats.RemovedAge.Load() > 0) })
}

// lines writes a world's records as JSON lines.
func (w *world) lines(t testing.TB, path string, from, to int) {
	t.Helper()
	enc, err := format.New("flat", format.Options{Host: w.host, Observer: "obs-" + w.host})
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, r := range w.recs[from:to] {
		if r.Checkpoint() >= flow.CheckpointWhole {
			b = archive.AppendCheckpoint(b, &archive.Origin{Host: w.host}, r)
		} else {
			b = enc.Append(b, r)
		}
		b = append(b, '\n')
	}
	var out bytes.Buffer
	switch filepath.Ext(path) {
	case ".gz":
		z := gzip.NewWriter(&out)
		_, _ = z.Write(b)
		z.Close()
	case ".zst":
		z, _ := zstd.NewWriter(&out)
		_, _ = z.Write(b)
		z.Close()
	default:
		out.Write(b)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// asked reports whether a flow is one that the question is about; time is looked at elsewhere. It knows of nothing that
// the code under test uses.
func asked(q *Question, f *flow.Record) bool {
	v4 := func(a flow.Addr) netip.Addr { return netip.AddrFrom16(a).Unmap() }
	o, p := f.Orig, f.Reply
	if q.HasProto && q.Proto != o.Proto {
		return false
	}
	far := func(ends ...End) bool {
		return !q.Dst.Addr.IsValid() || slices.ContainsFunc(ends, func(e End) bool {
			return e.Addr == q.Dst.Addr && (!q.Dst.HasPort || e.Port == q.Dst.Port)
		})
	}
	outPort := p.DstPort
	if o.Proto == flow.ICMP {
		outPort = p.SrcPort
	}
	dnat := o.Dst != p.Src || o.DstPort != p.SrcPort && o.Proto != flow.ICMP
	switch {
	case q.Public.Addr.IsValid():
		source := v4(p.Dst) == q.Public.Addr && (!q.Public.HasPort || outPort == q.Public.Port) && far(End{Addr: v4(o.Dst), Port: o.DstPort}, End{Addr: v4(p.Src), Port: p.SrcPort})
		// IPv6 is not translated here: the server's own address is one that somebody had, too.
		own := o.V6 && v4(o.Dst) == q.Public.Addr && (!q.Public.HasPort || o.DstPort == q.Public.Port) && far(End{Addr: v4(o.Src), Port: o.SrcPort})
		forwarded := dnat && o.Proto != flow.ICMP && v4(o.Dst) == q.Public.Addr && (!q.Public.HasPort || o.DstPort == q.Public.Port) && far(End{Addr: v4(o.Src), Port: o.SrcPort})
		return source || forwarded || own
	case q.Src.IsValid():
		return q.Src.Contains(v4(o.Src)) && (!q.SrcEnd.HasPort || q.SrcEnd.Port == o.SrcPort) && far(End{Addr: v4(o.Dst), Port: o.DstPort}, End{Addr: v4(p.Src), Port: p.SrcPort})
	}
	return far(End{Addr: v4(o.Dst), Port: o.DstPort}, End{Addr: v4(p.Src), Port: p.SrcPort})
}

func nameOf(host string, f *flow.Record) string {
	return fmt.Sprint(host, " ", f.Orig.SrcAddr(), f.Orig.SrcPort, f.Orig.DstAddr(), f.Orig.DstPort, f.Orig.Proto, f.Zone, f.Netns, " ", f.Start)
}

// oracle answers a question by looking at all there is.
type oracle struct {
	certain  []string // flows that the records show to have been alive
	truth    []string // flows that were
	complete bool     // no gap may hide one
	people   map[string]bool
}

func ask(worlds []*world, q *Question) (o oracle) {
	o.complete = true
	o.people = map[string]bool{}
	for _, w := range worlds {
		for i := range w.flows {
			if f := &w.flows[i]; asked(q, f) && f.Start <= q.To && f.Stop >= q.From {
				o.truth = append(o.truth, nameOf(w.host, f))
			}
		}
		for _, r := range w.recs {
			t, _ := r.Time()
			if r.Event == flow.EventGap || r.Checkpoint() >= flow.CheckpointWhole || !asked(q, r) || r.Start > q.To || t < q.From {
				continue
			}
			if r.Event == flow.EventOpen { // its end may be on record too; either shows that it was alive
				if t < q.From {
					continue
				}
			}
			o.certain = append(o.certain, nameOf(w.host, r))
			who := fmt.Sprint(r.Orig.SrcAddr(), r.Zone, r.Netns)
			if r.Reply.Src != r.Orig.Dst && q.Public.Addr.IsValid() {
				who = fmt.Sprint(r.Reply.SrcAddr(), r.Zone, r.Netns)
			}
			if r.Orig.DstAddr() == q.Public.Addr && r.Orig.V6 {
				who = fmt.Sprint(r.Orig.DstAddr(), r.Zone, r.Netns)
			}
			o.people[who] = true
		}
		until := int64(0)
		for _, d := range w.dumps {
			if d >= q.To+hour && until == 0 {
				until = d + 2e9
			}
		}
		if until == 0 {
			o.complete = false // who is alive still has no record
			until = 1 << 62
		}
		first, _ := w.recs[0].Time()
		if q.From < first {
			o.complete = false
		}
		for _, g := range w.gaps {
			if g.Stop >= q.From && g.Start <= until {
				o.complete = false
			}
		}
	}
	slices.Sort(o.certain)
	o.certain = slices.Compact(o.certain)
	slices.Sort(o.truth)
	return o
}

// questions makes questions about a world: half of moments when nobody held what is asked for, some of which several held, some
// in gaps.
func (w *world) questions(n int, seed uint64) (all []*Question) {
	rng := rand.New(rand.NewPCG(seed, 9))
	for i := 0; len(all) < n; i++ {
		f := &w.flows[rng.IntN(len(w.flows))]
		q := new(Question)
		q.From = f.Start + rng.Int64N(max(1, f.Stop-f.Start))
		switch rng.IntN(10) {
		case 0, 1, 2, 3: // any moment
			q.From = worldStart + rng.Int64N(9*hour)
		case 4: // in or around a gap
			g := w.gaps[rng.IntN(len(w.gaps))]
			q.From = g.Start - int64(time.Minute) + rng.Int64N(g.Stop-g.Start+2*int64(time.Minute))
		case 5: // beyond the records
			if i%4 == 0 {
				q.From = worldStart - rng.Int64N(hour)
			}
		}
		if i%8 == 0 {
			twin := w.twins[rng.IntN(len(w.twins))]
			f, g := &w.flows[twin-1], &w.flows[twin]
			q.From = g.Start + rng.Int64N(max(1, f.Stop-g.Start))
			q.To = q.From
			q.Public = End{Addr: g.Reply.DstAddr(), Port: g.Reply.DstPort, HasPort: true}
			if q.Validate(time.Unix(0, w.end)) == nil {
				all = append(all, q)
			}
			continue
		}
		q.To = q.From
		switch rng.IntN(8) {
		case 0, 1:
			q.To += rng.Int64N(int64(time.Second))
		case 2:
			q.To += rng.Int64N(10 * int64(time.Minute))
		case 3:
			q.SetTime(Moment{From: q.From, To: q.From + int64(time.Second) - 1, Zone: "UTC"}, 2*time.Second)
		}
		out := f.Reply.DstPort
		if f.Orig.Proto == flow.ICMP {
			out = f.Reply.SrcPort
		}
		pub := End{Addr: f.Reply.DstAddr(), Port: out, HasPort: true}
		if f.Reply.Src != f.Orig.Dst {
			pub = End{Addr: f.Orig.DstAddr(), Port: f.Orig.DstPort, HasPort: true}
		}
		if f.Orig.V6 && rng.IntN(2) == 0 {
			pub = End{Addr: f.Orig.DstAddr(), Port: f.Orig.DstPort, HasPort: true}
		}
		switch rng.IntN(10) {
		case 0:
			q.Src, q.SrcEnd = netip.PrefixFrom(f.Orig.SrcAddr(), f.Orig.SrcAddr().BitLen()), End{Addr: f.Orig.SrcAddr()}
			if rng.IntN(2) == 0 {
				q.SrcEnd.Port, q.SrcEnd.HasPort = f.Orig.SrcPort, true
			}
		case 1:
			q.Dst = End{Addr: f.Orig.DstAddr(), Port: f.Orig.DstPort, HasPort: f.Orig.Proto.HasPorts()}
		case 2:
			q.Public = pub
			q.Dst = End{Addr: f.Orig.DstAddr(), Port: f.Orig.DstPort, HasPort: f.Orig.Proto.HasPorts() && rng.IntN(2) == 0}
		case 3:
			q.Public, q.Proto, q.HasProto = pub, f.Orig.Proto, true
		case 4:
			q.Src = netip.PrefixFrom(f.Orig.SrcAddr(), f.Orig.SrcAddr().BitLen()-4).Masked()
		default:
			q.Public = pub
		}
		if q.Validate(time.Unix(0, w.end).Add(24*time.Hour)) == nil {
			all = append(all, q)
		}
	}
	return all
}

// unfiltered is the word of whoever asks that there were no filters.
var unfiltered = &Then{File: "then.yaml", Filter: func(string, *Question) string { return "" }}

// TestOracle: random questions are answered, from an archive and from JSON lines, as a scan of everything in memory answers
// them; and what is called complete is the truth.
func TestOracle(t *testing.T) {
	n, flows := 300, 1500
	if os.Getenv("CTLOGD_LONG") != "" {
		n, flows = 10000, 6000
	}
	worlds := []*world{newWorld("gw1", flows, 1), newWorld("gw2", flows/10, 2)}
	dir, files, removed := t.TempDir(), t.TempDir(), t.TempDir()
	for _, w := range worlds {
		w.archive(t, dir, uint64(len(w.recs)/2), 0)
		w.archive(t, removed, uint64(len(w.recs)/6), 6*time.Hour)
		third := len(w.recs) / 3
		w.lines(t, filepath.Join(files, w.host+".jsonl.2.gz"), 0, third)
		w.lines(t, filepath.Join(files, w.host+".jsonl.1.zst"), third, 2*third)
		w.lines(t, filepath.Join(files, w.host+".jsonl"), 2*third, len(w.recs))
	}
	questions := slices.Concat(worlds[0].questions(n*9/10, 3), worlds[1].questions(n/10, 4))
	for _, from := range []string{dir, files, removed} {
		s, err := Open([]string{from}, nil, nil, unfiltered)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Prepare(context.Background(), questions); err != nil {
			t.Fatal(err)
		}
		verdicts, incomplete, wrong, less := map[string]int{}, 0, 0, 0
		for i, q := range questions {
			a, err := Ask(context.Background(), s, q, time.Unix(0, worlds[0].end))
			if err != nil {
				t.Fatal(err)
			}
			want := ask(worlds, q)
			var certain []string
			people := map[string]bool{}
			doubtful := 0
			for _, h := range a.Holders {
				if !h.Certain() {
					doubtful++
					continue
				}
				certain = append(certain, nameOf(h.host, h.Record))
				people[h.Subscriber] = true
			}
			slices.Sort(certain)
			bad := ""
			if slices.ContainsFunc(a.Missing, func(r Reason) bool { return r.Kind == "removed" }) {
				less++ // what is left is true, and is not called complete
				want.complete = false
				want.certain = slices.DeleteFunc(want.certain, func(f string) bool { return !slices.Contains(certain, f) })
				want.people = people
			}
			switch {
			case !slices.Equal(certain, want.certain):
				bad = "holders"
			case a.Complete != (want.complete && doubtful == 0):
				bad = "completeness"
			case a.Complete && !slices.Equal(certain, want.truth):
				bad = "truth"
			case doubtful == 0 && !(q.Src.IsValid() && !q.Src.IsSingleIP()) && len(want.people) != len(people):
				bad = "subscribers"
			case doubtful == 0 && a.Verdict != map[bool]string{true: None}[len(people) == 0]+map[bool]string{true: Sole}[len(people) == 1]+map[bool]string{true: Ambiguous}[len(people) > 1]:
				bad = "verdict"
			case a.Verdict == Ambiguous && a.Decides == "":
				bad = "decides"
			}
			if bad != "" {
				if wrong++; wrong < 5 {
					t.Errorf("question %d, %s: %s: %d holders, %d in doubt, complete %t, %s; want %d, complete %t, truth %d", i, q.words(), bad,
						len(certain), doubtful, a.Complete, a.Verdict, len(want.certain), want.complete, len(want.truth))
				}
			}
			verdicts[a.Verdict]++
			if !a.Complete {
				incomplete++
			}
		}
		t.Logf("%s: %d questions, %v, %d incomplete, %d of what was removed, %d wrong", from, len(questions), verdicts, incomplete, less, wrong)
		if (less > n/20) != (from == removed) {
			t.Errorf("%d questions are about what retention has removed", less)
		}
		if verdicts[None] < n*3/10 || verdicts[Ambiguous] < n/10 || verdicts[Sole] < n/10 || incomplete < n/10 || incomplete > n*9/10 {
			t.Errorf("the questions are too much alike")
		}
	}
}

// TestCopiedWhileWritten: a copy that was made in two goes, between which ctlogd has written and sealed, may lack records. It
// never says so little that a wrong answer is complete.
func TestCopiedWhileWritten(t *testing.T) {
	w := newWorld("gw1", 800, 5)
	questions := w.questions(60, 6)
	dir := t.TempDir()
	a := openArchive(t, w.end-1, archive.Options{Dir: dir, Host: w.host, Observer: "obs-gw1", Records: uint64(len(w.recs) / 9)})
	host := filepath.Join(dir, "host=gw1")
	copyOf := func(to, what string) {
		t.Helper()
		files, _ := filepath.Glob(filepath.Join(host, what))
		for _, from := range files {
			if to := filepath.Join(to, "host=gw1", filepath.Base(from)); filepath.Ext(from) == ".rows" {
				text, err := os.ReadFile(from)
				if err == nil { // it was not sealed just now
					err = os.WriteFile(to, text, 0o644)
				}
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			} else if err := os.CopyFS(to, os.DirFS(from)); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
	}
	complete, asked := 0, 0
	const parts = 12
	var copies [parts]string
	write := func(i int) {
		recs := w.recs[len(w.recs)*i/parts : len(w.recs)*(i+1)/parts]
		if _, err := a.Append(recs); err != nil {
			t.Fatal(err)
		}
		waitFor(t, sealed(a))
	}
	for i := range parts {
		copies[i] = t.TempDir()
		if err := os.Mkdir(filepath.Join(copies[i], "host=gw1"), 0o755); err != nil {
			t.Fatal(err)
		}
		if i >= 2 { // of the last but one: what it has got since is in the other half
			copyOf(copies[i-2], []string{"*.rows", "date=*"}[i%2])
		}
		copyOf(copies[i], []string{"date=*", "*.rows"}[i%2])
		write(i)
	}
	if err := a.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, c := range copies[:parts-2] {
		s, err := Open([]string{c}, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Prepare(context.Background(), questions); err != nil {
			t.Fatal(err)
		}
		for _, q := range questions {
			a, err := Ask(context.Background(), s, q, time.Unix(0, w.end))
			if err != nil {
				t.Fatal(err)
			}
			asked++
			if !a.Complete {
				continue
			}
			complete++
			var got []string
			for _, h := range a.Holders {
				got = append(got, nameOf(h.host, h.Record))
			}
			slices.Sort(got)
			if want := ask([]*world{w}, q); !slices.Equal(got, want.truth) {
				t.Errorf("%s: %s: complete, with %d holders of %d", c, q.words(), len(got), len(want.truth))
			}
		}
	}
	t.Logf("%d answers of %d are complete", complete, asked)
	if complete == 0 {
		t.Error("no answer is complete")
	}
}

// FuzzLines: whatever stands in a file of JSON lines, it is read or refused, and an answer can be written.
func FuzzLines(f *testing.F) {
	enc, err := format.New("flat", format.Options{Host: "gw1", Observer: "obs"})
	if err != nil {
		f.Fatal(err)
	}
	var all []byte
	for _, r := range trace.Kinds(30) {
		line := append(enc.Append(nil, r), '\n')
		f.Add(line)
		all = append(all, line...)
	}
	ours := snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-second, noon+second)
	ours.Netns, ours.Extra = blue, &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17", Next: "c-18"}}
	f.Add(append(enc.Append(all, ours), '\n'))
	for _, r := range newWorld("gw1", 1, 1).recs {
		if r.Checkpoint() >= flow.CheckpointWhole {
			f.Add(append(archive.AppendCheckpoint(nil, &archive.Origin{Host: "gw\\1"}, r), '\n'))
		}
	}
	f.Add([]byte(`{"time":"2026-11-26T12:00:00Z","event":"destroy","src_ip":"203.0.113.5","src_port":40000,"proto_num":6,"zone":5,"nsid":-3}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "flows.jsonl")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open([]string{path}, nil, nil, unfiltered)
		if err != nil {
			t.Fatal(err)
		}
		person := &Question{Person: "c-17", From: noon, To: noon}
		if err := s.Prepare(context.Background(), []*Question{point(noon), person}); err != nil {
			return
		}
		for _, q := range []*Question{point(noon), person} {
			a, err := Ask(context.Background(), s, q, time.Unix(0, noon+hour))
			if err == nil {
				err = errors.Join(a.Text(io.Discard), a.JSON(io.Discard))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}
