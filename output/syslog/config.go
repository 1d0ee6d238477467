package syslog

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/output/certfile"
	"github.com/ctlogd/ctlogd/output/endpoint"
	"github.com/ctlogd/ctlogd/output/format"
)

// Values of Config.Framing.
const (
	framingOctets = "octet_counting" // RFC 6587, section 3.4.1; RFC 5425
	framingLF     = "lf"             // RFC 6587, section 3.4.2
)

// Framings are the values of framing, the default first.
var Framings = []string{framingOctets, framingLF}

// Facilities and Severities are the values of facility and severity, in the order of their numbers.
var (
	Facilities = []string{
		"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp", "audit",
		"alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
	}
	Severities = []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}
)

// Defaults of what is unset.
const (
	DefaultFacility    = "local0"
	DefaultSeverity    = "info"
	DefaultAppName     = "ctlogd"
	DefaultSDID        = "flow@32473"
	DefaultDialTimeout = 4 * time.Second // a call that takes 5 s counts as hanging (deliver), and an error says more
)

// Config is one entry of outputs.syslog in the configuration.
type Config struct {
	// Address is the receiver: udp://HOST:PORT, tcp://HOST:PORT, tls://HOST:PORT, unix:///PATH, or journal://, the journal of
	// this host. Ports default to 514, and to 6514 for tls.
	Address string `yaml:"address"`

	// Failover lists receivers that stand in for Address, in turn, each until it fails.
	Failover []string `yaml:"failover"`

	Format string        `yaml:"format"` // see format.Names. Unset: flat
	Fields format.Fields `yaml:"fields"`

	Framing  string `yaml:"framing"`  // of streams, see Framings. Unset: octet_counting
	Facility string `yaml:"facility"` // see Facilities. Unset: local0
	Severity string `yaml:"severity"` // see Severities; gaps are warnings if that is more. Unset: info
	AppName  string `yaml:"app_name"` // Unset: ctlogd

	// SDID is the name of the structured data that holds the flow id, NAME@PEN. Unset: flow@32473, whose number is IANA's
	// for examples. none: no structured data.
	SDID string `yaml:"sd_id"`

	TLS TLS `yaml:"tls"`

	DialTimeout time.Duration `yaml:"dial_timeout"` // for name resolution, connection and TLS handshake together
}

// TLS is how a tls:// receiver is trusted, and what it is shown.
type TLS = certfile.TLS

// Defaults fills in what is unset.
func (c *Config) Defaults() {
	c.Format = cmp.Or(c.Format, format.Names[0])
	c.Framing = cmp.Or(c.Framing, Framings[0])
	c.Facility = cmp.Or(c.Facility, DefaultFacility)
	c.Severity = cmp.Or(c.Severity, DefaultSeverity)
	c.AppName = cmp.Or(c.AppName, DefaultAppName)
	c.SDID = cmp.Or(c.SDID, DefaultSDID)
	c.DialTimeout = cmp.Or(c.DialTimeout, DefaultDialTimeout)
}

// Name is the output's name.
func (c *Config) Name() string { return "syslog:" + c.Address }

// Encoder returns a new encoder for the messages of this output. o says the rest.
func (c *Config) Encoder(o format.Options) (format.Encoder, error) {
	o.Fields = c.Fields
	return format.New(c.Format, o)
}

// address is a parsed Config.Address. Of a unix socket, Host is the path.
type address struct{ endpoint.Address }

// journalSocket is where the journal takes fields (systemd.io/JOURNAL_NATIVE_PROTOCOL).
const journalSocket = "/run/systemd/journal/socket"

// local reports whether the receiver is a unix socket of this host.
func (a address) local() bool { return a.Scheme == "unix" || a.Scheme == "journal" }

func (a address) String() string {
	if a.local() {
		return a.Scheme + "://" + a.Host
	}
	return a.Address.String()
}

// stream reports whether messages go there in a stream.
func (a address) stream() bool { return a.Scheme == "tcp" || a.Scheme == "tls" }

const addressHelp = "write udp://HOST:PORT, tcp://HOST:PORT, tls://HOST:PORT, unix:///PATH or journal://"

func parseAddress(s string) (address, error) {
	switch scheme, path, _ := strings.Cut(s, "://"); scheme {
	case "unix":
		if !strings.HasPrefix(path, "/") {
			return address{}, fmt.Errorf("%q has no absolute path; write unix:///dev/log", s)
		}
		return address{endpoint.Address{Scheme: scheme, Host: path}}, nil
	case "journal":
		if path != "" && !strings.HasPrefix(path, "/") {
			return address{}, fmt.Errorf("nothing but the path of another socket may stand in %q; write journal://", s)
		}
		return address{endpoint.Address{Scheme: scheme, Host: cmp.Or(path, journalSocket)}}, nil
	}
	a, err := endpoint.Parse(s, addressHelp, map[string]string{"udp": "514", "tcp": "514", "tls": "6514"})
	return address{a}, err
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

// Receivers returns the addresses of Address and Failover, each with its port, of a valid configuration.
func (c *Config) Receivers() (list []string) {
	for _, a := range c.addresses() {
		list = append(list, a.String())
	}
	return list
}

// Validate reports every mistake: the key inside the output's block, what is wrong, and what is allowed. It reads the
// TLS files.
func (c *Config) Validate(report func(field, msg string)) {
	secure, streams := false, false
	first, err := parseAddress(c.Address)
	if err != nil {
		report("address", err.Error())
	}
	list := []address{first}
	for i, s := range c.Failover {
		a, err := parseAddress(s)
		switch {
		case err != nil:
			report(fmt.Sprintf("failover[%d]", i), err.Error())
		case slices.Contains(list, a):
			report(fmt.Sprintf("failover[%d]", i), fmt.Sprintf("%q stands here twice", s))
		case first.Scheme != "" && (a.stream() != first.stream() || a.Scheme == "journal" != (first.Scheme == "journal")):
			report(fmt.Sprintf("failover[%d]", i), fmt.Sprintf("what was written to %s:// cannot be sent again to %s://; use tcp:// "+
				"and tls://, or udp:// and unix://", first.Scheme, a.Scheme))
		}
		list = append(list, a)
	}
	for _, a := range list {
		secure, streams = secure || a.Scheme == "tls", streams || a.stream()
	}
	format.Validate(c.Format, c.Fields, report)
	oneOf(report, "framing", c.Framing, Framings)
	if c.Framing == framingLF && err == nil && !streams {
		report("framing", "datagrams have no framing; leave it out")
	}
	oneOf(report, "facility", c.Facility, Facilities)
	oneOf(report, "severity", c.Severity, Severities)
	if name := c.AppName; name != printable(name, 48) {
		report("app_name", fmt.Sprintf("%q is no APP-NAME; use up to 48 printable ASCII characters without spaces", name))
	}
	if c.SDID != "" && c.SDID != "none" && !validSDID(c.SDID) {
		report("sd_id", fmt.Sprintf("%q is no SD-ID; write NAME@NUMBER, the number being your organization's private "+
			"enterprise number, or none", c.SDID))
	}
	if c.DialTimeout < 0 || c.DialTimeout > 10*time.Minute {
		report("dial_timeout", fmt.Sprintf("%s is out of range; use up to 10m", c.DialTimeout))
	}
	c.TLS.Validate(secure || err != nil, report)
}

// validSDID reports whether s is the SD-ID of a private element (RFC 5424, section 6.3.2).
func validSDID(s string) bool {
	name, number, ok := strings.Cut(s, "@")
	if !ok || name == "" || number == "" || len(s) > 32 || s != printable(s, 32) || strings.ContainsAny(s, `="]`) {
		return false
	}
	return strings.Trim(number, "0123456789.") == "" && number[0] != '.' && number[len(number)-1] != '.'
}

// printable returns what a header's field may be for s: printable ASCII without spaces, up to most characters.
func printable(s string, most int) string {
	b := []byte(s)
	for i, c := range b {
		if c <= ' ' || c >= 0x7f {
			b[i] = '_'
		}
	}
	return string(b[:min(len(b), most)])
}

// oneOf reports a value that is set and not among those allowed.
func oneOf(report func(field, msg string), field, value string, allowed []string) {
	if value == "" || slices.Contains(allowed, value) {
		return
	}
	last := len(allowed) - 1
	report(field, fmt.Sprintf("unknown %s %q; use %s or %s", field, value, strings.Join(allowed[:last], ", "), allowed[last]))
}
