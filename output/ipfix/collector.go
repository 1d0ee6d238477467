package ipfix

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
)

// collector is one of the configured collectors. Over UDP it is at one or several targets, the addresses of its name,
// since nothing but an answer tells at which of them it listens.
type collector struct {
	address

	targets  []netip.AddrPort // the one to try next in front; UDP only
	resolved time.Time        // when the name was last looked up
	absent   bool             // at none of them, when they were last tried

	// sockets are kept when a session ends: the next one to the same target has the same port, and is the same flow in
	// the connection tracking tables on its way.
	sockets map[netip.AddrPort]*udp
}

// datagrams reports whether the collector is reached over UDP.
func (c *collector) datagrams() bool { return c.scheme == "udp" }

// named reports whether the collector's host is a name, whose addresses may change.
func (c *collector) named() bool {
	_, err := netip.ParseAddr(c.host)
	return err != nil
}

// resolver returns the addresses of a name, as net.Resolver.LookupNetIP does.
type resolver func(ctx context.Context, network, host string) ([]netip.Addr, error)

// lookUp returns where the collector is now. It may wait for a name server until ctx ends.
func (c *collector) lookUp(ctx context.Context, resolve resolver) (targets []netip.AddrPort, err error) {
	port, err := strconv.ParseUint(c.port, 10, 16)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(c.host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ip.Unmap(), uint16(port))}, nil
	}
	list, err := resolve(ctx, "ip", c.host)
	if err != nil {
		return nil, err
	}
	for _, ip := range list {
		if t := netip.AddrPortFrom(ip.Unmap(), uint16(port)); !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
	}
	if targets == nil {
		return nil, fmt.Errorf("%s has no address", c.host)
	}
	return targets, nil
}

// move notes where the collector is now, and lets go of sockets to where it is not. What is in front stays there if it
// is still right. changed reports whether it is not, or was not known.
func (c *collector) move(targets []netip.AddrPort) (changed bool) {
	c.resolved = time.Now()
	if len(c.targets) > 0 {
		if i := slices.Index(targets, c.targets[0]); i >= 0 {
			targets = slices.Concat(targets[i:], targets[:i])
		} else {
			changed = true
		}
	}
	c.targets = targets
	maps.DeleteFunc(c.sockets, func(t netip.AddrPort, u *udp) bool {
		gone := !slices.Contains(targets, t)
		if gone {
			u.free()
		}
		return gone
	})
	return changed
}

// at returns the address that is tried, where the name does not tell; "" where it does, or nothing is known.
func (c *collector) at() string {
	if len(c.targets) == 0 || !c.named() {
		return ""
	}
	return c.targets[0].String()
}

// rotate puts the target in front behind the others.
func (c *collector) rotate() {
	if len(c.targets) > 1 {
		c.targets = append(c.targets[1:], c.targets[0])
	}
}

// free closes the collector's sockets.
func (c *collector) free() {
	for _, u := range c.sockets {
		u.free()
	}
	clear(c.sockets)
}

// dialCollector begins a session with c: over UDP with the target in front.
func (e *Exporter) dialCollector(ctx context.Context, c *collector) (transport, error) {
	size, err := e.config.messageSize(c.datagrams())
	if err != nil {
		return nil, err
	}
	switch c.scheme {
	case "tls":
		return dialStream(ctx, c.address, &e.config.TLS, size, e.sockets, e.look)
	case "tcp":
		return dialStream(ctx, c.address, nil, size, e.sockets, e.look)
	}
	stale := e.config.templateInterval()
	if c.absent {
		stale = firstRetry
	}
	if c.targets == nil || c.named() && time.Since(c.resolved) >= stale {
		targets, err := c.lookUp(ctx, e.resolve)
		switch {
		case err == nil:
			c.move(targets)
		case c.targets == nil:
			return nil, err
		}
	}
	target := c.targets[0]
	if u := c.sockets[target]; u != nil {
		u.revive()
		return u, nil
	}
	u, err := dialUDP(target, size, e.sockets, &e.counts.refused)
	if err != nil {
		return nil, err
	}
	if c.sockets == nil {
		c.sockets = map[netip.AddrPort]*udp{}
	}
	c.sockets[target] = u
	return u, nil
}

// resolutionDue returns the collector whose name is to be looked up again, nil if none is.
func (e *Exporter) resolutionDue() *collector {
	c := e.collectors[e.active]
	if e.session == nil || !c.datagrams() || !c.named() {
		return nil
	}
	if asked := e.reopen.Swap(false); !asked && time.Since(c.resolved) < e.config.templateInterval() {
		return nil
	}
	return c
}

// moved takes note of where c is now. If its session goes to where it is not any more, it ends, and the next begins.
func (e *Exporter) moved(ctx context.Context, c *collector, targets []netip.AddrPort, err error) {
	if err != nil {
		c.resolved = time.Now()
		e.log.Warn("the collector's name cannot be looked up; its session goes on with the address that it had",
			zap.Stringer("collector", c.address), zap.Error(err))
		return
	}
	was := c.targets[0]
	if !c.move(targets) || e.session == nil || c != e.collectors[e.active] {
		return
	}
	e.counts.moves.Add(1)
	e.log.Info("the collector's address has changed", zap.Stringer("collector", c.address),
		zap.Stringer("was", was), zap.Stringer("is", c.targets[0]))
	e.leave()
	if err := e.connect(ctx); err != nil {
		e.log.Warn("records wait for a session", zap.Error(err))
	}
}

// Reopen has the names of the collectors looked up again, at once. Any goroutine may call it; it does not wait.
func (e *Exporter) Reopen() error {
	e.reopen.Store(true)
	e.look()
	return nil
}
