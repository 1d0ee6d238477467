package subscriber

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// newParser returns the parser of the source's type.
func newParser(c *Config) parser {
	switch c.Type {
	case "dnsmasq":
		return &dnsmasqParser{id: c.ID, lease: c.LeaseTime}
	case "kea":
		return &keaParser{id: c.ID}
	case "isc":
		return &iscParser{id: c.ID}
	}
	return new(csvParser)
}

// csvParser reads lines of an operator's own:
//
//	100.64.0.7,2026-01-01T00:00:00Z,,4711,Example Ltd
//	2001:db8:42::/56,,,4712,
//
// prefix or address, from and until, which may be empty, id, name. The first line may be a heading.
type csvParser struct {
	first bool
	csvLine
}

const csvHeading = "prefix,from,until,id,name"

func (p *csvParser) line(line []byte, tell func(*claim) error) error {
	first := !p.first
	p.first = true
	if t := bytes.TrimSpace(line); len(t) == 0 || t[0] == '#' || first && strings.HasPrefix(string(t), "prefix,") {
		return nil
	}
	f, err := p.fields(line)
	if err != nil {
		return err
	}
	if len(f) != 4 && len(f) != 5 {
		return fmt.Errorf("%d fields; the line has %s", len(f), csvHeading)
	}
	var c claim
	if c.prefix, err = parsePrefix(strings.TrimSpace(f[0])); err != nil {
		return err
	}
	for i, ns := range []*int64{&c.from, &c.until} {
		if s := strings.TrimSpace(f[1+i]); s != "" {
			t, err := time.Parse(time.RFC3339Nano, s)
			if err != nil {
				return fmt.Errorf("%q is no time; write one such as 2026-03-09T14:00:00Z, or nothing", cut(s))
			}
			if *ns, err = nanos(t.Unix()); err != nil {
				return err
			}
			*ns += int64(t.Nanosecond())
		}
	}
	c.id = f[3]
	if len(f) == 5 {
		c.name = f[4]
	}
	return tell(&c)
}

func (*csvParser) about(line []byte) netip.Prefix { return firstPrefix(line) }

func (*csvParser) end() error { return nil }

// firstPrefix returns the prefix that a line begins with, also one with bits behind it: not valid if there is none.
func firstPrefix(line []byte) netip.Prefix {
	text := bytes.TrimLeft(line, " \t\"")
	if end := bytes.IndexAny(text, ",;\"\r\n \t"); end >= 0 {
		text = text[:end]
	}
	return readPrefix(string(text))
}

// readPrefix reads what parsePrefix does, and prefixes with bits behind them as well.
func readPrefix(s string) netip.Prefix {
	if p, err := netip.ParsePrefix(s); err == nil && !p.Addr().Is4In6() {
		return p.Masked()
	}
	p, _ := parsePrefix(s)
	return p
}

// nanos returns a time in seconds since 1970 in nanoseconds.
func nanos(sec int64) (int64, error) {
	if sec < 0 || sec > math.MaxInt64/1_000_000_000-1 {
		return 0, errors.New("a time out of range")
	}
	return sec * 1e9, nil
}

// csvLine splits lines of CSV (RFC 4180). A field has no newline in it.
type csvLine struct{ list []string }

// fields returns those of a line. The list is valid until the next call.
func (l *csvLine) fields(line []byte) ([]string, error) {
	l.list = l.list[:0]
	for rest := strings.TrimSuffix(string(line), "\r"); ; {
		var field string
		quoted := strings.HasPrefix(rest, `"`)
		end := strings.IndexByte(rest, ',')
		if quoted {
			if end = endOfQuotes(rest); end < 0 {
				return nil, errors.New("a quote that is not closed")
			}
			field = strings.ReplaceAll(rest[1:end], `""`, `"`)
			if end++; end == len(rest) {
				end = -1
			} else if rest[end] != ',' {
				return nil, errors.New("text behind a closing quote")
			}
		} else if field = rest; end >= 0 {
			field = rest[:end]
		}
		l.list = append(l.list, field)
		if end < 0 {
			return l.list, nil
		}
		rest = rest[end+1:]
	}
}

// endOfQuotes returns where the quote that s begins with is closed, -1 if it is not.
func endOfQuotes(s string) int {
	for i := 1; i < len(s); i++ {
		if s[i] == '"' {
			if i+1 < len(s) && s[i+1] == '"' {
				i++
				continue
			}
			return i
		}
	}
	return -1
}

// dnsmasqParser reads dnsmasq's lease file:
//
//	1765000000 02:00:5e:00:53:01 100.64.0.7 laptop 01:02:00:5e:00:53:01
//	duid 00:01:00:01:...
//	1765000000 5128001 2001:db8::7 laptop 00:01:00:01:...
//
// when the lease ends (0: never), the hardware address (in IPv6 the IAID, with T before it for a temporary address), the
// address, the host's name and the client id, * for what there is none of. dnsmasq tells neither when a lease began nor how
// long it is; lease does the latter.
type dnsmasqParser struct {
	id    string
	lease time.Duration
}

func (p *dnsmasqParser) line(line []byte, tell func(*claim) error) error {
	f := strings.Fields(string(line))
	if len(f) == 0 || f[0] == "duid" && len(f) == 2 {
		return nil
	}
	if len(f) < 5 {
		return fmt.Errorf("%d fields; a lease has end, hardware address, address, name and client id", len(f))
	}
	sec, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil {
		return fmt.Errorf("%q is no time", cut(f[0]))
	}
	var c claim
	if c.prefix, err = parsePrefix(f[2]); err != nil {
		return err
	}
	if sec != 0 {
		if c.until, err = nanos(sec); err != nil {
			return err
		}
		if p.lease > 0 {
			c.from = max(c.until-p.lease.Nanoseconds(), 1)
		}
	}
	mac := f[1]
	if i := strings.IndexByte(mac, '-'); i >= 0 { // a type of hardware that is not Ethernet stands before it
		mac = mac[i+1:]
	}
	if c.prefix.Addr().Is6() {
		mac = macOfDUID(f[4])
	}
	c.id = choose(p.id, mac, star(f[4]), star(f[3]))
	return tell(&c)
}

func (*dnsmasqParser) about(line []byte) netip.Prefix {
	if f := strings.Fields(string(line)); len(f) > 2 {
		return readPrefix(f[2])
	}
	return netip.Prefix{}
}

func (*dnsmasqParser) end() error { return nil }

// choose returns what of a lease is its subscriber. A lease without it is called by what identifies it next best, so that it
// is called at all.
func choose(id, mac, client, host string) string {
	order := [3]string{mac, client, host}
	switch id {
	case "client_id":
		order = [3]string{client, mac, host}
	case "hostname":
		order = [3]string{host, mac, client}
	}
	for _, s := range order {
		if s != "" {
			return s
		}
	}
	return ""
}

// star returns s, or nothing where a * says so.
func star(s string) string {
	if s == "*" {
		return ""
	}
	return s
}

// macOfDUID returns the hardware address in a DUID of type 1 or 3 (RFC 8415, section 11), in hex with colons; "" if there is
// none.
func macOfDUID(duid string) string {
	b := strings.Split(duid, ":")
	switch {
	case len(b) == 14 && b[0] == "00" && b[1] == "01" && b[2] == "00" && b[3] == "01":
		return strings.Join(b[8:], ":")
	case len(b) == 10 && b[0] == "00" && b[1] == "03" && b[2] == "00" && b[3] == "01":
		return strings.Join(b[4:], ":")
	}
	return ""
}

// keaParser reads the lease files of Kea's memfile, which begin with the names of their columns. Kea appends a row for each
// change; the last one of an address counts.
type keaParser struct {
	id      string
	columns map[string]int
	csvLine
}

func (p *keaParser) line(line []byte, tell func(*claim) error) error {
	if len(line) == 0 {
		return nil
	}
	f, err := p.fields(line)
	if err != nil {
		return err
	}
	if p.columns == nil || f[0] == "address" {
		p.columns = map[string]int{}
		for i, name := range f {
			p.columns[strings.Clone(name)] = i
		}
		for _, name := range []string{"address", "valid_lifetime", "expire", "hwaddr"} {
			if _, ok := p.columns[name]; !ok {
				p.columns = nil
				return fmt.Errorf("no column %s: no lease file of Kea", name)
			}
		}
		return nil
	}
	get := func(name string) string { return p.column(f, name) }
	var c claim
	if c.prefix, err = p.prefix(f); err != nil {
		return err
	}
	valid, err := strconv.ParseUint(get("valid_lifetime"), 10, 32)
	if err != nil {
		return fmt.Errorf("%q is no lifetime", cut(get("valid_lifetime")))
	}
	expire, err := strconv.ParseInt(get("expire"), 10, 64)
	if err != nil {
		return fmt.Errorf("%q is no time", cut(get("expire")))
	}
	if c.until, err = nanos(expire); err != nil {
		return err
	}
	c.from = max(c.until-int64(valid)*1e9, 1)
	state := get("state")
	if c.over = valid == 0 || state != "0" && state != ""; c.over {
		return tell(&c)
	}
	if valid == math.MaxUint32 { // without end
		c.until = 0
	}
	client := get("client_id")
	mac := get("hwaddr")
	if duid := get("duid"); duid != "" {
		client = duid
		if mac == "" {
			mac = macOfDUID(duid)
		}
	}
	c.id = choose(p.id, mac, client, get("hostname"))
	return tell(&c)
}

// column returns what the row has in the column of that name, "" if there is none.
func (p *keaParser) column(row []string, name string) string {
	if i, ok := p.columns[name]; ok && i < len(row) {
		return strings.ReplaceAll(row[i], "&#x2c", ",") // Kea's escape of a comma
	}
	return ""
}

// prefix returns the address of a row, or the prefix that is delegated by it.
func (p *keaParser) prefix(row []string) (netip.Prefix, error) {
	q, err := parsePrefix(p.column(row, "address"))
	if err != nil || p.column(row, "lease_type") != "2" { // IA_PD
		return q, err
	}
	n, err := strconv.Atoi(p.column(row, "prefix_len"))
	if err != nil || n < 0 || n > 128 || q.Addr().Is4() {
		return netip.Prefix{}, fmt.Errorf("%q is no length of a prefix", cut(p.column(row, "prefix_len")))
	}
	return netip.PrefixFrom(q.Addr(), n).Masked(), nil
}

func (p *keaParser) about(line []byte) netip.Prefix {
	f, err := p.fields(line)
	if err != nil {
		return firstPrefix(line)
	}
	q, _ := p.prefix(f)
	return q
}

func (p *keaParser) end() error {
	if p.columns == nil {
		return errors.New("no heading: no lease file of Kea")
	}
	return nil
}

// iscParser reads dhcpd.leases of ISC DHCP (dhcpd.leases(5)), for IPv4 and IPv6:
//
//	lease 100.64.0.7 {
//	  starts 1 2026/03/09 14:02:11;
//	  ends 1 2026/03/09 15:02:11;
//	  binding state active;
//	  hardware ethernet 02:00:5e:00:53:01;
//	  uid "\001\002\000^\000S\001";
//	  client-hostname "laptop";
//	}
//	ia-na "..." {
//	  cltt 1 2026/03/09 14:02:11;
//	  iaaddr 2001:db8::7 {
//	    binding state active;
//	    max-life 3600;
//	    ends 1 2026/03/09 15:02:11;
//	  }
//	}
//
// dhcpd appends a lease for each change; the last one of an address counts.
type iscParser struct {
	id    string
	depth int
	skip  int // the depth at which a block began that is of no interest; 0: none

	lease  claim
	inside bool // a lease has begun
	state  string
	mac    string
	client string
	host   string
	duid   string // of the ia that is open
	cltt   int64
	bad    error // of the lease
}

func (p *iscParser) line(line []byte, tell func(*claim) error) error {
	s := strings.TrimSpace(string(line))
	if s == "" || s[0] == '#' {
		return nil
	}
	if s == "}" {
		if p.depth == 0 {
			return errors.New("a } that ends nothing")
		}
		if p.depth--; p.skip > p.depth {
			p.skip = 0
			return nil
		}
		if p.depth == 0 {
			p.duid, p.cltt = "", 0
		}
		if p.skip == 0 && p.inside {
			return p.finish(tell)
		}
		return nil
	}
	if strings.HasSuffix(s, "{") {
		p.depth++
		if p.skip == 0 {
			return p.open(strings.Fields(strings.TrimSuffix(s, "{")))
		}
		return nil
	}
	if p.skip != 0 || p.depth == 0 {
		return nil // a statement of the server
	}
	if i := strings.Index(s, "; # "); i >= 0 && !strings.Contains(s, `"`) { // the time in words, behind epoch
		s = s[:i+1]
	}
	if !strings.HasSuffix(s, ";") {
		return p.spoil(errors.New("a statement without its ;"))
	}
	return p.statement(strings.TrimSuffix(s, ";"))
}

// spoil notes that the lease is not to be believed, or says so at once outside of one.
func (p *iscParser) spoil(err error) error {
	if p.inside && p.bad == nil {
		p.bad = err
		return nil
	}
	return err
}

func (p *iscParser) open(f []string) error {
	switch {
	case len(f) == 2 && f[0] == "lease" && p.depth == 1, len(f) == 2 && (f[0] == "iaaddr" || f[0] == "iaprefix") && p.depth == 2:
		p.lease, p.inside, p.bad, p.state = claim{}, true, nil, ""
		p.mac, p.client, p.host = "", "", ""
		p.lease.prefix, p.bad = parsePrefix(f[1])
		if f[0] != "lease" {
			p.client, p.mac, p.lease.from = p.duid, macOfDUID(p.duid), p.cltt
		}
		return nil
	case len(f) >= 2 && strings.HasPrefix(f[0], "ia-") && p.depth == 1:
		if id, err := unquote(strings.Join(f[1:], " ")); err == nil && len(id) > 4 {
			p.duid = hexOf(id[4:]) // the IAID is before it
		}
		return nil
	}
	p.skip = p.depth
	return nil
}

func (p *iscParser) statement(s string) error {
	word, rest, _ := strings.Cut(s, " ")
	rest = strings.TrimSpace(rest)
	if word == "cltt" && !p.inside {
		t, err := iscTime(rest)
		p.cltt = t
		return err
	}
	if !p.inside {
		return nil
	}
	var err error
	switch word {
	case "starts":
		p.lease.from, err = iscTime(rest)
	case "ends":
		if rest != "never" {
			p.lease.until, err = iscTime(rest)
		}
	case "binding":
		p.state = strings.TrimPrefix(rest, "state ")
	case "hardware":
		_, p.mac, _ = strings.Cut(rest, " ")
	case "uid":
		var id string
		if p.client = rest; strings.HasPrefix(rest, `"`) {
			if id, err = unquote(rest); err == nil {
				p.client = hexOf(id)
			}
		}
	case "client-hostname":
		p.host, err = unquote(rest)
	}
	if err != nil {
		return p.spoil(err)
	}
	return nil
}

func (p *iscParser) finish(tell func(*claim) error) error {
	p.inside = false
	if p.bad != nil {
		return p.bad
	}
	c := &p.lease
	if c.over = p.state != "active"; c.over {
		if c.until == 0 {
			*c = claim{}
			return nil // it was never anybody's
		}
	} else {
		c.id = choose(p.id, p.mac, p.client, p.host)
	}
	if err := tell(c); err != nil {
		return err
	}
	*c = claim{}
	return nil
}

// about returns the prefix of the lease that a line has ended.
func (p *iscParser) about([]byte) netip.Prefix {
	if p.inside {
		return netip.Prefix{}
	}
	return p.lease.prefix
}

func (p *iscParser) end() error {
	if p.depth != 0 {
		return errors.New("the file ends within a lease")
	}
	return nil
}

// iscTime reads "1 2026/03/09 14:02:11", which is in UTC, or "epoch 1765000000", with a comment behind it.
func iscTime(s string) (int64, error) {
	s, _, _ = strings.Cut(s, ";")
	f := strings.Fields(s)
	if len(f) >= 2 && f[0] == "epoch" {
		sec, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no time", cut(s))
		}
		return nanos(sec)
	}
	if len(f) != 3 {
		return 0, fmt.Errorf("%q is no time", cut(s))
	}
	t, err := time.Parse("2006/01/02 15:04:05", f[1]+" "+f[2])
	if err != nil {
		return 0, fmt.Errorf("%q is no time", cut(s))
	}
	return nanos(t.Unix())
}

// unquote reads dhcpd's quoted text: \ooo is a byte in octal, another byte after a backslash is itself.
func unquote(s string) (string, error) {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return "", errors.New("a text without its quotes")
	}
	s = s[1 : len(s)-1]
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '\\' {
			out = append(out, c)
			continue
		}
		if i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		if i+1 == len(s) {
			return "", errors.New("a text that ends in the midst of an escape")
		}
		i++
		out = append(out, s[i])
	}
	return string(out), nil
}

func hexOf(s string) string {
	out := make([]byte, 0, 3*len(s))
	for i := range len(s) {
		if i > 0 {
			out = append(out, ':')
		}
		out = append(out, "0123456789abcdef"[s[i]>>4], "0123456789abcdef"[s[i]&15])
	}
	return string(out)
}
