//go:build integration

package ipfix

import (
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/output/ipfix/collect"
)

// goflow2Names are the keys of goflow2's JSON, with the mapping that docs/examples has for it.
var goflow2Names = map[string]string{
	"time_flow_start_ns": "flowStartMilliseconds", "time_flow_end_ns": "flowEndMilliseconds",
	"src_port": "sourceTransportPort", "dst_port": "destinationTransportPort",
	"post_nat_src_port": "postNAPTSourceTransportPort", "post_nat_dst_port": "postNAPTDestinationTransportPort",
	"bytes": "octetDeltaCount", "packets": "packetDeltaCount",
	"reverse_bytes": "reverseOctetDeltaCount", "reverse_packets": "reversePacketDeltaCount",
	"nat_event": "natEvent", "flow_end_reason": "flowEndReason", "ingress_vrf_id": "ingressVRFID",
}

// goflow2Addresses are those whose element depends on the address family.
var goflow2Addresses = map[string][2]string{
	"src_addr":          {"sourceIPv4Address", "sourceIPv6Address"},
	"dst_addr":          {"destinationIPv4Address", "destinationIPv6Address"},
	"post_nat_src_addr": {"postNATSourceIPv4Address", "postNATSourceIPv6Address"},
	"post_nat_dst_addr": {"postNATDestinationIPv4Address", "postNATDestinationIPv6Address"},
}

// TestGoflow2 holds goflow2, with the mapping in docs/examples, to what is sent. It is built from the module in goflow2/.
func TestGoflow2(t *testing.T) {
	program := filepath.Join(t.TempDir(), "goflow2")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "github.com/netsampler/goflow2/v2/cmd/goflow2")
	build.Dir = "goflow2"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	port, file := freePort(t), filepath.Join(t.TempDir(), "flows")
	stop := daemon(t, program, "-listen", "netflow://127.0.0.1:"+port+"?count=1", "-mapping", "../../docs/examples/goflow2.yaml",
		"-format", "json", "-addr", "", "-transport", "file", "-transport.file", file)
	bound(t, port)
	recs := collected()
	elements := slices.Sorted(maps.Values(goflow2Names))
	for _, names := range goflow2Addresses {
		elements = append(elements, names[:]...)
	}
	export(t, Config{Address: "udp://127.0.0.1:" + port, Records: "both"}, append(recs, gapRecord))
	want := wanted(recs, elements)
	var lines string
	until(t, "goflow2 has written every record", func() bool {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines = string(text)
		return strings.Count(lines, `"type":"IPFIX"`) >= len(want)
	})
	log := stop()
	var got []collect.Record
	for line := range strings.Lines(lines) {
		var o map[string]any
		d := json.NewDecoder(strings.NewReader(line))
		d.UseNumber()
		if err := d.Decode(&o); err != nil {
			t.Fatal(err)
		}
		r := collect.Record{}
		for key, name := range goflow2Names {
			switch v := o[key].(type) {
			case json.Number:
				r[name] = v.String()
			case string:
				r[name] = v
			}
			if ns, err := strconv.ParseInt(r[name], 10, 64); err == nil && strings.HasSuffix(key, "_ns") {
				r[name] = time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.000Z")
			}
		}
		for key, names := range goflow2Addresses {
			if text, _ := o[key].(string); text != "" {
				ip, err := netip.ParseAddr(text)
				if err != nil {
					t.Errorf("%s: %q", key, text)
				} else if ip.Is4() {
					r[names[0]] = text
				} else {
					r[names[1]] = text
				}
			}
		}
		got = append(got, collect.Pick(r, elements))
	}
	same(t, want, got)
	if t.Failed() {
		t.Log(log)
	}
}
