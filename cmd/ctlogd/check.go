package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/config"
	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/output/jsonl"
	"github.com/ctlogd/ctlogd/pipeline/mark"
	"github.com/ctlogd/ctlogd/preflight"
	"github.com/ctlogd/ctlogd/printable"
	"github.com/ctlogd/ctlogd/subscriber"
	"github.com/ctlogd/ctlogd/unit"
)

// errChecks says that a check failed; what and why has been printed.
var errChecks = errors.New("a check failed")

type checkOptions struct {
	fix, json, configOnly bool

	user   string // with whose rights to look; "" for the unit's
	asUser bool   // this is the child that looks with them
}

// theService returns the configuration of the service, which the unit names.
func theService() string { return filepath.Join(hostRoot, "etc/ctlogd/ctlogd.yaml") }

// runCheck prints what is wrong with the configuration and with the host, both whatever the other gives.
func runCheck(ctx context.Context, file string, o checkOptions, stdin io.Reader, stdout io.Writer) error {
	if o.asUser {
		return checkAsUser(ctx, file, o, stdin, stdout)
	}
	var results []preflight.Result
	if _, err := os.Stat(theService()); file == "" && err == nil {
		file = theService()
		results = append(results, preflight.Result{Name: "configuration", Status: preflight.Pass,
			Detail: "without -c, that of the service is checked"})
	}
	var text []byte
	var err error
	if file != "" {
		text, err = readConfig(ctx, file)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	who, whoErr := chooseAccount(o.user)
	if whoErr != nil && o.user != "" {
		return whoErr
	}
	// The look as root is made besides, for what the host's checks need to know of the configuration.
	cfg, found := checkConfig(ctx, file, text, err)
	if who != nil && err == nil {
		theirs, err := who.lookAs(ctx, file, text, o.configOnly)
		if err == nil {
			results = append(results, theirs.Configuration...)
			if !o.configOnly {
				results = append(results, lookedAs(who, nil))
				results = append(results, hostResults(ctx, cfg, o)...)
				results = append(results, theirs.Outputs...)
			}
			return printChecks(ctx, results, o, stdout)
		}
		whoErr = err
	}
	results = append(results, found...)
	if !o.configOnly {
		results = append(results, lookedAs(nil, whoErr))
		results = append(results, hostResults(ctx, cfg, o)...)
		results = append(results, outputResults(ctx, cfg)...)
	}
	return printChecks(ctx, results, o, stdout)
}

// checkAsUser is the child that looks with a user's rights.
func checkAsUser(ctx context.Context, file string, o checkOptions, stdin io.Reader, stdout io.Writer) error {
	text, err := io.ReadAll(stdin)
	if err != nil {
		return err
	}
	var r asUserResults
	cfg, found := checkConfig(ctx, file, text, nil)
	r.Configuration = found
	if file == theService() {
		if f, err := os.Open(file); err != nil {
			r.Configuration = append(r.Configuration, preflight.Result{Name: "configuration", Status: preflight.Fail,
				Detail: err.Error(), Remedy: "chgrp ctlogd " + file + "; chmod 0640 " + file})
		} else {
			f.Close()
		}
	}
	if !o.configOnly {
		r.Outputs = outputResults(ctx, cfg)
	}
	return json.NewEncoder(stdout).Encode(r)
}

// checkConfig returns the configuration, nil if it is not right, and what there is to say about it. err is that of
// reading the file.
func checkConfig(ctx context.Context, file string, text []byte, err error) (cfg *Config, results []preflight.Result) {
	switch {
	case file == "":
		cfg = DefaultConfig()
	case err == nil:
		cfg, err = validConfig(ctx, file, text)
	}
	results = configResults(file, err)
	if cfg != nil {
		results = append(results, cfg.warningResults()...)
	}
	return cfg, results
}

// printChecks prints the results; the error is errChecks if one has failed.
func printChecks(ctx context.Context, results []preflight.Result, o checkOptions, stdout io.Writer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := range results { // what others have named: a terminal obeys escape sequences
		r := &results[i]
		r.Name, r.Detail, r.Remedy = printable.Text(r.Name), printable.Text(r.Detail), printable.Text(r.Remedy)
	}
	print := printResults
	if o.json {
		print = printJSON
	}
	if err := print(stdout, results); err != nil {
		return fmt.Errorf("print the results: %w", err)
	}
	if slices.ContainsFunc(results, func(r preflight.Result) bool { return r.Status == preflight.Fail }) {
		return errChecks
	}
	return nil
}

// hostResults are those of the host. cfg is nil if it could not be had.
func hostResults(ctx context.Context, cfg *Config, o checkOptions) []preflight.Result {
	var results []preflight.Result
	if cfg == nil {
		cfg = DefaultConfig()
	} else {
		results = machineResults(cfg)
	}
	host := hostChecks(cfg)
	host.Fix, host.Files, host.Certificates, host.Outputs = o.fix, nil, nil, nil
	results = append(results, preflight.Run(ctx, host)...)
	return append(results, namespaceResults(ctx, cfg)...)
}

// outputResults are those of what cfg, nil if it could not be had, writes to and listens at.
func outputResults(ctx context.Context, cfg *Config) []preflight.Result {
	if cfg == nil {
		return nil
	}
	host := hostChecks(cfg)
	host.OutputsOnly = true
	return preflight.Run(ctx, host)
}

// machineResults says what is doubtful about who the machine is, for a configuration that has only been loaded.
func machineResults(cfg *Config) []preflight.Result {
	resolved := *cfg
	if err := resolved.identify(); err != nil {
		return []preflight.Result{{Name: "host name", Status: preflight.Fail, Detail: err.Error()}}
	}
	return identityResults(&resolved)
}

// configResults is the outcome of loading file, one result for each mistake.
func configResults(file string, err error) []preflight.Result {
	const name = "configuration"
	var wrong *config.Error
	switch {
	case err == nil && file == "":
		return []preflight.Result{{Name: name, Status: preflight.Pass, Detail: "the defaults, as there is no " + theService() + "; -c FILE checks a file"}}
	case err == nil:
		return []preflight.Result{{Name: name, Status: preflight.Pass, Detail: file}}
	case errors.As(err, &wrong):
		var results []preflight.Result
		for _, line := range wrong.Lines() {
			results = append(results, preflight.Result{Name: name, Status: preflight.Fail, Detail: line})
		}
		return results
	default:
		return []preflight.Result{{Name: name, Status: preflight.Fail, Detail: err.Error()}}
	}
}

// hostChecks says what cfg needs of the host. Each kind of output adds its entries' checks here; metrics are checked
// like one.
func hostChecks(cfg *Config) preflight.Options {
	in := &cfg.Input.Conntrack
	o := preflight.Options{ReceiveBuffer: in.ReceiveBuffer}
	files := func(name, path string, bound unit.Size, keep int, reserve unit.Size) {
		o.Files = append(o.Files, preflight.Files{Name: name, Path: path, Bound: bound, Keep: keep, Reserve: reserve})
	}
	certificate := func(name, file string) {
		if file != "" {
			o.Certificates = append(o.Certificates, preflight.Certificate{Name: name, File: file})
		}
	}
	add := func(kind string, i int, about string, common *OutputConfig, check func(context.Context) error,
		reach func(context.Context) (time.Time, error)) string {
		name := fmt.Sprintf("outputs.%s[%d]", kind, i)
		o.Outputs = append(o.Outputs, preflight.Output{Name: name, About: about, Check: check, Reach: reach})
		if common.Spool != nil {
			files(name+".spool", common.Spool.Path, common.Spool.MaxSize, 0, 0)
		}
		return name
	}
	for i, out := range cfg.Outputs.JSONL {
		name := add("jsonl", i, out.Path, &out.OutputConfig, func(context.Context) error { return out.Check() }, out.Reach)
		o.Outputs[len(o.Outputs)-1].Tell = out.Tell
		if out.Path != jsonl.Stdout {
			bound := out.MaxSize * unit.Size(out.Keep+1)
			if out.Keep == 0 { // by max_age: as much as comes in that time
				bound = 0
			}
			files(name, out.Path, bound, out.Keep, out.Reserve)
		}
	}
	for i, out := range cfg.Outputs.IPFIX {
		name := add("ipfix", i, strings.Join(out.Collectors(), ", "), &out.OutputConfig, out.Check, out.Reach)
		certificate(name+".tls.ca", out.TLS.CA)
		certificate(name+".tls.cert", out.TLS.Cert)
	}
	cfg.Outputs.checkLarge(cfg, &o, add, files, certificate)
	for i, out := range cfg.Outputs.Syslog {
		name := add("syslog", i, strings.Join(out.Receivers(), ", "), &out.OutputConfig, out.Check, out.Reach)
		certificate(name+".tls.ca", out.TLS.CA)
		certificate(name+".tls.cert", out.TLS.Cert)
	}
	for i := range cfg.Enrich.Subscribers {
		c := &cfg.Enrich.Subscribers[i]
		o.Outputs = append(o.Outputs, sourceCheck(fmt.Sprintf("enrich.subscribers[%d]", i), c))
	}
	o.NoDestinations = cfg.withoutDestinations()
	if dir := cfg.StateDirectory; dir != "" {
		o.Outputs = append(o.Outputs, preflight.Output{Name: "state_directory", About: dir,
			Check: func(context.Context) error { return mark.Check(dir) }})
	}
	if socket := cfg.Live.Socket; socket != "" && socket != live.NoSocket {
		o.Outputs = append(o.Outputs, preflight.Output{Name: "live", About: socket,
			Check: func(context.Context) error { return cfg.Live.Check() }})
	}
	if m := cfg.Metrics; m.Listen != "" {
		o.Outputs = append(o.Outputs, preflight.Output{Name: "metrics", About: m.Listen, Check: m.Check,
			Reach: func(ctx context.Context) (expires time.Time, err error) { return expires, m.Reach(ctx) }})
	}
	return o
}

// sourceCheck is that of a source of subscribers. What is wrong in its file may be right by itself later.
func sourceCheck(name string, c *subscriber.Config) preflight.Output {
	leases := -1
	return preflight.Output{Name: name, About: c.About(),
		Check: func(ctx context.Context) error {
			_, err := bounded(ctx, "open what "+name+" reads", func() (struct{}, error) { return struct{}{}, c.Check() })
			return err
		},
		Reach: func(ctx context.Context) (expires time.Time, err error) {
			n, err := bounded(ctx, "read "+c.About(), func() (int, error) { return c.Survey(ctx) })
			if c.Type != "radius" {
				leases = n
			}
			return expires, err
		},
		Tell: func() string {
			if leases < 0 {
				return ""
			}
			return fmt.Sprintf("%d leases", leases)
		},
	}
}

// withoutDestinations names the outputs that leave destinations out.
func (c *Config) withoutDestinations() (names []string) {
	look := func(kind string, i int, drop []string) {
		if slices.Contains(drop, "dst_ip") || slices.Contains(drop, "dst_port") {
			names = append(names, fmt.Sprintf("outputs.%s[%d]", kind, i))
		}
	}
	for i := range c.Outputs.JSONL {
		look("jsonl", i, c.Outputs.JSONL[i].Fields.Drop)
	}
	c.Outputs.largeFields(look)
	for i := range c.Outputs.Syslog {
		look("syslog", i, c.Outputs.Syslog[i].Fields.Drop)
	}
	return names
}

// logChecks makes the checks for a daemon that starts, and logs what is amiss.
func logChecks(ctx context.Context, cfg *Config, log *zap.Logger) {
	checks := hostChecks(cfg)
	checks.Daemon = true
	for i := range checks.Outputs {
		checks.Outputs[i].Reach = nil // outputs connect, and sources read, by themselves; another connection would be a flow of its own
		checks.Outputs[i].Tell = nil
	}
	logResults(preflight.Run(ctx, checks), log)
}

// trackingEvery is how often a daemon looks whether packets are tracked.
const trackingEvery = time.Minute

// watchTracking logs when packets are no longer tracked, and when they are again, until ctx ends: without rules that need
// conntrack, no event comes, which looks like a quiet network.
func watchTracking(ctx context.Context, look func(context.Context) preflight.Result, log *zap.Logger) {
	was := look(ctx).Status // which logChecks has logged
	for tick := time.Tick(trackingEvery); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		r := look(ctx)
		switch {
		case r.Status == preflight.Fail && was != preflight.Fail:
			logResults([]preflight.Result{r}, log)
		case r.Status == preflight.Pass && was == preflight.Fail:
			log.Info(r.Detail, zap.String("check", r.Name))
		}
		was = r.Status
	}
}

// logResults logs what checks have found amiss.
func logResults(results []preflight.Result, log *zap.Logger) {
	for _, r := range results {
		fields := []zap.Field{zap.String("check", r.Name)}
		if r.Remedy != "" {
			fields = append(fields, zap.String("remedy", r.Remedy))
		}
		switch r.Status {
		case preflight.Pass:
			log.Debug(r.Detail, fields...)
		case preflight.Warn:
			log.Warn(r.Detail, fields...)
		case preflight.Fail:
			log.Error(r.Detail, fields...)
		}
	}
}

// printResults prints a line for each result, and its remedy on the next:
//
//	warn  conntrack accounting  net.netfilter.nf_conntrack_acct = 0: records carry no packets and bytes
//	                            -> ctlogd check --fix, or ...
func printResults(w io.Writer, results []preflight.Result) error {
	width := 0
	for _, r := range results {
		width = max(width, len(r.Name))
	}
	for _, r := range results {
		if _, err := fmt.Fprintf(w, "%s  %-*s  %s\n", r.Status, width, r.Name, r.Detail); err != nil {
			return err
		}
		if r.Remedy == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%*s-> %s\n", len("pass  ")+width+2, "", r.Remedy); err != nil {
			return err
		}
	}
	return nil
}

func printJSON(w io.Writer, results []preflight.Result) error {
	return printAsJSON(w, results)
}
