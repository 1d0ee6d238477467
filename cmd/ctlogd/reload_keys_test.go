//go:build !small

package main

import (
	"reflect"
	"slices"
	"testing"

	"github.com/ctlogd/ctlogd/config"
)

// What a reload does with each key. A key that is not here has to be thought of first.
var reloadOf = map[string]string{
	"filter": "choose", "skip_own_flows": "choose", "metrics.listen": "Configure", "metrics.web_config": "Configure",
	"log.level": "Set", "log.format": "Set", "shutdown_timeout": "read at the end",
	"observer": "part of each output's configuration", "host": "part of each output's configuration",
	"input.conntrack": "ctnetlink.Source.Reconfigure, with a test of its own",
	"outputs.*":       "built anew", "outputs.*.filter": "Adjust", "outputs.*.queue": "Adjust", "outputs.*.spool": "a warning of its own",
	"enrich.subscribers": "planSources",
	"state_directory":    fixedAtStart, "whois.audit": "read by whois", "whois.case": "read by whois", "live.socket": fixedAtStart, "live.talkers": fixedAtStart,
}

const fixedAtStart = "named"

// A key that changes by a reload is used where it stands; one that does not is named in the log.
func TestEveryKeyIsReloadedOrNamed(t *testing.T) {
	var walk func(typ reflect.Type, v reflect.Value, path string, now *Config)
	seen := map[string]bool{}
	walk = func(typ reflect.Type, v reflect.Value, path string, now *Config) {
		what, known := reloadOf[path]
		if !known && typ.Kind() == reflect.Struct && path != "outputs" {
			for _, k := range config.Keys(typ) {
				walk(typ.FieldByIndex(k.Index).Type, v.FieldByIndex(k.Index), config.Join(path, k.Name), now)
			}
			return
		}
		if path == "outputs" {
			return
		}
		if !known {
			t.Errorf("%s: what does a reload do with it?", path)
			return
		}
		seen[path] = true
		before := reflect.New(typ).Elem()
		before.Set(v)
		switch v.Kind() {
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 1)
		}
		differ := differingKeys(DefaultConfig(), now)
		if changes := !reflect.DeepEqual(v.Interface(), before.Interface()); changes != slices.Equal(differ, []string{path}) {
			t.Errorf("%s differs: %t; found are %q", path, changes, differ)
		}
		if named := slices.Contains(fixedKeys(DefaultConfig(), now), path); named != (what == fixedAtStart) {
			t.Errorf("%s: %s, but named as one that needs a restart: %t", path, what, named)
		}
		v.Set(before)
	}
	now := DefaultConfig()
	walk(reflect.TypeFor[Config](), reflect.ValueOf(now).Elem(), "", now)
	for _, k := range config.Keys(reflect.TypeFor[OutputConfig]()) {
		path := "outputs.*." + k.Name
		if seen[path] = true; reloadOf[path] == "" {
			t.Errorf("%s: what does a reload do with it?", path)
		}
	}
	seen["outputs.*"] = true
	for path := range reloadOf {
		if !seen[path] {
			t.Errorf("there is no key %s", path)
		}
	}
}
