package ipfix

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/identity"
	"github.com/ctlogd/ctlogd/output/certfile"
	"github.com/ctlogd/ctlogd/output/endpoint"
	"github.com/ctlogd/ctlogd/unit"
)

// Values of Config.Records, Config.NATEvent and Config.Layout; the first of each is the default.
const (
	recordsFlows = "flows"
	recordsNAT   = "nat_events"
	recordsBoth  = "both"

	natEventNew = "rfc8158"
	natEventOld = "historic"

	layoutTimes   = "with_times"
	layoutRFC8158 = "rfc8158"
)

// Defaults, also those of a zero value in Config.
const (
	DefaultTemplateInterval = time.Minute
	DefaultTemplatePackets  = 1000
	DefaultDialTimeout      = 4 * time.Second // a call that takes 5 s counts as hanging (deliver), and an error says more
)

// Config is one ipfix output. The zero value of a field is its default.
type Config struct {
	// Address is the collector: udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT. Ports default to 4739, and to 4740
	// for tls.
	Address string `yaml:"address"`

	// Failover lists collectors that stand in for Address, in this order, while it and those before cannot be reached.
	Failover []string `yaml:"failover"`

	Records     string `yaml:"records"`     // flows, nat_events or both
	NATEvent    string `yaml:"nat_event"`   // rfc8158: 4 and 5; historic: 1 and 2
	Layout      string `yaml:"layout"`      // of NAT events: with_times or rfc8158
	Destination *bool  `yaml:"destination"` // false leaves out destinations (RFC 6888, REQ-12); default true

	// ObservationDomain tells exporters behind one address apart. The default is the same for every start on one host.
	ObservationDomain *uint32 `yaml:"observation_domain"`

	// MessageSize is the most octets of a message: a size, or auto for what the path MTU allows. Default: 1400 over UDP,
	// 16KiB over TCP and TLS.
	MessageSize string `yaml:"message_size"`

	TemplateInterval time.Duration `yaml:"template_interval"` // between repetitions of the templates over UDP
	TemplatePackets  *int          `yaml:"template_packets"`  // messages between them at most; 0: any number

	Options    *bool      `yaml:"options"`   // false sends no option records: no statistics, no gaps; default true
	UserName   bool       `yaml:"user_name"` // whose flow it is, where a source of subscribers knows (userName, 371)
	Enterprise Enterprise `yaml:"enterprise"`
	TLS        TLS        `yaml:"tls"`

	DialTimeout time.Duration `yaml:"dial_timeout"` // for name resolution, connection and TLS handshake together
}

// Enterprise switches on elements that the IANA registry lacks.
type Enterprise struct {
	PEN      uint32   `yaml:"pen"` // the operator's private enterprise number
	Elements []string `yaml:"elements"`
}

// TLS is how a tls:// collector is trusted, and what it is shown.
type TLS = certfile.TLS

// Defaults fills in what is unset and has one default for every configuration.
func (c *Config) Defaults() {
	c.Records = cmp.Or(c.Records, recordsFlows)
	c.NATEvent = cmp.Or(c.NATEvent, natEventNew)
	c.Layout = cmp.Or(c.Layout, layoutTimes)
	c.Destination = cmp.Or(c.Destination, new(true))
	c.TemplateInterval = cmp.Or(c.TemplateInterval, DefaultTemplateInterval)
	c.TemplatePackets = cmp.Or(c.TemplatePackets, new(DefaultTemplatePackets))
	c.Options = cmp.Or(c.Options, new(true))
	c.DialTimeout = cmp.Or(c.DialTimeout, DefaultDialTimeout)
}

// NeedsNew reports whether the output exports what only events of new flows tell.
func (c *Config) NeedsNew() bool { return c.Records == recordsNAT || c.Records == recordsBoth }

func (c *Config) destination() bool { return c.Destination == nil || *c.Destination }
func (c *Config) options() bool     { return c.Options == nil || *c.Options }

// name tells outputs of one process apart: two may share a collector if their observation domains differ.
func (c *Config) Name() string {
	name := "ipfix:" + c.Address
	if c.ObservationDomain != nil {
		name += fmt.Sprintf("#%d", *c.ObservationDomain)
	}
	return name
}

// Domain returns the observation domain of the flows.
func (c *Config) Domain() uint32 {
	if c.ObservationDomain != nil {
		return *c.ObservationDomain
	}
	return DefaultObservationDomain()
}

func (c *Config) templateInterval() time.Duration {
	if c.TemplateInterval == 0 {
		return DefaultTemplateInterval
	}
	return c.TemplateInterval
}

func (c *Config) templatePackets() int {
	if c.TemplatePackets == nil {
		return DefaultTemplatePackets
	}
	return *c.TemplatePackets
}

func (c *Config) dialTimeout() time.Duration {
	if c.DialTimeout == 0 {
		return DefaultDialTimeout
	}
	return c.DialTimeout
}

// DefaultObservationDomain returns a number that stays the same on this host: a hash of the machine id, which is not to
// be shown as it is (machine-id(5)), or of the host's name where there is none. It is never 0.
func DefaultObservationDomain() uint32 {
	id, err := identity.Machine()
	if err != nil {
		id, _ = identity.Host()
	}
	return observationDomain(id)
}

func observationDomain(id string) uint32 {
	sum := sha256.Sum256([]byte("ctlogd observation domain " + strings.TrimSpace(id)))
	return max(1, binary.BigEndian.Uint32(sum[:]))
}

// address is a parsed Config.Address.
type address = endpoint.Address

const addressHelp = "write udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT"

func parseAddress(s string) (address, error) {
	return endpoint.Parse(s, addressHelp, map[string]string{"udp": "4739", "tcp": "4739", "tls": "4740"})
}

// addresses returns the parsed Address and Failover of a valid configuration.
func (c *Config) addresses() (list []address) {
	for _, s := range append([]string{c.Address}, c.Failover...) {
		if a, err := parseAddress(s); err == nil {
			list = append(list, a)
		}
	}
	return list
}

// Collectors returns the addresses of Address and Failover, each with its port, of a valid configuration.
func (c *Config) Collectors() (list []string) {
	for _, a := range c.addresses() {
		list = append(list, a.String())
	}
	return list
}

// messageSize returns MessageSize in octets, 0 for auto. datagrams tells which range and which default apply.
func (c *Config) messageSize(datagrams bool) (int, error) {
	most, size := maxMessage, streamSize
	if datagrams {
		most, size = maxDatagram, datagramSize
	}
	switch c.MessageSize {
	case "":
		return size, nil
	case "auto":
		return 0, nil
	}
	var n unit.Size
	if err := n.UnmarshalText([]byte(c.MessageSize)); err != nil || n < minMessage || n > unit.Size(most) {
		return 0, fmt.Errorf("%q is not a message size; write auto or a size from %d to %d", c.MessageSize, minMessage, most)
	}
	return int(n), nil
}

// Validate reports every mistake: the key inside the output's block, what is wrong, and what is allowed. It reads the
// TLS files.
func (c *Config) Validate(report func(field, msg string)) {
	var datagrams, secure bool
	check := func(field, s string) {
		a, err := parseAddress(s)
		if err != nil {
			report(field, err.Error())
			return
		}
		switch a.Scheme {
		case "udp":
			datagrams = true
		case "tls":
			secure = true
		}
	}
	check("address", c.Address)
	for i, s := range c.Failover {
		check(fmt.Sprintf("failover[%d]", i), s)
		if s == c.Address || slices.Contains(c.Failover[:i], s) {
			report(fmt.Sprintf("failover[%d]", i), fmt.Sprintf("%q is listed twice; name each collector once", s))
		}
	}

	oneOf := func(field, value string, allowed ...string) {
		if value != "" && !slices.Contains(allowed, value) {
			report(field, fmt.Sprintf("unknown value %q; write %s", value, orList(allowed)))
		}
	}
	oneOf("records", c.Records, recordsFlows, recordsNAT, recordsBoth)
	oneOf("nat_event", c.NATEvent, natEventNew, natEventOld)
	oneOf("layout", c.Layout, layoutTimes, layoutRFC8158)

	if c.ObservationDomain != nil && *c.ObservationDomain == 0 {
		report("observation_domain", "0 is the domain of the exporter's own statistics; write a number from 1 to 4294967295")
	}
	if _, err := c.messageSize(datagrams); err != nil {
		report("message_size", err.Error())
	}
	if c.TemplateInterval != 0 && c.TemplateInterval < time.Second {
		report("template_interval", fmt.Sprintf("%s is too short; write at least 1s", c.TemplateInterval))
	}
	if n := c.templatePackets(); n < 0 || n > math.MaxInt32 {
		report("template_packets", fmt.Sprintf("%d is not a number of messages; write 0 (no limit) or more", n))
	}
	if c.DialTimeout < 0 {
		report("dial_timeout", fmt.Sprintf("%s is negative; write a duration such as 5s", c.DialTimeout))
	}
	c.Enterprise.validate(report)
	c.TLS.Validate(secure, report)
}

func (c *Enterprise) validate(report func(field, msg string)) {
	var known []string
	for _, e := range enterprise {
		known = append(known, e.info.key)
	}
	for i, key := range c.Elements {
		field := fmt.Sprintf("enterprise.elements[%d]", i)
		if !slices.Contains(known, key) {
			report(field, fmt.Sprintf("unknown element %q; write %s", key, orList(known)))
		}
		if slices.Contains(c.Elements[:i], key) {
			report(field, fmt.Sprintf("%q is listed twice", key))
		}
	}
	switch {
	case len(c.Elements) > 0 && c.PEN == 0:
		report("enterprise.pen", "missing; enterprise elements need your organization's private enterprise number (IANA)")
	case c.PEN == reversePEN:
		report("enterprise.pen", "29305 is reserved for reverse elements (RFC 5103); write your organization's own number")
	}
}

// orList joins words as "a, b or c".
func orList(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
