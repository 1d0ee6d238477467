package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/pipeline"
)

// withSocket gives a command that asks the daemon the flag by which it finds it.
func withSocket(cmd *cobra.Command, socket *string) *cobra.Command {
	cmd.Flags().StringVar(socket, "socket", live.DefaultSocket, "`PATH` of the daemon's socket, its live.socket")
	return cmd
}

type tapOptions struct {
	socket, color string
	json          bool
	count         uint64
}

func newTap(stdout io.Writer) *cobra.Command {
	var o tapOptions
	cmd := withSocket(&cobra.Command{
		Use:   "tap [WORD=VALUE...]",
		Short: "Show the records of the running daemon as they come",
		Long: `Show the records of the running daemon as they come, those that the filter for all outputs accepts.
Words are the matchers of filter rules, all of which must hold:

    ctlogd tap nat=snat helper=ftp dst_port=443,8080-8090 not:src=10.0.0.0/8

What this command is too slow for is not shown, and counted; it never slows the daemon.`,
		Example: "  ctlogd tap src=192.0.2.7\n  ctlogd tap --json min_bytes=1GiB | jq .src_ip",
		RunE: func(cmd *cobra.Command, words []string) error {
			if o.color != "auto" && o.color != "always" && o.color != "never" {
				return fmt.Errorf("--color %s: use auto, always or never", o.color)
			}
			if _, err := pipeline.Words(words); err != nil {
				return err
			}
			if err := runTap(cmd.Context(), words, o, stdout); err != nil {
				return &failure{err}
			}
			return nil
		},
	}, &o.socket)
	cmd.Flags().BoolVar(&o.json, "json", false, "print the records as JSON lines, see docs/json.md")
	cmd.Flags().StringVar(&o.color, "color", "auto", "`WHEN` to colour lines: auto (on a terminal), always or never")
	cmd.Flags().Uint64VarP(&o.count, "count", "n", 0, "end after so many records; 0 goes on until a signal")
	return cmd
}

func runTap(ctx context.Context, words []string, o tapOptions, stdout io.Writer) error {
	out := bufio.NewWriterSize(stdout, 64<<10)
	var failed error
	left := o.count
	// more counts a record and says whether to go on.
	more := func(err error) bool {
		failed = err
		left--
		return err == nil && (o.count == 0 || left > 0)
	}
	idle := func() {
		if err := out.Flush(); err != nil && failed == nil {
			failed = err
		}
	}
	client := live.NewClient(o.socket)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var err error
	if o.json {
		err = client.TapJSON(ctx, words, func(line []byte) bool {
			_, err := out.Write(line)
			return more(errors.Join(failed, err))
		}, idle)
	} else {
		p := live.Printer{Color: o.color == "always" || o.color == "auto" && isTerminal(stdout)}
		head := sync.OnceFunc(func() { fmt.Fprintln(out, p.Head()) })
		err = client.Tap(ctx, words, func(r *flow.Record) bool {
			_, err := out.WriteString(p.Line(r) + "\n")
			return more(errors.Join(failed, err))
		}, func() { head(); idle() })
	}
	idle()
	if errors.Is(failed, unix.EPIPE) { // head has seen enough
		return nil
	}
	return errors.Join(err, failed)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
