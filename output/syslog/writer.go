package syslog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

const (
	// maxSend bounds what one send carries of a stream, but for one message, and datagrams likewise.
	maxSend = 64 << 10

	// firstRetry and lastRetry bound the wait between attempts to deliver a backlog while there is nothing to write.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second

	// giveUp is for how long Close tries to reach a receiver, and waits for the host of one that acknowledges nothing.
	giveUp = 2 * time.Second
)

// Options are what a Writer needs beside its configuration.
type Options struct {
	Encoder  format.Encoder // makes the messages; the Writer's own
	Observer string         // whose flow ids these are; "": none
	Host     string         // stands in every header
	Dial     Dial           // nil: net.Dialer's
	Log      *zap.Logger    // nil: none
}

// Writer is an output that sends a message for each record. Write and Close are for one goroutine.
type Writer struct {
	name      string
	cfg       Config
	log       *zap.Logger
	dial      Dial
	composer  composer
	octets    bool // frames by octet counting
	addresses []address

	held chan struct{} // a lock that can be waited for

	active   int // of addresses: the one to try next, or the session's
	session  transport
	backlog  backlog
	taken    uint64 // records that Write has reported as delivered
	buf, msg []byte
	ends     []int
	retry    time.Duration // maintain's: until its next attempt; 0: none is due

	arrived atomic.Uint64
	counts  struct{ octets, resent atomic.Uint64 }

	wake    chan struct{}
	stop    context.CancelFunc
	stopped chan struct{} // closed when maintain has returned; nil before it runs
}

// New returns a Writer for a valid configuration. It connects at the first Write.
func New(c Config, o Options) (*Writer, error) {
	c.Defaults()
	var errs []error
	c.Validate(func(field, msg string) { errs = append(errs, fmt.Errorf("%s: %s", field, msg)) })
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	w := &Writer{
		name: c.Name(), cfg: c, log: o.Log, dial: o.Dial, addresses: c.addresses(), held: make(chan struct{}, 1),
		composer: newComposer(&c, o.Encoder, o.Host, o.Observer), octets: c.Framing != framingLF, wake: make(chan struct{}, 1),
	}
	if w.log == nil {
		w.log = zap.NewNop()
	}
	w.log = w.log.With(zap.String("output", w.name))
	if w.dial == nil {
		w.dial = new(net.Dialer).DialContext
	}
	return w, nil
}

// backlogPace is how many messages of a backlog a second a receiver of datagrams gets.
const backlogPace = 20_000

// Pace implements deliver.Pacer: nobody can slow datagrams down.
func (w *Writer) Pace() int {
	for _, a := range w.addresses {
		if a.scheme == "udp" {
			return backlogPace
		}
	}
	return 0
}

// Name returns "syslog:" and the configured address.
func (w *Writer) Name() string { return w.name }

// Counters tells the output's own totals.
func (w *Writer) Counters(emit func(name, label string, n uint64)) {
	emit("bytes", "", w.counts.octets.Load())
	emit("resent_records", "", w.counts.resent.Load())
}

func (w *Writer) lock(ctx context.Context) error {
	select {
	case w.held <- struct{}{}:
		return nil
	default:
	}
	select {
	case w.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *Writer) unlock() { <-w.held }

// Write sends recs, many messages at once. Without a session it makes one first, which takes the dial timeout at most for
// each receiver; with none to be had it returns an error, and the caller waits before it tries again. Over UDP and to a
// unix socket, sent means handed to the kernel; over TCP and TLS, written to the session, and kept until the receiver's
// host has acknowledged it. A stream that breaks may have carried some of the records that Write reports as not sent.
func (w *Writer) Write(ctx context.Context, recs []*flow.Record) (n int, err error) {
	if err := w.lock(ctx); err != nil {
		return 0, err
	}
	defer w.unlock()
	if err := w.begin(ctx); err != nil {
		return 0, err
	}
	to := w.addresses[w.active]
	w.buf, w.ends = w.buf[:0], w.ends[:0]
	for i, r := range recs {
		w.add(r, to)
		if len(w.buf) < maxSend && i+1 < len(recs) {
			continue
		}
		sent, err := w.flush(ctx)
		n += sent
		if err != nil {
			var oversize *oversizeError
			if !errors.As(err, &oversize) {
				w.hangUp(err)
				w.look() // the backlog waits for a session even if the caller does not try again
			}
			w.arrived.Store(w.backlog.arrived(w.taken))
			return n, err
		}
	}
	w.acknowledge()
	return n, nil
}

// add appends the message of r to those that are to be sent to a receiver.
func (w *Writer) add(r *flow.Record, to address) {
	switch {
	case to.scheme == "journal":
		w.buf = w.composer.appendFields(w.buf, r)
	case !to.stream():
		w.buf = w.composer.append(w.buf, r)
	case w.octets:
		w.msg = w.composer.append(w.msg[:0], r)
		w.buf = append(strconv.AppendInt(w.buf, int64(len(w.msg)), 10), ' ')
		w.buf = append(w.buf, w.msg...)
	default:
		w.buf = append(w.composer.append(w.buf, r), '\n')
	}
	w.ends = append(w.ends, len(w.buf))
}

// flush sends what was added.
func (w *Writer) flush(ctx context.Context) (n int, err error) {
	n, err = w.session.send(ctx, w.buf, w.ends)
	if n > 0 {
		w.counts.octets.Add(uint64(w.ends[n-1]))
		if w.session.reliable() {
			written, _ := w.session.progress()
			w.backlog.add(w.buf, w.ends, w.taken, written)
		}
		w.taken += uint64(n)
	}
	w.buf, w.ends = w.buf[:0], w.ends[:0]
	return n, err
}

// Acknowledged returns how many of the records that Write has reported as sent a receiver's host has acknowledged, or, over
// UDP and to a unix socket, the kernel has sent: the first so many. Any goroutine may call it. It waits for nothing, and
// while a Write or Close is under way the answer may be that of some time ago.
func (w *Writer) Acknowledged() uint64 {
	select {
	case w.held <- struct{}{}:
		w.acknowledge()
		w.unlock()
	default:
	}
	return w.arrived.Load()
}

// acknowledge drops from the backlog what has been acknowledged.
func (w *Writer) acknowledge() {
	if w.session != nil && w.session.reliable() {
		_, acked := w.session.progress()
		w.backlog.ack(acked)
	}
	w.arrived.Store(w.backlog.arrived(w.taken))
}

// look makes maintain look at once. Any goroutine may call it.
func (w *Writer) look() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// begin makes sure that there is a session that, for all that is known, lives.
func (w *Writer) begin(ctx context.Context) error {
	if w.session != nil {
		err := w.session.err()
		if err == nil {
			return nil
		}
		w.hangUp(err)
	}
	return w.connect(ctx)
}

// connect begins a session with the first receiver that can be reached, from the active one on.
func (w *Writer) connect(ctx context.Context) error {
	var errs []error
	for range w.addresses {
		a := w.addresses[w.active]
		err := w.start(ctx, a)
		if err == nil {
			w.log.Info("session begun", zap.Stringer("receiver", a))
			return nil
		}
		errs = append(errs, fmt.Errorf("connect to %s: %w", a, err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// start begins a session with a: what the last session did not deliver goes first.
func (w *Writer) start(ctx context.Context, a address) error {
	dialing, cancel := context.WithTimeout(ctx, w.cfg.DialTimeout)
	defer cancel()
	session, err := w.dialAddress(dialing, a)
	if err != nil {
		w.standBy()
		return err
	}
	w.session = session
	if w.stopped == nil && session.reliable() {
		w.stopped = make(chan struct{})
		var background context.Context
		background, w.stop = context.WithCancel(context.Background())
		go w.maintain(background)
	}
	for i := range w.backlog.chunks {
		c := &w.backlog.chunks[i]
		if _, err := session.send(ctx, c.buf, c.ends); err != nil {
			w.hangUp(err)
			return err
		}
		c.end, _ = session.progress()
		w.counts.resent.Add(uint64(len(c.ends)))
	}
	if !session.reliable() {
		w.backlog.ack(never) // handed to the kernel, which is all that datagrams promise
	}
	return nil
}

func (w *Writer) dialAddress(ctx context.Context, a address) (transport, error) {
	switch a.scheme {
	case "tcp":
		return dialStream(ctx, w.dial, a, nil, w.look)
	case "tls":
		return dialStream(ctx, w.dial, a, &w.cfg.TLS, w.look)
	}
	return dialDatagrams(ctx, w.dial, a)
}

// hangUp ends the session because of err. What it had not delivered waits for the next session, which is tried with the
// next receiver of the list.
func (w *Writer) hangUp(err error) {
	w.log.Warn("session ended", zap.Stringer("receiver", w.addresses[w.active]), zap.Error(err))
	if w.session.reliable() {
		w.acknowledge()
		w.backlog.orphan()
	}
	w.session.close()
	w.session = nil
	w.standBy()
}

// standBy makes the next receiver of the list the active one.
func (w *Writer) standBy() { w.active = (w.active + 1) % len(w.addresses) }

// maintain does what is due while nothing is written, until ctx ends.
func (w *Writer) maintain(ctx context.Context) {
	defer close(w.stopped)
	for {
		var timer <-chan time.Time
		if w.retry > 0 {
			timer = time.After(w.retry)
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer:
		}
		if w.lock(ctx) != nil {
			return
		}
		w.tend(ctx)
		w.unlock()
	}
}

// tend notices that the session is over, and delivers a backlog to the next one.
func (w *Writer) tend(ctx context.Context) {
	waited := w.retry
	w.retry = 0
	if w.session != nil {
		err := w.session.err()
		if err == nil {
			return
		}
		w.hangUp(err)
	}
	if w.backlog.empty() {
		return // the next Write connects
	}
	if err := w.connect(ctx); err != nil {
		w.retry = min(max(2*waited, firstRetry), lastRetry)
		w.log.Warn("records wait for a session", zap.Int("records", w.backlog.records()), zap.Duration("retry_in", w.retry),
			zap.Error(err))
	}
}

// Close waits until everything has been acknowledged, ends the session and gives everything back. If ctx ends before, or
// no receiver can be reached for giveUp, the error says how many records may be lost.
func (w *Writer) Close(ctx context.Context) error {
	if w.stopped != nil {
		w.stop()
		<-w.stopped
	}
	w.held <- struct{}{} // against Acknowledged alone, which does not wait
	defer w.unlock()
	err := w.finish(ctx)
	w.acknowledge()
	if w.session != nil {
		w.session.close()
		w.session = nil
	}
	if n := w.backlog.records(); n > 0 {
		return fmt.Errorf("%d records not acknowledged by the receiver: %w", n, err)
	}
	return nil
}

// finish delivers the backlog.
func (w *Writer) finish(ctx context.Context) (err error) {
	w.cfg.DialTimeout = min(w.cfg.DialTimeout, giveUp)
	last := w.arrived.Load()
	for until := time.Now().Add(giveUp); ; {
		w.acknowledge()
		if w.backlog.empty() {
			return nil
		}
		if now := w.arrived.Load(); now > last {
			last, until = now, time.Now().Add(giveUp)
		}
		if !time.Now().Before(until) {
			if err == nil {
				err = errors.New("the receiver's host does not answer")
			}
			return err
		}
		wait := 5 * time.Millisecond
		if e := w.begin(ctx); e != nil {
			err, wait = e, 100*time.Millisecond
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}
