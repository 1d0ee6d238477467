package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manPage is ctlogd(8) but for the commands and the version.
//
//go:embed ctlogd.8.in
var manPage string

// newMan makes the command that prints ctlogd(8), for packages; who installs by hand may use it as well.
func newMan(root *cobra.Command, stdout io.Writer) *cobra.Command {
	cmd := &cobra.Command{Use: "man", Short: "Print the manual page ctlogd(8)", Hidden: true, Args: cobra.NoArgs}
	cmd.RunE = func(*cobra.Command, []string) error {
		var commands strings.Builder
		writeCommands(&commands, root)
		_, err := strings.NewReplacer("@VERSION@", cmp.Or(version, "unknown"), "@COMMANDS@\n", commands.String()).
			WriteString(stdout, manPage)
		return err
	}
	return cmd
}

// writeCommands writes, as man(7) has it, the commands below cmd, each with its flags.
func writeCommands(w io.Writer, cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		if c.Hidden || c.Name() == "help" {
			continue
		}
		if c.HasSubCommands() {
			writeCommands(w, c)
			continue
		}
		fmt.Fprintf(w, ".SS %s\n%s\n", roff(c.CommandPath()+strings.TrimPrefix(c.Use, c.Name())),
			roff(strings.TrimSuffix(cmp.Or(c.Long, c.Short), ".")+"."))
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "help" || f.Hidden {
				return
			}
			name, usage := pflag.UnquoteUsage(f)
			flag := "--" + f.Name
			if f.Shorthand != "" {
				flag = "-" + f.Shorthand + ", " + flag
			}
			if name != "" {
				flag += " " + name
			}
			fmt.Fprintf(w, ".TP\n.B %s\n%s\n", roff(flag), roff(strings.ToUpper(usage[:1])+usage[1:]+"."))
		})
	}
}

// roff returns text such that man(7) takes none of it for its own.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
