package main

import (
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/output/ipfix"
	"github.com/ctlogd/ctlogd/output/jsonl"
	"github.com/ctlogd/ctlogd/output/kafka"
	"github.com/ctlogd/ctlogd/ownflow"
	"github.com/ctlogd/ctlogd/pipeline"
	"github.com/ctlogd/ctlogd/pipeline/filter"
	"github.com/ctlogd/ctlogd/pipeline/spool"
)

// inputConfig returns the reader's configuration: the events that are asked for, and new if an output needs it.
func (c *Config) inputConfig() input.Config {
	in := c.Input.Conntrack
	if c.newOnDemand() {
		in.Events = append(slices.Clone(in.Events), flow.EventNames[flow.EventNew])
	}
	return in
}

// newOnDemand reports whether new events are there for the sake of some outputs alone.
func (c *Config) newOnDemand() bool {
	return !slices.Contains(c.Input.Conntrack.Events, flow.EventNames[flow.EventNew]) &&
		slices.ContainsFunc(c.Outputs.IPFIX, func(o IPFIXConfig) bool { return o.NeedsNew() })
}

// withoutNew is the rule of outputs that did not ask for the new events that are there for others.
var withoutNew = filter.Rule{Action: "drop",
	Match: filter.Match{Event: filter.List[string]{flow.EventNames[flow.EventNew]}}}

// plannedOutput is an output as it is configured, before it is built.
type plannedOutput struct {
	name   string // what the output will be called
	path   string // where it stands in the configuration
	common OutputConfig
	config any // all that build depends on: while it stays equal, a running output stays

	// filter is the output's own, behind withoutNew where the events have to be hidden from it. One set of rules is
	// compiled for the queue and handed to filter.NewPushdown, so that the kernel drops nothing that an output gets.
	filter filter.Config

	build func() (pipeline.Output, error)
}

// planOutputs returns all outputs of the configuration, which tell sockets of their own. It touches nothing.
func planOutputs(cfg *Config, log *zap.Logger, sockets *ownflow.Sockets) (outputs []plannedOutput) {
	hideNew := cfg.newOnDemand()
	add := func(o plannedOutput, needsNew bool) {
		o.filter = o.common.Filter
		if hideNew && !needsNew {
			o.filter = slices.Concat(filter.Config{withoutNew}, o.filter)
		}
		outputs = append(outputs, o)
	}
	identity := format.Options{Host: cfg.Host, Observer: cfg.Observer, Version: version} // stands in the records
	for i, c := range cfg.Outputs.JSONL {
		add(plannedOutput{
			name: c.Name(), path: fmt.Sprintf("outputs.jsonl[%d]", i), common: c.OutputConfig,
			config: []any{c.Config, cfg.Host, cfg.Observer},
			build: func() (pipeline.Output, error) {
				enc, err := c.Encoder(identity)
				if err != nil {
					return nil, err
				}
				return jsonl.New(c.Config, enc, log)
			},
		}, false)
	}
	for i, c := range cfg.Outputs.IPFIX {
		add(plannedOutput{
			name: c.Name(), path: fmt.Sprintf("outputs.ipfix[%d]", i), common: c.OutputConfig, config: c.Config,
			build: func() (pipeline.Output, error) { return ipfix.New(c.Config, ipfix.Options{Log: log, Sockets: sockets}) },
		}, c.NeedsNew())
	}
	for i, c := range cfg.Outputs.Kafka {
		add(plannedOutput{
			name: c.Name(), path: fmt.Sprintf("outputs.kafka[%d]", i), common: c.OutputConfig,
			config: []any{c.Config, cfg.Host, cfg.Observer},
			build: func() (pipeline.Output, error) {
				enc, err := c.Encoder(identity)
				if err != nil {
					return nil, err
				}
				return kafka.New(c.Config, kafka.Options{
					Encoder: enc, Observer: format.NewObserverKey(cfg.Observer), Host: cfg.Host, Log: log.Named("kafka"), Dial: sockets.DialContext,
				})
			},
		}, false)
	}
	return outputs
}

// queue builds the output, with its queue and its spool.
func (o *plannedOutput) queue(log *zap.Logger) (*pipeline.Queue, error) {
	out, err := o.build()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.path, err)
	}
	q := pipeline.NewQueue(out, o.filter.Compile(), o.common.Queue, log)
	if o.common.Spool != nil {
		s, err := spool.Open(*o.common.Spool, o.name, log.Named("spool"))
		if err != nil {
			return nil, fmt.Errorf("%s.spool: %w", o.path, err)
		}
		q.Spill(s)
	}
	return q, nil
}

// pushdown returns what the kernel may drop; nil if that is nothing.
func pushdown(cfg *Config, outputs []plannedOutput) func(flow.Event, bool, flow.Proto) bool {
	filters := make([]filter.Config, len(outputs))
	for i, o := range outputs {
		filters[i] = o.filter
	}
	spec := filter.NewPushdown(cfg.Filter, filters)
	if spec.Empty() {
		return nil
	}
	return spec.Drops
}
