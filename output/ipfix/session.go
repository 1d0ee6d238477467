package ipfix

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/output/datagram"
)

const (
	// startGap is how long the first data of a UDP session waits for its templates: a collector with several workers
	// may take up data before the template that it followed at once.
	startGap = 100 * time.Millisecond

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

// connect begins a session with the first collector that can be reached, from the active one on, and tries each of its
// addresses. The error has a reason for each of them, on one line.
func (e *Exporter) connect(ctx context.Context) error {
	err := datagram.Connect(ctx, "connect to collector", e.collectors, &e.active, func(c *collector) error { return e.start(ctx, c) })
	switch {
	case err == nil:
		c := e.collectors[e.active]
		e.retry = 0
		e.log.Info("session begun", zap.Stringer("collector", c.address), zap.String("at", c.peer.At()),
			zap.Int("message_size", e.size))
	case ctx.Err() != nil:
		return fmt.Errorf("%w; %w", err, ctx.Err())
	}
	return err
}

// start begins a session with c: templates first, then what the last session did not deliver.
func (e *Exporter) start(ctx context.Context, c *collector) (err error) {
	dialing, cancel := context.WithTimeout(ctx, e.config.dialTimeout())
	defer cancel()
	session, err := e.dial(dialing, c)
	if err != nil {
		return err
	}
	e.session = session
	e.data.seq, e.own.seq = session.sequence().data, session.sequence().own
	defer func() {
		if err != nil {
			e.leave()
		}
	}()
	e.tender.Start(e.config.templateInterval(), e.tend)
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
	e.counts.sessions.Add(1)
	if err := e.sendStats(ctx); err != nil {
		return err
	}
	return e.resend(ctx)
}

// hangUp ends a session that is over because of err. The next one is tried with another address of the collector, or
// with the next collector of the list.
func (e *Exporter) hangUp(err error) {
	e.log.Warn("session ended", zap.Stringer("collector", e.collectors[e.active].address), zap.Error(err),
		zap.String("remedy", "records wait until a collector answers; see that it runs and that the address is right"))
	e.leave()
	datagram.Next(e.collectors, &e.active)
}

// leave ends the session. What it had not delivered waits for the next one; what Write has not sent is Write's caller's
// to send again.
func (e *Exporter) leave() {
	e.acknowledge()
	e.free = e.backlog.orphan(e.free)
	*e.session.sequence() = sequences{data: e.data.seq, own: e.own.seq}
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
}

// emit sends one message with what fill appends to it, ahead of what is ready and open.
func (e *Exporter) emit(ctx context.Context, d *domain, set uint16, records int, fill func(dst []byte) []byte) error {
	m := e.message(d, set)
	defer func() { e.free = append(e.free, m) }()
	m.buf = fill(m.buf)
	m.records = records
	m.finish(e.clock.now())
	if _, err := e.session.send(ctx, []*message{m}); err != nil {
		d.seq -= uint32(records)
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
	e.refreshed, e.packets = time.Now(), 0
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
	off := e.backlog.off
	for i := e.backlog.next; i < len(e.backlog.msgs); i++ {
		s := &e.backlog.msgs[i]
		m := &message{buf: e.backlog.buf[off : off+s.len], domain: s.domain, records: s.records}
		off += s.len
		m.finish(e.clock.now())
		if _, err := e.session.send(ctx, []*message{m}); err != nil {
			m.domain.seq -= uint32(m.records)
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
	return nil
}

// templatesDue reports whether the templates have to be repeated, which over UDP they have (RFC 7011, section 8.4).
func (e *Exporter) templatesDue() bool {
	since := time.Since(e.refreshed)
	packets := e.config.templatePackets()
	return since >= e.config.templateInterval() || packets > 0 && e.packets >= packets
}

// tend does what is due while nothing is written, and returns for how long nothing will be.
func (e *Exporter) tend(ctx context.Context) time.Duration {
	if c := e.resolutionDue(); c != nil {
		// A name server may take its time, and records are sent meanwhile.
		var targets []netip.AddrPort
		var err error
		e.tender.Unlocked(func() {
			asking, cancel := context.WithTimeout(ctx, e.config.dialTimeout())
			defer cancel()
			targets, err = c.peer.LookUp(asking)
		})
		if ctx.Err() != nil {
			return e.config.templateInterval()
		}
		e.moved(ctx, c, targets, err)
	}
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
	}
	if err := e.due(ctx); err != nil {
		e.hangUp(err)
		return firstRetry
	}
	wait := interval
	e.acknowledge()
	if !e.session.reliable() {
		wait = min(wait, time.Until(e.refreshed.Add(interval)))
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
	e.tender.Stop()
	_ = e.tender.Lock(context.Background()) // Acknowledged alone may have it, which does not wait
	defer e.tender.Unlock()
	err := e.finish(ctx)
	e.arrived.Store(e.backlog.arrived(e.taken))
	if e.session != nil {
		e.session.close()
		e.session = nil
	}
	for _, c := range e.collectors {
		c.peer.Close()
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
		if err == nil && e.session.reliable() {
			err = e.acknowledged(ctx) // so that there is room for the statistics
		}
		if err == nil {
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

// acknowledged waits until everything has arrived, for all that is known: over UDP until refusals would have come.
func (e *Exporter) acknowledged(ctx context.Context) error {
	ticker := time.NewTicker(pollAcks)
	defer ticker.Stop()
	var last uint64
	for since := time.Now(); ; {
		written, arrived := e.session.progress()
		e.free = e.backlog.ack(arrived, e.free)
		if arrived == written || !e.session.reliable() && e.backlog.empty() {
			return nil
		}
		if err := e.session.err(); err != nil {
			return err
		}
		if arrived > last {
			last, since = arrived, time.Now()
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
