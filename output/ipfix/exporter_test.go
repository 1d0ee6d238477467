package ipfix

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/ipfix/listen"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// received is what a collector has got, in the order in which it came.
type received struct {
	mu      sync.Mutex
	changed chan struct{}

	capture
	decoder *listen.Decoder
	quick   bool // note the flow ids of template 257 alone
}

// capture is what had come at some time.
type capture struct {
	t        *testing.T
	messages [][]byte
	lines    []line
	ids      []int // if quick
}

// line is one record as listen prints it.
type line struct {
	Domain, Sequence uint32
	Template         uint16
	Error            string
	Record           map[string]any
}

func newReceived(t *testing.T) *received {
	return &received{capture: capture{t: t}, changed: make(chan struct{}, 1), decoder: listen.NewDecoder()}
}

func (c *received) take(source string, m []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.quick {
		for r := m[20:]; binary.BigEndian.Uint16(m[16:]) == idFlow4NAT && len(r) > 0; r = r[86:] {
			c.ids = append(c.ids, int(binary.BigEndian.Uint64(r[72:])))
		}
		c.signal()
		return
	}
	c.messages = append(c.messages, slices.Clone(m))
	out, err := c.decoder.Append(nil, source, m)
	if err != nil {
		c.t.Errorf("message %x: %v", m, err)
	}
	for s := range strings.Lines(string(out)) {
		var l line
		if err := json.Unmarshal([]byte(s), &l); err != nil {
			c.t.Errorf("%s: %v", s, err)
		}
		c.lines = append(c.lines, l)
	}
	c.signal()
}

func (c *received) signal() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// peek returns what has come so far.
func (c *received) peek() capture {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.capture
}

// wait waits until ok says that enough has come, and returns it.
func (c *received) wait(ok func(c capture) bool) capture {
	c.t.Helper()
	for {
		if now := c.peek(); ok(now) {
			return now
		}
		select {
		case <-c.changed:
		case <-c.t.Context().Done():
			c.t.Fatal("test ended")
		}
	}
}

// flows returns the flow ids of the flows and events that have been decoded, in their order. NAT events have none: 0.
func (c capture) flows() (ids []int) {
	if len(c.ids) > 0 {
		return c.ids
	}
	for _, l := range c.lines {
		if l.Domain != 0 && l.Error == "" {
			id, _ := l.Record["flowId"].(float64)
			ids = append(ids, int(id))
		}
	}
	return ids
}

// sets returns the set id of each message, which has to be the only one.
func (c capture) sets() (ids []uint16) {
	for _, m := range c.messages {
		if n := int(binary.BigEndian.Uint16(m[18:])); n != len(m)-16 {
			c.t.Errorf("the set has %d octets, the message %d", n, len(m))
		}
		ids = append(ids, binary.BigEndian.Uint16(m[16:]))
	}
	return ids
}

func enough(n int) func(capture) bool { return func(c capture) bool { return len(c.flows()) >= n } }

// collectUDP is a collector on a UDP port; "127.0.0.1:0" is any.
func collectUDP(t *testing.T, at string) (*received, string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	conn.(*net.UDPConn).SetReadBuffer(8 << 20)
	t.Cleanup(func() { conn.Close() })
	c := newReceived(t)
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			c.take(from.String(), buf[:n])
		}
	}()
	return c, conn.LocalAddr().String()
}

// read reads messages from a stream until it ends.
func (c *received) read(r io.Reader, source string) {
	buf := make([]byte, 65536)
	br := bufio.NewReader(r)
	for {
		if _, err := io.ReadFull(br, buf[:16]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buf[2:]))
		if _, err := io.ReadFull(br, buf[16:n]); err != nil {
			return
		}
		c.take(source, buf[:n])
	}
}

// serve reads from every connection that l accepts, until the test ends.
func (c *received) serve(l net.Listener) {
	c.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				c.read(conn, conn.RemoteAddr().String())
			}()
		}
	}()
}

func listenTCP(t *testing.T, at string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func newExporter(t *testing.T, c Config) *Exporter {
	t.Helper()
	e, err := New(c, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		e.Close(ctx)
	})
	return e
}

func write(t *testing.T, e *Exporter, recs []*flow.Record) {
	t.Helper()
	if n, err := e.Write(t.Context(), recs); n != len(recs) || err != nil {
		t.Fatalf("Write returned %d of %d, %v", n, len(recs), err)
	}
}

// numbered returns n flows with the flow ids from first on.
func numbered(first, n int) []*flow.Record {
	recs := make([]*flow.Record, n)
	for i := range recs {
		recs[i] = with(tcpNAT(uint16(i)), id(uint32(first+i)))
	}
	return recs
}

func numbers(first, n int) []int {
	ids := make([]int, n)
	for i := range ids {
		ids[i] = first + i
	}
	return ids
}

func TestUDP(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		c, address := collectUDP(t, at)
		e := newExporter(t, Config{Address: "udp://" + address})
		if got, want := e.Name(), "ipfix:udp://"+address; got != want {
			t.Errorf("name %s, want %s", got, want)
		}
		write(t, e, numbered(1, 100))
		write(t, e, numbered(101, 3))
		got := c.wait(enough(103))
		if diff := cmp.Diff(numbers(1, 103), got.flows()); diff != "" {
			t.Errorf("flow ids (-want +got):\n%s", diff)
		}
		// Templates twice, statistics, then data.
		definitions := []uint16{3, 3, 2, 2, 2, 2, 2, 2, 2, 2}
		want := slices.Concat(definitions, definitions, []uint16{400}, slices.Repeat([]uint16{257}, 8))
		if diff := cmp.Diff(want, got.sets()); diff != "" {
			t.Errorf("set ids (-want +got):\n%s", diff)
		}
		next := map[uint32]uint32{}
		for _, m := range got.messages {
			domain, seq := binary.BigEndian.Uint32(m[12:]), binary.BigEndian.Uint32(m[8:])
			if seq != next[domain] {
				t.Errorf("sequence number %d in domain %d, want %d", seq, domain, next[domain])
			}
			switch binary.BigEndian.Uint16(m[16:]) {
			case 257:
				next[domain] += uint32(len(m)-20) / 86
			case 400:
				next[domain]++
			}
			if len(m) > 1400 {
				t.Errorf("message of %d octets", len(m))
			}
			if domain != 0 && domain != DefaultObservationDomain() {
				t.Errorf("domain %d", domain)
			}
		}
		if err := e.Close(t.Context()); err != nil {
			t.Error(err)
		}
		bytes := 0
		got = c.wait(func(c capture) bool { return len(c.messages) == 30 }) // the last statistics
		for _, m := range got.messages {
			bytes += len(m)
		}
		if diff := cmp.Diff(Stats{Records: 103, Messages: 30, Bytes: uint64(bytes), Sessions: 1}, e.Stats()); diff != "" {
			t.Errorf("statistics (-want +got):\n%s", diff)
		}
		last := got.lines[len(got.lines)-1].Record
		if got := fmt.Sprint(last["exportedMessageTotalCount"], last["exportedFlowRecordTotalCount"]); got != "29 103" {
			t.Errorf("last statistics say %s", got)
		}
	}
}

// TestMixedTemplates: flows that take turns between templates fill messages all the same.
func TestMixedTemplates(t *testing.T) {
	c, address := collectUDP(t, "127.0.0.1:0")
	no := false
	e := newExporter(t, Config{Address: "udp://" + address, Options: &no, Records: "both"})
	var recs []*flow.Record
	for i := range 120 {
		r := tcpNAT(uint16(i))
		switch i % 4 {
		case 1:
			r = ended(tuple(flow.UDP, "2001:db8::1", 1, "2001:db8::2", 2))
		case 2:
			r = ended(tuple(flow.ICMP, "192.0.2.1", 1, "192.0.2.2", 8<<8))
		case 3:
			r = &flow.Record{Event: flow.EventUpdate}
		}
		recs = append(recs, with(r, id(uint32(i+1))))
	}
	write(t, e, recs)
	got := c.wait(enough(30*3 + 30)) // the NAT flow is an event too
	templates := map[uint16]int{}
	for _, id := range got.sets() {
		templates[id]++
	}
	if diff := cmp.Diff(map[uint16]int{2: 18, 256 + 1: 2, 258: 3, 266: 2, 265: 2}, templates); diff != "" {
		t.Errorf("messages by set id (-want +got):\n%s", diff)
	}
	if got := e.Stats().Skipped; got != 30 {
		t.Errorf("%d skipped, want 30", got)
	}
}

func TestGapRecords(t *testing.T) {
	c, address := collectUDP(t, "127.0.0.1:0")
	e := newExporter(t, Config{Address: "udp://" + address})
	gap := func(cause flow.Cause, lost uint64, known bool, output string) *flow.Record {
		return &flow.Record{Event: flow.EventGap, Start: goldenStart, Stop: goldenEnd,
			Extra: &flow.Extra{Gap: flow.Gap{Cause: cause, Lost: lost, LostKnown: known, Output: output}}}
	}
	write(t, e, numbered(1, 2))
	write(t, e, []*flow.Record{gap(flow.CauseOverrun, 100, true, ""), gap(flow.CauseReboot, 0, false, "")})
	write(t, e, []*flow.Record{gap(flow.CauseQueueFull, 7, true, e.Name())})
	write(t, e, numbered(3, 1))
	got := c.wait(enough(3))
	var totals []any
	for _, l := range got.lines {
		if l.Template == idReliability {
			totals = append(totals, l.Record["notSentFlowTotalCount"])
			if l.Domain != 0 || l.Record["observationTimeMilliseconds"] != "2026-01-01T00:00:00.123Z" ||
				l.Record["observationTimeMilliseconds_2"] != "2026-01-01T00:00:04.567Z" {
				t.Errorf("gap record %+v", l)
			}
		}
	}
	if diff := cmp.Diff([]any{100.0, 100.0, 107.0}, totals); diff != "" {
		t.Errorf("totals of lost flows (-want +got):\n%s", diff)
	}
	// What the kernel dropped never was this exporter's to send; what its own queue dropped was.
	if seq := got.lines[len(got.lines)-1].Sequence; seq != 2+7 {
		t.Errorf("sequence number %d after the gaps, want 9", seq)
	}
}

func TestNoOptions(t *testing.T) {
	t.Parallel()
	c, address := collectUDP(t, "127.0.0.1:0")
	no := false
	e := newExporter(t, Config{Address: "udp://" + address, Options: &no, Enterprise: everyElement})
	write(t, e, []*flow.Record{{Event: flow.EventGap}, tcpNAT(1)})
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.wait(enough(1)).messages {
		if domain := binary.BigEndian.Uint32(m[12:]); domain == 0 {
			t.Errorf("message in the exporter's domain: %x", m)
		}
	}
}

func TestEnterprise(t *testing.T) {
	c, address := collectUDP(t, "127.0.0.1:0")
	e := newExporter(t, Config{Address: "udp://" + address, Enterprise: everyElement})
	r := with(tcpNAT(1), id(1))
	r.Mark, r.Status = 42, flow.StatusAssured
	r.Extra = &flow.Extra{Helper: flow.NameFrom("ftp")}
	write(t, e, []*flow.Record{r})
	lines := c.wait(enough(1)).lines
	got := lines[len(lines)-1].Record
	if got["ctMark"] != 42.0 || got["ctHelperName"] != "ftp" || got["ctStatus"] != 4.0 {
		t.Errorf("record %v", got)
	}
}

func TestFailoverUDP(t *testing.T) {
	c, standby := collectUDP(t, "127.0.0.1:0")
	e := newExporter(t, Config{Address: "udp://" + nobody(t), Failover: []string{"udp://" + standby}})
	write(t, e, numbered(1, 10)) // templates are refused already
	if diff := cmp.Diff(numbers(1, 10), c.wait(enough(10)).flows()); diff != "" {
		t.Errorf("flow ids (-want +got):\n%s", diff)
	}
}

func TestFailoverTCP(t *testing.T) {
	l := listenTCP(t, "127.0.0.1:0")
	first := newReceived(t)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			first.read(io.LimitReader(conn, 3000), "first")
			conn.(*net.TCPConn).SetLinger(0)
			l.Close()
			conn.Close()
		}
	}()
	standby := newReceived(t)
	l2 := listenTCP(t, "127.0.0.1:0")
	standby.serve(l2)
	e := newExporter(t, Config{Address: "tcp://" + l.Addr().String(), Failover: []string{"tcp://" + l2.Addr().String()}})
	for i := 1; ; i++ {
		n, err := e.Write(t.Context(), numbered(i, 1))
		if n != 1 && err == nil {
			t.Fatalf("Write returned %d without an error", n)
		}
		if got := standby.peek().flows(); len(got) > 0 && got[len(got)-1] == i-1 && err == nil {
			break
		}
	}
}

func TestTCP(t *testing.T) {
	t.Parallel()
	c := newReceived(t)
	l := listenTCP(t, "127.0.0.1:0")
	c.serve(l)
	e := newExporter(t, Config{Address: "tcp://" + l.Addr().String()})
	const n = 20000
	for i := 0; i < n; i += 4000 {
		write(t, e, numbered(1+i, 4000))
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := c.wait(enough(n))
	if diff := cmp.Diff(numbers(1, n), got.flows()); diff != "" {
		t.Errorf("flow ids (-want +got):\n%s", diff)
	}
	for _, m := range got.messages {
		if len(m) > streamSize {
			t.Errorf("message of %d octets", len(m))
		}
	}
	if definitions := got.sets()[:10]; slices.ContainsFunc(definitions, func(id uint16) bool { return id > 3 }) {
		t.Errorf("session begins with sets %v", definitions)
	}
}

// TestLateStart: the collector is not there yet. Write says so at once, and delivers when it is.
func TestLateStart(t *testing.T) {
	l := listenTCP(t, "127.0.0.1:0")
	address := l.Addr().String()
	l.Close()
	e := newExporter(t, Config{Address: "tcp://" + address})
	n, err := e.Write(t.Context(), numbered(1, 5))
	if n != 0 || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("Write returned %d, %v", n, err)
	}
	want := "connect to collector tcp://" + address + ": dial tcp " + address + ": connect: connection refused"
	if err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	c := newReceived(t)
	c.serve(listenTCP(t, address))
	write(t, e, numbered(1, 5))
	c.wait(enough(5))
}

func TestUnresolvableName(t *testing.T) {
	for _, scheme := range []string{"udp", "tcp", "tls"} {
		e := newExporter(t, Config{Address: scheme + "://collector.invalid"})
		n, err := e.Write(t.Context(), numbered(1, 1))
		var dns *net.DNSError
		if n != 0 || !errors.As(err, &dns) || dns.Name != "collector.invalid" {
			t.Errorf("%s: Write returned %d, %v", scheme, n, err)
		}
	}
}

func TestWriteEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l := listenTCP(t, "127.0.0.1:0")
	defer l.Close()
	for _, address := range []string{"udp://127.0.0.1:9", "tcp://" + l.Addr().String()} {
		e := newExporter(t, Config{Address: address})
		if n, err := e.Write(ctx, numbered(1, 1)); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: Write returned %d, %v", address, n, err)
		}
	}
}

// TestStopsReading: a collector accepts the connection and reads nothing more. Write returns when its context ends, and
// says how much it has written; then the collector dies, and what its host had not acknowledged goes to the next one.
func TestStopsReading(t *testing.T) {
	t.Parallel()
	l := listenTCP(t, "127.0.0.1:0")
	address := l.Addr().String()
	accepted := make(chan *net.TCPConn, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		l.Close()
		conn.(*net.TCPConn).SetReadBuffer(64 << 10)
		accepted <- conn.(*net.TCPConn)
	}()
	e := newExporter(t, Config{Address: "tcp://" + address, MessageSize: "1400"})
	const total = 200000
	recs := numbered(1, total)
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	for n < total {
		// No more than a write of 64 messages is under way when the buffers are full.
		timeout, stop := context.WithTimeout(ctx, time.Second)
		k, err := e.Write(timeout, recs[n:min(total, n+1000)])
		stop()
		n += k
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			break
		}
	}
	cancel()
	if n == 0 || n == total {
		t.Fatalf("%d of %d records written to a collector that reads nothing", n, total)
	}
	if a := e.Acknowledged(); a >= uint64(n) {
		t.Errorf("%d records acknowledged, of %d that were written to a collector that reads nothing", a, n)
	}
	conn := <-accepted
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var unread int
	if err := raw.Control(func(fd uintptr) { unread, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	dead, c := newReceived(t), newReceived(t)
	dead.quick, c.quick = true, true
	// What the dead collector's host had acknowledged.
	dead.read(io.LimitReader(conn, int64(unread)), "dead")
	conn.SetLinger(0)
	conn.Close()

	c.serve(listenTCP(t, address))
	for n < total {
		k, err := e.Write(t.Context(), recs[n:])
		n += k
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := e.Acknowledged(); a != total {
		t.Errorf("%d records acknowledged at the end, want %d", a, total)
	}
	acked := dead.peek().flows()
	got := c.wait(func(c capture) bool { f := c.flows(); return len(f) > 0 && f[len(f)-1] == total }).flows()
	if len(acked) == 0 || e.Stats().Resent == 0 {
		t.Fatalf("%d records acknowledged, %d sent again; the test shows nothing", len(acked), e.Stats().Resent)
	}
	have := map[int]bool{}
	for _, id := range slices.Concat(acked, got) {
		have[id] = true
	}
	if len(have) != total {
		t.Errorf("%d of %d records arrived; %d had been acknowledged, %d sent again", len(have), total, len(acked),
			e.Stats().Resent)
	}
}

// TestResets: the collector resets the connection ten times in mid-stream. All that is missing in the end is what its
// host had acknowledged and it had not read, which is no more than its receive buffer holds.
func TestResets(t *testing.T) {
	const (
		total   = 100000
		resets  = 10
		buffer  = 256 << 10 // the kernel doubles what it is asked for (socket(7), SO_RCVBUF)
		message = 1400
	)
	small := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, buffer/2) })
		return err
	}}
	l, err := small.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := newReceived(t)
	c.quick = true
	var conns sync.WaitGroup
	conns.Go(func() {
		for round := 0; round <= resets; round++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if round == resets {
				c.read(conn, "last")
				return
			}
			c.read(io.LimitReader(conn, 100_000), strconv.Itoa(round))
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
	})
	e := newExporter(t, Config{Address: "tcp://" + l.Addr().String(), MessageSize: strconv.Itoa(message)})
	recs := numbered(1, total)
	for n := 0; n < total; {
		k, _ := e.Write(t.Context(), recs[n:min(total, n+200)])
		n += k
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.Close()
	conns.Wait()
	if got := e.Stats().Sessions; got != resets+1 {
		t.Fatalf("%d sessions, want %d", got, resets+1)
	}
	have := map[int]bool{}
	for _, id := range c.peek().flows() {
		have[id] = true
	}
	if missing, most := total-len(have), resets*(buffer+message)/86; missing > most {
		t.Errorf("%d records missing; at most %d can have been acknowledged and not read", missing, most)
	}
	if e.Stats().Resent == 0 {
		t.Error("nothing was sent again; the test shows nothing")
	}
}

// TestBacklogNeedsNoWrite: the last records before a reset are sent again although none follow them.
func TestBacklogNeedsNoWrite(t *testing.T) {
	l := listenTCP(t, "127.0.0.1:0")
	hold := make(chan struct{})
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.(*net.TCPConn).SetReadBuffer(4096)
		<-hold
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}()
	e := newExporter(t, Config{Address: "tcp://" + l.Addr().String()})
	write(t, e, numbered(1, 8000))
	c := newReceived(t)
	c.quick = true
	close(hold)
	c.serve(l)
	c.wait(func(c capture) bool { f := c.flows(); return len(f) > 0 && f[len(f)-1] == 8000 })
}

// TestCloseReportsUnacknowledged: the collector is gone for good.
func TestCloseReportsUnacknowledged(t *testing.T) {
	l := listenTCP(t, "127.0.0.1:0")
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			conn.(*net.TCPConn).SetReadBuffer(4096)
			accepted <- conn
		}
	}()
	e := newExporter(t, Config{Address: "tcp://" + l.Addr().String()})
	write(t, e, numbered(1, 8000))
	conn := <-accepted
	l.Close()
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := e.Close(ctx)
	if err == nil || !strings.Contains(err.Error(), " records not acknowledged by the collector: ") {
		t.Errorf("Close returned %v", err)
	}
}

func TestWriteAllocates(t *testing.T) {
	any := 0
	e := newExporter(t, Config{Address: sink(t), TemplatePackets: &any})
	recs := numbered(1, 4096)
	write(t, e, recs)
	ctx := context.Background()
	if allocs := testing.AllocsPerRun(50, func() { e.Write(ctx, recs) }); allocs != 0 {
		t.Errorf("%v allocations in a Write of 4096 records", allocs)
	}
}
