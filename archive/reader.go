package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ctlogd/ctlogd/flow"
)

// Reader answers questions from one or more archives, or copies of them. It writes nothing. It is for one goroutine. Close
// closes what it has open.
type Reader struct {
	Hosts []*Host

	// Opened counts the segments that were opened, RowGroups the groups in them that were looked into.
	Opened    int
	RowGroups atomic.Int64

	tables tables
}

// Host is what one host has in an archive.
type Host struct {
	Dir  string
	Name string // of the folder, "host=" cut off

	Lines    []Line // of all catalogs, in the order of the chain
	Problems []error
	RowLogs  []string // paths of those that no line names, oldest first

	// Holes are sentences about what is not there and has left no tombstone: lines of the catalog, and row logs that are
	// neither there nor sealed. A copy that was made while ctlogd wrote may have some.
	Holes []string

	kept map[string]bool // DATE/FILE of segments that have a tombstone and are there: in a copy that is kept longer
}

// File is a segment or a row log of a host.
type File struct {
	Path    string
	Host    *Host
	Segment *Segment // nil: a row log
}

// OpenReader reads the catalogs of archives. Each of dirs is an archive's folder, or the folder host=... of one host. That
// there is no archive is an error; damage in it stands in Host.Problems.
func OpenReader(dirs ...string) (*Reader, error) {
	r := new(Reader)
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no archive %s", dir)
		}
		if err != nil {
			return nil, err
		}
		n := len(r.Hosts)
		if strings.HasPrefix(filepath.Base(filepath.Clean(dir)), "host=") {
			r.Hosts = append(r.Hosts, &Host{Dir: dir})
		} else {
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), "host=") && isDir(dir, e) {
					r.Hosts = append(r.Hosts, &Host{Dir: filepath.Join(dir, e.Name())})
				}
			}
		}
		if len(r.Hosts) == n {
			return nil, fmt.Errorf("%s is no archive: it has no folder host=NAME", dir)
		}
	}
	for _, h := range r.Hosts {
		h.Name = strings.TrimPrefix(filepath.Base(filepath.Clean(h.Dir)), "host=")
		if err := h.Reload(); err != nil {
			h.Problems = append(h.Problems, err)
		}
	}
	return r, nil
}

// Reload reads the catalogs again.
func (h *Host) Reload() error {
	// Row logs first: one that is sealed meanwhile is named by a line then, and one that is not there is not missed.
	entries, err := os.ReadDir(h.Dir)
	if err != nil {
		return err
	}
	h.Lines, h.Problems, h.RowLogs, h.Holes, h.kept = nil, nil, nil, nil, map[string]bool{}
	folders, err := dates(h.Dir)
	if err != nil {
		return err
	}
	for _, name := range folders {
		lines, _, err := ReadCatalog(filepath.Join(h.Dir, name))
		if err != nil {
			h.Problems = append(h.Problems, err)
		}
		h.Lines = append(h.Lines, lines...)
		h.keep(strings.TrimPrefix(name, "date="), lines)
	}
	slices.SortStableFunc(h.Lines, func(a, b Line) int { return cmp.Compare(a.N, b.N) })
	sealed := map[uint64]bool{}
	for i := range h.Lines {
		if h.Lines[i].Segment != nil {
			for _, sequence := range h.Lines[i].RowLogs {
				sealed[sequence] = true
			}
		}
	}
	for _, e := range entries {
		if sequence, ok := rowLogSequence(e.Name()); ok && !sealed[sequence] {
			h.RowLogs = append(h.RowLogs, filepath.Join(h.Dir, e.Name()))
		}
	}
	slices.Sort(h.RowLogs)
	h.holes(sealed)
	return nil
}

// holes finds numbers that are missing in the chain of lines, and in the sequence of row logs.
func (h *Host) holes(known map[uint64]bool) {
	if len(h.Problems) > 0 {
		return // what a damaged line has said is not known
	}
	for i := 1; i < len(h.Lines); i++ {
		if before, l := &h.Lines[i-1], &h.Lines[i]; l.N > before.N+1 {
			h.Holes = append(h.Holes, fmt.Sprintf("%s not there: they stood between those of date=%s and date=%s",
				strings.Replace(missingLines(before.N+1, l.N), "line", "catalog line", 1), before.Date, l.Date))
		}
	}
	for _, path := range h.RowLogs {
		sequence, _ := rowLogSequence(filepath.Base(path))
		known[sequence] = true
	}
	all := slices.Sorted(maps.Keys(known))
	for i := 1; i < len(all); i++ {
		if from, to := all[i-1]+1, all[i]; from < to && len(h.Holes) == 0 {
			what := fmt.Sprintf("row log %d is", from)
			if to-from > 1 {
				what = fmt.Sprintf("row logs %d to %d are", from, to-1)
			}
			h.Holes = append(h.Holes, what+" neither there nor sealed")
		}
	}
}

// keep finds out which of the segments of a date that have a tombstone are there all the same.
func (h *Host) keep(date string, lines []Line) {
	gone := map[string]bool{}
	for i := range lines {
		if lines[i].Kind == KindRemoved {
			gone[lines[i].Removed.File] = true
		}
	}
	if len(gone) == 0 {
		return
	}
	entries, _ := os.ReadDir(filepath.Join(h.Dir, "date="+date))
	for _, e := range entries {
		if gone[e.Name()] {
			h.kept[date+"/"+e.Name()] = true
		}
	}
}

// removed reports whether a line is the tombstone of a segment that is not there.
func (h *Host) removed(l *Line) bool {
	return l.Kind == KindRemoved && !h.kept[l.Date+"/"+l.Removed.File]
}

// Segments returns the segments that were not removed, in the order of the chain, each with its path. A tombstone explains
// why a file is not there; where the file is there, as in a copy that is kept longer than the original, it is a segment as
// any other.
func (h *Host) Segments() []File { return h.segments(func(*Segment) bool { return true }) }

// segments returns those of Segments that are wanted. It makes no path for the others: each question asks, and there may be
// very many.
func (h *Host) segments(want func(*Segment) bool) []File {
	gone := map[string]bool{}
	for i := range h.Lines {
		if l := &h.Lines[i]; h.removed(l) {
			gone[l.Date+"/"+l.Removed.File] = true
		}
	}
	var files []File
	for i := range h.Lines {
		if l := &h.Lines[i]; l.Kind == KindSegment && want(l.Segment) && !gone[l.Date+"/"+l.File] {
			files = append(files, File{filepath.Join(h.Dir, "date="+l.Date, l.File), h, l.Segment})
		}
	}
	return files
}

// Removed returns the tombstones of segments that may have held a flow alive between from and to.
func (h *Host) Removed(from, to int64) []Line {
	var lines []Line
	for _, l := range h.Lines {
		if h.removed(&l) && int64(l.Removed.Last) >= from {
			lines = append(lines, l)
		}
	}
	return lines
}

// Query says which rows are asked for: those for which all holds that is set.
type Query struct {
	// From and To: the flow was alive at some time between them, both included. Of a row that is no flow, its time lies
	// between them. Both 0: at any time.
	From, To int64

	// Until, if not 0, leaves out files that only hold rows that ended later: a checkpoint has seen all before, see
	// Host.Witness.
	Until int64

	// Public is the source as the far side saw it: after translation where there was one. Port is its port, ICMP id or GRE
	// key; -1: any. Set AnyPort for that.
	Public netip.Addr
	Port   uint16

	Src     netip.Addr // original source
	SrcPort uint16

	Dst     netip.Addr // destination, before or after translation
	DstPort uint16

	// Reached leaves out flows whose source was translated and nothing else: nobody was reached by them from outside.
	Reached bool

	// HasPort, HasSrcPort and HasDstPort say which of the ports are asked for.
	HasPort, HasSrcPort, HasDstPort bool

	Proto    flow.Proto
	HasProto bool

	// Glance, if not nil, has the first word on a record of a row log, and sees each once: what it does not want is not even
	// decoded. Segments have columns for that.
	Glance func(*flow.Glance) bool

	// Where, if not nil, has the last word on a record.
	Where func(*flow.Record) bool
}

// Row is a row that a question has found. The record is the caller's.
type Row struct {
	Record *flow.Record
	Origin *Origin // whose record it is
	File   File
	Number int64 // of the row in its file, from 0
}

// PublicSource returns the source of a flow as the far side saw it, and its port, GRE key or ICMP id.
func PublicSource(r *flow.Record) (netip.Addr, uint16) {
	a, v6, port := publicSource(r)
	return netipOf(a, v6), port
}

func publicSource(r *flow.Record) (a *flow.Addr, v6 bool, port uint16) {
	o, p := &r.Orig, &r.Reply
	switch {
	case !natSrc(r):
		return &o.Src, o.V6, o.SrcPort
	case p.Proto.IsICMP():
		return &p.Dst, p.V6, p.SrcPort
	}
	return &p.Dst, p.V6, p.DstPort
}

// Lifetime returns from when to when the flow of a record is known to have been alive. known is false if the start is
// not: it may be anything up to end.
func Lifetime(r *flow.Record) (start, end int64, known bool) {
	end, _ = r.Time()
	if r.Start == 0 || r.Event >= flow.EventGap || isCheckpoint(r) {
		return end, end, r.Event != flow.EventDestroy && r.Event != flow.EventOpen || isCheckpoint(r)
	}
	return r.Start, end, true
}

// Matches reports whether the record is asked for.
func (q *Query) Matches(r *flow.Record) bool {
	if q.From != 0 || q.To != 0 {
		start, end, known := Lifetime(r)
		if r.Has&flow.Stepped == 0 && (end < q.From || known && start > q.To) {
			return false
		}
	}
	if q.Public.IsValid() || q.HasPort {
		if !hasTuple(r) {
			return false
		}
		a, port := PublicSource(r)
		if q.Public.IsValid() && a != q.Public || q.HasPort && port != q.Port {
			return false
		}
	}
	if q.Src.IsValid() && (!hasTuple(r) || r.Orig.SrcAddr() != q.Src) || q.HasSrcPort && (!hasTuple(r) || r.Orig.SrcPort != q.SrcPort) {
		return false
	}
	if q.Dst.IsValid() || q.HasDstPort {
		orig := hasTuple(r) && (!q.Dst.IsValid() || r.Orig.DstAddr() == q.Dst) && (!q.HasDstPort || r.Orig.DstPort == q.DstPort)
		after := hasReply(r) && (!q.Dst.IsValid() || r.Reply.SrcAddr() == q.Dst) && (!q.HasDstPort || r.Reply.SrcPort == q.DstPort)
		if !orig && !after {
			return false
		}
	}
	if q.Reached && natOf(r) == flow.NATSrc {
		return false
	}
	if q.HasProto && (!hasTuple(r) || r.Orig.Proto != q.Proto) {
		return false
	}
	return q.Where == nil || q.Where(r)
}

// may reports whether a segment may hold a row that is asked for, by its catalog line.
func (q *Query) may(s *Segment) bool {
	if s.Stepped || q.From == 0 && q.To == 0 {
		return true
	}
	if q.Until != 0 && int64(s.First) > q.Until {
		return false
	}
	return s.Short.holds(q.From, q.To) || s.Long.holds(q.From, q.To)
}

// Rows returns the rows that are asked for, host by host, segments before row logs. A file that cannot be read is an
// error, after which the other files go on. A file that retention removes meanwhile is an error of type *RemovedError.
// Segments are read a few at a time, so q.Where is called on goroutines of its own; it must not change anything.
func (r *Reader) Rows(ctx context.Context, q *Query) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for _, h := range r.Hosts {
			files := r.Files(h, q)
			logs := slices.IndexFunc(files, func(f File) bool { return f.Segment == nil })
			if logs < 0 {
				logs = len(files)
			}
			if !r.segments(ctx, files[:logs], q, yield) {
				return
			}
			for _, f := range files[logs:] {
				if err := ctx.Err(); err != nil {
					yield(Row{}, err)
					return
				}
				more := true
				err := r.scanLog(f, q, func(w Row) bool {
					more = yield(w, nil)
					return more
				})
				if err != nil && more {
					more = yield(Row{File: f}, r.explain(f, err))
				}
				if !more {
					return
				}
			}
		}
	}
}

// atOnce is how many segments are read at a time: the disk has more than one thing to do then.
const atOnce = 4

// segments yields the rows of segments in their order, and reports whether to go on.
func (r *Reader) segments(ctx context.Context, files []File, q *Query, yield func(Row, error) bool) bool {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	type reading struct {
		f    File
		rows chan Row
		err  error // once rows is closed
	}
	begun := make(chan *reading, atOnce)
	running.Go(func() {
		defer close(begun)
		free := make(chan struct{}, atOnce)
		for _, f := range files {
			select {
			case free <- struct{}{}:
			case <-ctx.Done():
				return
			}
			one := &reading{f: f, rows: make(chan Row, 256)}
			running.Go(func() {
				defer func() { <-free }()
				defer close(one.rows)
				one.err = r.scanSegment(f, q, func(w Row) bool {
					select {
					case one.rows <- w:
						return true
					case <-ctx.Done():
						return false
					}
				})
			})
			select {
			case begun <- one:
			case <-ctx.Done():
				return
			}
		}
	})
	for one := range begun {
		for w := range one.rows {
			if !yield(w, nil) {
				return false
			}
		}
		if outer.Err() != nil {
			break
		}
		r.Opened++
		if one.err != nil && !yield(Row{File: one.f}, r.explain(one.f, one.err)) {
			return false
		}
	}
	if err := outer.Err(); err != nil {
		yield(Row{}, err)
		return false
	}
	return true
}

// RemovedError is the error of a file that was removed after its catalog had been read.
type RemovedError struct {
	File File
	Line *Line // its tombstone; nil: it has none
}

func (e *RemovedError) Error() string {
	if e.Line == nil {
		return fmt.Sprintf("%s is missing, and no tombstone says why", e.File.Path)
	}
	return fmt.Sprintf("%s was removed by %s at %s", e.File.Path, e.Line.Removed.Why, e.Line.At)
}

// explain looks up why a file has vanished.
func (r *Reader) explain(f File, err error) error {
	if !errors.Is(err, fs.ErrNotExist) || f.Segment == nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	lines, _, _ := ReadCatalog(filepath.Dir(f.Path))
	for i := range lines {
		if l := &lines[i]; l.Kind == KindRemoved && l.Removed.File == f.Segment.File {
			return &RemovedError{f, l}
		}
	}
	return &RemovedError{File: f}
}

// Files returns the files of a host that may hold what is asked for.
func (r *Reader) Files(h *Host, q *Query) []File {
	files := h.segments(q.may)
	for _, path := range h.RowLogs {
		files = append(files, File{Path: path, Host: h})
	}
	return files
}

// scanLog calls do with the rows of a row log until it returns false. One that was sealed meanwhile is a segment.
func (r *Reader) scanLog(f File, q *Query, do func(Row) bool) error {
	err := scanRowLog(f, q, do)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// It has been sealed meanwhile: the catalog names its segment.
	sequence, _ := rowLogSequence(filepath.Base(f.Path))
	if err := f.Host.Reload(); err != nil {
		return err
	}
	for _, s := range f.Host.Segments() {
		if slices.Contains(s.Segment.RowLogs, sequence) {
			if !q.may(s.Segment) {
				return nil
			}
			r.Opened++
			return r.scanSegment(s, q, do)
		}
	}
	return err
}

// scanRowLog reads a row log that may be written meanwhile.
func scanRowLog(f File, q *Query, do func(Row) bool) error {
	file, err := os.Open(f.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	s, err := newRowScan(file, info.Size())
	if err == errNotRowLog && info.Size() == 0 {
		return nil // it is being made
	}
	if err != nil {
		return err
	}
	b, glance := flow.NewBatch(1, nil), flow.Glance{}
	number := int64(0)
	for {
		payload, _, fr, err := s.frame()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		for i := range fr.count {
			record := payload
			if q.Glance != nil {
				if payload, err = glance.Read(record); err == nil && !q.Glance(&glance) {
					number++
					continue
				}
			}
			b.Reset()
			if payload, err = b.DecodeBinary(record); err != nil {
				s.garbled(fr.count-i, len(payload))
				break
			}
			if r := &b.Records[0]; q.Matches(r) && !do(Row{r.Clone(), &s.Origin, f, number}) {
				return nil
			}
			number++
		}
	}
	// A torn tail may be a frame that is being written. Any other damage is told.
	if lost := s.damage.lost - s.damage.tail; lost > 0 {
		return fmt.Errorf("%d records are damaged", lost)
	}
	return nil
}

// Checkpoints returns the checkpoints of a host that are on record in its catalogs, oldest first. Those in row logs bound
// nothing: row logs are read in any case.
func (h *Host) Checkpoints() []Checkpoint {
	var all []Checkpoint
	for i := range h.Lines {
		if l := &h.Lines[i]; l.Segment != nil {
			all = append(all, l.Checkpoints...)
		}
	}
	slices.SortFunc(all, func(a, b Checkpoint) int { return cmp.Compare(a.Began, b.Began) })
	return all
}

// Witness returns the first whole checkpoint by which every flow that was alive at a time has a record: its end, or an
// open record because it was old enough by then. A question about that time need not look at rows that ended after the
// checkpoint did (Query.Until), unless the clock was set back. ok is false if there is no such checkpoint: then all later files
// have to be looked at.
func (h *Host) Witness(at int64) (c Checkpoint, ok bool) {
	for _, c := range h.Checkpoints() {
		if c.Whole && int64(c.Began) >= at+int64(c.MinAge) {
			return c, true
		}
	}
	return Checkpoint{}, false
}

// Origin returns where the records of a segment or a row log come from.
func (r *Reader) Origin(path string) (o Origin, err error) {
	if _, ok := rowLogSequence(filepath.Base(path)); ok {
		f, err := os.Open(path)
		if err != nil {
			return o, err
		}
		defer f.Close()
		o, _, err = readRowLogHeader(f)
		return o, err
	}
	defer damaged(&err)
	t, err := r.tables.open(path)
	if err != nil {
		return o, err
	}
	defer r.tables.done(path, t)
	return t.origin, nil
}
