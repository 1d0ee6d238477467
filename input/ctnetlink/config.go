package ctnetlink

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/unit"
)

// Config is the block input.conntrack of the configuration.
type Config struct {
	// Events are the kinds of flow event that become records: new, update, destroy. Unset: destroy.
	Events []string `yaml:"events"`

	// Expectations makes records of the helpers' expectations as well.
	Expectations bool `yaml:"expectations"`

	// Delivery is reliable (the default: the kernel keeps an ended flow until its end has been delivered) or
	// best_effort (the kernel drops what does not fit into the buffer, and the drops are counted).
	Delivery string `yaml:"delivery"`

	// TableGuard is how full the connection tracking table may become, in percent of nf_conntrack_max, before ended
	// flows that a late reader keeps in it are given up, with a gap on record; 0 gives none up, and then new connections
	// may fail. It matters under reliable delivery alone. Unset: 90.
	TableGuard *int `yaml:"table_guard"`

	// ReceiveBuffer is the size of the socket's buffer; the kernel uses up to twice as much. Unset: 64MiB.
	ReceiveBuffer unit.Size `yaml:"receive_buffer"`

	// Labels remembers the labels of flows for their last record, which the kernel sends without.
	Labels bool `yaml:"labels"`

	// Namespaces are the network namespaces whose events are read: own (the default), all, or the names of some besides
	// ctlogd's own.
	Namespaces []string `yaml:"namespaces"`

	// HelperEntries bounds how many flows' helper, master and labels are remembered; 0 remembers none, and then the
	// kernel is not asked for NEW events on their account. Unset: 65536.
	HelperEntries *int `yaml:"helper_entries"`

	// InitialDump reads the table once at start: the helpers of older flows are known then, and where nf_conntrack_events
	// is 2, older flows get an open record, because their end may never be reported. Unset: true.
	InitialDump *bool `yaml:"initial_dump"`

	// Interim is how old a flow must be for an open record, and how often it gets one; 0 is never.
	Interim time.Duration `yaml:"interim"`

	// OpenAtShutdown says when the flows that are alive get an open record as ctlogd ends: always, never, or (the
	// default) at a reboot, which ends them without an event.
	OpenAtShutdown string `yaml:"open_at_shutdown"`
}

// Values of Config.OpenAtShutdown.
const (
	OpenAtReboot = "reboot"
	OpenAlways   = "always"
	OpenNever    = "never"
)

// Values of Config.Namespaces that are no names.
const (
	OwnNamespace  = "own"
	AllNamespaces = "all"
)

// Delivery modes.
const (
	Reliable   = "reliable"
	BestEffort = "best_effort"
)

const (
	minBuffer = 128 << 10
	maxBuffer = 1<<30 - 1 // SO_RCVBUFFORCE takes an int and doubles it

	maxHelperEntries = 1 << 24

	minInterim = time.Minute
)

// Defaults fills in what is unset.
func (c *Config) Defaults() {
	if len(c.Events) == 0 {
		c.Events = []string{"destroy"}
	}
	if c.Delivery == "" {
		c.Delivery = Reliable
	}
	if c.TableGuard == nil {
		c.TableGuard = new(90)
	}
	if c.ReceiveBuffer == 0 {
		c.ReceiveBuffer = 64 << 20
	}
	if c.HelperEntries == nil {
		c.HelperEntries = new(65536)
	}
	if c.InitialDump == nil {
		c.InitialDump = new(true)
	}
	if len(c.Namespaces) == 0 {
		c.Namespaces = []string{OwnNamespace}
	}
	if c.OpenAtShutdown == "" {
		c.OpenAtShutdown = OpenAtReboot
	}
}

// Validate reports every impossible value by its field.
func (c *Config) Validate(report func(field, msg string)) {
	for i, e := range c.Events {
		field := fmt.Sprintf("events[%d]", i)
		if !slices.Contains([]string{"new", "update", "destroy"}, e) {
			report(field, fmt.Sprintf("unknown event %q; use new, update or destroy", e))
		} else if slices.Contains(c.Events[:i], e) {
			report(field, fmt.Sprintf("%q stands here twice", e))
		}
	}
	if !slices.Contains([]string{"", Reliable, BestEffort}, c.Delivery) {
		report("delivery", fmt.Sprintf("unknown delivery %q; use %s or %s", c.Delivery, Reliable, BestEffort))
	}
	if n := c.TableGuard; n != nil && (*n < 0 || *n > 99) {
		report("table_guard", fmt.Sprintf("%d is out of range; use 1 to 99 percent, or 0 for none", *n))
	}
	if c.ReceiveBuffer != 0 && (c.ReceiveBuffer < minBuffer || c.ReceiveBuffer > maxBuffer) {
		report("receive_buffer", fmt.Sprintf("%s is out of range; use %s to %s",
			c.ReceiveBuffer, unit.Size(minBuffer), "just under 1GiB"))
	}
	for i, name := range c.Namespaces {
		field := fmt.Sprintf("namespaces[%d]", i)
		switch {
		case name == "" || strings.ContainsAny(name, "/\x00") || len(name) > 255:
			report(field, fmt.Sprintf("%q is no name of a network namespace; write one as ip netns shows it, %s or %s", name,
				OwnNamespace, AllNamespaces))
		case name == AllNamespaces && len(c.Namespaces) > 1:
			report(field, AllNamespaces+" stands alone")
		case slices.Contains(c.Namespaces[:i], name):
			report(field, fmt.Sprintf("%q stands here twice", name))
		}
	}
	if n := c.HelperEntries; n != nil && (*n < 0 || *n > maxHelperEntries) {
		report("helper_entries", fmt.Sprintf("%d is out of range; use 0 to %d", *n, maxHelperEntries))
	}
	if n := c.HelperEntries; n != nil && *n == 0 && c.Labels {
		report("labels", "labels are remembered in the same entries, and helper_entries is 0; use 1 or more")
	}
	if d := c.Interim; d != 0 && d < minInterim {
		report("interim", fmt.Sprintf("%s is too short; use 1m or more, or 0s for no such records", d))
	}
	if !slices.Contains([]string{"", OpenAtReboot, OpenAlways, OpenNever}, c.OpenAtShutdown) {
		report("open_at_shutdown", fmt.Sprintf("unknown value %q; use %s, %s or %s", c.OpenAtShutdown,
			OpenAtReboot, OpenAlways, OpenNever))
	}
}

// wants reports whether records of an event kind are asked for.
func (c *Config) wants(event string) bool { return slices.Contains(c.Events, event) }

// Others reports whether events of other network namespaces than ctlogd's own are asked for.
func (c *Config) Others() bool {
	return slices.ContainsFunc(c.Namespaces, func(name string) bool { return name != OwnNamespace })
}

// all reports whether those of all namespaces are.
func (c *Config) all() bool { return slices.Contains(c.Namespaces, AllNamespaces) }

// Wanted reports whether those of a namespace are that has the name.
func (c *Config) Wanted(name string) bool { return c.wanted()(name) }

// wanted returns whether those of a namespace are that has a name.
func (c *Config) wanted() func(name string) bool {
	all, names := c.all(), slices.Clone(c.Namespaces)
	return func(name string) bool { return all || name != OwnNamespace && slices.Contains(names, name) }
}

// Removed returns keys that earlier versions had, and what to write instead.
func (*Config) Removed() map[string]string {
	const follow = "flows older than ctlogd get one open record at the start; take the key out, and set interim, such as " +
		"interim: 30m, to see long flows before their end"
	return map[string]string{"follow": follow, "follow_entries": follow, "follow_interval": follow, "reconcile": follow}
}
