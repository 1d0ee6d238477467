package subscriber

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// file is a source's file in the hands of a test, with a clock of its own: seconds since 1970.
type file struct {
	*testing.T
	w    *watcher
	path string
	logs *observer.ObservedLogs
}

func newFile(t *testing.T, cfg Config) *file {
	t.Helper()
	cfg.Path = filepath.Join(t.TempDir(), "leases")
	if cfg.History == 0 {
		cfg.History = time.Hour
	}
	if cfg.Limit == 0 {
		cfg.Limit = DefaultLimit
	}
	core, logs := observer.New(zap.WarnLevel)
	f := &file{T: t, w: newWatcher(New(cfg, zap.New(core))), path: cfg.Path, logs: logs}
	f.w.now = func() time.Time { return time.Unix(2000, 0) }
	return f
}

// at writes the file at a time, and has it read.
func (f *file) at(sec int64, text string) error {
	f.Helper()
	if err := os.WriteFile(f.path, []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
	return f.look(sec)
}

func (f *file) look(sec int64) error {
	f.Helper()
	if err := os.Chtimes(f.path, time.Unix(sec, 0), time.Unix(sec, 0)); err != nil {
		f.Fatal(err)
	}
	return f.w.look(context.Background())
}

func (f *file) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// had wants the address to have been theirs at a time in seconds; "" is nobody.
func (f *file) had(addr string, sec float64, want string) {
	f.Helper()
	if got := who(f.w.source.table.Load(), addr, int64(sec*1e9)); got != want {
		f.Errorf("%s at %v: %q, want %q", addr, sec, got, want)
	}
}

func TestCSV(t *testing.T) {
	f := newFile(t, Config{Type: "csv"})
	f.must(f.at(100, "prefix,from,until,id,name\n# customers\n\n100.64.0.0/24,,,office,\"The \"\"Office\"\", Ltd\"\n"+
		"100.64.0.7,1970-01-01T00:00:10Z,1970-01-01T00:01:00Z,alice,\n100.64.0.7,1970-01-01T00:01:00Z,,bob,Bob\r\n2001:db8:42::/56,,,carol\n"))
	f.had("100.64.0.7", 9, "office")
	f.had("100.64.0.7", 59, "alice")
	f.had("100.64.0.7", 60, "bob")
	f.had("100.64.0.8", 1, "office")
	f.had("2001:db8:42:ff::1", 1, "carol")
	f.had("2001:db8:43::1", 1, "")
	table := f.w.source.table.Load()
	hi, lo := words(mustPrefix("100.64.0.9").Addr())
	if g, s := table.at(hi, lo, 1); g.nameOf(s) != `The "Office", Ltd` {
		t.Errorf("name %q", g.nameOf(s))
	}
	if table.source != "csv@1970-01-01T00:01:40.000Z" {
		t.Errorf("source %q", table.source)
	}
	// A row that is gone, one that has changed hands without saying when, a new one.
	f.must(f.at(200, "100.64.0.0/24,,,shop,\n100.64.0.7,1970-01-01T00:01:00Z,,bob,Bob\n100.65.0.1,,,dave,\n"))
	f.had("100.64.0.8", 99, "office")
	f.had("100.64.0.8", 150, "") // one or the other
	f.had("100.64.0.8", 200, "shop")
	f.had("2001:db8:42:ff::1", 199, "carol")
	f.had("2001:db8:42:ff::1", 200, "")
	f.had("100.65.0.1", 1, "dave")
	f.had("100.64.0.7", 59, "alice")
}

// A row of the future that is taken out names nobody, then as now.
func TestTakenOutBeforeItBegins(t *testing.T) {
	f := newFile(t, Config{Type: "csv"})
	f.must(f.at(100, "100.64.0.7,,1970-01-01T00:03:20Z,alice,\n100.64.0.7,1970-01-01T00:05:00Z,,bob,\n"))
	f.had("100.64.0.7", 301, "bob")
	f.must(f.at(210, "100.64.0.7,,1970-01-01T00:03:20Z,alice,\n"))
	f.had("100.64.0.7", 150, "alice")
	f.had("100.64.0.7", 301, "")
	// Two of them, of which the first is taken out, and then both.
	f.must(f.at(215, "100.64.0.7,,1970-01-01T00:03:20Z,alice,\n100.64.0.7,1970-01-01T00:05:00Z,1970-01-01T00:06:00Z,bob,\n"+
		"100.64.0.7,1970-01-01T00:06:00Z,,dora,\n"))
	f.had("100.64.0.7", 301, "bob")
	f.had("100.64.0.7", 361, "dora")
	f.must(f.at(216, "100.64.0.7,,1970-01-01T00:03:20Z,alice,\n100.64.0.7,1970-01-01T00:06:00Z,,dora,\n"))
	f.had("100.64.0.7", 301, "")
	f.had("100.64.0.7", 361, "dora")
	f.must(f.at(217, "100.64.0.7,,1970-01-01T00:03:20Z,alice,\n"))
	f.had("100.64.0.7", 361, "")
	f.had("100.64.0.7", 150, "alice")
	f.must(f.at(220, "100.64.0.7,,1970-01-01T00:03:20Z,alice,\n100.64.0.7,1970-01-01T00:05:00Z,,carol,\n"))
	f.had("100.64.0.7", 301, "carol")
}

// TestDnsmasq has an address move, and leases that end, in a file that tells no beginnings.
func TestDnsmasq(t *testing.T) {
	f := newFile(t, Config{Type: "dnsmasq"})
	f.must(f.at(100, "1000 02:00:00:00:00:0a 100.64.0.7 a 01:02\n900 02:00:00:00:00:0c 100.64.0.8 * *\n"+
		"duid 00:01:00:01:2f:00:00:00:02:00:00:00:00:01\n0 5128001 2001:db8::7 six 00:01:00:01:2f:00:00:00:02:00:00:00:00:0d\n"))
	f.had("100.64.0.7", 99, "")
	f.had("100.64.0.7", 100, "02:00:00:00:00:0a")
	f.had("2001:db8::7", 5000, "02:00:00:00:00:0d")
	// Renewed; the other one is given back.
	f.must(f.at(300, "1300 02:00:00:00:00:0a 100.64.0.7 a 01:02\n"))
	f.had("100.64.0.8", 299, "02:00:00:00:00:0c")
	f.had("100.64.0.8", 300, "")
	f.had("100.64.0.7", 1200, "02:00:00:00:00:0a")
	// It moves from hand to hand between two states of the file: who had it in between is not known.
	f.must(f.at(400, "1400 02:00:00:00:00:0b 100.64.0.7 b *\n"))
	f.had("100.64.0.7", 299, "02:00:00:00:00:0a")
	f.had("100.64.0.7", 350, "")
	f.had("100.64.0.7", 400, "02:00:00:00:00:0b")
	// One that was free is theirs since it was seen free.
	f.must(f.at(500, "1400 02:00:00:00:00:0b 100.64.0.7 b *\n1500 02:00:00:00:00:0e 100.64.0.8 e *\n"))
	f.had("100.64.0.8", 399, "")
	f.had("100.64.0.8", 401, "02:00:00:00:00:0e")

	long := newFile(t, Config{Type: "dnsmasq", LeaseTime: 50 * time.Second, ID: "hostname"})
	long.must(long.at(100, "140 02:00:00:00:00:0a 100.64.0.7 a *\n"))
	long.had("100.64.0.7", 89, "")
	long.had("100.64.0.7", 90, "a")
	long.had("100.64.0.7", 140, "")
}

const keaHead = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context,pool_id\n"

// TestKea reads a file to which rows are appended, in the midst of a row as well, and one that takes its place.
func TestKea(t *testing.T) {
	f := newFile(t, Config{Type: "kea"})
	row := func(addr, mac string, valid, expire, state int) string {
		return fmt.Sprintf("%s,%s,01:02,%d,%d,1,0,0,host&#x2cx,%d,,0\n", addr, mac, valid, expire, state)
	}
	text := keaHead + row("100.64.0.7", "02:00:00:00:00:0a", 100, 200, 0)
	f.must(f.at(100, text))
	f.had("100.64.0.7", 99, "")
	f.had("100.64.0.7", 100, "02:00:00:00:00:0a")
	f.had("100.64.0.7", 200, "")
	next := row("100.64.0.7", "02:00:00:00:00:0a", 100, 250, 0)
	f.must(f.at(150, text+next[:20]))
	f.had("100.64.0.7", 200, "")
	text += next
	f.must(f.at(151, text))
	f.had("100.64.0.7", 249, "02:00:00:00:00:0a")
	if n := f.w.lines; n != 3 {
		t.Errorf("line %d, want 3: what was read is read again", n)
	}
	text += row("100.64.0.7", "02:00:00:00:00:0a", 0, 150, 0) + row("100.64.0.7", "02:00:00:00:00:0b", 100, 320, 0) + row("100.64.0.9", "02:00:00:00:00:0f", 150, 350, 0)
	f.must(f.at(210, text))
	f.had("100.64.0.7", 209, "02:00:00:00:00:0a")
	f.had("100.64.0.7", 215, "")
	f.had("100.64.0.7", 220, "02:00:00:00:00:0b")
	// Kea has cleaned up: another file, without what is over.
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	f.must(f.at(300, keaHead+row("100.64.0.7", "02:00:00:00:00:0b", 100, 320, 0)+row("100.64.0.8", "02:00:00:00:00:0c", 1<<32-1, 1<<32+100, 0)))
	f.had("100.64.0.7", 150, "02:00:00:00:00:0a")
	f.had("100.64.0.7", 319, "02:00:00:00:00:0b")
	f.had("100.64.0.9", 299, "02:00:00:00:00:0f")
	f.had("100.64.0.9", 301, "")

	six := newFile(t, Config{Type: "kea", ID: "client_id"})
	six.must(six.at(100, "address,duid,valid_lifetime,expire,subnet_id,pref_lifetime,lease_type,iaid,prefix_len,fqdn_fwd,fqdn_rev,hostname,hwaddr,state,user_context,hwtype,hwaddr_source,pool_id\n"+
		"2001:db8:1::7,00:03:00:01:02:00:00:00:00:0a,100,200,1,50,0,1,128,0,0,,,0,,1,0,0\n"+
		"2001:db8:42::,00:03:00:01:02:00:00:00:00:0a,100,200,1,50,2,1,56,0,0,,,0,,1,0,0\n"))
	six.had("2001:db8:1::7", 150, "00:03:00:01:02:00:00:00:00:0a")
	six.had("2001:db8:42:ff::1", 150, "00:03:00:01:02:00:00:00:00:0a")
}

func TestISC(t *testing.T) {
	f := newFile(t, Config{Type: "isc"})
	lease := func(addr, mac, state, starts, ends string) string {
		return fmt.Sprintf("lease %s {\n  starts 4 1970/01/01 %s;\n  ends 4 1970/01/01 %s;\n  cltt 4 1970/01/01 %s;\n  binding state %s;\n  next binding state free;\n"+
			"  rewind binding state free;\n  hardware ethernet %s;\n  uid \"\\001\\002x\\\"\";\n  set vendor = \"MSFT {\";\n  client-hostname \"pc\";\n  on commit {\n    set x = 1;\n  }\n}\n", addr, starts, ends, starts, state, mac)
	}
	text := "# The format of this file is documented in the dhcpd.leases(5) manual page.\nauthoring-byte-order little-endian;\nserver-duid \"\\000\\001\";\n\n" +
		lease("100.64.0.7", "02:00:00:00:00:0a", "active", "00:01:40", "00:05:00")
	f.must(f.at(100, text))
	f.had("100.64.0.7", 99, "")
	f.had("100.64.0.7", 100, "02:00:00:00:00:0a")
	text += lease("100.64.0.7", "02:00:00:00:00:0a", "free", "00:01:40", "00:03:00")
	f.must(f.at(180, text))
	f.had("100.64.0.7", 179, "02:00:00:00:00:0a")
	f.had("100.64.0.7", 181, "")
	text += lease("100.64.0.7", "02:00:00:00:00:0b", "active", "00:03:20", "00:10:00")
	text += "lease 100.64.0.8 {\n  starts epoch 300; # Thu\n  ends never;\n  binding state active;\n  uid \"\\001\\002\";\n}\n"
	text += "ia-na \"\\001\\000\\000\\000\\000\\003\\000\\001\\002\\000\\000\\000\\000\\015\" {\n  cltt 4 1970/01/01 00:04:00;\n  iaaddr 2001:db8::7 {\n    binding state active;\n    preferred-life 100;\n    max-life 200;\n    ends 4 1970/01/01 00:08:00;\n  }\n}\n"
	f.must(f.at(400, text))
	f.had("100.64.0.7", 250, "02:00:00:00:00:0b")
	f.had("100.64.0.7", 150, "02:00:00:00:00:0a")
	f.had("100.64.0.8", 1e6, "01:02")
	f.had("2001:db8::7", 300, "02:00:00:00:00:0d")
	f.had("2001:db8::7", 239, "")
	if n := f.w.source.Broken.Load(); n != 0 {
		t.Errorf("%d broken: %v", n, f.logs.All())
	}
}

// TestDocumentedCSV reads the example of docs/subscribers.md.
func TestDocumentedCSV(t *testing.T) {
	page, err := os.ReadFile("../docs/subscribers.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(page), "```csv\n")
	text, _, closed := strings.Cut(text, "```")
	if !found || !closed {
		t.Fatal("docs/subscribers.md has no example")
	}
	f := newFile(t, Config{Type: "csv"})
	f.must(f.at(100, text))
	f.had("100.64.0.7", 50, "alice")
	f.had("100.64.0.8", float64(time.Date(2026, 3, 31, 21, 59, 59, 0, time.UTC).Unix()), "bob")
	f.had("100.64.0.8", float64(time.Date(2026, 3, 31, 22, 0, 0, 0, time.UTC).Unix()), "")
	f.had("2001:db8:7::1", 50, "alice")
	f.had("100.64.200.1", 50, "wholesale")
	if n := f.w.source.Broken.Load(); n != 0 {
		t.Errorf("%d broken lines: %v", n, f.logs.All())
	}
}

// TestBrokenLines wants each named by its place, and the rest of the file read.
func TestBrokenLines(t *testing.T) {
	for kind, test := range map[string]struct{ good, bad string }{
		"csv":     {"100.64.0.7,,,a,\n", "100.64.0.300,,,b,\n100.64.0.1/24,,,b,\n100.64.0.8,yesterday,,b,\n100.64.0.8,,,,\nx\n100.64.0.8,,,\"b,\n100.64.0.8,,," + strings.Repeat("x", 300) + ",\n" + strings.Repeat("x", 200_000) + "\n"},
		"dnsmasq": {"1000 02:00:00:00:00:0a 100.64.0.7 a *\n", "x\n1000 02:00 100.64.0.8\n9999999999999999999999 02 100.64.0.8 a *\n-5 02 100.64.0.8 a *\n1000 02:00:00:00:00:0a fe80::1%eth0 a *\n1000 * 100.64.0.8 * *\n1 2 3 4 5\nx y z 1 2\n"},
		"kea":     {keaHead + "100.64.0.7,a,,100,200,1,0,0,,0,,0\n", "1,2\n100.64.0.8,a,,x,200,1,0,0,,0,,0\n100.64.0.8,a,,100,x,1,0,0,,0,,0\n100.64.0.8,,,100,200,1,0,0,,0,,0\n,,,,\n\"\n100.64.0.8,a,,100,99999999999999999,1,0,0,,0,,0\n100.64.0.8,a,\"x\"y,100,200,1,0,0,,0,,0\n"},
		"isc":     {"lease 100.64.0.7 {\n  starts 4 1970/01/01 00:01:40;\n  ends never;\n  binding state active;\n  hardware ethernet a;\n}\n", strings.Repeat("}\n", 6) + "lease 1.2.3 {\n}\nlease 100.64.0.8 {\nbinding state active;\nends tomorrow;\n}\n"},
	} {
		t.Run(kind, func(t *testing.T) {
			f := newFile(t, Config{Type: kind})
			f.must(f.at(150, test.good+test.bad))
			if kind != "isc" {
				f.must(f.at(151, test.good+test.bad+strings.TrimPrefix(strings.ReplaceAll(test.good, "100.64.0.7", "100.64.0.9"), keaHead)))
				f.had("100.64.0.9", 160, map[string]string{"csv": "a", "dnsmasq": "02:00:00:00:00:0a", "kea": "a"}[kind])
			}
			if got := f.w.source.Broken.Load(); got < 8 || f.logs.Len() == 0 {
				t.Errorf("%d broken lines counted, %d told, want 8", got, f.logs.Len())
			}
			if at := f.logs.All()[0].ContextMap()["at"]; !strings.HasPrefix(fmt.Sprint(at), f.path+":") {
				t.Errorf("told without a place: %v", f.logs.All()[0])
			}
			if f.logs.Len() > 2*(told+1) {
				t.Errorf("%d lines of log", f.logs.Len())
			}
		})
	}
}

// TestBrokenLineNamesNobody wants the prefix of a broken line to be nobody's while it stands there: neither the one before nor the
// shorter prefix around it tells who has it now.
func TestBrokenLineNamesNobody(t *testing.T) {
	f := newFile(t, Config{Type: "csv"})
	net := "100.64.0.0/24,,,net,\n"
	for _, line := range []string{"100.64.0.7,yesterday,,b,", "100.64.0.7,,,,", "100.64.0.7", "100.64.0.7,,,\"b,", " \"100.64.0.7\",,,b,c,d", "100.64.0.7/32;;;b;",
		"100.64.0.7,,," + strings.Repeat("x", 300) + ",", "100.64.0.7,,," + strings.Repeat("x", 200_000) + ",", "100.64.0.7,1970-01-01T00:01:00Z,1970-01-01T00:00:10Z,b,"} {
		one := newFile(t, Config{Type: "csv"})
		one.must(one.at(100, net+line+"\n100.64.0.7,,1970-01-01T00:00:50Z,a,\n"))
		one.had("100.64.0.7", 20, "?") // the good line may be of before, or of after
		one.had("100.64.0.7", 200, "?")
		one.had("100.64.0.8", 200, "net")
	}
	good := net + "100.64.0.7,,,alice,\n"
	f.must(f.at(100, good))
	f.must(f.at(200, net+"100.64.0.7,,,,Alice\n"))
	f.must(f.at(250, net+"100.64.0.7,,,,Alice\n100.64.0.9,,,dave,\n"))
	f.had("100.64.0.7", 99, "alice")
	f.had("100.64.0.7", 150, "?") // the line may have been changed any time since
	f.had("100.64.0.7", 260, "?")
	f.must(f.at(300, net+"100.64.0.7,,,bob,\n"))
	f.had("100.64.0.7", 99, "alice")
	f.had("100.64.0.7", 299, "?")
	f.had("100.64.0.7", 300, "bob")
	f.must(f.at(400, net+"100.64.0.7/24,,,bob,\n100.64.0.9,,,dave,\n")) // which of them is meant?
	f.had("100.64.0.8", 401, "?")
	f.had("100.64.0.9", 401, "dave")
	f.w.source.cfg.History = 0
	f.must(f.at(1990, net))
	f.must(f.at(1995, net))
	if table := f.w.source.table.Load(); table.unclear != nil {
		t.Errorf("%v is remembered for ever", table.unclear)
	}

	k := newFile(t, Config{Type: "kea"})
	row := func(addr, mac string, valid, expire string) string {
		return fmt.Sprintf("%s,%s,,%s,%s,1,0,0,host,0,,0\n", addr, mac, valid, expire)
	}
	text := keaHead + row("100.64.0.7", "a", "100", "300")
	k.must(k.at(210, text))
	text += row("100.64.0.7", "b", "100", "x")
	k.must(k.at(250, text))
	k.had("100.64.0.7", 209, "a")
	k.had("100.64.0.7", 220, "?")
	k.had("100.64.0.7", 290, "?")
	text += row("100.64.0.7", "c", "100", "380")
	k.must(k.at(290, text))
	k.had("100.64.0.7", 279, "?")
	k.had("100.64.0.7", 281.5, "c")
	text += "100.64.0.7,\"d\n" + row("100.64.0.7", "c", "0", "320") // given back
	k.must(k.at(330, text))
	k.had("100.64.0.7", 329, "?")
	k.had("100.64.0.7", 331, "")

	i := newFile(t, Config{Type: "isc"})
	lease := "lease 100.64.0.7 {\n  starts 4 1970/01/01 00:01:40;\n  ends never;\n  binding state active;\n  hardware ethernet a;\n}\n"
	i.must(i.at(100, lease))
	i.must(i.at(200, lease+strings.Replace(lease, "starts 4", "starts", 1)))
	i.had("100.64.0.7", 99, "")
	i.had("100.64.0.7", 201, "?")

	d := newFile(t, Config{Type: "dnsmasq"})
	other := "1000 02:00:00:00:00:0b 100.64.0.8 b *\n"
	d.must(d.at(100, "1000 02:00:00:00:00:0a 100.64.0.7 a *\n"+other))
	d.must(d.at(200, "? 02:00:00:00:00:0a 100.64.0.7 a *\n"+other))
	d.had("100.64.0.7", 99, "")
	d.had("100.64.0.7", 201, "?")
	d.had("100.64.0.8", 201, "02:00:00:00:00:0b")
}

// TestBrokenFiles wants the old table to stay, and the failure to be told.
func TestBrokenFiles(t *testing.T) {
	good := "100.64.0.7,,,a,\n"
	for name, spoil := range map[string]func(t *testing.T, path string){
		"gone":      func(t *testing.T, path string) { os.Remove(path) },
		"directory": func(t *testing.T, path string) { os.Remove(path); os.Mkdir(path, 0o700) },
		"fifo":      func(t *testing.T, path string) { os.Remove(path); syscall.Mkfifo(path, 0o600) },
		"device":    func(t *testing.T, path string) { os.Remove(path); os.Symlink("/dev/zero", path) },
		"garbage": func(t *testing.T, path string) {
			os.WriteFile(path, []byte(strings.Repeat("\x00\xffgarbage\n", 10_000)), 0o600)
			os.Chtimes(path, time.Unix(300, 0), time.Unix(300, 0))
		},
		"few lines, and each of them broken": func(t *testing.T, path string) {
			os.WriteFile(path, []byte("prefix,from,until,id,name\n# customers\n\n100.64.0.7;;;a\n"), 0o600)
			os.Chtimes(path, time.Unix(300, 0), time.Unix(300, 0))
		},
		"garbage of 2 GiB without a newline": func(t *testing.T, path string) {
			os.Truncate(path, 2<<30)
			os.Chtimes(path, time.Unix(300, 0), time.Unix(300, 0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "garbage of") && os.Getenv("CTLOGD_LONG") == "" {
				t.Skip("takes seconds; set CTLOGD_LONG=1")
			}
			f := newFile(t, Config{Type: "csv"})
			f.must(f.at(100, good))
			spoil(t, f.path)
			err := f.w.look(context.Background())
			if strings.HasPrefix(name, "garbage of") { // one long line, which is broken, behind the good one's bytes
				f.had("100.64.0.7", 200, "a")
				return
			}
			if err == nil {
				t.Error("no error")
			}
			f.had("100.64.0.7", 500, "a")
			os.RemoveAll(f.path)
			f.must(f.at(400, "100.64.0.7,,,b,\n"))
			f.had("100.64.0.7", 450, "b")
		})
	}
}

// TestLimit wants a file with too many leases refused as a whole.
func TestLimit(t *testing.T) {
	f := newFile(t, Config{Type: "csv", Limit: 2})
	f.must(f.at(100, "100.64.0.1,,,a,\n100.64.0.2,,,b,\n"))
	var full errFull
	if err := f.at(200, "100.64.0.1,,,x,\n100.64.0.2,,,y,\n100.64.0.3,,,z,\n"); !errors.As(err, &full) {
		t.Fatalf("error %v", err)
	}
	f.had("100.64.0.1", 300, "a")
	f.had("100.64.0.3", 300, "")
}

// TestBeingWritten wants a file that somebody is writing in place to be left alone until that is over, within reason.
func TestBeingWritten(t *testing.T) {
	f := newFile(t, Config{Type: "dnsmasq"})
	f.must(f.at(100, "0 02:00:00:00:00:0a 100.64.0.7 a *\n"))
	now := time.Unix(1000, 0)
	f.w.now = func() time.Time { return now }
	if err := os.WriteFile(f.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.look(1000); !errors.Is(err, errUnsettled) {
		t.Fatalf("error %v of a file that was emptied this moment", err)
	}
	f.had("100.64.0.7", 2000, "02:00:00:00:00:0a")
	f.must(f.at(999, "0 02:00:00:00:00:0a 100.64.0.7 a *\n0 02:00:00:00:00:0b 100.64.0.8 b *\n"))
	f.had("100.64.0.7", 2000, "02:00:00:00:00:0a")
	f.had("100.64.0.8", 2000, "02:00:00:00:00:0b")
	for sec := range 6 { // without rest
		now = time.Unix(int64(2000+sec), 0)
		err := f.at(int64(2000+sec), "")
		if want := sec < 5; errors.Is(err, errUnsettled) != want {
			t.Fatalf("after %d s: %v", sec, err)
		}
	}
}

// midway does something whenever it is asked whether it has ended: in the midst of a file, every 256 lines.
type midway struct {
	context.Context
	do func()
}

func (m midway) Err() error {
	m.do()
	return m.Context.Err()
}

// TestRenameWhileReading puts another file in the place of one that is being read: all of the one is shown, then all of the other.
func TestRenameWhileReading(t *testing.T) {
	for _, kind := range []string{"csv", "kea"} {
		t.Run(kind, func(t *testing.T) {
			text := func(id string) string {
				var b strings.Builder
				if kind == "kea" {
					b.WriteString(keaHead)
				}
				for i := range 1000 {
					addr := fmt.Sprintf("100.64.%d.%d", i/250, i%250)
					if kind == "kea" {
						fmt.Fprintf(&b, "%s,%s,,900,1000,1,0,0,,0,,0\n", addr, id)
					} else {
						fmt.Fprintf(&b, "%s,,,%s,\n", addr, id)
					}
				}
				return b.String()
			}
			f := newFile(t, Config{Type: kind})
			f.must(os.WriteFile(f.path, []byte(text("a")), 0o600))
			f.must(os.WriteFile(f.path+".new", []byte(text("b")), 0o600))
			times := func(path string, sec int64) { f.must(os.Chtimes(path, time.Unix(sec, 0), time.Unix(sec, 0))) }
			times(f.path, 150)
			times(f.path+".new", 200)
			f.must(f.w.look(midway{t.Context(), func() { _ = os.Rename(f.path+".new", f.path) }}))
			if _, err := os.Stat(f.path + ".new"); err == nil {
				t.Fatal("nothing was renamed")
			}
			all := func(id string) {
				t.Helper()
				for i := range 1000 {
					f.had(fmt.Sprintf("100.64.%d.%d", i/250, i%250), 250, id)
				}
			}
			all("a")
			f.must(f.w.look(context.Background()))
			all("b")
		})
	}
}

// TestMendedInPlace wants a file that could not be read for long to be waited for when somebody writes to it again.
func TestMendedInPlace(t *testing.T) {
	f := newFile(t, Config{Type: "csv"})
	f.must(f.at(100, "100.64.0.1,,,a,\n100.64.0.2,,,b,\n"))
	now := time.Unix(1000, 0)
	f.w.now = func() time.Time { return now }
	broken := strings.Repeat("\"\n", hopeless)
	if err := f.at(998, broken); err == nil || errors.Is(err, errUnsettled) {
		t.Fatalf("error %v of a file that is of no use", err)
	}
	now = now.Add(time.Hour)
	if err := f.at(now.Unix(), "100.64.0.1,,,a,\n"); !errors.Is(err, errUnsettled) {
		t.Fatalf("error %v of a file of which half is written", err)
	}
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	if err := f.w.look(context.Background()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("error %v of a file that is gone", err)
	}
	now = now.Add(time.Hour)
	if err := f.at(now.Unix(), "100.64.0.1,,,a,\n"); !errors.Is(err, errUnsettled) {
		t.Fatalf("error %v of a file of which half is written, after it was gone", err)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add(uint8(0), []byte("100.64.0.7,1970-01-01T00:00:10Z,,\"a\"\"b\",x\n"))
	f.Add(uint8(1), []byte("1000 02:00:00:00:00:0a 100.64.0.7 a 01:02\nduid 00:01\n0 1 2001:db8::1 * 00:03:00:01:02:00:00:00:00:0d"))
	f.Add(uint8(2), []byte(keaHead+"100.64.0.7,a,,100,200,1,0,0,,0,,0\n100.64.0.7,a,,0,200,1,0,0,,0,,0\n"))
	f.Add(uint8(3), []byte("lease 100.64.0.7 {\nstarts 4 1970/01/01 00:01:40;\nends never;\nbinding state active;\nuid \"\\001\\\"\";\n}\nia-na \"12345\" {\niaaddr ::1 {\n}\n}\n"))
	f.Fuzz(func(t *testing.T, kind uint8, text []byte) {
		p := newParser(&Config{Type: Types[kind%4]})
		table := newTable()
		for line := range strings.Lines(string(text)) {
			if q := p.about([]byte(line)); q.IsValid() && q != q.Masked() {
				t.Fatalf("prefix %s of %q", q, line)
			}
			_ = p.line([]byte(strings.TrimRight(line, "\r\n")), func(c *claim) error {
				if err := c.check(); err != nil {
					return err
				}
				if c.until != 0 && c.until < 0 || c.from < 0 {
					t.Fatalf("times %d, %d", c.from, c.until)
				}
				e := edit{prefix: prefixOf(c.prefix), from: c.from, until: c.until, id: c.id, name: c.name}
				if c.over {
					e.id = ""
				}
				if e.until == 0 {
					e.until = forever
				}
				table = table.with([]edit{e}, 0, func() {})
				if g, s := table.latest(e.prefix); s != nil && (g.idOf(s) == "" || len(g.nameOf(s)) > MaxText) {
					t.Fatalf("%q %q", g.idOf(s), g.nameOf(s))
				}
				return nil
			})
		}
		_ = p.end()
	})
}

// TestSurvey wants what `ctlogd check` says of a file: how many leases there are, and where what is wrong.
func TestSurvey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	for _, test := range []struct {
		kind, text string
		leases     int
		err        string // parts of it
	}{
		{"csv", "100.64.0.7,,,a,\n100.64.0.8,,,b,\n", 2, ""},
		{"csv", "100.64.0.7,,,a,\n100.64.0.8,yesterday,,b,\nx,,,c,\n", 1, "2 broken lines beside 1 leases|" + path + `:2: "yesterday" is no time, write one|` + path + `:3: "x" is no address|; mend it`},
		{"csv", "100.64.0.7;;;a\n", 0, "1 lines are broken, and none is not|" + path + ":1: 1 fields"},
		{"kea", "", 0, "no heading"},
		{"kea", keaHead + "100.64.0.7,a,,100,4999999999,1,0,0,,0,,0\n", 1, ""},
	} {
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		leases, err := (&Config{Type: test.kind, Path: path, History: time.Hour, Limit: 10}).Survey(context.Background())
		if leases != test.leases || (err == nil) != (test.err == "") {
			t.Errorf("%q: %d leases, %v", test.text, leases, err)
			continue
		}
		for part := range strings.SplitSeq(test.err, "|") {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%q: %v, without %q", test.text, err, part)
			}
		}
	}
}
