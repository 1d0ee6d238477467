package ipfix

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the tables into docs/ipfix.md")

const docs = "../../docs/ipfix.md"

// TestDocs keeps the tables in docs/ipfix.md what WriteTemplates writes. To renew them: go test ./output/ipfix -update
func TestDocs(t *testing.T) {
	const begin, end = "<!-- templates: begin -->\n", "<!-- templates: end -->\n"
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	have, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no markers", docs)
	}
	var want bytes.Buffer
	if err := WriteTemplates(&want, AllTemplates()); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(docs, []byte(before+begin+want.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want.String(), have); diff != "" {
		t.Errorf("tables in %s are not what the code exports (-want +got); renew them with -update:\n%s", docs, diff)
	}
}

// TestLayoutsHaveTheirIDs: one id never stands for two layouts, whatever the configuration.
func TestLayoutsHaveTheirIDs(t *testing.T) {
	layouts := map[uint16]string{}
	no := false
	for _, layout := range []string{"with_times", "rfc8158"} {
		for _, destination := range []*bool{nil, &no} {
			for _, own := range []Enterprise{{}, everyElement} {
				for _, tmpl := range Templates(Config{Records: "both", Layout: layout, Destination: destination, Enterprise: own}) {
					var fields []string
					for _, f := range tmpl.Fields {
						fields = append(fields, f.String())
					}
					got := strings.Join(fields, " ")
					if have, ok := layouts[tmpl.ID]; ok && have != got {
						t.Errorf("template %d is %s and %s", tmpl.ID, have, got)
					}
					layouts[tmpl.ID] = got
				}
			}
		}
	}
	if got := len(layouts); got != 4*10+3 {
		t.Errorf("%d layouts, want 43", got)
	}
}
