//go:build !small

package main

import (
	"bytes"
	"io"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// With a configuration, the templates are those of each of its outputs.
func TestTemplatesOfConfiguration(t *testing.T) {
	var stdout bytes.Buffer
	if code := run([]string{"ipfix", "templates", "-c", "testdata/good-outputs.yaml"}, &stdout, io.Discard); code != exitOK {
		t.Fatalf("exit code %d", code)
	}
	got := regexp.MustCompile(`(?m)^## .*|^\| \d+ \| \S*nat44\S*|^\| 40\d \| \S+`).FindAllString(stdout.String(), -1)
	want := []string{
		"## outputs.ipfix[0]: tls://collector.example.net, observation domain 4711",
		"| 358 | nat44_nodst_ent", // both, rfc8158, no destination, enterprise elements, no options
		"## outputs.ipfix[1]: udp://192.0.2.11, observation domain 4712",
		"| 400 | process_stats",
		"| 401 | reliability",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headings and templates (-want +got):\n%s\nin\n%s", diff, &stdout)
	}
}
