//go:build !small

package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/output/ipfix/listen"
	"github.com/ctlogd/ctlogd/pipeline"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
)

// plan returns the outputs of a configuration; FILE in it is a file that can be written.
func plan(t *testing.T, text, file string) (*Config, []plannedOutput) {
	t.Helper()
	cfg, err := parseConfig("x", bytes.ReplaceAll([]byte(text), []byte("FILE"), []byte(file)))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Host, cfg.Observer = "gw1", "o"
	begin := func(_ string, build func(bool) (deliver.Output, error)) (deliver.Output, error) { return build(false) }
	return cfg, planOutputs(cfg, zap.NewNop(), nil, nil, begin)
}

// The name under which an output is planned is that of the output that is built.
func TestPlannedNames(t *testing.T) {
	_, outputs := plan(t, "outputs: {jsonl: [{path: FILE}], ipfix: [{address: udp://192.0.2.1}, "+
		"{address: udp://192.0.2.1, observation_domain: 7}], kafka: [{brokers: [a:1, b:1], topic: flows}]}",
		filepath.Join(t.TempDir(), "flows.jsonl"))
	var paths []string
	for _, o := range outputs {
		out, err := o.build()
		if err != nil {
			t.Fatal(err)
		}
		if err := out.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if q := o.queue(zap.NewNop()); out.Name() != o.name || q.Name() != o.name {
			t.Errorf("%s is planned as %q, built as %q, and its queue is %q", o.path, o.name, out.Name(), q.Name())
		}
		paths = append(paths, o.path)
	}
	if diff := cmp.Diff([]string{"outputs.jsonl[0]", "outputs.ipfix[0]", "outputs.ipfix[1]", "outputs.kafka[0]"},
		paths); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
}

// An archive's checkpoint is for all outputs but archives, whatever they filter; what the table is read for is for archives.
func TestCheckpointsForWhom(t *testing.T) {
	_, outputs := plan(t, "outputs: {jsonl: [{path: FILE, filter: [{action: drop}]}], archive: [{path: /a, filter: [{action: drop}]}]}",
		filepath.Join(t.TempDir(), "flows.jsonl"))
	for _, o := range outputs {
		accepts := func(r *flow.Record) bool { return takes(&o, r) }
		note := &flow.Record{Event: flow.EventCheckpoint, Extra: &flow.Extra{Note: new(flow.Note)}}
		over := &flow.Record{Event: flow.EventOpen, Extra: &flow.Extra{Checkpoint: flow.CheckpointWhole}}
		if accepts(note) == o.archive || accepts(over) != o.archive || accepts(&flow.Record{Event: flow.EventDestroy}) {
			t.Errorf("%s: checkpoint %v, end of a reading %v", o.name, accepts(note), accepts(over))
		}
	}
}

// takes reports whether a queue of the output takes r.
func takes(o *plannedOutput, r *flow.Record) bool {
	b := flow.NewBatch(1, nil)
	b.Append([]flow.Record{*r})
	q := o.queue(zap.NewNop())
	q.Offer(b)
	return q.Stats.Filtered.Load() == 0
}

// New events are there for those who asked for them, and the kernel keeps back none that somebody gets.
func TestNewOnDemand(t *testing.T) {
	const file = "outputs: {jsonl: [{path: FILE}], kafka: [{brokers: 192.0.2.20:9092, topic: flows}]"
	// What the kernel drops, as "event protocol".
	kinds := []string{"new tcp", "new icmp", "destroy tcp", "destroy icmp"}
	for _, tt := range []struct {
		name, config string
		events       []string
		accept       []bool // whether each queue gets a new record of TCP
		drop         []string
	}{
		{"nobody asks", file + "}", []string{"destroy"}, []bool{true, true}, nil},
		{"ipfix of flows", file + ", ipfix: [{address: udp://192.0.2.1}]}", []string{"destroy"},
			[]bool{true, true, true}, nil}, // there are none
		{"ipfix of events", file + ", ipfix: [{address: udp://192.0.2.1, records: nat_events}]}",
			[]string{"destroy", "new"}, []bool{false, true, false}, nil},
		{"two ipfix", file + ", ipfix: [{address: udp://192.0.2.1}, {address: udp://192.0.2.2, records: both}]}",
			[]string{"destroy", "new"}, []bool{false, false, true, false}, nil},
		{"everybody asks", "input: {conntrack: {events: [new, destroy]}}\n" + file +
			", ipfix: [{address: udp://192.0.2.1, records: both}]}",
			[]string{"new", "destroy"}, []bool{true, true, true}, nil},
		{"ipfix with a filter", file + ", ipfix: [{address: udp://192.0.2.1, records: both, " +
			"filter: [{action: drop, match: {proto: icmp}}]}]}",
			[]string{"destroy", "new"}, []bool{false, true, false}, []string{"new icmp"}},
		{"ipfix that drops them", file + ", ipfix: [{address: udp://192.0.2.1, records: both, " +
			"filter: [{action: drop, match: {event: new}}]}]}",
			[]string{"destroy", "new"}, []bool{false, false, false}, []string{"new tcp", "new icmp"}},
		{"others that accept first", "outputs: {jsonl: [{path: FILE, filter: [{action: accept}]}], " +
			"ipfix: [{address: udp://192.0.2.1, records: both, filter: [{action: drop, match: {proto: icmp}}]}]}",
			[]string{"destroy", "new"}, []bool{false, true}, []string{"new icmp"}},
		{"ipfix alone", "outputs: {ipfix: [{address: udp://192.0.2.1, records: both, " +
			"filter: [{action: drop, match: {proto: icmp}}]}]}",
			[]string{"destroy", "new"}, []bool{true}, []string{"new icmp", "destroy icmp"}},
		{"a filter for all", "filter: [{action: drop, match: {proto: icmp}}]\n" + file +
			", ipfix: [{address: udp://192.0.2.1, records: both}]}",
			[]string{"destroy", "new"}, []bool{false, true, false}, []string{"new icmp", "destroy icmp"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, outputs := plan(t, tt.config, "/var/log/flows.jsonl")
			asked := slices.Clone(cfg.Input.Conntrack.Events)
			if diff := cmp.Diff(tt.events, cfg.inputConfig().Events); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(asked, cfg.Input.Conntrack.Events); diff != "" {
				t.Errorf("the configuration has changed (-before +after):\n%s", diff)
			}
			record := func(e flow.Event, p flow.Proto) *flow.Record {
				return &flow.Record{Event: e, Has: flow.HasOrig, Orig: flow.Tuple{Proto: p}}
			}
			var accept []bool
			for _, o := range outputs {
				filter := o.filter.Compile()
				accepts := func(r *flow.Record) bool { return filter == nil || filter(r) }
				accept = append(accept, accepts(record(flow.EventNew, flow.TCP)))
				if !accepts(record(flow.EventDestroy, flow.TCP)) || !accepts(record(flow.EventGap, 0)) {
					t.Error("an output gets no ends or no gaps")
				}
			}
			if diff := cmp.Diff(tt.accept, accept); diff != "" {
				t.Errorf("outputs that get new records (-want +got):\n%s", diff)
			}
			drops := pushdown(cfg, outputs)
			var drop []string
			for _, e := range []flow.Event{flow.EventNew, flow.EventDestroy} {
				for _, p := range []flow.Proto{flow.TCP, flow.ICMP} {
					if drops != nil && drops(e, false, p) {
						drop = append(drop, e.String()+" "+p.String())
					}
				}
			}
			if diff := cmp.Diff(tt.drop, drop); diff != "" {
				t.Errorf("dropped in the kernel, of %v (-want +got):\n%s", kinds, diff)
			}
		})
	}
}

// One flow with NAT: its creation and its end for the collector, its end alone for the file.
func TestOutputsSideBySide(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file := filepath.Join(t.TempDir(), "flows.jsonl")
	cfg, outputs := plan(t, "outputs: {jsonl: [{path: FILE}], ipfix: [{address: udp://"+conn.LocalAddr().String()+
		", records: both}]}", file)
	var queues []*deliver.Queue
	for _, o := range outputs {
		queues = append(queues, o.queue(zap.NewNop()))
	}
	selected := &pipeline.Select{}
	for _, e := range cfg.inputConfig().Events {
		selected.Events[eventNumber(e)] = true
	}
	p := pipeline.New([]pipeline.Stage{selected}, queues)
	p.Start()
	b := p.Batch()
	for _, e := range []flow.Event{flow.EventNew, flow.EventUpdate, flow.EventDestroy} {
		r := b.Next()
		r.Event, r.Has, r.Received = e, flow.HasOrig|flow.HasReply, time.Now().UnixNano()
		r.Orig = flow.Tuple{Proto: flow.TCP, SrcPort: 40000, DstPort: 443}
		r.Orig.Src, r.Orig.Dst = addr(192, 168, 1, 2), addr(198, 51, 100, 10)
		r.Reply = flow.Tuple{Proto: flow.TCP, SrcPort: 443, DstPort: 1024}
		r.Reply.Src, r.Reply.Dst = addr(198, 51, 100, 10), addr(198, 51, 100, 1)
	}
	p.Ingest(b)
	p.Close(t.Context())

	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var events []any
	for _, line := range lines(t, text) {
		events = append(events, line["event"])
	}
	if diff := cmp.Diff([]any{"destroy"}, events); diff != "" {
		t.Errorf("events in the file (-want +got):\n%s", diff)
	}

	var got []any
	decoder := listen.NewDecoder()
	conn.SetReadDeadline(time.Now().Add(time.Minute)) // of a test that has failed
	for buf := make([]byte, 65536); len(got) < 3; {   // flow, event 4 and event 5; the last messages are there by now
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("after %v: %v", got, err)
		}
		text, err := decoder.Append(nil, from.String(), buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines(t, text) {
			record, _ := line["record"].(map[string]any)
			switch {
			case record["natEvent"] != nil:
				got = append(got, record["natEvent"])
			case record["flowEndReason"] != nil:
				got = append(got, "flow")
			}
		}
	}
	slices.SortFunc(got, func(a, b any) int { return bytes.Compare(marshal(a), marshal(b)) })
	if diff := cmp.Diff([]any{"flow", 4., 5.}, got); diff != "" {
		t.Errorf("data records (-want +got):\n%s", diff)
	}
}

func addr(a, b, c, d byte) flow.Addr {
	return flow.Addr{10: 0xff, 11: 0xff, 12: a, 13: b, 14: c, 15: d}
}

func lines(t *testing.T, text []byte) (list []map[string]any) {
	t.Helper()
	for line := range bytes.Lines(text) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		list = append(list, m)
	}
	return list
}

func marshal(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}

// A filter that came and went while the archive could not be opened is on record when it can.
func TestArchiveFollows(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not/there")
	text := "outputs: {archive: [{path: FILE}]}\n"
	_, first := plan(t, text, dir)
	_, filtered := plan(t, text+"filter: [{action: drop}]\n", dir)
	_, last := plan(t, text, dir)
	filtered[0].follow(first[0])
	last[0].follow(filtered[0])
	if _, err := last[0].build(); err == nil {
		t.Fatal("an archive is opened in no folder")
	}
	if err := os.Mkdir(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time the ones before are on record
		out, err := last[0].build()
		if err != nil {
			t.Fatal(err)
		}
		if err := out.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	catalogs, err := filepath.Glob(dir + "/host=gw1/date=*/catalog.jsonl")
	if err != nil || len(catalogs) == 0 {
		t.Fatal(catalogs, err)
	}
	var lines []byte
	for _, c := range catalogs {
		more, err := os.ReadFile(c)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, more...)
	}
	if bytes.Count(lines, []byte(`"kind":"rules"`)) != 2 || !bytes.Contains(lines, []byte(`"left_out":[[{"action":"drop"}]]`)) || !bytes.Contains(lines, []byte(`"before":[[{"action":"drop"}]]`)) {
		t.Errorf("the catalog is\n%s", lines)
	}
}

// A reload counts an output as changed if anything of it is configured in another way.
func TestOutputsThatChange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "flows.jsonl")
	planned := func(keys string) plannedOutput {
		_, outputs := plan(t, "outputs: {jsonl: [{path: FILE"+keys+"}]}", file)
		return outputs[0]
	}
	same := planned("")
	if was := planned(""); !same.equal(was) {
		t.Error("the same configuration differs")
	}
	for _, keys := range []string{", format: ecs", ", queue: 7", ", filter: [{action: drop, match: {nat: none}}]", ", spool: {path: /s}"} {
		if o := planned(keys); o.equal(same) {
			t.Errorf("%s makes no difference", keys)
		}
	}
}
