package flow

import (
	"encoding/binary"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
)

// Netns says in which network namespace a flow is: 0 in ctlogd's own, else a number that means something in this process
// alone, and as long as somebody holds it. A Batch holds those of its records. Info tells what it stands for.
type Netns uint16

// NetnsInfo is what is known of a network namespace. It never changes: a namespace that gets a name gets another Netns.
type NetnsInfo struct {
	ID   int32  // its id in ctlogd's namespace (nsid); -1: not known
	Name string // foreign bytes; the id in decimal digits where it has no name
}

// unknownNetns stands for every namespace that comes while all other numbers are held.
const unknownNetns Netns = math.MaxUint16

var namespaces netnsTable

// netnsTable gives namespaces their numbers. A number is read without a lock; what it stands for changes only when nobody
// holds it.
type netnsTable struct {
	infos [1 << 16]atomic.Pointer[NetnsInfo]
	holds [1 << 16]atomic.Int32

	mu    sync.Mutex
	byKey map[string]Netns // by what appendNetns appends
	used  int              // numbers up to this one have been given
	at    int              // where the last number that nobody held was found
}

var unknownInfo = NetnsInfo{ID: -1}

// Info returns what n, which is not 0, stands for. It must not be changed.
func (n Netns) Info() *NetnsInfo {
	if info := namespaces.infos[n].Load(); info != nil {
		return info
	}
	return &unknownInfo
}

// Key tells the namespaces of one moment apart, whatever their names: 0 is ctlogd's own.
func (n Netns) Key() uint32 {
	if n == 0 {
		return 0
	}
	return uint32(n.Info().ID) + 2
}

// HoldNetns returns the number of a namespace, which it holds for the caller until Release.
func HoldNetns(id int32, name string) Netns {
	if name == "" && id >= 0 {
		name = strconv.Itoa(int(id))
	}
	var b [64]byte
	return namespaces.hold(appendNetns(b[:0], &NetnsInfo{id, name}))
}

// hold is HoldNetns for what appendNetns has appended.
func (t *netnsTable) hold(key []byte) Netns {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.byKey[string(key)]
	if !ok {
		n = t.free()
		if n == unknownNetns {
			return n
		}
		t.infos[n].Store(netnsOf(key))
		t.byKey[string(key)] = n
	}
	t.holds[n].Add(1)
	return n
}

// free returns a number that nobody holds, unknownNetns if there is none.
func (t *netnsTable) free() Netns {
	if t.byKey == nil {
		t.byKey = map[string]Netns{}
	}
	for range t.used {
		if t.at++; t.at > t.used {
			t.at = 1
		}
		if n := Netns(t.at); t.holds[n].Load() == 0 {
			var b [64]byte
			delete(t.byKey, string(appendNetns(b[:0], t.infos[n].Load())))
			return n
		}
	}
	if t.used+1 == int(unknownNetns) {
		return unknownNetns
	}
	t.used++
	t.at = t.used
	return Netns(t.used)
}

// Hold holds n once more. Somebody must be holding it.
func (n Netns) Hold() {
	if n != 0 && n != unknownNetns {
		namespaces.holds[n].Add(1)
	}
}

// Release ends one hold.
func (n Netns) Release() {
	if n != 0 && n != unknownNetns {
		namespaces.holds[n].Add(-1)
	}
}

// appendNetns appends the id in four bytes, and the name.
func appendNetns(dst []byte, info *NetnsInfo) []byte {
	return append(binary.LittleEndian.AppendUint32(dst, uint32(info.ID)), info.Name...)
}

// netnsOf returns what appendNetns has written.
func netnsOf(key []byte) *NetnsInfo {
	return &NetnsInfo{int32(binary.LittleEndian.Uint32(key)), string(key[4:])}
}
