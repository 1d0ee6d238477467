//go:build !small

package monitor

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metric describes one metric that is exported.
type Metric struct {
	Name   string
	Type   string // counter, gauge or histogram
	Help   string
	Labels []string

	kind prometheus.ValueType
	desc *prometheus.Desc
}

// metrics are all of ours, in the order of the documentation.
var metrics []*Metric

// Metrics returns all metrics of ctlogd's own; those of the Go runtime and of the process come besides.
func Metrics() []*Metric { return metrics }

func newMetric(kind string, value prometheus.ValueType, name, help string, labels []string) *Metric {
	m := &Metric{Name: name, Type: kind, Help: help, Labels: labels, kind: value,
		desc: prometheus.NewDesc(name, help, labels, nil)}
	metrics = append(metrics, m)
	return m
}

func counter(name, help string, labels ...string) *Metric {
	return newMetric("counter", prometheus.CounterValue, name, help, labels)
}

func gauge(name, help string, labels ...string) *Metric {
	return newMetric("gauge", prometheus.GaugeValue, name, help, labels)
}

func histogram(name, help string, labels ...string) *Metric {
	return newMetric("histogram", prometheus.UntypedValue, name, help, labels)
}

// The names of the labels.
const (
	labelEvent  = "event"
	labelReason = "reason"
	labelCause  = "cause"
	labelOutput = "output"
	labelResult = "result"
	labelClass  = "class"
	labelSysctl = "sysctl"
	labelLacks  = "lacks"
	labelCPU    = "cpu"
	labelSource = "source"
	labelNetns  = "netns"
)

// The reader and what it remembers.
var (
	buildInfo = gauge("ctlogd_build_info", "1; what runs, in its labels.", "version", "commit", "goversion")
	reliable  = gauge("ctlogd_delivery_reliable", "1 if the kernel keeps an ended flow until its end is delivered, 0 if delivery is best effort.")

	events       = counter("ctlogd_events_total", "Conntrack messages read from the kernel, by event.", labelEvent)
	decodeErrors = counter("ctlogd_decode_errors_total", "Messages from the kernel that could not be read (malformed) or only in part (truncated), and attributes that were left out of a record (skipped).", labelReason)
	sysctls      = gauge("ctlogd_conntrack_sysctl", "Value of a sysctl that decides what events there are and what is in them.", labelSysctl)
	incomplete   = counter("ctlogd_incomplete_records_total", "Ended flows whose record lacks its counters or its start, because a sysctl is off or was.", labelLacks)
	refused      = counter("ctlogd_refused_messages_total", "Messages that came from somebody else than the kernel and were thrown away.")
	kernelDrops  = counter("ctlogd_kernel_drops_total", "Events that the kernel dropped because the socket's buffer was full, under best-effort delivery: lost.")
	retries      = counter("ctlogd_delivery_retries_total", "Attempts of the kernel to deliver an event that found the socket's buffer full, under reliable delivery: made good later.")
	guardSheds   = counter("ctlogd_guard_sheds_total", "Times that ended flows were thrown away lest they fill the connection tracking table.")
	readerBusy   = counter("ctlogd_reader_busy_seconds_total", "Time in which the reader neither slept nor waited; its rate is the reader's utilisation.")
	readerAge    = gauge("ctlogd_reader_round_age_seconds", "How long ago the reader went round last; it does so once a second at least.")
	readLag      = gauge("ctlogd_read_lag_seconds", "All flows that ended longer ago have been handed to the outputs' queues.")
	reads        = counter("ctlogd_reads_total", "System calls that read at least one message.")
	naps         = counter("ctlogd_naps_total", "Naps of the reader between two reads.")
	ownFlows     = counter("ctlogd_own_flow_records_total", "Records left out because they are of ctlogd's own connections (skip_own_flows).")
	filtered     = counter("ctlogd_filtered_records_total", "Records that the global filter dropped; what the kernel drops for it is not among them.")

	helperEntries   = gauge("ctlogd_helper_entries", "Flows whose helper, master or labels are remembered.")
	helperEvictions = counter("ctlogd_helper_evictions_total", "Flows with a helper, a master or labels that were forgotten before they ended, for want of helper_entries.")
	helperUnknown   = counter("ctlogd_helper_unknown_total", "Flows that ended with a helper that is not known (helper_unknown).")

	subscriberRecords = counter("ctlogd_subscriber_records_total", "Records that say whose flow it is (named), and among them those whose address had another holder at the end (changed); records of which no source knows it (unknown).", labelResult)
	subscriberLeases  = gauge("ctlogd_subscriber_leases", "Prefixes and addresses that somebody has, or had within history, by a source of subscribers.", labelSource)
	subscriberPast    = gauge("ctlogd_subscriber_past", "Holders before the present ones that are remembered for flows that began earlier.", labelSource)
	subscriberAge     = gauge("ctlogd_subscriber_age_seconds", "How long ago a source's table was last known to be what the source says.", labelSource)
	subscriberLoads   = counter("ctlogd_subscriber_loads_total", "Times that a source's table was replaced.", labelSource)
	subscriberBroken  = counter("ctlogd_subscriber_broken_lines_total", "Lines of a source's file that were skipped.", labelSource)
	subscriberPackets = counter("ctlogd_subscriber_radius_packets_total", "RADIUS packets: accepted; useless, as they speak of no address; forged, with a wrong authenticator; foreign, of no client; damaged; full, not taken as there were too many sessions.", labelSource, labelResult)

	dumped = counter("ctlogd_dumped_flows_total", "Flows read from the connection tracking table.")
	open   = counter("ctlogd_open_records_total", "Open records made of flows that are alive.")

	gaps = counter("ctlogd_gaps_total", "Losses put on record, by cause; without an output where every output is concerned.", labelCause, labelOutput)
	lost = counter("ctlogd_gap_lost_records_total", "Records lost in them, where it is known how many.", labelCause, labelOutput)
	last = gauge("ctlogd_gap_last_age_seconds", "How long ago the last of them grew last; absent if there was none.", labelCause, labelOutput)

	logDropped = counter("ctlogd_log_lines_dropped_total", "Lines of ctlogd's own log that were dropped because nobody read them fast enough.")

	markFailing = gauge("ctlogd_state_directory_failing", "1 if the state directory cannot be used: a crash now would leave a longer gap, and without an earlier mark a restart none.")

	reloads         = counter("ctlogd_config_reloads_total", "Reloads of the configuration, by result: success or failure.", labelResult)
	reloadOK        = gauge("ctlogd_config_last_reload_successful", "1 if the last reload succeeded, or there was none.")
	reloadTimestamp = gauge("ctlogd_config_last_reload_timestamp_seconds", "When that was; 0 if there was none.")
)

// The outputs.
var (
	outFailing  = gauge("ctlogd_output_failing", "1 if the output's last write has failed, or hangs, or the output cannot be opened.", labelOutput)
	outRecords  = counter("ctlogd_output_records_total", "Records delivered, gap records included.", labelOutput)
	outBytes    = counter("ctlogd_output_bytes_total", "Bytes written or sent.", labelOutput)
	outFiltered = counter("ctlogd_output_filtered_records_total", "Records that the output's own filter dropped.", labelOutput)
	outLost     = counter("ctlogd_output_lost_records_total", "Records lost: dropped because queue or spool was full, rejected by the destination for good, or left when the output ended.", labelOutput, labelReason)
	outGaps     = counter("ctlogd_output_gap_records_total", "Gap records made for the output's own losses in memory.", labelOutput)
	outErrors   = counter("ctlogd_output_errors_total", "Writes that failed.", labelOutput)
	outRetries  = counter("ctlogd_output_retries_total", "Writes that were tried again.", labelOutput)
	lag         = histogram("ctlogd_delivery_lag_seconds", "From the end of a flow (or another event) to its record being written.", labelOutput)
	outAge      = gauge("ctlogd_output_oldest_record_age_seconds", "How long the oldest record has waited that is not delivered, in memory or on disk; 0 if none waits.", labelOutput)

	queueRecords = gauge("ctlogd_output_queue_records", "Records that wait in memory, those being written included.", labelOutput)
	queueUsed    = gauge("ctlogd_output_queue_used_records", "Room that they take, in records: the same number.", labelOutput)
	queueLimit   = gauge("ctlogd_output_queue_limit_records", "Room that there is (queue).", labelOutput)
	spoolRecords = gauge("ctlogd_output_spool_records", "Records that wait on disk.", labelOutput)
	spoolBytes   = gauge("ctlogd_output_spool_bytes", "Size of the spool's files.", labelOutput)
	spoolLimit   = gauge("ctlogd_output_spool_limit_bytes", "Size that they may have (spool.max_size).", labelOutput)
	spoolDamaged = counter("ctlogd_output_spool_damaged_records_total", "Records lost because a file of the spool was damaged.", labelOutput)
)

// What outputs of some kinds count themselves, by the name under which they tell it. All but kept_since are counters.
var (
	outKept = gauge("ctlogd_output_kept_seconds", "How far back the output's files reach: the age of the oldest record that they hold.", labelOutput)

	ownMetrics = map[string]*Metric{
		"rotations":          counter("ctlogd_output_rotations_total", "Files begun because the last one was large or old enough, by result: success or failure.", labelOutput, labelResult),
		"compressions":       counter("ctlogd_output_compressions_total", "Rotated files compressed, by result: success or failure, after which it is tried again.", labelOutput, labelResult),
		"removed_records":    counter("ctlogd_output_removed_records_total", "Records in files that keep, max_age or max_size had removed.", labelOutput),
		"removed_files":      counter("ctlogd_output_removed_files_total", "Those files.", labelOutput),
		"torn_bytes":         counter("ctlogd_output_torn_bytes_total", "Bytes of lines that were not whole, after a crash or on a full disk, cut off.", labelOutput),
		"resent_records":     counter("ctlogd_output_resent_records_total", "Records sent again because their batch failed, or their session ended before they had arrived; they may be there twice.", labelOutput),
		"clamped_timestamps": counter("ctlogd_output_clamped_timestamps_total", "Messages whose timestamp was ahead of the clock, or refused by the broker, and was replaced.", labelOutput),
		"dead_letters":       counter("ctlogd_output_dead_letters_total", "Records that the broker refused for good and that are in the dead-letter file.", labelOutput),
		"messages":           counter("ctlogd_output_messages_total", "IPFIX messages sent.", labelOutput),
		"sessions":           counter("ctlogd_output_sessions_total", "Sessions begun with an IPFIX collector or a syslog receiver.", labelOutput),
		"refusals":           counter("ctlogd_output_refusals_total", "Times that it was said that nobody listens: on the UDP port, by an ICMP message, or at the unix socket.", labelOutput),
		"address_changes":    counter("ctlogd_output_address_changes_total", "Times that sending over UDP went on at another address because the destination's name had moved.", labelOutput),
		"skipped_records":    counter("ctlogd_output_skipped_records_total", "Records of which the output's configuration exports nothing.", labelOutput),
		"unsealed_records":   gauge("ctlogd_output_unsealed_records", "Records of an archive that are in row logs, and in no sealed segment yet.", labelOutput),
		"unsealed_files":     gauge("ctlogd_output_unsealed_files", "Those row logs; one of them is being written.", labelOutput),
		"seals":              counter("ctlogd_output_seals_total", "Segments of an archive made, by result: success or failure, after which it is tried again.", labelOutput, labelResult),
		"seal_seconds":       counter("ctlogd_output_seal_seconds_total", "Time that making them took, most of it waiting for an idle processor.", labelOutput),
		"last_seal_age":      gauge("ctlogd_output_last_seal_age_seconds", "How long ago an archive made its last segment; 0 before the first.", labelOutput),
		"last_seal_seconds":  gauge("ctlogd_output_last_seal_seconds", "How long that took, in whole seconds.", labelOutput),
		"seal_failing":       gauge("ctlogd_output_seal_failing_seconds", "For how long making a segment has failed; 0: it does not.", labelOutput),
		"segments":           gauge("ctlogd_output_segments", "Segments that an archive holds.", labelOutput),
		"segment_bytes":      gauge("ctlogd_output_segment_bytes", "Their size.", labelOutput),
		"checkpoint_age":     gauge("ctlogd_output_checkpoint_age_seconds", "How long ago an archive wrote the note of its last checkpoint; 0 before the first.", labelOutput),
		"next_removal":       gauge("ctlogd_output_next_removal_seconds", "In how long the next segment of an archive goes by max_age; 0: it is due, or none is to go.", labelOutput),
		"overdue":            gauge("ctlogd_output_removal_overdue_seconds", "For how long a segment has been there that max_age wants removed; 0: none is.", labelOutput),
		"writing_stopped":    gauge("ctlogd_output_writing_stopped", "1 while an archive takes no records, so that what min_age keeps and the reserve stay.", labelOutput),
		"removed_segments":   counter("ctlogd_output_removed_segments_total", "Segments removed, by reason: max_age, max_size or reserve.", labelOutput, labelReason),
		"keep_errors":        counter("ctlogd_output_keep_errors_total", "Removals and syncs of an archive that failed, and are tried again.", labelOutput),
		"damaged_files":      counter("ctlogd_output_damaged_files_total", "Files in an archive's folder that are not whole, put aside.", labelOutput),
		"uploads":            counter("ctlogd_output_uploads_total", "Runs of the command that uploads an archive's files, by result: success or failure, after which it is tried again.", labelOutput, labelResult),
		"upload_waiting":     gauge("ctlogd_output_upload_waiting_segments", "Segments of an archive that are not uploaded yet.", labelOutput),
		"upload_failing":     gauge("ctlogd_output_upload_failing_seconds", "For how long uploads have failed; 0: they do not.", labelOutput),
		"upload_missed":      counter("ctlogd_output_upload_missed_segments_total", "Segments that were removed before they were uploaded.", labelOutput),
		"class_errors":       counter("ctlogd_output_class_errors_total", "Batches that failed, and attempts that got no further, by what was wrong.", labelOutput, labelClass),
	}
)

// OwnMetrics returns the metrics of counters that only some kinds of output have, by the name under which those tell
// them. What has another name is not exported.
func OwnMetrics() map[string]*Metric { return ownMetrics }

// The kernel's own.
var (
	conntrackUp      = gauge("ctlogd_conntrack_statistics_up", "1 if the kernel answers when it is asked for the following.")
	conntrackEntries = gauge("ctlogd_conntrack_entries", "Entries of the connection tracking table (nf_conntrack_count).")
	conntrackLimit   = gauge("ctlogd_conntrack_entries_limit", "Entries that it may have (nf_conntrack_max); 0 is no limit.")
	expectations     = gauge("ctlogd_conntrack_expectations", "Flows that helpers expect.")

	cpuStats = []struct {
		metric *Metric
		value  func(*CPU) uint32
	}{
		{counter("ctlogd_conntrack_found_total", "Lookups that found an entry, of those that are counted.", labelCPU), func(c *CPU) uint32 { return c.Found }},
		{counter("ctlogd_conntrack_invalid_total", "Packets that could not be tracked.", labelCPU), func(c *CPU) uint32 { return c.Invalid }},
		{counter("ctlogd_conntrack_insert_total", "Entries inserted, of those that are counted: recent kernels count those made over netlink alone.", labelCPU), func(c *CPU) uint32 { return c.Insert }},
		{counter("ctlogd_conntrack_insert_failed_total", "Entries not inserted, because the same flow was there already or its hash chain was too long: the packet is lost.", labelCPU), func(c *CPU) uint32 { return c.InsertFailed }},
		{counter("ctlogd_conntrack_drop_total", "Packets dropped: the table was full, there was no memory, or their flow was there already.", labelCPU), func(c *CPU) uint32 { return c.Drop }},
		{counter("ctlogd_conntrack_early_drop_total", "Entries removed before their time because the table was full.", labelCPU), func(c *CPU) uint32 { return c.EarlyDrop }},
		{counter("ctlogd_conntrack_error_total", "Packets that were refused as erroneous, ICMP errors among them.", labelCPU), func(c *CPU) uint32 { return c.Error }},
		{counter("ctlogd_conntrack_search_restart_total", "Lookups begun again because the table changed meanwhile.", labelCPU), func(c *CPU) uint32 { return c.SearchRestart }},
		{counter("ctlogd_conntrack_clash_resolve_total", "Flows that came twice at the same time and were made one.", labelCPU), func(c *CPU) uint32 { return c.ClashResolve }},
		{counter("ctlogd_conntrack_chain_toolong_total", "Entries not inserted because their hash chain was too long.", labelCPU), func(c *CPU) uint32 { return c.ChainTooLong }},
	}
)

// The other network namespaces, if their events are asked for.
var (
	netnsNamed    = gauge("ctlogd_netns_named", "Other network namespaces that have a name and are listened to.")
	netnsUnnamed  = gauge("ctlogd_netns_unnamed", "Other network namespaces that have an id, and no name or none that is asked for.")
	netnsClosed   = gauge("ctlogd_netns_closed", "Those of ctlogd_netns_named that could not be entered: their tables are neither read nor guarded.")
	netnsHeard    = gauge("ctlogd_netns_heard", "1 if events of other network namespaces come; 0: ctlogd lacks the rights.")
	netnsUnlisted = counter("ctlogd_netns_unlisted_events_total", "Conntrack messages of namespaces that nobody asked for, thrown away.")
	netnsEvents   = counter("ctlogd_netns_events_total", "Conntrack messages read of a namespace with a name.", labelNetns)
	netnsSheds    = counter("ctlogd_netns_guard_sheds_total", "Times that the ends of all namespaces were thrown away because this one's table was too full (part of ctlogd_guard_sheds_total).", labelNetns)
	netnsEntries  = gauge("ctlogd_netns_conntrack_entries", "Entries of the namespace's connection tracking table; each may have as many as ctlogd_conntrack_entries_limit.", labelNetns)
	netnsSysctl   = gauge("ctlogd_netns_conntrack_sysctl", "As ctlogd_conntrack_sysctl, of a namespace with a name.", labelNetns, labelSysctl)
)

// maxNetns is how many namespaces have metrics of their own: of more, those that have the fullest tables.
const maxNetns = 100

func (e exposition) namespaces(n *Namespaces) {
	if n == nil {
		return
	}
	e.put(netnsHeard, truth(n.Heard))
	e.put(netnsNamed, float64(len(n.Named)))
	e.put(netnsUnnamed, float64(n.Unnamed))
	e.put(netnsClosed, float64(n.Closed()))
	e.put(netnsUnlisted, float64(n.Unlisted))
	own := slices.Clone(n.Named)
	slices.SortStableFunc(own, func(a, b Namespace) int { return cmp.Compare(b.Entries, a.Entries) })
	seen := map[string]bool{} // one that is leaving may have a successor
	for i := range own {
		one := &own[i]
		name := strings.ToValidUTF8(one.Name, "\uFFFD")
		if seen[name] || one.Leaving {
			continue
		}
		if seen[name] = true; len(seen) > maxNetns {
			break
		}
		e.put(netnsEvents, float64(one.Events), name)
		e.put(netnsSheds, float64(one.GuardSheds), name)
		if one.Entries >= 0 {
			e.put(netnsEntries, float64(one.Entries), name)
		}
		for sysctl, v := range one.Sysctls {
			e.put(netnsSysctl, float64(v), name, sysctl)
		}
	}
}

// NewRegistry returns a registry of all metrics: ours, made of the snapshot that source takes at each scrape, and those
// of the Go runtime and of the process.
func NewRegistry(source func() Snapshot) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collector(source), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// collector exports what it returns.
type collector func() Snapshot

// Describe is part of prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.desc
	}
}

// Collect is part of prometheus.Collector.
func (source collector) Collect(ch chan<- prometheus.Metric) {
	s := source()
	e := exposition{ch}
	e.put(buildInfo, 1, s.Version, s.Commit, s.GoVersion)
	e.put(reliable, truth(s.Delivery == "reliable"))

	r := &s.Reader
	for name, n := range r.Events {
		e.put(events, float64(n), name)
	}
	e.put(decodeErrors, float64(r.Malformed), "malformed")
	e.put(decodeErrors, float64(r.Truncated), "truncated")
	e.put(decodeErrors, float64(r.Skipped), "skipped")
	for name, v := range r.Sysctls {
		e.put(sysctls, float64(v), name)
	}
	e.put(incomplete, float64(r.WithoutCounters), "counters")
	e.put(incomplete, float64(r.WithoutStart), "start")
	e.put(refused, float64(r.Refused))
	e.put(kernelDrops, float64(r.KernelDrops))
	e.put(retries, float64(r.DeliveryRetries))
	e.put(guardSheds, float64(r.GuardSheds))
	e.put(readerBusy, r.Busy)
	e.put(readerAge, age(s.Time, r.Round))
	e.put(readLag, age(s.Time, r.ReadTo))
	e.put(reads, float64(r.Reads))
	e.put(naps, float64(r.Naps))
	e.put(ownFlows, float64(s.OwnFlows))
	e.put(filtered, float64(s.Filtered))
	e.put(helperEntries, float64(s.Helpers.Size))
	e.put(helperEvictions, float64(s.Helpers.Evictions))
	e.put(helperUnknown, float64(s.Helpers.Unknown))
	e.subscribers(s.Subscribers)
	e.put(dumped, float64(r.Dumped))
	e.put(open, float64(r.Open))
	e.gaps(s.Time, s.Gaps, "")
	e.put(logDropped, float64(s.LogDropped))
	e.put(markFailing, truth(s.Mark.Failing))
	e.put(reloads, float64(s.Reloads.OK), "success")
	e.put(reloads, float64(s.Reloads.Failed), "failure")
	e.put(reloadOK, truth(s.Reloads.LastOK || s.Reloads.Failed == 0))
	e.put(reloadTimestamp, timestamp(s.Reloads.Last))
	for i := range s.Outputs {
		e.output(s.Time, &s.Outputs[i])
	}
	e.kernel(&s.Kernel)
	e.namespaces(s.Namespaces)
}

// exposition writes metrics.
type exposition struct{ ch chan<- prometheus.Metric }

func (e exposition) put(m *Metric, v float64, labels ...string) {
	e.ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, labels...)
}

func (e exposition) subscribers(s *Subscribers) {
	if s == nil {
		return
	}
	e.put(subscriberRecords, float64(s.Named), "named")
	e.put(subscriberRecords, float64(s.Changed), "changed")
	e.put(subscriberRecords, float64(s.Unknown), "unknown")
	for _, o := range s.Sources {
		e.put(subscriberLeases, float64(o.Leases), o.Name)
		e.put(subscriberPast, float64(o.Past), o.Name)
		e.put(subscriberAge, o.Age, o.Name)
		e.put(subscriberLoads, float64(o.Loads), o.Name)
		e.put(subscriberBroken, float64(o.Broken), o.Name)
		for result, n := range o.Packets {
			e.put(subscriberPackets, float64(n), o.Name, result)
		}
	}
}

func (e exposition) gaps(now time.Time, g []Gap, output string) {
	for _, g := range g {
		e.put(gaps, float64(g.Gaps), g.Cause, output)
		e.put(lost, float64(g.Lost), g.Cause, output)
		if !g.Last.IsZero() {
			e.put(last, age(now, g.Last), g.Cause, output)
		}
	}
}

func (e exposition) output(now time.Time, o *Output) {
	name := strings.ToValidUTF8(o.Name, "\uFFFD") // a path can be any bytes, a label cannot
	e.put(outFailing, truth(o.Failing), name)
	e.put(outRecords, float64(o.Written), name)
	if o.Bytes != nil {
		e.put(outBytes, float64(*o.Bytes), name)
	}
	if !o.KeptSince.IsZero() {
		e.put(outKept, age(now, o.KeptSince), name)
	}
	for _, c := range o.Counters {
		switch m := ownMetrics[c.Name]; {
		case m == nil:
		case len(m.Labels) == 1:
			e.put(m, float64(c.N), name)
		default:
			e.put(m, float64(c.N), name, strings.ToValidUTF8(c.Label, "\uFFFD"))
		}
	}
	e.put(outFiltered, float64(o.Filtered), name)
	e.put(outLost, float64(o.Dropped), name, "dropped")
	e.put(outLost, float64(o.Rejected), name, "rejected")
	e.put(outLost, float64(o.Left), name, "left")
	e.put(outGaps, float64(o.GapRecords), name)
	e.put(outErrors, float64(o.Errors), name)
	e.put(outRetries, float64(o.Retries), name)
	e.put(outAge, o.OldestAge, name)
	e.put(queueRecords, float64(o.Waiting), name)
	e.put(queueUsed, float64(o.Used), name)
	e.put(queueLimit, float64(o.Max), name)
	if p := o.Spool; p != nil {
		e.put(spoolRecords, float64(p.Records), name)
		e.put(spoolBytes, float64(p.Bytes), name)
		e.put(spoolLimit, float64(p.Max), name)
		e.put(spoolDamaged, float64(p.Damaged), name)
	}
	e.gaps(now, o.Gaps, name)

	buckets, n := map[float64]uint64{}, uint64(0)
	for i, bound := range o.Lag.Bounds {
		n += o.Lag.Counts[i]
		buckets[bound] = n
	}
	e.ch <- prometheus.MustNewConstHistogram(lag.desc, o.Lag.Count(), o.Lag.Sum, buckets, name)
}

func (e exposition) kernel(k *Kernel) {
	e.put(conntrackUp, truth(k.Error == ""))
	if k.Error != "" {
		return
	}
	e.put(conntrackEntries, float64(k.Entries))
	e.put(conntrackLimit, float64(k.Limit))
	e.put(expectations, float64(k.Expectations))
	for i := range k.CPUs {
		c := &k.CPUs[i]
		for _, s := range cpuStats {
			e.put(s.metric, float64(s.value(c)), strconv.Itoa(c.CPU))
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// age returns seconds. Ages and not times are exported where an alert looks at them: the clocks of two machines differ.
func age(now, then time.Time) float64 { return max(now.Sub(then), 0).Seconds() }

// timestamp returns seconds since 1970, 0 for no time.
func timestamp(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMicro()) / 1e6
}
