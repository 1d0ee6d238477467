package archive

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// TestCheckpoint: each note that the archive writes is told as a record, and a line of any format that has the record is a
// witness of the archive: the note is found in it as it was written, and the key verifies it.
func TestCheckpoint(t *testing.T) {
	c := valid()
	c.Path, c.Key = filepath.Join(t.TempDir(), "archive"), filepath.Join(t.TempDir(), "archive.key")
	public, err := archive.CreateKey(c.Key, "gw1")
	if err != nil {
		t.Fatal(err)
	}
	c.Checkpoint = time.Millisecond
	told := make(chan *flow.Record, 1)
	o, err := New(c, "gw1", "obs", false, nil, nil, func(r *flow.Record) bool {
		select {
		case told <- r:
			return true
		default:
			return false
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close(context.Background())
	b := flow.NewBatch(1, nil)
	r := b.Next()
	r.Event, r.Received = flow.EventDestroy, time.Now().UnixNano()
	if _, err := o.Write(context.Background(), []*flow.Record{r}); err != nil {
		t.Fatal(err)
	}
	var got *flow.Record
	for got == nil || !strings.Contains(got.Extra.Note.Text, "\nrows 1 ") { // notes before the record was written know no row log
		select {
		case got = <-told:
		case <-time.After(time.Minute):
			t.Fatal("no checkpoint within a minute")
		}
	}
	n := got.Extra.Note
	note, err := archive.ReadNote([]byte(n.Text+"\n"), public)
	if err != nil {
		t.Fatalf("%v:\n%s", err, n.Text)
	}
	want := flow.Note{Output: c.Name(), Origin: "ctlogd archive gw1", Lines: note.Lines, Hash: note.Hash, Text: n.Text}
	if *n != want || got.Received != int64(note.Time) || got.Event != flow.EventCheckpoint || len(n.Hash) != 64 {
		t.Errorf("the record is %+v with %+v, want %+v", got, n, want)
	}
	stored, err := flow.NewBatch(1, nil).DecodeBinary(flow.AppendBinary(nil, got))
	if err != nil || len(stored) != 0 {
		t.Errorf("it does not come back from a spool: %v", err)
	}
	for _, name := range format.Names {
		enc, err := format.New(name, format.Options{Host: "gw1", Observer: "obs", Version: "1"})
		if err != nil {
			t.Fatal(err)
		}
		file := fmt.Sprintf("%s\n%s\nwhat comes behind it\n", enc.Append(nil, r), enc.Append(nil, got))
		if found := archive.FindNotes([]byte(file)); len(found) != 1 || string(found[0]) != n.Text+"\n" {
			t.Errorf("%s: found %q in %s, want %q", name, found, file, n.Text)
		}
	}

	// The line alone is enough to tell that the archive was put back to an earlier state.
	enc, _ := format.New("flat", format.Options{Host: "gw1"})
	witness := archive.FindNotes(enc.Append(nil, got))
	if err := o.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(c.Path + "/host=gw1/*.rows")
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	verdict := func() string {
		a, err := archive.OpenReader(c.Path)
		if err != nil {
			t.Fatal(err)
		}
		v, err := archive.Verify(context.Background(), a.Hosts[0], archive.VerifyOptions{Keys: []string{public}, Witness: true,
			Notes: []archive.Witness{{From: "flows.jsonl", Text: witness[0]}}})
		if err != nil {
			t.Fatal(err)
		}
		return v.Verdict
	}
	if v := verdict(); v != archive.Whole {
		t.Errorf("untouched, it is %s", v)
	}
	if err := os.Remove(logs[0]); err != nil {
		t.Fatal(err)
	}
	if v := verdict(); !slices.Contains([]string{archive.Missing, archive.Cut}, v) {
		t.Errorf("without its row log, it is %s", v)
	}
}
