//go:build !small

package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/identity"
)

// newKey makes the commands for the keys with which an archive signs.
func newKey(stdout io.Writer) *cobra.Command {
	var host string
	create := &cobra.Command{
		Use:   "new FILE",
		Short: "Make the private key that signs an archive's checkpoints, and print the public one",
		Long: "Make FILE with a private key that signs an archive's checkpoints, readable by its owner alone, and print the public one, " +
			"which verifies them. A file that is there is never written over.",
		Example: "  ctlogd key new /etc/ctlogd/archive.key",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := createKey(args[0], host, stdout, cmd.ErrOrStderr()); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	create.Flags().StringVar(&host, "host", "", "the `NAME` that the key signs for; without: the host name")
	rotate := &cobra.Command{
		Use:   "rotate FILE",
		Short: "Put a new private key beside the one that is in use, and print the public one",
		Long: "Put a new private key beside the last one in FILE. A running ctlogd takes it up by itself: the catalog records the " +
			"change, signed by the old key, and both sign for one checkpoint interval.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := rotateKey(args[0], stdout, cmd.ErrOrStderr()); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	show := &cobra.Command{
		Use:   "show FILE",
		Short: "Print the public keys of the private ones in FILE, for ctlogd verify --key",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			keys, err := archive.ReadKeys(args[0])
			if err != nil {
				return &failure{err}
			}
			for _, k := range keys {
				if _, err := fmt.Fprintln(stdout, k.Public); err != nil {
					return &failure{err}
				}
			}
			return nil
		},
	}
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, change and show the keys that sign an archive's checkpoints",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
			}
			return errors.New("no command given; use new, rotate or show")
		},
	}
	cmd.AddCommand(create, rotate, show)
	return cmd
}

// createKey prints the key alone to stdout, so that "> gw1.pub" makes a file for ctlogd verify --key, and what to do with it to
// stderr.
func createKey(path, host string, stdout, stderr io.Writer) (err error) {
	if host == "" {
		if host, err = identity.Host(); err != nil {
			return err
		}
	}
	public, err := archive.CreateKey(path, host)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(stdout, public); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stderr, "\nThis line is the public key, which stands in every checkpoint too. Keep it on another machine: ctlogd verify --key FILE needs it there.\n"+
		"%s holds the private one. ctlogd's user has to read it: chgrp ctlogd %s && chmod 0640 %s\nThen write under outputs.archive: key: %s\n", path, path, path, path)
	return err
}

// rotateKey prints as createKey does.
func rotateKey(path string, stdout, stderr io.Writer) error {
	public, old, err := archive.RotateKey(path)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(stdout, public); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stderr, "\nThis line is the new public key. Keep it beside the old one, %s: each verifies what the other has signed for.\n"+
		"A running ctlogd takes the new one up at its next checkpoint; both sign for one interval then, and %s may lose its first line after that.\n", old, path)
	return err
}

// loose says who else may read a private key, nil if nobody may.
func loose(path string) error {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil // which is told where the file is read
	}
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return fmt.Errorf("%s has mode %04o: others than its owner may read or change the private key, and sign as this archive; chmod 0640 %s, or 0600",
			path, mode, path)
	}
	return nil
}
