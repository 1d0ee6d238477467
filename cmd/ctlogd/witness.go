//go:build !small

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ctlogd/ctlogd/flow"
	"github.com/ctlogd/ctlogd/input/ctnetlink"
	"github.com/ctlogd/ctlogd/live"
	"github.com/ctlogd/ctlogd/monitor"
	"github.com/ctlogd/ctlogd/whois"
)

// witness is the daemon of this machine, as far as it bears witness for whois: what is in the table is alive, and what has
// ended is on record, if the daemon runs, reads this table, and is not behind.
type witness struct {
	cfg *Config
	ask func(ctx context.Context) (*live.View, error)
}

// newTable returns what there is to know of this machine. Without read, its table is not looked at.
func newTable(cfg *Config, read bool) *whois.Table {
	w := &witness{cfg: cfg, ask: live.NewClient(cmp.Or(cfg.Live.Socket, live.DefaultSocket)).Status}
	if cfg.Live.Socket == live.NoSocket {
		w.ask = func(context.Context) (*live.View, error) {
			return nil, errors.New("live.socket is none, so ctlogd cannot be asked")
		}
	}
	t := &whois.Table{Host: cfg.Host, Observer: cfg.Observer, Filter: w.filter, Recorded: w.recorded,
		Writes: func(path string) bool { return w.output(path) != "" }}
	if read {
		t.Read = w.tables
	}
	return t
}

// tables reads the table of each network namespace that the daemon listens to.
func (w *witness) tables(ctx context.Context, visit func(*flow.Record)) error {
	others := slices.DeleteFunc(slices.Clone(w.cfg.Input.Conntrack.Namespaces), func(name string) bool { return name == ctnetlink.OwnNamespace })
	if !slices.Contains(others, ctnetlink.AllNamespaces) { // which are the own one as well
		if err := ctnetlink.ReadTable(ctx, visit); err != nil || len(others) == 0 {
			return err
		}
	}
	return (&listOptions{netns: others}).read(ctx, visit)
}

// filter returns the key of rules that may keep what is asked for out of what is at path.
func (w *witness) filter(path string, q *whois.Question) string {
	name := w.output(path)
	return w.hides(q, func(o string, _ bool) bool { return o == name })
}

// filterThen is filter of a file of JSON lines that may be a copy, or of another machine: any output of such files may have
// written it.
func (w *witness) filterThen(path string, q *whois.Question) string {
	name := w.output(path)
	return w.hides(q, func(o string, lines bool) bool { return o == name || name == "" && lines })
}

// hides returns the key of rules that may keep what is asked for out of one of those outputs that are meant.
func (w *witness) hides(q *whois.Question, meant func(name string, lines bool) bool) string {
	if w.cfg.Filter.Hides(q.Proto, q.HasProto) {
		return "filter"
	}
	if !slices.Contains(w.cfg.Input.Conntrack.Events, flow.EventNames[flow.EventDestroy]) {
		return "input.conntrack.events"
	}
	for i := range w.cfg.Outputs.Archive {
		if o := &w.cfg.Outputs.Archive[i]; meant(o.Name(), false) && o.Filter.Hides(q.Proto, q.HasProto) {
			return fmt.Sprintf("outputs.archive[%d].filter", i)
		}
	}
	for i := range w.cfg.Outputs.JSONL {
		if o := &w.cfg.Outputs.JSONL[i]; meant(o.Name(), true) && o.Filter.Hides(q.Proto, q.HasProto) {
			return fmt.Sprintf("outputs.jsonl[%d].filter", i)
		}
	}
	return ""
}

// output returns the name of the output that writes the archive, or the file, at a path; "" if none does.
func (w *witness) output(path string) string {
	is, err := os.Stat(path)
	if err != nil {
		return ""
	}
	same := func(p string) bool {
		info, err := os.Stat(p)
		return err == nil && os.SameFile(info, is)
	}
	for i := range w.cfg.Outputs.Archive {
		if o := &w.cfg.Outputs.Archive[i]; same(o.Path) {
			return o.Name()
		}
	}
	for i := range w.cfg.Outputs.JSONL {
		if o := &w.cfg.Outputs.JSONL[i]; same(o.Path) {
			return o.Name()
		}
	}
	return ""
}

// recordWithin is how long an output may take to put on record what has ended by now. A reader that is idle goes round once
// a second.
var recordWithin = 5 * time.Second

// recorded waits until the output that writes what is at path has all that has ended by now.
func (w *witness) recorded(ctx context.Context, path string) error {
	now := time.Now()
	name := w.output(path)
	read := time.Time{} // when all of it was seen to be in the queues
	for {
		bounded, cancel := context.WithTimeout(ctx, recordWithin)
		v, err := w.ask(bounded)
		cancel()
		if err != nil {
			return err
		}
		if err := sameTable(v.PID); err != nil {
			return err
		}
		if read.IsZero() && !v.Reader.ReadTo.Before(now) {
			read = v.Time
		}
		if n := v.Namespaces; n != nil && n.Unnamed > 0 && slices.Contains(w.cfg.Input.Conntrack.Namespaces, ctnetlink.AllNamespaces) {
			return errors.New("there are network namespaces without a name, whose tables are not read")
		}
		o := outputOf(v.Outputs, name)
		if o == nil {
			return fmt.Errorf("the running ctlogd has no output %s", name)
		}
		waits := v.Time.Add(-time.Duration(o.OldestAge * float64(time.Second)))
		if !read.IsZero() && (o.OldestAge == 0 || waits.After(read)) {
			return nil
		}
		if time.Since(now) > recordWithin {
			if o.OldestAge == 0 {
				return fmt.Errorf("ctlogd has read the kernel's events up to %s only", v.Reader.ReadTo.UTC().Format(time.DateTime+" UTC"))
			}
			why := ""
			if o.Failing {
				why = ": " + o.Error
			}
			return fmt.Errorf("records wait since %s to be written%s", waits.UTC().Format(time.DateTime+" UTC"), why)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func outputOf(outputs []monitor.Output, name string) *monitor.Output {
	for i := range outputs {
		if outputs[i].Name == name {
			return &outputs[i]
		}
	}
	return nil
}

// sameTable says why the table of this process is not the one that the daemon reads: each network namespace has its own.
func sameTable(pid int) error {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	theirs, err := os.Readlink(filepath.Join("/proc", fmt.Sprint(pid), "ns/net"))
	if err != nil {
		return fmt.Errorf("which network namespace ctlogd runs in cannot be seen: %w", err)
	}
	if own != theirs {
		return fmt.Errorf("ctlogd runs in another network namespace than this command: nsenter --net=/proc/%d/ns/net ctlogd whois ... asks in its own", pid)
	}
	return nil
}
