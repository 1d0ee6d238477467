// Package preflight asks the host whether it lets ctlogd do its work: rights, kernel features, sysctls, the state of
// the connection tracking table, buffers and output paths. Everything it looks at belongs to the network namespace of
// the calling thread. It changes nothing, unless told to set the sysctls.
package preflight

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/unit"
)

// Status says how a check came out.
type Status string

const (
	Pass Status = "pass"
	Warn Status = "warn" // ctlogd works, but records lack something, or it could not be told
	Fail Status = "fail" // ctlogd does not start, or sees no events
)

// Result is the outcome of one check.
type Result struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`           // what was found
	Remedy string `json:"remedy,omitempty"` // what to do about it; empty when there is nothing to do
}

// Options says what to check beyond the kernel.
type Options struct {
	// ReceiveBuffer is the socket buffer that will be asked for; 0 leaves the check out.
	ReceiveBuffer unit.Size

	// Fix sets to 1 those of the Sysctls that are not.
	Fix bool

	// Daemon says that the daemon itself asks: then any other ctlogd is one too many.
	Daemon bool

	// OutputsOnly leaves the host out: only files, certificates and outputs are checked.
	OutputsOnly bool

	// NoDestinations names the outputs whose records have no destinations.
	NoDestinations []string

	// Files are what the disks must have room for.
	Files []Files

	// Certificates are checked in order after the host.
	Certificates []Certificate

	// Outputs are checked in order after those.
	Outputs []Output
}

// Output is one output's own check.
type Output struct {
	Name  string                      // "outputs.jsonl[0]"
	About string                      // what it writes to
	Check func(context.Context) error // the error says what is wrong, and behind "; " what to do

	// Reach tries the way to the destination. Its error is of what may be right by itself later: a warning. expires is
	// when the first certificate of the peer's does, zero if it has none. May be nil.
	Reach func(context.Context) (expires time.Time, err error)

	// Tell returns what is worth knowing when all is well, "" for nothing. May be nil.
	Tell func() string
}

// Run makes every check, in a fixed order, and stops early only when ctx ends. It needs no privilege: what cannot be
// told without one comes out as a warning that says so.
func Run(ctx context.Context, o Options) []Result {
	return host{proc: "/proc", kernel: linux{}, now: time.Now, daemon: o.Daemon}.run(ctx, o)
}

// Tracking tells whether packets are tracked now: the rules that start tracking may go at any time, as by nft flush ruleset.
func Tracking(ctx context.Context) Result {
	return host{proc: "/proc", kernel: linux{}, now: time.Now}.tracking(ctx)
}

// kernel is what the checks ask through sockets.
type kernel interface {
	// table returns how many flows the table holds and how many it may hold (0: any number).
	table() (entries, limit uint32, err error)
	// hooks returns the names of the functions hooked into PREROUTING for a family (NFPROTO_IPV4, NFPROTO_IPV6).
	hooks(family uint8) ([]string, error)
	// flowtables returns those of nftables.
	flowtables() ([]flowtable, error)
	// helpers returns the helpers that objects of nftables assign, one name for each object.
	helpers() ([]string, error)
	// translations returns the rules of nftables that translate sources.
	translations() ([]translation, error)
	// expectations returns how many there are.
	expectations() (uint32, error)
	// listeners returns the netlink sockets that are members of conntrack's groups.
	listeners() ([]listener, error)
	clock() (clock, error)
	// disk tells on which device a path is, and how many bytes a user without rights may still write there.
	disk(path string) (device, free uint64, err error)
	// forceBuffer tries SO_RCVBUFFORCE on a socket of its own.
	forceBuffer(bytes int) error
}

// host is the machine under test; the tests give it another root for proc and another kernel.
type host struct {
	proc   string
	kernel kernel
	now    func() time.Time
	daemon bool
}

func (h host) run(ctx context.Context, o Options) []Result {
	var checks []func(context.Context) Result
	if !o.OutputsOnly {
		checks = h.checks(o)
	}
	for _, s := range h.systems(o.Files) {
		checks = append(checks, s.result)
	}
	for _, c := range o.Certificates {
		checks = append(checks, func(context.Context) Result { return c.result(h.now()) })
	}
	for _, out := range o.Outputs {
		checks = append(checks, func(ctx context.Context) Result { return out.result(ctx, h.now()) })
	}

	var results []Result
	for _, check := range checks {
		if ctx.Err() != nil {
			break
		}
		results = append(results, check(ctx))
	}
	return results
}

// checks are those of the host itself.
func (h host) checks(o Options) []func(context.Context) Result {
	checks := []func(context.Context) Result{h.capability, h.ctnetlink}
	for _, s := range Sysctls {
		checks = append(checks, func(context.Context) Result { return h.sysctl(s, o.Fix) })
	}
	checks = append(checks, h.tracking, h.fill, h.buckets, h.established, h.expectations, h.invalid,
		h.offload, h.helpers)
	if len(o.NoDestinations) > 0 {
		checks = append(checks, func(context.Context) Result { return h.shared(o.NoDestinations) })
	}
	checks = append(checks, h.others, h.clock)
	if o.ReceiveBuffer > 0 {
		checks = append(checks, func(context.Context) Result { return h.buffer(o.ReceiveBuffer) })
	}
	return checks
}

func (o Output) result(ctx context.Context, now time.Time) Result {
	var expires time.Time
	status, err := Fail, o.Check(ctx)
	if err == nil && o.Reach != nil {
		status = Warn
		expires, err = o.Reach(ctx)
	}
	switch {
	case err != nil:
		detail, remedy, _ := strings.Cut(err.Error(), "; ")
		return Result{Name: o.Name, Status: status, Detail: detail, Remedy: remedy}
	case !expires.IsZero() && expires.Sub(now) < soon:
		return Result{Name: o.Name, Status: Warn,
			Detail: fmt.Sprintf("%s: a certificate that it shows expires on %s", o.About, day(expires)),
			Remedy: "have it renewed there, or records will wait for a session"}
	}
	r := Result{Name: o.Name, Status: Pass, Detail: o.About}
	if o.Tell != nil {
		if text := o.Tell(); text != "" {
			r.Detail += ": " + text
		}
	}
	return r
}
