//go:build !small

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/spf13/cobra"

	"github.com/ctlogd/ctlogd/live"
)

func newTop(stdout io.Writer) *cobra.Command {
	var socket string
	return withSocket(command("top", "Show rates, loss, outputs and who uses the box most, on a terminal or once",
		func(ctx context.Context) error { return runTop(ctx, socket, stdout) }), &socket)
}

// talkersAfter is how long a snapshot of top has the daemon count.
const talkersAfter = 5 * time.Second

func runTop(ctx context.Context, socket string, stdout io.Writer) error {
	client := live.NewClient(socket)
	v, err := client.Top(ctx) // what is wrong is said before the screen is taken
	if err != nil {
		return err
	}
	if !isTerminal(stdout) {
		if v.Talkers.Since < talkersAfter.Seconds() {
			select {
			case <-time.After(talkersAfter):
			case <-ctx.Done():
				return nil
			}
			if v, err = client.Top(ctx); err != nil {
				return err
			}
		}
		_, err := io.WriteString(stdout, v.Plain())
		return err
	}
	screen, err := tcell.NewScreen()
	if err != nil {
		return fmt.Errorf("the terminal: %w; pipe the output through cat for a plain snapshot", err)
	}
	if err := screen.Init(); err != nil {
		return fmt.Errorf("the terminal: %w; pipe the output through cat for a plain snapshot", err)
	}
	defer screen.Fini()
	live.NewTop(screen).Run(ctx, client.Top)
	return nil
}
