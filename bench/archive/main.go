// Command archive makes an archive of an invented trace, and tells what that cost: bytes, CPU and memory a record, and
// how long questions take, by ctlogd's reader, by ctlogd whois and by others. bench/archive.sh runs it.
package main

import (
	"context"
	"encoding/csv"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/ipfix"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "seal" { // archive.Child starts this binary so
		os.Exit(archive.SealMain(os.Args[2:], os.Stdout, os.Stderr))
	}
	var b bench
	flag.StringVar(&b.dir, "dir", "", "folder of the archive")
	flag.IntVar(&b.records, "records", 10_000_000, "records of the trace")
	flag.IntVar(&b.perSecond, "rate", 0, "flows that end in a second; 0: so many that the trace lasts 20,000 seconds")
	flag.DurationVar(&b.every, "every", 0, "or the time between two of them")
	flag.Uint64Var(&b.segment, "segment", 1_000_000, "records of a segment")
	flag.IntVar(&b.questions, "questions", 100, "questions of each kind")
	flag.Uint64Var(&b.seed, "seed", 1, "of the trace")
	flag.StringVar(&b.compression, "compression", archive.Compressions[0], "of the segments")
	flag.BoolVar(&b.inside, "inside", false, "seal in this process: for very many small segments")
	flag.StringVar(&b.asked, "asked", "", "file of the questions: make writes it, the others read it")
	ctlogd := flag.String("ctlogd", "", "whois, verify: the ctlogd that is timed")
	collector := flag.String("collector", "", "export: the collector, udp://HOST:PORT")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "archive make | ask | catalog | reader | whois | verify | export, with flags before it")
		flag.PrintDefaults()
	}
	flag.Parse()
	if b.perSecond == 0 {
		b.perSecond = max(b.records/20_000, 1)
	}
	var err error
	switch flag.Arg(0) {
	case "make":
		err = b.make()
	case "ask":
		err = b.ask()
	case "reader":
		err = b.reader()
	case "catalog":
		err = b.catalog()
	case "whois":
		err = b.whois(*ctlogd)
	case "verify":
		err = b.verify(*ctlogd)
	case "export":
		err = b.export(*collector)
	default:
		flag.Usage()
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "archive:", err)
		os.Exit(1)
	}
}

type bench struct {
	dir, compression, asked       string
	records, perSecond, questions int
	segment, seed                 uint64
	inside                        bool
	every                         time.Duration
}

func (b *bench) config() trace.Config {
	c := trace.Default()
	c.Seed, c.PerSecond, c.Every = b.seed, b.perSecond, b.every
	if b.every != 0 {
		c.Start = c.Start.AddDate(-1, 0, 0) // whois refuses questions about the future
	}
	return c
}

// usage returns the CPU time of this process, and of the children that it has waited for.
func usage() (self, children time.Duration) {
	var s, c syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &s)
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &c)
	sum := func(r *syscall.Rusage) time.Duration { return time.Duration(r.Utime.Nano() + r.Stime.Nano()) }
	return sum(&s), sum(&c)
}

// peak is the most memory that a process has had which this one has started, in KiB. What getrusage(2) tells of a child is no
// less than what this process had when it started it.
type peak struct{ most atomic.Int64 }

// watch looks every few milliseconds, until ctx ends.
func (p *peak) watch(ctx context.Context) {
	for ctx.Err() == nil {
		lists, _ := filepath.Glob("/proc/self/task/*/children")
		for _, list := range lists {
			pids, _ := os.ReadFile(list) // the thread may be gone
			for _, pid := range strings.Fields(string(pids)) {
				status, _ := os.ReadFile("/proc/" + pid + "/status")
				_, rest, _ := strings.Cut(string(status), "VmHWM:")
				if f := strings.Fields(rest); len(f) > 0 && !strings.Contains(string(status), "Threads:\t1\n") { // it has been made, but runs this program still
					kib, _ := strconv.ParseInt(f[0], 10, 64)
					p.most.Store(max(p.most.Load(), kib))
				}
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// interval is how long flows live before they have an open record.
const interval = time.Hour

// options are those of the archive.
func (b *bench) options() archive.Options {
	clock := b.config().Start
	o := archive.Options{Dir: b.dir, Host: "gw1", Observer: "bench", Interval: interval, Records: b.segment,
		Compression: b.compression, Sync: archive.SyncInterval, Now: func() time.Time { return clock },
		Log: func(level archive.Level, msg, file string, err error, _ string) {
			if level > archive.Info {
				fmt.Fprintln(os.Stderr, msg, file, err)
			}
		}}
	if b.inside {
		o.Seal = func(_ context.Context, path string) (archive.Sealed, error) {
			seg, date, err := archive.Seal(path)
			return archive.Sealed{Segment: seg, Date: date}, err
		}
	}
	return o
}

// make makes the archive, with a checkpoint each hour, and the file of questions: about flows that are there.
func (b *bench) make() error {
	var sealing peak
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go sealing.watch(ctx)
	cfg := b.config()
	// What making the trace takes is taken off. The flows that a checkpoint will find are those that end later.
	began, _ := usage()
	tr, batch := trace.New(cfg), flow.NewBatch(256, nil)
	var long []flow.Record
	for n := 0; n < b.records; n += 256 {
		batch.Reset()
		for range 256 {
			r := batch.Next()
			if tr.Next(r); r.Stop-r.Start > int64(interval) {
				long = append(long, *r)
			}
		}
	}
	now, _ := usage()
	making := now - began

	w, err := archive.Open(b.options())
	if err != nil {
		return err
	}
	began, _ = usage()
	start := time.Now()
	tr = trace.New(cfg)
	recs := make([]*flow.Record, 256)
	var ask []flow.Record
	next := cfg.Start.Add(interval).UnixNano()
	written := 0
	for n := 0; n < b.records; n += 256 {
		batch.Reset()
		for i := range recs {
			recs[i] = batch.Next()
			tr.Next(recs[i])
		}
		if b.asks(n) {
			ask = append(ask, *recs[0])
		}
		if _, err := w.Append(recs); err != nil {
			return err
		}
		written += len(recs)
		if at := recs[255].Stop; at >= next {
			open, err := checkpoint(w, long, at)
			if err != nil {
				return err
			}
			written += open
			next += int64(interval)
		}
	}
	now, _ = usage()
	fmt.Printf("append    %8.0f ns of CPU a record, %.1f s for %d records\n", float64(now-began-making)/float64(written), time.Since(start).Seconds(), written)
	for w.Stats.RowLogs.Load() > 1 {
		time.Sleep(10 * time.Millisecond)
	}
	if err := w.Close(context.Background()); err != nil {
		return err
	}
	_, children := usage()
	sealed := float64(w.Stats.Seals.Load() * b.segment)
	if !b.inside {
		fmt.Printf("seal      %8.0f ns of CPU a record; the process takes %d MiB at most\n", float64(children)/sealed, sealing.most.Load()>>10)
	}
	fmt.Printf("size      %8.1f bytes a record in segments, %.1f in row logs; %d segments\n", float64(w.Stats.SegmentBytes.Load())/sealed,
		float64(w.Stats.Bytes.Load())/float64(written), w.Stats.Seals.Load())
	return b.writeAsked(ask)
}

// checkpoint appends what a reading of the table at a time gives.
func checkpoint(w *archive.Writer, long []flow.Record, at int64) (n int, err error) {
	batch := flow.NewBatch(256, nil)
	write := func() error {
		recs := make([]*flow.Record, len(batch.Records))
		for i := range recs {
			recs[i] = &batch.Records[i]
		}
		n += len(recs)
		_, err := w.Append(recs)
		batch.Reset()
		return err
	}
	for i := range long {
		if r := &long[i]; r.Start <= at-int64(interval) && r.Stop > at {
			o := batch.Next()
			*o = *r
			o.Event, o.Stop, o.Received, o.Stamp = flow.EventOpen, 0, at, 0
			batch.Extra(o).Checkpoint = flow.CheckpointOpen
			if batch.Full() {
				if err := write(); err != nil {
					return n, err
				}
			}
		}
	}
	if batch.Full() {
		if err := write(); err != nil {
			return n, err
		}
	}
	o := batch.Next()
	o.Event, o.Start, o.Stop, o.Received, o.Timeout = flow.EventOpen, at, at+1, at+1, uint32(interval/time.Second)
	batch.Extra(o).Checkpoint = flow.CheckpointWhole
	return n, write()
}

// question is what is asked: who had a public address and port at a time; what its subscriber had in the hour before its flow
// ended; and who talked to its destination then.
type question struct {
	public netip.AddrPort
	at     int64
	src    netip.Addr
	stop   int64
	dst    netip.AddrPort
}

// asks reports whether a question is about the first of the 256 records from number n on.
func (b *bench) asks(n int) bool { return n/256%(max(b.records/256/b.questions, 1)) == 0 }

// ask makes the file of questions alone, about an archive that is there.
func (b *bench) ask() error {
	tr := trace.New(b.config())
	var ask []flow.Record
	for n := range b.records {
		var r flow.Record
		if tr.Next(&r); n%256 == 0 && b.asks(n) {
			ask = append(ask, r)
		}
	}
	return b.writeAsked(ask)
}

func (b *bench) writeAsked(ask []flow.Record) error {
	f, err := os.Create(b.asked)
	if err != nil {
		return err
	}
	w := csv.NewWriter(f)
	_ = w.Write([]string{"address", "port", "at", "src", "stop", "dst", "dst_port"})
	for i := range ask {
		r := &ask[i]
		a, port := archive.PublicSource(r)
		_ = w.Write([]string{a.String(), strconv.Itoa(int(port)), strconv.FormatInt((r.Start+r.Stop)/2, 10), r.Orig.SrcAddr().String(), strconv.FormatInt(r.Stop, 10),
			r.Orig.DstAddr().String(), strconv.Itoa(int(r.Orig.DstPort))})
	}
	w.Flush()
	if err := w.Error(); err != nil {
		return err
	}
	return f.Close()
}

func (b *bench) readAsked() (ask []question, err error) {
	f, err := os.Open(b.asked)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, err
	}
	for _, row := range rows[1:] {
		var q question
		port, _ := strconv.ParseUint(row[1], 10, 16)
		q.public = netip.AddrPortFrom(netip.MustParseAddr(row[0]), uint16(port))
		q.at, _ = strconv.ParseInt(row[2], 10, 64)
		q.src = netip.MustParseAddr(row[3])
		q.stop, _ = strconv.ParseInt(row[4], 10, 64)
		port, _ = strconv.ParseUint(row[6], 10, 16)
		q.dst = netip.AddrPortFrom(netip.MustParseAddr(row[5]), uint16(port))
		ask = append(ask, q)
	}
	return ask, nil
}

// times are those of answers to questions of one kind.
type times []time.Duration

func (t times) print(what, kind string, missed int, more string) {
	if len(t) == 0 {
		return
	}
	slices.Sort(t)
	fmt.Printf("%-9s %8.2f ms median, %8.2f ms p95: %s (%d questions, %d without an answer%s)\n", what, ms(t[len(t)/2]), ms(t[len(t)*95/100]),
		kind, len(t), missed, more)
}

// reader asks the reader that whois is made of.
func (b *bench) reader() error {
	ask, err := b.readAsked()
	if err != nil {
		return err
	}
	r, err := archive.OpenReader(b.dir)
	if err != nil {
		return err
	}
	h := r.Hosts[0]
	point := func(q *question) archive.Query {
		return archive.Query{Public: q.public.Addr(), Port: q.public.Port(), HasPort: true, From: q.at, To: q.at}
	}
	bounded := func(q *question) (archive.Query, bool) {
		p := point(q)
		c, ok := h.Witness(q.at)
		p.Until = int64(c.Ended)
		return p, ok
	}
	for _, kind := range []struct {
		name  string
		cold  bool
		query func(q *question) (archive.Query, bool)
	}{
		{"point, cold, all later segments", true, func(q *question) (archive.Query, bool) { return point(q), true }},
		{"point, warm, all later segments", false, func(q *question) (archive.Query, bool) { return point(q), true }},
		{"point, cold, bounded by a checkpoint", true, bounded},
		{"point, warm, bounded by a checkpoint", false, bounded},
		{"subscriber, 1 h, warm", false, func(q *question) (archive.Query, bool) {
			return archive.Query{Src: q.src, From: q.stop - int64(time.Hour), To: q.stop}, true
		}},
		{"destination, bounded, warm", false, func(q *question) (archive.Query, bool) {
			c, ok := h.Witness(q.at)
			return archive.Query{Dst: q.dst.Addr(), DstPort: q.dst.Port(), HasDstPort: true, From: q.at, To: q.at, Until: int64(c.Ended)}, ok
		}},
	} {
		var t times
		found, missed := 0, 0
		opened, groups, cpu := 0, int64(0), time.Duration(0)
		for i := range ask {
			q, ok := kind.query(&ask[i])
			if !ok {
				continue
			}
			if kind.cold {
				drop()
			}
			fresh := &archive.Reader{Hosts: r.Hosts} // with nothing open
			began := time.Now()
			before, _ := usage()
			n := 0
			for _, err := range fresh.Rows(context.Background(), &q) {
				if err != nil {
					return err
				}
				n++
			}
			t = append(t, time.Since(began))
			after, _ := usage()
			cpu += after - before
			found += n
			if n == 0 {
				missed++
			}
			opened, groups = opened+fresh.Opened, groups+fresh.RowGroups.Load()
			fresh.Close()
		}
		each := float64(max(len(t), 1))
		t.print("reader", kind.name, missed, fmt.Sprintf("; each %.2f ms of CPU, %.1f segments, %.1f groups, %.1f rows", ms(cpu)/each, float64(opened)/each, float64(groups)/each, float64(found)/each))
	}
	return nil
}

// catalog tells what the catalogs take: of the disk, of who asks, and of a daemon that starts.
func (b *bench) catalog() error {
	files, err := filepath.Glob(b.dir + "/host=*/date=*/catalog.jsonl")
	if err != nil {
		return err
	}
	size := int64(0)
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return err
		}
		size += info.Size()
	}
	took := func(do func() error) (time.Duration, error) {
		drop()
		began := time.Now()
		err := do()
		return time.Since(began), err
	}
	lines := 0
	read, err := took(func() error {
		r, err := archive.OpenReader(b.dir)
		if err != nil {
			return err
		}
		lines = len(r.Hosts[0].Lines)
		r.Close()
		return nil
	})
	if err != nil {
		return err
	}
	open, err := took(func() error {
		w, err := archive.Open(b.options())
		if err != nil {
			return err
		}
		return w.Close(context.Background())
	})
	if err != nil {
		return err
	}
	fmt.Printf("catalog   %8.2f ms to read %d lines, %.0f bytes each; %.2f ms to open the archive for writing; cold\n", ms(read), lines,
		float64(size)/float64(max(lines, 1)), ms(open))
	return nil
}

// whois runs "ctlogd whois", and tells how long it took and how much memory: of the whole command. This process is a small
// one, as a child's peak counts from its parent's size.
func (b *bench) whois(ctlogd string) error {
	ask, err := b.readAsked()
	if err != nil {
		return err
	}
	for _, kind := range []struct {
		name string
		cold bool
		args func(q *question) []string
	}{
		{"point, cold", true, pointArgs}, {"point, warm", false, pointArgs},
		{"--src, 1 h, warm", false, func(q *question) []string {
			return []string{"--src", q.src.String(), "--from", text(q.stop - int64(time.Hour)), "--to", text(q.stop)}
		}},
		{"--dst, warm", false, func(q *question) []string { return []string{"--dst", q.dst.String(), "--at", text(q.at)} }},
	} {
		var t times
		most, missed, cpu := int64(0), 0, time.Duration(0)
		for i := range ask {
			if kind.cold {
				drop()
			}
			cmd := exec.Command(ctlogd, append([]string{"whois", "--archive", b.dir, "--no-table", "--json"}, kind.args(&ask[i])...)...)
			began := time.Now()
			out, _ := cmd.Output() // the exit status is the verdict
			t = append(t, time.Since(began))
			most = max(most, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
			cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			if !strings.Contains(string(out), ask[i].src.String()) {
				missed++
				fmt.Fprintln(os.Stderr, strings.Join(cmd.Args[1:], " "), "does not name", ask[i].src)
			}
		}
		t.print("whois", kind.name, missed, fmt.Sprintf("; %.1f ms of CPU each, at most %d MiB", ms(cpu)/float64(max(len(t), 1)), most>>10))
	}
	return nil
}

// verify runs "ctlogd verify", and tells what it took.
func (b *bench) verify(ctlogd string) error {
	drop()
	cmd := exec.Command(ctlogd, "verify", b.dir)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("verify: %w: %s", err, out)
	}
	took := time.Since(began)
	segments, _ := filepath.Glob(b.dir + "/host=*/date=*/*.parquet")
	size := int64(0)
	for _, s := range segments {
		if info, err := os.Stat(s); err == nil {
			size += info.Size()
		}
	}
	p := cmd.ProcessState
	fmt.Printf("verify    %8.2f ms for %d segments of %d MB, cold; %.0f ms of CPU, at most %d MiB\n", ms(took), len(segments), size/1e6,
		ms(p.UserTime()+p.SystemTime()), p.SysUsage().(*syscall.Rusage).Maxrss>>10)
	return nil
}

func text(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

func pointArgs(q *question) []string { return []string{q.public.String(), "--at", text(q.at)} }

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// drop empties the page cache; as somebody other than root, as far as the archive goes.
func drop() {
	if os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0) == nil {
		return
	}
	files, _ := filepath.Glob(flag.Lookup("dir").Value.String() + "/host=*/date=*/*")
	for _, f := range files {
		file, err := os.Open(f)
		if err != nil {
			continue
		}
		_, _, _ = syscall.Syscall6(syscall.SYS_FADVISE64, file.Fd(), 0, 0, 4, 0, 0) // POSIX_FADV_DONTNEED
		file.Close()
	}
}

// export sends the trace to a collector by the IPFIX output, at 100,000 records a second, which a collector of one thread
// keeps up with.
func (b *bench) export(collector string) error {
	var cfg ipfix.Config
	cfg.Defaults()
	cfg.Address = collector
	e, err := ipfix.New(cfg, ipfix.Options{})
	if err != nil {
		return err
	}
	tr, batch := trace.New(b.config()), flow.NewBatch(256, nil)
	recs := make([]*flow.Record, 256)
	began := time.Now()
	for n := 0; n < b.records; n += 256 {
		batch.Reset()
		for i := range recs {
			recs[i] = batch.Next()
			tr.Next(recs[i])
		}
		for left := recs; len(left) > 0; {
			k, err := e.Write(context.Background(), left)
			if err != nil {
				return err
			}
			left = left[k:]
		}
		time.Sleep(time.Duration(n)*10*time.Microsecond - time.Since(began))
	}
	return e.Close(context.Background())
}
