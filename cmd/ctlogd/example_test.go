package main

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

const exampleFile = "../../ctlogd.yaml.example"

// example returns the example as it stands, and with every key that is commented out set.
func example(t *testing.T) (asIs, allSet []byte) {
	t.Helper()
	asIs, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^#(\S|  )`).ReplaceAllString(string(asIs), "$1")
	return asIs, []byte(strings.Replace(text, "\nfilter: []\n", "\n", 1))
}

func TestExampleLoads(t *testing.T) {
	asIs, allSet := example(t)
	if _, err := parseConfig("ctlogd.yaml.example", asIs); err != nil {
		t.Errorf("as it stands:\n%v", err)
	}
	if _, err := parseConfig("all set", allSet); err != nil {
		t.Errorf("with every key set:\n%v\n%s", err, allSet)
	}
}

// The example is the defaults, but for what has none.
func TestExampleIsTheDefaults(t *testing.T) {
	asIs, _ := example(t)
	got, err := parseConfig("ctlogd.yaml.example", asIs)
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseConfig("least", []byte(leastConfig))
	if err != nil {
		t.Fatal(err)
	}
	// What the outputs themselves resolve later, by this much:
	if f := &want.Outputs.JSONL[0].Format; *f == "" {
		*f = "flat"
	}
	empty := cmp.FilterValues(func(a, b any) bool {
		v, w := reflect.ValueOf(a), reflect.ValueOf(b)
		return v.Kind() == reflect.Slice && w.Kind() == reflect.Slice && v.Len() == 0 && w.Len() == 0
	}, cmp.Comparer(func(a, b any) bool { return true }))
	if diff := cmp.Diff(want, got, empty); diff != "" {
		t.Errorf("the example's values (-defaults +example):\n%s", diff)
	}
}

// Every key of every block stands in the example; those with a default are not commented out.
func TestExampleHasEveryKey(t *testing.T) {
	_, allSet := example(t)
	var doc yaml.Node
	if err := yaml.Unmarshal(allSet, &doc); err != nil {
		t.Fatal(err)
	}
	// Described once, where the same keys stand before.
	described := []string{"filter[].not", "outputs.jsonl[].filter"}

	var walk func(typ reflect.Type, n *yaml.Node, path string)
	walk = func(typ reflect.Type, n *yaml.Node, path string) {
		for _, d := range described {
			if path == d {
				return
			}
		}
		switch {
		case typ.Kind() == reflect.Pointer:
			walk(typ.Elem(), n, path)
		case isScalar(typ):
		case typ.Kind() == reflect.Slice && isScalar(typ.Elem()):
		case typ.Kind() == reflect.Slice:
			if len(n.Content) == 0 {
				t.Errorf("%s has no entry in the example", path)
				return
			}
			walk(typ.Elem(), n.Content[0], path+"[]")
		case typ.Kind() == reflect.Struct:
			keys := map[string]*yaml.Node{}
			for i := 0; i+1 < len(n.Content); i += 2 {
				keys[n.Content[i].Value] = n.Content[i+1]
			}
			for _, f := range fieldsOf(typ) {
				at := join(path, f.name)
				if keys[f.name] == nil {
					t.Errorf("%s is not in the example", at)
					continue
				}
				walk(typ.FieldByIndex(f.index).Type, keys[f.name], at)
			}
		default:
			t.Errorf("%s: the decoder does not know %v", path, typ)
		}
	}
	walk(reflect.TypeFor[Config](), doc.Content[0], "")
}

// Every kind of output starts from the same defaults. A kind that embeds two blocks with defaults has none of its own
// by Go's rules, and its queue would be 0.
func TestOutputsHaveDefaults(t *testing.T) {
	outputs := reflect.TypeFor[OutputsConfig]()
	for i := range outputs.NumField() {
		kind := outputs.Field(i)
		entry := reflect.New(kind.Type.Elem())
		d, ok := entry.Interface().(defaulter)
		if !ok {
			t.Errorf("%v has no method Defaults", kind.Type.Elem())
			continue
		}
		d.Defaults()
		if got := entry.Elem().FieldByName("Queue").Int(); got != defaultQueue {
			t.Errorf("outputs.%s[].queue is %d by default, want %d", kind.Tag.Get("yaml"), got, defaultQueue)
		}
	}
}
