package ipfix

import (
	"net"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

// sink reads what is sent to it over loopback until the test ends, and returns its address.
func sink(tb testing.TB) string {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			if _, _, err := c.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
		}
	}()
	return "udp://" + c.LocalAddr().String()
}

// benchRecords returns n ended TCP flows behind source NAT.
func benchRecords(n int) []*flow.Record {
	recs := make([]*flow.Record, n)
	for i := range recs {
		recs[i] = tcpNAT(uint16(i))
	}
	return recs
}

func BenchmarkAppendRecord(b *testing.B) {
	s := newTemplateSet(&Config{})
	r := tcpNAT(1)
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		buf = s.flow(r).appendRecord(buf[:0], r)
	}
	b.SetBytes(int64(len(buf)))
}

// BenchmarkWriteUDP is the cost of a record from Write to the loopback interface.
func BenchmarkWriteUDP(b *testing.B) {
	e, err := New(Config{Address: sink(b)}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close(b.Context())
	recs := benchRecords(4096)
	if _, err := e.Write(b.Context(), recs); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += len(recs) {
		if _, err := e.Write(b.Context(), recs); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer() // Close waits for refusals
}
