//go:build integration

package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/flow"
)

// The judges: packages that others wrote, which are fetched once into the user's cache.
const (
	ecsModule = "github.com/elastic/ecs@v" + ecsVersion + "+incompatible" // with the generated list of all fields
	splunk    = "pytest-splunk-addon==7.0.5"                              // for its data models, without what it needs
	pips      = "ocsf-json-schema==1.2.0 pycef==1.11 communityid==1.5.0 vrl-python==0.1.0"
)

// python runs a program in an environment that has the judges of PyPI.
func python(t *testing.T, program, stdin string, args ...string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "ctlogd", "judges-"+strings.NewReplacer(" ", "-", "==", "-").Replace(pips+" "+splunk))
	bin := filepath.Join(dir, "bin", "python")
	if _, err := os.Stat(filepath.Join(dir, "whole")); err != nil {
		os.RemoveAll(dir)
		for _, cmd := range [][]string{
			{"python3", "-m", "venv", dir},
			append([]string{bin, "-m", "pip", "install", "-q"}, strings.Fields(pips)...),
			{bin, "-m", "pip", "install", "-q", "--no-deps", splunk},
			{"touch", filepath.Join(dir, "whole")},
		} {
			if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", cmd, err, out)
			}
		}
	}
	cmd := exec.Command(bin, append([]string{"-c", program}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	return string(out)
}

// ecsField is what Elastic's list says of a field.
type ecsField struct {
	Type      string
	Normalize []string
	Allowed   []struct {
		Name  string
		Types []string `yaml:"expected_event_types"`
	} `yaml:"allowed_values"`
}

func ecsFields(t *testing.T) map[string]ecsField {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", ecsModule)
	cmd.Dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(cmd.Dir, "go.mod"), []byte("module judge\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(module.Dir, "generated/ecs/ecs_flat.yml"))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]ecsField{}
	if err := yaml.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	if len(fields) < 1000 {
		t.Fatalf("%d fields in Elastic's list", len(fields))
	}
	return fields
}

// check tells what is wrong with the value of a field.
func (f ecsField) check(v any) error {
	list, isList := v.([]any)
	if isList != slices.Contains(f.Normalize, "array") {
		return fmt.Errorf("a list: %v; the schema's normalization: %v", isList, f.Normalize)
	}
	if !isList {
		list = []any{v}
	}
	for _, v := range list {
		text := fmt.Sprint(v)
		_, isString := v.(string)
		var err error
		switch f.Type {
		case "keyword", "match_only_text", "wildcard", "constant_keyword":
			if !isString {
				err = fmt.Errorf("%T, want text", v)
			}
		case "ip":
			_, err = netip.ParseAddr(text)
		case "date":
			_, err = time.Parse(time.RFC3339Nano, text)
		case "long":
			_, err = strconv.ParseInt(text, 10, 64)
			if isString {
				err = fmt.Errorf("text, want a number")
			}
		default:
			err = fmt.Errorf("a value of type %s", f.Type)
		}
		if err != nil {
			return err
		}
		if len(f.Allowed) > 0 && !slices.ContainsFunc(f.Allowed, func(a struct {
			Name  string
			Types []string `yaml:"expected_event_types"`
		}) bool {
			return a.Name == text
		}) {
			return fmt.Errorf("%q is not among the allowed values", text)
		}
	}
	return nil
}

// TestECS holds the documents to Elastic's list of fields: names, types, allowed values, and which types of events the
// category allows.
func TestECS(t *testing.T) {
	fields := ecsFields(t)
	var types []string
	for _, a := range fields["event.category"].Allowed {
		if a.Name == "network" {
			types = a.Types
		}
	}
	e := encoder(t, "ecs")
	seen := map[string]bool{}
	for _, ex := range append(examples(), generate(1400)...) {
		line := e.Append(nil, &ex.rec)
		_, v := parse(t, line)
		var walk func(path string, v map[string]any)
		walk = func(path string, v map[string]any) {
			for k, e := range v {
				name := path + k
				if m, ok := e.(map[string]any); ok {
					if name != "ctlogd" { // ours
						walk(name+".", m)
					}
					continue
				}
				f, ok := fields[name]
				if !ok {
					t.Fatalf("%s: %s is no field of ECS:\n%s", ex.name, name, line)
				}
				if err := f.check(e); err != nil {
					t.Fatalf("%s: %s: %v:\n%s", ex.name, name, err, line)
				}
				seen[name] = true
			}
		}
		walk("", v)
		for _, typ := range v["event"].(map[string]any)["type"].([]any) {
			if !slices.Contains(types, typ.(string)) {
				t.Fatalf("%s: event.type %s is not expected of the category network: %s", ex.name, typ, types)
			}
		}
	}
	for _, name := range []string{"source.nat.ip", "source.nat.port", "destination.nat.ip", "event.duration", "event.id",
		"network.community_id", "network.iana_number", "related.ip", "observer.hostname", "event.reason", "event.outcome"} {
		if !seen[name] {
			t.Errorf("no document had %s", name)
		}
	}
}

// TestOCSF holds the events to the JSON schemas of network activity and of the base event that are made from the published
// schema.
func TestOCSF(t *testing.T) {
	out := python(t, `
import json, sys
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
s = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=sys.argv[1]))
json.dump({c: s.get_class_schema(c, ["datetime", "host"]) for c in ("network_activity", "base_event")}, sys.stdout)
`, "", ocsfVersion)
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	schemas := map[string]*jsonschema.Schema{}
	for class, s := range doc.(map[string]any) {
		c := jsonschema.NewCompiler()
		delete(s.(map[string]any), "$id")
		if err := c.AddResource(class+".json", s); err != nil {
			t.Fatal(err)
		}
		if schemas[class], err = c.Compile(class + ".json"); err != nil {
			t.Fatal(err)
		}
	}
	for _, drop := range [][]string{nil, {"host", "flow_id", "dst_ip", "proto", "proto_num", "orig_bytes"}, {"src_ip", "reply_packets"}} {
		e := encoder(t, "ocsf", drop...)
		for _, ex := range append(examples(), generate(700)...) {
			line := e.Append(nil, &ex.rec)
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
			if err != nil {
				t.Fatal(err)
			}
			class := "network_activity"
			if ex.rec.Event >= flow.EventGap {
				class = "base_event"
			}
			if err := schemas[class].Validate(v); err != nil {
				t.Fatalf("%s: %v\n%s", ex.name, err, line)
			}
		}
	}
	broken := exampleRecord(t, "destroy")
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(encoder(t, "ocsf").Append(nil, &broken)))
	if err != nil {
		t.Fatal(err)
	}
	v.(map[string]any)["nat"] = "snat"
	if schemas["network_activity"].Validate(v) == nil {
		t.Error("an attribute that the schema does not have is valid")
	}
}

// TestPycef holds lines of CEF to what another's parser makes of them.
func TestPycef(t *testing.T) {
	e := encoder(t, "cef")
	var lines strings.Builder
	var want []map[string]string
	hostile := exampleRecord(t, "destroy of an FTP data flow")
	hostile.Extra = &flow.Extra{Helper: flow.NameFrom("a=b c=\\d|e"), SecCtx: `x=1 src=6.6.6.6 |\ end`}
	for _, ex := range append(examples(), example{"hostile", hostile}) {
		line := e.Append(nil, &ex.rec)
		lines.Write(append(line, '\n'))
		header, ext := cefFields(t, line)
		for i, name := range []string{"CEFVersion", "DeviceVendor", "DeviceProduct", "DeviceVersion", "DeviceEventClassID", "DeviceName", "DeviceSeverity"} {
			ext[name] = header[i]
		}
		ext["CEFVersion"] = "0"
		ext["Name"], ext["Severity"] = ext["DeviceName"], ext["DeviceSeverity"]
		want = append(want, ext)
	}
	out := python(t, `
import json, sys, pycef
p = pycef.PyCEF() if hasattr(pycef, "PyCEF") else pycef
print(json.dumps([p.parse(l.rstrip("\n")) for l in sys.stdin]))
`, lines.String())
	var got []map[string]string
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	// pycef puts labels in place of the keys that they label, leaves some escapes in values, and knows no \n.
	for i := range want {
		for k, v := range want[i] {
			label, ok := want[i][k+"Label"]
			if ok {
				delete(want[i], k)
				delete(want[i], k+"Label")
				want[i][label] = v
			}
		}
		for _, m := range []map[string]string{want[i], got[i]} {
			for k, v := range m {
				m[k] = strings.NewReplacer("\n", "n", `\`, "").Replace(v)
			}
		}
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			t.Errorf("line %d (-want +got):\n%s", i, diff)
		}
	}
}

// TestCommunityReference holds community ids to those of the specification's author.
func TestCommunityReference(t *testing.T) {
	var in strings.Builder
	var want []string
	for _, ex := range append(examples(), generate(2100)...) {
		r := &ex.rec
		if r.Has&flow.HasOrig == 0 || expectation(r) {
			continue
		}
		o := &r.Orig
		src, dst := o.SrcPort, o.DstPort
		if o.Proto.IsICMP() {
			src, dst = uint16(o.ICMPType()), uint16(o.ICMPCode())
		}
		fmt.Fprintln(&in, uint8(o.Proto), o.SrcAddr(), o.DstAddr(), src, dst)
		want = append(want, string(newHasher().flow(nil, r)))
	}
	out := python(t, `
import sys, communityid
c = communityid.CommunityID()
for line in sys.stdin:
    p, s, d, sp, dp = line.split()
    p = int(p)
    ports = (int(sp), int(dp)) if p in communityid.PORT_PROTOS else ()
    print(c.calc(communityid.FlowTuple(p, s, d, *ports)))
`, in.String())
	got := strings.Fields(out)
	if len(got) != len(want) || len(want) < 1000 {
		t.Fatalf("%d ids for %d flows", len(got), len(want))
	}
	asked := strings.Split(in.String(), "\n")
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("flow %s: %s, the reference says %s", asked[i], want[i], got[i])
		}
	}
}

// TestVector has Vector's own language, as a module for Python has it, run the programs of docs/examples/vector.yaml on a line
// of each kind: the transform, and the condition of the filter behind it.
func TestVector(t *testing.T) {
	text, err := os.ReadFile("../../docs/examples/vector.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Transforms struct {
			Flows struct{ Source string }
			Ended struct{ Condition string }
		}
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	enc := encoder(t, "flat")
	for _, e := range examples() {
		lines.Write(append(enc.Append(nil, &e.rec), '\n'))
	}
	out := python(t, `import json, sys, vrl_python
runtime = vrl_python.VRLRuntime()
for line in sys.stdin:
    event = runtime.execute(sys.argv[1], {"message": line.rstrip("\n")}).processed_event
    event["kept"] = runtime.execute(sys.argv[2], event).runtime_result
    print(json.dumps(event, default=str))`, lines.String(), config.Transforms.Flows.Source, config.Transforms.Ended.Condition)
	decoded := json.NewDecoder(strings.NewReader(out))
	decoded.UseNumber()
	for _, e := range examples() {
		var got, want map[string]any
		if err := decoded.Decode(&got); err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
		flat := json.NewDecoder(bytes.NewReader(enc.Append(nil, &e.rec)))
		flat.UseNumber()
		if err := flat.Decode(&want); err != nil {
			t.Fatal(err)
		}
		if kept := want["event"] == "destroy" || want["event"] == "gap"; got["kept"] != kept {
			t.Errorf("%s: kept: %v, want %v", e.name, got["kept"], kept)
		}
		if src := want["src_ip"]; src != nil {
			if nat := want["nat_src_ip"]; nat != nil {
				src = nat
			}
			if got["public_ip"] != src {
				t.Errorf("%s: public_ip %v, want %v", e.name, got["public_ip"], src)
			}
		}
		for key, v := range want {
			if !reflect.DeepEqual(got[key], v) {
				t.Errorf("%s: %s is %v, want %v", e.name, key, got[key], v)
			}
		}
		if message, _ := got["message"].(string); message == "" || got["timestamp"] == nil {
			t.Errorf("%s: %v", e.name, got)
		}
	}
}

// TestCIM holds the fields of each record to Splunk's data model Network_Traffic, as Splunk's own test tool for add-ons has it:
// those that are required are there, but for the application, which nobody knows here; values are among those that are
// expected; and a name that the model lacks is flat's.
func TestCIM(t *testing.T) {
	var model struct {
		Objects []struct {
			Name   string
			Fields []struct {
				Name     string
				Type     string
				Expected []string `json:"expected_values"`
			}
		}
	}
	text := python(t, `import glob, sys
print(open(glob.glob(sys.prefix + "/lib/python*/site-packages/pytest_splunk_addon/data_models/Network_Traffic.json")[0]).read())`, "")
	if err := json.Unmarshal([]byte(text), &model); err != nil {
		t.Fatal(err)
	}
	fields := model.Objects[0].Fields
	if model.Objects[0].Name != "All_Traffic" || len(fields) < 40 {
		t.Fatalf("another model: %s, %d fields", model.Objects[0].Name, len(fields))
	}
	flat := encoder(t, "flat")
	enc := encoder(t, "cim")
	for _, e := range examples() {
		switch e.rec.Event {
		case flow.EventNew, flow.EventUpdate, flow.EventDestroy, flow.EventOpen:
		default:
			continue // no traffic
		}
		var got map[string]any
		if err := json.Unmarshal(enc.Append(nil, &e.rec), &got); err != nil {
			t.Fatal(err)
		}
		for _, f := range fields {
			v, there := got[f.Name]
			delete(got, f.Name)
			switch {
			case !there && f.Type == "required" && f.Name != "app":
				t.Errorf("%s: no %s", e.name, f.Name)
			case there && f.Type == "not_allowed_in_search":
				t.Errorf("%s: %s", e.name, f.Name)
			case there && len(f.Expected) > 0 && !slices.Contains(f.Expected, fmt.Sprint(v)):
				if p := e.rec.Orig.Proto; f.Name != "transport" || p == flow.TCP || p == flow.UDP || p == flow.ICMP {
					t.Errorf("%s: %s is %v, want one of %v", e.name, f.Name, v, f.Expected)
				}
			}
		}
		var own map[string]any
		if err := json.Unmarshal(flat.Append(nil, &e.rec), &own); err != nil {
			t.Fatal(err)
		}
		for name := range got {
			if _, ours := own[name]; !ours && name != "_time" {
				t.Errorf("%s: neither the model nor flat has %s", e.name, name)
			}
		}
	}
}
