package archive

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// What Verify may find, each another thing that somebody, or a disk, has done.
const (
	Whole = "whole"

	Altered    = "altered"    // a file has other bytes than the catalog or a checkpoint says
	Swapped    = "swapped"    // two files, or two lines, have changed places
	Missing    = "missing"    // a file is not there, and no tombstone says why
	Broken     = "broken"     // a line of the catalog is missing or was altered: the chain of hashes ends there
	Cut        = "cut"        // the last lines of the catalog, or the end of a row log, are gone
	Replayed   = "replayed"   // catalog and note are of an earlier time than a checkpoint that was witnessed elsewhere
	Rewritten  = "rewritten"  // the chain holds, and is another one than a checkpoint saw
	Forged     = "forged"     // a signature is not right, or the key was changed without the old one
	Unreadable = "unreadable" // it could not be looked at
	Unproven   = "unproven"   // nothing that a given key has signed was there to compare with
)

// Finding is one thing that is wrong.
type Finding struct {
	Verdict string `json:"verdict"`
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"` // of File, from 1
	Text    string `json:"text"`

	// More is how many later checkpoints show the same as the one that Text names, and Last the time of the last of them.
	More int   `json:"more,omitempty"`
	Last *Time `json:"last,omitempty"`
}

// String returns the sentence.
func (f *Finding) String() string {
	if f.More == 0 {
		return f.Text
	}
	checkpoints := "1 more checkpoint shows"
	if f.More > 1 {
		checkpoints = fmt.Sprintf("%d more checkpoints show", f.More)
	}
	return fmt.Sprintf("%s; %s the same, the last of %s", f.Text, checkpoints, *f.Last)
}

// RemovedBy sums up the segments that retention has removed for one reason.
type RemovedBy struct {
	Why      string `json:"why"`
	Segments int    `json:"segments"`
	Records  int64  `json:"records"`
	First    Time   `json:"first"`
	Last     Time   `json:"last"`
}

// Unsealed is a row log. It is never called verified.
type Unsealed struct {
	File    string `json:"file"`
	Records uint64 `json:"records"`
	Since   Time   `json:"since"`
	Bytes   int64  `json:"bytes"`
	Covered int64  `json:"covered"` // bytes of it that the newest checkpoint covers
}

// Seen is a checkpoint's note that was compared.
type Seen struct {
	From  string   `json:"from"` // the file
	Time  Time     `json:"time"`
	Lines uint64   `json:"lines"`
	By    []string `json:"signed_by"` // public keys
}

// Verification is what Verify has to say of one host's archive.
type Verification struct {
	Host     string      `json:"host"`
	Dir      string      `json:"dir"`
	Verdict  string      `json:"verdict"` // that of the first finding
	Findings []Finding   `json:"findings"`
	Lines    int         `json:"lines"` // of the catalogs
	Segments int         `json:"segments"`
	Records  int64       `json:"records"` // in segments that are whole
	First    *Time       `json:"first,omitempty"`
	Last     *Time       `json:"last,omitempty"`
	Removed  []RemovedBy `json:"removed"`
	Unsealed []Unsealed  `json:"unsealed"`
	Aside    []string    `json:"aside"`             // files that ctlogd has put aside as damaged or foreign
	Note     *Seen       `json:"note,omitempty"`    // the one in the folder
	Witness  *Seen       `json:"witness,omitempty"` // the newest of those that were witnessed elsewhere
	Others   []string    `json:"others,omitempty"`  // archives of the same host that given checkpoints are of; these were not compared
}

// VerifyOptions are what a verification may rely on.
type VerifyOptions struct {
	Keys    []string  // public; none: the keys that the notes name, which proves that they are of one hand and no more
	Notes   []Witness // notes that were kept elsewhere
	Witness bool      // Notes were asked for: that none is of the host is worth telling
	Sealed  bool      // only what is sealed counts: a copy was made without the row logs

	// Progress, if not nil, is called with the bytes that were read since the last call.
	Progress func(bytes int64)
}

// Witness is a note, and the file that has it. Many are best in the order of their times: a row log is then read once.
type Witness struct {
	From string
	Text []byte
	Time Time
}

// verifier verifies one host.
type verifier struct {
	o       VerifyOptions
	h       *Host
	v       *Verification
	trusted []string // public keys
	byN     map[uint64]*Line
	sealed  map[uint64]bool // row logs that a line names
	hashes  map[uint64]*rowHash
	shown   map[shown]int // what checkpoints have shown: its number among the findings
}

// shown is what a checkpoint shows, and others may, too.
type shown struct{ from, format, of string }

// Verify compares what is in a host's folder with its catalog, the catalog with itself, and all with checkpoints. It only
// reads, and a daemon may write meanwhile. The error is of ctx, or of a folder that cannot be read at all.
func Verify(ctx context.Context, h *Host, o VerifyOptions) (*Verification, error) {
	v := &verifier{o: o, h: h, hashes: map[uint64]*rowHash{}, shown: map[shown]int{}}
	// The note first and the catalog last: what is written meanwhile is then in the catalog, and is not missing there.
	msg, noteErr := h.LastNote()
	folders, err := dates(h.Dir)
	if err != nil {
		return nil, err
	}
	var segments, aside []string
	for _, name := range folders {
		entries, err := os.ReadDir(filepath.Join(h.Dir, name))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			switch path := filepath.Join(name, e.Name()); {
			case strings.HasSuffix(e.Name(), ".parquet"):
				segments = append(segments, path)
			case strings.HasSuffix(e.Name(), ".aside"):
				aside = append(aside, path)
			}
		}
	}
	for range 3 { // a daemon that appends to several catalogs meanwhile may make one of them look older
		if err := h.Reload(); err != nil {
			return nil, err
		}
		v.v = &Verification{Host: h.Name, Dir: h.Dir, Findings: []Finding{}, Removed: []RemovedBy{}, Unsealed: []Unsealed{},
			Aside: append([]string{}, aside...)}
		v.chain()
		if len(v.v.Findings) == 0 {
			break
		}
	}
	if aside, err := filepath.Glob(filepath.Join(h.Dir, "*.aside")); err == nil {
		for _, path := range aside {
			v.v.Aside = append(v.v.Aside, filepath.Base(path))
		}
	}
	v.keys(msg)
	if err := v.segments(ctx); err != nil {
		return nil, err
	}
	if !o.Sealed {
		v.unnamed(segments)
		v.rowLogs()
	}
	v.notes(msg, noteErr)
	v.v.Verdict = Whole
	if len(v.v.Findings) > 0 {
		v.v.Verdict = v.v.Findings[0].Verdict
	}
	return v.v, nil
}

func (v *verifier) find(verdict, file string, line int, format string, args ...any) {
	v.v.Findings = append(v.v.Findings, Finding{Verdict: verdict, File: file, Line: line, Text: fmt.Sprintf(format, args...)})
}

// findBy finds what a checkpoint from a file shows of something. The same once more is counted: there is a checkpoint for each
// hour, and what is wrong with one mostly is with all that follow.
func (v *verifier) findBy(n *Note, from, of, verdict, file string, line int, format string, args ...any) {
	key := shown{from, format, of}
	i, again := v.shown[key]
	if !again {
		v.shown[key] = len(v.v.Findings)
		v.find(verdict, file, line, format, args...)
		return
	}
	f := &v.v.Findings[i]
	f.More++
	if f.Last == nil || *f.Last < n.Time {
		f.Last = new(n.Time)
	}
}

func catalogOf(l *Line) string { return filepath.Join("date="+l.Date, catalogName) }

// chain looks whether each line has the hash of the one before.
func (v *verifier) chain() {
	v.v.Lines = len(v.h.Lines)
	v.byN, v.sealed = map[uint64]*Line{}, map[uint64]bool{}
	for _, err := range v.h.Problems {
		var line *LineError
		if !errors.As(err, &line) {
			v.find(Unreadable, "", 0, "%v", err)
			continue
		}
		file, relErr := filepath.Rel(v.h.Dir, line.File)
		if relErr != nil {
			file = line.File
		}
		v.find(Broken, file, line.Line, "the chain is broken: the line cannot be read: %v", line.Err)
	}
	v.order()
	want, hash := uint64(0), ""
	for i := range v.h.Lines {
		l := &v.h.Lines[i]
		if l.Segment != nil {
			for _, s := range l.RowLogs {
				v.sealed[s] = true
			}
		}
		switch before := v.byN[l.N]; {
		case before != nil && before.Hash == l.Hash:
			v.find(Broken, catalogOf(l), l.Number, "the chain is broken: line %d of the chain stands in it twice", l.N)
		case before != nil:
			v.find(Broken, catalogOf(l), l.Number, "the chain is broken: there are two lines %d, and they differ", l.N)
		case l.N > want && len(v.h.Problems) == 0:
			v.find(Broken, catalogOf(l), l.Number, "the chain is broken: before this line, %d of the chain, %s missing", l.N, missingLines(want, l.N))
		case l.N == want && l.Prev != hash:
			v.find(Broken, catalogOf(l), l.Number, "the chain is broken: this line, %d of the chain, has another hash of the line before than that has: one of them was altered", l.N)
		}
		v.byN[l.N] = l
		want, hash = l.N+1, l.Hash
	}
}

// missingLines says which lines are missing: from from up to to, to not included.
func missingLines(from, to uint64) string {
	if to-from == 1 {
		return fmt.Sprintf("line %d is", from)
	}
	return fmt.Sprintf("lines %d to %d are", from, to-1)
}

// order looks whether the lines of each file stand in the order of the chain.
func (v *verifier) order() {
	last := map[string]*Line{}
	byPlace := slices.Clone(v.h.Lines)
	slices.SortStableFunc(byPlace, func(a, b Line) int {
		return cmp.Or(cmp.Compare(a.Date, b.Date), cmp.Compare(a.Number, b.Number))
	})
	for i := range byPlace {
		l := &byPlace[i]
		if before := last[l.Date]; before != nil && before.N > l.N {
			v.find(Swapped, catalogOf(l), l.Number, "lines %d and %d of the chain stand in the wrong order", l.N, before.N)
		}
		last[l.Date] = l
	}
}

// keys finds out whose signature counts: the keys that were given, and those that they have signed for.
func (v *verifier) keys(msg []byte) {
	v.trusted = slices.Clone(v.o.Keys)
	if len(v.o.Keys) == 0 { // the first key of all
		for i := range v.h.Lines {
			if k := v.h.Lines[i].Key; k != nil {
				v.trusted = append(v.trusted, k.New)
				break
			}
		}
		if len(v.trusted) == 0 {
			if n, err := ReadNote(msg); err == nil {
				v.trusted = append(v.trusted, n.Keys...)
			}
		}
	}
	for i := range v.h.Lines {
		l := &v.h.Lines[i]
		k := l.Key
		if k == nil || slices.Contains(v.trusted, k.New) {
			continue
		}
		if k.Old != "" && slices.Contains(v.trusted, k.Old) {
			if k.signedBy(v.h.Name, k.Old) {
				v.trusted = append(v.trusted, k.New)
				continue
			}
			v.find(Forged, catalogOf(l), l.Number, "the key was changed to %s, and the one before, %s, has not signed that", k.New, k.Old)
		}
	}
}

// segments looks whether the segments that should be there are, each with its bytes.
func (v *verifier) segments(ctx context.Context) error {
	why := map[string]int{}
	for i := range v.h.Lines {
		l := &v.h.Lines[i]
		if !v.h.removed(l) {
			continue
		}
		r := l.Removed
		at, ok := why[r.Why]
		if !ok {
			at = len(v.v.Removed)
			why[r.Why] = at
			v.v.Removed = append(v.v.Removed, RemovedBy{Why: r.Why, First: r.First, Last: r.Last})
		}
		by := &v.v.Removed[at]
		by.Segments++
		by.Records += r.Records
		by.First, by.Last = min(by.First, r.First), max(by.Last, r.Last)
	}
	files := v.h.Segments()
	owner := map[string]string{} // of each hash
	for _, f := range files {
		owner[f.Segment.SHA256] = f.Segment.File
	}
	buf := make([]byte, 1<<20)
	for _, f := range files {
		name := filepath.Join(filepath.Base(filepath.Dir(f.Path)), f.Segment.File)
		sum, size, err := hashPath(ctx, f.Path, buf, v.o.Progress)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			var removed *RemovedError
			if err := new(Reader).explain(f, err); errors.As(err, &removed) && removed.Line != nil { // meanwhile
				continue
			}
			v.find(Missing, name, 0, "the segment is missing, with %d records of %s to %s, and no tombstone says why", f.Segment.Records, f.Segment.First, f.Segment.Last)
		case err != nil:
			v.find(Unreadable, name, 0, "%v", err)
		case sum == f.Segment.SHA256:
			v.v.Segments++
			v.v.Records += f.Segment.Records
			if v.v.First == nil || f.Segment.First < *v.v.First {
				v.v.First = new(f.Segment.First)
			}
			if v.v.Last == nil || f.Segment.Last > *v.v.Last {
				v.v.Last = new(f.Segment.Last)
			}
		case owner[sum] != "":
			v.find(Swapped, name, 0, "the segment has the bytes of %s: they have changed places", owner[sum])
		case size != f.Segment.Bytes:
			v.find(Altered, name, 0, "the segment was altered: it has %d bytes, and the catalog says %d", size, f.Segment.Bytes)
		default:
			v.find(Altered, name, 0, "the segment was altered: its bytes are not those that the catalog has the hash of")
		}
	}
	return nil
}

// openNow opens a file to read it. It does not wait for the other end of a FIFO that stands in its place.
func openNow(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) }

// hashPath returns the SHA-256 of a file, in hex, and its size.
func hashPath(ctx context.Context, path string, buf []byte, progress func(int64)) (sum string, size int64, err error) {
	f, err := openNow(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	for {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		size += int64(n)
		if progress != nil && n > 0 {
			progress(int64(n))
		}
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), size, nil
		}
		if err = cmp.Or(err, ctx.Err()); err != nil {
			return "", size, err
		}
	}
}

// unnamed looks at segments that no line names. One whose row log is there is being sealed, or a crash came; a row log goes
// only after the line is written.
func (v *verifier) unnamed(paths []string) {
	named := map[string]bool{}
	for i := range v.h.Lines {
		switch l := &v.h.Lines[i]; {
		case l.Removed != nil:
			named[filepath.Join("date="+l.Date, l.Removed.File)] = true
		case l.Segment != nil:
			named[filepath.Join("date="+l.Date, l.File)] = true
		}
	}
	for _, path := range paths {
		if named[path] {
			continue
		}
		if sequence, ok := sequenceOf(filepath.Base(path)); ok {
			if _, err := os.Stat(filepath.Join(v.h.Dir, rowLogName(sequence))); err == nil {
				continue
			}
		}
		if _, err := os.Stat(filepath.Join(v.h.Dir, path)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		lines, _, _ := ReadCatalog(filepath.Join(v.h.Dir, filepath.Dir(path)))
		if slices.ContainsFunc(lines, func(l Line) bool { return l.Segment != nil && l.File == filepath.Base(path) }) { // meanwhile
			continue
		}
		if len(v.h.Problems) > 0 { // the line that cannot be read may be its
			continue
		}
		v.find(Cut, path, 0, "no line of the catalog names this segment, and the row log that it was made of is gone: its line was cut off, or the file was put there")
	}
}

// rowLogs counts what is not sealed.
func (v *verifier) rowLogs() {
	for _, path := range v.h.RowLogs {
		u, damaged, err := unsealed(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // sealed meanwhile
		case err != nil:
			v.find(Unreadable, filepath.Base(path), 0, "%v", err)
		default:
			v.v.Unsealed = append(v.v.Unsealed, u)
			if damaged > 0 {
				v.find(Altered, u.File, 0, "the row log was altered, or the disk is faulty: %d records in it are damaged", damaged)
			}
		}
	}
}

func unsealed(path string) (u Unsealed, damaged uint64, err error) {
	u.File = filepath.Base(path)
	f, err := openNow(path)
	if err != nil {
		return u, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 { // it is being made
		return u, 0, err
	}
	s, err := newRowScan(f, info.Size())
	if err != nil {
		return u, 0, err
	}
	u.Since = s.Origin.Created
	for {
		_, _, fr, err := s.frame()
		if err == io.EOF {
			break
		}
		if err != nil {
			return u, 0, err
		}
		u.Records += uint64(fr.count)
	}
	u.Bytes = s.whole
	if s.inside.bytes > 0 {
		damaged = max(s.inside.lost, 1)
	}
	return u, damaged, nil
}

// notes compares the archive with the note in its folder, and with those that were kept elsewhere.
func (v *verifier) notes(msg []byte, err error) {
	verified := false
	own := uint64(0) // lines that the note in the folder covers
	output := ""     // whose archive this is, as the note in the folder says
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if v.keyed() {
			v.find(Forged, noteName, 0, "the checkpoint's note is missing, and the catalog says that there is a key which signs it")
		}
	case err != nil:
		v.find(Unreadable, noteName, 0, "%v", err)
	default:
		if n := v.open(noteName, msg); n != nil {
			v.v.Note = &Seen{noteName, n.Time, n.Lines, n.By}
			verified = len(n.By) > 0
			own, output = n.Lines, n.Output
			v.compare(noteName, n, n.Lines)
		}
	}
	found := false
	for _, w := range v.o.Notes {
		plain, err := ReadNote(w.Text)
		if err != nil || plain.Host != v.h.Name {
			continue
		}
		if v.another(plain, output) {
			if !slices.Contains(v.v.Others, plain.Output) {
				v.v.Others = append(v.v.Others, plain.Output)
			}
			continue
		}
		found = true
		n := v.open(w.From, w.Text)
		if n == nil {
			continue
		}
		verified = verified || len(n.By) > 0
		v.compare(w.From, n, own)
		if v.v.Witness == nil || v.v.Witness.Time < n.Time {
			v.v.Witness = &Seen{w.From, n.Time, n.Lines, n.By}
		}
	}
	switch {
	case len(v.v.Findings) > 0:
	case v.o.Witness && !found && len(v.v.Others) > 0:
		v.find(Unproven, "", 0, "no checkpoint that was given is of this archive: they are of %s, and this is %s", strings.Join(v.v.Others, ", "), output)
	case v.o.Witness && !found:
		v.find(Unproven, "", 0, "no checkpoint that was given is of the host %s", v.h.Name)
	case len(v.o.Keys) > 0 && !verified:
		v.find(Unproven, "", 0, "there is no checkpoint that a given key has signed; is key set under outputs.archive, and the first checkpoint over?")
	}
}

// another reports whether a note is of another archive of the same ctlogd than this one, which output writes. One that has
// seen this chain is not, as where the archive was moved; neither is one that does not tell.
func (v *verifier) another(n *Note, output string) bool {
	if n.Output == "" || output == "" || n.Output == output {
		return false
	}
	l := v.byN[n.Lines-1] // of no lines: none
	return l == nil || l.Hash != n.Hash
}

// keyed reports whether the catalog says that checkpoints are signed.
func (v *verifier) keyed() bool {
	return slices.ContainsFunc(v.h.Lines, func(l Line) bool { return l.Key != nil })
}

// open reads a note and looks at its signatures; nil if it says nothing that counts.
// Without a key to trust, Note.By stays empty.
func (v *verifier) open(from string, msg []byte) *Note {
	plain, err := ReadNote(msg)
	if err != nil {
		v.find(Forged, from, 0, "%v", err)
		return nil
	}
	if !bytes.Contains(msg, []byte("\n\n—")) {
		if v.keyed() {
			v.findBy(plain, from, "", Forged, from, 0, "the checkpoint of %s is not signed, and the catalog says that there is a key which signs it", plain.Time)
			return nil
		}
		return plain // there never was a key
	}
	n, err := ReadNote(msg, v.trusted...)
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	switch {
	case err == nil:
		return n
	case errors.As(err, &invalid):
		v.findBy(plain, from, invalid.Name, Forged, from, 0, "the checkpoint of %s was altered: its signature by %s is not right", plain.Time, invalid.Name)
	case errors.As(err, &unverified):
		v.findBy(plain, from, strings.Join(plain.Keys, ", "), Forged, from, 0, "the checkpoint of %s says that it is signed by %s, and there is no signature by a key to trust: one that was given, or that one of those has signed for",
			plain.Time, strings.Join(plain.Keys, ", "))
	default:
		v.findBy(plain, from, err.Error(), Forged, from, 0, "the checkpoint of %s: %v", plain.Time, err)
	}
	return nil
}

// compare looks whether the archive is what a note has seen, or what came of it. own is how many lines the folder's own
// note covers.
func (v *verifier) compare(from string, n *Note, own uint64) {
	there := uint64(len(v.h.Lines))
	broken := slices.ContainsFunc(v.v.Findings, func(f Finding) bool { return f.Verdict == Broken })
	if n.Lines > there && !broken {
		if from != noteName && own <= there {
			v.findBy(n, from, "", Replayed, "", 0, "an earlier state was put back: the checkpoint of %s in %s has seen %d lines of the catalog, and here are %d", n.Time, from, n.Lines, there)
		} else {
			v.findBy(n, from, "", Cut, "", 0, "the end of the catalog was cut off: the checkpoint of %s in %s has seen %d lines, and here are %d", n.Time, from, n.Lines, there)
		}
	} else if n.Lines > 0 {
		if l := v.byN[n.Lines-1]; l != nil && l.Hash != n.Hash && !broken {
			v.findBy(n, from, "", Rewritten, catalogOf(l), l.Number, "the catalog was rewritten: this line, %d of the chain, is another than the checkpoint of %s in %s has seen", l.N, n.Time, from)
		}
	}
	for _, r := range n.Rows {
		if v.o.Sealed || v.sealed[r.Sequence] {
			continue
		}
		v.compareRows(from, n, r)
	}
}

func (v *verifier) compareRows(from string, n *Note, r NoteRows) {
	name := rowLogName(r.Sequence)
	path := filepath.Join(v.h.Dir, name)
	info, err := os.Stat(path)
	sum := ""
	if err == nil && info.Size() >= r.Bytes {
		h := v.hashes[r.Sequence]
		if h == nil {
			h = new(rowHash)
			v.hashes[r.Sequence] = h
		}
		sum, err = h.upTo(path, r.Bytes) // it may be gone by now
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		now := &Host{Dir: v.h.Dir}
		if err := now.Reload(); err == nil && slices.ContainsFunc(now.Lines, func(l Line) bool {
			return l.Segment != nil && slices.Contains(l.RowLogs, r.Sequence) // sealed meanwhile
		}) {
			return
		}
		if slices.Contains(v.v.Aside, name+".aside") {
			v.findBy(n, from, name, Altered, name+".aside", 0, "the row log was damaged, and put aside: the checkpoint of %s in %s has seen %d bytes of it", n.Time, from, r.Bytes)
			return
		}
		v.findBy(n, from, name, Missing, name, 0, "the row log is missing, and no segment was made of it: the checkpoint of %s in %s has seen %d bytes of it; of a copy that was made without row logs, only what is sealed can be verified", n.Time, from, r.Bytes)
	case err != nil:
		v.findBy(n, from, name, Unreadable, name, 0, "%v", err)
	case info.Size() < r.Bytes:
		v.findBy(n, from, name, Cut, name, 0, "the end of the row log was cut off: it has %d bytes, and the checkpoint of %s in %s has seen %d; a power failure does this too where fsync is never", info.Size(), n.Time, from, r.Bytes)
	case sum != r.SHA256:
		v.findBy(n, from, name, Altered, name, 0, "the row log was altered: its first %d bytes are not those that the checkpoint of %s in %s has seen", r.Bytes, n.Time, from)
	default:
		for i := range v.v.Unsealed {
			if u := &v.v.Unsealed[i]; u.File == name {
				u.Covered = max(u.Covered, r.Bytes)
			}
		}
	}
}

// FindNotes returns the notes that stand in a text: one note, several one after the other, or a log of ctlogd's or
// records of any format, in which the ends of their lines are escaped.
func FindNotes(text []byte) (notes [][]byte) {
	for {
		i := bytes.Index(text, []byte(noteOrigin))
		if i < 0 {
			return notes
		}
		text = text[i:]
		end := len(text)
		if j := bytes.Index(text[len(noteOrigin):], []byte(noteOrigin)); j >= 0 {
			end = len(noteOrigin) + j
		}
		if n := oneNote(text[:end]); n != nil {
			notes = append(notes, n)
		}
		text = text[min(len(noteOrigin), len(text)):]
	}
}

// What a log escapes of a note, once for each layer of JSON that it is in: the ends of lines, and the dash before a signature.
var (
	escapedEnd  = pattern(`\\+n`)
	escapedDash = pattern(`\\+u2014`)
	escapedSign = pattern(`\\+=`) // in CEF
)

// pattern returns a regular expression that is compiled when it is first needed: every command of the program starts with
// what packages compile.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// oneNote returns the note at the start of a text, nil if there is none.
func oneNote(text []byte) []byte {
	line, _, _ := bytes.Cut(text, []byte("\n"))
	inLog := escapedEnd().Match(line)
	if inLog {
		text = escapedDash().ReplaceAll(escapedEnd().ReplaceAll(line, []byte("\n")), []byte("—"))
		text = escapedSign().ReplaceAll(text, []byte("="))
	}
	var b bytes.Buffer
	blank := false
	for i, s := range strings.Split(string(text), "\n") {
		if blank {
			fields := strings.Fields(s)
			if len(fields) < 3 || fields[0] != "—" {
				break
			}
			end := strings.IndexFunc(fields[2], func(c rune) bool {
				return !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.ContainsRune("+/=", c))
			})
			if end < 0 {
				end = len(fields[2])
			}
			fmt.Fprintf(&b, "— %s %s\n", fields[1], fields[2][:end])
			continue
		}
		s = strings.TrimSuffix(s, "\r")
		if blank = s == "" && i != hashLine; inLog && strings.ContainsAny(s, "\"\t\\") { // unsigned, in a log: what comes is not its
			b.WriteString(s[:strings.IndexAny(s, "\"\t\\")] + "\n\n")
			break
		}
		b.WriteString(s + "\n")
	}
	if n, err := ReadNote(b.Bytes()); err != nil || n.Time == 0 {
		return nil
	}
	return b.Bytes()
}

// Age returns how old a checkpoint is.
func (s *Seen) Age(now time.Time) time.Duration { return now.Sub(time.Unix(0, int64(s.Time))) }
