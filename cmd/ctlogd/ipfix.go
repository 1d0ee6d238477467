package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ctlogd/ctlogd/output/ipfix"
	"github.com/ctlogd/ctlogd/output/ipfix/listen"
)

// newIPFIX makes the commands that serve those who set up a collector.
func newIPFIX(stdout io.Writer) *cobra.Command {
	var file string
	templates := command("templates", "Print the templates, as tables in Markdown",
		func(ctx context.Context) error { return runTemplates(ctx, file, stdout) })
	templates.Flags().StringVarP(&file, "config", "c", "",
		"configuration `FILE` whose outputs' templates to print; without: all there are")

	listenCmd := &cobra.Command{
		Use:   "listen ADDRESS|FILE",
		Short: "Print IPFIX messages as JSON lines",
		Long: "Print the IPFIX messages that arrive at udp://HOST:PORT or tcp://HOST:PORT, until a signal, or those in a " +
			"file (\"-\" is standard input), as JSON lines.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := listen.Listen(cmd.Context(), args[0], stdout); err != nil {
				return &failure{err}
			}
			return nil
		},
	}

	cmd := &cobra.Command{
		Use:   "ipfix",
		Short: "Print IPFIX templates, or what a collector would receive",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
			}
			return errors.New("no command given; use templates or listen")
		},
	}
	cmd.AddCommand(templates, listenCmd)
	return cmd
}

// runTemplates prints the templates of each ipfix output in the file, or all there are.
func runTemplates(ctx context.Context, file string, stdout io.Writer) error {
	if file == "" {
		return ipfix.WriteTemplates(stdout, ipfix.AllTemplates())
	}
	cfg, err := LoadConfig(ctx, file)
	if err != nil {
		return err
	}
	if len(cfg.Outputs.IPFIX) == 0 {
		return fmt.Errorf("%s has no ipfix output; without -c, all templates are printed", file)
	}
	for i, o := range cfg.Outputs.IPFIX {
		if i > 0 {
			fmt.Fprintln(stdout)
		}
		fmt.Fprintf(stdout, "## outputs.ipfix[%d]: %s, observation domain %d\n\n", i, o.Address, o.Domain())
		if err := ipfix.WriteTemplates(stdout, ipfix.Templates(o.Config)); err != nil {
			return err
		}
	}
	return nil
}
