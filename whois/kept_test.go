package whois

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
)

// TestCopyKeptLonger: what retention has removed is there in a copy that is kept longer, also when the copy has got the
// catalogs with the tombstones since.
func TestCopyKeptLonger(t *testing.T) {
	dir := small(t)
	// until runs a Writer at a time, until no file is there that matches.
	until := func(now int64, r archive.Retention, pattern string) {
		t.Helper()
		w := openArchive(t, now, archive.Options{Dir: dir, Records: 7, Retention: r})
		closeArchive(t, w, func() bool {
			left, _ := filepath.Glob(filepath.Join(dir, pattern))
			return len(left) == 0
		})
	}
	until(noon+48*hour, archive.Retention{}, "host=*/*.rows")
	if err := os.CopyFS("copy", os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	until(noon+72*hour, archive.Retention{MaxAge: 24 * time.Hour}, "host=*/date=*/*.parquet")
	if a := answer(t, dir, point(noon)); a.Verdict != None || a.Complete {
		t.Errorf("where retention has removed it: %s, complete %t", a.Verdict, a.Complete)
	}
	catalogs, err := filepath.Glob(filepath.Join(dir, "host=*/date=*/catalog.jsonl"))
	if err != nil || len(catalogs) == 0 {
		t.Fatal(catalogs, err)
	}
	for _, name := range catalogs {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join("copy", rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if a := answer(t, "copy", point(noon)); a.Verdict != Sole || !a.Complete || len(a.Holders) != 1 {
		t.Errorf("in the copy: %s, complete %t, %d holders", a.Verdict, a.Complete, len(a.Holders))
	}
}

// TestManyHosts: however many hosts are asked, few files are open.
func TestManyHosts(t *testing.T) {
	dir := small(t)
	const hosts = 120
	for i := range hosts {
		if err := os.CopyFS(filepath.Join("fleet", fmt.Sprintf("host=gw%d", i)), os.DirFS(filepath.Join(dir, "host=gw1"))); err != nil {
			t.Fatal(err)
		}
	}
	if a := answer(t, "fleet", point(noon)); len(a.Hosts) != hosts || len(a.Holders) != hosts {
		t.Errorf("%d hosts, %d holders", len(a.Hosts), len(a.Holders))
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	open := 0
	for _, fd := range fds {
		if path, _ := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); filepath.Ext(path) == ".parquet" {
			open++
		}
	}
	if open == 0 || open > 100 { // 0: it has looked at others
		t.Errorf("%d segments are open", open)
	}
}

// TestDroppedOnce: what was left out of the records of one time is told of that time, whatever the records of another have.
func TestDroppedOnce(t *testing.T) {
	dir := t.TempDir()
	minute := 60 * second
	for _, w := range []struct {
		drop []string
		at   int64
	}{{[]string{"nat_src_port"}, noon}, {nil, noon + 10*hour}} {
		a := openArchive(t, w.at+10*minute, archive.Options{Dir: dir, Records: 1, Drop: w.drop})
		r := snat("10.64.3.7:51544", "198.51.100.80:443", 40000, w.at-minute, w.at+minute)
		r.Received = r.Stop
		if _, err := a.Append([]*flow.Record{r}); err != nil {
			t.Fatal(err)
		}
		closeArchive(t, a, func() bool { return a.Stats.Seals.Load() > 0 })
	}
	s, err := Open([]string{dir}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	questions := []*Question{point(noon + 10*hour), point(noon)}
	if err := s.Prepare(context.Background(), questions); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true} {
		a, err := Ask(context.Background(), s, questions[i], time.Unix(0, noon+24*hour))
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.ContainsFunc(a.Missing, func(r Reason) bool { return r.Kind == "dropped" }); got != want {
			t.Errorf("question %d: %s, %v", i, a.Verdict, a.Missing)
		}
	}
}

// TestLeftOutInRowLog: what fields.drop leaves out of segments is in row logs still. A flow that a checkpoint has seen is known by
// its end all the same, one of them sealed and the other not, and the answer shows what was left out of neither.
func TestLeftOutInRowLog(t *testing.T) {
	minute := 60 * second
	tcp := snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-100*minute, noon-minute)
	both := snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-100*minute, noon-minute)
	both.Reply.Src, both.Reply.SrcPort = flow.AddrFrom(netip.MustParseAddr("192.0.2.80")), 8443
	ping := snat("10.64.3.7:40000", "198.51.100.80:2048", 40000, noon-100*minute, noon-minute)
	ping.Orig.Proto, ping.Reply.Proto, ping.Reply.SrcPort, ping.Reply.DstPort = flow.ICMP, flow.ICMP, 40000, 0
	for name, r := range map[string]*flow.Record{"tcp": tcp, "tcp, both sides translated": both, "ping": ping} {
		r.Received = r.Stop
		for _, drop := range [][]string{{"dst_ip", "dst_port"}, {"dst_port"}, {"dst_ip"}, {"dst_ip", "dst_port", "nat_dst_ip", "nat_dst_port"}, {"nat_dst_ip"}, {"flow_id"}} {
			if !slices.Contains(drop, "flow_id") {
				drop = append(drop, "flow_id")
			}
			for _, openFirst := range []bool{true, false} {
				seen, end := *r, *r
				recs := []*flow.Record{open(&seen, noon-30*minute), &end}
				if !openFirst {
					slices.Reverse(recs)
				}
				dir := t.TempDir()
				for i, rec := range recs {
					a := openArchive(t, noon, archive.Options{Dir: dir, Records: uint64(1 + 99*i), Drop: drop})
					if _, err := a.Append([]*flow.Record{rec}); err != nil {
						t.Fatal(err)
					}
					closeArchive(t, a, func() bool { return i == 1 || a.Stats.Seals.Load() > 0 })
				}
				if logs, _ := filepath.Glob(dir + "/*/*.rows"); len(logs) != 1 {
					t.Fatal(logs)
				}
				for _, at := range []int64{noon - 2*minute, noon} {
					a := answer(t, dir, point(at))
					if n := len(a.Holders); at == noon && n != 0 || at != noon && (n != 1 || a.Holders[0].End == 0) {
						t.Errorf("%s without %v, seen first %t: %d holders %s", name, drop, openFirst, n, short(at))
					}
					var b bytes.Buffer
					if err := errors.Join(a.Text(&b), a.JSON(&b)); err != nil {
						t.Fatal(err)
					}
					if slices.Contains(drop, "dst_ip") && strings.Contains(b.String(), "198.51.100.80") || slices.Contains(drop, "nat_dst_ip") && strings.Contains(b.String(), "192.0.2.80") {
						t.Errorf("%s without %v, seen first %t:\n%s", name, drop, openFirst, &b)
					}
				}
			}
		}
	}
}

// TestSubscriberLeftOut: a subscriber that fields.drop leaves out of segments is in a row log, and not in an answer from it.
func TestSubscriberLeftOut(t *testing.T) {
	for _, drop := range [][]string{nil, {"subscriber"}} {
		dir := t.TempDir()
		r := snat("10.64.3.7:51544", "198.51.100.80:443", 40000, noon-second, noon+second)
		r.Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17"}}
		a := openArchive(t, noon, archive.Options{Dir: dir, Records: 100, Drop: drop})
		if _, err := a.Append([]*flow.Record{r, snat("10.64.3.8:51544", "198.51.100.80:443", 40001, noon-second, noon+second)}); err != nil {
			t.Fatal(err)
		}
		closeArchive(t, a, func() bool { return true })
		q := point(noon)
		q.Public.HasPort = false
		var b bytes.Buffer
		if err := answer(t, dir, q).JSON(&b); err != nil {
			t.Fatal(err)
		}
		if told := strings.Contains(b.String(), "c-17"); told != (drop == nil) || !strings.Contains(b.String(), "10.64.3.8") {
			t.Errorf("without %v:\n%s", drop, &b)
		}
	}
}
