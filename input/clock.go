package input

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

const (
	// clockEvery is how often the kernel is asked whether its clock is synchronised.
	clockEvery = time.Second

	// stepMin is the least by which a clock is set and not slewed: ntpd sets it from 128 ms on, others from more.
	stepMin = 100 * time.Millisecond
)

// clock watches the machine's clock, of which every time in the records is a reading: an auditor has to know which of
// them to trust. It is the reader's.
type clock struct {
	// read returns the clock's time and that of one which nobody can set, in nanoseconds.
	read func() (wall, steady int64)
	// ask returns whether the clock is not synchronised.
	ask func() (bool, error)

	log            *zap.Logger
	refused        bool // there is nobody to ask: a seccomp filter, as ProtectClock= of systemd makes it, keeps the kernel from it
	unsynchronized bool
	askedAt        int64 // by the steady clock
	offset         int64 // of the clock against the steady one
	before         int64 // the latest time that it showed before it was last set, the latest of them all; 0: it was not
}

func newClock(log *zap.Logger) clock {
	base := time.Now()
	ask := func() (bool, error) { return unsynchronised(unix.Adjtimex, timesync) }
	c := clock{log: log, ask: ask, read: func() (wall, steady int64) {
		now := time.Now()
		return now.UnixNano(), int64(now.Sub(base))
	}}
	c.begin()
	return c
}

// begin looks for the first time. What there is to say of the clock at the start the checks say.
func (c *clock) begin() {
	wall, steady := c.read()
	c.offset, c.askedAt = wall-steady, steady
	var err error
	c.unsynchronized, err = c.ask()
	c.refused = err != nil
}

// look notices what has become of the clock since the last look.
func (c *clock) look() {
	wall, steady := c.read()
	if step := wall - steady - c.offset; step >= int64(stepMin) || step <= -int64(stepMin) {
		c.stepped(step)
	}
	if steady-c.askedAt >= int64(clockEvery) && !c.refused {
		c.askedAt = steady
		unsynchronized, err := c.ask()
		switch {
		case err != nil:
			c.refused = true
		case unsynchronized != c.unsynchronized:
			c.unsynchronized = unsynchronized
			c.log.Info("the machine's clock has changed its state; the records say so while it is not synchronised",
				zap.Bool("synchronised", !unsynchronized))
		}
	}
}

// stepped takes note that the clock seems to have been set. Both times are read one after the other, and the process
// may have been stopped in between: it was set only if it seems so again.
func (c *clock) stepped(step int64) {
	wall, steady := c.read()
	if again := wall - steady - c.offset; again-step >= int64(stepMin) || again-step <= -int64(stepMin) {
		return // the next look will tell
	}
	c.before = max(c.before, steady+c.offset)
	c.offset = wall - steady
	c.log.Warn("the machine's clock was set; the records that it matters to say so", zap.Duration("by", time.Duration(step)))
}

// mark looks, and has the records say what there is to say of the times in them.
func (c *clock) mark(recs []flow.Record) {
	c.look()
	if !c.unsynchronized && c.before == 0 {
		return
	}
	for i := range recs {
		r := &recs[i]
		if c.unsynchronized {
			r.Has |= flow.Unsynchronized
		}
		first := r.Start
		if first == 0 {
			first, _ = r.Time()
		}
		if first <= c.before {
			r.Has |= flow.Stepped
		}
	}
}

// timesync is the directory of systemd-timesyncd(8), there while it runs. Its file says that it has synchronised the
// clock since the machine started.
const timesync = "/run/systemd/timesync"

// unsynchronised asks the kernel whether its clock is unsynchronised: nobody has set it, or not for long (adjtimex(2)).
// Where the kernel may not be asked, as under ProtectClock= of systemd, systemd-timesyncd tells, if it runs in dir.
func unsynchronised(ask func(*unix.Timex) (int, error), dir string) (bool, error) {
	var t unix.Timex
	state, err := ask(&t)
	if !errors.Is(err, unix.EPERM) {
		return state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0, err
	}
	if _, gone := os.Stat(dir); gone != nil {
		return false, err
	}
	_, missing := os.Stat(filepath.Join(dir, "synchronized"))
	return missing != nil, nil
}
