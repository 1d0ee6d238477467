// Package ownlog is ctlogd's own log: lines about the daemon itself. Records never go through it.
//
//	log, own := ownlog.New(cfg, os.Stderr)
//	defer own.Close()
//
// A line is encoded where it is logged, and written by a goroutine of its own (writer.go). So nobody who logs, and least
// of all the reader or the guard, waits for a pipe that nobody reads, a terminal or a disk. What repeats is summed up
// (repeat.go), so that a place that logs need not.
package ownlog

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/ctlogd/ctlogd/printable"
)

// Config is the block log of the configuration.
type Config struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

var (
	levels  = []string{"debug", "info", "warn", "error"}
	formats = []string{"console", "json"}
)

// Defaults sets every value.
func (c *Config) Defaults() { *c = Config{Level: "info", Format: "console"} }

// Validate reports each mistake with the key that it stands under.
func (c *Config) Validate(report func(field, msg string)) {
	if !slices.Contains(levels, c.Level) {
		report("level", fmt.Sprintf("unknown level %q; use debug, info, warn or error", c.Level))
	}
	if !slices.Contains(formats, c.Format) {
		report("format", fmt.Sprintf("unknown format %q; use console or json", c.Format))
	}
}

// Log is where ctlogd's own log goes, one line an entry. Its level and its format can be changed while it is in use,
// also for loggers that were derived from it.
type Log struct {
	level   zap.AtomicLevel
	encoder atomic.Pointer[zapcore.Encoder]
	out     *writer
	journal bool

	mu      sync.Mutex
	repeats map[repeatKey]*repeat
}

// New returns ctlogd's own log, written to w. c must be valid. Under the journal each line begins with its priority, and
// has no time where people read it, as the journal has one.
func New(c Config, w io.Writer) (*zap.Logger, *Log) {
	l := &Log{level: zap.NewAtomicLevel(), journal: toJournal(w), repeats: map[repeatKey]*repeat{}}
	l.out = newWriter(w, l.notice)
	l.Set(c)
	// What zap itself has to say would go to standard error, and might wait there.
	return zap.New(&core{Log: l}, zap.ErrorOutput(zapcore.AddSync(io.Discard))), l
}

// Dropped returns how many lines nobody took.
func (l *Log) Dropped() uint64 { return l.out.dropped.Load() }

// Close writes what waits, within a second, and then gives up: the end of the process waits for nobody who does not
// read its log.
func (l *Log) Close() {
	l.sumAll()
	l.out.flush(flushTime)
	l.out.close()
}

// flushTime is how long the end waits for the log.
const flushTime = time.Second

// notice returns the line that tells of dropped ones.
func (l *Log) notice(lines uint64) []byte {
	return l.encode(zapcore.Entry{Level: zapcore.WarnLevel, Time: time.Now(),
		Message: "lines of this log were dropped: whoever reads standard error was too slow"},
		[]zapcore.Field{zap.Uint64("lines", lines)})
}

// Set takes another level and format, which must be valid.
func (l *Log) Set(c Config) {
	level, err := zapcore.ParseLevel(c.Level)
	if err != nil {
		level = zapcore.InfoLevel
	}
	e := zap.NewProductionEncoderConfig()
	e.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	e.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(e)
	if c.Format == "console" {
		e.EncodeLevel = zapcore.CapitalLevelEncoder
		if l.journal {
			e.TimeKey = zapcore.OmitKey
		}
		encoder = zapcore.NewConsoleEncoder(e)
	}
	l.encoder.Store(&encoder)
	l.level.SetLevel(level)
}

func (l *Log) print(entry zapcore.Entry, fields []zapcore.Field) { l.out.add(l.encode(entry, fields)) }

// encode returns the entry's line.
func (l *Log) encode(entry zapcore.Entry, fields []zapcore.Field) (line []byte) {
	entry.Message = printable.Text(entry.Message)
	text, err := (*l.encoder.Load()).EncodeEntry(entry, fields)
	if err != nil {
		return fmt.Appendf(nil, "%s (its fields cannot be written: %v)\n", entry.Message, err)
	}
	defer text.Free()
	if l.journal {
		line = append(line, priority(entry.Level)...)
	}
	return appendSafe(line, text.Bytes())
}

// appendSafe appends a line without the control characters that zap leaves as they are: those from U+0080 to U+009F,
// which terminals obey too, and marks that turn the direction of writing.
func appendSafe(dst, line []byte) []byte {
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		if r >= utf8.RuneSelf && r <= 0xffff && !unicode.IsPrint(r) {
			dst = fmt.Appendf(dst, `\u%04x`, r) // as JSON has it
		} else {
			dst = append(dst, line[:n]...)
		}
		line = line[n:]
	}
	return dst
}

// core is a Log with the fields of one logger.
type core struct {
	*Log
	fields []zapcore.Field
}

func (c *core) Enabled(level zapcore.Level) bool { return c.level.Enabled(level) }

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{c.Log, slices.Concat(c.fields, fields)}
}

func (c *core) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c *core) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	fields = slices.Concat(c.fields, fields)
	if entry.Level > zapcore.DebugLevel && !c.admit(entry, fields) { // who asks for debug wants all of it
		return nil
	}
	c.print(entry, fields)
	return nil
}

func (c *core) Sync() error {
	c.sumAll()
	c.out.flush(flushTime)
	return nil
}
