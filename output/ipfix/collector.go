package ipfix

import (
	"context"
	"net/netip"

	"go.uber.org/zap"

	"github.com/ctlogd/ctlogd/output/datagram"
)

// collector is one of the configured collectors.
type collector struct {
	address
	peer *datagram.Peer // over UDP; else nil
}

func (e *Exporter) newCollector(a address) *collector {
	c := &collector{address: a}
	if c.datagrams() {
		c.peer = &datagram.Peer{
			Host: a.Host, Port: a.Port, Resolve: e.sockets.Resolver().LookupNetIP, Sockets: e.sockets, Refused: &e.counts.refused,
		}
	}
	return c
}

// UDP implements datagram.Receiver.
func (c *collector) UDP() *datagram.Peer { return c.peer }

// datagrams reports whether the collector is reached over UDP.
func (c *collector) datagrams() bool { return c.Scheme == "udp" }

// dialCollector begins a session with c: over UDP with the target in front.
func (e *Exporter) dialCollector(ctx context.Context, c *collector) (transport, error) {
	size, err := e.config.messageSize(c.datagrams())
	if err != nil {
		return nil, err
	}
	if !c.datagrams() {
		return e.dialStream(ctx, c.address, size)
	}
	socket, err := c.peer.Dial(ctx, e.config.templateInterval())
	if err != nil {
		return nil, err
	}
	return sessionOn(socket, size), nil
}

// resolutionDue returns the collector whose name is to be looked up again, nil if none is.
func (e *Exporter) resolutionDue() *collector {
	c := e.collectors[e.active]
	if e.session == nil || !c.peer.Named() {
		return nil
	}
	if asked := e.reopen.Swap(false); !asked && !c.peer.Stale(e.config.templateInterval()) {
		return nil
	}
	return c
}

// moved takes note of where c is now. If its session goes to where it is not any more, it ends, and the next begins.
func (e *Exporter) moved(ctx context.Context, c *collector, targets []netip.AddrPort, err error) {
	if err != nil {
		e.log.Warn("the collector's name cannot be looked up; its session goes on with the address that it had",
			zap.Stringer("collector", c.address), zap.Error(err))
	}
	was := c.peer.At()
	if !c.peer.Move(targets) || e.session == nil || c != e.collectors[e.active] {
		return
	}
	e.counts.moves.Add(1)
	e.log.Info("the collector's address has changed", zap.Stringer("collector", c.address),
		zap.String("was", was), zap.String("is", c.peer.At()))
	e.leave()
	if err := e.connect(ctx); err != nil {
		e.log.Warn("records wait for a session", zap.Error(err))
	}
}

// Reopen has the names of the collectors looked up again, at once. Any goroutine may call it; it does not wait.
func (e *Exporter) Reopen() error {
	e.reopen.Store(true)
	e.tender.Look()
	return nil
}
