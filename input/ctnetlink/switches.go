package ctnetlink

import (
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/input/netns"
)

const (
	sysctls = "/proc/sys/net/netfilter/"

	// switchEvery is how often the switches are read.
	switchEvery = time.Second

	// switchGap is how long the gaps are that tell of the time in which events are off, so that a process that is killed
	// leaves out no more.
	switchGap = time.Minute
)

// Switch is a sysctl that decides what events there are and what is in them, as an index of netns.Sysctls.
type Switch int

const (
	SwitchEvents Switch = iota
	SwitchAccounting
	SwitchTimestamps
	numSwitches
)

// Name returns the sysctl's name.
func (s Switch) Name() string { return netns.Sysctls[s] }

// Off says what it means that the switch is off.
func (s Switch) Off() string { return switchText[s].off }

var switchText = [numSwitches]struct{ off, on string }{
	{"flows that begin from now on report nothing", "flows that begin from now on report their end"},
	{"flows that begin from now on have no packets and no bytes",
		"flows that begin from now on have packets and bytes"},
	{"records have no start, no end and no flow_id of flows that begin from now on",
		"records have start, end and flow_id of flows that begin from now on"},
}

// switches watches the sysctls of connection tracking. Somebody may set one to 0 at any time, by hand, with a file of
// sysctls, or by loading the module again. Flows that are born while events are off never report anything, even after
// they are back (nf_ct_ecache_ext_add in net/netfilter/nf_conntrack_ecache.c). It is the reader's.
type switches struct {
	// read returns a switch's value, "" where it is not known. The files are not on any disk: reading does not wait.
	read func(Switch) string

	log   *zap.Logger
	state *[numSwitches]atomic.Pointer[string] // values at the last look
	asked time.Time
	off   [numSwitches]bool // at the last look
	since time.Time         // while events are off: no gap tells yet of the flows born from then on
}

// readSwitch reads a switch of ctlogd's own namespace.
func readSwitch(s Switch) string {
	b, err := os.ReadFile(sysctls + s.Name())
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func newSwitches(log *zap.Logger, now time.Time, read func(Switch) string) switches {
	s := switches{log: log, asked: now, state: new([numSwitches]atomic.Pointer[string]), read: read}
	// Of what is off from the start the checks tell, and events are looked at: those flows are in a gap.
	for i := SwitchAccounting; i < numSwitches; i++ {
		s.off[i] = s.value(i) == "0"
	}
	return s
}

// value reads a switch, and keeps what it finds.
func (s *switches) value(i Switch) string {
	v := s.read(i)
	if old := s.state[i].Load(); old == nil || *old != v {
		s.state[i].Store(&v)
	}
	return v
}

// look calls gap with the times between which flows were born that report nothing. last says that it is the last look.
func (s *switches) look(now time.Time, last bool, gap func(from, to time.Time)) {
	if now.Sub(s.asked) < switchEvery && !last {
		return
	}
	before := s.asked
	s.asked = now
	for i := range numSwitches {
		was := s.off[i]
		s.off[i] = s.value(i) == "0"
		if s.off[i] != was {
			s.tell(i)
		}
		if i == SwitchEvents && (s.off[i] || was) {
			if !was {
				s.since = before
			}
			if was != s.off[i] || last || now.Sub(s.since) >= switchGap {
				gap(s.since, now)
				s.since = now
			}
		}
	}
}

func (s *switches) tell(i Switch) {
	t, name := switchText[i], i.Name()
	if s.off[i] {
		s.log.Error(t.off+": net.netfilter."+name+" was set to 0",
			zap.String("remedy", "sysctl -w net.netfilter."+name+"=1, and see who sets it: grep -r "+name+" /etc/sysctl.* /usr/lib/sysctl.d"))
	} else {
		s.log.Info(t.on + ": net.netfilter." + name + " is on again")
	}
}

// Switch returns the value of a switch at the last look, "" where it is not known. Any goroutine may call it.
func (s *Source) Switch(i Switch) string {
	if v := s.switches.state[i].Load(); v != nil {
		return *v
	}
	return ""
}

// Switches are all switches.
func Switches() []Switch { return []Switch{SwitchEvents, SwitchAccounting, SwitchTimestamps} }
