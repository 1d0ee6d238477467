// Package kafka delivers records to a topic of Apache Kafka, at least once.
//
// A Writer is called by one worker goroutine with a slice of records. It sends each to the partition of its key, the
// partitions side by side, one Produce request for each broker at a time, so that never more than one batch is under
// way to a partition and their order holds (kafka-go has no idempotent producer). Write returns when every record has
// been acknowledged or some could not be delivered now; those the worker hands over again, and only they are sent.
//
// kafka-go's Transport does the connections: discovery, versions, TLS, SASL. Its Writer is not used, nor its encoding
// of records: the one waits in background goroutines and retries deaf to a context, and both make several objects for
// each record.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"slices"
	"strconv"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// Names of the record headers.
const (
	HeaderVersion = "v"      // the version of the flat format, 1
	HeaderFormat  = "format" // the format of the value, where it is another
	HeaderHost    = "host"   // who wrote the record
)

// schemaVersion is the value of HeaderVersion, and of the key v in the flat format.
const schemaVersion = 1

// Options are what a Writer needs to know beyond its configuration.
type Options struct {
	Encoder  format.Encoder     // makes the values; the Writer's own
	Observer format.ObserverKey // whose flow ids key: flow_id uses
	Host     string             // of the header host; "" leaves it out
	Log      *zap.Logger        // nil: none

	// Dial connects to the brokers; nil: as net.Dialer does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Writer is one Kafka output. It is for one goroutine, except for Name, Stats and Counters.
type Writer struct {
	Stats Stats

	name string
	cfg  Config
	opt  Options
	log  *zap.Logger

	cluster
	sender
	router
	memory
	refusals refusals

	parts   []partition
	state   []byte // of each record of the slice that Write works on
	batch   batchBuilder
	headers []byte
	codecID int
	codec   codec

	// limit is what BatchBytes has come down to, as batches were too large, and grown again.
	limit int

	idling bool // connections may have been closed while they were idle: if so, this Write opens them anew
}

// New returns a Writer for cfg, which has passed Validate. It connects to nothing: that is left to the first Write.
func New(cfg Config, opt Options) (*Writer, error) {
	cfg.Defaults()
	w := &Writer{
		name:    cfg.Name(),
		cfg:     cfg,
		opt:     opt,
		log:     opt.Log,
		codecID: slices.Index(Compressions[:], cfg.Compression),
		limit:   int(cfg.BatchBytes),
	}
	w.router.key = newKeyFunc(cfg.Key, opt.Observer)
	w.memory = memory{seen: make(map[mark]int), seed: maphash.MakeSeed(), encoder: opt.Encoder}
	w.refusals.letters = deadLetters{path: cfg.DeadLetter, max: int64(cfg.DeadLetterSize)}
	if w.log == nil {
		w.log = zap.NewNop()
	}
	w.log = w.log.With(zap.String("output", w.name))
	w.sender = sender{cluster: &w.cluster, acks: int16(kafka.RequireAll), timeout: cfg.RequestTimeout}
	if cfg.RequiredAcks == "one" {
		w.acks = int16(kafka.RequireOne)
	}
	w.cluster.topic, w.cluster.create, w.cluster.log, w.cluster.addr = cfg.Topic, cfg.CreateTopic, w.log, kafka.TCP(cfg.Brokers...)
	w.codec = newCodec(w.codecID)
	headers := []header{{HeaderVersion, strconv.Itoa(schemaVersion)}}
	if cfg.Format != format.Names[0] {
		headers = []header{{HeaderFormat, cfg.Format}}
	}
	if opt.Host != "" {
		headers = append(headers, header{HeaderHost, opt.Host})
	}
	w.headers = appendHeaders(nil, headers...)

	if cfg.TLS != nil {
		if _, err := cfg.TLS.Config(""); err != nil { // read anew for each connection; what is wrong now, is told now
			return nil, fmt.Errorf("%s: tls: %w", w.name, err)
		}
	}
	mechanism, err := cfg.SASL.mechanism()
	if err != nil {
		return nil, fmt.Errorf("%s: sasl: %w", w.name, err)
	}
	if mechanism != nil && mechanism.Name() == "PLAIN" && cfg.TLS == nil {
		w.log.Warn("the password goes over the network in clear: sasl mechanism PLAIN without tls")
	}
	w.conns.dialer.Timeout, w.conns.other = cfg.ConnectTimeout, opt.Dial
	w.conns.tls = cfg.TLS
	w.transport = &kafka.Transport{
		Dial: w.conns.dial,
		// All brokers of the list are tried one after the other under this limit.
		DialTimeout: cfg.ConnectTimeout * time.Duration(len(cfg.Brokers)),
		// Errors make us ask again at once (see reset), so this only has to notice new partitions.
		MetadataTTL:    time.Minute,
		MetadataTopics: []string{cfg.Topic},
		ClientID:       cfg.ClientID,
		SASL:           mechanism,
	}
	return w, nil
}

// Name returns "kafka:BROKER/TOPIC", of the first broker of the list.
func (w *Writer) Name() string { return w.name }

// String returns the name, so that no form of printing shows more.
func (w *Writer) String() string { return w.name }

// Counters calls emit for each of the Writer's own counters. Any goroutine may call it.
func (w *Writer) Counters(emit func(name, label string, n uint64)) { w.Stats.emit(emit) }

// Write delivers recs, see deliver.Output. Some records behind the n delivered ones may have been delivered too, to
// other partitions. If the next Write starts with recs[n:], as the worker's does, those are not sent again; if it does
// not, they may be sent twice, and none is lost.
//
// The error has a method Rejected() int if the records behind the n delivered ones can never be delivered; their number
// is what it returns, and they are in the dead-letter file. Any other error is one that time or an operator can mend.
func (w *Writer) Write(ctx context.Context, recs []*flow.Record) (n int, err error) {
	w.state = append(w.state[:0], make([]byte, len(recs))...)
	w.recall(recs, w.state)
	w.idling = w.cluster.idle()
	for err = w.attempt(ctx, recs); w.passed(err) && ctx.Err() == nil; err = w.attempt(ctx, recs) {
		// What was closed while it was idle is opened anew, and a new topic is waited for, without a word.
		w.cluster.reset()
		if !w.idling && !pause(ctx) {
			break
		}
		w.idling = false
	}
	w.idling = false
	n, err = w.settle(err)
	if err == nil {
		clear(w.seen)
		return n, nil
	}
	behind := n
	if r, ok := err.(*rejected); ok {
		behind += r.n
	}
	w.remember(recs[behind:], w.state[behind:])
	return n, err
}

// Close gives the connections back. There is nothing to flush: Write has waited for its answers.
func (w *Writer) Close(context.Context) error {
	w.reset()
	return nil
}

// attempt sends the records that are not settled, as far as it gets.
func (w *Writer) attempt(ctx context.Context, recs []*flow.Record) error {
	if err := w.layout(ctx); err != nil {
		return err
	}
	w.cluster.used = time.Now()
	w.route(recs, w.state, w.parts)
	for i := range w.parts {
		if p := &w.parts[i]; p.err != nil && len(p.idx) > 0 {
			p.err = w.fail(int(p.id), p.err)
		}
	}
	for w.round(ctx, recs) {
	}
	w.cluster.used = time.Now()
	return nil
}

// layout brings the topic's partitions and their leaders up to date.
func (w *Writer) layout(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.RequestTimeout)
	defer cancel()
	topic, err := w.cluster.partitions(ctx)
	if err != nil {
		return w.fail(-1, err)
	}
	if len(topic) != len(w.parts) {
		w.parts = make([]partition, len(topic))
		w.ids = w.ids[:0]
		for i := range w.parts {
			w.ids = append(w.ids, i)
		}
	}
	for i := range w.parts {
		p := &w.parts[i]
		*p = partition{id: int32(i), idx: p.idx[:0], max: 1 << 30, buf: p.buf, err: kafka.LeaderNotAvailable}
	}
	for _, t := range topic { // in any order
		if t.PartitionIndex < 0 || int(t.PartitionIndex) >= len(w.parts) {
			continue
		}
		p := &w.parts[t.PartitionIndex]
		p.leader, p.err = t.LeaderID, nil
		if code := kafka.Error(t.ErrorCode); code != 0 && code != kafka.ReplicaNotAvailable {
			p.err = code
		}
	}
	return nil
}

// passed reports whether an attempt has failed for what will be over at once: err, or what a partition has.
func (w *Writer) passed(err error) bool {
	if e := (*Error)(nil); errors.As(err, &e) {
		return w.passing(e)
	}
	for i := range w.parts {
		if e := (*Error)(nil); len(w.parts[i].pending()) > 0 && errors.As(w.parts[i].err, &e) && w.passing(e) {
			return true
		}
	}
	return false
}

// passing reports whether the same Write tries once more.
func (w *Writer) passing(e *Error) bool {
	switch e.Class {
	case ClassConnection:
		return w.idling
	case ClassTopic, ClassLeader:
		return w.cluster.young()
	}
	return false
}

// pause waits a moment; false if ctx ends.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(100 * time.Millisecond):
		return true
	}
}

// fail makes an Error of err, and counts it unless it is only that the caller ended the attempt, or the attempt is made once
// more at once.
func (w *Writer) fail(partition int, err error) *Error {
	e := &Error{Output: w.name, Partition: partition, Class: classify(err), Err: err, creates: w.cfg.CreateTopic != nil}
	if advertised := w.advertised(err); advertised != "" {
		e.Err = fmt.Errorf("%w; %s", err, advertised)
	}
	if !errors.Is(err, context.Canceled) && !(w.passing(e)) {
		w.Stats.Errors[e.Class].Add(1)
	}
	return e
}

// settle returns what Write returns. err is why nothing was sent, if so.
func (w *Writer) settle(err error) (n int, _ error) {
	unsent := err != nil
	for i := range w.parts {
		unsent = unsent || w.parts[i].err != nil
	}
	if unsent {
		w.reset()
	}
	for n < len(w.state) && w.state[n]&delivered != 0 {
		n++
	}
	if n == len(w.state) {
		return n, nil
	}
	if w.state[n]&refused != 0 {
		k := 1
		for n+k < len(w.state) && w.state[n+k]&refused != 0 {
			k++
		}
		return n, &rejected{n: k, err: w.refusals.last}
	}
	for i := range w.parts {
		if rest := w.parts[i].pending(); err == nil && len(rest) > 0 && int(rest[0]) == n {
			err = w.parts[i].err
		}
	}
	return n, err
}
