package ipfix

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

const (
	// startGap is how long the first data of a UDP session waits for its templates: a collector with several workers
	// may take up data before the template that it followed at once.
	startGap = 100 * time.Millisecond

	// refusedGap is the least time between two repetitions of the templates to a port that refuses them. A collector
	// that was restarted can read what comes after that.
	refusedGap = time.Second

	// firstRetry and lastRetry bound the wait between attempts to deliver a backlog while there is nothing to write.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second

	// giveUp is for how long Close tries to reach a collector, and waits for the host of one that does not answer.
	giveUp = 2 * time.Second

	// pollAcks is how often Close looks whether everything has been acknowledged.
	pollAcks = 5 * time.Millisecond
)

// begin makes sure that there is a session that, for all that is known, lives.
func (e *Exporter) begin(ctx context.Context) error {
	if e.session != nil {
		err := e.session.err()
		if err == nil {
			return nil
		}
		e.hangUp(err)
	}
	return e.connect(ctx)
}

// connect begins a session with the first collector that can be reached, from the active one on.
func (e *Exporter) connect(ctx context.Context) error {
	var errs []error
	for range e.addresses {
		a := e.addresses[e.active]
		err := e.start(ctx, a)
		if err == nil {
			e.log.Info("session begun", zap.Stringer("collector", a), zap.Int("message_size", e.size))
			return nil
		}
		errs = append(errs, fmt.Errorf("connect to collector %s: %w", a, err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// start begins a session with a: templates first, then what the last session did not deliver.
func (e *Exporter) start(ctx context.Context, a address) (err error) {
	dialing, cancel := context.WithTimeout(ctx, e.config.dialTimeout())
	defer cancel()
	session, err := e.dial(dialing, a)
	if err != nil {
		e.standBy()
		return err
	}
	e.session = session
	e.data.seq, e.own.seq = 0, 0
	e.counts.sessions.Add(1)
	defer func() {
		if err != nil {
			e.hangUp(err)
		}
	}()
	if e.stopped == nil {
		e.stopped = make(chan struct{})
		var background context.Context
		background, e.stop = context.WithCancel(context.Background())
		go e.maintain(background)
	}
	if err := e.sendTemplates(ctx); err != nil {
		return err
	}
	if !session.reliable() {
		timer := time.NewTimer(startGap)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := e.sendTemplates(ctx); err != nil {
			return err
		}
	}
	if err := e.sendStats(ctx); err != nil {
		return err
	}
	return e.resend(ctx)
}

func (e *Exporter) dialAddress(ctx context.Context, a address) (transport, error) {
	size, err := e.config.messageSize(a.scheme == "udp")
	if err != nil {
		return nil, err
	}
	switch a.scheme {
	case "udp":
		return dialUDP(ctx, a, size, len(e.addresses) > 1, &e.counts.refused)
	case "tls":
		return dialStream(ctx, a, &e.config.TLS, size, e.look)
	}
	return dialStream(ctx, a, nil, size, e.look)
}

// hangUp ends the session because of err. What it had not delivered waits for the next session; what Write has not sent
// is Write's caller's to send again. The next session is tried with the next collector of the list.
func (e *Exporter) hangUp(err error) {
	e.log.Warn("session ended", zap.Stringer("collector", e.addresses[e.active]), zap.Error(err))
	if e.session.reliable() {
		e.acknowledge()
		e.backlog.orphan()
	}
	e.session.close()
	e.session = nil
	e.free = append(e.free, e.ready...)
	e.ready = e.ready[:0]
	for slot, m := range e.open {
		if m != nil {
			e.free = append(e.free, m)
			e.open[slot] = nil
		}
	}
	e.standBy()
}

// standBy makes the next collector of the list the active one.
func (e *Exporter) standBy() { e.active = (e.active + 1) % len(e.addresses) }

// emit sends one message with what fill appends to it, ahead of what is ready and open.
func (e *Exporter) emit(ctx context.Context, d *domain, set uint16, records int, fill func(dst []byte) []byte) error {
	m := e.message(d, set)
	defer func() { e.free = append(e.free, m) }()
	m.buf = fill(m.buf)
	m.records = records
	m.finish(e.clock.now())
	if _, err := e.session.send(ctx, []*message{m}); err != nil {
		return err
	}
	e.counts.messages.Add(1)
	e.counts.bytes.Add(uint64(len(m.buf)))
	return nil
}

// sendTemplates sends the templates, each in a message of its own, and the types of enterprise elements. Those come
// before the templates that have such elements: libfixbuf takes what it does not know yet for octets for good. The
// message size is taken from the path as it is now.
func (e *Exporter) sendTemplates(ctx context.Context) error {
	e.size = e.session.limit()
	e.refreshed, e.packets, e.refusals = time.Now(), 0, e.counts.refused.Load()
	for _, t := range e.templates.options {
		if err := e.emit(ctx, &e.own, setOptTemplates, 0, t.appendDefinition); err != nil {
			return err
		}
	}
	for _, el := range e.templates.types {
		err := e.emit(ctx, &e.own, e.templates.typeInfo.id, 1, func(dst []byte) []byte { return appendElementType(dst, el) })
		if err != nil {
			return err
		}
	}
	for _, t := range e.templates.all {
		if t.scopes > 0 {
			continue
		}
		if err := e.emit(ctx, &e.data, setTemplate, 0, t.appendDefinition); err != nil {
			return err
		}
	}
	return nil
}

// sendStats sends the exporter's statistics.
func (e *Exporter) sendStats(ctx context.Context) error {
	if e.templates.stats == nil {
		return nil
	}
	e.reported = time.Now()
	return e.emit(ctx, &e.own, e.templates.stats.id, 1, func(dst []byte) []byte {
		return appendProcessStats(dst, e.data.id, &e.counts)
	})
}

// resend sends the backlog under the new session's sequence numbers.
func (e *Exporter) resend(ctx context.Context) error {
	reliable := e.session.reliable()
	off := e.backlog.off
	for i := e.backlog.next; i < len(e.backlog.msgs); i++ {
		s := &e.backlog.msgs[i]
		m := &message{buf: e.backlog.buf[off : off+s.len], domain: s.domain, records: s.records}
		off += s.len
		m.finish(e.clock.now())
		if _, err := e.session.send(ctx, []*message{m}); err != nil {
			return err
		}
		s.end = m.end
		e.counts.messages.Add(1)
		e.counts.bytes.Add(uint64(s.len))
		e.counts.resent.Add(uint64(s.records))
		if s.domain == &e.data {
			e.counts.records.Add(uint64(s.records))
		}
	}
	if !reliable {
		e.backlog.ack(never) // handed to the kernel, which is all that UDP promises
	}
	return nil
}

// templatesDue reports whether the templates have to be repeated, which over UDP they have (RFC 7011, section 8.4).
func (e *Exporter) templatesDue() bool {
	since := time.Since(e.refreshed)
	packets := e.config.templatePackets()
	return since >= e.config.templateInterval() || packets > 0 && e.packets >= packets ||
		since >= refusedGap && e.counts.refused.Load() > e.refusals
}

// look makes maintain look at once. Any goroutine may call it.
func (e *Exporter) look() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// maintain does what is due while nothing is written, until ctx ends.
func (e *Exporter) maintain(ctx context.Context) {
	defer close(e.stopped)
	timer := time.NewTimer(e.config.templateInterval())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-timer.C:
		}
		if e.lock(ctx) != nil {
			return
		}
		wait := e.tend(ctx)
		e.unlock()
		timer.Reset(wait)
	}
}

// tend does what is due and returns for how long nothing will be.
func (e *Exporter) tend(ctx context.Context) time.Duration {
	interval := e.config.templateInterval()
	if e.session != nil {
		if err := e.session.err(); err != nil {
			e.hangUp(err)
		}
	}
	if e.session == nil {
		if e.backlog.empty() {
			return interval // the next Write connects
		}
		if err := e.connect(ctx); err != nil {
			e.retry = min(max(2*e.retry, firstRetry), lastRetry)
			e.log.Warn("records wait for a session", zap.Int("records", e.backlog.records()),
				zap.Duration("retry_in", e.retry), zap.Error(err))
			return e.retry
		}
		e.retry = 0
	}
	if err := e.due(ctx); err != nil {
		e.hangUp(err)
		return firstRetry
	}
	wait := interval
	if e.session.reliable() {
		e.acknowledge()
	} else {
		wait = min(wait, time.Until(e.refreshed.Add(interval)))
		if e.counts.refused.Load() > e.refusals {
			wait = min(wait, time.Until(e.refreshed.Add(refusedGap)))
		}
	}
	return max(wait, time.Millisecond)
}

// due sends the templates and the statistics if their time has come.
func (e *Exporter) due(ctx context.Context) error {
	if !e.session.reliable() && e.templatesDue() {
		if err := e.sendTemplates(ctx); err != nil {
			return err
		}
	}
	if time.Since(e.reported) >= e.config.templateInterval() {
		return e.sendStats(ctx)
	}
	return nil
}

// Close waits until everything has been acknowledged, ends the session and gives everything back. If ctx ends before, or
// the collector's host does not answer for giveUp, the error says how many records may be lost.
func (e *Exporter) Close(ctx context.Context) error {
	if e.stopped != nil {
		e.stop()
		<-e.stopped
	}
	e.held <- struct{}{} // against Acknowledged alone, which does not wait
	defer e.unlock()
	err := e.finish(ctx)
	e.arrived.Store(e.backlog.arrived(e.taken))
	if e.session != nil {
		e.session.close()
		e.session = nil
	}
	if n := e.backlog.records(); n > 0 {
		return fmt.Errorf("%d records not acknowledged by the collector: %w", n, err)
	}
	return nil
}

// finish delivers what is left: last statistics and the backlog.
func (e *Exporter) finish(ctx context.Context) error {
	if e.session == nil && e.backlog.empty() {
		return nil
	}
	e.config.DialTimeout = min(e.config.dialTimeout(), giveUp)
	for until := time.Now().Add(giveUp); ; {
		err := e.begin(ctx)
		if err == nil {
			err = e.acknowledged(ctx)
		}
		if err == nil { // there is room for it now
			err = e.sendStats(ctx)
		}
		if err == nil {
			err = e.acknowledged(ctx)
		}
		if err == nil || e.backlog.empty() || ctx.Err() != nil || !time.Now().Before(until) {
			return err
		}
		if e.session != nil {
			e.hangUp(err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(min(firstRetry, time.Until(until))):
		}
	}
}

// errDeaf says that the collector's host does not answer. One whose collector is slow does.
var errDeaf = errors.New("the collector's host does not answer")

// acknowledged waits until the collector's host has acknowledged everything.
func (e *Exporter) acknowledged(ctx context.Context) error {
	if !e.session.reliable() {
		return nil
	}
	ticker := time.NewTicker(pollAcks)
	defer ticker.Stop()
	var last uint64
	for since := time.Now(); ; {
		written, acked := e.session.progress()
		e.backlog.ack(acked)
		if acked == written {
			return nil
		}
		if err := e.session.err(); err != nil {
			return err
		}
		if acked > last {
			last, since = acked, time.Now()
		} else if time.Since(since) > giveUp && e.session.deaf() {
			return errDeaf
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
