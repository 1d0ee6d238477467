package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// record is what the demo shows of a JSON line; docs/json.md has all the keys.
type record struct {
	Time    time.Time  `json:"time"`
	Event   string     `json:"event"`
	Proto   string     `json:"proto"`
	Src     netip.Addr `json:"src_ip"`
	Sport   uint16     `json:"src_port"`
	Dst     netip.Addr `json:"dst_ip"`
	Dport   uint16     `json:"dst_port"`
	NAT     string     `json:"nat"`
	NATSrc  netip.Addr `json:"nat_src_ip"`
	NATPort uint16     `json:"nat_src_port"`
	NATDst  netip.Addr `json:"nat_dst_ip"`
	NATDprt uint16     `json:"nat_dst_port"`
	ICMPID  uint16     `json:"icmp_id"`
	NATICMP *uint16    `json:"nat_icmp_id"`
	Out     uint64     `json:"orig_bytes"`
	In      uint64     `json:"reply_bytes"`
	Helper  string     `json:"helper"`
	Master  uint16     `json:"master_src_port"`
	Reason  string     `json:"end_reason"`
	Cause   string     `json:"cause"`
}

const (
	bold, reset         = "\x1b[1m", "\x1b[0m"
	green, yellow, cyan = "\x1b[32m", "\x1b[33m", "\x1b[36m"
	magenta, red        = "\x1b[35m", "\x1b[31m"
)

// show prints the records that come in until there are no more, and returns how many there were: JSON as it comes in
// a pipe, columns on a terminal.
func show(lines *bufio.Scanner) (count int) {
	terminal := isTerminal(os.Stdout)
	if terminal {
		fmt.Printf("%s%s%s\n", bold, row("ended", "proto", "source", "destination", "translated to", "bytes out/in", "why", "helper"), reset)
	}
	for lines.Scan() {
		count++
		var r record
		if !terminal || json.Unmarshal(lines.Bytes(), &r) != nil {
			fmt.Println(lines.Text())
			continue
		}
		fmt.Println(r.String())
	}
	return count
}

// row lays out one line; columns that may hold IPv6 addresses push the rest to the right rather than be cut.
func row(when, proto, src, dst, nat, bytes, why, helper string) string {
	return fmt.Sprintf("%-12s %-6s %-21s -> %-21s %-27s %14s  %-8s %s", when, proto, src, dst, nat, bytes, why, helper)
}

func (r record) String() string {
	if r.Event == "gap" {
		return red + r.Time.Format("15:04:05.000") + " records are missing: " + r.Cause + reset
	}
	src, nat := endpoint(r.Src, r.Sport), ""
	if strings.HasPrefix(r.Proto, "icmp") {
		src = fmt.Sprintf("%s id %d", r.Src, r.ICMPID)
	}
	switch r.NAT {
	case "snat", "both":
		nat = "from " + endpoint(r.NATSrc, r.NATPort)
		if r.NATICMP != nil {
			nat += fmt.Sprintf(" id %d", *r.NATICMP)
		}
	}
	switch r.NAT {
	case "dnat", "both":
		nat = strings.TrimSpace(nat + " to " + endpoint(r.NATDst, r.NATDprt))
	}
	helper := r.Helper
	if r.Master != 0 {
		helper += fmt.Sprintf(", data of :%d", r.Master)
	}
	color := map[string]string{"tcp": green, "udp": cyan, "icmp": magenta, "icmpv6": magenta}[r.Proto]
	line := row(r.Time.Format("15:04:05.000"), r.Proto, src, endpoint(r.Dst, r.Dport), nat,
		fmt.Sprintf("%d/%d", r.Out, r.In), r.Reason, helper)
	if nat != "" {
		line = strings.Replace(line, nat, yellow+nat+color, 1)
	}
	return color + line + reset
}

// endpoint writes an address, and its port if it has one.
func endpoint(a netip.Addr, port uint16) string {
	if port == 0 {
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}
