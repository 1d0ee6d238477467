package whois

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// Archive is a source of one archive or more.
type Archive struct {
	sealed archive.Reader // reads the segments of all: it keeps some of them open
	table  *Table
	hosts  []*archiveHost
	closed []*facts // of folders that cannot be read: what is in them may be missing, and the others answer
}

type archiveHost struct {
	*archive.Host
	logs     kept // rows of row logs, and of the table
	gaps     []archive.Gap
	checks   []check // of the catalogs and the row logs, in their order
	unsynced doubtful
	leftOut  []span
	ends     int64 // of the row logs
	begins   int64
	problems []Reason
	dropped  map[string][]string // keys that are left out, by file
	live     bool
	liveErr  error
	keys     map[string]format.ObserverKey
}

// OpenArchive opens archives: folders with folders host=... in them, at most three levels down. hosts, if there are any,
// are those that are asked. table may be nil.
func OpenArchive(dirs, hosts []string, table *Table) (*Archive, error) {
	a := &Archive{table: table}
	var found []string
	closed := map[string]error{}
	for _, dir := range dirs {
		f, err := findHosts(dir, 3, closed)
		if err != nil {
			return nil, err
		}
		if len(f)+len(closed) == 0 {
			return nil, fmt.Errorf("%s is no archive: there is no folder host=... in it; name the outputs.archive path of the firewall, or a copy of it", dir)
		}
		found = append(found, f...)
	}
	slices.Sort(found)
	found = slices.Compact(found)
	name := func(folder string) string { return strings.TrimPrefix(filepath.Base(folder), "host=") }
	if len(hosts) > 0 {
		var names []string
		for _, f := range found {
			names = append(names, name(f))
		}
		for _, h := range hosts {
			if !slices.Contains(names, h) {
				return nil, fmt.Errorf("no host %s there; there are: %s", h, strings.Join(names, ", "))
			}
		}
		found = slices.DeleteFunc(found, func(f string) bool { return !slices.Contains(hosts, name(f)) })
		closed = map[string]error{} // of others
	}
	for _, dir := range found {
		h := &archive.Host{Dir: dir, Name: name(dir)}
		if err := h.Reload(); err != nil {
			closed[dir] = err
			continue
		}
		a.hosts = append(a.hosts, &archiveHost{Host: h, keys: map[string]format.ObserverKey{}, dropped: map[string][]string{}})
	}
	for _, dir := range slices.Sorted(maps.Keys(closed)) {
		r := closedReason(name(dir), dir, closed[dir])
		if len(a.hosts) == 0 {
			return nil, errors.New(strings.TrimSuffix(r.Text, "."))
		}
		a.closed = append(a.closed, &facts{host: r.Host, folder: dir, closed: true, problems: []Reason{r}})
	}
	return a, nil
}

// closedReason says that a folder cannot be read.
func closedReason(host, dir string, err error) Reason {
	text := fmt.Sprintf("%s cannot be read (%v), so none of its records were looked at.", dir, err)
	if errors.Is(err, fs.ErrPermission) {
		text = fmt.Sprintf("%s may not be read, so none of its records were looked at: ask as root, or as a member of its group.", dir)
	}
	return Reason{Kind: "unreadable", Host: host, Text: text}
}

// findHosts returns the folders of hosts below dir. Into closed go folders on the way that cannot be read, and links that
// lead nowhere; an error is about dir itself.
func findHosts(dir string, deep int, closed map[string]error) (found []string, err error) {
	if strings.HasPrefix(filepath.Base(filepath.Clean(dir)), "host=") {
		return []string{filepath.Clean(dir)}, nil
	}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no archive %s", dir)
	case err != nil:
		return nil, fmt.Errorf("read the archive: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		folder, err := isDir(path, e)
		switch {
		case err != nil:
			closed[path] = err
		case !folder:
		case strings.HasPrefix(e.Name(), "host="):
			found = append(found, path)
		case deep > 0 && !strings.HasPrefix(e.Name(), ".") && e.Name() != "lost+found":
			below, err := findHosts(path, deep-1, closed)
			if err != nil {
				closed[path] = errors.Unwrap(err)
			}
			found = append(found, below...)
		}
	}
	return found, nil
}

// isDir reports whether an entry is a folder, or a link to one. The error is of a link.
func isDir(path string, e fs.DirEntry) (bool, error) {
	if e.Type()&fs.ModeSymlink == 0 {
		return e.IsDir(), nil
	}
	info, err := os.Stat(path)
	return err == nil && info.IsDir(), err
}

// Prepare reads the table, where it is needed, and then the row logs: in this order, so that a flow that ends meanwhile
// is in one of them.
func (a *Archive) Prepare(ctx context.Context, questions []*Question) error {
	want, glance := wanted(questions), glanced(questions)
	for _, h := range a.hosts {
		h.logs, h.gaps, h.problems, h.unsynced = kept{}, nil, nil, doubtful{}
		h.ends, h.begins, h.live, h.liveErr = 0, 0, false, nil
		if a.live(h) && a.table.Read != nil && !h.witnessed(questions) {
			h.liveErr = a.table.read(ctx, filepath.Dir(h.Dir), func(r *flow.Record, id string) {
				if want(r) {
					h.logs.add(row{Record: r, host: h.Name, folder: h.Dir, flowID: id, live: true})
				}
			})
			h.live = h.liveErr == nil
			// A row log that was begun meanwhile has what has ended meanwhile.
			if err := h.Reload(); err != nil {
				return fmt.Errorf("read the archive: %w", err)
			}
		}
		h.leftOut = spans(h.Lines)
		latest := h.sealedChecks()
		if err := h.readLogs(ctx, want, glance, latest); err != nil {
			return err
		}
		for i := range h.Lines {
			if l := &h.Lines[i]; l.Segment != nil {
				h.gaps = append(h.gaps, l.Gaps...)
				h.note(int64(l.First))
				h.note(int64(l.Last))
				if l.Unsynced != nil {
					h.unsynced.all = append(h.unsynced.all, *l.Unsynced)
				}
			}
		}
	}
	return nil
}

// witnessed reports whether a checkpoint has seen the flows of all questions. One that has seen those of the last has.
func (h *archiveHost) witnessed(questions []*Question) bool {
	if len(questions) == 0 {
		return true
	}
	_, ok := h.Witness(slices.MaxFunc(questions, func(p, q *Question) int { return cmp.Compare(p.To, q.To) }).To)
	return ok
}

// live reports whether the daemon of this machine writes the host's folder.
func (a *Archive) live(h *archiveHost) bool {
	return a.table != nil && a.table.Writes(filepath.Dir(h.Dir)) && archive.HostFolder(a.table.Host) == filepath.Base(h.Dir)
}

// sealedChecks sets the checkpoints that catalogs tell of, and returns the latest time of what is sealed.
func (h *archiveHost) sealedChecks() (latest int64) {
	h.checks = nil
	for i := range h.Lines {
		if l := &h.Lines[i]; l.Segment != nil {
			for _, c := range l.Checkpoints {
				h.checks = append(h.checks, check{c, latest, int64(l.Last)})
			}
			latest = max(latest, int64(l.Last))
		}
	}
	return latest
}

func (h *archiveHost) note(t int64) {
	if h.begins == 0 || t < h.begins {
		h.begins = t
	}
	h.ends = max(h.ends, t)
}

// readLogs reads the row logs of a host. latest is that of what is sealed.
func (h *archiveHost) readLogs(ctx context.Context, want func(*flow.Record) bool, glance func(*flow.Glance) bool, latest int64) error {
	logs := &archive.Reader{Hosts: []*archive.Host{{Dir: h.Dir, Name: h.Name, RowLogs: h.RowLogs}}}
	seen := func(t int64, has flow.Has) {
		h.note(t)
		h.unsynced.add(t, has&flow.Unsynchronized != 0)
	}
	q := archive.Query{Glance: func(g *flow.Glance) bool {
		seen(g.Time, g.Has)
		return glance(g)
	}, Where: func(r *flow.Record) bool {
		t, _ := r.Time()
		seen(t, r.Has) // for the first time if the row log has become a segment meanwhile
		if r.Event == flow.EventGap {
			h.gaps = append(h.gaps, archive.GapOf(r))
			return false
		}
		if c, ok := archive.CheckpointOf(r); ok {
			h.checks = append(h.checks, check{c, latest, 1 << 62})
			return false
		}
		return want(r)
	}}
	for w, err := range logs.Rows(ctx, &q) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err != nil {
			h.problems = append(h.problems, problem(h.Name, w.File.Path, err))
			continue
		}
		h.logs.add(h.row(w))
	}
	return nil
}

func (h *archiveHost) row(w archive.Row) row {
	r := row{Record: w.Record, host: h.Name, folder: h.Dir, dropped: w.Origin.Dropped, file: w.File.Path, number: w.Number, segment: w.File.Segment}
	if w.Origin.HasFlowID() {
		key, ok := h.keys[w.Origin.Observer]
		if !ok {
			key = format.NewObserverKey(w.Origin.Observer)
			h.keys[w.Origin.Observer] = key
		}
		r.flowID = idOf(key, w.Record)
	}
	return r
}

// problem says that a file does not tell all that it should.
func problem(host, path string, err error) Reason {
	var gone *archive.RemovedError
	switch {
	case errors.As(err, &gone) && gone.Line != nil:
		return removedReason(host, gone.Line)
	case errors.As(err, &gone):
		return Reason{Kind: "missing", Host: host, Text: fmt.Sprintf(
			"%s is missing, and nothing says that it was removed by a rule. Fetch it from a backup, and ask again.", path)}
	case errors.Is(err, archive.ErrNewer):
		return Reason{Kind: "unreadable", Host: host, Text: fmt.Sprintf("%s: %v.", path, err)}
	case errors.Is(err, fs.ErrPermission):
		return Reason{Kind: "unreadable", Host: host, Text: fmt.Sprintf("%s may not be read: ask as root, or as a member of the group of the file.", path)}
	}
	text := strings.TrimPrefix(err.Error(), path+": ")
	return Reason{Kind: "unreadable", Host: host, Text: fmt.Sprintf(
		"%s cannot be read to its end (%s): it is damaged, or only half of it was copied. Fetch it anew, and ask again.", path, text)}
}

func removedReason(host string, l *archive.Line) Reason {
	why := map[string]string{"max_age": "because their time was over (max_age)", "max_size": "because the archive had reached its size (max_size)",
		"reserve": "because the disk was full (reserve)"}[l.Removed.Why]
	if why == "" {
		why = "(" + l.Removed.Why + ")"
	}
	from, to := int64(l.Removed.First), int64(l.Removed.Last)
	return Reason{Kind: "removed", Host: host, From: from, To: to, Text: fmt.Sprintf("%d records of flows that ended from %s to %s were removed at %s %s.",
		l.Removed.Records, short(from), short(to), short(int64(l.At)), why)}
}

// Collect returns the rows that a question may be about.
func (a *Archive) Collect(ctx context.Context, q *Question) (rows []row, all []*facts, err error) {
	g := gathered{q: q}
	for _, h := range a.hosts {
		f := h.facts(q)
		if a.live(h) {
			f.filter = a.table.Filter(filepath.Dir(h.Dir), q)
		}
		all = append(all, f)
		since := f.since(q)
		g.rows = h.logs.answer(g.rows, q, since)
		f.over = h.logs.over
		host := *h.Host
		host.RowLogs = nil // they were read once for all questions
		a.sealed.Hosts = []*archive.Host{&host}
		seen := map[string]bool{}
		bounded := q.query(since)
		if f.after != nil {
			bounded.Until = f.until
		}
		f.looked = a.sealed.Files(h.Host, &bounded)
		f.dropped = a.droppedIn(h, f.looked)
		for i, query := range q.queries(since) {
			if f.after != nil {
				query.Until = f.until
			}
			for w, err := range a.sealed.Rows(ctx, &query) {
				if err := ctx.Err(); err != nil {
					return nil, nil, err
				}
				if err != nil {
					if p := problem(h.Name, w.File.Path, err); !seen[p.Text] {
						seen[p.Text] = true
						f.problems = append(f.problems, p)
					}
					continue
				}
				if !isFlow(w.Record) {
					continue
				}
				r := h.row(w)
				r.incoming = i == 1
				if g.add(r); g.full {
					f.over = true
					break
				}
			}
		}
	}
	return g.rows, append(all, a.closed...), nil
}

// droppedIn returns the keys that are left out of one of the files or more.
func (a *Archive) droppedIn(h *archiveHost, files []archive.File) (all []string) {
	for _, f := range files {
		keys, known := h.dropped[f.Path]
		if !known {
			o, err := a.sealed.Origin(f.Path)
			if err != nil {
				continue // which is told where its rows are read
			}
			keys = o.Dropped
			h.dropped[f.Path] = keys
		}
		for _, key := range keys {
			if !slices.Contains(all, key) {
				all = append(all, key)
			}
		}
	}
	return all
}

func (h *archiveHost) facts(q *Question) *facts {
	f := &facts{host: h.Name, begins: h.begins, ends: h.ends, gaps: h.gaps, live: h.live, liveErr: h.liveErr, folder: h.Dir, lines: len(h.Lines), archive: h.Host}
	f.problems = slices.Clone(h.problems)
	for _, err := range h.Problems {
		if errors.Is(err, fs.ErrPermission) {
			f.problems = append(f.problems, Reason{Kind: "unreadable", Host: h.Name, Text: fmt.Sprintf(
				"The catalog may not be read (%v), so its segments are not known: ask as root, or as a member of its group.", err)})
			continue
		}
		f.problems = append(f.problems, Reason{Kind: "catalog", Host: h.Name, Text: fmt.Sprintf(
			"The catalog is damaged (%v), so segments that it named are not known. ctlogd verify tells more.", err)})
	}
	for _, hole := range h.Holes {
		f.problems = append(f.problems, Reason{Kind: "missing", Host: h.Name, Text: fmt.Sprintf(
			"In %s, %s, and nothing says that a rule has removed what they name: a copy was made while ctlogd wrote, or not of all. Copy again, and ask again.", h.Dir, hole)})
	}
	f.leftOut, f.unsynced = h.leftOut, h.unsynced.all
	f.bound(h.checks, q)
	for _, l := range h.Removed(q.From, q.To) {
		if f.after == nil || int64(l.Removed.First) <= f.until {
			f.removed = append(f.removed, l)
		}
	}
	return f
}
