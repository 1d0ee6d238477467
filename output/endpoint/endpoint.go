// Package endpoint reads the addresses that outputs send to, with errors that say what to write, and tries each of several.
package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Address is where an output sends: SCHEME://HOST:PORT, HOST being a name or an IP address.
type Address struct {
	Scheme, Host, Port string
}

func (a Address) String() string { return a.Scheme + "://" + net.JoinHostPort(a.Host, a.Port) }

// Parse reads SCHEME://HOST or SCHEME://HOST:PORT. ports has the schemes that are allowed, with their default ports. Errors
// end with help, which says what may be written.
func Parse(s, help string, ports map[string]string) (a Address, err error) {
	if s == "" {
		return a, errors.New("missing; " + help)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return a, fmt.Errorf("missing scheme in %q; %s", s, help)
	}
	a = Address{Scheme: scheme}
	if a.Port, ok = ports[scheme]; !ok {
		return a, fmt.Errorf("unknown scheme %q; %s", scheme, help)
	}
	if strings.ContainsAny(rest, "/?#@") {
		return a, fmt.Errorf("nothing may stand beside host and port in %q; %s", s, help)
	}
	if err := a.cutPort(rest); err != nil {
		return a, err
	}
	if a.Host == "" {
		return a, fmt.Errorf("missing host in %q; %s", s, help)
	}
	return a, a.checkHost(help)
}

// cutPort splits HOST, HOST:PORT, [IPV6] or [IPV6]:PORT. Without a port that of a stays.
func (a *Address) cutPort(s string) (err error) {
	bare := strings.HasSuffix(s, "]") || !strings.Contains(s, ":")
	switch {
	case bare && strings.HasPrefix(s, "["):
		a.Host = s[1 : len(s)-1]
	case bare:
		a.Host = s
	default:
		port := a.Port
		if a.Host, a.Port, err = net.SplitHostPort(s); err != nil {
			return fmt.Errorf("%q is not HOST:PORT; an IPv6 address stands in brackets: [2001:db8::1]:%s", s, port)
		}
	}
	if n, err := strconv.ParseUint(a.Port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q is not a number from 1 to 65535", a.Port)
	}
	return nil
}

// checkHost tells what is wrong with the host: it is an address, with the interface where it needs one, or a name.
func (a Address) checkHost(help string) error {
	bare, zone, _ := strings.Cut(a.Host, "%")
	if name, ok := strings.CutPrefix(zone, "25"); ok && name != "" {
		// RFC 6874 would have it so in a URI. An interface may be called 25, but hardly 25wan.
		return fmt.Errorf("%q is written as in a URL; write the interface as it is called: %s", a.Host,
			Address{a.Scheme, bare + "%" + name, a.Port})
	}
	if ip, err := netip.ParseAddr(a.Host); err == nil {
		switch {
		case ip.Is6() && ip.Zone() == "" && (ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast()):
			return fmt.Errorf("%s is a link-local address, which is another one on each link; name the interface: %s",
				ip, Address{a.Scheme, ip.String() + "%eth0", a.Port})
		case ip.IsUnspecified():
			return fmt.Errorf("%s is no address to send to; write where to", ip)
		}
		return nil
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(a.Host, "."), ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notInNames) {
			return fmt.Errorf("%q is neither an address nor a host name; %s", a.Host, help)
		}
	}
	if len(a.Host) > 254 {
		return fmt.Errorf("a host name has 253 characters at most, and this one has %d", len(a.Host))
	}
	return nil
}

// Each calls f with each address of list, for d at most. The error has a reason for each that failed, on one line: role, which
// says what is there, address and reason; remedy is its end.
func Each[A fmt.Stringer](ctx context.Context, list []A, role string, d time.Duration, remedy string,
	f func(context.Context, A) error) error {
	var wrong []string
	for _, a := range list {
		timed, cancel := context.WithTimeout(ctx, d)
		if err := f(timed, a); err != nil {
			wrong = append(wrong, fmt.Sprintf("%s %s: %v", role, a, err))
		}
		cancel()
	}
	if wrong == nil {
		return nil
	}
	return errors.New(strings.Join(wrong, ", ") + "; " + remedy)
}

// notInNames reports whether no host name has r. Underscores are not allowed and are found all the same.
func notInNames(r rune) bool {
	return r != '-' && r != '_' && (r < '0' || r > '9') && (r|0x20 < 'a' || r|0x20 > 'z')
}
