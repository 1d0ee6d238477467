package format

import (
	"encoding/hex"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

// flowIDVectors are published in docs/json.md: a change here breaks every stored record.
var flowIDVectors = []struct{ example, want string }{
	{"destroy", "bfea1b8136814244aa4f57e3e4f20ec5"},
	{"destroy of a ping", "9539f77ed301b84336fa22d253cff294"},
	{"destroy of an FTP data flow", "57095187047de6f0c525b63d1b60fb01"},
	{"destroy in another network namespace", "27cfc08748f0eb67d602eb614a611869"},
	{"destroy between two zones", "4398273a2af27e7c9dcdc7576f25c902"},
}

func exampleRecord(t testing.TB, name string) flow.Record {
	t.Helper()
	for _, ex := range examples() {
		if ex.name == name {
			return ex.rec
		}
	}
	t.Fatalf("no example %q", name)
	panic("unreachable")
}

func TestFlowIDVectors(t *testing.T) {
	key := NewObserverKey(exampleObserver)
	for _, v := range flowIDVectors {
		r := exampleRecord(t, v.example)
		id, ok := FlowID(key, &r)
		if got := hex.EncodeToString(id[:]); !ok || got != v.want {
			t.Errorf("%s: FlowID = %s, %t, want %s", v.example, got, ok, v.want)
		}
	}
}

// TestFlowIDRecipe runs the Python of docs/json.md, a second implementation, on the lines that the encoder writes.
func TestFlowIDRecipe(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("python3 is not installed")
	}
	doc, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(doc)
	if m == nil {
		t.Fatal("no Python in docs/json.md")
	}
	e, err := New("flat", Options{Observer: exampleObserver})
	if err != nil {
		t.Fatal(err)
	}
	var lines []byte
	want := 0
	for _, ex := range append(examples(), generate(700)...) {
		if _, ok := FlowID(NewObserverKey(exampleObserver), &ex.rec); ok {
			lines = append(e.Append(lines, &ex.rec), '\n')
			want++
		}
	}
	cmd := exec.Command("python3", "-c", string(m[1]), exampleObserver)
	cmd.Stdin = strings.NewReader(string(lines))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := strings.Fields(string(out))
	if len(got) != 2*want || want < 100 {
		t.Fatalf("%d words of output for %d lines:\n%s", len(got), want, out)
	}
	for i := 0; i < len(got); i += 2 {
		if got[i] != got[i+1] {
			t.Errorf("line %d: flow_id is %s, recomputed %s", i/2+1, got[i], got[i+1])
		}
	}
}

func TestFlowIDTellsFlowsApart(t *testing.T) {
	base := exampleRecord(t, "destroy between two zones")
	key := NewObserverKey("a")
	id := func(key ObserverKey, change func(*flow.Record)) [16]byte {
		t.Helper()
		r := base
		change(&r)
		id, ok := FlowID(key, &r)
		if !ok {
			t.Fatal("no flow id")
		}
		return id
	}
	same := id(key, func(*flow.Record) {})
	for name, change := range map[string]func(*flow.Record){
		"open":      func(r *flow.Record) { r.Event = flow.EventOpen },
		"delivered": func(r *flow.Record) { r.Stamp, r.Received = 7, 8 },
		"counted":   func(r *flow.Record) { r.Has |= flow.HasCounters; r.OrigCounters.Bytes = 9 },
		"reply":     func(r *flow.Record) { r.Reply.DstPort++ },
		"marked":    func(r *flow.Record) { r.Has |= flow.HasMark; r.Mark = 3; r.Status = 0; r.ID = 0 },
	} {
		if id(key, change) != same {
			t.Errorf("%s: another id for the same flow", name)
		}
	}
	seen := map[[16]byte]string{same: "unchanged"}
	for name, change := range map[string]func(*flow.Record){
		"start":            func(r *flow.Record) { r.Start++ },
		"source":           func(r *flow.Record) { r.Orig.Src[15]++ },
		"destination":      func(r *flow.Record) { r.Orig.Dst[0]++ },
		"source port":      func(r *flow.Record) { r.Orig.SrcPort++ },
		"destination port": func(r *flow.Record) { r.Orig.DstPort++ },
		"protocol":         func(r *flow.Record) { r.Orig.Proto++ },
		"family":           func(r *flow.Record) { r.Orig.V6 = false },
		"namespace":        func(r *flow.Record) { r.Netns = flow.HoldNetns(0, "a") },
		"other namespace":  func(r *flow.Record) { r.Netns = flow.HoldNetns(1<<30, "a") },
		"zone":             func(r *flow.Record) { r.Has |= flow.HasZone; r.Zone = 1 },
		"zone 0":           func(r *flow.Record) { r.Has |= flow.HasZone },
		"original zone":    func(r *flow.Record) { r.Orig.Zone++ },
		"no original zone": func(r *flow.Record) { r.Orig.HasZone = false },
		"reply zone":       func(r *flow.Record) { r.Reply.Zone++ },
		"no reply zone":    func(r *flow.Record) { r.Reply.HasZone = false },
	} {
		got := id(key, change)
		if other, ok := seen[got]; ok {
			t.Errorf("%s: the id of %s", name, other)
		}
		seen[got] = name
	}
	if id(NewObserverKey("b"), func(*flow.Record) {}) == same {
		t.Error("another observer has the same id")
	}
}

func TestFlowIDUnknown(t *testing.T) {
	for name, change := range map[string]func(*flow.Record){
		"no start": func(r *flow.Record) { r.Start = 0 },
		"no tuple": func(r *flow.Record) { r.Has &^= flow.HasOrig },
		"new":      func(r *flow.Record) { r.Event = flow.EventNew },
		"update":   func(r *flow.Record) { r.Event = flow.EventUpdate },
		"gap":      func(r *flow.Record) { r.Event = flow.EventGap },
		"expected": func(r *flow.Record) { r.Event = flow.EventExpectDestroy },
	} {
		r := exampleRecord(t, "destroy")
		change(&r)
		if id, ok := FlowID(NewObserverKey("a"), &r); ok || id != [16]byte{} {
			t.Errorf("%s: FlowID = %x, %t, want none", name, id, ok)
		}
	}
}
