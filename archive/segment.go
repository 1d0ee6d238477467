package archive

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"
	"unsafe"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/compress/zstd"
	"github.com/parquet-go/parquet-go/format"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	groupRows  = 65536 // of a row group: what a question reads at least in part
	pageRows   = 2048  // of a page
	filterBits = 10    // of a filter, for each value

	usualRecord = 60 // bytes in a row log, or more
	metaOrigin  = "ctlogd.origin"
	metaFacts   = "ctlogd.segment"
)

// Compressions are the names of what segments can be compressed with; the first is the default.
var Compressions = []string{"zstd-1", "zstd-3", "zstd-9", "none"}

func codecOf(name string) compress.Codec {
	switch name {
	case "none":
		return &parquet.Uncompressed
	case "zstd-3":
		return &zstd.Codec{Level: zstd.SpeedDefault, Concurrency: 1}
	case "zstd-9":
		return &zstd.Codec{Level: zstd.SpeedBetterCompression, Concurrency: 1}
	}
	return &zstd.Codec{Level: zstd.SpeedFastest, Concurrency: 1}
}

// Span says what a group of rows is bounded by. A question about a moment passes over a group that cannot hold it.
type Span struct {
	Records    int64 `json:"records"`
	LeastStart Time  `json:"least_start"`
	Unknown    bool  `json:"start_unknown,omitempty"` // of some rows the start is not known: LeastStart bounds nothing
	First      Time  `json:"first"`                   // least end
	Last       Time  `json:"last"`                    // greatest end
}

func (s *Span) add(start, end int64, known bool) {
	if s.Records == 0 {
		*s = Span{LeastStart: Time(start), First: Time(end), Last: Time(end)}
	}
	s.Records++
	s.Unknown = s.Unknown || !known
	s.LeastStart = min(s.LeastStart, Time(start))
	s.First, s.Last = min(s.First, Time(end)), max(s.Last, Time(end))
}

// holds reports whether a flow of the group may have been alive between from and to.
func (s *Span) holds(from, to int64) bool {
	return s.Records > 0 && int64(s.Last) >= from && (s.Unknown || int64(s.LeastStart) <= to)
}

// Gap is a gap record as the catalog has it.
type Gap struct {
	Cause  string  `json:"cause"`
	At     Time    `json:"time"`
	From   *Time   `json:"from,omitempty"`
	To     *Time   `json:"to,omitempty"`
	Lost   *uint64 `json:"lost,omitempty"` // nil: how many is not known
	Output string  `json:"output,omitempty"`
}

// Facts are what the catalog says of the rows of a segment.
type Facts struct {
	Records     int64        `json:"records"`
	First       Time         `json:"first"` // least and greatest time of all rows
	Last        Time         `json:"last"`
	Short       Span         `json:"short"`             // flows that lasted no longer than the interval, and what is no flow
	Long        Span         `json:"long"`              // the other ones, in row groups of their own
	Stepped     bool         `json:"stepped,omitempty"` // the clock was set: no bound of time holds
	RowLogs     []uint64     `json:"row_logs"`          // that the segment replaces
	Gaps        []Gap        `json:"gaps,omitempty"`
	Checkpoints []Checkpoint `json:"checkpoints,omitempty"`
	Unsynced    *Times       `json:"unsynchronized,omitempty"` // of rows that say that the clock was not synchronised
}

// Times are the least and the greatest of several.
type Times struct {
	First Time `json:"first"`
	Last  Time `json:"last"`
}

// Add takes one more into account.
func (s *Times) Add(t Time) { s.First, s.Last = min(s.First, t), max(s.Last, t) }

// add takes a row into account and reports whether it belongs to the long ones.
func (f *Facts) add(r *flow.Record, interval int64) (long bool) {
	t, _ := r.Time()
	start, known := r.Start, r.Start != 0
	switch {
	case r.Event == flow.EventGap:
		f.Gaps = append(f.Gaps, GapOf(r))
		start, known = t, true
	case isCheckpoint(r):
		f.Checkpoints = append(f.Checkpoints, checkpointOf(r))
		start, known = t, true
	case r.Event == flow.EventDestroy || r.Event == flow.EventOpen:
		if long = !known || t-start > interval; !known {
			start = t
		}
	default: // says nothing of a start
		start, known = t, true
	}
	if f.Records == 0 {
		f.First, f.Last = Time(t), Time(t)
	}
	f.Records++
	f.First, f.Last = min(f.First, Time(t)), max(f.Last, Time(t))
	f.Stepped = f.Stepped || r.Has&flow.Stepped != 0
	if r.Has&flow.Unsynchronized != 0 {
		if f.Unsynced == nil {
			f.Unsynced = &Times{Time(t), Time(t)}
		}
		f.Unsynced.Add(Time(t))
	}
	if long {
		f.Long.add(start, t, known)
	} else {
		f.Short.add(start, t, known)
	}
	return long
}

// GapOf returns what a gap record says.
func GapOf(r *flow.Record) Gap {
	t, _ := r.Time()
	g := Gap{At: Time(t)}
	if x := r.Extra; x != nil {
		g.Cause, g.Output = x.Gap.Cause.String(), x.Gap.Output
		if x.Gap.LostKnown {
			g.Lost = new(x.Gap.Lost)
		}
	}
	if r.Start != 0 {
		g.From = new(Time(r.Start))
	}
	if r.Stop != 0 {
		g.To = new(Time(r.Stop))
	}
	return g
}

// Segment is a segment as its catalog line has it.
type Segment struct {
	File   string `json:"file"` // name in the folder of the date
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
	Facts
}

// Seal makes a segment of the row log at path, in the folder of its day, and returns its catalog line's part. It does not
// touch the catalog nor the row log. A process that seals it already makes it fail.
func Seal(path string) (seg Segment, date string, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil { // a fault of the library, or of the disk
			err = fmt.Errorf("seal %s: %v", path, p)
		}
	}()
	if err := Works(); err != nil {
		return seg, "", fmt.Errorf("seal %s: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return seg, "", err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return seg, "", fmt.Errorf("seal %s: another process is at it", path)
	}
	info, err := f.Stat()
	if err != nil {
		return seg, "", err
	}
	s, err := newRowScan(f, info.Size())
	if err != nil {
		return seg, "", fmt.Errorf("%s: %w", path, err)
	}
	rows, err := mapFile(f, info.Size())
	if err != nil {
		return seg, "", fmt.Errorf("read %s: %w", path, err)
	}
	defer func() { _ = unix.Munmap(rows) }()
	order, facts, lost, err := survey(s)
	if err != nil {
		return seg, "", fmt.Errorf("read %s: %w", path, err)
	}
	if facts.Records == 0 {
		return seg, "", errEmpty
	}
	order.sort()
	if facts.Records > groupRows {
		runtime.GC() // what sorting took is there for what comes next
	}

	date = s.Origin.Created.date()
	dir := filepath.Join(filepath.Dir(path), "date="+date)
	if err := makeDir(dir); err != nil {
		return seg, "", err
	}
	seg.Facts = facts
	seg.File = fmt.Sprintf("%s-%d.parquet", time.Unix(0, int64(facts.First)).UTC().Format("20060102T150405Z"), s.Origin.Sequence)
	tmp := filepath.Join(dir, seg.File+".tmp")
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	if err := step("seal.create"); err != nil {
		return seg, "", err
	}
	out, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return seg, "", err
	}
	defer out.Close()
	sum := crc32.New(castagnoli)
	written, err := writeSegment(io.MultiWriter(out, sum), &s.Origin, &seg.Facts, order.rows, rows, lost)
	if err != nil {
		return seg, "", fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := step("seal.written"); err != nil {
		return seg, "", err
	}
	if err := out.Sync(); err != nil {
		return seg, "", fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := step("seal.synced"); err != nil {
		return seg, "", err
	}
	// What counts is what the file holds, not what was meant to be in it.
	read, digest := crc32.New(castagnoli), sha256.New()
	if seg.Bytes, err = copyFrom(io.MultiWriter(read, digest), out); err != nil {
		return seg, "", err
	}
	if read.Sum32() != sum.Sum32() {
		return seg, "", fmt.Errorf("%s reads back other bytes than were written", tmp)
	}
	seg.SHA256 = hex.EncodeToString(digest.Sum(nil))
	if err := readBack(out, seg.Bytes, facts.Records, written); err != nil {
		return seg, "", fmt.Errorf("read %s back: %w", tmp, err)
	}
	if err := step("seal.read"); err != nil {
		return seg, "", err
	}
	if err := os.Rename(tmp, filepath.Join(dir, seg.File)); err != nil {
		return seg, "", err
	}
	if err := step("seal.renamed"); err != nil {
		return seg, "", err
	}
	return seg, date, syncDir(dir)
}

// mapFile maps a file into memory: its records are read in the order of the rows, one at a time. What the disk cannot
// give is a panic of the goroutine, which Seal makes an error.
func mapFile(f *os.File, size int64) ([]byte, error) {
	if size == 0 || int64(int(size)) != size {
		return nil, fmt.Errorf("a file of %d bytes cannot be mapped", size)
	}
	return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
}

// ErrBigEndian is the error of a machine whose numbers have their most significant byte first: the library that reads
// Parquet does not work there, so that no segment could be proven to be readable.
var ErrBigEndian = errors.New("this processor is big-endian, and segments can be neither written nor read here")

// Works returns ErrBigEndian where there can be no archive.
func Works() error {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return ErrBigEndian
	}
	return nil
}

// errEmpty is the error of sealing a row log without a record.
var errEmpty = errors.New("the row log has no records")

// makeDir makes a folder of a host or a date.
func makeDir(dir string) error {
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	} else if err == nil {
		return syncDir(filepath.Dir(dir))
	}
	return nil
}

// survey reads a row log once: the order of all rows, and what the catalog says of them. lost is a gap for what is
// damaged, or nil; it counts as a row.
func survey(s *rowScan) (rows *order, facts Facts, lost *flow.Record, err error) {
	rows = &order{rows: make([]rowKey, 0, min(s.size/usualRecord, 1<<22))}
	facts.RowLogs = []uint64{s.Origin.Sequence}
	interval := int64(s.Origin.Interval)
	b := flow.NewBatch(1, nil)
	for {
		payload, at, f, err := s.frame()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, facts, nil, err
		}
		for i := range f.count {
			b.Reset()
			rest, err := b.DecodeBinary(payload)
			if err != nil {
				s.garbled(f.count-i, len(payload))
				break
			}
			r := &b.Records[0]
			size := len(payload) - len(rest)
			rows.add(r, facts.add(r, interval), at)
			payload, at = rest, at+int64(size)
		}
	}
	if lost = s.damaged(int64(max(facts.Last, s.Origin.Created))); lost != nil {
		facts.add(lost, interval)
	}
	return rows, facts, lost, nil
}

// columnHash is of a column: of its values in their order, and of where there are none. However the rows are cut into pages, it is
// the same.
type columnHash struct{ values, there maphash.Hash }

func newColumnHash() (h columnHash) {
	h.values.SetSeed(hashSeed)
	h.there.SetSeed(hashSeed)
	return h
}

// add adds values: numbers, the bits of lists, or hashes of texts or addresses.
func (h *columnHash) add(values []uint64) {
	_, _ = h.values.Write(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), 8*len(values)))
}

// where adds which rows of a row group have a value: 1 says that one has.
func (h *columnHash) where(there []byte) {
	if bytes.IndexByte(there, 1) < 0 {
		h.none(len(there))
		return
	}
	_, _ = h.there.Write(there)
}

// none adds a row group of n rows without a value.
func (h *columnHash) none(n int) { maphash.WriteComparable(&h.there, n) }

// value is the hash of all.
func (h *columnHash) value() columnSum { return columnSum{h.values.Sum64(), h.there.Sum64()} }

// columnSum tells columns apart.
type columnSum struct{ values, there uint64 }

type columnSums [columnCount]columnSum

var hashSeed = maphash.MakeSeed()

// writeSegment writes the table to w: the records of the row log, whose bytes are rows, in the order of keys. lost, if
// there is one, comes first.
func writeSegment(w io.Writer, o *Origin, facts *Facts, keys []rowKey, rows []byte, lost *flow.Record) (sums columnSums, err error) {
	origin, err := json.Marshal(o)
	if err != nil {
		return sums, err
	}
	about, err := json.Marshal(facts)
	if err != nil {
		return sums, err
	}
	buffered := bufio.NewWriterSize(w, 256<<10)
	t, err := newTableWriter(buffered, len(keys)+1, codecOf(o.Level), dropped(o.Dropped))
	if err != nil {
		return sums, err
	}
	batch := flow.NewBatch(blockRows, nil)
	if lost != nil {
		batch.Append([]flow.Record{*lost})
	}
	for i := range keys {
		k := &keys[i]
		if i%ahead == 0 {
			touch(keys[i:min(i+ahead, len(keys))], rows)
		}
		ends := i > 0 && k.long() != keys[i-1].long()
		if ends || batch.Full() {
			if err := t.add(batch.Records); err != nil {
				return sums, err
			}
			batch.Reset()
		}
		if ends {
			if err := t.group(); err != nil {
				return sums, err
			}
		}
		if _, err := batch.DecodeBinary(rows[k.off:]); err != nil {
			return sums, err
		}
	}
	if err := errors.Join(t.add(batch.Records), t.group()); err != nil {
		return sums, err
	}
	if err := t.close(format.KeyValue{Key: metaOrigin, Value: string(origin)}, format.KeyValue{Key: metaFacts, Value: string(about)}); err != nil {
		return sums, err
	}
	return t.columnSums(), buffered.Flush()
}

// ahead is how many records are brought into the cache at once: they lie anywhere, and waiting for one after the other
// takes longer than decoding them.
const ahead = 32

//go:noinline
func touch(keys []rowKey, rows []byte) (sum byte) {
	for i := range keys {
		off := keys[i].off
		sum += rows[off] + rows[min(off+64, int64(len(rows)-1))]
	}
	return sum
}

// hashFile returns size and SHA-256 of a file.
func hashFile(f *os.File) (size int64, sum string, err error) {
	h := sha256.New()
	if size, err = copyFrom(h, f); err != nil {
		return 0, "", err
	}
	return size, hex.EncodeToString(h.Sum(nil)), nil
}

func copyFrom(h io.Writer, f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return io.Copy(h, io.NewSectionReader(f, 0, info.Size()))
}

// readBack reads every value of a segment, and tells whether it is what was written.
func readBack(f io.ReaderAt, size, records int64, want columnSums) error {
	// What was needed to write goes. Then little is alive, and what is read is garbage at once.
	if records > groupRows {
		runtime.GC()
		defer debug.SetGCPercent(debug.SetGCPercent(200))
	}
	pf, err := parquet.OpenFile(f, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return err
	}
	if pf.NumRows() != records {
		return fmt.Errorf("%d rows, and %d were written", pf.NumRows(), records)
	}
	got, err := sumsOf(pf)
	if err != nil {
		return err
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("column %s holds other values than were written", columns[i].name)
		}
	}
	return nil
}

// sumsOf reads every value of the columns that are known. The library does it, which did not write them.
func sumsOf(pf *parquet.File) (sums columnSums, err error) {
	var hashes [columnCount]columnHash
	for i := range hashes {
		hashes[i] = newColumnHash()
	}
	var r columnReader
	for _, g := range pf.RowGroups() {
		chunks := g.ColumnChunks()
		for i := range columns {
			leaf, ok := pf.Schema().Lookup(columns[i].path()...)
			if !ok {
				continue
			}
			if err := r.chunk(&columns[i], chunks[leaf.ColumnIndex], &hashes[i]); err != nil {
				return sums, fmt.Errorf("column %s: %w", columns[i].name, err)
			}
		}
	}
	for i := range hashes {
		sums[i] = hashes[i].value()
	}
	return sums, nil
}

// columnReader makes hashes of what the library reads.
type columnReader struct {
	there   []byte   // of a row group, which rows have a value
	entries []uint64 // of its dictionary, what columnHash takes
	values  []uint64 // of a page
}

// chunk adds a column of a row group to h, of which every page begins at the row that its index says.
func (r *columnReader) chunk(c *column, chunk parquet.ColumnChunk, h *columnHash) error {
	pages := chunk.Pages()
	defer pages.Close()
	index, err := chunk.OffsetIndex()
	if err != nil {
		return err
	}
	r.there, r.entries = r.there[:0], r.entries[:0]
	for n := 0; ; n++ {
		page, err := pages.ReadPage()
		if err == io.EOF {
			h.where(r.there)
			return nil
		}
		if err != nil {
			return err
		}
		// Whoever passes over pages goes by the index, which the values do not show.
		if n >= index.NumPages() || index.FirstRowIndex(n) != int64(len(r.there)) {
			return fmt.Errorf("page %d begins at row %d, where the index has another", n, len(r.there))
		}
		if d := page.Dictionary(); d != nil && len(r.entries) == 0 {
			for i := range d.Len() {
				r.entries = append(r.entries, c.entry(d.Index(int32(i))))
			}
		}
		r.values = r.values[:0]
		if c.list != nil {
			r.lists(page)
		} else {
			r.there = append(r.there, page.DefinitionLevels()...)
			if page.NumNulls() < page.NumValues() {
				r.page(page, encodingOf(c))
			}
		}
		h.add(r.values)
		parquet.Release(page)
	}
}

// entry returns what an entry of the dictionary of a column is to columnHash.
func (c *column) entry(v parquet.Value) uint64 {
	switch {
	case c.list != nil:
		return uint64(c.list.sets.parse(v.ByteArray()))
	case c.addr != nil:
		a, err := netip.ParseAddr(string(v.ByteArray()))
		if err != nil {
			return 0
		}
		f := flow.AddrFrom(a)
		k := keyOf(&f, a.Is6())
		return k.hash()
	case v.Kind() == parquet.ByteArray:
		return maphash.Bytes(hashSeed, v.ByteArray())
	case v.Kind() == parquet.Int32:
		return uint64(v.Uint32())
	}
	return v.Uint64()
}

// page reads the values of a page of a column that is no list.
func (r *columnReader) page(page parquet.Page, e encoding) {
	data := page.Data()
	switch {
	case e.dictionary():
		ints := data.Int32()
		r.values = sized(r.values, len(ints))
		for i, v := range ints {
			r.values[i] = r.entries[v]
		}
	case e == plainBool:
		packed := data.Boolean()
		for i := range int(page.NumValues() - page.NumNulls()) {
			r.values = append(r.values, uint64(packed[i/8]>>(i%8)&1))
		}
	case e == delta32:
		for _, v := range data.Uint32() {
			r.values = append(r.values, uint64(v))
		}
	default:
		r.values = append(r.values, data.Uint64()...)
	}
}

// lists reads the bits of a page of lists.
func (r *columnReader) lists(page parquet.Page) {
	defs, reps := page.DefinitionLevels(), page.RepetitionLevels()
	var ints []int32
	if len(r.entries) > 0 {
		data := page.Data()
		ints = data.Int32()
	}
	v := uint64(0)
	for i, d := range defs {
		if d == 0 {
			r.there = append(r.there, 0)
			continue
		}
		if d == 2 {
			v |= r.entries[ints[0]]
			ints = ints[1:]
		}
		if i+1 == len(reps) || reps[i+1] == 0 {
			r.there, r.values = append(r.there, 1), append(r.values, v)
			v = 0
		}
	}
}
