package archive

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Upload says how the files of an archive are copied to another place as they appear: by a command, which is run once for
// each file. It runs at the lowest priority, one at a time, and an exit status of 0 says that the other place has the
// file. Anything else is tried again, later and later. A file may come twice, so the command overwrites what is there.
//
// The order is such that the copy is whole at any time, if late: segments first; then catalogs, as far as all segments
// that their lines name have been uploaded, or were removed before; then the last note, when it says no more than those
// catalogs. Row logs are not uploaded. What has been is remembered in the host's folder, so that a restart goes on there.
type Upload struct {
	Command []string
	Timeout time.Duration // of a run

	// Run does what the command would. Nil: the command is run.
	Run func(ctx context.Context, f *UploadFile) error
}

// UploadFile is one file to be uploaded, and what the command finds in its environment.
type UploadFile struct {
	Kind   string // CTLOGD_KIND: segment, catalog or note
	File   string // CTLOGD_FILE: what to read
	Path   string // CTLOGD_PATH: its name in the archive: host=gw1/date=2026-11-27/catalog.jsonl
	SHA256 string // CTLOGD_SHA256, in hex
	Size   int64  // CTLOGD_SIZE
	Host   string // CTLOGD_HOST
	Date   string // CTLOGD_DATE: 2026-11-27; "" for a note
}

// UploadStats counts what is uploaded. Any goroutine may read it.
type UploadStats struct {
	Files   atomic.Uint64 // uploaded: segments, catalogs and notes
	Errors  atomic.Uint64 // runs that failed
	Waiting atomic.Int64  // segments that the other place does not have yet
	Missed  atomic.Uint64 // segments that retention removed before they were uploaded
	Failing atomic.Int64  // since when uploads fail, ns since 1970; 0: they do not
}

const (
	kindCatalog = "catalog"
	kindNote    = "note"

	uploadsName   = "uploads.json"
	uploadTmp     = "upload.tmp" // what a catalog or note was at a moment
	uploadBatch   = 100          // segments, after which the catalogs have their turn
	uploadEvery   = time.Minute  // a look for what has changed otherwise
	uploadRetry   = 5 * time.Second
	uploadRetryUp = 10 * time.Minute
	uploadPart    = 64 << 20 // bytes of a catalog that are looked at at once, and the rest of a line
)

// uploaded is what the other place has, as the file uploads.json.
type uploaded struct {
	V        int              `json:"v"`
	Command  string           `json:"command"`  // SHA-256 of the command that has uploaded it, which leads to that place
	Catalogs map[string]int64 `json:"catalogs"` // by date: so many bytes of it, and all that these name
	Segments []string         `json:"segments"` // beyond that: date=2026-11-27/NAME
	Note     string           `json:"note"`     // SHA-256 of it
}

// uploader uploads, on a goroutine of its own. It looks at files alone, which the keeper makes and removes.
type uploader struct {
	Upload
	dir   string // of the host
	host  string
	stats *UploadStats
	now   func() int64
	log   func(level Level, msg, file string, err error, remedy string)
	retry time.Duration // at first
	part  int64         // of a catalog, looked at at once

	done   uploaded
	first  bool           // nothing is known to be uploaded there, and no look was taken yet
	moved  bool           // first, as the command is another one
	failed map[string]int // how often the upload of a segment has failed
	wake   chan struct{}
	over   chan struct{} // closed when run has returned
}

// newUploader returns the uploader of a Writer; nil if nothing is uploaded.
func (w *Writer) newUploader() *uploader {
	if w.o.Upload == nil {
		return nil
	}
	u := &uploader{Upload: *w.o.Upload, dir: w.dir, host: w.o.Host, stats: &w.Stats.Upload, now: w.now, log: w.o.Log,
		retry: min(uploadRetry, 5*w.o.retry), part: uploadPart, failed: map[string]int{}, wake: make(chan struct{}, 1), over: make(chan struct{})}
	if u.Run == nil {
		u.Run = func(ctx context.Context, f *UploadFile) error { return runHook(ctx, &u.Upload, f) }
	}
	return u
}

// look has the uploader look for new files. It does not wait. It may be called on nil.
func (u *uploader) look() {
	if u == nil {
		return
	}
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// ended is closed when the uploader has ended; on nil it is at once.
func (u *uploader) ended() <-chan struct{} {
	if u == nil {
		c := make(chan struct{})
		close(c)
		return c
	}
	return u.over
}

// run uploads until ctx ends.
func (u *uploader) run(ctx context.Context) {
	defer close(u.over)
	u.recall()
	retry := u.retry
	for {
		err := u.pass(ctx)
		if ctx.Err() != nil {
			return
		}
		wait, wake := uploadEvery, u.wake
		if err == nil {
			u.stats.Failing.Store(0)
			retry = u.retry
		} else {
			u.stats.Failing.CompareAndSwap(0, u.now())
			wait, wake = retry, nil // what is new makes it no better
			retry = min(2*retry, uploadRetryUp)
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-time.After(wait):
		}
	}
}

// recall reads what has been uploaded. If that is not known, or was uploaded by another command and so perhaps to another
// place, all is uploaded again.
func (u *uploader) recall() {
	path := filepath.Join(u.dir, uploadsName)
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &u.done)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.log(Warn, "what was uploaded is not known: all is uploaded again", path, err, "")
	}
	command := hashOf([]byte(strings.Join(u.Command, "\x00")))
	u.moved = err == nil && u.done.Command != command
	u.first = err != nil || u.moved
	if u.first {
		u.done = uploaded{}
	}
	u.done.V, u.done.Command = 1, command
	if u.done.Catalogs == nil {
		u.done.Catalogs = map[string]int64{}
	}
}

// remember writes what has been uploaded. If it cannot, a restart uploads something twice.
func (u *uploader) remember() {
	text, err := json.Marshal(&u.done)
	path := filepath.Join(u.dir, uploadsName)
	if err == nil {
		err = writeFile(path, append(text, '\n'))
	}
	if err != nil {
		u.log(Warn, "what was uploaded cannot be noted down: after a restart it is uploaded again", path, err, "look after the disk")
	}
}

// uploadLine is a line of a catalog that the other place does not have.
type uploadLine struct {
	n    uint64 // in the chain
	date string
	end  int64    // of the line in its file
	seg  *Segment // nil: it names none
}

// name is what a segment is remembered by.
func (l *uploadLine) name() string { return "date=" + l.date + "/" + l.seg.File }

// news returns the lines that the other place does not have, in the order of the chain. Where a catalog has more than is
// looked at at once, more is true, and what comes behind that part in the chain is left for the next look.
func (u *uploader) news() (news []uploadLine, more bool, err error) {
	folders, err := dates(u.dir)
	if err != nil {
		return nil, false, err
	}
	known := map[string]bool{}
	upTo := uint64(math.MaxUint64)
	for _, folder := range folders {
		date := strings.TrimPrefix(folder, "date=")
		known[date] = true
		lines, cut, err := u.newsOf(date)
		if err != nil {
			return nil, false, err
		}
		if cut {
			more, upTo = true, min(upTo, lines[len(lines)-1].n)
		}
		news = append(news, lines...)
	}
	news = slices.DeleteFunc(news, func(l uploadLine) bool { return l.n > upTo })
	for date := range u.done.Catalogs {
		if !known[date] {
			delete(u.done.Catalogs, date)
		}
	}
	slices.SortStableFunc(news, func(a, b uploadLine) int { return cmp.Compare(a.n, b.n) })
	return news, more, nil
}

// newsOf returns those of a date, and whether there are more of them than are looked at at once.
func (u *uploader) newsOf(date string) (lines []uploadLine, more bool, err error) {
	f, err := os.Open(filepath.Join(u.dir, "date="+date, catalogName))
	if errors.Is(err, fs.ErrNotExist) { // its first segment is being made
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	from := u.done.Catalogs[date]
	if info.Size() < from { // it is another file
		from = 0
		delete(u.done.Catalogs, date)
	}
	r := bufio.NewReader(io.NewSectionReader(f, from, info.Size()-from))
	last := uint64(0)
	for end := from; ; {
		if end-from >= u.part {
			return lines, true, nil
		}
		line, err := readLine(r)
		if err == io.EOF {
			return lines, false, nil
		}
		if err != nil {
			return nil, false, err
		}
		end += int64(len(line)) + 1
		l := uploadLine{n: last, date: date, end: end}
		var parsed Line
		if json.Unmarshal(line, &parsed) == nil { // else it is damaged, as it is to be in the copy
			last, l.n = parsed.N, parsed.N
			if parsed.Kind == KindSegment && parsed.Segment != nil && segmentName(parsed.File) {
				l.seg = parsed.Segment
			}
		}
		lines = append(lines, l)
	}
}

// pass uploads what there is to upload. It returns the first error.
func (u *uploader) pass(ctx context.Context) error {
	for {
		lines, more, err := u.news()
		if err != nil {
			u.log(Error, "the catalogs cannot be read, and nothing is uploaded", u.dir, err, "look after the disk")
			return err
		}
		waiting := u.waiting(lines)
		part := waiting[:min(len(waiting), uploadBatch)]
		sent, err := u.segments(ctx, part)
		if err != nil && sent == 0 {
			return err
		}
		ends, all := u.covered(lines)
		if err = cmp.Or(err, u.catalogs(ctx, ends)); err != nil {
			return err
		}
		if more || len(part) < len(waiting) {
			continue
		}
		return u.note(ctx, all)
	}
}

// have returns the names of segments that the other place has, or that are missed.
func (u *uploader) have() map[string]bool {
	have := make(map[string]bool, len(u.done.Segments))
	for _, name := range u.done.Segments {
		have[name] = true
	}
	return have
}

// waiting returns the segments that are to be uploaded, those first that have failed least often. One that is not there
// any more is missed, unless it was there before anything was uploaded at all.
func (u *uploader) waiting(lines []uploadLine) []*uploadLine {
	have := u.have()
	var waiting []*uploadLine
	changed := false
	for i := range lines {
		l := &lines[i]
		if l.seg == nil || have[l.name()] {
			continue
		}
		path := filepath.Join(u.dir, l.name())
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if !u.first {
				u.stats.Missed.Add(1)
				u.log(Error, "a segment was removed before it was uploaded", path, nil, "see why uploads fail; min_age keeps segments until then, but not from max_age")
			}
			u.done.Segments = append(u.done.Segments, l.name())
			delete(u.failed, l.name())
			changed = true
			continue
		}
		waiting = append(waiting, l)
	}
	if u.moved {
		u.log(Warn, fmt.Sprintf("the command of upload is another one: all is uploaded again, %d segments", len(waiting)), u.dir, nil, "")
	}
	if changed || u.first {
		u.first, u.moved = false, false
		u.remember()
	}
	slices.SortStableFunc(waiting, func(a, b *uploadLine) int { return cmp.Compare(u.failed[a.name()], u.failed[b.name()]) })
	u.stats.Waiting.Store(int64(len(waiting)))
	return waiting
}

// segments uploads segments until one fails.
func (u *uploader) segments(ctx context.Context, waiting []*uploadLine) (sent int, err error) {
	for _, l := range waiting {
		name := l.name()
		f := UploadFile{Kind: KindSegment, File: filepath.Join(u.dir, name), Path: filepath.Join(HostFolder(u.host), name),
			SHA256: l.seg.SHA256, Size: l.seg.Bytes, Host: u.host, Date: l.date}
		if err := u.send(ctx, &f); err != nil {
			if _, statErr := os.Stat(f.File); errors.Is(statErr, fs.ErrNotExist) {
				continue // removed meanwhile; the next look counts it
			}
			u.failed[name]++
			return sent, err
		}
		sent++
		delete(u.failed, name)
		u.done.Segments = append(u.done.Segments, name)
		u.remember()
		u.stats.Waiting.Add(-1)
	}
	return sent, nil
}

// covered returns for each date how much of its catalog may be uploaded: lines whose segments, and those of all lines
// before them, the other place has. all is false if there is more.
func (u *uploader) covered(lines []uploadLine) (ends map[string]int64, all bool) {
	have := u.have()
	first := uint64(math.MaxUint64)
	for i := range lines {
		if l := &lines[i]; l.seg != nil && !have[l.name()] {
			first = min(first, l.n)
		}
	}
	ends = map[string]int64{}
	for _, l := range lines {
		if l.n < first {
			ends[l.date] = max(ends[l.date], l.end)
		}
	}
	return ends, first == math.MaxUint64
}

// catalogs uploads as much of each catalog as ends says.
func (u *uploader) catalogs(ctx context.Context, ends map[string]int64) error {
	for _, date := range slices.Sorted(maps.Keys(ends)) {
		path := filepath.Join(u.dir, "date="+date, catalogName)
		text, err := readUpTo(path, ends[date])
		if err != nil {
			u.log(Error, "a catalog cannot be read, and is not uploaded", path, err, "look after the disk")
			return err
		}
		if err := u.sendCopy(ctx, kindCatalog, "date="+date+"/"+catalogName, date, text); err != nil {
			return err
		}
		u.done.Catalogs[date] = ends[date]
		u.done.Segments = slices.DeleteFunc(u.done.Segments, func(name string) bool {
			return strings.HasPrefix(name, "date="+date+"/") && bytes.Contains(text, []byte(`"`+filepath.Base(name)+`"`))
		})
		u.remember()
	}
	return nil
}

// note uploads the last note, if it says no more than the catalogs that were uploaded.
func (u *uploader) note(ctx context.Context, covered bool) error {
	path := filepath.Join(u.dir, noteName)
	msg, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || !covered {
		return nil
	}
	if err != nil {
		u.log(Error, "the checkpoint's note cannot be read, and is not uploaded", path, err, "look after the disk")
		return err
	}
	sum := hashOf(msg)
	n, err := ReadNote(msg)
	if err != nil || sum == u.done.Note {
		return nil
	}
	lines, _, err := u.news()
	if err != nil {
		return err
	}
	if len(lines) > 0 && lines[0].n < n.Lines { // of what came meanwhile
		u.look()
		return nil
	}
	if err := u.sendCopy(ctx, kindNote, noteName, "", msg); err != nil {
		return err
	}
	u.done.Note = sum
	u.remember()
	return nil
}

// sendCopy uploads what a file that changes was at a moment. path is below the host's folder.
func (u *uploader) sendCopy(ctx context.Context, kind, path, date string, text []byte) error {
	tmp := filepath.Join(u.dir, uploadTmp)
	if err := os.WriteFile(tmp, text, fileMode); err != nil {
		u.log(Error, "a copy for the upload cannot be written", tmp, err, "look after the disk")
		return err
	}
	defer os.Remove(tmp)
	return u.send(ctx, &UploadFile{Kind: kind, File: tmp, Path: filepath.Join(HostFolder(u.host), path),
		SHA256: hashOf(text), Size: int64(len(text)), Host: u.host, Date: date})
}

// send uploads a file once.
func (u *uploader) send(ctx context.Context, f *UploadFile) error {
	began := time.Now()
	if err := u.Run(ctx, f); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		u.stats.Errors.Add(1)
		u.log(Error, "an upload failed and is tried again; nothing is lost unless retention removes the file before", f.Path, err,
			"run the command of upload by hand, see docs/archive.md")
		return err
	}
	u.stats.Files.Add(1)
	if f.Kind == KindSegment {
		u.log(Info, fmt.Sprintf("segment uploaded in %s", time.Since(began).Round(time.Millisecond)), f.Path, nil, "")
	}
	return nil
}

// readUpTo returns the first size bytes of a file.
func readUpTo(path string, size int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text := make([]byte, size)
	_, err = f.ReadAt(text, 0)
	return text, err
}
