package ipfix

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/tender"
	"github.com/ctlogd/ctlogd/ownflow"
)

// Exporter delivers records to one collector, or to one of several that stand in for each other. It implements
// deliver.Output: one goroutine calls Write and Close. A goroutine of its own, which lives from the first session to
// Close, repeats templates and sends statistics.
type Exporter struct {
	name      string
	log       *zap.Logger
	config    Config
	templates *templateSet
	process   uint32           // exportingProcessId
	sockets   *ownflow.Sockets // is told of the exporter's sockets; may be nil

	dial func(ctx context.Context, c *collector) (transport, error) // replaced in tests

	reopen atomic.Bool // names are to be looked up again

	tender *tender.Tender // has the lock of all below

	collectors []*collector
	session    transport // nil while there is none
	active     int       // index in collectors of the session's, or of the next to try
	size       int       // of a message, in this session
	data       domain    // the flows' observation domain
	own        domain    // the exporter's: 0
	clock      clock
	notSent    uint64 // records that gaps have reported as missing

	open  []*message // by template slot: the message being filled, or nil
	ready []*message // full, to be sent in this order
	free  []*message

	backlog backlog
	taken   uint64        // records that Write has reported as sent
	arrived atomic.Uint64 // those of them that are not in the backlog

	refreshed time.Time     // when templates were last sent
	reported  time.Time     // when statistics were last sent
	packets   int           // data messages since refreshed
	retry     time.Duration // until the tender tries to connect again

	counts counts
}

// counts are the totals since the start; any goroutine may read them.
type counts struct {
	records, messages, bytes, skipped, resent, refused, sessions, moves atomic.Uint64
}

// Stats are totals since the start.
type Stats struct {
	Records  uint64 // data records of flows and NAT events sent, those sent again included
	Messages uint64 // IPFIX messages sent
	Bytes    uint64 // octets of these messages
	Skipped  uint64 // records handed to Write of which this configuration exports nothing
	Resent   uint64 // records sent again, because their session ended before they were acknowledged
	Refused  uint64 // ICMP messages that say that nobody listens on the UDP port
	Sessions uint64 // sessions begun
	Moves    uint64 // times that a session went on at another address, because the collector's name had moved
}

// Options is what an Exporter has from its surroundings. Both may be nil.
type Options struct {
	Log     *zap.Logger
	Sockets *ownflow.Sockets // is told of the exporter's sockets
}

// New returns an Exporter for a valid configuration. It connects at the first Write.
func New(c Config, opts Options) (*Exporter, error) {
	var errs []error
	c.Validate(func(field, msg string) { errs = append(errs, fmt.Errorf("%s: %s", field, msg)) })
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	log := opts.Log
	if log == nil {
		log = zap.NewNop()
	}
	e := &Exporter{
		name:      c.Name(),
		log:       log.Named("ipfix").With(zap.String("output", c.Name())),
		config:    c,
		templates: newTemplateSet(&c),
		sockets:   opts.Sockets,
		process:   uint32(os.Getpid()),
		tender:    tender.New(),
		data:      domain{id: c.Domain()},
		ready:     make([]*message, 0, sendBatch),
	}
	for _, a := range c.addresses() {
		e.collectors = append(e.collectors, e.newCollector(a))
	}
	e.dial = e.dialCollector
	e.open = make([]*message, len(e.templates.all))
	return e, nil
}

// backlogPace is how many records of a backlog a second a collector over UDP gets: some 10 MB/s, of which the usual socket
// buffer of 208 KiB holds the datagrams of ten milliseconds.
const backlogPace = 100_000

// Pace implements deliver.Pacer: over UDP a collector cannot slow the exporter down.
func (e *Exporter) Pace() int {
	for _, c := range e.collectors {
		if c.datagrams() {
			return backlogPace
		}
	}
	return 0
}

// Name returns "ipfix:" and the configured address, with "#" and the observation domain where one is configured.
func (e *Exporter) Name() string { return e.name }

// Stats returns the totals. It may be called from any goroutine.
func (e *Exporter) Stats() Stats {
	c := &e.counts
	return Stats{
		Records: c.records.Load(), Messages: c.messages.Load(), Bytes: c.bytes.Load(), Skipped: c.skipped.Load(),
		Resent: c.resent.Load(), Refused: c.refused.Load(), Sessions: c.sessions.Load(), Moves: c.moves.Load(),
	}
}

// Write sends recs. Without a session it begins one first, which takes the dial timeout at most for each collector and,
// over UDP, the time that templates need. Without a collector that takes templates it returns an error, and the caller
// waits before it tries again: no record is spent on finding out.
//
// A message holds records of one template, so records of different templates may overtake each other within one call.
// On error, n is the index of the first record that was not sent; records behind it that were are sent again when the
// caller tries again. Sent means handed to the kernel, and kept until it has arrived: over TCP and TLS, until the
// collector's host has acknowledged it; over UDP, until that host has had the time to refuse it, and has not.
func (e *Exporter) Write(ctx context.Context, recs []*flow.Record) (n int, err error) {
	if err := e.tender.Lock(ctx); err != nil {
		return 0, err
	}
	defer e.tender.Unlock()
	if err := e.begin(ctx); err != nil {
		return 0, err
	}
	var t tally
	for i, r := range recs {
		if err = e.add(ctx, r, i, &t); err != nil {
			n = i
			break
		}
	}
	if err == nil {
		n = len(recs)
		err = e.flush(ctx)
	}
	if err != nil {
		n = min(n, e.unsent())
		e.hangUp(err)
		e.tender.Look() // the backlog waits for a session even if the caller does not try again
		t = e.recount(recs[:n])
	}
	e.taken += uint64(n)
	e.settle(t)
	e.arrived.Store(e.backlog.arrived(e.taken))
	return n, err
}

// Acknowledged returns how many of the records that Write has reported as sent a collector's host has acknowledged, or,
// over UDP, has not refused in time: the first so many. Any goroutine may call it. It waits for nothing, and while a
// Write or Close is under way the answer may be that of some time ago.
func (e *Exporter) Acknowledged() uint64 {
	if e.tender.TryLock() {
		e.acknowledge()
		if e.session != nil && e.session.err() != nil {
			e.tender.Look() // what is left needs another session, even if nothing is written
		}
		e.tender.Unlock()
	}
	return e.arrived.Load()
}

// acknowledge drops from the backlog what has arrived.
func (e *Exporter) acknowledge() {
	if e.session != nil && !e.backlog.empty() {
		_, arrived := e.session.progress()
		e.free = e.backlog.ack(arrived, e.free)
	}
	e.arrived.Store(e.backlog.arrived(e.taken))
}

// tally is what a Write has seen up to some record.
type tally struct {
	skipped uint64 // records of which nothing is exported
	missing uint64 // records that gaps report
	ours    uint64 // those of them that were lost on the way to this output
}

func (t *tally) gap(r *flow.Record, output string) {
	n := lost(r)
	t.missing += n
	if unsentBy(output, r) {
		t.ours += n
	}
}

// recount tallies recs, which are a part of what Write was given.
func (e *Exporter) recount(recs []*flow.Record) (t tally) {
	for _, r := range recs {
		switch {
		case e.templates.reliability != nil && r.Event == flow.EventGap:
			t.gap(r, e.name)
		case e.templates.flow(r) == nil && e.templates.event(r) == nil:
			t.skipped++
		}
	}
	return t
}

// settle makes t count. Over UDP the sequence number goes on by what the pipeline had for this output and lost, so that
// a collector that counts for itself sees the same loss.
func (e *Exporter) settle(t tally) {
	e.counts.skipped.Add(t.skipped)
	e.notSent += t.missing
	if e.session != nil && !e.session.reliable() {
		e.data.seq += uint32(t.ours)
	}
}

// add puts r, record i, into the messages that it belongs to.
func (e *Exporter) add(ctx context.Context, r *flow.Record, i int, sum *tally) error {
	if e.templates.reliability != nil && r.Event == flow.EventGap {
		m, err := e.room(ctx, e.templates.reliability, &e.own, i)
		if err != nil {
			return err
		}
		sum.gap(r, e.name)
		m.buf = appendReliability(m.buf, e.process, e.notSent+sum.missing, r)
		return nil
	}
	flows, event := e.templates.flow(r), e.templates.event(r)
	if flows != nil {
		m, err := e.room(ctx, flows, &e.data, i)
		if err != nil {
			return err
		}
		m.buf = flows.appendRecord(m.buf, r)
	}
	if event != nil {
		m, err := e.room(ctx, event, &e.data, i)
		if err != nil {
			return err
		}
		m.buf = event.appendRecord(m.buf, r)
	}
	if flows == nil && event == nil {
		sum.skipped++
	}
	return nil
}

// room returns the open message of template t, with room for one more record and that record counted. i is the record's
// index in Write's recs.
func (e *Exporter) room(ctx context.Context, t *template, d *domain, i int) (m *message, err error) {
	if m = e.open[t.slot]; m == nil || len(m.buf)+t.size > e.size {
		if m, err = e.next(ctx, t, d, i); err != nil {
			return nil, err
		}
	}
	m.records++
	return m, nil
}

// next puts an empty message in the place of the open one of template t, if there is one, which is full.
func (e *Exporter) next(ctx context.Context, t *template, d *domain, i int) (*message, error) {
	if e.open[t.slot] != nil {
		if err := e.queue(ctx, t.slot); err != nil {
			return nil, err
		}
	}
	m := e.message(d, t.id)
	m.first = i
	e.open[t.slot] = m
	return m, nil
}

// message returns an empty message.
func (e *Exporter) message(d *domain, set uint16) (m *message) {
	if last := len(e.free) - 1; last >= 0 {
		m, e.free = e.free[last], e.free[:last]
	} else {
		m = &message{buf: make([]byte, 0, e.size)}
	}
	m.start(d, set)
	return m
}

// queue moves an open message to those that are ready, and sends these if they are many.
func (e *Exporter) queue(ctx context.Context, slot int) error {
	e.ready = append(e.ready, e.open[slot])
	e.open[slot] = nil
	if len(e.ready) == sendBatch {
		return e.sendReady(ctx)
	}
	return nil
}

// flush sends what is ready and what is open.
func (e *Exporter) flush(ctx context.Context) error {
	for slot, m := range e.open {
		if m == nil {
			continue
		}
		if err := e.queue(ctx, slot); err != nil {
			return err
		}
	}
	return e.sendReady(ctx)
}

// sendReady numbers and sends the ready messages. On error those that were not sent stay ready.
func (e *Exporter) sendReady(ctx context.Context) error {
	if len(e.ready) == 0 {
		return nil
	}
	export := e.clock.now()
	for _, m := range e.ready {
		m.finish(export)
	}
	n, err := e.session.send(ctx, e.ready)
	for _, m := range e.ready[:n] {
		e.counts.messages.Add(1)
		e.counts.bytes.Add(uint64(len(m.buf)))
		if m.domain == &e.data {
			e.counts.records.Add(uint64(m.records))
		}
		m.before = e.taken
		if e.session.reliable() {
			e.backlog.add(m)
			e.free = append(e.free, m)
		} else {
			e.backlog.lend(m)
		}
	}
	for _, m := range e.ready[n:] {
		m.domain.seq -= uint32(m.records) // the session may go on with these numbers
	}
	e.ready = append(e.ready[:0], e.ready[n:]...)
	e.packets += n
	if err != nil {
		return err
	}
	e.acknowledge()
	if !e.session.reliable() && e.templatesDue() {
		return e.sendTemplates(ctx)
	}
	return nil
}

// unsent returns the least index in Write's recs of a record that is in a message not sent.
func (e *Exporter) unsent() int {
	first := math.MaxInt
	for _, list := range [][]*message{e.ready, e.open} {
		for _, m := range list {
			if m != nil {
				first = min(first, m.first)
			}
		}
	}
	return first
}
