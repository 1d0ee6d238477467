//go:build !small

package live

import (
	"strings"
	"testing"
	"time"

	"github.com/ctlogd/ctlogd/monitor"
)

// TestArchive: status, top and the page say how an archive stands: what waits and is there, the last seal, what comes next,
// and what fails.
func TestArchive(t *testing.T) {
	o := monitor.Output{Name: "archive:/var/log/ctlogd/archive", Kind: "archive", Counters: []monitor.Counter{
		{Name: "unsealed_records", N: 12345}, {Name: "segments", N: 96}, {Name: "segment_bytes", N: 2_500_000_000}, {Name: "seals", Label: "success", N: 97},
		{Name: "seals", Label: "failure", N: 3}, {Name: "last_seal_age", N: 182}, {Name: "last_seal_seconds", N: 4}, {Name: "checkpoint_age", N: 725},
		{Name: "next_removal", N: 12*86400 + 3*3600},
	}}
	v := &View{Snapshot: monitor.Snapshot{Time: time.Now(), Outputs: []monitor.Output{{Name: "jsonl:/x", Kind: "jsonl"}, o}}, Rates: newRates()}
	holds := "12,345 rows wait to be sealed, 96 segments of 2.3 GiB, last sealed 3m2s ago, in 4s"
	keeps := "last checkpoint 12m5s ago, next removal in 12d3h"
	if text, want := v.Status(false), "archive /var/log/ctlogd/archive: "+holds+"\n        "+keeps+"\n\n"; !strings.Contains(text, want) {
		t.Errorf("status has no %q:\n%s", want, text)
	}
	if facts := v.facts(); len(facts) != 5 || facts[3][0] != "archive" || !strings.HasSuffix(facts[3][1], holds) || facts[4] != [2]string{"", keeps} {
		t.Errorf("top has %q", facts)
	}
	page := func() string {
		var b strings.Builder
		if err := pageTemplate().Execute(&b, newPage(v)); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if text := page(); strings.Count(text, "<small>"+holds+"</small><small>"+keeps+"</small>") != 1 || strings.Contains(text, "sealing has failed") {
		t.Errorf("the page does not say it:\n%s", text)
	}
	bad := &v.Outputs[1]
	bad.Counters = append(bad.Counters, monitor.Counter{Name: "seal_failing", N: 400}, monitor.Counter{Name: "overdue", N: 7300},
		monitor.Counter{Name: "writing_stopped", N: 1}, monitor.Counter{Name: "damaged_files", N: 2})
	fails := "sealing has failed for 6m40s, 3 times since the start; a removal is overdue for 2h1m40s; nothing is written, to keep min_age and reserve; " +
		"2 files were put aside as damaged"
	if text := v.Status(false); !strings.Contains(text, "\n        "+fails+"\n") {
		t.Errorf("status has no %q:\n%s", fails, text)
	}
	if text := page(); !strings.Contains(text, `<small class="bad">`+fails+"</small>") {
		t.Errorf("the page does not say it:\n%s", text)
	}
	bad.Counters = []monitor.Counter{{Name: "unsealed_records", N: 7}, {Name: "seals", Label: "success"}}
	if text, want := v.Status(false), ": 7 rows wait to be sealed, 0 segments of 0 B\n        no checkpoint yet\n"; !strings.Contains(text, want) {
		t.Errorf("a new archive: status has no %q:\n%s", want, text)
	}
}
