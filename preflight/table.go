package preflight

import (
	"context"
	"fmt"
	"time"
)

// Idle connections of TCP, in seconds: RFC 5382 asks for so much at least (REQ-5), and beyond a day the record of one that
// nobody has ended comes late.
const (
	establishedLeast = 2*3600 + 4*60
	establishedLate  = 24 * 3600
)

// established looks at how long a connection that nobody ends stays in the table.
func (h host) established(context.Context) Result {
	const key = "nf_conntrack_tcp_timeout_established"
	r := Result{Name: "conntrack timeouts", Status: Pass}
	seconds, err := h.number(key)
	stays := time.Duration(seconds) * time.Second
	switch {
	case err != nil:
		r.Status, r.Detail = Warn, "cannot be told: "+cause(err).Error()
	case seconds < establishedLeast:
		r.Status = Warn
		r.Detail = fmt.Sprintf("%s is %d s: connections that are idle for %s break, and go on under another flow_id if at all", key, seconds, stays)
		r.Remedy = fmt.Sprintf("sysctl -w net.netfilter.%s=%d, the least that RFC 5382 asks of a NAT, or more", key, establishedLeast)
	case seconds > establishedLate:
		r.Detail = fmt.Sprintf("%s is %d s: the record of a connection that nobody ended comes up to %s late, and the flow takes its place in the table until then",
			key, seconds, days(stays))
		r.Remedy = fmt.Sprintf("to have it sooner: sysctl -w net.netfilter.%s=%d; RFC 5382 asks for %d at least", key, establishedLate, establishedLeast)
	default:
		r.Detail = fmt.Sprintf("idle connections of TCP stay for %s", stays)
	}
	return r
}

func days(d time.Duration) string {
	if n := d / (24 * time.Hour); n > 0 && d%(24*time.Hour) == 0 {
		if n == 1 {
			return "1 day"
		}
		return fmt.Sprintf("%d days", n)
	}
	return d.String()
}

// expectations tells how full the table of expectations is. In a full one, the oldest expectation gives way, or a helper's
// connection fails.
func (h host) expectations(context.Context) Result {
	r := Result{Name: "expectations", Status: Pass}
	limit, err := h.number("nf_conntrack_expect_max")
	if err != nil {
		r.Status, r.Detail = Warn, "cannot be told: "+cause(err).Error()
		return r
	}
	entries, err := h.kernel.expectations()
	switch {
	case err != nil:
		r.Detail = fmt.Sprintf("%d at most; how many there are cannot be told", limit)
	case uint64(entries)*100 >= fullAt*limit:
		r.Status = Warn
		r.Detail = fmt.Sprintf("%d of %d: when they are full, what helpers let through fails: the data of FTP, the voice of SIP", entries, limit)
		r.Remedy = fmt.Sprintf("see ctlogd list --expect, or raise the limit: sysctl -w net.netfilter.nf_conntrack_expect_max=%d", max(2*limit, 1024))
	default:
		r.Detail = fmt.Sprintf("%d of %d", entries, limit)
	}
	return r
}

// invalid tells whether the kernel logs each packet that belongs to no connection.
func (h host) invalid(context.Context) Result {
	r := Result{Name: "conntrack log", Status: Pass, Detail: "packets that belong to no connection are not logged by the kernel"}
	protocol, err := h.number("nf_conntrack_log_invalid")
	switch {
	case err != nil:
		r.Status, r.Detail = Warn, "cannot be told: "+cause(err).Error()
	case protocol != 0:
		of := fmt.Sprintf("each of protocol %d", protocol)
		if protocol == 255 {
			of = "each one"
		}
		r.Status = Warn
		r.Detail = fmt.Sprintf("nf_conntrack_log_invalid is %d: of the packets that belong to no connection, the kernel logs %s; a flood of them takes the processor and fills the log", protocol, of)
		r.Remedy = "sysctl -w net.netfilter.nf_conntrack_log_invalid=0, when you have seen what you looked for"
	}
	return r
}
