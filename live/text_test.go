package live

import (
	"strings"
	"testing"

	"github.com/ctlogd/ctlogd/monitor"
)

// TestStatusCounters: what conntrack -S has counted is told with what it means, if it is not 0; and the expectations.
func TestStatusCounters(t *testing.T) {
	v := View{Snapshot: monitor.Snapshot{Kernel: monitor.Kernel{Entries: 10, Limit: 100, CPUs: []monitor.CPU{{Found: 7, Insert: 3}, {}}}}, Rates: newRates()}
	if text := v.Status(false); strings.Contains(text, "kernel") || strings.Contains(text, "expectations") {
		t.Errorf("nothing was counted:\n%s", text)
	}
	v.Kernel.Expectations, v.Kernel.ExpectLimit = 128, 1024
	v.Kernel.CPUs = []monitor.CPU{{InsertFailed: 1000, Drop: 1, EarlyDrop: 2, Invalid: 3, SearchRestart: 4, ClashResolve: 5, ChainTooLong: 6}, {InsertFailed: 234}}
	text := v.Status(false)
	lines := []string{"table   10 of 100 entries, 10%; 128 expectations of 1,024, 12%", "kernel  insert_failed 1,234: new flows", "        drop 1: packets",
		"        early_drop 2: flows", "        chain_toolong 6: ", "        invalid 3: ", "        search_restart 4: ", "        clash_resolve 5: "}
	at := 0
	for _, want := range lines {
		i := strings.Index(text[at:], want)
		if i < 0 {
			t.Fatalf("no %q in its place in\n%s", want, text)
		}
		at += i
	}
	v.Kernel.Error = "no answer"
	v.Kernel.CPUs = nil
	if text := v.Status(false); strings.Contains(text, "expectations") {
		t.Errorf("the kernel did not answer:\n%s", text)
	}
}
