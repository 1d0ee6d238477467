package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input/ctnetlink"
	"github.com/ctlogd/ctlogd/whois"
)

// defaultConfig is the configuration of the service.
const defaultConfig = "/etc/ctlogd/ctlogd.yaml"

// whoisMemory is what whois may take.
const whoisMemory = 96 << 20

type whoisOptions struct {
	at, from, to, zone     string
	within                 time.Duration
	proto, src, dst        string
	archives, hosts        []string
	config                 string
	json, csv, noTable     bool
	batch, report, caseRef string
}

func newWhois(stdout, stderr io.Writer) *cobra.Command {
	var o whoisOptions
	cmd := &cobra.Command{
		Use:   "whois [ADDRESS[:PORT]] --at TIME",
		Short: "Say who had an address and port at a time, and whether anything is missing around it",
		Long: `Say who had a public address and port at a time, from the archive, and whether anything is missing around that
time. With --src: what somebody inside had. With --dst alone: who talked to a destination. ICMP's id and GRE's key stand in
for a port. A time without fractions is any of that second; without seconds, any of that minute.

The exit status tells:

    0  one subscriber had it, and nothing is missing
    3  nobody had it, and nothing is missing
    4  several had it: the answer says what decides
    5  incomplete: holders may be missing, and the answer says why
    1  the question could not be answered
    2  the command line is wrong`,
		Example: `  ctlogd whois 203.0.113.5:40000 --at "2026-11-27 12:03:07 CET"
  ctlogd whois 203.0.113.5:40000 --at 2026-11-27T11:03:07Z --dst 198.51.100.80:443 --report answer.html
  ctlogd whois --src 10.64.3.7 --from "2h ago" --to now --archive /srv/copies`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			code, err := runWhois(cmd.Context(), args, o, stdout, stderr)
			if err != nil {
				return err
			}
			if code != whois.ExitSole {
				return exitCode(code)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.at, "at", "", "the `TIME`: \"2026-11-27 12:03:07 CET\", 2026-11-27T12:03:07+01:00, seconds since 1970, \"10m ago\"")
	f.StringVar(&o.from, "from", "", "`TIME` from which on to look, instead of --at")
	f.StringVar(&o.to, "to", "", "`TIME` until which to look; without: now")
	f.DurationVar(&o.within, "within", 0, "look so much before and after as well, such as 2s, for clocks that differ")
	f.StringVar(&o.zone, "zone", "local", "`ZONE` of times that have none: local, UTC, +01:00, Europe/Berlin")
	f.StringVar(&o.proto, "proto", "", "`PROTOCOL`: tcp, udp, icmp, icmpv6, gre, sctp, or its number")
	f.StringVar(&o.src, "src", "", "`ADDRESS[:PORT]` or prefix inside: what did it have?")
	f.StringVar(&o.dst, "dst", "", "`ADDRESS[:PORT]` of the far side, which often decides")
	f.StringArrayVar(&o.archives, "archive", nil, "`DIR` of an archive or of copies of several, or a file of JSON lines; may be given again; without: those of the configuration")
	f.StringArrayVar(&o.hosts, "host", nil, "ask the archive of this `HOST` alone; may be given again")
	f.StringVarP(&o.config, "config", "c", defaultConfig, "configuration `FILE` that names the archives")
	f.BoolVar(&o.noTable, "no-table", false, "do not look into the table of live flows")
	f.BoolVar(&o.json, "json", false, "print the answer as JSON")
	f.BoolVar(&o.csv, "csv", false, "print the answer as CSV")
	cmd.MarkFlagsMutuallyExclusive("at", "from")
	cmd.MarkFlagsMutuallyExclusive("json", "csv")
	return cmd
}

// runWhois answers the question, and returns the exit status. Errors of the command line are plain, other ones failures.
func runWhois(ctx context.Context, args []string, o whoisOptions, stdout, _ io.Writer) (code int, err error) {
	debug.SetMemoryLimit(whoisMemory)
	now := time.Now()
	q, err := o.question(args, now)
	if err != nil {
		return 0, err
	}
	source, _, err := o.source(ctx)
	if err != nil {
		return 0, &failure{err}
	}
	if err := source.Prepare(ctx, []*whois.Question{q}); err != nil {
		return 0, &failure{err}
	}
	a, err := whois.Ask(ctx, source, q, now)
	if err != nil {
		return 0, &failure{err}
	}
	switch {
	case o.json:
		err = a.JSON(stdout)
	case o.csv:
		w := csv.NewWriter(stdout)
		_ = w.Write(whois.CSVHead) // Flush keeps the error
		err = a.CSV(w, false)
		w.Flush()
		err = errors.Join(err, w.Error())
	default:
		err = a.Text(stdout)
	}
	if err != nil && !errors.Is(err, unix.EPIPE) {
		return 0, &failure{err}
	}
	return a.Exit(), nil
}

// question makes a question of the command line.
func (o *whoisOptions) question(args []string, now time.Time) (*whois.Question, error) {
	q := &whois.Question{At: o.at, Case: o.caseRef}
	var err error
	if len(args) > 0 {
		if q.Public, err = whois.ParseEnd(args[0]); err != nil {
			return nil, err
		}
	}
	if o.src != "" {
		if q.Src, q.SrcEnd, err = whois.ParseSource(o.src); err != nil {
			return nil, fmt.Errorf("--src: %w", err)
		}
	}
	if o.dst != "" {
		if q.Dst, err = whois.ParseEnd(o.dst); err != nil {
			return nil, fmt.Errorf("--dst: %w", err)
		}
	}
	if o.proto != "" {
		var ok bool
		if q.Proto, ok = flow.ParseProto(o.proto); !ok {
			return nil, fmt.Errorf("--proto %s: no such protocol; write tcp, udp, icmp, icmpv6, gre, sctp, or a number", o.proto)
		}
		q.HasProto = true
	}
	if o.within < 0 {
		return nil, fmt.Errorf("--within %s: write a time of 0 or more", o.within)
	}
	zone, err := whois.LoadZone(o.zone)
	if err != nil {
		return nil, fmt.Errorf("--zone: %w", err)
	}
	switch {
	case o.at != "":
		m, err := whois.ParseTime(o.at, now, zone)
		if err != nil {
			return nil, fmt.Errorf("--at: %w", err)
		}
		q.SetTime(m, o.within)
	case o.from != "":
		m, err := whois.ParseTime(o.from, now, zone)
		if err != nil {
			return nil, fmt.Errorf("--from: %w", err)
		}
		to := whois.Moment{To: now.UnixNano()}
		if o.to != "" {
			if to, err = whois.ParseTime(o.to, now, zone); err != nil {
				return nil, fmt.Errorf("--to: %w", err)
			}
		}
		m.To, m.Assumed = to.To, m.Assumed || to.Assumed
		if m.Assumed {
			m.Zone = zone.String()
		}
		q.At = o.from + " to " + o.to
		q.SetTime(m, o.within)
	case o.to != "":
		return nil, errors.New("--to without --from; give both")
	}
	return q, q.Validate(now)
}

// source opens what the question is asked. config is the configuration, nil if it was not needed.
func (o *whoisOptions) source(ctx context.Context) (s whois.Source, cfg *Config, err error) {
	paths := o.archives
	cfg, err = LoadConfig(ctx, o.config)
	if err == nil {
		err = cfg.Resolve()
	}
	if err != nil && len(paths) == 0 {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("there is no %s to tell where the archive is; name it with --archive DIR", o.config)
		}
		return nil, nil, fmt.Errorf("%w\nname the archive with --archive DIR", err)
	}
	if err != nil {
		cfg = nil
	}
	if len(paths) == 0 {
		for _, a := range cfg.Outputs.Archive {
			paths = append(paths, a.Path)
		}
		if len(paths) == 0 {
			for _, j := range cfg.Outputs.JSONL {
				paths = append(paths, whois.Files(j.Path)...)
			}
		}
		if len(paths) == 0 {
			return nil, nil, fmt.Errorf("%s has no outputs.archive; name an archive, or files of JSON lines, with --archive", o.config)
		}
	}
	var table *whois.Table
	if cfg != nil && !o.noTable {
		table = &whois.Table{Host: cfg.Host, Observer: cfg.Observer, Read: readTable}
	}
	s, err = whois.Open(paths, o.hosts, table)
	return s, cfg, err
}

// readTable reads the table of live flows, and gives what ends meanwhile the time to come to the archive.
func readTable(ctx context.Context, visit func(*flow.Record)) error {
	if err := ctnetlink.ReadTable(ctx, visit); err != nil {
		return err
	}
	select {
	case <-time.After(settleTime):
	case <-ctx.Done():
	}
	return ctx.Err()
}

// settleTime is how long a record may be on its way from the kernel to an output that keeps up: a batch is 50 ms old at
// most.
const settleTime = 250 * time.Millisecond
