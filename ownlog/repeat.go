package ownlog

import (
	"slices"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// A warning or an error that comes more often than logBurst times in logInterval is summed up: the last of it is told
	// when the interval is over, with how many there were. A destination that flaps, or a disk that fails, says the same
	// at each record. What is no more than news may come ten times as often.
	logBurst    = 10
	logInterval = 10 * time.Second
)

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

// admit reports whether the entry is to be told now.
func (l *Log) admit(entry zapcore.Entry, fields []zapcore.Field) bool {
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
func (l *Log) sum(key repeatKey) {
	l.mu.Lock()
	r := l.repeats[key]
	delete(l.repeats, key)
	l.mu.Unlock()
	if r == nil {
		return
	}
	if more := r.count - burst(key.level); more > 0 {
		l.print(r.entry, append(slices.Clip(r.fields), zap.Int("repeated", more)))
	}
}

// sumAll tells what was not told, at the end.
func (l *Log) sumAll() {
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
