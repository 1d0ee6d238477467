//go:build !small

package main

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ctlogd/ctlogd/config"
	"github.com/ctlogd/ctlogd/input/ctnetlink"
	"github.com/ctlogd/ctlogd/output/ipfix"
	"github.com/ctlogd/ctlogd/output/jsonl"
	"github.com/ctlogd/ctlogd/output/kafka"
	"github.com/ctlogd/ctlogd/ownlog"
	"github.com/ctlogd/ctlogd/pipeline/filter"
	"github.com/ctlogd/ctlogd/unit"
)

var update = flag.Bool("update", false, "write the messages of testdata/bad-*.yaml to bad-*.err; then read them")

// testdata holds one file for each mistake, and beside it the exact message.
func TestBadConfigs(t *testing.T) {
	files, err := filepath.Glob("testdata/bad-*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = parseConfig("ctlogd.yaml", text)
			var wrong *config.Error
			if !errors.As(err, &wrong) {
				t.Fatalf("got %v, want a *config.Error", err)
			}
			got, golden := wrong.Error()+"\n", strings.TrimSuffix(file, ".yaml")+".err"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGoodConfigs(t *testing.T) {
	const path = "/var/log/ctlogd/flows.jsonl"
	file := func(path string, change func(*JSONLConfig)) JSONLConfig {
		c := JSONLConfig{Config: jsonl.Config{Path: path}, OutputConfig: OutputConfig{Queue: 65536}}
		if change != nil {
			change(&c)
		}
		return c
	}
	collector := func(change func(*IPFIXConfig)) (c IPFIXConfig) {
		c.Defaults()
		change(&c)
		return c
	}
	topic := func(change func(*KafkaConfig)) (c KafkaConfig) {
		c.Defaults()
		change(&c)
		return c
	}
	local := filter.Config{{Action: "drop", Match: filter.Match{Src: filter.List[string]{"192.0.2.0/24",
		"198.51.100.0/24"}}}}

	// What each file changes of the defaults with one output.
	want := map[string]func(c *Config){
		"minimal": func(*Config) {},
		"design": func(c *Config) {
			c.Filter = filter.Config{
				{Action: "drop", Match: filter.Match{Proto: filter.List[string]{"icmp", "icmpv6"}}},
				{Action: "accept", Match: filter.Match{
					NAT:    filter.List[string]{"snat", "dnat"},
					Proto:  filter.List[string]{"tcp", "udp"},
					Helper: filter.List[string]{"ftp", "sip", "none"},
				}},
			}
			c.Outputs.IPFIX = []IPFIXConfig{collector(func(o *IPFIXConfig) { o.Address = "udp://192.0.2.10:4739" })}
			c.Outputs.Kafka = []KafkaConfig{topic(func(o *KafkaConfig) {
				o.Brokers, o.Topic = []string{"192.0.2.20:9092"}, "flows"
			})}
		},
		"full": func(c *Config) {
			c.Host, c.Observer, c.ShutdownTimeout = "gw1", "0123456789abcdef", 90*time.Second
			c.Log = ownlog.Config{Level: "debug", Format: "json"}
			c.Input.Conntrack = ctnetlink.Config{
				Events: []string{"new", "destroy"}, Expectations: true, Delivery: "best_effort", ReceiveBuffer: 8 << 20,
				Labels: true, Namespaces: []string{"blue", "red"}, HelperEntries: new(1000), InitialDump: new(false),
				Interim: 30 * time.Minute, OpenAtShutdown: "always", TableGuard: new(75),
			}
			c.Outputs.JSONL = []JSONLConfig{file("-", nil), file("/var/log/ctlogd/nat.jsonl", func(o *JSONLConfig) {
				o.MaxSize, o.Keep, o.Format, o.Queue = 1<<30, 30, "flat", 0x1000
				o.Fields.Drop = []string{"dst_ip", "dst_port"}
				o.Filter = filter.Config{{
					Action: "drop",
					Match: filter.Match{
						NAT: filter.List[string]{"none"}, DstPort: filter.List[string]{"53", "8000-8999"},
						MinBytes: new(unit.Size(10 << 10)), MinPackets: new(uint64(0)), MinDuration: new(time.Second),
					},
					Not: filter.Match{Src: filter.List[string]{"192.0.2.0/24"}},
				}}
			})}
		},
		"outputs": func(c *Config) {
			c.Outputs = OutputsConfig{
				IPFIX: []IPFIXConfig{{
					Config: ipfix.Config{
						Address:  "tls://collector.example.net",
						Failover: []string{"udp://192.0.2.11", "tcp://[2001:db8::11]:2055"},
						Records:  "both", NATEvent: "historic", Layout: "rfc8158", Destination: new(false),
						ObservationDomain: new(uint32(4711)), MessageSize: "512", TemplateInterval: 30 * time.Second,
						TemplatePackets: new(0), Options: new(false), DialTimeout: 2 * time.Second,
						Enterprise: ipfix.Enterprise{PEN: 32473, Elements: []string{"mark", "helper"}},
						TLS:        ipfix.TLS{ServerName: "flows.example.net"},
					},
					OutputConfig: OutputConfig{Queue: 100, Filter: filter.Config{
						{Action: "drop", Match: filter.Match{Proto: filter.List[string]{"icmp"}}},
					}},
				}, collector(func(o *IPFIXConfig) {
					o.Address, o.ObservationDomain = "udp://192.0.2.11", new(uint32(4712))
				})},
				LargeOutputs: LargeOutputs{Kafka: []KafkaConfig{{
					Config: kafka.Config{
						Brokers: []string{"kafka1.example.net:9092", "[2001:db8::20]:9092"}, Topic: "flows", Key: "nat_src",
						Format: "flat", Compression: "zstd", RequiredAcks: "one", BatchBytes: 512 << 10,
						ConnectTimeout: time.Second, RequestTimeout: time.Minute, ClientID: "gw1", TLS: new(kafka.TLS),
						CreateTopic: &kafka.CreateTopic{Partitions: 12, Replication: 3},
						DeadLetter:  "/var/log/ctlogd/dead.jsonl", DeadLetterSize: 1 << 20,
					},
					OutputConfig: OutputConfig{Queue: 200},
				}, topic(func(o *KafkaConfig) { o.Brokers, o.Topic = []string{"kafka1.example.net:9092"}, "nat" })}},
			}
		},
		"anchors": func(c *Config) {
			shared := func(o *JSONLConfig) { o.Queue, o.MaxSize, o.Keep, o.Filter = 5000, 1<<30, 7, local }
			c.Outputs.JSONL = []JSONLConfig{
				file(path, shared),
				file("/var/log/ctlogd/nat.jsonl", shared),
				file("/var/log/ctlogd/small.jsonl", func(o *JSONLConfig) { shared(o); o.Queue, o.Keep = 10, 1 }),
			}
			c.Filter = filter.Config{{Action: "drop", Match: filter.Match{Dst: local[0].Match.Src}}}
		},
		"lone-values": func(c *Config) {
			c.Input.Conntrack.Events = []string{"new"}
			c.Filter = filter.Config{{Action: "drop",
				Match: filter.Match{Proto: filter.List[string]{"47"}}}}
			c.Outputs.JSONL = []JSONLConfig{file("/x", func(o *JSONLConfig) { o.Fields.Drop = []string{"dst_ip"} })}
		},
		"document-marks": func(*Config) {},
		"units": func(c *Config) {
			c.Input.Conntrack.Interim = 24 * time.Hour
			c.Outputs.JSONL[0].MaxSize, c.Outputs.JSONL[0].Keep = 10<<30, 5
			c.ShutdownTimeout = 90 * time.Second
		},
		"windows-newlines": func(c *Config) { c.Log.Level = "debug" },
		"expectations-alone": func(c *Config) {
			c.Input.Conntrack.Events, c.Input.Conntrack.Expectations = []string{}, true
		},
	}
	files, err := filepath.Glob("testdata/good-*.yaml")
	if err != nil || len(files) != len(want) {
		t.Errorf("%d files, %v; want %d", len(files), err, len(want))
	}
	for name, change := range want {
		t.Run(name, func(t *testing.T) {
			got, err := LoadConfig(t.Context(), filepath.Join("testdata", "good-"+name+".yaml"))
			if err != nil {
				t.Fatal(err)
			}
			var c Config
			c.Defaults()
			c.Outputs.JSONL = []JSONLConfig{file(path, nil)}
			change(&c)
			if diff := cmp.Diff(&c, got, cmpopts.IgnoreUnexported(Config{})); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

// What is valid and hardly meant, with its line.
// TestFormatWarnings wants to be told what a format leaves out of what the configuration asks for.
func TestFormatWarnings(t *testing.T) {
	c, err := parseConfig("f", []byte(`input: {conntrack: {expectations: true, labels: true}}
outputs:
  jsonl:
    - path: /x
      format: ulogd2
      spool: {path: /s}
    - {path: /y}
  syslog:
    - address: tcp://192.0.2.1
      format: ocsf
      fields: {drop: [dst_ip]}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"f:5: outputs.jsonl[0].format: ulogd2 knows no expectations, which input.conntrack.expectations has made records of: they " +
			"have a key event, which other records lack; drop them with a filter, or use another format",
		"f:5: outputs.jsonl[0].format: ulogd2 has no place for labels, which input.conntrack.labels gathers; leave labels out, or use " +
			"another format",
		"f:5: outputs.jsonl[0].format: ulogd2 has no place for flow_id, so that records that were delivered twice are not told from " +
			"flows; use another format where that matters",
		"f:11: outputs.syslog[0].fields.drop: without dst_ip OCSF has no place for nat_dst_ip either, as it is a part of the endpoint; " +
			"drop both, or keep both",
	}
	if diff := cmp.Diff(want, c.warnings); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWarnings(t *testing.T) {
	const text = `filter:
  - {action: drop, match: {proto: tcp}, not: {proto: tcp}}
outputs:
  jsonl:
    - path: /x
      filter:
        - {action: drop}
        - {action: accept, match: {proto: udp}}
  ipfix:
    - address: udp://192.0.2.1
      filter: [{action: drop, match: {proto: icmp, port: 80}}]
metrics: {listen: "LISTEN"}
`
	rules := []string{
		"f:2: filter[0]: never matches: match.proto and not.proto exclude each other; change or remove one of them",
		"f:7: outputs.jsonl[0].filter[0]: leaves nothing but gaps: with it every record is dropped; put a rule before it that accepts what is wanted",
		"f:8: outputs.jsonl[0].filter[1]: is never reached: entry [0] of this list has no matchers and decides about every record; move this rule before it, or remove it",
		"f:11: outputs.ipfix[0].filter[0]: never matches: match.proto and match.port exclude each other; change or remove one of them",
	}
	for listen, open := range map[string]bool{"0.0.0.0:9469": true, "[::]:9469": true, ":9469": true, "127.0.0.1:9469": false,
		"192.0.2.1:9469": false} {
		c, err := parseConfig("f", []byte(strings.Replace(text, "LISTEN", listen, 1)))
		if err != nil {
			t.Fatal(err)
		}
		want := rules
		if open {
			want = append(slices.Clone(rules), "f:12: metrics.listen: "+listen+" is every address of this host, and whoever reaches "+
				"one may look, without a password; listen on 127.0.0.1 or on an inner address, or set web_config")
		}
		if diff := cmp.Diff(want, c.warnings); diff != "" {
			t.Errorf("%s (-want +got):\n%s", listen, diff)
		}
	}
	const signed = "outputs: {archive: [{path: /a, key: /k}], ipfix: [{address: udp://192.0.2.1}]OTHERS}"
	for others, told := range map[string]bool{"": true, ", jsonl: [{path: /x}]": false, ", syslog: [{address: udp://192.0.2.2}]": false} {
		c, err := parseConfig("f", []byte(strings.Replace(signed, "OTHERS", others, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if got := len(c.warnings) == 1 && strings.HasPrefix(c.warnings[0], "f:1: outputs.archive[0].key: the signed checkpoints go to no other machine"); got != told {
			t.Errorf("%q: %q", others, c.warnings)
		}
	}
	for _, file := range []string{"../../ctlogd.yaml.example", "../../packaging/ctlogd.yaml"} {
		c, err := LoadConfig(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.warnings) > 0 {
			t.Errorf("%s: %q", file, c.warnings)
		}
	}
}

func TestLoadConfigWithoutFile(t *testing.T) {
	got, err := LoadConfig(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	got.Validate(func(path, msg string) { t.Errorf("the defaults are not valid: %s: %s", path, msg) })
	if len(got.Outputs.JSONL) != 1 || got.Outputs.JSONL[0].Path != "-" {
		t.Errorf("outputs %+v, want standard output alone", got.Outputs)
	}

	_, err = LoadConfig(t.Context(), filepath.Join(t.TempDir(), "none.yaml"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that does not exist: got %v", err)
	}
}

func TestResolve(t *testing.T) {
	c := Config{Host: "gw1", Observer: "o"}
	if err := c.Resolve(); err != nil || c.Host != "gw1" || c.Observer != "o" {
		t.Errorf("what is set: got %q, %q, %v", c.Host, c.Observer, err)
	}
	c = Config{}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Resolve(); err != nil || c.Host != host || c.Observer == "" {
		t.Errorf("what is not: got %q, %q, %v", c.Host, c.Observer, err)
	}
}

// Whatever the file holds, there is a configuration that is valid, or messages that name lines of the file.
func FuzzParseConfig(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig("x", text)
		if err == nil {
			c.Validate(func(path, msg string) { t.Errorf("accepted, but %s: %s", path, msg) })
			return
		}
		wrong := err.(*config.Error)
		if len(wrong.Faults) == 0 {
			t.Error("an error without a fault")
		}
		last := 1
		for _, l := range wrong.Faults {
			if l.Line < last || l.Line > strings.Count(string(text), "\n")+1 {
				t.Errorf("line %d after %d in a text of %d lines: %s", l.Line, last, strings.Count(string(text),
					"\n")+1, l.Msg)
			}
			last = l.Line
			if strings.ContainsAny(l.Path+l.Msg, "\n\r\x00") {
				t.Errorf("a message of more than one line: %q: %q", l.Path, l.Msg)
			}
		}
	})
}
