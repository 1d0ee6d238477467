package filter

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/flow"
)

// decodeFilter decodes rules as the configuration is decoded: strictly.
func decodeFilter(text string) (Config, error) {
	var c Config
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return c, nil
}

func mustDecode(t testing.TB, text string) Config {
	t.Helper()
	c, err := decodeFilter(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	c.Validate(func(field, msg string) { t.Fatalf("%s: %s: %s", text, field, msg) })
	return c
}

func mustCompile(t testing.TB, text string) Func {
	t.Helper()
	return mustDecode(t, text).Compile()
}

func TestOrder(t *testing.T) {
	tests := []struct {
		name, rules string
		want        string // the names of the records that are accepted
	}{
		{"accept what no rule matches", `[{action: drop, match: {proto: icmp}}]`, "tcp udp gap"},
		{"first match wins", `[{action: accept, match: {proto: icmp}}, {action: drop, match: {proto: [icmp, udp]}}]`,
			"tcp icmp gap"},
		{"drop the rest", `[{action: accept, match: {proto: udp}}, {action: drop}]`, "udp gap"},
		{"all matchers of a rule", `[{action: drop, match: {proto: tcp, dst_port: 53}}]`, "tcp udp icmp gap"},
		{"all of match, none of not", `[{action: drop, match: {family: ipv4}, not: {proto: [icmp, udp]}}]`,
			"udp icmp gap"},
		{"each matcher of not", `[{action: drop, not: {proto: udp, dst_port: 443}}]`, "tcp udp icmp gap"},
		{"an unknown port under not", `[{action: drop, not: {dst_port: 80}}]`, "icmp gap"},
		{"gaps and checkpoints pass", `[{action: drop, match: {}}]`, "gap"},
	}
	records := []struct {
		name string
		rec  *flow.Record
	}{
		{"tcp", plain()},
		{"udp", with(func(r *flow.Record) { r.Orig.Proto, r.Reply.Proto = flow.UDP, flow.UDP })},
		{"icmp", with(icmp)},
		{"gap", &flow.Record{Event: flow.EventGap, Extra: &flow.Extra{}}},
	}
	for _, tt := range tests {
		f := mustCompile(t, tt.rules)
		var accepted []string
		if !f(&flow.Record{Event: flow.EventCheckpoint, Extra: &flow.Extra{Note: new(flow.Note)}}) {
			t.Errorf("%s: a checkpoint is dropped", tt.name)
		}
		for _, r := range records {
			if f(r.rec) {
				accepted = append(accepted, r.name)
			}
		}
		if got := strings.Join(accepted, " "); got != tt.want {
			t.Errorf("%s: accepted %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestCompileNil(t *testing.T) {
	for name, c := range map[string]Config{
		"no rules":        nil,
		"empty list":      {},
		"one bad matcher": {{Action: "drop"}, {Action: "drop", Match: Match{Proto: List[string]{"tpc"}}}},
		"no action":       {{}},
	} {
		if c.Compile() != nil {
			t.Errorf("%s: Compile did not return nil", name)
		}
		if s := NewPushdown(c, nil); !s.Empty() {
			t.Errorf("%s: Pushdown drops", name)
		}
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		rules string
		want  []string
	}{
		{`[{match: {proto: tcp}}]`, []string{`[0].action: missing action; use accept or drop`}},
		{`[{action: accept}, {action: deny}]`, []string{`[1].action: unknown action "deny"; use accept or drop`}},
		{`[{action: drop, match: {proto: [udp, tpc]}}]`, []string{`[0].match.proto[1]: unknown protocol "tpc"; ` +
			`use a name such as tcp, udp, icmp or a number from 0 to 255`}},
		{`[{action: drop, match: {proto: 256}}]`, []string{`[0].match.proto[0]: unknown protocol "256"; ` +
			`use a name such as tcp, udp, icmp or a number from 0 to 255`}},
		{`[{action: drop, not: {proto: ""}}]`, []string{`[0].not.proto[0]: unknown protocol ""; ` +
			`use a name such as tcp, udp, icmp or a number from 0 to 255`}},
		{`[{action: drop, match: {proto: []}}]`, []string{
			`[0].match.proto: empty list; write at least one value or remove the key`}},
		{`[{action: drop, match: {event: [end, gap, ""]}}]`, []string{
			`[0].match.event[0]: unknown event "end"; use new, update, destroy, open, expect_new or expect_destroy`,
			`[0].match.event[1]: gap records pass every filter; ` +
				`use new, update, destroy, open, expect_new or expect_destroy`,
			`[0].match.event[2]: unknown event ""; use new, update, destroy, open, expect_new or expect_destroy`}},
		{`[{action: drop, match: {nat: masquerade}}]`, []string{
			`[0].match.nat[0]: unknown NAT type "masquerade"; use none, snat, dnat or both`}},
		{`[{action: drop, match: {family: inet}}]`, []string{
			`[0].match.family[0]: unknown family "inet"; use ipv4 or ipv6`}},
		{`[{action: drop, match: {helper: ["", a-name-of-16-byte]}}]`, []string{
			`[0].match.helper[0]: empty helper name; write a name such as ftp or sip, or none`,
			`[0].match.helper[1]: helper name "a-name-of-16-byte" is too long; the kernel allows 15 bytes`}},
		{`[{action: drop, match: {src: [10.0.0.0/33, host], dst: ["fe80::1%eth0"]}}]`, []string{
			`[0].match.src[0]: "10.0.0.0/33" is not an address; ` +
				`write one such as 192.0.2.1 or 2001:db8::1, or a network such as 192.0.2.0/24`,
			`[0].match.src[1]: "host" is not an address; ` +
				`write one such as 192.0.2.1 or 2001:db8::1, or a network such as 192.0.2.0/24`,
			`[0].match.dst[0]: "fe80::1%eth0" is not an address; ` +
				`write one such as 192.0.2.1 or 2001:db8::1, or a network such as 192.0.2.0/24`}},
		{`[{action: drop, match: {nat_src: 10.1.2.3/8, nat_dst: "::ffff:10.0.0.1"}}]`, []string{
			`[0].match.nat_src[0]: 10.1.2.3/8 is not a network, bits behind its length are set; ` +
				`write 10.0.0.0/8 or 10.1.2.3`,
			`[0].match.nat_dst[0]: ::ffff:10.0.0.1 is an IPv4 address in IPv6 form; write it as IPv4`}},
		{`[{action: drop, match: {src_port: 65536, dst_port: [http, 1-, 90-80]}}]`, []string{
			`[0].match.src_port[0]: "65536" is not a port; ` +
				`write a number from 0 to 65535 or a range such as 1024-65535`,
			`[0].match.dst_port[0]: "http" is not a port; ` +
				`write a number from 0 to 65535 or a range such as 1024-65535`,
			`[0].match.dst_port[1]: "1-" is not a port; write a number from 0 to 65535 or a range such as 1024-65535`,
			`[0].match.dst_port[2]: range 90-80 runs backwards; write 80-90`}},
		{`[{action: drop, match: {host: [10.0.0.0/8, x], net: 10.0.0.1/8, port: 70000}}]`, []string{
			`[0].match.port[0]: "70000" is not a port; write a number from 0 to 65535 or a range such as 1024-65535`,
			`[0].match.host[0]: 10.0.0.0/8 is a network; write net: 10.0.0.0/8, or one address`,
			`[0].match.host[1]: "x" is not an address; write one such as 192.0.2.1 or 2001:db8::1, or a network such as 192.0.2.0/24`,
			`[0].match.net[0]: 10.0.0.1/8 is not a network, bits behind its length are set; write 10.0.0.0/8 or 10.0.0.1`}},
		{`[{action: drop, match: {nat_src_port: x}, not: {nat_dst_port: x}}]`, []string{
			`[0].match.nat_src_port[0]: "x" is not a port; write a number from 0 to 65535 or a range such as 1024-65535`,
			`[0].not.nat_dst_port[0]: "x" is not a port; write a number from 0 to 65535 or a range such as 1024-65535`}},
		{`[{action: drop, match: {zone: -1}}]`, []string{
			`[0].match.zone[0]: "-1" is not a zone; write a number from 0 to 65535 or a range such as 10-19`}},
		{`[{action: drop, match: {mark: [0x10/, 0x100000000, 0x110/0xff]}}]`, []string{
			`[0].match.mark[0]: "0x10/" is not a mark; write a number of 32 bits such as 16 or 0x10, ` +
				`or one with a mask such as 0x10/0xff`,
			`[0].match.mark[1]: "0x100000000" is not a mark; write a number of 32 bits such as 16 or 0x10, ` +
				`or one with a mask such as 0x10/0xff`,
			`[0].match.mark[2]: mark 0x110/0xff never matches, it has bits outside its mask; write 0x10/0xff`}},
		{`[{action: drop, match: {labels: [0, 128]}}]`, []string{
			`[0].match.labels[1]: "128" is not a label; write the number of its bit, from 0 to 127`}},
		{`[{action: drop, match: {status: [assured, natted]}}]`, []string{
			`[0].match.status[1]: unknown status flag "natted"; use expected, seen_reply, assured, confirmed, src_nat, ` +
				`dst_nat, seq_adjust, src_nat_done, dst_nat_done, dying, fixed_timeout, template, nat_clash, helper, ` +
				`offload or hw_offload`}},
		{`[{action: drop, match: {min_duration: -1s}}]`, []string{
			`[0].match.min_duration: negative duration; write one such as 500ms, 30s or 1h`}},
	}
	for _, tt := range tests {
		c, err := decodeFilter(tt.rules)
		if err != nil {
			t.Errorf("%s: %v", tt.rules, err)
			continue
		}
		var got []string
		c.Validate(func(field, msg string) { got = append(got, field+": "+msg) })
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.rules, diff)
		}
	}
}

func TestDecodeStrict(t *testing.T) {
	for rules, want := range map[string]string{
		"- action: drop\n  mach: {}":                  "line 2: field mach not found in type filter.Rule",
		"- action: drop\n  match: {ports: 80}":        "line 2: field ports not found in type filter.Match",
		"- action: drop\n  match: {proto: {a: b}}":    "line 2: cannot unmarshal !!map into string",
		"- action: drop\n  not: {proto: [tcp,\n[a]]}": "line 3: cannot unmarshal !!seq into string",
		"- action: drop\n  not: {proto: [tcp,\n ~]}":  "line 3: element of a list without a value",
	} {
		want = "yaml: unmarshal errors:\n  " + want
		if _, err := decodeFilter(rules); err == nil || err.Error() != want {
			t.Errorf("%s: got error %q, want %q", rules, err, want)
		}
	}

	// The keys of a struct within a list, or in its place, are held to as well.
	type item struct {
		A int `yaml:"a"`
	}
	const unknown = "yaml: unmarshal errors:\n  line 1: field b not found in type filter.item"
	for text, want := range map[string]string{
		`{a: 1}`: "", `[{a: 1}]`: "", `{b: 1}`: unknown, `[{a: 1}, {b: 1}]`: unknown,
	} {
		var l List[item]
		d := yaml.NewDecoder(strings.NewReader(text))
		d.KnownFields(true)
		err := d.Decode(&l)
		switch {
		case want != "" && (err == nil || err.Error() != want):
			t.Errorf("%s: got error %v, want %s", text, err, want)
		case want == "" && (err != nil || !cmp.Equal(l, List[item]{{A: 1}})):
			t.Errorf("%s: got %v, %v", text, l, err)
		}
	}
}

// Every example of the documentation is valid.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/filter.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(doc, -1)
	if len(blocks) == 0 {
		t.Fatal("no example found")
	}
	for _, b := range blocks {
		var c struct {
			Filter Config `yaml:"filter"`
		}
		d := yaml.NewDecoder(bytes.NewReader(b[1]))
		d.KnownFields(true)
		if err := d.Decode(&c); err != nil {
			t.Errorf("%s: %v", b[1], err)
		}
		if len(c.Filter) == 0 {
			t.Errorf("%s: no rules", b[1])
		}
		c.Filter.Validate(func(field, msg string) { t.Errorf("%s: %s: %s", b[1], field, msg) })
	}
	// Every matcher's line in the table has an example that is a match of its own.
	rows := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|.*\\| `(.*?)` \\|$").FindAllSubmatch(doc, -1)
	if want := len(MatcherNames()); len(rows) != want {
		t.Errorf("the table has %d matchers, want %d", len(rows), want)
	}
	for _, row := range rows {
		if !strings.HasPrefix(string(row[2]), string(row[1])+":") {
			t.Errorf("the example of %s is %s", row[1], row[2])
		}
		mustCompile(t, "[{action: drop, match: {"+string(row[2])+"}}]")
	}
}

// everyMatcher has all of them; each holds on the record of the tests below, so that each is evaluated.
const everyMatcher = `[{action: drop, match: {event: destroy, nat: both, proto: tcp, family: ipv4, helper: [ftp, none],
  src: 100.64.0.0/10, dst: 198.51.100.0/24, nat_src: 203.0.113.0/24, nat_dst: 10.0.0.80, src_port: 1024-65535,
  dst_port: 443, nat_src_port: 61000, nat_dst_port: 8443, host: 10.0.0.80, net: 203.0.113.0/24, port: 61000, subscriber: none, netns: own, zone: 0, mark: 0x10/0xff, labels: 3,
  status: assured, min_bytes: 1, min_packets: 1, min_duration: 1s}}]`

// typicalFilter is what a carrier's gateway would have.
const typicalFilter = `
- {action: drop, match: {proto: [icmp, icmpv6]}}
- {action: drop, match: {dst_port: 53, proto: udp}, not: {nat: [snat, both]}}
- {action: accept, match: {helper: [ftp, sip]}}
- {action: accept, match: {nat: [snat, dnat, both], proto: [tcp, udp], src: [100.64.0.0/10, 10.0.0.0/8]}}
- {action: drop}
`

func TestAllocs(t *testing.T) {
	rec := with(snat, dnat, labels(3))
	for _, rules := range []string{everyMatcher, typicalFilter} {
		f := mustCompile(t, rules)
		if n := testing.AllocsPerRun(100, func() { f(rec) }); n != 0 {
			t.Errorf("%v allocations for %s", n, rules)
		}
	}
	if mustCompile(t, everyMatcher)(rec) {
		t.Error("a matcher did not hold, so that those behind it were not evaluated")
	}
}

func BenchmarkFilter(b *testing.B) {
	for _, bb := range []struct {
		name, rules string
		rec         *flow.Record
	}{
		{"typical/first rule", typicalFilter, with(icmp)},
		{"typical/fourth rule", typicalFilter, with(snat)},
		{"typical/no NAT", typicalFilter, plain()},
		{"every matcher", everyMatcher, with(snat, dnat, labels(3))},
	} {
		b.Run(bb.name, func(b *testing.B) {
			f := mustCompile(b, bb.rules)
			b.ReportAllocs()
			for b.Loop() {
				f(bb.rec)
			}
		})
	}
}

// randomRecord returns a record of few distinct values, so that rules hit, in which anything may be unknown.
func randomRecord(rng *rand.Rand) *flow.Record {
	r := with([]func(*flow.Record){func(*flow.Record) {}, snat, dnat, v6, icmp, expectation}[rng.IntN(6)])
	if rng.IntN(2) == 0 {
		r.Event = flow.EventNew + flow.Event(rng.IntN(int(flow.EventGap)))
	}
	if rng.IntN(2) == 0 {
		r.Orig.Proto = []flow.Proto{flow.TCP, flow.UDP, flow.ICMP, flow.GRE, flow.ICMPv6, 255}[rng.IntN(6)]
	}
	if rng.IntN(8) == 0 {
		r.Orig.V6 = !r.Orig.V6
	}
	for _, change := range []func(*flow.Record){
		lacks(1 << rng.IntN(9)), helper("ftp"), helperUnknown, labels(3), zone(5), origZone(5), anySource,
		func(r *flow.Record) { r.Orig.Src = flow.Addr{} }, func(r *flow.Record) { r.Start = 0 },
		func(r *flow.Record) { r.Stop = 0 }, func(r *flow.Record) { r.Reply.SrcPort = 0xffff },
	} {
		if rng.IntN(6) == 0 {
			change(r)
		}
	}
	return r
}

// randomRules returns rules in YAML over the values that randomRecord uses.
func randomRules(rng *rand.Rand) string {
	matchers := []string{
		"event: destroy", "event: [new, update]", "event: [expect_new, expect_destroy, open]", "proto: tcp",
		"proto: [icmp, icmpv6]", "proto: [udp, gre, 255]", "family: ipv4", "family: ipv6", "nat: [snat, both]",
		"nat: none", "helper: ftp", "helper: none", "src: 100.64.0.0/10", "src: 2001:db8::/32",
		"dst: [0.0.0.0/0, '::/0']", "nat_src: 203.0.113.5", "nat_dst: 2001:db8::/32", "src_port: 40000",
		"dst_port: 443", "nat_src_port: 61000", "nat_dst_port: 0-65535",
		"host: 203.0.113.5", "net: 2001:db8::/32", "port: 61000", "zone: 5", "zone: 0", "mark: 0x10/0xff",
		"labels: 3", "status: assured", "min_bytes: 0", "min_packets: 11", "min_duration: 1s",
	}
	block := func() string {
		var s []string
		seen := map[string]bool{}
		for range rng.IntN(3) {
			m := matchers[rng.IntN(len(matchers))]
			if rng.IntN(3) == 0 {
				m = matchers[rng.IntN(8)] // those that push-down knows
			}
			if key, _, _ := strings.Cut(m, ":"); !seen[key] {
				seen[key] = true
				s = append(s, m)
			}
		}
		return "{" + strings.Join(s, ", ") + "}"
	}
	var rules strings.Builder
	for range rng.IntN(5) {
		action := []string{"accept", "drop", "drop"}[rng.IntN(3)]
		fmt.Fprintf(&rules, "- {action: %s, match: %s, not: %s}\n", action, block(), block())
	}
	if rng.IntN(3) == 0 {
		rules.WriteString("- {action: drop}\n")
	}
	return rules.String()
}

// FuzzConfig feeds YAML to the decoder: nothing panics, valid rules compile, and their push-down is sound.
func FuzzConfig(f *testing.F) {
	f.Add(everyMatcher, uint64(1))
	f.Add(typicalFilter, uint64(2))
	f.Add("- &a {action: drop, match: {src: [::1, 1.2.3.4/0]}}\n- *a", uint64(3))
	f.Add("- {action: drop, not: {dst_port: [1-2, 2-3, 65535], mark: 1/0x1, zone: 0-65535}}", uint64(4))
	for seed := range uint64(20) {
		f.Add(randomRules(rand.New(rand.NewPCG(seed, 0))), seed)
	}
	f.Fuzz(func(t *testing.T, text string, seed uint64) {
		c, err := decodeFilter(text)
		if err != nil {
			return
		}
		valid := true
		c.Validate(func(field, msg string) {
			valid = false
			if field == "" || msg == "" {
				t.Errorf("empty report: %q %q", field, msg)
			}
		})
		filter := c.Compile()
		if (filter != nil) != (valid && len(c) > 0) {
			t.Fatalf("valid %t, %d rules, but Compile returned nil: %t", valid, len(c), filter == nil)
		}
		spec := NewPushdown(c, []Config{nil})
		if filter == nil {
			if !spec.Empty() {
				t.Error("nothing is filtered, but something is pushed down")
			}
			return
		}
		rng := rand.New(rand.NewPCG(seed, 1))
		for range 20 {
			r := randomRecord(rng)
			if filter(r) && r.Has&flow.HasOrig != 0 && spec.Drops(r.Event, r.Orig.V6, r.Orig.Proto) {
				t.Errorf("pushed down but accepted: %+v", *r)
			}
		}
	})
}
