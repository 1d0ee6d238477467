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

// clock watches the machine's clock. Every time in the records is a reading of it, and an auditor has to know which
// readings to trust. It is the reader's.
type clock struct {
	// read returns the time of the machine's clock, and of one that nobody can set, in nanoseconds.
	read func() (wall, steady int64)
	// ask returns whether the clock is not synchronised.
	ask func() (bool, error)

	base           time.Time // what the steady clock counts from
	log            *zap.Logger
	unknown        bool // ask fails: a seccomp filter, such as that of systemd's ProtectClock=, forbids the question
	unsynchronized bool
	askedAt        int64 // by the steady clock
	offset         int64 // of the machine's clock against the steady one
	steppedFrom    int64 // the latest time that the clock showed just before somebody set it; 0: nobody has
}

func newClock(log *zap.Logger) clock {
	base := time.Now()
	ask := func() (bool, error) { return unsynchronised(unix.Adjtimex, timesync) }
	c := clock{base: base, log: log, ask: ask, read: func() (wall, steady int64) { return readings(time.Now(), base) }}
	c.begin()
	return c
}

// begin looks for the first time. It logs nothing: the checks at the start report the clock's state.
func (c *clock) begin() {
	wall, steady := c.read()
	c.offset, c.askedAt = wall-steady, steady
	var err error
	c.unsynchronized, err = c.ask()
	c.unknown = err != nil
}

// readings returns what the machine's clock and the steady one showed at a time.
func readings(now, base time.Time) (wall, steady int64) { return now.UnixNano(), int64(now.Sub(base)) }

// look notices what has become of the clock since the last look.
func (c *clock) look() { c.lookAt(c.read()) }

// lookAt is look with both clocks already read.
func (c *clock) lookAt(wall, steady int64) {
	if step := wall - steady - c.offset; step >= int64(stepMin) || step <= -int64(stepMin) {
		c.stepped(step)
	}
	if steady-c.askedAt >= int64(clockEvery) && !c.unknown {
		c.askedAt = steady
		unsynchronized, err := c.ask()
		switch {
		case err != nil:
			c.unknown = true
		case unsynchronized != c.unsynchronized:
			c.unsynchronized = unsynchronized
			c.log.Info("the machine's clock has changed its state; the records say so while it is not synchronised",
				zap.Bool("synchronised", !unsynchronized))
		}
	}
}

// stepped notes that the clock seems to have been set by step. The two clocks are read one after the other, and the process
// may have been stopped in between. So the clock was set only if a second reading shows the same step.
func (c *clock) stepped(step int64) {
	wall, steady := c.read()
	if again := wall - steady - c.offset; again-step >= int64(stepMin) || again-step <= -int64(stepMin) {
		return // the next look will decide
	}
	c.steppedFrom = max(c.steppedFrom, steady+c.offset)
	c.offset = wall - steady
	c.log.Warn("the machine's clock was set; records of flows that began before say so", zap.Duration("by", time.Duration(step)))
}

// mark looks at the clock, and marks the records whose times it casts doubt on.
func (c *clock) mark(recs []flow.Record) {
	c.look()
	if !c.unsynchronized && c.steppedFrom == 0 {
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
		if first <= c.steppedFrom {
			r.Has |= flow.Stepped
		}
	}
}

// timesync is the directory of systemd-timesyncd(8). It exists while the service runs. A file in it says that the service
// has synchronised the clock since the machine started.
const timesync = "/run/systemd/timesync"

// unsynchronised asks the kernel whether its clock is unsynchronised: nobody has disciplined it, or not for a long time
// (adjtimex(2)). Where that is forbidden, as under systemd's ProtectClock=, it asks systemd-timesyncd, whose directory is dir.
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
