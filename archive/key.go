package archive

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Key signs the checkpoints of a host. Its private part stays on the host, the public one verifies anywhere.
type Key struct {
	note.Signer
	Public string
}

const privateKey = "PRIVATE+KEY+"

// NewKey makes a pair of keys for the notes of a host. private is the text of the file that Options.Key is read from;
// public is what verifies.
func NewKey(host string) (private, public string, err error) {
	return note.GenerateKey(rand.Reader, printable(host))
}

// parseKey reads a private key.
func parseKey(text string) (k Key, err error) {
	if k.Signer, err = note.NewSigner(text); err != nil {
		return k, err
	}
	// NewSigner has verified that it is PRIVATE+KEY+name+hash+, and behind that, in base64, the algorithm's byte and the seed.
	seed, err := base64.StdEncoding.DecodeString(strings.SplitN(text, "+", 5)[4])
	if err != nil {
		return k, err
	}
	k.Public, err = note.NewEd25519VerifierKey(k.Name(), ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey))
	return k, err
}

// ReadKeys returns the keys in a file that has a private key in each line. The last one signs. One before it is an old one,
// which signs beside it for an interval.
func ReadKeys(path string) ([]Key, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var keys []Key
	for line := range strings.FieldsSeq(string(text)) {
		k, err := parseKey(line)
		if err != nil {
			return nil, fmt.Errorf("%s: no private key of an archive; make one: ctlogd key new", path)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s: no key in it; make one: ctlogd key new", path)
	}
	return keys, nil
}

// CreateKey makes the file of a new key, for its owner alone, and returns the public part. A file that is there is never
// written over.
func CreateKey(path, host string) (public string, err error) {
	private, public, err := NewKey(host)
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("%s is there already, and a key is never written over; ctlogd key rotate puts a new one beside it", path)
	}
	if err != nil {
		return "", err
	}
	_, err = fmt.Fprintln(f, private)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	return public, syncDir(filepath.Dir(path))
}

// RotateKey puts a new key beside the last one in a key file, which keeps its owner and mode. Older ones go.
func RotateKey(path string) (public, old string, err error) {
	keys, err := ReadKeys(path)
	if err != nil {
		return "", "", err
	}
	last := keys[len(keys)-1]
	text, err := os.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	lines := strings.Fields(string(text))
	private, public, err := note.GenerateKey(rand.Reader, last.Name())
	if err != nil {
		return "", "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", "", err
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", "", err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	_, err = fmt.Fprintf(f, "%s\n%s\n", lines[len(lines)-1], private)
	if err = errors.Join(err, takeOver(f, info), f.Sync(), f.Close()); err != nil {
		return "", "", err
	}
	if err = os.Rename(tmp, path); err != nil {
		return "", "", err
	}
	return public, last.Public, syncDir(filepath.Dir(path))
}

// PublicKeys returns the public keys that a text has, one in each line. What stands behind a # is a comment.
func PublicKeys(text string) (keys []string, err error) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			continue
		case strings.HasPrefix(line, privateKey):
			return nil, errors.New("holds a private key, which should not leave its machine; ctlogd key show FILE prints the public one")
		}
		if _, err := note.NewVerifier(line); err != nil {
			return nil, fmt.Errorf("%q is no public key of an archive; it is what ctlogd key new has printed, NAME+HASH+KEY", line)
		}
		keys = append(keys, line)
	}
	if len(keys) == 0 {
		return nil, errors.New("has no public key; it is what ctlogd key new has printed, NAME+HASH+KEY")
	}
	return keys, nil
}

// openNote returns the text of a note, and which of the public keys have signed it. One has to.
func openNote(msg []byte, public []string) (text string, by []string, err error) {
	var known []note.Verifier
	names := map[string]string{}
	for _, k := range public {
		v, err := note.NewVerifier(k)
		if err != nil {
			return "", nil, fmt.Errorf("%q is no public key of an archive: %w", k, err)
		}
		id := fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash())
		if _, twice := names[id]; !twice { // of two, none would be found
			known, names[id] = append(known, v), k
		}
	}
	signed, err := note.Open(msg, note.VerifierList(known...))
	if err != nil {
		return "", nil, err
	}
	for _, s := range signed.Sigs {
		by = append(by, names[fmt.Sprintf("%s+%08x", s.Name, s.Hash)])
	}
	return signed.Text, by, nil
}

// KeyChange is what a line of kind KindKey says: from here on, another key signs the checkpoints.
type KeyChange struct {
	New  string `json:"new"`           // public key
	Old  string `json:"old,omitempty"` // the one before; "": there was none
	Note string `json:"note"`          // says the same, signed by both
}

// text is what is signed. host is as notes have it.
func (k *KeyChange) text(host string) string {
	return fmt.Sprintf("ctlogd archive key\n%s\nold %s\nnew %s\n", host, k.Old, k.New)
}

// signedBy reports whether one of the public keys has signed the change.
func (k *KeyChange) signedBy(host string, public ...string) bool {
	text, _, err := openNote([]byte(k.Note), public)
	return err == nil && text == k.text(host)
}

// signers returns who signs a note now, and puts a change of keys on record. On error there may be some all the same.
func (w *Writer) signers() ([]Key, error) {
	if w.o.Key == "" {
		return nil, nil
	}
	keys, err := ReadKeys(w.o.Key)
	if err != nil {
		return nil, err
	}
	current := keys[len(keys)-1]
	find := func(public string) []Key {
		if i := slices.IndexFunc(keys, func(k Key) bool { return k.Public == public && public != current.Public }); i >= 0 {
			return keys[i : i+1]
		}
		return nil
	}
	if w.k.keyLine == nil || w.k.keyLine.Key.New != current.Public {
		change := &KeyChange{New: current.Public}
		switch {
		case w.k.keyLine != nil:
			change.Old = w.k.keyLine.Key.New
		case len(keys) > 1:
			change.Old = keys[len(keys)-2].Public
		}
		by := []note.Signer{current}
		for _, k := range find(change.Old) {
			by = append(by, k)
		}
		if change.Old != "" && len(by) == 1 {
			w.o.Log(Warn, "the key that signs checkpoints has changed, and the old one is not there to sign the change: ctlogd verify will say so",
				w.o.Key, nil, "put the old key into the line before the new one, before the first checkpoint with it; ctlogd key rotate does")
		}
		msg, err := note.Sign(&note.Note{Text: change.text(printable(w.o.Host))}, by...)
		if err != nil {
			return keys, err
		}
		change.Note = string(msg)
		line := Line{Kind: KindKey, At: Time(w.now()), Key: change}
		if err := makeDir(filepath.Join(w.dir, "date="+line.At.date())); err != nil {
			return keys, err
		}
		if err := w.k.chain.append(line.At.date(), line); err != nil {
			return keys, err
		}
		w.k.keyLine = &line
		w.o.Log(Info, "checkpoints are signed with the key "+current.Public, w.o.Key, nil, "")
	}
	signers := []Key{current}
	if time.Duration(w.now()-int64(w.k.keyLine.At)) < w.o.Interval {
		signers = append(signers, find(w.k.keyLine.Key.Old)...)
	}
	return signers, nil
}
