package filter

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/ctlogd/ctlogd/flow"
)

// protoSet is a set of protocol numbers.
type protoSet [4]uint64

func (s *protoSet) add(p flow.Proto)      { s[p>>6] |= 1 << (p & 63) }
func (s *protoSet) has(p flow.Proto) bool { return s[p>>6]>>(p&63)&1 != 0 }

// numRange is a range of ports or zones, both ends included.
type numRange struct{ from, to uint16 }

// numSet is a set of ports or zones: ranges that are sorted and do not touch.
type numSet []numRange

func newNumSet(ranges []numRange) numSet {
	slices.SortFunc(ranges, func(a, b numRange) int { return cmp.Compare(a.from, b.from) })
	var s numSet
	for _, r := range ranges {
		if n := len(s); n > 0 && int(r.from) <= int(s[n-1].to)+1 {
			s[n-1].to = max(s[n-1].to, r.to)
			continue
		}
		s = append(s, r)
	}
	return s
}

func (s numSet) has(v uint16) bool {
	i, j := 0, len(s)
	for i < j { // the first range that ends at or behind v
		if m := int(uint(i+j) / 2); s[m].to < v {
			i = m + 1
		} else {
			j = m
		}
	}
	return i < len(s) && s[i].from <= v
}

// addrWords is a flow.Addr as an integer of 128 bits.
type addrWords struct{ hi, lo uint64 }

func (a addrWords) compare(b addrWords) int {
	return cmp.Or(cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo))
}

// addrRange is a range of addresses, both ends included.
type addrRange struct{ from, to addrWords }

// addrSet is a set of addresses, for each family ranges that are sorted and do not overlap. The families are apart
// because ::/0 as a number would cover the mapped IPv4 addresses.
type addrSet [2][]addrRange

func newAddrSet(prefixes []netip.Prefix) *addrSet {
	var s addrSet
	for _, p := range prefixes {
		a := flow.AddrFrom(p.Addr())
		n := p.Bits() // of the 128 of a flow.Addr
		if p.Addr().Is4() {
			n += 96
		}
		hi, lo := a.Words()
		r := addrRange{from: addrWords{hi, lo}, to: addrWords{hi, lo}}
		if n < 64 {
			r.to = addrWords{hi | ^uint64(0)>>n, ^uint64(0)}
		} else {
			r.to.lo |= ^uint64(0) >> (n - 64) // a shift by 64 gives 0
		}
		f := family(p.Addr().Is6())
		s[f] = append(s[f], r)
	}
	for f, ranges := range s {
		slices.SortFunc(ranges, func(a, b addrRange) int { return a.from.compare(b.from) })
		merged := ranges[:0]
		for _, r := range ranges {
			if n := len(merged); n > 0 && r.from.compare(merged[n-1].to) <= 0 {
				if r.to.compare(merged[n-1].to) > 0 {
					merged[n-1].to = r.to
				}
				continue
			}
			merged = append(merged, r)
		}
		s[f] = merged
	}
	return &s
}

func (s *addrSet) has(a *flow.Addr, v6 bool) bool {
	ranges := s[family(v6)]
	hi, lo := a.Words()
	i, j := 0, len(ranges)
	for i < j { // the first range that ends at or behind a
		m := int(uint(i+j) / 2)
		if to := &ranges[m].to; to.hi < hi || to.hi == hi && to.lo < lo {
			i = m + 1
		} else {
			j = m
		}
	}
	if i == len(ranges) {
		return false
	}
	from := &ranges[i].from
	return from.hi < hi || from.hi == hi && from.lo <= lo
}
