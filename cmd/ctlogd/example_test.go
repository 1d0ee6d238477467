//go:build !small

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/config"
	"github.com/ctlogd/ctlogd/output/certfile/certtest"
	"github.com/ctlogd/ctlogd/pipeline/deliver"
	"github.com/ctlogd/ctlogd/pipeline/spool"
)

const exampleFile = "../../ctlogd.yaml.example"

// example returns the example as it stands, with what is commented out in it, and with what is commented out in that as
// well, which is every key.
func example(t *testing.T) (asIs, outputs, allSet []byte) {
	t.Helper()
	asIs, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	outputs = regexp.MustCompile(`(?m)^#(\S|  )`).ReplaceAll(asIs, []byte("$1"))
	outputs = bytes.Replace(outputs, []byte("\nfilter: []\n"), []byte("\n"), 1)
	return asIs, outputs, regexp.MustCompile(`(?m)^( +)#(\S)`).ReplaceAll(outputs, []byte("$1$2"))
}

func TestExampleLoads(t *testing.T) {
	asIs, outputs, allSet := example(t)
	if _, err := parseConfig("ctlogd.yaml.example", asIs); err != nil {
		t.Errorf("as it stands:\n%v", err)
	}
	if _, err := parseConfig("with outputs", outputs); err != nil {
		t.Errorf("with the outputs that are commented out:\n%v\n%s", err, outputs)
	}

	c, err := parseConfig("all set", withFiles(t, allSet))
	if err != nil {
		t.Fatalf("with every key set:\n%v\n%s", err, allSet)
	}
	least := spool.Config{Path: "/var/lib/ctlogd/spool/flows"}
	least.Defaults()
	if diff := cmp.Diff(&least, c.Outputs.JSONL[0].Spool); diff != "" {
		t.Errorf("the spool (-defaults +example):\n%s", diff)
	}
}

// withFiles returns the text with the files that it names elsewhere, where they are.
func withFiles(t *testing.T, text []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	cert, key := certtest.New(t).Issue(t, "client", time.Hour)
	for name, content := range map[string][]byte{
		"ca.pem": cert, "client.pem": cert, "client-key.pem": key, "kafka-password": []byte("secret\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("CTLOGD_KAFKA_PASSWORD", "secret")
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	return bytes.ReplaceAll(text, []byte("/etc/ctlogd"), []byte(dir))
}

// The documentation of each network output begins with a configuration, which loads, and names every key.
func TestDocsOfOutputs(t *testing.T) {
	for name, typ := range map[string]reflect.Type{
		"ipfix.md": reflect.TypeFor[IPFIXConfig](), "kafka.md": reflect.TypeFor[KafkaConfig](),
		"syslog.md": reflect.TypeFor[SyslogConfig](), "archive.md": reflect.TypeFor[ArchiveConfig](),
	} {
		doc, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		block := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(doc)
		if block == nil {
			t.Fatalf("%s has no configuration", name)
		}
		if _, err := parseConfig(name, withFiles(t, block[1])); err != nil {
			t.Errorf("the configuration in %s:\n%v", name, err)
		}
		for _, f := range config.Keys(typ) {
			if !regexp.MustCompile("(?m)`" + f.Name + "`|^[ -]+" + f.Name + ":").Match(doc) {
				t.Errorf("%s does not name %s", name, f.Name)
			}
		}
	}
}

// The example is the defaults, but for what has none; the outputs that are commented out are as well.
func TestExampleIsTheDefaults(t *testing.T) {
	parse := func(text string) *Config {
		c, err := parseConfig("x", []byte(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return c
	}
	asIs, outputs, _ := example(t)
	got, want := parse(string(asIs)), parse(leastConfig)
	if len(got.Outputs.IPFIX)+len(got.Outputs.Kafka)+len(got.Outputs.Syslog)+len(got.Outputs.Archive) > 0 {
		t.Error("as it stands, the example sends records over the network")
	}
	got.Outputs = parse(string(outputs)).Outputs
	want.Outputs.IPFIX = parse(`outputs: {ipfix: [{address: "udp://192.0.2.10:4739"},
		{address: tls://collector.example.net}]}`).Outputs.IPFIX
	want.Outputs.Kafka = parse(`outputs: {kafka: [{brokers: [kafka1.example.net:9092, kafka2.example.net:9092],
		topic: flows}, {brokers: kafka3.example.net:9093, topic: nat}]}`).Outputs.Kafka
	want.Outputs.Syslog = parse(`outputs: {syslog: [{address: "tcp://192.0.2.20:514"}, {address: tls://syslog.example.net}]}`).
		Outputs.Syslog
	want.Outputs.Archive = parse(`outputs: {archive: [{path: /var/lib/ctlogd/archive}]}`).Outputs.Archive
	// What the outputs themselves resolve later, by this much:
	if f := &want.Outputs.JSONL[0].Format; *f == "" {
		*f = "flat"
	}
	if c := &want.Outputs.JSONL[0].Compress; *c == "" {
		*c = "none"
	}
	empty := cmp.FilterValues(func(a, b any) bool {
		v, w := reflect.ValueOf(a), reflect.ValueOf(b)
		return v.Kind() == reflect.Slice && w.Kind() == reflect.Slice && v.Len() == 0 && w.Len() == 0
	}, cmp.Comparer(func(a, b any) bool { return true }))
	if diff := cmp.Diff(want, got, empty, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Errorf("the example's values (-defaults +example):\n%s", diff)
	}
}

// Every key of every block stands in the example, in some entry where the block is a list's.
func TestExampleHasEveryKey(t *testing.T) {
	_, _, allSet := example(t)
	var doc yaml.Node
	if err := yaml.Unmarshal(allSet, &doc); err != nil {
		t.Fatal(err)
	}
	// Described once, where the same keys stand before.
	described := []string{
		"filter[].not", "outputs.jsonl[].filter[]", "outputs.ipfix[].filter[]", "outputs.kafka[].filter[]", "outputs.syslog[].filter[]", "outputs.archive[].filter[]",
		"outputs.ipfix[].spool", "outputs.kafka[].spool", "outputs.syslog[].spool", "outputs.archive[].spool",
	}

	var walk func(typ reflect.Type, nodes []*yaml.Node, path string)
	walk = func(typ reflect.Type, nodes []*yaml.Node, path string) {
		switch {
		case slices.Contains(described, path):
		case typ.Kind() == reflect.Pointer:
			walk(typ.Elem(), nodes, path)
		case config.IsScalar(typ):
		case typ.Kind() == reflect.Slice && config.IsScalar(typ.Elem()):
		case typ.Kind() == reflect.Slice:
			var entries []*yaml.Node
			for _, n := range nodes {
				entries = append(entries, n.Content...)
			}
			walk(typ.Elem(), entries, path+"[]")
		case typ.Kind() == reflect.Struct:
			values := map[string][]*yaml.Node{}
			for _, n := range nodes {
				for i := 0; i+1 < len(n.Content); i += 2 {
					key := n.Content[i].Value
					values[key] = append(values[key], n.Content[i+1])
				}
			}
			for _, f := range config.Keys(typ) {
				at := config.Join(path, f.Name)
				if values[f.Name] == nil {
					t.Errorf("%s is not in the example", at)
					continue
				}
				walk(typ.FieldByIndex(f.Index).Type, values[f.Name], at)
			}
		default:
			t.Errorf("%s: the decoder does not know %v", path, typ)
		}
	}
	walk(reflect.TypeFor[Config](), doc.Content, "")
}

// Every kind of output starts from the same defaults. A kind that embeds two blocks with defaults has none of its own
// by Go's rules, and its queue would be 0.
func TestOutputsHaveDefaults(t *testing.T) {
	outputs := reflect.TypeFor[OutputsConfig]()
	for _, kind := range config.Keys(outputs) {
		list := outputs.FieldByIndex(kind.Index).Type
		entry := reflect.New(list.Elem())
		d, ok := entry.Interface().(config.Defaulter)
		if !ok {
			t.Errorf("%v has no method Defaults", list.Elem())
			continue
		}
		d.Defaults()
		if got := entry.Elem().FieldByName("Queue").Int(); got != deliver.DefaultMax {
			t.Errorf("outputs.%s[].queue is %d by default, want %d", kind.Name, got, deliver.DefaultMax)
		}
	}
}
