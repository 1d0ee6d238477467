package whois

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/printable"
)

// Report is an answer with what it rests on, for a file.
type Report struct {
	Answer    *Answer
	Made      time.Time
	By        Who
	Version   string
	Statement []string // the verdict for somebody who is no engineer
	Files     []Evidence
	More      int // files that were looked at and are not listed
	Notes     []Covering
}

// Evidence is a file that the answer rests on.
type Evidence struct {
	Host    string `json:"host"`
	Path    string `json:"path"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256,omitempty"`
	Holders int    `json:"holders"`                  // rows in it that the answer names
	Catalog string `json:"catalog_sha256,omitempty"` // what the catalog says it has to be
	Line    int    `json:"catalog_line,omitempty"`   // of the whole chain, from 1
	Covered bool   `json:"covered"`                  // by the checkpoint of the host
	Says    string `json:"says"`
}

// Covering is the newest note of a host's checkpoints.
type Covering struct {
	Host string `json:"host"`
	Time string `json:"time,omitempty"`
	Line uint64 `json:"catalog_lines"`
	Text string `json:"note"`
	Says string `json:"says"`
}

// mostFiles bounds how many files a report reads through.
const mostFiles = 40

// NewReport reads the files that the answer rests on once more, for their hashes.
func NewReport(a *Answer, by Who, version string, now time.Time) *Report {
	r := &Report{Answer: a, Made: now, By: by, Version: version, Statement: a.statement()}
	lines := map[*archive.Host]uint64{} // that a note covers; two archives may be of one host
	for _, h := range a.Hosts {
		if h.host == nil {
			continue
		}
		c, covers := coveringNote(h.host)
		if c != nil {
			r.Notes = append(r.Notes, *c)
			lines[h.host] = covers
		}
	}
	named := map[string]int{}
	for _, h := range a.Holders {
		if h.file != "" {
			named[h.file]++
		}
	}
	type file struct {
		host, path string
		segment    *archive.Segment
	}
	var files []file
	listed := map[string]bool{}
	for _, h := range a.Holders { // what holders stand in comes first
		if h.file != "" && !listed[h.file] {
			listed[h.file] = true
			files = append(files, file{h.host, h.file, h.segment})
		}
	}
	for _, h := range a.Hosts {
		for _, f := range h.looked {
			if !listed[f.Path] {
				listed[f.Path] = true
				files = append(files, file{h.Host, f.Path, f.Segment})
			}
		}
	}
	if len(files) > mostFiles {
		r.More = len(files) - mostFiles
		files = files[:mostFiles]
	}
	for _, f := range files {
		e := Evidence{Host: f.host, Path: f.path, Holders: named[f.path]}
		var err error
		e.SHA256, e.Bytes, err = hashFile(f.path)
		switch {
		case err != nil:
			e.Says = "It cannot be read: " + err.Error()
		case f.segment == nil && strings.HasSuffix(f.path, ".rows"):
			e.Says = "Still being written when the question was asked: its hash is of that moment."
		case f.segment == nil:
			e.Says = "No catalog says what it has to be."
		default:
			e.Catalog = f.segment.SHA256
			e.Says = "It is what the catalog says it has to be."
			if e.Catalog != e.SHA256 {
				e.Says = "ALTERED: the catalog says that it has to be another."
			}
			for _, h := range a.Hosts {
				if h.Host != f.host || h.host == nil || filepath.Dir(filepath.Dir(f.path)) != filepath.Clean(h.host.Dir) {
					continue
				}
				for i := range h.host.Lines {
					if l := &h.host.Lines[i]; l.Segment != nil && l.File == f.segment.File {
						e.Line = int(l.N) + 1
						e.Covered = l.N < lines[h.host]
					}
				}
			}
		}
		r.Files = append(r.Files, e)
	}
	return r
}

// coveringNote returns the newest note of a host's checkpoints, and how many lines of its catalogs it covers.
func coveringNote(h *archive.Host) (c *Covering, lines uint64) {
	text, err := h.LastNote()
	if err != nil {
		return &Covering{Host: h.Name, Says: "There is no signed checkpoint, so nothing but the catalog's own chain shows that nobody has changed it."}, 0
	}
	n, err := archive.ReadNote(text)
	if err != nil {
		return &Covering{Host: h.Name, Text: string(text), Says: "The checkpoint cannot be read: " + err.Error() + "."}, 0
	}
	c = &Covering{Host: h.Name, Time: stamp(int64(n.Time)), Line: n.Lines, Text: string(text)}
	c.Says = "ctlogd verify with the public key shows whether the signature holds; that it is not of today's making shows the copy that another machine has received."
	if !strings.Contains(c.Text, "\n\n\u2014 ") {
		c.Says = "It is not signed: ctlogd key new makes a key. A copy that another machine has received still shows what it was."
	}
	return c, n.Lines
}

func hashFile(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// statement says the verdict in the words of somebody who writes to a court.
func (a *Answer) statement() (s []string) {
	q := a.Question
	names := a.subscribers()
	var hosts []string
	for _, h := range a.Hosts {
		if !slices.Contains(hosts, h.Host) {
			hosts = append(hosts, cmp.Or(h.Host, "(unnamed)"))
		}
	}
	of := "the firewall " + strings.Join(hosts, ", ")
	if len(hosts) > 1 {
		of = "the firewalls " + list(hosts, 20)
	}
	use := "the public address " + q.Public.Addr.String()
	if q.Public.HasPort {
		use += fmt.Sprintf(" with the port number %d", q.Public.Port)
	}
	switch {
	case q.Src.IsValid():
		use = "the network by " + cmp.Or(q.SrcEnd.String(), q.Src.String())
	case !q.Public.Addr.IsValid():
		use = "the network to reach " + q.Dst.String()
	}
	when := "at " + q.span()
	lead := fmt.Sprintf("According to the records of %s, %s", of, when)
	switch {
	case q.Src.IsValid() || q.Person != "":
		s = append(s, fmt.Sprintf("%s: %s of %s. Each is listed below.", lead, plural(len(a.Holders), "connection", "connections"), cmp.Or(q.Person, q.SrcEnd.String(), q.Src.String())))
	case a.Verdict == None:
		s = append(s, lead+" nobody used "+use+".")
	case a.Verdict == Sole && q.Public.Addr.IsValid() && !slices.ContainsFunc(a.Holders, func(h *Holder) bool { return !h.itself() || !h.Certain() }):
		s = append(s, fmt.Sprintf("%s %s was used by the machine that has this address itself: the address is not translated.", lead, use))
	case a.Verdict == Sole && slices.ContainsFunc(a.Holders, (*Holder).Certain):
		s = append(s, fmt.Sprintf("%s one subscriber used %s: %s.", lead, use, named(a.Holders, names[0])))
	case a.Verdict == Sole:
		s = append(s, fmt.Sprintf("%s one subscriber may have used %s: %s. The records do not show it for certain.", lead, use, named(a.Holders, names[0])))
	default:
		var described []string
		for _, n := range names {
			described = append(described, named(a.Holders, n))
		}
		s = append(s, fmt.Sprintf("%s %d subscribers used %s: %s. The records do not say which of them is meant. %s",
			lead, len(names), use, list(described, 20), a.Decides))
	}
	if a.Complete {
		s = append(s, "No records are missing that could show anybody else at that time.")
	} else {
		s = append(s, "The records are not complete for that time: what is named below may be missing, so somebody else cannot be ruled out.")
	}
	return append(s, "The records are of connections through the firewall. They name the address that a subscriber's line or device had inside, and not a person. "+
		"The times are those of the firewall's clock; the time of the question was read as "+cmp.Or(q.Zone, "UTC")+".")
}

// named says who a subscriber is: by the id that a source has told, with the inside address, or by that alone.
func named(holders []*Holder, name string) string {
	for _, h := range holders {
		if (h.Subscriber == name || h.Next == name) && name != h.Line {
			return fmt.Sprintf("%s, with the inside address %s", name, h.Line)
		}
	}
	return "the one with the inside address " + name
}

//go:embed report.html
var reportText string

// reportHTML is parsed when a report is made, not in the daemon.
var reportHTML = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("report").Funcs(template.FuncMap{
		"stamp": func(ns int64) string {
			if ns == 0 {
				return ""
			}
			return stamp(ns)
		},
		"at":   func(t time.Time) string { return short(t.UnixNano()) },
		"text": printable.Text,
		"note": printable.Lines,
	}).Parse(reportText))
})

// HTML writes the report as a page that needs nothing else, and prints well.
func (r *Report) HTML(w io.Writer) error { return reportHTML().Execute(w, r) }

// Words is the question in a sentence, for the page.
func (r *Report) Words() string { return r.Answer.Question.words() }

// Zone tells whose time it is, for the page.
func (r *Report) Zone() string { return cmp.Or(r.Answer.Question.Note, "zone "+r.Answer.Question.Zone) }

// Path, Life, Counters, Stands and Clock are for the page.
func (h *Holder) Path() string     { return h.path() }
func (h *Holder) Life() string     { return h.life() }
func (h *Holder) Counters() string { return h.counters() }
func (h *Holder) Stands() string   { return h.stands() }
func (h *Holder) Clock() string    { return strings.Join(h.json().Clock, ", ") }
func (h *Holder) Protocol() string { return h.Orig.Proto.String() }
func (h *Holder) Machine() string  { return h.host }

// JSON writes the report as JSON.
func (r *Report) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		V           int        `json:"v"`
		Made        string     `json:"made"`
		UID         int        `json:"uid"`
		User        string     `json:"user,omitempty"`
		SudoUser    string     `json:"sudo_user,omitempty"`
		On          string     `json:"on,omitempty"`
		Version     string     `json:"ctlogd"`
		Statement   []string   `json:"statement"`
		Answer      jsonAnswer `json:"answer"`
		Files       []Evidence `json:"files"`
		More        int        `json:"files_not_listed,omitempty"`
		Checkpoints []Covering `json:"checkpoints"`
	}{1, stamp(r.Made.UnixNano()), r.By.UID, r.By.User, r.By.SudoUser, r.By.Host, r.Version, r.Statement, r.Answer.json(), r.Files, r.More, r.Notes})
}

// Write writes the report to a file, in the form that its name asks for. The file is there whole or not at all.
func (r *Report) Write(path string) (err error) {
	write := r.HTML
	if filepath.Ext(path) == ".json" {
		write = r.JSON
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write the report %s: %w", path, err)
	}
	return nil
}
