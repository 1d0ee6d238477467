package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

func TestPackageVersion(t *testing.T) {
	date := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	for described, want := range map[string]string{
		"v1.2.0":                  "1.2.0",
		"1.2.0":                   "1.2.0",
		"v1.2.0-4-g9a9dc29":       "1.2.0+4.9a9dc29",
		"v1.2.0-4-g9a9dc29-dirty": "1.2.0+4.9a9dc29+dirty",
		"v1.2.0-dirty":            "1.2.0+dirty",
		"9a9dc29":                 "0.0.0+20261125.9a9dc29",
		"9a9dc29-dirty":           "0.0.0+20261125.9a9dc29.dirty",
		"1234567":                 "0.0.0+20261125.9a9dc29",
		"unknown":                 "0.0.0+20261125.9a9dc29",
	} {
		if got := packageVersion(described, "9a9dc29", date); got != want {
			t.Errorf("%s becomes %s, want %s", described, got, want)
		}
	}
}

func TestAPKVersion(t *testing.T) {
	for version, want := range map[string]string{
		"1.2.0": "1.2.0", "1.2.0+4.9a9dc29": "1.2.0_p4", "1.2.0+4.9a9dc29+dirty": "1.2.0_p4", "1.2.0+dirty": "1.2.0",
		"0.0.0+20261125.9a9dc29": "0.0.0_p20261125",
	} {
		if got := apkVersion(version); got != want {
			t.Errorf("%s becomes %s, want %s", version, got, want)
		}
	}
}

func TestDebianChangelog(t *testing.T) {
	const changes = "# Changelog\n\nAll that matters.\n\n## Unreleased\n\n### Faults\n\n- A line that is so long that it has to be " +
		"broken, as Debian's\n  programs want no more than 80 columns.\n- `check`.\n\n### New\n\n- This.\n\n## 1.0.0\n\n- Old.\n"
	const want = `ctlogd (1.1.0) unstable; urgency=medium

  [ Faults ]
  * A line that is so long that it has to be broken, as Debian's programs
    want no more than 80 columns.
  * ` + "`check`" + `.
  [ New ]
  * This.

 -- ` + maintainer + `  Wed, 25 Nov 2026 01:02:03 +0000
`
	if got := debianChangelog(changes, "1.1.0", time.Date(2026, 11, 25, 1, 2, 3, 0, time.UTC)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// ctlogd.yaml(5) has every key of the example once, with its sentence, and its value.
func TestConfigPage(t *testing.T) {
	example, err := os.ReadFile("../../ctlogd.yaml.example")
	if err != nil {
		t.Fatal(err)
	}
	page, err := configPage(string(example), "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^\.TP\n\.B (.*)\n(.*)`).FindAllStringSubmatch(page, -1) {
		got = append(got, m[1])
	}
	for _, want := range []string{
		".B filter[].match.proto\nA name or a number.\n.br\nFor example:\n.I [icmp, icmpv6, 47]\n",
		".B outputs.jsonl[].queue\nHow many records may wait in memory for this output; what comes",
		".B outputs.ipfix[].tls.ca\nThe authorities to trust.",
		".B outputs.kafka[].sasl.password_env\n",
		".B log.level\ndebug, info, warn or error\n.br\nDefault:\n.I info\n",
		".B host\nWhat this box is called in every record.",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q", want)
		}
	}

	// The keys as a decoder has them.
	text := outerComment.ReplaceAll(example, []byte("$1"))
	text = bytes.Replace(text, []byte("\nfilter: []\n"), []byte("\n"), 1)
	text = regexp.MustCompile(`(?m)^( +)#(\S)`).ReplaceAll(text, []byte("$1$2"))
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	var walk func(n *yaml.Node, path string)
	walk = func(n *yaml.Node, path string) {
		if n.Style&yaml.FlowStyle != 0 {
			return // a value
		}
		for i, c := range n.Content {
			switch {
			case n.Kind == yaml.DocumentNode:
				walk(c, path)
			case n.Kind == yaml.SequenceNode:
				walk(c, path+"[]")
			case i%2 == 1:
				key := strings.TrimPrefix(path+"."+n.Content[i-1].Value, ".")
				keys[key] = true
				walk(c, key)
			}
		}
	}
	walk(&doc, "")
	for _, key := range got {
		if !keys[key] {
			t.Errorf("the page has %s, the example has not, or the page has it twice", key)
		}
		delete(keys, key)
	}
	for key := range keys {
		t.Errorf("the page lacks %s", key)
	}
}
