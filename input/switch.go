package input

import (
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
)

const (
	eventsPath = "/proc/sys/net/netfilter/nf_conntrack_events"

	// switchEvery is how often the switch is read.
	switchEvery = time.Second

	// switchGap is how long the gaps are that tell of the time in which it is off, so that a process that is killed
	// leaves out no more.
	switchGap = time.Minute
)

// eventsSwitch watches net.netfilter.nf_conntrack_events. Somebody may set it to 0 at any time, by hand or with a file of
// sysctls, and the flows that are born then never report anything, even after it is back (nf_ct_ecache_ext_add in
// net/netfilter/nf_conntrack_ecache.c). It is the reader's.
type eventsSwitch struct {
	// read returns the switch's value, "" where it is not known.
	read func() string

	log   *zap.Logger
	asked time.Time
	off   bool      // at the last look
	since time.Time // while it is off: no gap tells yet of the flows born from then on
}

func newEventsSwitch(log *zap.Logger, now time.Time) eventsSwitch {
	return eventsSwitch{log: log, asked: now, read: func() string {
		b, err := os.ReadFile(eventsPath)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}}
}

// look calls gap with the times between which flows were born that report nothing. end says that it is the last look.
func (s *eventsSwitch) look(now time.Time, end bool, gap func(from, to time.Time)) {
	if now.Sub(s.asked) < switchEvery && !end {
		return
	}
	before := s.asked
	s.asked = now
	was := s.off
	s.off = s.read() == "0"
	switch {
	case s.off && !was:
		s.since = before
		s.log.Error("flows that are born from now on report nothing: net.netfilter.nf_conntrack_events = 0",
			zap.String("remedy", "sysctl -w net.netfilter.nf_conntrack_events=1"))
	case was && !s.off:
		s.log.Info("flows that are born from now on report their end: net.netfilter.nf_conntrack_events is on again")
	case !s.off || !end && now.Sub(s.since) < switchGap:
		return
	}
	gap(s.since, now)
	s.since = now
}
