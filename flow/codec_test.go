package flow

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// decodeOne decodes one record that src must consist of.
func decodeOne(t *testing.T, src []byte) *Record {
	t.Helper()
	b := NewBatch(1, nil)
	rest, err := b.DecodeBinary(src)
	if err != nil || len(rest) != 0 || len(b.Records) != 1 {
		t.Fatalf("DecodeBinary(%x): %d records, %d bytes left, error %v", src, len(b.Records), len(rest), err)
	}
	return &b.Records[0]
}

// leaf is one value inside a Record or its Extra that has no parts: a number, a boolean, a string, an array of bytes.
type leaf struct {
	path string
	get  func(*Record) reflect.Value
}

// leaves finds every leaf of a Record by reflection, those of Extra included, so that a field that is added later is
// among them.
func leaves(t testing.TB) (all []leaf) {
	t.Helper()
	var walk func(path string, typ reflect.Type, get func(*Record) reflect.Value)
	walk = func(path string, typ reflect.Type, get func(*Record) reflect.Value) {
		switch typ.Kind() {
		case reflect.Struct:
			for i := range typ.NumField() {
				walk(path+"."+typ.Field(i).Name, typ.Field(i).Type, func(r *Record) reflect.Value {
					return get(r).Field(i)
				})
			}
		case reflect.Pointer:
			walk(path, typ.Elem(), func(r *Record) reflect.Value {
				p := get(r)
				if p.IsNil() {
					p.Set(reflect.New(typ.Elem()))
				}
				return p.Elem()
			})
		default:
			all = append(all, leaf{path, get})
		}
	}
	walk("Record", reflect.TypeFor[Record](), func(r *Record) reflect.Value { return reflect.ValueOf(r).Elem() })
	return all
}

// values returns values of v's type that are not zero, the greatest and the least among them.
func values(t testing.TB, path string, v reflect.Value) (vals []reflect.Value) {
	t.Helper()
	add := func(x any) { vals = append(vals, reflect.ValueOf(x).Convert(v.Type())) }
	switch v.Kind() {
	case reflect.Bool:
		add(true)
	case reflect.Int64:
		add(int64(1))
		add(int64(-1))
		add(int64(math.MaxInt64))
		add(int64(math.MinInt64))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if v.Type() == reflect.TypeFor[Netns]() {
			add(HoldNetns(0, ""))
			add(HoldNetns(math.MaxInt32, "blue"))
			break
		}
		add(uint64(1))
		if v.Type() == reflect.TypeFor[Event]() {
			add(uint64(EventCheckpoint))
		} else {
			add(uint64(1)<<v.Type().Bits() - 1)
		}
	case reflect.String:
		add("x")
		add(string(make([]byte, 300)))
	case reflect.Array:
		for _, set := range [][]byte{{0: 1}, {15: 1}, slices.Repeat([]byte{0xff}, 16), {10: 0xff, 11: 0xff, 15: 0}} {
			a := reflect.New(v.Type()).Elem()
			reflect.Copy(a, reflect.ValueOf(set))
			vals = append(vals, a)
		}
	default:
		t.Fatalf("%s: no values for kind %s; teach this test", path, v.Kind())
	}
	return vals
}

// TestBinaryFields holds every field to survive on its own, as it does to a field that is added and forgotten.
func TestBinaryFields(t *testing.T) {
	all := leaves(t)
	if len(all) < 40 {
		t.Fatalf("found %d fields: the walk is broken", len(all))
	}
	for _, l := range all {
		for _, v := range values(t, l.path, l.get(new(Record))) {
			want := new(Record)
			l.get(want).Set(v)
			if diff := cmp.Diff(want, decodeOne(t, AppendBinary(nil, want))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", l.path, diff)
			}
		}
	}
}

// randomRecord returns a record of which each field is set with probability one half.
func randomRecord(t testing.TB, rnd *rand.Rand, all []leaf) *Record {
	t.Helper()
	r := new(Record)
	if rnd.IntN(2) == 0 {
		r.Extra = new(Extra)
	}
	for _, l := range all {
		if rnd.IntN(2) == 0 && (r.Extra != nil || len(l.path) < len("Record.Extra") || l.path[:12] != "Record.Extra") {
			vals := values(t, l.path, l.get(r))
			l.get(r).Set(vals[rnd.IntN(len(vals))])
		}
	}
	return r
}

// TestBinaryBatch holds many records one after the other, with and without Extra, to come back as they were.
func TestBinaryBatch(t *testing.T) {
	rnd, all := rand.New(rand.NewPCG(1, 2)), leaves(t)
	const n = 500
	var want []Record
	var enc []byte
	for range n {
		r := randomRecord(t, rnd, all)
		want = append(want, *r)
		enc = AppendBinary(enc, r)
	}
	b := NewBatch(n, nil)
	for range 2 { // the second time in a used batch
		b.Reset()
		for src := enc; len(src) > 0; {
			var err error
			if src, err = b.DecodeBinary(src); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(want, b.Records); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

// TestBinaryCut holds a record that is cut short anywhere to be an error that leaves the batch as it was.
func TestBinaryCut(t *testing.T) {
	rnd, all := rand.New(rand.NewPCG(3, 4)), leaves(t)
	for range 50 {
		enc := AppendBinary(nil, randomRecord(t, rnd, all))
		b := NewBatch(2, nil)
		b.Extra(b.Next()).Class = 7
		for n := range enc {
			if _, err := b.DecodeBinary(enc[:n:n]); err == nil {
				t.Fatalf("%d of %d bytes of %x decode", n, len(enc), enc)
			}
			if len(b.Records) != 1 || b.used != 1 || b.Records[0].Extra.Class != 7 {
				t.Fatalf("the batch has changed: %d records, %d extras", len(b.Records), b.used)
			}
		}
	}
}

func TestBinaryCorrupt(t *testing.T) {
	full := func(edit func(enc []byte)) []byte {
		enc := AppendBinary(nil, &Record{Event: EventDestroy, Orig: Tuple{Src: Addr{1}, Proto: TCP},
			Extra: &Extra{Class: 1}})
		edit(enc)
		return enc
	}
	tests := []struct {
		name string
		src  []byte
	}{
		{"empty", nil},
		{"version 0", full(func(e []byte) { e[0] = 0 })},
		{"a newer version", full(func(e []byte) { e[0] = binaryVersion + 1 })},
		{"unknown event", full(func(e []byte) { e[1] = byte(EventCheckpoint) + 1 })},
		{"unknown field", full(func(e []byte) { e[5] |= 0x80 })},
		{"address of 4 and of 16 bytes", full(func(e []byte) { e[6] |= tuSrc4 })},
		{"unknown field of Extra", full(func(e []byte) { e[len(e)-2] |= 0x80 })},
		{"endless number", append(full(func(e []byte) {})[:26], slices.Repeat([]byte{0xff}, 11)...)},
		{"number too large", append(full(func(e []byte) {})[:26], 0xff, 0xff, 0xff, 0xff, 0x10)},
		{"string longer than the rest", []byte{1, 1, 0, 0, 0, hasExtra >> 8, exSecCtx, 0, 3, 'a', 'b'}},
		{"string of 2^63", append([]byte{1, 1, 0, 0, 0, hasExtra >> 8, exSecCtx, 0},
			binary.AppendUvarint(nil, 1<<63)...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := NewBatch(1, nil)
			if rest, err := b.DecodeBinary(tt.src); err == nil || len(b.Records) != 0 || len(rest) != len(tt.src) {
				t.Errorf("DecodeBinary(%x): %d bytes left, error %v, records %+v", tt.src, len(rest), err, b.Records)
			}
		})
	}
	if enc := full(func([]byte) {}); len(enc) != 27 {
		t.Errorf("the record of the tables has %d bytes, they count on 27", len(enc))
	}
}

// typicalRecord is a TCP flow of IPv4 with source translation, as a carrier's gateway sees them.
func typicalRecord() *Record {
	src, nat, dst := AddrFrom4([4]byte{10, 0, 3, 7}), AddrFrom4([4]byte{192, 0, 2, 1}), AddrFrom4([4]byte{198, 51, 100, 9})
	return &Record{
		Event: EventDestroy, Has: HasOrig | HasReply | HasStatus | HasID | HasMark | HasCounters | HasTCP,
		Orig:         Tuple{Src: src, Dst: dst, SrcPort: 40123, DstPort: 443, Proto: TCP},
		Reply:        Tuple{Src: dst, Dst: nat, SrcPort: 443, DstPort: 1027, Proto: TCP},
		OrigCounters: Counters{12, 2300}, ReplyCounters: Counters{17, 24000},
		Start: 1790000000000000000, Stop: 1790000012345678901, Stamp: 1790000012345688901, Received: 1790000012346000000,
		ID: 0x9abcdef0, Mark: 5, Status: StatusSeenReply | StatusAssured | StatusConfirmed | StatusSrcNAT, State: TCPTimeWait,
	}
}

func TestBinaryAllocs(t *testing.T) {
	r := typicalRecord()
	r.Extra = &Extra{Helper: NameFrom("ftp"), HasMaster: true, Master: r.Orig}
	enc := AppendBinary(nil, r)
	b := NewBatch(1, nil)
	if n := testing.AllocsPerRun(100, func() {
		enc = AppendBinary(enc[:0], r)
		b.Reset()
		if _, err := b.DecodeBinary(enc); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := len(AppendBinary(nil, typicalRecord())); n > 72 {
		t.Errorf("a typical record has %d bytes, the comment says some 70", n)
	}
}

// FuzzDecodeBinary holds whatever decodes to be written and read again as the same record.
func FuzzDecodeBinary(f *testing.F) {
	f.Add(AppendBinary(nil, typicalRecord()))
	f.Add(AppendBinary(nil, &Record{Event: EventGap, Start: 1, Stop: 2,
		Extra: &Extra{Gap: Gap{CauseCrash, 3, true, "x"}}}))
	f.Add(AppendBinary(nil, &Record{Event: EventExpectNew, Extra: &Extra{Master: Tuple{Src: Addr{1}, V6: true, Zone: 1},
		HasMaster: true, HasLabels: true, Labels: [16]byte{1}, SecCtx: "system_u", Class: 1, Flags: 2}}))
	f.Fuzz(func(t *testing.T, src []byte) {
		b := NewBatch(1, nil)
		rest, err := b.DecodeBinary(src)
		if err != nil {
			if len(b.Records) != 0 || b.used != 0 {
				t.Fatal("an error has left something in the batch")
			}
			return
		}
		if len(rest) >= len(src) {
			t.Fatalf("%d bytes left of %d", len(rest), len(src))
		}
		if diff := cmp.Diff(&b.Records[0], decodeOne(t, AppendBinary(nil, &b.Records[0]))); diff != "" {
			t.Fatalf("(-first +second):\n%s", diff)
		}
	})
}

// FuzzAppendBinary holds any record to come back as it was.
func FuzzAppendBinary(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, int64(1790000000000000000), uint64(1)<<40, uint32(77), "system_u:object_r", "kafka:flows")
	}
	f.Fuzz(func(t *testing.T, seed uint64, ns int64, num uint64, id uint32, secctx, output string) {
		r := randomRecord(t, rand.New(rand.NewPCG(seed, 0)), leaves(t))
		r.Received, r.Stop, r.OrigCounters.Bytes, r.ID = ns, int64(num), num, id
		if r.Extra != nil {
			r.Extra.SecCtx, r.Extra.Gap.Output, r.Extra.Gap.Lost = secctx, output, num
		}
		if diff := cmp.Diff(r, decodeOne(t, AppendBinary(nil, r))); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

func BenchmarkBinary(b *testing.B) {
	r := typicalRecord()
	enc := AppendBinary(nil, r)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(enc)))
		for b.Loop() {
			enc = AppendBinary(enc[:0], r)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(enc)))
		batch := NewBatch(1, nil)
		for b.Loop() {
			batch.Reset()
			if _, err := batch.DecodeBinary(enc); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("glance", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(enc)))
		frame := bytes.Repeat(enc, 256)
		rest := frame
		var g Glance
		for b.Loop() {
			var err error
			if rest, err = g.Read(rest); err != nil {
				b.Fatal(err)
			}
			if len(rest) == 0 {
				rest = frame
			}
		}
	})
}

// agree holds a Glance to say of src what DecodeBinary does.
func agree(t *testing.T, src []byte) {
	t.Helper()
	b, g := NewBatch(1, nil), Glance{}
	rest, err := b.DecodeBinary(src)
	left, failed := g.Read(src)
	if err != failed || len(left) != len(rest) {
		t.Fatalf("decoded: %d bytes left, %v; at a glance: %d, %v", len(rest), err, len(left), failed)
	}
	if err != nil {
		return
	}
	r := &b.Records[0]
	at, _ := r.Time()
	ends := func(u *Tuple) GlanceTuple {
		return GlanceTuple{{TailOf(&u.Src), u.SrcPort}, {TailOf(&u.Dst), u.DstPort}}
	}
	if want := (Glance{r.Event, r.Has, at, r.Start, ends(&r.Orig), ends(&r.Reply)}); g != want {
		t.Fatalf("decoded: %+v\nat a glance: %+v", want, g)
	}
}

// FuzzGlance holds a Glance at any bytes to what decoding them says.
func FuzzGlance(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(AppendBinary(nil, randomRecord(f, rand.New(rand.NewPCG(seed, 0)), leaves(f))))
	}
	f.Add(AppendBinary(nil, typicalRecord()))
	f.Fuzz(func(t *testing.T, src []byte) {
		agree(t, src)
		for n := range min(len(src), 300) { // as a torn one
			agree(t, src[:n])
		}
	})
}

// TestText holds texts of a batch to stay as they are while it grows, and their storage to be used again.
func TestText(t *testing.T) {
	b := NewBatch(256, nil)
	fill := func() (texts []string) {
		for i := range 256 {
			texts = append(texts, b.Text(strings.Repeat(string(rune('a'+i%26)), i)))
		}
		return texts
	}
	for i, s := range fill() {
		if want := strings.Repeat(string(rune('a'+i%26)), i); s != want {
			t.Fatalf("text %d is %q, want %q", i, s, want)
		}
	}
	b.Reset()
	long := strings.Repeat("x", 100)
	if n := testing.AllocsPerRun(100, func() {
		b.Reset()
		for range 256 {
			b.Text(long)
		}
	}); n != 0 {
		t.Errorf("%v allocations in a batch that has held as much", n)
	}
}

// TestSubscriberMoves holds a record that is copied to another batch to keep its subscriber when the first is used again.
func TestSubscriberMoves(t *testing.T) {
	from, to := NewBatch(1, nil), NewBatch(1, nil)
	set := func(id string) {
		from.Reset()
		r := from.Next()
		r.Event = EventDestroy
		from.Extra(r).Subscriber = Subscriber{ID: from.Text(id), Name: from.Text(id), Next: from.Text(id), Source: from.Text(id)}
	}
	set("alice")
	to.Append(from.Records)
	set("mallory")
	if got, want := *to.Records[0].Subscriber(), (Subscriber{ID: "alice", Name: "alice", Next: "alice", Source: "alice"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
