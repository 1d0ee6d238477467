package format

import (
	"testing"
)

func BenchmarkFlat(b *testing.B) {
	for _, ex := range examples() {
		b.Run(ex.name, func(b *testing.B) {
			e, err := New("flat", Options{Host: "cgn1.example.net", Observer: "4f9c1d"})
			if err != nil {
				b.Fatal(err)
			}
			buf := e.Append(nil, &ex.rec)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				buf = e.Append(buf[:0], &ex.rec)
			}
		})
	}
}

func BenchmarkFormats(b *testing.B) {
	r := exampleRecord(b, "destroy")
	for _, name := range Names {
		b.Run(name, func(b *testing.B) {
			e := encoder(b, name)
			buf := e.Append(nil, &r)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				buf = e.Append(buf[:0], &r)
			}
		})
	}
}
