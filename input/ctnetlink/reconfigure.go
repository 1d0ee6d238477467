package ctnetlink

import (
	"errors"
	"slices"

	"github.com/ctlogd/ctlogd/flow"
)

// Reconfigure brings a running source to cfg without closing its socket: events, expectations, labels, the buffer and
// the socket filter. Keys that take effect at a start only are returned in fixed, and keep their values. On error the
// socket is as it was.
//
// It is called on the reader's goroutine (input.Reader.Do).
func (s *Source) Reconfigure(cfg Config, drop func(flow.Event, bool, flow.Proto) bool) (fixed []string, err error) {
	next := s.cfg.adopt(cfg)
	fixed = changed(cfg, next)

	defer s.guard.hold()()
	before, in := s.sock.settings, next.interest(drop)
	if err := s.sock.change(next.settings(in), s.opts.Log); err != nil {
		return nil, err
	}
	if err := s.guard.watch(in); err != nil {
		return nil, errors.Join(err, s.sock.change(before, s.opts.Log), s.guard.watch(before.interest))
	}
	if s.others != nil {
		s.others.all = next.all()
		s.others.forget()
		s.others.watcher.Want(next.wanted())
	}
	s.cfg, s.opts.Drop = next, drop
	return fixed, nil
}

// adopt returns c with those keys of want that can change while it runs. OpenAtShutdown is the caller's, at the end.
func (c Config) adopt(want Config) Config {
	c.Events, c.Expectations, c.Labels, c.ReceiveBuffer = want.Events, want.Expectations, want.Labels, want.ReceiveBuffer
	c.OpenAtShutdown = want.OpenAtShutdown
	if c.Others() == want.Others() { // the rights for it are given up at the start
		c.Namespaces = want.Namespaces
	}
	return c
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
	note("namespaces", !slices.Equal(want.Namespaces, got.Namespaces))
	note("table_guard", *want.TableGuard != *got.TableGuard)
	return keys
}

// watch has the witnesses count by the new filter. The guard may be nil.
func (g *guard) watch(in interest) error {
	if g == nil {
		return nil
	}
	return g.witnesses.watch(in)
}
