package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/ctlogd/ctlogd/config"
	"github.com/ctlogd/ctlogd/input/ctnetlink"
	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/output/ipfix"
	"github.com/ctlogd/ctlogd/output/jsonl"
	"github.com/ctlogd/ctlogd/output/syslog"
	"github.com/ctlogd/ctlogd/ownlog"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
	"github.com/ctlogd/ctlogd/pipeline/filter"
	"github.com/ctlogd/ctlogd/pipeline/spool"
	"github.com/ctlogd/ctlogd/subscriber"
)

// Config is the whole configuration. Each package owns its block, with the defaults and the validation; what stands
// here is the composition. ctlogd.yaml.example describes it for operators.
type Config struct {
	Input           InputConfig    `yaml:"input"`
	Filter          filter.Config  `yaml:"filter"`         // of all outputs; each may have its own behind it
	SkipOwnFlows    bool           `yaml:"skip_own_flows"` // leaves out the flows of the outputs' own connections
	Enrich          EnrichConfig   `yaml:"enrich"`         // what is added to records
	Outputs         OutputsConfig  `yaml:"outputs"`
	Metrics         monitor.Config `yaml:"metrics"`
	Live            live.Config    `yaml:"live"` // for those who look on
	Log             ownlog.Config  `yaml:"log"`
	Observer        string         `yaml:"observer"` // enters every flow_id; unset: the machine id
	Host            string         `yaml:"host"`     // stands in every record; unset: the host name
	ShutdownTimeout time.Duration  `yaml:"shutdown_timeout"`

	LargeConfig `yaml:",inline"`

	// StateDirectory is where a process leaves its mark for the next one. Unset: $STATE_DIRECTORY, which systemd sets;
	// without either, no gap tells of the time between two processes.
	StateDirectory string `yaml:"state_directory"`

	file     string   // where it was read from; "" without a file
	machine  machine  // what Resolve has filled in
	warnings []string // what is valid and hardly meant, with file and line
}

// InputConfig holds the sources of records by kind.
type InputConfig struct {
	Conntrack ctnetlink.Config `yaml:"conntrack"`
}

// EnrichConfig holds the sources of what is added to records.
type EnrichConfig struct {
	Subscribers []subscriber.Config `yaml:"subscribers"` // whose flow it is; the first source that knows answers
}

// OutputsConfig holds the outputs by kind.
type OutputsConfig struct {
	JSONL  []JSONLConfig  `yaml:"jsonl"`
	IPFIX  []IPFIXConfig  `yaml:"ipfix"`
	Syslog []SyslogConfig `yaml:"syslog"`

	LargeOutputs `yaml:",inline"`
}

// JSONLConfig is one JSON-lines file: its own keys, and those that every output has.
type JSONLConfig struct {
	jsonl.Config `yaml:",inline"`
	OutputConfig `yaml:",inline"`
}

// IPFIXConfig is one IPFIX collector, or several that stand in for each other.
type IPFIXConfig struct {
	ipfix.Config `yaml:",inline"`
	OutputConfig `yaml:",inline"`
}

// SyslogConfig is one receiver of syslog, or several that stand in for each other.
type SyslogConfig struct {
	syslog.Config `yaml:",inline"`
	OutputConfig  `yaml:",inline"`
}

// OutputConfig is what every kind of output has.
type OutputConfig struct {
	Filter filter.Config `yaml:"filter"`
	Queue  int           `yaml:"queue"` // records that may wait in memory for the output
	Spool  *spool.Config `yaml:"spool"` // where they wait on disk; unset: nowhere
}

const (
	maxQueue               = 1 << 24
	defaultShutdownTimeout = 10 * time.Second
)

// leastConfig is the smallest configuration that does something.
const leastConfig = "outputs: {jsonl: [{path: /var/log/ctlogd/flows.jsonl}]}"

// Defaults sets every value that differs from zero when it is not given. A configuration has no outputs by default:
// DefaultConfig does.
func (c *Config) Defaults() {
	c.Input.Conntrack.Defaults()
	c.Log.Defaults()
	c.LargeConfig.defaults()
	c.ShutdownTimeout = defaultShutdownTimeout
	c.SkipOwnFlows = true
}

// Defaults sets what an entry under outputs.jsonl has before its keys are read.
func (c *JSONLConfig) Defaults() { c.OutputConfig.Defaults() }

// Defaults sets what an entry under outputs.ipfix has before its keys are read.
func (c *IPFIXConfig) Defaults() {
	c.Config.Defaults()
	c.OutputConfig.Defaults()
}

// Defaults sets what an entry under outputs.syslog has before its keys are read.
func (c *SyslogConfig) Defaults() {
	c.Config.Defaults()
	c.OutputConfig.Defaults()
}

// Defaults sets what every output has before its keys are read.
func (c *OutputConfig) Defaults() { c.Queue = deliver.DefaultMax }

// DefaultConfig is the configuration without a file: records go to standard output.
func DefaultConfig() *Config {
	c := new(Config)
	c.Defaults()
	out := JSONLConfig{Config: jsonl.Config{Path: "-"}}
	out.Defaults()
	c.Outputs.JSONL = []JSONLConfig{out}
	return c
}

// errUnread says that there is no reading the configuration.
var errUnread = errors.New("read the configuration")

// LoadConfig reads the configuration from file, "" being the one without a file. If the file can be read but is not
// right, the error is a *config.Error with all that is wrong.
func LoadConfig(ctx context.Context, file string) (*Config, error) {
	if file == "" {
		return DefaultConfig(), nil
	}
	text, err := readConfig(ctx, file)
	if err != nil {
		return nil, err
	}
	c, err := validConfig(ctx, file, text)
	if err != nil {
		return nil, err
	}
	c.file = file
	return c, nil
}

// readConfig reads the file.
func readConfig(ctx context.Context, file string) ([]byte, error) {
	return bounded(ctx, "read "+file, func() ([]byte, error) {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnread, err)
		}
		return text, nil
	})
}

// validConfig is parseConfig, which looks into the certificates, keys and passwords that the configuration names.
func validConfig(ctx context.Context, file string, text []byte) (*Config, error) {
	return bounded(ctx, "read the certificates, keys and passwords that "+file+" names",
		func() (*Config, error) { return parseConfig(file, text) })
}

// readWithin bounds the reading of a configuration's files.
const readWithin = 30 * time.Second

// bounded calls read and waits for it until ctx ends, or readWithin is over: a FIFO that nobody writes, or a file system
// that hangs, must not keep a signal from being answered.
func bounded[T any](ctx context.Context, what string, read func() (T, error)) (value T, err error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := read()
		done <- result{v, err}
	}()
	slow := time.NewTimer(readWithin)
	defer slow.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return value, fmt.Errorf("%s: %w", what, ctx.Err())
	case <-slow.C:
		return value, fmt.Errorf("%s: no answer for %v; see whether their file system hangs", what, readWithin)
	}
}

// parseConfig reads the configuration in text; file stands in the messages.
func parseConfig(file string, text []byte) (*Config, error) {
	c := new(Config)
	c.Defaults()
	d := config.Decode(text, c, leastConfig)
	resolveCredentials(c, credentialsDirectory(), d.Report())
	c.Validate(d.Report())
	if err := d.Err(file); err != nil {
		return nil, err
	}
	c.Warnings(func(path, msg string) {
		c.warnings = append(c.warnings, config.Fault{Line: d.Line(path), Path: path, Msg: msg}.Text(file))
	})
	return c, nil
}

// Validate reports every impossible value by its path.
func (c *Config) Validate(report func(path, msg string)) {
	block := func(path string) func(field, msg string) {
		return func(field, msg string) { report(config.Join(path, field), msg) }
	}
	c.Input.Conntrack.Validate(block("input.conntrack"))
	if in := &c.Input.Conntrack; len(in.Events) == 0 && !in.Expectations {
		report("input.conntrack.events",
			"empty list, so nothing would be logged; name events, or set expectations: true")
	}
	if c.Input.Conntrack.ReceiveBuffer == 0 { // elsewhere 0 means unset; here the default came first
		report("input.conntrack.receive_buffer", "0 is out of range; leave the key out for the default")
	}
	c.Filter.Validate(block("filter"))
	for i := range c.Enrich.Subscribers {
		c.Enrich.Subscribers[i].Validate(block(fmt.Sprintf("enrich.subscribers[%d]", i)))
	}
	subscriber.ValidateAll(c.Enrich.Subscribers, block("enrich.subscribers"))
	c.Outputs.validate(block)
	for i, o := range c.Outputs.IPFIX {
		if !slices.Contains(c.Input.Conntrack.Events, "destroy") && !o.NeedsNew() {
			report(fmt.Sprintf("outputs.ipfix[%d].records", i),
				"flows are exported at their end, and input.conntrack.events has no destroy, so nothing would be; add it there")
		}
	}
	c.Metrics.Validate(block("metrics"))
	c.Log.Validate(block("log"))
	c.Live.Validate(block("live"))
	c.LargeConfig.validate(block)
	for path, name := range map[string]string{"host": c.Host, "observer": c.Observer} {
		if strings.ContainsFunc(name, unicode.IsControl) {
			report(path, fmt.Sprintf("%q has a control character; write printable text", name))
		}
	}
	checkPath(c.StateDirectory, "/var/lib/ctlogd", "state_directory", report)
	checkPath(c.Live.Socket, "", "live.socket", report)
	checkPath(c.Metrics.WebConfig, "", "metrics.web_config", report)
	if c.ShutdownTimeout <= 0 {
		report("shutdown_timeout", fmt.Sprintf("%s leaves no time to drain; use more than 0, such as %s",
			c.ShutdownTimeout, defaultShutdownTimeout))
	}
}

// count returns how many outputs there are.
func (c *OutputsConfig) count() (n int) {
	c.each(func(string, *OutputConfig) { n++ })
	return n
}

func (c *OutputsConfig) validate(block func(path string) func(field, msg string)) {
	if c.count() == 0 {
		block("outputs")("", "no output under "+outputKinds+", so every record would be lost; the least is: "+leastConfig)
	}
	check := &validation{block: block, files: claims{}}
	for i := range c.JSONL {
		o := &c.JSONL[i]
		at, report := check.output("jsonl", i, o.Config.Validate, &o.OutputConfig)
		check.files.file(o.Path, at, "path", report)
	}
	collectors := claims{}
	for i := range c.IPFIX {
		o := &c.IPFIX[i]
		at, report := check.output("ipfix", i, o.Config.Validate, &o.OutputConfig)
		unset("template_interval", o.TemplateInterval, report)
		unset("dial_timeout", o.DialTimeout, report)

		// Collectors tell exporters apart by address and domain. (RFC 7011, section 3.1, would have the session as well.)
		for _, collector := range o.Collectors() {
			if first, taken := collectors.take(fmt.Sprint(collector, " ", o.Domain()), at); taken {
				report("address", fmt.Sprintf("%s sends to %s under the same observation domain; "+
					"give one of the two another observation_domain", first, collector))
			}
		}
	}
	c.LargeOutputs.validate(check)
	receivers := claims{}
	for i := range c.Syslog {
		o := &c.Syslog[i]
		at, report := check.output("syslog", i, o.Config.Validate, &o.OutputConfig)
		unset("dial_timeout", o.DialTimeout, report)
		if first, taken := receivers.take(o.Address, at); taken && o.Address != "" {
			report("address", fmt.Sprintf("%s sends to %s already; two outputs cannot share a receiver", first, o.Address))
		}
	}
}

// validation is that of outputs.
type validation struct {
	block func(path string) func(field, msg string)
	files claims
}

// output validates what an output of any kind has: its own configuration, and what all have. It returns where the output stands,
// and what reports a mistake in it.
func (v *validation) output(kind string, i int, own func(report func(field, msg string)), common *OutputConfig) (at string, report func(field, msg string)) {
	at = fmt.Sprintf("outputs.%s[%d]", kind, i)
	report = v.block(at)
	own(report)
	common.validate(report)
	v.files.spool(common.Spool, at, report)
	return at, report
}

// unset reports a 0 where the packages take 0 for a value that is not set: here the default came first.
func unset[T comparable](field string, value T, report func(field, msg string)) {
	var zero T
	if value == zero {
		report(field, "0 is out of range; leave the key out for the default")
	}
}

// claims are what no two outputs can share, each with the output that has it.
type claims map[string]string

// take gives what to the output by, unless another has it.
func (c claims) take(what, by string) (owner string, taken bool) {
	owner, taken = c[what]
	if !taken {
		c[what] = by
	}
	return owner, taken && owner != by
}

// file takes the file of path, "" for none, or reports who has it, or why it is no path.
func (c claims) file(path, by, field string, report func(field, msg string)) {
	example := map[string]string{"spool.path": "/var/lib/ctlogd/spool/NAME", "dead_letter": "/var/log/ctlogd/dead.jsonl"}[field]
	if path == "" || path != jsonl.Stdout && !checkPath(path, cmp.Or(example, "/var/log/ctlogd/flows.jsonl"), field, report) {
		return
	}
	path = filepath.Clean(path)
	if owner, dup := c[path]; dup {
		report(field, fmt.Sprintf("%s writes to %s already; no two outputs can share it", owner, path))
		return
	}
	c[path] = by
}

// checkPath reports a path that cannot be meant, "" being none: one with a control character, or, if there is an example
// of what is allowed, one that is not absolute. A relative one would depend on where the daemon was started.
func checkPath(path, example, field string, report func(field, msg string)) (ok bool) {
	switch {
	case path == "":
	case strings.ContainsFunc(path, unicode.IsControl):
		report(field, fmt.Sprintf("%q has a control character; write it without", path))
		return false
	case example == "" || filepath.IsAbs(path):
	case strings.HasPrefix(path, "~"):
		report(field, fmt.Sprintf("%q is no absolute path, and no shell is there to read the ~; write one such as %s", path, example))
		return false
	default:
		report(field, fmt.Sprintf("%q is no absolute path; write one such as %s", path, example))
		return false
	}
	return true
}

func (c claims) spool(s *spool.Config, by string, report func(field, msg string)) {
	if s != nil {
		c.file(s.Path, by, "spool.path", report)
	}
}

func (c *OutputConfig) validate(report func(field, msg string)) {
	c.Filter.Validate(func(field, msg string) { report(config.Join("filter", field), msg) })
	if c.Queue < 1 || c.Queue > maxQueue {
		report("queue", fmt.Sprintf("%d is out of range; use 1 to %d records", c.Queue, maxQueue))
	}
	if c.Spool != nil {
		c.Spool.Validate(func(field, msg string) { report(config.Join("spool", field), msg) })
		c.Spool.Defaults()
	}
}

// Resolve fills in what the machine decides: its name, the observer and systemd's directories. The configuration of one
// machine may be validated on another, so loading does not do it.
func (c *Config) Resolve() error {
	if c.StateDirectory == "" {
		c.StateDirectory, _, _ = strings.Cut(os.Getenv("STATE_DIRECTORY"), ":") // systemd.exec(5): a list
	}
	if dir, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":"); c.Live.Socket == "" && dir != "" {
		c.Live.Socket = filepath.Join(dir, filepath.Base(live.DefaultSocket))
	}
	return c.identify()
}
