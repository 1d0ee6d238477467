package whois

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ctlogd/ctlogd/archive"
	"github.com/ctlogd/ctlogd/flow"
)

// TestPopularServer: however many flows to a server were over by the time asked for, who had one then is found, and the
// answer is whole. One of those that were over has an open record too, in a row log that is read after its end's segment or
// before it.
func TestPopularServer(t *testing.T) {
	minute := 60 * second
	whole := func(at int64) *flow.Record {
		return &flow.Record{Event: flow.EventOpen, Start: at, Stop: at + second, Received: at + second, Timeout: 3600, Extra: &flow.Extra{Checkpoint: flow.CheckpointWhole}}
	}
	to := netip.MustParseAddrPort("198.51.100.80:443")
	for _, perSegment := range []uint64{1 << 30, 5000} {
		t.Run(fmt.Sprint(perSegment), func(t *testing.T) {
			t.Chdir(t.TempDir())
			w := openArchive(t, noon-4*hour, archive.Options{Dir: "archive", Records: perSegment})
			ended := snat("10.64.9.9:9999", to.String(), 9999, noon-3*hour, noon-30*minute)
			open := *ended
			open.Event, open.Stop, open.Received = flow.EventOpen, noon-2*hour, noon-2*hour
			recs := []*flow.Record{whole(noon - 2*hour - minute), &open, whole(noon - 2*hour)}
			for i := range 3 * Limit {
				recs = append(recs, snat(fmt.Sprintf("10.%d.%d.1:1024", i>>8, i&0xff), to.String(), uint16(1024+i%60000), noon-minute, noon-second))
			}
			recs = append(recs, ended, snat("10.64.3.7:51544", to.String(), 40000, noon-minute, noon+minute), whole(noon+2*hour))
			for len(recs) > 0 {
				n := min(1000, len(recs))
				if _, err := w.Append(recs[:n]); err != nil {
					t.Fatal(err)
				}
				recs = recs[n:]
			}
			closeArchive(t, w, sealed(w))
			a := answer(t, "archive", &Question{Dst: End{to.Addr(), to.Port(), true}, From: noon, To: noon, Zone: "UTC"})
			if a.Verdict != Sole || len(a.Holders) != 1 || a.Holders[0].Subscriber != "10.64.3.7" {
				t.Errorf("%s, %d holders, %v", a.Verdict, len(a.Holders), a.Missing)
			}
			for _, m := range a.Missing {
				t.Errorf("missing: %s: %s", m.Kind, m.Text)
			}
		})
	}
}
