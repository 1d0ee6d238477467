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
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"
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

// complainEvery is how often refused records are logged at most; every one is counted.
const complainEvery = 10 * time.Second

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

// Stats count since the Writer was made. They may be read at any time.
type Stats struct {
	Records     atomic.Uint64             // acknowledged
	Bytes       atomic.Uint64             // of the batches acknowledged, as sent
	Retries     atomic.Uint64             // records that failed and are sent again, each time: duplicates are among these
	Clamped     atomic.Uint64             // timestamps ahead of the clock, or refused by the broker, that were replaced
	Rejected    atomic.Uint64             // records that no broker will ever take
	DeadLetters atomic.Uint64             // those of them that are in the dead-letter file
	Errors      [NumClasses]atomic.Uint64 // by Class: batches that failed, and attempts that got no further
}

func (s *Stats) emit(emit func(name, label string, n uint64)) {
	emit("bytes", "", s.Bytes.Load())
	emit("resent_records", "", s.Retries.Load())
	emit("clamped_timestamps", "", s.Clamped.Load())
	emit("dead_letters", "", s.DeadLetters.Load())
	for class := range s.Errors {
		emit("class_errors", ClassNames[class], s.Errors[class].Load())
	}
}

// Writer is one Kafka output. It is for one goroutine, except for Name, Stats and Counters.
type Writer struct {
	Stats Stats

	name string
	cfg  Config
	opt  Options
	log  *zap.Logger

	key     keyFunc
	headers []byte
	acks    int16
	codecID int
	codec   codec
	letters deadLetters

	addr      net.Addr
	transport *kafka.Transport
	conns     connections

	parts  []partition
	ids    []int  // 0 to len(parts)-1, as kafka-go's balancer wants them
	sticky uint   // chooses the partition of records that have no key; moves on with every Write
	state  []byte // of each record of the slice that Write works on
	keys   []byte // of all of them, one behind the other
	keyEnd []int  // where each one's ends
	batch  batchBuilder
	value  []byte

	// limit is what BatchBytes has come down to, as batches were too large, and grown again.
	limit int

	refusal    *Error    // why the broker refused a record for good, last
	complained time.Time // when that was logged

	// seen remembers, from a Write that failed to the next one that does not, which records behind the first
	// undelivered one need not be sent again. See remember.
	seen map[mark]int
	seed maphash.Seed
}

// What has become of a record.
const (
	delivered byte = 1 << iota
	refused        // for good
	stampNow       // the broker did not take its timestamp: it gets the time of sending
	stampNone      // nor that one, so one of the two clocks is wrong: it gets none
	settled   = delivered | refused
)

// partition is what one Write has for one partition.
type partition struct {
	id     int32
	leader int32
	idx    []int32 // its records, in order
	next   int     // idx[:next] are delivered
	sent   int     // how many behind those are in the batch under way
	max    int     // how many records the next batch may hold
	buf    []byte  // the batch
	raw    int     // its size before compression
	answer produce.ResponsePartition
	err    error // why there is no answer; after the round: why nothing more is sent
}

// pending returns the records that are not delivered.
func (p *partition) pending() []int32 { return p.idx[p.next:] }

// New returns a Writer for cfg, which has passed Validate. It connects to nothing: that is left to the first Write.
func New(cfg Config, opt Options) (*Writer, error) {
	cfg.Defaults()
	w := &Writer{
		name:    cfg.Name(),
		cfg:     cfg,
		opt:     opt,
		log:     opt.Log,
		key:     newKeyFunc(cfg.Key, opt.Observer),
		acks:    int16(kafka.RequireAll),
		codecID: slices.Index(Compressions[:], cfg.Compression),
		letters: deadLetters{path: cfg.DeadLetter, max: int64(cfg.DeadLetterSize)},
		addr:    kafka.TCP(cfg.Brokers...),
		limit:   int(cfg.BatchBytes),
		seen:    make(map[mark]int),
		seed:    maphash.MakeSeed(),
	}
	if w.log == nil {
		w.log = zap.NewNop()
	}
	w.log = w.log.With(zap.String("output", w.name))
	if cfg.RequiredAcks == "one" {
		w.acks = int16(kafka.RequireOne)
	}
	w.codec = newCodec(w.codecID)
	headers := []header{{HeaderVersion, strconv.Itoa(schemaVersion)}}
	if cfg.Format != format.Names[0] {
		headers = []header{{HeaderFormat, cfg.Format}}
	}
	if opt.Host != "" {
		headers = append(headers, header{HeaderHost, opt.Host})
	}
	w.headers = appendHeaders(nil, headers...)

	if _, err := cfg.TLS.config(); err != nil { // read anew for each connection; what is wrong now, is told now
		return nil, fmt.Errorf("%s: tls: %w", w.name, err)
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
	w.recall(recs)
	if err = w.layout(ctx); err == nil {
		w.route(recs)
		for w.round(ctx, recs) {
		}
	}
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

// reset drops every connection and what was learnt over them, so that no request is left under way and the next Write
// starts with the cluster as it is by then.
func (w *Writer) reset() {
	w.transport.CloseIdleConnections()
	w.conns.closeAll()
}

// layout brings the topic's partitions and their leaders up to date. It costs a request only after a reset; else the
// transport answers.
func (w *Writer) layout(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.RequestTimeout)
	defer cancel()

	topic, err := w.lookup(ctx)
	if errors.Is(err, kafka.UnknownTopicOrPartition) && w.cfg.CreateTopic != nil {
		if err = w.createTopic(ctx); err == nil {
			topic, err = w.lookup(ctx)
		}
	}
	if errors.Is(err, io.EOF) && w.cfg.TLS != nil {
		err = fmt.Errorf("the broker closed the connection (%w); does the port speak TLS?", err)
	}
	if err != nil {
		return w.fail(-1, err)
	}
	if len(topic.Partitions) != len(w.parts) {
		w.parts = make([]partition, len(topic.Partitions))
		w.ids = w.ids[:0]
		for i := range w.parts {
			w.ids = append(w.ids, i)
		}
	}
	for i := range w.parts {
		p := &w.parts[i]
		*p = partition{id: int32(i), idx: p.idx[:0], max: 1 << 30, buf: p.buf, err: kafka.LeaderNotAvailable}
	}
	for _, t := range topic.Partitions { // in any order
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

func (w *Writer) lookup(ctx context.Context) (*metadata.ResponseTopic, error) {
	res, err := w.transport.RoundTrip(ctx, w.addr, &metadata.Request{TopicNames: []string{w.cfg.Topic}})
	if err != nil {
		return nil, err
	}
	topics := res.(*metadata.Response).Topics
	if len(topics) == 0 {
		return nil, kafka.UnknownTopicOrPartition
	}
	topic := &topics[0]
	switch {
	case topic.ErrorCode != 0:
		return nil, kafka.Error(topic.ErrorCode)
	case len(topic.Partitions) == 0:
		return nil, kafka.LeaderNotAvailable
	}
	return topic, nil
}

func (w *Writer) createTopic(ctx context.Context) error {
	client := kafka.Client{Addr: w.addr, Transport: w.transport}
	res, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic:             w.cfg.Topic,
		NumPartitions:     w.cfg.CreateTopic.Partitions,
		ReplicationFactor: w.cfg.CreateTopic.Replication,
	}}})
	if err == nil {
		err = res.Errors[w.cfg.Topic]
	}
	switch {
	case errors.Is(err, kafka.TopicAlreadyExists):
		w.reset() // to see it
		return nil
	case err != nil:
		return fmt.Errorf("create topic: %w", err)
	}
	w.log.Info("created topic", zap.Int("partitions", w.cfg.CreateTopic.Partitions),
		zap.Int("replication", w.cfg.CreateTopic.Replication))
	return nil
}

// route gives every record that is not settled to the partition of its key, as the Java client's default partitioner
// does: murmur2 over all partitions, whether they have a leader or not. Those without a key go to one partition,
// another one in each Write, that has a leader if any has.
func (w *Writer) route(recs []*flow.Record) {
	w.sticky++
	free := int(w.sticky % uint(len(w.parts)))
	for i := range w.parts {
		if p := (free + i) % len(w.parts); w.parts[p].err == nil {
			free = p
			break
		}
	}
	var murmur2 kafka.Murmur2Balancer
	w.keys, w.keyEnd = w.keys[:0], w.keyEnd[:0]
	for i, r := range recs {
		start := len(w.keys)
		w.keys = w.key(w.keys, r)
		w.keyEnd = append(w.keyEnd, len(w.keys))
		if w.state[i]&settled != 0 {
			continue
		}
		p := free
		if key := w.keys[start:]; len(key) > 0 {
			p = murmur2.Balance(kafka.Message{Key: key}, w.ids...)
		}
		w.parts[p].idx = append(w.parts[p].idx, int32(i))
	}
	for i := range w.parts {
		if p := &w.parts[i]; p.err != nil && len(p.idx) > 0 {
			p.err = w.fail(int(p.id), p.err)
		}
	}
}

// round sends one batch to every partition that has records left and no error, waits for all answers, and reports
// whether it sent anything.
func (w *Writer) round(ctx context.Context, recs []*flow.Record) bool {
	var under []*partition
	now := time.Now().UnixMilli()
	for i := range w.parts {
		p := &w.parts[i]
		if p.err == nil && len(p.pending()) > 0 {
			w.encode(p, recs, now)
			under = append(under, p)
		}
	}
	if len(under) == 0 {
		return false
	}
	slices.SortFunc(under, func(a, b *partition) int { return cmp.Compare(a.leader, b.leader) })
	var wg sync.WaitGroup
	for rest := under; len(rest) > 0; {
		end := 1
		for end < len(rest) && rest[end].leader == rest[0].leader {
			end++
		}
		group := rest[:end]
		rest = rest[end:]
		if len(rest) == 0 {
			w.send(ctx, group) // the only one, as a rule
			break
		}
		wg.Go(func() { w.send(ctx, group) })
	}
	wg.Wait()
	for _, p := range under {
		w.answered(p, recs)
	}
	return true
}

// keyOf returns the key of record i, which is valid until the next route.
func (w *Writer) keyOf(i int32) []byte {
	start := 0
	if i > 0 {
		start = w.keyEnd[i-1]
	}
	return w.keys[start:w.keyEnd[i]]
}

// encode makes the batch of p's next records.
func (w *Writer) encode(p *partition, recs []*flow.Record, now int64) {
	w.batch.reset()
	p.sent = 0
	for _, i := range p.pending() {
		if p.sent == p.max {
			break
		}
		r := recs[i]
		ms, clamped := timestamp(r, w.state[i], now)
		w.batch.open(ms, w.keyOf(i))
		w.batch.records = w.opt.Encoder.Append(w.batch.records, r)
		if !w.batch.close(w.headers, w.limit) {
			break
		}
		if clamped {
			w.Stats.Clamped.Add(1)
		}
		p.sent++
	}
	p.raw = len(w.batch.records)
	p.buf = w.batch.encode(p.buf, w.codecID, w.codec)
}

// timestamp returns the message's timestamp in ms: when the flow ended or the event was, but never ahead of the clock:
// brokers refuse what is too far ahead. clamped says that this is another time than the record's, for the first time.
func timestamp(r *flow.Record, state byte, now int64) (ms int64, clamped bool) {
	switch {
	case state&stampNone != 0:
		return -1, false
	case state&stampNow != 0:
		return now, false
	}
	ns, _ := r.Time()
	if ms = ns / 1e6; ms > now {
		return now, true
	}
	return ms, false
}

// send makes one Produce request of the batches, all for the same broker, and gives each partition its answer.
func (w *Writer) send(ctx context.Context, group []*partition) {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.RequestTimeout)
	defer cancel()

	req := &rawproduce.Request{
		Acks: w.acks,
		// The broker gives up before we do, so that its answer tells why.
		Timeout: int32(w.cfg.RequestTimeout.Milliseconds() * 2 / 3),
		Topics:  []rawproduce.RequestTopic{{Topic: w.cfg.Topic}},
	}
	parts := make([]rawproduce.RequestPartition, 0, len(group))
	for _, p := range group {
		parts = append(parts, rawproduce.RequestPartition{
			Partition: p.id,
			RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(p.buf)},
		})
		p.answer, p.err = produce.ResponsePartition{}, errNoAnswer
	}
	req.Topics[0].Partitions = parts

	res, err := w.transport.RoundTrip(ctx, w.addr, req)
	if err != nil {
		for _, p := range group {
			p.err = err
			p.buf = nil // the transport may still be reading it
		}
		return
	}
	for _, t := range res.(*produce.Response).Topics {
		for _, a := range t.Partitions {
			for _, p := range group {
				if p.id == a.Partition {
					p.answer, p.err = a, nil
				}
			}
		}
	}
}

var errNoAnswer = errors.New("the broker's answer leaves the partition out")

// answered settles the records of p's batch, or says in p.err why they are not, or changes what is sent next.
func (w *Writer) answered(p *partition, recs []*flow.Record) {
	batch := p.pending()[:p.sent]
	err := p.err
	if code := kafka.Error(p.answer.ErrorCode); err == nil && code != 0 {
		err = code
		if msg := p.answer.ErrorMessage; msg != "" {
			err = fmt.Errorf("%w (%s)", code, msg)
		}
	}
	if err == nil {
		for _, i := range batch {
			w.state[i] |= delivered
		}
		w.Stats.Records.Add(uint64(len(batch)))
		w.Stats.Bytes.Add(uint64(len(p.buf)))
		p.next, p.max = p.next+p.sent, 1<<30
		w.limit = min(w.limit+w.limit/64, int(w.cfg.BatchBytes))
		return
	}

	failed := w.fail(int(p.id), err)
	accused := p.accused()
	switch class := failed.Class; {
	case class.final() && len(accused) > 0:
		w.reject(p, accused, recs, failed)
		w.Stats.Retries.Add(uint64(len(batch) - len(accused)))
		return
	case class.final():
		// It is one of them, or all together are too many: halves will tell.
		p.max = len(batch) / 2
		if class == ClassTooLarge && w.limit > p.raw/2 {
			if w.limit == int(w.cfg.BatchBytes) {
				w.log.Warn("the topic does not accept batches of this size; sending smaller ones", zap.Error(failed),
					zap.Stringer("batch_bytes", w.cfg.BatchBytes))
			}
			w.limit = max(p.raw/2, minBatchBytes)
		}
	case class == ClassTimestamp && w.restamp(accused, batch):
	default:
		p.err = failed
	}
	w.Stats.Retries.Add(uint64(len(batch)))
}

// accused returns the records of p's batch that the broker's answer names, or all of it if that is a single one.
func (p *partition) accused() []int32 {
	batch := p.pending()[:p.sent]
	if len(batch) == 1 {
		return slices.Clone(batch)
	}
	var accused []int32
	for _, e := range p.answer.RecordErrors {
		if i := int(e.BatchIndex); i >= 0 && i < len(batch) && !slices.Contains(accused, batch[i]) {
			accused = append(accused, batch[i])
		}
	}
	return accused
}

// restamp changes how the accused records are stamped, or all of the batch if none is accused, and reports whether
// there was anything left to change.
func (w *Writer) restamp(accused, batch []int32) bool {
	if len(accused) == 0 {
		accused = batch
	}
	changed := false
	for _, i := range accused {
		switch {
		case w.state[i]&stampNow == 0:
			w.state[i] |= stampNow
			w.Stats.Clamped.Add(1)
			changed = true
		case w.state[i]&stampNone == 0:
			w.state[i] |= stampNone
			changed = true
		}
	}
	return changed
}

// reject gives the accused records up: they go to the dead-letter file, and the rest of the partition's can be sent.
func (w *Writer) reject(p *partition, accused []int32, recs []*flow.Record, reason *Error) {
	letters := make([]deadLetter, 0, len(accused))
	now := time.Now().UTC()
	for _, i := range accused {
		w.state[i] |= refused
		if w.letters.path == "" {
			continue
		}
		l := deadLetter{Time: now, Topic: w.cfg.Topic, Error: reason.Err.Error(), Key: string(w.keyOf(i))}
		if value := w.opt.Encoder.Append(nil, recs[i]); json.Valid(value) {
			l.Value = value
		} else {
			l.Bytes = value
		}
		letters = append(letters, l)
	}
	rest := slices.DeleteFunc(p.pending(), func(i int32) bool { return w.state[i]&refused != 0 })
	p.idx, p.max = p.idx[:p.next+len(rest)], 1<<30
	w.refusal = reason

	n, err := w.letters.append(letters)
	w.Stats.Rejected.Add(uint64(len(accused)))
	w.Stats.DeadLetters.Add(uint64(n))
	if now.Sub(w.complained) >= complainEvery {
		w.complained = now
		w.log.Error("records can never be delivered", zap.Error(reason),
			zap.Uint64("records_so_far", w.Stats.Rejected.Load()),
			zap.Uint64("dead_letters_so_far", w.Stats.DeadLetters.Load()), zap.NamedError("dead_letter_error", err))
	}
}

// fail makes an Error of err, and counts it unless it is only that the caller ended the attempt.
func (w *Writer) fail(partition int, err error) *Error {
	e := &Error{Output: w.name, Partition: partition, Class: classify(err), Err: err}
	if !errors.Is(err, context.Canceled) {
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
		return n, &rejected{n: k, err: w.refusal}
	}
	for i := range w.parts {
		if rest := w.parts[i].pending(); err == nil && len(rest) > 0 && int(rest[0]) == n {
			err = w.parts[i].err
		}
	}
	return n, err
}

// mark identifies a record by the bytes that are delivered for it. Pointers will not do: they are used again.
type mark struct {
	hash  uint64
	state byte // delivered or refused
}

// remember keeps which of recs, what was not delivered of a slice, are settled nevertheless. Records with the same
// bytes are counted, so that of two only those settled are left out.
func (w *Writer) remember(recs []*flow.Record, state []byte) {
	clear(w.seen)
	for i, r := range recs {
		if s := state[i] & settled; s != 0 {
			w.seen[mark{w.hash(r), s}]++
		}
	}
}

// recall marks the records as settled that a failed Write has settled.
func (w *Writer) recall(recs []*flow.Record) {
	if len(w.seen) == 0 {
		return
	}
	for i, r := range recs {
		hash := w.hash(r)
		for _, s := range []byte{delivered, refused} {
			if m := (mark{hash, s}); w.seen[m] > 0 {
				w.seen[m]--
				w.state[i] = s
				break
			}
		}
	}
}

func (w *Writer) hash(r *flow.Record) uint64 {
	w.value = w.opt.Encoder.Append(w.value[:0], r)
	return maphash.Bytes(w.seed, w.value)
}
