package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/ctlogd/ctlogd/input"
	"github.com/ctlogd/ctlogd/output/jsonl"
	"github.com/ctlogd/ctlogd/pipeline"
)

// Config is the whole configuration. Each package owns its block, with the defaults and the validation; what stands
// here is the composition. ctlogd.yaml.example describes it for operators.
type Config struct {
	Input           InputConfig           `yaml:"input"`
	Filter          pipeline.FilterConfig `yaml:"filter"` // of all outputs; each may have its own behind it
	Outputs         OutputsConfig         `yaml:"outputs"`
	Log             LogConfig             `yaml:"log"`
	Observer        string                `yaml:"observer"` // enters every flow_id; unset: the machine id
	Host            string                `yaml:"host"`     // stands in every record; unset: the host name
	ShutdownTimeout time.Duration         `yaml:"shutdown_timeout"`

	// StateDirectory is where a process leaves its mark for the next one. Unset: $STATE_DIRECTORY, which systemd sets;
	// without either, no gap tells of the time between two processes.
	StateDirectory string `yaml:"state_directory"`
}

// InputConfig holds the sources of records by kind.
type InputConfig struct {
	Conntrack input.Config `yaml:"conntrack"`
}

// OutputsConfig holds the outputs by kind.
type OutputsConfig struct {
	JSONL []JSONLConfig `yaml:"jsonl"`
}

// JSONLConfig is one JSON-lines file: its own keys, and those that every output has.
type JSONLConfig struct {
	jsonl.Config `yaml:",inline"`
	OutputConfig `yaml:",inline"`
}

// OutputConfig is what every kind of output has.
type OutputConfig struct {
	Filter pipeline.FilterConfig `yaml:"filter"`
	Queue  int                   `yaml:"queue"` // records that may wait for the output
}

// LogConfig is ctlogd's own log, which goes to standard error; records never go through it.
type LogConfig struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

const (
	defaultQueue           = 65536
	maxQueue               = 1 << 24
	defaultShutdownTimeout = 10 * time.Second
)

var (
	logLevels  = []string{"debug", "info", "warn", "error"}
	logFormats = []string{"console", "json"}
)

// leastConfig is the smallest configuration that does something.
const leastConfig = "outputs: {jsonl: [{path: /var/log/ctlogd/flows.jsonl}]}"

// Defaults sets every value that differs from zero when it is not given. A configuration has no outputs by default:
// DefaultConfig does.
func (c *Config) Defaults() {
	c.Input.Conntrack.Defaults()
	c.Log = LogConfig{Level: "info", Format: "console"}
	c.ShutdownTimeout = defaultShutdownTimeout
}

// Defaults sets what an entry under outputs.jsonl has before its keys are read.
func (c *JSONLConfig) Defaults() { c.OutputConfig.Defaults() }

// Defaults sets what every output has before its keys are read.
func (c *OutputConfig) Defaults() { c.Queue = defaultQueue }

// DefaultConfig is the configuration without a file: records go to standard output.
func DefaultConfig() *Config {
	c := new(Config)
	c.Defaults()
	out := JSONLConfig{Config: jsonl.Config{Path: "-"}}
	out.Defaults()
	c.Outputs.JSONL = []JSONLConfig{out}
	return c
}

// LoadConfig reads the configuration from file, "" being the one without a file. If the file can be read but is not
// right, the error is a *FileError with all that is wrong.
func LoadConfig(file string) (*Config, error) {
	if file == "" {
		return DefaultConfig(), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return parseConfig(file, text)
}

// parseConfig reads the configuration in text; file stands in the messages.
func parseConfig(file string, text []byte) (*Config, error) {
	c := new(Config)
	c.Defaults()
	d := decodeYAML(text, c)
	c.Validate(d.validation())
	if err := d.err(file); err != nil {
		return nil, err
	}
	return c, nil
}

// Validate reports every impossible value by its path.
func (c *Config) Validate(report func(path, msg string)) {
	block := func(path string) func(field, msg string) {
		return func(field, msg string) { report(join(path, field), msg) }
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
	c.Outputs.validate(block)
	if !slices.Contains(logLevels, c.Log.Level) {
		report("log.level", fmt.Sprintf("unknown level %q; use %s", c.Log.Level, oneOf(logLevels)))
	}
	if !slices.Contains(logFormats, c.Log.Format) {
		report("log.format", fmt.Sprintf("unknown format %q; use %s", c.Log.Format, oneOf(logFormats)))
	}
	for path, name := range map[string]string{"host": c.Host, "observer": c.Observer} {
		if strings.ContainsFunc(name, unicode.IsControl) {
			report(path, fmt.Sprintf("%q has a control character; write printable text", name))
		}
	}
	if c.StateDirectory != "" && !filepath.IsAbs(c.StateDirectory) {
		report("state_directory", fmt.Sprintf("%q is no absolute path; write one such as /var/lib/ctlogd", c.StateDirectory))
	}
	if c.ShutdownTimeout <= 0 {
		report("shutdown_timeout", fmt.Sprintf("%s leaves no time to drain; use more than 0, such as %s",
			c.ShutdownTimeout, defaultShutdownTimeout))
	}
}

func (c *OutputsConfig) validate(block func(path string) func(field, msg string)) {
	if len(c.JSONL) == 0 {
		block("outputs")("", "no output, so every record would be lost; the least is: "+leastConfig)
	}
	files := map[string]int{}
	for i := range c.JSONL {
		o, report := &c.JSONL[i], block(fmt.Sprintf("outputs.jsonl[%d]", i))
		o.Config.Validate(report)
		o.OutputConfig.validate(report)

		if o.Path == "" {
			continue
		}
		path := filepath.Clean(o.Path)
		if first, dup := files[path]; dup {
			report("path", fmt.Sprintf("outputs.jsonl[%d] writes to %s already; two outputs cannot share a file",
				first, path))
			continue
		}
		files[path] = i
	}
}

func (c *OutputConfig) validate(report func(field, msg string)) {
	c.Filter.Validate(func(field, msg string) { report(join("filter", field), msg) })
	if c.Queue < 1 || c.Queue > maxQueue {
		report("queue", fmt.Sprintf("%d is out of range; use 1 to %d records", c.Queue, maxQueue))
	}
}

// Resolve fills in what the machine decides: the host name and the observer. The configuration of one machine may be
// validated on another, so loading does not do it.
func (c *Config) Resolve() error {
	if c.Host == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the host name; set host in the configuration: %w", err)
		}
		c.Host = name
	}
	if c.StateDirectory == "" {
		c.StateDirectory, _, _ = strings.Cut(os.Getenv("STATE_DIRECTORY"), ":") // systemd.exec(5): a list
	}
	if c.Observer == "" {
		id, err := os.ReadFile("/etc/machine-id") // machine-id(5)
		if id = bytes.TrimSpace(id); err == nil && len(id) > 0 {
			c.Observer = string(id)
		} else {
			c.Observer = c.Host
		}
	}
	return nil
}

// oneOf joins what is allowed: "a, b or c".
func oneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
