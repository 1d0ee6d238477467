package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/preflight"
)

// Warnings reports what is valid and hardly meant, by its path. c is valid.
func (c *Config) Warnings(report func(path, msg string)) {
	c.Filter.Warnings(func(field, msg string) { report("filter"+field, msg) })
	outputs := func(kind string, i int, o *OutputConfig) {
		o.Filter.Warnings(func(field, msg string) { report(fmt.Sprintf("outputs.%s[%d].filter%s", kind, i, field), msg) })
	}
	for i := range c.Outputs.JSONL {
		outputs("jsonl", i, &c.Outputs.JSONL[i].OutputConfig)
	}
	for i := range c.Outputs.IPFIX {
		outputs("ipfix", i, &c.Outputs.IPFIX[i].OutputConfig)
	}
	for i := range c.Outputs.Kafka {
		outputs("kafka", i, &c.Outputs.Kafka[i].OutputConfig)
	}
	if m := &c.Metrics; m.Listen != "" && m.WebConfig == "" && everyAddress(m.Listen) {
		report("metrics.listen", fmt.Sprintf("%s is every address of this host, and whoever reaches one may look, without a "+
			"password; listen on 127.0.0.1 or on an inner address, or set web_config", m.Listen))
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
