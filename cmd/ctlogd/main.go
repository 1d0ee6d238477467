// Command ctlogd turns the kernel's connection tracking events into flow records and delivers them.
//
// The daemon begins in run.go, and its life from start to end is runDaemon (app.go). outputs.go makes outputs of the
// configuration, reload.go takes over another one, notify.go talks to the service manager. large.go has what the build tag
// small leaves out. The other commands have a file each.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/config"
	"github.com/ctlogd/ctlogd/ownlog"
)

// Stamped by the build: go build -ldflags "-X main.version=1.0.0 -X main.commit=...".
var version, commit string

// Exit codes. A second signal gives 128 and its number, as a shell has it.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitConfig  = 78 // EX_CONFIG of sysexits.h: the unit does not try again what only a person can mend
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is the whole program; it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := untilSignal(stderr)
	defer stop()

	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)

	var failed *failure
	var code exitCode
	var file *config.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &file): // its lines begin with file:line, as editors like them
		ownlog.Complain(stderr, file.Error())
		return exitConfig
	case errors.Is(err, errUnread):
		ownlog.Complain(stderr, "ctlogd: "+err.Error())
		return exitConfig
	case errors.Is(err, errChecks): // the checks have been printed
		return exitFailure
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &failed):
		ownlog.Complain(stderr, "ctlogd: "+err.Error())
		return exitFailure
	default: // cobra's own: the command line is wrong
		text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\t", "    ") // in front of a command that may be meant
		ownlog.Complain(stderr, fmt.Sprintf("ctlogd: %s\nsee %s --help", text, cmd.CommandPath()))
		return exitUsage
	}
}

// untilSignal returns a context that the first SIGINT or SIGTERM ends, for the daemon to drain; the second ends the
// process on the spot.
func untilSignal(stderr io.Writer) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-signals
		cancel()
		s := (<-signals).(unix.Signal)
		ownlog.Complain(stderr, fmt.Sprintf("ctlogd: a second signal (%v): exit without delivering what is left", s))
		os.Exit(128 + int(s))
	}()
	return ctx, func() { signal.Stop(signals); cancel() }
}

// failure marks an error of a command that ran, to tell it from a wrong command line.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

// command makes a cobra command of one that takes flags and no arguments.
func command(use, short string, do func(ctx context.Context) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if err := do(cmd.Context()); err != nil {
			return &failure{err}
		}
		return nil
	}}
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	var file string
	var check checkOptions
	var showVersion bool
	withFile := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().StringVarP(&file, "config", "c", "", "configuration `FILE`; without: records go to standard output")
		return cmd
	}

	runCmd := withFile(command("run", "Log the flows of this network namespace until a signal",
		func(ctx context.Context) error { return runRun(ctx, file, stderr) }))
	checkCmd := withFile(command("check", "Validate the configuration and the host; exit 1 if ctlogd could not work",
		func(ctx context.Context) error { return runCheck(ctx, file, check, os.Stdin, stdout) }))
	checkCmd.Flags().BoolVar(&check.fix, "fix", false, "set the sysctls that are wrong, until the next reboot")
	checkCmd.Flags().BoolVar(&check.configOnly, "config-only", false, "look at the configuration alone, and not at the host")
	checkCmd.Flags().StringVar(&check.user, "user", "", "look at files and outputs with the rights of this user; without: of the one that the unit names")
	checkCmd.Flags().BoolVar(&check.asUser, "as-user", false, "")
	_ = checkCmd.Flags().MarkHidden("as-user")
	checkCmd.Flags().BoolVar(&check.json, "json", false, "print the results as a JSON array")
	checkCmd.MarkFlagsMutuallyExclusive("config-only", "fix")
	versionCmd := command("version", "Print the version",
		func(context.Context) error { _, err := fmt.Fprintln(stdout, versionText()); return err })

	root := &cobra.Command{
		Use:           "ctlogd",
		Short:         "Log every ended flow of a firewall, from conntrack events, to files and collectors",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if showVersion {
				_, err := fmt.Fprintln(stdout, versionText())
				return err
			}
			return errors.New("no command given; use " + commandNames)
		},
	}
	// Not cobra's own flag, which would have to be told its text by a template: to link text/template in keeps the linker from
	// leaving out methods that nobody calls, a sixth of a small build.
	root.Flags().BoolVarP(&showVersion, "version", "v", false, "version for ctlogd")
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(runCmd, checkCmd, newStatus(stdout), newTap(stdout), newList(stdout), newIPFIX(stdout), versionCmd)
	root.AddCommand(largeCommands(stdout, stderr)...)
	root.AddCommand(newMan(root, stdout))
	return root
}

// build is what this binary is.
type build struct{ version, commit, goVersion string }

// readBuild returns what the release has stamped; without a stamp, what the Go tool knows.
func readBuild() build {
	b := build{version, commit, "go"}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.goVersion = info.GoVersion
		if b.version == "" {
			b.version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && b.commit == "" {
				b.commit = s.Value
			}
		}
	}
	if b.commit == "" {
		b.commit = "unknown"
	}
	return b
}

func versionText() string {
	b := readBuild()
	return fmt.Sprintf("ctlogd %s, commit %s, %s", b.version, b.commit, b.goVersion)
}
