package subscriber

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// Types are the values of type.
var Types = []string{"csv", "dnsmasq", "kea", "isc", "radius"}

// ids are the values of id, the default first: what of a lease is the subscriber.
var ids = []string{"mac", "client_id", "hostname"}

// Defaults and limits.
const (
	DefaultListen         = ":1813"
	DefaultHistory        = 5 * 24 * time.Hour // as long as the kernel keeps a TCP connection that says nothing
	DefaultSessionTimeout = 24 * time.Hour
	DefaultLimit          = 2_000_000

	maxLimit = 16_000_000
)

// Config is one entry of enrich.subscribers in the configuration: a source.
type Config struct {
	Type string `yaml:"type"` // see Types
	Name string `yaml:"name"` // what records and metrics call the source. Unset: the type, which then may stand once

	Path string `yaml:"path"` // of files: csv, dnsmasq, kea, isc

	ID        string        `yaml:"id"`         // of leases: mac, client_id or hostname. Unset: mac
	LeaseTime time.Duration `yaml:"lease_time"` // of dnsmasq, whose file tells when a lease ends, and not when it began

	Listen         string        `yaml:"listen"`          // of radius. Unset: :1813
	SecretFile     string        `yaml:"secret_file"`     // of radius
	Clients        []string      `yaml:"clients"`         // of radius: addresses and prefixes that may send
	SessionTimeout time.Duration `yaml:"session_timeout"` // of radius: a session that nobody speaks of is over. Unset: 24h

	History time.Duration `yaml:"history"` // how long it is remembered who had an address before. Unset: 120h
	Limit   int           `yaml:"limit"`   // leases at most. Unset: 2000000
}

// Defaults sets what an entry has before its keys are read.
func (c *Config) Defaults() {
	c.History, c.Limit, c.SessionTimeout = DefaultHistory, DefaultLimit, DefaultSessionTimeout
}

// label is what the source is called.
func (c *Config) label() string {
	if c.Name != "" {
		return c.Name
	}
	return c.Type
}

// Validate reports what is wrong with the entry.
func (c *Config) Validate(report func(field, msg string)) {
	switch {
	case c.Type == "":
		report("type", "missing; write one of "+strings.Join(Types, ", "))
		return
	case !slices.Contains(Types, c.Type):
		report("type", fmt.Sprintf("unknown type %q; use one of %s", c.Type, strings.Join(Types, ", ")))
		return
	}
	if strings.ContainsFunc(c.Name, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '@' }) || len(c.Name) > 64 {
		report("name", "write a word of at most 64 bytes, without spaces and @: it stands in records")
	}
	foreign := func(field string, set bool, types ...string) {
		if set && !slices.Contains(types, c.Type) {
			report(field, fmt.Sprintf("a source of type %s has no such key; it belongs to %s", c.Type, strings.Join(types, ", ")))
		}
	}
	foreign("path", c.Path != "", "csv", "dnsmasq", "kea", "isc")
	foreign("id", c.ID != "", "dnsmasq", "kea", "isc")
	foreign("lease_time", c.LeaseTime != 0, "dnsmasq")
	foreign("listen", c.Listen != "", "radius")
	foreign("secret_file", c.SecretFile != "", "radius")
	foreign("clients", len(c.Clients) > 0, "radius")
	foreign("session_timeout", c.SessionTimeout != DefaultSessionTimeout, "radius")
	if c.Type != "radius" {
		switch {
		case c.Path == "":
			report("path", "missing; write the file that the leases stand in")
		case !filepath.IsAbs(c.Path):
			report("path", fmt.Sprintf("relative path %q; write it from / on", c.Path))
		}
	}
	if c.ID != "" && !slices.Contains(ids, c.ID) {
		report("id", fmt.Sprintf("unknown id %q; use one of %s", c.ID, strings.Join(ids, ", ")))
	}
	if c.LeaseTime < 0 {
		report("lease_time", "negative; write the lease time of dnsmasq's dhcp-range, such as 12h")
	}
	if c.Type == "radius" {
		if c.Listen != "" && !isListen(c.Listen) {
			report("listen", fmt.Sprintf("%q is no address and port; write one such as :1813 or 192.0.2.1:1813", c.Listen))
		}
		if c.SecretFile == "" {
			report("secret_file", "missing; write a file that holds the secret shared with the RADIUS clients")
		} else if !filepath.IsAbs(c.SecretFile) {
			report("secret_file", fmt.Sprintf("relative path %q; write it from / on", c.SecretFile))
		}
		if len(c.Clients) == 0 {
			report("clients", "missing; list the addresses or prefixes that may send accounting")
		}
		for i, s := range c.Clients {
			if _, err := parsePrefix(s); err != nil {
				report(fmt.Sprintf("clients[%d]", i), err.Error())
			}
		}
		if c.SessionTimeout < time.Minute {
			report("session_timeout", "shorter than a minute; write several times the interval of interim updates, such as 1h")
		}
	}
	if c.History < 0 {
		report("history", "negative; write a duration such as 120h")
	}
	if c.Limit < 1 || c.Limit > maxLimit {
		report("limit", fmt.Sprintf("%d leases; write a number from 1 to %d", c.Limit, maxLimit))
	}
}

// isListen reports whether s is an address and a port, or a port alone.
func isListen(s string) bool {
	if strings.HasPrefix(s, ":") {
		s = "0.0.0.0" + s
	}
	_, err := netip.ParseAddrPort(s)
	return err == nil
}

// ValidateAll reports what is wrong with the entries together: names that two have.
func ValidateAll(list []Config, report func(field, msg string)) {
	seen := map[string]int{}
	for i := range list {
		name := list[i].label()
		if j, ok := seen[name]; ok && name != "" {
			report(fmt.Sprintf("[%d].name", i), fmt.Sprintf("the source of [%d] is called %q as well; give each its own name", j, name))
		}
		seen[name] = i
	}
}

// About is what the source reads, or where it listens.
func (c *Config) About() string {
	if c.Type != "radius" {
		return c.Path
	}
	return "RADIUS accounting at " + cmp.Or(c.Listen, DefaultListen)
}

// Check tells what keeps the source from working now, nil if nothing does. It may wait for a file system.
func (c *Config) Check() error {
	if c.Type == "radius" {
		_, err := c.secret()
		return err
	}
	f, _, err := openSource(c.Path)
	if err == nil {
		f.Close()
	}
	return err
}

// secret returns what is shared with the RADIUS clients.
func (c *Config) secret() ([]byte, error) {
	f, _, err := openSource(c.SecretFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	secret, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, err
	}
	if secret = bytes.TrimRight(secret, "\r\n"); len(secret) == 0 {
		return nil, fmt.Errorf("%s: an empty secret", c.SecretFile)
	}
	return secret, nil
}

// openSource opens a file, which must be a regular one, and says in which state it is.
func openSource(path string) (f *os.File, is stamp, err error) {
	f, err = os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0) // a FIFO would have it wait
	if err != nil {
		return nil, is, err
	}
	if is, err = stampOf(f); err != nil {
		f.Close()
	}
	return f, is, err
}

// Survey reads the source's file as the source does, and returns how many leases are in it, and what is wrong with it: the first
// broken lines. It may wait for a file system. ctx may end it early.
func (c *Config) Survey(ctx context.Context) (leases int, err error) {
	if c.Type == "radius" {
		return 0, nil
	}
	f, is, err := openSource(c.Path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var faults []string
	w := newWatcher(New(*c, zap.NewNop()))
	w.pace.hurry = true
	w.tell = func(at string, fault error) { faults = append(faults, at+": "+fault.Error()) }
	l, err := w.load(ctx, f, is)
	switch {
	case err != nil && len(faults) > 0:
		err = fmt.Errorf("%w: %s", err, strings.Join(faults, ", "))
	case err != nil:
	case l.broken > 0:
		leases = l.table.leases
		err = fmt.Errorf("%d broken lines beside %d leases: %s", l.broken, leases, strings.Join(faults, ", "))
	default:
		return l.table.leases, nil
	}
	return leases, errors.New(strings.ReplaceAll(err.Error(), "; ", ", ") + "; mend it: nobody is named for the addresses of lines that are broken, and a file that is refused leaves the old leases")
}

// parsePrefix returns the prefix or the address that s is.
func parsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return netip.Prefix{}, fmt.Errorf("%q is no prefix", cut(s))
		}
		if p.Masked() != p {
			return netip.Prefix{}, fmt.Errorf("%q has bits behind the prefix; write %s", cut(s), p.Masked())
		}
		return p, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is no address", cut(s))
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// cut shortens foreign text for a message.
func cut(s string) string {
	if len(s) > 60 {
		return s[:60] + "..."
	}
	return s
}
