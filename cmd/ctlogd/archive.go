package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// newKey makes the command that makes the key with which an archive signs.
func newKey(stdout io.Writer) *cobra.Command {
	var host string
	create := &cobra.Command{
		Use:   "new FILE",
		Short: "Make the private key that signs an archive's checkpoints, and print the public one",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := makeKey(args[0], host, stdout); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	create.Flags().StringVar(&host, "host", "", "the `NAME` that the key signs for; without: the host name")
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make keys that sign an archive's checkpoints",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
			}
			return errors.New("no command given; use new")
		},
	}
	cmd.AddCommand(create)
	return cmd
}

func makeKey(path, host string, stdout io.Writer) (err error) {
	if host == "" {
		if host, err = os.Hostname(); err != nil {
			return err
		}
	}
	private, public, err := archive.NewKey(host)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already; to change the key, make another one and put both into one file, a line each", path)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, private)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	_, err = fmt.Fprintf(stdout, "%s\n\nThis is the public key: keep it on another machine, where it verifies the archive. ctlogd's user has to read %s;\nwrite key: %s under outputs.archive.\n", public, path, path)
	return err
}
