package archive

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

// FuzzRowScan: whatever stands in a row log, reading it ends, and what it gives are whole frames in the order of their
// numbers.
func FuzzRowScan(f *testing.F) {
	path := newTestLog(f, f.TempDir(), nil, makeTrace(20, 1))
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(append(whole[:len(whole):len(whole)], whole[200:]...))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := newRowScan(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		end := uint64(0)
		for {
			payload, at, fr, err := s.frame()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if at+int64(len(payload)) > int64(len(data)) || fr.first+uint64(fr.count) < end {
				t.Fatalf("frame at %d of %d bytes, first record %d after %d", at, len(payload), fr.first, end)
			}
			end = s.next
		}
		if s.at != s.size || s.whole > s.size {
			t.Fatalf("the scan ends at %d of %d, whole to %d", s.at, s.size, s.whole)
		}
	})
}

// FuzzCatalog: whatever stands in a catalog, reading it ends, and no line leads out of the folder.
func FuzzCatalog(f *testing.F) {
	dir := writeArchive(f, makeTrace(20, 1), nil)
	host := filepath.Join(dir, "host=gw1")
	folders, err := dates(host)
	if err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(host, folders[0], catalogName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add([]byte("{}\nnull\n{\"kind\":\"segment\",\"file\":\"../x.parquet\"}\n{\"kind\":\"removed\"}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, catalogName), data, 0o644); err != nil {
			t.Fatal(err)
		}
		lines, size, _ := ReadCatalog(dir)
		if size > int64(len(data)) {
			t.Fatalf("%d bytes of %d", size, len(data))
		}
		for _, s := range live(lines) {
			if filepath.Dir(filepath.Join(dir, s.File)) != dir {
				t.Fatalf("%q leads out of the folder", s.File)
			}
		}
	})
}

// FuzzSurvey: a frame that is intact may hold anything.
func FuzzSurvey(f *testing.F) {
	f.Add(flow.AppendBinary(nil, makeTrace(1, 1)[0]), uint8(1))
	f.Fuzz(func(t *testing.T, payload []byte, n uint8) {
		buf := append(make([]byte, frameHeader), payload...)
		putFrameHeader(buf, 0, int(n))
		head, err := appendRowLogHeader(nil, &Origin{Version: 1})
		if err != nil {
			t.Fatal(err)
		}
		data := append(head, buf...)
		s, err := newRowScan(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		order, facts, lost, err := survey(s)
		if err != nil {
			t.Fatal(err)
		}
		missing := uint64(0)
		if lost != nil {
			missing = lost.Extra.Gap.Lost
		}
		if uint64(len(order.rows))+missing != uint64(n) {
			t.Fatalf("%d rows, %d told as lost, %d in the frame: %+v", len(order.rows), missing, n, facts)
		}
	})
}

// FuzzSegment: bytes that are no segment, or a damaged one, are an error or rows, and take no memory beyond their size.
func FuzzSegment(f *testing.F) {
	recs := everyKind()
	dir := f.TempDir()
	seg, date, err := Seal(newTestLog(f, dir, nil, recs[:300]))
	if err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "date="+date, seg.File))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[len(good)/2:])
	for i := range 20 {
		bad := bytes.Clone(good)
		bad[len(bad)-1-i*len(bad)/21] ^= 0x41
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := openTable(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		q := &Query{Public: netip.MustParseAddr("10.0.0.1"), HasPort: true, Port: 53, From: 1, To: 1 << 62}
		for _, g := range table.groups {
			if g.rows > 100_000 {
				continue
			}
			table.may(g, q)
			_, _ = table.find(g, q)
			oneByOne(t, table, g)
		}
	})
}

// oneByOne holds rows that are read together to be what each is by itself: no page has a say in the rows of another.
func oneByOne(t *testing.T, table *table, g *rowGroup) (rows int) {
	t.Helper()
	var together [][]byte
	if err := table.records(g, all(g.rows), func(_ int64, r *flow.Record) bool {
		together = append(together, flow.AppendBinary(nil, r))
		return true
	}); err != nil {
		return 0
	}
	for i := range min(int64(len(together)), 40) {
		row := i * int64(len(together)) / min(int64(len(together)), 40)
		err := table.records(g, []int64{row}, func(_ int64, r *flow.Record) bool {
			if alone := flow.AppendBinary(nil, r); !bytes.Equal(alone, together[row]) {
				t.Fatalf("row %d of %d is %x by itself, and %x among the others", row, len(together), alone, together[row])
			}
			return true
		})
		if err != nil {
			t.Fatalf("row %d of %d by itself: %v", row, len(together), err)
		}
	}
	return len(together)
}

// TestDamagedLevels: levels of lists that are not those of the page's rows are damage. They were read as empty lists, or as
// those of other rows, and with them went what is said of the clock.
func TestDamagedLevels(t *testing.T) {
	dir := t.TempDir()
	var recs []*flow.Record
	for range 2 + pageRows/3000 {
		recs = append(recs, everyKind()...)
	}
	seg, date, err := Seal(newTestLog(t, dir, nil, recs))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "date="+date, seg.File))
	if err != nil {
		t.Fatal(err)
	}
	open := func() *table {
		table, err := openTable(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	tried := 0
	good := open()
	for n, g := range good.groups {
		for c := range columns {
			if columns[c].list == nil || g.empty(c) {
				continue
			}
			places, err := good.places(g, c, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range places {
				whole := data[at.at:][:at.size]
				h, levels, err := readHead(whole)
				if err != nil {
					t.Fatal(err)
				}
				levels = levels[:h.defs+h.reps]
				as := bytes.Clone(levels)
				for rep := range byte(3) { // each entry begins a row, none does, and there is no such level
					run := append(binary.AppendUvarint(nil, uint64(h.values)<<1), rep)
					if len(run) > int(h.reps) || rep == 0 && h.values == at.end-at.row {
						continue
					}
					copy(levels, run)
					table := open()
					rows := oneByOne(t, table, table.groups[n])
					if tried++; rows > 0 {
						t.Errorf("%s: a page of %d rows with %d levels %d was read", columns[c].name, at.end-at.row, h.values, rep)
					}
					copy(levels, as)
				}
			}
		}
	}
	if tried < 5 {
		t.Fatalf("%d pages are not enough", tried)
	}
}
