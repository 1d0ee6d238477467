package filter

import (
	"math/rand/v2"
	"testing"

	"github.com/ctlogd/ctlogd/flow"
)

func TestPushdown(t *testing.T) {
	type kind struct {
		event flow.Event
		v6    bool
		proto flow.Proto
	}
	tcp4, newTCP4 := kind{flow.EventDestroy, false, flow.TCP}, kind{flow.EventNew, false, flow.TCP}
	udp4, icmp4 := kind{flow.EventDestroy, false, flow.UDP}, kind{flow.EventDestroy, false, flow.ICMP}
	tcp6 := kind{flow.EventDestroy, true, flow.TCP}
	tests := []struct {
		name        string
		global      string
		outputs     []string
		drops, pass []kind
	}{
		{name: "no rules", outputs: []string{""}, pass: []kind{tcp4, udp4, icmp4, tcp6, newTCP4}},
		{name: "one protocol", global: `[{action: drop, match: {proto: icmp}}]`, outputs: []string{""},
			drops: []kind{icmp4}, pass: []kind{tcp4, tcp6, newTCP4}},
		{name: "no outputs yet", global: `[{action: drop, match: {proto: icmp}}]`,
			drops: []kind{icmp4}, pass: []kind{tcp4}},
		{name: "another matcher", global: `[{action: drop, match: {proto: icmp, src: 10.0.0.0/8}}]`,
			outputs: []string{""}, pass: []kind{icmp4}},
		{name: "accept, then drop the rest",
			global:  `[{action: accept, match: {proto: tcp, family: ipv4, nat: snat}}, {action: drop}]`,
			outputs: []string{""}, drops: []kind{tcp6, udp4, icmp4}, pass: []kind{tcp4, newTCP4}},
		{name: "a sure accept before the drop",
			global:  `[{action: accept, match: {event: destroy}}, {action: drop, match: {proto: tcp}}]`,
			outputs: []string{""}, drops: []kind{newTCP4}, pass: []kind{tcp4, tcp6}},
		{name: "a drop that may match changes nothing",
			global:  `[{action: drop, match: {nat: none}}, {action: drop, match: {proto: tcp}}]`,
			outputs: []string{""}, drops: []kind{tcp4, tcp6}, pass: []kind{udp4}},
		{name: "negated", global: `[{action: drop, not: {proto: tcp}}]`, outputs: []string{""},
			drops: []kind{udp4, icmp4}, pass: []kind{tcp4, tcp6}},
		{name: "every output must drop",
			outputs: []string{`[{action: drop, match: {proto: [icmp, udp]}}]`, `[{action: drop, match: {proto: udp}}]`},
			drops:   []kind{udp4}, pass: []kind{icmp4, tcp4}},
		{name: "one output takes all", outputs: []string{`[{action: drop}]`, ""}, pass: []kind{tcp4, icmp4}},
		{name: "global or own", global: `[{action: drop, match: {proto: icmp}}]`,
			outputs: []string{`[{action: drop, match: {family: ipv6}}]`}, drops: []kind{icmp4, tcp6}, pass: []kind{tcp4}},
		{name: "networks of one family", global: `[{action: accept, match: {src: 100.64.0.0/10}}, {action: drop}]`,
			outputs: []string{""}, drops: []kind{tcp6}, pass: []kind{tcp4, icmp4}},
		{name: "a negated network says nothing of unknown addresses",
			global: `[{action: drop, not: {src: 100.64.0.0/10}}]`, outputs: []string{""}, pass: []kind{tcp4, tcp6}},
		{name: "ports where there are none", global: `[{action: accept, not: {dst_port: 53}}, {action: drop}]`,
			outputs: []string{""}, drops: []kind{icmp4}, pass: []kind{tcp4, tcp6}},
	}
	for _, tt := range tests {
		var outputs []Config
		for _, o := range tt.outputs {
			outputs = append(outputs, mustDecode(t, o))
		}
		s := NewPushdown(mustDecode(t, tt.global), outputs)
		for _, k := range tt.drops {
			if !s.Drops(k.event, k.v6, k.proto) {
				t.Errorf("%s: %v %v passes", tt.name, k.event, k)
			}
		}
		for _, k := range tt.pass {
			if s.Drops(k.event, k.v6, k.proto) {
				t.Errorf("%s: %v %v is dropped", tt.name, k.event, k)
			}
		}
		if s.Empty() != (len(tt.drops) == 0) {
			t.Errorf("%s: Empty is %t", tt.name, s.Empty())
		}
		if s.Drops(flow.EventGap, false, 0) || s.Drops(255, true, 255) {
			t.Errorf("%s: a gap or what is no event is dropped", tt.name)
		}
	}
}

// What is pushed down is dropped by every output, whatever the record's other fields.
func TestPushdownSound(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	checked := 0
	for range 1500 {
		globalText := randomRules(rng)
		global := mustDecode(t, globalText)
		texts := make([]string, 1+rng.IntN(3))
		outputs := make([]Config, len(texts))
		for i := range outputs {
			texts[i] = randomRules(rng)
			outputs[i] = mustDecode(t, texts[i])
		}
		spec := NewPushdown(global, outputs)
		for range 40 {
			r := randomRecord(rng)
			if r.Has&flow.HasOrig == 0 || !spec.Drops(r.Event, r.Orig.V6, r.Orig.Proto) {
				continue
			}
			checked++
			for i, o := range outputs {
				if accepts(global, r) && accepts(o, r) {
					t.Fatalf("global\n%soutput\n%saccept %v %+v", globalText, texts[i], r.Event, *r)
				}
			}
		}
	}
	if checked < 5000 {
		t.Errorf("only %d records were pushed down, the rules test nothing", checked)
	}
}

func accepts(c Config, r *flow.Record) bool {
	f := c.Compile()
	return f == nil || f(r)
}
