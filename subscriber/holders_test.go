package subscriber

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func mustPrefix(s string) netip.Prefix {
	p, err := parsePrefix(s)
	if err != nil {
		panic(err)
	}
	return p
}

// who returns who had an address at a time, as the table has it; ? if that is unclear.
func who(t *table, addr string, ns int64) string {
	hi, lo := words(netip.MustParseAddr(addr))
	g, s := t.at(hi, lo, ns)
	switch s {
	case nil:
		return ""
	case &unclear:
		return "?"
	}
	return g.idOf(s)
}

// TestHolders asks who had an address at a time, of tables that have seen all that happens to an address.
func TestHolders(t *testing.T) {
	p := prefixOf(mustPrefix("100.64.0.7"))
	hold := func(id string, from, until int64) edit { return edit{prefix: p, id: id, from: from, until: until} }
	over := func(from int64) edit { return edit{prefix: p, from: from} }
	for _, test := range []struct {
		name  string
		edits []edit
		want  string // who had it at 5, 15, 25, ...; . is nobody
	}{
		{"one", []edit{hold("a", 10, 40)}, ".aaa."},
		{"renewed", []edit{hold("a", 10, 30), hold("a", 20, 40)}, ".aaa."},
		{"from one to the other", []edit{hold("a", 10, 100), hold("b", 30, 100)}, ".aabb"},
		{"free in between", []edit{hold("a", 10, 20), hold("b", 30, 100)}, ".a.bb"},
		{"back again", []edit{hold("a", 10, 20), hold("b", 20, 30), hold("a", 30, 100)}, ".abaa"},
		{"given back", []edit{hold("a", 10, 100), over(30)}, ".aa.."},
		{"given back long after it was over", []edit{hold("a", 10, 20), over(30)}, ".a..."},
		{"uncertain in between", []edit{hold("a", 10, 100), {prefix: p, id: "b", from: 40, until: 100, certain: 20}}, ".a..b"},
		{"in the same second", []edit{hold("a", 10, 100), {prefix: p, id: "b", from: 20, until: 100, surely: 40}}, ".a..b"},
		{"told afterwards", []edit{hold("b", 30, 100), hold("a", 10, 40)}, ".aabb"},
		{"told twice", []edit{hold("b", 30, 100), hold("a", 10, 40), hold("a", 10, 40)}, ".aabb"},
		{"not theirs any more", []edit{hold("a", 10, 20), hold("b", 20, 100), {prefix: p, id: "a", from: 30, ends: true}}, ".abbb"},
		{"early", []edit{hold("a", 0, 20), {prefix: p, id: "b", from: 40, until: 100, early: 5}}, "aa.bb"},
		{"early, and not earlier than the one before", []edit{hold("a", 0, 30), {prefix: p, id: "b", from: 40, until: 100, early: 15}}, "aaabb"},
		{"early, and the one before is still there", []edit{hold("a", 0, 100), {prefix: p, id: "b", from: 40, until: 100, early: 15}}, "aaaab"},
	} {
		for _, together := range []bool{true, false} {
			table := newTable()
			if together {
				table = table.with(append([]edit(nil), test.edits...), 0, func() {})
			} else {
				for _, e := range test.edits {
					table = table.with([]edit{e}, 0, func() {})
				}
			}
			got := ""
			for ns := int64(5); ns < 50; ns += 10 {
				id := who(table, "100.64.0.7", ns)
				if id == "" {
					id = "."
				}
				got += id
			}
			if got != test.want {
				t.Errorf("%s (together: %v): %s, want %s", test.name, together, got, test.want)
			}
		}
	}
}

// TestOracle compares a table with a list of all that was said, over random prefixes of both families.
func TestOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	type said struct {
		p           netip.Prefix
		from, until int64
		id          string
	}
	random := func() netip.Addr {
		if rng.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, byte(rng.IntN(2)), byte(rng.IntN(4)), byte(rng.IntN(8))})
		}
		return netip.AddrFrom16([16]byte{0: 0x20, 5: byte(rng.IntN(4)), 15: byte(rng.IntN(8))})
	}
	table, all := newTable(), map[netip.Prefix]said{}
	for round := range 60 {
		var edits []edit
		for range rng.IntN(200) {
			a := random()
			bits := a.BitLen() - []int{0, 0, 0, 3, 8, 24}[rng.IntN(6)]
			p, _ := a.Prefix(bits)
			id := fmt.Sprint("id", round, p)
			if rng.IntN(3) == 0 {
				id += string(make([]byte, 60))
			}
			all[p] = said{p, int64(round*10 + 1), forever, id}
			edits = append(edits, edit{prefix: prefixOf(p), from: int64(round*10 + 1), until: forever, id: id})
		}
		table = table.with(edits, 0, func() {})
		if table.leases != len(all) {
			t.Fatalf("%d leases, want %d", table.leases, len(all))
		}
		for range 300 {
			a := random()
			best := said{}
			for p, s := range all {
				if p.Contains(a) && (best.id == "" || p.Bits() > best.p.Bits()) {
					best = s
				}
			}
			if got := who(table, a.String(), int64(round*10+5)); got != best.id {
				t.Fatalf("round %d, %s: %q, want %q", round, a, got, best.id)
			}
		}
	}
	n := 0
	table.each(func(*page, *slot) { n++ })
	if n != len(all) {
		t.Errorf("each visits %d, want %d", n, len(all))
	}
}

// TestBounded holds what is remembered to be bounded: by time, and by the number of leases.
func TestBounded(t *testing.T) {
	table := newTable()
	p := prefixOf(mustPrefix("100.64.0.7"))
	for i := range int64(1000) {
		table = table.with([]edit{{prefix: p, id: fmt.Sprint(i), from: i + 1, until: forever}}, 0, func() {})
	}
	if table.past > 64 || table.leases != 1 {
		t.Errorf("%d leases, %d before them", table.leases, table.past)
	}
	table = table.with([]edit{{prefix: p, id: "x", from: 2000, until: 2001}}, 1500, func() {})
	if table.past != 1 {
		t.Errorf("%d before, of which all but one were over long ago", table.past)
	}
	if table = table.with([]edit{{prefix: p, from: 3000}}, 2500, func() {}); table.past+table.leases != 0 {
		t.Errorf("%d leases, %d before them, all of which were over long ago", table.leases, table.past)
	}
}

// TestManyOver ends intervals on many pages. Half of them have not begun yet, and never do.
func TestManyOver(t *testing.T) {
	var edits []edit
	for i := range uint32(chunk + 2) {
		edits = append(edits, edit{prefix: prefixOf(netip.PrefixFrom(v4(0x0a000000+i), 32)), id: "a", from: 1 + int64(i%2)*1000, until: forever})
	}
	table := newTable().with(edits, 0, func() {})
	table, ended := table.without(500, func(s *slot) bool { return s.until > 500 }, 0, func() {})
	if ended != chunk+2 || table.leases != chunk/2+1 {
		t.Errorf("%d ended, %d leases", ended, table.leases)
	}
	for _, addr := range []string{"10.0.0.0", "10.1.0.0"} { // the first and the last one but one
		if was, is := who(table, addr, 499), who(table, addr, 500); was != "a" || is != "" {
			t.Errorf("%s was %q's, and is %q's", addr, was, is)
		}
	}
}

// each calls visit with every latest interval.
func (t *table) each(visit func(g *page, s *slot)) {
	for i := range t.pages {
		g := &t.pages[i]
		for j := range g.slots {
			visit(g, &g.slots[j])
		}
	}
}
