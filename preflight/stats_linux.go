package preflight

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// The kernel's statistics, include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const (
	subsysExpectations = 2 // NFNL_SUBSYS_CTNETLINK_EXP

	msgGetStatsCPU       = 4 // IPCTNL_MSG_CT_GET_STATS_CPU
	msgExpectGetStatsCPU = 3 // IPCTNL_MSG_EXP_GET_STATS_CPU

	attrExpectCreated = 2 // CTA_STATS_EXP_CREATE
	attrExpectDeleted = 3 // CTA_STATS_EXP_DELETE
)

// CPUStats are what connection tracking has counted on one CPU since boot. The kernel's counters have 32 bits.
type CPUStats struct {
	CPU           int
	Found         uint32 // CTA_STATS_FOUND
	Invalid       uint32 // CTA_STATS_INVALID
	Insert        uint32 // CTA_STATS_INSERT
	InsertFailed  uint32 // CTA_STATS_INSERT_FAILED
	Drop          uint32 // CTA_STATS_DROP
	EarlyDrop     uint32 // CTA_STATS_EARLY_DROP
	Error         uint32 // CTA_STATS_ERROR
	SearchRestart uint32 // CTA_STATS_SEARCH_RESTART
	ClashResolve  uint32 // CTA_STATS_CLASH_RESOLVE
	ChainTooLong  uint32 // CTA_STATS_CHAIN_TOOLONG
}

// Table returns how many entries the connection tracking table of this network namespace has, and how many it may have.
func Table() (entries, limit uint32, err error) { return linux{}.table() }

// Stats returns this network namespace's statistics, one for each CPU. The library that could, ti-mo/conntrack, leaves
// clash_resolve and chain_toolong out.
func Stats() ([]CPUStats, error) {
	answers, err := ask(subsysCtnetlink, msgGetStatsCPU, unix.NLM_F_DUMP, unix.AF_UNSPEC, nil)
	if err != nil {
		return nil, err
	}
	return parseStats(answers)
}

// Expectations returns how many expectations there are in this network namespace.
func Expectations() (uint32, error) {
	answers, err := ask(subsysExpectations, msgExpectGetStatsCPU, unix.NLM_F_DUMP, unix.AF_UNSPEC, nil)
	if err != nil {
		return 0, err
	}
	return parseExpectations(answers)
}

func parseStats(answers [][]byte) ([]CPUStats, error) {
	stats := make([]CPUStats, len(answers))
	for i, a := range answers {
		ad, err := attributes(a)
		if err != nil {
			return nil, err
		}
		s := &stats[i]
		s.CPU = int(binary.BigEndian.Uint16(a[2:])) // nfgenmsg's resource id
		fields := [...]*uint32{2: &s.Found, 4: &s.Invalid, 8: &s.Insert, 9: &s.InsertFailed, 10: &s.Drop, 11: &s.EarlyDrop,
			12: &s.Error, 13: &s.SearchRestart, 14: &s.ClashResolve, 15: &s.ChainTooLong} // by attribute, CTA_STATS_*
		for ad.Next() {
			if t := int(ad.Type()); t < len(fields) && fields[t] != nil {
				*fields[t] = ad.Uint32()
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("read conntrack's statistics: %w", err)
		}
	}
	return stats, nil
}

// parseExpectations adds up what was created and deleted on all CPUs, right across the wrap of the counters.
func parseExpectations(answers [][]byte) (n uint32, err error) {
	for _, a := range answers {
		ad, err := attributes(a)
		if err != nil {
			return 0, err
		}
		for ad.Next() {
			switch ad.Type() {
			case attrExpectCreated:
				n += ad.Uint32()
			case attrExpectDeleted:
				n -= ad.Uint32()
			}
		}
		if err := ad.Err(); err != nil {
			return 0, fmt.Errorf("read the statistics of expectations: %w", err)
		}
	}
	return n, nil
}

func (linux) expectations() (uint32, error) { return Expectations() }

// ExpectationLimit returns how many expectations there may be.
func ExpectationLimit() (uint32, error) {
	n, err := host{proc: "/proc"}.number("nf_conntrack_expect_max")
	return uint32(n), err
}
