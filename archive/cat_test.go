package archive

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/bench/trace"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// everyKind returns records of each kind that the flat format knows, with each field that a record can have.
func everyKind() []*flow.Record {
	recs := trace.Kinds(3000)
	namespaces := []flow.Netns{flow.HoldNetns(3, "blue\xff"), flow.HoldNetns(7, ""), flow.HoldNetns(-1, "red")}
	for i, r := range recs {
		if i%5 == 0 {
			r.Netns = namespaces[i/5%3]
		}
		if i%7 == 0 && r.Event < flow.EventExpectNew {
			x := new(flow.Extra)
			if r.Extra != nil {
				*x = *r.Extra
			}
			x.Subscriber = flow.Subscriber{ID: "c-" + string(rune('a'+i%3)), Name: []string{"", "Jane \"J\" \xff"}[i%2], Source: "dhcp@2026-03-09T14:02:11Z", Dst: i%4 == 0}
			switch i % 6 {
			case 1:
				x.Subscriber.Next = "c-z"
			case 2:
				x.Subscriber.ID, x.Subscriber.Next = "", "c-y"
			}
			r.Extra = x
		}
	}
	return recs
}

func lines(t *testing.T, drop []string, recs []*flow.Record) []string {
	t.Helper()
	enc, err := format.New("flat", format.Options{Host: "gw1", Observer: "obs", Fields: format.Fields{Drop: append([]string{"ct_id"}, drop...)}})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range recs {
		out = append(out, string(enc.Append(nil, r)))
	}
	slices.Sort(out)
	return out
}

func readLines(t *testing.T, drop []string, path string) []string {
	t.Helper()
	enc, err := format.New("flat", format.Options{Host: "gw1", Observer: "obs", Fields: format.Fields{Drop: append([]string{"ct_id"}, drop...)}})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	if err := Each(path, func(o *Origin, r *flow.Record) error {
		// What was not UTF-8 is U+FFFD itself here, and its escape in what was encoded from the record.
		out = append(out, strings.ReplaceAll(string(enc.Append(nil, r)), "\ufffd", `\ufffd`))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func compareLines(t *testing.T, got, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d records, want %d", len(got), len(want))
	}
	bad := 0
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
			if bad++; bad > 5 {
				t.FailNow()
			}
		}
	}
}

func newTestLog(t testing.TB, dir string, drop []string, recs []*flow.Record) string {
	t.Helper()
	l, err := createRowLog(dir, Origin{Version: SchemaVersion, Host: "gw1", Observer: "obs", Sequence: 7, Interval: Duration(time.Hour), Dropped: drop, Created: Time(trace.Default().Start.UnixNano())})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.append(recs); err != nil {
		t.Fatal(err)
	}
	l.file.Close()
	return l.path
}

// TestEveryField: each kind of record comes back from the row log and from the segment with the same flat JSON.
func TestEveryField(t *testing.T) {
	recs := everyKind()
	dir := t.TempDir()
	path := newTestLog(t, dir, nil, recs)
	want := lines(t, nil, recs)
	compareLines(t, readLines(t, nil, path), want)
	seg, date, err := Seal(path)
	if err != nil {
		t.Fatal(err)
	}
	compareLines(t, readLines(t, nil, filepath.Join(dir, "date="+date, seg.File)), want)
	gaps := 0
	for _, l := range want {
		if strings.Contains(l, `"event":"gap"`) {
			gaps++
		}
	}
	if len(seg.Gaps) != gaps || gaps == 0 {
		t.Errorf("the facts have %d gaps, want %d", len(seg.Gaps), gaps)
	}
}

// TestDropped: what fields.drop names is in no column; the other fields come back.
func TestDropped(t *testing.T) {
	recs := everyKind()
	dir := t.TempDir()
	drop := []string{"dst_ip", "dst_port", "nat_dst_ip", "nat_dst_port", "status", "tcp_state", "icmp_type", "icmp_code", "gre_dst_key", "nat_gre_dst_key"}
	if err := CheckDrop(drop); err != nil {
		t.Fatal(err)
	}
	path := newTestLog(t, dir, drop, recs)
	seg, date, err := Seal(path)
	if err != nil {
		t.Fatal(err)
	}
	without := append(slices.Clone(drop), "flow_id")
	compareLines(t, readLines(t, without, filepath.Join(dir, "date="+date, seg.File)), lines(t, without, recs))
	if err := CheckDrop([]string{"nat_src_ip"}); err == nil {
		t.Error("nat_src_ip can be dropped")
	}
}

// TestSealSame: the same row log makes the same segment, byte for byte.
func TestSealSame(t *testing.T) {
	dir := t.TempDir()
	path := newTestLog(t, dir, nil, everyKind())
	a, _, err := Seal(path)
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := Seal(path)
	if err != nil {
		t.Fatal(err)
	}
	if a.SHA256 != b.SHA256 || a.File != b.File {
		t.Errorf("sealed twice: %s %s and %s %s", a.File, a.SHA256, b.File, b.SHA256)
	}
}
