package input

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ctlogd/ctlogd/flow"
)

// Reconfigure brings a running reader to cfg without closing its socket: events, expectations, labels, the buffer and
// the socket filter. then runs on the reader's goroutine behind it, between two batches: what depends on the events
// changes with them. Keys that take effect at a start only are returned in fixed, and keep their values. On error
// nothing that can be undone has changed.
//
// It may be called from one goroutine at a time while Run runs. When ctx ends it returns, and nothing changes any more
// unless the change is just being made, which is waited for.
func (c *Conntrack) Reconfigure(ctx context.Context, cfg Config, drop func(flow.Event, bool, flow.Proto) bool,
	then func()) (fixed []string, err error) {
	done := make(chan struct{})
	call := func() {
		defer close(done)
		fixed, err = c.reconfigure(cfg, drop)
		if err == nil {
			then()
		}
	}
	select {
	case c.calls <- call:
		_, _ = unix.Write(c.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-done:
		return fixed, err
	case <-ctx.Done():
	}
	select {
	case <-c.calls:
		return nil, errors.New("the reader has ended")
	case <-done: // it was at it
		return fixed, err
	}
}

func (c *Conntrack) reconfigure(cfg Config, drop func(flow.Event, bool, flow.Proto) bool) (fixed []string, err error) {
	next := c.cfg
	next.Events, next.Expectations, next.Labels, next.ReceiveBuffer = cfg.Events, cfg.Expectations, cfg.Labels, cfg.ReceiveBuffer
	fixed = changed(cfg, next)

	defer c.guard.hold()()
	before := slices.Clone(c.sock.groups)
	c.sock.groups = groups(&next)
	in := interest{news: next.wants("new"), updates: next.wants("update"), labels: next.Labels, drop: drop}
	if err := c.sock.configure(&next, c.log, in, true); err != nil {
		c.sock.groups = before
		return nil, err
	}
	c.flush() // what was read before belongs to the configuration before
	c.cfg, c.opts.Drop = next, drop
	return fixed, c.guard.watch(in)
}

// answer runs what Reconfigure has asked for.
func (c *Conntrack) answer() {
	select {
	case call := <-c.calls:
		call()
	default:
	}
}

// changed returns the names of the keys in which want differs from got.
func changed(want, got Config) (keys []string) {
	note := func(key string, differs bool) {
		if differs {
			keys = append(keys, key)
		}
	}
	note("delivery", want.Delivery != got.Delivery)
	note("helper_entries", *want.HelperEntries != *got.HelperEntries)
	note("initial_dump", *want.InitialDump != *got.InitialDump)
	note("interim", want.Interim != got.Interim)
	note("open_at_shutdown", want.OpenAtShutdown != got.OpenAtShutdown)
	note("table_guard", *want.TableGuard != *got.TableGuard)
	return keys
}

// watch gives the witnesses the socket's new filter: they count what the socket would have been sent. The guard may be
// nil.
func (g *guard) watch(in interest) error {
	if g == nil {
		return nil
	}
	return errors.Join(attachFilter(g.frozen.fd, filterProgram(in)), attachFilter(g.loss.fd, filterProgram(in)))
}
