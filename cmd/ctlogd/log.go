package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

const (
	// A warning or an error that comes more often than logBurst times in logInterval is summed up: the last of it is told
	// when the interval is over, with how many there were. A destination that flaps, or a disk that fails, says the same
	// at each record. What is no more than news may come ten times as often.
	logBurst    = 10
	logInterval = 10 * time.Second
)

// ownLog is where ctlogd's own log goes, one line an entry, unbuffered. Its level and its format can be changed while it
// is in use, by loggers that were derived from it as well.
type ownLog struct {
	level   zap.AtomicLevel
	encoder atomic.Pointer[zapcore.Encoder]
	out     zapcore.WriteSyncer
	journal bool

	mu      sync.Mutex
	repeats map[repeatKey]*repeat
}

// repeatKey is what makes two entries the same, whatever their fields.
type repeatKey struct {
	level           zapcore.Level
	logger, message string
}

type repeat struct {
	count  int
	entry  zapcore.Entry // the last one that was not told
	fields []zapcore.Field
}

// newLogger returns ctlogd's own log, written to w. Under the journal each line begins with its priority, and has no
// time where people read it, as the journal has one.
func newLogger(c LogConfig, w io.Writer) (*zap.Logger, *ownLog, error) {
	l := &ownLog{level: zap.NewAtomicLevel(), out: zapcore.Lock(zapcore.AddSync(w)), journal: toJournal(w),
		repeats: map[repeatKey]*repeat{}}
	if err := l.set(c); err != nil {
		return nil, nil, err
	}
	return zap.New(&logCore{ownLog: l}), l, nil
}

// set takes another level and format.
func (l *ownLog) set(c LogConfig) error {
	level, err := zapcore.ParseLevel(c.Level)
	if err != nil {
		return fmt.Errorf("log.level: %w", err)
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
	return nil
}

// admit reports whether the entry is to be told now.
func (l *ownLog) admit(entry zapcore.Entry, fields []zapcore.Field) bool {
	key := repeatKey{entry.Level, entry.LoggerName, entry.Message}
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.repeats[key]
	if r == nil {
		r = new(repeat)
		l.repeats[key] = r
		time.AfterFunc(logInterval, func() { l.sum(key) })
	}
	r.count++
	if r.count <= burst(entry.Level) {
		return true
	}
	r.entry, r.fields = entry, fields
	return false
}

// burst is how many entries of a level are told in an interval.
func burst(level zapcore.Level) int {
	if level < zapcore.WarnLevel {
		return 10 * logBurst
	}
	return logBurst
}

// sum tells what of key was not told in its interval.
func (l *ownLog) sum(key repeatKey) {
	l.mu.Lock()
	r := l.repeats[key]
	delete(l.repeats, key)
	l.mu.Unlock()
	if r == nil {
		return
	}
	if more := r.count - burst(key.level); more > 0 {
		_ = l.print(r.entry, append(slices.Clip(r.fields), zap.Int("repeated", more)))
	}
}

// rest tells what was not told, at the end.
func (l *ownLog) rest() {
	l.mu.Lock()
	var keys []repeatKey
	for key := range l.repeats {
		keys = append(keys, key)
	}
	l.mu.Unlock()
	for _, key := range keys {
		l.sum(key)
	}
}

func (l *ownLog) print(entry zapcore.Entry, fields []zapcore.Field) error {
	line, err := (*l.encoder.Load()).EncodeEntry(entry, fields)
	if err != nil {
		return err
	}
	defer line.Free()
	if !l.journal {
		_, err = l.out.Write(line.Bytes())
		return err
	}
	marked := linePool.Get()
	defer marked.Free()
	marked.AppendString(priority(entry.Level))
	_, _ = marked.Write(line.Bytes())
	_, err = l.out.Write(marked.Bytes()) // one write, or another line could come between
	return err
}

var linePool = buffer.NewPool()

// logCore is an ownLog with the fields of one logger.
type logCore struct {
	*ownLog
	fields []zapcore.Field
}

func (c *logCore) Enabled(level zapcore.Level) bool { return c.level.Enabled(level) }

func (c *logCore) With(fields []zapcore.Field) zapcore.Core {
	return &logCore{c.ownLog, slices.Concat(c.fields, fields)}
}

func (c *logCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c *logCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	fields = slices.Concat(c.fields, fields)
	if entry.Level > zapcore.DebugLevel && !c.admit(entry, fields) { // who asks for debug wants all of it
		return nil
	}
	return c.print(entry, fields)
}

func (c *logCore) Sync() error {
	c.rest()
	return c.out.Sync()
}

// priority is how a line tells the journal its priority (sd-daemon(3)).
func priority(level zapcore.Level) string {
	switch {
	case level >= zapcore.ErrorLevel:
		return "<3>"
	case level == zapcore.WarnLevel:
		return "<4>"
	case level == zapcore.InfoLevel:
		return "<6>"
	}
	return "<7>"
}

// toJournal reports whether w is the connection to the journal that systemd made: $JOURNAL_STREAM names its device and
// inode (systemd.exec(5)), as whoever was started with it may have sent its output elsewhere.
func toJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false
	}
	return os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// complain prints why a command failed, as errors for the journal where that is what stderr is.
func complain(stderr io.Writer, text string) {
	if toJournal(stderr) {
		text = priority(zapcore.ErrorLevel) + strings.ReplaceAll(text, "\n", "\n"+priority(zapcore.ErrorLevel))
	}
	fmt.Fprintln(stderr, text)
}
