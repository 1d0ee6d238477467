package pipeline

import (
	"sync/atomic"

	"github.com/ctlogd/ctlogd/flow"
)

// Helpers remembers what the kernel says of a flow when it begins and leaves out when it ends: its helper, its master
// and, where asked for, its labels. Only flows that have one of them cost memory, and no more than a fixed number of
// them is kept: the one longest unchanged gives way.
//
// It is a stage, run on the reader's goroutine; only the counters may be read elsewhere.
type Helpers struct {
	Size      atomic.Int64  // flows remembered
	Evictions atomic.Uint64 // flows forgotten before they ended, for want of room
	Unknown   atomic.Uint64 // ended flows that had a helper or a master which is not known

	max    int
	labels bool
	known  []known
	free   []int32           // slots of known that are not in use
	byID   map[idKey]int32   // CTA_ID is a hash and no key, the tuple with its zones comes back: together they tell flows apart
	byFlow map[flowKey]int32 // the newest flow of a tuple, for masters, which are named without their id

	// The ends of a list through known, from the flow longest unchanged to the newest.
	oldest, newest int32
}

type flowKey struct {
	orig    flow.Tuple
	netns   uint32 // flow.Netns.Key
	zone    uint16
	hasZone bool
}

type idKey struct {
	flowKey
	id uint32
}

type known struct {
	key        idKey
	extra      flow.Extra
	prev, next int32
}

const none = -1

// NewHelpers remembers at most max flows. labels says that any flow may have labels, so that every flow that ends is
// looked up, not only those whose status tells of a helper or a master.
func NewHelpers(max int, labels bool) *Helpers {
	return &Helpers{
		max: max, labels: labels, byID: make(map[idKey]int32), byFlow: make(map[flowKey]int32), oldest: none, newest: none,
	}
}

// SetLabels changes whether any flow may have labels.
func (h *Helpers) SetLabels(on bool) { h.labels = on }

func keyOf(r *flow.Record) idKey {
	return idKey{flowKey{r.Orig, r.Netns.Key(), r.Zone, r.Has&flow.HasZone != 0}, r.ID}
}

// Process remembers what the batch's records tell, and amends those of flows that have ended.
func (h *Helpers) Process(b *flow.Batch) {
	for i := range b.Records {
		r := &b.Records[i]
		switch r.Event {
		case flow.EventNew, flow.EventUpdate, flow.EventOpen:
			if r.Extra != nil && r.Checkpoint() == 0 { // else the table has told all there is
				h.Remember(r)
			}
		case flow.EventDestroy:
			h.recall(b, r)
		}
	}
}

// Remember keeps a copy of what r tells of its flow's helper, master and labels, adding it to what is known already.
// It completes r itself where it has a master whose helper is known.
func (h *Helpers) Remember(r *flow.Record) {
	if h.max == 0 || r.Extra == nil {
		return
	}
	x := r.Extra
	if x.HasMaster && x.Helper.Len() == 0 {
		master := flowKey{x.Master, r.Netns.Key(), r.Zone, r.Has&flow.HasZone != 0}
		if i, ok := h.byFlow[master]; ok {
			x.Helper = h.known[i].extra.Helper
		}
	}
	key := keyOf(r)
	i, ok := h.byID[key]
	if ok && r.Event == flow.EventNew {
		// The same tuple anew (its id is the same then): nothing of the flow before it holds.
		h.known[i].extra = flow.Extra{}
	}
	if !ok {
		i = h.slot()
		h.known[i].key = key
		h.known[i].extra = flow.Extra{}
		h.byID[key] = i
		h.Size.Store(int64(len(h.byID)))
	} else {
		h.unlink(i)
	}
	h.link(i)
	h.byFlow[key.flowKey] = i
	k := &h.known[i].extra
	if x.Helper.Len() > 0 {
		k.Helper = x.Helper
	}
	if x.HasMaster {
		k.Master, k.HasMaster = x.Master, true
	}
	if x.HasLabels {
		k.Labels, k.HasLabels = x.Labels, true
	}
}

// recall gives r, the end of a flow, what is known of it, and forgets the flow.
func (h *Helpers) recall(b *flow.Batch, r *flow.Record) {
	hint := r.Status & (flow.StatusExpected | flow.StatusHelper)
	if len(h.byID) > 0 && (hint != 0 || h.labels) {
		key := keyOf(r)
		if i, ok := h.byID[key]; ok {
			k := &h.known[i].extra
			x := b.Extra(r)
			if x.Helper.Len() == 0 {
				x.Helper = k.Helper
			}
			if k.HasMaster && !x.HasMaster {
				x.Master, x.HasMaster = k.Master, true
			}
			if k.HasLabels && !x.HasLabels {
				x.Labels, x.HasLabels = k.Labels, true
			}
			h.forget(i)
		}
	}
	if hint != 0 && (r.Extra == nil || r.Extra.Helper.Len() == 0) {
		r.Has |= flow.HelperUnknown
		h.Unknown.Add(1)
	}
}

// slot returns a free slot of known, making the flow longest unchanged give way where there is none.
func (h *Helpers) slot() int32 {
	if n := len(h.free); n > 0 {
		i := h.free[n-1]
		h.free = h.free[:n-1]
		return i
	}
	if len(h.known) < h.max {
		h.known = append(h.known, known{})
		return int32(len(h.known) - 1)
	}
	h.Evictions.Add(1)
	h.forget(h.oldest)
	return h.slot()
}

func (h *Helpers) forget(i int32) {
	k := &h.known[i]
	delete(h.byID, k.key)
	if h.byFlow[k.key.flowKey] == i {
		delete(h.byFlow, k.key.flowKey)
	}
	h.unlink(i)
	h.free = append(h.free, i)
	h.Size.Store(int64(len(h.byID)))
}

func (h *Helpers) link(i int32) {
	k := &h.known[i]
	k.prev, k.next = h.newest, none
	if h.newest == none {
		h.oldest = i
	} else {
		h.known[h.newest].next = i
	}
	h.newest = i
}

func (h *Helpers) unlink(i int32) {
	k := &h.known[i]
	if k.prev == none {
		h.oldest = k.next
	} else {
		h.known[k.prev].next = k.next
	}
	if k.next == none {
		h.newest = k.prev
	} else {
		h.known[k.next].prev = k.prev
	}
}
