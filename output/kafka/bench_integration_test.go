//go:build integration

package kafka

import (
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/integration/broker"
)

// cpu returns what this process has used so far, the broker's own not among it.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDeliver is the whole of a Writer's work, to a broker on this machine.
func BenchmarkDeliver(b *testing.B) {
	const slice = 4096
	c := broker.Start(b, broker.Options{})
	recs := records(slice)
	for _, name := range Compressions {
		b.Run(name, func(b *testing.B) {
			topic := "flows-" + name + "-" + b.Name()[:5] + time.Now().Format("150405.000000")
			c.CreateTopic(b, topic, 12, 1)
			w := newWriter(b, c.Addrs, topic, func(c *Config) { c.Compression = name })
			write(b, w, recs)
			before := cpu(b)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Write(b.Context(), recs); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N)/slice, "cpu-ns/record")
			perRecord(b, slice)
		})
	}
}
