//go:build !small

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/config"
	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/output/archive"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/output/kafka"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
	"github.com/ctlogd/ctlogd/pipeline/filter"
	"github.com/ctlogd/ctlogd/pipeline/spool"
	"github.com/ctlogd/ctlogd/preflight"
	"github.com/ctlogd/ctlogd/unit"
	"github.com/ctlogd/ctlogd/whois"
)

// What stands here is what the build tag small leaves out, for routers that have little room; small.go is what stands in
// its place. So the libraries of Kafka, Parquet, Prometheus and of the terminal are linked in by way of this file alone,
// and of those that have its build tag.

// outputKinds are the kinds of outputs, for those who have none.
const outputKinds = "jsonl, ipfix, kafka, syslog or archive"

// commandNames are the commands, for those who give none.
const commandNames = "run, check, status, tap, top, list, whois, verify, ipfix or version"

// LargeConfig are the blocks of the configuration that a small build has not.
type LargeConfig struct {
	Whois whois.Config `yaml:"whois"` // for those who ask the archive
}

func (c *LargeConfig) defaults() { c.Whois.Defaults() }

func (c *LargeConfig) validate(block func(path string) func(field, msg string)) {
	c.Whois.Validate(block("whois"))
}

// LargeOutputs are the outputs that a small build has not.
type LargeOutputs struct {
	Kafka   []KafkaConfig   `yaml:"kafka"`
	Archive []ArchiveConfig `yaml:"archive"`
}

// KafkaConfig is one topic of Apache Kafka.
type KafkaConfig struct {
	kafka.Config `yaml:",inline"`
	OutputConfig `yaml:",inline"`
}

// ArchiveConfig is one archive.
type ArchiveConfig struct {
	archive.Config `yaml:",inline"`
	OutputConfig   `yaml:",inline"`
}

// Defaults sets what an entry under outputs.kafka has before its keys are read.
func (c *KafkaConfig) Defaults() {
	c.Config.Defaults()
	c.OutputConfig.Defaults()
}

// Defaults sets what an entry under outputs.archive has before its keys are read.
func (c *ArchiveConfig) Defaults() {
	c.Config.Defaults()
	c.OutputConfig.Defaults()
}

func (c *LargeOutputs) validate(check *validation) {
	topics := claims{}
	for i := range c.Kafka {
		o := &c.Kafka[i]
		at, report := check.output("kafka", i, o.Config.Validate, &o.OutputConfig)
		unset("batch_bytes", o.BatchBytes, report)
		unset("connect_timeout", o.ConnectTimeout, report)
		unset("request_timeout", o.RequestTimeout, report)
		unset("dead_letter_size", o.DeadLetterSize, report)
		check.files.file(o.DeadLetter, at, "dead_letter", report)
		if o.Topic == "" {
			continue
		}
		for _, broker := range o.Brokers {
			if first, taken := topics.take(strings.ToLower(broker)+" "+o.Topic, at); taken {
				report("topic", fmt.Sprintf("%s writes to topic %s of %s already; two outputs cannot share a topic",
					first, config.Abridged(o.Topic), config.Abridged(broker)))
				break
			}
		}
	}
	for i := range c.Archive {
		o := &c.Archive[i]
		at, report := check.output("archive", i, o.Config.Validate, &o.OutputConfig)
		check.files.file(o.Path, at, "path", report)
	}
}

// addLarge adds these outputs.
func (p *planning) addLarge() {
	for i, c := range p.Outputs.Kafka {
		p.add("kafka", i, plannedOutput{name: c.Name(), common: c.OutputConfig, config: p.written(c.Config),
			build: p.encoded(c.Encoder, func(enc format.Encoder) (deliver.Output, error) {
				return kafka.New(c.Config, kafka.Options{
					Encoder: enc, Observer: format.NewObserverKey(p.Observer), Host: p.Host, Log: p.log.Named("kafka"), Dial: p.sockets.DialContext,
				})
			})})
	}
	for i, c := range p.Outputs.Archive {
		leftOut, built := p.leftOut(c.Filter), new(atomic.Bool)
		p.add("archive", i, plannedOutput{name: c.Name(), common: c.OutputConfig, config: append(p.written(c.Config), leftOut), archive: true, built: built,
			build: func() (deliver.Output, error) {
				rules, err := filter.Encode(leftOut...)
				if err != nil {
					return nil, err
				}
				out, err := p.begin(c.Name(), func(unmarked bool) (deliver.Output, error) {
					return archive.New(c.Config, p.Host, p.Observer, unmarked, rules, p.log.Named("archive"), p.tell)
				})
				built.Store(built.Load() || err == nil)
				return out, err
			}})
	}
}

// leftOut returns the rules that keep flows out of an output, whose own ones are given. That events has no destroy is one.
func (c *Config) leftOut(own filter.Config) []filter.Config {
	lists := []filter.Config{c.Filter, own}
	if end := flow.EventNames[flow.EventDestroy]; !slices.Contains(c.Input.Conntrack.Events, end) {
		lists = append(lists, filter.Config{{Action: "drop", Match: filter.Match{Event: filter.List[string]{end}}}})
	}
	return lists
}

// checkpoints returns how often the table is read for archives, 0 if there are none.
func (c *LargeOutputs) checkpoints() (every time.Duration) {
	for _, o := range c.Archive {
		if every == 0 || o.Checkpoint < every {
			every = o.Checkpoint
		}
	}
	return every
}

// checkLarge adds what these outputs need of the host to o; see hostChecks.
func (c *LargeOutputs) checkLarge(cfg *Config, o *preflight.Options,
	add func(kind string, i int, about string, common *OutputConfig, check func(context.Context) error,
		reach func(context.Context) (time.Time, error)) string,
	files func(name, path string, bound unit.Size, keep int, reserve unit.Size), certificate func(name, file string)) {
	for i, out := range c.Kafka {
		about := out.Topic + " on " + strings.Join(out.Brokers, ", ")
		name := add("kafka", i, about, &out.OutputConfig, out.Check, out.Reach)
		if out.TLS != nil {
			certificate(name+".tls.ca", out.TLS.CA)
			certificate(name+".tls.cert", out.TLS.Cert)
		}
		if out.DeadLetter != "" {
			files(name+".dead_letter", out.DeadLetter, out.DeadLetterSize, 0, 0)
		}
	}
	for i, out := range c.Archive {
		name := add("archive", i, out.Path, &out.OutputConfig, func(context.Context) error { return out.Check() },
			func(context.Context) (expires time.Time, err error) {
				if err := loose(out.Key); err != nil {
					return expires, err
				}
				return expires, out.Fits(cfg.Host)
			})
		o.Outputs[len(o.Outputs)-1].Tell = func() string { return out.Tell(cfg.Host) }
		files(name, out.Path, out.MaxSize, 0, out.Reserve)
	}
}

// largeFields calls look with the fields that each of these outputs leaves out.
func (c *LargeOutputs) largeFields(look func(kind string, i int, drop []string)) {
	for i := range c.Kafka {
		look("kafka", i, c.Kafka[i].Fields.Drop)
	}
	for i := range c.Archive {
		look("archive", i, c.Archive[i].Fields.Drop)
	}
}

// largeCredentials calls resolve for each file of these outputs that may be a credential.
func (c *LargeOutputs) largeCredentials(resolve func(path string, file *string)) {
	for i := range c.Kafka {
		o, at := &c.Kafka[i], fmt.Sprintf("outputs.kafka[%d].", i)
		if o.TLS != nil {
			resolve(at+"tls.ca", &o.TLS.CA)
			resolve(at+"tls.cert", &o.TLS.Cert)
			resolve(at+"tls.key", &o.TLS.Key)
		}
		if o.SASL != nil {
			resolve(at+"sasl.password_file", &o.SASL.PasswordFile)
		}
	}
}

// largeWarnings reports what is valid and hardly meant in these outputs; see Config.Warnings.
func (c *OutputsConfig) largeWarnings(formats func(kind string, i int, name string, f format.Fields, spool *spool.Config),
	report func(path, msg string)) {
	for i, o := range c.Kafka {
		formats("kafka", i, o.Format, o.Fields, o.Spool)
	}
	if len(c.JSONL)+len(c.Kafka)+len(c.Syslog) == 0 && len(c.IPFIX) > 0 {
		for i, a := range c.Archive {
			if a.Key != "" {
				report(fmt.Sprintf("outputs.archive[%d].key", i), "the signed checkpoints go to no other machine: IPFIX has no place for them, and no "+
					"other output is there; have the journal's host keep ctlogd's own log, which has them too, or add an output syslog")
			}
		}
	}
}

// largeCommands are the commands that a small build has not.
func largeCommands(stdout, stderr io.Writer) []*cobra.Command {
	return []*cobra.Command{newTop(stdout), newCat(stdout), newVerify(stdout, stderr), newKey(stdout), newSeal(stdout, stderr),
		newHook(stdout, stderr), newWhois(stdout, stderr)}
}

// newMetrics returns the server of metrics, health and the page, which serves nothing before it is configured.
func newMetrics(snapshot func() monitor.Snapshot, shown *live.Server, log *zap.Logger) *monitor.Server {
	mux := monitor.NewMux(snapshot)
	mux.HandleFunc("GET /{$}", shown.Page)
	return monitor.NewServer(mux, log)
}
