// Package mark is what a process leaves on disk for the one that comes after it, and the goroutine that keeps it there.
//
// A Mark (mark.go) says until when each output had all. A Keeper (keeper.go) writes it every second, and at the start puts a
// gap into each queue for the time since the last process's mark.
package mark

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
)

const (
	fileName = "mark.json"
	version  = 1
)

// Mark is what a process leaves on disk, about once a second, for the one that comes after it: until when it lived, and
// what each output had delivered by then. From it the next process tells what the time between has cost.
//
// It is replaced by renaming, without fsync: a process that is killed loses nothing of it, and after a power failure an
// older mark makes the gap longer than it was, which is the safe side. One that a file system has torn is not read; the
// gap begins at the time of its file.
type Mark struct {
	Version int          `json:"version"`
	BootID  string       `json:"boot_id"` // tells a restart of ctlogd from one of the machine
	Time    int64        `json:"time"`    // ns since 1970; where Clean, when the process left the events
	Clean   bool         `json:"clean"`   // the process ended in order: what it had read is delivered, or in a gap
	Outputs []OutputMark `json:"outputs"`

	// Socket is the one that the process has left to the next, where Clean; nil if it has not.
	Socket *Socket `json:"socket,omitempty"`

	// Gone are outputs that were taken out of the configuration. When one of that name is configured again, it has a gap of
	// what came meanwhile, and those that it had not taken before.
	Gone []OutputMark `json:"gone,omitempty"`
}

// Socket is the netlink socket at the end of a process, or at the start of the next.
type Socket struct {
	Cookie uint64 `json:"cookie"` // tells it from others
	Drops  uint32 `json:"drops"`  // the kernel's count, as far as it is accounted for
	Lossy  bool   `json:"lossy"`  // delivery is best_effort: what is dropped is lost
}

// OutputMark is a Mark's part for one output.
type OutputMark struct {
	Name string `json:"name"`

	// DeliveredUntil is a time such that each flow that ended before it is delivered, in the spool, or in a gap.
	DeliveredUntil int64 `json:"safe"`

	// Synced is the same for a stop of the machine, which loses what is not on the disk yet. It is never later.
	Synced int64 `json:"synced"`

	// Absent is since when the output has been in no configuration; 0: it is in one.
	Absent int64 `json:"absent,omitempty"`

	// Gaps are those that the output has not taken yet.
	Gaps []deliver.Gap `json:"gaps,omitempty"`

	// Unmarked says that the output has still to tell itself what it had missed when the process began.
	Unmarked bool `json:"unmarked,omitempty"`
}

// maxGone bounds the outputs that are remembered when they are gone.
const maxGone = 100

// until returns the gaps of an output that is configured again at a time: what it has not taken, and what came meanwhile.
func (o *OutputMark) until(now int64) []deliver.Gap {
	if o.Absent == 0 {
		return o.Gaps
	}
	g := deliver.Gap{Gap: flow.Gap{Cause: flow.CauseOutputDown, Output: o.Name}, From: min(o.Absent, now), To: max(o.Absent, now)}
	return append(slices.Clone(o.Gaps), g)
}

// New returns the mark of this moment, of these queues. All flows that ended before read have been ingested; it is taken
// before the call. clean says that the queues are closed, and that after read no events were taken from the kernel.
func New(queues []*deliver.Queue, bootID string, read time.Time, clean bool) Mark {
	m := Mark{Version: version, BootID: bootID, Time: time.Now().UnixNano(), Clean: clean}
	if clean {
		m.Time = read.UnixNano()
	}
	for _, q := range queues {
		o := OutputMark{Name: q.Name(), DeliveredUntil: q.Since(read)}
		o.Synced = synced(q, o.DeliveredUntil)
		o.Gaps = q.Unrecorded() // last: what is lost meanwhile is in it, or DeliveredUntil does not pass it
		m.Outputs = append(m.Outputs, o)
	}
	return m
}

// synced returns a time such that no flow that ended before it is missing if the machine stops at once. until is the same
// for a stop of the process.
func synced(q *deliver.Queue, until int64) int64 {
	since, unknown := q.Unsynced()
	if since != 0 {
		until = min(until, since)
	}
	if unknown {
		until = min(until, time.Now().Add(-writeback()).UnixNano())
	}
	return until
}

// writeback returns how long the kernel may take to bring to the disk what was written: its settings (proc_sys_vm(5)), and
// the 5 s in which file systems commit.
func writeback() time.Duration {
	total := 5 * time.Second
	for key, usual := range map[string]int{"dirty_expire_centisecs": 3000, "dirty_writeback_centisecs": 500} {
		n := usual
		if text, err := os.ReadFile("/proc/sys/vm/" + key); err == nil {
			if set, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
				n = set
			}
		}
		total += time.Duration(n) * 10 * time.Millisecond
	}
	return total
}

// Save replaces the mark in the directory.
func (m *Mark) Save(dir string) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, fileName)
	if err := os.WriteFile(name+".new", append(text, '\n'), 0o640); err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	return nil
}

// Load returns the mark in the directory, nil if there is none: this is the first start. A mark that cannot be
// read is an error; the time of its file still tells when its process last lived, and stands in a mark without outputs.
func Load(dir string) (*Mark, error) {
	name := filepath.Join(dir, fileName)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	m := new(Mark)
	if err == nil {
		err = json.Unmarshal(text, m)
	}
	if err == nil && m.Version != version {
		err = fmt.Errorf("version %d, this is version %d", m.Version, version)
	}
	if err == nil {
		return m, nil
	}
	m = nil
	if info, statErr := os.Stat(name); statErr == nil {
		m = &Mark{Time: info.ModTime().UnixNano()}
	}
	return m, fmt.Errorf("read mark %s: %w", name, err)
}

// Gaps returns what the output has lost between the mark and now, when this process joined the events: the gaps that it
// had not taken yet, and the one that the end of the last process and the time since have made. kept is the socket that
// outlived that process, in which the kernel has kept the events meanwhile; nil if there is none. An output that the mark
// does not know has lost what came since the last process, too, but nothing before.
func (m *Mark) Gaps(output, bootID string, kept *Socket, now time.Time) []deliver.Gap {
	var gaps []deliver.Gap
	delivered, synced := m.Time, m.Time
	known := false
	for _, o := range m.Outputs {
		switch {
		case o.Name != output:
			continue
		case known: // one of this name was taken out and had not ended when another was put in
			delivered, synced = min(delivered, o.DeliveredUntil), min(synced, o.Synced)
		default:
			delivered, synced, known = o.DeliveredUntil, o.Synced, true
		}
		gaps = append(gaps, o.until(now.UnixNano())...)
	}
	if len(m.Outputs) == 0 { // it could not be read
		synced -= int64(writeback())
	}
	for _, o := range m.Gone {
		if o.Name == output {
			gaps = append(gaps, o.until(now.UnixNano())...)
		}
	}
	g := deliver.Gap{From: m.Time, To: now.UnixNano()}
	g.Output = output
	switch {
	case m.BootID != bootID:
		g.Cause = flow.CauseReboot
	case !m.Clean:
		g.Cause = flow.CauseCrash
	case kept == nil || m.Socket != nil && m.Socket.Cookie != kept.Cookie:
		g.Cause = flow.CauseDowntime
	case m.Socket != nil && m.Socket.Lossy && m.Socket.Drops != kept.Drops:
		// The difference is right across the wrap of the counter.
		g.Gap = flow.Gap{Cause: flow.CauseOverrun, Lost: uint64(kept.Drops - m.Socket.Drops), LostKnown: true}
	default:
		return gaps
	}
	switch {
	case m.Clean:
	case g.Cause == flow.CauseReboot:
		g.From = synced
	default:
		g.From = delivered
	}
	// The clock may have been set back, between two processes or before: then both its readings are covered.
	g.From, g.To = min(g.From, m.Time, g.To), max(g.From, m.Time, g.To)
	return append(gaps, g)
}

// Orphans returns the outputs of the mark that are not among those that there are now, and their gaps.
func (m *Mark) Orphans(outputs []string) (orphans []OutputMark) {
	for _, o := range m.Gone {
		if !slices.Contains(outputs, o.Name) {
			orphans = append(orphans, o)
		}
	}
	for _, o := range m.Outputs {
		if slices.Contains(outputs, o.Name) {
			continue
		}
		if !m.Clean { // it may not have got what was read before
			g := deliver.Gap{Gap: flow.Gap{Cause: flow.CauseCrash, Output: o.Name}, From: min(o.DeliveredUntil, m.Time), To: m.Time}
			o.Gaps = append(o.Gaps, g)
		}
		orphans = append(orphans, OutputMark{Name: o.Name, Absent: cmp.Or(o.Absent, m.Time), Gaps: o.Gaps})
	}
	return orphans
}

// BootID returns what the kernel calls this boot; "" if it does not tell.
func BootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}
