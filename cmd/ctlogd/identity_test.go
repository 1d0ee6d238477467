package main

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctlogd/ctlogd/preflight"
)

func TestIdentityResults(t *testing.T) {
	status := func(c *Config) (list []preflight.Status) {
		for _, r := range identityResults(c) {
			if (r.Status == preflight.Warn) != (r.Remedy != "") {
				t.Errorf("%+v", r)
			}
			list = append(list, r.Status)
		}
		return list
	}
	missing := errors.New("/etc/machine-id is empty")
	for _, tt := range []struct {
		name   string
		config Config
		want   []preflight.Status
	}{
		{"all is said", Config{Host: "gw1", Observer: "o"}, []preflight.Status{preflight.Pass, preflight.Pass}},
		{"by the machine", Config{Host: "gw1", Observer: "6b1d", machine: machine{host: true, observer: true}},
			[]preflight.Status{preflight.Pass, preflight.Pass}},
		{"not named", Config{Host: "localhost", Observer: "6b1d", machine: machine{host: true, observer: true}},
			[]preflight.Status{preflight.Warn, preflight.Pass}},
		{"named so on purpose", Config{Host: "(none)", Observer: "o"}, []preflight.Status{preflight.Warn, preflight.Pass}},
		{"no id", Config{Host: "gw1", Observer: "gw1", machine: machine{host: true, observer: true, noID: missing}},
			[]preflight.Status{preflight.Pass, preflight.Warn}},
		{"no id, and none is needed", Config{Host: "gw1", Observer: "o", machine: machine{host: true}},
			[]preflight.Status{preflight.Pass, preflight.Pass}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, status(&tt.config)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestIdentify: what the configuration says stays, what the machine decided is looked up again.
func TestIdentify(t *testing.T) {
	c := Config{Host: "gw1", Observer: "o"}
	if err := c.identify(); err != nil || c.Host != "gw1" || c.Observer != "o" || c.machine != (machine{}) {
		t.Errorf("what is set: %+v, %v", c.machine, err)
	}
	c = Config{}
	if err := c.identify(); err != nil || !c.machine.host || !c.machine.observer {
		t.Fatalf("what is not: %+v, %v", c.machine, err)
	}
	host, observer := c.Host, c.Observer
	c.Host, c.Observer = "before", "before"
	if err := c.identify(); err != nil || c.Host != host || c.Observer != observer {
		t.Errorf("again: %q, %q, %v", c.Host, c.Observer, err)
	}
}

// A machine id that cannot be read for a while does not give way to the host's name; one that comes is taken up.
func TestKeepID(t *testing.T) {
	none := errors.New("too many open files")
	for _, tt := range []struct{ running, now, want Config }{
		{Config{Observer: "id", machine: machine{observer: true}}, Config{Observer: "gw1", machine: machine{observer: true, noID: none}},
			Config{Observer: "id", machine: machine{observer: true}}},
		{Config{Observer: "gw1", machine: machine{observer: true, noID: none}}, Config{Observer: "id", machine: machine{observer: true}},
			Config{Observer: "id", machine: machine{observer: true}}},
		{Config{Observer: "id", machine: machine{observer: true}}, Config{Observer: "set"}, Config{Observer: "set"}},
		{Config{Observer: "set"}, Config{Observer: "gw1", machine: machine{observer: true, noID: none}},
			Config{Observer: "gw1", machine: machine{observer: true, noID: none}}},
	} {
		got := tt.now
		got.keepID(&tt.running)
		if got.Observer != tt.want.Observer || got.machine != tt.want.machine {
			t.Errorf("running %q, now %q: %q, %v", tt.running.Observer, tt.now.Observer, got.Observer, got.machine)
		}
	}
}
