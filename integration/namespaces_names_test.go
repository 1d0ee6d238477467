//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/ctlogd/ctlogd/integration/lab"
)

// named returns the names of the namespaces that the daemon knows now, in order.
func (s *spaces) named(t *testing.T) (names []string) {
	t.Helper()
	var v struct {
		Namespaces struct {
			Named []struct{ Name string }
		}
	}
	must(t, json.Unmarshal([]byte(s.status(t, "--json")), &v))
	for _, n := range v.Namespaces.Named {
		names = append(names, n.Name)
	}
	return names
}

// knows waits until the daemon knows namespaces by these names, and no others.
func (s *spaces) knows(t *testing.T, names ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the daemon knows %q", names), func() bool { return s.ended() || slices.Equal(s.named(t), names) })
}

// TestNamesMove: a namespace whose name goes while it lives on has an open record of each flow, and later ones under its id; it
// may get another name, be renamed, and have two. Whatever it is called, it is one namespace, and a flow one flow.
func TestNamesMove(t *testing.T) {
	need(t)
	home, own := newSpace(t, "home")
	defer own.Close()
	s := startSpaces(t, home, "{namespaces: all}")
	ns, f := newSpace(t, "blue")
	defer f.Close()
	lines, written := lineCounter{path: s.file}, 0
	wait := func(n int) {
		t.Helper()
		written += n
		eventually(t, fmt.Sprintf("%d records are written", written), func() bool { return s.ended() || lines.count(t) >= written })
	}
	end := func(from, to int) {
		t.Helper()
		must(t, f.Delete(from, to))
		wait(to - from)
	}
	s.name(t, ns, "blue")
	must(t, f.Create(0, 40))
	end(0, 10)
	s.unname(t, "blue")
	wait(30) // an open record of each
	s.knows(t)
	end(10, 20)

	s.name(t, ns, "green")
	end(20, 25)
	s.inside(t, "touch /run/netns/red; mount --move /run/netns/green /run/netns/red; rm /run/netns/green")
	wait(15)
	s.knows(t, "red")
	end(25, 30)

	s.mount(t, ns, "alias")
	s.mount(t, ns, "zebra")
	other, inOther := newSpace(t, "other")
	defer inOther.Close()
	s.name(t, other, "other") // what is known by now is all of it
	s.knows(t, "other", "red")
	end(30, 35)
	s.unname(t, "red")
	wait(5)
	s.knows(t, "alias", "other")
	end(35, 40)
	s.stop(t)

	b := s.book(t)
	id := strconv.Itoa(int(b.nsids["blue"]))
	for name, nsid := range b.nsids {
		if nsid != b.nsids["blue"] {
			t.Errorf("%s has the id %d", name, nsid)
		}
	}
	b.check(t, "blue destroy", 0, 10)
	b.check(t, "blue open", 10, 40)
	b.check(t, id+" destroy", 10, 20)
	b.check(t, "green destroy", 20, 25)
	b.check(t, "green open", 25, 40)
	b.check(t, "red destroy", 25, 35)
	b.check(t, "red open", 35, 40)
	b.check(t, "alias destroy", 35, 40)
	if len(b.flows) != 8 || len(b.gaps) > 0 {
		t.Errorf("there are %v; gaps: %v", b.flows, b.gaps)
	}
	for i := 10; i < 40; i++ {
		var as []string
		for _, key := range []string{"blue open", "green open", "red open", id + " destroy", "green destroy", "red destroy", "alias destroy"} {
			if flowID, ok := b.ofID[fmt.Sprint(key, " ", i)]; ok {
				as = append(as, flowID)
			}
		}
		if len(as) < 2 || len(slices.Compact(as)) != 1 {
			t.Errorf("flow %d has the flow_ids %v", i, as)
		}
	}
}

// oddNames are names of files.
var oddNames = []string{"a b", "tab\there", "new\nline", `quo"te`, `back\slash`, `\040`, "-n", "\xff\xfe", "snow\u2603", "\x1b[31mred", "comma,", "#hash",
	"'; echo", strings.Repeat("x", 255), "\u202egnp"}

// TestOddNames: a namespace may be called whatever a file may. Records, metrics and what people look at show it so that nobody
// is hurt.
func TestOddNames(t *testing.T) {
	need(t)
	home, own := newSpace(t, "home")
	defer own.Close()
	s := startSpacesWith(t, home, "{namespaces: all}", func(string) string { return "metrics: {listen: 127.0.0.1:9469}\n" })
	const flows = 3
	for _, name := range oddNames {
		ns, f := newSpace(t, "odd")
		defer f.Close()
		s.mount(t, ns, name)
		shown := string([]rune(name)) // U+FFFD for each byte that is no UTF-8
		eventually(t, fmt.Sprintf("%q is known", name), func() bool { return s.ended() || slices.Contains(s.named(t), shown) })
		must(t, f.Churn(0, flows))
		must(t, f.Create(flows, flows+1))
	}
	lines := lineCounter{path: s.file}
	eventually(t, "all records are written", func() bool { return lines.count(t) >= flows*len(oddNames) })

	clean := func(what, text string) {
		t.Helper()
		if text == "" || !utf8.ValidString(text) || strings.ContainsAny(text, "\x1b\u202e\t") {
			t.Errorf("%s: %q", what, text)
		}
	}
	clean("status", s.status(t))
	clean("the log", strings.NewReplacer("\t", " ", "\u202e", "").Replace(s.stderr.String())) // it is JSON behind tabs
	binary := buildDaemon(t, false)
	clean("check", s.inside(t, `"$@" || [ $? = 1 ]`, binary, "check", "-c", s.control))
	clean("list", s.inside(t, `"$@" --color never`, binary, "list", "--netns", "all"))
	clean("list --count-by", s.inside(t, `"$@"`, binary, "list", "--netns", "all", "--count-by", "netns"))
	for _, name := range []string{"a b", "-n", "\xff\xfe", "\x1b[31mred"} { // others need quotes, as in a line of CSV
		if got := s.inside(t, `"$@"`, binary, "list", "--json", "--netns="+name); strings.Count(got, "\n") != 1 {
			t.Errorf("list --netns=%q: %q", name, got)
		}
	}
	m := &metricsOf{ns: home}
	m.scrape(t)
	for _, name := range oddNames {
		label := strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`).Replace(strings.ToValidUTF8(name, "\ufffd"))
		if got := m.value(t, `ctlogd_netns_events_total{netns="`+label+`"}`); got != flows {
			t.Errorf("%q: %v events", name, got)
		}
	}
	s.stop(t)

	text, err := os.ReadFile(s.file)
	must(t, err)
	clean("the records", strings.ReplaceAll(string(text), "\u202e", "")) // which JSON may have
	b := s.book(t)
	for _, name := range oddNames {
		b.check(t, string([]rune(name))+" destroy", 0, flows)
	}
	if len(b.gaps) > 0 {
		t.Errorf("gaps: %v", b.gaps)
	}
}

// TestListNamespaces: list shows the tables of the namespaces that it is asked for, each flow with its namespace, and says what
// it cannot read.
func TestListNamespaces(t *testing.T) {
	need(t, "setpriv")
	home, own := newSpace(t, "home")
	defer own.Close()
	s := startSpaces(t, home, "{namespaces: all}")
	sizes := map[string]int{"": 5, "blue": 7, "red": 11}
	must(t, own.Create(0, sizes[""]))
	defer own.Flush()
	for _, name := range []string{"blue", "red"} {
		ns, f := newSpace(t, name)
		defer f.Close()
		s.name(t, ns, name)
		must(t, f.Create(0, sizes[name]))
	}
	binary := buildDaemon(t, false)
	for _, tt := range []struct {
		args string
		want []string
	}{
		{"", []string{""}},
		{"--netns blue", []string{"blue"}},
		{"--netns blue,red", []string{"blue", "red"}},
		{"--netns blue --netns own", []string{"", "blue"}},
		{"--netns own", []string{""}},
		{"--netns all", []string{"", "blue", "red"}},
		{"--netns all netns=red,own", []string{"", "red"}},
		{"--netns all netns=blue proto=tcp,udp", []string{"blue"}},
		{"netns=blue", nil},
	} {
		want := map[string]int{}
		for _, name := range tt.want {
			want[name] = sizes[name]
		}
		got, ids := map[string]int{}, map[string]bool{}
		for line := range strings.Lines(s.inside(t, `"$@"`, append([]string{binary, "list", "--json"}, strings.Fields(tt.args)...)...)) {
			var r struct {
				Event, Netns, FlowID string
				NSID                 *int32
			}
			must(t, json.Unmarshal([]byte(strings.ReplaceAll(line, "flow_id", "FlowID")), &r))
			if r.Event != "open" || (r.NSID == nil) != (r.Netns == "") {
				t.Errorf("list %s: %s", tt.args, line)
			}
			ids[r.FlowID] = true
			got[r.Netns]++
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || len(ids) != want[""]+want["blue"]+want["red"] {
			t.Errorf("list %s: %v with %d flow_ids, want %v", tt.args, got, len(ids), want)
		}
	}
	for _, tt := range []struct{ command, out string }{
		{`"$0" list --netns all --count-by netns`, "11  47.8 %                0  red\n"},
		{`"$0" list --netns all --count-by netns`, "5  21.7 %                0  own\n"},
		{`"$0" list --netns blue -n 1 --color never`, "in blue\n"},
		{`"$0" list --expect --netns all | wc -l`, "0\n"},
		{`"$0" list --netns none,blue --json 2>&1 | tail -n 1`, `there is no network namespace "none"`},
		{`"$0" list --netns none,blue --json 2>/dev/null | wc -l`, "7\n"},
		{`setpriv --inh-caps +net_admin --ambient-caps +net_admin --bounding-set -sys_admin "$0" list --netns own,blue --json 2>&1 | tail -n 1`, "network namespace blue: enter the namespace: operation not permitted; the tables of other network namespaces take CAP_SYS_ADMIN"},
		{`setpriv --inh-caps +net_admin --ambient-caps +net_admin --bounding-set -sys_admin "$0" list --netns own,blue --json 2>/dev/null | wc -l`, "5\n"},
	} {
		cmd := strings.ReplaceAll(tt.command, `"$0"`, binary)
		if got := s.inside(t, cmd); !strings.Contains(got, tt.out) {
			t.Errorf("%s: %q", tt.command, got)
		}
	}
	s.stop(t)
}

// TestStatusOfNamespaces: status, top and the metrics show which namespaces there are and how full the fullest table is.
func TestStatusOfNamespaces(t *testing.T) {
	need(t)
	home, own := newSpace(t, "home")
	defer own.Close()
	s := startSpacesWith(t, home, "{namespaces: [blue, red]}", func(string) string { return "metrics: {listen: 127.0.0.1:9469}\n" })
	m := &metricsOf{ns: home}
	spaces := map[string]*lab.Flood{}
	for _, name := range []string{"blue", "red", "grey"} {
		ns, f := newSpace(t, name)
		defer f.Close()
		defer f.Flush()
		spaces[name] = f
		if s.mount(t, ns, name); name == "grey" { // nobody asks for it, and it has an id
			s.inside(t, "ip netns set grey 700")
		}
	}
	s.knows(t, "blue", "red")
	must(t, spaces["blue"].Create(0, 30))
	must(t, spaces["blue"].Delete(0, 10))
	must(t, spaces["red"].Create(0, 50))
	must(t, spaces["grey"].Churn(0, 40))
	lines := lineCounter{path: s.file}
	eventually(t, "all records are written", func() bool { return lines.count(t) >= 10 })
	eventually(t, "what comes of the other one is counted", func() bool {
		m.scrape(t)
		return m.value(t, "ctlogd_netns_unlisted_events_total") == 40
	})
	m.check(t, map[string]float64{
		"ctlogd_netns_heard": 1, "ctlogd_netns_named": 2, "ctlogd_netns_unnamed": 1, "ctlogd_netns_closed": 0,
		`ctlogd_netns_events_total{netns="blue"}`: 10, `ctlogd_netns_events_total{netns="red"}`: 0,
		`ctlogd_netns_conntrack_entries{netns="blue"}`: 20, `ctlogd_netns_conntrack_entries{netns="red"}`: 50,
		`ctlogd_netns_conntrack_sysctl{netns="red",sysctl="nf_conntrack_acct"}`: 1,
	})
	const want = "2 by name, 1 others with an id; the fullest table is that of red, 50 entries"
	socket := strings.TrimSuffix(s.control, "ctlogd.yaml") + "sock"
	for _, command := range []string{"status", "top"} {
		out := s.inside(t, `"$@"`, buildDaemon(t, false), command, "--socket", socket)
		if !strings.Contains(out, want) {
			t.Errorf("%s:\n%s", command, out)
		}
	}
	s.stop(t)
	b := s.book(t)
	b.check(t, "blue destroy", 0, 10)
	if len(b.flows) != 1 || len(b.gaps) > 0 {
		t.Errorf("there are %v, gaps %v", b.flows, b.gaps)
	}
}
