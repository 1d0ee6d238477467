package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/pipeline/filter"
	"github.com/ctlogd/ctlogd/printable"
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
			if _, err := filter.ParseWords(words); err != nil {
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
		head := func() {
			if p.HeadDue() {
				_, _ = out.WriteString(p.Head() + "\n") // out remembers an error
			}
		}
		err = client.Tap(ctx, words, func(r *flow.Record) bool {
			line := p.Line(r)
			head()
			_, err := out.WriteString(line + "\n")
			return more(errors.Join(failed, err))
		}, func() { head(); idle() })
	}
	idle()
	if errors.Is(failed, unix.EPIPE) { // head has seen enough
		return nil
	}
	return errors.Join(err, failed)
}

// Exit codes of status, for monitoring.
const (
	statusOK       = 0
	statusDegraded = 1
	statusDown     = 2
)

// exitCode ends the program with a code of its own; what there was to say has been said.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func newStatus(stdout io.Writer) *cobra.Command {
	var socket string
	var asJSON bool
	cmd := withSocket(&cobra.Command{
		Use:   "status",
		Short: "Show how the running daemon fares; exit 0 well, 1 degraded, 2 down",
		Long: `Show how the running daemon fares. The exit code is for monitoring:

    0  well
    1  degraded: it works, and something is lost, late or about to be; what, stands in the answer
    2  down: no daemon answers, its reader stands still, it is ending, or nobody may ask`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			code, err := runStatus(cmd.Context(), socket, asJSON, stdout)
			if err != nil {
				return &failure{err}
			}
			if code != statusOK {
				return exitCode(code)
			}
			return nil
		},
	}, &socket)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print all there is as JSON")
	return cmd
}

func runStatus(ctx context.Context, socket string, asJSON bool, stdout io.Writer) (code int, err error) {
	v, err := live.NewClient(socket).Status(ctx)
	down := err
	if down != nil {
		v = &live.View{Snapshot: monitor.Snapshot{Time: time.Now(), State: monitor.StateDown, Reasons: []string{down.Error()}}}
	}
	code = map[monitor.State]int{monitor.StateOK: statusOK, monitor.StateDegraded: statusDegraded}[v.State]
	if v.State != monitor.StateOK && v.State != monitor.StateDegraded {
		code = statusDown
	}
	switch {
	case asJSON && down != nil: // zeros would look like facts
		err = printAsJSON(stdout, struct {
			Time    time.Time     `json:"time"`
			State   monitor.State `json:"state"`
			Reasons []string      `json:"reasons"`
		}{v.Time, v.State, v.Reasons})
	case asJSON:
		err = printAsJSON(stdout, v)
	case down != nil:
		_, err = fmt.Fprintf(stdout, "ctlogd: %s\n  %s\n", v.State, printable.Text(down.Error()))
	default:
		_, err = io.WriteString(stdout, v.Status(isTerminal(stdout)))
	}
	return code, err
}

func printAsJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
