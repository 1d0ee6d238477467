package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/ctlogd/ctlogd/flow"
)

// Checkpoint is a reading of the table of live flows, as the catalog has it: the flows that were older than MinAge then
// have an open record. If it is whole, whoever was alive has a record by its end.
type Checkpoint struct {
	Began  Time     `json:"began"`
	Ended  Time     `json:"ended"`
	MinAge Duration `json:"min_age"`
	Whole  bool     `json:"whole"`
}

// checkpointOf returns what a record says of a reading that is over.
func checkpointOf(r *flow.Record) Checkpoint {
	return Checkpoint{Began: Time(r.Start), Ended: Time(r.Stop), MinAge: Duration(time.Duration(r.Timeout) * time.Second),
		Whole: r.Checkpoint() == flow.CheckpointWhole}
}

// CheckpointOf returns what a record says of a reading that is over; ok is false if it is another record.
func CheckpointOf(r *flow.Record) (c Checkpoint, ok bool) {
	if !isCheckpoint(r) {
		return c, false
	}
	return checkpointOf(r), true
}

// AppendCheckpoint appends the JSON object of a record that says that a reading is over.
func AppendCheckpoint(dst []byte, o *Origin, r *flow.Record) []byte {
	c := checkpointOf(r)
	text, _ := json.Marshal(struct { // of these types nothing fails
		V     int    `json:"v"`
		Time  Time   `json:"time"`
		Event string `json:"event"`
		Host  string `json:"host"`
		From  Time   `json:"from"`
		To    Time   `json:"to"`
		Age   uint32 `json:"min_age_s"`
		Whole bool   `json:"whole"`
	}{1, Time(r.Received), checkpointEvent, o.Host, c.Began, c.Ended, r.Timeout, c.Whole})
	return append(dst, text...)
}

// A note says what an archive held at a time: the number of catalog lines and the hash of the last one, which covers all
// before it, and for each row log that was not sealed how long it was and the hash of so much. It is text in the format of
// golang.org/x/mod/sumdb/note, signed with ed25519 if there is a key:
//
//	ctlogd archive gw1
//	42
//	kQ8o...=
//	rows 43 1048576 8b1a...=
//	time 2026-11-27T12:00:00.000000000Z
//	output archive:/var/log/ctlogd/archive
//	key gw1+0337a0ae+AdQ...=
//
//	— gw1 Az3grl...=
//
// A key on the machine proves only what was seen elsewhere: so each note goes into ctlogd's own log as well. Lines of key
// are the public keys of those who sign: they tell which key it was, and prove nothing.
const (
	noteName   = "checkpoint.note"
	noteOrigin = "ctlogd archive "
)

// Note is what a checkpoint's note says.
type Note struct {
	Host  string
	Lines uint64 // of all catalogs
	Hash  string // SHA-256 of the last line in hex; "" if there is none
	Rows  []NoteRows
	Time  Time
	// Output is the name of the output, escaped as a URL's path is: one ctlogd may have several archives. "" in older notes.
	Output string
	Keys   []string // public, of those who are said to have signed
	By     []string // public, of those whose signatures were verified
}

// NoteRows is what a note says of a row log that was not sealed.
type NoteRows struct {
	Sequence uint64
	Bytes    int64  // from the start of the file
	SHA256   string // of so many, in hex
}

// Origin returns the note's first line, which says whose archive it is of.
func (n *Note) Origin() string { return noteOrigin + printable(n.Host) }

// text returns the note's text, which is what is signed.
func (n *Note) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%d\n%s\n", n.Origin(), n.Lines, toBase64(n.Hash))
	for _, r := range n.Rows {
		fmt.Fprintf(&b, "rows %d %d %s\n", r.Sequence, r.Bytes, toBase64(r.SHA256))
	}
	fmt.Fprintf(&b, "time %s\n", n.Time)
	if n.Output != "" {
		fmt.Fprintf(&b, "output %s\n", n.Output)
	}
	for _, k := range n.Keys {
		fmt.Fprintf(&b, "key %s\n", k)
	}
	return b.String()
}

// printable is a host's name for a note and for a key, which hold no blanks.
func printable(host string) string { return strings.TrimPrefix(HostFolder(host), "host=") }

func toBase64(h string) string {
	b, _ := hex.DecodeString(h)
	return base64.StdEncoding.EncodeToString(b)
}

func fromBase64(s string) (string, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	return hex.EncodeToString(b), err
}

// errNote is the error of a text that is no note of an archive.
var errNote = errors.New("is no note of an archive's checkpoint")

// ReadNote reads a note. It has to be signed by one of the public keys, unless there are none: then Note.By is empty, and
// nothing is proved.
func ReadNote(msg []byte, public ...string) (n *Note, err error) {
	text := string(msg)
	n = new(Note)
	if len(public) > 0 {
		if text, n.By, err = openNote(msg, public); err != nil {
			return nil, err
		}
	} else {
		text = unsigned(text)
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) < 4 || !strings.HasPrefix(lines[0], noteOrigin) {
		return nil, errNote
	}
	n.Host = strings.TrimPrefix(lines[0], noteOrigin)
	if n.Lines, err = strconv.ParseUint(lines[1], 10, 64); err != nil {
		return nil, errNote
	}
	if n.Hash, err = fromBase64(lines[2]); err != nil {
		return nil, errNote
	}
	for _, line := range lines[3:] {
		switch f := strings.Fields(line); {
		case len(f) == 4 && f[0] == "rows":
			var r NoteRows
			sequence, err1 := strconv.ParseUint(f[1], 10, 64)
			size, err2 := strconv.ParseInt(f[2], 10, 64)
			sum, err3 := fromBase64(f[3])
			if errors.Join(err1, err2, err3) != nil {
				return nil, errNote
			}
			r.Sequence, r.Bytes, r.SHA256 = sequence, size, sum
			n.Rows = append(n.Rows, r)
		case len(f) == 2 && f[0] == "time":
			if err := n.Time.UnmarshalText([]byte(f[1])); err != nil {
				return nil, errNote
			}
		case len(f) == 2 && f[0] == "output":
			n.Output = f[1]
		case len(f) == 2 && f[0] == "key":
			n.Keys = append(n.Keys, f[1])
		default: // a later version says more
		}
	}
	return n, nil
}

// hashLine is the index of a note's line with the hash, which is empty as long as the catalogs have no line.
const hashLine = 2

// unsigned returns the text of a note without the blank line behind it, and what follows that.
func unsigned(msg string) string {
	start := 0
	for range hashLine {
		start += strings.IndexByte(msg[start:], '\n') + 1
	}
	if i := strings.Index(msg[start:], "\n\n"); i >= 0 {
		return msg[:start+i+1]
	}
	return msg
}

// rowHash is the hash of a row log so far: what was hashed once is not read again.
type rowHash struct {
	sum  hash.Hash
	size int64
}

// upTo returns the SHA-256 of the first size bytes of a row log.
func (h *rowHash) upTo(path string, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if h.sum == nil || size < h.size { // a torn tail that was covered is cut off
		h.sum, h.size = sha256.New(), 0
	}
	n, err := io.Copy(h.sum, io.NewSectionReader(f, h.size, size-h.size))
	h.size += n
	if err != nil {
		return "", err
	}
	if h.size != size {
		return "", io.ErrUnexpectedEOF
	}
	return hex.EncodeToString(h.sum.Sum(nil)), nil
}

// note writes the note of this moment, and tells it to Options.Log and Options.Noted. logs are the row logs that wait to be sealed.
func (w *Writer) note(logs []*rowLog) error {
	if w.o.Sync != SyncNever { // what a note has seen shall not be gone after a power failure
		if err := w.Sync(); err != nil {
			return err
		}
	}
	signers, err := w.signers()
	if err != nil {
		w.o.Log(Error, "checkpoints are not signed", w.o.Key, err, "make a key with ctlogd key new, readable by this user")
	}
	n := Note{Host: w.o.Host, Lines: w.k.chain.n, Hash: w.k.chain.hash, Time: Time(w.now()),
		Output: (&url.URL{Path: w.o.Output}).EscapedPath()}
	var by []note.Signer
	for _, k := range signers {
		n.Keys, by = append(n.Keys, k.Public), append(by, k)
	}
	type part struct {
		sequence uint64
		path     string
		size     int64
	}
	var parts []part
	for _, l := range logs {
		parts = append(parts, part{l.Origin.Sequence, l.path, l.size})
	}
	w.mu.Lock()
	for _, l := range append(slices.Clone(w.closed), w.active) {
		if l != nil {
			parts = append(parts, part{l.Origin.Sequence, l.path, l.size})
		}
	}
	w.mu.Unlock()
	hashes := map[uint64]*rowHash{}
	for _, p := range parts {
		h := w.k.hashes[p.sequence]
		if h == nil {
			h = new(rowHash)
		}
		sum, err := h.upTo(p.path, p.size)
		if err != nil {
			return fmt.Errorf("read %s: %w", p.path, err)
		}
		hashes[p.sequence] = h
		n.Rows = append(n.Rows, NoteRows{p.sequence, p.size, sum})
	}
	w.k.hashes = hashes
	msg, err := note.Sign(&note.Note{Text: n.text()}, by...)
	if err != nil {
		return err
	}
	path := filepath.Join(w.dir, noteName)
	if err := writeFile(path, msg); err != nil {
		return err
	}
	w.Stats.Checkpointed.Store(int64(n.Time))
	w.o.Log(Info, "checkpoint: "+string(bytes.TrimSpace(msg)), path, nil, "")
	if w.o.Noted != nil {
		w.o.Noted(&n, string(msg))
	}
	return nil
}

// writeFile puts a file in the place of what was there, which is whole until then.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path+".tmp"))
	}
	return syncDir(filepath.Dir(path))
}

// LastNote returns the note that was written last in a host's folder; an error of fs.ErrNotExist if there is none.
func (h *Host) LastNote() ([]byte, error) { return os.ReadFile(filepath.Join(h.Dir, noteName)) }
