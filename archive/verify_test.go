package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// signedArchive makes an archive of three segments and an unsealed row log, with a note that covers all of it.
func signedArchive(t *testing.T, change func(*Options)) (o Options, public string) {
	t.Helper()
	o = testOptions(filepath.Join(t.TempDir(), "archive"))
	o.Retention = Retention{}
	o.Key = filepath.Join(t.TempDir(), "archive.key")
	public, err := CreateKey(o.Key, o.Host)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&o)
	}
	endWithNote(t, openTest(t, o)) // the key's line is the first
	goOn(t, o, 0, 165)
	return o, public
}

// goOn writes records to an archive and ends with a note.
func goOn(t *testing.T, o Options, from, to int) {
	t.Helper()
	w := openTest(t, o)
	appendTest(t, w, from, to)
	await(t, func() bool { return w.Stats.RowLogs.Load() == 1 })
	endWithNote(t, w)
}

func endWithNote(t *testing.T, w *Writer) {
	t.Helper()
	w.stop()
	<-w.done
	if err := w.note(nil); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func verifyTest(t *testing.T, dir string, o VerifyOptions) *Verification {
	t.Helper()
	r, err := OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	v, err := Verify(context.Background(), r.Hosts[0], o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func lastNote(t *testing.T, dir string) Witness {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "host=gw1", noteName))
	if err != nil {
		t.Fatal(err)
	}
	return Witness{From: "elsewhere", Text: text}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestVerify: each thing that can be done to an archive has a verdict of its own.
func TestVerify(t *testing.T) {
	o, public := signedArchive(t, nil)
	lines := func(text []byte) []string { return strings.SplitAfter(string(text), "\n") }
	type place struct {
		dir, catalog, rows, note string
		segments                 []string
	}
	for _, tt := range []struct {
		name    string
		do      func(t *testing.T, p place)
		want    []string // verdicts, in order
		text    string   // in the first finding
		witness bool     // it shows only by a checkpoint that was kept elsewhere
	}{
		{name: "nothing", do: func(*testing.T, place) {}},
		{name: "one byte of a segment", want: []string{Altered}, text: "not those that the catalog has the hash of", do: func(t *testing.T, p place) {
			text := read(t, p.segments[1])
			text[len(text)/2] ^= 1
			write(t, p.segments[1], text)
		}},
		{name: "a segment is cut short", want: []string{Altered}, text: "and the catalog says", do: func(t *testing.T, p place) {
			text := read(t, p.segments[1])
			write(t, p.segments[1], text[:len(text)-1])
		}},
		{name: "two segments swapped", want: []string{Swapped, Swapped}, text: "changed places", do: func(t *testing.T, p place) {
			a, b := read(t, p.segments[0]), read(t, p.segments[2])
			write(t, p.segments[0], b)
			write(t, p.segments[2], a)
		}},
		{name: "a segment dropped", want: []string{Missing}, text: "with 50 records", do: func(t *testing.T, p place) {
			if err := os.Remove(p.segments[2]); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "a line dropped", want: []string{Broken, Cut}, text: "line 2 is missing", do: func(t *testing.T, p place) {
			l := lines(read(t, p.catalog))
			write(t, p.catalog, []byte(strings.Join(slices.Delete(l, 2, 3), "")))
		}},
		{name: "a line and its segment dropped", want: []string{Broken}, text: "line 2 is missing", do: func(t *testing.T, p place) {
			l := lines(read(t, p.catalog))
			write(t, p.catalog, []byte(strings.Join(slices.Delete(l, 2, 3), "")))
			if err := os.Remove(p.segments[1]); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "one byte of a line", want: []string{Broken}, text: "one of them was altered", do: func(t *testing.T, p place) {
			text := read(t, p.catalog)
			i := bytes.Index(text, []byte(`"records":50`))
			text[i+len(`"records":`)] = '6'
			write(t, p.catalog, text)
		}},
		{name: "a line is garbage", want: []string{Broken}, text: "cannot be read", do: func(t *testing.T, p place) {
			text := read(t, p.catalog)
			text[0] = 'x'
			write(t, p.catalog, text)
		}},
		{name: "a line twice", want: []string{Broken}, text: "twice", do: func(t *testing.T, p place) {
			l := lines(read(t, p.catalog))
			write(t, p.catalog, []byte(strings.Join(slices.Insert(l, 2, l[1]), "")))
		}},
		{name: "two lines swapped", want: []string{Swapped}, text: "wrong order", do: func(t *testing.T, p place) {
			l := lines(read(t, p.catalog))
			l[1], l[2] = l[2], l[1]
			write(t, p.catalog, []byte(strings.Join(l, "")))
		}},
		{name: "the catalog's tail is cut", want: []string{Cut, Cut}, text: "no line of the catalog names", do: func(t *testing.T, p place) {
			l := lines(read(t, p.catalog))
			write(t, p.catalog, []byte(strings.Join(l[:3], "")))
		}},
		{name: "the catalog's tail and its segments are cut", want: []string{Cut}, text: "the end of the catalog was cut off", do: func(t *testing.T, p place) {
			l := lines(read(t, p.catalog))
			write(t, p.catalog, []byte(strings.Join(l[:3], "")))
			if err := os.Remove(p.segments[2]); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the row log's tail is cut", want: []string{Cut}, text: "the end of the row log", do: func(t *testing.T, p place) {
			text := read(t, p.rows)
			write(t, p.rows, text[:len(text)-7])
		}},
		{name: "one byte of the row log", want: []string{Altered, Altered}, text: "records in it are damaged", do: func(t *testing.T, p place) {
			text := read(t, p.rows)
			text[len(text)/2] ^= 1
			write(t, p.rows, text)
		}},
		{name: "the row log is dropped", want: []string{Missing}, text: "the row log is missing", do: func(t *testing.T, p place) {
			if err := os.Remove(p.rows); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the note is altered", want: []string{Forged}, text: "its signature", do: func(t *testing.T, p place) {
			write(t, p.note, bytes.Replace(read(t, p.note), []byte("\n4\n"), []byte("\n3\n"), 1))
		}},
		{name: "the note is dropped", want: []string{Forged}, text: "the checkpoint's note is missing", do: func(t *testing.T, p place) {
			if err := os.Remove(p.note); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the note has lost its signature", want: []string{Forged}, text: "is not signed", do: func(t *testing.T, p place) {
			text, _, _ := strings.Cut(string(read(t, p.note)), "\n\n")
			write(t, p.note, []byte(text+"\n\n"))
		}},
		{name: "another key has signed the note", want: []string{Forged}, text: "no signature by a key to trust", do: func(t *testing.T, p place) {
			private, _, _ := NewKey("gw1")
			k, _ := parseKey(private)
			text, _, _ := strings.Cut(string(read(t, p.note)), "\n\n")
			msg, err := note.Sign(&note.Note{Text: text + "\n"}, k)
			if err != nil {
				t.Fatal(err)
			}
			write(t, p.note, msg)
		}},
		{name: "the last line is rewritten", want: []string{Rewritten}, text: "is another than the checkpoint", do: func(t *testing.T, p place) {
			l := lines(read(t, p.catalog))
			l[3] = strings.Replace(l[3], `"v":1`, `"v": 1`, 1)
			write(t, p.catalog, []byte(strings.Join(l, "")))
		}},
		{name: "a segment cannot be read", want: []string{Unreadable}, text: "is a directory", do: func(t *testing.T, p place) {
			if err := os.Remove(p.segments[0]); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(p.segments[0], 0o700); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "a FIFO in the place of a segment", want: []string{Altered}, text: "it has 0 bytes", do: func(t *testing.T, p place) {
			if err := os.Remove(p.segments[0]); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkfifo(p.segments[0], 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "a foreign segment", want: []string{Cut}, text: "or the file was put there", do: func(t *testing.T, p place) {
			write(t, strings.Replace(p.segments[0], "-1.parquet", "-77.parquet", 1), read(t, p.segments[0]))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(dir, os.DirFS(o.Dir)); err != nil {
				t.Fatal(err)
			}
			segments, _ := filepath.Glob(dir + "/host=gw1/date=*/*.parquet")
			catalogs, _ := filepath.Glob(dir + "/host=gw1/date=*/catalog.jsonl")
			rows, _ := filepath.Glob(dir + "/host=gw1/*.rows")
			if len(segments) != 3 || len(catalogs) != 1 || len(rows) != 1 {
				t.Fatal(segments, catalogs, rows)
			}
			slices.SortFunc(segments, func(a, b string) int { // by the row logs' sequence, as the lines
				x, _ := sequenceOf(filepath.Base(a))
				y, _ := sequenceOf(filepath.Base(b))
				return int(x) - int(y)
			})
			tt.do(t, place{dir, catalogs[0], rows[0], filepath.Join(dir, "host=gw1", noteName), segments})
			for name, with := range map[string]VerifyOptions{"with the key": {Keys: []string{public}}, "without a key": {}} {
				v := verifyTest(t, dir, with)
				var got []string
				for _, f := range v.Findings {
					got = append(got, f.Verdict)
				}
				if !slices.Equal(got, tt.want) || len(tt.want) > 0 && (!strings.Contains(v.Findings[0].Text, tt.text) || v.Verdict != tt.want[0]) {
					t.Errorf("%s: %s", name, asJSON(v))
				}
				if len(tt.want) > 0 {
					continue
				}
				if v.Verdict != Whole || v.Segments != 3 || v.Records != 150 || v.Lines != 4 || len(v.Unsealed) != 1 || v.Unsealed[0].Records != 15 ||
					v.Unsealed[0].Covered != v.Unsealed[0].Bytes || v.Note == nil || !slices.Equal(v.Note.By, []string{public}) {
					t.Errorf("%s: %s", name, asJSON(v))
				}
			}
		})
	}
}

func asJSON(v any) string {
	text, _ := json.MarshalIndent(v, "", " ")
	return string(text)
}

// TestVerifyReplay: an old state that was put back whole is seen by a checkpoint that was kept elsewhere, and by nothing
// else. One made anew with the same key has another chain.
func TestVerifyReplay(t *testing.T) {
	o, public := signedArchive(t, nil)
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(o.Dir)); err != nil {
		t.Fatal(err)
	}
	before := lastNote(t, o.Dir)
	goOn(t, o, 165, 260)
	after := lastNote(t, o.Dir)
	keys := []string{public}
	for _, tt := range []struct {
		name, dir, want string
		notes           []Witness
	}{
		{"now, by the note of now", o.Dir, Whole, []Witness{after}},
		{"now, by the note of then", o.Dir, Whole, []Witness{before}},
		{"then, by itself", old, Whole, nil},
		{"then, by the note of now", old, Replayed, []Witness{before, after}},
	} {
		v := verifyTest(t, tt.dir, VerifyOptions{Keys: keys, Notes: tt.notes, Witness: tt.notes != nil})
		if v.Verdict != tt.want {
			t.Errorf("%s: %s", tt.name, asJSON(v))
		}
		if tt.notes != nil && tt.want == Whole && v.Witness.From != "elsewhere" {
			t.Errorf("%s: %s", tt.name, asJSON(v))
		}
	}

	anew := o
	anew.Dir = filepath.Join(t.TempDir(), "anew")
	goOn(t, anew, 1000, 1260)
	v := verifyTest(t, anew.Dir, VerifyOptions{Keys: keys, Notes: []Witness{after}})
	if v.Verdict != Rewritten {
		t.Errorf("made anew: %s", asJSON(v))
	}
	v = verifyTest(t, o.Dir, VerifyOptions{Keys: keys, Witness: true})
	if v.Verdict != Unproven {
		t.Errorf("no note of the host: %s", asJSON(v))
	}
	_, stranger, _ := NewKey("gw1")
	if v = verifyTest(t, o.Dir, VerifyOptions{Keys: []string{stranger}}); v.Verdict != Forged {
		t.Errorf("a key that is none of its: %s", asJSON(v))
	}
}

// TestVerifyFolds: what many checkpoints show is one finding, with the first, how many more, and the last; what another file
// or another thing shows is one of its own.
func TestVerifyFolds(t *testing.T) {
	o, public := signedArchive(t, nil)
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(o.Dir)); err != nil {
		t.Fatal(err)
	}
	var notes []Witness
	for i := range 6 {
		goOn(t, o, 165+60*i, 225+60*i)
		notes = append(notes, lastNote(t, o.Dir))
	}
	notes[5].From = "another"
	first, err := ReadNote(notes[0].Text)
	if err != nil {
		t.Fatal(err)
	}
	fifth, err := ReadNote(notes[4].Text)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, _ := NewKey("gw1")
	anew := o
	anew.Dir = filepath.Join(t.TempDir(), "anew")
	goOn(t, anew, 1000, 1600)
	for _, tt := range []struct {
		name, dir, key, verdict string
		want                    []string // place, and more
		text                    string   // of the finding about elsewhere
	}{
		{"a wrong key", o.Dir, stranger, Forged, []string{"checkpoint.note +0", "elsewhere +4", "another +0"},
			fmt.Sprintf("the checkpoint of %s says that it is signed by %s", first.Time, public)},
		{"an earlier state", old, public, Replayed, []string{" +4", " +0"}, "the checkpoint of " + first.Time.String() + " in elsewhere has seen"},
		{"made anew", anew.Dir, public, Rewritten, []string{"date=", "date="}, "is another than the checkpoint of " + first.Time.String() + " in elsewhere has seen"},
	} {
		v := verifyTest(t, tt.dir, VerifyOptions{Keys: []string{tt.key}, Notes: notes, Witness: true})
		var got []string
		told := ""
		for _, f := range v.Findings {
			if f.Verdict == tt.verdict {
				got = append(got, fmt.Sprintf("%s +%d", f.File, f.More))
			}
			if f.More > 0 && told == "" {
				told = f.String()
			}
		}
		if v.Verdict != tt.verdict || len(got) != len(tt.want) {
			t.Errorf("%s: %v: %s", tt.name, got, asJSON(v))
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], tt.want[i]) {
				t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
			}
		}
		if end := fmt.Sprintf("; 4 more checkpoints show the same, the last of %s", fifth.Time); !strings.Contains(told, tt.text) || !strings.HasSuffix(told, end) {
			t.Errorf("%s: %s\nwant %s ...%s", tt.name, told, tt.text, end)
		}
	}
}

// TestVerifyRetention: what retention has removed is law and no tampering, and is told.
func TestVerifyRetention(t *testing.T) {
	o, public := signedArchive(t, nil)
	o.Retention = Retention{MaxAge: 5 * 24 * time.Hour} // the first oldRecords are older
	w := openTest(t, o)
	await(t, func() bool { return w.Stats.RemovedAge.Load() > 0 })
	endWithNote(t, w)
	v := verifyTest(t, o.Dir, VerifyOptions{Keys: []string{public}})
	if v.Verdict != Whole || len(v.Removed) != 1 || v.Removed[0].Why != "max_age" || v.Removed[0].Segments < 1 ||
		v.Removed[0].Segments+v.Segments != 3 || v.Removed[0].Records+v.Records != 150 {
		t.Error(asJSON(v))
	}
}

// TestVerifyUnsigned: without a key in the configuration nothing is signed, which is no tampering; a key that is given
// has nothing to verify then.
func TestVerifyUnsigned(t *testing.T) {
	o, public := signedArchive(t, func(o *Options) { o.Key = "" })
	if v := verifyTest(t, o.Dir, VerifyOptions{}); v.Verdict != Whole || len(v.Note.By) != 0 {
		t.Error(asJSON(v))
	}
	if v := verifyTest(t, o.Dir, VerifyOptions{Keys: []string{public}}); v.Verdict != Unproven {
		t.Error(asJSON(v))
	}
}

// TestKeyRotation: both keys sign for one interval, and whoever knows the old one can follow.
func TestKeyRotation(t *testing.T) {
	now := testNow
	o, first := signedArchive(t, func(o *Options) { o.Now = func() time.Time { return now } })
	by := func(keys ...string) {
		t.Helper()
		n, err := ReadNote(lastNote(t, o.Dir).Text, keys...)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(n.By, keys) || !slices.Equal(n.Keys, keys) {
			t.Errorf("signed by %v, says %v; want %v", n.By, n.Keys, keys)
		}
	}
	by(first)
	info, _ := os.Stat(o.Key)
	second, old, err := RotateKey(o.Key)
	if err != nil || old != first {
		t.Fatal(old, err)
	}
	if after, err := os.Stat(o.Key); err != nil || after.Mode() != info.Mode() {
		t.Errorf("%v, %v", after, err)
	}
	goOn(t, o, 165, 170)
	by(second, first)
	now = now.Add(o.Interval)
	goOn(t, o, 170, 175)
	by(second)
	for _, keys := range [][]string{{first}, {second}, {first, second}, {first, first}, nil} {
		if v := verifyTest(t, o.Dir, VerifyOptions{Keys: keys}); v.Verdict != Whole || len(v.Note.By) != 1 {
			t.Errorf("%v: %s", keys, asJSON(v))
		}
	}
	// A third key in its place, which the second has not signed for.
	if err := os.Remove(o.Key); err != nil {
		t.Fatal(err)
	}
	third, err := CreateKey(o.Key, o.Host)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	o.Log = func(level Level, msg, _ string, _ error, _ string) {
		if level == Warn {
			said = append(said, msg)
		}
	}
	goOn(t, o, 175, 180)
	by(third)
	if len(said) != 1 || !strings.Contains(said[0], "the old one is not there") {
		t.Error(said)
	}
	for _, keys := range [][]string{{first}, {second}, nil} {
		if v := verifyTest(t, o.Dir, VerifyOptions{Keys: keys}); v.Verdict != Forged || !strings.Contains(v.Findings[0].Text, "has not signed that") {
			t.Errorf("%v: %s", keys, asJSON(v))
		}
	}
	if v := verifyTest(t, o.Dir, VerifyOptions{Keys: []string{third}}); v.Verdict != Whole {
		t.Error(asJSON(v))
	}
}

func TestPublicKeys(t *testing.T) {
	private, public, _ := NewKey("gw1")
	if keys, err := PublicKeys("# of gw1\n" + public + " # 2026\n\n"); err != nil || !slices.Equal(keys, []string{public}) {
		t.Error(keys, err)
	}
	for text, want := range map[string]string{private: "ctlogd key show", "": "no public key", "x": `"x" is no public key`, public + "x": "is no public key"} {
		if _, err := PublicKeys(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if k, err := parseKey(private); err != nil || k.Public != public {
		t.Error(k.Public, err)
	}
}

// TestFindNotes: notes are found in files that have nothing else, and in ctlogd's logs of either form.
func TestFindNotes(t *testing.T) {
	private, public, _ := NewKey("gw1")
	k, _ := parseKey(private)
	n := Note{Host: "gw1", Lines: 3, Hash: strings.Repeat("ab", 32), Rows: []NoteRows{{1, 2, "cd"}}, Time: 5, Keys: []string{public}}
	signed, err := note.Sign(&note.Note{Text: n.text()}, k)
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte(n.text() + "\n")
	text := strings.TrimSpace(string(signed))
	inJSON, _ := json.Marshal(map[string]string{"msg": "checkpoint: " + text, "z": "1"})
	inPlainJSON, _ := json.Marshal(map[string]string{"msg": "checkpoint: " + strings.TrimSpace(string(plain)), "z": "1"})
	escaped := "INFO\tcheckpoint: " + strings.ReplaceAll(text, "\n", `\n`) + "\t{\"file\": \"x\"}\n"
	twice, _ := json.Marshal(map[string]string{"MESSAGE": escaped})
	ascii := strings.ReplaceAll(escaped, "—", `\u2014`)
	plainEscaped := "INFO\tcheckpoint: " + strings.ReplaceAll(strings.TrimSpace(string(plain)), "\n", `\n`) + "\t{\"file\": \"x\"}\n"
	for name, tt := range map[string]struct {
		text string
		want []string
	}{
		"alone":              {string(signed), []string{string(signed)}},
		"without newline":    {text, []string{string(signed)}},
		"two":                {string(signed) + string(signed), []string{string(signed), string(signed)}},
		"in JSON":            {string(inJSON) + "\nx\n" + string(inJSON), []string{string(signed), string(signed)}},
		"escaped":            {"before\n" + escaped + "after\n" + ascii, []string{string(signed), string(signed)}},
		"escaped, in JSON":   {string(twice), []string{string(signed)}},
		"unsigned":           {string(plain), []string{string(plain)}},
		"unsigned, in JSON":  {string(inPlainJSON) + "\nx", []string{string(plain)}},
		"unsigned, escaped":  {plainEscaped + "after", []string{string(plain)}},
		"none":               {"ctlogd archive gw1\\n", nil},
		"of a later version": {strings.Replace(string(plain), "time ", "more of it\ntime ", 1), []string{strings.Replace(string(plain), "time ", "more of it\ntime ", 1)}},
	} {
		var got []string
		for _, n := range FindNotes([]byte(tt.text)) {
			got = append(got, string(n))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q\nwant %q\nin %q", name, got, tt.want, tt.text)
		}
		for _, n := range got {
			if strings.Contains(n, "— ") {
				if _, err := ReadNote([]byte(n), public); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

func FuzzFindNotes(f *testing.F) {
	n := Note{Host: "gw1", Lines: 3, Hash: strings.Repeat("ab", 32), Rows: []NoteRows{{1, 2, "cd"}}, Time: 5}
	f.Add([]byte(n.text() + "\n— gw1 AAAA\n" + n.text()))
	f.Add([]byte(strings.ReplaceAll(n.text(), "\n", `\n`) + `\n\u2014 gw1 AAAA","x":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, n := range FindNotes(data) {
			if _, err := ReadNote(n); err != nil {
				t.Errorf("%q: %v", n, err)
			}
		}
	})
}

// FuzzVerify: whatever a catalog and a note hold, a verification ends, and says whole of nothing that differs.
func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"v":1,"n":0,"kind":"key","at":"2026-01-01T00:00:00.000000000Z","key":{"new":"x","note":""},"prev":""}`+"\n"), []byte(noteOrigin+"gw1\n1\n\ntime 2026-01-01T00:00:00Z\n\n"))
	f.Add([]byte(`{"v":1,"n":0,"kind":"removed","at":"2026-01-01T00:00:00.000000000Z","removed":{"file":"a.parquet"},"prev":""}`+"\n"), []byte(""))
	f.Add([]byte(`{"v":1,"n":0,"kind":"segment","at":"2026-01-01T00:00:00.000000000Z","file":"a.parquet","row_logs":[1],"prev":""}`+"\n"), []byte("x"))
	f.Fuzz(func(t *testing.T, catalog, msg []byte) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "host=gw1", "date=2026-01-01"), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "host=gw1", "date=2026-01-01", catalogName), catalog)
		write(t, filepath.Join(dir, "host=gw1", noteName), msg)
		v := verifyTest(t, dir, VerifyOptions{})
		if v.Segments > 0 || v.Records > 0 || (v.Verdict == Whole) != (len(v.Findings) == 0) {
			t.Error(asJSON(v))
		}
		_ = fmt.Sprint(v)
	})
}

// TestVerifyCopyWithoutRowLogs: of a copy of what is sealed alone, that can be verified, and nothing is missing.
func TestVerifyCopyWithoutRowLogs(t *testing.T) {
	o, public := signedArchive(t, nil)
	rows, _ := filepath.Glob(o.Dir + "/host=gw1/*.rows")
	if len(rows) != 1 || os.Remove(rows[0]) != nil {
		t.Fatal(rows)
	}
	if v := verifyTest(t, o.Dir, VerifyOptions{Keys: []string{public}, Sealed: true}); v.Verdict != Whole || v.Segments != 3 || len(v.Unsealed) != 0 {
		t.Error(asJSON(v))
	}
	if v := verifyTest(t, o.Dir, VerifyOptions{Keys: []string{public}}); v.Verdict != Missing || !strings.Contains(v.Findings[0].Text, "without row logs") {
		t.Error(asJSON(v))
	}
}

// TestVerifyWhileWriting: what a daemon writes, seals and removes meanwhile is no fault of the archive.
func TestVerifyWhileWriting(t *testing.T) {
	o, public := signedArchive(t, nil)
	o.Retention = Retention{MaxAge: 5 * 24 * time.Hour}
	w := openTest(t, o)
	const segments = 30
	written := make(chan struct{})
	go func() {
		defer close(written)
		for n := 165; n < 165+50*segments; n++ {
			if _, err := w.Append([]*flow.Record{numbered(n)}); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for done := false; !done; {
		v := verifyTest(t, o.Dir, VerifyOptions{Keys: []string{public}})
		if v.Verdict != Whole {
			t.Fatal(asJSON(v))
		}
		select {
		case <-written:
			done = w.Stats.Seals.Load() >= segments
		default:
		}
	}
	if w.Stats.RemovedAge.Load() == 0 {
		t.Error("retention has removed nothing meanwhile")
	}
}

// TestTwoArchivesOfOneHost: the checkpoints of another archive of the same ctlogd accuse nobody and prove nothing; those of an
// archive that was moved are its own, and so are those of one that was begun anew in its place.
func TestTwoArchivesOfOneHost(t *testing.T) {
	made := func(output string) (Options, string, Witness) {
		o, public := signedArchive(t, func(o *Options) { o.Output = output })
		w := lastNote(t, o.Dir)
		return o, public, w
	}
	a, key, noteA := made("archive:/a b=\"c\"")
	b, keyB, noteB := made("archive:/b")
	keys := []string{key, keyB}
	if text := string(noteA.Text); !strings.Contains(text, "\noutput archive:/a%20b=%22c%22\n") {
		t.Errorf("the note is\n%s", text)
	}
	for _, o := range []Options{a, b} {
		if v := verifyTest(t, o.Dir, VerifyOptions{Keys: keys, Witness: true, Notes: []Witness{noteA, noteB}}); v.Verdict != Whole || len(v.Others) != 1 || v.Witness == nil {
			t.Error(asJSON(v))
		}
	}
	if v := verifyTest(t, a.Dir, VerifyOptions{Keys: keys, Witness: true, Notes: []Witness{noteB}}); v.Verdict != Unproven || !strings.Contains(v.Findings[0].Text, "they are of archive:/b") {
		t.Error(asJSON(v))
	}
	a.Output = "archive:/moved"
	goOn(t, a, 165, 170)
	if v := verifyTest(t, a.Dir, VerifyOptions{Keys: keys, Witness: true, Notes: []Witness{noteA}}); v.Verdict != Whole || len(v.Others) != 0 {
		t.Error(asJSON(v))
	}
	anew, keyNew, _ := made("archive:/b")
	if v := verifyTest(t, anew.Dir, VerifyOptions{Keys: append(keys, keyNew), Witness: true, Notes: []Witness{noteB}}); v.Verdict != Rewritten {
		t.Error(asJSON(v))
	}
}
