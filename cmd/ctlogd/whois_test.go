//go:build !small

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/ownlog"
)

// askedAt is when questions are asked in these tests: the day on which docs/whois.md was written.
const askedAt = "2026-11-27T13:10:17Z"

// A command of these tests answers at the time that it is told.
func init() {
	if t, err := time.Parse(time.RFC3339, os.Getenv(asCommand)); err == nil {
		clock = func() time.Time { return t }
	}
}

// office is a machine with an archive of a firewall at var/log/ctlogd/archive, and a configuration that names it.
type office struct {
	root, archive string
	env           []string // in which ctlogd is a command
}

// ended returns the end of a flow that was translated. Times are of 27 November 2026, UTC.
func ended(proto flow.Proto, src, public, dst string, start, end string) *flow.Record {
	at := func(s string) int64 {
		t, err := time.Parse(time.DateTime, "2026-11-27 "+s)
		if err != nil {
			panic(err)
		}
		return t.UnixNano()
	}
	s, p, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(public), netip.MustParseAddrPort(dst)
	r := &flow.Record{
		Event: flow.EventDestroy, Has: flow.HasOrig | flow.HasReply | flow.HasCounters, Start: at(start), Stop: at(end), Received: at(end),
		Orig: flow.Tuple{Src: flow.AddrFrom(s.Addr()), Dst: flow.AddrFrom(d.Addr()), SrcPort: s.Port(), DstPort: d.Port(), Proto: proto, V6: s.Addr().Is6()},
		Reply: flow.Tuple{Src: flow.AddrFrom(d.Addr()), Dst: flow.AddrFrom(p.Addr()), SrcPort: d.Port(), DstPort: p.Port(), Proto: proto,
			V6: s.Addr().Is6()},
		OrigCounters: flow.Counters{Packets: 14, Bytes: 2211}, ReplyCounters: flow.Counters{Packets: 19, Bytes: 20733},
	}
	if proto == flow.ICMP {
		r.Orig.DstPort, r.Reply.SrcPort, r.Reply.DstPort = 8<<8, p.Port(), 0
	}
	return r
}

// newOffice makes the machine. A week ago there were flows of 192.0.2.1 that retention has removed. 10.64.3.8 and 10.64.3.9 have 203.0.113.5:40000 at 11:03:07, 10.64.3.7 has 203.0.113.5:41000,
// records of 10:30 are missing, and the table was read at 12:30.
func newOffice(t *testing.T, more ...*flow.Record) *office {
	t.Helper()
	o := &office{root: t.TempDir()}
	o.archive = filepath.Join(o.root, "var/log/ctlogd/archive")
	for _, dir := range []string{"bin", "etc/ctlogd", "var/log/ctlogd"} {
		if err := os.MkdirAll(filepath.Join(o.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	o.write(t, "etc/ctlogd/ctlogd.yaml", "host: gw1\nobserver: lab\nlive: {socket: none}\noutputs: {archive: [{path: "+o.archive+"}]}\n")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(o.root, "bin/ctlogd")); err != nil {
		t.Fatal(err)
	}
	o.env = append(os.Environ(), asCommand+"="+askedAt, withRoot+"="+o.root, "TZ=UTC", "PATH="+filepath.Join(o.root, "bin")+":"+os.Getenv("PATH"))

	forward := ended(flow.TCP, "198.51.100.99:3333", "203.0.113.5:1", "203.0.113.5:8080", "11:01:00", "11:04:00")
	forward.Reply = flow.Tuple{Src: flow.AddrFrom(netip.MustParseAddr("10.64.7.7")), Dst: forward.Orig.Src, SrcPort: 80, DstPort: 3333, Proto: flow.TCP}
	gap := &flow.Record{Event: flow.EventGap, Start: forward.Start - 31*60e9, Stop: forward.Start - 30*60e9, Received: forward.Start - 30*60e9,
		Extra: &flow.Extra{Gap: flow.Gap{Cause: flow.CauseOverrun, Lost: 12, LostKnown: true}}}
	read := forward.Start + 89*60e9
	check := &flow.Record{Event: flow.EventOpen, Start: read, Stop: read + 1e9, Received: read + 1e9, Timeout: 3600, Extra: &flow.Extra{Checkpoint: flow.CheckpointWhole}}
	recs := append([]*flow.Record{
		ended(flow.TCP, "10.64.3.8:50000", "203.0.113.5:40000", "198.51.100.80:443", "09:00:00", "09:00:30"),
		ended(flow.UDP, "10.64.1.1:5353", "203.0.113.5:1024", "198.51.100.53:53", "08:00:00", "08:00:30"),
		ended(flow.TCP, "10.64.3.7:51544", "203.0.113.5:41000", "198.51.100.80:443", "11:00:00", "11:10:00"),
		ended(flow.TCP, "10.64.3.8:51000", "203.0.113.5:40000", "198.51.100.80:22", "11:02:00", "11:05:00"),
		ended(flow.TCP, "10.64.3.9:51000", "203.0.113.5:40000", "198.51.100.81:443", "11:03:00", "11:06:00"),
		ended(flow.ICMP, "10.64.3.7:777", "203.0.113.5:64110", "198.51.100.80:0", "11:03:00", "11:03:30"),
		ended(flow.GRE, "10.64.3.6:17", "203.0.113.5:18", "198.51.100.82:17", "11:03:00", "11:04:30"),
		ended(flow.TCP, "[2001:db8:1::2]:40000", "[2001:db8:1::2]:40000", "[2001:db8:99::1]:443", "11:02:00", "11:07:00"),
		forward,
	}, more...)
	recs = append(recs, gap, check, ended(flow.TCP, "10.64.3.7:51700", "203.0.113.5:43000", "198.51.100.80:443", "12:30:30", "12:31:00"))

	var old []*flow.Record
	for range len(recs) - 1 {
		r := ended(flow.UDP, "192.0.2.1:5353", "192.0.2.1:5353", "198.51.100.53:53", "08:00:00", "08:00:30")
		r.Start, r.Stop, r.Received = r.Start-7*24*3600e9, r.Stop-7*24*3600e9, r.Received-7*24*3600e9
		old = append(old, r)
	}
	key := filepath.Join(o.root, "etc/ctlogd/gw1.key")
	public, err := archive.CreateKey(key, "gw1")
	if err != nil {
		t.Fatal(err)
	}
	o.write(t, "gw1.pub", public+"\n")
	var journal bytes.Buffer
	log, own := ownlog.New(ownlog.Config{Level: "info", Format: "json"}, &journal)
	w, err := archive.Open(archive.Options{Dir: o.archive, Host: "gw1", Observer: "lab", Interval: time.Hour, Records: uint64(len(old)), Key: key,
		Now: func() time.Time { return time.Unix(0, recs[len(recs)-1].Stop) }, Retention: archive.Retention{MaxAge: 5 * 24 * time.Hour},
		Log:  func(_ archive.Level, msg, file string, _ error, _ string) { log.Info(msg, zap.String("file", file)) },
		Seal: sealHere})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Append(append(old, recs...)); err != nil {
		t.Fatal(err)
	}
	closeArchive(t, w, func() bool {
		return w.Stats.Seals.Load() >= 2 && w.Stats.RemovedAge.Load() > 0 && w.Stats.Checkpointed.Load() > 0
	})
	own.Close()
	o.write(t, "journal-of-gw1.txt", journal.String())
	return o
}

func (o *office) write(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(o.root, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// sh runs a line of a shell in the office.
func (o *office) sh(t *testing.T, line string) (out, stderr string, code int) {
	t.Helper()
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir, cmd.Env = o.root, o.env
	var stdout, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return stdout.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestWhoisExitStatus: each flag does what it says, and the exit status tells the verdict.
func TestWhoisExitStatus(t *testing.T) {
	jane := ended(flow.TCP, "10.64.5.5:51000", "203.0.113.5:44000", "198.51.100.80:443", "11:00:00", "11:10:00")
	jane.Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17", Name: "Jane", Source: "dhcp@2026-11-27T10:00:00Z"}}
	moved := ended(flow.TCP, "10.64.5.5:52000", "203.0.113.5:44001", "198.51.100.80:443", "11:00:00", "11:10:00")
	moved.Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: "c-17", Next: "c-18", Source: "dhcp@2026-11-27T10:00:00Z"}}
	blue := ended(flow.TCP, "10.64.6.6:51544", "203.0.113.5:41000", "198.51.100.81:443", "11:00:00", "11:10:00")
	blue.Netns = flow.HoldNetns(3, "blue")
	blue.Reply.DstPort = 44002
	red := *blue
	red.Netns = 0
	o := newOffice(t, jane, moved, blue, &red)
	if out, stderr, code := o.sh(t, "mkdir copies && ln -s ../var/log/ctlogd/archive copies/gw1 && ctlogd cat var/log/ctlogd/archive/*/*/*.parquet >flows.jsonl && gzip -k flows.jsonl"); code != 0 {
		t.Fatal(out, stderr)
	}
	o.write(t, "mail.txt", "203.0.113.5 41000 2026-11-27 11:03:07 UTC\n203.0.113.5 40000 2026-11-27 11:03:07 UTC\n")
	o.write(t, "then.yaml", "host: gw1\nobserver: lab\nlive: {socket: none}\noutputs: {jsonl: [{path: /srv/flows.jsonl, filter: [{action: drop, match: {proto: udp, dst_port: 53}}]}]}\n")
	o.write(t, "odd.txt", "203.0.113.5 41000 2026-11-27 11:03:07 UTC\n203.0.113.5 0 2026-11-27 11:03:07 UTC\n")
	const at = ` --at "2026-11-27 11:03:07 UTC" `
	for _, c := range []struct {
		args string
		code int
		want string // in the output, where a star stands for anything
	}{
		{"203.0.113.5:41000" + at, 0, "sole, complete: 10.64.3.7 had 203.0.113.5:41000."},
		{"203.0.113.5:40000" + at, 4, "ambiguous, complete: 2 subscribers had 203.0.113.5:40000: 10.64.3.8 and 10.64.3.9."},
		{"203.0.113.5:40000 --dst 198.51.100.81" + at, 0, "10.64.3.9 had"},
		{"203.0.113.5:40000 --dst 198.51.100.81:80" + at, 3, "none, complete: Nobody had 203.0.113.5:40000."},
		{"203.0.113.5:45555" + at, 3, "none, complete"},
		{"203.0.113.5:41000 --at '2026-11-27 10:59:59 UTC'", 3, "none, complete"},
		{"203.0.113.5:41000 --at '2026-11-27 10:59:59 UTC' --within 2s", 0, "10.64.3.7 had"},
		{"203.0.113.5:41000 --at '2026-11-27 12:03:07' --zone +01:00", 0, "no zone was given, +01:00 was assumed"},
		{"203.0.113.5:41000 --at '2026-11-27 11:03:07'", 0, "no zone was given, UTC was assumed"},
		{"203.0.113.5:45555 --at '2026-11-27 10:30:30 UTC'", 5, "Gap (overrun) from"},
		{"203.0.113.5:43000 --no-table --at '2026-11-27 12:30:45 UTC'", 5, "A flow that has lived since then"},
		{"203.0.113.5:1024 --at '2026-11-20 07:00:00 UTC'", 5, "The records begin at"},
		{"203.0.113.5:1024 --at '2026-11-20 07:00:00 UTC'", 5, "were removed at 2026-11-27 12:31:00 UTC because their time was over (max_age)."},
		{"203.0.113.5:64110 --proto icmp" + at, 0, "10.64.3.7 had"},
		{"203.0.113.5:64110 --proto tcp" + at, 3, "none"},
		{"203.0.113.5:18 --proto gre" + at, 0, "10.64.3.6 had"},
		{"203.0.113.5:18 --proto 47" + at, 0, "10.64.3.6 had"},
		{"[2001:db8:1::2]:40000" + at, 0, "2001:db8:1::2 had [2001:db8:1::2]:40000."},
		{"[2001:db8:99::1]:443" + at, 0, "2001:db8:99::1 was not translated: the holder is the machine that has this address itself."},
		{"203.0.113.5:8080" + at, 0, "sent on to 10.64.7.7:80"},
		{"203.0.113.5" + at, 4, "the port decides"},
		{"--src 10.64.3.7 --from '2026-11-27 11:00:00 UTC' --to '2026-11-27 11:20:00 UTC'", 0, "10.64.3.7 had 2 flows."},
		{"--src 10.64.3.7:777 --from '2026-11-27 11:00:00 UTC' --to '2026-11-27 11:20:00 UTC'", 0, "10.64.3.7 had 1 flow."},
		{"--src 10.64.3.0/24 --from '2026-11-27 11:00:00 UTC' --to '2026-11-27 11:20:00 UTC'", 0, "10.64.3.0/24 had 5 flows."},
		{"--src 10.64.3.7 --from '2026-11-27 11:00:00 UTC'", 5, "10.64.3.7 had 3 flows."},
		{"203.0.113.5:44000" + at, 0, "sole, complete: c-17 had 203.0.113.5:44000.\n\n  tcp 10.64.5.5:51000 as 203.0.113.5:44000 -> 198.51.100.80:443 on gw1\n    subscriber c-17 (Jane), by dhcp@2026-11-27T10:00:00Z\n"},
		{"203.0.113.5:44001" + at, 4, "2 subscribers had 203.0.113.5:44001: c-17 and c-18.\nThe inside address went from one subscriber to another while a flow lived"},
		{"203.0.113.5:44002" + at, 4, "10.64.6.6 and 10.64.6.6 in namespace blue"},
		{"203.0.113.5:44002 --netns blue" + at, 0, "Who had 203.0.113.5:44002 in namespace blue at 2026-11-27 11:03:07 UTC (that second)?\nsole, complete: 10.64.6.6 in namespace blue had 203.0.113.5:44002."},
		{"203.0.113.5:44002 --netns own" + at, 0, "sole, complete: 10.64.6.6 had 203.0.113.5:44002."},
		{"203.0.113.5:44002 --netns blau" + at, 3, "Left out, as not asked for by namespace or zone: 10.64.6.6 and 10.64.6.6 in namespace blue."},
		{"203.0.113.5:44002 --ct-zone 7 --json" + at, 3, `"ct_zone":7`},
		{"203.0.113.5:44002 --ct-zone 0" + at, 4, "They were in different namespaces (--netns): which of these is meant decides."},
		{"--src 10.64.6.6 --netns blue" + at, 0, "10.64.6.6 in namespace blue had 1 flow."},
		{"203.0.113.5:44000 --json" + at, 0, `"subscribers":["c-17"],"holders":[{"host":"gw1","subscriber":"c-17","subscriber_name":"Jane","subscriber_source":"dhcp@2026-11-27T10:00:00Z","inside_ip":"10.64.5.5"`},
		{"203.0.113.5:44000 --report s.html" + at + "&& grep -c 'one subscriber used the public address 203.0.113.5 with the port number 44000: c-17, with the inside address 10.64.5.5' s.html", 0, "1"},
		{"--subscriber c-17" + at, 0, "c-17 had 2 flows."},
		{"--subscriber Jane" + at, 0, "Jane had 1 flow."},
		{"--subscriber c-18 --from '2026-11-27 11:00:00 UTC' --to '2026-11-27 11:20:00 UTC'", 0, "c-18 had 1 flow."},
		{"--subscriber c-19" + at, 3, "none, complete: c-19 had no flow."},
		{"--subscriber c-17 --dst 198.51.100.81" + at, 3, "c-17 had no flow."},
		{"--dst 198.51.100.80:22" + at, 0, "10.64.3.8 had a flow to 198.51.100.80:22."},
		{"203.0.113.5:41000 --archive var/log/ctlogd/archive" + at, 0, "10.64.3.7 had"},
		{"203.0.113.5:41000 --archive var/log --host gw1" + at, 0, "10.64.3.7 had"},
		{"203.0.113.5:41000 --archive copies" + at, 0, "10.64.3.7 had"}, // links in it
		{"203.0.113.5:41000 --archive flows.jsonl" + at, 5, "Whether a filter kept flows out of these records then is not on record, as it is in an archive. Name the configuration of that time (-c)"},
		{"203.0.113.5:45555 --archive flows.jsonl" + at, 5, "none, incomplete: Nobody had 203.0.113.5:45555, as far as there are records."},
		{"203.0.113.5:41000 --archive flows.jsonl -c etc/ctlogd/ctlogd.yaml" + at, 0, "sole, complete: 10.64.3.7 had 203.0.113.5:41000."},
		{"203.0.113.5:45555 --archive flows.jsonl -c etc/ctlogd/ctlogd.yaml" + at, 3, "Which filters there were is by etc/ctlogd/ctlogd.yaml, which was named as the configuration of that time."},
		{"203.0.113.5:45555 --archive flows.jsonl -c then.yaml --proto udp" + at, 5, "keeps some flows out of these records (outputs.jsonl[0].filter), and one of them may be meant."},
		{"203.0.113.5:45555 --archive flows.jsonl -c then.yaml --proto tcp" + at, 3, "none, complete"},
		{"203.0.113.5:45555 -c then.yaml --archive var/log/ctlogd/archive" + at, 3, "none, complete"}, // which has its own
		{"203.0.113.5:41000 --archive flows.jsonl.gz -c etc/ctlogd/ctlogd.yaml" + at, 0, "The answer comes from reading files of JSON lines from end to end"},
		{"203.0.113.5:41000 --archive var/log/ctlogd/archive/host=gw1 --no-table" + at, 0, "10.64.3.7 had"},
		{"203.0.113.5:41000 --json" + at, 0, `"verdict":"sole","complete":true`},
		{"203.0.113.5:41000 --csv" + at, 0, "10.64.3.7"},
		{"203.0.113.5:41000 --case 77 --report r.html" + at + "&& grep -c 'Case: 77' r.html", 0, "1"},
		{"203.0.113.5:41000 --case 77 --report r.json" + at + "&& grep -c '\"case\": \"77\"' r.json", 0, "1"},
		{"--batch mail.txt", 0, `"verdict":"ambiguous"`}, // the verdicts are in the lines
		{"--batch - --csv <mail.txt", 0, "10.64.3.8 10.64.3.9"},
		{"--batch mail.txt --case 5 | grep -c '\"case\":\"5\"'", 0, "2"},
		{"--batch odd.txt", 1, `"line":"2: 203.0.113.5 0 2026-11-27 11:03:07 UTC"},"error":"\"0\" is no port`},
		{"-c etc/ctlogd/ctlogd.yaml 203.0.113.5:41000" + at, 0, "10.64.3.7 had"},
		{"203.0.113.5:41000" + at + "| head -0", 0, ""},
	} {
		out, stderr, code := o.sh(t, "ctlogd whois "+c.args)
		if code != c.code || !strings.Contains(out, c.want) || stderr != "" {
			t.Errorf("ctlogd whois %s: exit status %d, want %d, and %q:\n%s%s", c.args, code, c.code, c.want, out, stderr)
		}
	}
}

// TestWhoisRefuses: what cannot be answered is refused in a sentence that says why, and what to do.
func TestWhoisRefuses(t *testing.T) {
	o := newOffice(t)
	o.write(t, "x.jsonl", "hello\nworld\n")
	o.write(t, "empty.txt", "\n")
	o.write(t, "broken.yaml", "outputs: {\n")
	o.write(t, "none.yaml", "outputs: {syslog: [{address: \"tcp://192.0.2.1:514\"}]}\n")
	if err := os.Mkdir(filepath.Join(o.root, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	const at = ` --at "2026-11-27 11:03:07 UTC" `
	for _, c := range []struct {
		args string
		code int
		want string // in the output or on standard error
	}{
		{"203.0.113.5:41000 --archive nowhere" + at, 1, "ctlogd: there is no archive nowhere"},
		{"203.0.113.5:41000 --archive empty" + at, 1, "empty is no archive: there is no folder host=... in it; name the outputs.archive path of the firewall, or a copy of it"},
		{"203.0.113.5:41000 --archive x.jsonl" + at, 1, "x.jsonl has no records of ctlogd as JSON lines (format: flat)"},
		{"203.0.113.5:41000 --archive var/log/ctlogd/archive/*/*/*.parquet" + at, 1, "is one segment of an archive; name the folder that has host=... in it"},
		{"203.0.113.5:41000 --archive var/log/ctlogd/archive/*/*.rows" + at, 1, "is one row log of an archive; name the folder that has host=... in it"},
		{"203.0.113.5:41000 --host gw9" + at, 1, "no host gw9 there; there are: gw1"},
		{"203.0.113.5:41000 -c nowhere.yaml" + at, 1, "nowhere.yaml: no such file or directory; name the archive with --archive DIR"},
		{"203.0.113.5:41000 -c broken.yaml" + at, 1, "the configuration says whether questions are put on record: correct it, and ask again"},
		{"203.0.113.5:41000 -c none.yaml" + at, 1, "none.yaml has no outputs.archive; name an archive, or files of JSON lines, with --archive"},
		{"203.0.113.5:41000", 2, "no time: give --at TIME, or --from TIME and --to TIME; an address without a time has no holder"},
		{"203.0.113.5:41000 --at yesterday", 2, `--at: "yesterday" is no time that can be read; write it such as "2026-11-27 12:03:07 UTC", 2026-11-27T12:03:07+01:00, 1795780987 or "10m ago"`},
		{"203.0.113.5:41000 --at 2026-11-27", 2, "is no time that can be read"},
		{"203.0.113.5:41000 --at '2026-11-27 11:03:07 CST'", 2, "CST may be -06:00 or +08:00; write the offset instead"},
		{"203.0.113.5:41000 --at '2026-10-25 02:30:00 Europe/Berlin'", 2, "clocks in Europe/Berlin showed this twice: they were set back; write the time with an offset"},
		{"203.0.113.5:41000 --at '2026-07-25 02:30:00 CET'", 2, "write the offset that is meant, +01:00 or +02:00"},
		{"203.0.113.5:41000 --at 2027-11-27T11:03:07Z", 2, "2027-11-27 11:03:07 UTC lies in the future (it is 2026-11-27 13:10:17 UTC now); look at the zone of the time"},
		{"10.64.3.7:51544" + at, 3, "10.64.3.7 is a private address, which the far side does not see: who had it inside, --src 10.64.3.7 tells."},
		{"100.64.3.7:51544" + at, 3, "an address between a provider and its customers (RFC 6598)"},
		{"203.0.113.5:0" + at, 2, "nobody has port 0; leave the port out to ask for all of the address, or look it up in the mail again"},
		{"203.0.113.5:70000" + at, 2, "port 70000 is out of range; ports go from 1 to 65535"},
		{"203.0.113.5:ssh" + at, 2, `"ssh" is no port`},
		{"gw1.example.net" + at, 2, `"gw1.example.net" is no address`},
		{"" + at, 2, "nothing to look for: give an address and port, --src, --dst or --subscriber"},
		{"203.0.113.5 --subscriber c-17" + at, 2, "an address and --subscriber are two questions; ask one at a time"},
		{"203.0.113.5 --src 10.64.3.7" + at, 2, "an address and --src are two questions; ask one at a time"},
		{"203.0.113.5 203.0.113.6" + at, 2, "accepts at most 1 arg(s), received 2"},
		{"--src 10.64.3.7/33" + at, 2, `--src: "10.64.3.7/33" is no prefix`},
		{"--dst x" + at, 2, `--dst: "x" is no address`},
		{"203.0.113.5 --proto tpc" + at, 2, "--proto tpc: no such protocol"},
		{"203.0.113.5 --ct-zone red" + at, 2, "--ct-zone red: no such zone; write a number from 0 to 65535"},
		{"203.0.113.5 --within -2s" + at, 2, "--within -2s: write a time of 0 or more"},
		{"203.0.113.5 --zone Mars" + at, 2, `--zone: the zone "Mars" is not known`},
		{"203.0.113.5 --to now", 2, "--to without --from; give both"},
		{"203.0.113.5 --from now --to '1h ago'", 2, "--from is after --to"},
		{"203.0.113.5 --from now" + at, 2, "none of the others can be"},
		{"203.0.113.5 --json --csv" + at, 2, "none of the others can be"},
		{"203.0.113.5 --to now" + at, 2, "none of the others can be"},
		{"--netns blue --batch empty.txt", 2, "--batch has its questions in the file"},
		{"--proto tcp --batch empty.txt", 2, "--batch has its questions in the file"},
		{"--within -2s --batch empty.txt", 2, "--within -2s: write a time of 0 or more"},
		{"203.0.113.5 --batch empty.txt", 2, "--batch has its questions in the file"},
		{"--batch empty.txt", 1, `empty.txt: no question in it: write lines "IP port time"`},
		{"--batch nowhere.txt", 1, "read the batch: open nowhere.txt: no such file or directory"},
		{"203.0.113.5:41000 --report no/such/r.html" + at, 1, "write the report"},
	} {
		out, stderr, code := o.sh(t, "ctlogd whois "+c.args)
		if code != c.code || !strings.Contains(out+stderr, c.want) {
			t.Errorf("ctlogd whois %s: exit status %d, want %d, and %q:\n%s%s", c.args, code, c.code, c.want, out, stderr)
		}
	}
	conf, err := os.ReadFile(filepath.Join(o.root, "etc/ctlogd/ctlogd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	o.write(t, "etc/ctlogd/ctlogd.yaml", string(conf)+"filter: [{action: drop, match: {proto: udp, dst_port: 53}}]\n")
	for proto, code := range map[string]int{"tcp": 0, "udp": 5} {
		if out, stderr, got := o.sh(t, "ctlogd whois 203.0.113.5:41000 --proto "+proto+at); got != code || strings.Contains(out, "keeps some flows out of these records (filter)") != (code == 5) {
			t.Errorf("with a filter, of %s: exit status %d:\n%s%s", proto, got, out, stderr)
		}
	}
	segments, _ := filepath.Glob(o.archive + "/host=gw1/date=*/*.parquet")
	if len(segments) != 1 {
		t.Fatal(segments)
	}
	if err := os.Truncate(segments[0], 900); err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := o.sh(t, "ctlogd whois 203.0.113.5:41000"+at); code != 5 || !strings.Contains(out, "it is damaged, or only half of it was copied. Fetch it anew, and ask again.") {
		t.Errorf("half a segment: exit status %d:\n%s%s", code, out, stderr)
	}
}

// TestWhoisAudit: neither another configuration nor an archive that is named leads past the audit of the machine, and where
// its configuration cannot be read, nobody is answered.
func TestWhoisAudit(t *testing.T) {
	o := newOffice(t)
	service, err := os.ReadFile(filepath.Join(o.root, "etc/ctlogd/ctlogd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	o.write(t, "other.yaml", string(service))
	audit := filepath.Join(o.root, "audit.jsonl")
	o.write(t, "etc/ctlogd/ctlogd.yaml", string(service)+"whois: {audit: "+audit+", case: required}\n")
	const ask = `ctlogd whois 203.0.113.5:41000 --at "2026-11-27 11:03:07 UTC" `
	ways := []string{"", "-c other.yaml", "--archive var/log/ctlogd/archive", "-c nowhere.yaml --archive var/log/ctlogd/archive"}
	for i, way := range ways {
		if out, stderr, code := o.sh(t, ask+way); code != 2 || !strings.Contains(stderr, "asks for a case with each question (whois.case: required); name it with --case") {
			t.Errorf("%q without a case: exit status %d: %s%s", way, code, out, stderr)
		}
		if out, stderr, code := o.sh(t, "SUDO_USER=eve "+ask+"--case 2026-77 "+way); code != 0 {
			t.Errorf("%q: exit status %d: %s%s", way, code, out, stderr)
		}
		text, _ := os.ReadFile(audit)
		if n := strings.Count(string(text), `"sudo_user":"eve"`); n != i+1 || !strings.Contains(string(text), `"case":"2026-77"`) {
			t.Errorf("%q: %d lines:\n%s", way, n, text)
		}
	}
	if _, stderr, code := o.sh(t, "ctlogd whois --batch - </dev/null; echo 203.0.113.5 41000 1795777387 | ctlogd whois --batch -"); code != 2 {
		t.Errorf("a batch without a case: exit status %d: %s", code, stderr)
	}
	// One that nobody can append to.
	if err := os.Remove(audit); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(audit, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := o.sh(t, ask+"--case 1"); code != 1 || out != "" || !strings.Contains(stderr, "no answer without a line in the audit file") {
		t.Errorf("no audit: exit status %d: %s%s", code, out, stderr)
	}
	o.write(t, "etc/ctlogd/ctlogd.yaml", "outputs: [\n")
	if out, _, code := o.sh(t, ask+"--archive var/log/ctlogd/archive"); code != 1 || out != "" {
		t.Errorf("a broken configuration: exit status %d: %s", code, out)
	}
	o.write(t, "etc/ctlogd/ctlogd.yaml", string(service))
	if err := os.Chmod(filepath.Join(o.root, "etc/ctlogd/ctlogd.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	as := ""
	if os.Getuid() == 0 { // root without the right to read everything
		as = "setpriv --bounding-set -dac_override,-dac_read_search --inh-caps -all --reuid 65534 --clear-groups "
		if err := os.Chmod(filepath.Dir(o.root), 0o755); err != nil {
			t.Fatal(err)
		}
	} else if err := os.Chmod(filepath.Join(o.root, "etc/ctlogd/ctlogd.yaml"), 0); err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := o.sh(t, as+ask+"--archive var/log/ctlogd/archive"); code != 1 || out != "" || !strings.Contains(stderr, "ask as root, or as a member of its group") {
		t.Errorf("a configuration that may not be read: exit status %d: %s%s", code, out, stderr)
	}
}

// TestWhoisBar: on a terminal, a batch that takes its time shows how far it is, and takes that away again before an answer
// and at the end; elsewhere it shows nothing.
func TestWhoisBar(t *testing.T) {
	o := newOffice(t)
	batch := o.write(t, "mail.txt", strings.Repeat("203.0.113.5 41000 2026-11-27 11:03:07 UTC\n", 3))
	was, then := hostRoot, clock
	hostRoot, barAfter = o.root, 0
	clock = func() time.Time { at, _ := time.Parse(time.RFC3339, askedAt); return at }
	defer func() { hostRoot, barAfter, clock = was, time.Second, then }()

	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	var n int
	raw, err := terminal.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) {
			err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
			if err == nil {
				n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
			}
		}), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string)
	screen, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		text, _ := io.ReadAll(terminal) // ends with EIO when nobody has the other end
		seen <- string(text)
	}()
	var stdout bytes.Buffer
	if code := run([]string{"whois", "--no-table", "--batch", batch}, &stdout, screen); code != 0 {
		t.Errorf("exit status %d", code)
	}
	screen.Close()
	text := <-seen
	if !regexp.MustCompile(`^\ranswered \[#{13}\.{27}\] 33%\r +\r`).MatchString(text) || !strings.HasSuffix(text, "  \r") {
		t.Errorf("on the terminal: %q", text)
	}
	if n := strings.Count(stdout.String(), `"verdict":"sole"`); n != 3 || strings.Contains(stdout.String(), "answered [") {
		t.Errorf("%d answers: %s", n, &stdout)
	}
	if _, stderr, code := o.sh(t, "ctlogd whois --batch mail.txt"); stderr != "" || code != 0 {
		t.Errorf("without a terminal: exit status %d: %q", code, stderr)
	}
}

// TestDocsWhois: the commands of docs/whois.md and docs/verify.md, as they stand there, do what is shown. A line of three
// dots stands for what is left out; of verify, which tells of an archive of its own, numbers, times and keys differ.
func TestDocsWhois(t *testing.T) {
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("needs jq")
	}
	o := newOffice(t)
	if err := os.CopyFS(filepath.Join(o.root, "mnt/copy"), os.DirFS(o.archive)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/true", filepath.Join(o.root, "bin/chgrp")); err != nil { // there may be no group ctlogd here
		t.Fatal(err)
	}
	places := strings.NewReplacer(" /mnt/", " "+o.root+"/mnt/", " /etc/", " "+o.root+"/etc/", " /var/", " "+o.root+"/var/")
	blocks := regexp.MustCompile("(?ms)^ *```(\\w*)\n(.*?)^ *```$")
	indent := regexp.MustCompile(`(?m)^   `)
	for name, least := range map[string]int{"whois": 5, "verify": 3} {
		ran, last := 0, ""
		for _, b := range blocks.FindAllStringSubmatch(document(t, "../../docs/"+name+".md"), -1) {
			text := b[2]
			if strings.HasPrefix(text, "   ") {
				text = indent.ReplaceAllString(text, "")
			}
			switch {
			case b[1] == "sh":
				out, stderr, code := o.sh(t, places.Replace(text))
				told := strings.Contains(text, "ctlogd key new") // which says on stderr what to do with the key
				if (stderr != "") != told || code != 0 && code != 4 {
					t.Errorf("%s: exit status %d:\n%s%s%s", name, code, text, out, stderr)
				}
				ran, last = ran+1, strings.ReplaceAll(out, o.root, "")
			case b[1] == "" && last != "":
				want, got := text, last
				if name == "verify" {
					vary := regexp.MustCompile(`\+[0-9a-f]{8}\+\S+|\b(\d+h)?(\d+m)?\d+s\b|\d+`)
					want, got = vary.ReplaceAllString(want, "0"), vary.ReplaceAllString(got, "0")
				}
				if head, _, cut := strings.Cut(want, "...\n"); cut && strings.HasPrefix(got, head) {
					want = got
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s.md shows something else (-shown +real):\n%s", name, diff)
				}
				last = ""
			}
		}
		if ran < least {
			t.Errorf("docs/%s.md has %d commands", name, ran)
		}
	}
	if text, err := os.ReadFile(filepath.Join(o.root, "case-2026-77.html")); err != nil || !bytes.Contains(text, []byte("10.64.3.8")) {
		t.Errorf("the report: %v", err)
	}
}
