package archive

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestNote: a note covers the catalog and the row log up to its moment, signed by all keys there are; what was altered is
// refused.
func TestNote(t *testing.T) {
	dir := t.TempDir()
	private, public, err := NewKey("gw1")
	if err != nil {
		t.Fatal(err)
	}
	private2, public2, err := NewKey("gw1")
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := NewKey("gw1")
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions(dir)
	o.Retention = Retention{}
	o.Key = filepath.Join(t.TempDir(), "archive.key")
	if err := os.WriteFile(o.Key, []byte(private+"\n"+private2+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := openTest(t, o)
	appendTest(t, w, 0, 75)
	await(t, func() bool { return w.Stats.Seals.Load() == 1 && w.Stats.Checkpointed.Load() != 0 })
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := r.Hosts[0]
	msg, err := h.LastNote()
	if err != nil {
		t.Fatal(err)
	}
	for _, keys := range [][]string{{public}, {public2}, {stranger, public}, {public, public2}, nil} {
		n, err := ReadNote(msg, keys...)
		if err != nil {
			t.Fatalf("%v:\n%s", err, msg)
		}
		if n.Host != "gw1" || n.Lines != 2 || n.Hash != h.Lines[1].Hash || n.Time != Time(testNow.UnixNano()) || len(n.Rows) != 1 {
			t.Fatalf("%+v:\n%s", n, msg)
		}
		if sum, err := new(rowHash).upTo(h.RowLogs[0], n.Rows[0].Bytes); err != nil || sum != n.Rows[0].SHA256 || n.Rows[0].Sequence != 2 {
			t.Errorf("the row log has the hash %s, %v; the note says %+v", sum, err, n.Rows[0])
		}
		if (len(keys) == 0) != (len(n.By) == 0) {
			t.Errorf("with %d keys it is verified by %v", len(keys), n.By)
		}
	}
	if _, err := ReadNote(msg, stranger); err == nil {
		t.Error("a key that did not sign verifies it")
	}
	if _, err := ReadNote([]byte(strings.Replace(string(msg), "\n2\n", "\n3\n", 1)), public); err == nil {
		t.Error("an altered note is verified")
	}
	for _, bad := range []string{"", "x", "ctlogd archive gw1\n", "ctlogd archive gw1\nx\n\n\n", "ctlogd archive gw1\n1\n*\ntime 2026-01-01T00:00:00Z\n"} {
		if n, err := ReadNote([]byte(bad)); err == nil {
			t.Errorf("%q is read as %+v", bad, n)
		}
	}
}

// TestNoteBeforeTheFirstSegment: without a line in the catalogs there is no hash, and the note's third line is empty.
func TestNoteBeforeTheFirstSegment(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Interval = time.Hour
	w := openTest(t, o)
	if err := w.note(nil); err != nil {
		t.Fatal(err)
	}
	if v := verifyTest(t, o.Dir, VerifyOptions{}); v.Verdict != Whole || v.Note == nil {
		t.Error(asJSON(v))
	}
	n := Note{Host: "gw1", Rows: []NoteRows{{1, 2, "cd"}}, Time: 5}
	want := n.text() + "\n"
	for _, text := range []string{want, "INFO\tcheckpoint: " + strings.ReplaceAll(strings.TrimSpace(want), "\n", `\n`) + "\t{}\n"} {
		found := FindNotes([]byte(text))
		if len(found) != 1 || string(found[0]) != want {
			t.Errorf("%q in %q", found, text)
			continue
		}
		if got, err := ReadNote(found[0]); err != nil || got.Hash != "" || !slices.Equal(got.Rows, n.Rows) || got.Time != n.Time {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

// TestNoteWithoutKey: a key that cannot be read is told, and the note is there without a signature.
func TestNoteWithoutKey(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Key = "/no/such/key"
	o.Interval = time.Hour
	said := make(chan string, 10)
	o.Log = func(level Level, msg, _ string, err error, remedy string) {
		if level == Error {
			select {
			case said <- msg + err.Error() + remedy:
			default:
			}
		}
	}
	w := openTest(t, o)
	if err := w.note(nil); err != nil {
		t.Fatal(err)
	}
	if s := <-said; !strings.Contains(s, "not signed") || !strings.Contains(s, "ctlogd key new") {
		t.Error(s)
	}
}

func FuzzReadNote(f *testing.F) {
	n := Note{Host: "gw1", Lines: 3, Hash: strings.Repeat("ab", 32), Rows: []NoteRows{{1, 2, "cd"}}}
	f.Add([]byte(n.text() + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := ReadNote(data); err == nil && n.Host == "" && !strings.HasPrefix(string(data), noteOrigin) {
			t.Errorf("%+v", n)
		}
	})
}
