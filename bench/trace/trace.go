// Package trace invents flow records of a carrier-grade NAT, the same for the same seed: for benchmarks and
// tests of the archive.
package trace

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// Config is what a trace is made of.
type Config struct {
	Seed        uint64
	Start       time.Time     // of the first end
	PerSecond   int           // flows that end in a second
	Every       time.Duration // or, if not 0, the time between two
	Subscribers int
	Public      int // public addresses
	Servers     int
	LongOneIn   int // one flow of so many lasts longer than an hour
}

// Default is the trace that the archive's figures were measured with.
func Default() Config {
	return Config{Seed: 1, Start: time.Date(2026, 3, 9, 0, 0, 0, 0, time.UTC), PerSecond: 5000, Subscribers: 20000, Public: 256,
		Servers: 60000, LongOneIn: 300}
}

// Trace makes one record after the other. It is for one goroutine.
type Trace struct {
	cfg   Config
	rng   *rand.Rand
	now   int64
	step  int64
	zipf  *rand.Zipf
	hosts *rand.Zipf
}

// New returns the trace of c from its start.
func New(c Config) *Trace {
	rng := rand.New(rand.NewPCG(c.Seed, 0x6374_6c6f_6764))
	step := c.Every
	if step == 0 {
		step = time.Second / time.Duration(c.PerSecond)
	}
	return &Trace{cfg: c, rng: rng, now: c.Start.UnixNano(), step: int64(step),
		zipf: rand.NewZipf(rng, 1.1, 8, uint64(c.Servers-1)), hosts: rand.NewZipf(rng, 1.05, 50, uint64(c.Subscribers-1))}
}

var ports = [...]uint16{443, 443, 443, 443, 443, 443, 443, 443, 53, 53, 53, 80, 80, 123, 993, 5222, 8080, 3478}

// Public returns the public address that has number n.
func Public(n int) flow.Addr {
	return flow.AddrFrom4([4]byte{203, 0, byte(112 + n>>8), byte(n)})
}

// Subscriber returns the inside address that has number n.
func Subscriber(n int) flow.Addr {
	return flow.AddrFrom4([4]byte{100, byte(64 + n>>16), byte(n >> 8), byte(n)})
}

// Next makes the next record in r, which must be zeroed.
func (t *Trace) Next(r *flow.Record) {
	rng := t.rng
	t.now += t.step/2 + rng.Int64N(t.step)
	sub := int(t.hosts.Uint64())
	server := uint32(t.zipf.Uint64())
	server = server*2654435761>>8 | 0x08000000 // somewhere, always the same
	dst := flow.AddrFrom4([4]byte{byte(20 + server>>24), byte(server >> 16), byte(server >> 8), byte(server)})
	port := ports[rng.IntN(len(ports))]
	proto := flow.TCP
	if port == 53 || port == 123 || port == 3478 || port == 443 && rng.IntN(3) == 0 {
		proto = flow.UDP
	}
	duration := int64(rng.ExpFloat64() * float64(20*time.Second))
	if rng.IntN(t.cfg.LongOneIn) == 0 {
		duration = int64(time.Hour) + int64(rng.ExpFloat64()*float64(5*time.Hour))
	}
	r.Event = flow.EventDestroy
	r.Has = flow.HasOrig | flow.HasReply | flow.HasStatus | flow.HasID | flow.HasCounters | flow.HasMark
	r.Stop, r.Start = t.now, t.now-duration
	r.Received, r.Stamp = t.now+20_000_000, t.now+15_000_000
	r.ID = rng.Uint32()
	o := &r.Orig
	*o = flow.Tuple{Src: Subscriber(sub), Dst: dst, SrcPort: uint16(1024 + rng.IntN(64512)), DstPort: port, Proto: proto}
	r.Reply = flow.Tuple{Src: dst, Dst: Public(sub % t.cfg.Public), SrcPort: port, DstPort: uint16(1024 + rng.IntN(64512)), Proto: proto}
	r.OrigCounters = flow.Counters{Packets: 1, Bytes: 60 + uint64(rng.IntN(40))}
	r.ReplyCounters = flow.Counters{Packets: 1, Bytes: 80 + uint64(rng.IntN(400))}
	r.Status = flow.StatusSeenReply | flow.StatusAssured | flow.StatusConfirmed | flow.StatusSrcNAT | flow.StatusSrcNATDone | flow.StatusDstNATDone | flow.StatusDying
	if proto == flow.TCP || port == 443 {
		n := 5 + uint64(rng.ExpFloat64()*20)
		r.OrigCounters = flow.Counters{Packets: n, Bytes: n*52 + uint64(rng.ExpFloat64()*2000)}
		r.ReplyCounters = flow.Counters{Packets: n + n/2, Bytes: n*60 + uint64(rng.ExpFloat64()*20000)}
	}
	if proto == flow.TCP {
		r.Has |= flow.HasTCP
		r.State = flow.TCPTimeWait
		if rng.IntN(8) == 0 {
			r.State = flow.TCPClose
		}
	}
}

// Addr is a, for questions.
func Addr(a flow.Addr) netip.Addr { return netip.AddrFrom16(a).Unmap() }
