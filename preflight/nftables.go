package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// flowtable is one of nftables' shortcuts for the packets of known flows.
type flowtable struct {
	family      uint8 // NFPROTO_INET, ...
	table, name string
	counter     bool // it counts what it forwards
}

var families = map[uint8]string{1: "inet", 2: "ip", 10: "ip6"} // NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6

func (t flowtable) String() string {
	return fmt.Sprintf("%s %s %s", families[t.family], t.table, t.name)
}

// offload tells whether packets take a way past conntrack on which nobody counts them.
func (h host) offload(context.Context) Result {
	r := Result{Name: "flowtables", Status: Pass}
	tables, err := h.kernel.flowtables()
	if err != nil {
		return untold(r, err, "nftables is not there, and no flowtable of it")
	}
	var silent []string
	for _, t := range tables {
		if !t.counter {
			silent = append(silent, t.String())
		}
	}
	switch {
	case len(silent) > 0:
		r.Status = Warn
		r.Detail = fmt.Sprintf("without counter: %s; the packets and bytes of flows that go through stand still",
			strings.Join(silent, ", "))
		r.Remedy = "write counter into the definition: flowtable NAME { hook ingress priority 0; devices = { ... }; counter; }"
	case len(tables) > 0:
		r.Detail = fmt.Sprintf("%d, with counters", len(tables))
	default:
		r.Detail = "none in nftables"
	}
	return r
}

// helpers tells who assigns helpers to flows, as far as that can be known: rules of iptables cannot be asked.
func (h host) helpers(context.Context) Result {
	r := Result{Name: "conntrack helpers", Status: Pass}
	// Gone since Linux 6.0, where rules alone assign helpers.
	if value, err := h.read("nf_conntrack_helper"); err == nil && value != "0" {
		r.Detail = "assigned to flows by their ports: net.netfilter.nf_conntrack_helper = " + value
		return r
	}
	names, err := h.kernel.helpers()
	if err != nil {
		return untold(r, err, "assigned by rules of iptables alone, if at all: nftables is not there")
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		r.Detail = "nftables assigns none; what iptables' CT rules assign cannot be told"
	} else {
		r.Detail = "nftables has rules for " + strings.Join(names, ", ")
	}
	return r
}

// untold is the result of a question to nftables that was answered with err; absent is the detail where there is no
// nftables.
func untold(r Result, err error, absent string) Result {
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		r.Detail = absent
	case errors.Is(err, unix.EPERM):
		r.Status, r.Remedy = Warn, "repeat the check with the rights that the daemon will have"
		r.Detail = "cannot be told without CAP_NET_ADMIN"
	default:
		r.Status, r.Detail = Warn, "cannot be told: "+cause(err).Error()
	}
	return r
}
