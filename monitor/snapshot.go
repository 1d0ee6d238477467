// Package monitor shows what the daemon does and how it fares: as metrics, as health, and as one plain structure that
// everything else that shows it is made of.
//
// It knows nothing of how the daemon works. cmd/ctlogd fills a Snapshot whenever somebody looks; as long as nobody does,
// nothing is done here.
package monitor

import (
	"fmt"
	"slices"
	"time"

	"github.com/ctlogd/ctlogd/flow"
)

// Snapshot is the state of the daemon at one moment. Counters count since the process began.
type Snapshot struct {
	Time      time.Time `json:"time"`
	Version   string    `json:"version"`
	Commit    string    `json:"commit"`
	GoVersion string    `json:"go_version"`
	PID       int       `json:"pid"`
	Host      string    `json:"host"`
	Started   time.Time `json:"started"`
	Uptime    float64   `json:"uptime_seconds"`
	Stopping  bool      `json:"stopping"` // told to end, delivering what is left

	State   State    `json:"state"`   // Judge's
	Reasons []string `json:"reasons"` // why it is not StateOK

	Delivery string  `json:"delivery"` // reliable or best_effort
	Reader   Reader  `json:"reader"`
	Helpers  Helpers `json:"helpers"`

	Subscribers *Subscribers `json:"subscribers,omitempty"` // nil: no source names them

	Filtered uint64   `json:"filtered"`  // records that the global filter dropped
	OwnFlows uint64   `json:"own_flows"` // records of flows of ctlogd's own connections, left out
	Gaps     []Gap    `json:"gaps"`      // those that concern every output, by cause; the others are the outputs'
	Outputs  []Output `json:"outputs"`
	Kernel   Kernel   `json:"kernel"`

	Namespaces *Namespaces `json:"namespaces,omitempty"` // nil: events of other network namespaces are not asked for
	Reloads    Reloads     `json:"reloads"`
	Mark       Mark        `json:"mark"`

	LogDropped uint64 `json:"log_lines_dropped"` // lines of the daemon's own log that nobody took
}

// Reader is the one that reads the kernel's events.
type Reader struct {
	Events    map[string]uint64 `json:"events"`    // messages read, by name: new, update, destroy, expect_new, expect_destroy
	Malformed uint64            `json:"malformed"` // messages that could not be decoded
	Truncated uint64            `json:"truncated"` // messages longer than a slot, read in part
	Skipped   uint64            `json:"skipped"`   // attributes that could not be decoded, of messages that could
	Refused   uint64            `json:"refused"`   // messages that the kernel did not send

	Sysctls         map[string]int `json:"sysctls"`          // those that decide what events hold: nf_conntrack_events, _acct, _timestamp
	WithoutCounters uint64         `json:"without_counters"` // ended flows without
	WithoutStart    uint64         `json:"without_start"`

	KernelDrops     uint64 `json:"kernel_drops"`     // events that did not fit into the socket, lost (best effort)
	DeliveryRetries uint64 `json:"delivery_retries"` // the same, delivered later (reliable)
	GuardSheds      uint64 `json:"guard_sheds"`      // times that the guard has thrown ended flows away
	GuardLost       uint64 `json:"guard_lost"`       // ended flows in them

	Reads  uint64    `json:"reads"` // system calls that read at least one message
	Naps   uint64    `json:"naps"`
	Busy   float64   `json:"busy_seconds"` // neither asleep nor waiting; as a part of the time that passed: the utilisation
	Round  time.Time `json:"round"`        // when it went round last, at least once a second
	Dumped uint64    `json:"dumped"`       // flows read from the table
	Open   uint64    `json:"open"`         // open records made
	ReadTo time.Time `json:"read_to"`      // all flows that ended before are handed over
}

// Namespaces are the other network namespaces.
type Namespaces struct {
	Heard    bool        `json:"heard"`    // false: ctlogd lacks the rights
	Named    []Namespace `json:"named"`    // those that have a name and are asked for, by name
	Unnamed  int         `json:"unnamed"`  // those that the kernel may report of without a name, or without one that is asked for
	Unlisted uint64      `json:"unlisted"` // messages of namespaces that nobody asked for
}

// Namespace is one of them.
type Namespace struct {
	Name       string         `json:"name"`
	ID         int32          `json:"nsid"`
	Leaving    bool           `json:"leaving"`     // its name is gone; what it has left is being read
	Events     uint64         `json:"events"`      // messages read
	GuardSheds uint64         `json:"guard_sheds"` // times that the guard threw ends away, as its table was too full
	Entries    int64          `json:"entries"`     // of its table; -1: the namespace could not be entered
	Sysctls    map[string]int `json:"sysctls"`     // as Reader.Sysctls
}

// Fullest returns the one with the most entries, nil if none can be looked at.
func (n *Namespaces) Fullest() (most *Namespace) {
	for i := range n.Named {
		if one := &n.Named[i]; one.Entries >= 0 && (most == nil || one.Entries > most.Entries) {
			most = one
		}
	}
	return most
}

// Closed returns how many could not be entered.
func (n *Namespaces) Closed() (closed int) {
	for i := range n.Named {
		if n.Named[i].Entries < 0 {
			closed++
		}
	}
	return closed
}

// Helpers is the memory of flows with a helper, a master or labels.
type Helpers struct {
	Size      int64  `json:"size"`
	Evictions uint64 `json:"evictions"` // flows forgotten before they ended, for want of room
	Unknown   uint64 `json:"unknown"`   // ended flows whose helper is not known
}

// Subscribers are who records say the flows are of.
type Subscribers struct {
	Named   uint64   `json:"named"`   // records that say it
	Unknown uint64   `json:"unknown"` // records of which no source knows it
	Changed uint64   `json:"changed"` // records among named of flows whose address had another holder at the end
	Sources []Source `json:"sources"`
}

// Source is a source of subscribers.
type Source struct {
	Name    string            `json:"name"`
	Type    string            `json:"type"`
	Leases  int               `json:"leases"`
	Past    int               `json:"past"`            // holders before the present ones that are remembered
	Age     float64           `json:"age_seconds"`     // since the table was last known to be what the source says
	Error   string            `json:"error,omitempty"` // why it is not now
	Loads   uint64            `json:"loads"`           // times that the table was replaced
	Broken  uint64            `json:"broken"`          // lines that were skipped
	Packets map[string]uint64 `json:"packets,omitempty"`
}

// Gap counts the gaps of one cause.
type Gap struct {
	Cause   string    `json:"cause"`
	Gaps    uint64    `json:"gaps"`
	Lost    uint64    `json:"lost"`          // records, where it is known how many
	Unknown uint64    `json:"lost_unknown"`  // gaps among them of which it is not known
	Last    time.Time `json:"last,omitzero"` // when the last one grew last
}

// lost says in words how many records were lost.
func (g *Gap) lost() string {
	switch {
	case g.Unknown == 0:
		return fmt.Sprintf("%d records lost", g.Lost)
	case g.Lost == 0:
		return "records lost, it is not known how many,"
	}
	return fmt.Sprintf("%d records lost, and more of which it is not known how many,", g.Lost)
}

// Output is one output with its queue.
type Output struct {
	Name string `json:"name"` // jsonl:/var/log/ctlogd/flows.jsonl
	Kind string `json:"kind"` // jsonl, ipfix, kafka

	Failing bool      `json:"failing"`              // the last write has failed
	Since   time.Time `json:"since"`                // so, or not so, since then
	Error   string    `json:"last_error,omitempty"` // of the last write that failed, even if others did not after it
	ErrorAt time.Time `json:"last_error_at,omitzero"`

	Waiting   int64   `json:"queue_records"`      // records that wait in memory, those being written included
	Used      int     `json:"queue_used"`         // room that they take, in records
	Max       int     `json:"queue_max"`          // room that there is, in records
	OldestAge float64 `json:"oldest_age_seconds"` // of the record that waits longest, in memory or spool; 0 if none does
	Spool     *Spool  `json:"spool,omitempty"`

	Written    uint64  `json:"written"`     // records delivered, gap records included
	Filtered   uint64  `json:"filtered"`    // records that the output's own filter dropped
	Dropped    uint64  `json:"dropped"`     // records lost because queue or spool was full
	Rejected   uint64  `json:"rejected"`    // records lost because the destination refused them for good
	Left       uint64  `json:"left"`        // records not delivered when the output ended
	GapRecords uint64  `json:"gap_records"` // made for its own losses
	Errors     uint64  `json:"errors"`      // writes that failed
	Retries    uint64  `json:"retries"`     // writes that were tried again
	Bytes      *uint64 `json:"bytes,omitempty"`

	Counters  []Counter `json:"counters,omitempty"`  // which outputs of its kind alone have; see OwnMetrics
	KeptSince time.Time `json:"kept_since,omitzero"` // when the oldest record was made that the output still holds

	Gaps []Gap     `json:"gaps"` // of its own, by cause
	Lag  Histogram `json:"lag"`  // from the end of a flow to its record written, in seconds
}

// Counter is one of an output's own.
type Counter struct {
	Name  string `json:"name"`
	Label string `json:"label,omitempty"`
	N     uint64 `json:"n"`
}

// Spool is where an output's records wait on disk.
type Spool struct {
	Path    string `json:"path"`
	Records uint64 `json:"records"` // that wait
	Bytes   int64  `json:"bytes"`
	Max     int64  `json:"max_bytes"`
	Dropped uint64 `json:"dropped"` // records lost because it was full
	Damaged uint64 `json:"damaged"` // records lost because a file was damaged
}

// Histogram counts observations in buckets.
type Histogram struct {
	Bounds []float64 `json:"bounds"` // the buckets' upper bounds
	Counts []uint64  `json:"counts"` // one for each bucket, and the last for what is beyond
	Sum    float64   `json:"sum"`
}

// Kernel is what the kernel says of connection tracking in this network namespace.
type Kernel struct {
	Error        string `json:"error,omitempty"` // why the rest is not known
	Entries      uint32 `json:"entries"`
	Limit        uint32 `json:"limit"`
	Expectations uint32 `json:"expectations"`
	ExpectLimit  uint32 `json:"expectations_limit"` // 0: not known
	CPUs         []CPU  `json:"cpus"`
}

// CPU is what one CPU has counted since boot. The kernel's counters have 32 bits.
type CPU struct {
	CPU           int    `json:"cpu"`
	Found         uint32 `json:"found"`
	Invalid       uint32 `json:"invalid"`
	Insert        uint32 `json:"insert"`
	InsertFailed  uint32 `json:"insert_failed"`
	Drop          uint32 `json:"drop"`
	EarlyDrop     uint32 `json:"early_drop"`
	Error         uint32 `json:"error"`
	SearchRestart uint32 `json:"search_restart"`
	ClashResolve  uint32 `json:"clash_resolve"`
	ChainTooLong  uint32 `json:"chain_toolong"`
}

// Mark is what the process leaves in the state directory for the next one.
type Mark struct {
	Failing bool      `json:"failing"` // it is in memory alone, since the directory cannot be used
	Error   string    `json:"error,omitempty"`
	Since   time.Time `json:"since,omitzero"`
}

// Reloads are how often SIGHUP had the configuration read again.
type Reloads struct {
	OK     uint64    `json:"ok"`
	Failed uint64    `json:"failed"`
	Last   time.Time `json:"last,omitzero"`
	LastOK bool      `json:"last_ok"`
}

// GapsOf returns the causes that have lost something, or may: those in always.
func GapsOf(stats *flow.GapStats, always ...flow.Cause) []Gap {
	gaps := []Gap{}
	for c := range stats {
		g := Gap{Cause: flow.Cause(c).String(), Gaps: stats[c].Gaps.Load(), Lost: stats[c].Lost.Load(),
			Unknown: stats[c].Unknown.Load()}
		if ns := stats[c].Last.Load(); ns != 0 {
			g.Last = time.Unix(0, ns)
		}
		if g.Gaps > 0 || slices.Contains(always, flow.Cause(c)) {
			gaps = append(gaps, g)
		}
	}
	return gaps
}

// Count returns how many observations there are.
func (h *Histogram) Count() (n uint64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// Since returns what was observed after an earlier state of the same histogram. One that has begun anew, as that of an
// output that was replaced, is all of it.
func (h *Histogram) Since(then *Histogram) Histogram {
	d := Histogram{Bounds: h.Bounds, Counts: slices.Clone(h.Counts), Sum: h.Sum - then.Sum}
	if len(then.Counts) != len(h.Counts) {
		return *h
	}
	for i, n := range then.Counts {
		if n > h.Counts[i] {
			return *h
		}
		d.Counts[i] -= n
	}
	return d
}

// Quantile returns the value below which a part q of the observations lies, as Prometheus' histogram_quantile has it:
// evenly spread within their bucket, and the last bound for what is beyond; 0 without observations.
func (h *Histogram) Quantile(q float64) float64 {
	rank := q * float64(h.Count())
	if rank == 0 {
		return 0
	}
	seen, lower := 0.0, 0.0
	for i, upper := range h.Bounds {
		n := float64(h.Counts[i])
		if seen+n >= rank && n > 0 {
			return lower + (upper-lower)*(rank-seen)/n
		}
		seen, lower = seen+n, upper
	}
	return lower
}

// Lost returns how many records are known to be lost, in all outputs together.
func (s *Snapshot) Lost() (n uint64) {
	for _, g := range s.Gaps {
		n += g.Lost
	}
	for _, o := range s.Outputs {
		for _, g := range o.Gaps {
			n += g.Lost
		}
	}
	return n
}
