// Command archive makes an archive of a trace that never was, and tells what that cost: bytes, CPU and memory a record, and
// how long questions take. bench/archive.sh runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "seal" { // archive.Child starts this binary so
		os.Exit(archive.SealMain(os.Args[2:], os.Stdout, os.Stderr))
	}
	dir := flag.String("dir", "", "where the archive is made")
	records := flag.Int("records", 10_000_000, "records of the trace")
	segment := flag.Uint64("segment", 1_000_000, "records of a segment")
	questions := flag.Int("questions", 200, "questions of each kind")
	seed := flag.Uint64("seed", 1, "of the trace")
	compression := flag.String("compression", archive.Compressions[0], "of the segments")
	whois := flag.String("whois", "", "time this ctlogd's whois on the archive that is there, instead of making one")
	flag.Parse()
	if *whois != "" {
		if err := askWhois(*whois, *dir, *records, *seed); err != nil {
			fmt.Fprintln(os.Stderr, "archive:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*dir, *records, *segment, *questions, *seed, *compression); err != nil {
		fmt.Fprintln(os.Stderr, "archive:", err)
		os.Exit(1)
	}
}

// usage returns the CPU time of this process, and of the children that it has waited for, with their memory in KiB.
func usage() (self, children time.Duration, selfRSS, childRSS int64) {
	var s, c syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &s)
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &c)
	sum := func(r *syscall.Rusage) time.Duration { return time.Duration(r.Utime.Nano() + r.Stime.Nano()) }
	return sum(&s), sum(&c), int64(s.Maxrss), int64(c.Maxrss)
}

func run(dir string, records int, segment uint64, questions int, seed uint64, compression string) error {
	if dir == "" {
		return fmt.Errorf("no -dir")
	}
	cfg := trace.Default()
	cfg.Seed = seed

	// What making the trace takes is taken off.
	began, _, _, _ := usage()
	tr, b := trace.New(cfg), flow.NewBatch(256, nil)
	for n := 0; n < records; n += 256 {
		b.Reset()
		for range 256 {
			tr.Next(b.Next())
		}
	}
	now, _, _, _ := usage()
	making := now - began

	clock := cfg.Start
	w, err := archive.Open(archive.Options{Dir: dir, Host: "gw1", Observer: "bench", Interval: time.Hour, Records: segment,
		Compression: compression, Sync: archive.SyncInterval, Now: func() time.Time { return clock },
		Log: func(level archive.Level, msg, file string, err error, _ string) {
			if level > archive.Info {
				fmt.Fprintln(os.Stderr, msg, file, err)
			}
		}})
	if err != nil {
		return err
	}
	began, _, _, _ = usage()
	start := time.Now()
	tr = trace.New(cfg)
	recs := make([]*flow.Record, 256)
	var ask []flow.Record
	for n := 0; n < records; n += 256 {
		b.Reset()
		for i := range recs {
			recs[i] = b.Next()
			tr.Next(recs[i])
		}
		if n/256%(max(records/256/questions, 1)) == 0 {
			ask = append(ask, *recs[0])
		}
		if _, err := w.Append(recs); err != nil {
			return err
		}
	}
	now, _, _, _ = usage()
	fmt.Printf("append    %8.0f ns of CPU a record, %.1f s for %d records\n", float64(now-began-making)/float64(records), time.Since(start).Seconds(), records)
	for w.Stats.RowLogs.Load() > 1 {
		time.Sleep(10 * time.Millisecond)
	}
	if err := w.Close(context.Background()); err != nil {
		return err
	}
	_, children, rss, childRSS := usage()
	sealed := float64(w.Stats.Seals.Load() * segment)
	fmt.Printf("seal      %8.0f ns of CPU a record, child at most %d MiB, this process %d MiB\n", float64(children)/sealed, childRSS>>10, rss>>10)
	fmt.Printf("size      %8.1f bytes a record in segments, %.1f in row logs\n", float64(w.Stats.SegmentBytes.Load())/sealed,
		float64(w.Stats.Bytes.Load())/float64(records))
	return query(dir, ask)
}

// query asks about flows that are there: who had their public address and port in the middle of their life.
func query(dir string, ask []flow.Record) error {
	rng := rand.New(rand.NewPCG(1, 2))
	rng.Shuffle(len(ask), func(i, j int) { ask[i], ask[j] = ask[j], ask[i] })
	began := time.Now()
	r, err := archive.OpenReader(dir)
	if err != nil {
		return err
	}
	fmt.Printf("catalog   %8.2f ms to read %d lines\n", ms(time.Since(began)), len(r.Hosts[0].Lines))
	r.Hosts[0].RowLogs = nil // sealed ones are asked
	for _, kind := range []struct {
		name  string
		cold  bool
		query func(r *flow.Record) archive.Query
	}{
		{"point, cold", true, point},
		{"point, warm", false, point},
		{"point, warm, an hour's bound", false, func(r *flow.Record) archive.Query {
			q := point(r)
			q.Until = q.From + int64(2*time.Hour)
			return q
		}},
		{"subscriber, 1 h, warm", false, func(r *flow.Record) archive.Query {
			return archive.Query{Src: r.Orig.SrcAddr(), From: r.Stop - int64(time.Hour), To: r.Stop}
		}},
	} {
		var times []time.Duration
		found, missed := 0, 0
		r.Opened = 0
		r.RowGroups.Store(0)
		for i := range ask {
			if kind.cold {
				drop(dir)
			}
			q := kind.query(&ask[i])
			began := time.Now()
			n := 0
			for _, err := range r.Rows(context.Background(), &q) {
				if err != nil {
					return err
				}
				n++
			}
			times = append(times, time.Since(began))
			found += n
			if n == 0 {
				missed++
			}
		}
		slices.Sort(times)
		fmt.Printf("query     %8.2f ms median, %.2f ms p95: %s (%.1f segments, %.1f groups, %.1f rows a question, %d of %d without)\n", ms(times[len(times)/2]),
			ms(times[len(times)*95/100]), kind.name, float64(r.Opened)/float64(len(ask)), float64(r.RowGroups.Load())/float64(len(ask)),
			float64(found)/float64(len(ask)), missed, len(ask))
	}
	return nil
}

// askWhois runs "ctlogd whois" about flows of the trace, and tells how long it took and how much memory: of the whole command.
// This process is a small one, as a child's peak counts from its parent's size.
func askWhois(ctlogd, dir string, records int, seed uint64) error {
	cfg := trace.Default()
	cfg.Seed = seed
	tr := trace.New(cfg)
	var r flow.Record
	var ask []flow.Record
	for n := range records {
		r = flow.Record{}
		if tr.Next(&r); n%max(records/20, 1) == records/40 {
			ask = append(ask, r)
		}
	}
	for _, kind := range []struct {
		name string
		cold bool
		args func(r *flow.Record) []string
	}{
		{"point, cold", true, pointArgs}, {"point, warm", false, pointArgs},
		{"--src, 1 h, warm", false, func(r *flow.Record) []string {
			return []string{"--src", r.Orig.SrcAddr().String(), "--from", text(r.Stop - int64(time.Hour)), "--to", text(r.Stop)}
		}},
	} {
		var times []time.Duration
		most, missed := int64(0), 0
		for i := range ask {
			if kind.cold {
				drop(dir)
			}
			cmd := exec.Command(ctlogd, append([]string{"whois", "--archive", dir, "--json"}, kind.args(&ask[i])...)...)
			began := time.Now()
			out, _ := cmd.Output() // the exit status is the verdict
			times = append(times, time.Since(began))
			most = max(most, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
			if !strings.Contains(string(out), ask[i].Orig.SrcAddr().String()) {
				missed++
			}
		}
		slices.Sort(times)
		fmt.Printf("whois     %8.2f ms median, %.2f ms p95, at most %d MiB: %s (%d of %d without)\n", ms(times[len(times)/2]), ms(times[len(times)*95/100]),
			most>>10, kind.name, missed, len(ask))
	}
	return nil
}

func text(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

func pointArgs(r *flow.Record) []string {
	a, port := archive.PublicSource(r)
	return []string{netip.AddrPortFrom(a, port).String(), "--at", text((r.Start + r.Stop) / 2)}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

func point(r *flow.Record) archive.Query {
	q := archive.Query{HasPort: true, From: (r.Start + r.Stop) / 2}
	q.To = q.From
	q.Public, q.Port = archive.PublicSource(r)
	return q
}

// drop takes the archive's files out of the page cache.
func drop(dir string) {
	files, _ := filepath.Glob(dir + "/host=*/date=*/*.parquet")
	for _, f := range files {
		file, err := os.Open(f)
		if err != nil {
			continue
		}
		_, _, _ = syscall.Syscall6(syscall.SYS_FADVISE64, file.Fd(), 0, 0, 4, 0, 0) // POSIX_FADV_DONTNEED
		file.Close()
	}
}
