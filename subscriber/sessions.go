package subscriber

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

// A session's file is written anew so often, or as seldom as keeps the disk to saveRate.
const (
	saveEvery = time.Minute
	saveRate  = 100_000 // bytes a second

	// recallWithin bounds how long accounting waits for the last process's sessions: their disk may hang.
	recallWithin = 10 * time.Second
)

const sessionsHead = "ctlogd sessions 1 "

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sessions are those of a RADIUS source, as its file has them. They outlive the process in it:
//
//	ctlogd sessions 1 1796000000000000000
//	nas 1 "identifier bng1"
//	100.64.0.7/32 1795990000000000000 1796080000000000000 1 "alice"
//	end 8f3c0a11
//
// the time at which the table was so; who keeps the sessions, by number; of each prefix from when until when who had it, and
// the number; a checksum of all that stands before it (CRC-32C). Times are in ns since 1970.
//
// Nothing is known of what was told while nobody listened, such as an end. So what a file says is true until its own time, and
// all that goes on then ends there. An interim update says whether the session was the same all the time since: it tells how
// long it has been there.
type sessions struct {
	table *table
	nas   []string // who keeps them: a mark is the place in it, from 1
	at    int64
}

// sessionsFile returns the file of the source's sessions, "" if nothing is kept.
func (s *Source) sessionsFile(dir string) string {
	if dir == "" || s.cfg.Type != "radius" {
		return ""
	}
	return filepath.Join(dir, "sessions-"+url.PathEscape(s.cfg.label()))
}

// keep reads the last process's sessions, which it sends, and then writes those of this one now and then until the source has
// ended. It is a goroutine of its own: accounting waits for no disk.
func (s *Source) keep(file string, before *Source, recalled chan<- *sessions, ended <-chan struct{}) {
	defer close(s.kept)
	if before != nil {
		select {
		case <-before.kept: // it writes the file that is read here
		case <-time.After(recallWithin):
		}
	}
	recalled <- s.recall(file, time.Now())
	var failed bool
	for next := saveEvery; ; {
		last := false
		select {
		case <-ended:
			last = true
		case <-time.After(next):
		}
		rest := new(pace).rest
		if last {
			rest = func() {}
		}
		size, err := s.save(file, rest)
		if (err != nil) != failed {
			if failed = err != nil; failed {
				s.log.Error("the sessions cannot be kept: after a restart they are not known until an interim update", zap.Error(err))
			} else {
				s.log.Info("the sessions can be kept again")
			}
		}
		if last {
			return
		}
		next = max(saveEvery, time.Duration(size/saveRate)*time.Second)
	}
}

// recall returns what the file has, nil if that is nothing. A file that is broken is put aside.
func (s *Source) recall(file string, now time.Time) *sessions {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var is *sessions
	if err == nil {
		is, err = readSessions(f, now, &s.cfg, s.grown)
		f.Close()
	}
	if err != nil {
		aside := file + ".broken"
		err = errors.Join(err, os.Rename(file, aside))
		s.log.Error("the sessions of the last process are not known until an interim update", zap.String("put_aside", aside), zap.Error(err))
		return nil
	}
	s.log.Info("the sessions of the last process are known until it ended", zap.Int("leases", is.table.leases), zap.Time("until", time.Unix(0, is.at)))
	return is
}

// save writes the sessions to the file: to another one first, so that the old one is there until the new one is whole.
func (s *Source) save(file string, rest func()) (size int64, err error) {
	at := s.Fresh.Load() // before the table, which so has all that came until then
	if at == 0 {
		return 0, nil // accounting has never been taken: what the file has is all there is
	}
	is := sessions{table: s.table.Load(), at: at}
	if nas := s.nas.Load(); nas != nil {
		is.nas = *nas
	}
	f, err := os.OpenFile(file+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if size, err = is.write(f, rest); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return size, os.Rename(file+".new", file)
}

func (is *sessions) write(f io.Writer, rest func()) (size int64, err error) {
	sum := crc32.New(castagnoli)
	out := bufio.NewWriterSize(io.MultiWriter(f, sum), 64<<10)
	line := strconv.AppendInt([]byte(sessionsHead), is.at, 10)
	put := func() {
		line = append(line, '\n')
		size += int64(len(line))
		_, _ = out.Write(line) // Flush tells the error
		line = line[:0]
	}
	put()
	for i, name := range is.nas {
		line = fmt.Appendf(line, "nas %d %q", i+1, name)
		put()
	}
	for i := range is.table.pages {
		g := &is.table.pages[i]
		rest()
		for _, list := range [][]slot{g.past, g.slots} {
			for j := range list {
				s := &list[j]
				line = s.key().netip().AppendTo(line)
				line = strconv.AppendInt(append(line, ' '), s.from, 10)
				line = strconv.AppendInt(append(line, ' '), s.until, 10)
				line = strconv.AppendUint(append(line, ' '), uint64(s.mark), 10)
				line = strconv.AppendQuote(append(line, ' '), g.idOf(s))
				put()
			}
		}
	}
	if err := out.Flush(); err != nil {
		return 0, err
	}
	_, err = fmt.Fprintf(f, "end %08x\n", sum.Sum32())
	return size, err
}

// readSessions reads a file, for which the clock may have been set since. What went on then has ended at the file's time.
func readSessions(f io.Reader, now time.Time, c *Config, grown func(*table) *table) (*sessions, error) {
	is := &sessions{table: newTable()}
	sum, in := crc32.New(castagnoli), bufio.NewReaderSize(f, maxLine)
	horizon, pace := now.Add(-c.History).UnixNano(), new(pace)
	var edits []edit
	for n := 1; ; n++ {
		b, err := in.ReadSlice('\n')
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, cutShort(err))
		}
		text := string(bytes.TrimSuffix(b, []byte("\n")))
		if text == fmt.Sprintf("end %08x", sum.Sum32()) && n > 1 {
			break
		}
		_, _ = sum.Write(b)
		e, err := is.line(text, n == 1, now)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if e.from < e.until {
			edits = append(edits, e)
		}
		if len(edits) >= chunk {
			is.table = grown(is.table.with(edits, horizon, pace.rest))
			edits = edits[:0]
		}
		if n%256 == 0 {
			pace.rest()
		}
	}
	is.table = is.table.with(edits, horizon, pace.rest)
	if is.table.leases > c.Limit {
		return nil, errFull(c.Limit)
	}
	return is, nil
}

// cutShort returns what it means that a line has no end.
func cutShort(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case errors.Is(err, bufio.ErrBufferFull):
		return errLongText
	}
	return err
}

// line reads a line, and returns the interval that it tells, empty if it tells none.
func (is *sessions) line(text string, first bool, now time.Time) (e edit, err error) {
	if first {
		at, found := strings.CutPrefix(text, sessionsHead)
		if is.at, err = strconv.ParseInt(at, 10, 64); !found || err != nil || is.at <= 0 {
			return e, errors.New("no file of sessions, or of another version")
		}
		is.at = min(is.at, now.UnixNano())
		return e, nil
	}
	if name, found := strings.CutPrefix(text, fmt.Sprintf("nas %d ", len(is.nas)+1)); found {
		name, err = strconv.Unquote(name)
		is.nas = append(is.nas, name)
		return e, err
	}
	f := strings.SplitN(text, " ", 5)
	if len(f) != 5 {
		return e, errors.New("no session")
	}
	p, err := netip.ParsePrefix(f[0])
	from, err1 := strconv.ParseInt(f[1], 10, 64)
	until, err2 := strconv.ParseInt(f[2], 10, 64)
	mark, err3 := strconv.ParseUint(f[3], 10, 16)
	id, err4 := strconv.Unquote(f[4])
	if err := errors.Join(err, err1, err2, err3, err4); err != nil {
		return e, err
	}
	c := claim{prefix: p, from: from, until: until, id: id}
	if err := c.check(); err != nil {
		return e, err
	}
	if int(mark) > len(is.nas) {
		return e, fmt.Errorf("nas %d is none", mark)
	}
	return edit{prefix: prefixOf(p), from: from, until: min(until, is.at), id: id, mark: uint16(mark)}, nil
}

// netip returns the prefix as others know it.
func (p prefix) netip() netip.Prefix {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], p.hi)
	binary.BigEndian.PutUint64(b[8:], p.lo)
	a := netip.AddrFrom16(b).Unmap()
	return netip.PrefixFrom(a, int(p.bits)-128+a.BitLen())
}

// take waits for the last process's sessions, not for long, and begins with them.
func (s *Source) take(ctx context.Context, recalled <-chan *sessions) (nas map[string]uint16) {
	nas = map[string]uint16{}
	select {
	case is := <-recalled:
		if is == nil {
			return nas
		}
		for i, name := range is.nas {
			nas[name] = uint16(i + 1)
		}
		s.nas.Store(&is.nas)
		s.show(is.table, is.at)
	case <-ctx.Done():
	case <-time.After(recallWithin):
		s.log.Error("the sessions of the last process are not known until an interim update: the disk has not answered", zap.Duration("for", recallWithin))
	}
	return nas
}
