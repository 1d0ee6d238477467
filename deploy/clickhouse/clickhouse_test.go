//go:build integration

// Package clickhouse has the tests of the files beside it, which run in the real engine, embedded in Python (chdb).
package clickhouse

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/integration/engines"
	"github.com/ctlogd/ctlogd/output/format"
)

const host, observer = "gw1", "b08dfa6083e7567a1921a715000001fb"

// judge runs a script of testdata and expects so many lines that begin with ok.
func judge(t *testing.T, checks int, script string, args ...string) {
	t.Helper()
	python, err := engines.Python()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, append([]string{filepath.Join("testdata", script), t.TempDir()}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if strings.HasPrefix(s.Text(), "ok ") {
			got++
		}
	}
	if got != checks {
		t.Errorf("%d checks, want %d", got, checks)
	}
}

// lines writes what the output kafka sends of records.
func lines(t *testing.T, recs []*flow.Record) (path string) {
	t.Helper()
	enc, err := format.New("flat", format.Options{Host: host, Observer: observer, Fields: format.Fields{Add: []string{"community_id", "nat_community_id"}}})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, r := range recs {
		b.Write(append(enc.Append(nil, r), '\n'))
	}
	path = filepath.Join(t.TempDir(), "flows.jsonl")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// segments writes the same records as Parquet, all of them sealed.
func segments(t *testing.T, recs []*flow.Record) (dir string) {
	t.Helper()
	dir = t.TempDir()
	w, err := archive.Open(archive.Options{Dir: dir, Host: host, Observer: observer, Interval: time.Hour,
		Records: uint64(len(recs) / 2), Sync: archive.SyncNever,
		Seal: func(_ context.Context, path string) (archive.Sealed, error) {
			seg, date, err := archive.Seal(path)
			return archive.Sealed{Segment: seg, Date: date}, err
		}})
	if err != nil {
		t.Fatal(err)
	}
	for part := range 2 {
		if n, err := w.Append(recs[part*len(recs)/2 : (part+1)*len(recs)/2]); err != nil || n != len(recs)/2 {
			t.Fatal(n, err)
		}
	}
	for deadline := time.Now().Add(time.Minute); w.Stats.Seals.Load() < 2 || w.Stats.Checkpointed.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d segments are sealed, want 2", w.Stats.Seals.Load())
		}
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// scene are flows within some minutes of few subscribers behind few addresses and ports, so that many share one; forwarded
// and untranslated ones; IPv6; flows that are open, that are both, and that have no start.
func scene(n int) []*flow.Record {
	c := trace.Default()
	c.PerSecond, c.Subscribers, c.Public, c.Servers = 50, 300, 4, 50
	tr := trace.New(c)
	b := flow.NewBatch(2*n, nil)
	var recs []*flow.Record
	for i := range n {
		r := b.Next()
		tr.Next(r)
		r.Reply.DstPort = 40000 + r.Reply.DstPort%100
		o := &r.Orig
		switch i % 20 {
		case 0:
			r.Reply = flow.Tuple{Src: o.Dst, Dst: o.Src, SrcPort: o.DstPort, DstPort: o.SrcPort, Proto: o.Proto}
		case 1:
			r.Orig, r.Reply = flow.Tuple{Src: o.Dst, Dst: r.Reply.Dst, SrcPort: o.SrcPort, DstPort: 40000 + o.SrcPort%100, Proto: o.Proto},
				flow.Tuple{Src: o.Src, Dst: o.Dst, SrcPort: 8443, DstPort: o.SrcPort, Proto: o.Proto}
		case 2:
			r.Has &^= flow.HasTCP
			o.Proto, r.Reply.Proto = flow.ICMP, flow.ICMP
			o.DstPort, r.Reply.SrcPort, r.Reply.DstPort = 8<<8, r.Reply.DstPort, 0
		case 3:
			r.Start = 0
		case 4:
			o.V6, r.Reply.V6 = true, true
			o.Src, o.Dst = flow.Addr{0x20, 1, 0x0d, 0xb8, 15: byte(i / 20)}, flow.Addr{0x20, 1, 0x0d, 0xb8, 0xff, 15: 1}
			r.Reply = flow.Tuple{Src: o.Dst, Dst: o.Src, SrcPort: o.DstPort, DstPort: o.SrcPort, Proto: o.Proto, V6: true}
		case 6, 7:
			b.Extra(r).Subscriber = flow.Subscriber{ID: fmt.Sprintf("s%d", i/20%5), Name: "of house " + fmt.Sprint(i/20%5)}
		case 5:
			r.Has |= flow.HasZone
			r.Zone = uint16(i % 7)
		}
		recs = append(recs, r)
		switch i % 9 {
		case 0: // it was seen alive before
			open := b.Next()
			*open = *r
			open.Event, open.Stop, open.Received = flow.EventOpen, 0, r.Stop-r.Stop%int64(time.Second)
			open.Stamp = 0
			recs = append(recs, open)
		case 1: // it was seen alive, and is so still
			r.Event, r.Received, r.Stop, r.Stamp = flow.EventOpen, r.Stop, 0, 0
		case 2: // it was born, says the kernel, and not when
			r.Event, r.Received, r.Start, r.Stop, r.Stamp = flow.EventNew, r.Stop, 0, 0, r.Stop
		}
	}
	return recs
}

// TestTables: what the output kafka writes is there in the tables, every value of every record; what the archive has is there,
// too, as the same rows; records that come twice are there once; the faults of an earlier schema are none.
func TestTables(t *testing.T) {
	recs := append(scene(2000), trace.Kinds(3000)...)
	for len(recs)%2 != 0 {
		recs = recs[:len(recs)-1]
	}
	dir := segments(t, recs)
	hour := func(n int) archive.Time {
		return archive.Time(trace.Default().Start.Add(time.Duration(n) * time.Hour).UnixNano())
	}
	line, err := json.Marshal(archive.Line{V: 1, Kind: archive.KindSegment, Segment: &archive.Segment{Facts: archive.Facts{Checkpoints: []archive.Checkpoint{
		{Began: hour(2), Ended: hour(3), MinAge: archive.Duration(90 * time.Minute), Whole: true},
		{Began: hour(4), Ended: hour(5), MinAge: archive.Duration(90 * time.Minute)},
		{Began: hour(6), Ended: hour(7), MinAge: archive.Duration(90 * time.Minute), Whole: true},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	catalog := filepath.Join(dir, "host="+host, "date=2026-03-01")
	if err := os.MkdirAll(catalog, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(catalog, "catalog.jsonl"), append(line, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	note := &flow.Record{Event: flow.EventCheckpoint, Received: int64(hour(1)), Extra: &flow.Extra{Note: &flow.Note{
		Output: "archive:/a", Origin: "ctlogd archive gw1", Lines: 3, Hash: strings.Repeat("0af9", 16), Text: "ctlogd archive gw1\n3\n"}}}
	judge(t, 39, "judge_tables.py", lines(t, append(recs, note)), dir, observer, "../../docs")
}

// TestWhois: random questions are answered as a scan of all records in another language answers them.
func TestWhois(t *testing.T) {
	judge(t, 11, "judge_whois.py", lines(t, scene(2000)))
}
