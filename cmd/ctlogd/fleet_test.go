//go:build !small

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
)

// sealedHost makes the archive of a host in dir. All of it is sealed; a checkpoint of 12:30 has seen who was alive at 11:03.
func sealedHost(t *testing.T, dir, host string, recs ...*flow.Record) {
	t.Helper()
	last := ended(flow.UDP, "10.9.9.9:5353", "203.0.113.250:1024", "198.51.100.53:53", "12:29:00", "12:30:00")
	check := &flow.Record{Event: flow.EventOpen, Start: last.Stop, Stop: last.Stop + 1e9, Received: last.Stop + 1e9, Timeout: 3600,
		Extra: &flow.Extra{Checkpoint: flow.CheckpointWhole}}
	recs = append([]*flow.Record{ended(flow.UDP, "10.9.9.9:5353", "203.0.113.250:1024", "198.51.100.53:53", "08:00:00", "08:00:30")}, append(recs, last, check)...)
	w, err := archive.Open(archive.Options{Dir: dir, Host: host, Observer: host, Interval: time.Hour, Records: uint64(len(recs)), Sync: archive.SyncNever,
		Now:  func() time.Time { return time.Unix(0, check.Stop) },
		Seal: sealHere})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Append(recs); err != nil {
		t.Fatal(err)
	}
	closeArchive(t, w, func() bool { return w.Stats.Seals.Load() > 0 })
}

// TestWhoisFleet: of twenty firewalls' archives, some are not as they should be. The holder is found all the same, and what
// may be missing is said of those and of no other.
func TestWhoisFleet(t *testing.T) {
	o := newOffice(t)
	name := func(n int) string { return fmt.Sprintf("fw%02d", n) }
	const gap, holder, damaged, half, empty, locked, unlinked = 3, 7, 5, 17, 11, 13, 19
	copies := filepath.Join(o.root, "copies")
	var whole []string // as arguments
	wrong := map[string]string{name(gap): "overrun", name(damaged): "unreadable", name(half): "missing", name(empty): "empty", name(locked): "unreadable",
		name(unlinked): "unreadable"}
	for n := range 20 {
		dir, host := filepath.Join(copies, name(n)), name(n)
		if wrong[host] == "" {
			whole = append(whole, "--archive copies/"+host)
		}
		recs := []*flow.Record{ended(flow.TCP, "10.64.3.7:51544", fmt.Sprintf("203.0.113.%d:41000", 100+n), "198.51.100.80:443", "11:00:00", "11:10:00")}
		switch n {
		case holder:
			recs = append(recs, ended(flow.TCP, "10.64.3.7:51545", "203.0.113.5:41000", "198.51.100.80:443", "11:00:00", "11:10:00"))
		case gap:
			at := recs[0].Stop
			recs = append(recs, &flow.Record{Event: flow.EventGap, Start: at, Stop: at + 60e9, Received: at + 60e9,
				Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseOverrun, Lost: 12, LostKnown: true}}})
		case empty:
			if err := os.MkdirAll(filepath.Join(dir, "host="+host), 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		case unlinked: // the disk that has it is not mounted
			if err := os.Symlink("/nonexistent/"+host, dir); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		sealedHost(t, dir, host, recs...)
		segments, _ := filepath.Glob(dir + "/host=*/date=*/*.parquet")
		if len(segments) != 1 {
			t.Fatal(host, segments)
		}
		var err error
		switch n {
		case damaged:
			err = os.Truncate(segments[0], 900)
		case half:
			err = os.Remove(segments[0])
		case locked:
			if err = os.Chmod(dir+"/host="+host, 0); err == nil {
				t.Cleanup(func() { _ = os.Chmod(dir+"/host="+host, 0o755) })
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	as := ""
	if os.Getuid() == 0 { // root without the right to read everything
		as = "setpriv --bounding-set -dac_override,-dac_read_search --inh-caps -all "
	}
	const at = ` --at "2026-11-27 11:03:07 UTC" `
	type answer struct {
		Verdict  string `json:"verdict"`
		Complete bool   `json:"complete"`
		Holders  []struct {
			Host   string `json:"host"`
			Inside string `json:"inside_ip"`
		} `json:"holders"`
		Missing []struct {
			Host string `json:"host"`
			Kind string `json:"kind"`
			Text string `json:"text"`
		} `json:"missing"`
		Hosts []struct {
			Host string `json:"host"`
		} `json:"hosts"`
	}
	ask := func(args string, code int) (a answer) {
		t.Helper()
		out, stderr, got := o.sh(t, as+"ctlogd whois --json "+args+at)
		if err := json.Unmarshal([]byte(out), &a); err != nil || got != code || stderr != "" {
			t.Fatalf("whois %s: exit status %d, want %d: %v\n%s%s", args, got, code, err, out, stderr)
		}
		return a
	}
	for _, q := range []struct{ what, verdict string }{{"203.0.113.5:41000", "sole"}, {"203.0.113.5:45555", "none"}} {
		a := ask(q.what+" --archive copies", 5)
		if a.Verdict != q.verdict || q.verdict == "sole" && (len(a.Holders) != 1 || a.Holders[0].Host != name(holder) || a.Holders[0].Inside != "10.64.3.7") {
			t.Errorf("%s of all: %+v", q.what, a)
		}
		told := map[string]string{}
		for _, m := range a.Missing {
			told[m.Host] += m.Kind
			if m.Text == "" || strings.Contains(m.Text, "%!") {
				t.Errorf("%+v", m)
			}
		}
		if !maps.Equal(told, wrong) {
			t.Errorf("%s of all: what may be missing is told of %v, want %v", q.what, told, wrong)
		}
		if len(a.Hosts) != 20 {
			t.Errorf("%d hosts", len(a.Hosts))
		}
		code := map[string]int{"sole": 0, "none": 3}[q.verdict]
		if a := ask(q.what+" "+strings.Join(whole, " "), code); a.Verdict != q.verdict || !a.Complete || len(a.Hosts) != len(whole) {
			t.Errorf("%s of those that are whole: %+v", q.what, a)
		}
		if a := ask(q.what+" --archive copies --host "+name(holder), code); a.Verdict != q.verdict || !a.Complete {
			t.Errorf("%s of the holder's: %+v", q.what, a)
		}
	}
	// Nothing is left where nothing can be read.
	if out, stderr, code := o.sh(t, as+"ctlogd whois 203.0.113.5:41000 --archive copies/"+name(locked)+at); code != 1 || out != "" ||
		!strings.Contains(stderr, "may not be read, so none of its records were looked at: ask as root, or as a member of its group") {
		t.Errorf("what may not be read alone: exit status %d: %s%s", code, out, stderr)
	}
	var verified []archive.Verification
	places := strings.ReplaceAll(strings.Join(whole[:3], " "), "--archive ", "") + " copies/" + name(locked)
	out, stderr, code := o.sh(t, as+"ctlogd verify --json "+places)
	if err := json.Unmarshal([]byte(out), &verified); err != nil || code != verifyUnreadable || len(verified) != 4 || verified[0].Verdict != archive.Whole || verified[3].Verdict != archive.Unreadable {
		t.Errorf("verify: exit status %d, %v: %s%s", code, err, out, stderr)
	}
}
