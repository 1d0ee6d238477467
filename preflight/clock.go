package preflight

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clock is what the kernel knows of its own (adjtimex(2)).
type clock struct {
	unsynchronized  bool
	estimated, most time.Duration // how wrong it may be
}

// wrongBy is the error from on which a clock is of no use as evidence: who asks for a flow knows the second.
const wrongBy = time.Second

func (h host) clock(context.Context) Result {
	r := Result{Name: "clock", Status: Warn,
		Remedy: "run chrony, ntpd or systemd-timesyncd, and see chronyc tracking, ntpq -p or timedatectl timesync-status"}
	c, err := h.kernel.clock()
	switch {
	case errors.Is(err, unix.EPERM):
		r.Detail = "the kernel does not say whether its clock is synchronised: adjtimex(2) is refused"
		r.Remedy = "ProtectClock= and SystemCallFilter= in the unit refuse it: set ProtectClock=no and SystemCallFilter=adjtimex"
	case err != nil:
		r.Detail, r.Remedy = "cannot be told: "+cause(err).Error(), ""
	case c.unsynchronized:
		r.Detail = "not synchronised: nobody knows how wrong the times in the records are"
	case c.estimated >= wrongBy:
		r.Detail = fmt.Sprintf("synchronised, but probably wrong by %s", c.estimated.Round(time.Millisecond))
	default:
		r.Status, r.Remedy = Pass, ""
		r.Detail = fmt.Sprintf("synchronised, probably to within %s, certainly to within %s",
			c.estimated.Round(time.Microsecond), c.most.Round(time.Microsecond))
	}
	return r
}
