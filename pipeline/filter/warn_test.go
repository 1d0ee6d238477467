package filter

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/flow"
)

func TestWarnings(t *testing.T) {
	const change, move = "; change or remove one of them", "; move this rule before it, or remove it"
	const nothing = "leaves nothing but gaps: with it every record is dropped; put a rule before it that accepts what is wanted"
	for rules, want := range map[string][]string{
		`[{action: drop, match: {proto: tcp}}, {action: accept, match: {proto: udp}}, {action: drop}]`: nil,
		`[{action: drop, match: {proto: tcp}, not: {proto: [udp, 6]}}]`: {
			"[0]: never matches: match.proto and not.proto exclude each other" + change},
		`[{action: drop, match: {proto: [tcp, udp]}, not: {proto: tcp}}]`: nil,
		`[{action: drop, match: {src: 10.1.0.0/16}, not: {src: [10.0.0.0/8, 192.0.2.0/24]}}]`: {
			"[0]: never matches: match.src and not.src exclude each other" + change},
		`[{action: drop, match: {src: 10.0.0.0/8}, not: {src: 10.1.0.0/16}}]`: nil,
		`[{action: drop, match: {proto: icmp, dst_port: 80}}]`: {
			"[0]: never matches: match.proto and match.dst_port exclude each other" + change},
		`[{action: drop, match: {proto: [icmp, tcp], dst_port: 80}}]`: nil,
		`[{action: drop, match: {family: ipv4, dst: 2001:db8::/32}}]`: {
			"[0]: never matches: match.family and match.dst exclude each other" + change},
		`[{action: drop, match: {src: 192.0.2.0/24, dst: 2001:db8::/32}}]`: {
			"[0]: never matches: match.src and match.dst exclude each other" + change},
		`[{action: drop, not: {family: [ipv4, ipv6]}}]`: {
			"[0]: never matches: not.family excludes everything" + change},
		`[{action: drop, match: {min_bytes: 10M}, not: {min_bytes: 1M}}]`: {
			"[0]: never matches: match.min_bytes and not.min_bytes exclude each other" + change},
		`[{action: drop, match: {min_bytes: 1M}, not: {min_bytes: 10M}}]`: nil,
		`[{action: drop, match: {status: [assured, seen_reply]}, not: {status: assured}}]`: {
			"[0]: never matches: match.status and not.status exclude each other" + change},
		`[{action: drop, match: {status: assured}, not: {status: [assured, seen_reply]}}]`: nil,
		`[{action: drop, match: {mark: 0x110/0xff0}, not: {mark: 0x100/0xf00}}]`: {
			"[0]: never matches: match.mark and not.mark exclude each other" + change},
		`[{action: drop, match: {proto: icmp}}, {action: drop}]`: {"[1]: " + nothing},
		`[{action: drop}]`:   {"[0]: " + nothing},
		`[{action: accept}]`: nil,
		`[{action: accept, match: {min_bytes: 1M}}, {action: drop}]`:               nil,
		`[{action: drop, match: {proto: tcp}}, {action: drop, not: {proto: tcp}}]`: {"[1]: " + nothing},
		`[{action: drop}, {action: accept, match: {proto: tcp}}]`: {
			"[0]: " + nothing,
			"[1]: is never reached: entry [0] of this list has no matchers and decides about every record" + move},
		`[{action: accept, match: {src: 10.0.0.0/8}}, {action: drop, match: {src: 10.1.2.0/24, proto: tcp}}]`: {
			"[1]: is never reached: entry [0] of this list matches all that this one matches" + move},
		`[{action: accept, match: {src: 10.0.0.0/8, proto: udp}}, {action: drop, match: {src: 10.1.2.0/24, proto: tcp}}]`: nil,
		`[{action: accept, match: {dst_port: 1-1023}}, {action: drop, match: {dst_port: [22, 80-90]}}]`: {
			"[1]: is never reached: entry [0] of this list matches all that this one matches" + move},
		`[{action: accept, not: {dst_port: 22}}, {action: drop, not: {dst_port: [20-25]}}]`: {
			"[1]: is never reached: entry [0] of this list matches all that this one matches" + move},
		`[{action: accept, not: {dst_port: [20-25]}}, {action: drop, not: {dst_port: 22}}]`: nil,
		`[{action: drop, match: {family: ipv4}}, {action: drop, match: {family: ipv6}}, {action: accept, match: {proto: tcp}}]`: {
			"[1]: " + nothing,
			"[2]: is never reached: the rules before it decide about everything that it matches; move it up, or remove it"},
		`[{action: drop, match: {proto: icmp, port: 1}}, {action: accept}]`: {
			"[0]: never matches: match.proto and match.port exclude each other" + change},
	} {
		var got []string
		mustDecode(t, rules).Warnings(func(field, msg string) { got = append(got, field+": "+msg) })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", rules, diff)
		}
	}
	Config{{}}.Warnings(func(field, msg string) { t.Errorf("rules that are not valid: %s %s", field, msg) })
}

// A rule that is said to be without effect has none: whatever record there is, the rules without it decide the same. Rules
// that are said to drop everything do.
func TestWarningsAreTrue(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	warned := 0
	for range 300 {
		text := randomRules(rng)
		c := mustDecode(t, text)
		c.Warnings(func(field, msg string) {
			warned++
			i, err := strconv.Atoi(strings.Trim(field, "[]"))
			if err != nil {
				t.Fatal(err)
			}
			without := append(append(Config{}, c[:i]...), c[i+1:]...)
			for range 100 {
				r := randomRecord(rng)
				if strings.Contains(msg, "every record is dropped") {
					if r.Event != flow.EventGap && r.Has&flow.HasOrig != 0 && accepts(c, r) {
						t.Fatalf("%s%s: %s, but it accepts %v %+v", text, field, msg, r.Event, *r)
					}
					continue
				}
				if r.Has&flow.HasOrig != 0 && accepts(c, r) != accepts(without, r) { // all records from the kernel have it
					t.Fatalf("%s%s: %s, but it decides about %v %+v", text, field, msg, r.Event, *r)
				}
			}
		})
	}
	if warned < 30 {
		t.Errorf("%d warnings, the test shows nothing", warned)
	}
}
