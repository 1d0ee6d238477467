//go:build integration

package systemd

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestNamespaces: the drop-in of docs/namespaces.md gives the service the rights to hear a namespace that appears later, to
// enter it, and to read what it has left when it goes; and the seccomp filter lets it.
func TestNamespaces(t *testing.T) {
	doc, err := os.ReadFile("../../docs/namespaces.md")
	must(t, err)
	block := regexp.MustCompile("(?s)```ini\n(.*?)```").FindSubmatch(doc)
	if block == nil {
		t.Fatal("no drop-in in docs/namespaces.md")
	}
	m := boot(t, outputs+"input: {conntrack: {namespaces: all}}\n", string(block[1]))
	in := func(script string) {
		t.Helper()
		_, err := m.run("sh", "-ec", script)
		must(t, err)
	}
	status := func() string {
		out, _ := m.run("ctlogd", "status", "--json") // indented
		return out
	}
	in("ip netns add blue")
	eventually(t, "the namespace is heard and entered", func() bool {
		out := status()
		return strings.Contains(out, `"blue"`) && strings.Contains(out, `"entries": 0`)
	})
	const create = "conntrack -I -p udp -s 10.0.0.1 -d 10.0.0.2 --dport 53 --timeout 100 --sport "
	in("ip netns exec blue sh -ec '" + create + "1; " + create + "2; conntrack -D -p udp --sport 1'")
	in("ip netns del blue")
	eventually(t, "both flows have a record", func() bool {
		records, _ := os.ReadFile(m.path(flowsFile))
		text := string(records)
		return strings.Count(text, `"netns":"blue"`) == 2 && strings.Contains(text, `"event":"destroy"`) && strings.Contains(text, `"event":"open"`)
	})
	if m.show("MainPID") == "0" {
		t.Error("the service has ended")
	}
}
