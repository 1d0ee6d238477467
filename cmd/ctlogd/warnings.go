package main

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/config"
	"github.com/ctlogd/ctlogd/output/format"
	"github.com/ctlogd/ctlogd/pipeline/spool"
	"github.com/ctlogd/ctlogd/preflight"
)

// Warnings reports what is valid and hardly meant, by its path. c is valid.
func (c *Config) Warnings(report func(path, msg string)) {
	c.Filter.Warnings(func(field, msg string) { report("filter"+field, msg) })
	c.Outputs.each(func(path string, o *OutputConfig) {
		o.Filter.Warnings(func(field, msg string) { report(path+".filter"+field, msg) })
	})
	in := &c.Input.Conntrack
	asked := format.Asked{Expectations: in.Expectations, Labels: in.Labels}
	formats := func(kind string, i int, name string, f format.Fields, spool *spool.Config) {
		a := asked
		a.FlowID = spool != nil
		format.Warnings(name, f, a, func(field, msg string) { report(fmt.Sprintf("outputs.%s[%d].%s", kind, i, field), msg) })
	}
	for i, o := range c.Outputs.JSONL {
		formats("jsonl", i, o.Format, o.Fields, o.Spool)
	}
	c.Outputs.largeWarnings(formats, report)
	for i, o := range c.Outputs.Syslog {
		formats("syslog", i, o.Format, o.Fields, o.Spool)
	}
	if m := &c.Metrics; m.Listen != "" && m.WebConfig == "" && everyAddress(m.Listen) {
		report("metrics.listen", fmt.Sprintf("%s is every address of this host, and whoever reaches one may look, without a "+
			"password; listen on 127.0.0.1 or on an inner address, or set web_config", m.Listen))
	}
}

// each calls do for what every output has, of whatever kind it is.
func (c *OutputsConfig) each(do func(path string, o *OutputConfig)) {
	v := reflect.ValueOf(c).Elem()
	for _, kind := range config.Keys(v.Type()) {
		list := v.FieldByIndex(kind.Index)
		for i := range list.Len() {
			o := list.Index(i).FieldByName("OutputConfig").Addr().Interface().(*OutputConfig)
			do(fmt.Sprintf("outputs.%s[%d]", kind.Name, i), o)
		}
	}
}

// everyAddress reports whether to listen at HOST:PORT is to listen on all addresses.
func everyAddress(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(host)
	return host == "" || err == nil && a.IsUnspecified()
}

// logWarnings logs them, for a daemon that starts or reloads.
func (c *Config) logWarnings(log *zap.Logger) {
	for _, w := range c.warnings {
		what, remedy, _ := strings.Cut(w, "; ")
		log.Warn(what, zap.String("remedy", remedy))
	}
}

// warningResults are the same for the check.
func (c *Config) warningResults() (results []preflight.Result) {
	for _, w := range c.warnings {
		what, remedy, _ := strings.Cut(w, "; ")
		results = append(results, preflight.Result{Name: "configuration", Status: preflight.Warn, Detail: what, Remedy: remedy})
	}
	return results
}
