//go:build small

package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/pipeline/spool"
	"github.com/ctlogd/ctlogd/preflight"
	"github.com/ctlogd/ctlogd/unit"
)

// What stands here takes the place of large.go in builds with the tag small: nothing, and words for it.

const outputKinds = "jsonl, ipfix or syslog"

const commandNames = "run, check, status, tap, list, ipfix or version"

// leftOut is what the configuration is told about a key of the other builds.
const leftOut = "this ctlogd is a small one, built for routers without it; take the key out, or install the one of the packages deb and rpm"

// Absent returns the blocks that other builds have.
func (*Config) Absent() map[string]string {
	return map[string]string{"metrics": leftOut, "whois": leftOut}
}

// Absent returns the kinds of outputs that other builds have.
func (*OutputsConfig) Absent() map[string]string {
	return map[string]string{"kafka": leftOut, "archive": leftOut}
}

type LargeConfig struct{}

func (*LargeConfig) defaults() {}

func (*LargeConfig) validate(func(path string) func(field, msg string)) {}

type LargeOutputs struct{}

func (*LargeOutputs) validate(*validation) {}

func (*planning) addLarge() {}

func (*LargeOutputs) checkpoints() time.Duration { return 0 }

func (*LargeOutputs) checkLarge(*Config, *preflight.Options,
	func(string, int, string, *OutputConfig, func(context.Context) error, func(context.Context) (time.Time, error)) string,
	func(string, string, unit.Size, int, unit.Size), func(string, string)) {
}

func (*LargeOutputs) largeFields(func(string, int, []string)) {}

func (*LargeOutputs) largeCredentials(func(string, *string)) {}

func (*OutputsConfig) largeWarnings(func(string, int, string, format.Fields, *spool.Config), func(path, msg string)) {
}

func largeCommands(_, _ io.Writer) []*cobra.Command { return nil }

func newMetrics(func() monitor.Snapshot, *live.Server, *zap.Logger) *monitor.Server {
	return new(monitor.Server)
}
