// Command schema holds dashboards against Grafana's schema, in the form of the types that Grafana generates from it: unknown
// keys, wrong types and values out of bounds are errors, in the options of the panels as well. What is missing is none, as
// Grafana puts in its defaults.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins()
	status := 0
	for _, path := range os.Args[1:] {
		if err := check(path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			status = 1
		}
	}
	os.Exit(status)
}

func check(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var d dashboard.Dashboard
	if err := d.UnmarshalJSONStrict(text); err != nil {
		var faults []string
		for line := range strings.Lines(err.Error()) {
			if !strings.HasSuffix(strings.TrimSpace(line), "required field is missing from input") {
				faults = append(faults, line)
			}
		}
		if len(faults) > 0 {
			return errors.New(strings.Join(faults, ""))
		}
	}
	if err := d.Validate(); err != nil {
		return err
	}
	var raw struct {
		Panels []json.RawMessage `json:"panels"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return err
	}
	if len(raw.Panels) != len(d.Panels) || len(d.Panels) == 0 {
		return fmt.Errorf("%d panels, %d are understood", len(raw.Panels), len(d.Panels))
	}
	return nil
}
