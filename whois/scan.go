package whois

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
)

// Lines is a source of files of JSON lines, which are read from end to end, once for all questions.
type Lines struct {
	paths []string
	only  []string // hosts; none: all
	table *Table
	then  *Then // nil: nobody has said which filters there were

	written string // the one that the daemon of this machine writes; "": none
	hosts   []*lineHost
	read    int64 // bytes
	size    int64 // of all files
	Tell    func(done, all int64)
}

type lineHost struct {
	name     string
	rows     kept
	gaps     []archive.Gap
	checks   []check
	first    string // times as they are written sort as text does
	last     string
	problems []Reason
	live     bool
	liveErr  error
	unsynced doubtful
}

// OpenLines returns a source of files, which may be compressed with gzip or zstd.
func OpenLines(paths, hosts []string, table *Table, then *Then) (*Lines, error) {
	s := &Lines{paths: paths, only: hosts, table: table, then: then}
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("read the records: %w", err)
		}
		s.size += info.Size()
	}
	return s, nil
}

// line is what a record says that matters here.
type line struct {
	Event    string   `json:"event"`
	Time     string   `json:"time"`
	Source   string   `json:"time_source"`
	Clock    []string `json:"clock"`
	Host     string   `json:"host"`
	FlowID   string   `json:"flow_id"`
	Start    string   `json:"start"`
	End      string   `json:"end"`
	Proto    *uint8   `json:"proto_num"`
	SrcIP    string   `json:"src_ip"`
	SrcPort  *uint16  `json:"src_port"`
	DstIP    string   `json:"dst_ip"`
	DstPort  *uint16  `json:"dst_port"`
	NAT      string   `json:"nat"`
	NATSrcIP string   `json:"nat_src_ip"`
	NATSrc   *uint16  `json:"nat_src_port"`
	NATDstIP string   `json:"nat_dst_ip"`
	NATDst   *uint16  `json:"nat_dst_port"`
	ICMPType uint8    `json:"icmp_type"`
	ICMPCode uint8    `json:"icmp_code"`
	ICMPID   uint16   `json:"icmp_id"`
	NATID    *uint16  `json:"nat_icmp_id"`
	Key      uint16   `json:"gre_key"`
	DstKey   uint16   `json:"gre_dst_key"`
	NATKey   *uint16  `json:"nat_gre_key"`
	NATDstK  *uint16  `json:"nat_gre_dst_key"`
	OrigP    *uint64  `json:"orig_packets"`
	OrigB    *uint64  `json:"orig_bytes"`
	ReplyP   *uint64  `json:"reply_packets"`
	ReplyB   *uint64  `json:"reply_bytes"`
	Netns    string   `json:"netns"`
	NSID     *int32   `json:"nsid"`
	Person   string   `json:"subscriber"`
	Name     string   `json:"subscriber_name"`
	Side     string   `json:"subscriber_side"`
	Next     string   `json:"subscriber_next"`
	Teller   string   `json:"subscriber_source"`
	Zone     *uint16  `json:"zone"`
	ZoneO    *uint16  `json:"zone_orig"`
	ZoneR    *uint16  `json:"zone_reply"`
	Cause    string   `json:"cause"`
	From     string   `json:"from"`
	To       string   `json:"to"`
	Lost     *uint64  `json:"lost"`
	Output   string   `json:"output"`
	MinAge   int64    `json:"min_age_s"`
	Whole    bool     `json:"whole"`
}

func nanos(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return 0, err
	}
	return t.UnixNano(), nil
}

// record makes a record of a line about a flow, as far as questions go.
func (l *line) record() (*flow.Record, error) {
	r := new(flow.Record)
	switch l.Event {
	case "destroy":
		r.Event = flow.EventDestroy
	case "open":
		r.Event = flow.EventOpen
	default:
		return nil, nil
	}
	var errs [3]error
	r.Received, errs[0] = nanos(l.Time)
	r.Start, errs[1] = nanos(l.Start)
	r.Stop, errs[2] = nanos(l.End)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if r.Received == 0 {
		return nil, errors.New("no time")
	}
	for _, c := range l.Clock {
		switch c {
		case "unsynchronized":
			r.Has |= flow.Unsynchronized
		case "stepped":
			r.Has |= flow.Stepped
		}
	}
	if err := l.tuples(r); err != nil {
		return nil, err
	}
	if l.Person != "" || l.Next != "" {
		r.Extra = &flow.Extra{Subscriber: flow.Subscriber{ID: l.Person, Name: l.Name, Next: l.Next, Source: l.Teller, Dst: l.Side == "dst"}}
	}
	value := func(p *uint64) uint64 {
		if p == nil {
			return 0
		}
		return *p
	}
	if l.OrigP != nil || l.OrigB != nil || l.ReplyP != nil || l.ReplyB != nil {
		r.Has |= flow.HasCounters
		r.OrigCounters = flow.Counters{Packets: value(l.OrigP), Bytes: value(l.OrigB)}
		r.ReplyCounters = flow.Counters{Packets: value(l.ReplyP), Bytes: value(l.ReplyB)}
	}
	return r, nil
}

func (l *line) tuples(r *flow.Record) error {
	addr := func(s string, into *flow.Addr) (v6 bool, err error) {
		if s == "" {
			return false, nil
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return false, err
		}
		*into = flow.AddrFrom(a)
		return a.Is6() && !a.Is4In6(), nil
	}
	port := func(p *uint16, or uint16) uint16 {
		if p == nil {
			return or
		}
		return *p
	}
	o, p := &r.Orig, &r.Reply
	if l.Proto != nil {
		o.Proto = flow.Proto(*l.Proto)
	}
	var errs [4]error
	var v6 [2]bool
	v6[0], errs[0] = addr(l.SrcIP, &o.Src)
	v6[1], errs[1] = addr(l.DstIP, &o.Dst)
	o.V6 = v6[0] || v6[1]
	o.SrcPort, o.DstPort = port(l.SrcPort, 0), port(l.DstPort, 0)
	if o.Proto.HasPorts() && l.SrcPort == nil && l.DstPort == nil {
		r.Has |= flow.NoPorts
	}
	if o.Proto.IsICMP() {
		o.SrcPort, o.DstPort = l.ICMPID, uint16(l.ICMPType)<<8|uint16(l.ICMPCode)
	} else if o.Proto == flow.GRE {
		o.SrcPort, o.DstPort = l.Key, l.DstKey
	}
	r.Has |= flow.HasOrig
	*p = flow.Tuple{Src: o.Dst, Dst: o.Src, SrcPort: o.DstPort, DstPort: o.SrcPort, Proto: o.Proto, V6: o.V6}
	if o.Proto.IsICMP() {
		p.SrcPort, p.DstPort = port(l.NATID, o.SrcPort), 0
	}
	if l.NAT != "" || l.NATSrcIP != "" || l.NATDstIP != "" {
		r.Has |= flow.HasReply
		_, errs[2] = addr(l.NATSrcIP, &p.Dst)
		_, errs[3] = addr(l.NATDstIP, &p.Src)
		if !o.Proto.IsICMP() {
			p.DstPort = port(l.NATSrc, port(l.NATKey, p.DstPort))
			p.SrcPort = port(l.NATDst, port(l.NATDstK, p.SrcPort))
		}
	}
	if l.Netns != "" || l.NSID != nil {
		id := int32(-1)
		if l.NSID != nil {
			id = *l.NSID
		}
		r.Netns = flow.HoldNetns(id, l.Netns)
	}
	if l.Zone != nil {
		r.Has |= flow.HasZone
		r.Zone = *l.Zone
	}
	if l.ZoneO != nil {
		o.Zone, o.HasZone = *l.ZoneO, true
	}
	if l.ZoneR != nil {
		p.Zone, p.HasZone = *l.ZoneR, true
	}
	return errors.Join(errs[:]...)
}

// gap makes what a gap's line says of it.
func (l *line) gap() (archive.Gap, error) {
	g := archive.Gap{Cause: l.Cause, Lost: l.Lost, Output: l.Output}
	at, err := nanos(l.Time)
	from, fromErr := nanos(l.From)
	to, toErr := nanos(l.To)
	g.At = archive.Time(at)
	if from != 0 {
		g.From = new(archive.Time(from))
	}
	if to != 0 {
		g.To = new(archive.Time(to))
	}
	return g, errors.Join(err, fromErr, toErr)
}

// Prepare reads the table, and then all files.
func (s *Lines) Prepare(ctx context.Context, questions []*Question) error {
	s.hosts, s.read = nil, 0
	for _, name := range s.only { // one of which there is no record is told of
		s.host(name)
	}
	want := wanted(questions)
	s.written = ""
	if s.table != nil && (len(s.only) == 0 || slices.Contains(s.only, s.table.Host)) {
		if i := slices.IndexFunc(s.paths, s.table.Writes); i >= 0 {
			s.written = s.paths[i]
		}
		if s.written != "" && s.table.Read != nil {
			h := s.host(s.table.Host)
			h.liveErr = s.table.read(ctx, s.written, func(r *flow.Record, id string) {
				if want(r) {
					h.rows.add(row{Record: r, host: h.name, flowID: id, live: true})
				}
			})
			h.live = h.liveErr == nil
		}
	}
	addrs := map[string]bool{}
	whole := false // every line has to be looked at
	for _, q := range questions {
		switch {
		case q.Public.Addr.IsValid():
			addrs[q.Public.Addr.String()] = true
		case q.Src.IsValid() && q.Src.IsSingleIP():
			addrs[q.Src.Addr().String()] = true
		case q.Dst.Addr.IsValid() && q.Person == "":
			addrs[q.Dst.Addr.String()] = true
		default:
			whole = true
		}
	}
	// All are opened before one is read, which may take minutes: what is rotated meanwhile keeps its records.
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, path := range s.paths {
		f, err := openRecords(path)
		if errors.Is(err, os.ErrNotExist) && rotated(path) {
			continue // removed, or renamed to another one of these, since they were listed
		}
		if err != nil {
			return fmt.Errorf("read the records: %w", err)
		}
		if slices.ContainsFunc(files, func(other *os.File) bool { return sameOpen(f, other) }) {
			f.Close()
			continue
		}
		files = append(files, f)
	}
	for _, f := range files {
		if err := s.file(ctx, f, addrs, whole, want); err != nil {
			return err
		}
	}
	return nil
}

// openRecords opens a file, which may have been compressed since it was listed.
func openRecords(path string) (f *os.File, err error) {
	for _, ext := range []string{"", ".zst", ".gz"} {
		if f, err = os.Open(path + ext); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return f, err
}

// rotated reports whether a path is that of a rotated file: a number is behind it, and perhaps how it is compressed.
func rotated(path string) bool {
	number := filepath.Ext(strings.TrimSuffix(strings.TrimSuffix(path, ".gz"), ".zst"))
	return len(number) > 1 && strings.Trim(number[1:], "0123456789") == ""
}

func sameOpen(a, b *os.File) bool {
	x, err := a.Stat()
	y, other := b.Stat()
	return err == nil && other == nil && os.SameFile(x, y)
}

func (s *Lines) host(name string) *lineHost {
	for _, h := range s.hosts {
		if h.name == name {
			return h
		}
	}
	h := &lineHost{name: name}
	s.hosts = append(s.hosts, h)
	return h
}

// opened is a file that is read, decompressed where it is compressed, whatever it is called.
func opened(f io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(f, 256<<10)
	head, _ := b.Peek(4)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(64<<20))
	case bytes.Equal(head, []byte("PAR1")):
		return nil, errors.New("is one segment of an archive; name the folder that has host=... in it")
	case bytes.Equal(head, []byte("ctlo")):
		return nil, errors.New("is one row log of an archive; name the folder that has host=... in it")
	}
	return b, nil
}

type counted struct {
	io.Reader
	n    *int64
	tell func()
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	*c.n += int64(n)
	c.tell()
	return n, err
}

const maxJSONLine = 1 << 20

// file reads one file.
func (s *Lines) file(ctx context.Context, f *os.File, addrs map[string]bool, whole bool, want func(*flow.Record) bool) error {
	path := f.Name()
	in, err := opened(counted{f, &s.read, func() {
		if s.Tell != nil {
			s.Tell(s.read, s.size)
		}
	}})
	if err != nil {
		return fmt.Errorf("%s %w", path, err)
	}
	if c, ok := in.(*zstd.Decoder); ok {
		defer c.Close()
	}
	lines := bufio.NewReaderSize(in, maxJSONLine)
	odd, records := 0, 0
	current := (*lineHost)(nil)
	for n := int64(0); ; n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		text, err := lines.ReadSlice('\n')
		torn := err == io.EOF
		if err == bufio.ErrBufferFull {
			odd++
			for err == bufio.ErrBufferFull {
				_, err = lines.ReadSlice('\n')
			}
			if err == nil {
				continue
			}
			text = nil
		}
		if len(bytes.TrimSpace(text)) > 0 {
			good, host := s.line(text, path, n, current, addrs, whole, want)
			switch {
			case good:
				current = host
				records++
			case !torn: // the last one may be being written
				odd++
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			s.damaged(current, "%s cannot be read to its end (%v): it is damaged, or only part of it was copied. Fetch it anew, and ask again.", path, err)
			break
		}
	}
	if records == 0 && odd > 0 {
		return fmt.Errorf("%s has no records of ctlogd as JSON lines (format: flat)", path)
	}
	if odd > 0 {
		s.damaged(current, "%s in %s cannot be read as records.", plural(odd, "line", "lines"), path)
	}
	return nil
}

// damaged says what is wrong with a file of a host; nil: it is not known whose.
func (s *Lines) damaged(h *lineHost, format string, args ...any) {
	switch {
	case h != nil:
	case len(s.only) > 0:
		h = s.host(s.only[0])
	default:
		h = s.host("")
	}
	h.problems = append(h.problems, Reason{Kind: "unreadable", Host: h.name, Text: fmt.Sprintf(format, args...)})
}

// field returns the text of a key in a line of JSON, as it stands there.
func field(text []byte, key string) string {
	i := bytes.Index(text, []byte(key))
	if i < 0 {
		return ""
	}
	rest := bytes.TrimLeft(text[i+len(key):], ": ")
	if len(rest) == 0 || rest[0] != '"' {
		return ""
	}
	if i = bytes.IndexByte(rest[1:], '"'); i < 0 {
		return ""
	}
	return string(rest[1 : 1+i])
}

// unsyncedMark is what a line has that was written while the clock was not synchronised.
var unsyncedMark = []byte(`"clock":["unsynchronized"`)

// line takes a line into account. good is false if it is none of ours.
func (s *Lines) line(text []byte, path string, n int64, h *lineHost, addrs map[string]bool, whole bool, want func(*flow.Record) bool) (good bool, of *lineHost) {
	at, event := field(text, `"time"`), field(text, `"event"`)
	if len(at) < 20 || event == "" || text[0] != '{' {
		return false, h
	}
	if name := field(text, `"host"`); h == nil || name != h.name {
		if strings.Contains(name, `\`) { // seldom: escaped
			if q, err := strconv.Unquote(`"` + name + `"`); err == nil {
				name = q
			}
		}
		if len(s.only) > 0 && !slices.Contains(s.only, name) {
			return true, h
		}
		h = s.host(name)
	}
	if h.first == "" || at < h.first {
		h.first = at
	}
	h.last = max(h.last, at)
	if unsynced := bytes.Contains(text, unsyncedMark); unsynced || h.unsynced.now {
		t, err := nanos(at)
		if err != nil {
			return false, h
		}
		h.unsynced.add(t, unsynced)
	}
	about := event == "gap" || event == "checkpoint" || whole
	for rest := text; !about; {
		i := bytes.Index(rest, []byte(`_ip"`))
		if i < 0 {
			return true, h
		}
		rest = bytes.TrimLeft(rest[i+4:], ": ")
		if len(rest) == 0 || rest[0] != '"' {
			continue
		}
		if rest = rest[1:]; bytes.IndexByte(rest, '"') > 0 {
			about = addrs[string(rest[:bytes.IndexByte(rest, '"')])]
		}
	}
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		return false, h
	}
	switch l.Event {
	case "gap":
		g, err := l.gap()
		if err != nil {
			return false, h
		}
		h.gaps = append(h.gaps, g)
		return true, h
	case "checkpoint":
		if l.From == "" { // a note, which says nothing of flows
			return true, h
		}
		from, err := nanos(l.From)
		to, toErr := nanos(l.To)
		if err != nil || toErr != nil {
			return false, h
		}
		h.checks = append(h.checks, check{Checkpoint: archive.Checkpoint{Began: archive.Time(from), Ended: archive.Time(to),
			MinAge: archive.Duration(time.Duration(l.MinAge) * time.Second), Whole: l.Whole}})
		return true, h
	}
	r, err := l.record()
	if err != nil {
		return false, h
	}
	if r != nil && want(r) {
		h.rows.add(row{Record: r, host: h.name, flowID: l.FlowID, file: path, number: n})
	}
	return true, h
}

// Collect returns the rows that a question may be about.
func (s *Lines) Collect(_ context.Context, q *Question) (rows []row, all []*facts, err error) {
	for _, h := range s.hosts {
		f := &facts{host: h.name, gaps: h.gaps, problems: h.problems, live: h.live, liveErr: h.liveErr, scanned: true, over: h.rows.over, unsynced: h.unsynced.all}
		f.begins, _ = nanos(h.first)
		f.ends, _ = nanos(h.last)
		if s.written != "" && h.name == s.table.Host {
			f.filter = s.table.Filter(s.written, q)
		}
		if f.unruled = s.then == nil; !f.unruled {
			f.then = s.then.File
			for _, path := range s.paths {
				f.filter = cmp.Or(f.filter, s.then.Filter(path, q))
			}
		}
		slices.SortFunc(h.checks, func(a, b check) int { return cmp.Compare(a.Began, b.Began) }) // files come in any order
		f.bound(h.checks, q)
		rows = h.rows.answer(rows, q, f.since(q))
		all = append(all, f)
	}
	if len(all) == 0 {
		all = append(all, &facts{scanned: true})
	}
	return rows, all, nil
}

// sources are several of them, asked one after the other.
type sources []Source

func (s sources) Prepare(ctx context.Context, questions []*Question) error {
	for _, one := range s {
		if err := one.Prepare(ctx, questions); err != nil {
			return err
		}
	}
	return nil
}

func (s sources) Collect(ctx context.Context, q *Question) (rows []row, all []*facts, err error) {
	for _, one := range s {
		r, f, err := one.Collect(ctx, q)
		if err != nil {
			return nil, nil, err
		}
		rows, all = append(rows, r...), append(all, f...)
	}
	return rows, all, nil
}

// Open opens what the paths name: folders of archives, and files of JSON lines. table and then may be nil.
func Open(paths, hosts []string, table *Table, then *Then) (Source, error) {
	var dirs, files []string
	for _, p := range paths {
		info, err := os.Stat(p)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("there is no archive %s", p)
		case err != nil:
			return nil, fmt.Errorf("read the archive: %w", err)
		case !info.IsDir():
			files = append(files, p)
			continue
		}
		found, err := findHosts(p, 3, map[string]error{})
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			lines, _ := filepath.Glob(filepath.Join(escapeGlob(p), "*.jsonl*"))
			if lines = slices.DeleteFunc(lines, others); len(lines) > 0 {
				files = append(files, lines...)
				continue
			}
		}
		dirs = append(dirs, p)
	}
	var s sources
	if len(dirs) > 0 {
		a, err := OpenArchive(dirs, hosts, table)
		if err != nil {
			return nil, err
		}
		s = append(s, a)
		for _, h := range a.hosts {
			if table != nil && h.Name == table.Host {
				table = nil // asked once
			}
		}
	}
	if len(files) > 0 {
		l, err := OpenLines(files, hosts, table, then)
		if err != nil {
			return nil, err
		}
		s = append(s, l)
	}
	if len(s) == 1 {
		return s[0], nil
	}
	return s, nil
}

// others reports whether a file beside records has none of them, such as the audit file; or not yet, as one that a rotated file is
// being compressed to. What cannot be read is told when it is.
func others(path string) bool {
	if strings.HasSuffix(path, ".compressing") {
		return true
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	in, err := opened(f)
	if err != nil {
		return false
	}
	if c, ok := in.(*zstd.Decoder); ok {
		defer c.Close()
	}
	first, err := bufio.NewReader(io.LimitReader(in, maxJSONLine)).ReadBytes('\n')
	return err == nil && (field(first, `"time"`) == "" || field(first, `"event"`) == "")
}

func escapeGlob(p string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace(p)
}

// Files returns the file of JSON lines at path and its rotated ones, for outputs that have no archive. The one that is written
// comes first: a rotation while they are opened may have one opened twice, and none but the oldest left out.
func Files(path string) []string {
	older, _ := filepath.Glob(escapeGlob(path) + ".[0-9]*")
	slices.SortFunc(older, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) })
	return slices.DeleteFunc(append([]string{path}, older...), func(p string) bool {
		info, err := os.Stat(p)
		return err != nil || !info.Mode().IsRegular()
	})
}
