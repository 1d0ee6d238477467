package live

import (
	"fmt"
	"strings"

	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/printable"
)

// archive is what an output of that kind counts, by the names in monitor.OwnMetrics and their labels.
type archive map[string]uint64

// archiveOf returns it; ok is false for an output of another kind.
func archiveOf(o *monitor.Output) (a archive, ok bool) {
	if o.Kind != "archive" || len(o.Counters) == 0 {
		return nil, false
	}
	a = archive{}
	for _, c := range o.Counters {
		a[strings.TrimSuffix(c.Name+" "+c.Label, " ")] = c.N
	}
	return a, true
}

// holds says what is there, and when it was sealed last.
func (a archive) holds() string {
	text := fmt.Sprintf("%s rows wait to be sealed, %s segments of %s", group(a["unsealed_records"]), group(a["segments"]), size(a["segment_bytes"]))
	if a["seals success"] > 0 {
		took := "less than a second"
		if s := a["last_seal_seconds"]; s > 0 {
			took = age(float64(s))
		}
		text += fmt.Sprintf(", last sealed %s ago, in %s", age(float64(a["last_seal_age"])), took)
	}
	return text
}

// keeps says what comes next, and when the last checkpoint was.
func (a archive) keeps() string {
	text := "no checkpoint yet"
	if s := a["checkpoint_age"]; s > 0 {
		text = fmt.Sprintf("last checkpoint %s ago", age(float64(s)))
	}
	if s := a["next_removal"]; s > 0 {
		text += fmt.Sprintf(", next removal in %s", age(float64(s)))
	}
	return text
}

// fails says what does not work; "" if all does.
func (a archive) fails() string {
	var fails []string
	if s := a["seal_failing"]; s > 0 {
		fails = append(fails, fmt.Sprintf("sealing has failed for %s, %s times since the start", age(float64(s)), group(a["seals failure"])))
	}
	if s := a["overdue"]; s > 60 { // it is looked at once a minute
		fails = append(fails, fmt.Sprintf("a removal is overdue for %s", age(float64(s))))
	}
	if a["writing_stopped"] > 0 {
		fails = append(fails, "nothing is written, to keep min_age and reserve")
	}
	if n := a["damaged_files"]; n > 0 {
		fails = append(fails, fmt.Sprintf("%s files were put aside as damaged", group(n)))
	}
	return strings.Join(fails, "; ")
}

// uploads says what waits to be uploaded, and whether it cannot.
func (a archive) uploads() (text string) {
	if n := a["upload_waiting"]; n > 0 {
		text += ", " + group(n) + " not uploaded"
	}
	if s := a["upload_failing"]; s > 0 {
		text += ", uploads fail for " + age(float64(s))
	}
	return text
}

// archives says how each archive stands, in lines of a word and a sentence.
func (v *View) archives() (facts [][2]string) {
	for i := range v.Outputs {
		a, ok := archiveOf(&v.Outputs[i])
		if !ok {
			continue
		}
		facts = append(facts, [2]string{"archive", strings.TrimPrefix(printable.Text(v.Outputs[i].Name), "archive:") + ": " + a.holds()}, [2]string{"", a.keeps()})
		if fails := a.fails(); fails != "" {
			facts = append(facts, [2]string{"", fails})
		}
	}
	return facts
}
