package jsonl

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
)

// queueOf returns a started queue that delivers to the file of cfg, as the daemon's do.
func queueOf(t *testing.T, cfg Config) *deliver.Queue {
	t.Helper()
	q := deliver.New(deliver.Config{Name: cfg.Name(), Build: func() (deliver.Output, error) {
		enc, err := cfg.Encoder(format.Options{Host: "gw1"})
		if err != nil {
			return nil, err
		}
		f, err := New(cfg, enc, nil)
		if err != nil {
			return nil, err // and not a nil File that is no nil Output
		}
		return f, nil
	}})
	q.Start()
	return q
}

// offer gives a queue records.
func offer(q *deliver.Queue, recs []*flow.Record) {
	b := flow.NewBatch(len(recs), nil)
	for _, r := range recs {
		*b.Next() = *r
	}
	b.Hold(1)
	q.Offer(b)
	b.Done()
}

// retire ends a queue.
func retire(q *deliver.Queue, within time.Duration) {
	ending, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	deliver.Retire(ending, []*deliver.Queue{q})
}

// awaitFailing waits until a queue fails for a reason.
func awaitFailing(t *testing.T, q *deliver.Queue, reason string) {
	t.Helper()
	await(t, reason, func() bool {
		s := q.Status()
		return s.Failing && strings.Contains(s.Error, reason)
	})
}

// TestDeliveryToFIFO: records wait for a reader, before the first one and after it has gone; what nobody has taken out of
// the pipe at the end is in a gap.
func TestDeliveryToFIFO(t *testing.T) {
	path := makeFIFO(t)
	q := queueOf(t, Config{Path: path})
	offer(q, records(0, 20))
	awaitFailing(t, q, "nobody reads the FIFO")
	if n := q.Stats.Written.Load(); n != 0 {
		t.Errorf("%d records count as written", n)
	}
	r := readFIFO(t, path)
	await(t, "the records are in the pipe", func() bool { return q.Stats.Written.Load() == 20 })
	if since, now := q.Since(time.Now()), time.Now().UnixNano(); since >= now-int64(time.Hour) {
		t.Errorf("what sits in the pipe counts as delivered: all is up to %d, now %d", since, now)
	}
	wantIDs(t, upTo(20), parseIDs(t, readLines(t, r, 20)))
	await(t, "the reader has them", func() bool { return q.Since(time.Now()) > time.Now().Add(-time.Hour).UnixNano() })

	offer(q, records(20, 5))
	await(t, "more are in the pipe", func() bool { return q.Stats.Written.Load() == 25 })
	r.Close()
	retire(q, 50*time.Millisecond)
	if gaps := q.Unrecorded(); len(gaps) == 0 {
		t.Error("5 records are lost in the pipe, without a gap")
	}
}

// TestDeliveryToForeignFile: records wait until somebody moves a file away that is not ctlogd's.
func TestDeliveryToForeignFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("root:x:0:0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	q := queueOf(t, Config{Path: path})
	offer(q, records(0, 20))
	awaitFailing(t, q, errNotRecords.Error())
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	await(t, "the records are written", func() bool { return q.Stats.Written.Load() == 20 })
	retire(q, time.Minute)
	wantIDs(t, upTo(20), ids(t, path))
	if b, err := os.ReadFile(path + ".away"); err != nil || string(b) != "root:x:0:0\n" {
		t.Errorf("the other file is %q, %v", b, err)
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
