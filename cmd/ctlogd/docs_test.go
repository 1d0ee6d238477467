//go:build !small

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/ctlogd/ctlogd/preflight"
)

// documents returns what operators and engineers read, by path from the root of the repository.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		files, err := filepath.Glob("../../" + pattern)
		if err != nil || files == nil {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, file := range files {
			docs[strings.TrimPrefix(file, "../../")] = document(t, file)
		}
	}
	return docs
}

func document(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var fenced = regexp.MustCompile("(?ms)^ *```.*?^ *```$")

// anchors returns the names that links to places in a document use, as GitHub makes them of headings, and those that
// stand in it.
func anchors(doc string) map[string]bool {
	names := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(fenced.ReplaceAllString(doc, ""), -1) {
		name := regexp.MustCompile(`[^\w\- ]`).ReplaceAllString(strings.ToLower(m[1]), "")
		names[strings.ReplaceAll(name, " ", "-")] = true
	}
	for _, m := range regexp.MustCompile(`<a id="([^"]+)">`).FindAllStringSubmatch(doc, -1) {
		names[m[1]] = true
	}
	return names
}

// Whoever may kill the process waits for shutdown_timeout, and for what has bounds of its own beyond it (DESIGN.md, The end).
func TestStopTimes(t *testing.T) {
	const beyond = 20 * time.Second
	for file, key := range map[string]string{
		"packaging/systemd/ctlogd.service": "TimeoutStopSec=", "packaging/openwrt/ctlogd.init": "term_timeout ",
		"deploy/container/daemonset.yaml": "terminationGracePeriodSeconds: ",
	} {
		text, err := os.ReadFile("../../" + file)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), key)
		seconds := 0
		if _, err := fmt.Sscan(rest, &seconds); err != nil {
			t.Fatalf("%s: no %s: %v", file, key, err)
		}
		if got := time.Duration(seconds) * time.Second; got < defaultShutdownTimeout+beyond {
			t.Errorf("%s: %s%d, want %v at least", file, key, seconds, defaultShutdownTimeout+beyond)
		}
	}
}

// Links lead to files, and to headings in them, that there are.
func TestDocsLinks(t *testing.T) {
	for name, doc := range documents(t) {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(fenced.ReplaceAllString(doc, ""), -1) {
			link := m[1]
			if strings.Contains(link, "://") {
				continue
			}
			file, anchor, _ := strings.Cut(link, "#")
			target := filepath.Join("../..", filepath.Dir(name), file)
			if file == "" {
				target = "../../" + name
			}
			text, err := os.ReadFile(target)
			switch {
			case err != nil:
				t.Errorf("%s: no file for the link %s", name, link)
			case anchor != "" && !anchors(string(text))[anchor]:
				t.Errorf("%s: no heading for the link %s", name, link)
			}
		}
	}
}

// What the mapping for goflow2 names is in the templates, and what it maps to is printed.
func TestDocsGoflow2(t *testing.T) {
	var templates bytes.Buffer
	if code := run([]string{"ipfix", "templates"}, &templates, io.Discard); code != exitOK {
		t.Fatalf("exit code %d", code)
	}
	mapping := document(t, "../../docs/examples/goflow2.yaml")
	fields := regexp.MustCompile(`(?m)^    - \{field: (\d+),( penprovided: true, pen: (\d+),)? destination: (\w+)\} +# (\w+)`).FindAllStringSubmatch(mapping, -1)
	if len(fields) != 11 {
		t.Errorf("%d fields are mapped", len(fields))
	}
	for _, f := range fields {
		id, destination, name := f[1], f[4], f[5]
		if f[3] != "" {
			id = f[3] + "/" + id
		}
		if !regexp.MustCompile(`\b` + id + `\b.*\b` + name + `\b|\b` + name + `\b.*\b` + id + `\b`).Match(templates.Bytes()) {
			t.Errorf("the templates have no %s, %s", id, name)
		}
		if !strings.Contains(mapping, "\n    - "+destination+"\n") {
			t.Errorf("%s is not printed", destination)
		}
	}
}

// Every configuration in the documentation loads. A part of one stands for the whole with that part.
func TestDocsConfigurations(t *testing.T) {
	n := 0
	for name, doc := range documents(t) {
		for _, m := range regexp.MustCompile("(?ms)^ *```yaml\n(.*?)^ *```$").FindAllStringSubmatch(doc, -1) {
			n++
			text := m[1]
			var first error
			for i, form := range []string{"%s", "%s\n" + leastConfig, "outputs:\n  jsonl:\n    - path: /x\n%s"} {
				if i == 2 { // keys of an output
					text = regexp.MustCompile(`(?m)^`).ReplaceAllString(strings.TrimRight(text, "\n"), "      ")
				}
				_, err := parseConfig(name, withFiles(t, fmt.Appendf(nil, form, text)))
				if first == nil {
					first = err
				}
				if err == nil {
					first = nil
					break
				}
			}
			if first != nil {
				t.Errorf("%s: %v\n%s", name, first, m[1])
			}
		}
	}
	if n < 10 {
		t.Errorf("%d configurations were found", n)
	}
}

// What operators are told to look for is what ctlogd says.
func TestDocsOperate(t *testing.T) {
	doc := document(t, "../../docs/operate.md")
	for _, r := range preflight.Run(t.Context(), preflight.Options{ReceiveBuffer: 1 << 20,
		Files: []preflight.Files{{Name: "x", Path: t.TempDir()}}}) {
		if !strings.Contains(doc, "`"+r.Name+"`") {
			t.Errorf("docs/operate.md lacks the check %s", r.Name)
		}
	}
	var source strings.Builder
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			source.WriteString(document(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, lines, _ := strings.Cut(doc, "Lines to act on:")
	lines, _, _ = strings.Cut(lines, "\n## ")
	n := 0
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?) \\|").FindAllStringSubmatch(lines, -1) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			n++
			if !strings.Contains(source.String(), m[1]) {
				t.Errorf("nothing logs %q", m[1])
			}
		}
	}
	if n < 8 {
		t.Errorf("%d lines were found in docs/operate.md", n)
	}
}

// Each option and each key of ulogd2's plugins has its place in docs/migrate-from-ulogd2.md.
func TestDocsULOGD(t *testing.T) {
	doc := document(t, "../../docs/migrate-from-ulogd2.md")
	plugins, _ := filepath.Glob("/usr/lib/*/ulogd/ulogd_*_*.so")
	if _, err := exec.LookPath("ulogd"); err != nil || plugins == nil {
		t.Skip("needs ulogd2 and ulogd2-json")
	}
	n := 0
	for _, plugin := range plugins {
		if !regexp.MustCompile(`_(NFCT|IPFIX|JSON)\.so$`).MatchString(plugin) {
			continue
		}
		out, err := exec.Command("ulogd", "-i", plugin).CombinedOutput()
		if err != nil {
			t.Fatalf("ulogd -i %s: %v: %s", plugin, err, out)
		}
		for _, m := range regexp.MustCompile(`(?m)(?:Var|Key): (\S+)`).FindAllSubmatch(out, -1) {
			n++
			if !strings.Contains(doc, "`"+string(m[1])+"`") {
				t.Errorf("docs/migrate-from-ulogd2.md lacks %s of %s", m[1], filepath.Base(plugin))
			}
		}
	}
	if n < 40 {
		t.Errorf("ulogd told of %d options and keys", n)
	}
}

// The jq of docs/migrate-from-ulogd2.md makes of the first example of docs/json.md what ulogd2 would have written.
func TestDocsULOGDNames(t *testing.T) {
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("jq is not installed")
	}
	script := regexp.MustCompile("(?s)```sh\n(jq .*?)```").FindStringSubmatch(document(t, "../../docs/migrate-from-ulogd2.md"))
	line := regexp.MustCompile("(?s)\n```json\n(.*?)\n```\n").FindStringSubmatch(document(t, "../../docs/json.md"))
	if script == nil || line == nil {
		t.Fatal("no jq or no example")
	}
	cmd := exec.Command("sh", "-c", script[1])
	cmd.Dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(cmd.Dir, "flows.jsonl"), []byte(line[1]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got map[string]any
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := map[string]any{
		"timestamp": "2026-03-09T14:04:36.118920404Z", "dvc": "cgn1.example.net", "src_ip": "10.64.3.7",
		"dest_ip": "198.51.100.80", "orig.ip.protocol": 6.0, "orig.l4.sport": 51544.0, "orig.l4.dport": 443.0,
		"reply.ip.saddr.str": "198.51.100.80", "reply.ip.daddr.str": "192.0.2.33", "reply.l4.sport": 443.0,
		"reply.l4.dport": 7211.0, "orig.raw.pktcount": 14.0, "orig.raw.pktlen": 2211.0, "reply.raw.pktcount": 19.0,
		"reply.raw.pktlen": 20733.0, "ct.mark": 16.0, "ct.id": 3120755298.0, "ct.event": 4.0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Tests that documents name exist; what -run gets may be the first part of a name.
func TestDocsNameTests(t *testing.T) {
	var there []string
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, "_test.go") {
			for _, m := range declared.FindAllStringSubmatch(document(t, path), -1) {
				there = append(there, m[1])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, doc := range documents(t) {
		for _, test := range regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`).FindAllString(doc, -1) {
			if !slices.ContainsFunc(there, func(name string) bool { return strings.HasPrefix(name, test) }) {
				t.Errorf("%s names %s, and there is no such test", name, test)
			}
		}
	}
}

// What the examples for Vector and Logstash read of a record is in the schema. TestVector runs the programs of the former.
func TestDocsReaders(t *testing.T) {
	var schema struct {
		Properties map[string]any `json:"properties"`
	}
	if err := json.Unmarshal([]byte(document(t, "../../docs/flow.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(document(t, "../../docs/examples/vector.yaml")), new(map[string]any)); err != nil {
		t.Error(err)
	}
	own := []string{"message", "timestamp", "public_ip", "public_port"}
	for file, key := range map[string]string{"vector.yaml": `(?:^|[ (])\.([a-z_0-9]+)`, "logstash.conf": `\[([a-z_0-9]+)\]`} {
		n := 0
		text := regexp.MustCompile(`(?m)#.*$`).ReplaceAllString(document(t, "../../docs/examples/"+file), "")
		for _, m := range regexp.MustCompile(key).FindAllStringSubmatch(text, -1) {
			if n++; schema.Properties[m[1]] == nil && !slices.Contains(own, m[1]) {
				t.Errorf("%s: records have no %s", file, m[1])
			}
		}
		if n < 8 {
			t.Errorf("%s: %d keys", file, n)
		}
	}
}
