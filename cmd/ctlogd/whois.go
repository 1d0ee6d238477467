//go:build !small

package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/whois"
)

// defaultConfig is the configuration of the service.
const defaultConfig = "/etc/ctlogd/ctlogd.yaml"

// clock tells when a question is asked. Tests set it.
var clock = time.Now

// whoisMemory is what whois may take.
const whoisMemory = 72 << 20

type whoisOptions struct {
	at, from, to, zone     string
	within                 time.Duration
	proto, src, dst        string
	netns, ctZone          string
	subscriber             string
	archives, hosts        []string
	config                 string
	named                  bool // config was given
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
			o.named = cmd.Flags().Changed("config")
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
	f.StringVar(&o.netns, "netns", "", "network namespace that the holder was in, by the `NAME` that records have; own: ctlogd's")
	f.StringVar(&o.ctZone, "ct-zone", "", "conntrack `ZONE` that the holder was in, a number; 0: in none")
	f.StringVar(&o.src, "src", "", "`ADDRESS[:PORT]` or prefix inside: what did it have?")
	f.StringVar(&o.subscriber, "subscriber", "", "`ID` or name of a subscriber, where a source has told whose flows they are: what did they have?")
	f.StringVar(&o.dst, "dst", "", "`ADDRESS[:PORT]` of the far side, which often decides")
	f.StringArrayVar(&o.archives, "archive", nil, "`DIR` of an archive or of copies of several, or a file of JSON lines; may be given again; without: those of the configuration")
	f.StringArrayVar(&o.hosts, "host", nil, "ask the archive of this `HOST` alone; may be given again")
	f.StringVarP(&o.config, "config", "c", defaultConfig, "configuration `FILE` that names the archives; for files of JSON lines, that of the time: it tells which filters there were")
	f.BoolVar(&o.noTable, "no-table", false, "do not look into the table of live flows")
	f.BoolVar(&o.json, "json", false, "print the answer as JSON")
	f.BoolVar(&o.csv, "csv", false, "print the answer as CSV")
	f.StringVar(&o.batch, "batch", "", "answer each question in `FILE`, one a line: lines \"IP port time\", CSV, X-ARF, ACNS, or a mail with one of these; - is standard input")
	f.StringVar(&o.report, "report", "", "write the answer, and what it rests on, to `FILE`.html or .json")
	f.StringVar(&o.caseRef, "case", "", "`CASE` that the question belongs to; it stands in the audit file and the report")
	cmd.MarkFlagsMutuallyExclusive("at", "from")
	cmd.MarkFlagsMutuallyExclusive("at", "to")
	cmd.MarkFlagsMutuallyExclusive("json", "csv")
	return cmd
}

// runWhois answers the question, and returns the exit status. Errors of the command line are plain, other ones failures.
func runWhois(ctx context.Context, args []string, o whoisOptions, stdout, stderr io.Writer) (code int, err error) {
	debug.SetMemoryLimit(whoisMemory)
	debug.SetGCPercent(800) // most questions need no collection at all
	now := clock()
	zone, err := whois.LoadZone(o.zone)
	if err != nil {
		return 0, fmt.Errorf("--zone: %w", err)
	}
	items, err := o.items(args, now, zone)
	if err != nil {
		return 0, err
	}
	rules, err := o.rules(ctx)
	if err != nil {
		return 0, &failure{err}
	}
	if rules.required != "" && slices.ContainsFunc(items, func(i whois.Item) bool { return i.Question != nil && i.Question.Case == "" }) {
		return 0, fmt.Errorf("%s asks for a case with each question (whois.case: required); name it with --case", rules.required)
	}
	source, err := o.source(rules.cfg, rules.err)
	if err != nil {
		return 0, &failure{err}
	}
	p := newBar(stderr)
	if l, ok := source.(*whois.Lines); ok {
		l.Tell = func(done, all int64) { p.show("read", done, all) }
	}
	var questions []*whois.Question
	for _, i := range items {
		if i.Err == nil {
			questions = append(questions, i.Question)
		}
	}
	if len(questions) > 0 {
		err = source.Prepare(ctx, questions)
	}
	if err != nil {
		p.done()
		return 0, &failure{err}
	}
	out := &whoisPrinter{o: &o, w: stdout}
	for n, i := range items {
		var a *whois.Answer
		if i.Err == nil {
			a, err = whois.Ask(ctx, source, i.Question, now)
			for _, file := range rules.audit {
				if err == nil {
					err = whois.Audit(file, whois.Asker(), []*whois.Answer{a})
				}
			}
			if err == nil && o.report != "" {
				err = whois.NewReport(a, whois.Asker(), versionText(), now).Write(o.report)
			}
		}
		if err == nil {
			p.hide()
			err = out.print(i, a)
		}
		if errors.Is(err, unix.EPIPE) { // head has seen enough
			return 0, nil
		}
		if err != nil {
			p.done()
			return 0, &failure{err}
		}
		p.show("answered", int64(n+1), int64(len(items)))
		switch {
		case o.batch == "":
			code = a.Exit()
		case i.Err != nil:
			code = exitFailure // some could not be answered; what the others are stands in each line
		}
	}
	p.done()
	return code, nil
}

// items are the questions of the command line or of the batch.
func (o *whoisOptions) items(args []string, now time.Time, zone *time.Location) ([]whois.Item, error) {
	if o.within < 0 {
		return nil, fmt.Errorf("--within %s: write a time of 0 or more", o.within)
	}
	if o.batch == "" {
		q, err := o.question(args, now, zone)
		return []whois.Item{{Question: q}}, err
	}
	if len(args) > 0 || o.at != "" || o.from != "" || o.to != "" || o.proto != "" || o.netns != "" || o.ctZone != "" || o.src != "" || o.dst != "" || o.subscriber != "" || o.report != "" {
		return nil, errors.New("--batch has its questions in the file: no address, --at, --from, --to, --proto, --netns, --ct-zone, --src, --subscriber, --dst or --report with it")
	}
	in := io.Reader(os.Stdin)
	if o.batch != "-" {
		f, err := os.Open(o.batch)
		if err != nil {
			return nil, &failure{fmt.Errorf("read the batch: %w", err)}
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, whois.MaxBatch+1))
	if err == nil && len(text) > whois.MaxBatch {
		err = fmt.Errorf("it has more than %d bytes; split it", whois.MaxBatch)
	}
	if err != nil {
		return nil, &failure{fmt.Errorf("read the batch %s: %w", o.batch, err)}
	}
	items, err := whois.ParseBatch(text, whois.BatchOptions{Now: now, Zone: zone, Within: o.within, Case: o.caseRef})
	if err != nil {
		return nil, &failure{fmt.Errorf("%s: %w", o.batch, err)}
	}
	return items, nil
}

// whoisPrinter prints answers as they were asked for.
type whoisPrinter struct {
	o   *whoisOptions
	w   io.Writer
	csv *csv.Writer
}

func (p *whoisPrinter) print(i whois.Item, a *whois.Answer) error {
	switch {
	case p.o.csv:
		if p.csv == nil {
			p.csv = csv.NewWriter(p.w)
			_ = p.csv.Write(whois.CSVHead) // Flush keeps the error
		}
		if a == nil {
			_ = i.CSV(p.csv)
		} else {
			_ = a.CSV(p.csv, p.o.batch != "")
		}
		p.csv.Flush()
		return p.csv.Error()
	case a == nil:
		return i.JSON(p.w)
	case p.o.json || p.o.batch != "":
		a.Line = i.Line
		return a.JSON(p.w)
	}
	return a.Text(p.w)
}

// bar is a bar on the terminal, for what takes longer than a second.
type bar struct {
	w     io.Writer // nil: no terminal
	began time.Time
	last  time.Time
	shown bool
}

func newBar(w io.Writer) *bar {
	p := &bar{began: time.Now()}
	if isTerminal(w) {
		p.w = w
	}
	return p
}

const barWidth = 40

// barAfter is what takes no bar. Tests do not wait for it.
var barAfter = time.Second

func (p *bar) show(what string, done, all int64) {
	now := time.Now()
	if p.w == nil || all == 0 || now.Sub(p.began) < barAfter || now.Sub(p.last) < 100*time.Millisecond {
		return
	}
	p.last, p.shown = now, true
	n := int(barWidth * min(done, all) / all)
	fmt.Fprintf(p.w, "\r%s [%s%s] %d%%", what, strings.Repeat("#", n), strings.Repeat(".", barWidth-n), 100*min(done, all)/all)
}

// hide takes the bar off the terminal, where an answer comes next.
func (p *bar) hide() {
	if p.shown {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", barWidth+20))
		p.shown = false
	}
}

func (p *bar) done() { p.hide() }

// question makes a question of the command line.
func (o *whoisOptions) question(args []string, now time.Time, zone *time.Location) (*whois.Question, error) {
	q := &whois.Question{At: o.at, Case: o.caseRef, Person: o.subscriber}
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
	if err := o.narrow(q); err != nil {
		return nil, err
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

// narrow sets what the flags say of the flows that are asked for.
func (o *whoisOptions) narrow(q *whois.Question) error {
	if o.proto != "" {
		var ok bool
		if q.Proto, ok = flow.ParseProto(o.proto); !ok {
			return fmt.Errorf("--proto %s: no such protocol; write tcp, udp, icmp, icmpv6, gre, sctp, or a number", o.proto)
		}
		q.HasProto = true
	}
	q.Netns = o.netns
	if o.ctZone != "" {
		zone, err := strconv.ParseUint(o.ctZone, 10, 16)
		if err != nil {
			return fmt.Errorf("--ct-zone %s: no such zone; write a number from 0 to 65535", o.ctZone)
		}
		q.CTZone, q.HasCTZone = uint16(zone), true
	}
	return nil
}

// houseRules are what the configurations say about questions.
type houseRules struct {
	audit    []string // files that each question is appended to
	required string   // the configuration that asks for a case; "": none does
	cfg      *Config  // the one that names the archives; nil if there is none
	err      error    // why
}

// rules reads the configuration that was named, and that of the service: another one, or archives that are named, lead
// past no audit of this machine. One that is there and cannot be read is an error: what it asks for is not known.
func (o *whoisOptions) rules(ctx context.Context) (r houseRules, err error) {
	files := []string{o.config}
	if o.config == defaultConfig {
		files[0] = theService()
	} else if !sameFile(o.config, theService()) {
		files = append(files, theService())
	}
	for i, file := range files {
		cfg, err := LoadConfig(ctx, file)
		if err == nil {
			err = cfg.Resolve()
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if i == 0 {
				r.err = err
			}
			continue
		case errors.Is(err, fs.ErrPermission):
			return r, fmt.Errorf("%v; it says whether questions are put on record: ask as root, or as a member of its group", err)
		case err != nil:
			return r, fmt.Errorf("%v\nthe configuration says whether questions are put on record: correct it, and ask again", err)
		}
		if i == 0 {
			r.cfg = cfg
		}
		if cfg.Whois.Audit != "" && !slices.Contains(r.audit, cfg.Whois.Audit) {
			r.audit = append(r.audit, cfg.Whois.Audit)
		}
		if cfg.Whois.Case == "required" {
			r.required = file
		}
	}
	return r, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	y, other := os.Stat(b)
	return a == b || err == nil && other == nil && os.SameFile(x, y)
}

// source opens what the question is asked. cfg is the configuration; nil, with the reason, if there is none.
func (o *whoisOptions) source(cfg *Config, why error) (whois.Source, error) {
	paths := o.archives
	switch {
	case len(paths) > 0:
	case cfg == nil:
		return nil, fmt.Errorf("%v; name the archive with --archive DIR", why)
	default:
		for _, a := range cfg.Outputs.Archive {
			paths = append(paths, a.Path)
		}
		if len(paths) == 0 {
			for _, j := range cfg.Outputs.JSONL {
				paths = append(paths, whois.Files(j.Path)...)
			}
		}
		if len(paths) == 0 {
			return nil, fmt.Errorf("%s has no outputs.archive; name an archive, or files of JSON lines, with --archive", o.config)
		}
	}
	if cfg == nil {
		return whois.Open(paths, o.hosts, nil, nil)
	}
	var then *whois.Then
	if o.named {
		then = &whois.Then{File: o.config, Filter: (&witness{cfg: cfg}).filterThen}
	}
	return whois.Open(paths, o.hosts, newTable(cfg, !o.noTable), then)
}
