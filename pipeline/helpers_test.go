package pipeline

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/flow"
)

// helperEvent returns a batch with one record of flow number n, with id n%7, so that ids repeat.
func helperEvent(e flow.Event, n int, status flow.Status, fill func(*flow.Record, *flow.Extra)) *flow.Batch {
	b := flow.NewBatch(1, nil)
	r := b.Next()
	r.Event, r.ID, r.Status = e, uint32(n%7), status
	r.Has = flow.HasOrig | flow.HasID | flow.HasStatus
	r.Orig = flowTuple(n)
	if fill != nil {
		fill(r, b.Extra(r))
	}
	return b
}

func flowTuple(n int) flow.Tuple {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], uint32(n))
	return flow.Tuple{Src: flow.AddrFrom4(a), Dst: flow.AddrFrom4([4]byte{192, 0, 2, 1}), Proto: flow.TCP, SrcPort: 1, DstPort: 21}
}

func withHelper(name string) func(*flow.Record, *flow.Extra) {
	return func(_ *flow.Record, x *flow.Extra) { x.Helper = flow.NameFrom(name) }
}

func withMaster(n int) func(*flow.Record, *flow.Extra) {
	return func(_ *flow.Record, x *flow.Extra) { x.Master, x.HasMaster = flowTuple(n), true }
}

func TestHelpers(t *testing.T) {
	type result struct {
		Helper        string
		Master        bool
		HelperUnknown bool
	}
	inZone := func(b *flow.Batch, zone uint16) *flow.Batch {
		b.Records[0].Zone, b.Records[0].Has = zone, b.Records[0].Has|flow.HasZone
		return b
	}
	in := func(b *flow.Batch, nsid int32) *flow.Batch {
		n := flow.HoldNetns(nsid, "")
		b.SetNetns(&b.Records[0], n)
		n.Release()
		return b
	}
	tests := []struct {
		name   string
		before []*flow.Batch
		end    *flow.Batch
		want   result
	}{
		{"a helper of the flow's own",
			[]*flow.Batch{helperEvent(flow.EventNew, 1, 0, withHelper("ftp"))},
			helperEvent(flow.EventDestroy, 1, flow.StatusHelper, nil), result{Helper: "ftp"}},
		{"a data flow has its master's helper",
			[]*flow.Batch{helperEvent(flow.EventNew, 1, 0, withHelper("ftp")), helperEvent(flow.EventNew, 2, 0, withMaster(1))},
			helperEvent(flow.EventDestroy, 2, flow.StatusExpected, nil), result{Helper: "ftp", Master: true}},
		{"also when the master has ended before it",
			[]*flow.Batch{helperEvent(flow.EventNew, 1, 0, withHelper("ftp")), helperEvent(flow.EventNew, 2, 0, withMaster(1)),
				helperEvent(flow.EventDestroy, 1, flow.StatusHelper, nil)},
			helperEvent(flow.EventDestroy, 2, flow.StatusExpected, nil), result{Helper: "ftp", Master: true}},
		{"a data flow's own helper goes before its master's",
			[]*flow.Batch{helperEvent(flow.EventNew, 1, 0, withHelper("h323")), helperEvent(flow.EventNew, 2, 0, func(r *flow.Record, x *flow.Extra) {
				withMaster(1)(r, x)
				withHelper("Q.931")(r, x)
			})},
			helperEvent(flow.EventDestroy, 2, flow.StatusExpected, nil), result{Helper: "Q.931", Master: true}},
		{"the master is not known",
			[]*flow.Batch{helperEvent(flow.EventNew, 2, 0, withMaster(1))},
			helperEvent(flow.EventDestroy, 2, flow.StatusExpected, nil), result{Master: true, HelperUnknown: true}},
		{"another network namespace, with the same tuple and id, is another flow",
			[]*flow.Batch{in(helperEvent(flow.EventNew, 1, 0, withHelper("ftp")), 3), in(helperEvent(flow.EventNew, 1, 0, withHelper("sip")), 4),
				helperEvent(flow.EventNew, 1, 0, withHelper("tftp"))},
			in(helperEvent(flow.EventDestroy, 1, flow.StatusHelper, nil), 3), result{Helper: "ftp"}},
		{"neither is one in ctlogd's own that in another",
			[]*flow.Batch{in(helperEvent(flow.EventNew, 1, 0, withHelper("ftp")), 3)},
			helperEvent(flow.EventDestroy, 1, flow.StatusHelper, nil), result{HelperUnknown: true}},
		{"a master is looked for in its own network namespace",
			[]*flow.Batch{in(helperEvent(flow.EventNew, 1, 0, withHelper("ftp")), 3), in(helperEvent(flow.EventNew, 2, 0, withMaster(1)), 4)},
			in(helperEvent(flow.EventDestroy, 2, flow.StatusExpected, nil), 4), result{Master: true, HelperUnknown: true}},
		{"nothing is known", nil, helperEvent(flow.EventDestroy, 1, flow.StatusHelper, nil), result{HelperUnknown: true}},
		{"no helper at all",
			[]*flow.Batch{helperEvent(flow.EventNew, 1, 0, withHelper("ftp"))},
			helperEvent(flow.EventDestroy, 8, 0, nil), result{}},
		{"the same id with another tuple is another flow",
			[]*flow.Batch{helperEvent(flow.EventNew, 1, 0, withHelper("ftp"))},
			helperEvent(flow.EventDestroy, 8, flow.StatusHelper, nil), result{HelperUnknown: true}},
		{"the same tuple in another zone is another flow",
			[]*flow.Batch{inZone(helperEvent(flow.EventNew, 1, 0, withHelper("ftp")), 5)},
			inZone(helperEvent(flow.EventDestroy, 1, flow.StatusHelper, nil), 6), result{HelperUnknown: true}},
		{"a flow is forgotten when it has ended",
			[]*flow.Batch{helperEvent(flow.EventNew, 1, 0, withHelper("ftp")), helperEvent(flow.EventDestroy, 1, flow.StatusHelper, nil)},
			helperEvent(flow.EventDestroy, 1, flow.StatusHelper, nil), result{HelperUnknown: true}},
		{"a tuple that comes back inherits nothing",
			[]*flow.Batch{helperEvent(flow.EventNew, 1, 0, withMaster(3)), helperEvent(flow.EventNew, 1, 0, withHelper("sip"))},
			helperEvent(flow.EventDestroy, 1, flow.StatusHelper, nil), result{Helper: "sip"}},
		{"an update adds to what is known",
			[]*flow.Batch{helperEvent(flow.EventNew, 1, 0, withMaster(3)), helperEvent(flow.EventUpdate, 1, 0, withHelper("sip"))},
			helperEvent(flow.EventDestroy, 1, flow.StatusExpected, nil), result{Helper: "sip", Master: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := NewHelpers(10, false)
			for _, b := range tt.before {
				h.Process(b)
			}
			unknown := h.Unknown.Load()
			h.Process(tt.end)
			r := &tt.end.Records[0]
			got := result{HelperUnknown: r.Has&flow.HelperUnknown != 0}
			if r.Extra != nil {
				got.Helper, got.Master = r.Extra.Helper.String(), r.Extra.HasMaster
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("record of the end (-want +got):\n%s", diff)
			}
			if counted := h.Unknown.Load() > unknown; counted != tt.want.HelperUnknown {
				t.Errorf("counted as unknown: %v, want %v", counted, tt.want.HelperUnknown)
			}
		})
	}
}

func TestHelpersLabels(t *testing.T) {
	labels := func(v byte) func(*flow.Record, *flow.Extra) {
		return func(_ *flow.Record, x *flow.Extra) { x.Labels, x.HasLabels = [16]byte{v}, true }
	}
	for _, on := range []bool{true, false} {
		h := NewHelpers(10, on)
		h.Process(helperEvent(flow.EventNew, 1, 0, labels(1)))
		h.Process(helperEvent(flow.EventUpdate, 1, 0, labels(3)))
		end := helperEvent(flow.EventDestroy, 1, 0, nil)
		h.Process(end)
		x := end.Records[0].Extra
		if got := x != nil && x.HasLabels && x.Labels == [16]byte{3}; got != on {
			t.Errorf("labels on: %v: the end has the last labels: %v", on, got)
		}
	}
}

// TestHelpersBound lives through many flows, holds the memory to its bound and to the flows newest changed, and checks
// that its list and maps agree after each.
func TestHelpersBound(t *testing.T) {
	const bound = 50
	h := NewHelpers(bound, false)
	rnd := rand.New(rand.NewPCG(3, 4))
	var order []int // flows that must be known, oldest first
	remove := func(n int) {
		for i, m := range order {
			if m == n {
				order = append(order[:i], order[i+1:]...)
				return
			}
		}
	}
	for range 20_000 {
		n := rnd.IntN(120)
		if rnd.IntN(3) > 0 {
			h.Process(helperEvent(flow.EventNew, n, 0, withHelper("ftp")))
			remove(n)
			if order = append(order, n); len(order) > bound {
				order = order[1:]
			}
		} else {
			end := helperEvent(flow.EventDestroy, n, flow.StatusHelper, nil)
			h.Process(end)
			before := len(order)
			remove(n)
			if known := end.Records[0].Has&flow.HelperUnknown == 0; known != (len(order) < before) {
				t.Fatalf("flow %d known: %v, want %v", n, known, len(order) < before)
			}
		}
		if int(h.Size.Load()) != len(order) || len(h.byID) != len(order) || len(h.byFlow) != len(order) || len(h.known) > bound {
			t.Fatalf("%d, %d and %d entries in %d slots, want %d", h.Size.Load(), len(h.byID), len(h.byFlow), len(h.known), len(order))
		}
		i := h.oldest
		for _, n := range order {
			if h.known[i].key.orig != flowTuple(n) {
				t.Fatalf("the list is out of order at flow %d", n)
			}
			i = h.known[i].next
		}
		if i != none {
			t.Fatal("the list is longer than what is known")
		}
	}
	if h.Evictions.Load() == 0 {
		t.Error("nothing was evicted, the test proves nothing")
	}
}

func TestHelpersAllocate(t *testing.T) {
	h := NewHelpers(100, false)
	begin, end := helperEvent(flow.EventNew, 1, 0, withHelper("ftp")), helperEvent(flow.EventDestroy, 1, flow.StatusHelper, nil)
	end.Extra(&end.Records[0])
	if n := testing.AllocsPerRun(1000, func() {
		h.Process(begin)
		*end.Records[0].Extra = flow.Extra{}
		h.Process(end)
	}); n != 0 {
		t.Errorf("%v allocations for a flow with a helper, want 0", n)
	}
}
