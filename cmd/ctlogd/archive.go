//go:build !small

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/format"
)

// newCat makes the command that prints an archive's files.
func newCat(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "cat FILE...",
		Short: "Print files of an archive as JSON lines",
		Long: "Print the records in segments (*.parquet) and row logs (*.rows) of an archive as flat JSON lines, the same that the " +
			"output jsonl would have written, but for ct_id. The order is that of the file.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, path := range args {
				if err := cat(path, stdout); err != nil {
					return &failure{err}
				}
			}
			return nil
		},
	}
}

func cat(path string, stdout io.Writer) error {
	out := bufio.NewWriterSize(stdout, 256<<10)
	var enc format.Encoder
	var of *archive.Origin
	var line []byte
	err := archive.Each(path, func(o *archive.Origin, r *flow.Record) (err error) {
		if o != of {
			if enc, err = archiveEncoder(o); err != nil {
				return err
			}
			of = o
		}
		if line = line[:0]; r.Checkpoint() >= flow.CheckpointWhole {
			line = archive.AppendCheckpoint(line, o, r)
		} else {
			line = enc.Append(line, r)
		}
		line = append(line, '\n')
		_, err = out.Write(line)
		return err
	})
	if flushErr := out.Flush(); err == nil {
		err = flushErr
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// archiveEncoder returns an encoder that writes records of an archive as the output jsonl would have.
func archiveEncoder(o *archive.Origin) (format.Encoder, error) {
	drop := append([]string{"ct_id"}, o.Dropped...)
	if !o.HasFlowID() {
		drop = append(drop, "flow_id")
	}
	slices.Sort(drop)
	return format.New("flat", format.Options{Host: o.Host, Observer: o.Observer, Version: version,
		Fields: format.Fields{Drop: slices.Compact(drop)}})
}

// newSeal makes the command that the archive's output starts by itself; see archive.Child.
func newSeal(stdout, stderr io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:    "seal FILE...",
		Short:  "Make segments of the row logs of an archive",
		Args:   cobra.MinimumNArgs(1),
		Hidden: true,
		Run: func(_ *cobra.Command, args []string) {
			os.Exit(archive.SealMain(args, stdout, stderr))
		},
	}
}

// newHook makes the command that stands between an archive's output and the command of upload; see archive.HookMain.
func newHook(stdout, stderr io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:                "hook TIMEOUT COMMAND...",
		Short:              "Run the command that uploads a file of an archive",
		Args:               cobra.MinimumNArgs(2),
		Hidden:             true,
		DisableFlagParsing: true, // the options are the command's
		Run: func(cmd *cobra.Command, args []string) {
			os.Exit(archive.HookMain(cmd.Context(), args, stdout, stderr))
		},
	}
}
