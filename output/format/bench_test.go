package format

import (
	"testing"
)

func BenchmarkFlat(b *testing.B) {
	for _, ex := range examples() {
		b.Run(ex.name, func(b *testing.B) {
			e, err := NewFlat(FlatOptions{Host: "cgn1.example.net", Observer: "4f9c1d"})
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
