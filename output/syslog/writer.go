package syslog

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/datagram"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/output/tender"
	"github.com/ctlogd/ctlogd/ownflow"
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
	Encoder  format.Encoder   // makes the messages; the Writer's own
	Observer string           // whose flow ids these are; "": none
	Host     string           // stands in every header
	Sockets  *ownflow.Sockets // is told of the Writer's sockets; may be nil
	Log      *zap.Logger      // nil: none
}

// Writer is an output that sends a message for each record. Write and Close are for one goroutine.
type Writer struct {
	name     string
	cfg      Config
	log      *zap.Logger
	sockets  *ownflow.Sockets
	composer composer
	octets   bool // frames by octet counting

	reopen atomic.Bool // names are to be looked up again

	tender *tender.Tender // has the lock of all below

	receivers []*receiver

	active   int // of receivers: the one to try next, or the session's
	session  transport
	backlog  backlog
	taken    uint64 // records that Write has reported as delivered
	buf, msg []byte
	ends     []int
	retry    time.Duration // the tender's: how long it last waited for its next attempt

	arrived atomic.Uint64
	counts  struct{ octets, resent, sessions, refused, moves atomic.Uint64 }
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
		name: c.Name(), cfg: c, log: o.Log, sockets: o.Sockets, tender: tender.New(),
		composer: newComposer(&c, o.Encoder, o.Host, o.Observer), octets: c.Framing != framingLF,
	}
	if w.log == nil {
		w.log = zap.NewNop()
	}
	w.log = w.log.With(zap.String("output", w.name))
	for _, a := range c.addresses() {
		w.receivers = append(w.receivers, w.newReceiver(a))
	}
	return w, nil
}

// backlogPace is how many messages of a backlog a second a receiver of datagrams gets.
const backlogPace = 20_000

// Pace implements deliver.Pacer: nobody can slow datagrams down.
func (w *Writer) Pace() int {
	for _, r := range w.receivers {
		if r.Scheme == "udp" {
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
	emit("sessions", "", w.counts.sessions.Load())
	emit("refusals", "", w.counts.refused.Load())
	emit("address_changes", "", w.counts.moves.Load())
	emit("resent_records", "", w.counts.resent.Load())
}

// Write sends recs, many messages at once. Without a session it begins one first, which takes the dial timeout at most for
// each receiver; with none to be had it returns an error, and the caller waits before it tries again. Sent means handed to
// the kernel, and kept until it has arrived: over TCP and TLS, until the receiver's host has acknowledged it; over UDP, until
// that host has had the time to refuse it; at a unix socket, until it has been read. A session that breaks may have carried
// some of the records that Write reports as not sent.
func (w *Writer) Write(ctx context.Context, recs []*flow.Record) (n int, err error) {
	if len(recs) == 0 {
		return 0, nil
	}
	if err := w.tender.Lock(ctx); err != nil {
		return 0, err
	}
	defer w.tender.Unlock()
	n, err = w.begin(ctx, recs[0])
	if err != nil {
		return 0, err
	}
	to := w.receivers[w.active].address
	for i := n; i < len(recs); i++ {
		w.add(recs[i], to)
		if len(w.buf) < maxSend && i+1 < len(recs) {
			continue
		}
		sent, err := w.flush(ctx)
		n += sent
		if err != nil {
			var oversize *oversizeError
			if !errors.As(err, &oversize) {
				w.hangUp(err)
				w.tender.Look() // the backlog waits for a session even if the caller does not try again
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
	case to.Scheme == "journal":
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
		written, _ := w.session.progress()
		w.backlog.add(w.buf[:w.ends[n-1]], w.ends[:n], w.taken, written)
		w.taken += uint64(n)
	}
	w.buf, w.ends = w.buf[:0], w.ends[:0]
	return n, err
}

// Acknowledged returns how many of the records that Write has reported as sent have arrived, for all that is known: the first
// so many. Any goroutine may call it. It waits for nothing, and while a Write or Close is under way the answer may be that of
// some time ago.
func (w *Writer) Acknowledged() uint64 {
	if w.tender.TryLock() {
		w.acknowledge()
		if w.session != nil && w.session.err() != nil {
			w.tender.Look() // what is left needs another session, even if nothing is written
		}
		w.tender.Unlock()
	}
	return w.arrived.Load()
}

// acknowledge drops from the backlog what has arrived.
func (w *Writer) acknowledge() {
	if w.session != nil && !w.backlog.empty() {
		_, arrived := w.session.progress()
		w.backlog.ack(arrived)
	}
	w.arrived.Store(w.backlog.arrived(w.taken))
}

// begin makes sure that there is a session that, for all that is known, lives. With a new one, first may have been sent
// already: then n is 1.
func (w *Writer) begin(ctx context.Context, first *flow.Record) (n int, err error) {
	if w.session != nil {
		err := w.session.err()
		if err == nil {
			return 0, nil
		}
		w.hangUp(err)
	}
	return w.connect(ctx, first)
}

// connect begins a session with the first receiver that can be reached, from the active one on, and tries each of its
// addresses. n is that of begin.
func (w *Writer) connect(ctx context.Context, first *flow.Record) (n int, err error) {
	err = datagram.Connect(ctx, "connect to", w.receivers, &w.active, func(r *receiver) (err error) {
		n, err = w.start(ctx, r, first)
		return err
	})
	if err != nil {
		return 0, err
	}
	r := w.receivers[w.active]
	w.counts.sessions.Add(1)
	w.log.Info("session begun", zap.Stringer("receiver", r.address), zap.String("at", r.peer.At()))
	return n, nil
}

// start begins a session with r: what the last session did not deliver goes first. A session over UDP has begun when somebody
// has not refused a message, so that first goes now if there is no other.
func (w *Writer) start(ctx context.Context, r *receiver, first *flow.Record) (n int, err error) {
	dialing, cancel := context.WithTimeout(ctx, w.cfg.DialTimeout)
	defer cancel()
	if w.session, err = w.dial(dialing, r); err != nil {
		w.session = nil
		return 0, err
	}
	w.tender.Start(lookUpEvery, w.tend)
	err = w.resend(ctx)
	if err == nil && first != nil && w.backlog.empty() && r.Scheme == "udp" {
		w.add(first, r.address)
		var oversize *oversizeError
		if n, err = w.flush(ctx); errors.As(err, &oversize) {
			err = nil // Write finds out again
		}
	}
	if err != nil {
		w.leave()
	}
	return n, err
}

// resend sends the backlog.
func (w *Writer) resend(ctx context.Context) error {
	for i := range w.backlog.chunks {
		c := &w.backlog.chunks[i]
		if _, err := w.session.send(ctx, c.buf, c.ends); err != nil {
			return err
		}
		c.end, _ = w.session.progress()
		w.counts.resent.Add(uint64(len(c.ends)))
	}
	return nil
}

// hangUp ends a session that is over because of err. The next one is tried with another address of the receiver, or with the
// next receiver of the list.
func (w *Writer) hangUp(err error) {
	w.log.Warn("session ended", zap.Stringer("receiver", w.receivers[w.active].address), zap.Error(err),
		zap.String("remedy", "records wait until a receiver answers; see that it runs and that the address is right"))
	w.leave()
	datagram.Next(w.receivers, &w.active)
}

// leave ends the session. What it had not delivered waits for the next one.
func (w *Writer) leave() {
	w.acknowledge()
	w.backlog.orphan()
	w.session.close()
	w.session = nil
}

// tend notices, while nothing is written, that the receiver has moved or the session is over, and delivers a backlog to the next
// one. It returns for how long nothing is due.
func (w *Writer) tend(ctx context.Context) time.Duration {
	if w.lookUp(ctx); ctx.Err() != nil {
		return lookUpEvery
	}
	if w.session != nil {
		if err := w.session.err(); err != nil {
			w.hangUp(err)
		}
	}
	if w.session != nil || w.backlog.empty() { // else the next Write connects
		w.retry = 0
		return lookUpEvery
	}
	if _, err := w.connect(ctx, nil); err != nil {
		w.retry = min(max(2*w.retry, firstRetry), lastRetry)
		w.log.Warn("records wait for a session", zap.Int("records", w.backlog.records()), zap.Duration("retry_in", w.retry),
			zap.Error(err))
		return w.retry
	}
	w.retry = 0
	return lookUpEvery
}

// Close waits until everything has been acknowledged, ends the session and gives everything back. If ctx ends before, or
// no receiver can be reached for giveUp, the error says how many records may be lost.
func (w *Writer) Close(ctx context.Context) error {
	w.tender.Stop()
	_ = w.tender.Lock(context.Background()) // Acknowledged alone may have it, which does not wait
	defer w.tender.Unlock()
	err := w.finish(ctx)
	w.acknowledge()
	if w.session != nil {
		w.session.close()
		w.session = nil
	}
	for _, r := range w.receivers {
		r.peer.Close()
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
		if _, e := w.begin(ctx, nil); e != nil {
			err, wait = e, 100*time.Millisecond
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}
