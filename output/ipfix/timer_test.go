package ipfix

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/google/go-cmp/cmp"
)

// fake is a transport whose time is synctest's. Everything that is sent is noted with the time that has gone by.
type fake struct {
	sequences
	log    *fakeLog
	stream bool
	over   error
}

type fakeLog struct {
	begun time.Time
	sent  []sentSet
	dials []time.Duration
}

type sentSet struct {
	At  time.Duration
	Set uint16
}

func (f *fake) send(_ context.Context, msgs []*message) (int, error) {
	if f.over != nil {
		return 0, f.over
	}
	for _, m := range msgs {
		f.log.sent = append(f.log.sent, sentSet{time.Since(f.log.begun), binary.BigEndian.Uint16(m.buf[16:])})
		m.end = uint64(len(f.log.sent))
	}
	return len(msgs), nil
}

func (f *fake) reliable() bool { return f.stream }
func (f *fake) limit() int     { return datagramSize }
func (f *fake) err() error     { return f.over }
func (f *fake) progress() (uint64, uint64) {
	if n := uint64(len(f.log.sent)); !f.stream {
		return n, n
	}
	return uint64(len(f.log.sent)), 0
}
func (f *fake) deaf() bool   { return true }
func (f *fake) close() error { return nil }

// fakeExporter returns an exporter over fake transports; next is the session that the next dial makes, or its error.
func fakeExporter(t *testing.T, c Config, next func() (transport, error)) (*Exporter, *fakeLog) {
	e, err := New(c, Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := &fakeLog{begun: time.Now()}
	e.dial = func(context.Context, *collector) (transport, error) {
		log.dials = append(log.dials, time.Since(log.begun))
		session, err := next()
		if f, ok := session.(*fake); ok {
			f.log = log
		}
		return session, err
	}
	return e, log
}

// stopFake ends e and what it waits for.
func stopFake(e *Exporter) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	e.Close(ctx)
}

// times returns when sets of the given id were sent.
func (l *fakeLog) times(set uint16) (at []time.Duration) {
	for _, s := range l.sent {
		if s.Set == set {
			at = append(at, s.At)
		}
	}
	return slices.Compact(at)
}

func TestTemplatesByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, log := fakeExporter(t, Config{Address: "udp://192.0.2.1", TemplateInterval: 30 * time.Second},
			func() (transport, error) { return &fake{}, nil })
		defer stopFake(e)
		write(t, e, numbered(1, 1))
		time.Sleep(100 * time.Second)
		synctest.Wait()
		start, later := []time.Duration{0, startGap}, []time.Duration{}
		for i := range 3 {
			later = append(later, startGap+time.Duration(i+1)*30*time.Second)
		}
		if diff := cmp.Diff(slices.Concat(start, later), log.times(setTemplate)); diff != "" {
			t.Errorf("templates (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(slices.Concat(start[1:], later), log.times(idProcessStats)); diff != "" {
			t.Errorf("statistics (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]time.Duration{startGap}, log.times(257)); diff != "" {
			t.Errorf("data (-want +got):\n%s", diff)
		}
	})
}

func TestTemplatesByPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		packets := 10
		no := false
		e, log := fakeExporter(t, Config{Address: "udp://192.0.2.1", TemplatePackets: &packets, Options: &no,
			Records: "nat_events"},
			func() (transport, error) { return &fake{}, nil })
		defer stopFake(e)
		for i := range 25 {
			write(t, e, numbered(i, 1))
		}
		var sets []uint16
		for _, s := range log.sent {
			sets = append(sets, s.Set)
		}
		ten := slices.Repeat([]uint16{265}, 10)
		want := slices.Concat([]uint16{2, 2}, ten, []uint16{2}, ten, []uint16{2}, ten[:5])
		if diff := cmp.Diff(want, sets); diff != "" {
			t.Errorf("sets (-want +got):\n%s", diff)
		}
	})
}

// TestStreamNeedsNoTemplates: over TCP the templates of a session hold as long as it lasts.
func TestStreamNeedsNoTemplates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, log := fakeExporter(t, Config{Address: "tcp://192.0.2.1"}, func() (transport, error) {
			return &fake{stream: true},
				nil
		})
		defer stopFake(e)
		write(t, e, numbered(1, 1))
		time.Sleep(150 * time.Second)
		synctest.Wait()
		if diff := cmp.Diff([]time.Duration{0}, log.times(setTemplate)); diff != "" {
			t.Errorf("templates (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]time.Duration{0, time.Minute, 2 * time.Minute}, log.times(idProcessStats)); diff != "" {
			t.Errorf("statistics (-want +got):\n%s", diff)
		}
	})
}

// TestRetriesForBacklog: while nothing is written, records that were not acknowledged bring about a new session, with
// longer and longer waits between the attempts.
func TestRetriesForBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := &fake{stream: true}
		dials := 0
		e, log := fakeExporter(t, Config{Address: "tcp://192.0.2.1"}, func() (transport, error) {
			switch dials++; dials {
			case 1:
				return first, nil
			case 2, 3, 4, 5, 6, 7, 8:
				return nil, errors.New("connection refused")
			}
			return &fake{stream: true}, nil
		})
		defer stopFake(e)
		write(t, e, numbered(1, 3))
		synctest.Wait()
		first.over = errors.New("connection reset")
		e.tender.Look()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		var want []time.Duration
		at := time.Duration(0)
		for _, wait := range []int{0, 0, 1, 2, 4, 8, 16, 30, 30} {
			at += time.Duration(wait) * time.Second
			want = append(want, at)
		}
		if diff := cmp.Diff(want, log.dials); diff != "" {
			t.Errorf("dials (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]time.Duration{0, at}, log.times(257)); diff != "" {
			t.Errorf("data (-want +got):\n%s", diff)
		}
		if got := e.Stats().Resent; got != 3 {
			t.Errorf("%d records sent again, want 3", got)
		}
	})
}

// TestDialTimeout: a collector that does not answer costs a Write the dial timeout and no more.
func TestDialTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := fakeExporter(t, Config{Address: "tcp://192.0.2.1", DialTimeout: 3 * time.Second}, nil)
		e.dial = func(ctx context.Context, _ *collector) (transport, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		begun := time.Now()
		if n, err := e.Write(t.Context(), numbered(1, 1)); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Write returned %d, %v", n, err)
		}
		if got := time.Since(begun); got != 3*time.Second {
			t.Errorf("Write took %s", got)
		}
		stopFake(e)
	})
}

// TestPartialWrite: what Write returns when a session ends in the middle of many messages of several templates.
func TestPartialWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Records 0 to 49 and the odd ones behind go to messages of 16, the even ones from 50 on to messages of 14. The
		// first records of the messages, in the order of sending: 0, 16, 32, 50, 48, 79, 78.
		recs := numbered(1, 100)
		for i := 50; i < 100; i += 2 {
			recs[i] = ended(tuple(flow.TCP, "2001:db8::1", 1, "2001:db8::2", 2))
		}
		const before = 11 // templates and statistics
		for sent, want := range []int{0, 16, 32, 48, 48, 78, 78, 100} {
			e, _ := fakeExporter(t, Config{Address: "tcp://192.0.2.1"}, nil)
			e.dial = func(context.Context, *collector) (transport, error) {
				return &cutOff{fake: fake{stream: true, log: &fakeLog{}}, left: before + sent}, nil
			}
			n, err := e.Write(t.Context(), recs)
			if n != want || (err == nil) != (n == 100) {
				t.Errorf("Write returned %d, %v after %d messages, want %d", n, err, sent, want)
			}
			stopFake(e)
		}
	})
}

// cutOff is a session that ends after some messages.
type cutOff struct {
	fake
	left int
}

func (c *cutOff) send(ctx context.Context, msgs []*message) (int, error) {
	n := min(len(msgs), c.left)
	c.left -= n
	if n < len(msgs) {
		c.over = errors.New("connection reset")
		return n, c.over
	}
	return n, nil
}

// TestCloseGivesUp: a host that does not answer, and a collector that cannot be reached any more, hold up the end for a
// little while alone.
func TestCloseGivesUp(t *testing.T) {
	for _, over := range []error{nil, errors.New("connection reset")} {
		synctest.Test(t, func(t *testing.T) {
			first := &fake{stream: true}
			e, _ := fakeExporter(t, Config{Address: "tcp://192.0.2.1"}, func() (transport, error) {
				if first.log == nil {
					return first, nil
				}
				return nil, errors.New("no route to host")
			})
			write(t, e, numbered(1, 3))
			if got := e.Acknowledged(); got != 0 {
				t.Errorf("%d records acknowledged by a host that does not answer", got)
			}
			first.over = over
			begun := time.Now()
			err := e.Close(t.Context())
			if took := time.Since(begun); took < giveUp || took > giveUp+firstRetry {
				t.Errorf("Close took %v", took)
			}
			if err == nil || e.Acknowledged() != 0 {
				t.Errorf("Close returned %v, and %d records are acknowledged", err, e.Acknowledged())
			}
		})
	}
}
