package main

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input/ctnetlink"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/output/ipfix"
	"github.com/ctlogd/ctlogd/output/jsonl"
	"github.com/ctlogd/ctlogd/output/syslog"
	"github.com/ctlogd/ctlogd/ownflow"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
	"github.com/ctlogd/ctlogd/pipeline/filter"
	"github.com/ctlogd/ctlogd/pipeline/spool"
)

// inputConfig returns the reader's configuration: the events that are asked for, and new if an output needs it.
func (c *Config) inputConfig() ctnetlink.Config {
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

	build func() (deliver.Output, error)

	needsNew bool         // takes the new events that are there for the sake of some outputs alone
	archive  bool         // takes what the table is read for at each checkpoint
	built    *atomic.Bool // of an archive: build has succeeded
}

// equal reports whether nothing of the output is configured in another way than was is.
func (o *plannedOutput) equal(was plannedOutput) bool {
	return reflect.DeepEqual([]any{o.config, o.filter, o.common}, []any{was.config, was.filter, was.common})
}

// follow is for an archive that takes the place of was, and does nothing for other outputs. If was could never be opened, it
// is opened and closed first: its filter was in force as well, and has to stand in the catalog.
func (o *plannedOutput) follow(was plannedOutput) {
	if !o.archive || was.built.Load() {
		return
	}
	build := o.build
	o.build = func() (deliver.Output, error) {
		if !was.built.Load() {
			out, err := was.build()
			if err != nil {
				return nil, err
			}
			if err := out.Close(context.Background()); err != nil {
				return nil, err
			}
		}
		return build()
	}
}

// beginning builds an output by build. unmarked says that no mark tells what the output has missed (app.begin).
type beginning func(name string, build func(unmarked bool) (deliver.Output, error)) (deliver.Output, error)

// planning is what outputs are planned from, and those that are planned so far.
type planning struct {
	*Config
	log     *zap.Logger
	sockets *ownflow.Sockets        // learns of the connections that they make
	tell    func(*flow.Record) bool // takes a record of one output for the others
	begin   beginning
	records format.Options // what stands in each of them
	outputs []plannedOutput
}

// planOutputs returns all outputs of the configuration. It touches nothing.
func planOutputs(cfg *Config, log *zap.Logger, sockets *ownflow.Sockets, tell func(*flow.Record) bool, begin beginning) []plannedOutput {
	p := &planning{Config: cfg, log: log, sockets: sockets, tell: tell, begin: begin,
		records: format.Options{Host: cfg.Host, Observer: cfg.Observer, Version: version}}
	for i, c := range cfg.Outputs.JSONL {
		p.add("jsonl", i, plannedOutput{name: c.Name(), common: c.OutputConfig, config: p.written(c.Config),
			build: p.encoded(c.Encoder, func(enc format.Encoder) (deliver.Output, error) { return jsonl.New(c.Config, enc, log) })})
	}
	for i, c := range cfg.Outputs.IPFIX {
		p.add("ipfix", i, plannedOutput{name: c.Name(), common: c.OutputConfig, config: c.Config, needsNew: c.NeedsNew(),
			build: func() (deliver.Output, error) { return ipfix.New(c.Config, ipfix.Options{Log: log, Sockets: sockets}) }})
	}
	p.addLarge()
	for i, c := range cfg.Outputs.Syslog {
		p.add("syslog", i, plannedOutput{name: c.Name(), common: c.OutputConfig, config: p.written(c.Config),
			build: p.encoded(c.Encoder, func(enc format.Encoder) (deliver.Output, error) {
				return syslog.New(c.Config, syslog.Options{
					Encoder: enc, Observer: cfg.Observer, Host: cfg.Host, Sockets: sockets, Log: log.Named("syslog"),
				})
			})})
	}
	return p.outputs
}

// add adds the output that stands under its kind as number i.
func (p *planning) add(kind string, i int, o plannedOutput) {
	o.path = fmt.Sprintf("outputs.%s[%d]", kind, i)
	o.filter = o.common.Filter
	if p.newOnDemand() && !o.needsNew {
		o.filter = slices.Concat(filter.Config{withoutNew}, o.filter)
	}
	p.outputs = append(p.outputs, o)
}

// written returns what an output depends on whose own configuration is own, and whose records say where they come from.
func (p *planning) written(own any) []any { return []any{own, p.Host, p.Observer} }

// encoded returns a builder of an output with an encoder of its own.
func (p *planning) encoded(encoder func(format.Options) (format.Encoder, error), build func(format.Encoder) (deliver.Output, error)) func() (deliver.Output, error) {
	return func() (deliver.Output, error) {
		enc, err := encoder(p.records)
		if err != nil {
			return nil, err
		}
		return build(enc)
	}
}

// queue returns a queue of the output. It touches nothing: the queue's goroutines open output and spool when it is started,
// at the start of the daemon and at a reload alike.
func (o *plannedOutput) queue(log *zap.Logger) *deliver.Queue {
	c := deliver.Config{Name: o.name, Build: o.build, Filter: o.filter.Compile(), Archive: o.archive,
		Max: o.common.Queue, Log: log}
	if o.common.Spool != nil {
		cfg, name := *o.common.Spool, o.name
		c.Spool = func() (*spool.Spool, error) { return spool.Open(cfg, name, log.Named("spool")) }
	}
	return deliver.New(c)
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
