package archive

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
)

// Output writes records to an archive. Write and Close are for one goroutine.
type Output struct {
	name    string
	uploads bool
	w       *archive.Writer
}

// New opens the archive of cfg, and makes it if there is none. tell, if not nil, takes a record of each checkpoint, for the
// other outputs. It must not wait, and reports whether it has taken the record. unmarked says that no mark tells
// what is missing since the last process. leftOut are the rules that keep flows out of what is
// written (filter.Encode).
func New(cfg Config, host, observer string, unmarked bool, leftOut json.RawMessage, log *zap.Logger, tell func(*flow.Record) bool) (*Output, error) {
	if log == nil {
		log = zap.NewNop()
	}
	log = log.With(zap.String("output", cfg.Name()))
	var upload *archive.Upload
	if u := cfg.Upload; u != nil {
		upload = &archive.Upload{Command: u.Command, Timeout: u.Timeout}
	}
	w, err := archive.Open(archive.Options{
		Dir: cfg.Path, Host: host, Observer: observer, Output: cfg.Name(),
		Interval: cfg.Checkpoint, Records: uint64(cfg.SegmentRecords), Drop: cfg.Fields.Drop,
		Compression: cfg.Compression, Sync: cfg.Fsync, Key: cfg.Key,
		Retention: archive.Retention{MaxAge: cfg.MaxAge, MinAge: cfg.MinAge, MaxSize: int64(cfg.MaxSize), Reserve: int64(cfg.Reserve)},
		Upload:    upload,
		Unmarked:  unmarked,
		LeftOut:   leftOut,
		Noted: func(n *archive.Note, text string) {
			if tell != nil && !tell(checkpoint(cfg.Name(), n, text)) {
				log.Warn("a checkpoint does not go to the other outputs, as the reader is not taking any; the next one does")
			}
		},
		Log: func(level archive.Level, msg, file string, err error, remedy string) {
			fields := []zap.Field{zap.String("file", file)}
			if err != nil {
				fields = append(fields, zap.Error(err))
			}
			if remedy != "" {
				fields = append(fields, zap.String("remedy", remedy))
			}
			switch level {
			case archive.Info:
				log.Info(msg, fields...)
			case archive.Warn:
				log.Warn(msg, fields...)
			default:
				log.Error(msg, fields...)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return &Output{cfg.Name(), upload != nil, w}, nil
}

// checkpoint returns the record of a note.
func checkpoint(name string, n *archive.Note, text string) *flow.Record {
	return &flow.Record{Event: flow.EventCheckpoint, Received: int64(n.Time),
		Extra: &flow.Extra{Note: &flow.Note{Output: name, Origin: n.Origin(), Lines: n.Lines, Hash: n.Hash, Text: strings.TrimSuffix(text, "\n")}}}
}

// Name returns "archive:" and the path.
func (o *Output) Name() string { return o.name }

// Write appends recs to the row log. It waits for the disk alone.
func (o *Output) Write(_ context.Context, recs []*flow.Record) (n int, err error) {
	return o.w.Append(recs)
}

// Close brings what was written to the disk.
func (o *Output) Close(ctx context.Context) error { return o.w.Close(ctx) }

// Unsynced reports whether it is the kernel's affair when records come to the disk.
func (o *Output) Unsynced() bool { return o.w.Unsynced() }

// Counters calls emit for each of the archive's counters.
func (o *Output) Counters(emit func(name, label string, n uint64)) {
	s := &o.w.Stats
	count := func(v int64) uint64 { return uint64(max(v, 0)) }
	emit("bytes", "", s.Bytes.Load())
	emit("kept_since", "", count(s.Oldest.Load()/1e9))
	emit("unsealed_records", "", count(s.Waiting.Load()))
	emit("unsealed_files", "", count(s.RowLogs.Load()))
	emit("seals", "success", s.Seals.Load())
	emit("seals", "failure", s.SealErrors.Load())
	emit("seal_seconds", "", s.SealNanos.Load()/1e9)
	emit("last_seal_age", "", since(s.Sealed.Load()))
	emit("last_seal_seconds", "", count(s.LastNanos.Load()/1e9))
	emit("seal_failing", "", since(s.Sealing.Load()))
	emit("segments", "", count(s.Segments.Load()))
	emit("segment_bytes", "", count(s.SegmentBytes.Load()))
	emit("checkpoint_age", "", since(s.Checkpointed.Load()))
	emit("overdue", "", since(s.NextRemoval.Load()))
	emit("next_removal", "", until(s.NextRemoval.Load()))
	stopped := uint64(0)
	if s.Stopped.Load() {
		stopped = 1
	}
	emit("writing_stopped", "", stopped)
	emit("removed_segments", "max_age", s.RemovedAge.Load())
	emit("removed_segments", "max_size", s.RemovedSize.Load())
	emit("removed_segments", "reserve", s.RemovedFull.Load())
	emit("keep_errors", "", s.KeepErrors.Load())
	emit("damaged_files", "", s.Damaged.Load())
	if o.uploads {
		emit("uploads", "success", s.Upload.Files.Load())
		emit("uploads", "failure", s.Upload.Errors.Load())
		emit("upload_waiting", "", count(s.Upload.Waiting.Load()))
		emit("upload_failing", "", since(s.Upload.Failing.Load()))
		emit("upload_missed", "", s.Upload.Missed.Load())
	}
}

// until returns in how many seconds a time will be, 0 if it is over or is not set.
func until(ns int64) uint64 {
	if ns == 0 {
		return 0
	}
	return uint64(max(ns-time.Now().UnixNano(), 0) / 1e9)
}

// since returns how many seconds ago a time was, 0 if it is to come or is not set.
func since(ns int64) uint64 {
	if ns == 0 {
		return 0
	}
	return uint64(max(time.Now().UnixNano()-ns, 0) / 1e9)
}
