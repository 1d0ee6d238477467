package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/input/ctnetlink"
	"github.com/ctlogd/ctlogd/input/netns"
	"github.com/ctlogd/ctlogd/preflight"
)

// namespaceResults are those of the other network namespaces that cfg asks for: whether they can be heard and entered, and
// what their flows' records lack.
func namespaceResults(ctx context.Context, cfg *Config) []preflight.Result {
	const name = "network namespaces"
	in := &cfg.Input.Conntrack
	if !in.Others() {
		return nil
	}
	result := func(status preflight.Status, detail, remedy string) preflight.Result {
		return preflight.Result{Name: name, Status: status, Detail: detail, Remedy: remedy}
	}
	var results []preflight.Result
	if err := ctnetlink.MayHearOthers(); err != nil {
		results = append(results, result(preflight.Warn, err.Error(),
			"run ctlogd as root, or give it CAP_NET_BROADCAST and CAP_SYS_ADMIN: docs/namespaces.md has the drop-in"))
	}
	known, err := netns.List()
	if err != nil {
		return append(results, result(preflight.Warn, err.Error(), ""))
	}
	names := known.Names()
	for _, wanted := range in.Namespaces {
		if wanted != ctnetlink.AllNamespaces && wanted != ctnetlink.OwnNamespace && !slices.Contains(names, wanted) {
			results = append(results, result(preflight.Warn, "there is none called "+wanted+" now", "ip netns shows those that there are"))
		}
	}
	_, limit, _ := preflight.Table()
	looked, fullest, most := 0, "", int64(-1)
	lacks := make([][]string, len(netns.Sysctls)) // names, by sysctl
	for _, one := range names {
		if ctx.Err() != nil {
			return results
		}
		if !in.Wanted(one) {
			continue
		}
		found, err := known.Inspect(one)
		if err != nil {
			remedy := ""
			if errors.Is(err, unix.EPERM) {
				remedy = "give ctlogd CAP_SYS_ADMIN, or its table is neither read nor guarded: docs/namespaces.md"
			}
			results = append(results, result(preflight.Warn, err.Error(), remedy))
			continue
		}
		looked++
		if found.Entries > most {
			fullest, most = one, found.Entries
		}
		for i, v := range found.Sysctls {
			if v == "0" {
				lacks[i] = append(lacks[i], one)
			}
		}
	}
	for i, of := range lacks {
		if len(of) > 0 {
			sw := ctnetlink.Switch(i)
			results = append(results, result(preflight.Warn, fmt.Sprintf("net.netfilter.%s = 0 in %s: %s", sw.Name(), few(of), sw.Off()),
				fmt.Sprintf("ip netns exec %s sysctl -w net.netfilter.%s=1; for namespaces that are made later: docs/namespaces.md, Sysctls",
					of[0], sw.Name())))
		}
	}
	if looked > 0 {
		detail := fmt.Sprintf("%d have a name and can be entered; the fullest table is that of %s, %d entries", looked, fullest, most)
		status, remedy := preflight.Pass, ""
		if limit > 0 {
			detail += fmt.Sprintf(" of %d", limit)
			if most > int64(limit)/10*8 {
				status, remedy = preflight.Warn, "raise net.netfilter.nf_conntrack_max, which holds for each namespace"
			}
		}
		results = append(results, result(status, detail, remedy))
	}
	return results
}

// few names some of a list.
func few(names []string) string {
	const some = 5
	if len(names) <= some {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d others", strings.Join(names[:some], ", "), len(names)-some)
}
