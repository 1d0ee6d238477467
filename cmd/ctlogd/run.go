package main

import (
	"context"
	"fmt"
	"io"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// runRun is the daemon from its command line to its end; ctx ends with the first signal.
func runRun(ctx context.Context, file string, stderr io.Writer) error {
	m := findManager()
	defer m.abandon()
	cfg, err := LoadConfig(file)
	if err != nil {
		return err
	}
	if err := cfg.Resolve(); err != nil {
		return err
	}
	log, level, err := newLogger(cfg.Log, stderr)
	if err != nil {
		return err
	}
	defer log.Sync() //nolint:errcheck // standard error needs no sync, and a terminal refuses it
	m.log = log.Named("manager")
	return runDaemon(ctx, cfg, m, log, level)
}

// newLogger returns ctlogd's own log, written to w, one line an entry, unbuffered.
// Its level can be changed while it is in use.
func newLogger(c LogConfig, w io.Writer) (*zap.Logger, *zap.AtomicLevel, error) {
	level, err := zap.ParseAtomicLevel(c.Level)
	if err != nil {
		return nil, nil, fmt.Errorf("log.level: %w", err)
	}
	e := zap.NewProductionEncoderConfig()
	e.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	e.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(e)
	if c.Format == "console" {
		e.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(e)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level)), &level, nil
}
