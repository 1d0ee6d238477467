package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Retention says how long segments are kept. All goes by the end of their last record; a 0 sets no bound.
type Retention struct {
	MaxAge  time.Duration // older ones are removed
	MinAge  time.Duration // younger ones are not, whatever the disk needs: writing stops instead
	MaxSize int64         // of the whole archive of a host
	Reserve int64         // what others shall find free on the file system
}

// retain removes what is due.
func (w *Writer) retain() {
	r := &w.o.Retention
	now := Time(w.now())
	w.payOwed()
	w.keepRules()
	for {
		date, s, ok := w.k.oldest()
		if !ok || r.MaxAge == 0 || now-s.last <= Time(r.MaxAge) {
			break
		}
		if err := w.remove(date, s, "max_age"); err != nil {
			w.cannotRemove(s, err)
			break
		}
		w.Stats.RemovedAge.Add(1)
	}
	var stalled error
	for {
		why, over := w.over()
		if why == "" {
			break
		}
		date, s, ok := w.k.oldest()
		if !ok || r.MinAge != 0 && now-s.last < Time(r.MinAge) {
			// Nothing may go. Above max_size the archive grows on as long as there is room; the reserve is kept.
			if why == "reserve" || r.MinAge != 0 && ok {
				stalled = fmt.Errorf("write %s: %w: %s, and min_age keeps all that is there", w.dir, unix.ENOSPC, over)
				if !ok {
					stalled = fmt.Errorf("write %s: %w: %s, and there is no segment to remove", w.dir, unix.ENOSPC, over)
				}
			}
			break
		}
		if err := w.remove(date, s, why); err != nil {
			w.cannotRemove(s, err)
			break
		}
		if why == "reserve" {
			w.Stats.RemovedFull.Add(1)
		} else {
			w.Stats.RemovedSize.Add(1)
		}
	}
	w.Stats.Stopped.Store(stalled != nil)
	w.mu.Lock()
	w.stalled = stalled
	active := w.active
	w.mu.Unlock()

	_, s, ok := w.k.oldest()
	switch {
	case ok:
		w.Stats.Oldest.Store(int64(s.first))
	case active != nil:
		w.Stats.Oldest.Store(int64(active.Origin.Created))
	default:
		w.Stats.Oldest.Store(0)
	}
	next := int64(0)
	if ok && r.MaxAge != 0 {
		next = int64(s.last) + int64(r.MaxAge)
	}
	w.Stats.NextRemoval.Store(next)
}

func (w *Writer) cannotRemove(s stored, err error) {
	w.Stats.KeepErrors.Add(1)
	w.o.Log(Error, "a segment that is due cannot be removed; it is tried again in a minute", s.file, err, "look after the disk, and the folder's permissions")
}

// over returns which bound is passed, and by what.
func (w *Writer) over() (why, text string) {
	r := &w.o.Retention
	if r.MaxSize != 0 {
		if size := w.k.bytes + w.logBytes(); size > r.MaxSize {
			return "max_size", fmt.Sprintf("the archive has %d bytes, %d are allowed", size, r.MaxSize)
		}
	}
	if r.Reserve != 0 {
		n, err := free(w.dir)
		if err == nil && n < r.Reserve {
			return "reserve", fmt.Sprintf("%d bytes are free, and the reserve is %d", n, r.Reserve)
		}
	}
	return "", ""
}

// logBytes returns the size of the row logs.
func (w *Writer) logBytes() (n int64) {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if _, ok := rowLogSequence(e.Name()); ok {
			if info, err := e.Info(); err == nil {
				n += info.Size()
			}
		}
	}
	return n
}

// remove removes a segment: its tombstone first, so that what is missing is always explained.
func (w *Writer) remove(date string, s stored, why string) error {
	path := filepath.Join(w.dir, "date="+date, s.file)
	line := Line{Kind: KindRemoved, At: Time(w.now()), Removed: &Removal{File: s.file, Why: why, Records: s.records, First: s.first, Last: s.last}}
	if err := step("remove.tombstone"); err != nil {
		return err
	}
	full := false
	if !s.buried {
		err := w.k.chain.append(date, line)
		if full = errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT); err != nil && !full {
			return err
		}
		if !full {
			w.k.bury(date, s.file)
		}
	}
	if err := step("remove.unlink"); err != nil {
		return err
	}
	// A disk that has no room for the tombstone gets it from the segment. Until then an empty file says that it is owed, if there is
	// room for a name: before, so that a crash finds it, or at least afterwards.
	var owed error
	if full {
		owed = owe(path, why)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w.k.forget(&w.Stats, date, s.file)
	w.o.Log(Info, "segment removed: "+why, path, nil, "")
	if full {
		if owed != nil {
			_ = owe(path, why)
		}
		w.k.owed = append(w.k.owed, tombstone{date, line})
		w.payOwed()
	}
	return step("remove.done")
}

// tombstone is a line of a segment that is gone.
type tombstone struct {
	date string
	line Line
}

// owedMark stands in the name of an empty file, between that of a segment that is gone and why it went.
const owedMark = ".removed-"

// owe notes on the disk that the tombstone of a segment is still to be written.
func owe(path, why string) error {
	if err := step("remove.owe"); err != nil {
		return err
	}
	f, err := os.OpenFile(path+owedMark+why, os.O_WRONLY|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), syncDir(filepath.Dir(path)))
}

// payOwed writes the tombstones for which there was no room.
func (w *Writer) payOwed() {
	for len(w.k.owed) > 0 {
		o := &w.k.owed[0]
		if err := w.k.chain.append(o.date, o.line); err != nil {
			w.Stats.KeepErrors.Add(1)
			w.o.Log(Error, "a segment is removed, and there is no room for its tombstone; it is tried again in a minute", o.line.Removed.File,
				err, "see that the disk has room")
			return
		}
		// What cannot be removed now is at the next start.
		_ = os.Remove(filepath.Join(w.dir, "date="+o.date, o.line.Removed.File+owedMark+o.line.Removed.Why))
		w.k.owed = w.k.owed[1:]
	}
}
